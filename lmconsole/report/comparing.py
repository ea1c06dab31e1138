"""Two settings side by side: what was measured, and whether seeds and data carry a claim about it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from lmconsole.report.markup import decimals
from lmconsole.report.results import is_complete
from lmconsole.report.selection import OWN, Group
from lmconsole.report.targets import best_valid_ppl
from lmconsole.runs.events import Epoch
from lmconsole.runs.store import Run

ONE_SEED = "This rests on one seed; other seeds may turn it round."

LIKELY = 0.05
"""A larger chance than this is pointed out."""

NEGLIGIBLE = 0.02
"""Of one seed each, differences up to this share are called too small to mean anything."""

SAME = 0.001
"""A smaller share than this is not put into numbers."""

RULE = (
    "Differences are of mean validation perplexity at each run's best epoch. With several seeds, a difference counts "
    "when every seed of the one lies below every seed of the other and it exceeds the larger standard deviation; else "
    "it is within the seeds' spread. The chance that seeds separate like that although the settings do not matter is "
    "given: 2 / C(m + n, n) for m and n seeds. With one seed there is no such chance to give, and a difference of up "
    f"to {NEGLIGIBLE:.0%} is called too small to mean anything."
)


class Verdict(Enum):
    """What two measurements say about each other."""

    LOWER = "lower"
    """The first is lower, and its seeds carry that."""
    HIGHER = "higher"
    SPREAD = "within the spread"
    """Several seeds, and no difference beyond their spread."""
    HINT_LOWER = "lower in one seed"
    HINT_HIGHER = "higher in one seed"
    TINY = "tiny in one seed"
    NONE = "no data"
    """One of the two is missing, unfinished or diverged."""

    @property
    def lower(self) -> bool:
        """Whether the first is lower, by seeds or as a hint."""
        return self in (Verdict.LOWER, Verdict.HINT_LOWER)

    @property
    def higher(self) -> bool:
        """Whether the first is higher, by seeds or as a hint."""
        return self in (Verdict.HIGHER, Verdict.HINT_HIGHER)

    @property
    def hint(self) -> bool:
        """Whether one seed alone speaks."""
        return self in (Verdict.HINT_LOWER, Verdict.HINT_HIGHER, Verdict.TINY)


@dataclass(frozen=True)
class Measured:
    """What the runs of one experiment have measured."""

    runs: Sequence[Run]

    @property
    def id(self) -> int:
        """Of the experiment."""
        return self.runs[0].info.experiment.id

    @property
    def label(self) -> str:
        """``GPT-1 1L Adam (5)``."""
        return f"{self.runs[0].info.experiment.label} ({self.id})"

    @property
    def complete(self) -> bool:
        """Whether every run has finished without diverging."""
        return all(is_complete(run) for run in self.runs)

    @property
    def valid_ppl(self) -> list[float]:
        """Best validation perplexity of each seed that has a finite one."""
        return [ppl for run in self.runs for ppl in [best_valid_ppl(run)] if ppl is not None and math.isfinite(ppl)]

    @property
    def mean_ppl(self) -> float | None:
        """Mean of ``valid_ppl``."""
        return statistics.fmean(self.valid_ppl) if self.valid_ppl else None

    @property
    def sd_ppl(self) -> float | None:
        """Standard deviation (n - 1) of ``valid_ppl``; None of one seed."""
        return statistics.stdev(self.valid_ppl) if len(self.valid_ppl) > 1 else None

    @property
    def train_ppl(self) -> float | None:
        """Mean train perplexity at each seed's best epoch."""
        return _mean([run.state.best_epoch.train_ppl for run in self.runs if run.state.best_epoch])

    @property
    def gap_nats(self) -> float | None:
        """Validation loss minus train loss at the last epoch, mean over seeds."""
        return _mean([_gap(run.state.epochs[-1]) for run in self.runs if run.state.epochs])

    @property
    def gap_sd_nats(self) -> float:
        """Standard deviation (n - 1) of the gap over seeds; 0 of one seed."""
        gaps = [_gap(run.state.epochs[-1]) for run in self.runs if run.state.epochs]
        known = [gap for gap in gaps if gap is not None]
        return statistics.stdev(known) if len(known) > 1 else 0.0

    @property
    def rise_nats(self) -> float | None:
        """How far validation loss has risen from its best epoch to the last, mean over seeds."""
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
        """Mean seconds of training."""
        return _mean([run.state.elapsed_train_s for run in self.runs])

    @property
    def parameters_trainable(self) -> int | None:
        """Trained numbers of the model."""
        started = self.runs[0].state.started
        return started.parameters_trainable if started and started.parameters_trainable else None

    def ppl_words(self) -> str:
        """``123.456``, or ``123.456 ± 1.234 (n = 3)``."""
        if self.mean_ppl is None:
            return "unknown"
        if self.sd_ppl is None:
            return decimals(self.mean_ppl)
        return f"{decimals(self.mean_ppl)} ± {decimals(self.sd_ppl)} (n = {len(self.valid_ppl)})"


