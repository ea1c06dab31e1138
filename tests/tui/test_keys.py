"""Keys of one's own: the file, what is wrong with it, and where the keys in force are shown."""

import json
import os
from pathlib import Path

import pytest
from textual.dom import DOMNode
from tui.stage import Stage, listed, screen, sees, selected, shows, shows_no_more

from lmconsole.cli import app
from lmconsole.errors import LmconsoleError
from lmconsole.tui.app import ConsoleApp
from lmconsole.tui.key_contexts import key_contexts
from lmconsole.tui.keys import Context, key_name, keys_file, load_keymap, own_bindings
from lmconsole.tui.list_keys import key_entries, keys_toml

DOCUMENT = Path(__file__).parents[2] / "docs" / "keys.md"


def contexts() -> list[Context]:
    """Return the contexts of the console."""
    return key_contexts(ConsoleApp)


def write(text: str | bytes) -> None:
    """Write the file of the user's own keys."""
    file = keys_file()
    assert file is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_every_binding_has_an_id_of_its_own() -> None:
    owners: set[type[DOMNode]] = {owner for context in contexts() for owner in context.owners}
    for owner in owners:
        for binding in owner.__dict__["BINDINGS"]:
            assert binding.id, f"{owner.__name__}: {binding}"
    actions: dict[str, set[str]] = {}
    for owner in owners:
        for binding in own_bindings(owner):
            actions.setdefault(str(binding.id), set()).add(binding.action)
    assert {name: each for name, each in actions.items() if len(each) > 1} == {}


def test_the_built_in_keys_do_not_clash_and_survive_a_round_trip() -> None:
    entries, problem = key_entries()
    assert problem is None
    assert all(entry.keys == entry.default for entry in entries)
    write(keys_toml(entries))
    assert load_keymap(contexts) == {}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("shift+ctrl+left", "ctrl+shift+left"),
        ("CTRL+Ctrl+X", "ctrl+x"),
        ("alt+X", "alt+shift+x"),
        ("shift+é", "É"),
        ("ctrl+space", "ctrl+space,ctrl+@"),
        ("ctrl+@", "ctrl+space,ctrl+@"),
    ],
)
def test_a_key_has_the_name_that_terminals_send(written: str, expected: str) -> None:
    write(f'run = "{written}"')
    assert load_keymap(contexts) == {"run": expected}


def test_only_keys_that_differ_are_in_the_map() -> None:
    write(
        'run = "R"\nrun-with = ["r", "ctrl+R"]\ndelete = ["d", "delete"]\n[table]\ndown = "down, j"\nup = ["up", "k"]\n'
    )
    expected = {"run": "R", "run-with": "r,ctrl+r", "table.down": "down,j", "table.up": "up,k"}
    assert load_keymap(contexts) == expected
    again, _ = key_entries()
    assert {entry.id: ",".join(entry.keys) for entry in again if entry.keys != entry.default} == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('rum = "x"', "no id is called 'rum'; did you mean 'run'?"),
        ('run = "foo"', "run: no key is called 'foo'"),
        ('run = "ctr+x"', "run: no key is called 'ctr+x'"),
        ('run = ""', "run: no key is called ''"),
        ("run = 3", "run: expected a key"),
        ("run = []", "run: expected a key"),
        ("run = [1]", "run: expected a key"),
        ("[run]\na = 1", "no id is called 'run.a'"),
        ('run = "shift+1"', "run: no key is called 'shift+1'"),
        ('run = "ctrl+i"', "run: most terminals send ctrl+i as tab"),
        ('run = "ctrl+["', "run: most terminals send ctrl+[ as escape"),
        ('run = "s"', "s is the key of both run and stop"),
        ('run = "down"', "↓ is the key of both run and table.down"),
        ('run = "left"', "← is the key of both"),
        ('close = "b"', "close: b could no longer be typed into a field"),
        ('question.yes = "enter"', "question.yes: enter is needed in questions"),
        ('form.accept = "ctrl+u"', "form.accept: ctrl+u is needed in forms"),
        ("run = ", "it is not TOML"),
        (b"run = '\xff'", "it is not TOML"),
        ("a = " + "[" * 50_000, "it is not TOML"),
        ('"' + "x" * 90_000 + '" = "y"', "no id is called"),
        ("#" * 200_000, "it cannot be read: larger than"),
        ('run = "\\u001b[2J"', r"run: no key is called '\x1b[2J'"),
    ],
)
def test_a_file_that_is_wrong_is_not_used_and_one_message_says_why(text: str | bytes, reason: str) -> None:
    write(text)
    with pytest.raises(LmconsoleError) as caught:
        load_keymap(contexts)
    message = str(caught.value)
    assert reason in message
    assert message.count("is not used") == 1
    assert "The default keys are in force. `lmconsole keys`" in message
    assert len(message) < 1_000


