"""run.json: what a run was asked to do, written once when it is queued."""

import os
from pathlib import Path
from typing import Literal

import msgspec

from lmconsole.errors import StoreError
from lmconsole.plan.experiment import Experiment, Settings
from lmconsole.runs.events import DAMAGED

SCHEMA = 1


class CorpusInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The corpus a run trains on. ``sha256`` is over the vocabulary size and all token ids of the three whole splits;
    ``tokens`` counts what is used of each, after ``max_tokens``."""

    name: str
    kind: str
    path: str | None
    vocabulary: int
    tokenizer: str
    tokens: dict[str, int]
    """By split; empty where an imported run does not say."""
    sha256: str
    max_tokens: int | None


class EmbeddingsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The frozen tables a run uses; ``sha256`` is over their values."""

    path: str
    sha256: str


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in run.json."""

    schema: int
    run: str
    queued_t: str
    experiment: Experiment
    preset: str
    settings: Settings
    """With ``precision`` resolved."""
    origins: dict[str, str]
    """Where each setting came from."""
    seed: int
    config_hash: str = msgspec.field(name="same_run")
    """Equal for runs that would compute the same thing."""
    corpus: CorpusInfo
    embeddings: EmbeddingsInfo | None
    threads: int | None
    """CPU threads of every attempt; another number changes the last bits of the results. None if imported."""
    jobs: int | Literal["auto"] | None = None
    """What ``--jobs`` asked for when ``threads`` was decided. None if imported, and in runs of 0.1.0."""
    command: tuple[str, ...]
    cwd: str
    version: str
    """Of lmconsole."""
    origin: Literal["trained", "imported"] = "trained"
    """Trained here, or imported."""
    denominator: Literal["targets", "padded"] = "targets"
    """What its losses are means over: targets alone, or the padding of the last window too (docs/protocol.md)."""

    @property
    def sort_key(self) -> tuple[bool, str, str]:
        """What runs are ordered by, oldest first. Imported ones come before those trained here, so that the latest run
        of an experiment is one of our own if there is any."""
        return self.origin == "trained", self.queued_t, self.run


class _Header(msgspec.Struct, frozen=True):
    schema: int


_header_decoder = msgspec.json.Decoder(_Header)
_decoder = msgspec.json.Decoder(RunInfo)


def read_info(path: Path) -> RunInfo:
    """The run.json at ``path``. Raises StoreError if it is damaged, or newer than this version understands."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        found = _header_decoder.decode(data)
        if found.schema > SCHEMA:
            raise StoreError(
                f"{path}: schema {found.schema}; this lmconsole reads schema {SCHEMA}",
                hint="A newer lmconsole wrote it: use that one to read this store.",
            )
        return _decoder.decode(data)
    except DAMAGED as error:
        raise StoreError(f"{path}: not a run.json of lmconsole: {error}") from None


def write_info(path: Path, info: RunInfo) -> None:
    """Write run.json and force it to the disk."""
    with path.open("xb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
