"""Data that the workers of one queue share: read once and mapped by all, or read by each where sharing fails."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny

from lmconsole.engine.attempt import load_verified_corpus, load_verified_tables
from lmconsole.engine.shared_data import Arrays, load_shared, shared_folder
from lmconsole.lm.embedding import fingerprint, read_tables
from lmconsole.runs.info import EmbeddingsInfo, RunInfo

NAMES = ("a", "b")


class Reader:
    """A reader that counts its calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.times, self.error = 0, error

    def __call__(self) -> Arrays:
        self.times += 1
        if self.error:
            raise self.error
        return {"a": np.arange(5, dtype=np.uint16), "b": np.ones((2, 3), dtype=np.float32)}


def test_the_second_worker_maps_the_data_that_the_first_has_read(tmp_path: Path) -> None:
    read = Reader()
    first, second = (load_shared(tmp_path, "key", NAMES, read) for _ in range(2))
    assert read.times == 1
    for name, array in first.items():
        assert np.array_equal(second[name], array)
        assert second[name].dtype == array.dtype
    second["a"][0] = 99
    assert load_shared(tmp_path, "key", NAMES, read)["a"][0] == 0, "pages are private"
    assert load_shared(tmp_path, "other", NAMES, read) is not None
    assert read.times == 2


def test_an_entry_with_a_missing_part_is_not_used(tmp_path: Path) -> None:
    """The system may have removed old temporary files."""
    read = Reader()
    load_shared(tmp_path, "key", NAMES, read)
    (tmp_path / "key" / "b.npy").unlink()
    assert load_shared(tmp_path, "key", NAMES, read).keys() == {"a", "b"}
    assert read.times == 2


@pytest.mark.parametrize("folder", [None, "gone", "full"])
def test_where_nothing_can_be_saved_each_worker_reads_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str | None
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    read = Reader()
    place = None if folder is None else tmp_path / folder
    if folder == "full":
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(np, "save", full)
    for _ in range(2):
        assert load_shared(place, "key", NAMES, read)["a"].tolist() == [0, 1, 2, 3, 4]
    assert read.times == 2
    assert not list(tmp_path.glob("full/*.tmp")), "no half entry is left"


def test_data_that_does_not_verify_is_not_saved(tmp_path: Path) -> None:
    read = Reader(ValueError("another corpus"))
    for _ in range(2):
        with pytest.raises(ValueError, match="another corpus"):
            load_shared(tmp_path, "key", NAMES, read)
    assert read.times == 2


TOGETHER = """
import os, sys, time
from pathlib import Path
import numpy as np
from lmconsole.engine.shared_data import load_shared
folder = Path(sys.argv[1])
def read():
    print("read", flush=True)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("here-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    return {"a": np.arange(3)}
(folder / f"here-{os.getpid()}").touch()
print(load_shared(folder, "key", ["a"], read)["a"].sum())
"""


@pytest.mark.slow
def test_of_workers_that_start_together_one_reads(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOGETHER, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate(timeout=60)[0].split() for process in started]
    assert sum(words.count("read") for words in printed) == 1
    assert [words[-1] for words in printed] == ["3"] * 3


def test_the_next_runner_removes_the_folder_of_a_killed_one_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stores = tmp_path / "one", tmp_path / "two"
    for store in stores:
        store.mkdir()
    left, others = shared_folder(stores[0]), shared_folder(stores[1])
    killed, busy = left.__enter__(), others.__enter__()
    assert killed is not None
    assert busy is not None
    assert killed.stat().st_mode & 0o777 == 0o700
    (killed / "key").mkdir()
    link = tmp_path / "link"
    link.symlink_to(stores[0])
    with shared_folder(link) as folder:
        assert folder is not None
        assert not killed.exists(), "the same store by another path"
        assert busy.exists(), "the runner of another store is at work"
    assert not folder.exists()
    assert sorted(os.listdir(tmp_path)) == sorted(["one", "two", "link", busy.name])


def test_frozen_tables_are_shared_as_they_were_read(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    file = tmp_path / "embeddings.npz"
    tokens = draw.standard_normal((300, 8), dtype=np.float32)
    np.savez(file, tokens=tokens, position=draw.standard_normal((8, 8), dtype=np.float32))
    read = read_tables(file, vocabulary=300, channels=8, window_tokens=8)
    run = tiny.queue_tiny(tmp_path)
    info: RunInfo = msgspec.structs.replace(run.info, embeddings=EmbeddingsInfo(path=str(file), sha256=read.sha256))
    (tmp_path / "shared").mkdir()
    first = load_verified_tables(info, tmp_path / "shared")
    file.unlink()
    second = load_verified_tables(info, tmp_path / "shared")
    for tables in (first, second):
        assert tables is not None
        assert (tables.sha256, tables.path) == (read.sha256, file)
        assert fingerprint(tables.tokens, tables.position) == read.sha256


def test_a_run_reads_the_kind_of_files_it_was_queued_with(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    assert run.info.corpus.path is not None
    for split in ("train", "valid", "test"):
        np.save(Path(run.info.corpus.path) / f"wiki.{split}.npy", np.arange(1, 99))
    assert load_verified_corpus(run.info).sha256 == run.info.corpus.sha256


@pytest.mark.parametrize("key", ["corpus-../../x-all", "/tmp/x", "..", "corpus-" + "f" * 10_000])
def test_a_key_from_a_file_is_a_name_in_the_folder(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "deep/shared"
    folder.mkdir(parents=True)
    for _ in range(2):
        assert load_shared(folder, key, NAMES, Reader())["a"] is not None
    assert {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.npy")} == {("deep", "shared")}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
