"""Output of all commands: one line if a stream cannot be written, and no control characters from any file."""

import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import recorded
import tiny
from rich.text import Text

from lmconsole.commands import output
from lmconsole.errors import escape_json
from lmconsole.runs.info import RunInfo
from lmconsole.runs.store import Run

HOSTILE = "a\x1b[31m\x9b2J\u202e\u2066b\x07\x7f\u200b\u2028c"
"""Escape sequences, C1 controls, a bell, bidirectional overrides, and invisible characters."""


COMMANDS = (
    ["--help"],
    ["--version"],
    ["list", "--experiments", "mine.toml"],
    ["list", "--json"],
    ["status"],
    ["status", "--json"],
    ["export", "--out", f"out {HOSTILE}"],
    ["export", "-o", "-"],
    ["export", "-o", "-", "--format", "latex"],
    ["export", "-o", "-", "--format", "csv"],
    ["export", "-o", "-", "--format", "json"],
    ["data", "info", "--data", f"data {HOSTILE}", "--preset", "tiny", "--experiments", "mine.toml"],
    ["data", "info", "--data", f"data {HOSTILE}", "--preset", "tiny", "--experiments", "mine.toml", "--json"],
)
"""Commands that print on standard output."""

MESSAGES = (
    ["status", "--runs", f"empty {HOSTILE}"],
    ["stop", "--all", "--runs", f"empty {HOSTILE}"],
    ["stop", "1"],
    ["watch"],
    ["import", f"missing {HOSTILE}"],
    ["data", "info", "--data", f"missing {HOSTILE}"],
    ["data", "info", "--embeddings", f"missing {HOSTILE}"],
    ["list", "--experiments", f"missing {HOSTILE}"],
    ["list", "--experiments", "wrong.toml"],
    ["run", f"1{HOSTILE}"],
    ["run", "1", "--preset", HOSTILE],
    ["export", "--run", HOSTILE],
    ["export", "--against", HOSTILE],
    ["export", "--format", HOSTILE],
    ["--preset", HOSTILE],
    [HOSTILE],
)
"""Commands that print only messages."""

SLOW = (
    ["doctor", "--data", f"data {HOSTILE}"],
    ["run", "1", "--preset", "tiny", "--experiments", "mine.toml", "--data", f"data {HOSTILE}", "--dry-run"],
    ["run", "1", "--preset", "tiny", "--experiments", "mine.toml", "--data", f"data {HOSTILE}", "--dry-run", "--json"],
)


def name(words: Sequence[str]) -> str:
    return " ".join(words).replace(HOSTILE, "…")


