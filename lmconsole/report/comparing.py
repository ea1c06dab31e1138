"""Results of experiments over their seeds, and the verdict on a difference between two of them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import msgspec

from lmconsole.report.markup import format_ppl, format_spread
from lmconsole.report.results import damage_mark, is_complete
from lmconsole.report.selection import Group
from lmconsole.report.targets import best_valid_ppl
from lmconsole.runs.comparable import EXPERIMENT_SETTINGS
from lmconsole.runs.events import Epoch, perplexity
from lmconsole.runs.store import Run

ONE_SEED = "This rests on one seed; other seeds may reverse it."

SIGNIFICANCE = 0.05
"""A larger p-value than this is pointed out."""

NEGLIGIBLE_WITH_ONE_SEED = 0.02
"""Relative differences up to this are too small to interpret if either experiment has one seed."""

MIN_STATED_DIFFERENCE = 0.001
"""Smaller relative differences are not stated as numbers."""

METHOD = (
    "Differences are in mean validation perplexity at the best epoch of each run. With several seeds on both sides, a "
    "setting is reported as lower or higher if all of its seeds are below or all are above those of the other and the "
    "difference of the means exceeds the larger standard deviation; otherwise it is within the spread of the seeds. "
    "The p-value is that of the exact two-sided rank-sum test (Mann-Whitney U), which for such a complete separation "
    "of m and n seeds is 2 / C(m + n, n). With one seed on either side no p-value is given, and a difference of up to "
    f"{NEGLIGIBLE_WITH_ONE_SEED:.0%} is treated as too small to interpret."
)


class Verdict(Enum):
    """Result of comparing the perplexity of a first experiment with that of a second; see ``METHOD``."""

    LOWER = "lower"
    """The first is lower, supported by several seeds of both."""
    HIGHER = "higher"
    """The first is higher, supported by several seeds of both."""
    WITHIN_SPREAD = "within the spread"
    """The difference is within the spread of the seeds, several of both."""
    LOWER_IN_ONE_SEED = "lower in one seed"
    """The first is lower, but at least one of the two has only one seed."""
    HIGHER_IN_ONE_SEED = "higher in one seed"
    """The first is higher, but at least one of the two has only one seed."""
    NEGLIGIBLE_IN_ONE_SEED = "negligible in one seed"
    """The difference is too small to interpret when at least one of the two has only one seed."""
    NO_DATA = "no data"
    """One of the two is missing, or is not complete."""

    @property
    def first_is_lower(self) -> bool:
        """Whether the first is lower, however many seeds support it."""
        return self in (Verdict.LOWER, Verdict.LOWER_IN_ONE_SEED)

    @property
    def first_is_higher(self) -> bool:
        """Whether the first is higher, however many seeds support it."""
        return self in (Verdict.HIGHER, Verdict.HIGHER_IN_ONE_SEED)

    @property
    def one_seed(self) -> bool:
        """Whether at least one of the two has only one seed."""
        return self in (Verdict.LOWER_IN_ONE_SEED, Verdict.HIGHER_IN_ONE_SEED, Verdict.NEGLIGIBLE_IN_ONE_SEED)


@dataclass(frozen=True)  # without slots, for cached_property: every comparison asks again for the same numbers
class ExperimentResult:
    """Results of one experiment, over its seeds."""

    runs: Sequence[Run]

    @property
    def id(self) -> int:
        return self.runs[0].info.experiment.id

    @property
    def label_with_id(self) -> str:
        """Name and id, for example ``GPT-1 1L Adam (5)``, with the mark of damage."""
        return f"{self.runs[0].info.experiment.label} ({self.id}){damage_mark(self.runs)}"

    @cached_property
    def complete(self) -> bool:
        """Whether every run is complete and has a finite validation perplexity."""
        return all(is_complete(run) for run in self.runs) and len(self.valid_ppls) == len(self.runs)

    @cached_property
    def valid_ppls(self) -> list[float]:
        """Best validation perplexity of each seed that has a finite one; all seeds of a complete experiment do."""
        best = [best_valid_ppl(run) for run in self.runs]
        return [ppl for ppl in best if ppl is not None and math.isfinite(ppl)]

    @property
    def mean_ppl(self) -> float | None:
        """Mean of ``valid_ppls``; None if there are none."""
        return statistics.fmean(self.valid_ppls) if self.valid_ppls else None

    @property
    def sd_ppl(self) -> float | None:
        """Standard deviation (n - 1) of ``valid_ppls``; None for fewer than two."""
        return statistics.stdev(self.valid_ppls) if len(self.valid_ppls) > 1 else None

    @property
    def train_ppl_at_best(self) -> float | None:
        """Train perplexity at the best epoch, mean over seeds; None if it is unknown for any seed."""
        best = [run.state.best_epoch for run in self.runs]
        return _mean([epoch.train_ppl if epoch else None for epoch in best])

    @property
    def last_gap_nats(self) -> float | None:
        """Validation loss minus train loss at the last epoch, mean over seeds; None if it is unknown for any seed."""
        return _mean(self._last_gaps_nats)

    @property
    def last_gap_ratio(self) -> float | None:
        """Validation perplexity over train perplexity at the last epoch; None if it is unknown or too large."""
        ratio = math.nan if self.last_gap_nats is None else perplexity(self.last_gap_nats)
        return ratio if math.isfinite(ratio) else None

    @property
    def last_gap_sd_nats(self) -> float:
        """Standard deviation (n - 1) of the gap at the last epoch over seeds with a known gap; 0 for one seed."""
        known = [gap for gap in self._last_gaps_nats if gap is not None]
        return statistics.stdev(known) if len(known) > 1 else 0.0

    @property
    def _last_gaps_nats(self) -> list[float | None]:
        return [_gap_nats(run.state.last_epoch) for run in self.runs]

    @property
    def rise_nats(self) -> float | None:
        """Rise of the validation loss from the best epoch to the last, mean over seeds; None if it is unknown for any
        seed."""
        return _mean([_rise_nats(run) for run in self.runs])

    @property
    def train_s(self) -> float | None:
        """Training time in seconds, mean over seeds; None if it is unknown for any seed."""
        return _mean([run.state.elapsed_train_s for run in self.runs])

    @property
    def parameters_trainable(self) -> int | None:
        """Number of trained parameters; None if the first run does not record it."""
        started = self.runs[0].state.started
        return started.parameters_trainable if started else None

    def format_mean_ppl(self) -> str:
        """Return the mean as ``123.456``, or as ``123.456 ± 1.234 (n = 3)``."""
        if self.mean_ppl is None:
            return "unknown"
        if self.sd_ppl is None:
            return format_ppl(self.mean_ppl)
        return f"{format_spread(self.mean_ppl, self.sd_ppl)} (n = {len(self.valid_ppls)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Verdict on two experiments, and the sentence with the numbers behind it."""

    verdict: Verdict
    sentence: str
    caution: str = ""
    """Sentence to follow any interpretation of the difference, if there are too few seeds; else empty."""
    p_value: float | None = None
    """None unless several seeds of both separate completely."""


