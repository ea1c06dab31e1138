"""Runs that were not trained by lmconsole, as their sources describe them. docs/importing.md lists keys and columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmconsole.errors import escape_control_characters
from lmconsole.files import read_file
from lmconsole.importing.memory import Reading

LARGEST_FILE_BYTES = 16 * 2**20
"""Larger files are not lists of numbers, and are not read."""

MAX_EPOCHS = 100_000
"""Most epochs of a run, as in ``Settings``."""

_KEYS = {
    "model": ("model", "architecture", "arch", "model_type"),
    "layers": ("layers", "num_layers", "n_layers", "n_layer", "nlayers"),
    "optimizer": ("optimizer", "optim", "opt"),
    "epochs": ("epochs", "num_epochs", "n_epochs"),
    "batch_size": ("batch_size", "batchsize"),
    "learning_rate": ("learning_rate", "lr"),
    "weight_decay": ("weight_decay", "wd"),
    "momentum": ("momentum",),
    "window_tokens": ("window_tokens", "seq_len", "bptt", "context_length"),
    "seed": ("seed",),
    "denominator": ("denominator",),
}
"""Names under which a source can state a setting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochNumbers:
    """Metrics of one epoch as given: None is unknown, and numbers can be infinite or NaN."""

    train_loss_nats: float | None = None
    train_ppl: float | None = None
    valid_loss_nats: float | None = None
    valid_ppl: float | None = None
    train_s: float | None = None
    valid_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A run as described by its source, not yet validated."""

    stated: Mapping[str, Any]
    """Settings by the names that the source uses."""
    epochs: Sequence[EpochNumbers]
    test_ppl: float | None = None
    memory: Sequence[Reading] = ()
    """Memory in use on the device, in the order of the readings."""
    notes: Sequence[str] = ()
    """Parts of the source that were left out, and the reasons."""


class ImportSourceError(Exception):
    """The run cannot be imported, for the reason in the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A possible run, not yet read."""

    location: str
    """Name for messages, without control characters."""
    place: str
    """Location that does not depend on the working directory, by which the source is recognized once it has more."""
    read_stated: Callable[[], Mapping[str, Any]]
    """Reads the settings, or raises ImportSourceError."""
    read: Callable[[], Source]
    """Reads everything, or raises ImportSourceError."""


def one_line(name: object) -> str:
    """Return a name without line feeds, control characters and bytes that are not UTF-8."""
    return escape_control_characters(name).replace("\n", "\\n")


def read_text(path: Path) -> str:
    """Return the content of a text file. Raises ImportSourceError."""
    try:
        return read_file(path, LARGEST_FILE_BYTES, follow=True).decode("utf-8-sig")
    except FileNotFoundError:
        raise ImportSourceError(f"no {path.name}") from None
    except OSError as error:
        raise ImportSourceError(f"{path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ImportSourceError(f"{path.name} is not text") from None


def parse_float(text: str, where: str) -> float:
    """Return a number. Raises ImportSourceError, with ``where`` in the message."""
    try:
        return float(text)
    except ValueError:
        raise ImportSourceError(f"{where}: {text.strip()[:40]!r} is not a number") from None


def normalize(name: str) -> str:
    """Return the name of a key or column, however it is spelled."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def stated_value(stated: Mapping[str, Any], setting: str) -> Any:
    """Return the value of a setting under any of its names; None if it is not stated."""
    found = {normalize(str(key)): value for key, value in stated.items()}
    return next((found[name] for name in _KEYS[setting] if found.get(name) not in (None, "")), None)
