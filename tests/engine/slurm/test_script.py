"""Job scripts: values are quoted, arrays cut, time limits read."""

import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.engine.slurm.batch import Batch, cut
from lmconsole.engine.slurm.script import LAST_JOB_MINUTES, array_script, last_script, minutes, probe_script, quote
from lmconsole.plan.executor import SlurmOptions

BATCH = "20261127T114107Z-0ad8eb"
STORE = Path("/scratch/me and $(you)/it's #1")


def directives(script: str) -> dict[str, str | None]:
    """Return the options of sbatch in a script, as they are written."""
    found: dict[str, str | None] = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH --"):
            name, separator, value = line.removeprefix("#SBATCH --").partition("=")
            assert name not in found, "sbatch takes the last one"
            found[name] = value if separator else None
    return found


def commands(script: str) -> list[str]:
    """Return the lines that bash runs."""
    return [line for line in script.splitlines() if line and not line.startswith("#")]


# quote()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("gpu:a100:1", "gpu:a100:1"),
        ("1-12:30:00", "1-12:30:00"),
        ("a=b", "a=b"),
        ("", '""'),
        ("two words", '"two words"'),
        ("it's", '"it\'s"'),
        ('say "hi"', r'"say \"hi\""'),
        ("back\\slash", r'"back\\slash"'),
        ('\\"', r'"\\\""'),
        ("$(id) `id` $HOME", '"$(id) `id` $HOME"'),
        ("#1", '"#1"'),
        ("a #b", '"a #b"'),
        ("~/x;y&z|w>v*?[1]", '"~/x;y&z|w>v*?[1]"'),
        ("café 雪 🙂", '"café 雪 🙂"'),
    ],
)
def test_a_value_is_quoted_if_it_has_to_be(value: str, written: str) -> None:
    assert quote(value) == written


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\0", "\x1b", "\x7f"])
def test_control_characters_are_refused(character: str) -> None:
    with pytest.raises(ValueError, match="control characters cannot be written into a job script"):
        quote(f"a{character}b")


