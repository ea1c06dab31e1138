"""The run that results from a source: its run.json and its events."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from lmconsole import __version__
from lmconsole.errors import PlanError
from lmconsole.importing.memory import Reading
from lmconsole.importing.settings import (
    ASSUMED,
    STATED,
    Denominator,
    Evidence,
    Interpretation,
    denominator,
    effective_settings,
    interpret,
    recorded_settings,
    seed,
)
from lmconsole.importing.sources import EpochNumbers, ImportSourceError, Source
from lmconsole.plan.experiment import Experiment
from lmconsole.plan.presets import Plan
from lmconsole.runs.events import (
    Epoch,
    Event,
    Finished,
    Queued,
    Stopped,
    Telemetry,
    check_readable,
    name_non_finite,
    perplexity,
    utc_now,
)
from lmconsole.runs.info import SCHEMA, CorpusInfo, RunInfo

PRESET = "paper"
"""Preset for settings that the source does not state."""

FIRST_FREE_ID = 101
"""First id for imported experiments that are not part of the plan."""

ORIGIN = "imported from "
"""Start of ``Experiment.source`` of imported runs; the place of the source follows."""


class Experiments:
    """Experiments of the plan and of the store, by model, layers and optimizer."""

    def __init__(self, plan: Plan) -> None:
        self._by_kind: dict[tuple[str, int, str], Experiment] = {}
        self._ids: set[int] = set()
        for experiment in plan.experiments:
            self.add(experiment)

    def add(self, experiment: Experiment) -> None:
        """Add an experiment; the first of a kind is the one that imported runs belong to."""
        self._ids.add(experiment.id)
        if not experiment.overrides and not experiment.name:
            kind = experiment.model, experiment.layers, experiment.optimizer
            self._by_kind.setdefault(kind, experiment)

    def find(self, kind: tuple[str, int, str], origin: str) -> Experiment:
        """Return the experiment of this kind, or a new one with a free id.

        Raises:
            ImportSourceError: there can be no such experiment.
        """
        if kind in self._by_kind:
            return msgspec.structs.replace(self._by_kind[kind], source=origin)
        model, layers, optimizer = kind
        free = next(id_ for id_ in range(FIRST_FREE_ID, 1_000_000) if id_ not in self._ids)
        try:
            return msgspec.convert(
                {"id": free, "model": model, "layers": layers, "optimizer": optimizer, "source": origin}, Experiment
            )
        except (msgspec.ValidationError, OverflowError) as error:
            raise ImportSourceError(str(error)) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedRun:
    """A run that was made from a source, not yet written."""

    info: RunInfo
    epochs: Sequence[Epoch]
    test_ppl: float | None
    memory: Sequence[Reading]
    notes: Sequence[str]

    @property
    def diverged(self) -> bool:
        """Whether a perplexity is not finite."""
        ppls = (ppl for event in self.epochs for ppl in (event.train_ppl, event.valid_ppl) if ppl is not None)
        return not all(map(math.isfinite, ppls))

    @property
    def finished(self) -> bool:
        """Whether the run has all of its epochs, or ended because it diverged."""
        return len(self.epochs) >= self.info.settings.epochs or self.diverged

    def events(self, place: int) -> Iterator[Event]:
        """Yield the log of the run."""
        yield Queued(devices=(), jobs=1, place=place)
        for reading in self.memory:
            yield telemetry_event(reading)
        yield from self.epochs
        if not self.finished:
            yield Stopped(epoch=len(self.epochs) + 1, step=0)
            return
        losses = ((event.valid_loss_nats, event) for event in self.epochs)
        finite = [(loss, event) for loss, event in losses if loss is not None and math.isfinite(loss)]
        best = min(finite, key=lambda pair: pair[0])[1] if finite else None
        yield Finished(
            test_ppl_final=self.test_ppl,
            test_ppl_best=None,
            best_epoch=best.epoch if best else None,
            best_valid_ppl=best.valid_ppl if best else None,
            setup_s=None,
            wall_s=None,
            diverged=self.diverged,
        )


def telemetry_event(reading: Reading) -> Telemetry:
    return Telemetry(
        phase="train",
        device_used_mib=reading.used_mib,
        device_total_mib=reading.total_mib,
        utilization_percent=reading.utilization_percent,
        samples=reading.count if reading.count > 1 else msgspec.UNSET,
    )


def make_run(source: Source, place: str, plan: Plan, experiments: Experiments, evidence: Evidence) -> ImportedRun:
    """Return the run of a source; settings that it does not state are inferred or assumed, and marked."""
    if not source.epochs:
        raise ImportSourceError("no epoch")
    epochs = _epoch_events(source.epochs)
    meaning = interpret(source.stated, evidence)
    experiment = experiments.find((meaning.model, meaning.layers, meaning.optimizer), f"{ORIGIN}{place}")
    effective = effective_settings(source.stated, experiment, evidence, len(epochs), meaning.optimizer_origin)
    per, per_origin = denominator(source.stated)
    try:
        resolved = plan.resolve(experiment, PRESET, {"precision": "fp32", **effective.values})
    except (PlanError, msgspec.ValidationError, OverflowError) as error:
        raise ImportSourceError(str(error).replace("\n", "; ")) from None
    own_seed, seed_origin = seed(source.stated)
    origins = {key: effective.origins.get(key, ASSUMED) for key in resolved.origins}
    origins |= {"model": STATED, "layers": STATED, "optimizer": meaning.optimizer_origin}
    info = RunInfo(
        schema=SCHEMA,
        run="",
        queued_t=utc_now(),
        experiment=experiment,
        preset="imported",
        settings=resolved.settings,
        origins={**origins, "seed": seed_origin, "denominator": per_origin},
        seed=own_seed,
        config_hash=_config_hash(source, meaning, own_seed, per, epochs),
        corpus=_corpus(resolved.settings.vocabulary),
        embeddings=None,
        threads=None,
        command=(),
        cwd="",
        version=__version__,
        origin="imported",
        denominator=per,
    )
    notes = [*meaning.notes, *effective.notes]
    run = ImportedRun(info=info, epochs=epochs, test_ppl=source.test_ppl, memory=source.memory, notes=notes)
    for event in run.events(place=1):
        try:
            check_readable(event)
        except ValueError as error:
            where = f"epoch {event.epoch}: " if isinstance(event, Epoch) else ""
            raise ImportSourceError(f"{where}{error}") from None
    return run


def _config_hash(
    source: Source, meaning: Interpretation, own_seed: int, per: Denominator, epochs: Sequence[Epoch]
) -> str:
    """Return a hash by which a source is recognized if it is imported again, also after an import by version 0.1.0.

    It is a hash of what the source records, which does not change with what is inferred from that.
    """
    events = [msgspec.to_builtins(name_non_finite(event)) for event in epochs]
    for event in events:
        del event["energy_j"]  # not a field of version 0.1.0, and never known for imported runs
    kind = (meaning.model, meaning.layers, meaning.identity_optimizer)
    recorded = recorded_settings(source.stated, _unnumbered(kind), len(epochs))
    identity = (*kind, own_seed, per, recorded, [event.valid_ppl for event in epochs], events)
    return "imported-" + hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def _unnumbered(kind: tuple[str, int, str]) -> Experiment:
    model, layers, optimizer = kind
    return msgspec.convert({"id": 1, "model": model, "layers": layers, "optimizer": optimizer}, Experiment)


def _corpus(vocabulary: int) -> CorpusInfo:
    return CorpusInfo(
        name="not stated", kind="imported", path=None, vocabulary=vocabulary, tokenizer="not stated", tokens={},
        sha256="", max_tokens=None,
    )  # fmt: skip


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
    if not math.isnan(ppl) and ppl <= 0.0:
        raise ImportSourceError(f"a perplexity of {ppl:g} is impossible")
    return math.log(ppl) if math.isfinite(ppl) else ppl, ppl
