"""Changes of the store and exports, which take long: each runs in a thread and posts its outcome to the app.

What does the work is imported in that thread, so that the first paint comes sooner.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textual.app import App
from textual.message import Message

from lmconsole.engine.run_options import RunRequest
from lmconsole.errors import LmconsoleError
from lmconsole.formatting import counted
from lmconsole.runs.notes import change_notes
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.store import Store
from lmconsole.tui.options import ConsoleOptions

if TYPE_CHECKING:
    from lmconsole.tui.actions import StartResult

TaskAction = Literal["hold", "release", "requeue"]
"""Action on the tasks of runs on SLURM."""
QUEUING = "queuing"
"""Group of the workers that queue runs."""
MAX_LINES = 6
"""Lines of a notification about runs."""


class StoreActions:
    """Methods return at once, and the app receives one of the messages below when the work is done.

    Nothing here touches a widget: the threads only compute, and the app's message handlers change what is shown.
    """

    class Queued(Message):
        """Runs were queued."""

        def __init__(self, result: "StartResult") -> None:
            super().__init__()
            self.result = result

    class Changed(Message):
        """Runs were changed."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text
            """Message for people."""

    class Deleted(Message):
        """Runs were moved to the trash."""

        def __init__(self, runs: Sequence[str]) -> None:
            super().__init__()
            self.runs = runs

    class RestoreFailed(Message):
        """Not all of the runs were moved back from the trash."""

        def __init__(self, runs: Sequence[str], error: LmconsoleError) -> None:
            super().__init__()
            self.runs = runs
            self.error = error

    class Exported(Message):
        """Exports were written."""

        def __init__(self, paths: list[Path], table: str, figures: list[Path]) -> None:
            super().__init__()
            self.paths = paths
            self.table = table
            """The results table in markdown."""
            self.figures = figures

    class TableReady(Message):
        """The results table to copy."""

        def __init__(self, table_format: str, table: str, *, in_tmux: bool) -> None:
            super().__init__()
            self.table_format = table_format
            self.table = table
            self.in_tmux = in_tmux
            """Whether the table is in a buffer of tmux."""

    class Failed(Message):
        """An action was not carried out."""

        def __init__(self, error: LmconsoleError) -> None:
            super().__init__()
            self.error = error

    class ExportFailed(Failed):
        """No exports were written."""

    def __init__(self, app: App[Any], options: ConsoleOptions) -> None:
        self._app = app
        self._options = options
        self._exporting = False

    def keep_polling(self) -> None:
        """See that SLURM is asked about the runs that it trains."""

        def keep() -> None:
            from lmconsole.engine.submit import keep_polling

            store = self._store()
            keep_polling(store, store.runs())

        self._run(keep)

    def queue(self, request: RunRequest) -> None:
        """Queue runs and see that a runner is at work."""

        def queue() -> Message:
            from lmconsole.tui.actions import start

            return self.Queued(start(request))

        self._run(queue, group=QUEUING)

    def queue_experiments(self, ids: Sequence[int], values: Mapping[str, str]) -> None:
        """Queue runs of the experiments ``ids`` with ``values`` of the form, by field."""

        def queue() -> Message:
            from lmconsole.tui.actions import parse, start

            return self.Queued(start(parse(self._options, ids, values)))

        self._run(queue, group=QUEUING)

    @property
    def queuing(self) -> bool:
        """Whether runs are being queued: data and devices are checked first, which takes seconds."""
        return any(worker.group == QUEUING and not worker.is_finished for worker in self._app.workers)

    def stop(self, runs: Collection[str]) -> None:
        """Ask the active ones of ``runs`` to stop."""

        def stop() -> Message:
            from lmconsole.engine.submit import stop_runs

            store = self._store()
            active = [run for run in store.runs() if run.run in runs and (run.status.active or run.slurm.interrupted)]
            return self.Changed(f"{counted(len(stop_runs(store, active)), 'run')} will stop.")

        self._run(stop)

    def control(self, runs: Collection[str], action: TaskAction) -> None:
        """Hold, release or start again the tasks of ``runs`` on SLURM."""

        def control() -> Message:
            from lmconsole.engine.slurm.tasks import control_tasks

            store = self._store()
            lines = control_tasks(store, [run for run in store.runs() if run.run in runs], action)
            more = [f"and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
            return self.Changed("\n".join([*lines[:MAX_LINES], *more]))

        self._run(control)

    def resume(self, runs: Sequence[str], finished: Collection[str]) -> None:
        """Queue ``runs`` again with the settings that they have, and export to the console's folder. Those that are
        ``finished`` are only tested."""

        def resume() -> Message:
            from lmconsole.engine.submit import resume_runs

            resumed = resume_runs(self._store(), list(runs), self._options.exports)
            tests = sum(name in finished for name in resumed)
            texts = [f"{counted(tests, 'run')} queued to be tested."] if tests else []
            if len(resumed) > tests or not tests:
                texts.insert(0, f"{counted(len(resumed) - tests, 'run')} queued to resume.")
            return self.Changed(" ".join(texts))

        self._run(resume)

    def delete(self, runs: Sequence[str]) -> None:
        """Move ``runs`` to the trash."""

        def delete() -> Message:
            from lmconsole.runs.trash import discard

            return self.Deleted(discard(self._store(), list(runs)))

        self._run(delete)

    def restore(self, runs: Sequence[str]) -> None:
        """Move ``runs`` back from the trash."""

        def restore_runs() -> Message:
            from lmconsole.runs.trash import restore

            try:
                restored = restore(self._store(), list(runs))
            except LmconsoleError as error:
                return self.RestoreFailed(runs, error)
            return self.Changed(f"{counted(len(restored), 'run')} restored.")

        self._run(restore_runs)

    def change_notes(self, runs: Sequence[str], note: str | None, add: Sequence[str], remove: Sequence[str]) -> None:
        """Change the notes of ``runs``, as ``runs.notes.change_notes`` does."""

        def change() -> Message:
            root = self._store().root
            for name in runs:
                change_notes(RunPaths(root / name), note=note, add=add, remove=remove)
            return self.Changed(f"Notes of {counted(len(runs), 'run')} saved.")

        self._run(change)

    def export(self) -> bool:
        """Start to write the exports, unless they are already being written. Return whether it has started."""
        if self._exporting:
            return False
        self._exporting = True

        def export() -> Message:
            from lmconsole.tui import actions
            from lmconsole.tui.screens.pictures import figures_in

            try:
                paths, table = actions.export(self._options)
            except LmconsoleError as error:
                return self.ExportFailed(error)
            finally:
                self._exporting = False
            return self.Exported(paths, table, figures_in(self._options.exports))

        self._run(export)
        return True

    def make_table(self, table_format: str) -> None:
        """Make the results table as ``markdown`` or ``latex``."""

        def make() -> Message:
            from lmconsole.tui import actions
            from lmconsole.tui.terminal.clipboard import copy_to_tmux

            table = actions.table(self._options, table_format)
            return self.TableReady(table_format, table, in_tmux=copy_to_tmux(table))

        self._run(make)

    def _store(self) -> Store:
        return Store(self._options.store)

    def _run(self, work: Callable[[], Message | None], *, group: str = "store") -> None:
        def run() -> None:
            try:
                outcome = work()
            except LmconsoleError as error:
                outcome = self.Failed(error)
            if outcome is not None:
                self._app.post_message(outcome)

        self._app.run_worker(run, thread=True, group=group)
