"""Runs made elsewhere, taken into the store: folders of a plain layout, one a run, or a CSV with a row an epoch.

A folder holds ``args.json`` and text files with a number a line: ``valid_ppl.txt`` or ``valid_loss.txt`` (needed),
``train_ppl.txt``, ``train_loss.txt``, ``train_time.txt`` and ``valid_time.txt`` (seconds of each epoch), and
``test_ppl.txt`` or ``test_loss.txt`` with one number. docs/importing.md lists the keys and columns.
"""

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from lmconsole import __version__
from lmconsole.errors import PlanError, StoreError
from lmconsole.plan.experiment import Experiment
from lmconsole.plan.presets import Plan, applies
from lmconsole.runs.events import MAX_LOSS_NATS, Epoch, EventLog, Finished, Queued, Stopped, measured, utc_now
from lmconsole.runs.events import perplexity as perplexity_of
from lmconsole.runs.info import SCHEMA, CorpusInfo, RunInfo, write_info
from lmconsole.runs.paths import RunPaths, sync_folder
from lmconsole.runs.store import Run, Store

STATED, ASSUMED = "stated by the source", "not stated; assumed"
"""Origins of an imported run's settings."""

PRESET = "paper"
"""Where settings come from that a source does not state."""

FIRST_FREE_ID = 101
"""Imported experiments that are none of the plan's get numbers from here on."""

LARGEST_FILE = 16 * 2**20
"""Bytes; a larger file is no list of an epoch's numbers."""

Denominator = Literal["targets", "padded"]

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

_MODELS = {"lstm": "lstm", "gpt1": "gpt1", "gpt": "gpt1", "openaigpt": "gpt1"}
_OPTIMIZERS = {"adam": "adam", "adamw": "adamw", "sgd": "sgd", "momentum": "momentum", "sgdmomentum": "momentum"}
_SETTINGS = ("epochs", "batch_size", "learning_rate", "weight_decay", "momentum", "window_tokens")


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


@dataclass
class Report:
    """What an import did: runs made, by where they came from, what was there before, and what could not be read."""

    made: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class _OddSourceError(Exception):
    """This run cannot be imported, and why."""


def import_runs(store: Store, path: Path, plan: Plan) -> Report:
    """Take every run under ``path`` into the store; what is odd is reported, and the rest imported.

    Raises:
        StoreError: ``path`` holds nothing that could be a run, or the store cannot be written.
    """
    report = Report()
    store.create()
    there = {run.info.same_run: run for run in store.runs()}
    for place, read in _sources(path):
        try:
            source = read()
            info, epochs = _interpret(source, plan, list(there.values()))
        except _OddSourceError as odd:
            report.problems.append(f"{place}: {odd}")
            continue
        if info.same_run in there:
            report.known[place] = there[info.same_run].run
            continue
        run = _make(store, info, epochs, source)
        report.made[place] = run.run
        there[info.same_run] = run
    return report


