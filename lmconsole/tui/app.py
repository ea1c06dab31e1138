"""The console itself: one screen, its keys, and what they ask for. It looks at the store and never owns a run."""

import asyncio
import contextlib
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from rich.style import Style
from textual import work
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.theme import Theme
from textual.widgets import Footer, Input

from lmconsole import formatting
from lmconsole.engine.submit import resume_runs, stop_runs
from lmconsole.errors import LmconsoleError, printable
from lmconsole.report.reference import published
from lmconsole.runs.events import number
from lmconsole.runs.state import Status
from lmconsole.runs.store import Store
from lmconsole.runs.trash import discard, restore
from lmconsole.tui import actions
from lmconsole.tui.curves import Curves
from lmconsole.tui.details import Details
from lmconsole.tui.feed import Feed, Picture, RunView
from lmconsole.tui.gauges import Gauges
from lmconsole.tui.glyphs import ASCII, UNICODE, PlainCharacters, locale_is_utf8
from lmconsole.tui.grid import Grid, text_cells
from lmconsole.tui.options import ConsoleOptions
from lmconsole.tui.plot import Series
from lmconsole.tui.rows import COLUMNS, Row, build_rows, group_of, matches
from lmconsole.tui.screens import Question, RunForm, compare_page, exports_page, help_page
from lmconsole.tui.settings import Remembered, recall, remember
from lmconsole.tui.table import ExperimentTable

TICK_S = 0.5
SLOW_TICK_S = 2.0
SLOW_WAIT_SHARE = 0.4
"""A line that keeps us waiting for this share of the time is a slow one."""

THEMES = (
    Theme(
        name="lmconsole-dark",
        primary="#4aa3df",
        secondary="#1fbf92",
        accent="#e69f00",
        warning="#e69f00",
        error="#f0763a",
        success="#1fbf92",
        foreground="#d8dee4",
        background="#11151a",
        surface="#11151a",
        panel="#1d242c",
        boost="#1a2027",
        dark=True,
    ),
    Theme(
        name="lmconsole-light",
        primary="#0072b2",
        secondary="#007d5a",
        accent="#9a6700",
        warning="#9a6700",
        error="#b84a00",
        success="#007d5a",
        foreground="#1c2126",
        background="#fbfbf9",
        surface="#fbfbf9",
        panel="#e6e8ea",
        boost="#eef0f1",
        dark=False,
    ),
)


class Headline(Grid):
    """One line: what this is, where the store lies, and how many runs are under way."""


