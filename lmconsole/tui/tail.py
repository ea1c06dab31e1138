"""The newest lines of a file that grows, such as a worker's log."""

from pathlib import Path

FIRST_BYTES = 64 * 1024
MOST_BYTES = 256 * 1024


class Tail:
    """Gives the complete lines that have come since it was last asked; at first those of the last 64 KiB."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: int | None = None

    def read_new(self) -> list[str]:
        """New lines. Raises OSError if the file cannot be read; one that is not there yet has none."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return []
        cut = self._offset is None and size > FIRST_BYTES
        if self._offset is None or size < self._offset:
            self._offset = max(size - FIRST_BYTES, 0)
        if size == self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(MOST_BYTES)
        complete = data.rfind(b"\n") + 1
        self._offset += complete
        lines = data[:complete].decode(errors="replace").splitlines()
        return lines[1:] if cut else lines
