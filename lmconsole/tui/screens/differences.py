"""Settings, environment and results of several runs, where they differ."""

from collections.abc import Callable, Sequence

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN, perplexity, seconds
from lmconsole.tui.screens.dialogs import Page
from lmconsole.tui.snapshot import RunView

MOST_RUNS = 4
"""Runs that have a column."""


def settings_of(view: RunView) -> dict[str, str]:
    """Return everything that determines the results of a run, by name, as text."""
    info = view.info
    found = {
        "preset": info.preset,
        "origin": info.origin,
        "seed": str(info.seed),
        "corpus data": f"{info.corpus.name}, {info.corpus.tokenizer}, sha256 {info.corpus.sha256[:12]}",
        "max tokens": _text(info.corpus.max_tokens),
        "embedding tables": info.embeddings.sha256[:12] if info.embeddings else UNKNOWN,
        "threads": _text(info.threads),
    }
    return found | {name: _text(value) for name, value in msgspec.structs.asdict(info.settings).items()}


def _environment(view: RunView) -> dict[str, str]:
    started = view.started
    names = ("device_name", "host", "attention")
    found = {name.replace("_", " "): _text(getattr(started, name) if started else None) for name in names}
    found["code"] = _text(started.code_sha256[:12] if started and started.code_sha256 else None)
    versions = started.versions if started else {}
    return found | {f"version of {name}": _text(versions.get(name)) for name in ("lmconsole", "python", "torch")}


def _results(view: RunView) -> dict[str, str]:
    best = view.best
    return {
        "status": view.status.value,
        "best valid ppl": perplexity(best.valid_ppl if best else None),
        "in epoch": _text(best.epoch if best else None),
        "test ppl": perplexity(view.finished.test_ppl_best if view.finished else None),
        "training time": seconds(view.elapsed_train_s),
    }


PARTS: tuple[tuple[str, Callable[[RunView], dict[str, str]]], ...] = (
    ("Settings", settings_of),
    ("Environment", _environment),
    ("Results", _results),
)


def differences(views: Sequence[RunView]) -> tuple[list[tuple[str, list[tuple[str, ...]]]], int]:
    """Return the parts with the lines in which the runs differ, each a name and a value per run, and how many lines of
    settings are equal."""
    found, equal = [], 0
    for title, values in PARTS:
        of_runs = [values(view) for view in views]
        lines = [(name, *(each[name] for each in of_runs)) for name in of_runs[0]]
        different = [line for line in lines if len(set(line[1:])) > 1]
        equal += len(lines) - len(different) if values is settings_of else 0
        found.append((title, different))
    return found, equal


def differences_page(views: Sequence[RunView]) -> Page:
    """Return the page with the differences between the first ``MOST_RUNS`` of ``views``."""
    shown = views[:MOST_RUNS]
    parts, equal = differences(shown)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("", style="bold", no_wrap=True)
    for view in shown:
        label = f"{view.info.experiment.id} {view.info.experiment.label} {view.info.short_seed}"
        table.add_column(Text(escape_control_characters(label)), overflow="fold")
    for title, lines in parts:
        table.add_row(Text(title, style="bold underline"), *[""] * len(shown))
        if not lines:
            table.add_row(Text("no difference", style="dim"), *[""] * len(shown))
        for name, *values in lines:
            table.add_row(Text(name), *(Text(escape_control_characters(value)) for value in values))
    more = f" {len(views) - len(shown)} more runs are selected." if len(views) > len(shown) else ""
    body = Table.grid()
    body.add_row(table)
    body.add_row(Text(f"\n{equal} settings are equal. {UNKNOWN}: does not apply, or unknown.{more}", style="dim"))
    return Page("Differences", body)


def _text(value: object) -> str:
    return UNKNOWN if value is None else f"{value:g}" if isinstance(value, float) else str(value)
