"""Where runs made elsewhere lie, and what they say: folders of a plain layout, one a run, or a CSV with a row an epoch.

A folder holds ``args.json`` and text files with a number a line: ``valid_ppl.txt`` or ``valid_loss.txt`` (needed),
``train_ppl.txt``, ``train_loss.txt``, ``train_time.txt`` and ``valid_time.txt`` (seconds of each epoch), and
``test_ppl.txt`` or ``test_loss.txt`` with one number. docs/importing.md lists the keys and columns.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lmconsole.errors import StoreError
from lmconsole.runs.events import perplexity
from lmconsole.runs.paths import RunPaths

LARGEST_FILE = 16 * 2**20
"""Bytes; a larger file is no list of an epoch's numbers."""


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
"""What a source may state, and what it may call it."""


class Numbers(NamedTuple):
    """What a source says of one epoch. None is unknown; a number may be infinite or NaN."""

    train_loss_nats: float | None = None
    train_ppl: float | None = None
    valid_loss_nats: float | None = None
    valid_ppl: float | None = None
    train_s: float | None = None
    valid_s: float | None = None


@dataclass(frozen=True)
class Source:
    """A run as its source describes it, before it is believed."""

    place: str
    stated: Mapping[str, Any]
    epochs: Sequence[Numbers]
    test_ppl: float | None = None


class OddSourceError(Exception):
    """This run cannot be imported, and why."""


def sources(path: Path) -> Iterator[tuple[str, Callable[[], Source]]]:
    """Where runs may be, and how each is read."""
    if not path.exists():
        raise StoreError(f"{path}: no such file or folder")
    if path.is_file():
        yield from _rows_by_run(path)
        return
    try:
        folders = [path] if (path / "args.json").exists() else sorted(each for each in path.iterdir() if each.is_dir())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    folders = [folder for folder in folders if not folder.name.startswith(".")]
    if not folders:
        raise StoreError(
            f"{path}: no folders in it, and no args.json", hint="Each run is a folder with args.json and valid_ppl.txt."
        )
    for folder in folders:
        yield str(folder), partial(_read_folder, folder)


