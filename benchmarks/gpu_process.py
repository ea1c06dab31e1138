"""Stages in processes of their own, with a hard deadline after which everything that a stage started is killed."""

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import psutil

STAGE_VARIABLE = "LMCONSOLE_GPU_STAGE"
"""Environment variable that marks the processes of a stage, even those in a session of their own."""
GRACE_S = 8.0
"""Time from a stage's own deadline until its processes are killed."""
TRACE_S = 1.0
"""Time before that moment at which a stage that hangs writes its tracebacks."""
KILL_TIMEOUT_S = 3.0
LOG_CHARACTERS = 8_000
"""Characters kept from the end of a log."""


class NotMeasuredError(Exception):
    """A stage cannot be measured here, although nothing is broken. The message is the reason."""


@dataclass(kw_only=True)
class Stage:
    """One stage of one call: its options, its files and its deadline."""

    name: str
    folder: Path
    """Working folder shared by all stages."""
    deadline: float
    """By ``time.monotonic()``, which is the same in all processes of a machine."""
    epochs: int = 10
    data: Path | None = None
    """Folder of tokens; None for random tokens."""
    rehearsal: bool = False
    terminal: int = 2
    """File descriptor for progress messages."""
    started: float = field(default_factory=time.monotonic)

    @property
    def log_path(self) -> Path:
        """Output of the stage and of the commands it starts."""
        return self._path("log")

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def progress(self, text: str) -> None:
        """Print a progress message to the terminal."""
        with contextlib.suppress(OSError):
            os.write(self.terminal, f"  {text}\n".encode())

    def save_partial(self, result: Any) -> None:
        """Save the measurements so far, which count if the stage is killed."""
        self._write({"result": result, "partial": True})

    def run(self, work: Callable[["Stage"], Any]) -> None:
        """Call ``work`` and save its result, or the reason why there is none."""
        try:
            self._write({"result": work(self)})
        except NotMeasuredError as error:
            self._write(self.outcome() | {"reason": str(error)})
        except Exception as error:  # whatever failed here, the other stages follow
            reason = f"{type(error).__name__}: {error}"
            self._write(self.outcome() | {"reason": reason, "failed": True, "trace": traceback.format_exc()})

    def outcome(self) -> dict[str, Any]:
        """Return what the stage has saved so far; empty if nothing."""
        try:
            found: dict[str, Any] = json.loads(self._path("json").read_text(encoding="utf-8"))
        except OSError:
            return {}
        return found

    def redirect_output(self) -> None:
        """Send stdout and stderr to the log, and only progress messages to the terminal."""
        self.terminal = os.dup(sys.stderr.fileno())
        output = os.open(self.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(output, stream.fileno())
        os.close(output)

    def dump_tracebacks_at(self, when: float) -> None:
        """Write the tracebacks of all threads of this process at ``when``, unless it has ended by then."""
        file = os.open(self._path("trace"), os.O_WRONLY | os.O_CREAT, 0o666)
        faulthandler.dump_traceback_later(max(when - time.monotonic(), 0.1), file=file)

    def tail(self, kind: str) -> str:
        """Return the end of the stage's ``log`` or ``trace``."""
        with contextlib.suppress(OSError):
            return self._path(kind).read_text(encoding="utf-8", errors="replace").strip()[-LOG_CHARACTERS:]
        return ""

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"

    def _write(self, outcome: dict[str, Any]) -> None:
        temporary = self._path("tmp")
        temporary.write_text(json.dumps(outcome, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, self._path("json"))


def run_isolated(stage: Stage, target: str) -> dict[str, Any]:
    """Run ``target``, a function ``module:name`` that takes the stage and returns its result, in a process of its own.

    When it ends, or when the deadline and the grace period have passed, every process that it started is killed.

    Returns:
        ``result`` or ``reason``, or both if only part was measured; after a failure also ``failed``, ``trace`` and
        ``log``.
    """
    kill_at = stage.deadline + GRACE_S
    linux = sys.platform.startswith("linux")
    context: ForkServerContext | SpawnContext = get_context("forkserver") if linux else get_context("spawn")
    if linux:
        context.set_forkserver_preload(["lmconsole.engine.preload"])  # imports torch once; only stages use CUDA
    process = context.Process(target=_main, args=(stage, target, kill_at))
    try:
        process.start()
        process.join(max(kill_at - time.monotonic(), 0))
        killed = process.exitcode is None
    finally:  # after an interrupt, too
        if process.pid is not None and process.exitcode is None:
            process.kill()
            process.join(5)
        kill_processes(_mark(stage))
    outcome = stage.outcome()
    if killed:
        outcome |= {"reason": f"killed after {time.monotonic() - stage.started:.0f} s", "trace": stage.tail("trace")}
    elif not outcome or (outcome.get("partial") and "reason" not in outcome):
        code = process.exitcode or 0
        name = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        outcome |= {"reason": f"its process ended with {name}", "failed": True}
    if "reason" in outcome and (log := stage.tail("log")):
        outcome["log"] = log
    return outcome


def _main(stage: Stage, target: str, kill_at: float) -> None:
    os.setsid()
    os.environ[STAGE_VARIABLE] = _mark(stage)
    stage.redirect_output()
    stage.dump_tracebacks_at(kill_at - TRACE_S)
    module, _, name = target.partition(":")
    stage.run(lambda stage: getattr(importlib.import_module(module), name)(stage))
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()


def _mark(stage: Stage) -> str:
    return f"{stage.folder}/{stage.name}"


def kill_processes(mark: str) -> None:
    """Kill the processes whose environment has ``mark`` until none is left or ``KILL_TIMEOUT_S`` has passed."""
    give_up_at = time.monotonic() + KILL_TIMEOUT_S
    while time.monotonic() < give_up_at and (marked := [each for each in psutil.process_iter() if _has(each, mark)]):
        for each in marked:
            with contextlib.suppress(psutil.Error):
                each.kill()
        time.sleep(0.05)


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(STAGE_VARIABLE) == mark
    except (psutil.Error, OSError):
        return False
