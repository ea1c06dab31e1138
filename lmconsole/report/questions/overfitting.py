"""Overfitting: the gap between train and validation loss, and the rise of the validation loss from its lowest."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from lmconsole.claims import verdict
from lmconsole.claims.verdict import Contrast
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.comparing import MATERIAL_NATS, NOT_A_CLAIM, Evidence, compare_contrasts, evidence_of
from lmconsole.report.comparison_text import describe, signed
from lmconsole.report.experiment_result import ExperimentResult
from lmconsole.report.markup import format_ratio
from lmconsole.report.questions.finding import Draft, Finding, GroupResults, format_layers
from lmconsole.report.questions.models import DEPTHS

UNDERFITTED = 2.0
"""Experiments whose perplexity is more than this many times the lowest have barely fitted the text."""

UNDERTRAINED_NATS = 0.1
"""Experiments whose last epoch lowered the validation loss by more than this have barely been trained."""


class Reason(Enum):
    """Reason why gap and rise of an experiment say nothing."""

    ONE_EPOCH = "Only one epoch"
    BARELY_FITTED = f"More than {UNDERFITTED:g} times the lowest perplexity of these"
    STILL_LEARNING = f"Last epoch still lowered the validation loss by more than {UNDERTRAINED_NATS:g} nats"


@dataclass(frozen=True, kw_only=True, slots=True)
class SetAside:
    """Experiment whose gap and rise say nothing about overfitting."""

    result: ExperimentResult
    reason: Reason
    size: str
    """Number behind the reason; empty if there is none."""

    @property
    def text(self) -> str:
        return self.result.label_with_id + (f" {self.size}" if self.size else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Overfitting:
    """Experiments in which overfitting is compared."""

    fitted: Mapping[str, Mapping[int, ExperimentResult]]
    """Experiments that have fitted the text, by model and depth."""
    set_aside: Sequence[SetAside]

    @property
    def depths(self) -> list[int]:
        """Depths at which both architectures have fitted the text."""
        return sorted(self.fitted["lstm"].keys() & self.fitted["gpt1"].keys())


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureComparison:
    """Comparison of GPT-1 with LSTM of one depth, by one measure of overfitting in nats."""

    measure: str
    """``gap`` or ``rise``."""
    layers: int
    gpt1: ExperimentResult
    lstm: ExperimentResult
    contrast: Contrast
    result: verdict.Comparison | None

    @property
    def evidence(self) -> Evidence:
        return evidence_of(self.contrast, self.result)

    @property
    def difference_nats(self) -> float:
        """Mean of GPT-1 minus that of LSTM."""
        return statistics.fmean(self.contrast.first_values) - statistics.fmean(self.contrast.second_values)

    @property
    def points_to(self) -> str | None:
        """Model that overfits more by this measure; None if the difference is small or inconclusive."""
        few = self.evidence in (Evidence.ONE_SEED, Evidence.DESCRIPTION)
        counts = abs(self.difference_nats) > MATERIAL_NATS if few else self.evidence is Evidence.EXPLORATORY
        return None if not counts else "gpt1" if self.difference_nats > 0 else "lstm"


def overfitting(results: GroupResults) -> Finding:
    """Find the architecture that overfits more."""
    draft = Draft()
    by_model = _known_gaps(results)
    compared = comparable_gaps(results)
    missing: dict[str, list[str]] = {}
    for model, by_depth in by_model.items():
        for layers in DEPTHS:
            each = by_depth.get(layers)
            if each is not None:
                draft.observations.append(_describe_gap(each))
                continue
            found = results.find(model, layers, "adamw")
            unknown = "No complete run" if found is None or not found.complete else "Gap unknown"
            missing.setdefault(unknown, []).append(f"{MODEL_NAMES[model]} with AdamW and {format_layers(layers)}")
    draft.observations += [f"{reason}: {'; '.join(names)}." for reason, names in missing.items()]
    if compared.set_aside:
        by_reason: dict[Reason, list[str]] = {}
        for aside in compared.set_aside:
            by_reason.setdefault(aside.reason, []).append(aside.text)
        named = [f"{reason.value}: {', '.join(texts)}." for reason, texts in by_reason.items()]
        draft.conclude("Set aside as underfitted, since their gaps and rises say nothing.", *named)
    comparisons = compare_overfitting(compared)
    for comparison in comparisons:
        if comparison.evidence is not Evidence.ONE_SEED:  # the values of one seed are above
            draft.observations.append(_describe_measure(comparison, len(comparisons)))
    if comparisons:
        draft.interpretation += _interpret_overfitting(compared, comparisons)
    elif any(by_model.values()):
        draft.conclude("No depth is left at which both architectures have fitted the text, so the question is open.")
    if any(by_model.values()):
        draft.conclude(
            "Remedies, cheapest first: stop at the best epoch, as in the tables; dropout; stronger weight decay; fewer "
            "or narrower layers; more text."
        )
    return Finding(
        question="Which architecture overfits more, and what would help?",
        observations=draft.observations,
        method=(
            "Two measures, with AdamW and at every depth that both architectures have: the gap, which is validation "
            "loss minus train loss at the last epoch, and the rise of the validation loss from its best epoch to the "
            f"last. Without a test, differences of up to {MATERIAL_NATS:g} nats point to neither. "
            "Underfitted experiments are set aside: those with one epoch, with more than "
            f"{UNDERFITTED:g} times the lowest validation perplexity of these, or whose last epoch still lowered the "
            f"validation loss by more than {UNDERTRAINED_NATS:g} nats. "
            + (
                "The sources do not state how train loss was computed; if it was averaged over the epoch, the gaps are "
                "slightly underestimated."
                if results.group.imported
                else "Train loss is averaged over the epoch, so the gaps are slightly underestimated."
            )
        ),
        interpretation=draft.interpretation,
    )


def _describe_gap(result: ExperimentResult) -> str:
    """Return gap and rise of an experiment whose gap is known."""
    gap, ratio = result.last_gap_nats or 0.0, result.last_gap_ratio
    shown = "" if ratio is None else f" (validation perplexity is {format_ratio(ratio)} times train perplexity)"
    if not result.several_epochs:
        return f"{result.label_with_id}: gap of {signed(gap, 3)} nats after one epoch{shown}."
    return (
        f"{result.label_with_id}: gap of {signed(gap, 3)} nats at the last epoch{shown}; validation loss has risen by "
        f"{result.rise_nats:.3f} nats since its best epoch."
    )


def _known_gaps(results: GroupResults) -> dict[str, dict[int, ExperimentResult]]:
    """Return the complete experiments with AdamW whose gap and rise are known, by model and depth."""
    found: dict[str, dict[int, ExperimentResult]] = {"lstm": {}, "gpt1": {}}
    for model, by_depth in found.items():
        for layers in DEPTHS:
            each = results.find(model, layers, "adamw")
            if each is not None and each.complete and each.last_gap_nats is not None and each.rise_nats is not None:
                by_depth[layers] = each
    return found


def ratios_to_lowest(results: GroupResults) -> dict[int, float]:
    """Return the perplexity of each experiment with a known gap over the lowest of these, by experiment id."""
    ppls = {
        each.id: each.mean_ppl or math.inf for by_depth in _known_gaps(results).values() for each in by_depth.values()
    }
    lowest = min(ppls.values(), default=math.inf)
    return {id_: ppl / lowest for id_, ppl in ppls.items()}


def comparable_gaps(results: GroupResults) -> Overfitting:
    """Return the experiments in which overfitting is compared, and those that are set aside."""
    by_model, ratios = _known_gaps(results), ratios_to_lowest(results)
    aside = [found for id_, ratio in ratios.items() if (found := _set_aside(results.by_id[id_], ratio))]
    ids = {each.result.id for each in aside}
    return Overfitting(
        fitted={
            model: {layers: each for layers, each in by_depth.items() if each.id not in ids}
            for model, by_depth in by_model.items()
        },
        set_aside=aside,
    )


def _set_aside(result: ExperimentResult, ratio: float) -> SetAside | None:
    """Return an experiment whose gap says nothing about overfitting with the reason; None if it does.

    ``ratio`` is that of its perplexity to the lowest.
    """
    gain = result.last_gain_nats
    if not result.several_epochs:
        return SetAside(result=result, reason=Reason.ONE_EPOCH, size="")
    if ratio > UNDERFITTED:
        return SetAside(result=result, reason=Reason.BARELY_FITTED, size=f"{format_ratio(ratio)} times")
    if gain is not None and gain > UNDERTRAINED_NATS:
        return SetAside(result=result, reason=Reason.STILL_LEARNING, size=f"by {gain:.3f}")
    return None


def compare_overfitting(compared: Overfitting) -> list[MeasureComparison]:
    """Compare both measures at all depths that are left, as one family."""
    found = []
    for layers in compared.depths:
        gpt1, lstm = compared.fitted["gpt1"][layers], compared.fitted["lstm"][layers]
        for measure in ("gap", "rise"):
            one, other = (_values(each, measure) for each in (gpt1, lstm))
            found.append((measure, layers, gpt1, lstm, Contrast(gpt1.label_with_id, lstm.label_with_id, one, other)))
    results = compare_contrasts([contrast for *_, contrast in found])
    return [
        MeasureComparison(measure=measure, layers=layers, gpt1=gpt1, lstm=lstm, contrast=contrast, result=result)
        for (measure, layers, gpt1, lstm, contrast), result in zip(found, results, strict=True)
    ]


def _values(result: ExperimentResult, measure: str) -> tuple[float, ...]:
    values = result.last_gaps_nats if measure == "gap" else result.rises_nats
    return tuple(value for value in values if value is not None)


def _describe_measure(comparison: MeasureComparison, family: int) -> str:
    numbers = describe(comparison.contrast, comparison.result, family, "nats", digits=3)
    start = f"{comparison.gpt1.setting} against {comparison.lstm.setting}"
    return f"{start}, {comparison.measure}: {numbers}"


def _interpret_overfitting(compared: Overfitting, comparisons: Sequence[MeasureComparison]) -> list[str]:
    depths = f"{', '.join(map(str, compared.depths))} layer{'s' if compared.depths != [1] else ''}"
    evidence = {comparison.evidence for comparison in comparisons}
    limit = (
        NOT_A_CLAIM
        if Evidence.ONE_SEED in evidence
        else "description only"
        if Evidence.DESCRIPTION in evidence
        else "exploratory"
    )
    pointed = {
        measure: {each.points_to for each in comparisons if each.measure == measure} for measure in ("gap", "rise")
    }
    gap, rise = (found.pop() if len(found) == 1 else None for found in pointed.values())
    sentences = [f"{_answer(gap, rise)} ({depths}; {limit})."]
    sentences.append(_summarize_measures(compared))
    more = gap or rise
    if more is not None and (size := _size_caveat(compared, more)):
        sentences.append(size)
    if max(each.rise_nats or 0.0 for by_depth in compared.fitted.values() for each in by_depth.values()) <= 0.0:
        sentences.append("No validation loss has risen since its best epoch, so by this measure none overfits yet.")
    return sentences


def _answer(gap: str | None, rise: str | None) -> str:
    """Return which model both measures point to, each None if it points to none at every depth."""
    if gap is not None and gap == rise:
        return f"Gap and rise both point to {MODEL_NAMES[gap]} as overfitting more"
    if gap is not None and rise is not None:
        return (
            f"The measures disagree: the gap points to {MODEL_NAMES[gap]} as overfitting more, the rise to "
            f"{MODEL_NAMES[rise]}"
        )
    if gap is not None or rise is not None:
        name = MODEL_NAMES[gap or rise or ""]
        measure, other = ("gap", "rise") if gap else ("rise", "gap")
        return f"Only the {measure} points to {name} as overfitting more, the {other} to neither"
    return "Inconclusive: neither gap nor rise points to one architecture at every depth"


def _summarize_measures(compared: Overfitting) -> str:
    """Return the largest gap and rise of all experiments of each architecture that have fitted the text."""
    parts = []
    for model in ("gpt1", "lstm"):
        fitted = compared.fitted[model].values()
        gap = max(each.last_gap_nats or 0.0 for each in fitted)
        rise = max(each.rise_nats or 0.0 for each in fitted)
        labels = ", ".join(each.label_with_id for each in fitted)
        parts.append(f"{labels}: gap of at most {signed(gap, 3)} and rise of at most {rise:.3f} nats")
    return f"This rests on {'; '.join(parts)}."


def _size_caveat(compared: Overfitting, model: str) -> str:
    """Return that the model has more parameters too, if it has; else empty."""
    layers = compared.depths[0]
    sizes = {name: compared.fitted[name][layers].parameters_trainable or 0 for name in ("gpt1", "lstm")}
    other = "lstm" if model == "gpt1" else "gpt1"
    if not sizes[other] or sizes[model] <= sizes[other]:
        return ""
    return (
        f"{MODEL_NAMES[model]} also has more trained parameters at equal depth ({sizes[model]:,} against "
        f"{sizes[other]:,} with {format_layers(layers)}), so the architecture itself need not be the reason."
    )
