"""Every error a user can meet.

LmconsoleError            what happened, where, and (``hint``) what to do; exit code 2
├── PlanError             experiments.toml: all problems at once
├── CorpusError           token files, text folders, tokenizers
├── EmbeddingsError       embedding tables
├── DeviceError           devices and precisions this machine cannot give
├── StoreError            the folder of runs cannot be read or written
├── RunNotFoundError      no run, or several, answer to that name
├── RunActiveError        the run asked for is already training
├── ExportError           nothing to export, or nowhere to export it to
└── TrainingError         a run failed while it ran; exit code 1
"""

import unicodedata
from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """What ``lmconsole`` tells the shell."""

    OK = 0
    RUN_FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


def escape_control_characters(text: object) -> str:
    """``text`` with every control or formatting character written as an escape, so that names from files cannot steer
    a terminal. Line feeds are kept."""
    return "".join(
        c if c == "\n" or unicodedata.category(c)[0] != "C" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


class LmconsoleError(Exception):
    """Base of all errors meant for a person: ``message`` says what and where, ``hint`` what to do about it."""

    kind = "error"
    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = escape_control_characters(message)
        self.hint = escape_control_characters(hint) if hint else None
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class PlanError(LmconsoleError):
    """One or more problems in experiments.toml, all of them listed in ``problems``."""

    kind = "plan"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(escape_control_characters(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


class CorpusError(LmconsoleError):
    """The text or tokens to train on are missing, damaged or unusable."""

    kind = "corpus"


class EmbeddingsError(LmconsoleError):
    """The embedding tables are missing, damaged or of the wrong shape."""

    kind = "embeddings"


class DeviceError(LmconsoleError):
    """This machine has no such device or precision."""

    kind = "device"


class StoreError(LmconsoleError):
    """The folder of runs cannot be read or written."""

    kind = "store"


class RunNotFoundError(LmconsoleError):
    """No run, or more than one, answers to what was asked for."""

    kind = "run-not-found"


class RunActiveError(LmconsoleError):
    """The run asked for is queued or training already."""

    kind = "run-active"


class ExportError(LmconsoleError):
    """There is nothing to export, or nowhere to export it to."""

    kind = "export"


class TrainingError(LmconsoleError):
    """A run failed while it ran. ``kind`` (for example ``"out-of-memory"``) goes into its ``failed`` event."""

    exit_code = ExitCode.RUN_FAILED

    def __init__(self, kind: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
