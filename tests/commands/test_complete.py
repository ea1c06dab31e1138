"""Completions of experiments, presets and runs, as shells ask for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

HOSTILE = ("$(touch pwned)", "a b", "x;touch pwned", "`touch pwned`", "'; touch pwned; '", "\x1b[31m", "-rf", "é")


CASES = {
    "lmconsole run ": ["31", "7"],
    "lmconsole run 3": ["31"],
    "lmconsole run 7 ": ["31", "7"],
    "lmconsole run 7 --preset t": ["tiny"],
    "lmconsole --preset ": ["auto", "paper", "scratch", "demo", "tiny"],
    "lmconsole bench --preset d": ["demo"],
    "lmconsole data info --preset s": ["scratch"],
    "lmconsole run --precision b": ["bf16"],
    "lmconsole watch ": ["07-lstm-1l-adam-tiny-s42-20260101T000000Z", "31-gpt1"],
    "lmconsole stop 0": ["07-lstm-1l-adam-tiny-s42-20260101T000000Z"],
    "lmconsole export --run 3": ["31-gpt1"],
    "lmconsole export --format m": ["markdown"],
    "lmconsole watch --runs elsewhere ": ["99-other"],
    "lmconsole --runs elsewhere watch ": ["99-other"],
    "lmconsole --runs elsewhere watch --runs runs 3": ["31-gpt1"],
    "lmconsole watch --runs nowhere ": [],
    "lmconsole run --experiments missing.toml ": [],
    "lmconsole run --experiments broken.toml --preset ": [],
    "lmconsole schema e": ["experiments", "events"],
}

ASK = """
import json, os, sys
os.environ["_LMCONSOLE_COMPLETE"] = "complete_bash"
import typer.main
from typer._completion_classes import BashComplete, ZshComplete
from lmconsole.cli import app
cli = typer.main.get_command(app)
answers = {}
for words in json.load(sys.stdin):
    os.environ.update(COMP_WORDS=words, COMP_CWORD=str(words.count(" ")), _TYPER_COMPLETE_ARGS=words)
    answers[words] = [kind(cli, {}, "lmconsole", "_").complete() for kind in (BashComplete, ZshComplete)]
print(json.dumps(answers))
"""
"""Completes many command lines as bash and zsh in one process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two experiments, a preset, two runs, and folders with names that shells would run."""
    root = tmp_path_factory.mktemp("completion")
    name = r"""a'$(x)`y`"; z"""
    tiny.write_experiments(root / "experiments.toml", tiny.row(31, "gpt1", more=f"name = '''{name}'''"), tiny.row(7))
    (root / "broken.toml").write_text("[presets")
    for run in ("07-lstm-1l-adam-tiny-s42-20260101T000000Z", "31-gpt1", *HOSTILE):
        (root / "runs" / run).mkdir(parents=True)
    (root / "elsewhere" / "99-other").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, list[str]]:
    """Return what bash and zsh offer at the end of each of the ``CASES``."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=folder,
        env=tiny.environment(folder),
        input=json.dumps(list(CASES)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("words", CASES)
def test_names_are_completed(words: str, answers: dict[str, list[str]]) -> None:
    """Names that a shell would run, such as those of the folders in HOSTILE, are not offered."""
    assert answers[words][0].splitlines() == CASES[words]


def test_names_of_others_are_not_code(answers: dict[str, list[str]]) -> None:
    assert answers["lmconsole run 3"][1] == """_arguments '*: :(("31":"a x y z"))'"""


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
