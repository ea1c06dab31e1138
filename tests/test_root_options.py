"""Options in front of a command, and ``~`` in paths: every option with every command."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from lmconsole.cli import app
from lmconsole.errors import LmconsoleError

VALUES = {
    "preset": "mine",
    "runs": "B",
    "experiments": "e.toml",
    "data": "d",
    "embeddings": "e.npz",
    "theme": "nord",
    "slow": None,
}
ARGUMENTS = {"import": ["logs"], "note": ["1"], "reproduce": ["1"], "compare": ["r.csv", "--by=a", "--metric=b"]}
"""Arguments without which a command is refused."""


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that name it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = [path for path, _ in leaves(typer.main.get_command(app))]


def call(words: list[str], path: tuple[str, ...]) -> dict[str, Any]:
    """Return what the command at ``path`` is called with, instead of calling it."""
    root: Any = typer.main.get_command(app)
    command = dict(leaves(root))[path]
    called: list[dict[str, Any]] = []
    command.callback = lambda **given: called.append(given)
    root.main(words, standalone_mode=False)
    (given,) = called
    return given


def option(name: str, value: str | None) -> list[str]:
    return [f"--{name}", *([] if value is None else [value])]


def takes(path: tuple[str, ...], name: str) -> bool:
    command = dict(leaves(typer.main.get_command(app)))[path]
    return name in {parameter.name for parameter in command.params}


def test_the_options_of_the_console_are_known() -> None:
    root: Any = typer.main.get_command(app)
    assert {parameter.name for parameter in root.params} - {"_version", "help"} == set(VALUES)
    assert len(COMMANDS) >= 11
    assert ("data", "info") in COMMANDS


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", VALUES)
def test_an_option_in_front_of_a_command_is_honored_or_refused(
    path: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMCONSOLE_RUNS", "from-the-environment")
    value = VALUES[name]
    words = [*option(name, value), *path, *ARGUMENTS.get(path[0], [])]
    if not takes(path, name):
        with pytest.raises(LmconsoleError) as caught:
            call(words, path)
        assert f"--{name} has no effect on `lmconsole {path[0]}" in caught.value.message
        assert caught.value.exit_code == 2
        return
    assert str(call(words, path)[name]) == value
    assert str(call([*words, *option(name, "own")], path)[name]) == "own"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_without_an_option_in_front_the_environment_and_the_default_count(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMCONSOLE_RUNS", "from-the-environment")
    given = call([*path, *ARGUMENTS.get(path[0], [])], path)
    assert str(given.get("runs", "from-the-environment")) == "from-the-environment"
    monkeypatch.delenv("LMCONSOLE_RUNS")
    assert str(call([*path, *ARGUMENTS.get(path[0], [])], path).get("runs", "runs")) == "runs"


PATHS = [
    (path, parameter.name)
    for path, command in leaves(typer.main.get_command(app))
    for parameter in command.params
    if parameter.type.name in ("path", "expand_path", "expand_if_path")
]


@pytest.mark.parametrize(("path", "name"), PATHS)
def test_the_home_folder_is_expanded_in_every_path(
    path: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    arguments = ARGUMENTS.get(path[0], [])
    if name in ("source", "file"):
        arguments = [word for word in arguments if word.startswith("-")]

    def given(text: str) -> str:
        words = [text] if name in ("source", "file") else [f"--{name}={text}"]
        return str(call([*path, *words, *arguments], path)[name])

    assert given("~/r s") == "/home/ada/r s"
    assert given("~") == "/home/ada"
    assert given("./~/r").removeprefix("./") == "~/r"
    assert given("a/~") == "a/~"
    assert given("~root/r") == os.path.join(os.path.expanduser("~root"), "r")
    with pytest.raises(Exception, match=r"there is no user 'nobody-here'; write \./~nobody-here/r") as caught:
        given("~nobody-here/r")
    assert type(caught.value).__name__ == "BadParameter"


def test_the_home_folder_is_expanded_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LMCONSOLE_RUNS", "~/r")
    assert call(["status"], ("status",))["runs"] == Path("/home/ada/r")
    assert call(["--runs=~/q", "status"], ("status",))["runs"] == Path("/home/ada/q")
    assert call(["--runs=./~/q", "status"], ("status",))["runs"] == Path("~/q")
