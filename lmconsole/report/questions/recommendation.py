"""The recommended setting."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lmconsole import formatting
from lmconsole.claims.ranks import rank_permutation_p
from lmconsole.claims.verdict import MIN_SEEDS_RANKS
from lmconsole.formatting import DAMAGE_MARK
from lmconsole.plan.presets import ranges
from lmconsole.report.captions import describe_evaluations, timing_caveat
from lmconsole.report.comparing import MATERIAL_NATS, NOT_A_CLAIM, Evidence, Pair
from lmconsole.report.comparison_text import format_p, signed
from lmconsole.report.experiment_result import Endpoint, ExperimentResult
from lmconsole.report.markup import DASH, format_ppl
from lmconsole.report.questions.finding import Draft, Finding, GroupResults, describe_inferences
from lmconsole.report.questions.memory import used_memory
from lmconsole.report.questions.times import EQUAL_TIME, leaders, no_later, time_tolerance
from lmconsole.report.results import damage_mark, explain_marks, marks
from lmconsole.report.table import Cell, Column, Table
from lmconsole.report.targets import (
    TimeToTarget,
    common_target,
    explain_schedule,
    explain_target,
    seconds_to_target,
    time_to_target,
)
from lmconsole.runs.events import perplexity

MOST_LEADERS = 4
"""Latest changes of the lead that are described."""

TARGET_LIMIT = "target chosen after the runs"

LONGEST_LABEL = 32
"""Longer labels are shortened in the table."""


def generalization_pairs(results: GroupResults) -> list[Pair]:
    """Return the two complete experiments with the lowest validation perplexities; empty if there are not two."""
    ranked = _ranked(results)
    return [Pair(subject="The two lowest", first=ranked[0], second=ranked[1])] if len(ranked) > 1 else []


@dataclass
class _Draft(Draft):
    """Sentences, and the settings that are recommended."""

    choices: list[str] = field(default_factory=list)


def recommendation(results: GroupResults) -> Finding:
    """Recommend a setting for wall-clock time, and one for generalization."""
    draft = _Draft()
    target = common_target(results.group)
    times: dict[int, TimeToTarget] = {}
    if target is not None:
        times = {result.id: time_to_target(result.runs, target) for result in results.by_id.values()}
    if damaged := [result.id for result in results.by_id.values() if damage_mark(result.runs)]:
        draft.observations.append(
            f"Results of {'experiment' if len(damaged) == 1 else 'experiments'} {', '.join(ranges(damaged).split())} "
            f"rest on damaged event logs ({DAMAGE_MARK}): they may be wrong, and are not recommended or compared."
        )
    if target is None or not results.complete:
        draft.observations.append("No experiment is complete, so none can be recommended.")
    else:
        _recommend_for_time(results, draft, target, {each.id: times[each.id] for each in results.complete})
        _recommend_for_generalization(results, draft)
        _describe_gaps(results, draft)
    known_at = "evaluations" if describe_evaluations(results.group) else "the ends of epochs"
    method = [
        f"Wall-clock time: shortest training time of a complete experiment to a target, known at {known_at}.",
        explain_target(results.group),
        explain_schedule(results.group),
        _explain_tolerance(results),
        "Generalization: lowest validation perplexity at the best epoch (early stopping), and at the last.",
        "The gap is validation loss minus train loss at the last epoch, in nats.",
    ]
    if any(time.reached and time.median_s is None for time in times.values()):
        method.append(f"“{DASH}”: reached, but the run does not record its times.")
    shown = "".join(marks(result.runs) for result in results.by_id.values())
    if shown:
        method.append(explain_marks(shown, ", and not recommended"))
    return Finding(
        question="Which setting is best for wall-clock time, and which for generalization?",
        answer=_answer(results, draft.choices),
        observations=draft.observations,
        method=" ".join(sentence for sentence in method if sentence),
        interpretation=draft.interpretation,
        table=_times_table(results, target, times),
        table_lead="Times, perplexities and gaps.",
    )


def _answer(results: GroupResults, choices: Sequence[str]) -> str:
    if not choices:
        return "Open, because no experiment is complete."
    one_seed = all(len(each.runs) == 1 for each in results.complete)
    text = "; ".join(choices)
    return f"{text[0].upper()}{text[1:]} ({'one seed each, not a claim' if one_seed else 'exploratory'})."


def _describe_leaders(results: GroupResults) -> list[str]:
    """Return the lowest perplexity within each time, which needs no target."""
    parts = [
        f"from {formatting.seconds(time_s)} on {results.by_id[id_].label_with_id} ({format_ppl(ppl)} then)"
        for time_s, id_, ppl in leaders(results)[-MOST_LEADERS:]
    ]
    return [f"Lowest perplexity so far, by training time: {', '.join(parts)}."] if parts else []


def _recommend_for_time(results: GroupResults, draft: _Draft, target: float, found: Mapping[int, TimeToTarget]) -> None:
    """Recommend among the experiments in ``found``, which are complete."""
    if not any(time.reached for time in found.values()):
        draft.observations.append(
            f"No complete experiment reaches a validation perplexity of {target:,.10g}, so none can be recommended for "
            "wall-clock time."
        )
        return
    times = {id_: time.median_s for id_, time in found.items() if time.median_s is not None}
    train_s = {id_: train_s for id_ in found if (train_s := results.by_id[id_].train_s) is not None}
    if not times or not train_s:
        draft.observations.append("The runs do not record how long they took.")
        return
    tolerance = time_tolerance(results)
    fastest, *equal = _within(tolerance, times)
    draft.observations.append(
        f"Shortest time to a validation perplexity of {target:,.10g}: {results.by_id[fastest].label_with_id}, "
        f"{formatting.seconds(times[fastest])} of training"
        + (f"; within {tolerance:.0%} of that: {_labels(results, equal)}." if equal else ".")
    )
    as_soon = [id_ for id_ in no_later(results, target, fastest, times) if id_ not in equal]
    if as_soon:
        draft.observations.append(
            f"{_labels(results, as_soon)}, with equal architecture and depth, "
            f"{'reaches' if len(as_soon) == 1 else 'reach'} it after no more steps."
        )
    draft.observations += _describe_leaders(results)
    if (p := times_p_value(results, target, fastest_two := two_fastest(times))) is not None:
        draft.observations.append(
            f"Times of {_labels(results, fastest_two)}, by ranks: exploratory p {format_p(p)} (permutation test)."
        )
    shortest, *as_short = _within(tolerance, train_s)
    draft.observations.append(_describe_shortest(results, train_s, [shortest, *as_short], found, tolerance))
    missed = [id_ for id_ in sorted((shortest, *as_short)) if not found[id_].reached]
    chosen = sorted([fastest, *equal, *as_soon])
    draft.choices.append(f"for wall-clock time {_labels(results, chosen)}")
    draft.conclude(
        f"If wall-clock time matters most: {_labels(results, chosen)}{_limit(results, fastest, TARGET_LIMIT)}.",
        "The measurements do not distinguish between these." if equal or as_soon else "",
        f"A short run is not the answer by itself: {_labels(results, missed)} "
        f"{'ends' if len(missed) == 1 else 'end'} early but never {'reaches' if len(missed) == 1 else 'reach'} the "
        "target."
        if missed
        else "",
    )
    recommended = [results.by_id[id_] for id_ in chosen]
    draft.conclude(describe_inferences(*recommended))
    draft.conclude(timing_caveat(results.group))


def _explain_tolerance(results: GroupResults) -> str:
    tolerance = time_tolerance(results)
    text = f"Times within {tolerance:.0%} of the shortest count as equal"
    if tolerance <= EQUAL_TIME:
        return f"{text}."
    return (
        f"{text}: by that much, the slowest epoch of a run exceeded its fastest, from the second epoch on (median of "
        "the runs)."
    )


def _within(tolerance: float, times_s: Mapping[int, float]) -> list[int]:
    """Return the experiment with the shortest time, and after it those within ``tolerance`` of that."""
    ranked = sorted(times_s, key=lambda id_: times_s[id_])
    return [id_ for id_ in ranked if times_s[id_] <= times_s[ranked[0]] * (1 + tolerance)]


def _limit(results: GroupResults, id_: int, *limits: str) -> str:
    """Return what limits a recommendation, in parentheses; nothing if nothing does."""
    one_seed = (NOT_A_CLAIM,) if len(results.by_id[id_].runs) == 1 else ()
    return f" ({'; '.join((*one_seed, *limits))})" if one_seed or limits else ""


def _describe_shortest(
    results: GroupResults,
    train_s: Mapping[int, float],
    shortest: Sequence[int],
    found: Mapping[int, TimeToTarget],
    tolerance: float,
) -> str:
    """Name all runs that are as short as the shortest, and which of them reach the target."""
    if len(shortest) == 1:
        reaches = "also reaches" if found[shortest[0]].reached else "never reaches"
        return (
            f"Shortest run: {results.by_id[shortest[0]].label_with_id}, "
            f"{formatting.seconds(train_s[shortest[0]])} of training; it {reaches} that perplexity."
        )
    reached = [id_ for id_ in sorted(shortest) if found[id_].reached]
    reaching = (
        "all of them reach"
        if len(reached) == len(shortest)
        else f"of these, {_labels(results, reached)} {'reaches' if len(reached) == 1 else 'reach'}"
        if reached
        else "none of them reaches"
    )
    return (
        f"Shortest runs, within {tolerance:.0%} of {formatting.seconds(train_s[shortest[0]])} of training: "
        f"{_labels(results, sorted(shortest))}; {reaching} that perplexity."
    )


def two_fastest(times_s: Mapping[int, float]) -> list[int]:
    """Return the two experiments with the shortest times."""
    return sorted(times_s, key=lambda id_: times_s[id_])[:2]


def times_p_value(results: GroupResults, target: float, ids: Sequence[int]) -> float | None:
    """Return the p-value of the times of two experiments to a target by ranks, where a miss is infinite.

    None if there are not two, or if one has fewer than ``MIN_SEEDS_RANKS`` seeds.
    """
    seeds = [results.by_id[id_].runs for id_ in ids]
    if len(ids) < 2 or min(map(len, seeds)) < MIN_SEEDS_RANKS:
        return None
    times = [[math.inf if (s := seconds_to_target(run, target)) is None else s for run in runs] for runs in seeds]
    return rank_permutation_p(*times)


def _ranked(results: GroupResults) -> list[ExperimentResult]:
    """Return the complete experiments by their validation perplexity at the best epoch."""
    return sorted(results.complete, key=lambda each: each.mean_ppl or math.inf)


def _recommend_for_generalization(results: GroupResults, draft: _Draft) -> None:
    best = _ranked(results)[0]
    by_last = sorted(
        (each for each in results.complete if each.last_ppl is not None), key=lambda each: each.last_ppl or math.inf
    )
    last = by_last[0] if by_last else best
    draft.observations.append(
        f"Lowest validation perplexity: {best.label_with_id}, {best.format_mean_ppl()}, {_when(best)}."
        f"{_describe_test(best)}"
    )
    if last.id != best.id:
        draft.observations.append(
            f"Lowest at the last epoch: {last.label_with_id}, {format_ppl(last.last_ppl or math.nan)}; "
            f"{best.label_with_id} has {format_ppl(best.last_ppl or math.nan)} there."
        )
    elif best.stops_before_last and best.last_ppl is not None:
        draft.observations.append(
            f"{best.label_with_id} is lowest at the last epoch too, with {format_ppl(best.last_ppl)}."
        )
    result = ""
    for found in results.compare(generalization_pairs):
        draft.observations.append(f"Compared with the next: {found.sentence}")
        next_best = found.pair.second
        assert next_best is not None
        if found.evidence is not Evidence.ONE_SEED:
            result = f"Against the next, {next_best.label_with_id}: {found.outcome}"
        elif found.favored is None:
            result = f"Against the next, {next_best.label_with_id}, {found.outcome}"
        elif found.favored.id != best.id:
            result = f"By {found.endpoint.value}, {next_best.label_with_id} is the lower of the two."
    recommended = f"If generalization matters most: {best.label_with_id}{_limit(results, best.id)}"
    if last.id != best.id:
        recommended += (
            f", but only if training stops at its best epoch; of models trained to their last epoch, "
            f"{last.label_with_id}"
        )
    draft.choices.append(f"for generalization {best.label_with_id}")
    draft.conclude(f"{recommended}.", result)
    choices = [best] if last.id == best.id else [best, last]
    if costs := "; ".join(filter(None, (_describe_cost(results, each, early=each is best) for each in choices))):
        draft.conclude(f"Cost: {costs}.")
    draft.conclude(describe_inferences(*choices))


def _when(result: ExperimentResult) -> str:
    """Return the best epoch of an experiment, and its last."""
    best = result.best_epoch or 0
    last = max((run.state.epochs_done for run in result.runs), default=0)
    median = " (median)" if len(result.runs) > 1 else ""
    if not result.stops_before_last:
        return f"at its last epoch, {last}"
    return f"at epoch {best:g}{median} of {last}"


def _describe_test(result: ExperimentResult) -> str:
    """Return the test perplexity of an experiment that validation has chosen; empty if it is unknown."""
    losses = result.losses(Endpoint.TEST)
    if not losses:
        return ""
    mean = " (mean)" if len(losses) > 1 else ""
    return f" Its test perplexity with these weights: {format_ppl(statistics.fmean(map(perplexity, losses)))}{mean}."


def _describe_cost(results: GroupResults, result: ExperimentResult, *, early: bool) -> str:
    """Return training time and memory of a choice; empty if both are unknown."""
    parts = []
    if result.train_s is not None:
        total = formatting.seconds(result.train_s)
        if early and result.stops_before_last and result.best_train_s is not None:
            parts.append(f"{formatting.seconds(result.best_train_s)} of training to its best epoch ({total} in all)")
        else:
            parts.append(f"{total} of training")
    if (mib := used_memory(results.group).get(result.id)) is not None:
        parts.append(f"{formatting.mib(mib)} of memory")
    return f"{result.label_with_id}, {' and '.join(parts)}" if parts else ""


def _describe_gaps(results: GroupResults, draft: Draft) -> None:
    """Give the range of the gaps, and say why the lowest is no sign of generalization."""
    best = _ranked(results)[0]
    ranked = sorted(
        ((each.last_gap_nats, each) for each in results.complete if each.last_gap_nats is not None),
        key=lambda pair: pair[0],
    )
    if not ranked:
        return
    if not all(each.several_epochs for _, each in ranked):
        draft.observations.append("After one epoch, the gap between train and validation loss is not compared.")
        return
    (low, lowest), (high, highest) = ranked[0], ranked[-1]
    text = f"Gap between validation and train loss at the last epoch: {signed(low, 3)} nats ({lowest.label_with_id})"
    if highest is not lowest:
        text += f" to {signed(high, 3)} ({highest.label_with_id})"
    if best.id not in (lowest.id, highest.id):
        gap = "an unknown gap" if best.last_gap_nats is None else signed(best.last_gap_nats, 3)
        text += f"; the lowest validation perplexity goes with {gap} ({best.label_with_id})"
    draft.observations.append(f"{text}.")
    if best.id == lowest.id or best.last_gap_nats is None or best.mean_ppl is None or lowest.mean_ppl is None:
        return
    learned_less = math.log(lowest.mean_ppl / best.mean_ppl) > MATERIAL_NATS
    if learned_less and best.last_gap_nats - low > MATERIAL_NATS:
        draft.conclude(
            f"The lowest gap alone is misleading: what {lowest.label_with_id} has learned holds on other text, but its "
            f"validation perplexity is {format_ppl(lowest.mean_ppl)}. Train loss is usually averaged over an epoch "
            "during which the weights improve, so early gaps can even be negative."
        )


def _times_table(results: GroupResults, target: float | None, times: Mapping[int, TimeToTarget]) -> Table:
    time_header = f"Time to PPL {'target' if target is None else f'{target:,.10g}'} (s)"
    rows = []
    for result in results.by_id.values():
        label, time = result.label_with_id, times.get(result.id, TimeToTarget())
        if len(label) > LONGEST_LABEL:
            label = f"{label[: LONGEST_LABEL - 6]}… ({result.id}){damage_mark(result.runs)}"
        texts = {
            "Experiment": label + marks(result.runs).removesuffix(damage_mark(result.runs)),
            time_header: _format_seconds(time.median_s, DASH if target is None or time.reached else "not reached"),
            "Training (s)": _format_seconds(result.train_s, DASH),
            "Validation PPL": format_ppl(result.mean_ppl) if result.mean_ppl is not None else DASH,
            "Gap (nats)": f"{result.last_gap_nats:+.3f}" if result.last_gap_nats is not None else DASH,
        }
        rows.append({header: Cell(text) for header, text in texts.items()})
    numeric = (time_header, "Training (s)", "Validation PPL", "Gap (nats)")
    columns = [Column(header="Experiment"), *(Column(header=header, numeric=True) for header in numeric)]
    return Table(columns=columns, rows=rows)


def _labels(results: GroupResults, ids: Sequence[int]) -> str:
    return ", ".join(results.by_id[id_].label_with_id for id_ in ids)


def _format_seconds(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:,.1f}"
