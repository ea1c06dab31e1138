"""Training time to a target perplexity, and performance profiles of the optimizers.

Validation perplexity is known at the ends of epochs and at evaluations within them. A target is reached at the first of
these at which it is at most the target; time is seconds of training until then.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmconsole.importing.settings import ASSUMED
from lmconsole.plan.experiment import OPTIMIZER_NAMES
from lmconsole.report.selection import Group
from lmconsole.runs.events import Validation
from lmconsole.runs.store import Run

TARGET_MARGIN = 0.05
"""Relative margin of a target above the perplexity it is derived from, so that practically equal results reach it."""

MIN_WORKLOADS = 5
"""Fewer workloads than this give no score and no interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeToTarget:
    """Training time in seconds until the runs of one experiment reached a target: median, lowest and highest over
    seeds. A seed that does not reach it counts as infinite."""

    reached: bool = False
    """Whether more than half of the seeds reached the target."""
    median_s: float | None = None
    """None unless more than half of the seeds reached the target, and all times are known."""
    lowest_s: float | None = None
    """None unless every seed reached the target, and all times are known."""
    highest_s: float | None = None


def best_valid_ppl(run: Run) -> float | None:
    """Return the validation perplexity of a run's best epoch; None if it has no finite one."""
    best = run.state.best_epoch
    return best.valid_ppl if best else None


def common_target(group: Group) -> float | None:
    """Return a perplexity that at least one experiment of every architecture reaches with all seeds; None if there is
    no perplexity.

    For each architecture, take the lowest perplexity that an experiment reaches with its worst seed. The target is
    ``TARGET_MARGIN`` above the highest of these.
    """
    best: dict[str, float] = {}
    for runs in group.by_experiment.values():
        worst_seed = max((best_valid_ppl(run) or math.inf for run in runs), default=math.inf)
        model = runs[0].info.experiment.model
        best[model] = min(best.get(model, math.inf), worst_seed)
    target = max((ppl for ppl in best.values() if math.isfinite(ppl)), default=None)
    return None if target is None else _round_up(target * (1.0 + TARGET_MARGIN))


def _round_up(ppl: float) -> float:
    """Round up to three significant digits."""
    step = 10.0 ** (math.floor(math.log10(ppl)) - 2)
    return round(math.ceil(ppl / step - 1e-9) * step, 6)


def seconds_to_target(run: Run, target_ppl: float) -> float | None:
    """Return the seconds of training until a run reached ``target_ppl``; None if it did not, or if its times are
    unknown."""
    reached = first_at_target(run, target_ppl)
    return reached.elapsed_train_s if reached else None


def first_at_target(run: Run, target_ppl: float) -> Validation | None:
    """Return the first validation of a run at or below ``target_ppl``; None if there is none."""
    validations = run.state.validations
    return next((each for each in validations if each.valid_ppl is not None and each.valid_ppl <= target_ppl), None)


def time_to_target(runs: Sequence[Run], target_ppl: float) -> TimeToTarget:
    """Return when the seeds of one experiment reached ``target_ppl``."""
    reached = [first for run in runs if (first := first_at_target(run, target_ppl))]
    if 2 * len(reached) <= len(runs):
        return TimeToTarget()
    times = [each.elapsed_train_s for each in reached if each.elapsed_train_s is not None]
    if len(times) < len(reached):
        return TimeToTarget(reached=True)
    missed = [math.inf] * (len(runs) - len(reached))
    median = statistics.median([*times, *missed])
    span = (None, None) if missed else (min(times), max(times))
    return TimeToTarget(reached=True, median_s=median, lowest_s=span[0], highest_s=span[1])


def explain_target(group: Group) -> str:
    """Return the origin of the target of ``common_target``, and what a run that misses it counts as."""
    text = (
        f"The target is {TARGET_MARGIN:.0%} above the lowest perplexity of the architecture that gets least far (with "
        "all seeds of its best experiment), rounded up to three digits. It was chosen after the runs, from these "
        "results, so times to it are exploratory."
    )
    if len(group.seeds) > 1:
        text += (
            " Times are medians over seeds; a seed that misses the target counts as infinite, so it is reached if more "
            "than half of the seeds reach it."
        )
    return text


def explain_schedule(group: Group) -> str:
    """Return what a decaying learning rate means for times to a target; empty if all rates are known to be constant."""
    if any(run.info.origins.get("learning_rate_decay") == ASSUMED for run in group.runs):
        return (
            "The sources do not state whether the learning rate decayed; if it did, rankings midway may flip by the "
            "end."
        )
    if any(run.info.settings.learning_rate_decay != "none" for run in group.runs):
        return (
            "The learning rate decays over the planned epochs, so rankings midway may flip by the end, and times to a "
            "target hold for this length of training only."
        )
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Performance profile: points (multiple, share) of each optimizer where its share rises."""

    curves: Mapping[str, Sequence[tuple[float, float]]]
    workloads: int
    """Models, by architecture and depth, that at least two optimizers trained."""


def performance_profile(group: Group, targets_ppl: Sequence[float]) -> Profile:
    """Return, for each optimizer, the share of problems that it solves within a multiple of the fastest optimizer's
    time (Dolan and Moré 2002, doi:10.1007/s101070100263).

    A problem is one of ``targets_ppl``, which must not be chosen from the results, for a workload. The time of an
    optimizer is its median over seeds, infinite where more than half of them miss the target.
    """
    workloads, targets = _workloads(group), sorted(set(targets_ppl))
    ratios: dict[str, list[float]] = {}
    for by_optimizer, target in itertools.product(workloads, targets):
        times = {name: _median_time_s(runs, target) for name, runs in by_optimizer.items()}
        fastest = min(times.values())
        for name, time in times.items():
            ratios.setdefault(name, []).extend([time / fastest] if math.isfinite(time) else [])
    problems = len(workloads) * len(targets)
    curves = {
        name: [(ratio, rank / problems) for rank, ratio in enumerate(sorted(ratios[name]), 1)]
        for name in OPTIMIZER_NAMES.values()
        if name in ratios
    }
    return Profile(curves=curves, workloads=len(workloads))


def _median_time_s(runs: Sequence[Run], target_ppl: float) -> float:
    times = [seconds_to_target(run, target_ppl) for run in runs]
    return statistics.median(time or math.inf for time in times)


def _workloads(group: Group) -> list[dict[str, list[Run]]]:
    """Return the runs of each architecture and depth by optimizer, where there are at least two; of several experiments
    with the same optimizer the first."""
    found: dict[tuple[str, int], dict[str, list[Run]]] = {}
    for runs in group.by_experiment.values():
        experiment = runs[0].info.experiment
        workload = found.setdefault((experiment.model, experiment.layers), {})
        workload.setdefault(OPTIMIZER_NAMES[experiment.optimizer], runs)
    return [by_optimizer for by_optimizer in found.values() if len(by_optimizer) > 1]
