"""One bad run costs one row: whatever the files of a run hold, the others are listed, exported and shown."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from recorded import record
from tui.stage import following, wait_for_snapshot

from lmconsole.commands.list_experiments import list_experiments
from lmconsole.commands.status import show_status
from lmconsole.engine.queue import requeue
from lmconsole.errors import StoreError
from lmconsole.plan.load import load_plan
from lmconsole.report.export import export
from lmconsole.report.export_options import ExportOptions
from lmconsole.runs import lock
from lmconsole.runs.store import Run, Store
from lmconsole.runs.trash import discard, restore
from lmconsole.tui.plot.glyphs import UNICODE
from lmconsole.tui.rows import build_rows
from lmconsole.tui.screens.details import _settings, _state

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 10**18, 10**400, -(10**18), 0.5, 1e308, -1e308, "", "x", "x" * 3_000, "\x1b[31m\u202e",
    "../../x", "nan", "9999-12-31T23:59:59.999Z", [], ["x"], {}, {"x": 10**30}, {"train": -5}, [[[[]]]],
)  # fmt: skip
"""Values in place of any value of a file."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a good run and one that the tests change."""
    root = tmp_path_factory.mktemp("store")
    record(root, 1, "lstm", [(5.0, 4.0), (4.5, 3.5)], samples=6)
    record(root, 2, "gpt1", [(5.0, 4.2), (4.5, 3.7)], samples=6, device="cuda:0", process_mib=5.0, energy_j=9.0)
    return root


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Store:
    shutil.copytree(prepared / "runs", tmp_path / "runs")
    shutil.copytree(prepared / "experiments", tmp_path / "experiments")
    return Store(tmp_path / "runs")


