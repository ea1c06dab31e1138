"""`lmconsole claims`: what the registered claims of a store come to."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lmconsole.claims.evaluate import ClaimedContrast, EvaluatedClaims, evaluate
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
from lmconsole.commands.output import console, plain_table, print_json, print_message, warn_about
from lmconsole.engine.register import all_runs
from lmconsole.errors import ExitCode, LmconsoleError, escape_control_characters
from lmconsole.formatting import counted
from lmconsole.runs.paths import CLAIMS
from lmconsole.runs.registration import Registration, missing_numbers, read_registrations
from lmconsole.runs.store import Store


def show_claims(root: Path, *, json: bool = False) -> ExitCode:
    """Print every registered claim of the store at ``root`` with what the runs show so far.

    Return 0 if every comparison has a verdict of lower, higher or equivalent, else 3. Raises LmconsoleError if there is
    no claim, or if the store cannot be read.
    """
    store = Store(root)
    registrations = read_registrations(store.root)
    runs = all_runs(store)
    gone = describe_missing_registrations(missing_numbers(registrations, runs))
    if not registrations:
        raise LmconsoleError(
            f"{store.root}: {gone.removesuffix('.') or 'no claim is registered'}",
            hint="Write [[claim]] rows into experiments.toml, and start `lmconsole run --claims`.",
        )
    warn_about(store)
    found = [evaluate(registration, runs) for registration in registrations]
    if json:
        print_json(found)
        if gone:
            print_message(f"warning: {store.root / CLAIMS}: {gone}")
    else:
        for claims in found:
            print_claims(claims)
            console().print()
        altogether = describe_registrations(len(found), sum(len(each.contrasts) for each in found))
        console().print(Text(f"{FAMILY} {altogether}".rstrip(), style="dim"))
        if gone:
            console().print(Text(gone, style="yellow"))
    return ExitCode.OK if all(each.supported for each in found) else ExitCode.INCONCLUSIVE


def print_claims(claims: EvaluatedClaims, *, stderr: bool = False) -> None:
    """Print the claims of one file: a table, and a sentence on each comparison."""
    out = console(stderr=stderr)
    title = Text(f"Registration {claims.number}, {claims.hash[:12]}", style="bold")
    title.append(f", {claims.registered_t[:16].replace('T', ' ')} UTC from {claims.source}: ", "not bold")
    title.append(f"{claims.finished_runs:,} of {counted(claims.planned_runs, 'run')} finished", "not bold")
    out.print(title, soft_wrap=True)
    out.print()
    out.print(_table(claims.contrasts))
    out.print()
    for contrast in claims.contrasts:
        out.print(Text(f"{contrast.claim}: " if contrast.claim else "").append(state(contrast)))
        out.print()
    for line in describe_missing(claims.contrasts):
        out.print(Text(f"missing: {line}", style="yellow"))
    for line in (*scope(claims.contrasts), describe_attempts(claims.attempts)):
        out.print(Text(line, style="dim"))


def _table(contrasts: Sequence[ClaimedContrast]) -> Table:
    table = plain_table(Contrast="left", n="right", Difference="right", **{"95%_interval": "left"})  # type: ignore[arg-type]
    for header, side in (("p (Holm)", "right"), ("Verdict", "left")):
        table.add_column(header, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for column in (table.columns[0], table.columns[-1]):
        column.no_wrap, column.overflow = False, "fold"
    for each in contrasts:
        result = each.result
        digits = decimals(result.interval)
        target = f", to {exact(each.target_ppl)} in {each.unit}" if each.target_ppl is not None else ""
        table.add_row(
            Text(escape_control_characters(f"{result.first.name} − {result.second.name}{target}")),
            f"{result.first.seeds}, {result.second.seeds} of {each.planned}",
            number(result.difference, digits),
            interval(result.interval, digits),
            p_value(result.p_adjusted),
            Text(describe(result), style="bold"),
        )
    return table


def describe_registration(registration: Registration) -> str:
    """Return what was registered, and when."""
    runs = sum(len(each.runs) for each in registration.settings.values())
    comparisons = sum(len(claim.contrasts) * max(1, len(claim.targets)) for claim in registration.claims)
    what = f"{counted(comparisons, 'comparison')}, {counted(runs, 'run')}"
    return f"{registration.short_hash}, registered {registration.registered_t[:16].replace('T', ' ')} UTC: {what}"
