"""Benchmark lmconsole on one NVIDIA GPU in nine minutes, the most important stages first.

    python benchmarks/gpu.py [--stages A,B,...] [--budget-s 545] [--suite-s 400] [--data DIR] [--json FILE | --out DIR]
                             [--rehearsal]

Stages, in this order; a shape is a model and its number of layers:

    look         driver, tools, disks and packages of the machine, memory of a CUDA context
    gauge        lmconsole's readings of the GPU and nvidia-smi's, idle and under load
    smoke        a captured step of each shape in bf16, timed and profiled; a failure ends the program
    suite        all twelve experiments in bf16 for ten epochs, by one command; no step is skipped or extrapolated
    head         loss and gradients of the linear cross-entropy, compared with float64
    steps        step time and memory of each shape, compared with plain PyTorch
    reference    short runs of all twelve on the fast paths and on the reference implementation, in bf16
    sdpa         attention by FlashAttention and by cuDNN over a run
    peaks        peak copy bandwidth and peak matmul throughput
    gang         several experiments concurrently on CUDA streams of one process
    kernels      LSTM recurrence by data type, linear cross-entropy by kernel and tile size
    split        fp32 logits by one matmul, and by several of lower precision
    jobs         all twelve in bf16, four at a time
    smoke32, reference32, suite32    the same in fp32; suite32 trains as many epochs as fit into --suite-s
    tests        the tests that need a GPU, if pytest and its plugins are installed

A stage is a process of its own. At its time limit, or when the budget is spent, it is killed with everything that it
started. Its result is written to the file before the next stage begins. Stages of earlier calls stay in the file if
GPU, versions and data are the same, so several short calls can fill one file.

The exit code is 1 if a check failed, 2 if nothing could be measured, and 0 otherwise.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_estimates import estimates
from gpu_goals import SUITES, correct, epochs_that_fit, extrapolated, goals
from gpu_packages import CARRIED, IMAGE, OPTIONAL, missing, missing_message
from gpu_table import table

SCHEMA = 3
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TIME_LIMITS_S = {
    "look": 60.0,
    "gauge": 40.0,
    "smoke": 120.0,
    "suite": 0.0,
    "head": 60.0,
    "steps": 150.0,
    "reference": 120.0,
    "sdpa": 60.0,
    "peaks": 30.0,
    "gang": 70.0,
    "kernels": 90.0,
    "split": 40.0,
    "jobs": 200.0,
    "smoke32": 120.0,
    "reference32": 120.0,
    "suite32": 0.0,
    "tests": 240.0,
}
"""Stages, most important first. Those in ``SUITES`` have ``--suite-s`` instead."""
ALIASES = {"twins": "reference", "twins32": "reference32", "ceilings": "peaks"}
"""Names of stages in version 0.1.0."""
PREPARE_S = 120.0
CLEANUP_S = 5.0
"""Part of the budget for the table, and for deleting what the suites wrote."""
MIN_STAGE_S = 3.0
"""A stage with less time than this is not started."""


class BudgetSpentError(Exception):
    """The budget is spent while the program itself is still waiting."""


class Benchmark:
    """One call: its stages, its time, and the document with the results."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.deadline: float = options.started + options.budget_s - CLEANUP_S
        self.document: dict[str, Any] = {}
        self.file: Path | None = None

    @property
    def left_s(self) -> float:
        """Seconds for stages, without the grace period of the last one."""
        from gpu_process import GRACE_S  # needs psutil, which may be missing when this module is imported

        return self.deadline - time.monotonic() - GRACE_S

    def run(self) -> int:
        """Measure every stage, print the table, and return the exit code."""
        try:
            prepared = self.measure("prepare", PREPARE_S)
        except BudgetSpentError:
            prepared = {"reason": "the budget is spent"}
        if "result" not in prepared:
            log(f"benchmarks/gpu.py: nothing measured: {prepared['reason']}")
            if prepared.get("failed"):
                log(prepared["trace"] if "trace" in prepared else prepared.get("log", ""))
            return 2
        self.start_document(prepared["result"])
        smoke_failed = False
        try:
            for name in self.options.stages:
                if smoke_failed := not self.run_stage(name):
                    traces = "" if self.file is None else f" The tracebacks are in {self.file}."
                    log(f"{name} failed, so the remaining stages are skipped.{traces}")
                    break
        except BudgetSpentError:
            log("the budget is spent")
        except KeyboardInterrupt:
            log("interrupted")
        print(table(self.document, None if self.file is None else str(self.file)), flush=True)
        return 1 if smoke_failed or self.document["correct"] is False else 0

    def start_document(self, prepared: dict[str, Any]) -> None:
        """Start the document with the stages of an earlier call, if they are comparable."""
        options, name = self.options, f"{slug(prepared['machine']['card'])}.json"
        earlier_files: list[Path] = []
        if options.json is not None:
            earlier_files = [options.json]
        elif options.out is not None:
            earlier_files = [options.out / name, RESULTS / name]
        elif not options.rehearsal:
            earlier_files = [RESULTS / name]
        self.file = earlier_files[0] if earlier_files else None
        self.document = {
            "schema": SCHEMA,
            "date": utc_now(),
            "benchmark": "gpu",
            "rehearsal": options.rehearsal,
            "code": code_hash(),
            "budget_s": options.budget_s,
            "prepare_s": time.monotonic() - options.started,
            **prepared,
            "stages": {},
        }
        earlier = next((file for file in earlier_files if file.exists()), None)
        if earlier is not None:
            before = json.loads(earlier.read_text(encoding="utf-8"))
            if comparable(before, self.document):
                self.document["stages"] = before["stages"]
                log(f"kept from {earlier}: {', '.join(before['stages'])}")
        self.write()

    def run_stage(self, name: str) -> bool:
        """Measure one stage and write its result. Return False if it is a smoke test and failed."""
        if self.left_s < MIN_STAGE_S:
            self.document["stages"].setdefault(name, self.entry({"reason": "no time was left"}, 0.0))
            log(f"{name}: no time was left")
            self.write()
            return True
        began = time.monotonic()
        stage_limit_s = self.options.suite_s if name in SUITES else TIME_LIMITS_S[name]
        limit_s = min(stage_limit_s, self.left_s)
        log(f"{name} … (at most {limit_s:.0f} s, {self.deadline - began:.0f} s left for all stages)")
        outcome = self.measure(name, limit_s)
        if outcome.get("reason", "").startswith("killed") and limit_s == stage_limit_s:
            outcome["failed"] = True  # it had the time that it should need
        entry = self.document["stages"][name] = self.entry(outcome, time.monotonic() - began)
        log(f"{name}: {entry.get('reason', 'done')}, {entry['seconds']:.1f} s")
        self.write()
        if name not in ("smoke", "smoke32"):
            return True
        return not entry.get("failed") and entry.get("result", {}).get("ok") is not False

    def measure(self, name: str, limit_s: float) -> dict[str, Any]:
        """Return the outcome of a stage that may take ``limit_s`` seconds."""
        from gpu_process import Stage, run_isolated

        epochs = self.suite32_epochs(limit_s) if name == "suite32" else self.options.epochs
        if not epochs:
            return {"reason": f"not even one epoch fits into {limit_s:.0f} s, or the stage 'steps' is missing"}
        stage = Stage(
            name=name,
            folder=self.folder,
            deadline=time.monotonic() + limit_s,
            epochs=epochs,
            data=self.options.data,
            rehearsal=self.options.rehearsal,
        )
        return run_isolated(stage, f"gpu_stages:{name}")

    def suite32_epochs(self, limit_s: float) -> int:
        """Return how many epochs in fp32 fit; 0 if none does or if that is unknown."""
        steps_per_epoch = self.document["data"]["steps_per_epoch"]
        fit = epochs_that_fit(self.document["stages"], self.document["labels"], steps_per_epoch, limit_s)
        return max(min(fit or 0, int(self.options.epochs)), 0)

    def entry(self, outcome: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return a stage's entry in the document."""
        return {"date": utc_now(), "code": self.document["code"], **outcome, "seconds": seconds}

    def write(self) -> None:
        """Evaluate the document and write it; the file is complete at any moment."""
        stages = self.document["stages"]
        self.document |= {
            "correct": correct(stages),
            "goals": goals(self.document),
            "estimates": estimates(stages),
            "extrapolated": extrapolated(stages),
        }
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(temporary, self.file)


def comparable(before: dict[str, Any], document: dict[str, Any]) -> bool:
    """Return whether two documents are of the same GPU, versions and data."""
    if before.get("schema") != SCHEMA or before["rehearsal"] != document["rehearsal"]:
        return False
    keys = ("card", "torch", "lmconsole", "driver", "python")
    return before["data"] == document["data"] and all(before["machine"][k] == document["machine"][k] for k in keys)


def slug(card: str) -> str:
    """Return a GPU's name as part of a file name: ``NVIDIA H100 80GB HBM3`` is ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def code_hash() -> str:
    """Return a hash of the package's code, since a checkout may change without a new version."""
    found = hashlib.sha256()
    for file in sorted((HERE.parent / "lmconsole").rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def log(text: str) -> None:
    """Print to stderr; stdout has the table only."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def raising_at(when: float) -> Iterator[None]:
    """Raise BudgetSpentError at ``when``, even during a blocking call, and SystemExit on SIGTERM."""

    def spent(*_: object) -> None:
        raise BudgetSpentError

    def terminated(number: int, *_: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGALRM, spent)
    signal.signal(signal.SIGTERM, terminated)
    signal.setitimer(signal.ITIMER_REAL, max(when - time.monotonic(), 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def stage_names(text: str) -> list[str]:
    """Return the stages in ``text``, which are separated by commas, each once."""
    names = [ALIASES.get(name.strip(), name.strip()) for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in TIME_LIMITS_S]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}. Stages: {', '.join(TIME_LIMITS_S)}.")
    return list(dict.fromkeys(names))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmark lmconsole on one NVIDIA GPU.")
    add = parser.add_argument
    add(
        "--stages",
        type=stage_names,
        metavar="A,B,...",
        default=list(TIME_LIMITS_S),
        help=f"run these stages, in this order (all: {','.join(TIME_LIMITS_S)})",
    )
    add("--budget-s", type=float, default=545.0, metavar="S", help="stop after S seconds in all (545)")
    add("--suite-s", type=float, default=400.0, metavar="S", help="stop a suite after S seconds (400)")
    add("--epochs", type=int, default=10, metavar="N", help="train N epochs in the suite (10)")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        default=os.environ.get("LMCONSOLE_DATA") or None,
        help="read tokens and embedding tables from DIR ($LMCONSOLE_DATA); missing ones are random",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--json", type=Path, metavar="FILE", help="write FILE instead of benchmarks/results/GPU.json")
    place.add_argument("--out", type=Path, metavar="DIR", help="write DIR/GPU.json")
    add("--rehearsal", action="store_true", help="test this program on the CPU, at tiny sizes")
    options = parser.parse_args()
    for name in ("data", "json", "out"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, Path(path).absolute())
    options.started = time.monotonic()
    return options


def main() -> int:
    options = parse_options()
    if requirements := missing(IMAGE | CARRIED):
        log(missing_message(requirements))
        return 2
    if requirements := missing(OPTIONAL):
        log(f"Memory of processes, power and energy are unknown without {', '.join(requirements)}.")
    # Stages and the commands they start measure this checkout, and find the carried packages.
    folders = [str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(folder).absolute()) for folder in folders if folder)
    if options.rehearsal:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # spinning threads would slow down the others
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        benchmark = Benchmark(options, Path(folder))
        with raising_at(benchmark.deadline + CLEANUP_S / 2):
            return benchmark.run()


if __name__ == "__main__":
    sys.exit(main())
