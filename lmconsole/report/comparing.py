"""Comparisons of two experiments, with the amount of evidence behind them.

The statistics are those of ``lmconsole.claims``. No claim is registered for the comparisons of a report, so they are
exploratory: they describe what the seeds show, and no sentence calls one setting better than another.
"""

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import msgspec

from lmconsole.claims import verdict
from lmconsole.claims.verdict import ALPHA, MIN_SEEDS, Contrast
from lmconsole.errors import StoreError
from lmconsole.report.comparison_text import DIGITS, describe, fewest_seeds, has_diverged
from lmconsole.report.experiment_result import Endpoint, ExperimentResult
from lmconsole.runs.comparable import EXPERIMENT_SETTINGS
from lmconsole.runs.endpoint import difference_standard_error

NOT_A_CLAIM = "one seed, not a claim"


MATERIAL_NATS = 0.02
"""Differences of the losses and gaps of one seed up to this, in nats, name no order and get no explanation: 2% of a
perplexity."""


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


@dataclass(frozen=True, kw_only=True)  # without slots, for cached_property
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
        """Whether the first has the lower loss in these runs; None if the losses are unknown, or too close to name an
        order: of one seed up to ``MATERIAL_NATS``, of several a difference that is zero in the decimals shown."""
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
        return self.first_is_lower is not None and self.evidence in (Evidence.ONE_SEED, Evidence.EXPLORATORY)

    @property
    def outcome(self) -> str:
        """Result of the comparison, as the end of a sentence after a colon; empty without data."""
        if self.evidence is Evidence.ONE_SEED:
            return f"{self.order.removesuffix('.')} ({NOT_A_CLAIM})."
        return self.order

    @property
    def short(self) -> str:
        """Result in one or two words; empty without data."""
        match self.evidence:
            case Evidence.NO_DATA:
                return ""
            case Evidence.DESCRIPTION | Evidence.INCONCLUSIVE:
                return str(self.evidence.value)
            case _:
                return self.favored.label_with_id if self.favored else "no order"

    @property
    def order(self) -> str:
        """The same as ``outcome``, for where the number of seeds is stated once."""
        match self.evidence:
            case Evidence.NO_DATA:
                return ""
            case Evidence.ONE_SEED:
                return f"{self._order}."
            case Evidence.DESCRIPTION:
                return "description only, so nothing is concluded."
            case Evidence.INCONCLUSIVE:
                return "inconclusive, which is not evidence of equal settings."
            case Evidence.EXPLORATORY:
                name = self.favored.label_with_id if self.favored else "neither"
                return f"the difference favors {name} (exploratory, since no claim was registered before the runs)."

    @property
    def difference_nats(self) -> float | None:
        """Mean loss of the first minus that of the second; None if it is unknown or a run diverged."""
        if self.contrast is None or has_diverged(self.contrast):
            return None
        return statistics.fmean(self.contrast.first_values) - statistics.fmean(self.contrast.second_values)

    @cached_property
    def text_se_nats(self) -> float | None:
        """Standard error of the difference as a sample of text, for one seed each; None if it is unknown."""
        first, second = self.pair.first, self.pair.second
        if first is None or second is None or self.contrast is None or self.endpoint is not Endpoint.TEST:
            return None
        if len(first.runs) != 1 or len(second.runs) != 1:
            return None
        with contextlib.suppress(StoreError):
            return difference_standard_error(first.runs[0], second.runs[0])
        return None

    @property
    def _order(self) -> str:
        """Order of two experiments of which one has a single seed."""
        difference = self.difference_nats
        if difference is None:
            name = self.favored.label_with_id if self.favored else ""
            return f"lowest is {name}, since the other diverged" if name else "both diverged"
        distance = f"{abs(difference):.{DIGITS}f} nats"
        if self.favored is None:
            return f"no order is named, since the losses differ by {distance}"
        return f"lowest is {self.favored.label_with_id}, by {distance}"

    @property
    def unit(self) -> str:
        """Unit of the losses."""
        assert self.pair.first is not None
        return "nats per token" if self.pair.first.info.denominator == "targets" else "nats per padded position"

    @property
    def remarks(self) -> str:
        """Other settings that may explain a difference, and whether settings were tuned; empty if nothing is known."""
        first, second = self.pair.first, self.pair.second
        assert first is not None
        assert second is not None
        return " ".join(filter(None, (_name_confounders(first, second), _stamp(first, second))))

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
        where = " at the best epoch" if self.endpoint is Endpoint.VALIDATION else ""
        numbers = describe(contrast, self.result, self.family, self.unit, log=True)
        return f"{start}, {self.endpoint.value}{where}: {numbers} {self.remarks}".rstrip()


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
    if any(fewest_seeds(each) >= MIN_SEEDS or has_diverged(each) for each in contrasts):
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
    if fewest_seeds(contrast) < 2:
        return Evidence.ONE_SEED
    if result is None or result.p_adjusted is None:
        return Evidence.DESCRIPTION
    return Evidence.EXPLORATORY if result.p_adjusted <= ALPHA else Evidence.INCONCLUSIVE


def _first_is_lower(contrast: Contrast) -> bool | None:
    """Return the order of the means or, if a run diverged, of most pairs of runs."""
    first, second = contrast.first_values, contrast.second_values
    if has_diverged(contrast):
        wins = sum((a < b) - (a > b) for a in first for b in second)
        return None if wins == 0 else wins > 0
    difference = statistics.fmean(first) - statistics.fmean(second)
    if abs(difference) <= (MATERIAL_NATS if fewest_seeds(contrast) < 2 else 0.5 * 10.0**-DIGITS):
        return None
    return difference < 0


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
