"""The console as an app: it opens the screen on a feed, asks for what changes the store, and leaves without a trace."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.submit import resume_runs, stop_runs
from lmconsole.errors import LmconsoleError, escape_control_characters
from lmconsole.runs.state import Status
from lmconsole.runs.store import Store
from lmconsole.runs.trash import discard, restore
from lmconsole.tui import actions
from lmconsole.tui.feed import Feed, Picture
from lmconsole.tui.options import ConsoleOptions
from lmconsole.tui.plot.glyphs import ASCII, UNICODE, PlainCharacters, locale_is_utf8
from lmconsole.tui.screens.main import MainScreen, actions_of
from lmconsole.tui.settings import Remembered, recall, remember
from lmconsole.tui.themes import DARK, LIGHT
from lmconsole.tui.widgets.experiment_table import ExperimentTable

TICK_S = 0.5
SLOW_TICK_S = 2.0
SLOW_WAIT_SHARE = 0.4
"""A line that keeps us waiting for this share of the time is a slow one."""
SLOW_TICKS = 4
"""So many times in a row."""
MOST_NAMED = 12
"""Runs that a question lists by name."""


class Console(App[str]):
    """Opens on a store. Its result is a sentence for the person when it closes."""

    TITLE = "lmconsole"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (70, "-normal")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (18, "-short"), (30, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+p", "command_palette", "Commands", show=False, tooltip="Console: every command, by name"),
        Binding("ctrl+q,ctrl+c", "leave", "Quit", show=False, priority=True),
    ]

    def __init__(self, options: ConsoleOptions, *, feed: Feed | None = None, **more: Any) -> None:
        self._remembered = recall()
        super().__init__(**more)
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.options = options
        self.preset = options.preset
        """As resolved, once something has been queued."""
        self.glyphs = UNICODE if locale_is_utf8() else ASCII
        if not self.glyphs.unicode:
            self._filters.append(PlainCharacters())
        self.feed = feed or Feed(options.store, on_first=self._first_picture)
        self.slow = options.slow
        self.main = MainScreen()
        self._active_before: frozenset[str] = frozenset()
        self._said_before = 0
        self._trashed: list[list[str]] = []
        self._form_words = {"preset": options.preset, "device": "auto", "jobs": "auto"}
        self._slow_ticks = 0

    @property
    def themes_there(self) -> set[str]:
        """Names that ``--theme`` takes."""
        return set(self.available_themes)

    def get_default_screen(self) -> Screen[Any]:
        """The one screen."""
        return self.main

    def on_mount(self) -> None:
        """Paint the experiments at once; the store follows from its thread."""
        wanted = self.options.theme or self._remembered.theme
        self.theme = wanted if wanted in self.available_themes else DARK.name
        self._catch_signals()
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        gc.enable()
        self.main.draw(force=True)
        self.feed.start()
        self.theme_changed_signal.subscribe(self, lambda _: self._theme_changed())
        if self.options.theme:
            self._remember_theme()
        self._timer = self.set_interval(SLOW_TICK_S if self.slow else TICK_S, self._tick)
        if self.options.submit is not None:
            self._start(self.options.submit)

    def _first_picture(self) -> None:
        with contextlib.suppress(RuntimeError):  # the app may be closing
            self.call_from_thread(self._show)

    def _catch_signals(self) -> None:
        """A hang-up or a request to end closes the app as `q` does, so that the terminal is left in order."""
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not in a main thread
            for each in (signal.SIGHUP, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(each, self.exit, None)

    # ---- time

    def _tick(self) -> None:
        driver: Any = self._driver
        output = getattr(driver, "output", None)
        if output is not None:
            if driver.hung_up:
                self.exit(None)
                return
            self._judge_line(output)
            if output.waiting_s > 0.0:
                return  # what was drawn before is still on its way: the newest state follows when it has arrived
        self.feed.check()
        self._show()

    def _show(self) -> None:
        if self.is_running and self.main.is_attached:  # a timer may still fire while the app is taken apart
            self.main.draw()

    def _judge_line(self, output: Any) -> None:
        """Turn slow mode on when writing has kept us waiting in several ticks in a row."""
        interval = SLOW_TICK_S if self.slow else TICK_S
        waited, output.waited_s = max(output.waited_s, output.waiting_s), 0.0
        self._slow_ticks = self._slow_ticks + 1 if waited > SLOW_WAIT_SHARE * interval else 0
        if self._slow_ticks >= SLOW_TICKS and not self.slow:
            self.set_slow(True)
            self.notify("The line is slow: drawing less often.", timeout=6)

    def set_slow(self, slow: bool) -> None:
        """Draw seldom, or as usual."""
        self.slow = slow
        self._timer.stop()
        self._timer = self.set_interval(SLOW_TICK_S if slow else TICK_S, self._tick)
        self.main.draw(force=True)

    def announce(self, picture: Picture) -> None:
        """Tell when the queue has drained, and where the runner has put the exports. To be called with each picture
        that is shown: what was seen running is told to be over."""
        active = frozenset(view.run for view in picture.runs.values() if view.status.active)
        for line in picture.said[self._said_before :]:
            self.notify(escape_control_characters(line[0].upper() + line[1:]), timeout=20, markup=False)
        self._said_before = len(picture.said)
        if self._active_before and not active:
            over = [picture.runs[name] for name in self._active_before if name in picture.runs]
            failed = sum(view.status in (Status.FAILED, Status.LOST) for view in over)
            words = f"{failed} failed: enter on its row says why." if failed else "Nothing is left in the queue."
            self.notify(words, title="All runs are over", severity="warning" if failed else "information", timeout=20)
            self.bell()
        self._active_before = active

    def _theme_changed(self) -> None:
        self.main.redraw()
        self._remember_theme()

    def _remember_theme(self) -> None:
        if self.theme != self._remembered.theme:
            self._remembered = Remembered(theme=self.theme)
            problem = remember(self._remembered)
            if problem:
                self.notify(f"The theme is not remembered: {problem}", severity="warning", markup=False)

    # ---- what is asked for

    def action_run(self) -> None:
        """Train what is chosen with the preset the console was opened with."""
        ids = [experiment.id for experiment in self.main.chosen().experiments]
        if ids:
            try:
                self._start(actions.parse(self.options, ids, {"preset": self.options.preset}))
            except LmconsoleError as error:
                self._complain(error)

    def action_rerun(self) -> None:
        """Train what is chosen with other settings."""
        ids = [experiment.id for experiment in self.main.chosen().experiments]
        if not ids:
            return

        def accepted(words: dict[str, str] | None) -> None:
            if words is not None:
                self._form_words = words
                self._start(actions.parse(self.options, ids, words))

        from lmconsole.tui.screens.run_form import RunForm

        title = f"Run experiment{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))} with"
        self.push_screen(RunForm(title, self._form_words, partial(actions.parse, self.options, ids)), accepted)

    @work(thread=True, group="ask")
    def _start(self, options: RunRequest) -> None:
        self.call_from_thread(self.notify, "Looking at data and devices …", timeout=3)
        try:
            started = actions.start(options)
        except LmconsoleError as error:
            self.call_from_thread(self._complain, error)
            return
        self.feed.look_now()
        self.preset = started.preset
        self.call_from_thread(self.notify, escape_control_characters(started.message), timeout=8, markup=False)
        for warning in started.warnings:
            self.call_from_thread(
                self.notify, escape_control_characters(warning), severity="warning", timeout=12, markup=False
            )

    def action_stop(self) -> None:
        """Stop the chosen runs, after a question."""
        active = [view for view in self.main.chosen().runs if view.status.active and not view.stopping]
        if not active:
            self.notify("None of these is queued or running.", timeout=3)
            return
        names = {view.run for view in active}
        lines = [f"{v.info.experiment.id} {v.info.experiment.label} ({v.status.value})" for v in active]
        note = "Each saves a checkpoint first and can be resumed with u."

        def stop(store: Store) -> list[str]:
            return stop_runs(store, [run for run in store.runs() if run.run in names and run.status.active])

        self._ask(f"Stop {_runs(len(active))}?", lines, note, "Stop", partial(self._do, "Asked to stop", stop))

    def action_resume(self) -> None:
        """Queue the chosen runs again as they are."""
        views = self.main.chosen().runs
        names = [view.run for view in views if not view.status.active and view.status is not Status.FINISHED]
        if not names:
            self.notify("None of these was stopped, lost or failed.", timeout=3)
            return
        self._do("Queued to resume", lambda store: resume_runs(store, names))

    def action_delete(self) -> None:
        """Move the chosen runs into the trash, after a question."""
        names = [view.run for view in self.main.chosen().runs]
        if not names:
            self.notify("There is no run to delete.", timeout=3)
            return
        note = "They go into the store's .trash folder; U brings them back."
        delete = partial(self._do, "Deleted, U brings back", lambda store: self._discard(store, names))
        self._ask(f"Delete {_runs(len(names))}?", names, note, "Delete", delete)

    def _discard(self, store: Store, names: list[str]) -> list[str]:
        done = discard(store, names)
        if done:
            self._trashed.append(done)
        self.main.checked -= set(done)
        return done

    def action_undelete(self) -> None:
        """Bring back what was deleted last."""
        if not self._trashed:
            self.notify("Nothing was deleted since the console opened.", timeout=3)
            return
        names = self._trashed.pop()
        self._do("Brought back", lambda store: restore(store, names))

    def _ask(self, title: str, lines: list[str], note: str, yes: str, do: Callable[[], object]) -> None:
        from lmconsole.tui.screens.dialogs import Question

        more = [f"and {len(lines) - MOST_NAMED} more"] if len(lines) > MOST_NAMED else []
        shown = [escape_control_characters(line) for line in lines[:MOST_NAMED]] + more + [note]

        def answered(answer: bool | None) -> None:
            if answer:
                do()

        self.push_screen(Question(title, shown, yes), answered)

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

    @work(thread=True, group="export", exclusive=True)
    def action_export(self) -> None:
        """Write the exports, and show where they are."""
        self.call_from_thread(self.notify, "Writing the exports …", timeout=3)
        from rich.text import Text

        from lmconsole.tui.screens.dialogs import Exported, Page
        from lmconsole.tui.screens.pictures import figures_in

        page: Page
        try:
            page = Exported(*actions.export(self.options), figures_in(self.options.exports))
        except LmconsoleError as error:
            page = Page("Nothing was exported", Text(escape_control_characters(str(error))))
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
        name, lines = {"latex": "LaTeX"}.get(form, form), len(table.splitlines())
        self.call_from_thread(self.notify, f"Results table as {name} copied: {lines} lines.", timeout=4)

    def _complain(self, error: LmconsoleError) -> None:
        self.notify(escape_control_characters(str(error)), severity="error", timeout=15, markup=False)

    # ---- finding one's way

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Every action, for the command palette."""
        from lmconsole.tui.screens.dialogs import key_name

        yield from (c for c in super().get_system_commands(screen) if c.title in ("Theme", "Screenshot"))
        for binding in actions_of([*MainScreen.BINDINGS, *ExperimentTable.BINDINGS]):
            target = self.main.table if binding in ExperimentTable.BINDINGS else self.main
            do = partial(self.run_action, binding.action, default_namespace=target)
            yield SystemCommand(binding.description, f"{binding.tooltip} ({key_name(binding.key)})", do)
        words = ("Usual line", "as usual") if self.slow else ("Slow line", "seldom, for a slow line")
        yield SystemCommand(words[0], f"Console: draw {words[1]}", lambda: self.set_slow(not self.slow))

    async def action_leave(self) -> None:
        """Leave; runs go on."""
        active = sum(view.status.active for view in self.feed.picture.runs.values())
        go = "goes" if active == 1 else "go"
        self.exit(f"{_runs(active)} {go} on without the console; `lmconsole` shows them again." if active else None)

    def on_unmount(self) -> None:
        """The feed ends with the app."""
        self.feed.close()


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"
