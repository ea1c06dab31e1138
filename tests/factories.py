"""Events with defaults that a test overrides by field name, and other things that many tests need."""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from lmconsole.engine.slurm.batch import Batch, folder_of, write_batch, write_jobs, write_runs
from lmconsole.runs.claim import log_bytes
from lmconsole.runs.cluster import ClusterStatus, TaskStatus, place_key, write_status
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import (
    Epoch,
    Evaluation,
    Event,
    Finished,
    Progress,
    Queued,
    SlurmPlace,
    Started,
    Telemetry,
    perplexity,
)
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.store import Store

STEPS = 8
"""Steps in an epoch."""
STEP_S = 0.5
"""Training time of a step."""
VALID_S = 1.0
"""Time of one validation."""

_HOLD_LOCK = (
    "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX); "
    "print('held', flush=True); sys.stdin.read()"
)


def queued(**changes: object) -> Queued:
    """Return a request for a run on the CPU, alone."""
    return msgspec.structs.replace(Queued(devices=("cpu",), jobs=1), **changes)


def started(**changes: object) -> Started:
    """Return the first attempt on the CPU."""
    event = Started(
        attempt=1,
        pid=1,
        host="host",
        device="cpu",
        device_name="CPU",
        device_uuid=None,
        versions={"lmconsole": "1.2.3", "python": "3.11", "torch": "2.13.0", "driver": None},
        threads=1,
        precision="fp32",
        parameters_total=1_000_000,
        parameters_trainable=250_000,
    )
    return msgspec.structs.replace(event, **changes)


def submission(number: int = 0, *, restarts: int = 0) -> SlurmPlace:
    """Return the place of the only run of the submission ``number`` to SLURM."""
    return SlurmPlace(batch=f"20261127T1200{number:02}Z-abcdef", index=0, restarts=restarts)


def write_submission(
    root: Path, batch: str, names: Sequence[str] = (), *, user: str = "me", restarts: int = 1
) -> Batch:
    """Write a submission of a store with the runs ``names``, as a command on another host does, and return it."""
    content = Batch(user=user, host="login1", array_size=1_000, restarts=restarts)
    folder_of(root, batch).mkdir(parents=True)
    write_batch(root, batch, content)
    write_runs(root, batch, 0, names)
    write_jobs(root, batch, ["1234"])
    return content


def write_answer(root: Path, tasks: Mapping[int, TaskStatus], *, problem: str = "") -> None:
    """Save what SLURM says about the runs of submissions of a store, by their numbers, as its poller does: with the
    present size of each log, unless a task has one."""
    sizes = {run.place: log_bytes(run.paths.events) for run in Store(root).runs() if run.place}
    sizes = {msgspec.structs.replace(place, restarts=0): size for place, size in sizes.items()}
    places = {}
    for number, task in tasks.items():
        size = sizes.get(submission(number)) if task.log_bytes is None else task.log_bytes
        places[place_key(submission(number))] = msgspec.structs.replace(task, log_bytes=size)
    write_status(root, ClusterStatus(t="2999-01-01T00:00:00.000Z", places=places, problem=problem))


def progress(epoch: int = 1, step: int = STEPS, loss_nats: float | None = 5.0, **changes: object) -> Progress:
    """Return the progress after ``step`` steps of ``epoch``. Each step takes ``STEP_S``."""
    event = Progress(
        epoch=epoch,
        step=step,
        steps=STEPS,
        train_loss_nats=loss_nats,
        tokens_per_s=12_345.0,
        elapsed_train_s=((epoch - 1) * STEPS + step) * STEP_S,
    )
    return msgspec.structs.replace(event, **changes)


def evaluation(epoch: int = 1, step: int = STEPS // 2, valid_nats: float = 5.5, **changes: object) -> Evaluation:
    """Return an evaluation after ``step`` steps of ``epoch`` with this loss."""
    event = Evaluation(
        epoch=epoch,
        step=step,
        steps=STEPS,
        valid_loss_nats=valid_nats,
        valid_ppl=perplexity(valid_nats),
        valid_s=VALID_S,
        elapsed_train_s=((epoch - 1) * STEPS + step) * STEP_S,
    )
    return msgspec.structs.replace(event, **changes)


def epoch(number: int = 1, valid_nats: float | None = 5.0, train_nats: float | None = None, **changes: object) -> Epoch:
    """Return the end of an epoch with these losses; the train loss is 0.2 lower than the validation loss by default."""
    if train_nats is None and valid_nats is not None:
        train_nats = valid_nats - 0.2
    event = Epoch(
        epoch=number,
        train_loss_nats=train_nats,
        train_ppl=None if train_nats is None else perplexity(train_nats),
        valid_loss_nats=valid_nats,
        valid_ppl=None if valid_nats is None else perplexity(valid_nats),
        train_s=STEPS * STEP_S,
        valid_s=VALID_S,
        elapsed_train_s=number * STEPS * STEP_S,
    )
    return msgspec.structs.replace(event, **changes)


def epoch_events(number: int, valid_nats: float) -> list[Event]:
    """Return the events of a whole epoch in which the train loss falls."""
    return [
        progress(number, STEPS // 2, valid_nats + 0.1),
        progress(number, STEPS, valid_nats - 0.3),
        epoch(number, valid_nats),
    ]


def finished(valid_nats: Sequence[float] = (5.0,), **changes: object) -> Finished:
    """Return the outcome of a run with these validation losses; it diverged if one of them is not finite."""
    finite = [loss for loss in valid_nats if math.isfinite(loss)]
    best = min(finite, default=math.nan)
    event = Finished(
        test_ppl_final=perplexity(valid_nats[-1] + 0.1),
        test_ppl_best=perplexity(best + 0.1),
        best_epoch=list(valid_nats).index(best) + 1 if finite else None,
        best_valid_ppl=perplexity(best),
        setup_s=2.0,
        wall_s=2.0 + len(valid_nats) * (STEPS * STEP_S + VALID_S),
        diverged=len(finite) < len(valid_nats),
    )
    return msgspec.structs.replace(event, **changes)


def telemetry(**changes: object) -> Telemetry:
    """Return one sample of a run that trains on the CPU."""
    return msgspec.structs.replace(Telemetry(phase="train", epoch=1, rss_mib=2_048.0), **changes)


def append_events(paths: RunPaths, *events: Event) -> None:
    """Append ``events`` to the log of a run."""
    log = EventLog(paths.events)
    try:
        for event in events:
            log.append(event)
    finally:
        log.close()


@contextmanager
def locked_by_another_process(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that holds the lock on ``path`` until the block ends or ``kill_and_wait`` is called."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.touch()
    command = [sys.executable, "-S", "-E", "-c", _HOLD_LOCK, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        kill_and_wait(process)


def kill_and_wait(process: "subprocess.Popen[str]") -> None:
    """Kill a process and wait for its end, when its locks are free."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def alive(pid: int) -> bool:
    """Return whether this process runs. One that has ended can stay a zombie: the first process of a container may be
    slow to reap what its parent left behind, or never do it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until ``condition`` holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.02)