class Console(App[str]):
    """Opens on a store. Its result is a sentence for the person when it closes."""

    TITLE = "lmconsole"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-narrow"), (70, "-normal")]
    VERTICAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-tiny"), (18, "-short"), (30, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "run", "Run", tooltip="Run: train what is selected, or the highlighted experiment"),
        Binding("a", "all", "All", tooltip="Select: all, or none"),
        Binding("s", "stop", "Stop", tooltip="Run: stop; it saves a checkpoint and can be resumed"),
        Binding("enter", "details", "Details", tooltip="Look: settings, events, worker log, errors"),
        Binding("c", "compare", "Compare", tooltip="Look: best perplexities side by side"),
        Binding("x", "turn('x')", "X axis", tooltip="Curves: over epochs, training time or tokens"),
        Binding("y", "turn('log')", "Log", show=False, tooltip="Curves: logarithmic or linear perplexity"),
        Binding("v", "turn('shown')", "Curves", show=False, tooltip="Curves: train, validation or both"),
        Binding("g", "turn('smoothing')", "Smooth", show=False, tooltip="Curves: smooth the train curve"),
        Binding("z", "zoom", "Zoom", show=False, tooltip="Curves: on the whole screen"),
        Binding("left_square_bracket", "cursor(-1)", "[", show=False, tooltip="Curves: read values further left"),
        Binding("right_square_bracket", "cursor(1)", "]", show=False, tooltip="Curves: read values further right"),
        Binding("p", "published", "Published", show=False, tooltip="Curves: published results as dotted lines"),
        Binding("slash", "filter", "Filter", tooltip="Select: show only rows with these words"),
        Binding("o", "sort(1)", "Sort", show=False, tooltip="Select: sort by the next column"),
        Binding("O", "sort(0)", "Reverse", show=False, tooltip="Select: reverse the order"),
        Binding("R", "rerun", "Run with…", show=False, tooltip="Run: with other settings"),
        Binding("u", "resume", "Resume", show=False, tooltip="Run: resume as it was, from its checkpoint"),
        Binding("d,delete", "delete", "Delete", show=False, tooltip="Run: move into the store's trash"),
        Binding("U", "undelete", "Undelete", show=False, tooltip="Run: bring back what was deleted last"),
        Binding("e", "export", "Export", tooltip="Write up: tables into the exports folder"),
        Binding(
            "t", "copy('latex')", "Copy LaTeX", show=False, tooltip="Write up: results table as LaTeX to clipboard"
        ),
        Binding("m", "copy('markdown')", "Copy markdown", show=False, tooltip="Write up: the same as markdown"),
        Binding("question_mark", "help", "Help", tooltip="Help: all keys"),
        Binding("escape", "back", "Back", show=False, tooltip="Help: close, or clear cursor, filter and selection"),
        Binding("q", "leave", "Quit", tooltip="Help: leave; runs go on"),
        Binding("ctrl+q,ctrl+c", "leave", "Quit", show=False, priority=True),
    ]

    def __init__(self, options: ConsoleOptions, *, feed: Feed | None = None, **more: Any) -> None:
        self._remembered = recall()
        super().__init__(**more)
        for theme in THEMES:
            self.register_theme(theme)
        self.options = options
        self.glyphs = UNICODE if locale_is_utf8() else ASCII
        if not self.glyphs.unicode:
            self._filters.append(PlainCharacters())
        self.feed = feed or Feed(options.store, on_first=self._first_picture)
        self.slow = options.slow
        self.checked: set[str] = set()
        self.unfolded: set[str] = set()
        self.published = True
        self._words = ""
        self._sort = (1, False)
        self._drawn: Picture | None = None
        self._active_before: frozenset[str] = frozenset()
        self._said_before = 0
        self._trashed: list[list[str]] = []
        self._telling = {"preset": options.preset}
        self._form_words: dict[str, str] = {"preset": options.preset, "device": "auto", "jobs": "1"}
        self._slow_ticks = 0

    # ---- the screen

    def compose(self) -> ComposeResult:
        """Headline, table, curves, gauges, keys."""
        yield Headline("headline")
        yield ExperimentTable()
        yield Input(placeholder="words to look for; enter keeps, escape clears", id="filter", compact=True)
        yield Curves(self.glyphs)
        yield Gauges(self.glyphs)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Paint the experiments at once; the store follows from its thread."""
        wanted = self.options.theme or self._remembered.theme
        self.theme = wanted if wanted in self.available_themes else THEMES[0].name
        self.theme_changed_signal.subscribe(self, lambda _: self._restyle())
        self.table.focus()
        self._catch_signals()
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        self.feed.start()
        self.draw(force=True)
        self._timer = self.set_interval(SLOW_TICK_S if self.slow else TICK_S, self._tick)
        if self.options.submit is not None:
            self._start(self.options.submit)

    def _first_picture(self) -> None:
        with contextlib.suppress(RuntimeError):  # the app may be closing
            self.call_from_thread(self.draw)

    def _catch_signals(self) -> None:
        """A hang-up or a request to end closes the app as `q` does, so that the terminal is left in order."""
        if sys.platform == "win32":
            return
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            for each in (signal.SIGHUP, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(each, self.exit, None)

    def _tick(self) -> None:
        driver: Any = self._driver
        output = getattr(driver, "output", None)
        if output is not None:
            if driver.hung_up:
                self.exit(None)
                return
            self._judge_line(output)
            if output.waiting_s > 0.0:
                return  # what was drawn before is still on its way: draw the newest state when it has arrived
        self.feed.check()
        self.draw()

    def _judge_line(self, output: Any) -> None:
        """Turn slow mode on when writing has kept us waiting in several ticks in a row."""
        interval = SLOW_TICK_S if self.slow else TICK_S
        waited, output.waited_s = max(output.waited_s, output.waiting_s), 0.0
        self._slow_ticks = self._slow_ticks + 1 if waited > SLOW_WAIT_SHARE * interval else 0
        if self._slow_ticks >= 4 and not self.slow:
            self.set_slow(True)
            self.notify("The line is slow: drawing less often and in fewer colours.", timeout=6)

    def set_slow(self, slow: bool) -> None:
        """Draw seldom, or as usual."""
        self.slow = slow
        self._timer.stop()
        self._timer = self.set_interval(SLOW_TICK_S if slow else TICK_S, self._tick)
        self.animation_level = "none" if slow else "basic"

    @property
    def themes_there(self) -> set[str]:
        """Names that ``--theme`` takes."""
        return set(self.available_themes)

    @property
    def table(self) -> ExperimentTable:
        """The experiments."""
        return self._main.query_one(ExperimentTable)

    @property
    def curves(self) -> Curves:
        """The curves."""
        return self._main.query_one(Curves)

    @property
    def _main(self) -> Screen[Any]:
        return self.screen_stack[0]

    def draw(self, *, force: bool = False) -> None:
        """Show the feed's newest picture."""
        picture = self.feed.picture
        if not self._main.is_attached or (picture is self._drawn and not force):
            return
        self._announce(picture)
        old, self._drawn = self._drawn, picture
        self.table.fit(self.size.width)
        self._draw_table(picture)
        self._draw_curves(picture)
        self._draw_gauges(picture, fresh=old is None or (old.gpus, old.host) != (picture.gpus, picture.host))
        self._draw_headline(picture)

    def on_resize(self) -> None:
        """Another size: other columns."""
        self.call_after_refresh(self.draw, force=True)

    def _draw_table(self, picture: Picture) -> None:
        rows = build_rows(
            self.options.plan.experiments,
            picture.runs.values(),
            checked=frozenset(self.checked),
            unfolded=frozenset(self.unfolded),
            wide=self.table.wide,
            glyphs=self.glyphs,
            slow={name: why for name, why in picture.problems.items() if name not in picture.runs},
        )
        column, down = self._sort
        rows = [row for row in rows if matches(row, self._words)]
        families: dict[int, list[Row]] = {}
        for row in rows:
            families.setdefault(row.experiment.id, []).append(row)
        ordered = sorted(families.values(), key=lambda family: _sort_key(family[0], column, down), reverse=down)
        self.table.show([row for family in ordered for row in family], self._sort)

    def _draw_curves(self, picture: Picture) -> None:
        series = [self._series(view, slot) for slot, view in enumerate(self._views_to_draw(picture))]
        hint = "Nothing selected has been trained yet: r runs it."
        if not picture.runs:
            hint = "No runs yet. Press a to select all experiments, then r to train them."
        elif not self.table.rows_shown:
            hint = "No row has these words. Escape clears the filter."
        elif series:
            hint = "Waiting for the first measurements."
        self.curves.show(series, picture.error or hint)

    def _views_to_draw(self, picture: Picture) -> list[RunView]:
        """The runs of what is selected, or of the highlighted row."""
        by_experiment: dict[int, list[RunView]] = {}
        for view in picture.runs.values():
            by_experiment.setdefault(view.info.experiment.id, []).append(view)
        keys = sorted(self.checked, key=_natural) or ([self.table.row.key] if self.table.row else [])
        chosen: dict[str, RunView] = {}
        for key in keys:
            if key in picture.runs:
                chosen[key] = picture.runs[key]
            elif key.startswith("e") and key[1:].isdigit():
                chosen |= {view.run: view for view in group_of(by_experiment.get(int(key[1:]), []))}
        return list(chosen.values())

    def _series(self, view: RunView, slot: int) -> Series:
        info = view.info
        siblings = Counter(each.info.experiment.id for each in self.feed.picture.runs.values())
        seed = f" s{info.seed}" if siblings[info.experiment.id] > 1 else ""
        left = view.seconds_left if view.status.active else 0.0
        expected = None if view.elapsed_train_s is None else view.elapsed_train_s + (left or 0.0)
        return Series(
            run=view.run,
            label=printable(f"{info.experiment.id} {info.experiment.label}{seed}"),
            slot=slot,
            train=view.curve,
            epochs=view.epochs,
            planned_epochs=info.settings.epochs,
            tokens_per_epoch=info.corpus.tokens["train"],
            expected_s=expected,
            published_ppl=self._published_for(view),
        )

    def _published_for(self, view: RunView) -> float | None:
        """The published validation perplexity of this experiment, where the protocol is the published one."""
        if not self.published or view.info.preset != "paper" or view.info.experiment.overrides:
            return None
        result = published().get(view.info.experiment.id)
        return None if result is None else result.valid_ppl_per_target

    def _draw_gauges(self, picture: Picture, *, fresh: bool) -> None:
        ours: dict[str | None, float] = {}
        for view in picture.runs.values():
            sample, started = view.telemetry, view.started
            if view.status is Status.RUNNING and sample is not None and started is not None:
                uuid = started.device_uuid
                key = None if uuid is None else uuid.lower().removeprefix("gpu-").removeprefix("mig-")
                used = sample.rss_mib if key is None else sample.process_used_mib or sample.torch_reserved_mib
                if used is not None:
                    ours[key] = ours.get(key, 0.0) + used
        gauges = self._main.query_one(Gauges)
        gauges.show(picture.gpus, picture.host, picture.gpu_reason, ours, fresh=fresh)

    def _draw_headline(self, picture: Picture) -> None:
        counts = Counter(view.status for view in picture.runs.values())
        words = [f"{counts[status]} {status.value}" for status in Status if counts[status]]
        bold, dim = Style(bold=True), Style(dim=True)
        headline = self._main.query_one(Headline)
        width = headline.size.width
        right = ", ".join(words) or "no runs"
        if picture.problems:
            right = f"{len(picture.problems)} unreadable, {right}"
        if picture.error:
            right = "the store cannot be read"
        if self.checked:
            right = f"{len(self.checked)} selected, {right}"
        store = printable(_short_path(self.options.store.absolute(), width - len(right) - 34))
        cells = text_cells("lmconsole", bold) + text_cells(f"  {store}", dim)
        cells += text_cells(f"  preset {printable(self._telling['preset'])}", dim) if width >= 70 else []
        room = width - len(right)
        cells = cells[: max(room - 1, 0)]
        headline.put([cells + text_cells(" " * (room - len(cells)) + right)])

    def _announce(self, picture: Picture) -> None:
        """Tell when the queue has drained, and where the runner has put the exports."""
        active = frozenset(view.run for view in picture.runs.values() if view.status.active)
        for line in picture.said[self._said_before :]:
            self.notify(printable(line[0].upper() + line[1:]), title="Exports", timeout=20, markup=False)
        self._said_before = len(picture.said)
        if self._active_before and not active:
            over = [picture.runs[name] for name in self._active_before if name in picture.runs]
            failed = sum(view.status in (Status.FAILED, Status.LOST) for view in over)
            words = f"{failed} failed: enter on its row says why." if failed else "Nothing is left in the queue."
            self.notify(words, title="All runs are over", severity="warning" if failed else "information", timeout=20)
            self.bell()
        self._active_before = active

    def _restyle(self) -> None:
        self.table.restyle()
        self.draw(force=True)
        self.curves.redraw()
        if self.theme != self._remembered.theme and self.options.theme is None:
            self._remembered = Remembered(theme=self.theme)
            problem = remember(self._remembered)
            if problem:
                self.notify(f"The theme is not remembered: {problem}", severity="warning", markup=False)

    # ---- selecting

    def on_experiment_table_checked(self, message: ExperimentTable.Checked) -> None:
        """Select or unselect one row."""
        self.checked ^= {message.key}
        self.draw(force=True)

    def on_experiment_table_moved(self) -> None:
        """Another row is highlighted: other curves, unless some are selected."""
        if not self.checked and self._drawn is not None:
            self._draw_curves(self._drawn)
            self.curves.redraw()

    def on_experiment_table_opened(self) -> None:
        """Enter, or a double click."""
        self.action_details()

    def on_experiment_table_folded(self, message: ExperimentTable.Folded) -> None:
        """Show or hide an experiment's runs."""
        key = f"e{message.row.experiment.id}"
        if message.unfold:
            self.unfolded.add(key)
        else:
            self.unfolded.discard(key)
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
        self.notify(f"Sorted by {COLUMNS[self._sort[0]]}{', downwards' if self._sort[1] else ''}", timeout=2)

    def action_all(self) -> None:
        """Select every experiment that is shown, or none."""
        keys = {row.key for row in self.table.rows_shown if not row.child}
        self.checked = set() if keys <= self.checked else self.checked | keys
        self.draw(force=True)

    def action_filter(self) -> None:
        """Open the line for words to look for."""
        line = self._main.query_one("#filter", Input)
        line.add_class("shown")
        line.focus()

    def on_input_changed(self, message: Input.Changed) -> None:
        """Filter as one types."""
        if message.input.id == "filter":
            self._words = message.value
            self.draw(force=True)

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Keep the filter and go back to the table."""
        if message.input.id == "filter":
            message.input.set_class(bool(self._words), "shown")
            self.table.focus()

    async def action_back(self) -> None:
        """Undo the nearest of: filter, cursor, zoom, selection."""
        line = self._main.query_one("#filter", Input)
        if line.has_class("shown"):
            line.value = ""
            line.remove_class("shown")
            self.table.focus()
        elif self.curves.drop_cursor():
            pass
        elif self._main.has_class("zoomed"):
            self.action_zoom()
        elif self.checked:
            self.checked.clear()
            self.draw(force=True)

    def _targets(self) -> list[Row]:
        """The selected rows, or the highlighted one."""
        chosen = [row for row in self.table.rows_shown if row.key in self.checked]
        hidden = self.checked - {row.key for row in chosen}
        if hidden:  # selected rows that the filter hides count as well
            rows = build_rows(
                self.options.plan.experiments,
                self.feed.picture.runs.values(),
                checked=frozenset(self.checked),
                unfolded=frozenset(f"e{e}" for e in range(1)) | self.unfolded,
                wide=False,
                glyphs=self.glyphs,
                slow={},
            )
            chosen = [row for row in rows if row.key in self.checked]
        return chosen or ([self.table.row] if self.table.row else [])

    def _target_runs(self) -> list[RunView]:
        """The runs of the targets: of an experiment its newest group's."""
        by_experiment: dict[int, list[RunView]] = {}
        for view in self.feed.picture.runs.values():
            by_experiment.setdefault(view.info.experiment.id, []).append(view)
        chosen: dict[str, RunView] = {}
        for row in self._targets():
            views = [row.run] if row.child and row.run else group_of(by_experiment.get(row.experiment.id, []))
            chosen |= {view.run: view for view in views}
        return list(chosen.values())

    # ---- curves

    def action_turn(self, what: str) -> None:
        """Another way to draw."""
        self.curves.turn(what)

    def action_cursor(self, columns: int) -> None:
        """Move the cursor that reads values off."""
        self.curves.action_move(columns)

    def action_zoom(self) -> None:
        """Curves on the whole screen, or beside the table."""
        self._main.toggle_class("zoomed")
        (self.curves if self._main.has_class("zoomed") else self.table).focus()
        self.call_after_refresh(self.draw, force=True)

    def action_published(self) -> None:
        """Published results on or off."""
        self.published = not self.published
        self.draw(force=True)
        self.curves.redraw()
        drawn = any(series.published_ppl for series in self.curves.series)
        words = "shown" if self.published else "hidden"
        note = "" if drawn or not self.published else " (they belong to the paper preset)"
        self.notify(f"Published results are {words}{note}.", timeout=3)

    # ---- what is asked for

    def action_run(self) -> None:
        """Train the targets with the preset the console was opened with."""
        ids = list(dict.fromkeys(row.experiment.id for row in self._targets()))
        if not ids:
            return
        try:
            options = actions.parse(self.options, ids, {"preset": self.options.preset})
        except LmconsoleError as error:
            self._complain(error)
            return
        self._start(options)

    def action_rerun(self) -> None:
        """Train the targets with other settings."""
        ids = list(dict.fromkeys(row.experiment.id for row in self._targets()))
        if not ids:
            return

        def accepted(words: dict[str, str] | None) -> None:
            if words is not None:
                self._form_words = words
                self._start(actions.parse(self.options, ids, words))

        names = ", ".join(map(str, sorted(ids)))
        title = f"Run experiment{'s' if len(ids) > 1 else ''} {names} with"
        self.push_screen(RunForm(title, self._form_words, lambda w: actions.parse(self.options, ids, w)), accepted)

    @work(thread=True, group="ask")
    def _start(self, options: Any) -> None:
        self.call_from_thread(self.notify, "Looking at data and devices …", timeout=3)
        try:
            words, warnings = actions.start(options)
        except LmconsoleError as error:
            self.call_from_thread(self._complain, error)
            return
        self.feed.look_now()
        self._telling["preset"] = words.removeprefix("Preset ").partition(" ")[0]
        self.call_from_thread(self.notify, printable(words), timeout=8, markup=False)
        for warning in warnings:
            self.call_from_thread(self.notify, printable(warning), severity="warning", timeout=12, markup=False)

    def action_stop(self) -> None:
        """Stop the targets' runs, after a question: work since the last checkpoint is kept, the place in the queue is
        not."""
        active = [view for view in self._target_runs() if view.status.active and not view.stopping]
        if not active:
            self.notify("None of these is queued or running.", timeout=3)
            return
        lines = [
            f"{view.info.experiment.id} {view.info.experiment.label} ({view.status.value})" for view in active[:12]
        ]
        lines += [f"and {len(active) - 12} more"] if len(active) > 12 else []
        lines.append("Each saves a checkpoint first and can be resumed with u.")

        def answered(yes: bool | None) -> None:
            if yes:
                self._do("Asked to stop", lambda store: stop_runs(store, _find(store, [v.run for v in active])))

        self.push_screen(Question(f"Stop {_runs(len(active))}?", [printable(line) for line in lines], "Stop"), answered)

    def action_resume(self) -> None:
        """Queue the targets' runs again as they are."""
        names = [v.run for v in self._target_runs() if not v.status.active and v.status is not Status.FINISHED]
        if not names:
            self.notify("None of these was stopped, lost or failed.", timeout=3)
            return
        self._do("Queued to resume", lambda store: resume_runs(store, names))

    def action_delete(self) -> None:
        """Move the targets' runs into the trash, after a question."""
        views = self._target_runs()
        if not views:
            self.notify("There is no run to delete.", timeout=3)
            return
        lines = [view.run for view in views[:12]] + ([f"and {len(views) - 12} more"] if len(views) > 12 else [])
        lines.append("They go into the store's .trash folder; U brings them back.")

        def answered(yes: bool | None) -> None:
            if yes:
                self._do("Deleted (U brings back)", lambda store: self._discard(store, [view.run for view in views]))

        self.push_screen(
            Question(f"Delete {_runs(len(views))}?", [printable(line) for line in lines], "Delete"), answered
        )

    def _discard(self, store: Store, names: list[str]) -> list[str]:
        done = discard(store, names)
        if done:
            self._trashed.append(done)
        self.checked -= set(done)
        return done

    def action_undelete(self) -> None:
        """Bring back what was deleted last."""
        if not self._trashed:
            self.notify("Nothing was deleted since the console opened.", timeout=3)
            return
        names = self._trashed.pop()
        self._do("Brought back", lambda store: restore(store, names))

    @work(thread=True, group="ask")
    def _do(self, what: str, call: Callable[[Store], list[str]]) -> None:
        """Do something to the store, in a thread, and say how many runs it concerned."""
        try:
            done = call(Store(self.options.store))
        except LmconsoleError as error:
            self.call_from_thread(self._complain, error)
            return
        self.feed.look_now()
        self.call_from_thread(self.notify, f"{what}: {_runs(len(done))}.", timeout=4)

    def action_details(self) -> None:
        """Everything about the highlighted row's run."""
        row = self.table.row
        if row is None:
            return
        if row.run is None:
            self.notify("This experiment has not been trained yet: r runs it.", timeout=3)
            return
        name = row.run.run
        self.push_screen(Details(lambda: self.feed.picture.runs.get(name), row.run))

    def action_compare(self) -> None:
        """Best perplexities of the targets, or of everything trained if only one is chosen."""
        views = [view for view in self._target_runs() if view.best]
        if len(views) < 2:
            every = [group_of(list(runs)) for runs in self._by_experiment().values()]
            views = [view for group in every for view in group if view.best]
        if len(views) < 2:
            self.notify("It takes two runs with a finished epoch to compare.", timeout=3)
            return
        self.push_screen(compare_page(*_comparison(views)))

    def _by_experiment(self) -> dict[int, list[RunView]]:
        found: dict[int, list[RunView]] = {}
        for view in self.feed.picture.runs.values():
            found.setdefault(view.info.experiment.id, []).append(view)
        return found

    @work(thread=True, group="export", exclusive=True)
    def action_export(self) -> None:
        """Write the exports, and show where they are."""
        self.call_from_thread(self.notify, "Writing the exports …", timeout=3)
        try:
            paths, table = actions.export(self.options)
            page = exports_page(paths, table, None)
        except LmconsoleError as error:
            page = exports_page([], "", str(error))
        self.call_from_thread(self.push_screen, page)

    @work(thread=True, group="export", exclusive=True)
    def action_copy(self, form: str) -> None:
        """The results table to the person's own clipboard, through the terminal."""
        try:
            table = actions.table(self.options, form)
        except LmconsoleError as error:
            self.call_from_thread(self._complain, error)
            return
        self.call_from_thread(self.copy_to_clipboard, table)
        name = {"latex": "LaTeX"}.get(form, form)
        lines = len(table.splitlines())
        self.call_from_thread(
            self.notify, f"The results table as {name}: {lines} lines, sent to the clipboard.", timeout=4
        )

    def _complain(self, error: LmconsoleError) -> None:
        self.notify(printable(str(error)), severity="error", timeout=15, markup=False)

    # ---- finding one's way

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(help_page(_keys(self.BINDINGS + ExperimentTable.BINDINGS)))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Every action, for the command palette."""
        yield from (c for c in super().get_system_commands(screen) if c.title not in ("Quit", "Keys", "Maximize"))
        for binding in self.BINDINGS:
            if isinstance(binding, Binding) and binding.tooltip:
                callback = lambda action=binding.action: self.call_later(self.run_action, action)  # noqa: E731
                yield SystemCommand(binding.description, f"{binding.tooltip} ({_key(binding.key)})", callback)
        slow = "Draw as usual" if self.slow else "Slow line"
        yield SystemCommand(
            slow, "Help: draw seldom and plainly, for a slow line", lambda: self.set_slow(not self.slow)
        )

    def action_leave(self) -> None:
        """Leave; runs go on."""
        active = [view for view in self.feed.picture.runs.values() if view.status.active]
        if active:
            self.exit(f"{_runs(len(active))} go on without the console; `lmconsole` shows them again.")
        else:
            self.exit(None)

    def on_unmount(self) -> None:
        """The feed ends with the app."""
        self.feed.close()


def _find(store: Store, names: Iterable[str]) -> list[Any]:
    wanted = set(names)
    return [run for run in store.runs() if run.run in wanted]


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _sort_key(row: Row, column: int, down: bool) -> tuple[float, str, float]:
    """Unknown values come last, whichever way the order goes; equal ones by the experiment's number."""
    value, text = row.order[column]
    if math.isinf(value) and value > 0 and down:
        value = -math.inf
    return value, text, -row.experiment.id if down else row.experiment.id


