"""Registered claims: what was claimed, and the place in the queue after which runs count for it.

Each is one file in the folder ``.claims`` of a store, written once under the queue lock and never changed.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from lmconsole.errors import StoreError
from lmconsole.files import atomic_write, read_file
from lmconsole.plan.claims import Claim
from lmconsole.plan.experiment import Experiment, Settings
from lmconsole.plan.presets import ranges
from lmconsole.runs.events import DAMAGED, Name, Number
from lmconsole.runs.info import CorpusInfo, EmbeddingsInfo, RunInfo
from lmconsole.runs.paths import CLAIMS
from lmconsole.runs.store import Run, highest_place

SCHEMA = 1
MAX_BYTES = 16 * 2**20


class PlannedSetting(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment of a claim, with everything that decides its results except the seed."""

    experiment: Experiment
    """Row of experiments.toml."""
    preset: Name
    """Preset from which the settings come."""
    settings: Settings
    """Settings of its runs, with ``precision`` resolved."""
    corpus: CorpusInfo
    """Corpus of its runs."""
    embeddings: EmbeddingsInfo | None
    """Frozen embedding tables; None if embeddings are learned."""
    runs: dict[int, str]
    """Hash of everything that decides the results, by seed: ``same_run`` in run.json."""

    def decides_same_results(self, info: RunInfo) -> bool:
        """Return whether a run has these settings and data, whatever its seed and the number of its experiment."""
        return (
            self.settings == info.settings
            and (self.corpus.sha256, self.corpus.max_tokens) == (info.corpus.sha256, info.corpus.max_tokens)
            and (self.embeddings and self.embeddings.sha256) == (info.embeddings and info.embeddings.sha256)
        )

    def is_of_one_kind_with(self, info: RunInfo) -> bool:
        """Return whether a run has this architecture, depth and optimizer, and was trained on this text."""
        mine, other = self.settings, info.settings
        return self.corpus.sha256 == info.corpus.sha256 and (mine.model, mine.layers, mine.optimizer) == (
            other.model,
            other.layers,
            other.optimizer,
        )


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """The claims of one file, as they were registered."""

    schema: int = SCHEMA
    """Version of the layout of this file."""
    hash: str
    """Hash of the claims and of the runs that they need. Another file, or a changed one, has another."""
    number: Number
    """Number of the registration in its store, from 1 without gaps."""
    seal: str = ""
    """Hash of everything else in this file."""
    place: Number
    """Place in the queue at which they were registered: only runs that were first queued after it count."""
    registered_t: str
    """Time of the registration: UTC, ISO 8601."""
    source: str
    """File of the claims."""
    version: str
    """Version of lmconsole that registered them."""
    claims: tuple[Claim, ...]
    """The [[claim]] rows: one family of comparisons."""
    settings: dict[int, PlannedSetting]
    """Experiments that the claims compare, by id."""

    @property
    def short_hash(self) -> str:
        """The first digits of the hash, for people."""
        return self.hash[:12]

    def label(self, side: tuple[int, ...]) -> str:
        """Return the name of a side of a contrast, such as ``LSTM 1L Adam (1)`` or ``LSTM 1L Adam (21–23)``."""
        names = dict.fromkeys(self.settings[id_].experiment.label for id_ in side)
        return f"{' and '.join(names)} ({show_numbers(side)})"


def show_numbers(numbers: Iterable[int]) -> str:
    """Return ids, seeds or numbers of registrations for people: ``1–3, 7``."""
    return ranges(list(numbers)).replace(" ", ", ").replace("-", "–")


def seal_of(registration: Registration) -> str:
    """Return the hash of everything in a registration except its seal."""
    return _seal(msgspec.to_builtins(registration, str_keys=True))


def _seal(content: dict[str, Any]) -> str:
    """Return the same, of the content of its file: it has no fields that a later version gives a registration."""
    return hashlib.sha256(msgspec.json.encode({**content, "seal": ""}, order="deterministic")).hexdigest()


def claims_hash(claims: tuple[Claim, ...], settings: dict[int, PlannedSetting]) -> str:
    """Return the hash by which claims are known."""
    runs = {str(id_): {str(seed): same for seed, same in each.runs.items()} for id_, each in settings.items()}
    content = {"claims": msgspec.to_builtins(claims, str_keys=True), "runs": runs}
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def read_registrations(store: Path) -> list[Registration]:
    """Return the registered claims of the store in this folder, the oldest first.

    Raises:
        StoreError: one cannot be read, is damaged, or was changed after its registration.
    """
    return sorted((_read(path) for path in _files(store)), key=lambda each: (each.place, each.hash))


def readable_registrations(store: Path) -> Iterator[Registration]:
    """Yield the registered claims that can be read, in any order."""
    with contextlib.suppress(StoreError):
        for path in _files(store):
            with contextlib.suppress(StoreError):
                yield _read(path)


def last_number(registrations: Iterable[Registration], runs: Iterable[Run]) -> int:
    """Return the number of the last registration of a store: that of a file, or one that a run was queued after. 0 if
    there is none."""
    recorded = (run.state.queued.registrations for run in runs if run.state.queued)
    return highest_place([*(each.number for each in registrations), *recorded])


def missing_numbers(registrations: Iterable[Registration], runs: Iterable[Run]) -> list[int]:
    """Return the numbers of registrations whose files are gone, as far as later registrations and ``runs`` show. It
    takes all runs of the store and of its trash to find the last ones."""
    registrations = list(registrations)
    found = {each.number for each in registrations}
    return [number for number in range(1, 1 + last_number(registrations, runs)) if number not in found]


def write_registration(store: Path, registration: Registration) -> Path:
    """Write the file of newly registered claims, force it to the disk, and return its path. Raises OSError."""
    path = store / CLAIMS / f"{registration.short_hash}.json"
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as file:
        sealed = msgspec.structs.replace(registration, seal=seal_of(registration))
        file.write(msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n")
    return path


def _files(store: Path) -> list[Path]:
    folder = store / CLAIMS
    if folder.is_symlink():
        raise StoreError(f"{folder}: expected a folder, found a symbolic link, which is not followed")
    try:
        return [folder / name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read: {error.strerror}") from None


def _read(path: Path) -> Registration:
    try:
        data = read_file(path, MAX_BYTES, follow=False)
        found, content = msgspec.json.decode(data, type=Registration), msgspec.json.decode(data)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    except DAMAGED as error:
        raise StoreError(f"{path}: not registered claims of lmconsole: {error}") from None
    if found.schema > SCHEMA:
        raise StoreError(f"{path}: schema {found.schema}; this lmconsole reads schema {SCHEMA}")
    if claims_hash(found.claims, found.settings) != found.hash or _seal(content) != found.seal:
        raise StoreError(
            f"{path}: the claims are not those that were registered",
            hint="The file was changed. Remove it, and register the claims again for runs that do not exist yet.",
        )
    return found
