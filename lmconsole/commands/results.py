"""Table of runs and their results, as `run --headless` and `watch` print it at the end."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from lmconsole.commands.output import console, plain_table
from lmconsole.engine.digest import Digest
from lmconsole.engine.slurm.reasons import describe_task, starts
from lmconsole.errors import escape_control_characters
from lmconsole.formatting import DAMAGE_MARK, UNKNOWN, perplexity, seconds
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

STATUS_STYLES = {
    Status.QUEUED: "dim",
    Status.RUNNING: "cyan",
    Status.FINISHED: "green",
    Status.STOPPED: "yellow",
    Status.FAILED: "bold red",
    Status.LOST: "bold red",
}

RESULTS_NOTE = (
    "Train, Valid, Test: perplexity per target token, at the epoch with the lowest validation perplexity.\n"
    "Time: training alone, without setup and evaluation."
)
NOT_TESTED_NOTE = f"Test {UNKNOWN}: not tested. The same `lmconsole run` without --no-test tests a finished run."
DAMAGE_NOTE = f"{DAMAGE_MARK}: damaged, so not a complete result; `lmconsole status` says where."


def describe_status(run: Run, *, on_slurm: bool = False) -> Text:
    """Return the status in a word or two, with the epoch of an active run, and the mark of a damaged one.

    ``on_slurm``: with node and job of a run that trains on SLURM, or the reason why it waits.
    """
    text = _describe_status(run)
    if on_slurm and run.place is not None and not run.problem:
        _add_task(text, run)
    if run.info.reproduces is not None:
        text.append(", reproduction")
    return text.append(DAMAGE_MARK) if run.state.damage else text


def _describe_status(run: Run) -> Text:
    status, state, epochs = run.status, run.state, run.info.settings.epochs
    text = status.value
    if run.problem:
        return Text("unreadable", style=STATUS_STYLES[Status.FAILED])
    if run.info.origin == "imported":
        return Text(_describe_imported(run), style="dim")
    if state.being_tested:
        text = "to be tested" if status is Status.QUEUED else "stopping, testing" if run.stop_requested else "testing"
    elif run.slurm.interrupted:
        text = f"interrupted in epoch {min(state.position[0], epochs)}"
    elif status is Status.RUNNING:
        text = f"epoch {min(state.position[0], epochs)}/{epochs}"
        if run.stop_requested:
            text = f"stopping, {text}"
    elif status is Status.FINISHED and state.finished and state.finished.diverged:
        text = "diverged"
    elif status is Status.LOST and state.finished:
        text = "lost in its test"
    elif status in (Status.STOPPED, Status.LOST):
        text = f"{status.value} in epoch {min(state.position[0], epochs)}"
    return Text(text, style=STATUS_STYLES[status])


def _add_task(text: Text, run: Run) -> None:
    """Add where a run trains on SLURM, or why it does not, on one line: such reasons are long and often the same."""
    words, latest = describe_task(run), run.state.latest
    if starts(run):
        text.plain = f"starting on {run.slurm.task.node}" if run.slurm.task and run.slurm.task.node else "starting"
    elif run.status is Status.RUNNING and not run.slurm.interrupted and latest is not None and latest.slurm_node:
        text.append(f" on {latest.slurm_node} ({latest.slurm_job})")
    if words:
        text.append(f", {words}")
        text.no_wrap, text.overflow = True, "ellipsis"


def _describe_imported(run: Run) -> str:
    if run.status is Status.FINISHED:
        return "imported, diverged" if run.state.finished and run.state.finished.diverged else "imported"
    return f"imported, {run.state.epochs_done}/{run.info.settings.epochs}"


def results_table(runs: Iterable[Run]) -> Table:
    """Return a table with a row for each run: its status, and its perplexities at the epoch with the lowest
    validation perplexity. Fits 80 columns."""
    runs = list(runs)
    several_seeds = len({run.info.seed for run in runs}) > 1
    table = plain_table(ID="right", Experiment="left")
    for name in ("Seed", "Status") if several_seeds else ("Status",):
        table.add_column(name, justify="right" if name == "Seed" else "left", no_wrap=True)
    for name in ("Train", "Valid", "Epoch", "Test", "Time"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        experiment, state = run.info.experiment, run.state
        best, finished = state.best_epoch or state.last_epoch, state.finished
        table.add_row(
            str(experiment.id),
            Text(escape_control_characters(experiment.label)),
            *([str(run.info.seed)] if several_seeds else []),
            describe_status(run),
            perplexity(best.train_ppl if best else None),
            valid_perplexity(run),
            str(best.epoch) if best else UNKNOWN,
            perplexity(finished.test_ppl_best if finished else None),
            seconds(state.elapsed_train_s),
        )
    return table


def valid_perplexity(run: Run) -> Text:
    """Return the best validation perplexity, or the last one before there is a best; bold unless the run is damaged."""
    best = run.state.best_epoch or run.state.last_epoch
    return Text(perplexity(best.valid_ppl if best else None), style="" if run.state.damage else "bold")


def print_results(runs: Iterable[Run], *, stderr: bool) -> None:
    """Print the table of results and its notes."""
    runs = list(runs)
    out = console(stderr=stderr)
    out.print()
    out.print(results_table(runs))
    out.print(Text(RESULTS_NOTE, style="dim"))
    if any(run.can_be_tested for run in runs):
        out.print(Text(NOT_TESTED_NOTE, style="dim"))
    if any(run.state.damage for run in runs):
        out.print(Text(DAMAGE_NOTE, style="dim"))


def print_digest(digest: Digest, *, stderr: bool) -> None:
    """Print the outcome of runs, except finished ones, which the table has."""
    out = console(stderr=stderr)
    out.print()
    for line in [*digest.lines, *digest.problems]:
        out.print(Text(line), soft_wrap=True)
