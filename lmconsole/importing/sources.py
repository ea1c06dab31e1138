"""Reading of runs that were not trained by lmconsole: one folder per run, or a CSV file with one row per epoch.

A folder holds ``args.json`` and text files with one number per line: ``valid_ppl.txt`` or ``valid_loss.txt``
(required), ``train_ppl.txt``, ``train_loss.txt``, ``train_time.txt`` and ``valid_time.txt`` (seconds per epoch), and
``test_ppl.txt`` or ``test_loss.txt`` with a single number. docs/importing.md lists the keys and columns.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from lmconsole.errors import StoreError
from lmconsole.runs.events import perplexity
from lmconsole.runs.paths import RunPaths

LARGEST_FILE_BYTES = 16 * 2**20
"""Larger files are not lists of numbers, and are not read."""

_KEYS = {
    "model": ("model", "architecture", "arch", "model_type"),
    "layers": ("layers", "num_layers", "n_layers", "n_layer", "nlayers"),
    "optimizer": ("optimizer", "optim", "opt"),
    "epochs": ("epochs", "num_epochs", "n_epochs"),
    "batch_size": ("batch_size", "batchsize"),
    "learning_rate": ("learning_rate", "lr"),
    "weight_decay": ("weight_decay", "wd"),
    "momentum": ("momentum",),
    "window_tokens": ("window_tokens", "seq_len", "bptt", "context_length"),
    "seed": ("seed",),
    "denominator": ("denominator",),
}
"""Names under which a source can state a setting."""


_FILES = {
    "train_loss_nats": "train_loss.txt",
    "train_ppl": "train_ppl.txt",
    "valid_loss_nats": "valid_loss.txt",
    "valid_ppl": "valid_ppl.txt",
    "train_s": "train_time.txt",
    "valid_s": "valid_time.txt",
}
"""Files with one number per epoch, by the fields of ``EpochNumbers``."""

_REQUIRED_COLUMNS = (
    ("model", "architecture"),
    ("layers",),
    ("optimizer",),
    ("epoch",),
    ("valid_ppl", "valid_loss_nats"),
)
"""Columns of a CSV file; one of each tuple is required."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochNumbers:
    """Metrics of one epoch as given: None is unknown, and numbers can be infinite or NaN."""

    train_loss_nats: float | None = None
    train_ppl: float | None = None
    valid_loss_nats: float | None = None
    valid_ppl: float | None = None
    train_s: float | None = None
    valid_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A run as described by its source, not yet validated."""

    location: str
    stated: Mapping[str, Any]
    """Settings by the names that the source uses."""
    epochs: Sequence[EpochNumbers]
    test_ppl: float | None = None


class ImportSourceError(Exception):
    """The run cannot be imported, for the reason in the message."""


def sources(path: Path) -> Iterator[tuple[str, Callable[[], Source]]]:
    """Yield the location of every possible run under ``path``, and a function that reads it or raises
    ImportSourceError.

    Raises:
        StoreError: ``path`` is missing, unreadable or contains no runs.
    """
    if not path.exists():
        raise StoreError(f"{path}: no such file or folder")
    if path.is_file():
        yield from _csv_runs(path)
        return
    try:
        folders = [path] if (path / "args.json").exists() else sorted(each for each in path.iterdir() if each.is_dir())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    folders = [folder for folder in folders if not folder.name.startswith(".")]
    if not folders:
        raise StoreError(
            f"{path}: no run folders and no args.json",
            hint="Each run needs a folder with args.json and valid_ppl.txt.",
        )
    for folder in folders:
        yield str(folder), partial(_read_folder, folder)


def _read_folder(folder: Path) -> Source:
    if RunPaths(folder).info.exists():
        raise ImportSourceError(
            "already a run of lmconsole; use --runs to open its store, or export --against to compare with it"
        )
    arguments = folder / "args.json"
    try:
        stated = json.loads(_read_text(arguments))
    except ValueError as error:
        raise ImportSourceError(f"args.json is not JSON: {error}") from None
    except RecursionError:
        raise ImportSourceError("args.json is nested too deeply") from None
    if not isinstance(stated, dict):
        raise ImportSourceError("args.json is not an object with settings")
    found = {name: _read_numbers(folder / file) for name, file in _FILES.items()}
    present = {name: values for name, values in found.items() if values is not None}
    if "valid_ppl" not in present and "valid_loss_nats" not in present:
        raise ImportSourceError("neither valid_ppl.txt nor valid_loss.txt")
    lengths = {name: len(values) for name, values in present.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{_FILES[name]} {count}" for name, count in lengths.items())
        raise ImportSourceError(f"different numbers of epochs: {counts}")
    epochs = [EpochNumbers(**dict(zip(present, values, strict=True))) for values in zip(*present.values(), strict=True)]
    return Source(location=str(folder), stated=stated, epochs=epochs, test_ppl=_read_test_ppl(folder))


def _read_test_ppl(folder: Path) -> float | None:
    ppl = _read_single_number(folder / "test_ppl.txt")
    if ppl is not None:
        return ppl
    loss_nats = _read_single_number(folder / "test_loss.txt")
    return None if loss_nats is None else perplexity(loss_nats)


def _read_single_number(path: Path) -> float | None:
    values = _read_numbers(path)
    if values is None:
        return None
    if len(values) != 1:
        raise ImportSourceError(f"{path.name} has {len(values)} numbers instead of one")
    return values[0]


def _read_numbers(path: Path) -> list[float] | None:
    """Read one number per line; None if the file does not exist."""
    if not path.exists():
        return None
    values = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.strip():
            values.append(_parse_float(line, f"{path.name} line {number}"))
    return values


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ImportSourceError(f"{path.name} is larger than {LARGEST_FILE_BYTES // 2**20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ImportSourceError(f"no {path.name}") from None
    except OSError as error:
        raise ImportSourceError(f"{path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ImportSourceError(f"{path.name} is not text") from None


def _parse_float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ImportSourceError(f"{where}: {text.strip()[:40]!r} is not a number") from None


def _csv_runs(path: Path) -> Iterator[tuple[str, Callable[[], Source]]]:
    """Group the rows of a CSV file by ``run`` or, without that column, by experiment and seed."""
    try:
        rows = list(csv.DictReader(_read_text(path).splitlines(), strict=True))
    except ImportSourceError as error:
        raise StoreError(f"{path}: {error}") from None
    except csv.Error as error:
        raise StoreError(f"{path}: not CSV: {error}") from None
    columns = {_normalize(name) for name in (rows[0] if rows else {}) if name}
    missing = [
        first + (f" (or {' or '.join(others)})" if others else "")
        for first, *others in _REQUIRED_COLUMNS
        if columns.isdisjoint((first, *others))
    ]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise StoreError(
            f"{path}: missing column{plural}: {'; '.join(missing)}", hint="docs/importing.md lists the columns."
        )
    by_run: dict[tuple[str, ...], list[tuple[int, dict[str, str]]]] = {}
    for number, row in enumerate(rows, 2):
        cells = {_normalize(name): value.strip() for name, value in row.items() if name and isinstance(value, str)}
        key = (
            cells.get("run", ""),
            *(stated_value(cells, setting) or "" for setting in ("model", "layers", "optimizer", "seed")),
        )
        by_run.setdefault((key[0],) if key[0] else key, []).append((number, cells))
    for key, run_rows in by_run.items():
        yield f"{path}: {' '.join(part for part in key if part)}", partial(_read_rows, path, run_rows)


def _normalize(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def stated_value(stated: Mapping[str, Any], setting: str) -> Any:
    """Return the value of a setting under any of its names; None if it is not stated."""
    found = {_normalize(str(key)): value for key, value in stated.items()}
    return next((found[name] for name in _KEYS[setting] if found.get(name) not in (None, "")), None)


def _read_rows(path: Path, rows: Sequence[tuple[int, Mapping[str, str]]]) -> Source:
    epochs: dict[int, EpochNumbers] = {}
    test_ppls = set()
    for line, cells in rows:
        where = f"line {line}"
        epoch = _parse_float(cells.get("epoch", ""), f"{where}, epoch")
        if not epoch.is_integer() or int(epoch) in epochs:
            raise ImportSourceError(f"{where}: epoch {cells['epoch']} is not a whole number, or is repeated")
        non_finite = dict(pair.split("=", 1) for pair in cells.get("non_finite", "").split() if "=" in pair)
        epochs[int(epoch)] = EpochNumbers(
            **{
                field.name: _parse_float(text, f"{where}, {field.name}")
                for field in fields(EpochNumbers)
                if (text := cells.get(field.name) or non_finite.get(field.name, ""))
            }
        )
        if test_ppl := cells.get("test_ppl"):
            test_ppls.add(_parse_float(test_ppl, f"{where}, test_ppl"))
    if sorted(epochs) != list(range(1, len(epochs) + 1)):
        raise ImportSourceError(f"epochs are not 1 to {len(epochs)}: {', '.join(map(str, sorted(epochs)))}")
    if len(test_ppls) > 1:
        raise ImportSourceError("several different values of test_ppl")
    return Source(
        location=f"{path} lines {rows[0][0]}-{rows[-1][0]}",
        stated={key: value for key, value in rows[0][1].items() if value and key != "epoch"},
        epochs=[epochs[epoch] for epoch in sorted(epochs)],
        test_ppl=next(iter(test_ppls), None),
    )
