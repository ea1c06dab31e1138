"""Processes that are started: those that outlive the one that starts them, which are the runner and the program to run
when the queue is empty; and programs with a time limit."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from lmconsole.engine import stop_signals
from lmconsole.errors import StoreError, escape_control_characters
from lmconsole.files import open_file
from lmconsole.runs.store import Store

SPIN_COUNT = 30_000
"""Number of times that an OpenMP thread checks for work before it sleeps: about 0.5 ms, against 300,000 checks by
default. Waiting longer gains nothing on an idle machine, and next to other busy processes a spinning thread keeps the
one it waits for from running (docs/performance.md has the curve)."""
_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables by which a person sets how threads wait; they take precedence."""


def start_runner(store: Store) -> "subprocess.Popen[bytes] | None":
    """Start this user's runner of the store; return None if it is at work. Of two that start at once, one ends by
    itself. While the runner of another user is at work, it waits.

    Raises StoreError if its log cannot be written.
    """
    owner = store.runner()
    if owner is not None and owner.is_own:
        return None
    try:
        command = python("lmconsole.engine.runner", str(store.root))
        with stop_signals.hold_back():
            return _detached(command, store.runner_log, environment=training_environment())
    except OSError as error:
        raise StoreError(f"{store.runner_log}: the runner cannot be started: {error.strerror}") from None


def disown(process: "subprocess.Popen[bytes]") -> None:
    """Let ``process`` outlive this one, without Python's ResourceWarning about a child that was not waited for."""
    if process.poll() is None:
        process.returncode = 0


def start_program(command: Sequence[str], cwd: str, log: Path) -> None:
    """Start the program to run when the queue is empty, without waiting for it. Raises OSError."""
    disown(_detached(list(command), log, cwd or None, _environment_of_programs()))


def _environment_of_programs() -> dict[str, str]:
    """Return the environment without what only training needs."""
    return {k: v for k, v in os.environ.items() if (k, v) != ("GOMP_SPINCOUNT", str(SPIN_COUNT))}


def _unnamed_file() -> IO[bytes]:
    """Open a file without a name, in memory where that is possible: the disk may be full. Raises OSError."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("input"), "w+b")
    return tempfile.TemporaryFile()


OUTPUT_BYTES = 4_096
"""Bytes at the end of a program's output that are kept."""


class LimitedProgram:
    """A program that reads its input from standard input, and is killed with its children at a time limit. It never
    delays the process that starts it: ``poll`` does not wait."""

    def __init__(self, command: Sequence[str], cwd: str, data: bytes, limit_s: float) -> None:
        """Start the program. Its input is a file, so it need not read it. Raises OSError."""
        self._deadline_s = time.monotonic() + limit_s
        self._output = b""
        with _unnamed_file() as stdin:
            stdin.write(data)
            stdin.flush()
            stdin.seek(0)
            self._process = subprocess.Popen(
                list(command),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all its children can be killed
                env=_environment_of_programs(),
                cwd=cwd or None,
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def poll(self) -> str | None:
        """Return how the program ended: empty for success, else a phrase; None while it is running."""
        code = self._process.poll()
        self._read_output()
        if code is None and time.monotonic() < self._deadline_s:
            return None
        if code is None:
            self.kill()
            return "killed at its time limit"
        self._close()
        if code == 0:
            return ""
        lines = self._output.decode(errors="replace").strip().splitlines()
        return f"exit code {code}{f': {escape_control_characters(lines[-1].strip())}' if lines else ''}"

    def kill(self) -> None:
        """Kill the program and its children, also those that left its process group."""
        if self._process.poll() is None:
            import psutil

            children = []
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(self._process.pid).children(recursive=True)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            for child in children:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        self._close()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            self._output = (self._output + os.read(self._process.stdout.fileno(), 2**20))[-OUTPUT_BYTES:]

    def _close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        disown(self._process)


def training_environment() -> dict[str, str]:
    """Return the environment for a process that trains, or that starts such processes.

    OpenMP's library reads its variables when it is loaded, so they must be set before a process imports torch.
    """
    spin = {} if any(name in os.environ for name in _WAIT_VARIABLES) else {"GOMP_SPINCOUNT": str(SPIN_COUNT)}
    return {**os.environ, **spin}


def python(module: str, *arguments: str) -> list[str]:
    """Return the command line of a module; ``-P`` keeps the current folder from hiding installed packages."""
    return [sys.executable, "-P", "-m", module, *arguments]


def last_line(log: Path) -> str:
    """Return the last line of a process's output in ``log``, which mostly says why it ended, safe for a terminal."""
    try:
        with open(open_file(log, follow=False), "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 4096, 0))
            lines = file.read(4096).decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return escape_control_characters(lines[-1].strip()) if lines else "it printed nothing"


def _detached(
    command: list[str], log: Path, cwd: str | None = None, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own, so that a hang-up or an interrupt of the terminal does not reach it."""
    with open(open_file(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, follow=False), "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**(os.environ if environment is None else environment), "PYTHONUNBUFFERED": "1"},
            cwd=cwd,
        )
