"""`lmconsole status`: the runs of a store, as a table or as JSON."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast

import msgspec
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from lmconsole.commands.output import (
    console,
    plain_table,
    print_data,
    print_json,
    print_message,
    print_table,
    warn_about,
)
from lmconsole.commands.results import describe_status, valid_perplexity
from lmconsole.engine.digest import read_digest
from lmconsole.engine.slurm.reasons import count_tasks, describe_task, no_answer
from lmconsole.errors import escape_control_characters
from lmconsole.formatting import DAMAGE_MARK, local_time, seconds
from lmconsole.plan.experiment import Model, Optimizer
from lmconsole.runs import endpoint
from lmconsole.runs.permissions import NOT_STARTED, pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store, without_garbage_collection

MAX_LISTED = 12
"""Runs that a message lists by name."""
NUMBERS_WIDTH = 23
"""Width of the columns of numbers in the table, with the spaces between columns."""
LEAST_STATUS = 16
"""Least width of the column of states where runs are on SLURM."""


def show_status(root: Path, *, json: bool) -> None:
    """Print the runs of the store at ``root``, and why runs failed."""
    with without_garbage_collection():  # the command ends before it could pay
        _show_status(Store(root, cached=True), json=json)


def _show_status(store: Store, *, json: bool) -> None:
    runs = store.runs()
    if json:
        print_json([summarize(run) for run in runs])
    elif not runs:
        found = "no runs yet" if store.root.is_dir() else "no such folder, so no runs yet"
        print_message(f"{store.root}: {found}. `lmconsole run ID` trains an experiment.")
    else:
        print_table(status_table(runs))
        _print_tasks(store, runs)
        _print_unattended(store, runs)
        _print_untested(runs)
        for run in runs:
            if run.state.failed:
                print_message(f"{run.run}: {run.state.failed.message}\n  {run.state.failed.hint}")
            if run.state.damage:
                print_message(f"{run.run}: warning: damaged ({DAMAGE_MARK}): {'; '.join(run.state.damage)}")
            if run.notes_problem:
                print_message(f"warning: {run.notes_problem}")
    warn_about(store)


def show_digest(root: Path, *, json: bool) -> None:
    """Print the outcome of the last queue. Raises StoreError if its file cannot be read."""
    store = Store(root)
    digest = read_digest(store)
    if json:
        print_json(digest)
    elif digest is None:
        print_message(f"{store.root}: no digest yet. The first is written when the queue is empty.")
    else:
        print_data(f"{digest.host}, {local_time(digest.time)}\n{digest.text}")


def _print_tasks(store: Store, runs: Iterable[Run]) -> None:
    """Print how many runs train and wait on SLURM, why, and when SLURM was asked."""
    on_slurm, answer = [run for run in runs if run.active_on_slurm], store.cluster.status
    if on_slurm:
        asked = f"SLURM was asked at {local_time(answer.t)}." if answer and not answer.problem else no_answer(answer)
        print_message(f"{count_tasks(on_slurm)}. {asked}")


def _print_unattended(store: Store, runs: Iterable[Run]) -> None:
    """Print which queued runs nobody will start."""
    queued = [run for run in runs if run.status is Status.QUEUED and not run.problem and run.info.origin == "trained"]
    waiting = {run.run for run in pending(store, queued)}
    names = [run.run for run in queued if run.run not in waiting]
    if names:
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        print_message(f"{', '.join(names[:MAX_LISTED])}{more}: {NOT_STARTED}")


def _print_untested(runs: Iterable[Run]) -> None:
    """Print which finished runs were not tested, and how they can be."""
    names = [run.run for run in runs if run.can_be_tested and not run.state.being_tested]
    if names:
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        print_message(
            f"{', '.join(names[:MAX_LISTED])}{more}: finished, but not tested. The same `lmconsole run` without "
            "--no-test tests without training again."
        )


def status_table(runs: Iterable[Run]) -> Table:
    """Return a table with a row for each run, by its id."""
    table = plain_table(Run="left", Status="left", Valid_PPL="right", Time="right")
    table.columns[0].overflow = "fold"
    table.columns[0].no_wrap = False
    runs = list(runs)
    if any(run.active_on_slurm for run in runs):  # reasons are long: they take what the names leave
        others = max(cell_len(run.run) for run in runs) + NUMBERS_WIDTH
        table.columns[1].no_wrap = False
        table.columns[1].max_width = max(console().width - others, LEAST_STATUS)
    noted = any(run.notes.text for run in runs)
    if noted:
        table.add_column("Tags and note", overflow="fold")
    for run in runs:
        name = Text(escape_control_characters(run.run))
        notes = [Text(escape_control_characters(run.notes.text))] if noted else []
        table.add_row(
            name, describe_status(run, on_slurm=True), valid_perplexity(run), seconds(run.state.elapsed_train_s), *notes
        )
    return table


NonFinite = Literal["nan", "inf", "-inf"]


class RunError(msgspec.Struct, frozen=True, kw_only=True):
    """Failure of the last attempt at a run."""

    error: str
    """Kind of the error, such as ``out-of-memory``."""
    message: str
    """Message for people: what happened."""
    hint: str
    """Message for people: what to do about it."""


class SlurmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run in SLURM. Unknown is null."""

    job: str | None
    """Job, such as ``1234_17`` for a task of an array: the present one, or else that of the latest attempt."""
    node: str | None
    """Node on which the run trains, or trained last."""
    restarts: int
    """Times that SLURM has started the run again."""
    state: str | None
    """State of the job in SLURM's words, such as ``PENDING``; null if the run has ended or SLURM has not been asked."""
    reason: str | None
    """Reason why the job waits in SLURM's words, such as ``Priority``; null without one."""
    description: str | None
    """Message for people: why the run does not train; null if it does, if it has ended, or if that is unknown."""
    asked: str | None
    """Time at which SLURM was asked: UTC, ISO 8601; null with ``state``."""
    problem: str | None
    """Reason why SLURM has not answered since then; null if it has."""


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as `status --json` and `list --json` print it. Unknown is null. Numbers that are not finite are text,
    since JSON has none."""

    run: str
    """Id of the run: the name of its folder."""
    experiment: int
    """Id of the experiment."""
    label: str
    """Name of the experiment for display."""
    model: Model
    """Architecture: ``lstm`` or ``gpt1``."""
    layers: int
    """Stacked LSTM layers, or transformer blocks."""
    optimizer: Optimizer
    """``adam``, ``adamw``, ``sgd``, or ``momentum`` (SGD with momentum)."""
    preset: str
    """Preset from which the settings come."""
    origin: Literal["trained", "imported"]
    """``imported``: the run was trained by another program."""
    denominator: Literal["targets", "padded"]
    """Losses are means over the target tokens, or over the positions of full batches (docs/protocol.md)."""
    seed: int
    """Seed of initialization, shuffling and dropout."""
    reproduces: str | None
    """Id of the run that this one trains again, to compare the two; null for all other runs."""
    status: Status
    """``lost``: the run is running according to its log, but its worker has died."""
    attempt: int
    """Number of the latest attempt, from 1; 0 before the first."""
    epoch: int
    """Epoch in progress, from 1; one more than ``epochs`` after the last."""
    step: int
    """Steps of this epoch that are known to be done."""
    epochs: int
    """Epochs that the run is to train."""
    train_ppl: float | NonFinite | None
    """Train perplexity of the latest complete epoch."""
    best_valid_ppl: float | NonFinite | None
    """Lowest validation perplexity so far."""
    best_epoch: int | None
    """Epoch with the lowest validation perplexity, from 1."""
    test_ppl_best: float | NonFinite | None
    """Test perplexity with the weights of the best epoch; null until the run has finished, and if it was not tested."""
    test_ppl_final: float | NonFinite | None
    """Test perplexity with the weights of the last epoch; null until the run has finished, if it was not tested, and if
    it was tested later and the last epoch was not the best."""
    test_bits_per_byte: float | NonFinite | None
    """Test loss with the weights of the best epoch, in bits per UTF-8 byte of the text; null where the text is not
    known, until the run has finished, and if it was not tested. Infinite for a diverged run."""
    tested: bool | None
    """Whether there are test results; null until the run has finished. False for a tuning run, and for an imported one
    whose source states none."""
    diverged: bool | None
    """Whether the loss became NaN or infinite; null until the run has finished."""
    elapsed_train_s: float | None
    """Training time so far, over all attempts, in seconds; without setup and evaluation."""
    energy_j: float | None
    """Energy that the whole GPU board used for training and validation, in joules."""
    device: str | None
    """Device of the latest attempt as PyTorch names it: ``cpu`` or ``cuda:0``."""
    precision: str
    """Precision of matrix products: ``fp32``, ``tf32`` or ``bf16``."""
    slurm: SlurmSummary | None
    """Task of a run that SLURM starts; null for all other runs."""
    error: RunError | None
    """Failure of the last attempt; null if that has not failed. A finished run has one if its later test failed."""
    note: str | None
    """Note that someone has written about the run; null if there is none."""
    tags: tuple[str, ...]
    """Tags of the run."""
    notes_problem: str | None
    """Error in the file of note and tags; null if there is none."""
    damaged_lines: int
    """Lines of the log that cannot be read."""
    damage: tuple[str, ...]
    """Damage of the log, and where it is; empty if none is known."""
    problem: str | None
    """Error in the files of the run; null if there is none."""
    folder: str
    """Absolute path of the folder of the run."""


def summarize(run: Run) -> RunSummary:
    """Return a run for JSON output."""
    state, info = run.state, run.info
    best, finished, failed, (epoch, step) = state.best_epoch, state.finished, state.failed, state.position
    return RunSummary(
        run=run.run,
        experiment=info.experiment.id,
        label=info.experiment.label,
        model=info.experiment.model,
        layers=info.experiment.layers,
        optimizer=info.experiment.optimizer,
        preset=info.preset,
        origin=info.origin,
        denominator=info.denominator,
        seed=info.seed,
        reproduces=info.reproduces,
        status=run.status,
        attempt=state.attempt,
        epoch=epoch,
        step=step,
        epochs=info.settings.epochs,
        train_ppl=_json_number(state.train_ppl),
        best_valid_ppl=_json_number(best.valid_ppl if best else None),
        best_epoch=best.epoch if best else None,
        test_ppl_best=_json_number(finished.test_ppl_best if finished else None),
        test_ppl_final=_json_number(finished.test_ppl_final if finished else None),
        test_bits_per_byte=_json_number(endpoint.bits_per_byte(finished, info.corpus)),
        tested=finished.tested if finished else None,
        diverged=finished.diverged if finished else None,
        elapsed_train_s=state.elapsed_train_s,
        energy_j=finished.energy_j if finished else None,
        device=state.latest.device if state.latest else None,
        precision=info.settings.precision,
        slurm=_summarize_task(run),
        error=RunError(error=failed.error, message=failed.message, hint=failed.hint) if failed else None,
        note=run.notes.note or None,
        tags=run.notes.tags,
        notes_problem=run.notes_problem,
        damaged_lines=state.damaged,
        damage=state.damage,
        problem=run.problem,
        folder=str(run.paths.folder),
    )


def _summarize_task(run: Run) -> SlurmSummary | None:
    if run.place is None:
        return None
    task, latest = run.slurm.task, run.state.latest
    answer = run.cluster.status if run.cluster and task else None
    return SlurmSummary(
        job=(task.job if task else "") or (latest.slurm_job if latest else None),
        node=(task.node if task else "") or (latest.slurm_node if latest else None),
        restarts=run.place.restarts,
        state=(task.state or None) if task else None,
        reason=(task.reason or None) if task else None,
        description=describe_task(run) or None,
        asked=answer.t if answer else None,
        problem=(answer.problem or None) if answer else None,
    )


def _json_number(value: float | None) -> float | NonFinite | None:
    return value if value is None or math.isfinite(value) else cast("NonFinite", str(value))
