"""Runs made elsewhere, taken into the store: what their source says is kept as it is, what it does not say stays
unknown or is marked as assumed."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from lmconsole import __version__
from lmconsole.errors import PlanError, StoreError
from lmconsole.importing.sources import Numbers, OddSourceError, Source, sources, stated_under
from lmconsole.plan.experiment import Experiment
from lmconsole.plan.presets import Plan, applies
from lmconsole.runs.create import create_run
from lmconsole.runs.events import Epoch, Event, Finished, Queued, Stopped, name_non_finite, perplexity, utc_now
from lmconsole.runs.info import SCHEMA, CorpusInfo, RunInfo
from lmconsole.runs.store import Run, Store

STATED, ASSUMED = "stated by the source", "not stated; assumed"
"""Origins of an imported run's settings."""


PRESET = "paper"
"""Where settings come from that a source does not state."""


FIRST_FREE_ID = 101
"""Imported experiments that are none of the plan's get numbers from here on."""


Denominator = Literal["targets", "padded"]


_MODELS = {"lstm": "lstm", "gpt1": "gpt1", "gpt": "gpt1", "openaigpt": "gpt1"}


_OPTIMIZERS = {"adam": "adam", "adamw": "adamw", "sgd": "sgd", "momentum": "momentum", "sgdmomentum": "momentum"}


_SETTINGS = ("epochs", "batch_size", "learning_rate", "weight_decay", "momentum", "window_tokens")


@dataclass
class Report:
    """What an import did: runs made, by where they came from, what was there before, and what could not be read."""

    made: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def import_runs(store: Store, path: Path, plan: Plan) -> Report:
    """Take every run under ``path`` into the store; what is odd is reported, and the rest imported.

    Raises:
        StoreError: ``path`` holds nothing that could be a run, or the store cannot be written.
    """
    report = Report()
    store.create()
    there = {run.info.config_hash: run for run in store.runs()}
    for place, read in sources(path):
        try:
            source = read()
            info, epochs = _interpret(source, plan, list(there.values()))
        except OddSourceError as odd:
            report.problems.append(f"{place}: {odd}")
            continue
        if info.config_hash in there:
            report.known[place] = there[info.config_hash].run
            continue
        run = _make(store, info, epochs, source)
        report.made[place] = run.run
        there[info.config_hash] = run
    return report


def _interpret(source: Source, plan: Plan, there: Sequence[Run]) -> tuple[RunInfo, list[Epoch]]:
    """What a source says as a run of ours; what it does not say is assumed and marked so."""
    if not source.epochs:
        raise OddSourceError("no epoch")
    epochs = _epochs(source.epochs)
    model = _choice(source, "model", _MODELS)
    optimizer = _choice(source, "optimizer", _OPTIMIZERS)
    momentum = stated_under(source.stated, "momentum")
    if optimizer == "sgd" and momentum not in (None, 0, "0") and _number(momentum, "momentum", float) > 0.0:
        optimizer = "momentum"
    layers = _number(stated_under(source.stated, "layers"), "layers", int)
    experiment = _experiment(plan, there, model, layers, optimizer, source.place)
    stated = {
        name: _number(value, name, int if name in ("epochs", "batch_size", "window_tokens") else float)
        for name in _SETTINGS
        if (value := stated_under(source.stated, name)) is not None and applies(name, experiment)
    }
    stated.setdefault("epochs", len(epochs))
    if stated["epochs"] < len(epochs):
        raise OddSourceError(f"{len(epochs)} epochs of numbers, but epochs is {stated['epochs']}")
    denominator: Denominator = "padded"
    if (given := stated_under(source.stated, "denominator")) is not None:
        if given not in ("targets", "padded"):
            raise OddSourceError(f"denominator: {str(given)[:40]!r} is neither targets nor padded")
        denominator = given
    seed = stated_under(source.stated, "seed")
    try:
        resolved = plan.resolve(experiment, PRESET, {"precision": "fp32", **stated})
    except (PlanError, msgspec.ValidationError) as error:
        raise OddSourceError(str(error).replace("\n", "; ")) from None
    origins = {
        key: STATED if key in stated or key in ("model", "layers", "optimizer") else ASSUMED for key in resolved.origins
    }
    number = _number(seed, "seed", int) if seed is not None else 0
    if not 0 <= number < 2**63:
        raise OddSourceError(f"seed: {number} is not between 0 and 2^63 - 1")
    events = [name_non_finite(event) for event in epochs]
    told = [model, layers, optimizer, number, denominator, stated, [event.valid_ppl for event in epochs], events]
    info = RunInfo(
        schema=SCHEMA,
        run="",
        queued_t=utc_now(),
        experiment=experiment,
        preset="imported",
        settings=resolved.settings,
        origins={**origins, "seed": STATED if seed is not None else ASSUMED},
        seed=number,
        config_hash="imported-" + hashlib.sha256(msgspec.json.encode(told)).hexdigest(),
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
    given = stated_under(source.stated, what)
    plain = "".join(c for c in str(given).lower() if c.isalnum())
    if given is None:
        raise OddSourceError(f"{what} is not stated")
    if plain not in known:
        raise OddSourceError(f"{what}: {str(given)[:40]!r} is none of {', '.join(dict.fromkeys(known.values()))}")
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
        raise OddSourceError(f"{what}: {shown}") from None


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
        raise OddSourceError(str(error)) from None


def _epochs(numbers: Sequence[Numbers]) -> list[Epoch]:
    events = []
    elapsed: float | None = 0.0
    for epoch, each in enumerate(numbers, 1):
        train, valid = _both(each.train_loss_nats, each.train_ppl), _both(each.valid_loss_nats, each.valid_ppl)
        if valid[0] is None:
            raise OddSourceError(f"epoch {epoch} has no validation perplexity")
        for name in ("train_s", "valid_s"):
            seconds = getattr(each, name)
            if seconds is not None and not (math.isfinite(seconds) and seconds >= 0.0):
                raise OddSourceError(f"epoch {epoch}: {name}: {seconds} is not a time in seconds")
        elapsed = None if elapsed is None or each.train_s is None else elapsed + each.train_s
        events.append(
            Epoch(
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
        return loss_nats, None if loss_nats is None else perplexity(loss_nats)
    if math.isfinite(ppl) and ppl <= 0.0:
        raise OddSourceError(f"a perplexity of {ppl:g} is impossible")
    return math.log(ppl) if math.isfinite(ppl) else ppl, ppl


def _make(store: Store, info: RunInfo, epochs: Sequence[Epoch], source: Source) -> Run:
    """Create the run that the source describes."""
    try:
        name = create_run(store, info, _events(info, epochs, source.test_ppl))
    except OSError as error:
        raise StoreError(f"{error.filename or store.root}: cannot be written: {error.strerror}") from None
    run = store.open(name)
    assert run is not None
    run.refresh()
    return run


def _events(info: RunInfo, epochs: Sequence[Epoch], test_ppl: float | None) -> Iterator[Event]:
    yield Queued(devices=(), jobs=1)
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
