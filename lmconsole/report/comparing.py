"""Results of experiments over their seeds, and comparisons of two of them as numbers and sentences.

The statistics are those of ``lmconsole.claims``. No claim is registered for the comparisons of a report, so they are
exploratory: they describe what the seeds show, and no sentence calls one setting better than another.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import msgspec

from lmconsole.claims import verdict
from lmconsole.claims.ranks import is_exact
from lmconsole.claims.verdict import ALPHA, MIN_SEEDS, MIN_SEEDS_RANKS, Contrast, Interval, Side
from lmconsole.report.markup import format_ppl, format_spread
from lmconsole.report.results import damage_mark, is_complete
from lmconsole.report.selection import Group
from lmconsole.report.targets import best_valid_ppl
from lmconsole.runs.comparable import EXPERIMENT_SETTINGS
from lmconsole.runs.events import Epoch, perplexity
from lmconsole.runs.info import RunInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

NOT_A_CLAIM = "one seed, not a claim"

DIGITS = 4
"""Decimals of losses in nats."""

MATERIAL_NATS = 0.02
"""Differences of losses and gaps up to this, in nats, get no explanation: 2% of a perplexity."""


class Endpoint(Enum):
    """Result of a run that is compared, in nats; the value is its name in sentences."""

    TEST = "test loss"
    """Loss on the test split with the weights of the best epoch, which validation has chosen."""
    VALIDATION = "validation loss"
    """Loss on the validation split at the best epoch."""


def test_nll_best(run: Run) -> float | None:
    """Return the test loss with the weights of the best epoch, in nats per token.

    Infinite if the run diverged; None if it has not finished or has no such result.
    """
    finished = run.state.finished
    if finished is None or run.status is not Status.FINISHED:
        return None
    if finished.diverged:
        return math.inf
    return _finite_or_inf(None if finished.test_ppl_best is None else math.log(finished.test_ppl_best))


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


class Evidence(Enum):
    """Amount of evidence on the difference between two settings. No value of it is a claim."""

    NO_DATA = "no data"
    """One of the two has no run, or one that is unfinished, damaged or without a result."""
    ONE_SEED = "one seed"
    """At least one of the two has only one seed, so no uncertainty is known."""
    DESCRIPTION = "description only"
    """Too few seeds for a test, or values that do not vary."""
    INCONCLUSIVE = "inconclusive"
    """The adjusted p-value is above ``ALPHA``. This is not evidence of equal settings."""
    EXPLORATORY = "exploratory"
    """The adjusted p-value is at most ``ALPHA``, for a comparison that was not registered before the runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two experiments to compare, each None if it has no run."""

    subject: str
    """Name of the pair in sentences, such as ``LSTM, AdamW against Adam``."""
    first: ExperimentResult | None
    second: ExperimentResult | None

    @property
    def exists(self) -> bool:
        """Whether both have runs."""
        return self.first is not None and self.second is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Results of two experiments, compared as one of a family of contrasts."""

    pair: Pair
    endpoint: Endpoint
    contrast: Contrast | None
    """Results of the seeds; None if there are no data."""
    result: verdict.Comparison | None
    """Statistics; None if nothing in the family has enough seeds for them."""
    family: int
    """Number of contrasts over which p-values are adjusted."""

    @property
    def evidence(self) -> Evidence:
        """Amount of evidence."""
        return evidence_of(self.contrast, self.result)

    @property
    def first_is_lower(self) -> bool | None:
        """Whether the first has the lower loss in these runs; None if the losses agree in the decimals shown, or
        are unknown."""
        return None if self.contrast is None else _first_is_lower(self.contrast)

    @property
    def favored(self) -> ExperimentResult | None:
        """Experiment with the lower loss in these runs, whatever the evidence; None if there is none."""
        if self.first_is_lower is None:
            return None
        return self.pair.first if self.first_is_lower else self.pair.second

    @property
    def is_material(self) -> bool:
        """Whether there is a difference to explain: of one seed by more than ``MATERIAL_NATS``, or of several that is
        not inconclusive."""
        if self.contrast is None or self.first_is_lower is None:
            return False
        if self.evidence is Evidence.EXPLORATORY:
            return True
        return self.evidence is Evidence.ONE_SEED and _center_distance(self.contrast) > MATERIAL_NATS

    @property
    def outcome(self) -> str:
        """Result in a few words, as the end of a sentence after a colon; empty without data."""
        return outcome(self.evidence, self.favored)

    @property
    def sentence(self) -> str:
        """Numbers of the comparison, with all that is known of their uncertainty."""
        first, second, contrast = self.pair.first, self.pair.second, self.contrast
        if first is None or second is None:
            return f"{self.pair.subject}: no comparison, because at least one has no run."
        start = f"{first.setting} against {second.setting}"
        if contrast is None:
            lacking = " and ".join(each.label_with_id for each in (first, second) if not _has_result(each))
            return f"{start}: no comparison; unfinished, damaged or without a result: {lacking}."
        unit = "nats per token" if first.info.denominator == "targets" else "nats per padded position"
        where = " at the best epoch" if self.endpoint is Endpoint.VALIDATION else ""
        parts = [
            f"{start}, {self.endpoint.value}{where}: {describe(contrast, self.result, self.family, unit, log=True)}",
            _name_confounders(first, second),
            _stamp(first, second),
        ]
        return " ".join(part for part in parts if part)


