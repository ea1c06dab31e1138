"""The keys of the main screen."""

from textual.binding import Binding, BindingType

# Tooltips are written as "Group: text". The help page and the command palette show bindings that have one.
BINDINGS: list[BindingType] = [
    Binding("r", "run", "Run", id="run", tooltip="Run: train the selected experiments, or the highlighted one"),
    Binding("a", "all", "All", id="select-all", tooltip="Select: all, or none"),
    Binding("s", "stop", "Stop", id="stop", tooltip="Run: stop; a checkpoint is saved first"),
    Binding("R", "edit_run", "Run with…", id="run-with", show=False, tooltip="Run: with other settings, in a form"),
    Binding("u", "resume", "Resume", id="resume", show=False, tooltip="Run: resume from the last checkpoint"),
    Binding("d,delete", "delete", "Delete", id="delete", show=False, tooltip="Run: delete, into the store's trash"),
    Binding("U", "app.undelete", "Undelete", id="restore", show=False, tooltip="Run: restore the runs deleted last"),
    Binding(
        "H", "task('hold')", "Hold on SLURM", id="hold", show=False, tooltip="SLURM: hold; waiting runs are not started"
    ),
    Binding("L", "task('release')", "Release on SLURM", id="release", show=False, tooltip="SLURM: release held runs"),
    Binding(
        "S",
        "task('requeue')",
        "Start again on SLURM",
        id="requeue",
        show=False,
        tooltip="SLURM: end the job of a run, and start it again from the last checkpoint",
    ),
    Binding("o", "sort_by_next_column", "Sort", id="sort", show=False, tooltip="Select: sort by the next column"),
    Binding("O", "reverse_order", "Reverse", id="reverse", show=False, tooltip="Select: reverse the order"),
    Binding("enter", "details", "Details", id="open", show=False, tooltip="Show: settings, events, worker log, errors"),
    Binding("c", "compare", "Compare", id="compare", tooltip="Show: best perplexities side by side"),
    Binding(
        "tab", "app.focus_next", "Pane", id="next-pane", show=False, tooltip="Show: switch between table and curves"
    ),
    Binding(
        "x", "cycle('x')", "X axis", id="x-axis", show=False, tooltip="Curves: over epochs, training time or tokens"
    ),
    Binding("y", "cycle('log')", "Log", id="log", show=False, tooltip="Curves: logarithmic or linear perplexity"),
    Binding(
        "v", "cycle('shown')", "Curves", id="shown-curves", show=False, tooltip="Curves: train, validation or both"
    ),
    Binding("g", "cycle('smoothing')", "Smooth", id="smooth", show=False, tooltip="Curves: smooth the train curve"),
    Binding("w", "seeds", "Seeds", id="seeds", show=False, tooltip="Curves: seeds as mean and range, or each"),
    Binding("z", "zoom", "Zoom", id="zoom", show=False, tooltip="Curves: on the whole screen"),
    Binding(
        "left_square_bracket",
        "cursor(-1)",
        "Cursor left",
        id="cursor-left",
        show=False,
        tooltip="Curves: read values to the left",
    ),
    Binding(
        "right_square_bracket",
        "cursor(1)",
        "Cursor right",
        id="cursor-right",
        show=False,
        tooltip="Curves: read values to the right",
    ),
    Binding(
        "p",
        "published",
        "Published",
        id="published",
        show=False,
        tooltip="Curves: published results as dotted lines",
    ),
    Binding("slash", "filter", "Filter", id="filter", tooltip="Select: filter by words, settings and tags"),
    Binding("e", "app.export", "Export", id="export", tooltip="Export: figures, tables and the report"),
    Binding(
        "t",
        "app.copy('latex')",
        "Copy LaTeX",
        id="copy-latex",
        show=False,
        tooltip="Export: copy the results table as LaTeX",
    ),
    Binding(
        "m",
        "app.copy('markdown')",
        "Copy markdown",
        id="copy-markdown",
        show=False,
        tooltip="Export: copy the table as markdown",
    ),
    Binding("question_mark", "help", "Help", id="help", tooltip="Console: all keys"),
    Binding("b", "baseline", "Baseline", id="baseline", show=False, tooltip="Show: compare all with this row"),
    Binding("D", "differences", "Differences", id="differences", show=False, tooltip="Show: settings that differ"),
    Binding("n", "notes", "Notes", id="notes", show=False, tooltip="Run: write a note and tags"),
    Binding(
        "escape",
        "back",
        "Back",
        id="back",
        show=False,
        tooltip="Console: clear filter, cursor, zoom, then selection",
    ),
    Binding("q", "app.leave", "Quit", id="quit", tooltip="Console: quit; runs continue"),
]
