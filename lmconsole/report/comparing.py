"""Comparison of two experiments: their results, and whether seeds and data support a claim about the difference."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from lmconsole.report.markup import format_ppl
from lmconsole.report.results import is_complete
from lmconsole.report.selection import Group
from lmconsole.report.targets import best_valid_ppl
from lmconsole.runs.comparable import EXPERIMENT_SETTINGS
from lmconsole.runs.events import Epoch
from lmconsole.runs.store import Run

ONE_SEED = "This rests on one seed; other seeds may reverse it."

SIGNIFICANCE = 0.05
"""A larger p-value than this is pointed out."""

NEGLIGIBLE = 0.02
"""With one seed, relative differences up to this are treated as too small to interpret."""

EQUAL = 0.001
"""Relative differences below this are not given as numbers."""

METHOD = (
    "Differences are in mean validation perplexity at the best epoch of each run. With several seeds, a difference "
    "counts if every seed of one setting is below every seed of the other and the difference exceeds the larger "
    "standard deviation; otherwise it is within the spread of the seeds. The p-value is that of an exact two-sided "
    "permutation test for this complete separation: 2 / C(m + n, n) for m and n seeds. With one seed no p-value can be "
    f"given, and a difference of up to {NEGLIGIBLE:.0%} is treated as too small to interpret."
)


class Verdict(Enum):
    """Result of comparing the perplexities of two experiments."""

    LOWER = "lower"
    """The first is lower, supported by several seeds."""
    HIGHER = "higher"
    WITHIN_SPREAD = "within the spread"
    """The difference of several seeds is within their spread."""
    LOWER_IN_ONE_SEED = "lower in one seed"
    HIGHER_IN_ONE_SEED = "higher in one seed"
    NEGLIGIBLE_IN_ONE_SEED = "negligible in one seed"
    NO_DATA = "no data"
    """One of the two is missing, unfinished or diverged."""

    @property
    def lower(self) -> bool:
        """Whether the first is lower, with one seed or several."""
        return self in (Verdict.LOWER, Verdict.LOWER_IN_ONE_SEED)

    @property
    def higher(self) -> bool:
        """Whether the first is higher, with one seed or several."""
        return self in (Verdict.HIGHER, Verdict.HIGHER_IN_ONE_SEED)

    @property
    def one_seed(self) -> bool:
        """Whether the verdict rests on one seed."""
        return self in (Verdict.LOWER_IN_ONE_SEED, Verdict.HIGHER_IN_ONE_SEED, Verdict.NEGLIGIBLE_IN_ONE_SEED)


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """Results of one experiment, over its seeds."""

    runs: Sequence[Run]

    @property
    def id(self) -> int:
        return self.runs[0].info.experiment.id

    @property
    def label(self) -> str:
        """Name and id, for example ``GPT-1 1L Adam (5)``."""
        return f"{self.runs[0].info.experiment.label} ({self.id})"

    @property
    def complete(self) -> bool:
        """Whether every run has finished without diverging."""
        return all(is_complete(run) for run in self.runs)

    @property
    def valid_ppls(self) -> list[float]:
        """Best validation perplexity of each seed that has a finite one."""
        return [ppl for run in self.runs for ppl in [best_valid_ppl(run)] if ppl is not None and math.isfinite(ppl)]

    @property
    def mean_ppl(self) -> float | None:
        """Mean of ``valid_ppls``."""
        return statistics.fmean(self.valid_ppls) if self.valid_ppls else None

    @property
    def sd_ppl(self) -> float | None:
        """Standard deviation (n - 1) of ``valid_ppls``; None for one seed."""
        return statistics.stdev(self.valid_ppls) if len(self.valid_ppls) > 1 else None

    @property
    def train_ppl(self) -> float | None:
        """Mean train perplexity at the best epoch of each seed."""
        return _mean([run.state.best_epoch.train_ppl for run in self.runs if run.state.best_epoch])

    @property
    def gap_nats(self) -> float | None:
        """Validation loss minus train loss at the last epoch, mean over seeds."""
        return _mean(self._gaps_nats)

    @property
    def gap_sd_nats(self) -> float:
        """Standard deviation (n - 1) of the gap over seeds; 0 for one seed."""
        known = [gap for gap in self._gaps_nats if gap is not None]
        return statistics.stdev(known) if len(known) > 1 else 0.0

    @property
    def _gaps_nats(self) -> list[float | None]:
        return [_gap_nats(run.state.epochs[-1]) for run in self.runs if run.state.epochs]

    @property
    def rise_nats(self) -> float | None:
        """Rise of the validation loss from the best epoch to the last, mean over seeds."""
        rises = []
        for run in self.runs:
            best, last = run.state.best_epoch, run.state.last_epoch
            lowest = best.valid_loss_nats if best else None
            final = last.valid_loss_nats if last else None
            if lowest is not None and final is not None and math.isfinite(final):
                rises.append(final - lowest)
        return _mean(rises)

    @property
    def train_s(self) -> float | None:
        """Mean training time in seconds."""
        return _mean([run.state.elapsed_train_s for run in self.runs])

    @property
    def parameters_trainable(self) -> int | None:
        """Number of trained parameters."""
        started = self.runs[0].state.started
        return started.parameters_trainable if started and started.parameters_trainable else None

    def format_ppl(self) -> str:
        """Return the mean as ``123.456``, or as ``123.456 ± 1.234 (n = 3)``."""
        if self.mean_ppl is None:
            return "unknown"
        if self.sd_ppl is None:
            return format_ppl(self.mean_ppl)
        return f"{format_ppl(self.mean_ppl)} ± {format_ppl(self.sd_ppl)} (n = {len(self.valid_ppls)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Verdict on two experiments, and the sentence with the numbers behind it."""

    verdict: Verdict
    sentence: str
    caution: str = ""
    """Sentence that qualifies an interpretation because there are few seeds."""