def compare(pairs: Sequence[Pair]) -> list[Comparison]:
    """Compare each pair, as the contrasts of one family. No pair may have the same experiment twice."""
    contrasts: list[tuple[Endpoint, Contrast | None]] = [_contrast(pair) for pair in pairs]
    results = iter(compare_contrasts(known := [contrast for _, contrast in contrasts if contrast], log=True))
    return [
        Comparison(
            pair=pair,
            endpoint=endpoint,
            contrast=contrast,
            result=next(results) if contrast else None,
            family=len(known),
        )
        for pair, (endpoint, contrast) in zip(pairs, contrasts, strict=True)
    ]


def compare_contrasts(contrasts: Sequence[Contrast], *, log: bool = False) -> list[verdict.Comparison | None]:
    """Return the statistics of a family of contrasts; all are None if none has seeds enough for any.

    scipy takes half a second to import, and a report on one seed needs nothing of it.
    """
    if any(_fewest(each) >= MIN_SEEDS or _diverged(each) for each in contrasts):
        return [*verdict.compare(contrasts, log=log)]
    return [None] * len(contrasts)


def _contrast(pair: Pair) -> tuple[Endpoint, Contrast | None]:
    """Return the results to compare: of the test, or of validation if a run has none of the test."""
    first, second = pair.first, pair.second
    if first is None or second is None or not (first.ended and second.ended):
        return Endpoint.TEST, None
    assert first.id != second.id
    for endpoint in Endpoint:
        one, other = first.losses(endpoint), second.losses(endpoint)
        if one is not None and other is not None:
            return endpoint, Contrast(first.label_with_id, second.label_with_id, one, other)
    return Endpoint.VALIDATION, None


def _has_result(result: ExperimentResult) -> bool:
    return result.ended and any(result.losses(endpoint) is not None for endpoint in Endpoint)


def evidence_of(contrast: Contrast | None, result: verdict.Comparison | None) -> Evidence:
    """Return how far the seeds of a contrast go."""
    if contrast is None:
        return Evidence.NO_DATA
    if _fewest(contrast) < 2:
        return Evidence.ONE_SEED
    if result is None or result.p_adjusted is None:
        return Evidence.DESCRIPTION
    return Evidence.EXPLORATORY if result.p_adjusted <= ALPHA else Evidence.INCONCLUSIVE


def outcome(evidence: Evidence, favored: ExperimentResult | None) -> str:
    """Return how far a comparison goes, as the end of a sentence after a colon; empty without data."""
    match evidence:
        case Evidence.NO_DATA:
            return ""
        case Evidence.ONE_SEED:
            order = f"lowest is {favored.label_with_id}" if favored else f"the values agree to {DIGITS} decimals"
            return f"{order} ({NOT_A_CLAIM})."
        case Evidence.DESCRIPTION:
            return "description only, so nothing is concluded."
        case Evidence.INCONCLUSIVE:
            return "inconclusive, which is not evidence of equal settings."
        case Evidence.EXPLORATORY:
            name = favored.label_with_id if favored else "neither"
            return f"the difference favors {name} (exploratory, since no claim was registered before the runs)."


def _fewest(contrast: Contrast) -> int:
    return min(len(contrast.first_values), len(contrast.second_values))


def _diverged(contrast: Contrast) -> bool:
    return not all(map(math.isfinite, (*contrast.first_values, *contrast.second_values)))


