"""Estimates of how long queued runs will take, from runs that finished here or from `lmconsole bench`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from lmconsole.engine.bench import SHAPE
from lmconsole.engine.bench_cache import load_results
from lmconsole.engine.probe import ProbeAnswer
from lmconsole.engine.queue import Action, QueueDecision
from lmconsole.formatting import counted
from lmconsole.plan.experiment import Settings
from lmconsole.plan.flops import run_flops, step_flops
from lmconsole.runs.store import Run, has_room
from lmconsole.telemetry.host import threads_per_run

MAX_FLOPS_RATIO = 4.0
"""A shape is not estimated from one whose step has this many times more, or fewer, operations."""
SHORT_S = 5.0
"""Time in seconds below which a run says little about longer ones: checkpoints and the start take much of it."""
RUNS_AVERAGED = 5
"""Most finished runs behind an estimate: the newest, of which one that other processes slowed down is no median."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedSample:
    """Speed at which a shape was trained, evaluations and checkpoints included."""

    settings: Settings
    flops_per_s: float
    setup_s: float = 0.0
    """Set-up, which does not depend on the length of a run."""
    short: bool = False
    """Whether the run took less than ``SHORT_S``."""
    source: str
    """Id of the run, or the name of the measurement for display."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Expected time of a run, and the origin of that number."""

    seconds: float
    runs: tuple[str, ...] = ()
    """Ids of the finished runs whose speed it is from."""
    measurement: str = ""
    """Name of the measurement that it is from, if it is not from runs."""


def estimates(answer: ProbeAnswer, decisions: Sequence[QueueDecision], runs: Sequence[Run]) -> list[Estimate | None]:
    """Estimate the rest of each run. None if there is nothing to train, or nothing known, as for unequal devices."""
    if len(set(answer.device_names)) != 1:
        return [None] * len(decisions)
    name = answer.device_names[0]
    trained: dict[tuple[int, int], list[SpeedSample]] = {}
    for run in reversed(runs):
        if (sample := _speed_of(run, name)) and run.state.queued and run.info.threads:
            trained.setdefault((run.state.queued.jobs, run.info.threads), []).append(sample)
    measured = {jobs: _measured(name, jobs) for jobs in {decision.jobs for decision in decisions}}
    known = {run.run: run for run in runs}
    return [
        _estimate(decision, trained.get((decision.jobs, decision.threads), []), measured[decision.jobs], known)
        for decision in decisions
    ]


def describe_sources(found: Iterable[Estimate]) -> str:
    """Return what estimates are from: ``3 finished runs and `lmconsole bench```."""
    found = list(found)
    runs = {run for estimate in found for run in estimate.runs}
    names = [counted(len(runs), "finished run")] if runs else []
    return " and ".join([*names, *dict.fromkeys(each.measurement for each in found if each.measurement)])


def _speed_of(run: Run, device_name: str) -> SpeedSample | None:
    state, info = run.state, run.info
    if state.finished is None or state.started is None or not state.finished.wall_s:
        return None
    here = state.started.device_name == device_name
    if not here or not state.epochs or not info.corpus.tokens.keys() >= {"train", "validation", "test"}:
        return None
    done = msgspec.structs.replace(info.settings, epochs=state.epochs_done)
    flops, setup_s = run_flops(done, info.corpus.vocabulary, info.corpus.tokens), state.finished.setup_s or 0.0
    trained_s = max(state.finished.wall_s - setup_s, 1e-9)
    return SpeedSample(
        settings=info.settings,
        flops_per_s=flops / trained_s,
        setup_s=setup_s,
        short=trained_s < SHORT_S,
        source=run.run,
    )


def _measured(device_name: str, jobs: int) -> list[SpeedSample]:
    """Return the speeds that `lmconsole bench` measured for one run alone, divided among ``jobs`` runs at once."""
    shared = "" if jobs == 1 else f", its speed shared by {jobs} at once"
    return [
        SpeedSample(
            settings=shape.settings,
            flops_per_s=shape.gflops * 1e9 / jobs,
            source=f"`lmconsole bench`{' on a busy machine' if result.busy else ''}{shared}",
        )
        for result in load_results()
        if (result.device_name, result.threads) == (device_name, threads_per_run(1))
        for shape in result.shapes
    ]


def _estimate(
    decision: QueueDecision, trained: Sequence[SpeedSample], measured: Sequence[SpeedSample], known: Mapping[str, Run]
) -> Estimate | None:
    if decision.action not in (Action.NEW, Action.RESUME):  # a test is short
        return None
    resolved = decision.resolved
    settings, vocabulary = resolved.settings, resolved.corpus.vocabulary
    runs = _most_similar(settings, vocabulary, trained)[:RUNS_AVERAGED]
    samples = runs or _most_similar(settings, vocabulary, measured)[:1]
    if not samples:
        return None
    run = known.get(decision.run or "")
    left = 1.0 - run.state.done(settings.epochs) if run else 1.0
    whole_s = resolved.flops / median(sample.flops_per_s for sample in samples)
    return Estimate(
        seconds=whole_s * left + median(sample.setup_s for sample in samples),
        runs=tuple(sample.source for sample in runs),
        measurement="" if runs else samples[0].source,
    )


def _most_similar(settings: Settings, vocabulary: int, samples: Sequence[SpeedSample]) -> list[SpeedSample]:
    """Return the samples of the most similar runs, in their order: of those with the same model, embeddings and
    precision, the ones that were long enough, then with the same shape, optimizer, and number of operations."""

    def distance(sample: SpeedSample) -> tuple[bool, bool, bool, float]:
        other, flops = sample.settings, step_flops(sample.settings, vocabulary)
        shape = any(getattr(other, key) != getattr(settings, key) for key in SHAPE)
        ratio = abs(math.log(flops / step_flops(settings, vocabulary)))
        return sample.short, shape, other.optimizer != settings.optimizer, ratio

    distances = [
        (distance(sample), sample)
        for sample in samples
        if all(getattr(sample.settings, key) == getattr(settings, key) for key in ("model", "embeddings", "precision"))
    ]
    distances = [each for each in distances if each[0][-1] <= math.log(MAX_FLOPS_RATIO)]
    nearest = min((found for found, _ in distances), default=None)
    return [sample for found, sample in distances if found == nearest]


def makespan_s(runs: Iterable[tuple[float, int]], devices: int = 1) -> float:
    """Return the time until the last of these runs ends, each given by its seconds and its ``jobs``.

    Runs start as the runner starts them: in order, each on the device with the fewest runs among those with room.
    """
    running: list[list[tuple[float, int]]] = [[] for _ in range(devices)]
    now = 0.0
    for seconds, jobs in runs:
        while (device := _with_room(running, jobs)) is None:
            now = min(end for on in running for end, _ in on)
            running = [[run for run in on if run[0] > now] for on in running]
        device.append((now + seconds, jobs))
    return max((end for on in running for end, _ in on), default=0.0)


def _with_room(running: list[list[tuple[float, int]]], jobs: int) -> list[tuple[float, int]] | None:
    for on in sorted(running, key=len):
        if has_room(jobs, (others for _, others in on)):
            return on
    return None
