"""Following a file that another process writes."""

from pathlib import Path

import pytest

from lmconsole.tui.screens.tail import FIRST_BYTES, MOST_BYTES, Tail


def all_new_lines(tail: Tail) -> list[str]:
    """Return the lines of several reads."""
    return [line for _ in range(5) for line in tail.read_new()]


def test_lines_come_once_each_and_in_order(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    tail = Tail(log)
    assert tail.read_new() == [], "the file does not exist yet"
    log.write_text("one\ntwo\n")
    assert tail.read_new() == ["one", "two"]
    assert tail.read_new() == []
    with log.open("a") as file:
        file.write("three\n")
    assert tail.read_new() == ["three"]


def test_an_incomplete_line_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("one\nhal")
    tail = Tail(log)
    assert tail.read_new() == ["one"]
    with log.open("a") as file:
        file.write("f\n")
    assert tail.read_new() == ["half"]


def test_the_end_of_a_long_file_is_read_from_a_whole_line_on(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("".join(f"line {i}\n" for i in range(100_000)))
    lines = Tail(log).read_new()
    assert lines[-1] == "line 99999"
    first = int(lines[0].removeprefix("line "))
    assert lines == [f"line {i}" for i in range(first, 100_000)]
    assert sum(len(line) + 1 for line in lines) <= FIRST_BYTES


def test_a_truncated_file_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("old and long\n")
    tail = Tail(log)
    tail.read_new()
    log.write_text("new\n")
    assert tail.read_new() == ["new"]


def test_invalid_utf8_is_replaced(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"caf\xe9\n\xff\xfe\n")
    assert Tail(log).read_new() == ["caf\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}" * 2]


def test_lines_after_one_longer_than_a_read_are_read(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("before\n")
    tail = Tail(log)
    assert tail.read_new() == ["before"]
    with log.open("a") as file:
        file.write("x" * (MOST_BYTES + 1) + "\nafter\n")
    assert all_new_lines(tail)[-1:] == ["after"]


def test_lines_after_a_long_unfinished_one_are_read(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("x" * (FIRST_BYTES + 1))
    tail = Tail(log)
    tail.read_new()
    with log.open("a") as file:
        file.write("\nafter\n")
    assert all_new_lines(tail)[-1:] == ["after"]


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.mkdir()
    (log / "something").touch()
    with pytest.raises(OSError, match="directory"):
        Tail(log).read_new()
