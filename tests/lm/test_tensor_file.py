"""Files of ``torch.save`` that others may have changed: read exactly, or refused, within their size."""

import io
import os
import pickle
import socket
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmconsole.lm.tensor_file import StoredTensor, TensorFile

pytestmark = pytest.mark.slow

CONTENT = {
    "weights": OrderedDict(w=torch.arange(12.0).view(3, 4), b=torch.tensor(2.5)),
    3: [1, -7, 10**12, 2.5, float("inf"), None, True, False, "text"],
    "tuple": (1, (2, 3)),
    "types": [torch.zeros(2, dtype=kind) for kind in (torch.float64, torch.bfloat16, torch.int64, torch.uint8)],
    "empty": [torch.zeros(0, 3), {}, [], ()],
    "part": torch.arange(10.0)[3:7],
}


def read(path: Path, *, tensor_bytes: int = 10_000, tensors: int = 20) -> Any:
    with TensorFile(path, tensor_bytes=tensor_bytes, tensors=tensors) as file:
        return file.read(file.content)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(CONTENT, tmp_path / "file")
    return tmp_path / "file"


def repacked(path: Path, change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the zip file again after ``change`` to its entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_a_file_is_read_like_pytorch_reads_it(saved: Path) -> None:
    assert same(read(saved), dict(torch.load(saved, weights_only=True)))


def test_tensors_that_share_memory_in_the_file_do_not_share_it_afterwards(tmp_path: Path) -> None:
    """As the weights of an LSTM on a GPU, which version 0.1.0 saved without a copy."""
    flat = torch.arange(8.0)
    torch.save([flat[:4].view(2, 2), flat[4:], flat, flat], tmp_path / "file")
    found = read(tmp_path / "file")
    found[0].fill_(-1.0)
    found[3].fill_(-2.0)
    assert found[1].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert found[2].tolist() == flat.tolist()


def test_content_is_described_without_reading_a_tensor(tmp_path: Path) -> None:
    torch.save({"large": torch.zeros(2_000_000)}, tmp_path / "file")
    tracemalloc.start()
    with TensorFile(tmp_path / "file", tensor_bytes=8_000_000, tensors=1) as file:
        described = file.content["large"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(described, StoredTensor)
    assert (described.shape, described.dtype) == ((2_000_000,), torch.float32)
    assert peak < 1_000_000


def test_every_flipped_bit_and_every_cut_is_an_error_or_changes_nothing(saved: Path) -> None:
    """PyTorch itself does not compare checksums."""
    whole = saved.read_bytes()
    expected, refused = read(saved), 0
    positions = [*range(0, len(whole), 7)]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        saved.write_bytes(damaged)
        try:
            found = read(saved)
        except Exception:
            refused += 1
        else:
            assert same(found, expected), position
    assert refused > len(positions) // 10
    for length in range(0, len(whole), 97):
        saved.write_bytes(whole[:length])
        with pytest.raises(Exception, match=r"."):
            read(saved)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "file"
    torch.save({"w": torch.zeros(10_000_000)}, path)
    repacked(path, lambda entries: None, compression)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="compressed"):
        read(path, tensor_bytes=10**9)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_file_larger_than_its_content_can_be_is_refused(saved: Path) -> None:
    with saved.open("ab") as file:
        file.truncate(10**9)
    with pytest.raises(ValueError, match="more than the"):
        read(saved)


def test_more_entries_than_tensors_are_refused(saved: Path) -> None:
    repacked(saved, lambda entries: entries.update({f"x/{i}": b"" for i in range(100)}))
    with pytest.raises(ValueError, match="parts are more than"):
        read(saved)


def test_a_long_list_of_entries_is_not_read(saved: Path) -> None:
    repacked(saved, lambda entries: entries.update({f"x/{i}": b"" for i in range(20_000)}))
    tracemalloc.start()
    with pytest.raises(ValueError, match="list of parts is too long"):
        read(saved, tensor_bytes=10**9)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_values_in_the_order_of_another_machine_are_refused(saved: Path) -> None:
    repacked(saved, lambda entries: entries.update({"file/byteorder": b"big"}))
    with pytest.raises(ValueError, match="order"):
        read(saved)


def with_pickle(path: Path, data: bytes) -> None:
    def change(entries: dict[str, bytes]) -> None:
        (name,) = [name for name in entries if name.endswith("data.pkl")]
        entries[name] = data

    repacked(path, change)


class Calls:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def tensor(offset: object, shape: object, stride: object, size: object = 4) -> bytes:
    """Return the pickle of a tensor over four numbers."""
    buffer = io.BytesIO()

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", size) if isinstance(value, Storage) else None

    rebuild = torch._utils._rebuild_tensor_v2
    Pickler(buffer, 2).dump([Calls(rebuild, Storage(), offset, shape, stride, False, OrderedDict())])
    return buffer.getvalue()


HOSTILE = {
    "program": pickle.dumps(Calls(os.system, "touch /tmp/never"), 2),
    "memory": pickle.dumps(Calls(bytearray, 10**10), 2),
    "protocol 4": pickle.dumps({"a": 1}, 4),
    "protocol 0": pickle.dumps({"a": 1}, 0),
    "deep key": b"\x80\x02})" + b"\x85" * 60_000 + b"Ns.",
    "far memo": b"\x80\x02Nr\xff\xff\xff\x7fh\x01.",
    "long text": b"\x80\x02X\xff\xff\xff\x7fa.",
    "no end": b"\x80\x02N",
    "nothing": b"\x80\x02.",
    "mark": b"\x80\x02t.",
    "larger than its values": tensor(0, (5,), (1,)),
    "after its values": tensor(1, (4,), (1,)),
    "before its values": tensor(-1, (4,), (1,)),
    "one value repeated": tensor(0, (10**9,), (0,)),
    "reversed": tensor(3, (4,), (-1,)),
    "negative shape": tensor(0, (-1,), (1,)),
    "huge shape": tensor(0, (10**30,), (1,)),
    "transposed": tensor(0, (2, 2), (1, 2)),
    "fewer strides": tensor(0, (2, 2), (1,)),
    "shape of text": tensor(0, ("2",), (1,)),
    "shape of true": tensor(0, (True,), (1,)),
    "shape of lists": tensor(0, [4], (1,)),
    "more values": tensor(0, (4,), (1,), size=10**12),
    "negative values": tensor(0, (0,), (1,), size=-1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_can_neither_call_anything_nor_describe_what_is_not_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    torch.save([torch.zeros(4)], path)
    with_pickle(path, tensor(0, (4,), (1,)))
    assert same(read(path), [torch.zeros(4)])
    with_pickle(path, HOSTILE[name])
    tracemalloc.start()
    with pytest.raises((ValueError, IndexError, KeyError, TypeError)):
        read(path, tensor_bytes=100_000)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "socket", "link", "broken link"])
def test_what_is_no_file_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, saved: Path
) -> None:
    path = tmp_path / "other"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                monkeypatch.chdir(tmp_path)  # the name of a socket is short
                server.bind("other")
        case "link":
            path.symlink_to(saved)
        case "broken link":
            path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"."):
        read(path)
