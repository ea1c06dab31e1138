"""The report's section on registered claims: a table, a figure with every seed, and a sentence on each comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lmconsole.claims.evaluate import ClaimedContrast, EvaluatedClaims, evaluate
from lmconsole.claims.replicates import RESULTS, Replicate
from lmconsole.claims.wording import (
    decimals,
    describe,
    describe_attempts,
    describe_missing,
    detects,
    interval,
    number,
    p_value,
    scope,
    state,
)
from lmconsole.engine.register import all_runs
from lmconsole.formatting import counted
from lmconsole.plan.claims import ENDPOINT_NAMES
from lmconsole.report.blocks import Block, BulletList, FigureRow, Heading, NumberedTable, Paragraph
from lmconsole.report.figure_content import CLAIMS, DifferencePlot, DifferenceRow, FigureSpec
from lmconsole.report.markup import DASH
from lmconsole.report.selection import Group
from lmconsole.report.table import Cell, Column, Table
from lmconsole.runs.registration import read_registrations
from lmconsole.runs.store import Store

TABLE = "table-claims"
"""File name of the table of claims, without suffix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedClaims:
    """Registered claims of a store that have runs in a group."""

    shown: Sequence[EvaluatedClaims] = ()
    others: int = 0
    """Registered claim files of the store that have no run in the group."""
    missing: int = 0
    """Registrations of the store whose files are gone, as far as the numbers of later ones show."""
    covered: frozenset[str] = frozenset()
    """Runs of the group that count for a claim."""

    @property
    def targets_ppl(self) -> list[float]:
        """Validation perplexities that were fixed as targets, each once."""
        found = {each.target_ppl for claims in self.shown for each in claims.contrasts if each.target_ppl is not None}
        return sorted(found, reverse=True)

    def covers(self, group: Group) -> bool:
        """Return whether every run of the group counts for a claim; else the group is exploratory."""
        return all(run.run in self.covered for run in group.runs)


def reported_claims(store: Store, group: Group) -> ReportedClaims:
    """Return the registered claims of a store with the runs of a group. Raises StoreError if they cannot be read."""
    registrations = read_registrations(store.root)
    if not registrations:
        return ReportedClaims()
    runs = all_runs(store)
    names = {run.run for run in group.runs}
    shown: list[EvaluatedClaims] = []
    covered: set[str] = set()
    for registration in registrations:
        found = evaluate(registration, runs)
        counts = [run for each in found.contrasts for run in (*each.first_runs, *each.second_runs)]
        here = {each.run for each in counts if each.run and each.outcome in RESULTS} & names
        if here:
            shown.append(found)
            covered |= here
    missing = max(each.number for each in registrations) - len(registrations)
    return ReportedClaims(
        shown=shown, others=len(registrations) - len(shown), missing=missing, covered=frozenset(covered)
    )


def claim_sentences(claims: ReportedClaims) -> list[str]:
    """Return the sentence of the first page on claims; empty without any, so that it says so itself."""
    contrasts = [each for found in claims.shown for each in found.contrasts]
    if not contrasts:
        return []
    texts = [_short(each) for each in contrasts]
    more = f" {len(texts) - 3} more are in Claims." if len(texts) > 3 else ""
    shown = "; ".join(texts[:3])
    return [f"Comparisons registered before the runs, with their results: {shown}.{more} All else is exploratory."]


def _short(contrast: ClaimedContrast) -> str:
    """Return the verdict on a comparison in a clause."""
    result = contrast.result
    what = ENDPOINT_NAMES[contrast.endpoint].replace("the target", f"PPL {contrast.target_ppl or 0:g}")
    numbers = ""
    if result.difference is not None and result.interval is not None:
        digits = decimals(result.interval)
        numbers = f" ({number(result.difference, digits)} {contrast.unit}, 95 % {interval(result.interval, digits)})"
    return f"{what} of {result.first.name} against {result.second.name}: {describe(result)}{numbers}"


def claims_section(claims: ReportedClaims) -> list[Block]:
    """Return the section on claims; nothing without any."""
    if not claims.shown:
        return []
    blocks: list[Block] = [Heading(1, "Claims")]
    for found in claims.shown:
        what = f"{counted(len(found.contrasts), 'comparison')}, {counted(found.planned_runs, 'run')}"
        text = (
            f"{what}, registered {found.registered_t[:16].replace('T', ' ')} UTC before any of these runs was queued "
            f"(registration {found.number} of this store, SHA-256 {found.hash[:16]}…; only a hash that was published "
            f"elsewhere proves the order). {found.finished_runs} of {found.planned_runs} planned runs have a result. "
            "Intervals are per comparison; p-values are Holm-adjusted over all comparisons of the file. Verdicts are "
            "conditional on corpus, test set, budget and settings."
        )
        blocks.append(Paragraph(text, lead=f"{found.source.rpartition('/')[2]}."))
    blocks.append(NumberedTable(TABLE, claims_table(claims)))
    figure = claims_figure(claims)
    if figure.content is not None:
        blocks.append(FigureRow([figure]))
    for found in claims.shown:
        blocks.append(BulletList([_sentence(each) for each in found.contrasts]))
        scopes = dict.fromkeys(text for each in found.contrasts for text in (scope(each), detects(each)) if text)
        blocks.append(Paragraph(" ".join(scopes), lead="Scope."))
        missing = dict.fromkeys(line for each in found.contrasts for line in describe_missing(each))
        if missing:
            blocks += [Paragraph("", lead="Missing."), BulletList([line.removeprefix("missing: ") for line in missing])]
        blocks.append(Paragraph(describe_attempts(found.attempts), lead="Attempts."))
    if claims.others or claims.missing:
        blocks.append(Paragraph(_other_registrations(claims)))
    return blocks


