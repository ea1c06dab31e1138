"""Replacement of several files: all of them or none, wherever it fails."""

import errno
import os
from pathlib import Path

import pytest
from disk import contents, fail_in_call

from lmconsole.report.transaction import replace_files

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
    before = contents(folder)
    with pytest.raises(IsADirectoryError):
        replace_files(folder, FILES)
    assert contents(folder) == before
