"""Training time to a target perplexity, and performance profiles of the optimizers.

Validation perplexity is known at the ends of epochs. A target is reached at the end of the first epoch whose validation
perplexity is at most the target; time is seconds of training until then.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lmconsole.importing.settings import ASSUMED
from lmconsole.plan.experiment import OPTIMIZER_NAMES
from lmconsole.report.selection import Group
from lmconsole.runs.events import Epoch
from lmconsole.runs.store import Run

TARGET_MARGIN = 0.05
"""Relative margin of a target above the perplexity it is derived from, so that practically equal results reach it."""

TARGETS = 20
"""Number of targets per architecture, depth and seed in a performance profile."""


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
    """Return the lowest validation perplexity of a run; None if it has no finite one."""
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
    epoch = _first_epoch_at_target(run, target_ppl)
    return epoch.elapsed_train_s if epoch else None


def _first_epoch_at_target(run: Run, target_ppl: float) -> Epoch | None:
    return next(
        (each for each in run.state.epochs if each.valid_ppl is not None and each.valid_ppl <= target_ppl), None
    )


def time_to_target(runs: Sequence[Run], target_ppl: float) -> TimeToTarget:
    """Return when the seeds of one experiment reached ``target_ppl``."""
    epochs = [epoch for run in runs if (epoch := _first_epoch_at_target(run, target_ppl))]
    if 2 * len(epochs) <= len(runs):
        return TimeToTarget()
    times = [epoch.elapsed_train_s for epoch in epochs if epoch.elapsed_train_s is not None]
    if len(times) < len(epochs):
        return TimeToTarget(reached=True)
    missed = [math.inf] * (len(runs) - len(epochs))
    median = statistics.median([*times, *missed])
    span = (None, None) if missed else (min(times), max(times))
    return TimeToTarget(reached=True, median_s=median, lowest_s=span[0], highest_s=span[1])


def explain_target(group: Group) -> str:
    """Return the origin of the target of ``common_target``, and what a run that misses it counts as."""
    text = (
        f"The target is {TARGET_MARGIN:.0%} above the lowest perplexity that every architecture reaches in some "
        "experiment with every seed. It was chosen after the runs, from these results, so times to it are exploratory."
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


def performance_profile(group: Group) -> dict[str, list[tuple[float, float]]]:
    """Return, for each optimizer, the share of problems that it solves within a multiple of the fastest optimizer's
    time (Dolan and Moré 2002, doi:10.1007/s101070100263), as points (multiple, share) where the share rises.

    A problem is one of ``TARGETS`` perplexities for an architecture, depth and seed with at least two optimizers. The
    perplexities are spaced evenly on a logarithmic scale between the best results of the best and the worst optimizer.
    """
    ratios: dict[str, list[float]] = {}
    problems = 0
    for runs in _runs_by_optimizer(group):
        best = {name: best_valid_ppl(run) for name, run in runs.items()}
        known = [ppl for ppl in best.values() if ppl is not None and math.isfinite(ppl)]
        if len(runs) < 2 or not known:
            continue
        low, high = math.log(min(known)), math.log(max(known))
        targets = {math.exp(low + (high - low) * step / (TARGETS - 1)) for step in range(TARGETS)}
        for target in sorted(targets):
            times = {name: seconds_to_target(run, target * (1 + 1e-9)) for name, run in runs.items()}
            fastest = min((time for time in times.values() if time), default=None)
            if fastest is None:
                continue
            problems += 1
            for name, time in times.items():
                ratios.setdefault(name, []).extend([time / fastest] if time else [])
    order = [name for name in OPTIMIZER_NAMES.values() if name in ratios]
    return {name: [(ratio, (rank + 1) / problems) for rank, ratio in enumerate(sorted(ratios[name]))] for name in order}


def _runs_by_optimizer(group: Group) -> list[dict[str, Run]]:
    """Return the runs of each architecture, depth and seed by optimizer; of several experiments with the same optimizer
    the first."""
    found: dict[tuple[str, int, int], dict[str, Run]] = {}
    for run in group.runs:
        experiment = run.info.experiment
        runs = found.setdefault((experiment.model, experiment.layers, run.info.seed), {})
        runs.setdefault(OPTIMIZER_NAMES[experiment.optimizer], run)
    return list(found.values())
