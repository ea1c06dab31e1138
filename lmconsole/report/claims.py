"""The report's section on registered claims: a table, a figure with every seed, and a sentence on each comparison."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lmconsole.claims.evaluate import ClaimedContrast, EvaluatedClaims, evaluate
from lmconsole.claims.replicates import RESULTS, Replicate
from lmconsole.claims.wording import (
    FAMILY,
    decimals,
    describe,
    describe_attempts,
    describe_missing,
    describe_missing_registrations,
    describe_registrations,
    exact,
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
from lmconsole.report.captions import join_sentences
from lmconsole.report.figure_content import CLAIMS, DifferencePlot, DifferenceRow, FigureSpec
from lmconsole.report.markup import DASH
from lmconsole.report.selection import Group
from lmconsole.report.table import Cell, Column, Table
from lmconsole.runs.registration import last_number, missing_numbers, read_registrations
from lmconsole.runs.store import Store

TABLE = "table-claims"
"""File name of the table of claims, without suffix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedClaims:
    """Registered claims of a store, seen from a group of its runs."""

    shown: Sequence[EvaluatedClaims] = ()
    """Those with a result in the group."""
    others: Sequence[EvaluatedClaims] = ()
    """Those without."""
    missing: Sequence[int] = ()
    """Numbers of registrations whose files are gone: see ``missing_numbers``."""
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
    """Return the registered claims of a store. Raises StoreError if they cannot be read."""
    registrations = read_registrations(store.root)
    if not last_number(registrations, store.runs()):
        return ReportedClaims()  # without reading the trash
    runs = all_runs(store)
    names = {run.run for run in group.runs}
    shown: list[EvaluatedClaims] = []
    others: list[EvaluatedClaims] = []
    covered: set[str] = set()
    for registration in registrations:
        found = evaluate(registration, runs)
        counts = [run for each in found.contrasts for run in (*each.first_runs, *each.second_runs)]
        here = {each.run for each in counts if each.run and each.outcome in RESULTS} & names
        (shown if here else others).append(found)
        covered |= here
    missing = missing_numbers(registrations, runs)
    return ReportedClaims(shown=shown, others=others, missing=missing, covered=frozenset(covered))


def claim_sentences(claims: ReportedClaims) -> list[str]:
    """Return the sentence of the first page on claims; empty without any, so that it says so itself."""
    contrasts = [each for found in claims.shown for each in found.contrasts]
    gone = describe_missing_registrations(claims.missing)
    if not contrasts:
        return [f"No claim in this store is about these runs, so all is exploratory. {gone}"] if gone else []
    texts = [_short(each) for each in contrasts]
    more = f" {len(texts) - 3} more are in Claims." if len(texts) > 3 else ""
    shown = "; ".join(texts[:3])
    text = f"Comparisons registered before the runs, with their results: {shown}.{more} All else is exploratory."
    return [f"{text} {gone}".rstrip()]


def _short(contrast: ClaimedContrast) -> str:
    """Return the verdict on a comparison in a clause."""
    result = contrast.result
    what = ENDPOINT_NAMES[contrast.endpoint].replace("the target", f"PPL {exact(contrast.target_ppl or 0.0)}")
    numbers = ""
    if result.difference is not None and result.interval is not None:
        digits = decimals(result.interval)
        numbers = f" ({number(result.difference, digits)} {contrast.unit}, 95% {interval(result.interval, digits)})"
    return f"{what} of {result.first.name} against {result.second.name}: {describe(result)}{numbers}"


def claims_section(claims: ReportedClaims) -> list[Block]:
    """Return the section on claims; nothing for a store without any."""
    registrations = sorted((*claims.shown, *claims.others), key=lambda each: each.number)
    if not registrations and not claims.missing:
        return []
    blocks: list[Block] = [Heading(1, "Claims")]
    altogether = [
        describe_registrations(len(registrations), sum(len(each.contrasts) for each in registrations)),
        describe_missing_registrations(claims.missing),
    ]
    if claims.shown:
        blocks.append(Paragraph(_CLAIMS))
    if any(altogether):
        blocks.append(Paragraph(join_sentences(altogether), lead="Registrations."))
    if claims.others:
        blocks += [Paragraph("Without a result in this report:"), BulletList([_other(each) for each in claims.others])]
    if not claims.shown:
        return blocks
    blocks.append(NumberedTable(TABLE, claims_table(claims)))
    figure = claims_figure(claims)
    if figure.content is not None:
        blocks.append(FigureRow([figure]))
    for found in claims.shown:
        blocks += _registration(found)
    return blocks


_CLAIMS = (
    "A claim fixes comparisons and seeds, and is registered in the store before any of its runs is queued; only a hash "
    f"that was published elsewhere proves the order. {FAMILY} Verdicts are conditional on corpus, test set, budget and "
    "settings."
)


