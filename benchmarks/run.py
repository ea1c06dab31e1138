"""Run the benchmarks one after the other, print a table and write every number to a JSON file.

    python benchmarks/run.py [--quick] [--json FILE] [--only NAME ...]

A benchmark is a module in this folder with two functions: ``measure(quick)`` returns its result as plain values for
JSON, and ``rows(result)`` the rows of the table. Each one is measured in a process of its own, so that none is affected
by modules that another has loaded.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from result_rows import Row, show
from table import CPU_GOALS, PAPER_BATCH

from lmconsole import __version__

NAMES = ("startup", "store", "console", "export", "overhead", "jobs", "step")
SCHEMA = 1
PACKAGES = ("torch", "numpy", "pandas", "matplotlib", "msgspec", "typer", "rich")
"""Packages whose versions affect the timings."""


def machine() -> dict[str, Any]:
    """Return the hardware and the versions of the software; unknown is None."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "lmconsole": __version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _cpu_name() -> str | None:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return platform.processor() or None


def measure_in_child(name: str, quick: bool) -> dict[str, Any]:
    """Return the result of the benchmark ``name``, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--child", name, str(file), *(["--quick"] if quick else [])]
        subprocess.run(command, check=True)
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return result


def rows(name: str, result: dict[str, Any]) -> list[Row]:
    """Return the rows of one benchmark."""
    if name == "step":
        return step_rows(result)
    module_rows: list[Row] = importlib.import_module(name).rows(result)
    return module_rows


def step_rows(result: dict[str, Any]) -> list[Row]:
    """Return a row for each model and precision of lmconsole's training step. Not in ``step.py``, which loads torch."""
    result_rows = []
    for model, measured in result["models"].items():
        for step in measured["steps"]:
            if step["implementation"] != "lmconsole":
                continue
            speedup, goal = step["speedup_over_baseline_fp32"], CPU_GOALS[model, step["precision"]]
            applies = result["cuda"] is None and result["batch_size"] == PAPER_BATCH
            same = step["speedup_over_baseline_same_precision"]
            over_same = "" if step["precision"] == "fp32" else f" ({same:.2f}× in {step['precision']})"
            result_rows.append(
                Row(
                    what=f"training step, {model} {step['precision']}",
                    measured=f"{speedup:.2f}× as fast as plain PyTorch in fp32{over_same}, "
                    f"{step['memory_relative_to_baseline']:.0%} of its memory, "
                    f"{step['share_of_measured_peak']:.0%} of the measured matmul peak",
                    goal=f"≥ {goal:g}×" if applies else None,
                    met=speedup >= goal if applies else None,
                )
            )
    return result_rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure lmconsole's speed and memory.")
    parser.add_argument("--quick", action="store_true", help="measure less, in about three minutes, and less precisely")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        name, file = arguments.child
        result = importlib.import_module(name).measure(arguments.quick)
        Path(file).write_text(json.dumps(result), encoding="utf-8")
        return
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": arguments.quick,
        "machine": machine(),
        "seconds": {},
        "results": {},
        "table": [],
    }
    table: list[Row] = []
    for name in arguments.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        started_s = time.monotonic()
        result = measure_in_child(name, arguments.quick)
        document["seconds"][name] = time.monotonic() - started_s
        document["results"][name] = result
        table += rows(name, result)
        if name == "step":
            importlib.import_module(name).show(result)
    document["table"] = msgspec.to_builtins(table)
    show(table)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\nEvery number: {arguments.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
