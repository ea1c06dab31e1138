"""Shell completion of experiments, presets and runs.

Names come from files of others, and shells insert completions as they are, so only names of plain characters are
offered. A file that cannot be read gives no completions.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lmconsole.errors import LmconsoleError

if TYPE_CHECKING:
    from lmconsole.plan.presets import Plan

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")
Completion = Callable[..., list[Any]]


def complete_experiments(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the ids of the plan's experiments, each with its name."""
    with contextlib.suppress(LmconsoleError):
        named = ((str(each.id), NOT_PLAIN.sub(" ", each.label).strip()) for each in _plan(context).experiments)
        return [(number, label) for number, label in named if number.startswith(incomplete)]
    return []


def complete_presets(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the plan's presets, and ``auto``."""
    with contextlib.suppress(LmconsoleError):
        return _plain(["auto", *_plan(context).presets], incomplete)
    return []


def complete_runs(context: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of the runs in the store, sorted. Their files are not read."""
    from lmconsole.runs.store import Store

    runs = _given(context, "runs")
    with contextlib.suppress(LmconsoleError):
        return _plain(sorted(Store(runs or Path("runs")).names()), incomplete)
    return []


def complete_values(values: Sequence[str]) -> Completion:
    """Return a completion of fixed values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


COMPLETIONS: Mapping[str, Completion] = {
    "experiments": complete_experiments,
    "presets": complete_presets,
    "runs": complete_runs,
}


def _plain(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and PLAIN.fullmatch(name)]


def _plan(context: typer.Context) -> "Plan":
    from lmconsole.plan.load import load_plan

    return load_plan(_given(context, "experiments"))


def _given(context: typer.Context, name: str) -> Path | None:
    """Return a path from the command line or the environment, in front of the command too."""
    values = list(_values(context, name))
    return next((value for value, source in values if source == "COMMANDLINE"), values[0][0] if values else None)


def _values(context: typer.Context, name: str) -> Iterator[tuple[Path | None, str]]:
    """Yield the value of an option and where it comes from, for the command and those in front of it."""
    at: typer.Context | None = context
    while at is not None:
        source = at.get_parameter_source(name)
        if source is not None:
            yield at.params.get(name), source.name
        at = at.parent  # type: ignore[assignment]  # typer made it
