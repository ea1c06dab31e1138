"""Files are written whole, and growing files are read line by line."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lmconsole.files import (
    CUT_BYTES,
    MAX_NAME_BYTES,
    LineTail,
    atomic_write,
    cache_folder,
    file_name_part,
    open_file,
    read_file,
)

LIMIT = 4_096
"""Bytes that a ``LineTail`` of these tests reads in one call."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def read_repeatedly(tail: LineTail) -> list[str]:
    return [line for _ in range(5) for line in tail.read_lines()]


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def a_link_to_a_file(path: Path) -> None:
    path.with_name("target").write_text("target")
    path.symlink_to("target")


NO_FILES: list[Callable[[Path], None]] = [
    a_pipe,
    a_socket,
    a_folder,
    a_link_to_a_device,
    a_link_to_a_pipe,
    a_link_to_nothing,
]


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_is_an_error_and_never_blocks(
    tmp_path: Path, make: Callable[[Path], None], follow: bool
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(OSError):
        read_file(path, 100, follow=follow)
    with pytest.raises(OSError):
        open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, follow=False)
    with pytest.raises(OSError):
        LineTail(path).read_new()


def test_a_link_is_followed_for_reading_only_where_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    a_link_to_a_file(path)
    assert read_file(path, 100, follow=True) == b"target"
    with pytest.raises(OSError, match="symbolic link"):
        read_file(path, 100, follow=False)
    for flags in (os.O_APPEND, os.O_TRUNC):
        with pytest.raises(OSError, match="symbolic link"):
            open_file(path, os.O_WRONLY | os.O_CREAT | flags, follow=False)
    assert (tmp_path / "target").read_text() == "target"


def test_a_file_that_is_exchanged_for_a_pipe_while_it_is_opened_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real_open = tmp_path / "file", os.open
    path.write_text("content")

    def exchanged(name: Path, flags: int, mode: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return real_open(name, flags, mode)

    monkeypatch.setattr(os, "open", exchanged)
    with pytest.raises(OSError, match="pipe"):
        read_file(path, 100, follow=False)


def test_a_file_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_file(path, 100, follow=False) == b"x" * 100
    with pytest.raises(OSError, match="larger than 99 bytes"):
        read_file(path, 99, follow=False)
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="larger than 16 MiB"):
        read_file(path, 16 * 2**20, follow=False)


def test_a_file_whose_size_is_unknown_is_read_to_the_limit() -> None:
    assert b"VmHWM" in read_file(Path("/proc/self/status"), 100_000, follow=False)  # its size is given as 0
    with pytest.raises(OSError, match="larger"):
        read_file(Path("/proc/self/status"), 10, follow=False)


def test_a_name_with_a_nul_character_is_an_error() -> None:
    with pytest.raises(OSError, match="NUL"):
        read_file(Path("a\0b"), 100, follow=True)


@pytest.mark.parametrize(
    "make", [a_pipe, a_socket, a_link_to_a_device, a_link_to_a_pipe, a_link_to_nothing, a_link_to_a_file]
)
def test_what_lies_under_the_fixed_temporary_name_is_removed_and_never_opened(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path, temporary = tmp_path / "file", tmp_path / ".file.tmp"
    make(temporary)
    with atomic_write(path, temporary=temporary) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert not temporary.is_symlink()
    assert names(tmp_path) in (["file"], ["file", "pipe"], ["file", "target"])
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_text() == "target"


def test_a_written_file_replaces_the_old_one_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("fixed_name", [False, True])
def test_after_an_error_the_old_file_is_whole_and_no_other_is_left(tmp_path: Path, fixed_name: bool) -> None:
    path, older = tmp_path / "file", tmp_path / "older"
    path.write_text("old")
    temporary = tmp_path / ".file.tmp" if fixed_name else None

    def write_half() -> None:
        with atomic_write(path, temporary=temporary, keep_as=older) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_failing_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), atomic_write(path, sync=True) as file:
        file.write(b"new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real: dict[str, Callable[..., None]] = {"fsync": os.fsync, "replace": os.replace}

    def record(name: str) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            calls.append(name)
            real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(os, name, record(name))
    with atomic_write(tmp_path / "file", sync=True):
        pass
    assert calls == ["fsync", "replace"]


def test_the_replaced_file_can_be_kept_under_another_name(tmp_path: Path) -> None:
    path, older = tmp_path / "file", tmp_path / "older"
    for content in (b"one", b"two", b"three"):
        with atomic_write(path, keep_as=older) as file:
            file.write(content)
    assert (path.read_bytes(), older.read_bytes()) == (b"three", b"two")


def test_what_a_killed_process_left_under_the_fixed_name_is_overwritten(tmp_path: Path) -> None:
    temporary = tmp_path / ".file.tmp"
    temporary.write_text("half of something long")
    with atomic_write(tmp_path / "file", temporary=temporary) as file:
        file.write(b"new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("mode", "expected"), [(0o666, 0o640), (0o600, 0o600)])
def test_permissions_are_those_asked_for_less_the_umask(tmp_path: Path, mode: int, expected: int) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file", mode=mode):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == expected


def test_two_writers_of_one_file_do_not_mix_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_text() == "first"


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "../../x", "/etc/passwd", "a/../b", "..a", "a..", ".hidden", "a\0b", "\n", "\x1b[2J", "\u202e", "~",
     "*", "\udcff", "-x", "x" * 10_000, "é" * 10_000, "🚀" * 50, "con:aux", "a\\b", " ", "ok\n"],
)  # fmt: skip
def test_any_text_becomes_the_name_of_one_file_in_the_folder(tmp_path: Path, text: str) -> None:
    part = file_name_part(text)
    assert len(os.fsencode(part)) <= MAX_NAME_BYTES
    (tmp_path / part).write_text("")
    assert [path.name for path in tmp_path.iterdir()] == [part]
    assert not part.startswith(".")
    assert part.isprintable()


