"""run.json: the configuration of a run, written once when it is queued."""

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lmconsole.errors import StoreError
from lmconsole.files import open_file, read_file
from lmconsole.plan.experiment import APPLIES_TO, Experiment, Seed, Settings, hashed_settings
from lmconsole.runs.events import DAMAGED, Jobs, Name, Number

SCHEMA = 1
"""Version of the layout of run.json. A new field has a default and leaves it unchanged."""
MAX_BYTES = 2**20
"""Largest run.json that is read."""


class CorpusInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Corpus of a run. Its fields are those of ``data.corpus.Corpus``."""

    name: Name
    """Name for captions."""
    kind: Name
    """Kind of its source: ``demo``, ``npz`` or ``text``."""
    path: str | None
    """Absolute path of its folder; None if it is built in."""
    vocabulary: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    """V: every token id is below it."""
    tokenizer: Name
    """Description of the tokenizer."""
    tokenizer_path: str | None = None
    """Absolute path of the folder of GPT-1's tokenizer, if that is not the folder of the text."""
    tokens: dict[Name, Number]
    """Tokens of each split after ``max_tokens``; empty in imported runs."""
    sha256: str
    """Hash of the vocabulary size and of all token ids before ``max_tokens``."""
    max_tokens: Number | None
    """Limit on the train split; a tenth of it limits the others."""
    targets: dict[Name, Number] = {}
    """Target tokens of each split after ``max_tokens``, in the windows of the run. Empty in runs of earlier versions
    and in imported ones."""
    bytes: dict[Name, Number] = {}
    """UTF-8 bytes of the text of these targets. Empty where they are unknown: for token ids, for GPT-1's tokenizer,
    which does not keep the whole text, in runs of earlier versions and in imported ones."""
    unigram_ppl: dict[Name, Annotated[float, msgspec.Meta(gt=0.0)]] = {}
    """Perplexity of these targets for a unigram model: the token frequencies of the targets of the train split, with
    one added to the count of each token of the vocabulary. Empty in runs of earlier versions and in imported ones."""

    @property
    def tokenizer_and_place(self) -> str:
        """Description of the tokenizer, with the folder of its files if that is not the folder of the text."""
        return self.tokenizer if self.tokenizer_path is None else f"{self.tokenizer}, from {self.tokenizer_path}"


class EmbeddingsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Frozen embedding tables of a run."""

    path: str
    """Absolute path of their file."""
    sha256: str
    """Hash of their values."""


class Checkout(msgspec.Struct, frozen=True, kw_only=True):
    """State of a file or folder in its git repository."""

    commit: Name
    """Commit that was checked out."""
    changed: bool | None
    """Whether the file or folder differed from the commit; None if git did not answer in time."""

    def describe(self) -> str:
        """Return the commit and whether there were changes in a few words."""
        state = {True: ", with uncommitted changes", False: "", None: ", changes unknown"}[self.changed]
        return f"commit {self.commit[:12]}{state}"


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Code, packages and machine with which a run was queued. Unknown is None."""

    code_sha256: Name
    """Hash of the modules of lmconsole that compute results."""
    checkout: Checkout | None
    """Package folder of lmconsole in the repository it is run from; None if it is installed. Its diff, if it has been
    changed, is in ``source.diff`` next to this file."""
    experiments: Checkout | None
    """The experiments.toml in its repository; None if it is built in or not in a repository."""
    versions: dict[Name, Name | None]
    """Versions of lmconsole, Python, the packages that compute results, CUDA, cuDNN and the driver; None where there is
    none."""
    platform: Name
    """Operating system, its version, and the kind of the processor."""
    cpu: Name
    """Model of the processor."""
    cpu_capability: Name
    """Vector instructions that PyTorch uses on it."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Content of run.json."""

    schema: int
    """Version of the layout of this file."""
    run: str
    """Id of the run: the name of its folder when it was made."""
    queued_t: str
    """Time at which the run was made: UTC, ISO 8601."""
    experiment: Experiment
    """Row of experiments.toml."""
    preset: Name
    """Preset from which the settings come."""
    settings: Settings
    """Settings of the run, with ``precision`` resolved."""
    origins: dict[str, str]
    """Source of each setting: a file and table, an option, or a default."""
    seed: Seed
    """Seed of initialization, shuffling and dropout."""
    config_hash: str = msgspec.field(name="same_run")
    """Hash of everything that decides the results: equal for runs that repeat each other."""
    corpus: CorpusInfo
    """Token ids on which the run is trained and evaluated."""
    embeddings: EmbeddingsInfo | None
    """Frozen embedding tables; None if embeddings are learned."""
    threads: Jobs | None
    """CPU threads of every attempt: another number would change the last bits of the results. None if imported."""
    jobs: Jobs | Literal["auto"] | None = None
    """Value of ``--jobs`` when ``threads`` was decided. None if imported, and in runs of version 0.1.0."""
    command: tuple[str, ...]
    """Command line that queued the run."""
    cwd: str
    """Folder in which the command was run."""
    version: str
    """Version of lmconsole that queued the run."""
    test: bool = True
    """Whether the run was to be tested when it was first queued. False for a tuning run (``--no-test``), which can be
    tested later: the last ``queued`` event of the log decides."""
    origin: Literal["trained", "imported"] = "trained"
    """``imported``: the run was trained by another program."""
    denominator: Literal["targets", "padded"] = "targets"
    """Losses are means over the target tokens, or over the positions of full batches, although the last batch has fewer
    windows (docs/protocol.md)."""
    provenance: Provenance | None = None
    """Code, packages and machine with which the run was queued. None if imported, and in runs of version 0.1.0."""
    reproduces: Name | None = None
    """Id of the run that this one trains again, to compare the two. Such a run never counts as a result."""

    @property
    def short_seed(self) -> str:
        """Seed behind the name of an experiment: ``s42``, of a reproduction ``s42 repro``."""
        return f"s{self.seed}" if self.reproduces is None else f"s{self.seed} repro"

    @property
    def resume_command(self) -> str:
        """Command that resumes the run, for messages."""
        if self.reproduces is not None:
            return f"`lmconsole reproduce {self.run}`"
        return f"`lmconsole run {self.experiment.id}` with the same options"

    @property
    def sort_key(self) -> tuple[bool, str, str]:
        """Key that sorts runs that have no place in the queue from the oldest to the latest; see
        ``store.oldest_first``."""
        return self.origin == "trained", self.queued_t, self.run

    def contradiction(self) -> str | None:
        """Return what cannot be true of the configuration of a run; None if there is nothing."""
        settings, experiment = self.settings, self.experiment
        for name in ("model", "layers", "optimizer"):
            if getattr(settings, name) != getattr(experiment, name):
                return f"{name} of the settings is not that of the experiment"
        for name, owners in APPLIES_TO.items():
            applies = settings.model in owners or settings.optimizer in owners
            if applies != (getattr(settings, name) is not None):
                return f"{name} is {'missing' if applies else 'a setting of something else'}"
        if self.origin == "trained" and not self.corpus.tokens.keys() >= {"train", "validation", "test"}:
            return "the corpus does not have train, validation and test tokens"
        return None


class _Header(msgspec.Struct, frozen=True):
    schema: int


def describe_code(info: RunInfo, code_sha256: str) -> str:
    """Return the hash of the code that trained a run, and the commit if that was checked out when it was queued."""
    code = f"SHA-256 {code_sha256[:12]}"
    if info.provenance is None or info.provenance.code_sha256 != code_sha256 or info.provenance.checkout is None:
        return code
    return f"{code}, {info.provenance.checkout.describe()}"


_header_decoder = msgspec.json.Decoder(_Header)
_decoder = msgspec.json.Decoder(RunInfo)


def read_info(path: Path) -> RunInfo:
    """Read a run.json.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be read, is damaged, or was written by a later version with another schema.
    """
    try:
        data = read_file(path, MAX_BYTES, follow=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        found = _header_decoder.decode(data)
        if found.schema > SCHEMA:
            raise StoreError(
                f"{path}: schema {found.schema}; this lmconsole reads schema {SCHEMA}",
                hint="A newer lmconsole wrote it. Use that version to read this store.",
            )
        info = _decoder.decode(data)
    except DAMAGED as error:
        raise StoreError(f"{path}: not a run.json of lmconsole: {error}") from None
    if contradiction := info.contradiction():
        raise StoreError(f"{path}: not a run.json of lmconsole: {contradiction}")
    return info


def write_info(path: Path, info: RunInfo) -> None:
    """Write a new run.json and force it to the disk. Raises OSError, also if the file exists."""
    # Versions before a setting refuse a run.json that has it, so it is written only where it is used.
    content = {**msgspec.to_builtins(info), "settings": hashed_settings(info.settings)}
    write_new(path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet and force it to the disk. Raises OSError, also if the file exists."""
    with open(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, follow=False), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
