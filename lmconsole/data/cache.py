"""Token ids of tokenized texts, kept in the user's cache folder.

If the cache is missing, damaged, full, read-only or another user's, the text is tokenized again. Entries are named by a
hash of everything they depend on and written atomically, so that processes need no lock.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmconsole.data.files import checked_ids, id_type, read_arrays
from lmconsole.errors import CorpusError
from lmconsole.files import atomic_write, cache_folder

SPLITS = ("train", "validation", "test")

FORMAT = "lmconsole tokens 4"
"""Part of every entry's name. Change it when the same text gives other ids, or the file has another layout."""

_HASHED_AT_ONCE = 2**20
"""Ids that are converted at once to compute a fingerprint, which bounds the memory."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenizedText:
    """Token ids of three splits, each of shape (tokens,); all ids are below ``vocabulary``."""

    vocabulary: int
    splits: Mapping[str, NDArray[np.integer[Any]]]
    token_bytes: NDArray[np.uint16] | None = None
    """UTF-8 bytes of the text of each id, shape (V,); None if that is unknown, as for a tokenizer that does not keep
    the whole text."""


def fingerprint(vocabulary: int, splits: Mapping[str, NDArray[np.integer[Any]]]) -> str:
    """Return the SHA-256 of the vocabulary size and of the ids as little-endian int32, whatever their type."""
    digest = hashlib.sha256(f"lmconsole corpus 1\n{vocabulary}\n".encode())
    for split in SPLITS:
        ids = splits[split]
        digest.update(f"{split} {len(ids)}\n".encode())
        for start in range(0, len(ids), _HASHED_AT_ONCE):
            digest.update(ids[start : start + _HASHED_AT_ONCE].astype("<i4").tobytes())
    return digest.hexdigest()


def entry_name(*inputs: str | bytes) -> str:
    """Return the name of the entry that depends on ``inputs``, on ``FORMAT`` and on the version of ``tokenizers``."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    for part in (FORMAT, version("tokenizers"), *inputs):
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return f"{digest.hexdigest()[:40]}.npz"


def cached(folder: Path | None, name: str, make: Callable[[], TokenizedText]) -> TokenizedText:
    """Return the entry ``name`` of ``folder``, by default the user's cache folder; call ``make`` if there is none."""
    folder = cache_folder("corpora") if folder is None else folder
    if folder is None:
        return make()
    known = _read(folder / name)
    if known is None:
        known = make()
        _write(folder / name, known)
    return known


def _read(path: Path) -> TokenizedText | None:
    """Read an entry; None unless it is complete and matches the name and the fingerprint in it."""
    try:
        arrays = read_arrays(path, ("vocabulary", "name", "sha256", "token_bytes", *SPLITS))[1]
        vocabulary, name, sha256 = int(str(arrays["vocabulary"])), str(arrays["name"]), str(arrays["sha256"])
        splits = {split: checked_ids(arrays[split], vocabulary, split) for split in SPLITS}
        token_bytes = arrays.get("token_bytes")
    except (CorpusError, KeyError, ValueError):
        return None
    if name != path.name or sha256 != fingerprint(vocabulary, splits):
        return None
    if token_bytes is not None and (token_bytes.dtype, token_bytes.shape) != (np.uint16, (vocabulary,)):
        return None
    return TokenizedText(vocabulary=vocabulary, splits=splits, token_bytes=token_bytes)


def _write(path: Path, tokenized: TokenizedText) -> None:
    arrays = {split: ids.astype(id_type(tokenized.vocabulary), copy=False) for split, ids in tokenized.splits.items()}
    contents: dict[str, Any] = {
        "vocabulary": np.int64(tokenized.vocabulary),
        "name": np.str_(path.name),
        "sha256": np.str_(fingerprint(tokenized.vocabulary, arrays)),
        **arrays,
    }
    if tokenized.token_bytes is not None:
        contents["token_bytes"] = tokenized.token_bytes
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, sync=True, mode=0o600) as file:
            np.savez(file, **contents)
