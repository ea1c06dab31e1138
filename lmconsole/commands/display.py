"""Displays of runs in progress: a live table on a terminal, plain lines in a pipe, JSON lines on request."""

import sys
from collections.abc import Sequence
from typing import Protocol

import msgspec
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lmconsole import formatting
from lmconsole.commands.output import console, print_json_line, print_message
from lmconsole.engine.slurm.reasons import count_tasks, describe_task, no_answer
from lmconsole.errors import escape_control_characters
from lmconsole.runs.cluster import WARNINGS, ClusterStatus
from lmconsole.runs.events import (
    AnyEvent,
    Epoch,
    Evaluation,
    Failed,
    Finished,
    Progress,
    Queued,
    SlurmPlace,
    Started,
    Stopped,
    perplexity,
)
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run


class Display(Protocol):
    """A context manager that shows runs as their events arrive."""

    name_seeds: bool
    """Whether names of runs have their seed, since several runs differ only in it."""

    def __enter__(self) -> "Display": ...
    def __exit__(self, *_: object) -> None: ...

    def show(self, run: Run, events: Sequence[AnyEvent]) -> None:
        """Show the new ``events`` of ``run``."""

    def say(self, message: str) -> None:
        """Show a message."""

    def refresh(self, runs: Sequence[Run]) -> None:
        """Redraw what changes with time; called several times a second."""


def choose_display(*, json: bool) -> Display:
    """Return the display that suits standard error, or with ``json`` the one for standard output."""
    if json:
        return JsonDisplay()
    return LiveDisplay() if sys.stderr.isatty() else PlainDisplay()


def label(run: Run, *, seed: bool = False) -> str:
    """Return the experiment's number and name, and if wanted the seed."""
    name = f"{run.info.experiment.id:>2} {run.info.experiment.label}"
    return escape_control_characters(f"{name}, seed {run.info.seed}" if seed else name)


def sentence(run: Run, event: AnyEvent) -> str | None:
    """Return one sentence about ``event``; None for events that only a log needs."""
    epochs = run.info.settings.epochs
    match event:
        case Queued(slurm=SlurmPlace(restarts=restarts)) if restarts:
            return f"queued again, as SLURM starts it again (restart {restarts})"
        case Started():
            again = f", attempt {event.attempt}" if event.attempt > 1 else ""
            if event.slurm_job:
                node = f"on node {event.slurm_node or formatting.UNKNOWN} (job {event.slurm_job})"
                return f"started {node}, {event.device} ({event.device_name}), {event.precision}{again}"
            return f"started on {event.device} ({event.device_name}), {event.precision}{again}"
        case Evaluation():
            return (
                f"epoch {event.epoch}/{epochs}, step {event.step}/{event.steps}  "
                f"valid ppl {formatting.perplexity(event.valid_ppl)}  {formatting.seconds(event.elapsed_train_s)}"
            )
        case Epoch():
            tokens = run.info.corpus.tokens.get("train")
            pace = tokens / event.train_s if tokens and event.train_s else None
            return (
                f"epoch {event.epoch}/{epochs}  train ppl {formatting.perplexity(event.train_ppl)}  "
                f"valid ppl {formatting.perplexity(event.valid_ppl)}  {formatting.rate(pace)} tokens/s  "
                f"{formatting.seconds(event.elapsed_train_s)}"
            )
        case Finished():
            best = formatting.perplexity(event.best_valid_ppl)
            note = " (diverged)" if event.diverged else " (stopped early)" if event.stopped_early else ""
            test = formatting.perplexity(event.test_ppl_best) + (" (not tested)" if run.can_be_tested else "")
            return (
                f"finished{note}  best valid ppl {best} in epoch {event.best_epoch or formatting.UNKNOWN}  "
                f"test ppl {test}"
            )
        case Stopped():
            if run.state.finished:
                return "stopped during the test; running it again tests it"
            tested = event.epoch > epochs
            position = "during the final test" if tested else f"in epoch {event.epoch}, step {event.step}"
            if run.place is not None and event.signal in WARNINGS:
                return f"stopped by {event.signal} ahead of the time limit {position}; SLURM starts it again"
            if run.place is not None and event.signal:
                return f"stopped by {event.signal} {position}; SLURM may start it again"
            return f"stopped {position}; running it again resumes there"
        case Failed():
            what = "test failed" if run.state.finished else "failed"
            return f"{what}: {event.message}\n   {event.hint}"
        case _:
            return None


class PlainDisplay:
    """Plain lines on standard error."""

    name_seeds = False

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._reasons: set[str] = set()
        """Reasons why runs wait on SLURM that have been shown."""

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, run: Run, events: Sequence[AnyEvent]) -> None:
        for event in events:
            text = sentence(run, event)
            if text:
                self.say(f"{label(run, seed=self.name_seeds)}  {text}")

    def say(self, message: str) -> None:
        print_message(message)

    def refresh(self, runs: Sequence[Run]) -> None:
        """Say what SLURM does with the runs when there is a reason that has not been shown."""
        reasons = waiting_reasons(runs)
        if not reasons <= self._reasons:
            self._reasons |= reasons
            self.say(slurm_line(runs))


