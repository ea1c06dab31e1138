"""Options for SLURM: the table [executor.slurm] of experiments.toml, and --sbatch."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.errors import PlanError
from lmconsole.plan.executor import OWN, RESERVED, SlurmOptions, parse_sbatch
from lmconsole.plan.load import load_plan


def options_of(tmp_path: Path, text: str) -> SlurmOptions:
    path = tmp_path / "mine.toml"
    path.write_text(f"include_builtin = true\n{text}", encoding="utf-8")
    return load_plan(path).slurm


def problems_of(tmp_path: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        options_of(tmp_path, text)
    prefix = f"{tmp_path / 'mine.toml'}: "
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return tuple(problem.removeprefix(prefix) for problem in caught.value.problems)


def slurm_problem(tmp_path: Path, line: str) -> str:
    """Return the one problem with a line of [executor.slurm]."""
    (problem,) = problems_of(tmp_path, f"[executor.slurm]\n{line}\n")
    return problem


EVERYTHING = r"""
[executor.slurm]
partition = "gpu"
account = "it's \"ours\" # $(id) `id` \\ é"
gres = "gpu:a100:1"
cpus-per-task = 4
mem_per_cpu = "2G"
nice = -5
exclusive = true
no-requeue = true
hold = false
setup = ["module load python/3.11", "source 'my env/bin/activate'"]
at_once = 8
restarts = 0
warning_s = 300

