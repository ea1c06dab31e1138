"""Reading the files of a corpus. Every error in a file is a CorpusError that names the file."""

import contextlib
import errno
import gzip
import io
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmconsole.errors import CorpusError, EmbeddingsError
from lmconsole.files import open_file, read_file
from lmconsole.telemetry.host import MIB, host_memory

MAX_BYTES = 64 * 2**30
"""Largest array that is read on a machine with more than twice this memory, and largest text, which is never in memory
as a whole."""

READ_BYTES = 2**20
"""Bytes of a long file that are read at once."""

_GZIP, _ZIP, _NPY = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06"), b"\x93NUMPY"


def list_folder(folder: Path) -> frozenset[str]:
    """Return the names of all entries of ``folder``. Raises CorpusError if it is missing, a file, or unreadable."""
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        raise CorpusError(f"{folder}: there is no such folder", hint="Check the spelling of the path.") from None
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None


def size_limit() -> int:
    """Return the most bytes that are read from a file or unpacked to an array: half of the memory available now."""
    return min(MAX_BYTES, int(host_memory().available_mib * MIB) // 2)


def read_bytes(path: Path) -> bytes:
    """Read a regular file that fits into memory. Raises CorpusError for anything else."""
    limit = size_limit()
    try:
        return read_file(path, limit, follow=True)
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such file", hint="Check the path, or the target of the link.") from None
    except (OSError, MemoryError) as error:
        raise _unreadable(path, error, limit) from None


def read_text(path: Path, data: bytes) -> str:
    """Decode ``data``, the content of a small UTF-8 file. Line endings are kept, a byte order mark is dropped."""
    if not data:
        raise CorpusError(f"{path}: the file is empty", hint="Copy or download it again.")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, 0, error) from None


def not_utf8(path: Path, start: int, error: UnicodeDecodeError) -> CorpusError:
    """Return the error about a byte of a text; the bytes of ``error`` begin at offset ``start`` of the file."""
    offset = start + error.start
    return CorpusError(
        f"{path}: not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset:,} ({error.reason})",
        hint="Convert the file, for example: iconv -f LATIN1 -t UTF-8 old.txt > new.txt",
    )


