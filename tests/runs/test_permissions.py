"""Permissions to start runs, which are kept outside the store."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import tiny
from factories import append_events, finished, locked_by_another_process, queued, started

from lmconsole.errors import StoreError
from lmconsole.runs.events import Stopped
from lmconsole.runs.lock import owner
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.permissions import STALE_S, AfterQueue, Permissions, pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

AFTER = AfterQueue(exports="/somewhere", on_finish=("/bin/true", "é"), cwd="/")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of lmconsole in the state folder of this test's user, which does not exist yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "lmconsole"


@pytest.fixture
def run(tmp_path: Path, state: Path) -> Run:  # noqa: ARG001
    """A run queued by this user."""
    run = tiny.queue_tiny(tmp_path)
    tiny.permit(run, **msgspec.structs.asdict(AFTER))
    return run


def find(run: Run) -> AfterQueue | None:
    """Return what a new process finds."""
    same = Run(run.paths, run.info)
    same.refresh()
    permission = Permissions(run.paths.folder.parent).find(same)
    return None if permission is None else permission.after


def test_a_permission_is_found_by_other_processes_and_only_its_user_can_open_it(run: Run, state: Path) -> None:
    assert find(run) == AFTER
    assert all(path.stat().st_mode & 0o077 == 0 for path in (state, *state.rglob("*")))
    assert not list(run.paths.folder.glob("*perm*"))


@pytest.mark.usefixtures("run")
def test_the_store_is_known_by_its_real_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("runs")
    (same,) = Store(tmp_path / "link").runs()
    assert Permissions(tmp_path / "link").find(same) is not None
    (tmp_path / "runs").rename(tmp_path / "moved")
    (moved,) = Store(tmp_path / "moved").runs()
    assert Permissions(tmp_path / "moved").find(moved) is None


def swap_info(run: Run) -> None:
    text = run.paths.info.read_text()
    run.paths.info.write_text(text.replace('"seed": 42', '"seed": 43'))
    assert run.paths.info.read_text() != text


def link_info(run: Run) -> None:
    shutil.move(run.paths.info, run.paths.folder / "other.json")
    run.paths.info.symlink_to("other.json")


def queue_again(run: Run) -> None:
    append_events(run.paths, Stopped(epoch=1, step=0), queued())


def rewrite_log(run: Run) -> None:
    run.paths.events.write_bytes(b"")
    append_events(run.paths, started(), queued())


def swap_folder(run: Run) -> None:
    other = tiny.queue_tiny(run.paths.folder.parents[1], seed=7)
    shutil.rmtree(run.paths.folder)
    other.paths.folder.rename(run.paths.folder)


def damage_permission(_run: Run) -> None:
    write_permission(b'{"store":')


def forge_nested(_run: Run) -> None:
    write_permission(b"[" * 100_000)


def open_permission(_run: Run) -> None:
    permission_file().chmod(0o644)


def link_permission(_run: Run) -> None:
    file = permission_file()
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def pipe_permission(_run: Run) -> None:
    file = permission_file()
    file.unlink()
    os.mkfifo(file)


def permission_of_another_store(_run: Run) -> None:
    data = msgspec.json.decode(permission_file().read_bytes())
    write_permission(msgspec.json.encode({**data, "store": "/elsewhere"}))


def permission_file() -> Path:
    (file,) = Path(os.environ["XDG_STATE_HOME"]).rglob("*.json")
    return file


def write_permission(data: bytes) -> None:
    permission_file().write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        swap_info, link_info, queue_again, rewrite_log, swap_folder, damage_permission, forge_nested, open_permission,
        link_permission, pipe_permission, permission_of_another_store,
    ],
)  # fmt: skip
def test_it_covers_one_event_of_one_run_and_is_a_private_file(run: Run, change: Callable[[Run], None]) -> None:
    change(run)
    assert find(run) is None


def wrong_mode(state: Path) -> str:
    state.chmod(0o755)
    return "accessible to other users (mode 755)"


def wrong_mode_inside(state: Path) -> str:
    (state / "permissions").chmod(0o770)
    return "accessible to other users (mode 770)"


def wrong_owner(state: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(state / "permissions", 65534, 0)
    return "owned by nobody, not by root"


def symbolic_link(state: Path) -> str:
    state.rename(state.with_name("real"))
    state.symlink_to("real")
    return "a symbolic link"


def plain_file(state: Path) -> str:
    shutil.rmtree(state)
    state.write_text("")
    return "not a folder"


@pytest.mark.parametrize("change", [wrong_mode, wrong_mode_inside, wrong_owner, symbolic_link, plain_file])
def test_a_folder_that_others_could_write_is_refused(
    run: Run, state: Path, change: Callable[[Path], str], tmp_path: Path
) -> None:
    message = change(state)
    permissions = Permissions(run.paths.folder.parent)
    for use in (permissions.prepare, permissions.saved, lambda: permissions.find(run)):
        with pytest.raises(StoreError) as caught:
            use()
        assert message in caught.value.message
        assert str(state) in caught.value.message
        assert caught.value.hint
    with pytest.raises(StoreError, match="not used"):
        tiny.queue_tiny(tmp_path, seed=2)
    assert len(Store(tmp_path / "runs").runs()) == 1
    assert pending(Store(tmp_path / "runs"), [run]) == []


@pytest.mark.usefixtures("state")
def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path, ordinary_user: Callable[[], None]) -> None:
    (tmp_path / "state").mkdir(mode=0o555)
    ordinary_user()
    with pytest.raises(StoreError, match=r"/state/lmconsole: permissions .*: Permission denied") as caught:
        Permissions(tmp_path).prepare()
    assert "XDG_STATE_HOME" in str(caught.value)


def test_a_user_without_a_home_folder_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr("platformdirs.user_state_path", lambda *_, **__: Path("~/state"))
    with pytest.raises(StoreError, match=r"~/state: .*: not an absolute path") as caught:
        Permissions(tmp_path).prepare()
    assert "XDG_STATE_HOME" in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "closed"])
def test_a_state_folder_that_cannot_be_read_is_named_and_runs_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinary_user: Callable[[], None], kind: str
) -> None:
    run = tiny.queue_tiny(tmp_path)
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("")
    else:
        place.mkdir(mode=0o000)
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    ordinary_user()
    for use in (Permissions(tmp_path / "runs").prepare, Permissions(tmp_path / "runs").saved):
        with pytest.raises(StoreError, match="place") as caught:
            use()
        assert "XDG_STATE_HOME" in str(caught.value)
    assert not Permissions(tmp_path / "runs").allows(run)
    assert pending(Store(tmp_path / "runs"), [run]) == []


def test_names_that_are_not_utf8_are_no_problem(run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    root = tmp_path / os.fsdecode(b"\xfe")
    root.mkdir()
    shutil.copytree(run.paths.folder, root / name)
    permissions = Permissions(root)
    permissions.prepare()
    permissions.grant(RunPaths(root / name), 1, AFTER)
    same = Run(RunPaths(root / name), run.info)
    same.refresh()
    assert Permissions(root).find(same) is not None
    permissions.forget(name)
    assert Permissions(root).find(same) is None


def test_a_file_that_a_killed_process_left_is_no_permission(run: Run, state: Path) -> None:
    file = permission_file()
    file.rename(file.with_name(".0123456789abcdef.tmp"))
    assert Permissions(run.paths.folder.parent).saved() == []
    assert list(state.rglob("*.tmp"))


def test_permissions_of_stores_that_are_gone_are_removed_after_a_while(tmp_path: Path, state: Path) -> None:
    tiny.queue_tiny(tmp_path / "gone")
    tiny.queue_tiny(tmp_path / "kept")
    (gone, kept) = sorted((state / "permissions").iterdir(), key=lambda each: b"/gone/" not in read_all(each))
    shutil.rmtree(tmp_path / "gone")
    tiny.queue_tiny(tmp_path / "third")
    assert gone.exists()
    for folder in (gone, kept):
        os.utime(folder, (time.time() - STALE_S - 60,) * 2)
    tiny.queue_tiny(tmp_path / "third", seed=2)
    assert not gone.exists()
    assert kept.exists()


def read_all(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


@pytest.mark.usefixtures("state")
def test_a_run_is_pending_if_it_runs_or_will_be_started(tmp_path: Path) -> None:
    mine, ended, strange, running = (tiny.queue_tiny(tmp_path, seed=seed) for seed in range(4))
    append_events(ended.paths, finished())
    append_events(running.paths, started())
    store = Store(tmp_path / "runs")
    Permissions(store.root).forget(strange.run)
    with locked_by_another_process(running.paths.lock):
        runs = store.runs()
        assert {run.info.seed: run.status for run in runs} == {
            0: Status.QUEUED, 1: Status.FINISHED, 2: Status.QUEUED, 3: Status.RUNNING,
        }  # fmt: skip
        assert {run.run for run in pending(store, runs)} == {mine.run, running.run}


def test_the_user_of_a_process_that_holds_a_lock_is_known_from_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked_by_another_process(path) as process:
        found = owner(path)
        assert found is not None
        assert (found.pid, found.is_own) == (process.pid, True)
