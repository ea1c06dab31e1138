"""The worker: a process that takes a run's lock, trains the run, and records the outcome before it exits."""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from lmconsole import __version__
from lmconsole.engine import stop_signals
from lmconsole.errors import escape_control_characters
from lmconsole.files import open_file
from lmconsole.runs import lock
from lmconsole.runs.claim import ClaimWatch, Held
from lmconsole.runs.event_log import EventLog, LogTakenError
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Failed, Stopped
from lmconsole.runs.info import read_info
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run

if TYPE_CHECKING:
    from lmconsole.engine.attempt import Attempt

PRELOAD: tuple[str, ...] = ("lmconsole.engine.preload",)
"""Modules imported by the process that workers are forked from."""
LOCK_TIMEOUT_S = 5.0
"""Time for the command that queued the run to release its lock."""
WAIT_POLL_S = 0.2
"""Interval at which a waiting worker checks whether its run is to stop."""
EXIT_FAILED = 1
EXIT_NOT_TRAINED = os.EX_TEMPFAIL
"""Nothing was written: another process has the run, it is not queued, it could not be prepared ahead, or the runner
closed the connection or ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOnDevice:
    """Command to a waiting worker: prepare the device now, since the run that uses it only has its tests left."""

    environment: Mapping[str, str]
    """Variables that decide which GPU the worker sees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Command to a waiting worker: train now."""

    environment: Mapping[str, str]
    """Variables that decide which GPU the worker sees."""
    sibling_pids: tuple[int, ...]
    """Other workers of the store, which do not count as other GPU processes."""
    sent_at_s: float
    """``time.monotonic()`` when the command was sent: the clock of the run starts then."""


Command = PrepareOnDevice | Train


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmTask:
    """Task of a SLURM job in which the worker runs."""

    job: str
    """Job, such as ``1234_17``."""
    node: str
    """SLURM's name of the node."""
    claim: Held
    """Claim that allows it to write the log of the run."""


class _SupersededError(Exception):
    """Another process has claimed the run, which must not be written any more."""


def start(run: Run, device: str, sibling_pids: Sequence[int], shared: Path | None = None) -> BaseProcess:
    """Start the worker of a queued run.

    On Linux the worker is forked from a process that has imported torch once for all runs. Elsewhere, and where that
    process is not available, it starts as a new program: the system libraries of macOS do not survive a fork.

    Args:
        device: ``cpu``, or the UUID of the only GPU that the worker is to see.
        sibling_pids: other workers of the store, which do not count as other GPU processes.
        shared: folder of the data that workers share.

    Raises:
        OSError: the worker cannot be started, or its log cannot be written.
    """
    arguments = [*_arguments(run, device, shared), "--siblings", *map(str, sibling_pids)]
    return _start(run, arguments, cuda_environment(device), None)


def start_waiting(run: Run, device: str, shared: Path | None) -> tuple[BaseProcess, Connection]:
    """Start the worker of a queued run. It prepares on the host and then waits for a ``Command`` on the connection.

    ``device`` may be any GPU of the run. The worker ends, and the run stays queued, when the connection is closed.
    Raises OSError as ``start`` does.
    """
    receiver, sender = Pipe(duplex=False)
    try:
        process = _start(run, _arguments(run, device, shared), {}, receiver)
    except BaseException:
        sender.close()
        raise
    finally:
        receiver.close()
    return process, sender


def cuda_environment(device: str) -> dict[str, str]:
    """Return the variables that make ``device``, a key in the queue, the only GPU a worker sees; none for ``cpu``."""
    return {"CUDA_VISIBLE_DEVICES": device} if is_gpu_uuid(device) else {}


def is_gpu_uuid(device: str) -> bool:
    """Return whether a device key in the queue is the UUID of an NVIDIA GPU or of a MIG slice."""
    return device.startswith(("GPU-", "MIG-"))