@pytest.mark.parametrize("text", ["paper", "my-preset_2", "größe", "v1.2", "x" * MAX_NAME_BYTES])
def test_a_name_that_suits_a_file_stays_as_it_is(text: str) -> None:
    assert file_name_part(text) == text


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("corpora") == tmp_path / "lmconsole" / "corpora"
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("~/.cache/lmconsole"))
    assert cache_folder("corpora") is None


def test_each_line_is_read_once_and_in_order(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    tail = LineTail(log)
    assert tail.read_lines() == [], "there is no file yet"
    log.write_text("one\ntwo\n")
    assert tail.read_lines() == ["one", "two"]
    assert tail.read_lines() == []
    append(log, "three\n")
    assert tail.read_lines() == ["three"]


def test_a_torn_line_waits_for_its_rest(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("one\nhal")
    tail = LineTail(log)
    assert tail.read_new() == b"one\n"
    assert tail.read_new() == b""
    append(log, "f\n")
    assert tail.read_new() == b"half\n"


def test_the_end_of_a_long_file_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("".join(f"line {i}\n" for i in range(10_000)))
    lines = LineTail(log, last_bytes=LIMIT).read_lines()
    first = int(lines[0].removeprefix("line "))
    assert lines == [f"line {i}" for i in range(first, 10_000)]
    assert LIMIT - 16 < sum(len(line) + 1 for line in lines) <= LIMIT


def test_only_later_lines_are_read_from_the_very_end(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("before\n")
    tail = LineTail(log, last_bytes=0)
    assert tail.read_lines() == []
    append(log, "after\n")
    assert tail.read_lines() == ["after"]


@pytest.mark.parametrize("last_bytes", [None, 0, LIMIT])
def test_a_file_that_became_shorter_is_read_from_its_beginning(tmp_path: Path, last_bytes: int | None) -> None:
    log = tmp_path / "worker.log"
    log.write_text("old and long\n")
    tail = LineTail(log, last_bytes=last_bytes)
    tail.read_lines()
    log.write_text("new\n")
    assert tail.read_lines() == ["new"]


def test_a_shorter_file_can_be_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("one\ntwo\n")
    tail = LineTail(log, restart=False)
    assert tail.read_lines() == ["one", "two"]
    log.write_text("one\n")
    assert tail.read_lines() == []
    append(log, "two\nthree\n")
    assert tail.read_lines() == ["three"]


def test_bytes_that_are_not_text_are_replaced(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"caf\xe9\n\xff\xfe\n")
    assert LineTail(log).read_lines() == ["caf\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}" * 2]


def test_a_line_longer_than_the_limit_is_cut_and_does_not_hold_up_what_follows(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("before\n")
    tail = LineTail(log, limit=LIMIT)
    assert tail.read_lines() == ["before"]
    append(log, "x" * (LIMIT + 1) + "\nafter\n")
    assert read_repeatedly(tail) == ["x" * CUT_BYTES + " …", "after"]


def test_a_long_line_at_the_end_does_not_hold_up_what_follows(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("x" * (LIMIT + 1))
    tail = LineTail(log, last_bytes=LIMIT, limit=LIMIT)
    assert tail.read_lines() == []
    append(log, "\nafter\n")
    assert read_repeatedly(tail) == ["after"]


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(IsADirectoryError):
        LineTail(tmp_path).read_lines()


def test_a_file_that_cannot_be_read_yet_does_not_stop_its_reader(
    tmp_path: Path, ordinary_user: Callable[[], None]
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "log").write_bytes(b"early\n")
    folder.chmod(0)
    ordinary_user()
    tail = LineTail(folder / "log", last_bytes=0)
    with pytest.raises(PermissionError):
        tail.read_lines()
