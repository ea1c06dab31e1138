"""Something else in place of each file that a person names or keeps in a folder: no hang, and a message."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import tiny

from lmconsole.data.corpus import load_corpus
from lmconsole.engine import bench_cache
from lmconsole.errors import LmconsoleError
from lmconsole.lm.embedding import read_tables  # imports torch
from lmconsole.plan.load import load_plan
from lmconsole.tui.settings import Settings, load_settings

Result = TypeVar("Result")

KINDS = ("pipe", "device", "endless device", "folder", "link to itself", "link to nothing", "empty", "huge", "no file")


def put(kind: str, path: Path) -> None:
    """Put something else in the place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/tty")
        case "endless device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "link to itself":
            path.symlink_to(path)
        case "link to nothing":
            path.symlink_to("nothing")
        case "empty":
            path.touch()
        case "huge":
            path.touch()
            os.truncate(path, 2**43)


def in_time(work: Callable[[], Result]) -> Result:
    """Return the result of ``work``, which must not take long."""
    results: list[Result | BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert results, "it hangs"
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def message(work: Callable[[], object]) -> str:
    with pytest.raises(LmconsoleError) as caught:
        in_time(work)
    return str(caught.value)


def write_small_bpe(folder: Path) -> None:
    (folder / "encoder_bpe_40000.json").write_text('{"<unk>": 0, "a": 1, "a</w>": 2}')
    (folder / "vocab_40000.bpe").write_text("#version: 0.2\n")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["train.txt", "valid.txt", "encoder_bpe_40000.json", "vocab_40000.bpe"])
def test_a_text(name: str, kind: str, tmp_path: Path) -> None:
    folder = tiny.write_corpus(tmp_path / "data")
    write_small_bpe(folder)
    if kind == "empty" and name == "vocab_40000.bpe":
        pytest.skip("a vocabulary of single characters needs no merges")
    put(kind, folder / name)
    found = message(lambda: load_corpus("tokens", folder, vocabulary=300, cache=tmp_path / "cache"))
    assert name in found


@pytest.mark.parametrize("kind", KINDS)
def test_tokens(kind: str, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        np.savez(tmp_path / f"wiki.{split}.npz", tokens=np.arange(1, 99))
    put(kind, tmp_path / "wiki.test.npz")
    assert "wiki.test.npz" in message(lambda: load_corpus("tokens", tmp_path, vocabulary=100))


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_tables(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tables"
    put(kind, path)
    assert str(path) in message(lambda: read_tables(path, vocabulary=9, channels=4, window_tokens=3))


@pytest.mark.parametrize("kind", KINDS)
def test_experiments(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    put(kind, path)
    assert str(path) in message(lambda: load_plan(path))


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_of_the_console(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    put(kind, tmp_path / "lmconsole" / "console.json")
    assert in_time(load_settings) == Settings()


@pytest.mark.parametrize("kind", KINDS)
def test_measurements(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cache, "bench_folder", lambda: tmp_path)
    put(kind, tmp_path / "a.json")
    assert in_time(bench_cache.load_results) == []


@pytest.mark.parametrize("kind", KINDS)
def test_tokenized_text(kind: str, tmp_path: Path) -> None:
    folder, cache = tiny.write_corpus(tmp_path / "data"), tmp_path / "cache"
    expected = load_corpus("tokens", folder, vocabulary=300, cache=cache).sha256
    (entry,) = cache.iterdir()
    put(kind, entry)
    assert in_time(lambda: load_corpus("tokens", folder, vocabulary=300, cache=cache)).sha256 == expected
    if entry.is_dir():
        shutil.rmtree(entry)
    assert load_corpus("tokens", folder, vocabulary=300, cache=cache).sha256 == expected
    assert entry.is_file()
    assert not entry.is_symlink()


def test_an_array_that_unpacks_to_more_than_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "validation", "test"):
        np.savez_compressed(tmp_path / f"wiki.{split}.npz", tokens=np.ones(1_000_000, dtype=np.uint8))
    monkeypatch.setattr("lmconsole.data.files.size_limit", lambda: 500_000)
    assert "'tokens' unpacks to 0 MiB" in message(lambda: load_corpus("tokens", tmp_path, vocabulary=100))
