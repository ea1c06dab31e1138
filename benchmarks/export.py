"""How long exports take as whole commands: everything of twelve runs, and the tables of 1,000.

The runs are those of ``store.py``, with a seed of their own each in the large store, so that every one counts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from store import ENDINGS, make_store

GOAL_FULL_S, GOAL_TABLES_S = 6.0, 3.0
"""Seconds for everything of twelve runs, and for the tables of 1,000."""


def measure(quick: bool) -> dict[str, Any]:
    """Seconds and MiB of whole commands, each in fresh processes, and the share of the time that goes into figures."""
    many, repetitions = (120, 2) if quick else (1_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        few, large = Path(folder) / "few", Path(folder) / "large"
        make_store(few, 12)
        make_store(large, many)
        _own_seeds(large)
        out = str(Path(folder) / "out")
        commands = {
            "all": (few, ["--out", out]),
            "latex with pdf": (few, ["--out", out, "--format", "latex", "--figures", "pdf"]),
            "table": (large, ["-o", "-", "--format", "csv"]),
            "tables and data": (large, ["--out", f"{out}-large", "--format", "csv"]),
        }
        found = {
            name: [_run(root, arguments) for _ in range(repetitions)] for name, (root, arguments) in commands.items()
        }
        shares = [_profiled(few, Path(folder) / f"profiled-{i}") for i in range(repetitions)]
    return {
        "runs": 12,
        "many_runs": many,
        "goal_full_s": GOAL_FULL_S,
        "goal_tables_s": GOAL_TABLES_S,
        "commands": {
            name: {
                "wall_s": [each["wall_s"] for each in runs],
                "median_s": statistics.median(each["wall_s"] for each in runs),
                "peak_mib": max(each["peak_mib"] for each in runs),
            }
            for name, runs in found.items()
        },
        "figures": shares,
        "figures_share": statistics.median(each["figures_s"] / each["all_s"] for each in shares),
    }


def _own_seeds(root: Path) -> None:
    """Give every run of an experiment another seed, and the same ending: finished runs count."""
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
    """A whole command: seconds from start to end, and the most memory it held."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "lmconsole", "export", "--runs", str(root), *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"wall_s": wall_s, "peak_mib": usage.ru_maxrss / unit}


def _profiled(root: Path, out: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--profiled", str(root), str(out)], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def profiled(root: Path, out: Path) -> dict[str, float]:
    """Seconds of a full export in this process, imports included, and of them those in matplotlib: loading it, building
    the figures and encoding them."""
    began = time.perf_counter()
    from lmconsole.report import export
    from lmconsole.runs.store import Store

    imported = time.perf_counter()
    from lmconsole.report import draw

    spent = time.perf_counter() - imported

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent += time.perf_counter() - start

        return call

    draw.draw_figure = timed(draw.draw_figure)
    draw.encode_figure = timed(draw.encode_figure)
    export.export(Store(root), out, export.ExportOptions())
    return {"all_s": time.perf_counter() - began, "figures_s": spent}


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the table."""
    goals = {"all": result["goal_full_s"], "table": result["goal_tables_s"]}
    lines = []
    for name, each in result["commands"].items():
        runs = result["runs"] if name in ("all", "latex with pdf") else result["many_runs"]
        goal = goals.get(name)
        words = f"{each['median_s']:.2f} s, {each['peak_mib']:.0f} MiB"
        if name == "all":
            words += f", {result['figures_share']:.0%} of the time in matplotlib"
        lines.append(
            {
                "what": f"export of {runs:,} runs, {name}",
                "measured": words,
                "goal": None if goal is None else f"< {goal:g} s",
                "met": None if goal is None else each["median_s"] < goal,
            }
        )
    return lines


if __name__ == "__main__":
    if sys.argv[1:2] == ["--profiled"]:
        print(json.dumps(profiled(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        from run import show

        show(rows(measure("--quick" in sys.argv)))
