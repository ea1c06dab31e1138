"""Tokenized text is cached; an unusable cache is ignored."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lmconsole
from lmconsole.data.corpus import Corpus, load_corpus

LOAD = """
import sys, pathlib
from lmconsole.data.corpus import load_corpus
corpus = load_corpus("tokens", pathlib.Path(sys.argv[1]), vocabulary=400, cache=pathlib.Path(sys.argv[2]))
print(corpus.sha256, "tokenizers" in sys.modules)
"""

SMALL_FILES = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
ANY_FILES = "\nresource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
"""So that what measures the process, such as coverage, can write at its end."""


def load(folder: Path, cache: Path, vocabulary: int = 400) -> Corpus:
    return load_corpus("tokens", folder, vocabulary=vocabulary, cache=cache)


def only_entry(cache: Path) -> Path:
    (entry,) = cache.iterdir()
    return entry


def test_a_text_is_tokenized_once(text_folder: Path, cache: Path, python: Callable[..., str]) -> None:
    first, second = (python(LOAD, text_folder, cache).split() for _ in range(2))
    assert first[0] == second[0] == load(text_folder, cache).sha256
    assert (first[1], second[1]) == ("True", "False")


def test_the_cache_returns_what_was_written(text_folder: Path, cache: Path) -> None:
    made, found = load(text_folder, cache), load(text_folder, cache)
    assert (made.vocabulary, made.tokenizer, made.sha256) == (found.vocabulary, found.tokenizer, found.sha256)
    for split, ids in made.splits.items():
        assert ids.dtype == found.splits[split].dtype
        assert np.array_equal(ids, found.splits[split])


def test_another_text_or_vocabulary_gets_its_own_entry(text_folder: Path, cache: Path) -> None:
    load(text_folder, cache)
    load(text_folder, cache, vocabulary=300)
    with (text_folder / "test.txt").open("a") as file:
        file.write("!")
    load(text_folder, cache)
    assert len(list(cache.iterdir())) == 3


def test_limiting_tokens_uses_the_entry_of_the_whole_text(text_folder: Path, cache: Path) -> None:
    whole = load(text_folder, cache)
    part = load_corpus("tokens", text_folder, vocabulary=400, max_tokens=60, cache=cache)
    assert part.sha256 == whole.sha256
    assert only_entry(cache).suffix == ".npz"


def test_a_damaged_entry_is_replaced(text_folder: Path, cache: Path) -> None:
    whole = load(text_folder, cache)
    entry = only_entry(cache)
    good = entry.read_bytes()
    middle = len(good) // 2
    for bad in (b"", b"PK\x03\x04", b"\x80\x04.", good[:middle], good[:middle] + b"?????" + good[middle + 5 :]):
        entry.write_bytes(bad)
        assert load(text_folder, cache).sha256 == whole.sha256
        assert entry.read_bytes()[:4] == good[:4]
        assert len(entry.read_bytes()) == len(good)
    np.savez(entry, tokens=np.arange(9))
    assert load(text_folder, cache).sha256 == whole.sha256


def test_an_entry_of_another_text_under_the_same_name_is_ignored(text_folder: Path, cache: Path) -> None:
    before = load(text_folder, cache)
    entry = only_entry(cache)
    other = entry.read_bytes()
    entry.unlink()
    (text_folder / "train.txt").write_text("quite another text, quite another text")
    after = load(text_folder, cache)
    only_entry(cache).write_bytes(other)
    assert load(text_folder, cache).sha256 == after.sha256 != before.sha256


def test_an_entry_whose_ids_do_not_match_its_fingerprint_is_ignored(text_folder: Path, cache: Path) -> None:
    whole = load(text_folder, cache)
    with np.load(only_entry(cache)) as archive:
        arrays = dict(archive)
    arrays["test"] = arrays["test"][::-1]
    np.savez(only_entry(cache), **arrays)
    assert load(text_folder, cache).sha256 == whole.sha256


def test_a_folder_or_pipe_in_place_of_an_entry_is_no_problem(text_folder: Path, cache: Path) -> None:
    whole = load(text_folder, cache)
    entry = only_entry(cache)
    entry.unlink()
    entry.mkdir()
    assert load(text_folder, cache).sha256 == whole.sha256
    assert only_entry(cache) == entry
    entry.rmdir()
    os.mkfifo(entry)
    assert load(text_folder, cache).sha256 == whole.sha256
    assert entry.is_file()


@pytest.mark.parametrize("place", ["a file", "a name too long", "a folder that is not writable"])
def test_a_cache_that_cannot_be_written_is_ignored(place: str, text_folder: Path, tmp_path: Path) -> None:
    cache = {"a file": tmp_path / "file", "a name too long": tmp_path / ("x" * 300)}.get(place, Path("/proc/lmconsole"))
    (tmp_path / "file").touch()
    assert load(text_folder, cache).counts()["train"] > 3
    assert not os.path.isdir(cache)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "letters"}


def test_a_full_disk_leaves_no_half_written_file(text_folder: Path, cache: Path, python: Callable[..., str]) -> None:
    python(SMALL_FILES + LOAD + ANY_FILES, text_folder, cache)
    assert list(cache.iterdir()) == []
    python(LOAD, text_folder, cache)
    assert only_entry(cache).stat().st_size > 1000


def test_two_processes_at_the_same_time_leave_one_entry(text_folder: Path, cache: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(text_folder), str(cache)]
    here = {**os.environ, "PYTHONPATH": str(Path(lmconsole.__file__).parents[1])}
    both = [subprocess.Popen(command, env=here, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    fingerprints = {process.communicate(timeout=60)[0].split()[0] for process in both}
    assert fingerprints == {load(text_folder, cache).sha256}
    assert only_entry(cache).suffix == ".npz"


def test_the_default_is_the_users_cache_folder(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_corpus("tokens", text_folder, vocabulary=400)
    folder = tmp_path / "xdg" / "lmconsole" / "corpora"
    assert only_entry(folder).suffix == ".npz"
    assert only_entry(folder).stat().st_mode & 0o077 == 0, "only its owner can read it"
