"""Runs in folders: ``args.json`` and text files with one number per line.

The files are ``valid_ppl.txt`` or ``valid_loss.txt`` (required), ``train_ppl.txt``, ``train_loss.txt``,
``train_time.txt`` and ``valid_time.txt`` (seconds per epoch), ``test_ppl.txt`` or ``test_loss.txt`` with a single
number, and ``gpu_memory.txt`` with readings of nvidia-smi.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmconsole.errors import StoreError
from lmconsole.importing.memory import MemoryReadingsError, Reading, parse_readings
from lmconsole.importing.sources import (
    MAX_EPOCHS,
    Candidate,
    EpochNumbers,
    ImportSourceError,
    Source,
    one_line,
    parse_float,
    read_text,
)
from lmconsole.runs.events import perplexity
from lmconsole.runs.paths import RunPaths

MAX_DEPTH = 8
"""Levels of folders below the one that is imported in which runs are found."""

MAX_FOLDERS = 20_000
"""Most folders in which runs are found."""

LONGEST_INTEGER = 40
"""Most digits of an integer in args.json. Python refuses to convert far longer ones, and no setting has as many."""

_FILES = {
    "train_loss_nats": "train_loss.txt",
    "train_ppl": "train_ppl.txt",
    "valid_loss_nats": "valid_loss.txt",
    "valid_ppl": "valid_ppl.txt",
    "train_s": "train_time.txt",
    "valid_s": "valid_time.txt",
}
"""Files with one number per epoch, by the fields of ``EpochNumbers``."""

ARGUMENTS, MEMORY = "args.json", "gpu_memory.txt"


def folder_runs(path: Path, store: Path) -> Iterator[Candidate]:
    """Yield every possible run in ``path`` and the folders in it. The folder ``store`` is left out if it is inside.

    Raises StoreError if there is none.
    """
    found = _Walk(store).find(path)
    if not found:
        raise StoreError(
            f"{path}: no run folders and no {ARGUMENTS}",
            hint=f"Each run needs a folder with {ARGUMENTS} and valid_ppl.txt.",
        )
    for each in found:
        yield Candidate(
            location=one_line(each.folder),
            place=one_line(os.path.abspath(each.folder)),
            read_stated=partial(_read_arguments, each),
            read=partial(_read_folder, each),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    folder: Path
    problem: str | None = None
    """Reason why nothing in it can be imported; None for a folder with ``args.json``."""


class _Walk:
    """Finds run folders at any depth. Hidden folders are skipped, and no folder is entered twice, so that links cannot
    form a loop."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._entered: set[tuple[int, int]] = set()
        self._full = False

    def find(self, root: Path) -> list[_Folder]:
        found = self._find(root, 0, within_run=False)
        if self._full:
            found.append(_Folder(folder=root, problem=f"more than {MAX_FOLDERS:,} folders; the others are left out"))
        return found

    def _find(self, folder: Path, depth: int, *, within_run: bool) -> list[_Folder]:
        """Return the run folders in ``folder``, itself among them, and the folders with a reason for having none."""
        try:
            state = folder.stat()
            identity = state.st_dev, state.st_ino
            if identity in self._entered:
                return []
            if len(self._entered) >= MAX_FOLDERS:
                self._full = True
                return []
            self._entered.add(identity)
            with os.scandir(folder) as entries:
                names = {entry.name: _is_folder(entry) for entry in entries if not entry.name.startswith(".")}
        except OSError as error:
            return [_Folder(folder=folder, problem=f"cannot be read: {error.strerror}")]
        if RunPaths(folder).info.name in names:
            return [_Folder(folder=folder, problem=_OWN_RUN)]
        is_run = ARGUMENTS in names
        found = [_Folder(folder=folder)] if is_run else []
        inner = [name for name, is_folder in names.items() if is_folder]
        if inner and depth == MAX_DEPTH:
            if not within_run and not is_run:
                found.append(_Folder(folder=folder, problem=f"more than {MAX_DEPTH} levels of folders"))
            return found
        for name in sorted(inner, key=_natural_order):
            if (folder / name).absolute() != self._store:
                found += self._find(folder / name, depth + 1, within_run=within_run or is_run)
        found = _count_own_runs(folder, found)
        if is_run and len(found) > 1 and not names.keys() & {_FILES["valid_ppl"], _FILES["valid_loss_nats"]}:
            return found[1:]  # settings that the runs in it have in common
        if depth > 0 and not within_run and all(each.problem == _NO_RUN for each in found):
            return [_Folder(folder=folder, problem=_NO_RUN)]  # one report instead of one for each folder in it
        return found