def test_a_pipe_does_not_block_and_a_missing_file_is_none() -> None:
    assert load_keymap(contexts) == {}
    write("")
    file = keys_file()
    assert file is not None
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(LmconsoleError, match="a named pipe"):
        load_keymap(contexts)


@pytest.mark.parametrize(
    ("key", "name"), [("slash", "/"), ("d,delete", "d, delete"), ("ctrl+at", "ctrl+@"), ("space", "space"), ("up", "↑")]
)
def test_keys_are_shown_as_they_are_printed_on_the_keyboard(key: str, name: str) -> None:
    assert key_name(key) == name


async def test_ones_own_keys_work_and_are_shown_everywhere(stage: Stage) -> None:
    write(
        'run = "f5"\nselect-all = "A"\nhelp = "h"\nstop = "r"\n[table]\ndown = ["down", "j"]\n[question]\nyes = "Y"\n'
    )
    stage.record(3, "running")
    async with stage.console(size=(120, 60)) as pilot:
        shown = await shows(pilot, "f5 Run", "A All", "r Stop", "h Help")
        assert " a All" not in shown
        footer = shown.splitlines()[-1].split()
        assert footer[:8] == ["space", "Select", "f5", "Run", "A", "All", "r", "Stop"], "in their usual order"
        await shows(pilot, "Press f5 to train it.")
        await pilot.press("j", "j", "space")
        await sees(pilot, selected, [3])
        await pilot.press("r")
        await shows(pilot, "Stop 1 run?", "Stop (Y)")
        await pilot.press("escape")
        await pilot.press("h")
        shown = await shows(pilot, "Keys")
        lines = [line for line in shown.splitlines() if "rain the selected experiments" in line]
        assert lines
        assert "f5" in lines[0]
        await pilot.press("escape")
        await shows_no_more(pilot, "Keys")
        helps = [command.help for command in pilot.app.get_system_commands(pilot.app.screen)]
        assert "Run: train the selected experiments, or the highlighted one (f5)" in helps
        await pilot.press("A", "slash", *"ra")  # letters that are keys are typed into the filter all the same
        await shows(pilot, "ra")
        await sees(pilot, listed, [])
        assert "Filter" not in screen(pilot).splitlines()[-1], "a key that is typed is no key"


async def test_a_wrong_file_is_reported_in_the_console_which_has_its_default_keys(stage: Stage) -> None:
    write('run = "s"')
    async with stage.console() as pilot:
        shown = await shows(pilot, "The default keys are in force.", "r Run")
        message = " ".join(shown.replace("▌", " ").split())  # where its lines end depends on the length of the path
        assert "keys.toml is not used: s is the key of both run and stop The default" in message
        await pilot.press("question_mark")
        assert "Keys" in await shows(pilot, "Keys")
        assert screen(pilot)


def test_the_command_prints_the_keys_and_what_is_wrong_with_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    app(["keys"], standalone_mode=False)
    out, err = capsys.readouterr()
    assert 'run = "r"' in out
    assert f"Save it as: {keys_file()}" in err
    write('run = "f5"')
    app(["keys", "--json"], standalone_mode=False)
    first = json.loads(capsys.readouterr().out)[0]
    assert {"id": "run", "keys": ["f5"], "default": ["r"]}.items() <= first.items()
    write('run = "s"')
    with pytest.raises(LmconsoleError, match="s is the key of both run and stop"):
        app(["keys"], standalone_mode=False)
    assert 'run = "r"' in capsys.readouterr().out


def test_the_documented_keys_are_those_of_the_code() -> None:
    entries, _ = key_entries()
    assert f"```toml\n{keys_toml(entries)}\n```" in DOCUMENT.read_text(encoding="utf-8"), (
        "paste what `lmconsole keys` prints"
    )