def _registration(found: EvaluatedClaims) -> list[Block]:
    """Return what the comparisons of one registration come to, and what they rest on."""
    registered = f"registered {found.registered_t[:16].replace('T', ' ')} UTC, SHA-256 beginning with {found.hash[:16]}"
    blocks: list[Block] = [
        Paragraph(f"{_describe(found)}, {registered}. {_results(found)}", lead=f"{_name(found)}."),
        BulletList([_sentence(each) for each in found.contrasts]),
        Paragraph("", lead="Scope."),
        BulletList(scope(found.contrasts)),
    ]
    missing = describe_missing(found.contrasts)
    if missing:
        blocks += [Paragraph("", lead="Missing."), BulletList(missing)]
    return [*blocks, Paragraph(describe_attempts(found.attempts), lead="Attempts.")]


def _name(found: EvaluatedClaims) -> str:
    return f"Registration {found.number}"


def _describe(found: EvaluatedClaims) -> str:
    """Return source and size of a registration."""
    source = found.source.rpartition("/")[2]
    return f"{source}: {counted(len(found.contrasts), 'comparison')}, {counted(found.planned_runs, 'run')}"


def _results(found: EvaluatedClaims) -> str:
    if found.finished_runs == found.planned_runs:
        return "All planned runs have a result."
    return f"{found.finished_runs} of {counted(found.planned_runs, 'planned run')} have a result."


def _other(found: EvaluatedClaims) -> str:
    """Return a line on a registration that the report does not show, with its verdicts."""
    verdicts = Counter(each.result.verdict.value for each in found.contrasts)
    results = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    return f"{_name(found)}, {_describe(found)}. {_results(found)} Verdicts: {results}."


def _sentence(contrast: ClaimedContrast) -> str:
    name = f"“{contrast.claim}”: " if contrast.claim else ""
    return f"{name}{state(contrast)}"


_REGISTRATION = "Reg.: registration, whose comparisons Holm's method counts together."
_BY_RANKS = f"{DASH} as a difference: ranks are compared, since diverged runs and missed targets are infinite."

SIDES_CM = 3.8
"""Width of the names of both sides of a comparison, on two lines unless they are long."""

HEADERS = ("Reg.", "First − second", "Endpoint", "n", "Difference", "95% interval", "p (Holm)", "Verdict")


def claims_table(claims: ReportedClaims) -> Table:
    """Return the table of all comparisons that were claimed."""
    numbered = [(found.number, each) for found in claims.shown for each in found.contrasts]
    contrasts = [each for _, each in numbered]
    needless = {
        "Reg.": len(claims.shown) == 1,
        "Endpoint": all(each.target_ppl is None for each in contrasts),
    }
    headers = [header for header in HEADERS if not needless.get(header)]
    rows = []
    for registration, each in numbered:
        result, digits = each.result, decimals(each.result.interval)
        endpoint = "test loss" if each.target_ppl is None else f"{each.endpoint} to {exact(each.target_ppl)}"
        bold = result.verdict in ("lower", "higher", "equivalent")
        texts = (
            str(registration),
            f"{result.first.name} − {result.second.name}",
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
        caption="Comparisons registered before the runs. Differences are of the test loss, in nats per token.",
        notes=join_sentences(
            [
                "" if needless["Reg."] else _REGISTRATION,
                _BY_RANKS if any(each.result.test == "rank permutation" for each in contrasts) else "",
            ]
        ),
        columns=[
            Column(
                header=header,
                numeric=header in ("n", "Difference", "p (Holm)"),
                width_cm=SIDES_CM if header == "First − second" else None,
            )
            for header in headers
        ],
        rows=rows,
        data=claims_frame(numbered),
    )


def claims_frame(contrasts: Sequence[tuple[int, ClaimedContrast]]) -> pd.DataFrame:
    """Return one row for each comparison, given with the number of its registration; unknown values are NaN."""
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
                "registration": registration,
            }
            for registration, each in contrasts
        ]
    )


def claims_figure(claims: ReportedClaims) -> FigureSpec:
    """Return the figure of claimed differences of the test loss: every seed, and the difference with its interval."""
    contrasts = [each for found in claims.shown for each in found.contrasts if each.target_ppl is None]
    intervals = (
        "95% interval (Welch; of pairs Student's t)" if any(each.paired for each in contrasts) else "95% Welch interval"
    )
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
        caption=join_sentences(
            [
                f"Test loss of every seed, and difference of the means (first − second) with its {intervals}.",
                _shading(contrasts),
            ]
        ),
        content=DifferencePlot(rows=rows) if rows else None,
        omitted="" if rows else "no claim is about the test loss",
        full_width=True,
    )


def _shading(contrasts: Sequence[ClaimedContrast]) -> str:
    """Return what is shaded in the figure; empty if no margin was fixed. The figure has the margin of each row."""
    deltas = {each.delta for each in contrasts if each.delta is not None}
    if not deltas:
        return ""
    value = f"= {exact(*deltas)}" if len(deltas) == 1 else "in"
    return f"Shaded: up to ±δ, fixed beforehand as too small to matter; δ {value} {contrasts[0].unit}."


def _values(runs: Sequence[Replicate]) -> list[float]:
    return [each.value for each in runs if each.value is not None]
