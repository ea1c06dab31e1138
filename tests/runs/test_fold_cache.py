"""The cache of folded logs: it changes nothing but the time that a large store takes to open."""

import json
import os
from pathlib import Path

import msgspec
import pytest
import tiny
from factories import append_events, epoch, evaluation, finished, progress, queued, started, telemetry
from recorded import record

from lmconsole.commands.status import summarize
from lmconsole.runs import fold_cache
from lmconsole.runs import store as stores
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Failed, Resumed, Stopped
from lmconsole.runs.fold_cache import FoldCache
from lmconsole.runs.state import RunState
from lmconsole.runs.store import Run, Store

NAN = float("nan")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use the cache for stores of any size, and return its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "FEWEST_RUNS", 1)
    return tmp_path / "cache" / "lmconsole" / "folds"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the runs whose logs are read from their beginning."""
    names: list[str] = []

    class Counting(EventReader):
        def __init__(self, path: Path, *, offset: int = 0, lines: int = 0) -> None:
            super().__init__(path, offset=offset, lines=lines)
            if not offset:
                names.append(path.parent.name)

    monkeypatch.setattr(stores, "EventReader", Counting)
    return names


def fill(root: Path) -> None:
    """Record runs with every kind of history."""
    record(root, 1, "lstm", [(5.0, 4.5), (4.0, 4.75)], samples=2)
    record(root, 2, "lstm", [(5.0, 4.5), (4.0, NAN)], optimizer="adamw")
    record(root, 3, "lstm", [(5.0, 4.5), (4.0, 4.4)], optimizer="sgd", within=((4.8, 4.6), (4.5, 4.45)))
    record(root, 5, "gpt1", [(5.0, 4.5)], finish=False)
    resumed = tiny.queue_tiny(root, "gpt1", number=6, optimizer="adamw")
    append_events(
        resumed.paths, started(), progress(1, 2), telemetry(), evaluation(1, 2), progress(1, 6),
        Stopped(epoch=1, step=4), queued(), started(attempt=2), Resumed(epoch=1, step=4), progress(1, 5), telemetry(),
        epoch(1), epoch(2), progress(3, 1), Failed(error="x", message="m", hint="h"),
        queued(), started(attempt=3), Resumed(epoch=2, step=0), epoch(2), finished(),
    )  # fmt: skip
    tested = record(root, 7, "gpt1", [(5.0, 4.5)], optimizer="sgd", tested=False)
    append_events(tested.paths, queued(), started(attempt=2))
    damaged = record(root, 8, "gpt1", [(5.0, 4.5), (4.0, 4.4)], optimizer="momentum")
    lines = damaged.paths.events.read_bytes().splitlines(keepends=True)
    damaged.paths.events.write_bytes(b"".join([*lines[:2], b"{damaged\n", *lines[3:]]))
    later = record(root, 9, "lstm", [(5.0, 4.5)], layers=2, optimizer="adamw")
    number = later.paths.events.read_bytes().count(b"\n") + 1
    with later.paths.events.open("ab") as file:
        file.write(b'{"kind":"of a later version","seq":%d}\n' % number)


def shown(runs: list[Run]) -> list[tuple[object, ...]]:
    """Return everything that commands show of runs."""
    return [
        (
            msgspec.json.encode(summarize(run)),
            run.status,
            run.problem,
            run.state.damage,
            run.state.attempt,
            run.state.seq,
        )
        for run in runs
    ]


def attributes(state: RunState) -> dict[str, object]:
    """Return the state of a run but for handlers, the counts of the reader, and all samples before the last."""
    left_out = ("_handlers", "_log_damage", "_damage", "progress", "telemetry")
    values = {name: value for name, value in vars(state).items() if name not in left_out}
    return {
        **values,
        "damage": state.damage,
        "progress": list(state.progress)[-1:],
        "telemetry": list(state.telemetry)[-1:],
    }


def test_runs_from_the_cache_are_those_of_their_logs(tmp_path: Path, decoded: list[str]) -> None:
    fill(tmp_path)
    root = tmp_path / "runs"
    whole = Store(root).runs()
    for again in (False, True):
        decoded.clear()
        found = Store(root, cached=True).runs()
        assert shown(found) == shown(whole)
        assert [repr(attributes(run.state)) for run in found] == [repr(attributes(run.state)) for run in whole]
        from_logs = {int(name.partition("-")[0]) for name in decoded}
        assert from_logs == ({5, 7, 8, 9} if again else {1, 2, 3, 5, 6, 7, 8, 9})


def test_a_run_goes_on_after_its_fold(tmp_path: Path, decoded: list[str]) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.5)])
    root = tmp_path / "runs"
    Store(root, cached=True).runs()
    store = Store(root, cached=True)
    decoded.clear()
    store.runs()
    append_events(run.paths, queued(), started(attempt=2), Resumed(epoch=1, step=0), epoch(1, 3.0), finished([3.0]))
    (found,) = store.runs()
    assert decoded == []
    assert shown([found]) == shown(Store(root).runs())
    decoded.clear()
    (found,) = Store(root, cached=True).runs()
    assert (decoded, found.state.best_epoch and found.state.best_epoch.valid_loss_nats) == ([], 3.0), "folded again"


def test_a_log_that_has_changed_is_read(tmp_path: Path, decoded: list[str]) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.5)])
    root, log = tmp_path / "runs", run.paths.events
    Store(root, cached=True).runs()
    os.utime(log, ns=(1, 1))
    decoded.clear()
    Store(root, cached=True).runs()
    assert decoded == [run.run]
    log.write_bytes(log.read_bytes().replace(b'"attempt":1', b'"attempt":3'))
    (found,) = Store(root, cached=True).runs()
    assert found.state.attempt == 3
    log.unlink()
    (found,) = Store(root, cached=True).runs()
    assert "there is no such file" in (found.problem or "")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 99, msgspec.msgpack.encode([2, {}]), msgspec.json.encode({"folds": 1})]
)
def test_a_cache_that_is_damaged_or_of_another_version_counts_as_none(
    tmp_path: Path, cache: Path, decoded: list[str], content: bytes
) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.5)])
    root = tmp_path / "runs"
    whole = shown(Store(root, cached=True).runs())
    (file,) = cache.iterdir()
    file.write_bytes(content)
    decoded.clear()
    assert shown(Store(root, cached=True).runs()) == whole
    assert decoded == [run.run]
    damaged = msgspec.msgpack.encode([1, {run.run: [fold_cache._version(run.paths.events), 3, b"{damaged\n"]}])
    file.write_bytes(damaged)
    assert shown(Store(root, cached=True).runs()) == whole


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path, cache: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5)])
    cache.parent.parent.mkdir(parents=True, exist_ok=True)
    cache.parent.write_text("a file in place of the folder")
    whole = shown(Store(tmp_path / "runs").runs())
    assert shown(Store(tmp_path / "runs", cached=True).runs()) == whole


def test_the_cache_keeps_no_run_that_is_gone_and_is_written_only_when_it_changes(tmp_path: Path, cache: Path) -> None:
    runs = [record(tmp_path, 1, "lstm", [(5.0, 4.5)], seed=seed) for seed in (1, 2)]
    root = tmp_path / "runs"
    Store(root, cached=True).runs()
    (file,) = cache.iterdir()
    written = file.stat().st_ino
    Store(root, cached=True).runs()
    assert file.stat().st_ino == written
    runs[0].paths.folder.rename(tmp_path / "elsewhere")
    Store(root, cached=True).runs()
    folds = msgspec.msgpack.decode(file.read_bytes())[1]
    assert list(folds) == [runs[1].run]
    assert json.loads(folds[runs[1].run][2].splitlines()[-1])["kind"] == "finished"


def test_a_small_store_has_no_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FEWEST_RUNS", 2)
    record(tmp_path, 1, "lstm", [(5.0, 4.5)])
    Store(tmp_path / "runs", cached=True).runs()
    assert not cache.exists()
    assert FoldCache(tmp_path / "runs").restore("x", tmp_path / "x", RunState()) is None
