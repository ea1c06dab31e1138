"""Numbers of pairs of experiments and of the comparisons in the findings, as LaTeX commands."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmconsole.claims import verdict
from lmconsole.claims.difference import welch
from lmconsole.claims.verdict import MIN_SEEDS, Contrast, Interval
from lmconsole.report.comparing import Pair
from lmconsole.report.comparison_text import DIGITS, format_ratio_of_ppl, format_share, p_digits
from lmconsole.report.experiment_result import Endpoint, ExperimentResult
from lmconsole.report.quantity import Quantity, Values
from lmconsole.report.questions.finding import GroupResults
from lmconsole.report.questions.models import architecture_pairs, body_parameters, depth_pairs
from lmconsole.report.questions.optimizers import optimizer_pairs
from lmconsole.report.questions.overfitting import comparable_gaps, compare_overfitting
from lmconsole.report.questions.recommendation import generalization_pairs

Form = Callable[[float, int], str]
"""Text of a number, and of the decimals of a difference."""

MAX_COMPARED = 24
"""With more experiments than this, pairs of them have no commands: there would be tens of thousands."""

FAMILIES: Mapping[str, Callable[[GroupResults], Sequence[Pair]]] = {
    "generalization": generalization_pairs,
    "optimizers": optimizer_pairs,
    "architectures": architecture_pairs,
    "depth": depth_pairs,
}
"""Contrasts of the findings by the name of the question in commands."""


def pair_quantities(results: GroupResults) -> Iterator[Quantity]:
    """Yield the numbers of all pairs of experiments, and those of the comparisons in the findings."""
    yield from _of_pairs(results)
    yield from _of_contrasts(results)


def _of_pairs(results: GroupResults) -> Iterator[Quantity]:
    pairs = list(itertools.permutations(results.by_id.values(), 2)) if len(results.by_id) <= MAX_COMPARED else []
    p_values = _welch_p_values(results) if pairs else {}

    def quantity(
        name: str, meaning: str, value: Callable[[ExperimentResult, ExperimentResult], str | None]
    ) -> Quantity:
        known: Values = {(str(a.id), str(b.id)): text for a, b in pairs if (text := value(a, b)) is not None}
        return Quantity(name=name, arguments=("experiment", "other"), meaning=meaning, values=known)

    def difference(a: ExperimentResult, b: ExperimentResult) -> float | None:
        comparable = a.complete and b.complete and a.mean_ppl is not None and b.mean_ppl is not None
        return 100.0 * (a.mean_ppl / b.mean_ppl - 1.0) if comparable and a.mean_ppl and b.mean_ppl else None

    def signed(a: ExperimentResult, b: ExperimentResult) -> str | None:
        percent = difference(a, b)
        return None if percent is None else f"{percent:+.1f}"

    def phrase(a: ExperimentResult, b: ExperimentResult) -> str | None:
        percent = difference(a, b)
        return None if percent is None else f"{abs(percent):.1f}% {'lower' if percent < 0 else 'higher'}"

    def p_value(a: ExperimentResult, b: ExperimentResult) -> str | None:
        return p_values.get(frozenset((a.id, b.id)))

    def time_ratio(a: ExperimentResult, b: ExperimentResult) -> str | None:
        return f"{a.train_s / b.train_s:.2f}" if a.train_s and b.train_s else None

    def parameter_ratio(a: ExperimentResult, b: ExperimentResult) -> str | None:
        ours, theirs = a.parameters_trainable, b.parameters_trainable
        return f"{ours / theirs:.2f}" if ours and theirs else None

    def body_ratio(a: ExperimentResult, b: ExperimentResult) -> str | None:
        ours, theirs = body_parameters(a), body_parameters(b)
        return f"{ours / theirs:.2f}" if ours and theirs else None

    meaning = "percent by which validation perplexity is above (+) or below (-) that of the other"
    yield quantity("lmDifferencePercent", meaning, signed)
    yield quantity("lmDifference", "the same as a phrase, such as 12.3% lower", phrase)
    meaning = "p-value of the difference in test loss (validation loss without tests), by Welch, not adjusted"
    yield quantity("lmPValue", meaning, p_value)
    yield quantity("lmTimeRatio", "training time over that of the other", time_ratio)
    yield quantity("lmParameterRatio", "trained parameters over those of the other", parameter_ratio)
    yield quantity("lmBodyParameterRatio", "the same without learned token embeddings", body_ratio)


def _welch_p_values(results: GroupResults) -> dict[frozenset[int], str]:
    """Return the unadjusted p-values of all pairs with at least ``MIN_SEEDS`` seeds on both sides, none diverged."""
    by_size: dict[tuple[int, int], list[tuple[frozenset[int], Sequence[float], Sequence[float]]]] = {}
    for first, second in itertools.combinations([each for each in results.by_id.values() if each.complete], 2):
        for endpoint in Endpoint:
            one, other = first.losses(endpoint), second.losses(endpoint)
            if one is None or other is None or not np.isfinite([*one, *other]).all():
                continue
            if min(len(one), len(other)) >= MIN_SEEDS:
                ids = frozenset((first.id, second.id))
                by_size.setdefault((len(one), len(other)), []).append((ids, one, other))
            break
    found: dict[frozenset[int], str] = {}
    for pairs in by_size.values():
        p = welch([one for _, one, _ in pairs], [other for *_, other in pairs]).p
        found |= {ids: p_digits(float(each)) for (ids, *_), each in zip(pairs, p, strict=True) if each == each}
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """Contrast of a finding."""

    question: str
    ids: tuple[int, int]
    contrast: Contrast
    result: verdict.Comparison | None
    digits: int
    """Decimals of the difference."""
    family: int
    text_se: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.question, str(self.ids[0]), str(self.ids[1])


def _rows(results: GroupResults) -> Iterator[_Row]:
    for question, pairs in FAMILIES.items():
        for found in results.compare(pairs):
            first, second = found.pair.first, found.pair.second
            if found.contrast is not None and first is not None and second is not None:
                yield _Row(
                    question=question,
                    ids=(first.id, second.id),
                    contrast=found.contrast,
                    result=found.result,
                    digits=DIGITS,
                    family=found.family,
                    text_se=found.text_se_nats,
                )
    measures = compare_overfitting(comparable_gaps(results))
    for each in measures:
        yield _Row(
            question=each.measure,
            ids=(each.gpt1.id, each.lstm.id),
            contrast=each.contrast,
            result=each.result,
            digits=3,
            family=len(measures),
        )


def _of_contrasts(results: GroupResults) -> Iterator[Quantity]:
    rows = list(_rows(results))

    def quantity(name: str, meaning: str, value: Callable[[_Row], str | None]) -> Quantity:
        known: Values = {row.key: text for row in rows if (text := value(row)) is not None}
        return Quantity(
            name=f"lmContrast{name}", arguments=("question", "experiment", "other"), meaning=meaning, values=known
        )

    def difference(row: _Row) -> str | None:
        one, other = (statistics.fmean(values) for values in (row.contrast.first_values, row.contrast.second_values))
        return f"{one - other:+.{row.digits}f}" if np.isfinite(one) and np.isfinite(other) else None

    def ratio_of_ppl(row: _Row) -> str | None:
        first, second = row.contrast.first_values, row.contrast.second_values
        finite = row.question in FAMILIES and np.isfinite([*first, *second]).all()
        return ratio(math.exp(statistics.fmean(first) - statistics.fmean(second)), row.digits) if finite else None

    def of(value: Callable[[verdict.Comparison], float | None], form: Form) -> Callable[[_Row], str | None]:
        def text(row: _Row) -> str | None:
            number = None if row.result is None else value(row.result)
            return None if number is None else form(number, row.digits)

        return text

    def ends(name: str, interval: Callable[[verdict.Comparison], Interval | None], form: Form) -> Iterator[Quantity]:
        def low(result: verdict.Comparison) -> float | None:
            return found.low if (found := interval(result)) else None

        def high(result: verdict.Comparison) -> float | None:
            return found.high if (found := interval(result)) else None

        yield quantity(f"{name}Low", "lower end of its 95% interval", of(low, form))
        yield quantity(f"{name}High", "upper end of its 95% interval", of(high, form))

    def nats(value: float, digits: int) -> str:
        return f"{value:+.{digits}f}"

    def p_value(p: float, _: int) -> str:
        return p_digits(p)

    def ratio(value: float, _: int) -> str:
        return format_ratio_of_ppl(value)

    def share(value: float, _: int) -> str:
        return format_share(value)

    meaning = "difference in nats of a finding: generalization, optimizers, architectures, depth, gap or rise"
    yield quantity("Difference", meaning, difference)
    meaning = "its standard error as a sample of text, for one seed each"
    yield quantity("TextSe", meaning, lambda row: None if row.text_se is None else f"{row.text_se:.{row.digits}f}")
    yield from ends("", lambda found: found.interval, nats)
    yield quantity("Ratio", "the same as a ratio of perplexities", ratio_of_ppl)
    yield from ends("Ratio", lambda found: found.ratio_interval, ratio)
    yield quantity("P", "p-value after Holm's correction", of(lambda found: found.p_adjusted, p_value))
    yield quantity("Count", "number of contrasts in that correction", lambda row: str(row.family))
    meaning = "p-value of a permutation test of the means"
    yield quantity("PermutationP", meaning, of(lambda found: found.permutation_p, p_value))
    meaning = "probability that a run of the first is below one of the second"
    yield quantity("Superiority", meaning, of(lambda found: found.superiority, share))
    yield from ends("Superiority", lambda found: found.superiority_interval, share)
    meaning = "standard deviations that the seeds detect with 80% power, before correction"
    yield quantity("DetectableSd", meaning, of(lambda found: found.detectable_sd, lambda sd, _: f"{sd:.1f}"))