@dataclass(frozen=True)
class Comparison:
    """The first against the second: the verdict, and the sentence that says what it rests on."""

    verdict: Verdict
    words: str
    caution: str = ""
    """What an interpretation has to add, because so few seeds speak."""


def measure(group: Group) -> dict[int, Measured]:
    """Every experiment of a group by its id, in the order of the tables."""
    return {experiment: Measured(runs) for experiment, runs in group.by_experiment.items()}


def compare(first: Measured, second: Measured) -> Comparison:
    """Whether ``first`` has the lower validation perplexity."""
    start = f"{first.label}: {first.ppl_words()}; {second.label}: {second.ppl_words()}.{_also_differ(first, second)}"
    ours, theirs = first.mean_ppl, second.mean_ppl
    if ours is None or theirs is None or not (first.complete and second.complete):
        odd = " and ".join(each.label for each in (first, second) if not each.complete or each.mean_ppl is None)
        return Comparison(Verdict.NONE, f"{start} {odd} did not finish or diverged: no comparison.")
    share = ours / theirs - 1.0
    difference = f"The first is {abs(share):.1%} {'lower' if share < 0 else 'higher'}"
    if abs(share) < SAME:
        difference = f"They differ by less than {SAME:.1%}"
    m, n = len(first.valid_ppl), len(second.valid_ppl)
    if min(m, n) < 2:
        if abs(share) <= NEGLIGIBLE:
            words = f"{start} {difference}, too little to mean anything with one seed."
            return Comparison(Verdict.TINY, words, ONE_SEED)
        verdict = Verdict.HINT_LOWER if share < 0 else Verdict.HINT_HIGHER
        return Comparison(verdict, f"{start} {difference}, in one seed.", ONE_SEED)
    apart = max(first.valid_ppl) < min(second.valid_ppl) or max(second.valid_ppl) < min(first.valid_ppl)
    spread = max(first.sd_ppl or 0.0, second.sd_ppl or 0.0)
    if not apart or abs(ours - theirs) <= spread:
        return Comparison(Verdict.SPREAD, f"{start} {difference}, which is within the seeds' spread.")
    chance = 2.0 / math.comb(m + n, n)
    words = f"{start} {difference}, in every seed (chance {chance:.2g} if the settings do not matter)."
    caution = f"With so few seeds it may be an accident (chance {chance:.2g})." if chance > LIKELY else ""
    return Comparison(Verdict.LOWER if share < 0 else Verdict.HIGHER, words, caution)


def _also_differ(first: Measured, second: Measured) -> str:
    """A sentence about settings that differ beyond what the two are compared for; empty if none do."""
    ours, theirs = (msgspec.to_builtins(each.runs[0].info.settings) for each in (first, second))
    own = [key for key in ours if key not in OWN and ours[key] != theirs[key]]
    return f" They also differ in {', '.join(key.replace('_', ' ') for key in own)}." if own else ""


def _gap(epoch: Epoch) -> float | None:
    if epoch.valid_loss_nats is None or epoch.train_loss_nats is None:
        return None
    gap = epoch.valid_loss_nats - epoch.train_loss_nats
    return gap if math.isfinite(gap) else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of values that are all known and finite; None otherwise."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known and len(known) == len(values) else None
