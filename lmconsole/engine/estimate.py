"""How long runs will take, before they start: from runs that finished here, or from what `lmconsole bench` found."""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from lmconsole.engine.bench_cache import load_results
from lmconsole.engine.probe import ProbeAnswer
from lmconsole.engine.queue import Action, QueueDecision
from lmconsole.plan.experiment import Settings
from lmconsole.plan.flops import run_flops, step_flops
from lmconsole.runs.store import Run, has_room
from lmconsole.telemetry.host import threads_per_run

ALIKE = 4.0
"""The rate of a shape tells nothing of one with more than so many times its arithmetic in a step, or less than that."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast some shape was trained, evaluations and checkpoints included."""

    settings: Settings
    flops_per_s: float
    setup_s: float
    """On top, however long the run."""
    source: str
    """Where that is known from, in words."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a run will take, and where that is known from."""

    seconds: float
    source: str


def estimates(answer: ProbeAnswer, decisions: Sequence[QueueDecision], runs: Sequence[Run]) -> list[Estimate | None]:
    """For each decision what is left of its run; None where nothing is to be done, or nothing is known, as where the
    devices are not all alike."""
    if len(set(answer.device_names)) != 1:
        return [None] * len(decisions)
    name = answer.device_names[0]
    trained: dict[tuple[int, int], list[Pace]] = {}
    for run in reversed(runs):
        if (pace := _pace_of(run, name)) and run.state.queued and run.info.threads:
            trained.setdefault((run.state.queued.jobs, run.info.threads), []).append(pace)
    measured = {jobs: _measured(name, jobs) for jobs in {decision.jobs for decision in decisions}}
    known = {run.run: run for run in runs}
    return [
        _estimate(decision, trained.get((decision.jobs, decision.threads), []), measured[decision.jobs], known)
        for decision in decisions
    ]


def _pace_of(run: Run, device_name: str) -> Pace | None:
    state, info = run.state, run.info
    if state.finished is None or state.started is None or not state.finished.wall_s:
        return None
    here = state.started.device_name == device_name
    if not here or not state.epochs or not info.corpus.tokens.keys() >= {"train", "validation", "test"}:
        return None
    done = msgspec.structs.replace(info.settings, epochs=len(state.epochs))
    flops, setup_s = run_flops(done, info.corpus.vocabulary, info.corpus.tokens), state.finished.setup_s or 0.0
    return Pace(
        settings=info.settings,
        flops_per_s=flops / max(state.finished.wall_s - setup_s, 1e-9),
        setup_s=setup_s,
        source="runs that finished here",
    )


def _measured(device_name: str, jobs: int) -> list[Pace]:
    """What one run alone was measured to reach; ``jobs`` at once are taken to share it."""
    source = "`lmconsole bench`" if jobs == 1 else f"`lmconsole bench`, its speed shared by {jobs} at once"
    return [
        Pace(settings=shape.settings, flops_per_s=shape.gflops * 1e9 / jobs, setup_s=0.0, source=source)
        for result in load_results()
        if (result.device_name, result.threads) == (device_name, threads_per_run(1))
        for shape in result.shapes
    ]


def _estimate(
    decision: QueueDecision, trained: Sequence[Pace], measured: Sequence[Pace], known: Mapping[str, Run]
) -> Estimate | None:
    if decision.action not in (Action.NEW, Action.RESUME):
        return None
    resolved = decision.resolved
    settings, vocabulary = resolved.settings, resolved.corpus.vocabulary
    pace = _closest(settings, vocabulary, trained) or _closest(settings, vocabulary, measured)
    if pace is None:
        return None
    run = known.get(decision.run or "")
    left = 1.0 - run.state.done(settings.epochs) if run else 1.0
    whole_s = resolved.flops / pace.flops_per_s
    return Estimate(seconds=whole_s * left + pace.setup_s, source=pace.source)


def _closest(settings: Settings, vocabulary: int, paces: Sequence[Pace]) -> Pace | None:
    """The first pace of the same settings, length apart; else, of the same model, tables and precision, the one with
    the most similar arithmetic."""
    alike = [
        (abs(math.log(step_flops(pace.settings, vocabulary) / step_flops(settings, vocabulary))), pace)
        for pace in paces
        if all(getattr(pace.settings, key) == getattr(settings, key) for key in ("model", "embeddings", "precision"))
    ]
    alike = [(off, pace) for off, pace in alike if off <= math.log(ALIKE)]
    return min(
        alike, key=lambda each: (_lengthless(each[1].settings) != _lengthless(settings), each[0]), default=(0.0, None)
    )[1]


def _lengthless(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, epochs=1)


def makespan_s(runs: Iterable[tuple[float, int]], devices: int = 1) -> float:
    """When the last of these runs ends, each given by its seconds and its ``jobs``.

    They start as the runner starts them: in order, each on the device with the fewest runs among those with room for
    it, and none before those ahead of it.
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
