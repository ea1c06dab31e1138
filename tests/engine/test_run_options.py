"""One table of options: the command line, the form and the dry run build the same request from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from typer.main import get_command

from lmconsole.cli import app
from lmconsole.engine.parse_request import parse_request
from lmconsole.engine.run_options import OPTIONS, RunRequest, flag
from lmconsole.errors import LmconsoleError
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.tui.actions import parse
from lmconsole.tui.options import ConsoleOptions
from lmconsole.tui.screens.run_form import RunForm


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_field_is_parsed_and_the_rest_keeps_its_default() -> None:
    given = {"ids": ["3", "1"], "preset": "demo", "epochs": "2", "seeds": "1..3,9", "max_tokens": "500", "jobs": "2"}
    request = parse_request({**given, "precision": "bf16", "on_finish": "true now", "fresh": True, "data": Path("d")})
    assert (request.ids, request.keep_order) == ((3, 1), True)
    assert (request.preset, request.seeds, request.max_tokens, request.jobs) == ("demo", (1, 2, 3, 9), 500, 2)
    assert request.overrides == {"epochs": 2, "precision": "bf16"}
    assert request.on_finish[0].endswith("/true")
    assert request.on_finish[1:] == ("now",)
    assert (request.fresh, request.data, request.embeddings, request.device) == (True, Path("d"), None, "auto")
    assert request.exports == Path("exports").absolute()
    assert parse_request({"ids": ["1"], "no_export": True}).exports is None


@pytest.mark.parametrize(
    ("ids", "numbers", "keep_order"),
    [
        (["1-3"], (1, 2, 3), False),
        (["2,1"], (2, 1), True),
        (["2", "1", "2"], (2, 1), True),
        (["3-4", "1"], (3, 4, 1), False),
    ],
)
def test_ids_are_numbers_and_ranges(ids: list[str], numbers: tuple[int, ...], keep_order: bool) -> None:
    request = parse_request({"ids": ids})
    assert (request.ids, request.keep_order) == (numbers, keep_order)


def test_all_names_every_experiment_in_no_order() -> None:
    request = parse_request({"everything": True})
    assert (request.ids, request.keep_order) == (tuple(range(1, 13)), False)


def test_all_problems_are_reported_at_once_each_under_its_flag() -> None:
    with pytest.raises(LmconsoleError) as caught:
        parse_request(
            {"ids": ["99", "x"], "preset": "demmo", "epochs": "1.5", "seeds": "", "jobs": "0", "max_tokens": "-1"}
        )
    lines = str(caught.value).splitlines()
    starts = [
        "no experiment 99",
        "'x'",
        "--preset: unknown preset 'demmo'",
        "--epochs 1.5",
        "--seeds ''",
        "--max-tokens -1",
        "--jobs 0",
    ]
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 7, lines


def test_a_path_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(LmconsoleError, match=r"--data .*: the name of this file is not UTF-8"):
        parse_request({"ids": ["1"], "data": Path(b"\xff".decode(errors="surrogateescape"))})


@pytest.mark.parametrize("no_export", [False, True])
def test_a_current_folder_that_json_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_export: bool
) -> None:
    folder = tmp_path / b"caf\xe9".decode(errors="surrogateescape")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(LmconsoleError, match="the name of this file is not UTF-8"):
        parse_request({"ids": ["1"], "no_export": no_export, "runs": tmp_path / "runs"})


@pytest.mark.parametrize("text", ["5", "+5", " 5", "0_5"])
def test_whole_numbers_are_spelled_as_python_reads_them(text: str) -> None:
    request = parse_request({"ids": ["1"], "epochs": text, "max_tokens": text, "jobs": text})
    assert (request.epochs, request.max_tokens, request.jobs) == (5, 5, 5)


@pytest.mark.parametrize("text", ["5.0", "1e1", "", "0x5", "9" * 5000])
@pytest.mark.parametrize("name", ["epochs", "max_tokens", "jobs"])
def test_other_spellings_of_numbers_are_refused(name: str, text: str) -> None:
    with pytest.raises(LmconsoleError, match="expected"):
        parse_request({"ids": ["1"], name: text})


def test_the_command_line_has_exactly_the_options_of_the_table() -> None:
    command = get_command(app).commands["run"]  # type: ignore[attr-defined]
    shown = {each.name: each for each in command.params}
    assert list(shown) == list(OPTIONS)
    for name, option in OPTIONS.items():
        assert shown[name].help == option.help
        assert shown[name].opts == (["ids"] if option.positional else [flag(name)])


def test_the_form_shows_the_options_with_a_placeholder_and_makes_the_same_request(tmp_path: Path) -> None:
    assert list(RunForm.FIELDS) == [name for name, option in OPTIONS.items() if option.form_placeholder]
    words = {"preset": "demo", "epochs": "3", "seeds": "1,2", "device": "cpu", "precision": "fp32", "jobs": "2"}
    words["no_test"] = "yes"
    options = ConsoleOptions(plan=load_plan(builtin_file()), store=tmp_path / "runs", exports=tmp_path / "exports")
    typed = parse_request({**words, "ids": ["4", "2"], "runs": options.store})
    expected = typed._replace(wait_for_active=True, keep_order=False, export_folder=options.exports)
    assert parse(options, [4, 2], words) == expected
    assert expected.no_test
    assert not parse(options, [4, 2], {**words, "no_test": "no"}).no_test
    with pytest.raises(LmconsoleError, match="--no-test maybe: expected yes or no"):
        parse(options, [4, 2], {**words, "no_test": "maybe"})


@pytest.mark.slow
def test_a_dry_run_repeats_the_request(tmp_path: Path) -> None:
    words = ["1", "--preset", "demo", "--epochs", "1", "--seeds", "7", "--dry-run", "--json"]
    request = json.loads(tiny.lmconsole("run", *words, cwd=tmp_path, check=0).stdout)["request"]
    assert request.keys() == set(RunRequest._fields)
    assert (request["ids"], request["epochs"], request["seeds"], request["runs"]) == ([1], 1, [7], "runs")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("--preset sc", ["scratch"]), ("--device cu", ["cuda"]), ("--precision ", ["auto", "fp32", "tf32", "bf16"])],
)
def test_the_shell_completes_choices(tmp_path: Path, typed: str, offered: list[str]) -> None:
    words = {"COMP_WORDS": f"lmconsole run 1 {typed}", "COMP_CWORD": "4", "_LMCONSOLE_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv[0] = 'lmconsole'; from lmconsole.cli import main; main()"
    command = [sys.executable, "-c", code]
    environment = tiny.environment(tmp_path) | words
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == offered