def experiment_results(group: Group) -> dict[int, ExperimentResult]:
    """Return the results of every experiment by id, in the order of the tables."""
    return {experiment: ExperimentResult(runs) for experiment, runs in group.by_experiment.items()}


def compare(first: ExperimentResult, second: ExperimentResult) -> Comparison:
    """Compare the validation perplexity of ``first`` with that of ``second``; see ``METHOD``."""
    results = "; ".join(f"{each.label}: {each.format_ppl()}" for each in (first, second))
    start = f"{results}.{_other_differences(first, second)}"
    ours, theirs = first.mean_ppl, second.mean_ppl
    if ours is None or theirs is None or not (first.complete and second.complete):
        incomplete = " and ".join(each.label for each in (first, second) if not each.complete or each.mean_ppl is None)
        sentence = f"{start} No comparison: {incomplete} did not finish or diverged."
        return Comparison(verdict=Verdict.NO_DATA, sentence=sentence)
    share = ours / theirs - 1.0
    difference = f"The first is {abs(share):.1%} {'lower' if share < 0 else 'higher'}"
    if abs(share) < EQUAL:
        difference = f"They differ by less than {EQUAL:.1%}"
    m, n = len(first.valid_ppls), len(second.valid_ppls)
    if min(m, n) < 2:
        if abs(share) <= NEGLIGIBLE:
            sentence = f"{start} {difference}, too little to interpret with one seed."
            return Comparison(verdict=Verdict.NEGLIGIBLE_IN_ONE_SEED, sentence=sentence, caution=ONE_SEED)
        verdict = Verdict.LOWER_IN_ONE_SEED if share < 0 else Verdict.HIGHER_IN_ONE_SEED
        return Comparison(verdict=verdict, sentence=f"{start} {difference}, with one seed.", caution=ONE_SEED)
    separate = max(first.valid_ppls) < min(second.valid_ppls) or max(second.valid_ppls) < min(first.valid_ppls)
    spread = max(first.sd_ppl or 0.0, second.sd_ppl or 0.0)
    if not separate or abs(ours - theirs) <= spread:
        sentence = f"{start} {difference}, within the spread of the seeds."
        return Comparison(verdict=Verdict.WITHIN_SPREAD, sentence=sentence)
    p = 2.0 / math.comb(m + n, n)
    return Comparison(
        verdict=Verdict.LOWER if share < 0 else Verdict.HIGHER,
        sentence=f"{start} {difference}, and the seeds separate completely (p = {p:.2g}).",
        caution=f"With so few seeds this may be due to chance (p = {p:.2g})." if p > SIGNIFICANCE else "",
    )


def _other_differences(first: ExperimentResult, second: ExperimentResult) -> str:
    """Name settings that differ although the two are not compared for them; empty if none do."""
    ours, theirs = (msgspec.to_builtins(each.runs[0].info.settings) for each in (first, second))
    names = [key.replace("_", " ") for key in ours if key not in EXPERIMENT_SETTINGS and ours[key] != theirs[key]]
    return f" They also differ in {', '.join(names)}." if names else ""


def _gap_nats(epoch: Epoch) -> float | None:
    if epoch.valid_loss_nats is None or epoch.train_loss_nats is None:
        return None
    gap = epoch.valid_loss_nats - epoch.train_loss_nats
    return gap if math.isfinite(gap) else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None unless all values are known and finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known and len(known) == len(values) else None
