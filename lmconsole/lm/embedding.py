"""Frozen embedding tables: read from a file and validated before training."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmconsole.data.files import npy_header, recognize_tables
from lmconsole.errors import EmbeddingsError
from lmconsole.files import open_file

_TOKENS, _POSITION = TABLES = "tokens", "position"
_HUB_NAMES = {_TOKENS: "tokens_embed.weight", _POSITION: "positions_embed.weight"}
_HUB_PREFIX = "transformer."

_TYPES = ("float32", "float16", "F32", "F16", "BF16")
"""Types that are converted to float32 without loss, by their names in NumPy and safetensors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """GPT-1's embeddings, always in float32. Row 0 of ``tokens`` belongs to padding."""

    tokens: Tensor  # (V, C)
    position: Tensor  # (T, C)
    sha256: str
    """Hash of shapes and values: the same for the same tables in another file format."""
    path: Path


def arrays_of(tables: Tables) -> dict[str, NDArray[np.float32]]:
    """Return the two tables as arrays that share their memory."""
    return {_TOKENS: tables.tokens.numpy(), _POSITION: tables.position.numpy()}


def tables_from(arrays: Mapping[str, NDArray[Any]], *, sha256: str, path: Path) -> Tables:
    """Return tables that share the memory of the arrays from ``arrays_of``. ``sha256`` is not checked."""
    tokens, position = (torch.from_numpy(arrays[name]) for name in (_TOKENS, _POSITION))
    return Tables(tokens=tokens, position=position, sha256=sha256, path=path)


def read_tables(path: Path, *, vocabulary: int, channels: int, window_tokens: int) -> Tables:
    """Read the tables in ``path``.

    The file is an ``.npz`` with arrays ``tokens`` (V, C) and ``position`` (at least T, C), or GPT-1's
    ``model.safetensors`` from the Hugging Face hub; its content decides, not its name. Values are float32 or float16,
    and in safetensors also bfloat16. The hub's token ids start at 0, which is the id of padding here, so a zero row is
    inserted in front.

    Raises:
        EmbeddingsError: The file is missing or damaged, or contains something else.
    """
    source = _Source(path, {_TOKENS: (vocabulary, channels), _POSITION: (window_tokens, channels)})
    try:
        read = _read_safetensors if recognize_tables(path, source.recipe) == "safetensors" else _read_npz
        with open(open_file(path, follow=True), "rb") as file:
            tokens, position = read(source, file)
    except OSError as error:
        source.fail(f"cannot be read: {error.strerror or error}", hint="Check the path and its permissions.")
    except MemoryError:
        source.fail("does not fit into this machine's memory", hint=source.recipe)
    for name, table in ((_TOKENS, tokens), (_POSITION, position)):
        if not bool(torch.isfinite(table).all()):
            bad = int((~torch.isfinite(table)).any(dim=1).nonzero()[0])
            source.fail(f"'{name}' contains NaN or infinite values, first in row {bad}", hint="Create the file again.")
    return Tables(tokens=tokens, position=position, sha256=fingerprint(tokens, position), path=path)


def fingerprint(tokens: Tensor, position: Tensor) -> str:
    """Return the hexadecimal SHA-256 of the shapes and float32 values of both tables."""
    digest = hashlib.sha256()
    for name, table in ((_TOKENS, tokens), (_POSITION, position)):
        digest.update(f"{name} {tuple(table.shape)} float32\n".encode())
        values = table.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
        digest.update(np.ascontiguousarray(values, dtype="<f4").data)
    return digest.hexdigest()


