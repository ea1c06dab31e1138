"""Import of runs that were not trained by lmconsole.

Everything that the source states is kept; everything else stays unknown or is marked as assumed.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from lmconsole import __version__
from lmconsole.errors import PlanError, StoreError
from lmconsole.importing.sources import EpochNumbers, ImportSourceError, Source, sources, stated_value
from lmconsole.plan.experiment import Experiment
from lmconsole.plan.presets import Plan, applies
from lmconsole.runs.create import create_run, next_places, queue_lock
from lmconsole.runs.events import Epoch, Event, Finished, Queued, Stopped, name_non_finite, perplexity, utc_now
from lmconsole.runs.info import SCHEMA, CorpusInfo, RunInfo
from lmconsole.runs.store import Run, Store

STATED, ASSUMED = "stated by the source", "not stated; assumed"
"""Origins of the settings of imported runs, as written to run.json."""

PRESET = "paper"
"""Preset for settings that the source does not state."""

FIRST_FREE_ID = 101
"""First id for imported experiments that are not part of the plan."""

Denominator = Literal["targets", "padded"]

_MODELS = {"lstm": "lstm", "gpt1": "gpt1", "gpt": "gpt1", "openaigpt": "gpt1"}

_OPTIMIZERS = {"adam": "adam", "adamw": "adamw", "sgd": "sgd", "momentum": "momentum", "sgdmomentum": "momentum"}

_INTEGER_SETTINGS = ("epochs", "batch_size", "window_tokens")

_FLOAT_SETTINGS = ("learning_rate", "weight_decay", "momentum")


@dataclass
class ImportReport:
    """Result of an import. Runs are by the location of their source."""

    imported: dict[str, str] = field(default_factory=dict)
    imported_before: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Sources that could not be imported, and the reasons."""


def import_runs(store: Store, path: Path, plan: Plan) -> ImportReport:
    """Import every run under ``path`` into the store. Runs with problems are reported and skipped.

    Raises:
        StoreError: ``path`` contains no runs, or the store cannot be written.
    """
    with queue_lock(store):
        return _import(store, path, plan)


def _import(store: Store, path: Path, plan: Plan) -> ImportReport:
    report = ImportReport()
    runs = store.runs()
    known, places = {run.info.config_hash: run for run in runs}, next_places(store, runs)
    for location, read in sources(path):
        try:
            source = read()
            info, epochs = _interpret(source, plan, list(known.values()))
        except ImportSourceError as error:
            report.problems.append(f"{location}: {error}")
            continue
        if info.config_hash in known:
            report.imported_before[location] = known[info.config_hash].run
            continue
        run = _create_run(store, info, epochs, source, next(places))
        report.imported[location] = run.run
        known[info.config_hash] = run
    return report


