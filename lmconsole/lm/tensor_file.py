"""Files written by ``torch.save``, read as data: nothing in them runs, and no size in them is believed.

``torch.load`` allocates what a file asks for, and its zip reader is built without checksums. This reader first
describes the content, without reading a tensor, so that it can be compared with what the file must contain; then it
reads tensors one by one, and a changed bit anywhere is an error.
"""

import math
import os
import pickletools
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmconsole.files import open_file

ENTRY_BYTES = 1024
"""Bytes in the file for each tensor besides its values: headers, padding, and its part of the pickle."""
SLACK_BYTES = 2**16
SLACK_ENTRIES = 16
"""Entries of a file that are not tensors; PyTorch 2.13 writes seven."""
_CHUNK_BYTES = 2**20

_DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
_ORDERED_DICT = "collections OrderedDict"
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"


@dataclass(frozen=True, slots=True)
class _Global:
    """Name that the pickle refers to; it is never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """Values that several tensors may share."""

    key: str
    dtype: torch.dtype
    size: int
    """Number of elements."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Description of a tensor in a file. It is contiguous and within its storage."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: _Storage
    offset: int
    """Elements before the first one in its storage."""


class _BoundedReads:
    """A file of which at most ``limit`` bytes are read at once: ``zipfile`` reads the whole list of entries, and makes
    an object for each."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.limit = limit
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > self.limit:
            raise ValueError("its list of parts is too long")
        return self._file.read(size)


class TensorFile:
    """An open file of ``torch.save``. ``content`` is what was saved, with a StoredTensor for each tensor.

    Every method raises ValueError, or another exception of the standard library, if the file is damaged or holds
    anything but dictionaries with keys of text or whole numbers, lists, tuples, plain values and tensors.
    """

    def __init__(self, path: Path, *, tensor_bytes: int, tensors: int) -> None:
        """Open a file that holds up to ``tensors`` tensors of ``tensor_bytes`` bytes in all.

        Raises OSError as ``files.open_file`` does; links are not followed.
        """
        most = tensor_bytes + tensors * ENTRY_BYTES + SLACK_BYTES
        self._file = os.fdopen(open_file(path, follow=False), "rb")
        try:
            size = self._file.seek(0, 2)
            if size > most:
                raise ValueError(f"its {size:,} bytes are more than the {most:,} that it can have")
            bounded = _BoundedReads(self._file, (tensors + SLACK_ENTRIES) * ENTRY_BYTES)
            self._archive = zipfile.ZipFile(cast(IO[bytes], bounded))
            bounded.limit = sys.maxsize
            self._check_entries(most, tensors + SLACK_ENTRIES)
            self._root = self._find_root()
            pickle = self._small("data.pkl", tensors * ENTRY_BYTES + SLACK_BYTES)
            if self._root + "byteorder" in self._archive.NameToInfo:
                order = self._small("byteorder", 16)
                if order != sys.byteorder.encode():
                    raise ValueError("its bytes are in the order of another kind of machine")
            self.content = _describe(pickle)
        except BaseException:
            self._file.close()
            raise
        self._storages: dict[_Storage, Tensor] = {}

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._file.close()

    def read(self, value: Any) -> Any:
        """Return ``value``, a part of ``content``, with tensors on the CPU in place of their descriptions. No two of
        them share memory."""
        if isinstance(value, StoredTensor):
            return self._read_tensor(value)
        if isinstance(value, dict):
            return {key: self.read(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.read(each) for each in value)
        return value

    def _read_tensor(self, stored: StoredTensor) -> Tensor:
        shared = stored.storage in self._storages
        if not shared:
            self._storages[stored.storage] = self._read_storage(stored.storage)
        values = self._storages[stored.storage]
        count = math.prod(stored.shape)
        part = values[stored.offset : stored.offset + count].view(stored.shape)
        return part.clone() if shared or count < len(values) else part

    def _read_storage(self, storage: _Storage) -> Tensor:
        """Return the values of a storage, (N,). The end of an entry, where its checksum is compared, is always read."""
        entry = self._archive.getinfo(f"{self._root}data/{storage.key}")
        if entry.file_size != storage.size * storage.dtype.itemsize:
            raise ValueError(f"{entry.file_size:,} bytes for {storage.size:,} numbers of {storage.dtype}")
        values = torch.empty(storage.size, dtype=storage.dtype)
        left: NDArray[np.uint8] = values.view(torch.uint8).numpy()
        with self._archive.open(entry) as source:
            while read := source.read(_CHUNK_BYTES):
                left[: len(read)] = np.frombuffer(read, np.uint8)
                left = left[len(read) :]
        return values

    def _check_entries(self, most_bytes: int, most_entries: int) -> None:
        entries = self._archive.infolist()
        if len(entries) > most_entries:
            raise ValueError(f"its {len(entries):,} parts are more than the {most_entries:,} that it can have")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which checkpoints are not")
        if sum(entry.file_size for entry in entries) > most_bytes:
            raise ValueError("its parts are larger than the whole can be")

    def _find_root(self) -> str:
        roots = [name.removesuffix("data.pkl") for name in self._archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("it is not a file of PyTorch")
        return roots[0]

    def _small(self, name: str, limit: int) -> bytes:
        if self._archive.getinfo(self._root + name).file_size > limit:
            raise ValueError(f"its {name} is too large")
        return self._archive.read(self._root + name)


def _describe(pickle: bytes) -> Any:
    """Return the value that ``pickle`` describes, with a StoredTensor for each tensor.

    A pickle is a program for a stack machine. This one has only the instructions that ``torch.save`` needs for
    dictionaries, lists, tuples, plain values and tensors; Python's own would import and call what a file names.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_marked() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for instruction, argument, _ in pickletools.genops(pickle):
        match instruction.name:
            case "PROTO":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction.name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[instruction.name]())
            case "GLOBAL":
                stack.append(_Global(str(argument)))
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "TUPLE":
                stack.append(tuple(pop_marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(instruction.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                items = pop_marked() if instruction.name == "APPENDS" else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop_marked() if instruction.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                target = _expect(stack[-1], dict)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    target[_expect(key, str, int)] = value
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BUILD":  # PyTorch's versions of an OrderedDict of weights, which nothing here needs
                stack.pop()
                _expect(stack[-1], dict)
            case "STOP":
                return stack.pop()
            case _:
                raise ValueError(f"its pickle has an instruction that PyTorch does not write: {instruction.name}")
    raise ValueError("its pickle has no end")


def _expect(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise ValueError(f"its pickle has a {type(value).__name__} where PyTorch writes a {kinds[0].__name__}")
    return value


def _storage(kind: object, dtype: object, key: object, _location: object, size: object) -> _Storage:
    """Return the description of a storage from what identifies it in the pickle."""
    found = _DTYPES.get(_expect(dtype, _Global).name)
    if kind != "storage" or found is None:
        raise ValueError("its pickle refers to something other than plain numbers")
    storage = _Storage(_expect(key, str), found, _expect(size, int))
    if storage.size < 0:
        raise ValueError("a tensor has a negative size")
    return storage


def _call(function: object, arguments: Any) -> Any:
    """Return the result of a call in the pickle: a StoredTensor, or an empty dictionary."""
    name = _expect(function, _Global).name
    if name == _ORDERED_DICT and arguments == ():
        return {}
    if name != _REBUILD_TENSOR:
        raise ValueError(f"its pickle calls {name[:80]!r}")
    storage, offset, shape, stride, _requires_grad, _hooks = arguments
    stored = StoredTensor(_expect(storage, _Storage).dtype, _sizes(shape), storage, _expect(offset, int))
    if stored.offset < 0 or stored.offset + math.prod(stored.shape) > storage.size:
        raise ValueError("a tensor is larger than its values in the file")
    steps = [math.prod(stored.shape[i + 1 :]) for i in range(len(stored.shape))]
    if any(found != step and size > 1 for size, found, step in zip(stored.shape, _sizes(stride), steps, strict=True)):
        raise ValueError("a tensor is not contiguous")
    return stored


def _sizes(value: object) -> tuple[int, ...]:
    sizes: tuple[int, ...] = tuple(_expect(each, int) for each in _expect(value, tuple))
    if any(size < 0 for size in sizes):
        raise ValueError("a tensor has a negative size")
    return sizes
