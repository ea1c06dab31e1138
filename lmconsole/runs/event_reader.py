"""The reader of a log of events, which works while another process writes."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from lmconsole.errors import StoreError
from lmconsole.files import LineTail
from lmconsole.formatting import counted
from lmconsole.runs.events import DAMAGED, AnyEvent, Event, Number, Queued, decoder, restore_non_finite

CHUNK_BYTES = 8 * 2**20
"""Bytes of a log that are read at once; a longer line is damaged."""
MAX_SEQ = 10**15
"""Largest number of an event that counts; no log has so many."""
MAX_LOG_BYTES = 2**30
"""Largest log that is read: that of two weeks of training."""


class _Header(msgspec.Struct, frozen=True):
    """Fields that events of later versions have too."""

    kind: str
    seq: Number


_queued_decoder = msgspec.json.Decoder(Queued)
_header_decoder = msgspec.json.Decoder(_Header)
_KNOWN_KINDS = frozenset(str(kind.__struct_config__.tag) for kind in Event.__subclasses__())


@dataclass(frozen=True, kw_only=True, slots=True)
class LogDamage:
    """Damage that a reader has found in a log: counts, and where each kind was found first."""

    skipped: int = 0
    """Lines that cannot be read."""
    first_skipped_line: int = 0
    missing: int = 0
    """Numbers that no line has, in addition to those of the skipped lines."""
    first_missing: int = 0
    """The first number that is missing."""
    repeated: int = 0
    """Lines whose number is not above all numbers before it."""
    first_repeated_line: int = 0

    def describe(self) -> Iterator[str]:
        """Yield a phrase for each kind of damage."""
        if self.skipped:
            yield f"{counted(self.skipped, 'damaged line')} skipped, first line {self.first_skipped_line:,}"
        if self.missing:
            yield f"{counted(self.missing, 'event')} missing, first number {self.first_missing:,}"
        if self.repeated:
            yield (
                f"{counted(self.repeated, 'event')} repeated or out of order, first line {self.first_repeated_line:,}"
            )


class EventReader:
    """Reads the events that were appended since the last call.

    An incomplete last line waits for its rest. Damaged lines are skipped, and ``damage`` counts them, missing and
    repeated numbers. Events of unknown kinds, which a later version wrote, are skipped without counting.
    """

    def __init__(self, path: Path, *, offset: int = 0, lines: int = 0) -> None:
        """Start at the beginning of a log, or after ``offset`` bytes with this number of lines, of which none is
        damaged."""
        self._path = path
        # A log that becomes shorter must not be read again: its events have already been folded into a state.
        self._tail = LineTail(path, offset=offset, limit=CHUNK_BYTES, restart=False)
        self._line = lines
        """Lines read so far."""
        self.highest = lines
        """Highest number so far."""
        self.skipped_last = 0
        """Damaged lines after the last readable one."""
        self.damage = LogDamage()

    @property
    def damaged(self) -> int:
        """Number of lines that were skipped."""
        return self.damage.skipped

    def read_new(self) -> Sequence[AnyEvent]:
        """Return the new events in order.

        Raises:
            FileNotFoundError: the log does not exist.
            StoreError: it cannot be read, or is larger than ``MAX_LOG_BYTES``.
        """
        events: Sequence[AnyEvent] = ()
        try:
            while True:
                if data := self._tail.read_new():
                    events = [*events, *self._decode(data)] if events else self._decode(data)
                if not self._tail.more:
                    return events
                if os.lstat(self._path).st_size > MAX_LOG_BYTES:
                    raise OSError(errno.EFBIG, f"larger than {MAX_LOG_BYTES // 2**20:,} MiB")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be read: {error.strerror}") from None

    def _decode(self, data: bytes) -> Sequence[AnyEvent]:
        try:
            events: Sequence[AnyEvent] = decoder.decode_lines(data)
        except DAMAGED:
            events = self._decode_each(data)
        else:
            if self.skipped_last or [1 for seq, event in enumerate(events, self.highest + 1) if event.seq != seq]:
                events = self._decode_each(data)
            else:
                self._line += len(events)
                self.highest += len(events)
        restore_non_finite(events)
        return events

    def _decode_each(self, data: bytes) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for line in data.removesuffix(b"\n").split(b"\n"):
            self._line += 1
            if not line.strip():
                continue
            try:
                event = decoder.decode(line)
            except DAMAGED:
                seq = _seq_of_unknown_kind(line)
            else:
                events.append(event)
                seq = event.seq
            self._count(seq)
        return events

    def _count(self, seq: int | None) -> None:
        """Note the number of a line, None for a damaged one, and what is wrong with it."""
        damage = self.damage
        if seq is None:
            self.skipped_last += 1
            first = damage.first_skipped_line or self._line
            self.damage = replace(damage, skipped=damage.skipped + 1, first_skipped_line=first)
            return
        expected = self.highest + self.skipped_last + 1
        if expected < seq <= MAX_SEQ:
            first, missing = damage.first_missing or expected, damage.missing + seq - expected
            self.damage = replace(damage, missing=missing, first_missing=first)
        elif seq != expected and not self.highest < seq < expected:
            first = damage.first_repeated_line or self._line
            self.damage = replace(damage, repeated=damage.repeated + 1, first_repeated_line=first)
        self.highest = max(self.highest, seq) if seq <= MAX_SEQ else self.highest
        self.skipped_last = 0


def queued_places(path: Path) -> Iterator[int]:
    """Yield the places in the queue that a log has, without decoding its other events.

    Raises:
        OSError: the log cannot be read.
    """
    if os.lstat(path).st_size > MAX_LOG_BYTES:
        return
    tail = LineTail(path, limit=CHUNK_BYTES)
    while True:
        for line in tail.read_new().split(b"\n"):
            if line.startswith(b'{"kind":"queued"'):
                with contextlib.suppress(*DAMAGED):
                    yield _queued_decoder.decode(line).place
        if not tail.more:
            return


def _seq_of_unknown_kind(line: bytes) -> int | None:
    """Return the number of an event that a later version wrote, None for a damaged line.

    A kind that differs in one character from a known one is damage.
    """
    try:
        header = _header_decoder.decode(line)
    except DAMAGED:
        return None
    for kind in _KNOWN_KINDS:
        if len(kind) == len(header.kind) and sum(map(str.__ne__, kind, header.kind)) <= 1:
            return None
    return header.seq