def _interpret(source: Source, plan: Plan, known: Sequence[Run]) -> tuple[RunInfo, list[Epoch]]:
    """Return run.json and the epochs of a source; settings that it does not state are assumed and marked."""
    if not source.epochs:
        raise ImportSourceError("no epoch")
    epochs = _epoch_events(source.epochs)
    experiment = _experiment(plan, known, source)
    stated = _stated_settings(source, experiment, len(epochs))
    denominator = _denominator(source)
    try:
        resolved = plan.resolve(experiment, PRESET, {"precision": "fp32", **stated})
    except (PlanError, msgspec.ValidationError) as error:
        raise ImportSourceError(str(error).replace("\n", "; ")) from None
    origins = {
        key: STATED if key in stated or key in ("model", "layers", "optimizer") else ASSUMED for key in resolved.origins
    }
    stated_seed = stated_value(source.stated, "seed")
    seed = _integer(stated_seed, "seed") if stated_seed is not None else 0
    if not 0 <= seed < 2**63:
        raise ImportSourceError(f"seed: {seed} is not between 0 and 2^63 - 1")
    info = RunInfo(
        schema=SCHEMA,
        run="",
        queued_t=utc_now(),
        experiment=experiment,
        preset="imported",
        settings=resolved.settings,
        origins={**origins, "seed": STATED if stated_seed is not None else ASSUMED},
        seed=seed,
        config_hash=_config_hash(experiment, seed, denominator, stated, epochs),
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


def _config_hash(
    experiment: Experiment, seed: int, denominator: Denominator, stated: Mapping[str, float], epochs: Sequence[Epoch]
) -> str:
    """Return a hash by which a source is recognized if it is imported again, also after an import by version 0.1.0."""
    events = [msgspec.to_builtins(name_non_finite(event)) for event in epochs]
    for event in events:
        del event["energy_j"]  # not a field of version 0.1.0, and never known for imported runs
    setting = (experiment.model, experiment.layers, experiment.optimizer, seed, denominator, stated)
    identity = (*setting, [event.valid_ppl for event in epochs], events)
    return "imported-" + hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def _stated_settings(source: Source, experiment: Experiment, epochs: int) -> dict[str, float]:
    stated: dict[str, float] = {}
    for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "momentum", "window_tokens"):
        value = stated_value(source.stated, name)
        if value is not None and applies(name, experiment):
            stated[name] = _integer(value, name) if name in _INTEGER_SETTINGS else _float(value, name)
    stated.setdefault("epochs", epochs)
    if stated["epochs"] < epochs:
        raise ImportSourceError(f"numbers for {epochs} epochs, but epochs is {stated['epochs']}")
    return stated


def _denominator(source: Source) -> Denominator:
    given = stated_value(source.stated, "denominator")
    if given is None:
        return "padded"
    if given not in ("targets", "padded"):
        raise ImportSourceError(f"denominator: {str(given)[:40]!r} is neither targets nor padded")
    denominator: Denominator = given
    return denominator


def _corpus(vocabulary: int) -> CorpusInfo:
    return CorpusInfo(
        name="not stated", kind="imported", path=None, vocabulary=vocabulary, tokenizer="not stated", tokens={},
        sha256="", max_tokens=None,
    )  # fmt: skip


def _choice(source: Source, setting: str, known: Mapping[str, str]) -> str:
    given = stated_value(source.stated, setting)
    plain = "".join(c for c in str(given).lower() if c.isalnum())
    if given is None:
        raise ImportSourceError(f"{setting} is not stated")
    if plain not in known:
        raise ImportSourceError(
            f"{setting}: {str(given)[:40]!r} is not one of {', '.join(dict.fromkeys(known.values()))}"
        )
    return known[plain]


