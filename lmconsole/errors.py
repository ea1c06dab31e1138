"""All errors that a user can see.

LmconsoleError            base: a message (what happened, and where) and a hint (what to do); exit code 2
├── PlanError             experiments.toml has problems, all of them listed
├── CorpusError           the text, the tokens or the tokenizer files are missing, damaged or unusable
├── EmbeddingsError       the embedding tables are missing, damaged or of the wrong shape
├── HubError              the Hugging Face Hub cannot be reached, refuses, or has something else
├── DeviceError           this machine does not have the device or the precision
├── StoreError            the folder of runs cannot be read or written
├── RunNotFoundError      no run matches, or several do
├── RunActiveError        the run is already queued or running
├── ExportError           nothing to export, or the target folder cannot be written
├── OutputError           standard output cannot be written; exit code 1
└── TrainingError         a run failed; exit code 1
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command ``lmconsole``."""

    OK = 0
    RUN_FAILED = 1
    USAGE = 2
    INCONCLUSIVE = 3
    INTERRUPTED = 130


def escape_control_characters(text: object) -> str:
    """Return ``text`` with every control and formatting character except line feeds as an escape sequence, so that a
    name from a file cannot control the terminal."""
    text = str(text)
    if text.replace("\n", "").isprintable():  # no such character, and a hundred times as fast
        return text
    return "".join(
        c if c == "\n" or unicodedata.category(c)[0] != "C" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


def escape_json(text: str, *, ascii_only: bool = False) -> str:
    """Return JSON with control and formatting characters as escape sequences, which JSON itself does only below U+0020;
    with ``ascii_only``, all other characters that are not ASCII too. They occur only in strings, so the value stays the
    same."""

    def escape(match: re.Match[str]) -> str:
        if not ascii_only and escape_control_characters(match[0]) == match[0]:
            return match[0]
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))

    return re.sub(r"[^\n\x20-\x7e]", escape, text)


LINES_SHOWN = 20
LONGEST_NAME = 80
"""Characters of a name that are compared with others: a file may hold a megabyte, and comparing takes long."""


def listed(problems: Sequence[str]) -> str:
    """Return a message with the first of these problems, each on a line, and the number of the others."""
    more = len(problems) - LINES_SHOWN
    return "\n".join([*problems[:LINES_SHOWN], *([f"… and {more:,} more"] if more > 0 else [])])


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'adam'?`` with the known name that is closest to ``given``; nothing if none is close."""
    from difflib import get_close_matches

    close = get_close_matches(given[:LONGEST_NAME], known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class LmconsoleError(Exception):
    """Base class of the errors of this package."""

    kind = "error"
    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = escape_control_characters(message)
        self.hint = escape_control_characters(hint) if hint else None
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class PlanError(LmconsoleError):
    """``problems`` lists all problems in experiments.toml; the message joins the first of them."""

    kind = "plan"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(escape_control_characters(problem) for problem in problems)
        super().__init__(listed(self.problems))


class CorpusError(LmconsoleError):
    kind = "corpus"


class EmbeddingsError(LmconsoleError):
    kind = "embeddings"


class HubError(LmconsoleError):
    """``offline`` says that a file is neither in the cache nor can be downloaded."""

    kind = "hub"

    def __init__(self, message: str, *, hint: str | None = None, offline: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.offline = offline


class DeviceError(LmconsoleError):
    kind = "device"


class StoreError(LmconsoleError):
    kind = "store"


class RunNotFoundError(LmconsoleError):
    kind = "run-not-found"


class RunActiveError(LmconsoleError):
    kind = "run-active"


class ExportError(LmconsoleError):
    kind = "export"


class OutputError(LmconsoleError):
    kind = "output"
    exit_code = ExitCode.RUN_FAILED


class TrainingError(LmconsoleError):
    """``kind``, for example ``"out-of-memory"``, becomes the ``error`` of the ``failed`` event."""

    exit_code = ExitCode.RUN_FAILED

    def __init__(self, kind: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
