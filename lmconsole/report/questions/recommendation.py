"""The recommended setting."""

import math
from collections.abc import Mapping, Sequence

from lmconsole import formatting
from lmconsole.formatting import DAMAGE_MARK
from lmconsole.plan.presets import ranges
from lmconsole.report.captions import describe_evaluations, timing_caveat
from lmconsole.report.comparing import ExperimentResult, Verdict, compare
from lmconsole.report.markup import DASH, format_ppl
from lmconsole.report.questions.finding import EQUAL_NATS, Draft, Finding, GroupResults, describe_inferences
from lmconsole.report.results import damage_mark, explain_marks, marks
from lmconsole.report.table import Cell, Column, Table
from lmconsole.report.targets import TARGET_MARGIN, TimeToTarget, common_target, time_to_target

EQUAL_TIME = 0.1
"""Times up to this share above the shortest count as equal."""

LONGEST_LABEL = 32
"""Longer labels are shortened in the table."""


def recommendation(results: GroupResults) -> Finding:
    """Recommend a setting for wall-clock time, and one for generalization."""
    draft = Draft()
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
        _recommend_for_generalization(draft, results.complete)
    notes = ""
    if any(time.reached and time.mean_s is None for time in times.values()):
        notes += f" “{DASH}”: reached, but the run does not record its times."
    shown = "".join(marks(result.runs) for result in results.by_id.values())
    if shown:
        notes += f" {explain_marks(shown, ', and not recommended')}"
    known_at = "evaluations" if describe_evaluations(results.group) else "the ends of epochs"
    return Finding(
        question="Which setting is best for wall-clock time, and which for generalization?",
        observations=draft.observations,
        method=(
            "Wall-clock time: shortest training time of a complete experiment to a target validation perplexity, known "
            f"at {known_at}. The target is {TARGET_MARGIN:.0%} above the lowest perplexity that every "
            "architecture reaches in some experiment with every seed. Generalization: lowest validation perplexity of "
            "a complete experiment; the gap is validation loss minus train loss at the last epoch, in nats. Times "
            f"within {EQUAL_TIME:.0%} of the shortest count as equal.{notes}"
        ),
        interpretation=draft.interpretation,
        table=_times_table(results, target, times),
    )


def _recommend_for_time(results: GroupResults, draft: Draft, target: float, found: Mapping[int, TimeToTarget]) -> None:
    """Recommend among the experiments in ``found``, which are complete."""
    if not any(time.reached for time in found.values()):
        draft.observations.append(
            f"No complete experiment reaches a validation perplexity of {target:,.10g}, so none can be recommended for "
            "wall-clock time."
        )
        return
    times = {id_: time.mean_s for id_, time in found.items() if time.mean_s is not None}
    train_s = {id_: train_s for id_ in found if (train_s := results.by_id[id_].train_s) is not None}
    if not times or not train_s:
        draft.observations.append("The runs do not record how long they took.")
        return
    fastest = min(times, key=lambda id_: times[id_])
    equal = [id_ for id_ in times if id_ != fastest and times[id_] <= times[fastest] * (1 + EQUAL_TIME)]
    draft.observations.append(
        f"Shortest time to a validation perplexity of {target:,.10g}: {results.by_id[fastest].label_with_id}, "
        f"{formatting.seconds(times[fastest])} of training"
        + (f"; within {EQUAL_TIME:.0%} of that: {_labels(results, equal)}." if equal else ".")
    )
    shortest = min(train_s, key=lambda id_: train_s[id_])
    shortest_label = results.by_id[shortest].label_with_id
    draft.observations.append(
        f"Shortest run: {shortest_label}, {formatting.seconds(train_s[shortest])} of training; it "
        f"{'also reaches' if found[shortest].reached else 'never reaches'} that perplexity."
    )
    draft.interpretation.append(
        f"If wall-clock time matters most: {_labels(results, sorted([fastest, *equal]))}."
        + (" The measurements do not distinguish between these." if equal else "")
        + (
            f" The shortest run, {shortest_label}, is not the answer: it ends first but never reaches the target."
            if not found[shortest].reached
            else ""
        )
    )
    recommended = [results.by_id[id_] for id_ in sorted([fastest, *equal])]
    for sentence in (describe_inferences(*recommended), timing_caveat(results.group)):
        if sentence:
            draft.interpretation.append(sentence)


def _recommend_for_generalization(draft: Draft, complete: Sequence[ExperimentResult]) -> None:
    ranked = sorted(complete, key=lambda each: each.mean_ppl or math.inf)
    best = ranked[0]
    draft.observations.append(f"Lowest validation perplexity: {best.label_with_id}, {best.format_mean_ppl()}.")
    interpretation = f"If generalization matters most: {best.label_with_id}."
    if len(ranked) > 1:
        found = compare(best, ranked[1])
        draft.observations.append(f"Compared with the next best: {found.sentence}")
        if found.verdict in (Verdict.WITHIN_SPREAD, Verdict.NEGLIGIBLE_IN_ONE_SEED):
            interpretation += f" The measurements do not distinguish it from {ranked[1].label_with_id}."
        elif found.caution:
            interpretation += f" {found.caution}"
    draft.interpretation.append(f"{interpretation} {describe_inferences(best)}".rstrip())
    gaps = [(abs(each.last_gap_nats), each) for each in complete if each.last_gap_nats is not None]
    if not gaps:
        return
    smallest = min(gaps, key=lambda pair: pair[0])[1]
    best_gap_nats = best.last_gap_nats
    observation = (
        f"Smallest gap between train and validation loss: {smallest.label_with_id}, "
        f"{smallest.last_gap_nats:+.3f} nats, at a validation perplexity of {smallest.format_mean_ppl()}"
    )
    if smallest is not best:
        best_gap = "an unknown gap" if best_gap_nats is None else f"a gap of {best_gap_nats:+.3f} nats"
        observation += f"; the experiment with the lowest validation perplexity, {best.label_with_id}, has {best_gap}"
    draft.observations.append(f"{observation}.")
    learned_less = compare(best, smallest).verdict.first_is_lower
    if learned_less and abs(best_gap_nats or 0.0) - abs(smallest.last_gap_nats or 0.0) > EQUAL_NATS:
        draft.interpretation.append(
            f"The smallest gap alone is misleading: {smallest.label_with_id} generalizes what it has learned but has "
            "learned less. Train perplexity is usually averaged over an epoch during which the weights improve, so "
            "early gaps can even be negative."
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
            time_header: _format_seconds(time.mean_s, DASH if target is None or time.reached else "not reached"),
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
