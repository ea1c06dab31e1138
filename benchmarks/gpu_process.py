"""A stage in a process of its own, with a deadline that holds whatever hangs. Nothing that it started outlives it."""

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
from pathlib import Path
from typing import Any

import psutil

MARK = "LMCONSOLE_GPU_STAGE"
"""Environment variable by which processes are known that a stage started: those that left its session, too."""
GRACE_S = 8.0
"""Between the deadline that a stage knows and the moment its processes are killed."""
TRACE_S = 1.0
"""How long before that moment a stage writes down where it hangs."""
LOG_CHARACTERS = 8_000


class NotMeasured(Exception):
    """Why a stage has no result; nothing is broken."""


@dataclass(kw_only=True)
class Stage:
    """What a stage knows of its call, and how it reports."""

    name: str
    folder: Path
    """The benchmark's working folder, shared by all stages."""
    deadline: float
    """By ``time.monotonic()``, which all processes of a machine share."""
    epochs: int = 10
    data: Path | None = None
    """Folder of tokens; None: random tokens are used."""
    rehearsal: bool = False
    terminal: int = 2
    began: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        """What the stage and the commands it starts print."""
        return self._file("log")

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        """Print a line about how the stage is getting on."""
        with contextlib.suppress(OSError):
            os.write(self.terminal, f"  {text}\n".encode())

    def report(self, result: Any) -> None:
        """Keep what has been measured so far, in case the stage is killed."""
        self._write({"result": result, "partial": True})

    def run(self, work: Callable[["Stage"], Any]) -> None:
        """Do ``work`` and leave its result, or the reason why there is none, in the answer file."""
        try:
            self._write({"result": work(self)})
        except NotMeasured as error:
            self._write(self.answer() | {"reason": str(error)})
        except Exception as error:  # whatever broke here, other stages follow
            reason = f"{type(error).__name__}: {error}"
            self._write(self.answer() | {"reason": reason, "failed": True, "trace": traceback.format_exc()})

    def answer(self) -> dict[str, Any]:
        """Return what the stage has left so far; empty if nothing."""
        try:
            found: dict[str, Any] = json.loads(self._file("json").read_text(encoding="utf-8"))
        except OSError:
            return {}
        return found

    def redirect(self) -> None:
        """Have everything that the stage prints go into its log, and only ``say`` to the terminal."""
        self.terminal = os.dup(sys.stderr.fileno())
        output = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(output, stream.fileno())
        os.close(output)

    def trace_at(self, when: float) -> None:
        """Write down at ``when`` where every thread of this process is, unless it has ended by then."""
        file = os.open(self._file("trace"), os.O_WRONLY | os.O_CREAT, 0o666)
        faulthandler.dump_traceback_later(max(when - time.monotonic(), 0.1), file=file)

    def tail(self, kind: str) -> str:
        """Return the end of the stage's ``log`` or ``trace``."""
        with contextlib.suppress(OSError):
            return self._file(kind).read_text(encoding="utf-8", errors="replace").strip()[-LOG_CHARACTERS:]
        return ""

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self.name}.{kind}"

    def _write(self, answer: dict[str, Any]) -> None:
        temporary = self._file("tmp")
        temporary.write_text(json.dumps(answer, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, self._file("json"))


def run_apart(stage: Stage, target: str) -> dict[str, Any]:
    """Run ``target``, a function written ``module:name`` that takes the stage and returns its result, in a process of
    its own. When the deadline and the grace have passed, or when it has ended, everything it started is killed.

    Returns ``result`` or ``reason``, or both where only a part was measured, with ``failed``, ``trace`` and ``log``
    where something broke.
    """
    kill_at = stage.deadline + GRACE_S
    linux = sys.platform.startswith("linux")
    context = get_context("forkserver" if linux else "spawn")
    if linux:
        context.set_forkserver_preload(["lmconsole.engine.preload"])  # torch once, and CUDA in no process but a stage's
    process = context.Process(target=_enter, args=(stage, target, kill_at))
    try:
        process.start()
        process.join(max(kill_at - time.monotonic(), 0))
        killed = process.exitcode is None
    finally:  # an interrupt, too
        if process.pid is not None and process.exitcode is None:
            process.kill()
            process.join(5)
        end_processes(_mark(stage))
    answer = stage.answer()
    if killed:
        answer |= {"reason": f"killed after {time.monotonic() - stage.began:.0f} s", "trace": stage.tail("trace")}
    elif not answer or (answer.get("partial") and "reason" not in answer):
        code = process.exitcode or 0
        name = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        answer |= {"reason": f"its process ended with {name}", "failed": True}
    if "reason" in answer and (log := stage.tail("log")):
        answer["log"] = log
    return answer


def _enter(stage: Stage, target: str, kill_at: float) -> None:
    os.setsid()
    os.environ[MARK] = _mark(stage)
    stage.redirect()
    stage.trace_at(kill_at - TRACE_S)
    module, _, name = target.partition(":")
    stage.run(lambda stage: getattr(importlib.import_module(module), name)(stage))
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()


def _mark(stage: Stage) -> str:
    return f"{stage.folder}/{stage.name}"


def end_processes(mark: str) -> None:
    """Kill every process whose environment carries ``mark``, until there is none (three seconds at most)."""
    until = time.monotonic() + 3
    while time.monotonic() < until and (marked := [each for each in psutil.process_iter() if _carries(each, mark)]):
        for each in marked:
            with contextlib.suppress(psutil.Error):
                each.kill()
        time.sleep(0.05)


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False
