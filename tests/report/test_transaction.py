"""Replacement of several files: all of them or none, wherever it fails."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from disk import contents, fail_in_call

from lmconsole.report.transaction import STALE_S, replace_files

FILES: dict[str, bytes | None] = {
    "changed.txt": b"new",
    "figures/changed.txt": b"new",
    "figures/removed.txt": None,
    "added.txt": b"new",
    "new/folder/added.txt": b"new",
    "never-there.txt": None,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out/figures").mkdir(parents=True)
    for name in ("changed.txt", "figures/changed.txt", "figures/removed.txt", "untouched.txt"):
        (tmp_path / "out" / name).write_text("old")
    return tmp_path / "out"


def test_all_files_are_replaced_created_or_removed(folder: Path) -> None:
    replace_files(folder, FILES)
    assert contents(folder) == {
        "added.txt": b"new",
        "changed.txt": b"new",
        "figures": None,
        "figures/changed.txt": b"new",
        "new": None,
        "new/folder": None,
        "new/folder/added.txt": b"new",
        "untouched.txt": b"old",
    }


@pytest.mark.parametrize(("function", "calls"), [("fsync", 4), ("replace", 4), ("link", 0)])
def test_a_failure_in_any_call_leaves_everything_unchanged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, calls: int
) -> None:
    before = contents(folder)
    for number in range(1, calls + 1):
        with monkeypatch.context() as patch:
            fail_in_call(patch, function, number)
            with pytest.raises(OSError, match="No space left on device"):
                replace_files(folder, FILES)
        assert contents(folder) == before, f"{function}, call {number}"
    with monkeypatch.context() as patch:
        fail_in_call(patch, function, calls + 1)
        replace_files(folder, FILES)


def test_a_file_that_cannot_be_removed_leaves_everything_unchanged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, unlink = contents(folder), os.unlink

    def refuse(path: Path) -> None:
        if path.name == "removed.txt":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(PermissionError):
            replace_files(folder, FILES)
    assert contents(folder) == before


def test_a_file_system_without_hard_links_is_rolled_back_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    before = contents(folder)
    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as patch:
        fail_in_call(patch, "replace", 3)
        with pytest.raises(OSError, match="No space left on device"):
            replace_files(folder, FILES)
    assert contents(folder) == before


def test_new_files_have_the_permissions_of_the_umask(folder: Path) -> None:
    umask = os.umask(0o027)
    try:
        replace_files(folder, {"added.txt": b"new"})
    finally:
        os.umask(umask)
    assert (folder / "added.txt").stat().st_mode & 0o777 == 0o640


def test_a_folder_in_place_of_a_file_is_an_error_that_changes_nothing(folder: Path) -> None:
    (folder / "added.txt").mkdir()
    (folder / "added.txt/kept.txt").write_text("old")
    before = contents(folder)
    for content in (b"new", None):
        with pytest.raises(IsADirectoryError):
            replace_files(folder, {"added.txt": content})
        assert contents(folder) == before


@pytest.mark.parametrize("end", ["success", "failure"])
def test_an_unreadable_file_of_another_user_is_replaced_or_restored(
    folder: Path, ordinary_user: Callable[[], None], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The kernel refuses a hard link to it, and it cannot be copied."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    (folder / "changed.txt").chmod(0o000)
    for each in (folder, folder / "figures"):
        each.chmod(0o777)
    number = (folder / "changed.txt").stat().st_ino
    ordinary_user()
    if end == "success":
        replace_files(folder, {"changed.txt": b"new"})
        assert (folder / "changed.txt").read_bytes() == b"new"
    else:
        with monkeypatch.context() as patch:
            fail_in_call(patch, "replace", 1)
            with pytest.raises(OSError, match="No space left on device"):
                replace_files(folder, {"changed.txt": b"new"})
        assert (folder / "changed.txt").stat().st_ino == number
    assert len(list(folder.iterdir())) == 3


def test_temporary_files_are_in_one_folder_for_each_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed leaves little behind."""
    found: set[str] = set()
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        found.update(path.relative_to(folder).as_posix() for path in folder.rglob(".export-*"))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    replace_files(folder, FILES)
    assert sorted(path.rpartition("/")[0] for path in found) == ["", "figures", "new/folder"]


def test_temporary_files_of_a_killed_process_are_removed_after_a_while(folder: Path) -> None:
    old, recent = folder / f".export-{'0' * 16}", folder / f".export-{'1' * 16}"
    for path in (old, recent):
        path.mkdir()
        (path / "staged").write_text("new")
    single, other = folder / f".export-{'2' * 16}", folder / ".export-notes"
    for path in (single, other):
        path.write_text("old")
    long_ago = single.stat().st_mtime - STALE_S - 60
    for path in (old, single, other):
        os.utime(path, (long_ago, long_ago))
    replace_files(folder, {"added.txt": b"new"})
    assert {path.name for path in folder.glob(".export-*")} == {recent.name, other.name}