def hostile(run: Run) -> None:
    """Put hostile text into every field of a run's files that holds text."""
    info = json.loads(run.paths.info.read_text())
    info["experiment"] |= {"name": f"=1+{HOSTILE}", "source": HOSTILE}
    info["corpus"] |= {"name": HOSTILE, "tokenizer": HOSTILE, "path": f"/{HOSTILE}"}
    info |= {"preset": HOSTILE, "command": [HOSTILE, "--data", HOSTILE], "cwd": f"/{HOSTILE}", "version": HOSTILE}
    info["origins"] = dict.fromkeys(info["origins"], HOSTILE)
    msgspec.convert(info, RunInfo)
    run.paths.info.write_text(json.dumps(info))
    lines = [json.loads(line) for line in run.paths.events.read_text().splitlines()]
    for event in lines:
        for key, value in event.items():
            if isinstance(value, str) and key not in ("t", "kind"):
                event[key] = HOSTILE
    run.paths.events.write_text("".join(f"{json.dumps(event)}\n" for event in lines))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where everything that has a name has a hostile one."""
    root = tmp_path_factory.mktemp("output")
    hostile(recorded.record(root, 1, "lstm", [(5.0, 5.1)]))
    hostile(recorded.record(root, 2, "gpt1", [(4.0, 4.1)], finish=False))
    broken = root / "runs" / f"03 {HOSTILE}"
    shutil.move(recorded.record(root, 3, "lstm", [(4.0, 4.1)]).paths.folder, broken)
    (broken / "run.json").write_text(f'{{"schema": "{HOSTILE!r}"')
    tiny.write_experiments(root / "mine.toml", tiny.row(1))
    tiny.write_corpus(root / f"data {HOSTILE}")
    (root / "wrong.toml").write_text(f"{json.dumps(HOSTILE)} = {json.dumps(HOSTILE)}\n")
    return root


def forbidden(text: str) -> list[str]:
    """Return the characters in a text that could control a terminal or disguise what follows."""
    return sorted({f"U+{ord(c):04X}" for c in text if c != "\n" and unicodedata.category(c)[0] == "C"})


@pytest.mark.parametrize(
    "words", [*COMMANDS, *MESSAGES, *(pytest.param(w, marks=pytest.mark.slow) for w in SLOW)], ids=name
)
def test_nobodys_text_controls_the_terminal(words: list[str], root: Path) -> None:
    done = tiny.lmconsole(*words, cwd=root)
    assert done.returncode == 0 or words in MESSAGES, done.stderr
    assert done.stdout + done.stderr
    assert forbidden(done.stdout) == []
    assert forbidden(done.stderr) == []
    if "--json" in words or words[-1] == "json":
        json.loads(done.stdout)


def test_json_keeps_its_value() -> None:
    value = {"text": HOSTILE + "é\U000e0001\U0001f600\ud7ff", "number": 1}
    encoded = msgspec.json.encode(value).decode()
    text = escape_json(encoded)
    assert json.loads(text) == value
    assert json.loads(escape_json(encoded, ascii_only=True).encode("ascii")) == value
    assert forbidden(text) == []
    assert "é" in text
    assert "\U0001f600" in text


def redirected(words: Sequence[str], redirection: str, root: Path) -> subprocess.CompletedProcess[str]:
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-m", "lmconsole", *words],
        cwd=root,
        env=tiny.environment(root),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done


@pytest.fixture(scope="module")
def usual(root: Path) -> Callable[[Sequence[str]], subprocess.CompletedProcess[str]]:
    """Return a function that returns what a command prints without a redirection; each runs once."""
    return functools.cache(lambda words: redirected(words, "", root))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("words", COMMANDS, ids=name)
def test_a_full_disk_is_one_message(words: list[str], root: Path) -> None:
    done = redirected(words, ">/dev/full", root)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "lmconsole: standard output cannot be written: No space left on device"
    assert done.stderr.count("lmconsole: ") == 1


@pytest.mark.parametrize("words", [COMMANDS[2], COMMANDS[5], MESSAGES[0], MESSAGES[2]], ids=name)
@pytest.mark.parametrize("redirection", ["2>/dev/full", ">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
def test_a_stream_that_is_closed_or_full_changes_nothing_else(
    words: list[str], redirection: str, root: Path, usual: Callable[[Sequence[str]], subprocess.CompletedProcess[str]]
) -> None:
    expected = usual(tuple(words))
    done = redirected(words, redirection, root)
    if ">/dev/full" in re.split(r" ", redirection) and expected.stdout:
        assert done.returncode == 1
    else:
        assert done.returncode == expected.returncode
    assert done.stdout == ("" if redirection.startswith(">") else expected.stdout)
    assert done.stderr == ("" if "2>" in redirection else expected.stderr)


def test_a_file_that_is_opened_does_not_become_standard_output(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom lmconsole.commands.streams import prepare_streams\nprepare_streams()\n"
        "file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\nprint('to nobody', flush=True)\nos.write(2, b'x')\n"
        "sys.exit(0 if file > 2 else 1)"
    )
    shell = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh"]
    done = subprocess.run([*shell, sys.executable, "-c", code, str(tmp_path / "file")], timeout=60, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_stream_that_does_not_block_gets_everything(root: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    command = [sys.executable, "-m", "lmconsole", "list", "--json"]
    with subprocess.Popen(command, cwd=root, env=tiny.environment(root), stdout=write, stderr=subprocess.PIPE) as child:
        os.close(write)
        with open(read, "rb") as pipe:
            first = pipe.read(1)
            assert len(json.loads(first + pipe.read())) == 12
    assert child.returncode == 0


NOT_UTF8 = b"o\xffdd".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    "words",
    [["status"], ["status", "--json"], ["list", "--json"], ["export", "--out", NOT_UTF8], ["export", "-o", "-"]],
    ids=lambda words: " ".join(words).replace(NOT_UTF8, "…"),
)
def test_a_store_whose_name_is_not_utf8_is_shown(words: list[str], root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "runs", tmp_path / NOT_UTF8 / "runs")
    (tmp_path / NOT_UTF8 / NOT_UTF8).mkdir()
    done = tiny.lmconsole(*words, cwd=tmp_path / NOT_UTF8, check=0)
    assert forbidden(done.stdout + done.stderr) == []
    if "--json" in words:
        assert json.loads(done.stdout)


def test_an_import_from_a_folder_whose_name_is_not_utf8_escapes_the_name(tmp_path: Path) -> None:
    source = tmp_path / NOT_UTF8
    source.mkdir()
    (source / "args.json").write_text('{"model": "lstm", "layers": 1, "optimizer": "adam"}')
    (source / "valid_ppl.txt").write_text("300\n200\n")
    done = tiny.lmconsole("import", str(source), cwd=tmp_path, check=0)
    assert "\\udcff" in done.stdout
    assert len([path for path in tmp_path.glob("runs/*") if path.is_dir()]) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_long_table_is_printed_as_a_short_one(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """rich would take seconds for it, and draws lines between columns in ASCII."""
    table = output.plain_table(Run="left", Valid_PPL="right", Time="right")
    for number in range(6):
        name = f"run {number}" if encoding == "ascii" else f"läuft 日本 {number}"
        texts = Text(name + " and more" * number, style="red"), Text(f"{10.0**number:.1f}")
        table.add_row(*texts, "–" if number else "1:00")
    shown = []
    for many in (100, 1):
        monkeypatch.setattr(output, "MANY_ROWS", many)
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
        monkeypatch.setattr(sys, "stdout", stream)
        output.print_table(table)
        stream.flush()
        lines = stream.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined, unused-ignore]
        if encoding == "ascii":
            lines = [re.sub("[|+ ]+", " ", line) for line in lines if set(line) - set("-+|")]
        shown.append([line.rstrip() for line in lines])
    assert shown[0] == shown[1]
    assert len(shown[0]) == (8 if encoding == "utf-8" else 7)
