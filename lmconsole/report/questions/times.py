"""Training times of experiments compared: how exact they are, and which experiment leads when."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from lmconsole.report.comparing import MATERIAL_NATS
from lmconsole.report.experiment_result import ExperimentResult
from lmconsole.report.questions.finding import GroupResults
from lmconsole.report.targets import first_at_target
from lmconsole.runs.store import Run

EQUAL_TIME = 0.1
"""Times up to this share above the shortest count as equal, or more if the pace of the runs varied more."""


def time_tolerance(results: GroupResults) -> float:
    """Return the share up to which times above the shortest count as equal.

    All epochs of a run have the same steps, so its pace varies only with what else the machine does. The share is
    ``EQUAL_TIME`` or, if that is larger, by how much the slowest epoch of a run exceeds its fastest (median of the
    complete runs). The first epoch is left out, in which caches and clocks warm up.
    """
    spreads = [_pace_spread(run) for result in results.complete for run in result.runs]
    known = [spread for spread in spreads if spread is not None]
    return max(EQUAL_TIME, statistics.median(known)) if known else EQUAL_TIME


def _pace_spread(run: Run) -> float | None:
    """Return by which share the slowest epoch after the first exceeds the fastest; None if there are not two."""
    ends = [epoch.elapsed_train_s for epoch in run.state.epochs]
    lengths = [end - start for start, end in itertools.pairwise(ends) if start is not None and end is not None]
    return max(lengths) / min(lengths) - 1.0 if len(lengths) > 1 and min(lengths) > 0.0 else None


def leaders(results: GroupResults) -> list[tuple[float, int, float]]:
    """Return which complete experiment has the lowest validation perplexity within each training time: from which time
    in seconds, experiment, and perplexity then.

    The lead changes if a perplexity is lower by more than ``MATERIAL_NATS``, but not between like experiments. Known at
    the ends of epochs, as means over the seeds of an experiment, whose curve is its lowest perplexity so far.
    """
    points = []
    for result in results.complete:
        for epochs in zip(*(run.state.epochs for run in result.runs), strict=False):
            times = [epoch.elapsed_train_s for epoch in epochs]
            ppls = [epoch.valid_ppl for epoch in epochs]
            known_s = [time for time in times if time is not None]
            known = [ppl for ppl in ppls if ppl is not None and math.isfinite(ppl)]
            if len(known_s) == len(known) == len(result.runs):
                points.append((statistics.fmean(known_s), statistics.fmean(known), result.id))
    found: list[tuple[float, int, float]] = []
    lowest = math.inf
    for time_s, ppl, id_ in sorted(points):
        leads = bool(found) and _are_alike(results.by_id[found[-1][1]], results.by_id[id_])
        if ppl < lowest and (leads or math.log(lowest / ppl) > MATERIAL_NATS):
            lowest = ppl
            if not leads:
                found.append((time_s, id_, ppl))
    return found


def _are_alike(one: ExperimentResult, other: ExperimentResult) -> bool:
    """Return whether two experiments are one, or have equal architecture and depth and end hardly apart."""
    if one.id == other.id:
        return True
    kinds = [(each.info.experiment.model, each.info.experiment.layers) for each in (one, other)]
    apart = math.log((one.mean_ppl or math.inf) / (other.mean_ppl or math.inf))
    return kinds[0] == kinds[1] and abs(apart) <= MATERIAL_NATS


def no_later(results: GroupResults, target: float, fastest: int, times_s: Mapping[int, float]) -> list[int]:
    """Return the experiments of the same architecture and depth as the fastest that reach the target in no more passes
    over the train split (median of the seeds)."""
    passes = {id_: _passes_to_target(results.by_id[id_].runs, target) for id_ in times_s}
    own = results.by_id[fastest].info.experiment
    return [
        id_
        for id_ in sorted(times_s)
        for experiment in [results.by_id[id_].info.experiment]
        if id_ != fastest and passes[id_] <= passes[fastest]
        if (experiment.model, experiment.layers) == (own.model, own.layers)
    ]


def _passes_to_target(runs: Sequence[Run], target: float) -> float:
    found = [first_at_target(run, target) for run in runs]
    return statistics.median([math.inf if first is None else first.passes for first in found])
