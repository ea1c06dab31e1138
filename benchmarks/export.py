"""Measure whole ``lmconsole export`` commands: everything of 12 runs, and the tables of 1,000.

The runs are those of ``store.py``. In the large store each has a seed of its own, so that none replaces another.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from result_rows import Row, show
from store import ENDINGS, make_store

P = ParamSpec("P")
R = TypeVar("R")

GOAL_FULL_S, GOAL_TABLE_S = 6.0, 3.0
"""Upper limits for everything of 12 runs, and for the table of 1,000."""


def measure(quick: bool) -> dict[str, Any]:
    """Return seconds and MiB of whole commands, each in fresh processes, and the share of the time in matplotlib."""
    many, repetitions = (120, 1) if quick else (1_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        make_store(small, 12)
        make_store(large, many)
        _make_all_count(large)
        out = str(Path(folder) / "out")
        commands = {
            "all": (small, ["--out", out]),
            "latex with pdf": (small, ["--out", out, "--format", "latex", "--figures", "pdf"]),
            "table": (large, ["-o", "-", "--format", "csv"]),
            "tables and data": (large, ["--out", f"{out}-large", "--format", "csv"]),
        }
        measured = {
            name: [_run(root, arguments) for _ in range(repetitions)] for name, (root, arguments) in commands.items()
        }
        profiles = [_profile_in_child(small, Path(folder) / f"profiled-{i}") for i in range(repetitions)]
    return {
        "runs": 12,
        "many_runs": many,
        "goal_full_s": GOAL_FULL_S,
        "goal_table_s": GOAL_TABLE_S,
        "commands": {
            name: {
                "wall_s": [each["wall_s"] for each in repeated],
                "median_s": statistics.median(each["wall_s"] for each in repeated),
                "peak_mib": max(each["peak_mib"] for each in repeated),
            }
            for name, repeated in measured.items()
        },
        "figures": profiles,
        "figures_share": statistics.median(each["figures_s"] / each["all_s"] for each in profiles),
    }


def _make_all_count(root: Path) -> None:
    """Give the runs of each experiment different seeds and let all of them finish, so that the export includes all."""
    seeds: dict[int, int] = {}
    logs = {path.parent.name[:2]: path.read_bytes() for path in sorted(root.glob("*/events.jsonl"), reverse=True)}
    assert ENDINGS[0] == "finished"
    for path in sorted(root.glob("*/run.json")):
        info = json.loads(path.read_text(encoding="utf-8"))
        number = info["experiment"]["id"]
        seeds[number] = info["seed"] = seeds.get(number, 0) + 1
        path.write_text(json.dumps(info), encoding="utf-8")
        log = path.parent / "events.jsonl"
        if b'"finished"' not in log.read_bytes()[-600:]:
            log.write_bytes(logs[path.parent.name[:2]])


def _run(root: Path, arguments: list[str]) -> dict[str, float]:
    """Run a command and return its seconds from start to end and its peak memory."""
    started_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "lmconsole", "export", "--runs", str(root), *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started_s
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"wall_s": wall_s, "peak_mib": usage.ru_maxrss / unit}


def _profile_in_child(root: Path, out: Path) -> dict[str, float]:
    process = subprocess.run(
        [sys.executable, __file__, "--profile", str(root), str(out)], stdout=subprocess.PIPE, check=True
    )
    seconds: dict[str, float] = json.loads(process.stdout)
    return seconds


def profile(root: Path, out: Path) -> dict[str, float]:
    """Return the seconds of a full export in this process, imports included, and the part spent on loading matplotlib,
    drawing the figures and encoding them."""
    started_s = time.perf_counter()
    from lmconsole.report import export, export_options
    from lmconsole.runs.store import Store

    imported_s = time.perf_counter()
    from lmconsole.report import draw

    figures_s = time.perf_counter() - imported_s

    def timed(function: Callable[P, R]) -> Callable[P, R]:
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            nonlocal figures_s
            called_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                figures_s += time.perf_counter() - called_s

        return call

    draw.draw_figure = timed(draw.draw_figure)
    draw.encode_figure = timed(draw.encode_figure)
    export.export(Store(root), out, export_options.ExportOptions())
    return {"all_s": time.perf_counter() - started_s, "figures_s": figures_s}


def rows(result: dict[str, Any]) -> list[Row]:
    """Return a row for each command."""
    goals = {"all": result["goal_full_s"], "table": result["goal_table_s"]}
    result_rows = []
    for name, command in result["commands"].items():
        runs = result["runs"] if name in ("all", "latex with pdf") else result["many_runs"]
        goal = goals.get(name)
        share = f", {result['figures_share']:.0%} of the time in matplotlib" if name == "all" else ""
        result_rows.append(
            Row(
                what=f"export of {runs:,} runs: {name}",
                measured=f"{command['median_s']:.2f} s, peak memory {command['peak_mib']:.0f} MiB{share}",
                goal=None if goal is None else f"< {goal:g} s",
                met=None if goal is None else command["median_s"] < goal,
            )
        )
    return result_rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--profile"]:
        print(json.dumps(profile(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        show(rows(measure("--quick" in sys.argv)))