def _other_registrations(claims: ReportedClaims) -> str:
    """Return a sentence on the registrations of the store that are not shown, and on those that are missing."""
    text = (
        f"This store has {counted(claims.others, 'other registration')}, each corrected for its own comparisons alone."
    )
    if claims.missing:
        text += f" {counted(claims.missing, 'registration')} {'is' if claims.missing == 1 else 'are'} missing."
    return text


def _sentence(contrast: ClaimedContrast) -> str:
    name = f"“{contrast.claim}”: " if contrast.claim else ""
    return f"{name}{state(contrast)}"


_BY_RANKS = f"{DASH}: runs that diverged or never reached a target are infinite, so ranks are compared."

HEADERS = ("First", "Second", "Endpoint", "n", "Difference", "95 % interval", "p (Holm)", "Verdict")


def claims_table(claims: ReportedClaims) -> Table:
    """Return the table of all comparisons that were claimed."""
    contrasts = [each for found in claims.shown for each in found.contrasts]
    rows = []
    for each in contrasts:
        result, digits = each.result, decimals(each.result.interval)
        endpoint = "test loss" if each.target_ppl is None else f"{each.endpoint} to PPL {each.target_ppl:g}"
        bold = result.verdict in ("lower", "higher", "equivalent")
        texts = (
            result.first.name,
            result.second.name,
            endpoint,
            f"{result.first.seeds}, {result.second.seeds}",
            number(result.difference, digits).replace("–", DASH),
            interval(result.interval, digits).replace("–", DASH),
            p_value(result.p_adjusted).replace("–", DASH),
            result.verdict.value,
        )
        rows.append(
            {header: Cell(text, bold=bold and header == "Verdict") for header, text in zip(HEADERS, texts, strict=True)}
        )
    return Table(
        label="tab:claims",
        title="Table C",
        letter="C",
        caption="Comparisons that were registered before the runs. Difference: first − second, in nats per token.",
        notes=_BY_RANKS if any(each.result.test == "rank permutation" for each in contrasts) else "",
        columns=[Column(header=header, numeric=header in ("n", "Difference", "p (Holm)")) for header in HEADERS],
        rows=rows,
        data=claims_frame(contrasts),
    )


def claims_frame(contrasts: Sequence[ClaimedContrast]) -> pd.DataFrame:
    """Return one row for each comparison; unknown values are NaN."""
    return pd.DataFrame(
        [
            {
                "claim": each.claim,
                "first": each.result.first.name,
                "second": each.result.second.name,
                "endpoint": each.endpoint,
                "target_ppl": each.target_ppl,
                "unit": each.unit,
                "delta": each.delta,
                "planned": each.planned,
                "first_n": each.result.first.seeds,
                "second_n": each.result.second.seeds,
                "first_diverged": each.result.first.diverged,
                "second_diverged": each.result.second.diverged,
                "first_mean": each.result.first.mean,
                "second_mean": each.result.second.mean,
                "first_median": each.result.first.median,
                "second_median": each.result.second.median,
                "difference": each.result.difference,
                "low": each.result.interval.low if each.result.interval else None,
                "high": each.result.interval.high if each.result.interval else None,
                "test": each.result.test,
                "p": each.result.p,
                "p_holm": each.result.p_adjusted,
                "verdict": each.result.verdict.value,
            }
            for each in contrasts
        ]
    )


def claims_figure(claims: ReportedClaims) -> FigureSpec:
    """Return the figure of claimed differences of the test loss: every seed, and the difference with its interval."""
    contrasts = [each for found in claims.shown for each in found.contrasts if each.target_ppl is None]
    rows = [
        DifferenceRow(
            first=each.result.first.name,
            second=each.result.second.name,
            first_values=_values(each.first_runs),
            second_values=_values(each.second_runs),
            diverged=(each.result.first.diverged, each.result.second.diverged),
            difference=each.result.difference if each.result.interval else None,
            low=each.result.interval.low if each.result.interval else None,
            high=each.result.interval.high if each.result.interval else None,
            delta=each.delta,
            verdict=describe(each.result),
        )
        for each in contrasts
    ]
    return FigureSpec(
        number=CLAIMS,
        title="Claimed differences of the test loss",
        caption="Test loss of every seed, and difference of the means (first − second) with its 95 % Welch interval. "
        "Shaded: differences that were declared too small to matter.",
        content=DifferencePlot(rows=rows) if rows else None,
        omitted="" if rows else "no claim is about the test loss",
        full_width=True,
    )


def _values(runs: Sequence[Replicate]) -> list[float]:
    return [each.value for each in runs if each.value is not None]
