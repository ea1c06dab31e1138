"""How long experiments take to reach a perplexity, and who is fastest how often.

Validation perplexity is known at the ends of epochs, so a target counts as reached at the end of the first epoch that
is at or below it; time is seconds of training until then.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmconsole.plan.experiment import OPTIMIZER_NAMES
from lmconsole.report.selection import Group
from lmconsole.runs.store import Run

SLACK = 0.05
"""Share that a target lies above the perplexity it is taken from: what is practically as good reaches it too."""

TARGETS = 20
"""Targets that a problem of a performance profile is asked for."""


@dataclass(frozen=True)
class Reached:
    """When the runs of one experiment reached a target: mean, lowest and highest over its seeds, in seconds of
    training. ``mean_s`` is None unless every seed did."""

    mean_s: float | None
    lowest_s: float | None = None
    highest_s: float | None = None


def best_valid_ppl(run: Run) -> float | None:
    """The run's lowest validation perplexity; None before it has a finite one."""
    best = run.state.best_epoch
    return best.valid_ppl if best else None


def common_target(group: Group) -> float | None:
    """A perplexity that some experiment of every architecture has reached with every seed: the highest, over the
    architectures, of their lowest, and ``SLACK`` above it. None without any perplexity."""
    best: dict[str, float] = {}
    for runs in group.by_experiment.values():
        worst_seed = max((best_valid_ppl(run) or math.inf for run in runs), default=math.inf)
        model = runs[0].info.experiment.model
        best[model] = min(best.get(model, math.inf), worst_seed)
    target = max((ppl for ppl in best.values() if math.isfinite(ppl)), default=None)
    return None if target is None else _rounded_up(target * (1.0 + SLACK))


def _rounded_up(ppl: float) -> float:
    """``ppl`` with three significant digits, not below it."""
    step = 10.0 ** (math.floor(math.log10(ppl)) - 2)
    return round(math.ceil(ppl / step - 1e-9) * step, 6)


def time_to(run: Run, target_ppl: float) -> float | None:
    """Seconds of training at the end of the first epoch with a validation perplexity of at most ``target_ppl``; None
    if there is none, or if the run does not say when it was."""
    for epoch in run.state.epochs:
        ppl = epoch.valid_ppl
        if ppl is not None and ppl <= target_ppl:
            return epoch.elapsed_train_s
    return None


def reached(runs: Sequence[Run], target_ppl: float) -> Reached:
    """When the seeds of one experiment reached ``target_ppl``."""
    times = [time for run in runs for time in [time_to(run, target_ppl)] if time is not None]
    if len(times) < len(runs) or not times:
        return Reached(None)
    return Reached(sum(times) / len(times), min(times), max(times))


def performance_profile(group: Group) -> dict[str, list[tuple[float, float]]]:
    """For each optimizer, the share of problems that it solves within ratio × the fastest optimizer's time: points
    (ratio, share) where the share rises, ratios from 1 (Dolan and Moré 2002, doi:10.1007/s101070100263).

    A problem is one of ``TARGETS`` perplexities of an architecture and depth that several optimizers were tried on, and
    a seed; they lie evenly, on a logarithmic scale, between the best and the worst optimizer's best. A target that one
    optimizer alone was tried on is none.
    """
    ratios: dict[str, list[float]] = {}
    problems = 0
    for rivals in _rivals(group):
        best = {name: best_valid_ppl(run) for name, run in rivals.items()}
        known = [ppl for ppl in best.values() if ppl is not None and math.isfinite(ppl)]
        if len(rivals) < 2 or not known:
            continue
        low, high = math.log(min(known)), math.log(max(known))
        targets = {math.exp(low + (high - low) * step / (TARGETS - 1)) for step in range(TARGETS)}
        for target in sorted(targets):
            times = {name: time_to(run, target * (1 + 1e-9)) for name, run in rivals.items()}
            fastest = min((time for time in times.values() if time), default=None)
            if fastest is None:
                continue
            problems += 1
            for name, time in times.items():
                ratios.setdefault(name, []).extend([time / fastest] if time else [])
    order = [name for name in OPTIMIZER_NAMES.values() if name in ratios]
    return {
        name: [(ratio, (place + 1) / problems) for place, ratio in enumerate(sorted(ratios[name]))] for name in order
    }


def _rivals(group: Group) -> list[dict[str, Run]]:
    """Runs that differ in their optimizer alone, by its name: those of one architecture, depth and seed. The first
    experiment with an optimizer counts."""
    found: dict[tuple[str, int, int], dict[str, Run]] = {}
    for run in group.runs:
        experiment = run.info.experiment
        place = found.setdefault((experiment.model, experiment.layers, run.info.seed), {})
        place.setdefault(OPTIMIZER_NAMES[experiment.optimizer], run)
    return list(found.values())