def _natural(key: str) -> tuple[int, str]:
    number = key[1:] if key.startswith("e") else key.partition("-")[0]
    return (int(number) if number.isdigit() else 0, key)


def _short_path(path: Path, width: int) -> str:
    """A path with ``~`` for home, and its end alone if it is too long."""
    with contextlib.suppress(ValueError, RuntimeError):
        path = Path("~") / path.relative_to(Path.home())
    text = str(path)
    return text if len(text) <= width else f"…{text[-max(width - 1, 8) :]}"


def _comparison(views: list[RunView]) -> tuple[list[tuple[str, ...]], str]:
    """Lines of the comparison, the best first, and what the differences mean."""
    ranked = sorted(views, key=lambda view: number(view.best, "valid_ppl") if view.best else math.inf)  # type: ignore[arg-type,return-value]
    lines: list[tuple[str, ...]] = [("Run", "Valid", "Epoch", "To best", "Train", "Test", "Time")]
    first = number(ranked[0].best, "valid_ppl") if ranked[0].best else None
    several = len({(view.info.experiment.id) for view in views}) < len(views)
    for view in ranked:
        best = view.best
        assert best is not None
        valid = number(best, "valid_ppl")
        difference = ""
        if view is not ranked[0] and valid is not None and first:
            difference = f"+{valid - first:,.1f} (+{100 * (valid / first - 1):,.1f} %)"
        test = number(view.finished, "test_ppl_best") if view.finished else None
        label = f"{view.info.experiment.id:>2} {view.info.experiment.label}" + (
            f" s{view.info.seed}" if several else ""
        )
        cells: tuple[str, ...] = (formatting.perplexity(valid), str(best.epoch), difference)
        cells += (formatting.perplexity(number(best, "train_ppl")), formatting.perplexity(test))
        lines.append((printable(label), *cells, formatting.seconds(view.elapsed_train_s)))
    corpora = {(view.info.corpus.sha256, view.info.corpus.max_tokens) for view in views}
    note = "Perplexities at the epoch that validated best. Time: training alone."
    if len(corpora) > 1:
        note += "\nThese runs have different corpora: their perplexities cannot be compared."
    elif len({view.info.preset for view in views}) > 1:
        note += "\nThese runs have different presets."
    if len({view.started.device_name for view in views if view.started}) > 1:
        note += "\nThey ran on different devices: times cannot be compared."
    return lines, note


_KEY_NAMES = {
    "slash": "/",
    "question_mark": "?",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "right": "→",
    "left": "←",
}


def _key(keys: str) -> str:
    return ", ".join(_KEY_NAMES.get(key, key) for key in keys.split(","))


def _keys(bindings: Iterable[Any]) -> list[tuple[str, str, str]]:
    """(group, key, what) of every binding that has a tooltip, groups together."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for binding in bindings:
        if isinstance(binding, Binding) and binding.tooltip:
            group, _, what = binding.tooltip.rpartition(": ")
            found.setdefault(group or "Select", []).append((group or "Select", _key(binding.key), what))
    return [line for lines in found.values() for line in lines]
