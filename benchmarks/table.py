"""Generate the README's performance table from the files in ``results``.

    python benchmarks/table.py [--check]

The files are those of ``gpu.py``, one for each GPU model, and of ``step.py`` or ``run.py``, one for each CPU model.
Rehearsals, quick runs and ``local.json``, which is not committed, are left out. ``--check`` changes nothing and exits
with code 1 if the table in the README does not match the files.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results"
BEGIN, END = "<!-- performance: begin, made by benchmarks/table.py -->\n", "<!-- performance: end -->"
LOCAL = "local.json"
PAPER_BATCH = 16
HEADER = "| device | what | measured | goal |\n|---|---|---|---|\n"
NOT_MEASURED = "not measured yet"
MODEL_NAMES = {"lstm": "LSTM", "gpt1": "GPT-1"}
CPU_GOALS = {("lstm", "fp32"): 1.3, ("lstm", "bf16"): 3.5, ("gpt1", "fp32"): 1.2, ("gpt1", "bf16"): 3.8}
"""Speed of a training step relative to plain PyTorch in fp32."""
KEYS_IN_0_1_0 = {
    "way": "implementation",
    "speedup_over_textbook_fp32": "speedup_over_baseline_fp32",
    "step_memory_of_textbook": "memory_relative_to_baseline",
    "share_of_ceiling": "share_of_measured_peak",
}
"""Present names of the keys that ``step.py`` wrote in version 0.1.0."""

Cells = tuple[str, str, str, str]
"""Cells of a row, as in ``HEADER``."""


class StepResult(NamedTuple):
    """A result of ``step.py`` and its date."""

    result: dict[str, Any]
    date: str


def table(results: Path) -> str:
    """Return the lines between the markers in the README."""
    documents = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json")) if file.name != LOCAL
    ]
    gpus = [document for document in documents if document.get("benchmark") == "gpu" and not document["rehearsal"]]
    steps = [found for document in documents if (found := _step_result(document)) is not None]
    rows = [row for step in steps for row in _cpu_rows(step)]
    rows += [row for gpu in gpus for row in _gpu_rows(gpu)]
    if not steps:
        rows.append(("CPU", "training step compared with plain PyTorch in fp32", NOT_MEASURED, ""))
    if not gpus:
        rows.append(("GPU", "all twelve experiments, ten epochs, bf16", NOT_MEASURED, "under 300 s"))
    for i in range(len(rows) - 1, 0, -1):  # name a device only in its first row
        if rows[i][0] == rows[i - 1][0]:
            rows[i] = "", *rows[i][1:]
    return HEADER + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _step_result(document: dict[str, Any]) -> StepResult | None:
    """Return what ``step.py`` measured on a CPU with the paper's sizes, in a file of its own or of ``run.py``."""
    result = document.get("results", {}).get("step") if "results" in document else document
    if not result or "models" not in result or result["batch_size"] != PAPER_BATCH or result["cuda"] is not None:
        return None
    return StepResult(result, document.get("date", "")[:10])


def _own_steps(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Return lmconsole's steps of one model, without the baseline's. Also reads files of version 0.1.0."""
    if "ways" in model:
        steps = [{KEYS_IN_0_1_0.get(key, key): value for key, value in step.items()} for step in model["ways"]]
        return [step for step in steps if step["implementation"] == "ours"]
    return [step for step in model["steps"] if step["implementation"] == "lmconsole"]


def _cpu_rows(step_result: StepResult) -> list[Cells]:
    result, date = step_result
    device = ", ".join(part for part in (result["device"], f"{result['threads']} threads", date) if part)
    rows = []
    for model, steps in result["models"].items():
        for step in _own_steps(steps):
            precision, speedup = step["precision"], step["speedup_over_baseline_fp32"]
            what = f"{MODEL_NAMES[model]}, one layer, {precision}: training step compared with plain PyTorch in fp32"
            measured = (
                f"{speedup:.2f}× as fast, {step['memory_relative_to_baseline']:.0%} of the memory, "
                f"{step['share_of_measured_peak']:.0%} of the measured matmul peak"
            )
            goal = CPU_GOALS[model, precision]
            rows.append((device, what, measured, f"≥ {goal:g}×" + ("" if speedup >= goal else " (not met)")))
    return rows


def _gpu_rows(gpu: dict[str, Any]) -> list[Cells]:
    """Return the goals of a GPU, followed by the training step of each shape that was timed."""
    device = f"{gpu['machine']['card']}, {gpu['date'][:10]}"
    rows = [
        (device, goal["what"], goal["measured"], goal["goal"] + (" (not met)" if goal["met"] is False else ""))
        for goal in gpu["goals"]
    ]
    steps = gpu["stages"].get("steps", {}).get("result", {}).get("experiments", {})
    for step in steps.values():
        fp32, bf16 = (step["baseline_fp32_s"] / step[f"ours_{precision}_s"] for precision in ("fp32", "bf16"))
        what = f"{step['label']}: training step in fp32 and in bf16 compared with plain PyTorch in fp32"
        rows.append((device, what, f"{fp32:.1f}× and {bf16:.1f}× as fast", ""))
    return rows


def with_table(readme: str, results: Path) -> str:
    """Return the text of the README with the table of ``results``."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table(results)}{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the README's performance table.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the table is out of date")
    arguments = parser.parse_args()
    readme = README.read_text(encoding="utf-8")
    expected = with_table(readme, RESULTS)
    if arguments.check and expected != readme:
        print(f"{README}: the performance table is out of date. Run python benchmarks/table.py.", file=sys.stderr)
        return 1
    if not arguments.check:
        README.write_text(expected, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
