"""The README's performance table, made from the files in ``results``, and never from anything else.

    python benchmarks/table.py [--check]

Result files are those of ``gpu.py``, one a card, and of ``step.py`` or ``run.py``, one a CPU; rehearsals, quick runs
and ``local.json``, which is not committed, do not count. ``--check`` changes nothing and exits with 1 if the table in
the README is not what the files say.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results"
BEGIN, END = "<!-- performance: begin, made by benchmarks/table.py -->\n", "<!-- performance: end -->"
LOCAL = "local.json"
PAPER_BATCH = 16
HEAD = "| where | what | measured | goal |\n|---|---|---|---|\n"
NOTHING = "not measured yet"
NAMES = {"lstm": "LSTM", "gpt1": "GPT-1"}
CPU_GOALS = {("lstm", "fp32"): 1.3, ("lstm", "bf16"): 3.5, ("gpt1", "fp32"): 1.2, ("gpt1", "bf16"): 3.8}
"""Times the speed of plain PyTorch's step in fp32."""


def table(results: Path) -> str:
    """The lines between the markers."""
    documents = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json")) if file.name != LOCAL
    ]
    cards = [each for each in documents if each.get("benchmark") == "gpu" and not each["rehearsal"]]
    steps = [found for each in documents if (found := _step(each)) is not None]
    lines = [line for found, date in steps for line in _cpu_lines(found, date)]
    lines += [line for card in cards for line in _card_lines(card)]
    if not steps:
        lines.append(("CPU", "a training step, times as fast as plain PyTorch", NOTHING, ""))
    if not cards:
        lines.append(("GPU", "all twelve, ten epochs, bf16", NOTHING, "under 300 s"))
    for i in range(len(lines) - 1, 0, -1):  # where something was measured is said once
        if lines[i][0] == lines[i - 1][0]:
            lines[i] = "", *lines[i][1:]
    return HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _step(document: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """What ``step.py`` measured at the paper's sizes on a CPU, and when; alone, or as one of several in a file."""
    found = document.get("results", {}).get("step") if "results" in document else document
    if not found or "models" not in found or found["batch_size"] != PAPER_BATCH or found["cuda"] is not None:
        return None
    return found, document.get("date", "")[:10]


def _cpu_lines(found: dict[str, Any], date: str) -> list[tuple[str, str, str, str]]:
    where = ", ".join(part for part in (found["device"], f"{found['threads']} threads", date) if part)
    lines = []
    for model, figures in found["models"].items():
        for way in figures["ways"]:
            if way["way"] != "ours":
                continue
            what = f"{NAMES[model]}, one layer, {way['precision']}: a step, times as fast as plain PyTorch's fp32"
            measured = (
                f"{way['speedup_over_textbook_fp32']:.2f} ×, {way['step_memory_of_textbook']:.0%} of its memory, "
                f"{way['share_of_ceiling']:.0%} of the ceiling"
            )
            goal = CPU_GOALS[model, way["precision"]]
            words = "" if way["speedup_over_textbook_fp32"] >= goal else " (not met)"
            lines.append((where, what, measured + words, f"≥ {goal:g} ×"))
    return lines


def _card_lines(card: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The goals of a card, then the steps of each shape that was timed."""
    where = f"{card['machine']['card']}, {card['date'][:10]}"
    words = {True: "", False: " (not met)", None: ""}
    lines = [(where, goal["what"], goal["measured"] + words[goal["met"]], goal["goal"]) for goal in card["goals"]]
    steps = card["stages"].get("steps", {}).get("result", {}).get("experiments", {})
    for each in steps.values():
        fp32, bf16 = (each["baseline_fp32_s"] / each[f"ours_{precision}_s"] for precision in ("fp32", "bf16"))
        what = f"{each['label']}: a step in fp32 and in bf16, times as fast as plain PyTorch's fp32"
        lines.append((where, what, f"{fp32:.1f} × and {bf16:.1f} ×", ""))
    return lines


def with_table(text: str, results: Path) -> str:
    """The README with the table in its place."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table(results)}{END}{after}"


def main() -> int:
    """Write the table, or see whether it is current."""
    parser = argparse.ArgumentParser(description="Make the README's performance table.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is not current")
    asked = parser.parse_args()
    now = README.read_text(encoding="utf-8")
    wanted = with_table(now, RESULTS)
    if asked.check and wanted != now:
        print(f"{README}: the performance table is not current: run python benchmarks/table.py", file=sys.stderr)
        return 1
    if not asked.check:
        README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
