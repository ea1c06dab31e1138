"""Automation: the JSON and the exit code of every command, and the instructions for agents followed literally."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny
import typer.main
import validation

import lmconsole
from lmconsole.cli import app
from lmconsole.errors import LmconsoleError
from lmconsole.runs.state import Status
from lmconsole.runs.store import Store

SCRIPTING = Path(__file__).resolve().parents[1] / "docs" / "scripting.md"
SKILL = Path(lmconsole.__file__).parent / "commands" / "SKILL.md"
ELSEWHERE = {"run": "the instructions for agents", "run --dry-run": "the instructions for agents"}
ELSEWHERE |= {
    "claims": "claims/test_registered.py",
    "reproduce": "commands/test_reproduce.py",
    "data fetch": "data/test_fetch_command.py",
    "doctor": "the instructions for agents",
    "bench": "test_cli.py",
    "serve": "below",
}
"""Commands whose JSON another test checks, since they start processes."""


def leaves(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every command by the words that name it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(leaves(typer.main.get_command(app)))


def call(*words: str) -> tuple[int, str]:
    """Run a command in this process, and return its exit code and standard output."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        try:
            app(list(words))
        except LmconsoleError as error:
            code = error.exit_code
        except SystemExit as end:
            code = int(end.code or 0)
    out.seek(0)
    return code, out.read()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store with a finished, a diverged and a queued run, in the current folder."""
    recorded.record(tmp_path, 5, "gpt1", [(4.9, 5.0), (4.2, 4.5)], samples=5)
    recorded.record(tmp_path, 2, "lstm", [(5.5, 5.6), (float("nan"), float("inf"))])
    tiny.queue_tiny(tmp_path, number=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Store(tmp_path / "runs")


def test_every_command_that_starts_no_process_prints_json_as_described(store: Store, tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text("model,layers,optimizer,epoch,valid_ppl\nlstm,1,adam,1,120.5\n")
    values = {"adam": (2.0, 2.1, 2.2), "sgd": (4.0, 4.1, 4.3)}
    rows = [f"{name},{seed},{value}" for name, each in values.items() for seed, value in enumerate(each)]
    (tmp_path / "seeds.csv").write_text("\n".join(["optimizer,seed,test_nll", *rows]) + "\n")
    (tmp_path / "odd.csv").write_text("model,layers,optimizer,epoch,valid_ppl\nlstm,1,adam,1,abc\n")
    given = {
        "list": ["list"],
        "status": ["status"],
        "stop": ["stop", "--all", "--wait"],
        "note": ["note", "5", "-m", "good", "--tag", "x"],
        "watch": ["watch", "5"],
        "export": ["export", "--format", "csv"],
        "compare": ["compare", "seeds.csv", "--by", "optimizer", "--metric", "test_nll"],
        "import": ["import", "theirs.csv"],
        "data info": ["data", "info", "--preset", "demo"],
        "init": ["init"],
        "schema": ["schema"],
        "skill": ["skill"],
        "keys": ["keys"],
    }
    assert set(given) | set(ELSEWHERE) - {"run --dry-run"} == set(COMMANDS)
    found = {}
    for command, words in given.items():
        code, text = call(*words, "--json")
        assert code == 0, command
        documents = [json.loads(line) for line in text.splitlines()] if command == "watch" else [json.loads(text)]
        for document in documents:
            validation.check_output(document, command.replace(" ", "-"))
        found[command] = documents[-1]
    assert {run["best_valid_ppl"] for run in found["status"]} > {None}
    assert [(run["before"], run["status"]) for run in found["stop"]] == [("queued", "stopped")]
    assert found["watch"]["kind"] == "finished"
    assert [Path(path).exists() for path in found["export"]["files"]] == [True] * 5
    assert [run.status for run in store.runs()].count(Status.FINISHED) == 3
    assert len(found["import"]["imported"]) == 1
    code, text = call("export", "--watch", "--format", "csv", "--json")
    assert (code, json.loads(text)) == (0, found["export"])
    assert text.count("\n") == 1
    again = json.loads(call("import", "theirs.csv", "--json")[1])
    assert (len(again["imported_before"]), again["imported"]) == (1, [])
    code, text = call("import", "odd.csv", "--json")
    assert (code, bool(json.loads(text)["problems"])) == (2, True)


def test_every_command_has_json_and_its_exit_codes_are_documented() -> None:
    assert [name for name, command in COMMANDS.items() if "--json" not in str([p.opts for p in command.params])] == []
    rows = re.findall(
        r"^\| `([a-z -]+)` \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", SCRIPTING.read_text("utf-8"), re.MULTILINE
    )
    assert {name for name, *_ in rows} == {*COMMANDS, "run --dry-run", "status --digest"}
    described = set(validation.schema("output")["$defs"])
    assert {name.replace(" --", "-").replace(" ", "-") for name, *_ in rows} <= described


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage_is_exit_code_two_without_output(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong in (["--no-such-option"], ["--json=yes"], [f"surplus {number}" for number in range(9)]):
        code, text = call(*command.split(), *wrong)
        assert (code, text) == (2, ""), (command, wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("store")
def test_failures_have_the_documented_exit_codes(tmp_path: Path) -> None:
    stopped = tiny.queue_tiny(tmp_path, number=4)
    assert call("stop", "4", "--json")[0] == 0
    assert call("watch", stopped.run, "--json")[0] == 1
    for words in (
        ["status", "--runs", __file__],
        ["list", "--experiments", "missing.toml"],
        ["run", "99", "--headless"],
        ["stop", "nope"],
        ["watch", "nope"],
        ["export", "--preset", "nope"],
        ["export", "--json", "-o", "-"],
        ["export", "--format", "csv", "--figures", "svg"],
        ["export", "--format", "html", "--siunitx"],
        ["export", "--format", "tensorboard", "--against", "published"],
        ["import", "nowhere"],
        ["data", "info", "--data", "nowhere"],
        ["bench", "--preset", "nope"],
        ["init", "nowhere/experiments.toml"],
        ["schema", "nope"],
    ):
        assert call(*words) == (2, ""), words


def test_the_instructions_follow_the_format_of_agent_skills() -> None:
    text = SKILL.read_text(encoding="utf-8")
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    assert set(fields) <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", fields["name"])
    assert len(fields["name"]) <= 64
    assert 50 < len(fields["description"]) <= 1024
    assert len(body.splitlines()) < 500
    assert call("skill") == (0, text)
    assert json.loads(call("skill", "--json")[1]) == {
        "name": fields["name"],
        "description": fields["description"],
        "text": text,
    }


@pytest.mark.slow
def test_a_server_prints_its_url_and_process(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "lmconsole", "serve", "--json", "--port", str(port)],
        cwd=tmp_path,
        env=tiny.environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        validation.check_output(found, "serve")
        assert found["url"].startswith(f"http://127.0.0.1:{port}/?token=")
        os.kill(found["pid"], signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_the_instructions_for_agents_can_be_followed_literally(tmp_path: Path) -> None:
    """Run every block of the instructions in an empty folder, in order, and check all JSON."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", SKILL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) >= 10
    tiny.install(tmp_path / "bin" / "lmconsole")
    environment = tiny.environment(tmp_path)
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}"
    work = tmp_path / "work"
    work.mkdir()
    checked = set()
    for command in commands:
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        words = command.split()[1:]
        if "--json" in words:
            text = (work / "events.jsonl").read_text() if ">" in words else done.stdout
            name = "run-dry-run" if "--dry-run" in words else words[0]
            lines = text.splitlines() if name in ("run", "watch", "reproduce") else [text]
            assert lines
            for line in lines:
                validation.check_output(json.loads(line), name)
            checked.add(name)
    assert checked >= {"doctor", "init", "list", "run-dry-run", "run", "status", "watch", "stop", "export"}
    runs = Store(work / "runs").runs()
    assert [run.status for run in runs] == [Status.FINISHED] * 4
    assert [run.info.reproduces for run in runs] == [None, None, None, runs[2].run]
    events = [json.loads(line) for line in (work / "events.jsonl").read_text().splitlines()]
    assert {event["run"] for event in events if event["kind"] == "finished"} == {run.run for run in runs[1:3]}
    assert (work / "exports" / "table-1-results.csv").read_text().count("\n") == 2, "a heading and experiment 13"