def _read_folder(folder: Path) -> Source:
    if RunPaths(folder).info.exists():
        raise OddSourceError("a run of lmconsole's own; --runs names its store, and export --against compares with it")
    arguments = folder / "args.json"
    try:
        stated = json.loads(_text(arguments))
    except ValueError as error:
        raise OddSourceError(f"args.json is not JSON: {error}") from None
    except RecursionError:
        raise OddSourceError("args.json is nested too deeply") from None
    if not isinstance(stated, dict):
        raise OddSourceError("args.json is not an object of settings")
    columns = {
        name: _series(folder / f"{file}.txt")
        for name, file in (
            ("train_loss_nats", "train_loss"),
            ("train_ppl", "train_ppl"),
            ("valid_loss_nats", "valid_loss"),
            ("valid_ppl", "valid_ppl"),
            ("train_s", "train_time"),
            ("valid_s", "valid_time"),
        )
    }
    present = {name: values for name, values in columns.items() if values is not None}
    if "valid_ppl" not in present and "valid_loss_nats" not in present:
        raise OddSourceError("neither valid_ppl.txt nor valid_loss.txt")
    lengths = {name: len(values) for name, values in present.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise OddSourceError(f"its files have different numbers of epochs: {counts}")
    epochs = [Numbers(**dict(zip(present, values, strict=True))) for values in zip(*present.values(), strict=True)]
    return Source(str(folder), stated, epochs, _test_ppl(folder))


def _test_ppl(folder: Path) -> float | None:
    for name, of in (("test_ppl", lambda value: value), ("test_loss", perplexity)):
        values = _series(folder / f"{name}.txt")
        if values is None:
            continue
        if len(values) != 1:
            raise OddSourceError(f"{name}.txt has {len(values)} numbers instead of one")
        return of(values[0])
    return None


def _series(path: Path) -> list[float] | None:
    """A number a line; None if there is no such file."""
    if not path.exists():
        return None
    values = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            values.append(_float(line, f"{path.name} line {number}"))
    return values


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise OddSourceError(f"{path.name} is larger than {LARGEST_FILE // 2**20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise OddSourceError(f"no {path.name}") from None
    except OSError as error:
        raise OddSourceError(f"{path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OddSourceError(f"{path.name} is not text") from None


def _float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OddSourceError(f"{where}: {text.strip()[:40]!r} is not a number") from None


def _rows_by_run(path: Path) -> Iterator[tuple[str, Callable[[], Source]]]:
    """The runs of a CSV: rows with the same ``run``, or without that column the same experiment and seed."""
    try:
        rows = list(csv.DictReader(_text(path).splitlines(), strict=True))
    except OddSourceError as odd:
        raise StoreError(f"{path}: {odd}") from None
    except csv.Error as error:
        raise StoreError(f"{path}: not CSV: {error}") from None
    columns = {_plain(name) for name in (rows[0] if rows else {}) if name}
    missing = [
        " or ".join(names)
        for names in (
            ("model", "architecture"),
            ("layers",),
            ("optimizer",),
            ("epoch",),
            ("valid_ppl", "valid_loss_nats"),
        )
        if not columns & set(map(_plain, names))
    ]
    if missing:
        raise StoreError(f"{path}: no column {', '.join(missing)}", hint="docs/importing.md lists the columns.")
    by_run: dict[tuple[str, ...], list[tuple[int, dict[str, str]]]] = {}
    for number, row in enumerate(rows, 2):
        cells = {_plain(name): value.strip() for name, value in row.items() if name and isinstance(value, str)}
        key = (
            cells.get("run", ""),
            *(stated_under(cells, what) or "" for what in ("model", "layers", "optimizer", "seed")),
        )
        by_run.setdefault((key[0],) if key[0] else key, []).append((number, cells))
    for key, its in by_run.items():
        yield f"{path}: {' '.join(word for word in key if word)}", partial(_read_rows, path, its)


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def stated_under(cells: Mapping[str, Any], what: str) -> Any:
    """What a source states under any of the names for it; None if it does not."""
    found = {_plain(str(key)): value for key, value in cells.items()}
    return next((found[name] for name in _KEYS[what] if found.get(name) not in (None, "")), None)


def _read_rows(path: Path, rows: Sequence[tuple[int, Mapping[str, str]]]) -> Source:
    numbered: dict[int, Numbers] = {}
    tests = set()
    for line, cells in rows:
        where = f"line {line}"
        epoch = _float(cells.get("epoch", ""), f"{where}, epoch")
        if epoch != int(epoch) or int(epoch) in numbered:
            raise OddSourceError(f"{where}: epoch {cells['epoch']} is not whole, or there twice")
        odd = dict(pair.split("=", 1) for pair in cells.get("non_finite", "").split() if "=" in pair)
        values = {
            name: _float(text, f"{where}, {name}")
            for name in Numbers._fields
            if (text := cells.get(name) or odd.get(name, ""))
        }
        numbered[int(epoch)] = Numbers(**values)
        if test := cells.get("test_ppl"):
            tests.add(_float(test, f"{where}, test_ppl"))
    if sorted(numbered) != list(range(1, len(numbered) + 1)):
        raise OddSourceError(f"its epochs are not 1 to {len(numbered)}: {', '.join(map(str, sorted(numbered)))}")
    stated = {key: value for _, cells in rows[:1] for key, value in cells.items() if value and key != "epoch"}
    if len(tests) > 1:
        raise OddSourceError("several different test_ppl")
    place = f"{path} lines {rows[0][0]}-{rows[-1][0]}"
    return Source(place, stated, [numbered[epoch] for epoch in sorted(numbered)], next(iter(tests), None))
