"""Estimates of how long queued runs will take, from runs that finished here or from `lmconsole bench`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from lmconsole.engine.bench_cache import load_results
from lmconsole.engine.probe import ProbeAnswer
from lmconsole.engine.queue import Action, QueueDecision
from lmconsole.plan.experiment import Settings
from lmconsole.plan.flops import run_flops, step_flops
from lmconsole.runs.store import Run, has_room
from lmconsole.telemetry.host import threads_per_run

MAX_FLOPS_RATIO = 4.0
"""A shape is not estimated from one whose step has this many times more, or fewer, operations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedSample:
    """Speed at which a shape was trained, evaluations and checkpoints included."""

    settings: Settings
    flops_per_s: float
    setup_s: float
    """Set-up, which does not depend on the length of a run."""
    source: str
    """Origin of the number, for display."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Expected time of a run, and the origin of that number."""

    seconds: float
    source: str


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


def _speed_of(run: Run, device_name: str) -> SpeedSample | None:
    state, info = run.state, run.info
    if state.finished is None or state.started is None or not state.finished.wall_s:
        return None
    here = state.started.device_name == device_name
    if not here or not state.epochs or not info.corpus.tokens.keys() >= {"train", "validation", "test"}:
        return None
    done = msgspec.structs.replace(info.settings, epochs=state.epochs_done)
    flops, setup_s = run_flops(done, info.corpus.vocabulary, info.corpus.tokens), state.finished.setup_s or 0.0
    return SpeedSample(
        settings=info.settings,
        flops_per_s=flops / max(state.finished.wall_s - setup_s, 1e-9),
        setup_s=setup_s,
        source="earlier runs on this machine",
    )


def _measured(device_name: str, jobs: int) -> list[SpeedSample]:
    """Return the speeds that `lmconsole bench` measured for one run alone, divided among ``jobs`` runs at once."""
    source = "`lmconsole bench`" if jobs == 1 else f"`lmconsole bench`, its speed shared by {jobs} at once"
    return [
        SpeedSample(settings=shape.settings, flops_per_s=shape.gflops * 1e9 / jobs, setup_s=0.0, source=source)
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
    sample = _closest(settings, vocabulary, trained) or _closest(settings, vocabulary, measured)
    if sample is None:
        return None
    run = known.get(decision.run or "")
    left = 1.0 - run.state.done(settings.epochs) if run else 1.0
    whole_s = resolved.flops / sample.flops_per_s
    return Estimate(seconds=whole_s * left + sample.setup_s, source=sample.source)


def _closest(settings: Settings, vocabulary: int, samples: Sequence[SpeedSample]) -> SpeedSample | None:
    """Return the first sample with the same settings, epochs and evaluations apart; else, of those with the same model,
    embeddings and precision, the one with the most similar number of operations."""
    similar = [
        (abs(math.log(step_flops(sample.settings, vocabulary) / step_flops(settings, vocabulary))), sample)
        for sample in samples
        if all(getattr(sample.settings, key) == getattr(settings, key) for key in ("model", "embeddings", "precision"))
    ]
    similar = [(distance, sample) for distance, sample in similar if distance <= math.log(MAX_FLOPS_RATIO)]
    return min(
        similar,
        key=lambda each: (_of_one_epoch(each[1].settings) != _of_one_epoch(settings), each[0]),
        default=(0.0, None),
    )[1]


def _of_one_epoch(settings: Settings) -> Settings:
    """Return the settings of one epoch without evaluations, which decide the speed but not the length of a run."""
    return msgspec.structs.replace(settings, epochs=1, evaluate_every_steps=0)


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
