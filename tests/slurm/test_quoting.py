"""SLURM reads each value of an option as it was given: from a script, and from the table [executor.slurm]."""

from pathlib import Path

import pytest
from slurm_rig import SlurmCluster

from lmconsole.engine.slurm.script import array_script, minutes, quote
from lmconsole.plan.executor import SlurmOptions

VALUES = [
    "plain",
    "two  words",
    " outer spaces ",
    "it's",
    'say "hi"',
    "'",
    '"',
    "\\",
    "back\\slash\\\\es",
    '\\"',
    "\\'",
    "ends with \\",
    "$(touch ran)",
    "`touch ran`",
    "$HOME ${PATH} %j %% !!",
    "#1",
    "a #b",
    "a# b",
    "--hold",
    "-x=y",
    "a;b&c|d>e<f*g?h[i]{j}~",
    "café 雪 🙂",
    "\u00a0no-break\u2028line",
    "x" * 500,
]


def submit(cluster: SlurmCluster, script: str, folder: Path) -> str:
    """Submit a script that is held, and return its number."""
    path = folder / "job.sh"
    path.write_text(script, encoding="utf-8")
    return cluster.run("sbatch", "--parsable", "--hold", str(path))


def test_each_value_is_read_as_it_was_given(cluster: SlurmCluster, tmp_path: Path) -> None:
    for value in VALUES:
        script = f"#!/bin/bash\n#SBATCH --comment={quote(value)}\n#SBATCH --job-name=after\nsleep 1\n"
        job = submit(cluster, script, tmp_path)
        assert cluster.run("squeue", "-h", "-j", job, "-o", "%j|%k") == f"after|{value}"
    assert not (tmp_path / "ran").exists()


def test_paths_and_options_of_an_array_are_read_as_they_were_given(cluster: SlurmCluster, tmp_path: Path) -> None:
    store = tmp_path / 'it\'s "a" #1 \\ $(touch ran) %j é'
    batch = "20261127T114107Z-0ad8eb"
    (store / ".slurm" / batch).mkdir(parents=True)
    options = SlurmOptions(sbatch={"comment": "a 'b' \"c\" #d", "time": "1:30:00"}, at_once=2)
    job = submit(cluster, array_script(options, store, batch, offset=7, count=3), tmp_path)
    found = cluster.run("squeue", "-h", "-j", job, "-o", "%Z|%k|%j|%K|%l")
    assert found == f"{store}/.slurm/{batch}|a 'b' \"c\" #d|lmconsole-{batch}.7|0-2%2|1:30:00"


@pytest.mark.parametrize("limit", ["90", "90:01", "0:30", "1:30:00", "1-12", "1-12:30", "1-12:30:01"])
def test_slurm_reads_a_time_limit_as_lmconsole_does(cluster: SlurmCluster, tmp_path: Path, limit: str) -> None:
    job = submit(cluster, f"#!/bin/bash\n#SBATCH --time={limit}\nsleep 1\n", tmp_path)
    assert minutes(cluster.run("squeue", "-h", "-j", job, "-o", "%l")) == minutes(limit)