def _center_distance(contrast: Contrast) -> float:
    """Return the distance of the medians, infinite if one of them is that of diverged runs."""
    one, other = (statistics.median(values) for values in (contrast.first_values, contrast.second_values))
    return 0.0 if one == other else abs(one - other)


def _first_is_lower(contrast: Contrast) -> bool | None:
    """Return the order of the means or, if a run diverged, of most pairs of runs."""
    first, second = contrast.first_values, contrast.second_values
    if _diverged(contrast):
        wins = sum((a < b) - (a > b) for a in first for b in second)
        return None if wins == 0 else wins > 0
    one, other = statistics.fmean(first), statistics.fmean(second)
    return None if round(one, DIGITS) == round(other, DIGITS) else one < other


def signed(value: float, decimals: int = DIGITS) -> str:
    """Return a number with its sign, and with a minus instead of a hyphen."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def unsigned(value: float, decimals: int = DIGITS) -> str:
    """Return a number, with a minus instead of a hyphen if it is negative."""
    return f"{value:.{decimals}f}".replace("-", "−")


def format_p(p: float) -> str:
    """Return a p-value with two digits, never as 0."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def format_ratio_of_ppl(ratio: float) -> str:
    """Return a ratio of perplexities with four digits."""
    return f"{ratio:.4g}"


def format_share(share: float) -> str:
    """Return a probability with two decimals."""
    return f"{share:.2f}"


def describe(
    contrast: Contrast,
    result: verdict.Comparison | None,
    family: int,
    unit: str,
    *,
    log: bool = False,
    digits: int = DIGITS,
) -> str:
    """Return values, difference and uncertainty of a contrast as sentences, as far as its seeds allow them.

    Args:
        family: number of contrasts over which p-values are adjusted.
        log: whether the values are logarithms of perplexities.
        digits: decimals of values and differences.
    """
    first, second = contrast.first_values, contrast.second_values
    fewest = _fewest(contrast)
    if _diverged(contrast):
        return _describe_diverged(contrast, result, family, unit, digits)
    values = f"{_list_values(first, digits)} and {_list_values(second, digits)} {unit}"
    if fewest < 2:
        ppls = " and ".join(format_ppl(perplexity(statistics.fmean(each))) for each in (first, second))
        shown = f" (perplexity {ppls})" if log and len(first) == len(second) == 1 else ""
        return f"{values}{shown}. No uncertainty known."
    difference = signed(statistics.fmean(first) - statistics.fmean(second), digits)
    if result is None or fewest < MIN_SEEDS:
        return f"{values}; difference of the means {difference}. Description only."
    sentences = [f"{values}. Difference {difference}, {_interval(result.interval, digits)}."]
    if result.ratio is not None:
        ends = result.ratio_interval
        span = (
            f", 95% interval {format_ratio_of_ppl(ends.low)} to {format_ratio_of_ppl(ends.high)}"
            if ends and math.isfinite(ends.high)
            else ""
        )
        sentences.append(f"Ratio of the geometric means of perplexity: {format_ratio_of_ppl(result.ratio)}{span}.")
    if result.p_adjusted is not None:
        sentences.append(f"Exploratory p {format_p(result.p_adjusted)} ({result.test}, {_adjusted(family)}).")
    if result.permutation_p is not None:
        kind = "Exact permutation" if is_exact(len(first), len(second)) else "Permutation (9,999 draws)"
        sentences.append(f"{kind} p {format_p(result.permutation_p)}, as a check.")
    if result.superiority is not None and result.superiority_interval is not None:
        sentences.append(_superiority(result.superiority, result.superiority_interval))
    if result.detectable_sd is not None:
        sentences.append(
            f"With 80% power, {fewest} seeds each detect a difference of {result.detectable_sd:.1f} standard "
            "deviations, before correction."
        )
    return " ".join(sentences)


