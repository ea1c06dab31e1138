"""Notes and tags of runs: one writer, and readers that no file can harm."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny
from factories import append_events, finished, started

from lmconsole.commands.status import summarize
from lmconsole.errors import LmconsoleError, StoreError
from lmconsole.runs.notes import MAX_BYTES, MAX_NOTE, MAX_TAGS, NO_NOTES, change_notes, parse_tag, read_notes
from lmconsole.runs.paths import NOTES_LOCK
from lmconsole.runs.store import Run, Store


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = tiny.queue_tiny(tmp_path)
    append_events(made.paths, started(), finished())
    return made


def test_a_note_and_tags_are_written_read_and_removed(run: Run) -> None:
    before = {path.name: path.read_bytes() for path in run.paths.folder.iterdir()}
    assert read_notes(run.paths) == NO_NOTES
    change_notes(run.paths, note="  lost\nits warm-up ", add=["good", "v1.0", "good"])
    assert json.loads(run.paths.notes.read_text()) == {"note": "lost its warm-up", "tags": ["good", "v1.0"]}
    assert change_notes(run.paths, add=["new"], remove=["good", "unknown"]).tags == ("v1.0", "new")
    assert read_notes(run.paths).note == "lost its warm-up"
    version = os.stat(run.paths.notes).st_mtime_ns
    change_notes(run.paths, add=["new"])
    assert os.stat(run.paths.notes).st_mtime_ns == version, "nothing to write"
    change_notes(run.paths, note="", remove=["v1.0", "new"])
    assert {path.name: path.read_bytes() for path in run.paths.folder.iterdir()} == before


def test_a_run_reads_its_notes_again_only_when_they_have_changed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.refresh()
    assert (run.notes, run.notes_problem) == (NO_NOTES, None)
    change_notes(run.paths, add=["good"])
    run.refresh()
    assert run.notes.tags == ("good",)
    monkeypatch.setattr("lmconsole.runs.store.read_notes", lambda paths: pytest.fail("read again"))
    run.refresh()


HOSTILE = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"note": 3}',
    b'{"tags": "good"}',
    b'{"tags": ["two words"]}',
    b'{"tags": ["' + b"x" * 33 + b'"]}',
    b'{"tags": ["line\\n"]}',
    b'{"tags": [' + b",".join(b'"a%d"' % n for n in range(MAX_TAGS + 1)) + b"]}",
    b'{"note": "' + b"n" * (MAX_NOTE + 1) + b'"}',
    b"[" * 50_000,
    b" " * (MAX_BYTES + 1),
)


def test_notes_that_cannot_be_read_cost_the_notes_and_not_the_run(run: Run, tmp_path: Path) -> None:
    def problem() -> str:
        (found,) = Store(tmp_path / "runs").runs()
        assert (found.problem, found.status.value, found.notes) == (None, "finished", NO_NOTES)
        assert found.notes_problem is not None
        assert summarize(found).notes_problem == found.notes_problem
        with pytest.raises(StoreError, match=r"Remove it to write notes again\."):
            change_notes(run.paths, add=["good"])
        return found.notes_problem

    for data in HOSTILE:
        run.paths.notes.write_bytes(data)
        assert str(run.paths.notes) in problem(), data[:40]
        assert run.paths.notes.read_bytes() == data
    run.paths.notes.unlink()
    secret = tmp_path / "secret"
    secret.write_text('{"note": "not yours"}')
    run.paths.notes.symlink_to(secret)
    assert "symbolic link" in problem()
    assert secret.read_text() == '{"note": "not yours"}'
    run.paths.notes.unlink()
    os.mkfifo(run.paths.notes)
    assert "a named pipe" in problem()
    run.paths.notes.unlink()
    run.paths.notes.mkdir()
    assert "a folder" in problem()


def test_nothing_is_written_through_a_linked_run_directory(run: Run, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    run.paths.folder.rename(elsewhere)
    run.paths.folder.symlink_to(elsewhere)
    (elsewhere / "notes.json").write_text('{"note": "keep"}')
    for change in ("", "new"):
        with pytest.raises(StoreError, match="symbolic link"):
            change_notes(run.paths, note=change)
    assert (elsewhere / "notes.json").read_text() == '{"note": "keep"}'


def test_control_characters_are_data_and_escaped_where_they_are_shown(run: Run, tmp_path: Path) -> None:
    change_notes(run.paths, note="\x1b[31mred\u202e")
    (found,) = Store(tmp_path / "runs").runs()
    assert summarize(found).note == "\x1b[31mred\u202e"
    done = tiny.lmconsole("status", cwd=tmp_path)
    assert "\\x1b[31mred\\u202e" in done.stdout
    assert "\x1b[31m" not in done.stdout


def test_too_much_is_refused_and_nothing_is_written(run: Run) -> None:
    change_notes(run.paths, note="before")
    for change in ({"note": "n" * (MAX_NOTE + 1)}, {"add": [f"t{n}" for n in range(MAX_TAGS + 1)]}):
        with pytest.raises(LmconsoleError, match="at most"):
            change_notes(run.paths, **change)
    with pytest.raises(StoreError, match="cannot be written"):
        change_notes(run.paths, note="\ud800")
    assert [path.name for path in run.paths.folder.glob("*.tmp")] == []
    assert read_notes(run.paths).note == "before"


def test_a_lock_that_is_no_file_is_named(run: Run) -> None:
    file = run.paths.folder.parent / NOTES_LOCK
    file.unlink(missing_ok=True)
    file.mkdir()
    with pytest.raises(StoreError, match=rf"{re.escape(str(file))}: .*found a folder"):
        change_notes(run.paths, note="new")


@pytest.mark.parametrize("text", ["", "#", "two words", "a/b", "x" * 33, "a\nb", "\x1b", "a,b"])
def test_what_cannot_be_a_tag_is_refused(text: str) -> None:
    with pytest.raises(LmconsoleError, match="cannot be a tag"):
        parse_tag(text)


def test_no_change_is_lost_among_threads_and_processes(run: Run) -> None:
    code = (
        "import sys; from pathlib import Path; from lmconsole.runs.paths import RunPaths\n"
        "from lmconsole.runs.notes import change_notes\n"
        "for n in range(8): change_notes(RunPaths(Path(sys.argv[1])), add=[f'{sys.argv[2]}{n}'])"
    )
    processes = [subprocess.Popen([sys.executable, "-P", "-c", code, str(run.paths.folder), name]) for name in "ab"]
    threads = [threading.Thread(target=lambda n=n: change_notes(run.paths, add=[f"t{n}"])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(read_notes(run.paths).tags) == 24


def test_notes_go_to_the_trash_and_come_back_with_their_run(run: Run, tmp_path: Path) -> None:
    from lmconsole.runs.trash import discard, restore

    change_notes(run.paths, note="keep me")
    store = Store(tmp_path / "runs")
    discard(store, [run.run])
    with pytest.raises(StoreError, match="cannot be written"):
        change_notes(run.paths, note="too late")
    assert not run.paths.folder.exists()
    restore(store, [run.run])
    assert read_notes(run.paths).note == "keep me"
    assert store.runs()[0].notes.note == "keep me"
