"""Every problem of a corpus gives one message: which file, what was found, what to do."""

import gzip
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmconsole.data.corpus import load_corpus
from lmconsole.data.files import read_tokens
from lmconsole.data.tokenizer import ENCODER_FILE, MERGES_FILE
from lmconsole.errors import CorpusError, escape_control_characters


def refusal(folder: Path | None, cache: Path | None = None, vocabulary: int = 400) -> CorpusError:
    """Return the error from loading ``folder``, after checks of what all of them have in common."""
    with pytest.raises(CorpusError) as caught:
        load_corpus("tokens", folder, vocabulary=vocabulary, cache=cache)
    assert folder is None or escape_control_characters(folder.name) in caught.value.message
    assert "\x1b" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return caught.value


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


IDS = np.arange(1, 90, dtype=np.uint16)
HUGE = npy(np.arange(10)).replace(b"'shape': (10,), }             ", b"'shape': (99999999999999999,)}")

BAD_ARCHIVES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "an empty file"),
    "truncated": (npz(tokens=IDS)[:-40], "damaged or truncated"),
    "only a magic number": (b"PK\x03\x04", "damaged or truncated"),
    "a pickle": (pickle.dumps([1, 2, 3]), "may be a pickle, which is never loaded"),
    "pickled array": (npz(tokens=np.array([1, "two", None], dtype=object)), "pickled Python objects"),
    "an npy file of floats": (npy(IDS / 2), "must contain integers, found float64"),
    "an npy file of objects": (npy(np.array([1, None], dtype=object)), "pickled Python objects"),
    "an npy file cut short": (npy(IDS)[:-9], "the array is damaged or truncated"),
    "an npy header cut short": (npy(IDS)[:30], "the array is damaged or truncated"),
    "an npy file with a shape beyond memory": (HUGE, "declares an array of 762,939,453,124 MiB"),
    "an npy file of two dimensions": (npy(IDS[:88].reshape(8, 11)), "found 8 × 11"),
    "a damaged gzip file": (gzip.compress(npz(tokens=IDS))[:-20], "the gzip file is damaged or truncated"),
    "something else in a gzip file": (gzip.compress(b"1 2 3"), "npz or npy), found something else"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "text": (b"1 2 3 4 5", "something else"),
    "another array": (npz(ids=IDS, sizes=IDS), "found 'ids', 'sizes'"),
    "no array": (npz(), "no array at all"),
    "a member that is no array": (zipped("tokens", b"1 2 3"), "must contain integers, found raw bytes"),
    "a shape beyond memory": (zipped("tokens.npy", HUGE), "damaged or truncated"),
    "a header that ends too soon": (zipped("tokens.npy", npy(IDS).replace(b"}", b"(")), "damaged or truncated"),
    "floats": (npz(tokens=IDS.astype(np.float32)), "must contain integers, found float32"),
    "booleans": (npz(tokens=IDS > 3), "must contain integers, found bool"),
    "strings": (npz(tokens=np.array(["a", "b"])), "must contain integers, found <U1"),
    "two dimensions": (npz(tokens=IDS[:88].reshape(8, 11)), "found 8 × 11"),
    "a scalar": (npz(tokens=np.array(7)), "found a single number"),
    "no tokens": (npz(tokens=IDS[:0]), "'tokens' is empty"),
    "two tokens": (npz(tokens=IDS[:2]), "the validation split has 2 tokens"),
    "an id too large": (
        npz(tokens=np.array([5, 399, 400, 401])),
        "id 400 at position 2 is outside the vocabulary of 400",
    ),
    "a negative id": (npz(tokens=np.array([5, -1, 400])), "id -1 at position 1 is outside the vocabulary"),
    "an unsigned id beyond all": (npz(tokens=np.array([2**64 - 1], dtype=np.uint64)), "id 18446744073709551615 at"),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_an_unusable_archive_is_reported_with_its_content(kind: str, npz_folder: Path) -> None:
    data, complaint = BAD_ARCHIVES[kind]
    (npz_folder / "wiki.validation.npz").write_bytes(data)
    error = refusal(npz_folder)
    assert "wiki.validation.npz" in error.message
    assert complaint in error.message
    assert error.hint


def test_no_pickle_in_an_archive_is_ever_run(npz_folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    trap = np.empty(1, dtype=object)
    trap[0] = Trap()
    for data in (npz(tokens=trap), pickle.dumps(Trap())):
        (npz_folder / "wiki.train.npz").write_bytes(data)
        refusal(npz_folder)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_damage_to_an_archive_is_a_corpus_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    good = npz(tokens=IDS)
    where = data.draw(st.integers(0, len(good) - 1))
    patch = data.draw(st.binary(max_size=6))
    length = data.draw(st.integers(0, 10))
    path = tmp_path / "x.npz"
    path.write_bytes(good[:where] + patch + good[where + length :])
    found: np.ndarray | None = None
    with suppress(CorpusError):
        found = read_tokens(path, 100)
    assert found is None or (found.ndim == 1 and 0 <= found.min() <= found.max() < 100)


def test_an_archive_written_by_python_2_is_read_without_a_warning(npz_folder: Path) -> None:
    old = npy(IDS).replace(b"(89,), }  ", b"(89L,), } ")
    (npz_folder / "wiki.test.npz").write_bytes(zipped("tokens.npy", old))
    assert np.array_equal(load_corpus("tokens", npz_folder, vocabulary=100).splits["test"], IDS)


def test_without_a_folder_the_hint_is_the_option() -> None:
    assert "--data" in str(refusal(None).hint)


def test_a_missing_folder_and_a_file_in_its_place_are_distinguished(npz_folder: Path) -> None:
    assert "there is no such folder or file" in refusal(npz_folder.parent / "absent").message
    assert "expected text, found a zip archive" in refusal(npz_folder / "wiki.test.npz").message
    assert "cannot be read: File name too long" in refusal(npz_folder / ("x" * 300)).message
    assert "cannot be read" in refusal(Path(f"{npz_folder}/nul\x00")).message


def test_a_folder_without_a_corpus_gives_the_names_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing to train on")
    error = refusal(tmp_path)
    assert "no corpus in this folder" in error.message
    assert "wiki.train.npz" in str(error.hint)


@pytest.mark.parametrize("gone", ["wiki.train.npz", "wiki.validation.npz", "wiki.test.npz"])
def test_two_of_three_token_files_are_refused_with_the_name_of_the_third(npz_folder: Path, gone: str) -> None:
    (npz_folder / gone).unlink()
    error = refusal(npz_folder)
    assert f"2 of 3 splits: wiki.{'validation' if 'train' in gone else 'train'}.npz" in error.message
    assert f"without {gone}" in error.message


def test_two_of_three_texts_are_refused_with_the_possible_names_of_the_third(text_folder: Path) -> None:
    (text_folder / "valid.txt").unlink()
    assert "train.txt, test.txt without valid.txt" in refusal(text_folder).message


@pytest.mark.parametrize(
    ("split", "other"),
    [("valid", "validation.txt"), ("valid", "wiki.dev.raw"), ("train", "train.txt.gz"), ("test", "wiki.test.npz")],
)
def test_two_files_for_one_split_are_refused_with_both_names(split: str, other: str, text_folder: Path) -> None:
    shutil.copy(text_folder / f"{split}.txt", text_folder / other)
    error = refusal(text_folder)
    name = "validation" if split == "valid" else split
    assert f"several files for one split: {name}: {' and '.join(sorted([f'{split}.txt', other]))}" in error.message
    assert error.hint


def test_text_and_ids_in_one_corpus_are_refused(text_folder: Path, npz_folder: Path) -> None:
    (text_folder / "test.txt").unlink()
    shutil.copy(npz_folder / "wiki.test.npz", text_folder)
    message = refusal(text_folder).message
    assert "train.txt (text), valid.txt (text), wiki.test.npz (token ids)" in message


@pytest.mark.parametrize("name", ["train.txt", "wiki.test.npz"])
def test_a_folder_a_pipe_and_a_broken_link_in_place_of_a_file_are_reported(
    name: str, text_folder: Path, npz_folder: Path
) -> None:
    path = (text_folder if name.endswith("txt") else npz_folder) / name
    path.unlink()
    path.mkdir()
    assert f"{name}: expected a file, found a folder" in refusal(path.parent).message
    path.rmdir()
    os.mkfifo(path)
    assert f"{name}: expected a file, found a" in refusal(path.parent).message
    path.unlink()
    path.symlink_to("nowhere")
    assert f"{name}: there is no such file" in refusal(path.parent).message
    path.unlink()
    path.symlink_to(name)
    assert f"{name}: cannot be read: Too many levels" in refusal(path.parent).message


def test_a_file_without_read_permission_is_reported(npz_folder: Path, ordinary_user: Callable[[], None]) -> None:
    (npz_folder / "wiki.test.npz").chmod(0)
    ordinary_user()
    error = refusal(npz_folder)
    assert "wiki.test.npz: cannot be read: Permission denied" in error.message
    assert "chmod" in str(error.hint)


def test_a_folder_without_read_permission_is_reported(npz_folder: Path, ordinary_user: Callable[[], None]) -> None:
    npz_folder.chmod(0)
    ordinary_user()
    assert "numbers: cannot be read: Permission denied" in refusal(npz_folder).message


def test_text_that_is_not_utf8_is_refused_with_the_offset_of_the_byte(text_folder: Path) -> None:
    (text_folder / "test.txt").write_bytes(b"caf\xe9 and more")
    error = refusal(text_folder)
    assert "test.txt: not UTF-8: byte 0xe9 at offset 3" in error.message
    assert "iconv" in str(error.hint)


BAD_TEXTS: dict[str, tuple[bytes, str]] = {
    "UTF-16": ("one two\n".encode("utf-16"), "the text is UTF-16"),
    "UTF-16 without a mark": ("one two\n".encode("utf-16-le"), "contains a NUL character at offset 1"),
    "NUL characters far away": (b"one two\n" * 200_000 + b"\0", "contains a NUL character at offset 1,600,000"),
    "a byte cut off at the end": ("é".encode() * 9 + b"\xc3", "byte 0xc3 at offset 18 (unexpected end of data)"),
    "a wrong byte far away": (b"one two\n" * 200_000 + b"\xff\n", "byte 0xff at offset 1,600,000"),
    "a character across two reads": (b"x" * (2**20 - 1) + b"\xe2\x82", "byte 0xe2 at offset 1,048,575"),
    "white space": (b" \n\n\t\r\n", "there is no text, only white space"),
    "half of a gzip file": (gzip.compress(b"one two\n" * 99)[:30], "the gzip file is damaged or truncated"),
    "a gzip file with a flipped bit": (gzip.compress(os.urandom(99))[:-6] + b"?" * 6, "the gzip file is damaged"),
    "an archive": (zipped("train.txt", b"one two\n"), "expected text, found a zip archive"),
    "ids": (npy(IDS), "expected text, found a single npy array"),
    "another compression": (b"\xfd7zXZ\x00\x00\x04", "expected text, found an xz file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
}


@pytest.mark.parametrize("kind", BAD_TEXTS)
def test_a_file_that_is_no_text_is_reported_with_its_content(kind: str, text_folder: Path, cache: Path) -> None:
    data, complaint = BAD_TEXTS[kind]
    (text_folder / "valid.txt").write_bytes(data)
    error = refusal(text_folder, cache)
    assert "valid.txt: " in error.message
    assert complaint in error.message
    assert error.hint
    assert not cache.exists()


def test_a_small_file_that_unpacks_to_more_than_the_memory_is_refused(
    npz_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmconsole.data.files.size_limit", lambda: 2 * 2**20)
    (npz_folder / "wiki.train.npz").write_bytes(gzip.compress(npz(tokens=np.ones(2**20, dtype=np.uint32))))
    message = refusal(npz_folder, vocabulary=100).message
    assert "wiki.train.npz: unpacks to more than 2 MiB, half of the memory available" in message


def test_a_text_may_be_larger_than_the_memory_but_not_its_ids(
    text_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = text_folder / "train.txt"
    train.write_bytes(gzip.compress(b"one two\n" * 2**18))
    for module in ("files", "tokenizer"):
        monkeypatch.setattr(f"lmconsole.data.{module}.size_limit", lambda: 7 * 2**18)
    assert load_corpus("tokens", text_folder, vocabulary=400, cache=cache).counts()["train"] < 2**20
    train.write_bytes(gzip.compress("".join(map(chr, range(0x4E00, 0x4E00 + 8192))).encode() * 90))
    assert "train.txt: its token ids take more than 1 MiB, half of the memory" in refusal(text_folder, cache).message
    monkeypatch.setattr("lmconsole.data.text.MAX_BYTES", 2**20)
    train.write_bytes(gzip.compress(b"one two\n" * 2**18))
    assert "train.txt: unpacks to more than 1 MiB" in refusal(text_folder, cache).message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "test.txt: the file is empty"),
        (b"\xef\xbb\xbf", "only white space"),
        (b"ab", "the test split has 2 tokens"),
    ],
)
def test_text_too_short_for_a_window_is_refused(text: bytes, complaint: str, text_folder: Path, cache: Path) -> None:
    (text_folder / "test.txt").write_bytes(text)
    error = refusal(text_folder, cache)
    assert "test.txt" in error.message
    assert complaint in error.message


BAD_BPE: dict[str, tuple[str, bytes, str]] = {
    "json cut short": (ENCODER_FILE, b'{"<unk>": 0, "l', "expected a JSON object"),
    "json of another shape": (ENCODER_FILE, b"[1, 2]", "expected a JSON object"),
    "json with a wrong value": (ENCODER_FILE, b'{"<unk>": "zero"}', "expected a JSON object"),
    "json in another encoding": (ENCODER_FILE, b'{"<unk>": 0, "\xe9": 1}', "expected a JSON object"),
    "json half a character": (ENCODER_FILE, b'{"<unk>": 0, "\\ud800": 1}', ENCODER_FILE),
    "empty json": (ENCODER_FILE, b"", "expected a JSON object"),
    "a gap in the numbers": (ENCODER_FILE, b'{"<unk>": 0, "l": 2}', "not numbered 0, 1, 2"),
    "no token for the unknown": (ENCODER_FILE, b'{"l": 0, "o": 1}', "<unk> is missing"),
    "no token": (ENCODER_FILE, b"{}", "<unk> is missing"),
    "merges of another vocabulary": (MERGES_FILE, b"#version: 0.2\nl o\na b\n", "line 3: 'a' is not a token"),
    "a line of three": (MERGES_FILE, b"#version: 0.2\nl o w\n", "line 2: expected two pieces, found 'l o w'"),
    "a line cut short": (MERGES_FILE, b"#version: 0.2\nl o\nlo", "line 3: expected two pieces"),
    "merges cut short": (MERGES_FILE, b"#version: 0.2\nl o\n", "no merge gives the token 'low</w>'"),
    "no merges": (MERGES_FILE, b"#version: 0.2\n", "no merge"),
    "empty merges": (MERGES_FILE, b"", "the file is empty"),
    "merges not UTF-8": (MERGES_FILE, b"l \xff\n", "not UTF-8: byte 0xff at offset 2"),
}


@pytest.mark.parametrize("kind", BAD_BPE)
def test_a_damaged_tokenizer_file_is_reported(
    kind: str, text_folder: Path, cache: Path, write_small_bpe: Callable[[Path], None]
) -> None:
    name, data, complaint = BAD_BPE[kind]
    write_small_bpe(text_folder)
    (text_folder / name).write_bytes(data)
    error = refusal(text_folder, cache)
    assert name in error.message
    assert complaint in error.message
    assert error.hint


@pytest.mark.parametrize(("kept", "gone"), [(ENCODER_FILE, MERGES_FILE), (MERGES_FILE, ENCODER_FILE)])
def test_one_tokenizer_file_without_the_other_is_refused(
    kept: str, gone: str, text_folder: Path, write_small_bpe: Callable[[Path], None]
) -> None:
    write_small_bpe(text_folder)
    (text_folder / gone).unlink()
    assert f"contains {kept} without {gone}" in refusal(text_folder).message


@pytest.mark.parametrize("name", ["two words", 'it\'s "quoted"', "[red]bold[/red]", "../up", "line\nfeed"])
def test_unusual_folder_names_are_readable_in_messages(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / name
    folder.mkdir(parents=True)
    assert Path(name).name in refusal(folder).message


def test_control_characters_in_a_name_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "\x1b[31mred\x07"
    folder.mkdir()
    with pytest.raises(CorpusError) as caught:
        load_corpus("tokens", folder, vocabulary=400)
    assert "\\x1b[31mred\\x07" in str(caught.value)
