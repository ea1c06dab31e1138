"""The process that trains one run: how it is started, and what it does: takes the run's lock, trains, and records the
outcome before it exits."""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from lmconsole import __version__
from lmconsole.errors import printable
from lmconsole.runs import lock
from lmconsole.runs.events import EventLog, EventReader, Failed
from lmconsole.runs.info import read_info
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run

LOCK_TIMEOUT_S = 5.0
EXIT_FAILED = 1
EXIT_NOT_MINE = 75
"""Somebody else has the run, or nobody queued it: nothing was written."""


def start(run: Run, device: str, siblings: Sequence[int]) -> BaseProcess:
    """Start the worker of a queued run on ``device``, ``cpu`` or a GPU's UUID, which is then the only one it sees.

    On Linux it is forked from a process that has imported torch before, once for all runs. Elsewhere, and where that
    process cannot be had, it starts anew: macOS's own libraries do not survive a fork. Raises OSError if it cannot be
    started.
    """
    by_uuid = device.startswith(("GPU-", "MIG-"))
    arguments = [str(run.paths.folder), "--device", "cuda:0" if by_uuid else device]
    variables = {"CUDA_VISIBLE_DEVICES": device} if by_uuid else {}
    run.paths.worker_log.open("ab").close()  # what is wrong with it is told here, where somebody listens
    every = [*arguments, "--siblings", *map(str, siblings)], str(run.paths.worker_log), variables
    process: BaseProcess
    if sys.platform.startswith("linux"):
        forking = get_context("forkserver")
        forking.set_forkserver_preload(["lmconsole.engine.preload"])
        process = forking.Process(target=enter, args=every)
        try:
            process.start()
            return process
        except (OSError, EOFError) as error:  # it has ended, or its socket's name in a long TMPDIR is too long
            print(f"workers start anew instead of forked: {printable(str(error))}", flush=True)
    process = get_context("spawn").Process(target=enter, args=every)
    process.start()
    return process


def enter(arguments: list[str], log: str, variables: Mapping[str, str]) -> None:
    """``main`` in a process that the runner has just made: in a session of its own, so that a hang-up or an interrupt
    of a terminal does not reach it, printing into the file ``log``, with ``variables`` in its environment."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    os.environ.update(variables)
    if "torch" in sys.modules:  # else this process was not forked off, or whatever is wrong with torch shows later
        from lmconsole.lm.device import lost_in_fork

        if lost_in_fork():
            os.execv(sys.executable, [sys.executable, "-P", "-m", "lmconsole.engine.worker", *arguments])
    sys.exit(main(arguments))


def main(arguments: list[str] | None = None) -> int:
    """Train the run in the folder given; the exit code is 0 for finished or stopped."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="lmconsole-worker", description="Trains one queued run.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--device", required=True, help="cpu, cuda:0, …")
    parser.add_argument("--siblings", type=int, nargs="*", default=[], help="pids of our other workers")
    asked = parser.parse_args(arguments)
    paths = RunPaths(asked.run.absolute())
    if lock.acquire(paths.lock, LOCK_TIMEOUT_S) is None:
        return EXIT_NOT_MINE
    history = RunState()
    history.apply(EventReader(paths.events).read_new())
    if history.status is not Status.QUEUED:
        return EXIT_NOT_MINE
    stopping = _heed_signals()
    log = EventLog(paths.events)
    try:
        info = read_info(paths.info)
        os.environ["OMP_NUM_THREADS"] = str(info.threads)
        from lmconsole.engine.attempt import run_attempt

        run_attempt(
            info,
            paths,
            log,
            history,
            where=asked.device,
            siblings=asked.siblings,
            began=began,
            stop_requested=lambda: bool(stopping) or paths.stop.exists(),
        )
    except BaseException as error:
        traceback.print_exc()
        log.append(_failure(error, paths, asked.device), sync=True)
        return EXIT_FAILED
    return 0


def _heed_signals() -> list[int]:
    """SIGTERM and SIGINT ask for a clean stop; a hang-up is nobody's business here. Returns the signals received."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return received


def _failure(error: BaseException, paths: RunPaths, where: str) -> Failed:
    try:
        from lmconsole.engine.attempt import explain

        return explain(error, paths, where)
    except Exception:  # whatever is broken here, the outcome must be recorded
        return Failed(
            error="crash",
            message=printable(f"lmconsole {__version__} on {where}: {type(error).__name__}: {error}"),
            hint=f"`lmconsole doctor` checks the installation; the trace is in {paths.worker_log}.",
        )


if __name__ == "__main__":
    sys.exit(main())
