"""Notation and setting: what all tables and figures share, which is stated once instead of in every caption."""

from lmconsole.report.blocks import Paragraph
from lmconsole.report.captions import (
    describe_evaluations,
    describe_group,
    join_sentences,
    ppl_denominator,
    timing_caveat,
)
from lmconsole.report.results import explain_marks, marks
from lmconsole.report.selection import Group

EXPLORATORY = "Exploratory"
"""Word for runs that no claim covers; figures of them have it in a corner."""

NO_CLAIM = (
    "Runs that are not covered by a claim that was registered before them suggest what to test, and support no verdict."
)


def notation(group: Group, *, exploratory: bool) -> list[Paragraph]:
    """Return the setting of a group, and the notation of its tables and figures."""
    best = "Tables show each run at its best epoch, that with the lowest validation PPL."
    if group.imported:
        origin = "The sources do not state how train PPL was computed."
    else:
        origin = (
            "Train PPL is computed from the training losses of the epoch; test PPL uses the weights of the best epoch."
        )
    if any(len(runs) > 1 for runs in group.by_experiment.values()):
        lines = "Thin lines are seeds, thick ones means where all seeds have a value."
    else:
        lines = "Each line is one run, since there is one seed."
    axes = (
        "Dots mark best epochs. Axes of perplexity are logarithmic where no curve rises after its best epoch. Else "
        "they are linear and end a little above the best epochs: the first ones, many times as high, would hide a rise "
        "by a few percent."
    )
    times = ["Time is cumulative training time, without setup and evaluation.", timing_caveat(group)]
    shown = explain_marks("".join(marks(runs) for runs in group.by_experiment.values()))
    paragraphs = {
        "Runs.": describe_group(group),
        "Perplexity.": join_sentences(
            [f"Perplexity (PPL) is per {ppl_denominator(group)}.", best, origin, describe_evaluations(group)]
        ),
        "Figures.": f"Numbers in parentheses are experiments. {lines} {axes}",
        "Times.": join_sentences(times),
        "Marks.": shown,
        f"{EXPLORATORY}.": NO_CLAIM if exploratory else "",
    }
    return [Paragraph(text, lead=lead) for lead, text in paragraphs.items() if text]
