"""Choice of the number of seeds: the spread so far, the differences that are detected, and the time it takes."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import msgspec

from lmconsole.claims.power import ALPHA, detectable_sd
from lmconsole.engine.probe import ResolvedRun
from lmconsole.formatting import about, counted
from lmconsole.plan.experiment import Settings
from lmconsole.runs.endpoint import nll_best
from lmconsole.runs.events import Finished
from lmconsole.runs.info import CorpusInfo, RunInfo
from lmconsole.runs.store import Run

CHOICES = (3, 5, 10)
"""Numbers of seeds that are offered next to the one asked for."""
UNIT = "nats per token"


Result = tuple[RunInfo, Finished]
"""A finished run."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Spread of the test losses of one experiment over the seeds that have finished."""

    experiment: int
    """Id of the experiment."""
    seeds: int
    """Finished runs with the same settings, at least two."""
    sd: float
    """Standard deviation with n − 1, in nats per token."""


class SeedChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Differences that a number of seeds of each setting detects, and its cost."""

    seeds: int
    """Seeds of each experiment."""
    detectable_sd: float | None
    """Difference of two settings that is found with 80% power, in standard deviations of one seed; null for one
    seed."""
    detectable_nats: float | None
    """The same in nats per token; null if the spread is unknown."""
    expected_s: float | None
    """Time for all experiments, in seconds; null if unknown."""


class SeedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Choice of the number of seeds for some experiments."""

    asked: int
    """Seeds of each experiment that were asked for."""
    comparisons: int
    """Comparisons of the family; the strictest level of Holm's correction counts."""
    spread: tuple[Spread, ...]
    """Spread of the experiments of which it is known."""
    choices: tuple[SeedChoice, ...]
    """The number asked for, and others."""

    @property
    def sd(self) -> float | None:
        """Root mean square of the standard deviations, which counts in a comparison of two; None if unknown."""
        return math.sqrt(statistics.fmean(each.sd**2 for each in self.spread)) if self.spread else None


def plan_seeds(
    resolved: Sequence[ResolvedRun],
    asked: int,
    runs: Iterable[Run],
    expected_s: Callable[[int], float | None],
    *,
    comparisons: int = 1,
) -> SeedPlan:
    """Return what ``asked`` seeds of each of these experiments detect, and what other numbers of seeds would.

    Args:
        runs: runs of the store.
        expected_s: returns the time that a number of seeds takes.
        comparisons: number of comparisons that Holm's correction counts.
    """
    results = [(run.info, run.state.finished) for run in runs if run.state.finished]
    spread = tuple(
        found
        for each in resolved
        if (found := _spread(each.experiment.id, each.settings, each.corpus, results)) is not None
    )
    plan = SeedPlan(asked=asked, comparisons=comparisons, spread=spread, choices=())
    choices = tuple(_choice(n, plan, expected_s(n)) for n in sorted({asked, *CHOICES}))
    return msgspec.structs.replace(plan, choices=choices)


def _spread(id_: int, settings: Settings, corpus: CorpusInfo, results: Iterable[Result]) -> Spread | None:
    by_seed = {
        info.seed: loss
        for info, finished in results
        if info.settings == settings
        and (info.corpus.sha256, info.corpus.max_tokens) == (corpus.sha256, corpus.max_tokens)
        and (loss := nll_best(finished)) is not None
        and math.isfinite(loss)
    }
    if len(by_seed) < 2:
        return None
    return Spread(experiment=id_, seeds=len(by_seed), sd=statistics.stdev(by_seed.values()))


def sketch_seeds(ids: Sequence[int], seeds: int, results: Sequence[Result]) -> str:
    """Return a line on what a number of ``seeds`` of experiments detects and takes, as far as earlier results say.

    Args:
        results: finished runs, the latest last. The settings are those of the latest run of each experiment.
    """
    latest = {info.experiment.id: (info, finished) for info, finished in results}
    known = [latest[id_] for id_ in ids if id_ in latest]
    spread = tuple(
        found
        for info, _ in known
        if (found := _spread(info.experiment.id, info.settings, info.corpus, results)) is not None
    )
    times = [finished.wall_s for _, finished in known if finished.wall_s is not None]
    total_s = seeds * sum(times) if len(times) == len(ids) else None
    choice = _choice(seeds, SeedPlan(asked=seeds, comparisons=1, spread=spread, choices=()), total_s)
    if choice.detectable_sd is None:
        return "One seed: no uncertainty is known."
    nats = "" if choice.detectable_nats is None else f", about {choice.detectable_nats:.2g} {UNIT}"
    time = "" if total_s is None else f"; {about(total_s)} of runs, one after the other"
    return f"{counted(seeds, 'seed')} detect differences of {choice.detectable_sd:.1f} sd{nats}{time}."


def _choice(seeds: int, plan: SeedPlan, expected_s: float | None) -> SeedChoice:
    found = detectable_sd(seeds, ALPHA / plan.comparisons)
    known = found if math.isfinite(found) else None
    return SeedChoice(
        seeds=seeds,
        detectable_sd=known,
        detectable_nats=known * plan.sd if known is not None and plan.sd is not None else None,
        expected_s=expected_s,
    )


def describe_plan(plan: SeedPlan) -> list[str]:
    """Return lines on the spread so far and on each choice."""
    if plan.sd is None:
        spread = "spread unknown, since fewer than two seeds have finished with these settings"
    else:
        seeds = sum(each.seeds for each in plan.spread)
        spread = f"spread so far: sd {plan.sd:.2g} {UNIT} ({counted(seeds, 'run')})"
    level = "" if plan.comparisons == 1 else f" in the hardest of {plan.comparisons} comparisons"
    return [spread, f"detected with 80% power{level}:", *(_line(choice, plan.asked) for choice in plan.choices)]


def _line(choice: SeedChoice, asked: int) -> str:
    marked = " (asked for)" if choice.seeds == asked else ""
    what = "none: no uncertainty is known" if choice.detectable_sd is None else f"{choice.detectable_sd:.1f} sd"
    nats = (
        f" = {choice.detectable_nats:.2g} nats, perplexities {math.expm1(choice.detectable_nats):.1%} apart"
        if choice.detectable_nats is not None
        else ""
    )
    time = f"; about {about(choice.expected_s)} in all" if choice.expected_s is not None else ""
    return f"{counted(choice.seeds, 'seed'):<8} {what}{nats}{time}{marked}"