def experiment_results(group: Group) -> dict[int, ExperimentResult]:
    """Return the results of each experiment of ``group`` by experiment id, in the order of the tables."""
    return {id_: ExperimentResult(runs) for id_, runs in group.by_experiment.items()}


def compare(first: ExperimentResult, second: ExperimentResult) -> Comparison:
    """Compare the validation perplexity of ``first`` with that of ``second``; see ``METHOD``."""
    results = "; ".join(f"{each.label_with_id}: {each.format_mean_ppl()}" for each in (first, second))
    start = f"{results}.{_name_confounders(first, second)}"
    first_ppl, second_ppl = first.mean_ppl, second.mean_ppl
    if first_ppl is None or second_ppl is None or not (first.complete and second.complete):
        incomplete = " and ".join(each.label_with_id for each in (first, second) if not each.complete)
        sentence = (
            f"{start} No comparison: unfinished, diverged, damaged or without a finite validation perplexity: "
            f"{incomplete}."
        )
        return Comparison(verdict=Verdict.NO_DATA, sentence=sentence)
    relative_difference = first_ppl / second_ppl - 1.0
    size = abs(relative_difference)
    direction = "lower" if relative_difference < 0 else "higher"
    difference = f"The first is {size:.1%} {direction}"
    if size < MIN_STATED_DIFFERENCE:
        difference = f"They differ by less than {MIN_STATED_DIFFERENCE:.1%}"
    m, n = len(first.valid_ppls), len(second.valid_ppls)
    if min(m, n) < 2:
        seeds = "one seed each" if m == n else "one seed on one side"
        if size <= NEGLIGIBLE_WITH_ONE_SEED:
            sentence = f"{start} {difference}, too little to interpret with {seeds}."
            return Comparison(verdict=Verdict.NEGLIGIBLE_IN_ONE_SEED, sentence=sentence, caution=ONE_SEED)
        verdict = Verdict.LOWER_IN_ONE_SEED if relative_difference < 0 else Verdict.HIGHER_IN_ONE_SEED
        return Comparison(verdict=verdict, sentence=f"{start} {difference}, with {seeds}.", caution=ONE_SEED)
    separate = max(first.valid_ppls) < min(second.valid_ppls) or max(second.valid_ppls) < min(first.valid_ppls)
    spread = max(first.sd_ppl or 0.0, second.sd_ppl or 0.0)
    if not separate or abs(first_ppl - second_ppl) <= spread:
        sentence = f"{start} {difference}, within the spread of the seeds."
        return Comparison(verdict=Verdict.WITHIN_SPREAD, sentence=sentence)
    if size < MIN_STATED_DIFFERENCE:
        difference = f"The first is {direction}, by less than {MIN_STATED_DIFFERENCE:.1%}"
    p = 2.0 / math.comb(m + n, n)
    return Comparison(
        verdict=Verdict.LOWER if relative_difference < 0 else Verdict.HIGHER,
        sentence=f"{start} {difference}, and the seeds separate completely (p = {p:.2g}).",
        caution=f"With so few seeds this may be due to chance (p = {p:.2g})." if p > SIGNIFICANCE else "",
        p_value=p,
    )


def _name_confounders(first: ExperimentResult, second: ExperimentResult) -> str:
    """Return a sentence naming settings outside ``EXPERIMENT_SETTINGS`` in which the two differ, which may explain a
    difference too; empty if there are none."""
    one, other = (msgspec.to_builtins(each.runs[0].info.settings) for each in (first, second))
    names = [key.replace("_", " ") for key in one if key not in EXPERIMENT_SETTINGS and one[key] != other[key]]
    return f" They also differ in {', '.join(names)}." if names else ""


def _gap_nats(epoch: Epoch | None) -> float | None:
    if epoch is None or epoch.valid_loss_nats is None or epoch.train_loss_nats is None:
        return None
    gap = epoch.valid_loss_nats - epoch.train_loss_nats
    return gap if math.isfinite(gap) else None


def _rise_nats(run: Run) -> float | None:
    best, last = run.state.best_epoch, run.state.last_epoch
    if best is None or last is None or best.valid_loss_nats is None or last.valid_loss_nats is None:
        return None
    return last.valid_loss_nats - best.valid_loss_nats


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None unless all values are known and finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known and len(known) == len(values) else None