def _arguments(run: Run, device: str, shared: Path | None) -> list[str]:
    optional = [] if shared is None else ["--shared", str(shared)]
    return [str(run.paths.folder), "--device", "cuda:0" if is_gpu_uuid(device) else device, *optional]


def _start(run: Run, arguments: list[str], environment: Mapping[str, str], commands: Connection | None) -> BaseProcess:
    os.close(_open_log(run.paths.worker_log))  # so that the runner reports it if the worker cannot open its log
    args = arguments, str(run.paths.worker_log), environment, commands
    process: BaseProcess
    if sys.platform.startswith("linux"):
        context = get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        process = context.Process(target=_child_main, args=args)
        try:
            _start_held_back(process)
            return process
        except (OSError, EOFError) as error:  # the fork server has ended, or TMPDIR is too long for its socket's name
            print(
                f"workers are started as new programs instead of forked: {escape_control_characters(str(error))}",
                flush=True,
            )
    process = get_context("spawn").Process(target=_child_main, args=args)
    _start_held_back(process)
    return process


def _start_held_back(process: BaseProcess) -> None:
    """Start a process, and the fork server if it is not at work, that keeps signals until ``main`` handles them."""
    with stop_signals.hold_back():
        resource_tracker.ensure_running()  # it lets SIGINT and SIGTERM through when it starts a process
        with stop_signals.hold_back():
            process.start()


def _open_log(path: Path) -> int:
    return open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, follow=False)


def _child_main(
    arguments: list[str], log_path: str, environment: Mapping[str, str], commands: Connection | None
) -> None:
    """Run ``main`` in a process that the runner has just started, and exit.

    The process gets a session of its own, so that a hang-up or an interrupt of a terminal does not reach it. Its output
    goes to ``log_path``, and ``environment`` is added to its own. Until ``main`` handles them, signals are held back.
    """
    os.setsid()
    output = _open_log(Path(log_path))
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    os.environ.update(environment)
    if "torch" in sys.modules:  # otherwise this process was not forked, or torch cannot be imported, which fails later
        from lmconsole.lm.device import cuda_broken_by_fork

        if cuda_broken_by_fork():
            if commands is not None:
                sys.exit(EXIT_NOT_TRAINED)  # a new program has no connection; the run stays queued
            os.execv(sys.executable, [sys.executable, "-P", "-m", "lmconsole.engine.worker", *arguments])
    sys.exit(main(arguments, commands))


def main(arguments: list[str] | None = None, commands: Connection | None = None, task: SlurmTask | None = None) -> int:
    """Train a run, or test one that has finished, and return the exit code: 0 for finished or stopped.

    With ``commands``, prepare the run and wait for the command to train it; its clock starts then. In a ``task`` of
    SLURM, end without writing anything more as soon as another process has claimed the run. A failure is recorded in
    the run's log; only one of the log itself is raised, and the runner reports it.

    Raises:
        OSError: the run's lock or log cannot be opened.
    """
    began = time.monotonic()
    received = stop_signals.collect()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="lmconsole-worker", description="Trains one queued run.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--device", required=True, help="cpu, cuda:0, …")
    parser.add_argument("--shared", type=Path, help="folder of data that workers share")
    parser.add_argument("--siblings", type=int, nargs="*", default=[], help="pids of other workers of the store")
    options = parser.parse_args(arguments)
    paths = RunPaths(options.run.absolute())
    # held until the process exits; in a task, the claim decides
    run_lock = lock.acquire(paths.lock, LOCK_TIMEOUT_S, optional=task is not None)
    if run_lock is None:
        return EXIT_NOT_TRAINED
    try:
        return _train(options, paths, commands, task, received, began)
    finally:
        if task is not None:  # the task may queue the run again
            run_lock.release()


