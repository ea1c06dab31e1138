"""The report as blocks, by one of two templates. All formats are written from them.

Both begin with a page that answers: five sentences, Table 1 and one figure. Claims follow, then the details. ``course``
answers the questions of the assignment with the twelve published experiments; ``general`` is for all others.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from lmconsole.formatting import counted
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.blocks import (
    Block,
    BulletList,
    FigureRow,
    Heading,
    InlineTable,
    NumberedTable,
    Paragraph,
)
from lmconsole.report.captions import describe_incomplete_runs
from lmconsole.report.figure_content import OVERVIEW, FigureSpec
from lmconsole.report.notation import notation
from lmconsole.report.provenance import provenance
from lmconsole.report.questions.finding import Finding
from lmconsole.report.reference import published
from lmconsole.report.reproducibility import reproducibility
from lmconsole.report.result_tables import MEMORY, RESULTS
from lmconsole.report.selection import Group
from lmconsole.report.summary import summary
from lmconsole.report.table import Table

Template = Literal["course", "general"]


def choose_template(group: Group) -> Template:
    """Return ``course`` if the runs are of the twelve published experiments and each has been queued or imported."""
    runs = [*group.runs, *(run for run, _ in group.excluded)]
    kinds = {(run.info.experiment.model, run.info.experiment.layers, run.info.experiment.optimizer) for run in runs}
    twelve = {(each.model, each.layers, each.optimizer) for each in published().values()}
    shown = {run.info.experiment.id for run in group.runs}
    return "course" if kinds == twelve and shown <= published().keys() else "general"


def title(group: Group) -> str:
    """Return the title of the report."""
    models = dict.fromkeys(run.info.experiment.model for run in group.runs)
    names = " and ".join(MODEL_NAMES[model] for model in models)
    subject = "imported runs" if group.imported else f"preset {group.reference.preset}"
    return f"{names} language models: {subject}"


def build_report(
    group: Group,
    tables: Mapping[str, Table],
    figures: Sequence[FigureSpec],
    findings: Sequence[Finding] = (),
    *,
    template: Template,
    claims: Sequence[Block] = (),
    claim_sentences: Sequence[str] = (),
    exploratory: bool = True,
) -> list[Block]:
    """Return the report on a group.

    Args:
        tables: Tables by file name.
        figures: All figures, those without content too.
        findings: Answers to the questions of ``course``.
        claims: Section on claims, after the first page.
        claim_sentences: What the first page says about claims.
        exploratory: Whether the runs are not covered by a claim.
    """
    blocks: list[Block] = [Heading(1, "Summary"), BulletList(summary(group, claim_sentences))]
    blocks += [NumberedTable(RESULTS, tables[RESULTS]), *_figures(figures, [OVERVIEW])]
    blocks += claims
    blocks += [Heading(1, "Notation and setting"), *notation(group, exploratory=exploratory), *_completeness(group)]
    blocks += _results(tables, figures)
    if template == "course":
        blocks.append(Heading(1, "Findings"))
        for finding in findings:
            blocks += _finding(finding)
    else:
        blocks += [
            Heading(1, "Method"),
            *(Paragraph(text, lead=lead) for lead, text in _METHOD.items()),
            *reproducibility(group, exploratory=exploratory),
        ]
    return blocks + provenance(group)


def _results(tables: Mapping[str, Table], figures: Sequence[FigureSpec]) -> list[Block]:
    """Return all tables and figures but those of the first page, in the order of their numbers."""
    others = [NumberedTable(*each) for each in tables.items() if each[0] not in (RESULTS, MEMORY)]
    blocks = [
        Heading(1, "Results"),
        Paragraph("Figures 1 to 4 show train and validation perplexity over epochs.", lead="Perplexity."),
        *_figures(figures, [1, 2], [3, 4]),
        Paragraph("Figures 5 to 8 show the same curves over training time.", lead="Perplexity over time."),
        *_figures(figures, [5, 6], [7, 8]),
        Paragraph("Table 2 and Figure 9 show how much memory the runs used.", lead="Memory."),
        NumberedTable(MEMORY, tables[MEMORY]),
        Paragraph(_describe_times(figures), lead="Time to a perplexity."),
        *_figures(figures, [9, 10], [11]),
    ]
    if others:
        blocks += [Paragraph("Table 3 compares these results with others.", lead="Other results."), *others]
    return blocks


def _describe_times(figures: Sequence[FigureSpec]) -> str:
    """Return what figures 10 and 11 show, and why figure 10 may be drawn where figure 11 is not."""
    text = "Figure 10 shows how soon one perplexity was reached"
    drawn = {figure.number for figure in figures if figure.content}
    if 10 in drawn and 11 not in drawn:
        return f"{text}, which describes these runs and ranks nothing."
    return f"{text}."


def _figures(figures: Sequence[FigureSpec], *rows: Sequence[int]) -> list[Block]:
    """Return figures by number, after a sentence on those that are not drawn. Those of a row are side by side unless
    one of them needs the full width."""
    by_number = {figure.number: figure for figure in figures}
    omitted: dict[str, list[str]] = {}
    blocks: list[Block] = []
    for row in ([by_number[number] for number in numbers] for numbers in rows):
        drawn = [figure for figure in row if figure.content]
        wide = any(figure.full_width for figure in drawn)
        blocks += [FigureRow([figure]) for figure in drawn] if wide else [FigureRow(drawn)] if drawn else []
        for figure in row:
            if not figure.content:
                omitted.setdefault(figure.omitted, []).append(figure.label)
    sentences = [
        f"{' and '.join(labels)} {'is' if len(labels) == 1 else 'are'} not drawn: {reason}."
        for reason, labels in omitted.items()
    ]
    return [*([Paragraph(" ".join(sentences))] if sentences else []), *blocks]


def _completeness(group: Group) -> list[Block]:
    incomplete, runs = describe_incomplete_runs(group), len(group.runs)
    if not incomplete:
        text = "The run is complete." if runs == 1 else f"All {runs} runs are complete."
        return [Paragraph(text, lead="Completeness.")]
    if runs == 1:
        return [Paragraph(f"The run is not complete: {incomplete[0]}.", lead="Completeness.")]
    return [
        Paragraph(f"{runs - len(incomplete)} of {counted(runs, 'run')} complete. The others:", lead="Completeness."),
        BulletList(incomplete),
    ]


def _finding(finding: Finding) -> list[Block]:
    blocks: list[Block] = [Heading(2, finding.question)]
    if finding.answer:
        blocks.append(Paragraph(finding.answer, lead="Answer."))
    if finding.observations:
        blocks += [Paragraph("", lead="Observations."), BulletList(finding.observations)]
    if finding.table is not None and finding.table.rows:
        blocks += [Paragraph("", lead=finding.table_lead), InlineTable(finding.table)]
    blocks.append(Paragraph(finding.method, lead="Method."))
    if finding.interpretation:
        blocks += [Paragraph("", lead="Interpretation."), BulletList(finding.interpretation)]
    return blocks


_METHOD = {
    "Endpoint.": (
        "A claim is about the negative log-likelihood of the test split, in nats per token, with the weights of the "
        "epoch that validated best. Validation alone chooses epochs."
    ),
    "Replicates.": (
        "Runs that differ only in their seed vary initial weights and the order of the data. They support statements "
        "about these settings, not about architectures or optimizers with other settings."
    ),
    "Differences.": (
        "Differences of means have 95% Welch intervals, each for one comparison. A verdict needs a claim that was "
        "registered before the runs, its planned number of seeds, at least three, and a p-value of at most 0.05 after "
        "Holm's correction over all contrasts of the claim. Equivalent means that the 90% interval is inside a margin "
        "that was fixed before (two one-sided tests at 5%, for each comparison alone). All else is a description."
    ),
    "Diverged runs.": "A diverged run counts as infinitely bad. It is never left out of a comparison.",
    "Times.": (
        "Only training counts; setup and evaluation are measured apart. A time to a perplexity ends with the first "
        "epoch at or below it. Where the target was not fixed beforehand, it only describes these runs."
    ),
}
"""Method by the beginning of its paragraphs; docs/method.md explains and justifies it."""
