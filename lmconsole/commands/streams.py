"""Standard streams that may be closed, full, or set to non-blocking by another program."""

import io
import os
import select
import sys
from typing import Any

from lmconsole.errors import OutputError


class _Output(io.FileIO):
    """Standard output: the first write that fails raises OutputError, and later ones are discarded."""

    _failed = False

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self._failed:
            return size  # what was buffered is written again at exit, when nothing can be reported any more
        try:
            return _write(self, data)
        except OSError as error:
            self._failed = True
            raise OutputError(f"standard output cannot be written: {error.strerror}") from None


class _Messages(io.FileIO):
    """Standard error: a write that fails is discarded, since losing messages must not end the work."""

    def write(self, data: Any, /) -> int:
        try:
            return _write(self, data)
        except OSError:
            return memoryview(data).nbytes


def _write(file: io.FileIO, data: Any) -> int:
    """Write, and wait if the stream does not take anything now. Raises OSError."""
    while (written := io.FileIO.write(file, data)) is None:  # typeshed does not know that a non-blocking one gives None
        select.select([], [file], [])
    return written


def prepare_streams() -> None:
    """Make the standard streams safe to use. Characters that an encoding lacks are replaced.

    A stream that was closed is like /dev/null, and its descriptor is taken: the next file that is opened would get it,
    and messages would be written into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # stays open
    sys.stdout = _text(sys.stdout, _Output(1, "w", closefd=False), line_buffering=False)
    sys.stderr = _text(sys.stderr, _Messages(2, "w", closefd=False), line_buffering=True)


def _text(old: Any, raw: io.FileIO, *, line_buffering: bool) -> Any:
    if not isinstance(old, io.TextIOWrapper | None):
        return old  # a test or another program has replaced it
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=old.encoding if old else "utf-8",
        errors="replace",
        newline="\n",
        line_buffering=line_buffering or raw.isatty(),
        write_through=old.write_through if old else False,
    )