_NO_RUN = f"no {ARGUMENTS}"


def _count_own_runs(folder: Path, found: list[_Folder]) -> list[_Folder]:
    """Report the runs of another store together."""
    own = [each for each in found if each.problem == _OWN_RUN]
    if len(own) < 2:
        return found
    return [each for each in found if each not in own] + [
        _Folder(folder=folder, problem=f"{len(own):,} runs in it are {_OWN_RUN.replace('a run', 'runs', 1)}")
    ]


_OWN_RUN = "already a run of lmconsole; use --runs to open its store, or export --against to compare with it"


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() and len(part) < 20 else (-1, part) for part in re.split(r"(\d+)", name)]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _read_arguments(found: _Folder) -> Mapping[str, Any]:
    if found.problem is not None:
        raise ImportSourceError(found.problem)
    try:
        stated = json.loads(read_text(found.folder / ARGUMENTS), parse_int=_parse_integer)
    except ValueError as error:
        raise ImportSourceError(f"{ARGUMENTS} is not JSON: {error}") from None
    except RecursionError:
        raise ImportSourceError(f"{ARGUMENTS} is nested too deeply") from None
    if not isinstance(stated, dict):
        raise ImportSourceError(f"{ARGUMENTS} is not an object with settings")
    return stated


def _parse_integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ImportSourceError(f"{ARGUMENTS} has an integer of {len(digits):,} digits")
    return int(digits)


def _read_folder(found_folder: _Folder) -> Source:
    stated, folder = _read_arguments(found_folder), found_folder.folder
    found = {name: _read_numbers(folder / file) for name, file in _FILES.items()}
    present = {name: values for name, values in found.items() if values is not None}
    if "valid_ppl" not in present and "valid_loss_nats" not in present:
        raise ImportSourceError("neither valid_ppl.txt nor valid_loss.txt")
    lengths = {name: len(values) for name, values in present.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{_FILES[name]} {count}" for name, count in lengths.items())
        raise ImportSourceError(f"different numbers of epochs: {counts}")
    epochs = [EpochNumbers(**dict(zip(present, values, strict=True))) for values in zip(*present.values(), strict=True)]
    memory, notes = _read_memory(folder)
    return Source(stated=stated, epochs=epochs, test_ppl=_read_test_ppl(folder), memory=memory, notes=notes)


def _read_memory(folder: Path) -> tuple[Sequence[Reading], Sequence[str]]:
    """Return the readings of the device's memory, and what is wrong with them: they are not needed for an import."""
    path = folder / MEMORY
    if not os.path.lexists(path):
        return (), ()
    try:
        readings = parse_readings(read_text(path))
    except (ImportSourceError, MemoryReadingsError) as error:
        text = str(error)
        return (), (text if text.startswith(MEMORY) else f"{MEMORY}: {text}",)
    return readings.readings, ((f"{MEMORY}: {readings.problem}",) if readings.problem else ())


def _read_test_ppl(folder: Path) -> float | None:
    ppl = _read_single_number(folder / "test_ppl.txt")
    if ppl is not None:
        return ppl
    loss_nats = _read_single_number(folder / "test_loss.txt")
    return None if loss_nats is None else perplexity(loss_nats)


def _read_single_number(path: Path) -> float | None:
    values = _read_numbers(path)
    if not values:  # a run that is still being tested has made the file, but not yet written to it
        return None
    if len(values) != 1:
        raise ImportSourceError(f"{path.name} has {len(values):,} numbers instead of one")
    return values[0]


def _read_numbers(path: Path) -> list[float] | None:
    """Read one number per line; None if the file does not exist."""
    if not os.path.lexists(path):
        return None
    values = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            values.append(parse_float(line, f"{path.name} line {number}"))
            if len(values) > MAX_EPOCHS:
                raise ImportSourceError(f"{path.name} has more than {MAX_EPOCHS:,} numbers")
    return values
