"""Text that is read in pieces, from the disk each time, so that memory does not grow with its length.

A text is read two or three times: to check and measure it, to train a tokenizer, and to encode it. If it is no longer
the same then, this is an error.
"""

import codecs
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lmconsole.data.cache import SPLITS
from lmconsole.data.files import MAX_BYTES, READ_BYTES, check_text, not_utf8, open_data
from lmconsole.errors import CorpusError

LONGEST_PIECE = 2**20
"""Most characters of a piece. A longer line is cut, at a space between words if it has one."""

SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
"""Parts of the bytes of a single text file for each split."""

SPLIT_RULE = "split 90/5/5 at line ends"
"""Description of ``SHARES`` and ``split_file``."""

_LAST_SPACE = re.compile(r".*\w(?= \w)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPart:
    """A text file, or the bytes from ``start`` to ``stop`` of it, which begin and end at line ends.

    Offsets count the bytes of what a gzip file contains.
    """

    path: Path
    start: int = 0
    stop: int | None = None

    def chunks(self) -> Iterator[str]:
        """Yield the text in chunks of about ``READ_BYTES``. Line endings are kept, a byte order mark is dropped.

        Raises:
            CorpusError: the file cannot be read, is empty, or is no UTF-8 text.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        at = self.start
        for data in self._read():
            pending = len(decoder.getstate()[0])
            check_text(self.path, data, at)
            try:
                text = decoder.decode(data)
            except UnicodeDecodeError as error:
                raise not_utf8(self.path, at - pending, error) from None
            yield text.removeprefix("\ufeff") if at == 0 else text
            at += len(data)
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, at - len(error.object), error) from None
        if at == 0:
            check_text(self.path, b"")

    def _read(self) -> Iterator[bytes]:
        with open_data(self.path, MAX_BYTES) as file:
            file.seek(self.start)
            left = self.stop - self.start if self.stop is not None else -1
            while data := file.read(READ_BYTES if left < 0 else min(READ_BYTES, left)):
                yield data
                left -= len(data) if left >= 0 else 0


def cut_pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the same text in pieces of at most ``LONGEST_PIECE`` characters that end at line ends.

    Where a longer line is cut depends only on the line, and not on the chunks.
    """
    text = ""
    for chunk in chunks:
        text += chunk
        start = 0
        while (longest := start + LONGEST_PIECE) < len(text):
            end = text.rfind("\n", start, longest) + 1
            if not end:
                space = _LAST_SPACE.match(text, start, longest)
                end = space.end() if space else longest
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


class Text:
    """Text of one split, measured when it is made.

    Args:
        where: where it comes from, for messages.
        chunks: returns an iterator over the text, from its beginning each time.

    Raises:
        CorpusError: it cannot be read, is no UTF-8 text, or only white space.
    """

    def __init__(self, where: str, chunks: Callable[[], Iterable[str]]) -> None:
        self.where = where
        self._chunks = chunks
        self.characters = self.lines = 0
        digest, blank, end = hashlib.sha256(), True, ""
        for piece in cut_pieces(chunks()):
            digest.update(piece.encode("utf-8", "surrogatepass"))
            self.characters += len(piece)
            self.lines += piece.count("\n")
            blank, end = blank and piece.isspace(), piece[-1]
        self.lines += end not in ("", "\n")
        self.sha256 = digest.hexdigest()
        if blank:
            raise CorpusError(f"{where}: there is no text, only white space", hint="Add text to it.")

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces of ``cut_pieces``. Raises CorpusError if it is not the text that was measured."""
        digest = hashlib.sha256()
        for piece in cut_pieces(self._chunks()):
            digest.update(piece.encode("utf-8", "surrogatepass"))
            yield piece
        if digest.hexdigest() != self.sha256:
            raise CorpusError(f"{self.where}: changed while it was read", hint="Try again when it is complete.")


def split_file(path: Path) -> dict[str, TextPart]:
    """Split a text file into three parts by ``SHARES``, each cut at the line end that is nearest to its share.

    Raises:
        CorpusError: the file cannot be read, or has too few lines.
    """
    size = _text_size(path)
    marks = round(size * SHARES["train"]), round(size * (SHARES["train"] + SHARES["validation"]))
    cuts = [0, *_nearest_line_ends(path, marks), size]
    parts = dict(zip(SPLITS, pairwise(cuts), strict=True))
    for split, (start, stop) in parts.items():
        if start >= stop:
            raise CorpusError(
                f"{path}: its lines are too few or too long to split: no line is left for the {split} split",
                hint="One file is split into 90% for training and 5% each for validation and test, at line ends. "
                "Break it into more lines (only line feeds end them), or split it yourself into train.txt, valid.txt "
                "and test.txt in a folder.",
            )
    return {split: TextPart(path=path, start=start, stop=stop) for split, (start, stop) in parts.items()}


def _text_size(path: Path) -> int:
    """Return the bytes of a text file, or of what it unpacks to. Raises CorpusError if it does not begin like text."""
    with open_data(path, MAX_BYTES) as file:
        data = file.read(READ_BYTES)
        check_text(path, data)
        size = len(data)
        while data := file.read(READ_BYTES):
            size += len(data)
    return size


def _nearest_line_ends(path: Path, marks: tuple[int, ...]) -> list[int]:
    """Return for each of these offsets the nearest one at which a line ends, the later of two; 0 if there is none."""
    before, after = dict.fromkeys(marks, 0), dict.fromkeys(marks, -1)
    at = 0
    with open_data(path, MAX_BYTES) as file:
        while data := file.read(READ_BYTES):
            for mark in marks:
                # A line ends at an offset if the byte before it is a line feed.
                ends = data.rfind(b"\n", 0, max(mark - at, 0)) + 1
                before[mark] = at + ends if ends else before[mark]
                if after[mark] < 0 and at + len(data) >= mark:
                    starts = data.find(b"\n", max(mark - at - 1, 0)) + 1
                    after[mark] = at + starts if starts else -1
            at += len(data)
    return [
        before[mark] if after[mark] < 0 or mark - before[mark] < after[mark] - mark else after[mark] for mark in marks
    ]
