"""Folders of any depth, and files that are no files, too large or full of nonsense: one line each, the rest is
imported."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from lmconsole.errors import StoreError
from lmconsole.importing.import_runs import ImportReport, import_runs
from lmconsole.importing.run_folders import MAX_DEPTH
from lmconsole.plan.load import load_plan
from lmconsole.runs.store import Store

ARGS: dict[str, object] = {"model": "lstm", "layers": 1, "optimizer": "adamw", "epochs": 2}


def write(folder: Path, arguments: object = ARGS, valid: str | bytes = "300\n200\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(arguments if isinstance(arguments, str) else json.dumps(arguments))
    (folder / "valid_ppl.txt").write_bytes(valid.encode() if isinstance(valid, str) else valid)
    return folder


def import_into(root: Path, source: Path | None = None) -> ImportReport:
    return import_runs(Store(root / "runs"), source or root / "logs", load_plan())


def replace_by(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "expected a file, found a named pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "expected a file, found a device"),
    "folder": (Path.mkdir, "expected a file, found a folder"),
    "huge": (huge, "larger than 16 MiB"),
    "link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "dangling link": (lambda path: path.symlink_to("nothing"), "no "),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "is not text"),
}
REQUIRED = ("args.json", "valid_ppl.txt")
OPTIONAL = ("train_ppl.txt", "train_loss.txt", "train_time.txt", "valid_time.txt", "test_ppl.txt", "test_loss.txt")


@pytest.mark.parametrize("name", [*REQUIRED, *OPTIONAL])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_one_problem_and_the_others_are_imported(tmp_path: Path, name: str, kind: str) -> None:
    make, reason = KINDS[kind]
    replace_by(name, make)(write(tmp_path / "logs/odd"))
    write(tmp_path / "logs/good", ARGS | {"seed": 1})
    report = import_into(tmp_path)
    (problem,) = report.problems
    assert problem.startswith(f"{tmp_path}/logs/odd: ")
    assert name in problem
    assert reason in problem
    assert list(report.imported) == [str(tmp_path / "logs/good")]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_readings_that_are_no_file_cost_no_run(tmp_path: Path, kind: str) -> None:
    make, reason = KINDS[kind]
    replace_by("gpu_memory.txt", make)(write(tmp_path / "logs/odd"))
    report = import_into(tmp_path)
    assert (len(report.imported), report.problems) == (1, [])
    (note,) = report.notes
    assert note.startswith("gpu_memory.txt")
    assert reason in note


@pytest.mark.parametrize(
    ("arguments", "valid", "reason"),
    [
        ('{"seed": ' + "9" * 100_000 + "}", "300\n", "args.json has an integer of 100,000 digits"),
        (ARGS | {"layers": "9" * 100_000}, "300\n", "layers: '999"),
        ("[" * 100_000, "300\n", "args.json is nested too deeply"),
        ('{"a":' * 100_000, "300\n", "args.json is nested too deeply"),
        (ARGS | {"model": ["lstm"]}, "300\n", "model: \"['lstm']\" is not one of"),
        (ARGS | {"model": "lstm\0"}, "300\n", "is not one of lstm, gpt1"),
        (ARGS | {"model": "\ud800"}, "300\n", "is not one of lstm, gpt1"),
        (ARGS | {"layers": 10**38}, "300\n", "layers"),
        (ARGS | {"epochs": 10**38}, "300\n", "epochs"),
        (ARGS | {"lr": 10**38}, "300\n", "learning_rate"),
        ('{"model": "lstm", "layers": Infinity, "optimizer": "adam"}', "300\n", "layers: 'inf'"),
        ('{"model": "lstm", "layers": 1, "optimizer": "adam", "lr": NaN}', "300\n", "learning_rate: 'nan'"),
        (ARGS, "1\n" * 200_000, "valid_ppl.txt has more than 100,000 numbers"),
        (ARGS, "300\0\n", "valid_ppl.txt line 1"),
        (ARGS, "-inf\n", "a perplexity of -inf is impossible"),
        (ARGS, "x" * 1_000_000, "valid_ppl.txt line 1"),
    ],
)
def test_nonsense_is_one_short_problem(tmp_path: Path, arguments: object, valid: str, reason: str) -> None:
    write(tmp_path / "logs/odd", arguments, valid)
    write(tmp_path / "logs/good", ARGS | {"seed": 1})
    report = import_into(tmp_path)
    (problem,) = report.problems
    assert reason in problem
    assert len(problem) < 400
    assert problem.isprintable()
    assert len(report.imported) == 1


def test_names_that_are_not_utf_8_or_control_the_terminal_are_escaped(tmp_path: Path) -> None:
    names = [b"a\xff\xfe", b"b\x1b[31m", b"c\nd", "e\u202e".encode()]
    for seed, name in enumerate(names):
        write(tmp_path / "logs" / os.fsdecode(name), ARGS | {"seed": seed})
    done = tiny.lmconsole("import", "logs", cwd=tmp_path, check=0)
    assert len(done.stdout.splitlines()) == len(names)
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")) == [".queue.lock"]
    assert len(import_into(tmp_path).imported_before) == len(names)


def test_runs_are_found_at_any_depth_and_links_form_no_loop(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    write(logs / "lstm/adam/1", ARGS | {"seed": 1})
    write(logs / "lstm/10", ARGS | {"seed": 10})
    write(logs / "lstm/2", ARGS | {"seed": 2})
    write(logs / ".hidden/3", ARGS | {"seed": 3})
    write(tmp_path / "elsewhere/4", ARGS | {"seed": 4})
    (logs / "linked").symlink_to(tmp_path / "elsewhere")
    (logs / "lstm/2/again").symlink_to(logs)
    (logs / "lstm/2/plots").mkdir()
    (logs / "notes/old").mkdir(parents=True)
    report = import_into(tmp_path)
    assert [Path(location).relative_to(logs).as_posix() for location in report.imported] == [
        "linked/4", "lstm/2", "lstm/10", "lstm/adam/1",
    ]  # fmt: skip
    assert report.problems == [f"{logs}/notes: no args.json"]


def test_settings_that_nested_runs_have_in_common_are_no_run(tmp_path: Path) -> None:
    write(tmp_path / "logs/1")
    (tmp_path / "logs/args.json").write_text("{}")
    report = import_into(tmp_path)
    assert (list(report.imported), report.problems) == ([str(tmp_path / "logs/1")], [])


def test_a_folder_that_is_too_deep_is_reported(tmp_path: Path) -> None:
    write(tmp_path.joinpath("logs", *["d"] * MAX_DEPTH), ARGS | {"seed": 1})
    write(tmp_path.joinpath("logs", *["e"] * (MAX_DEPTH + 1)), ARGS | {"seed": 2})
    report = import_into(tmp_path)
    assert len(report.imported) == 1
    (problem,) = report.problems
    assert problem.endswith(f"more than {MAX_DEPTH} levels of folders")


def test_runs_of_lmconsole_among_others_are_reported(tmp_path: Path) -> None:
    own = tiny.queue_tiny(tmp_path / "logs/own")
    write(tmp_path / "logs/theirs")
    report = import_into(tmp_path)
    assert len(report.imported) == 1
    assert any(f"{own.run}: already a run of lmconsole" in problem for problem in report.problems)
    tiny.queue_tiny(tmp_path / "logs/own", seed=2)
    report = import_into(tmp_path)
    assert any("own/runs: 2 runs in it are already runs of lmconsole; use --runs" in each for each in report.problems)


def test_the_store_itself_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "theirs")
    for _ in range(2):
        report = import_runs(Store(tmp_path / "runs"), tmp_path, load_plan())
        assert report.problems == []
    assert len(report.imported_before) == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("folder", "dangling link")])
def test_a_path_that_is_no_file_is_an_error(tmp_path: Path, kind: str) -> None:
    KINDS[kind][0](tmp_path / "runs.csv")
    with pytest.raises(StoreError, match=r"is not text|expected a file|larger|symbolic links|not CSV"):
        import_into(tmp_path, tmp_path / "runs.csv")


def test_many_problems_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"lstm,1,adamw,nan,300,{'r' * 500}{number}\n" for number in range(2_000))
    (tmp_path / "runs.csv").write_text(f"model,layers,optimizer,epoch,valid_ppl,run\n{rows}")
    done = tiny.lmconsole("import", "runs.csv", cwd=tmp_path, check=2)
    assert done.stderr.splitlines()[-1] == "not imported: 1,900 more"
    assert len(done.stderr) < 50_000
