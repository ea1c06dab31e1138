"""The Textual app: it hands snapshots of the store to its screens, and carries out what they request."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from textual.actions import parse as parse_action
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer

from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.stop_signals import BATCH_SIGNALS
from lmconsole.errors import LmconsoleError, escape_control_characters
from lmconsole.formatting import counted
from lmconsole.runs.state import Status
from lmconsole.tui.announcements import Announcer
from lmconsole.tui.feed import Feed
from lmconsole.tui.keys import Context, KeyMap, binding_commands, first_key, load_keymap
from lmconsole.tui.options import ConsoleOptions
from lmconsole.tui.plot.glyphs import ASCII, UNICODE, AsciiFilter, locale_is_utf8
from lmconsole.tui.screens.main import MainScreen
from lmconsole.tui.settings import Settings, load_settings, save_settings
from lmconsole.tui.store_actions import StoreActions
from lmconsole.tui.terminal.connection import SlowConnectionDetector
from lmconsole.tui.terminal.driver import BackpressureDriver, BackpressureOutput
from lmconsole.tui.terminal.textual_internals import add_line_filter, current_driver
from lmconsole.tui.themes import DARK, LIGHT
from lmconsole.tui.widgets.experiment_table import ExperimentTable

TICK_S = 0.5
SLOW_TICK_S = 2.0
CHECKING_S = 3.0
"""Time in seconds after which a message says that data and devices are still being checked."""
MAX_LISTED = 12
"""Runs that a question lists by name."""


class ConsoleApp(App[str]):
    """The console on one store. Its result is a sentence to print when it has closed.

    With a ``feed`` of the caller's, ``FirstSnapshot`` is not posted, and the first snapshot is shown at the next tick.
    """

    TITLE = "lmconsole"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (70, "-normal")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (18, "-short"), (30, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+p",
            "command_palette",
            "Commands",
            id="commands",
            show=False,
            tooltip="Console: every command, by name",
        ),
        Binding("ctrl+q,ctrl+c", "leave", "Quit", id="close", show=False, priority=True),
    ]

    class FirstSnapshot(Message):
        """The feed has read the whole store for the first time."""

    def __init__(self, options: ConsoleOptions, *, feed: Feed | None = None, **app_options: Any) -> None:
        self._settings = load_settings()
        self.keymap: KeyMap = {}
        """The user's own keys by the id of their binding."""
        self._keymap_problem: LmconsoleError | None = None
        try:
            self.keymap = load_keymap(_key_contexts)
        except LmconsoleError as error:
            self._keymap_problem = error
        super().__init__(**app_options)
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.options = options
        self.glyphs = UNICODE if locale_is_utf8() else ASCII
        if not self.glyphs.unicode:
            add_line_filter(self, AsciiFilter())
        self.feed = feed or Feed(options.store, on_first=lambda: self.post_message(self.FirstSnapshot()))
        self.main = MainScreen(options, self.glyphs, self.keymap)
        self.store_actions = StoreActions(self, options)
        self._announcer = Announcer(details_key=first_key(MainScreen, "open", self.keymap))
        self._slow_connection = SlowConnectionDetector()
        self._deleted: list[Sequence[str]] = []
        """Runs deleted since the console opened and not restored; the last deletion is at the end."""
        tuning = {"no_test": "yes"} if options.submit and options.submit.no_test else {}
        self._run_values = {"preset": options.preset, **tuning}
        """Values of the form with which experiments are run without it, by field."""
        self._form_values = {**self._run_values, "device": "auto", "jobs": "auto"}
        """Values with which the form for other settings opens, by field: those accepted last."""
        self._timer: Timer | None = None
        self._checking: Timer | None = None
        """Notifies again that data and devices are being checked."""

    @property
    def theme_names(self) -> set[str]:
        """Names that ``--theme`` accepts."""
        return set(self.available_themes)

    def get_default_screen(self) -> Screen[Any]:
        """Return the main screen."""
        return self.main

    def on_mount(self) -> None:
        """Choose the theme before the first paint; everything else starts after it."""
        theme = self.options.theme or self._settings.theme
        self.theme = theme if theme in self.available_themes else DARK.name
        if self.keymap:
            self.set_keymap(dict(self.keymap))
        self._handle_signals()
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        gc.enable()  # disabled in open_console until the first frame
        self.main.update_content()
        self.feed.start()
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))  # the screen is blank after SIGCONT
        self.theme_changed_signal.subscribe(self, lambda _: self._theme_changed())
        if self.options.theme:
            self._save_theme()
        self._start_timer()
        if self._keymap_problem is not None:
            self._notify_error(self._keymap_problem)
        if self.options.submit is not None:
            self._queue(self.options.submit)

    def _handle_signals(self) -> None:
        """Close the app on SIGHUP, SIGTERM and the signals of batch systems, so that the terminal is restored."""
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
            for number in (signal.SIGHUP, signal.SIGTERM, *BATCH_SIGNALS):
                asyncio.get_running_loop().add_signal_handler(number, self.exit, None)

    # ---- snapshots

    @property
    def _interval_s(self) -> float:
        return SLOW_TICK_S if self.main.slow else TICK_S

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(self._interval_s, self._tick)

    def _tick(self) -> None:
        driver = current_driver(self)
        if isinstance(driver, BackpressureDriver):
            if driver.hung_up:
                self.exit(None)
                return
            self._detect_slow_connection(driver.output)
            if driver.output.current_write_s > 0.0:
                return  # more output would only queue up: a later tick shows the newest snapshot
        self.feed.restart_if_blocked()
        self._show_snapshot()

    def _detect_slow_connection(self, output: BackpressureOutput) -> None:
        slow = self._slow_connection.record(output.pop_blocked_s(), self._interval_s)
        if slow and not self.main.slow:
            self.set_slow(True)
            self.notify("Slow connection: drawing less often.", timeout=6)

    def on_console_app_first_snapshot(self) -> None:
        """Show the first snapshot without waiting for the next tick."""
        self._show_snapshot()
        if any(view.active_on_slurm for view in self.main.snapshot.runs.values()):
            self.store_actions.keep_polling()

    def _show_snapshot(self) -> None:
        snapshot = self.feed.snapshot
        # A timer may still fire while the app is closing.
        if not self.is_running or not self.main.is_attached or snapshot is self.main.snapshot:
            return
        for each in self._announcer.update(snapshot):
            self.notify(each.text, title=each.title, severity=each.severity, timeout=20, markup=False)
            if each.bell:
                self.bell()
        self.main.snapshot = snapshot

    def set_slow(self, slow: bool) -> None:
        """Draw less often for a slow connection, or at the normal rate."""
        self.main.slow = slow
        self._start_timer()

    # ---- theme

    def _theme_changed(self) -> None:
        self.main.restyle()
        self._save_theme()

    def _save_theme(self) -> None:
        settings = Settings(theme=self.theme)
        if settings != self._settings:
            self._settings = settings
            problem = save_settings(settings)
            if problem:
                self.notify(f"The theme was not saved: {problem}", severity="warning", markup=False)

    # ---- requests of the main screen

    def on_main_screen_run_requested(self, message: MainScreen.RunRequested) -> None:
        """Queue experiments with the preset with which the console was opened, and without tests if it was opened to
        tune."""
        self._notify_checking()
        self.store_actions.queue_experiments(message.ids, self._run_values)

    def on_main_screen_run_form_requested(self, message: MainScreen.RunFormRequested) -> None:
        """Open the form for other settings, and queue what it returns."""
        from lmconsole.tui.actions import parse, sketch_seeds
        from lmconsole.tui.screens.run_form import RunForm

        ids = message.ids

        def check(values: dict[str, str]) -> RunRequest:
            request = parse(self.options, ids, values)
            self._form_values = values
            return request

        def sketch(seeds: str) -> str:
            return sketch_seeds(ids, seeds, self.feed.snapshot.runs.values())

        def accepted(request: RunRequest | None) -> None:
            if request is not None:
                self._queue(request)

        title = f"Run experiment{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))} with"
        self.push_screen(RunForm(title, self._form_values, check, sketch, self.keymap), accepted)

    def on_main_screen_stop_requested(self, message: MainScreen.StopRequested) -> None:
        """Stop active runs, after a question."""
        active = [view for view in message.runs if (view.status.active or view.slurm.interrupted) and not view.stopping]
        if not active:
            self.notify("None of the selected runs is queued or running.", timeout=3)
            return
        lines = [f"{v.info.experiment.id} {v.info.experiment.label} ({v.status.value})" for v in active]
        note = f"Each run saves a checkpoint first. Press {self._key('resume')} to resume it."
        names = {view.run for view in active}
        self._confirm(
            f"Stop {counted(len(names), 'run')}?", lines, note, "Stop", lambda: self.store_actions.stop(names)
        )

    def on_main_screen_task_requested(self, message: MainScreen.TaskRequested) -> None:
        """Hold or release waiting runs, or start running ones again, after a question."""
        if message.action == "requeue":
            views = [view for view in message.runs if view.active_on_slurm and view.node]
        else:
            views = [view for view in message.runs if view.active_on_slurm and not view.node]
        if not views:
            state = "running" if message.action == "requeue" else "waiting"
            self.notify(f"None of the selected runs is {state} on SLURM.", timeout=3)
            return
        names = {view.run for view in views}

        def act() -> None:
            self.store_actions.control(names, message.action)

        if message.action != "requeue":
            act()
            return
        lines = [f"{v.info.experiment.id} {v.info.experiment.label}, {v.info.short_seed} on {v.node}" for v in views]
        note = "SLURM ends their jobs and starts them again later, from the last checkpoint."
        self._confirm(f"Start {counted(len(names), 'run')} again?", lines, note, "Start again", act)

    def on_main_screen_resume_requested(self, message: MainScreen.ResumeRequested) -> None:
        """Queue runs again that ended early, or that are queued and nobody will start."""
        ended = [view for view in message.runs if not (view.status.active or view.slurm.interrupted) or view.unattended]
        views = [view for view in ended if view.status is not Status.FINISHED or view.test_is_missing]
        if not views:
            self.notify("None of the selected runs was stopped, lost or failed.", timeout=3)
            return
        self.store_actions.resume([view.run for view in views], {view.run for view in views if view.finished})

    def on_main_screen_delete_requested(self, message: MainScreen.DeleteRequested) -> None:
        """Delete runs, after a question."""
        names = [view.run for view in message.runs]
        if not names:
            self.notify("There is no run to delete.", timeout=3)
            return
        note = f"Press {self._key('restore')} to restore them from the store's .trash folder."
        self._confirm(
            f"Delete {counted(len(names), 'run')}?", names, note, "Delete", lambda: self.store_actions.delete(names)
        )

    def on_main_screen_curves_requested(self, message: MainScreen.CurvesRequested) -> None:
        """Have the feed read whole logs."""
        self.feed.request_curves(view.run for view in message.runs)

    def on_main_screen_notes_requested(self, message: MainScreen.NotesRequested) -> None:
        """Open the form for the notes of runs, and change them."""
        from lmconsole.tui.screens.notes_form import NotesChange, NotesForm

        views = message.runs
        if not views:
            self.notify("There is no run to write a note on.", timeout=3)
            return
        unreadable = [view.notes_problem for view in views if view.notes_problem]
        if unreadable:
            self.notify(escape_control_characters(unreadable[0]), severity="error", timeout=15, markup=False)
            return
        names = [view.run for view in views]

        def answered(change: NotesChange | None) -> None:
            if change is not None and change != NotesChange():
                self.store_actions.change_notes(names, change.note, change.add, change.remove)

        subject = escape_control_characters(names[0]) if len(names) == 1 else counted(len(names), "run")
        self.push_screen(
            NotesForm(f"Note and tags of {subject}", [view.notes for view in views], self.keymap), answered
        )

    def action_undelete(self) -> None:
        """Restore the runs that were deleted last."""
        if not self._deleted:
            self.notify("Nothing has been deleted since the console was opened.", timeout=3)
            return
        self.store_actions.restore(self._deleted.pop())

    def action_export(self) -> None:
        """Write the exports."""
        if self.store_actions.export():
            self.notify("Writing the exports …", timeout=3)
        else:
            self.notify("The exports are already being written.", timeout=3)

    def action_copy(self, table_format: str) -> None:
        """Make the results table, which is copied to the clipboard when it is ready."""
        self.store_actions.make_table(table_format)

    def action_leave(self) -> None:
        """Quit; runs continue."""
        views = self.feed.snapshot.runs.values()
        active = [view.run for view in views if view.status.active and not view.unattended]
        if not active:
            self.exit(None)
            return
        verb = "continues" if len(active) == 1 else "continue"
        self.exit(f"{counted(len(active), 'run')} {verb} without the console. Run `lmconsole` to see them again.")

    def _key(self, name: str) -> str:
        return first_key(MainScreen, name, self.keymap)

    def _queue(self, request: RunRequest) -> None:
        self._notify_checking()
        self.store_actions.queue(request)

    def _notify_checking(self, text: str = "Checking data and devices …") -> None:
        self.notify(text, timeout=CHECKING_S)
        if self._checking is not None:
            self._checking.stop()
        self._checking = self.set_timer(CHECKING_S, self._notify_still_checking)

    def _notify_still_checking(self) -> None:
        if self.store_actions.queuing:
            self._notify_checking("Still checking data and devices …")

    def _confirm(
        self, title: str, lines: Sequence[str], note: str, button: str, on_confirm: Callable[[], None]
    ) -> None:
        from lmconsole.tui.screens.dialogs import Question

        more = [f"and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
        shown = [escape_control_characters(line) for line in lines[:MAX_LISTED]] + more + [note]

        def answered(answer: bool | None) -> None:
            if answer:
                on_confirm()

        self.push_screen(Question(title, shown, button, self.keymap), answered)

    # ---- outcomes of store actions

    def on_store_actions_queued(self, message: StoreActions.Queued) -> None:
        """Show the preset that was chosen, and what was queued."""
        self.feed.request_refresh()
        result = message.result
        self.main.preset = result.preset
        self.notify(escape_control_characters(result.message), timeout=8, markup=False)
        for warning in result.warnings:
            self.notify(escape_control_characters(warning), severity="warning", timeout=12, markup=False)

    def on_store_actions_changed(self, message: StoreActions.Changed) -> None:
        """Notify what was changed."""
        self._changed(message.text)

    def on_store_actions_deleted(self, message: StoreActions.Deleted) -> None:
        """Notify how many runs were deleted, and keep their names for `U`."""
        if message.runs:
            self._deleted.append(message.runs)
        self._changed(f"{counted(len(message.runs), 'run')} deleted. Press {self._key('restore')} to undo.")

    def on_store_actions_restore_failed(self, message: StoreActions.RestoreFailed) -> None:
        """Keep the names for another `U`, and notify why the runs were not restored."""
        self._deleted.append(message.runs)
        self._notify_error(message.error)

    def _changed(self, text: str) -> None:
        self.feed.request_refresh()
        self.notify(escape_control_characters(text), timeout=4 if len(text) < 80 else 10, markup=False)

    def on_store_actions_exported(self, message: StoreActions.Exported) -> None:
        """Show the exported files."""
        from lmconsole.tui.screens.dialogs import Exported

        self.push_screen(Exported(message.paths, message.table, message.figures))

    def on_store_actions_export_failed(self, message: StoreActions.ExportFailed) -> None:
        """Show why nothing was exported."""
        from rich.text import Text

        from lmconsole.tui.screens.dialogs import Page

        self.push_screen(Page("Nothing was exported", Text(escape_control_characters(str(message.error)))))

    def on_store_actions_table_ready(self, message: StoreActions.TableReady) -> None:
        """Copy the results table to the clipboard, as far as terminals let programs do that."""
        self.copy_to_clipboard(message.table)
        name = {"latex": "LaTeX"}.get(message.table_format, message.table_format)
        what = f"the results table as {name}: {len(message.table.splitlines())} lines."
        if message.in_tmux:
            text = f"Copied {what} Paste it in tmux with the prefix key and ]."
        else:
            command = f"lmconsole export --format {message.table_format} -o FILE"
            text = f"Sent {what}\nIf the terminal's clipboard does not accept it: {command}"
        self.notify(text, timeout=8, markup=False)

    def on_store_actions_failed(self, message: StoreActions.Failed) -> None:
        """Notify why an action was not carried out, and show what it did before it failed."""
        self.feed.request_refresh()
        self._notify_error(message.error)

    def _notify_error(self, error: LmconsoleError) -> None:
        self.notify(escape_control_characters(str(error)), severity="error", timeout=15, markup=False)

    # ---- command palette and exit

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Yield the commands of the palette."""
        yield from (c for c in super().get_system_commands(screen) if c.title in ("Theme", "Screenshot"))
        for bindings, node in ((MainScreen.BINDINGS, self.main), (ExperimentTable.BINDINGS, self.main.table)):
            usable = [each for each in bindings if isinstance(each, Binding) and _is_usable(each, node)]
            yield from binding_commands(usable, self.keymap, self.run_action, node)
        if self.main.slow:
            title, text = "Draw at the normal rate", "Console: no longer draw less often"
        else:
            title, text = "Slow connection", "Console: draw less often, for a slow connection"
        yield SystemCommand(title, text, lambda: self.set_slow(not self.main.slow))

    def on_unmount(self) -> None:
        """End the feed's thread."""
        self.feed.close()


def _is_usable(binding: Binding, node: DOMNode) -> bool:
    """Return whether the action of a binding can be used on ``node`` now."""
    _, name, parameters = parse_action(binding.action)
    return node.check_action(name, parameters) is not False


def _key_contexts() -> list[Context]:
    from lmconsole.tui.key_contexts import key_contexts

    return key_contexts(ConsoleApp)
