"""The writer of a log of events, which only the process that holds the lock of the run may be."""

import errno
import os
import re
import threading
from pathlib import Path

import msgspec

from lmconsole.files import open_file
from lmconsole.runs.event_reader import CHUNK_BYTES, MAX_LOG_BYTES
from lmconsole.runs.events import E, encoder, name_non_finite, utc_now

_SEQ = re.compile(rb'"seq":(\d{1,15})[,}]')
_SEQ_WITHIN = 256
"""Bytes at the start of a line that contain its number."""


class LogTakenError(OSError):
    """Another process has changed the log."""


class EventLog:
    """Appends events to a log."""

    def __init__(self, path: Path, *, fenced: bool = False) -> None:
        """Open the log and cut off the incomplete last line that a crash may have left.

        Numbers continue after the highest in the log. A damaged line counts as one number, so that none is repeated.

        Args:
            fenced: do not append to a log that another process has changed since.

        Raises:
            OSError: the file cannot be opened or created, or is larger than ``MAX_LOG_BYTES``.
        """
        self._path = path
        self._mutex = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._descriptor = open_file(path, flags, 0o644, follow=False)
        try:
            self.seq = self._repair()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._expected_bytes = os.fstat(self._descriptor).st_size if fenced else None

    def _repair(self) -> int:
        """Cut off an incomplete last line, and return the highest number in the log."""
        size = os.fstat(self._descriptor).st_size
        if size > MAX_LOG_BYTES:
            raise OSError(errno.EFBIG, f"larger than {MAX_LOG_BYTES // 2**20:,} MiB", str(self._path))
        highest = position = complete = 0
        begun = b""
        while data := os.pread(self._descriptor, CHUNK_BYTES, position):
            complete = max(complete, position + data.rfind(b"\n") + 1) if b"\n" in data else complete
            position += len(data)
            *lines, begun = (begun + data).split(b"\n")
            begun = begun[:_SEQ_WITHIN]
            for line in lines:
                found = _SEQ.search(line, 0, _SEQ_WITHIN)
                highest = max(highest, int(found[1])) if found else highest + 1
        if complete < position:
            os.ftruncate(self._descriptor, complete)
        return highest

    def append(self, event: E, *, sync: bool = False) -> E:
        """Append ``event`` with the next ``seq`` and the time, and return it with them. Thread-safe.

        Args:
            sync: force the log to the disk.

        Raises:
            OSError: the disk is full, for example. The log then ends with the line before.
            LogTakenError: another process has changed the log, which is fenced.
        """
        with self._mutex:
            event = name_non_finite(msgspec.structs.replace(event, seq=self.seq + 1, t=utc_now()))
            line = encoder.encode(event) + b"\n"
            size = os.fstat(self._descriptor).st_size
            if self._expected_bytes is not None and size != self._expected_bytes:
                raise LogTakenError(errno.ESTALE, "another process writes it", str(self._path))
            try:
                written = os.write(self._descriptor, line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise
            self.seq += 1
            if self._expected_bytes is not None:
                self._expected_bytes += len(line)
            if sync:
                os.fsync(self._descriptor)
            return event

    def sync(self) -> None:
        """Force the log to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
