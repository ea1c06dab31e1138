"""The worker: a process that takes a run's lock, trains the run, and records the outcome before it exits."""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from lmconsole import __version__
from lmconsole.errors import escape_control_characters
from lmconsole.runs import lock
from lmconsole.runs.events import EventLog, EventReader, Failed, Stopped
from lmconsole.runs.info import read_info
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run

if TYPE_CHECKING:
    from lmconsole.engine.attempt import Attempt

PRELOAD = ("lmconsole.engine.preload",)
"""Modules that the process imports from which workers are forked."""
LOCK_TIMEOUT_S = 5.0
WAIT_POLL_S = 0.2
"""Interval at which a waiting worker checks whether its run is to stop."""
EXIT_FAILED = 1
EXIT_NOT_TRAINED = 75
"""Another process has the run, or it is not queued, or it could not be prepared ahead: nothing was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Message of the runner to a worker that waits while another run uses the device."""

    go: bool
    """Whether to train now. If not, the other run only has its tests left, and the device may be prepared."""
    variables: Mapping[str, str]
    """Environment variables that decide which GPU the worker sees."""
    siblings: tuple[int, ...]
    began: float
    """``time.monotonic()`` when the message was sent: the clock of the run starts then."""


def start(run: Run, device: str, siblings: Sequence[int], shared: Path | None = None) -> BaseProcess:
    """Start the worker of a queued run on ``device``, ``cpu`` or a GPU's UUID, which is then the only one it sees.

    ``shared`` is the folder of the data that workers share. On Linux the worker is forked from a process that has
    imported torch once for all runs. Elsewhere, and where that process is not available, it starts as a new program:
    the system libraries of macOS do not survive a fork. Raises OSError if it cannot be started.
    """
    arguments = [*_arguments(run, device, shared), "--siblings", *map(str, siblings)]
    return _start(run, arguments, visible(device), None)


