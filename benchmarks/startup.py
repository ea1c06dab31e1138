"""Measure how long ``--help`` and the commands that only read the store take, compared with an empty Python program.

Commands take turns, so that other load on the machine affects all of them alike. They run from compiled bytecode, as
an installed package does. The first round, which may have to compile it, is not counted.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result_rows import Row
from store import make_store

GOAL_HELP_S = 0.25
"""Upper limit for ``--help``."""
RUNS = 12
"""Runs in the store that ``list`` and ``status`` read, with 1,000 events each."""
BARE = "python -c pass"


def commands(root: Path) -> dict[str, list[str]]:
    """Return the arguments of Python for each command, by its name in the table; ``root`` is a store."""
    lmconsole = ["-m", "lmconsole"]
    return {
        BARE: ["-c", "pass"],
        "lmconsole --help": [*lmconsole, "--help"],
        "lmconsole list": [*lmconsole, "list", "--runs", str(root)],
        "lmconsole status": [*lmconsole, "status", "--runs", str(root)],
    }


def measure(quick: bool) -> dict[str, Any]:
    """Return wall-clock and CPU seconds of every command, and the median ratio to bare Python in the same round."""
    repetitions = 3 if quick else 25
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        make_store(root, RUNS)
        arguments = commands(root)
        rounds = [{name: _time(arguments[name], Path(folder)) for name in arguments} for _ in range(repetitions + 1)]
    rounds = rounds[1:]
    return {
        "repetitions": repetitions,
        "runs": RUNS,
        "goal_help_s": GOAL_HELP_S,
        "commands": {
            name: {
                "median_s": statistics.median(each[name][0] for each in rounds),
                "p90_s": p90([each[name][0] for each in rounds]),
                "median_cpu_s": statistics.median(each[name][1] for each in rounds),
                "median_ratio": statistics.median(each[name][0] / each[BARE][0] for each in rounds),
                "wall_s": [each[name][0] for each in rounds],
                "cpu_s": [each[name][1] for each in rounds],
            }
            for name in arguments
        },
    }


def _time(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of one Python process, from before its start to its end."""
    hidden = {"PYTHONDONTWRITEBYTECODE", "LMCONSOLE_RUNS", "LMCONSOLE_DATA"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    cpu_before_s, started_s = _cpu_s(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-P", *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started_s, _cpu_s() - cpu_before_s


def _cpu_s() -> float:
    """Return the CPU seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def p90(values: Sequence[float]) -> float:
    """Return the 90th percentile."""
    return statistics.quantiles(values, n=10, method="inclusive")[-1]


def rows(result: dict[str, Any]) -> list[Row]:
    """Return a row for each command."""
    result_rows = []
    for name, command in result["commands"].items():
        goal = result["goal_help_s"] if name == "lmconsole --help" else None
        ratio = "" if name == BARE else f", {command['median_ratio']:.1f}× bare Python"
        result_rows.append(
            Row(
                what=f"startup: {name}",
                measured=f"{command['median_s']:.3f} s (p90 {command['p90_s']:.3f} s){ratio}",
                goal=None if goal is None else f"< {goal:g} s",
                met=None if goal is None else command["median_s"] < goal,
            )
        )
    return result_rows
