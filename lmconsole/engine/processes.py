"""Processes that outlive the one that starts them: the runner, and the program to run when the queue is empty."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    """Start the store's runner; return None if one is at work. Of two that start at once, one ends by itself.

    Raises StoreError if its log cannot be written.
    """
    if store.runner() is not None:
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
    environment = {k: v for k, v in os.environ.items() if (k, v) != ("GOMP_SPINCOUNT", str(SPIN_COUNT))}
    disown(_detached(list(command), log, cwd or None, environment))


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
