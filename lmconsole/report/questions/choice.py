"""Question 3: which setting to choose."""

import math
from collections.abc import Sequence

from lmconsole import formatting
from lmconsole.report.comparing import Measured, Verdict, compare
from lmconsole.report.markup import DASH, Cell, Document, decimals
from lmconsole.report.questions.answer import EQUAL_NATS, Answer, Finding, Suite
from lmconsole.report.selection import clock_note
from lmconsole.report.targets import SLACK, common_target, reached


def choice(suite: Suite) -> Finding:
    """Question 3: which setting for wall-clock time, which for generalization."""
    answer = Answer()
    target = common_target(suite.group)
    times = {each.id: reached(each.runs, target) for each in suite.all.values()} if target is not None else {}
    judged = suite.judged
    if target is None or not judged:
        answer.measured.append("No experiment is complete, so none can be chosen.")
    else:
        _fastest(suite, answer, target, {n: time.mean_s for n, time in times.items() if time.mean_s is not None})
        _best(answer, judged)
    return Finding(
        number=3,
        question="Which setting, if wall-clock time matters most, and which, if generalization does?",
        measured=answer.measured,
        rule=(
            "Wall-clock: least training time to a target validation perplexity, known at the ends of epochs. The "
            f"target lies {SLACK:.0%} above the lowest perplexity that every architecture has reached in some "
            "experiment, with every seed. Generalization: lowest validation perplexity of a complete experiment; the "
            "gap is validation loss minus train loss at the last epoch, in nats. Times within "
            f"{CLOSE:.0%} of the least count as equal."
        ),
        interpretation=answer.interpretation,
        table=_choice_table(suite, target, {n: time.mean_s for n, time in times.items()}),
    )


CLOSE = 0.1
"""Times that differ by no more than this share are called equal."""


def _fastest(suite: Suite, answer: Answer, target: float, times: dict[int, float]) -> None:
    known = {each.id: each.train_s for each in suite.judged if each.train_s is not None}
    if not times or not known:
        answer.measured.append("The runs do not say how long they took.")
        return
    first = min(times, key=lambda number: times[number])
    others = [n for n in times if n != first and times[n] <= times[first] * (1 + CLOSE)]
    answer.measured.append(
        f"Least time to a validation perplexity of {target:,.10g}: {suite.all[first].label}, "
        f"{formatting.seconds(times[first])} of training"
        + (f"; within {CLOSE:.0%} of that: {_labels(suite, others)}." if others else ".")
    )
    shortest = min(known, key=lambda number: known[number])
    reach = "reaches it as well" if shortest in times else "never reaches it"
    answer.measured.append(
        f"Shortest run: {suite.all[shortest].label}, {formatting.seconds(known[shortest])} of training; it {reach}."
    )
    choice = _labels(suite, sorted([first, *others]))
    answer.interpretation.append(
        f"If wall-clock time matters: {choice}."
        + (" Between these the measurement does not decide." if others else "")
        + (
            f" The shortest run, {suite.all[shortest].label}, is not the answer: it ends soonest without getting there."
            if shortest not in times
            else ""
        )
    )
    if note := clock_note(suite.group):
        answer.interpretation.append(note)


def _best(answer: Answer, judged: Sequence[Measured]) -> None:
    ranked = sorted(judged, key=lambda each: each.mean_ppl or math.inf)
    best = ranked[0]
    answer.measured.append(f"Lowest validation perplexity: {best.label}, {best.ppl_words()}.")
    words = f"If generalization matters: {best.label}."
    if len(ranked) > 1:
        found = compare(best, ranked[1])
        answer.measured.append(f"Beside the next: {found.words}")
        if found.verdict in (Verdict.SPREAD, Verdict.TINY):
            words += f" The measurement does not tell it from {ranked[1].label}."
        elif found.caution:
            words += f" {found.caution}"
    answer.interpretation.append(words)
    gaps = [(abs(each.gap_nats), each) for each in judged if each.gap_nats is not None]
    if not gaps:
        return
    smallest = min(gaps, key=lambda pair: pair[0])[1]
    answer.measured.append(
        f"Smallest gap between train and validation loss: {smallest.label}, {smallest.gap_nats:+.3f} nats, at a "
        f"validation perplexity of {smallest.ppl_words()}; {best.label} has {best.gap_nats or 0.0:+.3f} nats."
    )
    learnt_less = compare(best, smallest).verdict.lower
    if learnt_less and abs(best.gap_nats or 0.0) - abs(smallest.gap_nats or 0.0) > EQUAL_NATS:
        answer.interpretation.append(
            f"The smallest gap alone misleads: {smallest.label} generalizes what it has learnt, but has learnt less. "
            "Train perplexity is averaged over an epoch in which the weights still improve, so early gaps can even be "
            "negative."
        )


LONG_LABEL = 32
"""Longer labels are cut in a table."""


def _choice_table(suite: Suite, target: float | None, times: dict[int, float | None]) -> Document:
    rows = [
        [
            Cell(each.label if len(each.label) <= LONG_LABEL else f"{each.label[: LONG_LABEL - 6]}… ({each.id})"),
            Cell(_seconds(times.get(each.id), "not reached" if target is not None else DASH)),
            Cell(_seconds(each.train_s, DASH)),
            Cell(decimals(each.mean_ppl) if each.mean_ppl is not None else DASH),
            Cell(f"{each.gap_nats:+.3f}" if each.gap_nats is not None else DASH),
        ]
        for each in suite.all.values()
    ]
    words = "target" if target is None else f"{target:,.10g}"
    return Document(
        label="tab:choice",
        title="",
        caption="",
        headers=["Experiment", f"Time to PPL {words} (s)", "Training (s)", "Validation PPL", "Gap (nats)"],
        numeric=[False, True, True, True, True],
        rows=rows,
    )


def _labels(suite: Suite, numbers: Sequence[int]) -> str:
    return ", ".join(suite.all[number].label for number in numbers)


def _seconds(value: float | None, absent: str) -> str:
    return absent if value is None else f"{value:,.1f}"
