"""Contents of folders, and a disk that fails."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return all files below a folder with their content, and all folders with None."""
    paths = sorted(folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in paths}


def fail_in_call(monkeypatch: pytest.MonkeyPatch, function: str, number: int) -> None:
    """Let one call of a function of ``os`` fail as on a full disk."""
    original: Callable[..., object] = getattr(os, function)
    calls = itertools.count(1)

    def wrapper(*arguments: object) -> object:
        if next(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[-1]))
        return original(*arguments)

    monkeypatch.setattr(os, function, wrapper)
