"""The main screen: headline, experiments, curves, memory gauges, and the keys.

The filter and the screens that open over this one are imported when they are first needed, so that the first paint
comes sooner.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

import msgspec
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.events import Resize
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import Footer

from lmconsole.errors import PlanError, escape_control_characters
from lmconsole.plan.experiment import Experiment
from lmconsole.tui.baseline import Baseline
from lmconsole.tui.keys import FooterScreen, KeyMap, first_key
from lmconsole.tui.options import ConsoleOptions
from lmconsole.tui.plot.glyphs import Glyphs
from lmconsole.tui.rows import COLUMNS, Row, build_rows, experiment_key, newest_seed_group
from lmconsole.tui.screens.main_keys import BINDINGS
from lmconsole.tui.selection import (
    Selection,
    find_baseline,
    means_of_seeds,
    prune_checked,
    runs_by_experiment,
    selection_of,
    series_for,
)
from lmconsole.tui.snapshot import RunView, Snapshot
from lmconsole.tui.sorting import Sort, sort_rows
from lmconsole.tui.store_actions import TaskAction
from lmconsole.tui.terminal.compositor import CroppedCompositor
from lmconsole.tui.terminal.textual_internals import set_compositor
from lmconsole.tui.widgets.curves import ChartOption, Curves
from lmconsole.tui.widgets.experiment_table import ExperimentTable
from lmconsole.tui.widgets.gauges import Gauges
from lmconsole.tui.widgets.headline import Headline

if TYPE_CHECKING:
    from lmconsole.tui.widgets.filter_bar import FilterBar


class _ExperimentsMessage(Message):
    """Has the ids of experiments."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__()
        self.ids = ids


class _RunsMessage(Message):
    """Has runs."""

    def __init__(self, runs: Sequence[RunView]) -> None:
        super().__init__()
        self.runs = runs


