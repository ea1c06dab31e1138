"""Reading the files of a corpus. Every error in a file is a CorpusError that names the file."""

import errno
import io
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmconsole.errors import CorpusError, EmbeddingsError
from lmconsole.files import open_file, read_file
from lmconsole.telemetry.host import MIB, host_memory

MAX_BYTES = 64 * 2**30
"""Largest file or array that is read on a machine with more than twice this memory."""


def list_folder(folder: Path) -> frozenset[str]:
    """Return the names of all entries of ``folder``. Raises CorpusError if it is missing, a file, or unreadable."""
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        raise CorpusError(f"{folder}: there is no such folder", hint="Check the spelling of the path.") from None
    except NotADirectoryError:
        raise CorpusError(
            f"{folder}: expected a folder, found a file", hint="Give the folder with the three splits."
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None


def size_limit() -> int:
    """Return the most bytes that are read from a file or unpacked to an array: half of the memory available now."""
    return min(MAX_BYTES, int(host_memory().available_mib * MIB) // 2)


def read_bytes(path: Path) -> bytes:
    """Read a regular file that fits into memory. Raises CorpusError for anything else."""
    try:
        return read_file(path, size_limit(), follow=True)
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such file", hint="Check the path, or the target of the link.") from None
    except (OSError, MemoryError) as error:
        raise _unreadable(path, error) from None


def read_text(path: Path, data: bytes | None = None) -> str:
    """Decode a UTF-8 file, or ``data`` as its content. Line endings are kept, a byte order mark is dropped."""
    data = read_bytes(path) if data is None else data
    if not data:
        raise CorpusError(f"{path}: the file is empty", hint="It must contain the text of its split, as UTF-8.")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start:,} ({error.reason})",
            hint="Convert the file, for example: iconv -f LATIN1 -t UTF-8 old.txt > new.txt",
        ) from None


def read_tokens(path: Path, vocabulary: int) -> NDArray[np.integer[Any]]:
    """Read the array ``tokens`` of an npz archive: ids in [0, ``vocabulary``), shape (tokens,).

    The ids are uint16 if all of the vocabulary fits, else int32. Nothing is ever unpickled. Raises CorpusError.
    """
    names, arrays = read_arrays(path, ["tokens"])
    if "tokens" not in arrays:
        found = ", ".join(repr(name[:60]) for name in names[:8]) or "no array at all"
        raise CorpusError(f"{path}: expected an array 'tokens', found {found}", hint=_NPZ_HINT)
    return checked_ids(arrays["tokens"], vocabulary, str(path))


def read_arrays(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the names of all arrays of an npz archive, and those of ``wanted`` that it has. Nothing is unpickled."""
    data = read_bytes(path)
    if not data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise CorpusError(f"{path}: expected an npz archive, found {describe_content(data[:64])}", hint=_NPZ_HINT)
    try:
        limit = size_limit()
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in packed.infolist()}
        for name in wanted:
            if sizes.get(name, 0) > limit:
                raise CorpusError(
                    f"{path}: '{name}' unpacks to {sizes[name] // MIB:,} MiB, more than half of the memory available",
                    hint=_AGAIN_HINT,
                )
        with warnings.catch_warnings(action="ignore"), np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return list(archive.files), {name: archive[name] for name in wanted if name in archive.files}
    except CorpusError:
        raise
    except Exception as error:  # with damaged bytes, zipfile, zlib, tokenize and ast raise almost anything
        if "allow_pickle" in str(error):
            raise CorpusError(
                f"{path}: contains pickled Python objects, which are never loaded because they can run code",
                hint=_NPZ_HINT,
            ) from None
        raise CorpusError(f"{path}: the archive is damaged or truncated ({_reason(error)})", hint=_AGAIN_HINT) from None


def checked_ids(tokens: object, vocabulary: int, where: str) -> NDArray[np.integer[Any]]:
    """Return ``tokens`` in the type of ``id_type``. Raises CorpusError, with ``where`` in the message, if they are not
    token ids."""
    if not isinstance(tokens, np.ndarray) or tokens.dtype.kind not in "iu":
        kind = tokens.dtype if isinstance(tokens, np.ndarray) else "raw bytes"
        raise CorpusError(f"{where}: 'tokens' must contain integers, found {kind}", hint=_NPZ_HINT)
    if tokens.ndim != 1:
        shape = " × ".join(str(n) for n in tokens.shape) or "a single number"
        raise CorpusError(f"{where}: 'tokens' must be one stream (1-d), found {shape}", hint=_NPZ_HINT)
    if not tokens.size:
        raise CorpusError(f"{where}: 'tokens' is empty", hint=_NPZ_HINT)
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        at = int(np.argmax((tokens < 0) | (tokens >= vocabulary)))
        raise CorpusError(
            f"{where}: id {tokens[at]} at position {at:,} is outside the vocabulary of {vocabulary:,} "
            f"(ids 0 to {vocabulary - 1:,})",
            hint="Ids are the tokenizer's plus one; 0 is padding. Set 'vocabulary' for another tokenizer.",
        )
    return tokens.astype(id_type(vocabulary))


def id_type(vocabulary: int) -> np.dtype[np.integer[Any]]:
    """Return the type of token ids: uint16 if every id below ``vocabulary`` fits, else int32."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.int32)


_NPZ_HINT = "Write it with: numpy.savez(file, tokens=ids), ids a 1-d integer array."
_AGAIN_HINT = "Copy or download the file again."


TABLES_HINT = "Give an .npz file with arrays 'tokens' and 'position', or the Hub's model.safetensors."


def recognize_tables(path: Path, hint: str = TABLES_HINT) -> Literal["npz", "safetensors"]:
    """Return the kind of a file of embedding tables by its content; files in a hub's cache have no suffix.

    Raises EmbeddingsError, with ``hint``, if it is missing, no regular file, or neither.
    """
    try:
        with open(open_file(path, follow=True), "rb", buffering=0) as file:
            start = file.read(64)
    except FileNotFoundError:
        raise EmbeddingsError(f"{path}: there is no such file", hint=hint) from None
    except OSError as error:
        denied = isinstance(error, PermissionError)
        hint = "Change its permissions (chmod, chown)." if denied else hint
        raise EmbeddingsError(f"{path}: {error.strerror}", hint=hint) from None
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if start[8:9] == b"{":  # after the length of the header
        return "safetensors"
    raise EmbeddingsError(f"{path}: expected embedding tables, found {describe_content(start)}", hint=hint)


def describe_content(start: bytes) -> str:
    """Describe a file of the wrong kind by its first bytes."""
    if not start:
        return "an empty file"
    if start.startswith(b"\x93NUMPY"):
        return "a single npy array"
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a zip archive"
    if start.startswith(b"\x80"):
        return "what may be a pickle, which is never loaded"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run: git lfs pull)"
    if start.lstrip()[:1] == b"<":
        return "a web page, as a failed download leaves it"
    return "something else"


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _unreadable(path: Path, error: Exception) -> CorpusError:
    what = error.strerror if isinstance(error, OSError) and error.strerror else _reason(error)
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EFBIG:
        what += ", half of the memory available" if size_limit() < MAX_BYTES else ""
        return CorpusError(f"{path}: {what}", hint="Use a part of it, or a machine with more memory.")
    if what.startswith("expected a file"):
        return CorpusError(f"{path}: {what}", hint="Replace it by the file.")
    denied = isinstance(error, PermissionError)
    hint = "Change its permissions (chmod, chown)." if denied else "Check the path and the disk."
    return CorpusError(f"{path}: cannot be read: {what}", hint=hint)