def _train(
    options: argparse.Namespace,
    paths: RunPaths,
    commands: Connection | None,
    task: SlurmTask | None,
    received: list[int],
    began: float,
) -> int:
    """Train the run whose lock this process holds, as ``main`` does."""
    history = RunState()
    history.read(EventReader(paths.events))
    if history.status is not Status.QUEUED:
        return EXIT_NOT_TRAINED
    log = EventLog(paths.events, fenced=task is not None)
    watch = ClaimWatch(task.claim) if task else None

    def stop_requested() -> bool:
        if watch is not None and watch.is_superseded():
            raise _SupersededError
        return bool(received) or paths.stop_requested

    def stop_signal() -> str | None:
        return signal.Signals(received[0]).name if received and not paths.stop_requested else None

    try:
        info = read_info(paths.info)
        os.environ["OMP_NUM_THREADS"] = str(info.threads or 1)
        from lmconsole.engine.attempt import Attempt

        attempt = Attempt(
            info,
            paths,
            log,
            history,
            device_name=options.device,
            shared=options.shared,
            stop_requested=stop_requested,
            stop_signal=stop_signal,
            slurm_job=task.job if task else None,
            slurm_node=task.node if task else None,
            log_damaged=history.log_damaged,
            set_aside_before=history.checkpoints_set_aside,
        )
        sibling_pids: Sequence[int] = options.siblings
        if commands is not None:
            try:
                command = _wait(attempt, commands, stop_requested)
            except _ConnectionClosed:
                return EXIT_NOT_TRAINED
            except Exception:
                traceback.print_exc()
                if not stop_requested():
                    print(
                        "The run could not be prepared while another one used the device; it starts when that one "
                        "ends.",
                        flush=True,
                    )
                    return EXIT_NOT_TRAINED
                command = None
            if command is None:
                epoch, step = history.position
                log.append(Stopped(epoch=epoch, step=step, signal=stop_signal()), sync=True)
                return 0
            sibling_pids, began = command.sibling_pids, command.sent_at_s
        attempt.run(sibling_pids, began)
    except (_SupersededError, LogTakenError):
        print("Another process has taken over this run; this one ends without writing anything more.", flush=True)
        return EXIT_NOT_TRAINED
    except BaseException as error:
        traceback.print_exc()
        log.append(_failure(error, paths, options.device, only_tests=history.finished is not None), sync=True)
        return EXIT_FAILED
    return 0


class _ConnectionClosed(Exception):
    """The runner closed the connection to a waiting worker, or ended; the run stays queued."""


def _wait(attempt: "Attempt", commands: Connection, stop_requested: Callable[[], bool]) -> Train | None:
    """Prepare ``attempt`` as ``commands`` allow, and return the command to train; None if the run is to stop.

    Raises _ConnectionClosed, and any exception of the preparation. The run then stays queued, and a runner starts it in
    a new process: memory may have been short because two runs used it, and CUDA cannot be used again once it failed.
    """
    attempt.prepare_on_host()
    while not stop_requested():
        if not commands.poll(WAIT_POLL_S):
            continue
        try:
            command: Command = commands.recv()
        except (EOFError, OSError):
            raise _ConnectionClosed from None
        os.environ.update(command.environment)
        if isinstance(command, Train):
            return command
        attempt.prepare_on_device()
        if attempt.fell_back:
            raise RuntimeError("a fast path failed; a run must use the same kernels whatever ran before it")
    return None


def _failure(error: BaseException, paths: RunPaths, device_name: str, *, only_tests: bool) -> Failed:
    try:
        from lmconsole.engine.attempt import explain

        return explain(error, paths, device_name, only_tests=only_tests)
    except Exception:  # the outcome must be recorded even if explaining it fails
        return Failed(
            error="crash",
            message=escape_control_characters(
                f"lmconsole {__version__} on {device_name}: {type(error).__name__}: {error}"
            ),
            hint=f"`lmconsole doctor` checks the installation; the trace is in {paths.worker_log}.",
        )


if __name__ == "__main__":
    sys.exit(main())
