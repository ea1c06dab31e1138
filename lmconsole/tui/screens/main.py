"""The one screen: headline, experiments, curves, gauges, and the keys that choose and look.

What opens over it is imported when it is first asked for, so that the first picture comes sooner.
"""

import contextlib
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, Input

from lmconsole.errors import escape_control_characters
from lmconsole.runs.state import Status
from lmconsole.tui.feed import Picture
from lmconsole.tui.rows import COLUMNS, Row, build_rows, group_of, matches
from lmconsole.tui.selection import Chosen, by_experiment, choose, series_of, still_there
from lmconsole.tui.terminal.compositor import FrugalCompositor
from lmconsole.tui.widgets.curves import Curves
from lmconsole.tui.widgets.experiment_table import ExperimentTable
from lmconsole.tui.widgets.gauges import Gauges, Ours, bare_uuid
from lmconsole.tui.widgets.grid import Grid, text_cells

if TYPE_CHECKING:
    from lmconsole.tui.app import Console


class Headline(Grid):
    """One line: what this is, where the store lies, and how many runs are under way."""


class MainScreen(Screen[None]):
    """Shows the feed's pictures. What changes the store is the app's to do."""

    app: "Console"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "app.run", "Run", tooltip="Run: train what is selected, or else the highlighted experiment"),
        Binding("a", "all", "All", tooltip="Select: all, or none"),
        Binding("s", "app.stop", "Stop", tooltip="Run: stop; a checkpoint is saved first"),
        Binding("R", "app.rerun", "Run with…", show=False, tooltip="Run: with other settings, in a form"),
        Binding("u", "app.resume", "Resume", show=False, tooltip="Run: resume from the last checkpoint"),
        Binding("d,delete", "app.delete", "Delete", show=False, tooltip="Run: delete, into the store's trash"),
        Binding("U", "app.undelete", "Undelete", show=False, tooltip="Run: bring back what was deleted last"),
        Binding("o", "sort(1)", "Sort", show=False, tooltip="Select: sort by the next column"),
        Binding("O", "sort(0)", "Reverse", show=False, tooltip="Select: reverse the order"),
        Binding("enter", "details", "Details", show=False, tooltip="Look: settings, events, worker log, errors"),
        Binding("c", "compare", "Compare", tooltip="Look: best perplexities side by side"),
        Binding("tab", "app.focus_next", "Pane", show=False, tooltip="Look: go from the table to the curves and back"),
        Binding("x", "turn('x')", "X axis", show=False, tooltip="Curves: over epochs, training time or tokens"),
        Binding("y", "turn('log')", "Log", show=False, tooltip="Curves: logarithmic or linear perplexity"),
        Binding("v", "turn('shown')", "Curves", show=False, tooltip="Curves: train, validation or both"),
        Binding("g", "turn('smoothing')", "Smooth", show=False, tooltip="Curves: smooth the train curve"),
        Binding("z", "zoom", "Zoom", show=False, tooltip="Curves: on the whole screen"),
        Binding(
            "left_square_bracket", "cursor(-1)", "Cursor left", show=False, tooltip="Curves: read values to the left"
        ),
        Binding("right_square_bracket", "cursor(1)", "Cursor right", show=False, tooltip="Curves: and to the right"),
        Binding("p", "published", "Published", show=False, tooltip="Curves: published results as dotted lines"),
        Binding("slash", "filter", "Filter", tooltip="Select: show only rows with these words"),
        Binding("e", "app.export", "Export", tooltip="Write up: tables into the exports folder"),
        Binding(
            "t", "app.copy('latex')", "Copy LaTeX", show=False, tooltip="Write up: copy the results table as LaTeX"
        ),
        Binding("m", "app.copy('markdown')", "Copy markdown", show=False, tooltip="Write up: copy it as markdown"),
        Binding("question_mark", "help", "Help", tooltip="Console: all keys"),
        Binding("escape", "back", "Back", show=False, tooltip="Console: drop filter, cursor, zoom, then selection"),
        Binding("q", "app.leave", "Quit", tooltip="Console: leave; runs go on"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._compositor = FrugalCompositor()
        self.checked: set[str] = set()
        self.unfolded: set[str] = set()
        self.published = True
        self._words = ""
        self._sort = (1, False)
        self._drawn: Picture | None = None

    def compose(self) -> ComposeResult:
        """Headline, table, curves, gauges, keys."""
        yield Headline("headline")
        yield ExperimentTable()
        yield Input(placeholder="words to look for; enter keeps, escape clears", id="filter", compact=True)
        yield Curves(self.app.glyphs)
        yield Gauges(self.app.glyphs)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """The table has the keys, and its rows before anything is painted."""
        self.table.focus()
        self.table.fit(self.app.size.width)
        self._draw_table(self.app.feed.picture)

    @property
    def table(self) -> ExperimentTable:
        """The experiments."""
        return self.query_one(ExperimentTable)

    @property
    def curves(self) -> Curves:
        """The curves."""
        return self.query_one(Curves)

    def chosen(self) -> Chosen:
        """What actions are about."""
        return choose(self.app.feed.picture, self.app.options.plan.experiments, self.checked, self.table.row)

    # ---- drawing

    def draw(self, *, force: bool = False) -> None:
        """Show the feed's newest picture."""
        picture = self.app.feed.picture
        if picture is self._drawn and not force:
            return
        old, self._drawn = self._drawn, picture
        if picture is not old:
            self.app.announce(picture)
        if not picture.error:
            self.checked = still_there(self.checked, picture, self.app.options.plan.experiments)
        self.table.fit(self.size.width)
        self._draw_table(picture)
        self._draw_curves(picture)
        self._draw_gauges(picture, fresh=old is None or (old.gpus, old.host) != (picture.gpus, picture.host))
        self._draw_headline(picture)

    def redraw(self) -> None:
        """Everything anew, as after another theme or size."""
        self.table.restyle()
        self.draw(force=True)
        self.curves.redraw()

    def on_resize(self) -> None:
        """Another size: other columns."""
        self.call_after_refresh(self.draw, force=True)

    def _draw_table(self, picture: Picture) -> None:
        rows = build_rows(
            self.app.options.plan.experiments,
            picture.runs.values(),
            checked=frozenset(self.checked),
            unfolded=frozenset(self.unfolded),
            wide=self.table.wide,
            glyphs=self.app.glyphs,
            problems=picture.problems,
        )
        column, down = self._sort
        families: dict[int, list[Row]] = {}
        unreadable: list[Row] = []
        for row in rows:
            if matches(row, self._words):
                (families.setdefault(row.experiment.id, []) if row.experiment else unreadable).append(row)
        ordered = sorted(families.items(), key=lambda item: _sort_key(item[1][0], item[0], column, down), reverse=down)
        self.table.show([*(row for _, family in ordered for row in family), *unreadable], self._sort)

    def _draw_curves(self, picture: Picture) -> None:
        series = series_of(picture, self.chosen().runs, reference=self.published) if not picture.error else []
        hint = "Not trained yet: r runs it."
        if not picture.runs:
            hint = "No runs yet. Press a to select all experiments, then r to train them."
        elif not self.table.rows_shown:
            hint = "No row has these words. Escape clears the filter."
        elif series:
            hint = "Waiting for the first measurements."
        self.curves.show(series, picture.error or hint)

    def _draw_gauges(self, picture: Picture, *, fresh: bool) -> None:
        ours: dict[str | None, Ours] = {}
        for view in picture.runs.values():
            sample, started = view.telemetry, view.started
            if view.status is Status.RUNNING and sample is not None and started is not None:
                key = bare_uuid(started.device_uuid)
                used = sample.rss_mib if key is None else sample.process_used_mib or sample.torch_reserved_mib
                pace = view.progress.tokens_per_s if view.progress else None
                ours[key] = ours.get(key, Ours()).plus(used, pace, view.share_of_ceiling)
        self.query_one(Gauges).show(picture.gpus, picture.host, picture.gpu_reason, ours, fresh=fresh)

    def _draw_headline(self, picture: Picture) -> None:
        counts = Counter(view.status for view in picture.runs.values())
        right = ", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status]) or "no runs"
        if picture.problems:
            right = f"{len(picture.problems)} unreadable, {right}"
        if picture.error:
            right = "the store cannot be read"
        if self.checked:
            right = f"{len(self.checked)} selected, {right}"
        if self.app.slow:
            right = f"slow line, {right}"
        headline, dim = self.query_one(Headline), Style(dim=True)
        width = headline.size.width
        preset = f"  preset {escape_control_characters(self.app.preset)}" if width >= 70 else ""
        store = _short_path(self.app.options.store.absolute(), width - len(right) - len(preset) - 12)
        name = "lmconsole" if width - len(right) > len("lmconsole") else ""
        cells = text_cells(name, Style(bold=True)) + text_cells(
            f"  {escape_control_characters(store)}{preset}" if name else "", dim
        )
        if len(right) > width > 0:
            right = right[: width - 1] + "…"
        room = width - len(right)
        cells = cells[: max(room - 2, len(name))]
        headline.put([cells + text_cells(" " * (room - len(cells)) + right)])

    # ---- choosing

    def on_experiment_table_checked(self, message: ExperimentTable.Checked) -> None:
        """Select or unselect one row."""
        self.checked ^= {message.key}
        self.draw(force=True)

    def on_experiment_table_moved(self) -> None:
        """Another row is highlighted: other curves, unless some are selected."""
        if not self.checked and self._drawn is not None:
            self._draw_curves(self._drawn)

    def on_experiment_table_opened(self) -> None:
        """Enter, or a double click."""
        self.action_details()

    def on_experiment_table_folded(self, message: ExperimentTable.Folded) -> None:
        """Show or hide an experiment's runs."""
        if message.row.experiment:
            change = self.unfolded.add if message.unfold else self.unfolded.discard
            change(f"e{message.row.experiment.id}")
            self.draw(force=True)

    def on_experiment_table_sort_asked(self, message: ExperimentTable.SortAsked) -> None:
        """A click on a heading sorts by it, a second one the other way round."""
        column, down = self._sort
        self._sort = (message.column, not down if message.column == column else False)
        self.draw(force=True)

    def action_sort(self, forward: int) -> None:
        """The next column, or the other way round."""
        column, down = self._sort
        self._sort = (max((column + 1) % len(COLUMNS), 1), False) if forward else (column, not down)
        self.draw(force=True)
        self.notify(f"Sorted by {COLUMNS[self._sort[0]]}{', downwards' if self._sort[1] else ''}.", timeout=2)

    def action_all(self) -> None:
        """Select every experiment that is shown, or none."""
        keys = {row.key for row in self.table.rows_shown if not row.child}
        self.checked = set() if keys <= self.checked else self.checked | keys
        self.draw(force=True)

    def action_filter(self) -> None:
        """Open the line for words to look for."""
        line = self.query_one("#filter", Input)
        line.add_class("shown")
        line.focus()

    def on_input_changed(self, message: Input.Changed) -> None:
        """Filter as one types."""
        self._words = message.value
        self.draw(force=True)

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Keep the filter and go back to the table."""
        message.input.set_class(bool(self._words), "shown")
        self.table.focus()

    def action_back(self) -> None:
        """Undo the nearest of: filter, cursor, zoom, selection."""
        line = self.query_one("#filter", Input)
        if line.has_class("shown"):
            line.value = ""
            line.remove_class("shown")
            self.table.focus()
        elif self.curves.drop_cursor():
            pass
        elif self.has_class("zoomed"):
            self.action_zoom()
        elif self.checked:
            self.checked.clear()
            self.draw(force=True)

    # ---- looking

    def action_turn(self, what: str) -> None:
        """Another way to draw."""
        self.curves.turn(what)

    def action_cursor(self, columns: int) -> None:
        """Move the cursor that reads values off."""
        self.curves.action_move(columns)

    def action_zoom(self) -> None:
        """Curves on the whole screen, or beside the table."""
        self.toggle_class("zoomed")
        (self.curves if self.has_class("zoomed") else self.table).focus()

    def action_published(self) -> None:
        """Published results on or off."""
        self.published = not self.published
        self.draw(force=True)
        self.curves.redraw()
        there = any(series.published_ppl for series in self.curves.series)
        words = "hidden" if not self.published else "shown" if there else "shown where a run used the paper preset"
        self.notify(f"Published results are {words}.", timeout=3)

    def action_details(self) -> None:
        """Everything about the highlighted row's run."""
        row = self.table.row
        if row is None:
            return
        if row.experiment is None:
            from lmconsole.tui.screens.dialogs import Page

            why = self.app.feed.picture.problems.get(row.key, "It can be read again.")
            folder = self.app.options.store.absolute() / row.key
            self.app.push_screen(
                Page("A run that cannot be read", Text(escape_control_characters(f"{folder}\n\n{why}")))
            )
            return
        if row.run is None:
            self.notify("This experiment has not been trained yet: r runs it.", timeout=3)
            return
        from lmconsole.tui.screens.details import Details

        name, feed = row.run.run, self.app.feed
        self.app.push_screen(Details(lambda: feed.picture.runs.get(name), row.run))

    def action_compare(self) -> None:
        """Best perplexities of what is chosen, or of everything trained if that is only one run."""
        views = [view for view in self.chosen().runs if view.best]
        if len(views) < 2:
            groups = by_experiment(self.app.feed.picture).values()
            views = [view for runs in groups for view in group_of(runs) if view.best]
        if len(views) < 2:
            self.notify("It takes two runs with a finished epoch to compare.", timeout=3)
            return
        from lmconsole.tui.screens.compare import comparison
        from lmconsole.tui.screens.dialogs import compare_page

        self.app.push_screen(compare_page(*comparison(views)))

    def action_help(self) -> None:
        """All keys."""
        from lmconsole.tui.screens.dialogs import help_page

        self.app.push_screen(help_page([*ExperimentTable.BINDINGS, *self.BINDINGS, *self.app.BINDINGS]))


def _sort_key(row: Row, number: int, column: int, down: bool) -> tuple[float, str, float]:
    """Unknown values come last, whichever way the order goes; equal ones by the experiment's number."""
    value, text = row.order[column]
    if math.isinf(value) and value > 0 and down:
        value = -math.inf
    return value, text, -number if down else number


def _short_path(path: Path, width: int) -> str:
    """A path with ``~`` for home, and its end alone if it is too long."""
    with contextlib.suppress(ValueError, RuntimeError):
        path = Path("~") / path.relative_to(Path.home())
    text = str(path)
    return text if len(text) <= width else f"…{text[-max(width - 1, 8) :]}"


def actions_of(bindings: list[BindingType]) -> list[Any]:
    """The bindings that do something of their own."""
    return [binding for binding in bindings if isinstance(binding, Binding) and binding.tooltip]