class JsonDisplay(PlainDisplay):
    """One JSON object per event on standard output, each with its ``run``; messages go to standard error."""

    def show(self, run: Run, events: Sequence[AnyEvent]) -> None:
        for event in events:
            print_json_line({"run": run.run, **msgspec.to_builtins(event)})


class LiveDisplay:
    """A table of active runs and a progress bar, redrawn in place on standard error; outcomes scroll up above it."""

    name_seeds = False

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True, auto_refresh=False)

    def __enter__(self) -> "LiveDisplay":
        self._live.__enter__()
        return self

    def __exit__(self, *arguments: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, run: Run, events: Sequence[AnyEvent]) -> None:
        for event in events:
            text = sentence(run, event) if isinstance(event, Finished | Stopped | Failed) else None
            if text:
                style = "red" if isinstance(event, Failed) else "yellow" if isinstance(event, Stopped) else "green"
                name = Text(f"{label(run, seed=self.name_seeds)}  ")
                self._live.console.print(name.append(escape_control_characters(text), style=style))

    def say(self, message: str) -> None:
        self._live.console.print(Text(escape_control_characters(message)))

    def refresh(self, runs: Sequence[Run]) -> None:
        line = slurm_line(runs)
        tasks = [Text(escape_control_characters(line), style="dim")] if line else []
        self._live.update(Group(active_table(runs), *tasks, total_line(runs)), refresh=True)


def slurm_line(runs: Sequence[Run]) -> str:
    """Return a line about the runs that train or wait on SLURM; empty if there is none."""
    on_slurm = [run for run in runs if run.active_on_slurm]
    lines = (count_tasks(on_slurm), no_answer(_answer(on_slurm))) if on_slurm else ()
    return ". ".join(filter(None, lines))


def waiting_reasons(runs: Sequence[Run]) -> set[str]:
    """Return the different reasons why runs wait on SLURM, and why it does not answer."""
    on_slurm = [run for run in runs if run.active_on_slurm]
    answer = _answer(on_slurm)
    return {*(describe_task(run) for run in on_slurm), answer.problem if answer else ""} - {""}


def _answer(on_slurm: Sequence[Run]) -> ClusterStatus | None:
    """Return SLURM's last answer about these runs of one store."""
    reader = on_slurm[0].cluster if on_slurm else None
    return reader.status if reader else None


def active_table(runs: Sequence[Run]) -> Table | Text:
    """Return a table with a row for each run in progress."""
    training = [run for run in runs if run.status is Status.RUNNING and not run.slurm.interrupted]
    if not training:
        here = any(run.status.active and run.place is None for run in runs)
        return Text("starting the next run …" if here else "", style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    table.add_column("")
    on_slurm = any(run.active_on_slurm for run in runs)
    if on_slurm:
        table.add_column("Node", no_wrap=True)
    for name in ("Epoch", "Step", "Tokens/s", "Train PPL", "Valid PPL", "Left"):
        table.add_column(name, justify="right", no_wrap=True)
    seed = several_seeds(runs)
    for run in training:
        name, *numbers = _active_row(run, seed)
        table.add_row(name, *([_node(run)] if on_slurm else []), *numbers)
    return table


def several_seeds(runs: Sequence[Run]) -> bool:
    """Return whether names of runs need their seed."""
    return len({run.info.seed for run in runs}) > 1


def _node(run: Run) -> str:
    node = run.state.latest.slurm_node if run.state.latest else None
    return escape_control_characters(node or formatting.UNKNOWN)


def _active_row(run: Run, seed: bool) -> list[str]:
    state, epochs = run.state, run.info.settings.epochs
    epoch, step = state.position
    now: Progress | None = state.progress[-1] if state.progress else None
    last = state.last_validation
    phase = "test" if epoch > epochs or state.being_tested else f"{epoch}/{epochs}"
    loss = now.train_loss_nats if now else None
    return [
        f"{label(run, seed=seed)}{' (stopping)' if run.stop_requested else ''}",
        phase,
        f"{step}/{now.steps}" if now else formatting.UNKNOWN,
        formatting.rate(now.tokens_per_s if now else None),
        formatting.perplexity(None if loss is None else perplexity(loss)),
        formatting.perplexity(last.valid_ppl if last else None),
        formatting.seconds(state.seconds_left(epochs)),
    ]


def _done(run: Run) -> float:
    """Return the fraction of an active run that is done; a test that was asked for later counts as a whole."""
    return 0.0 if run.state.being_tested else run.state.done(run.info.settings.epochs)


def total_line(runs: Sequence[Run]) -> Table:
    """Return the number of runs that are no longer active, and a progress bar that counts parts of active ones."""
    ended = sum(not run.status.active for run in runs)
    done = sum(1.0 if not run.status.active else _done(run) for run in runs)
    line = Table.grid(padding=(0, 1))
    line.add_row(
        f"{ended}/{formatting.counted(len(runs), 'run')}",
        ProgressBar(total=float(len(runs)), completed=done, width=40),
        f"{100 * done / max(len(runs), 1):.0f} %",
    )
    return line