[executor.slurm.last]
partition = "short"
time = "0:30:00"
"""


def test_a_table_with_all_kinds_of_values(tmp_path: Path) -> None:
    assert options_of(tmp_path, EVERYTHING) == SlurmOptions(
        sbatch={
            "partition": "gpu",
            "account": 'it\'s "ours" # $(id) `id` \\ é',
            "gres": "gpu:a100:1",
            "cpus-per-task": "4",
            "mem-per-cpu": "2G",
            "nice": "-5",
            "exclusive": None,
            "no-requeue": None,
        },
        last={"partition": "short", "time": "0:30:00"},
        setup="module load python/3.11\nsource 'my env/bin/activate'",
        at_once=8,
        restarts=0,
        warning_s=300,
    )


@pytest.mark.parametrize("text", ["", "[executor]\n", "[executor.slurm]\n"])
def test_without_options_there_are_the_defaults(tmp_path: Path, text: str) -> None:
    assert options_of(tmp_path, text) == SlurmOptions()


def test_setup_is_kept_as_it_is_written(tmp_path: Path) -> None:
    shell = "if true; then\n\techo \"$HOME\" '#'\nfi\n"
    assert options_of(tmp_path, f"[executor.slurm]\nsetup = '''{shell}'''\n").setup == shell


WRONG_TABLES = [
    ("executor = 3", "[executor]: expected the table [executor.slurm]"),
    ("[[executor]]", "[executor]: expected the table [executor.slurm]"),
    ("[executor.pbs]", "[executor]: pbs: unknown key; known: slurm"),
    ("[executor]\nslurm = true", "[executor.slurm]: expected a table of options of sbatch"),
    ("[[executor.slurm]]", "[executor.slurm]: expected a table of options of sbatch"),
    ("[executor.slurm]\nlast = 1", "[executor.slurm]: last: expected a table of options of sbatch"),
    (
        "[executor.slurm.last]\nsetup = 'x'",
        "[executor.slurm.last]: setup: not an option of sbatch; write setup in [executor.slurm]",
    ),
]


@pytest.mark.parametrize(("text", "problem"), WRONG_TABLES)
def test_a_wrong_table_gets_one_message(tmp_path: Path, text: str, problem: str) -> None:
    assert problems_of(tmp_path, text) == (problem,)


WRONG_VALUES = [
    ('partition = ["a", "b"]', "partition: expected text, a number, true or false"),
    ("partition = { name = 'a' }", "partition: expected text, a number, true or false"),
    ("deadline = 2026-01-01", "deadline: expected text, a number, true or false"),
    ("time = 04:00:00", "time: expected text, a number, true or false"),
    (r'comment = "two\nlines"', "comment: expected one line without control characters"),
    (r'comment = "a\tb"', "comment: expected one line without control characters"),
    (r'comment = "\u001b[31m"', "comment: expected one line without control characters"),
    (r'comment = "\u0000"', "comment: expected one line without control characters"),
    ('Partition = "gpu"', "Partition: expected a long option of sbatch, such as partition"),
    ('"--partition" = "gpu"', "--partition: expected a long option of sbatch, such as partition"),
    ('"partition gpu" = true', "partition gpu: expected a long option of sbatch, such as partition"),
    (r'"a\nb" = 1', "expected a long option of sbatch, such as partition"),
    ("setup = 5", "setup: expected lines of shell, as text or a list of texts"),
    ("setup = ['a', 5]", "setup: expected lines of shell, as text or a list of texts"),
    (r'setup = "a\u0000b"', "setup: expected no NUL characters"),
    ("at_once = 0", "at_once: expected a whole number from 1 to 100,000"),
    ("at_once = 100001", "at_once: expected a whole number from 1 to 100,000"),
    ("at_once = true", "at_once: expected a whole number from 1 to 100,000"),
    ("at_once = 2.0", "at_once: expected a whole number from 1 to 100,000"),
    ('at_once = "4"', "at_once: expected a whole number from 1 to 100,000"),
    ("restarts = -1", "restarts: expected a whole number from 0 to 1,000"),
    ("warning_s = 0", "warning_s: expected a whole number from 1 to 65,535"),
    ("warning_s = 65536", "warning_s: expected a whole number from 1 to 65,535"),
    ("at-once = 2", "at-once: not an option of sbatch; write at_once in [executor.slurm]"),
    ("warning-s = 2", "warning-s: not an option of sbatch; write warning_s in [executor.slurm]"),
]


@pytest.mark.parametrize(("line", "problem"), WRONG_VALUES)
def test_a_wrong_value_gets_one_message(tmp_path: Path, line: str, problem: str) -> None:
    found = slurm_problem(tmp_path, line)
    assert found.startswith("[executor.slurm]: ")
    assert found.endswith(problem)


@pytest.mark.parametrize("table", ["executor.slurm", "executor.slurm.last"])
def test_options_that_lmconsole_sets_are_refused_with_the_reason(tmp_path: Path, table: str) -> None:
    lines = [f"[{table}]", *(f'{name} = "x"' for name in RESERVED)]
    found = problems_of(tmp_path, "\n".join(lines))
    reasons = {name: f": {why}" if why else "" for name, why in RESERVED.items()}
    assert sorted(found) == sorted(f"[{table}]: {name}: set by lmconsole{why}" for name, why in reasons.items())


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    text = "[executor.slurm]\nat_once = 0\narray = 1\n[executor.slurm.last]\ncomment = []\n"
    assert len(problems_of(tmp_path, text)) == 3


# --sbatch


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--partition=gpu", "--exclusive"], {"partition": "gpu", "exclusive": None}),
        (["--partition", "gpu", "--hold"], {"partition": "gpu", "hold": None}),
        (["--comment=a=b c"], {"comment": "a=b c"}),
        (["--comment="], {"comment": ""}),
        (["--comment=--hold"], {"comment": "--hold"}),
        (["--nice", "-5"], {"nice": "-5"}),
        (["--time=5", "--time=7"], {"time": "7"}),
    ],
)
def test_options_on_the_command_line(words: list[str], options: dict[str, str | None]) -> None:
    assert parse_sbatch(words) == options


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["gpu"], ["'gpu': expected long options of sbatch, such as --partition=gpu"]),
        (["-p", "gpu"], ["'-p': expected long options", "'gpu': expected long options"]),
        (["--time=5", "7"], ["'7': expected long options"]),
        (["--time", "5", "7"], ["'7': expected long options"]),
        (["--"], ["--: expected a long option of sbatch"]),
        (["--=5"], ["--: expected a long option of sbatch"]),
        (["--Time=5"], ["--Time: expected a long option of sbatch"]),
        (["--cpus_per_task=5"], ["--cpus_per_task: expected a long option of sbatch"]),
        (["--array=0-3"], ["--array: set by lmconsole: lmconsole numbers the runs; use at_once"]),
        (["--test-only"], ["--test-only: set by lmconsole: `lmconsole run --dry-run` does that"]),
        (["--comment=a\nb"], ["--comment: expected one line without control characters"]),
        (["--comment", "a\x7fb"], ["--comment: expected one line without control characters"]),
        (["--restarts=3"], ["--restarts: not an option of sbatch; write restarts in [executor.slurm]"]),
        (["--at-once=3", "--wait"], ["--at-once: not an option of sbatch", "--wait: set by lmconsole"]),
    ],
)
def test_wrong_options_on_the_command_line_get_one_message_each(words: list[str], problems: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # its arguments are the messages
        parse_sbatch(words)
    assert len(caught.value.args) == len(problems)
    assert all(found.startswith(start) for found, start in zip(caught.value.args, problems, strict=True))


@given(st.lists(st.text(st.sampled_from("-=ab 5_\n\x7fé"), max_size=8), max_size=4))
def test_any_words_are_options_or_a_value_error(words: list[str]) -> None:
    options: dict[str, str | None] = {}
    problems: tuple[object, ...] = ()
    try:
        options = parse_sbatch(words)
    except ValueError as error:
        problems = error.args
    assert all(isinstance(each, str) for each in problems)
    assert all(f"--{name}" in " ".join(words) for name in options)
    assert options or problems or not words


def test_the_command_line_takes_precedence_and_leaves_the_rest(tmp_path: Path) -> None:
    options = options_of(tmp_path, EVERYTHING)
    merged = options.merged(parse_sbatch(["--partition=big", "--time=5", "--cpus-per-task=16"]))
    assert merged.sbatch == {**options.sbatch, "partition": "big", "time": "5", "cpus-per-task": "16"}
    assert merged.cpus_per_task == 16
    assert (merged.last, merged.setup) == (options.last, options.setup)
    assert all(getattr(merged, name) == getattr(options, name) for name in OWN if name != "last")


@pytest.mark.parametrize(
    ("sbatch", "cpus"),
    [
        ({}, 1),
        ({"cpus-per-task": "4"}, 4),
        ({"cpus-per-gpu": "6"}, 6),
        ({"cpus-per-task": "4", "cpus-per-gpu": "6"}, 4),
        ({"cpus-per-task": "0"}, 1),
        ({"cpus-per-task": "many"}, 1),
        ({"cpus-per-task": None}, 1),
    ],
)
def test_cpus_of_a_task(sbatch: dict[str, str | None], cpus: int) -> None:
    assert SlurmOptions(sbatch=sbatch).cpus_per_task == cpus
