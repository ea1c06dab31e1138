"""Runs side by side: best perplexities and how far they are apart."""

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import DAMAGE_MARK, perplexity, seconds
from lmconsole.runs.comparable import same_text
from lmconsole.tui.screens.dialogs import Page
from lmconsole.tui.snapshot import RunView

HEADINGS = ("Run", "Valid", "Epoch", "To best", "Train", "Test", "Time")


def comparison(views: Sequence[RunView]) -> tuple[list[tuple[str, ...]], str]:
    """Return the lines of the comparison, the best run first, and a note. Each run must have a best epoch."""
    ranked = sorted(views, key=_rank)
    several_seeds = len({view.info.experiment.id for view in views}) < len(views)
    lines: list[tuple[str, ...]] = []
    for view in ranked:
        best = view.best
        assert best is not None
        seed = f" {view.info.short_seed}" if several_seeds else ""
        mark = DAMAGE_MARK if view.damage else ""
        label = f"{view.info.experiment.id:>2} {view.info.experiment.label}{seed}{mark}"
        cells = (
            perplexity(best.valid_ppl),
            str(best.epoch),
            "" if view is ranked[0] else _difference(_valid_ppl(view), _valid_ppl(ranked[0])),
            perplexity(best.train_ppl),
            perplexity(view.finished.test_ppl_best if view.finished else None),
            seconds(view.elapsed_train_s),
        )
        lines.append((escape_control_characters(label), *cells))
    return lines, _note(views)


def comparison_page(views: Sequence[RunView]) -> Page:
    """Return the page that compares ``views``."""
    lines, note = comparison(views)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    body = Table.grid()
    body.add_row(table)
    body.add_row(Text(f"\n{note}", style="dim"))
    return Page("Comparison", body)


def _valid_ppl(view: RunView) -> float | None:
    return view.best.valid_ppl if view.best else None


def _rank(view: RunView) -> float:
    valid_ppl = _valid_ppl(view)
    return math.inf if valid_ppl is None else valid_ppl


def _note(views: Sequence[RunView]) -> str:
    note = "Perplexities at the epoch with the best validation. Time is training time alone."
    note += "\nThese are single runs: a difference between two may be due to their seeds alone."
    if not all(same_text(view.info, views[0].info) for view in views):
        note += "\nThese runs have different corpora: do not compare their perplexities."
    elif len({view.info.preset for view in views}) > 1:
        note += "\nThese runs have different presets."
    if any(_is_lower_within_an_epoch(view) for view in views):
        note += "\nLower perplexities within epochs, which the curves show, do not count here."
    if any(view.damage for view in views):
        note += f"\n{DAMAGE_MARK}: damaged, so not a complete result; the details of the run say where."
    if len({view.started.device_name for view in views if view.started}) > 1:
        note += "\nThey ran on different devices: do not compare their times."
    return note


def _is_lower_within_an_epoch(view: RunView) -> bool:
    best = _rank(view)
    return any(each.valid_ppl is not None and each.valid_ppl < best for each in view.validations)


def _difference(ppl: float | None, best_ppl: float | None) -> str:
    """Return ``+9.3 (+10 %)``, or ``+200.8 (×3.2)`` from twice the best on."""
    if ppl is None or not best_ppl:
        return ""
    ratio = ppl / best_ppl
    return f"+{perplexity(ppl - best_ppl)} ({f'+{100 * (ratio - 1):.0f} %' if ratio < 2 else f'×{ratio:.1f}'})"