@contextlib.contextmanager
def open_data(path: Path, limit: int | None = None) -> Iterator[io.BufferedIOBase]:
    """Open a file of a corpus, which is unpacked while it is read if its content is gzip.

    ``limit`` is its largest size, and that of what it unpacks to, in bytes; by default ``size_limit``.

    Raises:
        CorpusError: the file is missing, no regular file, too large, or damaged. Errors of reading that occur in the
            block count too.
    """
    limit = size_limit() if limit is None else limit
    try:
        with open(open_file(path, follow=True), "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise OSError(errno.EFBIG, f"larger than {limit // MIB:,} MiB")
            if not file.peek(len(_GZIP)).startswith(_GZIP):
                yield file
                return
            with _Unpacked(file, limit) as unpacked:
                yield unpacked
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such file", hint="Check the path, or the target of the link.") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise CorpusError(
            f"{path}: the gzip file is damaged or truncated ({_reason(error)})", hint=_AGAIN_HINT
        ) from None
    except (OSError, MemoryError) as error:
        raise _unreadable(path, error, limit) from None


class _Unpacked(gzip.GzipFile):
    """Content of a gzip file. Raises OSError after ``limit`` bytes: a small file can unpack to any size."""

    def __init__(self, file: io.BufferedIOBase, limit: int) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._limit = limit

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(self._limit + 1 if size is None or size < 0 else size)
        if self.tell() > self._limit:
            raise OSError(errno.EFBIG, f"unpacks to more than {self._limit // MIB:,} MiB")
        return data


def check_text(path: Path, data: bytes, at: int = 0) -> None:
    """Raise CorpusError if a file whose bytes from offset ``at`` are ``data`` is empty, UTF-16, or known to be no
    text. All but NUL characters is recognized by the beginning of the file."""
    if at == 0:
        _check_start(path, data)
    if b"\0" in data:
        raise CorpusError(
            f"{path}: contains a NUL character at offset {at + data.index(0):,}, so it is no plain text, or UTF-16",
            hint="Convert UTF-16 to UTF-8, for example: iconv -f UTF-16LE -t UTF-8 old.txt > new.txt",
        )


def _check_start(path: Path, start: bytes) -> None:
    if not start:
        raise CorpusError(f"{path}: the file is empty", hint="It must contain text as UTF-8.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CorpusError(
            f"{path}: the text is UTF-16, expected UTF-8",
            hint="Convert the file, for example: iconv -f UTF-16 -t UTF-8 old.txt > new.txt",
        )
    if start.startswith((*_ZIP, _NPY, b"version https://git-lfs", *_OTHERS)):
        raise CorpusError(
            f"{path}: expected text, found {describe_content(start)}",
            hint="Give text as UTF-8, plain or as .gz; token ids belong into a folder with all three splits.",
        )


def read_tokens(path: Path, vocabulary: int) -> NDArray[np.integer[Any]]:
    """Read token ids in [0, ``vocabulary``) from an npy file, or from the array ``tokens`` of an npz archive.

    The ids have shape (tokens,) and the type of ``id_type``. Nothing is ever unpickled. Raises CorpusError.
    """
    with open_data(path) as file:
        start = file.read(64)
        file.seek(0)
        if start.startswith(_NPY):
            return checked_ids(_read_npy(path, file), vocabulary, str(path))
    names, arrays = read_arrays(path, ["tokens"])
    if "tokens" not in arrays:
        found = ", ".join(repr(name[:60]) for name in names[:8]) or "no array at all"
        raise CorpusError(f"{path}: expected an array 'tokens', found {found}", hint=_NPZ_HINT)
    return checked_ids(arrays["tokens"], vocabulary, str(path))


def npy_header(file: IO[bytes] | io.BufferedIOBase) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an array in the npy format before memory is allocated for it. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read_npy(path: Path, file: io.BufferedIOBase) -> NDArray[Any]:
    try:
        with warnings.catch_warnings(action="ignore"):
            shape, dtype = npy_header(file)
            size = math.prod(shape) * dtype.itemsize
            if size > size_limit() and not dtype.hasobject:
                raise CorpusError(
                    f"{path}: declares an array of {size // MIB:,} MiB, more than half of the memory available",
                    hint=_AGAIN_HINT,
                )
            file.seek(0)
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            return array
    except Exception as error:
        raise _damaged(path, "array", error) from None


def read_arrays(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the names of all arrays of an npz archive, and those of ``wanted`` that it has. Nothing is unpickled."""
    with open_data(path) as file:
        start = file.read(64)
        if not start.startswith(_ZIP):
            raise CorpusError(
                f"{path}: expected token ids (npz or npy), found {describe_content(start)}", hint=_NPZ_HINT
            )
        file.seek(0)
        packed = io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file
        try:
            limit = size_limit()
            with zipfile.ZipFile(packed) as archive:
                sizes = {member.filename.removesuffix(".npy"): member.file_size for member in archive.infolist()}
            for name in wanted:
                if sizes.get(name, 0) > limit:
                    raise CorpusError(
                        f"{path}: '{name}' unpacks to {sizes[name] // MIB:,} MiB, more than half of the memory "
                        "available",
                        hint=_AGAIN_HINT,
                    )
            packed.seek(0)
            with warnings.catch_warnings(action="ignore"), np.load(packed, allow_pickle=False) as arrays:
                return list(arrays.files), {name: arrays[name] for name in wanted if name in arrays.files}
        except Exception as error:
            raise _damaged(path, "archive", error) from None


def _damaged(path: Path, what: str, error: Exception) -> CorpusError:
    """Return the CorpusError for an error of NumPy: with damaged bytes, zipfile, zlib, tokenize and ast raise almost
    anything."""
    if isinstance(error, CorpusError):
        return error
    if "allow_pickle" in str(error):
        return CorpusError(
            f"{path}: contains pickled Python objects, which are never loaded because they can run code", hint=_NPZ_HINT
        )
    return CorpusError(f"{path}: the {what} is damaged or truncated ({_reason(error)})", hint=_AGAIN_HINT)


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
    return tokens.astype(id_type(vocabulary), copy=False)


def id_type(vocabulary: int) -> np.dtype[np.integer[Any]]:
    """Return the type of token ids: uint16 if every id below ``vocabulary`` fits, else int32."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.int32)


_NPZ_HINT = "Write it with numpy.savez(file, tokens=ids) or numpy.save(file, ids), ids a 1-d integer array."
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
    if start.startswith(_ZIP):
        return "npz"
    if start[8:9] == b"{":  # after the length of the header
        return "safetensors"
    raise EmbeddingsError(f"{path}: expected embedding tables, found {describe_content(start)}", hint=hint)


_OTHERS = {
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"PAR1": "a Parquet file",
    b"%PDF-": "a PDF",
}
"""Files of other kinds by their first bytes."""


def describe_content(start: bytes) -> str:
    """Describe a file of the wrong kind by its first bytes."""
    if not start:
        return "an empty file"
    if start.startswith(_NPY):
        return "a single npy array"
    if start.startswith(_ZIP):
        return "a zip archive"
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            return what
    if start.startswith(b"\x80"):
        return "what may be a pickle, which is never loaded"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run: git lfs pull)"
    if start.lstrip()[:1] == b"<":
        return "a web page, as a failed download leaves it"
    return "something else"


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _unreadable(path: Path, error: Exception, limit: int = MAX_BYTES) -> CorpusError:
    """Return the error about a file that cannot be read; ``limit`` is its largest size."""
    what = error.strerror if isinstance(error, OSError) and error.strerror else _reason(error)
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EFBIG:
        what += ", half of the memory available" if limit < MAX_BYTES else ""
        return CorpusError(f"{path}: {what}", hint="Use a part of it, or a machine with more memory.")
    if what.startswith("expected a file"):
        return CorpusError(f"{path}: {what}", hint="Replace it by the file.")
    denied = isinstance(error, PermissionError)
    hint = "Change its permissions (chmod, chown)." if denied else "Check the path and the disk."
    return CorpusError(f"{path}: cannot be read: {what}", hint=hint)
