"""run.json: the configuration of a run, written once when it is queued."""

import os
from pathlib import Path
from typing import Literal

import msgspec

from lmconsole.errors import StoreError
from lmconsole.plan.experiment import Experiment, Settings
from lmconsole.runs.events import DAMAGED

SCHEMA = 1
"""Version of the layout of run.json. A new field has a default and leaves it unchanged."""


class CorpusInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Corpus of a run. Its fields are those of ``data.corpus.Corpus``."""

    name: str
    kind: str
    path: str | None
    vocabulary: int
    tokenizer: str
    tokens: dict[str, int]
    """Tokens of each split after ``max_tokens``; empty in imported runs."""
    sha256: str
    """Hash of the vocabulary size and of all token ids before ``max_tokens``."""
    max_tokens: int | None
    """Limit on the train split; a tenth of it limits the others."""


class EmbeddingsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Frozen embedding tables of a run; ``sha256`` is the hash of their values."""

    path: str
    sha256: str


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Content of run.json."""

    schema: int
    run: str
    queued_t: str
    experiment: Experiment
    preset: str
    settings: Settings
    """Settings of the run, with ``precision`` resolved."""
    origins: dict[str, str]
    """Source of each setting: a file and table, an option, or a default."""
    seed: int
    config_hash: str = msgspec.field(name="same_run")
    """Hash of everything that decides the results: equal for runs that repeat each other."""
    corpus: CorpusInfo
    embeddings: EmbeddingsInfo | None
    threads: int | None
    """CPU threads of every attempt: another number would change the last bits of the results. None if imported."""
    jobs: int | Literal["auto"] | None = None
    """Value of ``--jobs`` when ``threads`` was decided. None if imported, and in runs of version 0.1.0."""
    command: tuple[str, ...]
    cwd: str
    version: str
    """Version of lmconsole that queued the run."""
    origin: Literal["trained", "imported"] = "trained"
    denominator: Literal["targets", "padded"] = "targets"
    """Losses are means over the target tokens, or over the positions of full batches, although the last batch has fewer
    windows (docs/protocol.md)."""

    @property
    def sort_key(self) -> tuple[bool, str, str]:
        """Key that sorts runs from the oldest to the latest. Imported runs come before trained ones, so that the latest
        run of an experiment is an imported one only if there is no other."""
        return self.origin == "trained", self.queued_t, self.run


class _Header(msgspec.Struct, frozen=True):
    schema: int


_header_decoder = msgspec.json.Decoder(_Header)
_decoder = msgspec.json.Decoder(RunInfo)


def read_info(path: Path) -> RunInfo:
    """Read a run.json.

    Raises:
        StoreError: it cannot be read, is damaged, or was written by a later version with another schema.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        found = _header_decoder.decode(data)
        if found.schema > SCHEMA:
            raise StoreError(
                f"{path}: schema {found.schema}; this lmconsole reads schema {SCHEMA}",
                hint="A newer lmconsole wrote it. Use that version to read this store.",
            )
        return _decoder.decode(data)
    except DAMAGED as error:
        raise StoreError(f"{path}: not a run.json of lmconsole: {error}") from None


def write_info(path: Path, info: RunInfo) -> None:
    """Write a new run.json and force it to the disk. Raises OSError, also if the file exists."""
    with path.open("xb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
