"""Data that the workers of one queue share: read once, mapped by all, and never worse than reading it oneself."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny

from lmconsole.engine.attempt import load_the_tables
from lmconsole.engine.shared_data import Arrays, load_shared, shared_folder
from lmconsole.lm.embedding import fingerprint, read_tables
from lmconsole.runs.info import EmbeddingsInfo, RunInfo

NAMES = ("a", "b")


class Reading:
    """Something to read, and how often it was read."""

    def __init__(self, error: Exception | None = None) -> None:
        self.times, self.error = 0, error

    def __call__(self) -> Arrays:
        self.times += 1
        if self.error:
            raise self.error
        return {"a": np.arange(5, dtype=np.uint16), "b": np.ones((2, 3), dtype=np.float32)}


def test_the_second_worker_maps_what_the_first_has_read(tmp_path: Path) -> None:
    read = Reading()
    first, second = (load_shared(tmp_path, "key", NAMES, read) for _ in range(2))
    assert read.times == 1
    for name, array in first.items():
        assert np.array_equal(second[name], array)
        assert second[name].dtype == array.dtype
    second["a"][0] = 99
    assert load_shared(tmp_path, "key", NAMES, read)["a"][0] == 0, "pages are private"
    assert load_shared(tmp_path, "other", NAMES, read) is not None
    assert read.times == 2


def test_an_entry_of_which_a_part_is_missing_is_not_believed(tmp_path: Path) -> None:
    """As where the system has removed old temporary files."""
    read = Reading()
    load_shared(tmp_path, "key", NAMES, read)
    (tmp_path / "key" / "b.npy").unlink()
    assert load_shared(tmp_path, "key", NAMES, read).keys() == {"a", "b"}
    assert read.times == 2


@pytest.mark.parametrize("folder", [None, "gone", "full"])
def test_where_nothing_can_be_kept_each_reads_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str | None
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    read = Reading()
    place = None if folder is None else tmp_path / folder
    if folder == "full":
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(np, "save", full)
    for _ in range(2):
        assert load_shared(place, "key", NAMES, read)["a"].tolist() == [0, 1, 2, 3, 4]
    assert read.times == 2
    assert not list(tmp_path.glob("full/*.tmp")), "half an entry does not stay"


def test_data_that_does_not_verify_is_not_kept(tmp_path: Path) -> None:
    read = Reading(ValueError("another corpus"))
    for _ in range(2):
        with pytest.raises(ValueError, match="another corpus"):
            load_shared(tmp_path, "key", NAMES, read)
    assert read.times == 2


TOGETHER = """
import sys, time
from pathlib import Path
import numpy as np
from lmconsole.engine.shared_data import load_shared
def read():
    print("read", flush=True)
    time.sleep(0.5)
    return {"a": np.arange(3)}
print(load_shared(Path(sys.argv[1]), "key", ["a"], read)["a"].sum())
"""


@pytest.mark.slow
def test_of_workers_that_start_together_one_reads(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOGETHER, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate(timeout=60)[0].split() for process in started]
    assert sum(words.count("read") for words in printed) == 1
    assert [words[-1] for words in printed] == ["3"] * 3


def test_a_killed_runners_folder_is_removed_by_the_next_and_nobody_elses(
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
        assert busy.exists(), "of a runner at work on another store"
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
    first = load_the_tables(info, tmp_path / "shared")
    file.unlink()
    second = load_the_tables(info, tmp_path / "shared")
    for tables in (first, second):
        assert tables is not None
        assert (tables.sha256, tables.path) == (read.sha256, file)
        assert fingerprint(tables.tokens, tables.position) == read.sha256
