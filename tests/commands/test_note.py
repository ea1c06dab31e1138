"""`lmconsole note` changes the notes of runs, and `status` shows them."""

import json
from pathlib import Path

import pytest
import tiny

from lmconsole.cli import app
from lmconsole.errors import LmconsoleError


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Call the command in this process, and return its exit code, its output, and its messages or its error."""
    code, error = 0, ""
    try:
        app([*words], standalone_mode=False)
    except LmconsoleError as raised:
        code, error = raised.exit_code, str(raised)
    out, messages = capsys.readouterr()
    return code, out, messages + error


def test_notes_are_changed_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = tiny.queue_tiny(tmp_path, seed=1), tiny.queue_tiny(tmp_path, seed=2)
    assert call(capsys, "note", one.run) == (0, "", f"{one.run}: no note and no tags\n")
    assert call(capsys, "note", one.run, two.run, "-m", "lost  its warm-up", "--tag", "#good", "--tag", "b") == (
        0,
        f"{one.run}  #good #b lost its warm-up\n{two.run}  #good #b lost its warm-up\n",
        "",
    )
    code, out, _ = call(capsys, "note", two.run, "--untag", "b", "-m", "", "--json")
    assert (code, json.loads(out)) == (0, [{"run": two.run, "note": None, "tags": ["good"]}])
    code, out, _ = call(capsys, "status", "--json")
    shown = {each["run"]: (each["note"], each["tags"], each["notes_problem"]) for each in json.loads(out)}
    assert shown == {one.run: ("lost its warm-up", ["good", "b"], None), two.run: (None, ["good"], None)}
    code, out, _ = call(capsys, "status")
    assert "Tags and note" in out
    assert "#good #b lost its warm-up" in out

    for words, reason in (
        (("note", "none", "--tag", "x"), "no run is called 'none'"),
        (("note", one.run, "none", "--tag", "x"), "no run is called 'none'"),
        (("note", one.run, "--tag", "two words"), "'two words' cannot be a tag"),
        (("note", one.run, "-m", "n" * 3_000), "a note has at most 2,000 characters, not 3,000"),
    ):
        code, out, err = call(capsys, *words)
        assert (code, out) == (2, "")
        assert reason in err
        assert "x" not in json.loads(one.paths.notes.read_text())["tags"]
    one.paths.notes.write_text("{")
    code, _, err = call(capsys, "note", one.run)
    assert code == 2
    assert "not notes of a run" in err
    code, _, err = call(capsys, "status")
    assert code == 0
    assert "warning: " in err
    assert "not notes of a run" in err