@given(st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"])))
def test_a_quoted_value_has_one_meaning(value: str) -> None:
    """In double quotes, a quote ends the value, and a backslash is taken away from the character after it."""
    written = quote(value)
    if written != value:
        assert written[0] == written[-1] == '"'
        inner, found, escaped = written[1:-1], "", False
        for character in inner:
            assert escaped or character != '"'
            if escaped or character != "\\":
                found, escaped = found + character, False
            else:
                escaped = True
        assert not escaped
        assert found == value


# Scripts


def test_an_array_script() -> None:
    options = SlurmOptions(
        sbatch={"partition": "gpu", "comment": "it's $(id)", "exclusive": None},
        setup="module load python\nsource 'my env/activate'",
        at_once=8,
        warning_s=300,
    )
    script = array_script(options, STORE, BATCH, offset=1001, count=500)
    assert directives(script) == {
        "job-name": f"lmconsole-{BATCH}.1001",
        "array": "0-499%8",
        "chdir": f'"{STORE}/.slurm/{BATCH}"',
        "output": "1001_%a.log",
        "open-mode": "append",
        "ntasks": "1",
        "nodes": "1",
        "signal": "B:USR1@300",
        "requeue": None,
        "partition": "gpu",
        "comment": '"it\'s $(id)"',
        "exclusive": None,
    }
    *setup, start = commands(script)
    assert setup == ["module load python", "source 'my env/activate'"]
    module = ["-P", "-m", "lmconsole.engine.slurm.task", str(STORE), BATCH, "1001"]
    assert shlex.split(start) == ["exec", sys.executable, *module]
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert script.endswith("\n")


def test_without_options_nothing_is_asked_for_but_one_process_on_one_node() -> None:
    script = array_script(SlurmOptions(), STORE, BATCH, offset=0, count=1)
    assert directives(script)["array"] == "0-0"
    assert set(directives(script)) == {
        "job-name",
        "array",
        "chdir",
        "output",
        "open-mode",
        "ntasks",
        "nodes",
        "signal",
        "requeue",
    }
    assert len(commands(script)) == 1


def test_requeuing_can_be_turned_off() -> None:
    found = directives(array_script(SlurmOptions(sbatch={"no-requeue": None}), STORE, BATCH, offset=0, count=1))
    assert "no-requeue" in found
    assert "requeue" not in found


def test_the_last_job_asks_for_no_gpu_and_little_memory() -> None:
    options = SlurmOptions(
        sbatch={
            "partition": "gpu",
            "account": "lab",
            "gres": "gpu:1",
            "gpus-per-task": "1",
            "mem-per-cpu": "8G",
            "cpus-per-task": "16",
            "time": "2-0",
            "constraint": "a100",
            "exclusive": None,
        }
    )
    found = directives(last_script(options, STORE, BATCH))
    assert found["job-name"] == f"lmconsole-{BATCH}.last"
    assert (found["partition"], found["account"]) == ("gpu", "lab")
    assert (found["mem"], found["time"]) == ("2G", str(LAST_JOB_MINUTES))
    assert not {"gres", "gpus-per-task", "mem-per-cpu", "cpus-per-task", "constraint", "exclusive", "array"} & set(
        found
    )


def test_options_of_the_last_job_take_precedence() -> None:
    options = SlurmOptions(sbatch={"partition": "gpu"}, last={"partition": "short", "mem": "8G", "time": "5"})
    found = directives(last_script(options, STORE, BATCH))
    assert (found["partition"], found["mem"], found["time"]) == ("short", "8G", "5")


def test_the_last_job_has_the_default_limit_of_the_partition_if_the_tasks_have() -> None:
    assert "time" not in directives(last_script(SlurmOptions(), STORE, BATCH))


def test_the_probe_is_like_a_task_but_short() -> None:
    options = SlurmOptions(sbatch={"gres": "gpu:1", "time": "2-0"}, setup="module load python")
    script = probe_script(options, STORE / "p", BATCH, 30)
    found = directives(script)
    assert (found["gres"], found["time"], found["chdir"]) == ("gpu:1", "30", f'"{STORE}/p"')
    assert not {"array", "signal", "requeue"} & set(found)
    assert commands(script)[0] == "module load python"


# Arrays


@pytest.mark.parametrize(
    ("count", "size", "parts"),
    [
        (0, 1001, []),
        (1, 1001, [(0, 1)]),
        (1001, 1001, [(0, 1001)]),
        (1002, 1001, [(0, 1001), (1001, 1)]),
        (2500, 1000, [(0, 1000), (1000, 1000), (2000, 500)]),
        (3, 1, [(0, 1), (1, 1), (2, 1)]),
    ],
)
def test_arrays_are_cut(count: int, size: int, parts: list[tuple[int, int]]) -> None:
    assert list(cut(count, size)) == parts


def test_the_array_of_a_run_is_found_again() -> None:
    batch = Batch(user="me", host="login1", array_size=1_000, restarts=50)
    assert [batch.part_of(index) for index in (0, 999, 1000, 1999, 2000, 2499)] == [0, 0, 1000, 1000, 2000, 2000]


# Time limits


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("90", 90),
        ("90:00", 90),
        ("90:01", 91),
        ("0:30", 1),
        ("1:30:00", 90),
        ("1:30:01", 91),
        ("1-12", 36 * 60),
        ("1-12:30", 36 * 60 + 30),
        ("1-12:30:01", 36 * 60 + 31),
        ("0", 0),
        (None, None),
        ("", None),
        ("UNLIMITED", None),
        ("infinite", None),
        ("1:2:3:4", None),
        ("-5", None),
        ("1.5", None),
        ("5m", None),
        ("5\n", None),
    ],
)
def test_minutes(limit: str | None, expected: int | None) -> None:
    assert minutes(limit) == expected
