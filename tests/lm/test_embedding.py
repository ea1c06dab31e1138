"""Embedding tables from real files: both formats, one fingerprint, and every kind of invalid file."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lmconsole.errors import EmbeddingsError
from lmconsole.lm.embedding import Tables, fingerprint, read_tables

V, C, T = 11, 4, 3
GENERATOR = np.random.default_rng(0)
TOKENS = GENERATOR.normal(size=(V, C)).astype(np.float32)
TOKENS[0] = 0
POSITION = GENERATOR.normal(size=(T + 2, C)).astype(np.float32)


def read(path: Path) -> Tables:
    return read_tables(path, vocabulary=V, channels=C, window_tokens=T)


def problem(path: Path) -> str:
    """Return message and hint of the error from reading ``path``."""
    with pytest.raises(EmbeddingsError) as caught:
        read(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return str(caught.value)


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **{"tokens": TOKENS, "position": POSITION[:T], **arrays})  # type: ignore[arg-type]
    return path


def safetensors(path: Path, prefix: str = "", **tensors: torch.Tensor) -> Path:
    hub = {
        "tokens_embed.weight": torch.from_numpy(TOKENS[1:]).clone(),
        "positions_embed.weight": torch.from_numpy(POSITION).clone(),
        "h.0.ln_1.weight": torch.ones(C),
    }
    save_file({prefix + name: tensor for name, tensor in {**hub, **tensors}.items()}, path)
    return path


def test_an_npz_is_read_unchanged(tmp_path: Path) -> None:
    tables = read(npz(tmp_path / "tables.npz"))
    assert np.array_equal(tables.tokens.numpy(), TOKENS)
    assert np.array_equal(tables.position.numpy(), POSITION[:T])
    assert tables.tokens.dtype == tables.position.dtype == torch.float32
    assert tables.path == tmp_path / "tables.npz"


def test_a_compressed_or_transposed_npz_is_the_same(tmp_path: Path) -> None:
    plain = read(npz(tmp_path / "plain.npz"))
    np.savez_compressed(tmp_path / "other.npz", tokens=np.asfortranarray(TOKENS), position=POSITION[:T])
    other = read(tmp_path / "other.npz")
    assert other.sha256 == plain.sha256
    assert other.tokens.is_contiguous()
    assert torch.equal(other.tokens, plain.tokens)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_hubs_file_gets_a_zero_row_in_front_and_loses_later_positions(tmp_path: Path, prefix: str) -> None:
    tables = read(safetensors(tmp_path / "model.safetensors", prefix))
    assert np.array_equal(tables.tokens.numpy(), TOKENS)
    assert np.array_equal(tables.position.numpy(), POSITION[:T])


def test_both_formats_have_one_fingerprint_and_other_values_another(tmp_path: Path) -> None:
    first = read(npz(tmp_path / "a.npz"))
    assert read(safetensors(tmp_path / "model.safetensors")).sha256 == first.sha256
    assert read(npz(tmp_path / "long.npz", position=POSITION)).sha256 == first.sha256
    changed = TOKENS.copy()
    changed[5, 1] += 1e-6
    assert read(npz(tmp_path / "b.npz", tokens=changed)).sha256 != first.sha256
    assert len(first.sha256) == 64
    assert fingerprint(first.tokens, first.position) == first.sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_two_bytes_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tokens, position = torch.from_numpy(TOKENS).to(dtype), torch.from_numpy(POSITION).to(dtype)
    hub: dict[str, Any] = {"tokens_embed.weight": tokens[1:].clone(), "positions_embed.weight": position}
    tables = read(safetensors(tmp_path / "model.safetensors", **hub))
    assert tables.tokens.dtype == tables.position.dtype == torch.float32
    assert torch.equal(tables.tokens, tokens.float())
    assert torch.equal(tables.position, position[:T].float())
    if dtype == torch.float16:  # NumPy has no bfloat16
        file = npz(tmp_path / "tables.npz", tokens=tokens.numpy(), position=position.numpy())
        assert read(file).sha256 == tables.sha256


@pytest.mark.parametrize("make", [npz, safetensors])
@pytest.mark.parametrize("name", ["0a1b2c", "tables.bin", "tables.npz", "model.safetensors"])
def test_the_content_decides_the_format_and_not_the_name(
    tmp_path: Path, make: Callable[[Path], Path], name: str
) -> None:
    with (tmp_path / "original.npz").open("wb"):
        made = make(tmp_path / "original.npz")
    (tmp_path / "blobs").mkdir()
    blob = made.rename(tmp_path / "blobs" / name)
    (tmp_path / f"link-{name}").symlink_to(blob)
    tables = read(tmp_path / f"link-{name}")
    assert np.array_equal(tables.tokens.numpy(), TOKENS)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_only_a_regular_file_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tables.npz"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert "expected a file, found a" in problem(path)


def test_a_file_name_may_contain_spaces_and_brackets(tmp_path: Path) -> None:
    assert read(npz(tmp_path / "my [red] tables.npz")).tokens.shape == (V, C)


@pytest.mark.parametrize("name", ["none.npz", "none.safetensors"])
def test_the_error_about_a_missing_file_describes_the_expected_one(tmp_path: Path, name: str) -> None:
    message = problem(tmp_path / name)
    assert "no such file" in message
    assert "'tokens' (11 x 4)" in message
    assert "tokens_embed.weight (10 x 4)" in message


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    assert "expected a file, found a folder" in problem(tmp_path / "folder.npz")


def test_a_file_without_permission_is_an_error(tmp_path: Path, ordinary_user: Callable[[], None]) -> None:
    path = npz(tmp_path / "tables.npz")
    path.chmod(0)
    ordinary_user()
    assert "Permission denied" in problem(path)


@pytest.mark.parametrize("name", ["tables.npz", "model.safetensors", "tables"])
@pytest.mark.parametrize("content", [b"", b"hello, I am a text file\n" * 9, b"PK\x03\x04 not really", b"\x80\x04N."])
def test_other_kinds_of_files_are_recognized(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    expected = "not a readable .npz" if content.startswith(b"PK") else "expected embedding tables, found"
    assert expected in problem(tmp_path / name)


@pytest.mark.parametrize("make", [npz, safetensors])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_recognized(tmp_path: Path, make: Callable[[Path], Path], share: float) -> None:
    path = make(tmp_path / ("t.npz" if make is npz else "t.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "it may be truncated" in problem(path)


def test_a_flipped_bit_in_an_npz_is_recognized(tmp_path: Path) -> None:
    path = npz(tmp_path / "tables.npz")
    whole = bytearray(path.read_bytes())
    whole[whole.index(TOKENS[3].tobytes())] ^= 1
    path.write_bytes(whole)
    assert "CRC" in problem(path)


def test_pickled_arrays_are_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = npz(tmp_path / "tables.npz", tokens=np.array([[Trap()]], dtype=object))
    assert "pickled" in problem(path)
    assert not (tmp_path / "sprung").exists()


def test_a_header_with_a_huge_shape_allocates_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 10**6)})
    with zipfile.ZipFile(tmp_path / "tables.npz", "w") as archive:
        archive.writestr("tokens.npy", header.getvalue())
    assert "1,000,000,000,000 x 1,000,000, expected 11 x 4" in problem(tmp_path / "tables.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": TOKENS[1:]}, "'tokens' is 10 x 4, expected 11 x 4"),
        ({"tokens": TOKENS.T}, "'tokens' is 4 x 11, expected 11 x 4"),
        ({"tokens": TOKENS.ravel()}, "'tokens' is 44, expected 11 x 4"),
        ({"tokens": np.float32(1)}, "'tokens' is a single number"),
        ({"position": POSITION[: T - 1]}, "'position' is 2 x 4, expected 3 or more x 4"),
        ({"position": POSITION[:, :3]}, "'position' is 5 x 3, expected 3 or more x 4"),
        ({"tokens": TOKENS.astype(np.float64)}, "'tokens' is of type float64, expected float32"),
        (
            {"tokens": np.zeros((V, C), dtype="V2")},
            "'tokens' is of type void16, expected float32 or float16, or",
        ),
        ({"position": np.ones((T, C), dtype=np.int64)}, "'position' is of type int64, expected float32"),
        ({"position": np.full((T, C), "a")}, "'position' is of type str"),
    ],
)
def test_wrong_shapes_and_types_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    assert message in problem(npz(tmp_path / "tables.npz", **arrays))


def test_the_error_about_a_missing_array_lists_the_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "tables.npz", wte=TOKENS, position=POSITION)
    message = problem(tmp_path / "tables.npz")
    assert "no array 'tokens'" in message
    assert "position, wte" in message


def test_the_error_about_a_missing_tensor_lists_some_tensors(tmp_path: Path) -> None:
    save_file({f"h.{i}.weight": torch.ones(1) for i in range(20)}, tmp_path / "model.safetensors")
    message = problem(tmp_path / "model.safetensors")
    assert "no tensor 'tokens_embed.weight'" in message
    assert "h.0.weight" in message
    assert "…" in message


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"tokens_embed.weight": torch.zeros(V, C)}, "'tokens_embed.weight' is 11 x 4, expected 10 x 4"),
        (
            {"positions_embed.weight": torch.zeros(T - 1, C)},
            "'positions_embed.weight' is 2 x 4, expected 3 or more x 4",
        ),
        ({"tokens_embed.weight": torch.zeros(V - 1, C).double()}, "'tokens_embed.weight' is of type F64"),
        ({"positions_embed.weight": torch.zeros(T, C).int()}, "'positions_embed.weight' is of type I32"),
    ],
)
def test_the_hubs_file_is_checked_in_the_same_way(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    assert message in problem(safetensors(tmp_path / "model.safetensors", **tensors))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("array", ["tokens", "position"])
def test_non_finite_values_are_found(tmp_path: Path, bad: float, array: str) -> None:
    values = {"tokens": TOKENS, "position": POSITION[:T]}[array].copy()
    values[2, 1] = bad
    message = problem(npz(tmp_path / "tables.npz", **{array: values}))
    assert f"'{array}' contains NaN or infinite values, first in row 2" in message


def test_names_in_a_damaged_file_cannot_control_the_terminal(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"\x1b[31mred": TOKENS}
    np.savez(tmp_path / "tables.npz", **arrays)
    assert "\x1b" not in problem(tmp_path / "tables.npz")