def _describe_diverged(
    contrast: Contrast, result: verdict.Comparison | None, family: int, unit: str, digits: int
) -> str:
    first, second = contrast.first_values, contrast.second_values
    if result is None:
        counts = " and ".join(f"{_diverged_of(each)} of {len(each)}" for each in (first, second))
    else:
        counts = " and ".join(_diverged_share(side) for side in (result.first, result.second))
    values = " and ".join(_list_values(each, digits, median=True) for each in (first, second))
    sentences = [f"{values} {unit}.", f"Diverged: {counts}."]
    if result is None or result.test is None:
        sentences.append(
            f"A diverged run counts as infinite: no mean, and no test with fewer than {MIN_SEEDS_RANKS} seeds."
        )
    else:
        kind = "exact" if is_exact(len(first), len(second)) else "9,999 draws"
        sentences.append(
            f"A diverged run counts as infinite: no mean. Exploratory p {format_p(result.p_adjusted or 0.0)} "
            f"({result.test}, {kind}, {_adjusted(family)})."
        )
        if result.superiority is not None and result.superiority_interval is not None:
            sentences.append(_superiority(result.superiority, result.superiority_interval))
    return " ".join(sentences)


def _list_values(values: Sequence[float], digits: int, *, median: bool = False) -> str:
    """Return one or two values as they are, more as their mean and standard deviation, or as their median."""
    if len(values) < MIN_SEEDS:
        return ", ".join(unsigned(value, digits) if math.isfinite(value) else "diverged" for value in values)
    if median:
        middle = statistics.median(values)
        return f"median {unsigned(middle, digits) if math.isfinite(middle) else '∞'} (n = {len(values)})"
    sd = statistics.stdev(values)
    return f"{unsigned(statistics.fmean(values), digits)} (n = {len(values)}, sd {unsigned(sd, digits)})"


def _diverged_of(values: Iterable[float]) -> int:
    return sum(not math.isfinite(value) for value in values)


def _diverged_share(side: Side) -> str:
    share = side.diverged_share
    return f"{side.diverged} of {side.seeds} (95% interval {share.low:.0%} to {share.high:.0%})"


def _interval(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "without an interval, because the values do not vary"
    return f"95% interval {signed(interval.low, digits)} to {signed(interval.high, digits)} for this comparison alone"


def _adjusted(family: int) -> str:
    return "the only contrast" if family == 1 else f"Holm over {family} contrasts"


def _superiority(estimate: float, interval: Interval) -> str:
    return (
        f"P(first < second) = {format_share(estimate)}, 95% interval {format_share(interval.low)} to "
        f"{format_share(interval.high)}."
    )


def explain_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Return how comparisons are made and what they are about, with what occurs among them."""
    known = [each for each in comparisons if each.contrast is not None]
    if not known:
        return "Nothing can be compared."
    sentences = []
    if any(each.endpoint is Endpoint.TEST for each in known):
        sentences.append(
            "Test loss: negative log-likelihood of the test split with the weights of the epoch that validated best."
        )
    if any(each.endpoint is Endpoint.VALIDATION for each in known):
        lacking = "These runs have" if all(each.endpoint is Endpoint.VALIDATION for each in known) else "Some runs have"
        sentences.append(
            f"{lacking} no test loss of their best epoch, so the validation loss is compared, which also chose the "
            "epoch."
        )
    sentences.append(
        "Seeds vary initialization and order of the data, so a comparison is about two settings, not about optimizers "
        "or architectures as such. All are exploratory: no claim was registered before the runs."
    )
    results = [each.result for each in known if each.result is not None]
    if any(each.interval for each in results):
        sentences.append("Intervals are those of Welch, each for one comparison alone.")
    if any(each.p_adjusted is not None for each in results):
        sentences.append("p-values are two-sided and adjusted by Holm over the contrasts of each question.")
    return " ".join(sentences)


def _name_confounders(first: ExperimentResult, second: ExperimentResult) -> str:
    """Return a sentence naming settings outside ``EXPERIMENT_SETTINGS`` in which the two differ, which may explain a
    difference too; empty if there are none."""
    one, other = (msgspec.to_builtins(each.info.settings) for each in (first, second))
    names = [key.replace("_", " ") for key in one if key not in EXPERIMENT_SETTINGS and one[key] != other[key]]
    return f"They also differ in {', '.join(names)}." if names else ""


def _stamp(first: ExperimentResult, second: ExperimentResult) -> str:
    """Return whether a comparison of two optimizers rests on tuned settings; empty if the optimizer is the same."""
    one, other = first.info, second.info
    if one.experiment.optimizer == other.experiment.optimizer:
        return ""
    if "imported" in (one.origin, other.origin):
        return "Whether they were tuned is not stated by the sources."
    own = {*one.experiment.overrides, *other.experiment.overrides} - EXPERIMENT_SETTINGS
    return f"Untuned: both at the settings {'of experiments.toml' if own else 'of the preset'}."


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