def _sources(path: Path) -> Iterator[tuple[str, Callable[[], Source]]]:
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
        raise _OddSourceError("a run of lmconsole's own; --runs names its store, and export --against compares with it")
    arguments = folder / "args.json"
    try:
        stated = json.loads(_text(arguments))
    except ValueError as error:
        raise _OddSourceError(f"args.json is not JSON: {error}") from None
    except RecursionError:
        raise _OddSourceError("args.json is nested too deeply") from None
    if not isinstance(stated, dict):
        raise _OddSourceError("args.json is not an object of settings")
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
        raise _OddSourceError("neither valid_ppl.txt nor valid_loss.txt")
    lengths = {name: len(values) for name, values in present.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise _OddSourceError(f"its files have different numbers of epochs: {counts}")
    epochs = [Numbers(**dict(zip(present, values, strict=True))) for values in zip(*present.values(), strict=True)]
    return Source(str(folder), stated, epochs, _test_ppl(folder))


def _test_ppl(folder: Path) -> float | None:
    for name, of in (("test_ppl", lambda value: value), ("test_loss", _perplexity)):
        values = _series(folder / f"{name}.txt")
        if values is None:
            continue
        if len(values) != 1:
            raise _OddSourceError(f"{name}.txt has {len(values)} numbers instead of one")
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
            raise _OddSourceError(f"{path.name} is larger than {LARGEST_FILE // 2**20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _OddSourceError(f"no {path.name}") from None
    except OSError as error:
        raise _OddSourceError(f"{path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _OddSourceError(f"{path.name} is not text") from None


def _float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _OddSourceError(f"{where}: {text.strip()[:40]!r} is not a number") from None


def _rows_by_run(path: Path) -> Iterator[tuple[str, Callable[[], Source]]]:
    """The runs of a CSV: rows with the same ``run``, or without that column the same experiment and seed."""
    try:
        rows = list(csv.DictReader(_text(path).splitlines(), strict=True))
    except _OddSourceError as odd:
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
        key = (cells.get("run", ""), *(_first(cells, what) or "" for what in ("model", "layers", "optimizer", "seed")))
        by_run.setdefault((key[0],) if key[0] else key, []).append((number, cells))
    for key, its in by_run.items():
        yield f"{path}: {' '.join(word for word in key if word)}", partial(_read_rows, path, its)


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _first(cells: Mapping[str, Any], what: str) -> Any:
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
            raise _OddSourceError(f"{where}: epoch {cells['epoch']} is not whole, or there twice")
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
        raise _OddSourceError(f"its epochs are not 1 to {len(numbered)}: {', '.join(map(str, sorted(numbered)))}")
    stated = {key: value for _, cells in rows[:1] for key, value in cells.items() if value and key != "epoch"}
    if len(tests) > 1:
        raise _OddSourceError("several different test_ppl")
    place = f"{path} lines {rows[0][0]}-{rows[-1][0]}"
    return Source(place, stated, [numbered[epoch] for epoch in sorted(numbered)], next(iter(tests), None))


def _interpret(source: Source, plan: Plan, there: Sequence[Run]) -> tuple[RunInfo, list[Epoch]]:
    """What a source says as a run of ours; what it does not say is assumed and marked so."""
    if not source.epochs:
        raise _OddSourceError("no epoch")
    epochs = _epochs(source.epochs)
    model = _choice(source, "model", _MODELS)
    optimizer = _choice(source, "optimizer", _OPTIMIZERS)
    momentum = _first(source.stated, "momentum")
    if optimizer == "sgd" and momentum not in (None, 0, "0") and _number(momentum, "momentum", float) > 0.0:
        optimizer = "momentum"
    layers = _number(_first(source.stated, "layers"), "layers", int)
    experiment = _experiment(plan, there, model, layers, optimizer, source.place)
    stated = {
        name: _number(value, name, int if name in ("epochs", "batch_size", "window_tokens") else float)
        for name in _SETTINGS
        if (value := _first(source.stated, name)) is not None and applies(name, experiment)
    }
    stated.setdefault("epochs", len(epochs))
    if stated["epochs"] < len(epochs):
        raise _OddSourceError(f"{len(epochs)} epochs of numbers, but epochs is {stated['epochs']}")
    denominator: Denominator = "padded"
    if (given := _first(source.stated, "denominator")) is not None:
        if given not in ("targets", "padded"):
            raise _OddSourceError(f"denominator: {str(given)[:40]!r} is neither targets nor padded")
        denominator = given
    seed = _first(source.stated, "seed")
    try:
        resolved = plan.resolve(experiment, PRESET, {"precision": "fp32", **stated})
    except (PlanError, msgspec.ValidationError) as error:
        raise _OddSourceError(str(error).replace("\n", "; ")) from None
    origins = {
        key: STATED if key in stated or key in ("model", "layers", "optimizer") else ASSUMED for key in resolved.origins
    }
    number = _number(seed, "seed", int) if seed is not None else 0
    if not 0 <= number < 2**63:
        raise _OddSourceError(f"seed: {number} is not between 0 and 2^63 - 1")
    told = [model, layers, optimizer, number, denominator, stated, [event.valid_ppl for event in epochs], epochs]
    info = RunInfo(
        schema=SCHEMA,
        run="",
        queued_t=utc_now(),
        experiment=experiment,
        preset="imported",
        settings=resolved.settings,
        origins={**origins, "seed": STATED if seed is not None else ASSUMED},
        seed=number,
        same_run="imported-" + hashlib.sha256(msgspec.json.encode(told)).hexdigest(),
        corpus=_corpus(resolved.settings.vocabulary),
        embeddings=None,
        threads=None,
        command=(),
        cwd="",
        version=__version__,
        origin="imported",
        denominator=denominator,
    )
    return info, epochs


def _corpus(vocabulary: int) -> CorpusInfo:
    return CorpusInfo(
        name="not stated", kind="imported", path=None, vocabulary=vocabulary, tokenizer="not stated", tokens={},
        sha256="", max_tokens=None,
    )  # fmt: skip


def _choice(source: Source, what: str, known: Mapping[str, str]) -> str:
    given = _first(source.stated, what)
    plain = "".join(c for c in str(given).lower() if c.isalnum())
    if given is None:
        raise _OddSourceError(f"{what} is not stated")
    if plain not in known:
        raise _OddSourceError(f"{what}: {str(given)[:40]!r} is none of {', '.join(dict.fromkeys(known.values()))}")
    return known[plain]


def _number(value: Any, what: str, kind: Callable[[Any], Any]) -> Any:
    try:
        number = float(value)
        if isinstance(value, bool) or not math.isfinite(number) or (kind is int and number != int(number)):
            raise ValueError
        return kind(value) if isinstance(value, int) else kind(number)
    except (TypeError, ValueError, OverflowError):
        shown = (
            "not stated" if value is None else f"{str(value)[:40]!r} is not a {'whole ' if kind is int else ''}number"
        )
        raise _OddSourceError(f"{what}: {shown}") from None


def _experiment(plan: Plan, there: Sequence[Run], model: str, layers: int, optimizer: str, place: str) -> Experiment:
    """The plan's experiment of that kind, or one that earlier imports have made, or a new one."""
    kind = (model, layers, optimizer)
    for known in (*plan.experiments, *(run.info.experiment for run in there)):
        if (known.model, known.layers, known.optimizer) == kind and not known.overrides and not known.name:
            return msgspec.structs.replace(known, source=f"imported from {place}")
    taken = {each.id for each in plan.experiments} | {run.info.experiment.id for run in there}
    free = next(number for number in range(FIRST_FREE_ID, 1_000_000) if number not in taken)
    try:
        return msgspec.convert(
            {"id": free, "model": model, "layers": layers, "optimizer": optimizer, "source": f"imported from {place}"},
            Experiment,
        )
    except msgspec.ValidationError as error:
        raise _OddSourceError(str(error)) from None


def _epochs(numbers: Sequence[Numbers]) -> list[Epoch]:
    events = []
    elapsed: float | None = 0.0
    for epoch, each in enumerate(numbers, 1):
        train, valid = _both(each.train_loss_nats, each.train_ppl), _both(each.valid_loss_nats, each.valid_ppl)
        if valid[0] is None:
            raise _OddSourceError(f"epoch {epoch} has no validation perplexity")
        for name in ("train_s", "valid_s"):
            seconds = getattr(each, name)
            if seconds is not None and not (math.isfinite(seconds) and seconds >= 0.0):
                raise _OddSourceError(f"epoch {epoch}: {name}: {seconds} is not a time in seconds")
        elapsed = None if elapsed is None or each.train_s is None else elapsed + each.train_s
        events.append(
            measured(
                Epoch,
                epoch=epoch,
                train_loss_nats=train[0],
                train_ppl=train[1],
                valid_loss_nats=valid[0],
                valid_ppl=valid[1],
                train_s=each.train_s,
                valid_s=each.valid_s,
                elapsed_train_s=elapsed,
            )
        )
    return events


def _both(loss_nats: float | None, ppl: float | None) -> tuple[float | None, float | None]:
    """Loss and perplexity, each from the other where it is not given; the perplexity counts where both are."""
    if ppl is None:
        return loss_nats, None if loss_nats is None else _perplexity(loss_nats)
    if math.isfinite(ppl) and ppl <= 0.0:
        raise _OddSourceError(f"a perplexity of {ppl:g} is impossible")
    return math.log(ppl) if math.isfinite(ppl) else ppl, ppl


def _perplexity(loss_nats: float) -> float:
    return perplexity_of(loss_nats) if loss_nats >= -MAX_LOSS_NATS else 0.0


def _make(store: Store, info: RunInfo, epochs: Sequence[Epoch], source: Source) -> Run:
    """A run directory that says what its source said, under a temporary name until it is complete."""
    experiment = info.experiment
    stem = (
        f"{experiment.id:02d}-{experiment.model}-{experiment.layers}l-{experiment.optimizer}-imported-s{info.seed}"
        f"-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    )
    name, number = stem, 1
    while (store.root / name).exists():
        number += 1
        name = f"{stem}-{number}"
    info = msgspec.structs.replace(info, run=name)
    temporary = store.temporary(name)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        paths = RunPaths(temporary)
        write_info(paths.info, info)
        _write_log(paths.events, info, epochs, source.test_ppl)
        paths.lock.touch()
        sync_folder(temporary)
        temporary.rename(store.root / name)
        sync_folder(store.root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(f"{error.filename or store.root}: cannot be written: {error.strerror}") from None
    run = store.open(name)
    assert run is not None
    run.refresh()
    return run


def _write_log(path: Path, info: RunInfo, epochs: Sequence[Epoch], test_ppl: float | None) -> None:
    log = EventLog(path)
    try:
        log.append(Queued(devices=(), jobs=1))
        for event in epochs:
            log.append(event)
        diverged = any(field in event.non_finite for event in epochs for field in ("train_ppl", "valid_ppl"))
        if len(epochs) < info.settings.epochs and not diverged:
            log.append(Stopped(epoch=len(epochs) + 1, step=0), sync=True)
            return
        finite = [(event.valid_loss_nats, event) for event in epochs if event.valid_loss_nats is not None]
        best = min(finite, key=lambda pair: pair[0])[1] if finite else None
        log.append(
            measured(
                Finished,
                test_ppl_final=test_ppl,
                test_ppl_best=None,
                best_epoch=best.epoch if best else None,
                best_valid_ppl=best.valid_ppl if best else None,
                setup_s=None,
                wall_s=None,
                diverged=diverged,
            ),
            sync=True,
        )
    finally:
        log.close()
