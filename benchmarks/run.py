"""All benchmarks, one after the other: a table at the end, and every number that was measured in a JSON file.

    python benchmarks/run.py [--quick] [--json FILE] [--only NAME ...]

A benchmark is a file beside this one with ``measure(quick)``, which returns plain values for the JSON file, and
``rows(result)``, which returns its lines of the table. Each runs in a process of its own, so that none pays for what
another loaded.
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

from rich import box
from rich.console import Console
from rich.table import Table
from table import CPU_GOALS, PAPER_BATCH

from lmconsole import __version__

NAMES = ("startup", "store", "console", "export", "overhead", "jobs", "step")
SCHEMA = 1
PACKAGES = ("torch", "numpy", "pandas", "matplotlib", "msgspec", "typer", "rich")
"""What the timings depend on."""
PIPE_WIDTH = 150
"""Columns of the table where nobody says how wide it may be."""


def machine() -> dict[str, Any]:
    """What the numbers were measured on; unknown is None."""
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
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or None
    return platform.processor() or None


def run_apart(name: str, quick: bool) -> dict[str, Any]:
    """The benchmark ``name``, measured by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, __file__, "--apart", name, str(answer), *(["--quick"] if quick else [])]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def rows(name: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the table for one benchmark's result."""
    if name == "step":
        return step_rows(result)
    lines: list[dict[str, Any]] = importlib.import_module(name).rows(result)
    return lines


def step_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Our own ways of a training step, out of all that ``step.py`` measures."""
    lines = []
    for model, figures in result["models"].items():
        for way in figures["ways"]:
            if way["way"] != "ours":
                continue
            ratio, goal = way["speedup_over_textbook_fp32"], CPU_GOALS[model, way["precision"]]
            wanted = goal if result["cuda"] is None and result["batch_size"] == PAPER_BATCH else None
            same = way["speedup_over_textbook_same_precision"]
            over_same = "" if way["precision"] == "fp32" else f" ({same:.2f} × its {way['precision']})"
            lines.append(
                {
                    "what": f"training step, {model} {way['precision']}",
                    "measured": f"{ratio:.2f} × the textbook's fp32{over_same}, "
                    f"{way['step_memory_of_textbook']:.0%} of its memory, {way['share_of_ceiling']:.0%} of the ceiling",
                    "goal": None if wanted is None else f"≥ {wanted:g} ×",
                    "met": None if wanted is None else ratio >= wanted,
                }
            )
    return lines


def show(table_rows: list[dict[str, Any]]) -> None:
    """The table. A goal that was not met is a finding, not an error."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in ("What", "Measured", "Goal", "Met"):
        table.add_column(name, no_wrap=name != "Measured")
    words = {True: "[green]yes[/]", False: "[bold red]no[/]", None: "–"}
    for row in table_rows:
        table.add_row(row["what"], row["measured"], row["goal"] or "–", words[row["met"]])
    console.print()
    console.print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure lmconsole's speed and memory.")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: under a minute, and rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--apart", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Everything asked for."""
    asked = parse()
    if asked.apart:
        name, answer = asked.apart
        result = importlib.import_module(name).measure(asked.quick)
        Path(answer).write_text(json.dumps(result), encoding="utf-8")
        return
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": asked.quick,
        "machine": machine(),
        "seconds": {},
        "results": {},
        "table": [],
    }
    for name in asked.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        began = time.monotonic()
        result = run_apart(name, asked.quick)
        document["seconds"][name] = time.monotonic() - began
        document["results"][name] = result
        document["table"] += rows(name, result)
        if name == "step":
            importlib.import_module(name).show(result)
    show(document["table"])
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\nEvery number: {asked.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
