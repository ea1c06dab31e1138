"""Reading the new lines of a growing file, such as a worker's log."""

from pathlib import Path

FIRST_BYTES = 64 * 1024
MOST_BYTES = 256 * 1024
"""Bytes of one read."""
LONGEST = 1_000
"""Characters kept of a line that is longer than one read."""


class Tail:
    """Returns the complete lines written since the last call, at first those of the last 64 KiB."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: int | None = None
        self._inside = False

    def read_new(self) -> list[str]:
        """Return the new lines; none if the file does not exist yet. Raises OSError if it cannot be read."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return []
        if self._offset is None or size < self._offset:
            self._offset = max(size - FIRST_BYTES, 0)
            self._inside = self._offset > 0
        if size == self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(MOST_BYTES)
        if self._inside:
            rest, newline, data = data.partition(b"\n")
            self._offset += len(rest) + len(newline)
            self._inside = not newline
        complete = data.rfind(b"\n") + 1
        if len(data) == MOST_BYTES and not complete:
            self._offset, self._inside = self._offset + len(data), True
            return [data[:LONGEST].decode(errors="replace") + " …"]
        self._offset += complete
        return data[:complete].decode(errors="replace").splitlines()
