"""Results of experiments over their seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from lmconsole.claims.evaluate import UNLEARNED_NATS
from lmconsole.report.markup import format_ppl, format_spread
from lmconsole.report.results import damage_mark, is_complete
from lmconsole.report.selection import Group
from lmconsole.report.targets import best_valid_ppl
from lmconsole.runs.endpoint import test_nll_best
from lmconsole.runs.events import Epoch, perplexity
from lmconsole.runs.info import RunInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run


class Endpoint(Enum):
    """Result of a run that is compared, in nats; the value is its name in sentences."""

    TEST = "test loss"
    """Loss on the test split with the weights of the best epoch, which validation has chosen."""
    VALIDATION = "validation loss"
    """Loss on the validation split at the best epoch."""


def valid_nll_best(run: Run) -> float | None:
    """Return the validation loss at the best epoch, in nats per token.

    Infinite if the run diverged; None if it has not finished or has no validation loss.
    """
    finished = run.state.finished
    if finished is None or run.status is not Status.FINISHED:
        return None
    if finished.diverged:
        return math.inf
    best = run.state.best_epoch or run.state.last_epoch
    return _finite_or_inf(best.valid_loss_nats if best else None)


def _finite_or_inf(nats: float | None) -> float | None:
    return nats if nats is None or math.isfinite(nats) else math.inf


@dataclass(frozen=True)  # without slots, for cached_property: every comparison asks again for the same numbers
class ExperimentResult:
    """Results of one experiment, over its seeds."""

    runs: Sequence[Run]

    @property
    def id(self) -> int:
        return self.runs[0].info.experiment.id

    @property
    def info(self) -> RunInfo:
        """Configuration of the first run."""
        return self.runs[0].info

    @property
    def label_with_id(self) -> str:
        """Name and id, for example ``GPT-1 1L Adam (5)``, with the mark of damage."""
        return f"{self.info.experiment.label} ({self.id}){damage_mark(self.runs)}"

    @property
    def setting(self) -> str:
        """Name of the setting, for example ``GPT-1 1L Adam (experiment 5)``, with the mark of damage."""
        return f"{self.info.experiment.label} (experiment {self.id}){damage_mark(self.runs)}"

    @cached_property
    def complete(self) -> bool:
        """Whether every run is complete and has a finite validation perplexity."""
        return all(is_complete(run) for run in self.runs) and len(self.valid_ppls) == len(self.runs)

    @cached_property
    def ended(self) -> bool:
        """Whether every run has finished, diverged or not, and none is damaged."""
        return all(run.status is Status.FINISHED and not run.state.damage for run in self.runs)

    @cached_property
    def several_epochs(self) -> bool:
        """Whether every run has at least two epochs: one is not a curve."""
        return all(len(run.state.epochs) > 1 for run in self.runs)

    def losses(self, endpoint: Endpoint) -> tuple[float, ...] | None:
        """Return the result of each seed, infinite for a diverged run; None if one has none."""
        measure = test_nll_best if endpoint is Endpoint.TEST else valid_nll_best
        values = [measure(run) for run in self.runs]
        known = tuple(value for value in values if value is not None)
        return known if len(known) == len(values) else None

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
    def last_ppl(self) -> float | None:
        """Validation perplexity at the last epoch, mean over seeds; None if it is unknown for any seed."""
        return _mean([epoch.valid_ppl if (epoch := run.state.last_epoch) else None for run in self.runs])

    @property
    def train_ppl_at_best(self) -> float | None:
        """Train perplexity at the best epoch, mean over seeds; None if it is unknown for any seed."""
        best = [run.state.best_epoch for run in self.runs]
        return _mean([epoch.train_ppl if epoch else None for epoch in best])

    @property
    def best_epoch(self) -> float | None:
        """Best epoch, median over seeds; None if a run has none."""
        best = [run.state.best_epoch for run in self.runs]
        known = [epoch.epoch for epoch in best if epoch]
        return statistics.median(known) if len(known) == len(best) else None

    @property
    def stops_before_last(self) -> bool:
        """Whether the best epoch of at least one seed is not its last."""
        return any(run.state.best_epoch is not run.state.last_epoch for run in self.runs)

    @property
    def last_gap_nats(self) -> float | None:
        """Validation loss minus train loss at the last epoch, mean over seeds; None if it is unknown for any seed."""
        return _mean(self.last_gaps_nats)

    @property
    def last_gap_ratio(self) -> float | None:
        """Validation perplexity over train perplexity at the last epoch; None if it is unknown or too large."""
        ratio = math.nan if self.last_gap_nats is None else perplexity(self.last_gap_nats)
        return ratio if math.isfinite(ratio) else None

    @property
    def last_gaps_nats(self) -> list[float | None]:
        """Gap of each seed."""
        return [_gap_nats(run.state.last_epoch) for run in self.runs]

    @property
    def rise_nats(self) -> float | None:
        """Rise of the validation loss from the best epoch to the last, mean over seeds; None if it is unknown for any
        seed."""
        return _mean(self.rises_nats)

    @property
    def rises_nats(self) -> list[float | None]:
        """Rise of each seed."""
        return [_rise_nats(run) for run in self.runs]

    @property
    def last_gain_nats(self) -> float | None:
        """Amount by which the last epoch lowered the validation loss, smallest of the seeds, in nats.

        None unless the last epoch is the best of every seed, and not the only one.
        """
        gains = [last_gain_nats(run) for run in self.runs]
        known = [gain for gain in gains if gain is not None]
        return min(known) if known and len(known) == len(gains) else None

    @property
    def train_lag_nats(self) -> float | None:
        """Half of the last fall of the train loss, mean over seeds; None if it is unknown for any seed.

        A loss that is averaged over an epoch is about that of its middle, so it is this much above that of its end.
        """
        return _mean([_train_lag_nats(run) for run in self.runs])

    @property
    def hardly_learned(self) -> bool:
        """Whether the best validation loss, median over seeds, is not below that of token frequencies or, where that is
        unknown, of a uniform guess, or little lower."""
        losses = [loss for run in self.runs if (best := run.state.best_epoch) and (loss := best.valid_loss_nats)]
        unigram = self.info.corpus.unigram_ppl.get("validation")
        bound = math.log(self.info.corpus.vocabulary) - UNLEARNED_NATS if unigram is None else math.log(unigram)
        return bool(losses) and statistics.median(losses) >= bound

    @property
    def train_s(self) -> float | None:
        """Training time in seconds, mean over seeds; None if it is unknown for any seed."""
        return _mean([run.state.elapsed_train_s for run in self.runs])

    @property
    def best_train_s(self) -> float | None:
        """Training time in seconds up to the end of the best epoch, mean over seeds; None if unknown for any seed."""
        return _mean([epoch.elapsed_train_s if (epoch := run.state.best_epoch) else None for run in self.runs])

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


def last_gain_nats(run: Run) -> float | None:
    """Return by how much the last epoch lowered the validation loss; None if it is not the best, or the only one."""
    best, epochs = run.state.best_epoch, run.state.epochs
    if best is None or best is not run.state.last_epoch or len(epochs) < 2:
        return None
    before, last = epochs[-2].valid_loss_nats, best.valid_loss_nats
    return None if before is None or last is None or not math.isfinite(before) else before - last


def experiment_results(group: Group) -> dict[int, ExperimentResult]:
    """Return the results of each experiment of ``group`` by experiment id, in the order of the tables."""
    return {id_: ExperimentResult(runs) for id_, runs in group.by_experiment.items()}


def _gap_nats(epoch: Epoch | None) -> float | None:
    if epoch is None or epoch.valid_loss_nats is None or epoch.train_loss_nats is None:
        return None
    gap = epoch.valid_loss_nats - epoch.train_loss_nats
    return gap if math.isfinite(gap) else None


def _train_lag_nats(run: Run) -> float | None:
    losses = [epoch.train_loss_nats for epoch in run.state.epochs[-2:]]
    if len(losses) < 2 or losses[0] is None or losses[1] is None:
        return None
    return max(0.0, losses[0] - losses[1]) / 2


def _rise_nats(run: Run) -> float | None:
    best, last = run.state.best_epoch, run.state.last_epoch
    if best is None or last is None or best.valid_loss_nats is None or last.valid_loss_nats is None:
        return None
    return last.valid_loss_nats - best.valid_loss_nats


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None unless all values are known and finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known and len(known) == len(values) else None