def _integer(value: object, setting: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # a float would round large seeds
    number = _parse(value, setting)
    if number is None or not number.is_integer():
        raise ImportSourceError(f"{setting}: {str(value)[:40]!r} is not a whole number")
    return int(number)


def _float(value: object, setting: str) -> float:
    number = _parse(value, setting)
    if number is None:
        raise ImportSourceError(f"{setting}: {str(value)[:40]!r} is not a number")
    return number


def _parse(value: object, setting: str) -> float | None:
    """Return a finite number; None for anything else."""
    if value is None:
        raise ImportSourceError(f"{setting} is not stated")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _experiment(plan: Plan, known: Sequence[Run], source: Source) -> Experiment:
    """Return the plan's experiment for the model, layers and optimizer of a source, or that of an earlier import, or a
    new one."""
    model = _choice(source, "model", _MODELS)
    optimizer = _choice(source, "optimizer", _OPTIMIZERS)
    momentum = stated_value(source.stated, "momentum")
    if optimizer == "sgd" and momentum not in (None, 0, "0") and _float(momentum, "momentum") > 0.0:
        optimizer = "momentum"
    layers = _integer(stated_value(source.stated, "layers"), "layers")
    origin = f"imported from {source.location}"
    for each in (*plan.experiments, *(run.info.experiment for run in known)):
        same_kind = (each.model, each.layers, each.optimizer) == (model, layers, optimizer)
        if same_kind and not each.overrides and not each.name:
            return msgspec.structs.replace(each, source=origin)
    taken = {each.id for each in plan.experiments} | {run.info.experiment.id for run in known}
    free = next(id_ for id_ in range(FIRST_FREE_ID, 1_000_000) if id_ not in taken)
    try:
        return msgspec.convert(
            {"id": free, "model": model, "layers": layers, "optimizer": optimizer, "source": origin}, Experiment
        )
    except msgspec.ValidationError as error:
        raise ImportSourceError(str(error)) from None


def _epoch_events(numbers: Sequence[EpochNumbers]) -> list[Epoch]:
    events = []
    elapsed_s: float | None = 0.0
    for epoch, each in enumerate(numbers, 1):
        train_loss_nats, train_ppl = _loss_and_ppl(each.train_loss_nats, each.train_ppl)
        valid_loss_nats, valid_ppl = _loss_and_ppl(each.valid_loss_nats, each.valid_ppl)
        if valid_loss_nats is None:
            raise ImportSourceError(f"epoch {epoch} has no validation perplexity")
        for name, seconds in (("train_s", each.train_s), ("valid_s", each.valid_s)):
            if seconds is not None and not (math.isfinite(seconds) and seconds >= 0.0):
                raise ImportSourceError(f"epoch {epoch}: {name}: {seconds} is not a time in seconds")
        elapsed_s = None if elapsed_s is None or each.train_s is None else elapsed_s + each.train_s
        events.append(
            Epoch(
                epoch=epoch,
                train_loss_nats=train_loss_nats,
                train_ppl=train_ppl,
                valid_loss_nats=valid_loss_nats,
                valid_ppl=valid_ppl,
                train_s=each.train_s,
                valid_s=each.valid_s,
                elapsed_train_s=elapsed_s,
            )
        )
    return events


def _loss_and_ppl(loss_nats: float | None, ppl: float | None) -> tuple[float | None, float | None]:
    """Derive loss and perplexity from each other. If both are given, the perplexity takes precedence."""
    if ppl is None:
        return loss_nats, None if loss_nats is None else perplexity(loss_nats)
    if math.isfinite(ppl) and ppl <= 0.0:
        raise ImportSourceError(f"a perplexity of {ppl:g} is impossible")
    return math.log(ppl) if math.isfinite(ppl) else ppl, ppl


def _create_run(store: Store, info: RunInfo, epochs: Sequence[Epoch], source: Source, place: int) -> Run:
    try:
        name = create_run(store, info, _events(info, epochs, source.test_ppl, place))
    except OSError as error:
        raise StoreError(f"{error.filename or store.root}: cannot be written: {error.strerror}") from None
    run = store.open(name)
    assert run is not None
    run.refresh()
    return run


def _events(info: RunInfo, epochs: Sequence[Epoch], test_ppl: float | None, place: int) -> Iterator[Event]:
    yield Queued(devices=(), jobs=1, place=place)
    yield from epochs
    ppls = (ppl for event in epochs for ppl in (event.train_ppl, event.valid_ppl) if ppl is not None)
    diverged = not all(map(math.isfinite, ppls))
    if len(epochs) < info.settings.epochs and not diverged:
        yield Stopped(epoch=len(epochs) + 1, step=0)
        return
    losses = ((event.valid_loss_nats, event) for event in epochs)
    finite = [(loss, event) for loss, event in losses if loss is not None and math.isfinite(loss)]
    best = min(finite, key=lambda pair: pair[0])[1] if finite else None
    yield Finished(
        test_ppl_final=test_ppl,
        test_ppl_best=None,
        best_epoch=best.epoch if best else None,
        best_valid_ppl=best.valid_ppl if best else None,
        setup_s=None,
        wall_s=None,
        diverged=diverged,
    )
