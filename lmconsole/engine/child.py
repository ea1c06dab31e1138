"""Requests to a child process that imports torch, so that commands and the console need not.

The request is JSON on the child's standard input. Its standard output is JSON too: the answer or an error. Lines of its
standard error that begin with ``PROGRESS`` are messages to the person who waits.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lmconsole.engine.processes import python, training_environment
from lmconsole.errors import DeviceError, ExitCode, LmconsoleError

Request = TypeVar("Request")
Answer = TypeVar("Answer", bound=msgspec.Struct)


PROGRESS = "progress: "


class ChildError(msgspec.Struct, frozen=True, kw_only=True, tag="error"):
    """An LmconsoleError raised in the child process."""

    message: str
    hint: str | None


def ask_child(
    module: str,
    request: object,
    answer: type[Answer],
    timeout_s: float,
    report: Callable[[str], None] = lambda _: None,
) -> Answer:
    """Run ``module`` with ``request`` and return its ``answer``.

    Args:
        report: receives the child's messages of progress, in a thread.

    Raises:
        LmconsoleError: the child reported what is wrong with the request or the machine.
        DeviceError: the child cannot be started, took too long, or ended without an answer.
    """
    read_end, write_end = os.pipe()
    errors: list[str] = []
    reader = threading.Thread(target=_read_errors, args=(read_end, report, errors), daemon=True)
    reader.start()
    try:
        done = subprocess.run(
            python(module),
            input=encode_request(request),
            stdout=subprocess.PIPE,
            stderr=write_end,
            env=training_environment(),
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"data and devices cannot be checked: {error}", hint="Try `lmconsole doctor`.") from None
    finally:
        os.close(write_end)
        reader.join(timeout=5.0)  # a process that the child left behind may keep the pipe open
    with contextlib.suppress(msgspec.MsgspecError):
        refusal = msgspec.json.decode(done.stdout, type=ChildError)
        raise LmconsoleError(refusal.message, hint=refusal.hint)
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode(done.stdout, type=answer)
    last = errors[-1] if errors else ""
    raise DeviceError(
        f"PyTorch cannot be used here: {last or f'the process ended with exit code {done.returncode}'}",
        hint="`lmconsole doctor` checks the installation.",
    )


def answer_parent(request: type[Request], answer: Callable[[Request], msgspec.Struct]) -> int:
    """Answer the request on standard input, as the child process, and return the exit code."""
    asked = decode_request(sys.stdin.buffer.read(), request)
    try:
        result: msgspec.Struct = answer(asked)
        code = ExitCode.OK
    except LmconsoleError as error:
        result, code = ChildError(message=error.message, hint=error.hint), ExitCode.USAGE
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return code


def report_progress(message: str) -> None:
    """Send a message to the parent, as the child process."""
    print(f"{PROGRESS}{message}", file=sys.stderr, flush=True)


def _read_errors(pipe: int, report: Callable[[str], None], errors: list[str]) -> None:
    """Pass on messages of progress until the pipe is closed, and keep the last of the other lines."""
    with open(pipe, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith(PROGRESS):
                report(line.removeprefix(PROGRESS).rstrip("\n"))
            elif line.strip():
                errors[:] = [line.strip()]


def encode_request(request: object) -> bytes:
    """Return a request as JSON."""
    return msgspec.json.encode(request, enc_hook=_encode)


def decode_request(data: bytes, kind: type[Request]) -> Request:
    """Return a request that was encoded as JSON. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(data, type=kind, dec_hook=_decode)


def _encode(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decode(kind: type, value: Any) -> object:
    if kind is object:  # settings that an experiment overrides
        return value
    if issubclass(kind, Path):
        return Path(value)
    raise NotImplementedError(kind)
