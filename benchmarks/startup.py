"""How long a person waits for the commands that only look, beside a Python that does nothing.

Commands take turns, so that whatever else the machine does hits all of them alike. They run from compiled bytecode, as
an installed package does; the first round, which may have to compile it, is not counted.
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

from store import make_store

GOAL_HELP_S = 0.25
"""Seconds within which ``--help`` is to be there."""
RUNS = 12
"""Runs in the store that ``list`` and ``status`` look at, 1,000 events each."""
BARE = "python -c pass"


def commands(root: Path) -> dict[str, list[str]]:
    """What is timed, by the name in the table; ``root`` is a store."""
    lmconsole = ["-m", "lmconsole"]
    return {
        BARE: ["-c", "pass"],
        "lmconsole --help": [*lmconsole, "--help"],
        "lmconsole list": [*lmconsole, "list", "--runs", str(root)],
        "lmconsole status": [*lmconsole, "status", "--runs", str(root)],
    }


def measure(quick: bool) -> dict[str, Any]:
    """Wall-clock and CPU seconds of every command, and the ratios to bare Python of the same round."""
    repetitions = 5 if quick else 25
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        make_store(root, RUNS)
        todo = commands(root)
        rounds = [{name: _time(todo[name], Path(folder)) for name in todo} for _ in range(repetitions + 1)][1:]
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
            for name in todo
        },
    }


def _time(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one Python, from before it is started until it is gone."""
    hidden = {"PYTHONDONTWRITEBYTECODE", "LMCONSOLE_RUNS", "LMCONSOLE_DATA"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    cpu_before_s, began = _cpu_s(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-P", *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - began, _cpu_s() - cpu_before_s


def _cpu_s() -> float:
    """CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def p90(values: Sequence[float]) -> float:
    """The value that nine of ten do not exceed."""
    return statistics.quantiles(values, n=10, method="inclusive")[-1]


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the table that ``run.py`` prints."""
    lines = []
    for name, found in result["commands"].items():
        goal = result["goal_help_s"] if name == "lmconsole --help" else None
        times = f"{found['median_s']:.3f} s (p90 {found['p90_s']:.3f} s)"
        ratio = "" if name == BARE else f", {found['median_ratio']:.1f} × bare Python"
        lines.append(
            {
                "what": f"starting {name}",
                "measured": times + ratio,
                "goal": None if goal is None else f"< {goal:g} s",
                "met": None if goal is None else found["median_s"] < goal,
            }
        )
    return lines