def good_and_bad(store: Store) -> tuple[Run, Run]:
    good, bad = store.runs()
    assert (good.info.experiment.id, bad.info.experiment.id) == (1, 2)
    return good, bad


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value in decoded JSON."""
    yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def survive(store: Store, good: Run) -> None:
    """Read the store as commands, console and export do, and find the good run."""
    again = Store(store.root)
    runs = {run.run: run for run in again.runs()}
    assert runs[good.run].state.damage == ()
    for run in runs.values():
        run.state.done(run.info.settings.epochs)
        run.state.seconds_left(run.info.settings.epochs)
    show_status(store.root, json=False)
    show_status(store.root, json=True)
    list_experiments(store.root.parent / "experiments" / "1.toml", store.root, json=False)


def test_any_value_of_run_json_costs_one_row(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = good_and_bad(store)
    whole = json.loads(bad.paths.info.read_text())
    chance = random.Random(3)
    every = [(path, value) for path in places(whole) for value in ODD]
    for path, value in chance.sample(every, 400):
        bad.paths.info.write_text(json.dumps(replaced(whole, path, value)))
        survive(store, good)
        printed = capsys.readouterr()
        assert "\x1b[31m" not in printed.out + printed.err
        problems = Store(store.root)
        listed = {run.run for run in problems.runs()}
        assert bad.run in listed or f"{bad.run}: " in printed.err, "its row or a warning names it"


def test_any_value_of_an_event_costs_one_row(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = good_and_bad(store)
    lines = [json.loads(line) for line in bad.paths.events.read_bytes().splitlines()]
    kinds = {line["kind"]: i for i, line in enumerate(lines)}
    every = [(i, path, value) for i in kinds.values() for path in places(lines[i]) for value in ODD]
    for i, path, value in random.Random(3).sample(every, 500):
        changed = [replaced(line, path, value) if j == i else line for j, line in enumerate(lines)]
        bad.paths.events.write_text("".join(f"{json.dumps(line)}\n" for line in changed))
        survive(store, good)
    capsys.readouterr()


def test_an_export_and_the_console_survive_odd_values(store: Store, tmp_path: Path) -> None:
    good, bad = good_and_bad(store)
    info = json.loads(bad.paths.info.read_text())
    lines = [json.loads(line) for line in bad.paths.events.read_bytes().splitlines()]
    chance = random.Random(5)
    in_info = [(path, value) for path in places(info) for value in ODD]
    in_log = [(i, path, value) for i, line in enumerate(lines) for path in places(line) for value in ODD]
    for n in range(24):
        new_info, new_lines = info, list(lines)
        if n % 2:
            new_info = replaced(info, *chance.choice(in_info))
        else:
            i, path, value = chance.choice(in_log)
            new_lines[i] = replaced(lines[i], path, value)
        bad.paths.info.write_text(json.dumps(new_info))
        bad.paths.events.write_text("".join(f"{json.dumps(line)}\n" for line in new_lines))
        assert export(Store(store.root), tmp_path / f"out{n}", ExportOptions(file_format="csv"))
        with following(store.root) as feed:
            seen = wait_for_snapshot(feed, lambda now: now.number and good.run in now.runs)
        assert seen.error is None
        for view in seen.runs.values():
            assert _state(view)
            assert _settings(view).row_count
            assert view.share_of_peak is None or view.share_of_peak >= 0
        rows = build_rows(
            load_plan(None).experiments, seen.runs.values(), checked=frozenset(), unfolded=frozenset({"e1", "e2"}),
            wide=True, glyphs=UNICODE, problems=seen.problems,
        )  # fmt: skip
        assert any(bad.run in (row.key, row.run.run if row.run else "") for row in rows)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_a_file(path: Path) -> None:
    outside(path).write_text("mine")
    path.symlink_to(outside(path))


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(outside(path))


def outside(path: Path) -> Path:
    """Return a file outside the store."""
    return path.parents[2] / "outside"


NO_FILES: list[Callable[[Path], None]] = [a_pipe, a_folder, a_link_to_a_device, a_link_to_a_file, a_link_to_nothing]
FILES = ("info", "events", "lock", "stop")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_costs_one_row_and_nothing_is_written_through_it(
    tmp_path: Path, file: str, make: Callable[[Path], None]
) -> None:
    good = record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    bad = record(tmp_path, 2, "gpt1", [(5.0, 4.2)], finish=False)  # lost, so that its lock is asked for
    path = getattr(bad.paths, file)
    path.unlink(missing_ok=True)
    make(path)
    store = Store(tmp_path / "runs")
    runs = {run.run: run for run in store.runs()}
    assert runs[good.run].problem is None
    if file != "stop":  # which matters only while a run is active
        assert store.problems[bad.run].startswith(f"{path}: cannot be read: expected a file, found a ")
    if file != "stop":
        assert requeue(store, [bad.run]) == []
    else:
        with pytest.raises(StoreError, match="stop: cannot be written: expected a file, found a "):
            runs[bad.run].request_stop()
        if make is a_folder:
            with pytest.raises(StoreError, match="cannot be written"):
                requeue(store, [bad.run])
        else:
            assert requeue(store, [bad.run]) == [bad.run]
            assert not os.path.lexists(path)
    if make is a_link_to_nothing:
        assert not outside(path).exists()
    elif make is a_link_to_a_file:
        assert outside(path).read_text() == "mine"


def test_an_active_run_with_a_link_as_stop_request_is_a_problem_and_is_not_stopping(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    run.paths.stop.symlink_to("/etc/passwd")
    store = Store(tmp_path / "runs")
    (again,) = store.runs()
    assert not again.stop_requested
    assert "stop: expected a file" in store.problems[run.run]


@pytest.mark.parametrize("make", NO_FILES)
def test_locks_of_a_store_that_are_no_files_are_errors_and_never_block(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "b" / "lock"
    make(path)
    with pytest.raises(OSError, match="expected a file"):
        lock.acquire(path)
    with pytest.raises(OSError, match="expected a file"):
        lock.owner(path)
    assert not outside(path).exists() or outside(path).read_text() == "mine"


def test_a_link_to_a_folder_is_no_run_of_the_store(tmp_path: Path) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    run.paths.folder.rename(tmp_path / "elsewhere")
    run.paths.folder.symlink_to(tmp_path / "elsewhere")
    store = Store(tmp_path / "runs")
    assert store.runs() == []
    assert "symbolic link" in store.problems[run.run]


def test_runs_are_not_deleted_into_a_linked_trash_folder(tmp_path: Path) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / ".trash").symlink_to(tmp_path / "elsewhere")
    store = Store(tmp_path / "runs")
    for action in (discard, restore):
        with pytest.raises(StoreError, match="symbolic link"):
            action(store, [run.run])
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_whose_name_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    other = record(tmp_path, 2, "gpt1", [(5.0, 4.0)])
    other.paths.folder.rename(os.fsdecode(os.fsencode(other.paths.folder) + b"\xff"))
    done = tiny.lmconsole("status", "--json", cwd=tmp_path, check=0)
    assert [each["run"] for each in json.loads(done.stdout)] == [run.run]
    assert "the name is not UTF-8" in done.stderr
    assert tiny.lmconsole("export", "--format", "csv", cwd=tmp_path, check=0).stdout


def test_an_unreadable_folder_costs_one_row(tmp_path: Path, ordinary_user: Callable[[], None]) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    other = record(tmp_path, 2, "gpt1", [(5.0, 4.0)])
    other.paths.folder.chmod(0)
    ordinary_user()
    store = Store(tmp_path / "runs")
    assert [each.run for each in store.runs()] == [run.run]
    assert "Permission denied" in store.problems[other.run]


def test_many_problems_are_named_up_to_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(60):
        (tmp_path / "runs" / f"broken{i}").mkdir(parents=True)
        (tmp_path / "runs" / f"broken{i}" / "run.json").write_text("{")
    show_status(tmp_path / "runs", json=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "warning: 40 more runs cannot be read"
