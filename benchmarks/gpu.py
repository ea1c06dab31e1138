"""One GPU, measured in ten minutes: correctness first, then steps, then all twelve experiments.

    python benchmarks/gpu.py [--data DIR] [--budget-s 540] [--only PART ...] [--json FILE] [--cpu-rehearsal]

It needs torch, numpy, msgspec, safetensors and psutil; nvidia-ml-py, typer and rich are used where they are. Parts, in
order:

    head      the chunked loss of the head and its gradients beside whole logits in float64
    twins     all twelve with every fast path and with none: the losses of short runs by real workers
    ceilings  a copy on the device, and matrix products
    kernels   the LSTM's recurrence by type of number, the head by kernel and size of tile: which way is fastest
    steps     step times and memory of each shape beside the textbook's, in turns
    bf16      all twelve one after the other, as one whole command
    fp32      the same in fp32
    jobs      the same in bf16, four at a time

A part that fails, or for which no time is left, is recorded with the reason, and the others go on. The file is written
after every part. ``--only`` keeps what the file holds of other parts, so that a short lease can be spent in portions.
Without --data (or LMCONSOLE_DATA) tokens and tables are random, and perplexities mean nothing. The exit code is 1 if
something is wrong, 2 without a CUDA device, else 0. ``--cpu-rehearsal`` goes through all of it in tiny sizes on the
CPU: it tests this program and measures nothing.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # an installed lmconsole comes first

import torch
from gpu_device import ceilings, check_head, machine, multi_process_service
from gpu_goals import PAPER_EPOCHS, goals, shape, show, textbook_s
from gpu_kernels import compare_kernels
from gpu_runs import PAPER, REHEARSAL, Bench, verdict

import lmconsole
from lmconsole.lm import device as devices

SCHEMA = 1
RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("head", "twins", "ceilings", "kernels", "steps", "bf16", "fp32", "jobs")
CORRECTNESS = ("head", "twins")
SUITES = {"bf16": 0.5, "fp32": 0.3, "jobs": 0.2}
"""How the time that is left is shared out among the suites that are still to come."""
JOBS = 4
SPARE_S = 15.0
"""Left of the budget for the end."""
SETUP_S = 10.0
"""Of one run, until a suite has told."""
EVALUATION = 0.07
"""Of the training time of an epoch, when the length of a suite is foreseen."""


class NotMeasured(Exception):
    """Why a part has no result."""


class Measurement:
    """The parts of one call, the time they have, and the file they end up in."""

    def __init__(self, asked: argparse.Namespace, bench: Bench, document: dict[str, Any], file: Path | None) -> None:
        self.asked, self.bench, self.document, self.file = asked, bench, document, file
        self.sizes, self.where = bench.sizes, bench.where
        self.parts: dict[str, Any] = document["parts"]

    @property
    def left_s(self) -> float:
        """Seconds of the budget."""
        return float(self.asked.budget_s - (time.monotonic() - self.asked.began) - SPARE_S)

    def run(self) -> None:
        """Every part asked for, each guarded and each written down when it is over."""
        settings = self.bench.any
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "head": lambda: check_head(settings.vocabulary, settings.channels, self.sizes.head_rows, self.where),
            "twins": self.twins,
            "ceilings": lambda: ceilings(self.sizes.copy_mib, self.sizes.product, self.where),
            "kernels": self.kernels,
            "steps": self.steps,
            "bf16": lambda: self.suite("bf16", "bf16", 1),
            "fp32": lambda: self.suite("fp32", "fp32", 1),
            "jobs": lambda: self.suite("jobs", "bf16", JOBS),
        }
        for name in self.asked.only:
            self.part(name, work[name])

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """One part, whatever becomes of it."""
        print(f"{name} … ({max(self.left_s, 0):.0f} s left)", file=sys.stderr, flush=True)
        began = time.monotonic()
        entry: dict[str, Any] = {"date": _now()}
        try:
            if self.left_s <= 0:
                raise NotMeasured("no time was left")
            entry["result"] = work()
        except NotMeasured as error:
            entry["reason"] = str(error)
        except Exception as error:  # whatever broke here, the other parts go on
            entry["reason"] = f"{type(error).__name__}: {error}"
            entry["failed"] = True
        if "reason" in entry:
            print(f"{name}: {entry['reason']}", file=sys.stderr, flush=True)
        devices.give_back_memory(self.where)  # the card belongs to the workers now
        self.parts[name] = entry | {"seconds": time.monotonic() - began}
        self.write()

    def write(self) -> None:
        """The file, whole at every moment."""
        self.document["correct"] = correct(self.parts)
        self.document["goals"] = goals(self.document)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(temporary, self.file)

    def twins(self) -> dict[str, Any]:
        """fp32, then bf16; both together may take 40 % of what is left."""
        deadline = time.monotonic() + 0.4 * self.left_s
        found = {precision: self.bench.twins(precision, deadline) for precision in ("fp32", "bf16")}
        return {**found, "ok": verdict(each["ok"] for each in found.values())}

    def kernels(self) -> dict[str, Any]:
        """In a process of its own, since a capture that was broken off leaves torch in disorder."""
        with get_context("spawn").Pool(1) as pool:
            asked = pool.apply_async(compare_kernels, (self.bench.lstm, self.bench.any.vocabulary, self.where))
            return asked.get(max(self.left_s, 1))

    def steps(self) -> dict[str, Any]:
        """One experiment of each shape; then the other optimizers while there is plenty of time."""
        suites = any(name in self.asked.only for name in SUITES)
        deadline = time.monotonic() + (0.4 if suites else 1.0) * self.left_s
        found: dict[str, Any] = {}
        skipped: dict[str, str] = {}
        longest_s = 0.0
        for number in self.sizes.numbers:
            began = time.monotonic()
            if began + longest_s > deadline:
                skipped[str(number)] = "no time was left"
                continue
            try:
                found[str(number)] = self.bench.steps(number, deadline)
            except Exception as error:  # one shape that fails is no reason to lose the others
                skipped[str(number)] = f"{type(error).__name__}: {error}"
            longest_s = max(longest_s, time.monotonic() - began)
        if not found:
            raise RuntimeError(f"no experiment could be timed: {skipped}")
        return {"experiments": found, "skipped": skipped}

    def suite(self, name: str, precision: Any, jobs: int) -> dict[str, Any]:
        """All twelve, for as many epochs as are foreseen to fit, ten at most."""
        to_come = [each for each in SUITES if each in self.asked.only[self.asked.only.index(name) :]]
        share_s = self.left_s * SUITES[name] / sum(SUITES[each] for each in to_come)
        epoch_s, rest_s = self.foreseen(precision)
        if jobs > 1 and (alone := self.parts.get(precision, {}).get("result")):
            epochs = min(alone["epochs"], int((share_s - rest_s) / epoch_s))  # the same, to compare whole commands
        else:
            epochs = min(PAPER_EPOCHS, int((share_s - rest_s) / epoch_s))
        if epochs < 1:
            raise NotMeasured(
                f"one epoch of all twelve would take about {epoch_s + rest_s:.0f} s and {share_s:.0f} s were left: "
                f"--only {name} gives it all the time"
            )
        deadline = time.monotonic() + self.left_s
        with multi_process_service(self.bench.folder / "mps") if jobs > 1 else nullcontext(False) as mps:
            found = self.bench.suite(name, precision, epochs=epochs, jobs=jobs, deadline=deadline)
        return {
            **found,
            "mps": mps,
            "foreseen_s": epochs * epoch_s + rest_s,
            "textbook_s": textbook_s(self.parts, found),
        }

    def foreseen(self, precision: str) -> tuple[float, float]:
        """Seconds of one epoch of all twelve, and of everything that does not grow with the epochs."""
        measured = self.parts.get("steps", {}).get("result", {}).get("experiments")
        if not measured:
            raise NotMeasured("how long it takes cannot be foreseen without the part 'steps'")
        shapes = {shape(each["label"]): each[f"ours_{precision}_s"] for each in measured.values()}
        if missing := {shape(label) for label in self.bench.labels.values()} - shapes.keys():
            raise NotMeasured(f"how long it takes cannot be foreseen: no step time of {', '.join(sorted(missing))}")
        steps_s = sum(shapes[shape(label)] for label in self.bench.labels.values())
        epoch_s = steps_s * self.bench.steps_per_epoch * (1 + EVALUATION)
        known = [
            run["setup_s"]
            for name in SUITES
            for run in self.parts.get(name, {}).get("result", {}).get("runs", {}).values()
            if run["setup_s"] is not None
        ]
        setup_s = 1.3 * sum(known) / len(known) if known else SETUP_S
        return epoch_s, len(self.bench.labels) * setup_s + 2 * EVALUATION * epoch_s


def correct(parts: dict[str, Any]) -> bool | None:
    """Whether what was checked is right; None if something was not checked. A check
    that broke is not right."""
    found = (parts.get(name, {}) for name in CORRECTNESS)
    return verdict(
        entry["result"]["ok"] if "result" in entry else False if "failed" in entry else None for entry in found
    )


def slug(card: str) -> str:
    """A card's name as a file's: ``NVIDIA H100 80GB HBM3`` is ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def begin(asked: argparse.Namespace, card: dict[str, Any], data: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """A new document, with the parts that an earlier call left in ``file`` and that are not asked for now, if card,
    versions and kind of data are the same."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "date": _now(),
        "benchmark": "gpu",
        "rehearsal": asked.cpu_rehearsal,
        "budget_s": asked.budget_s,
        "machine": card,
        "data": data,
        "correct": None,
        "goals": [],
        "parts": {},
    }
    if file is not None and file.exists() and tuple(asked.only) != PARTS:
        before = json.loads(file.read_text(encoding="utf-8"))
        same = ("card", "torch", "lmconsole", "driver")
        alike = all(before["machine"][key] == card[key] for key in same)
        if before["schema"] == SCHEMA and before["data"] == data and alike:
            document["parts"] = {k: v for k, v in before["parts"].items() if k not in asked.only}
    return document


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure lmconsole on one NVIDIA GPU.")
    parser.add_argument("--data", type=Path, metavar="DIR", default=os.environ.get("LMCONSOLE_DATA") or None)
    parser.add_argument("--budget-s", type=float, default=540.0, metavar="S", help="seconds for everything (540)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="instead of benchmarks/results/CARD.json")
    parser.add_argument("--cpu-rehearsal", action="store_true", help="tiny, on the CPU: tests this program")
    asked = parser.parse_args()
    asked.only = [part for part in PARTS if part in asked.only]
    asked.data = None if asked.data is None else Path(asked.data)
    asked.began = time.monotonic()
    return asked


def main() -> int:
    """Everything asked for; 0 unless something is wrong."""
    asked = parse()
    if not asked.cpu_rehearsal and not torch.cuda.is_available():
        print("benchmarks/gpu.py: PyTorch finds no CUDA device; --cpu-rehearsal tests the program", file=sys.stderr)
        return 2
    where, sizes = ("cpu", REHEARSAL) if asked.cpu_rehearsal else ("cuda:0", PAPER)
    if asked.cpu_rehearsal:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait for each other are no hurry here
    # Children find the lmconsole that this process has found.
    os.environ["PYTHONPATH"] = str(Path(lmconsole.__file__).resolve().parents[1])
    card = machine(where)
    file: Path | None = asked.json
    if file is None and not asked.cpu_rehearsal:
        file = RESULTS / f"{slug(card['card'])}.json"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), sizes, where, asked.data)
        document = begin(asked, card, bench.described, file)
        Measurement(asked, bench, document, file).run()
    show(document)
    if file is not None:
        print(f"\nEvery number: {file}", file=sys.stderr)
    return 1 if document["correct"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
