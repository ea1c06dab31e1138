"""Overfitting: the gap between train and validation loss, and the rise of the validation loss from its lowest."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from lmconsole.claims import verdict
from lmconsole.claims.verdict import Contrast
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.comparing import MATERIAL_NATS, NOT_A_CLAIM, Evidence, compare_contrasts, evidence_of
from lmconsole.report.comparison_text import describe, signed, unsigned
from lmconsole.report.experiment_result import ExperimentResult
from lmconsole.report.markup import DASH, format_ppl, format_ratio
from lmconsole.report.questions.finding import Draft, Finding, GroupResults, format_layers
from lmconsole.report.questions.models import DEPTHS, MATERIAL_GAIN
from lmconsole.report.table import Cell, Column, Table

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
    known = [each for by_depth in by_model.values() for each in by_depth.values()]
    for model, by_depth in by_model.items():
        for layers in DEPTHS:
            if layers in by_depth:
                continue
            found = results.find(model, layers, "adamw")
            unknown = "No complete run" if found is None or not found.complete else "Gap unknown"
            missing.setdefault(unknown, []).append(f"{MODEL_NAMES[model]} with AdamW and {format_layers(layers)}")
    draft.observations += [f"{reason}: {'; '.join(names)}." for reason, names in missing.items()]
    draft.observations += _describe_ranges(by_model)
    draft.observations += _describe_lags(known, imported=results.group.imported)
    if compared.set_aside:
        by_reason: dict[Reason, list[str]] = {}
        for aside in compared.set_aside:
            by_reason.setdefault(aside.reason, []).append(aside.text)
        named = [f"{reason.value}: {', '.join(texts)}." for reason, texts in by_reason.items()]
        draft.conclude("Set aside as underfitted, since their gaps and rises cannot be compared.", *named)
    comparisons = compare_overfitting(compared)
    for comparison in comparisons:
        if comparison.evidence is not Evidence.ONE_SEED:  # the values of one seed are above
            draft.observations.append(_describe_measure(comparison, len(comparisons)))
    answer = f"Open, because {'at no depth have both architectures fitted the text' if known else 'runs are missing'}."
    if comparisons:
        answer, *rest = _interpret_overfitting(compared, comparisons)
        draft.interpretation += rest
    elif known:
        draft.conclude(
            "No depth is left at which both architectures have fitted the text, so which overfits more is open.",
            _describe_order(by_model),
        )
    if any(each.several_epochs for each in known):
        draft.conclude(_describe_rises(known), _remedies(known))
    return Finding(
        question="Which architecture overfits more, and what would help?",
        answer=answer,
        observations=draft.observations,
        method=(
            "Two measures, with AdamW and at every depth that both architectures have: the gap, which is validation "
            "loss minus train loss at the last epoch, and the rise of the validation loss from its best epoch to the "
            f"last. Without a test, differences of up to {MATERIAL_NATS:g} nats point to neither. "
            "Underfitted experiments are set aside: those with one epoch, with more than "
            f"{UNDERFITTED:g} times the lowest validation perplexity of these, or whose last epoch still lowered the "
            f"validation loss by more than {UNDERTRAINED_NATS:g} nats. "
            "PPL ratio: validation over train perplexity. Gain: fall of the validation loss in the last epoch. "
            "Lag: half of the last fall of the train loss; if that is averaged over the epoch"
            + (", which the sources do not state" if results.group.imported else ", as here")
            + ", the gap is underestimated by about as much."
        ),
        interpretation=draft.interpretation,
        table=_gaps_table(known) if known else None,
        table_lead="Gaps with AdamW, in nats.",
    )


def _gaps_table(known: Sequence[ExperimentResult]) -> Table:
    rows = []
    for each in known:
        gain, lag = last_gain(each), each.train_lag_nats
        texts = {
            "Experiment": each.label_with_id,
            "Validation PPL": DASH if each.mean_ppl is None else format_ppl(each.mean_ppl),
            "Gap": DASH if each.last_gap_nats is None else signed(each.last_gap_nats, 3),
            "PPL ratio": DASH if each.last_gap_ratio is None else format_ratio(each.last_gap_ratio),
            "Lag": DASH if lag is None else unsigned(lag, 3),
            "Rise": f"{each.rise_nats:.3f}" if each.several_epochs else DASH,
            "Gain": DASH if gain is None else unsigned(gain, 3),
        }
        rows.append({header: Cell(text) for header, text in texts.items()})
    headers = list(rows[0])
    if not any((each.rise_nats or 0.0) > 0.0 for each in known):
        headers.remove("Rise")
    return Table(columns=[Column(header=header, numeric=header != "Experiment") for header in headers], rows=rows)


def last_gain(result: ExperimentResult) -> float | None:
    """Return the amount by which the last epoch lowered the validation loss, in nats; None if it did not."""
    gain = result.last_gain_nats
    return None if gain is None or gain <= 0.0 else gain


def _describe_ranges(by_model: Mapping[str, Mapping[int, ExperimentResult]]) -> list[str]:
    """Return the range of the gaps of each architecture."""
    parts = []
    for model, by_depth in by_model.items():
        gaps = [each.last_gap_nats for each in by_depth.values() if each.last_gap_nats is not None]
        if len(gaps) > 1:
            parts.append(f"{MODEL_NAMES[model]} {signed(min(gaps), 3)} to {signed(max(gaps), 3)} nats")
    return [f"Gaps over the depths: {'; '.join(parts)}."] if parts else []


def _describe_lags(known: Sequence[ExperimentResult], *, imported: bool) -> list[str]:
    """Return by how much the gaps are underestimated, if that matters."""
    lags = [(lag, each) for each in known if (lag := each.train_lag_nats) is not None]
    if not lags:
        return []
    (low, least), (high, most) = (choose(lags, key=lambda pair: pair[0]) for choose in (min, max))
    if high <= MATERIAL_NATS:
        return []
    size = f"{unsigned(high, 3)} nats ({most.label_with_id})"
    if unsigned(low, 3) != unsigned(high, 3):
        size = f"{unsigned(low, 3)} ({least.label_with_id}) to {size}"
    condition = "if train loss was averaged over the epoch" if imported else "since train loss lags within an epoch"
    return [f"Gaps are underestimated by about {size}, {condition}."]


def _describe_order(by_model: Mapping[str, Mapping[int, ExperimentResult]]) -> str:
    """Return that one architecture has the larger gap and the lower perplexity at every depth; else empty."""
    depths = by_model["gpt1"].keys() & by_model["lstm"].keys()
    for model, other in (("gpt1", "lstm"), ("lstm", "gpt1")):
        pairs = [(by_model[model][layers], by_model[other][layers]) for layers in depths]
        if pairs and all(
            (one.last_gap_nats or 0.0) > (two.last_gap_nats or 0.0) + MATERIAL_NATS
            and (one.mean_ppl or math.inf) < (two.mean_ppl or math.inf)
            for one, two in pairs
        ):
            return (
                f"{MODEL_NAMES[model]} has the larger gap at every depth, but has also learned more, and a gap opens "
                "only as a model learns."
            )
    return ""


def _describe_rises(known: Sequence[ExperimentResult]) -> str:
    """Return which validation losses have risen since their best epoch."""
    risen = [each for each in known if (each.rise_nats or 0.0) > 0.0]
    if not risen:
        return "No validation loss has risen since its best epoch, so none of these has overfitted to its harm yet."
    labels = ", ".join(f"{each.label_with_id} by {each.rise_nats:.3f} nats" for each in risen)
    return f"Validation loss has risen since its best epoch in {labels}."


def _remedies(known: Sequence[ExperimentResult]) -> str:
    """Return remedies for what has happened, the cheapest first."""
    if any((each.rise_nats or 0.0) > 0.0 for each in known):
        return (
            "Remedies, cheapest first: stop at the best epoch, as in the tables; dropout; stronger weight decay; fewer "
            "or narrower layers; more text."
        )
    dropouts = {each.info.settings.dropout for each in known if each.info.origin == "trained"}
    now = f" ({dropouts.pop():g} here)" if len(dropouts) == 1 else ""
    later = (
        "Should it rise then, these would help, the cheapest first: to stop at the best epoch, as in the tables; "
        f"dropout{now}; stronger weight decay; fewer or narrower layers; more text."
    )
    learning = [each for each in known if (last_gain(each) or 0.0) > MATERIAL_GAIN]
    if not learning:
        return later.replace("Should it rise then", "Should it rise with more epochs")
    who = "all" if len(learning) == len(known) else ", ".join(each.label_with_id for each in learning)
    return (
        "More training comes first, since the last epoch still lowered the validation loss by more than "
        f"{MATERIAL_GAIN:g} nats in {who}. {later}"
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
    aside = [found for id_, ratio in ratios.items() for found in _set_aside(results.by_id[id_], ratio)]
    ids = {each.result.id for each in aside}
    return Overfitting(
        fitted={
            model: {layers: each for layers, each in by_depth.items() if each.id not in ids}
            for model, by_depth in by_model.items()
        },
        set_aside=aside,
    )


def _set_aside(result: ExperimentResult, ratio: float) -> Iterator[SetAside]:
    """Yield the reasons why the gap of an experiment says nothing about overfitting.

    ``ratio`` is that of its perplexity to the lowest.
    """
    gain = result.last_gain_nats
    if not result.several_epochs:
        yield SetAside(result=result, reason=Reason.ONE_EPOCH, size="")
        return
    if ratio > UNDERFITTED:
        yield SetAside(result=result, reason=Reason.BARELY_FITTED, size=f"{format_ratio(ratio)} times")
    if gain is not None and gain > UNDERTRAINED_NATS:
        yield SetAside(result=result, reason=Reason.STILL_LEARNING, size=f"by {gain:.3f}")


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