def start_waiting(run: Run, device: str, shared: Path | None) -> tuple[BaseProcess, Connection]:
    """Start the worker of a queued run that prepares on the host and then waits for a ``Turn``.

    ``device`` may be any GPU of the run. The worker ends, and the run stays queued, when the connection is closed.
    Raises OSError if it cannot be started.
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


def visible(device: str) -> dict[str, str]:
    """Return the environment that makes the GPU with the UUID ``device`` the only one a worker sees."""
    return {"CUDA_VISIBLE_DEVICES": device} if has_uuid(device) else {}


def has_uuid(device: str) -> bool:
    """Return whether a device key of the queue is a UUID, as the keys of NVIDIA GPUs are."""
    return device.startswith(("GPU-", "MIG-"))


def _arguments(run: Run, device: str, shared: Path | None) -> list[str]:
    more = [] if shared is None else ["--shared", str(shared)]
    return [str(run.paths.folder), "--device", "cuda:0" if has_uuid(device) else device, *more]


def _start(run: Run, arguments: list[str], variables: Mapping[str, str], turns: Connection | None) -> BaseProcess:
    run.paths.worker_log.open("ab").close()  # raised here, an error of this file is reported by the runner
    every = arguments, str(run.paths.worker_log), variables, turns
    process: BaseProcess
    if sys.platform.startswith("linux"):
        forking = get_context("forkserver")
        forking.set_forkserver_preload(list(PRELOAD))
        process = forking.Process(target=enter, args=every)
        try:
            process.start()
            return process
        except (OSError, EOFError) as error:  # it has ended, or its socket's name in a long TMPDIR is too long
            print(
                f"workers are started as new programs instead of forked: {escape_control_characters(str(error))}",
                flush=True,
            )
    process = get_context("spawn").Process(target=enter, args=every)
    process.start()
    return process


def enter(arguments: list[str], log: str, variables: Mapping[str, str], turns: Connection | None) -> None:
    """Run ``main`` in a process that the runner has just started, and exit.

    The process gets a session of its own, so that a hang-up or an interrupt of a terminal does not reach it. It prints
    into the file ``log`` and has ``variables`` in its environment.
    """
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    os.environ.update(variables)
    if "torch" in sys.modules:  # otherwise this process was not forked, or torch cannot be imported, which fails later
        from lmconsole.lm.device import cuda_broken_by_fork

        if cuda_broken_by_fork():
            if turns is not None:
                sys.exit(EXIT_NOT_TRAINED)  # a new program cannot receive turns; the run starts at its turn
            os.execv(sys.executable, [sys.executable, "-P", "-m", "lmconsole.engine.worker", *arguments])
    sys.exit(main(arguments, turns))


def main(arguments: list[str] | None = None, turns: Connection | None = None) -> int:
    """Train the run in the folder given, and return the exit code: 0 for finished or stopped.

    With ``turns``, prepare the run and train it when its turn comes; its clock starts then.
    """
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="lmconsole-worker", description="Trains one queued run.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--device", required=True, help="cpu, cuda:0, …")
    parser.add_argument("--shared", type=Path, help="folder of data that workers share")
    parser.add_argument("--siblings", type=int, nargs="*", default=[], help="pids of other workers of the store")
    asked = parser.parse_args(arguments)
    paths = RunPaths(asked.run.absolute())
    if lock.acquire(paths.lock, LOCK_TIMEOUT_S) is None:
        return EXIT_NOT_TRAINED
    history = RunState()
    history.apply(EventReader(paths.events).read_new())
    if history.status is not Status.QUEUED:
        return EXIT_NOT_TRAINED
    received = _catch_signals()
    log = EventLog(paths.events)

    def stop_requested() -> bool:
        return bool(received) or paths.stop.exists()

    try:
        info = read_info(paths.info)
        os.environ["OMP_NUM_THREADS"] = str(info.threads)
        from lmconsole.engine.attempt import Attempt

        attempt = Attempt(
            info, paths, log, history, device_name=asked.device, shared=asked.shared, stop_requested=stop_requested
        )
        siblings: Sequence[int] = asked.siblings
        if turns is not None:
            try:
                turn = _wait(attempt, turns, stop_requested)
            except _RunnerGone:
                return EXIT_NOT_TRAINED
            except Exception:
                traceback.print_exc()
                print(
                    "The run could not be prepared while another one used the device; it starts at its turn.",
                    flush=True,
                )
                return EXIT_NOT_TRAINED
            if turn is None:
                epoch, step = history.position
                log.append(Stopped(epoch=epoch, step=step), sync=True)
                return 0
            siblings, began = turn.siblings, turn.began
        attempt.run(siblings, began)
    except BaseException as error:
        traceback.print_exc()
        log.append(_failure(error, paths, asked.device), sync=True)
        return EXIT_FAILED
    return 0


class _RunnerGone(Exception):
    """The runner of a waiting worker has ended; the next one starts the run."""


def _wait(attempt: "Attempt", turns: Connection, stop_requested: Callable[[], bool]) -> Turn | None:
    """Prepare ``attempt`` as far as the other run leaves room, and return the turn to train; None for a stop.

    Raises _RunnerGone, and any exception of the preparation. Such a failure is not final: memory may have been short
    because two runs used it, and a process in which CUDA failed cannot try again, so the runner starts the run in a new
    process.
    """
    attempt.prepare_on_host()
    while not stop_requested():
        if not turns.poll(WAIT_POLL_S):
            continue
        try:
            turn: Turn = turns.recv()
        except (EOFError, OSError):
            raise _RunnerGone from None
        os.environ.update(turn.variables)
        if turn.go:
            return turn
        attempt.prepare_on_device()
        if attempt.fell_back:
            raise RuntimeError("a fast path failed; a run must use the same kernels whatever ran before it")
    return None


def _catch_signals() -> list[int]:
    """Collect SIGTERM and SIGINT, which ask for a clean stop, in the list that is returned. Ignore hang-ups."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return received


def _failure(error: BaseException, paths: RunPaths, device_name: str) -> Failed:
    try:
        from lmconsole.engine.attempt import explain

        return explain(error, paths, device_name)
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
