"""Completions of experiments, presets and runs, as shells ask for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import typer.main
from typer._completion_classes import BashComplete, ZshComplete

from lmconsole.cli import COMPLETE, app

HOSTILE = ("$(touch pwned)", "a b", "x;touch pwned", "`touch pwned`", "'; touch pwned; '", "\x1b[31m", "-rf", "é")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with an experiment, a preset, two runs, and folders with names that shells would run."""
    tiny.write_experiments(tmp_path / "experiments.toml", tiny.row(31, "gpt1"), tiny.row(7))
    for name in ("07-lstm-1l-adam-tiny-s42-20260101T000000Z", "31-gpt1", *HOSTILE):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "elsewhere" / "99-other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(words: str, monkeypatch: pytest.MonkeyPatch, shell: type = BashComplete) -> list[str]:
    """Return what a shell offers at the end of a command line."""
    parts = words.split(" ")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(parts) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)
    lines: str = shell(typer.main.get_command(app), {}, "lmconsole", COMPLETE).complete()
    return lines.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lmconsole run ", ["31", "7"]),
        ("lmconsole run 3", ["31"]),
        ("lmconsole run 7 ", ["31", "7"]),
        ("lmconsole run 7 --preset t", ["tiny"]),
        ("lmconsole --preset ", ["auto", "paper", "scratch", "demo", "tiny"]),
        ("lmconsole bench --preset d", ["demo"]),
        ("lmconsole data info --preset s", ["scratch"]),
        ("lmconsole run --precision b", ["bf16"]),
        ("lmconsole watch ", ["07-lstm-1l-adam-tiny-s42-20260101T000000Z", "31-gpt1"]),
        ("lmconsole stop 0", ["07-lstm-1l-adam-tiny-s42-20260101T000000Z"]),
        ("lmconsole export --run 3", ["31-gpt1"]),
        ("lmconsole export --format m", ["markdown"]),
        ("lmconsole watch --runs elsewhere ", ["99-other"]),
        ("lmconsole --runs elsewhere watch ", ["99-other"]),
        ("lmconsole --runs elsewhere watch --runs runs 3", ["31-gpt1"]),
        ("lmconsole watch --runs nowhere ", []),
        ("lmconsole run --experiments missing.toml ", []),
        ("lmconsole schema e", ["experiments", "events"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_names_are_completed(monkeypatch: pytest.MonkeyPatch, words: str, expected: list[str]) -> None:
    assert completed(words, monkeypatch) == expected


def test_a_file_with_mistakes_gives_no_completions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "experiments.toml").write_text("[presets")
    assert completed("lmconsole run ", monkeypatch) == []
    assert completed("lmconsole run --preset ", monkeypatch) == []


def test_names_of_others_are_not_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a'$(x)`y`\\\"; z"
    tiny.write_experiments(folder / "experiments.toml", tiny.row(31, more=f"name = '''{name}'''"))
    assert completed("lmconsole run ", monkeypatch, ZshComplete) == ["""_arguments '*: :(("31":"a x y z"))'"""]
    offered = completed("lmconsole watch ", monkeypatch)
    assert not {each for each in offered if each in HOSTILE}


def test_bash_completes_with_the_script_that_the_command_prints(folder: Path) -> None:
    (folder / "bin").mkdir()
    script = f"#!{sys.executable}\nfrom lmconsole.cli import main\nmain()\n"  # as pip installs it
    (folder / "bin" / "lmconsole").write_text(script)
    (folder / "bin" / "lmconsole").chmod(0o755)
    script = """
        eval "$(_LMCONSOLE_COMPLETE=source_bash lmconsole)"
        COMP_WORDS=(lmconsole watch 3); COMP_CWORD=2
        _lmconsole_completion lmconsole
        echo "${COMPREPLY[@]}"
    """
    environment = tiny.environment(folder)
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "31-gpt1\n", "")
