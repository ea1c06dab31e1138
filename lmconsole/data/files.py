"""Reading the files people hand us. Whatever is wrong with one becomes a CorpusError that names it."""

import io
import os
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmconsole.errors import CorpusError


def list_folder(folder: Path) -> frozenset[str]:
    """Names of the entries of ``folder``. Raises CorpusError where it is missing, no folder, or unreadable."""
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        raise CorpusError(f"{folder}: there is no such folder", hint="Check the spelling of the path.") from None
    except NotADirectoryError:
        raise CorpusError(
            f"{folder}: a folder was expected here, this is a file", hint="Name the folder that holds the three splits."
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None


def read_bytes(path: Path) -> bytes:
    """All of a regular file. Raises CorpusError for anything else: a pipe, say, would make us wait forever."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise CorpusError(f"{path}: a file was expected here, this is a folder", hint="Put the file in its place.")
        if not stat.S_ISREG(mode):
            raise CorpusError(
                f"{path}: a regular file was expected here, this is a device, pipe or socket",
                hint="Put a file in its place.",
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such file", hint="Check the path, or where its link leads.") from None
    except (OSError, ValueError, MemoryError) as error:
        raise _unreadable(path, error) from None


def read_text(path: Path, data: bytes | None = None) -> str:
    """A UTF-8 file (or its bytes, ``data``) as it stands, line ends included, without a leading byte order mark."""
    data = read_bytes(path) if data is None else data
    if not data:
        raise CorpusError(f"{path}: the file is empty", hint="Put the split's text into it, as UTF-8.")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start:,} ({error.reason})",
            hint="Convert the file, for example: iconv -f LATIN1 -t UTF-8 old.txt > new.txt",
        ) from None


def read_tokens(path: Path, vocabulary: int) -> NDArray[np.integer[Any]]:
    """The array ``tokens`` of an npz archive: 1-d ids in [0, ``vocabulary``), as uint16 where they fit, else int32.

    Nothing is ever unpickled. Raises CorpusError naming the file, what was found and what was expected.
    """
    names, arrays = read_arrays(path, ["tokens"])
    if "tokens" not in arrays:
        found = ", ".join(repr(name[:60]) for name in names[:8]) or "no array at all"
        raise CorpusError(f"{path}: expected an array 'tokens', found {found}", hint=_NPZ_HINT)
    return checked_ids(arrays["tokens"], vocabulary, str(path))


def read_arrays(path: Path, wanted: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """The names of all arrays of an npz archive, and those arrays of ``wanted`` that are in it, nothing unpickled."""
    data = read_bytes(path)
    if not data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise CorpusError(f"{path}: expected an npz archive, found {_looks_like(data)}", hint=_NPZ_HINT)
    try:
        with warnings.catch_warnings(action="ignore"), np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return list(archive.files), {name: archive[name] for name in wanted if name in archive.files}
    except Exception as error:  # damaged bytes make zipfile, zlib, tokenize and ast raise whatever they have
        if "allow_pickle" in str(error):
            raise CorpusError(
                f"{path}: it holds pickled Python objects, which are never loaded because they can run code",
                hint=_NPZ_HINT,
            ) from None
        raise CorpusError(f"{path}: the archive is damaged or cut short ({_reason(error)})", hint=_AGAIN_HINT) from None


def checked_ids(tokens: object, vocabulary: int, where: str) -> NDArray[np.integer[Any]]:
    """``tokens`` in the smallest of our two types, or a CorpusError that says what about them is wrong."""
    if not isinstance(tokens, np.ndarray) or tokens.dtype.kind not in "iu":
        kind = tokens.dtype if isinstance(tokens, np.ndarray) else "raw bytes"
        raise CorpusError(f"{where}: 'tokens' must hold integers, found {kind}", hint=_NPZ_HINT)
    if tokens.ndim != 1:
        shape = " × ".join(str(n) for n in tokens.shape) or "a single number"
        raise CorpusError(f"{where}: 'tokens' must be one running stream (1-d), found {shape}", hint=_NPZ_HINT)
    if not tokens.size:
        raise CorpusError(f"{where}: 'tokens' is empty", hint=_NPZ_HINT)
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        at = int(np.argmax((tokens < 0) | (tokens >= vocabulary)))
        raise CorpusError(
            f"{where}: id {tokens[at]} at position {at:,} is outside the vocabulary of {vocabulary:,} "
            f"(ids 0 to {vocabulary - 1:,})",
            hint="Ids are the tokenizer's plus one, 0 is padding. Another tokenizer? Set 'vocabulary' in the preset.",
        )
    return tokens.astype(id_type(vocabulary))


def id_type(vocabulary: int) -> np.dtype[np.integer[Any]]:
    """The smallest of our two id types that holds every id below ``vocabulary``."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.int32)


_NPZ_HINT = "Write it with: numpy.savez(file, tokens=ids), ids a 1-d integer array."
_AGAIN_HINT = "Copy or download the file again."


def _looks_like(data: bytes) -> str:
    if not data:
        return "an empty file"
    if data.startswith(b"\x93NUMPY"):
        return "a single npy array"
    if data.startswith(b"\x80"):
        return "what may be a pickle, which is never loaded"
    if data.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run: git lfs pull)"
    return f"{len(data):,} bytes of something else"


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _unreadable(path: Path, error: Exception) -> CorpusError:
    what = error.strerror if isinstance(error, OSError) and error.strerror else _reason(error)
    denied = isinstance(error, PermissionError)
    hint = "Give yourself the right to read it (chmod, chown)." if denied else "Check the path and the disk it is on."
    return CorpusError(f"{path}: cannot be read: {what}", hint=hint)