class MainScreen(FooterScreen[None]):
    """Shows ``snapshot``, which the app replaces.

    Requests that concern the selection, which only the screen knows, are posted to the app as messages. Keys for the
    others are bound to actions of the app.
    """

    BINDINGS: ClassVar[list[BindingType]] = BINDINGS

    snapshot = reactive(Snapshot(), init=False, repaint=False)
    checked: reactive[frozenset[str]] = reactive(frozenset(), init=False, repaint=False)
    """Keys of the rows whose box is checked. What they select is returned by ``selection``."""
    unfolded: reactive[frozenset[str]] = reactive(frozenset(), init=False, repaint=False)
    """Keys of the experiments whose runs are shown."""
    sort: reactive[Sort] = reactive(Sort(), init=False, repaint=False)
    baseline = reactive("", init=False, repaint=False)
    """Key of the row with which the others are compared; empty if none is pinned."""
    show_published = reactive(True, init=False, repaint=False)
    mean_of_seeds = reactive(False, init=False, repaint=False)
    """Whether the curves of seeds are drawn as one mean with its range."""
    preset = reactive("", init=False, repaint=False)
    """Preset in the headline: that of the runs queued last, or else that with which the console was opened."""
    slow = reactive(False, init=False, repaint=False)
    """Whether the connection is slow."""

    class RunRequested(_ExperimentsMessage):
        """Experiments should be trained with the preset with which the console was opened."""

    class RunFormRequested(_ExperimentsMessage):
        """Experiments should be trained with other settings, for which a form should open."""

    class StopRequested(_RunsMessage):
        """The active ones of the selected runs should stop."""

    class ResumeRequested(_RunsMessage):
        """Those of the selected runs that ended early should be queued again."""

    class TaskRequested(_RunsMessage):
        """The tasks of the selected runs on SLURM should be held, released or started again."""

        def __init__(self, runs: Sequence[RunView], action: TaskAction) -> None:
            super().__init__(runs)
            self.action = action

    class NotesRequested(_RunsMessage):
        """The notes of the selected runs should be edited."""

    class CurvesRequested(_RunsMessage):
        """The whole logs of runs should be read, for their curves."""

    class DeleteRequested(_RunsMessage):
        """The selected runs should be deleted."""

    def __init__(self, options: ConsoleOptions, glyphs: Glyphs, keymap: KeyMap) -> None:
        super().__init__()
        self._keymap = keymap
        self._compositor_of_changes = CroppedCompositor()
        set_compositor(self, self._compositor_of_changes)  # sends no more than the cells that have changed
        self._plan = options.plan
        self._experiments = options.plan.experiments
        self._filter_bar: FilterBar | None = None
        """None before it is first opened."""
        self._store_path = options.store
        self._glyphs = glyphs
        self.set_reactive(MainScreen.preset, options.preset)
        self.set_reactive(MainScreen.slow, options.slow)

    def compose(self) -> ComposeResult:
        """Yield headline, table, curves, memory gauges and keys."""
        yield Headline(self._store_path).data_bind(
            MainScreen.snapshot, MainScreen.checked, MainScreen.preset, MainScreen.slow
        )
        yield ExperimentTable()
        yield Curves(self._glyphs)
        yield Gauges(self._glyphs).data_bind(MainScreen.snapshot)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Focus the table, and fill it before the first paint."""
        self.table.focus()
        self.table.fit(self.app.size.width)  # the screen has no size before its first layout
        self._update_table()

    def on_screen_suspend(self) -> None:
        """Send everything again later, because another screen will be drawn over this one."""
        self._compositor_of_changes.sent.forget()

    @property
    def table(self) -> ExperimentTable:
        """The experiments."""
        return self.query_one(ExperimentTable)

    @property
    def curves(self) -> Curves:
        """The curves."""
        return self.query_one(Curves)

    def selection(self) -> Selection:
        """Return the experiments and runs that actions apply to: those of the checked rows, or of the highlighted row
        if none is checked."""
        return selection_of(self.snapshot, self._experiments, self.checked, self.table.row)

    # ---- content

    def watch_snapshot(self, old: Snapshot, new: Snapshot) -> None:
        """Uncheck what no longer exists, and update table and curves; only the curves if no run has changed.

        Headline and gauges have their own watchers.
        """
        if new.runs is old.runs and (new.problems, new.error) == (old.problems, old.error):
            self._update_curves()  # something else has changed, such as the machine's memory
            return
        checked = self.checked
        if not self.snapshot.error:
            checked = prune_checked(checked, self.snapshot, self._experiments)
        if checked != self.checked:
            self.checked = checked  # updates the content, too
        else:
            self.update_content()

    def update_content(self) -> None:
        """Update table and curves."""
        self.table.fit(self.size.width)
        self._update_table()
        self._update_curves()

    watch_checked = watch_unfolded = watch_sort = watch_baseline = watch_preset = update_content

    def restyle(self) -> None:
        """Draw everything in the colors of the present theme."""
        self.table.restyle()
        self.update_content()
        for widget in (self.curves, self.query_one(Gauges), self.query_one(Headline)):
            widget.redraw()

    def check_message_enabled(self, message: Message) -> bool:
        """Whether ``message`` may be posted to this screen: no size that the app no longer has.

        A screen that lays itself out in a new size posts that size to itself again. With another change in between, two
        sizes would follow each other without end, since each is a change from the other.
        """
        if isinstance(message, Resize) and message.size != self.app.size:
            return False
        return super().check_message_enabled(message)

    def on_resize(self) -> None:
        """Choose the columns that fit, once the new size has been laid out."""
        self.call_after_refresh(self.update_content)

    def pinned(self) -> Baseline | None:
        """Return the pinned baseline with its runs as they are now; None if there is none, or it was deleted."""
        return find_baseline(self.snapshot, self.baseline) if self.baseline else None

    def _update_table(self) -> None:
        baseline, notes_column = self.pinned(), self.table.shows_notes
        rows: Sequence[Row] = build_rows(
            self._experiments,
            self.snapshot.runs.values(),
            checked=self.checked,
            unfolded=self.unfolded,
            wide=self.table.wide,
            glyphs=self._glyphs,
            problems=self.snapshot.problems,
            notes_column=notes_column,
            baseline=baseline,
        )
        if self._filter_bar is not None:
            rows = self._filter_bar.matching(rows, self._planned_values)
        self.table.show(sort_rows(rows, self.sort), self.sort, baseline.label if baseline else "")
        if self.table.shows_notes != notes_column:
            self._update_table()  # with the column in place of the marks, or the other way round

    def _planned_values(self, experiment: Experiment) -> dict[str, object]:
        """Return the settings with which an experiment would be trained, as far as the preset is known."""
        values = {name: getattr(experiment, name) for name in ("id", "model", "layers", "optimizer")}
        with suppress(PlanError):
            values |= msgspec.structs.asdict(self._plan.resolve(experiment, self.preset).settings)
        return experiment.overrides | values

    def _update_curves(self, *, immediately: bool = False) -> None:
        snapshot = self.snapshot
        runs = self.selection().runs
        self.query_one(Gauges).select({view.run for view in runs})
        series = []
        if not snapshot.error:
            views = list(runs)
            if baseline := self.pinned():
                views += [view for view in baseline.views if view not in views]
            if lacking := [view for view in views if not view.has_whole_curve]:
                self.post_message(self.CurvesRequested(lacking))
            series = series_for(snapshot, views, show_published=self.show_published)
            if self.mean_of_seeds:
                series = means_of_seeds(views, series)
        hint = snapshot.error or self._hint(has_series=bool(series))
        self.curves.show(series, hint, immediately=immediately)

    def _hint(self, *, has_series: bool) -> str:
        """Return the text to show where there are no curves."""
        row = self.table.row
        if row and row.unreadable and not has_series:
            return f"This run cannot be read. Press {self._key('open')} for the reason."
        if not self.snapshot.number:
            return "Reading the store …"
        if not self.snapshot.runs:
            select_all, run = self._key("select-all"), self._key("run")
            return f"No runs yet. Press {select_all} to select all experiments, then {run} to train them."
        if not self.table.rows_shown:
            return f"No row matches the filter. Press {self._key('back')} to clear it."
        if has_series:
            return "Waiting for the first measurements."
        return f"Not trained yet. Press {self._key('run')} to train it."

    def _key(self, name: str) -> str:
        return first_key(MainScreen, name, self._keymap)

    # ---- selecting, filtering, sorting

    def on_experiment_table_check_toggled(self, message: ExperimentTable.CheckToggled) -> None:
        """Select or unselect one row."""
        self.checked ^= {message.key}

    def on_experiment_table_row_changed(self) -> None:
        """Draw the curves of the highlighted row, unless some rows are selected."""
        if not self.checked:
            self._update_curves()

    def on_experiment_table_row_opened(self) -> None:
        """Show the details of the highlighted row."""
        self.action_details()

    def on_experiment_table_fold_requested(self, message: ExperimentTable.FoldRequested) -> None:
        """Show or hide the runs of an experiment."""
        if message.row.experiment:
            key = frozenset({experiment_key(message.row.experiment.id)})
            self.unfolded = self.unfolded | key if message.unfold else self.unfolded - key

    def on_experiment_table_heading_clicked(self, message: ExperimentTable.HeadingClicked) -> None:
        """Sort by a column, or reverse the order."""
        self.sort = self.sort.by(message.column)

    def action_sort_by_next_column(self) -> None:
        """Sort by the next column."""
        self._sort_by(self.sort.by_next_column(self.table.empty_columns))

    def action_reverse_order(self) -> None:
        """Sort by the same column in the other direction."""
        self._sort_by(self.sort.by(self.sort.column))

    def _sort_by(self, sort: Sort) -> None:
        self.sort = sort
        direction = ", descending" if sort.descending else ""
        self.notify(f"Sorted by {COLUMNS[sort.column]}{direction}.", timeout=2)

    def action_all(self) -> None:
        """Check every experiment that is shown, or none if all of them are checked."""
        keys = frozenset(row.key for row in self.table.rows_shown if not row.child)
        if keys:
            self.checked = frozenset() if keys <= self.checked else self.checked | keys

    async def action_filter(self) -> None:
        """Open the filter."""
        if self._filter_bar is None:
            from lmconsole.tui.widgets.filter_bar import FilterBar

            bar = FilterBar(clear_key=self._key("back"))
            await self.mount(bar, after=self.table)
            self._filter_bar = bar
        self._filter_bar.open()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether an action can be used now: the key of the filter is a character while its field is in use, and only
        runs on SLURM have tasks."""
        if action == "task":
            return any(view.active_on_slurm for view in self.selection().runs)
        if action == "filter" and self._filter_bar is not None and self._filter_bar.has_focus_within:
            return False
        return super().check_action(action, parameters)

    def on_filter_bar_changed(self) -> None:
        """Filter while typing."""
        self.update_content()

    def on_filter_bar_submitted(self) -> None:
        """Go back to the table."""
        self.table.focus()

    def action_back(self) -> None:
        """Undo the first of: filter, cursor, zoom, selection."""
        if self._filter_bar is not None and self._filter_bar.close():
            self.table.focus()
        elif self.curves.cursor is not None:
            self.curves.remove_cursor()
        elif self.has_class("zoomed"):
            self.action_zoom()
        elif self.checked:
            self.checked = frozenset()

    # ---- requests to the app

    def action_run(self) -> None:
        """Train the selected experiments with the preset with which the console was opened."""
        ids = self._ids_to_train()
        if ids:
            self.post_message(self.RunRequested(ids))

    def action_edit_run(self) -> None:
        """Train the selected experiments with other settings."""
        ids = self._ids_to_train()
        if ids:
            self.post_message(self.RunFormRequested(ids))

    def _ids_to_train(self) -> list[int]:
        """Return the ids of the selected experiments, or notify that there is none."""
        ids = [experiment.id for experiment in self.selection().experiments]
        if not ids:
            self.notify("There is no experiment to train.", timeout=3)
        return ids

    def action_stop(self) -> None:
        """Stop the selected runs."""
        self.post_message(self.StopRequested(self.selection().runs))

    def action_task(self, action: TaskAction) -> None:
        """Hold, release or start again the tasks of the selected runs on SLURM."""
        self.post_message(self.TaskRequested(self.selection().runs, action))

    def action_resume(self) -> None:
        """Resume the selected runs."""
        self.post_message(self.ResumeRequested(self.selection().runs))

    def action_notes(self) -> None:
        """Edit the notes of the selected runs."""
        self.post_message(self.NotesRequested(self.selection().runs))

    def action_delete(self) -> None:
        """Delete the selected runs."""
        self.post_message(self.DeleteRequested(self.selection().runs))

    # ---- curves and pages

    def action_cycle(self, option: ChartOption) -> None:
        """Change an option of the chart."""
        self.curves.cycle(option)

    def action_cursor(self, columns: int) -> None:
        """Move the cursor that reads off values."""
        self.curves.move_cursor(columns)

    def action_zoom(self) -> None:
        """Show the curves on the whole screen, or below the table."""
        self.toggle_class("zoomed")
        (self.curves if self.has_class("zoomed") else self.table).focus()

    def action_published(self) -> None:
        """Show or hide published results."""
        self.show_published = not self.show_published
        self._update_curves(immediately=True)
        if not self.show_published:
            state = "hidden"
        elif any(series.published_ppl for series in self.curves.series):
            state = "shown"
        else:
            state = "shown for runs of the paper preset"
        self.notify(f"Published results are {state}.", timeout=3)

    def action_seeds(self) -> None:
        """Draw seeds as their mean with its range, or each of them."""
        self.mean_of_seeds = not self.mean_of_seeds
        self._update_curves(immediately=True)
        text = "mean, with the range from lowest to highest" if self.mean_of_seeds else "one curve each"
        self.notify(f"Seeds: {text}.", timeout=3)

    def action_details(self) -> None:
        """Show the run of the highlighted row in detail."""
        row = self.table.row
        if row is None:
            return
        if row.unreadable:
            from lmconsole.tui.screens.dialogs import Page

            reason = self.snapshot.problems.get(row.key, "It can be read again.")
            text = escape_control_characters(f"{self._store_path.absolute() / row.key}\n\n{reason}")
            self.app.push_screen(Page("A run that cannot be read", Text(text)))
            return
        if row.run is None:
            self.notify(f"This experiment has not been trained yet. Press {self._key('run')} to train it.", timeout=3)
            return
        from lmconsole.tui.screens.details import Details

        name = row.run.run
        self.app.push_screen(Details(lambda: self.snapshot.runs.get(name), row.run, self.pinned))

    def action_compare(self) -> None:
        """Compare the selected runs, or the newest ones of all experiments if fewer than two of them have a best
        epoch."""
        views = [view for view in self.selection().runs if view.best]
        if len(views) < 2:
            groups = runs_by_experiment(self.snapshot).values()
            views = [view for runs in groups for view in newest_seed_group(runs) if view.best]
        if len(views) < 2:
            self.notify("A comparison needs two runs with a finite validation loss.", timeout=3)
            return
        from lmconsole.tui.screens.compare import comparison_page

        self.app.push_screen(comparison_page(views))

    def action_baseline(self) -> None:
        """Pin the highlighted row as the baseline, or unpin it."""
        row = self.table.row
        if row is None or not row.runs:
            self.notify("A baseline needs a run.", timeout=3)
        elif row.key == self.baseline:
            self.baseline = ""
            self.notify("No baseline.", timeout=2)
        else:
            self.baseline = row.key
            experiment = row.runs[0].info.experiment
            seed = f", seed {row.runs[0].info.seed}" if row.child else ""
            label = escape_control_characters(f"{experiment.id} {experiment.label}{seed}")
            self.notify(f"Baseline: {label}. Differences are in validation perplexity.", timeout=4, markup=False)

    def action_differences(self) -> None:
        """Show the settings in which the selected runs differ from each other, or the highlighted one from the
        baseline."""
        views = list(self.selection().runs)
        if baseline := self.pinned():
            views = [baseline.views[-1], *(view for view in views if view is not baseline.views[-1])]
        if len(views) < 2:
            select, pin = first_key(ExperimentTable, "table.select", self._keymap), self._key("baseline")
            self.notify(f"Select two runs with {select}, or pin a baseline with {pin}.", timeout=4)
            return
        from lmconsole.tui.screens.differences import differences_page

        self.app.push_screen(differences_page(views))

    def action_help(self) -> None:
        """Show all keys."""
        from lmconsole.tui.screens.dialogs import help_page

        self.app.push_screen(help_page([*ExperimentTable.BINDINGS, *self.BINDINGS, *self.app.BINDINGS], self._keymap))