class _Source:
    """A file, its expected content, and the errors about it."""

    def __init__(self, path: Path, shapes: dict[str, tuple[int, int]]) -> None:
        self.path = path
        self.shapes = shapes
        (V, C), (T, _) = shapes[_TOKENS], shapes[_POSITION]
        self.recipe = (
            f"Expected: an .npz with float32 or float16 arrays 'tokens' ({V:,} x {C:,}) and 'position' "
            f"({T:,} x {C:,}), or GPT-1's model.safetensors with tokens_embed.weight ({V - 1:,} x {C:,}) and "
            "positions_embed.weight."
        )

    def fail(self, what: str, *, hint: str | None = None) -> NoReturn:
        raise EmbeddingsError(f"{self.path}: {what}", hint=hint or self.recipe)

    def check(self, name: str, shape: tuple[int, ...], dtype: str, *, rows: int, or_more: bool) -> None:
        """Raise EmbeddingsError unless ``shape`` has ``rows`` rows, ``or_more``, of C values of one of ``_TYPES``."""
        columns = self.shapes[_TOKENS][1]
        fits = len(shape) == 2 and shape[1] == columns and (shape[0] == rows or (or_more and shape[0] >= rows))
        if not fits:
            found = " x ".join(f"{size:,}" for size in shape) or "a single number"
            more = " or more" if or_more else ""
            self.fail(f"'{name}' is {found}, expected {rows:,}{more} x {columns:,}")
        if dtype not in _TYPES:
            self.fail(
                f"'{name}' is of type {dtype}, expected float32 or float16, or bfloat16 in a .safetensors file",
                hint="Convert the array and save it again.",
            )


def _read_npz(source: _Source, file: IO[bytes]) -> tuple[Tensor, Tensor]:
    tables = []
    try:
        with zipfile.ZipFile(file) as archive:
            members = set(archive.namelist())
            for name, or_more in ((_TOKENS, False), (_POSITION, True)):
                if f"{name}.npy" not in members:
                    source.fail(f"has no array '{name}'; found: {_listed(m.removesuffix('.npy') for m in members)}")
                rows = source.shapes[name][0]
                with archive.open(f"{name}.npy") as member:
                    shape, dtype = npy_header(member)
                    if dtype.hasobject:
                        source.fail(f"'{name}' is a pickled object array, which could run code and is not read")
                    source.check(name, shape, dtype.name, rows=rows, or_more=or_more)
                with archive.open(f"{name}.npy") as member:
                    values = np.lib.format.read_array(member, allow_pickle=False)
                # Aligned like PyTorch tensors and mapped files: alignment can change the last bits of a product.
                tables.append(torch.from_numpy(np.ascontiguousarray(values[:rows], dtype=np.float32)).clone())
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        source.fail(f"not a readable .npz file; it may be truncated ({error})")
    return tables[0], tables[1]


def _read_safetensors(source: _Source, opened: IO[bytes]) -> tuple[Tensor, Tensor]:
    try:
        with safe_open(f"/dev/fd/{opened.fileno()}", framework="pt") as file:
            slices = {name: _hub_slice(source, file, name) for name in (_TOKENS, _POSITION)}
            V, C = source.shapes[_TOKENS]
            T, _ = source.shapes[_POSITION]
            for name, rows in ((_TOKENS, V - 1), (_POSITION, T)):
                part = slices[name]
                source.check(
                    _HUB_NAMES[name], tuple(part.get_shape()), part.get_dtype(), rows=rows, or_more=name == _POSITION
                )
            tokens = torch.zeros(V, C)
            tokens[1:] = slices[_TOKENS][:]
            position: Tensor = slices[_POSITION][:T]
            return tokens, position.float()
    except SafetensorError as error:
        source.fail(f"not a readable .safetensors file; it may be truncated ({error})")


def _hub_slice(source: _Source, file: Any, name: str) -> Any:
    """Return a lazy slice of a tensor in the hub's file. Some copies of the model prefix its name."""
    names = set(file.keys())
    stored_as = _HUB_NAMES[name] if _HUB_NAMES[name] in names else _HUB_PREFIX + _HUB_NAMES[name]
    if stored_as not in names:
        source.fail(f"has no tensor '{_HUB_NAMES[name]}'; found: {_listed(names)}")
    return file.get_slice(stored_as)


def _listed(names: Iterable[str]) -> str:
    """Return the first of these names, shortened."""
    found = sorted(names)
    return ", ".join(name[:60] for name in found[:8]) + (", …" if len(found) > 8 else "") or "nothing"
