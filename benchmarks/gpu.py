"""One NVIDIA GPU in nine minutes: the most valuable first, each stage on disk before the next begins.

    python benchmarks/gpu.py [--stages a,b,...] [--budget-s 545] [--suite-s 400] [--data DIR] [--json FILE | --out DIR]

Stages, in the order of their value:

    look         the machine: driver, tools, disk, versions, the price of a CUDA context
    gauge        our readings of NVML next to nvidia-smi's, idle and under load
    smoke        each shape captured, timed and profiled in bf16; if one fails, the program ends with exit code 1
    suite        all twelve in bf16, ten epochs, one after the other, as one whole command; every step is trained
    head         the head's chunked loss and its gradients, compared with whole logits in float64
    steps        step times and memory of each shape, compared with plain PyTorch
    reference    short runs of all twelve by the fast paths and by the reference implementation, in bf16
    sdpa         which attention backend is faster over a run, flash or cuDNN
    peaks        a copy on the device, and peak matmul throughput
    gang         runs side by side on streams of one process
    kernels      the LSTM's recurrence by type of number, the head by kernel and size of tile
    split        the head's logits in fp32, as one product and as several of shorter numbers
    jobs         all twelve in bf16, four at a time
    smoke32, reference32, suite32    the same in fp32; suite32 trains as many epochs as fit into --suite-s
    tests        the tests that need a GPU, where pytest and hypothesis are installed

A stage is a process of its own. At its time limit, or when the budget is spent, it is killed with everything that it
started. The file keeps the stages of earlier calls that are not measured again, if card, versions and data are the
same, so that two short calls fill one file. The exit code is 1 if something is wrong, 2 if nothing can be measured
here, else 0.
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

from gpu_packages import CARRIED, IMAGE, USEFUL, explain, missing

SCHEMA = 2
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SUITES = ("suite", "suite32")
"""Stages that last ``--suite-s`` seconds at most."""
LIMITS_S = {
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
"""The stages in the order of their value, and how long each may last."""
ALIASES = {"twins": "reference", "twins32": "reference32", "ceilings": "peaks"}
PREPARE_S = 120.0
END_S = 5.0
"""Left of the budget for the table, and for deleting what the suites wrote."""
LEAST_S = 3.0
"""A stage with less time than this is not begun."""


class BudgetSpentError(Exception):
    """The budget is spent, and this program itself was still waiting for something."""


class Benchmark:
    """One call: its stages, the time they have, and the document they end up in."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked, self.folder = asked, folder
        self.ends = asked.began + asked.budget_s - END_S
        self.document: dict[str, Any] = {}
        self.file: Path | None = None

    @property
    def left_s(self) -> float:
        """Seconds that a stage may be told to last, its grace left out."""
        from gpu_process import GRACE_S

        return float(self.ends - time.monotonic() - GRACE_S)

    def run(self) -> int:
        """Measure every stage asked for, and print the table. Returns the exit code."""
        try:
            prepared = self.measure("prepare", PREPARE_S)
        except BudgetSpentError:
            prepared = {"reason": "the budget is spent"}
        if "result" not in prepared:
            say(f"benchmarks/gpu.py: nothing was measured: {prepared['reason']}")
            if prepared.get("failed"):
                say(prepared["trace"] if "trace" in prepared else prepared.get("log", ""))
            return 2
        self.begin(prepared["result"])
        smoke_failed = False
        try:
            for name in self.asked.stages:
                if smoke_failed := not self.stage(name):
                    say(f"{name} failed, and the rest would measure the wrong thing{self.traces()}")
                    break
        except BudgetSpentError:
            say("the budget is spent")
        except KeyboardInterrupt:
            say("interrupted")
        from gpu_table import table

        print(table(self.document, None if self.file is None else str(self.file)), flush=True)
        return 1 if smoke_failed or self.document["correct"] is False else 0

    def traces(self) -> str:
        """Where the traces of a failure are, for the end of a sentence."""
        return "" if self.file is None else f": the traces are in {self.file}"

    def begin(self, prepared: dict[str, Any]) -> None:
        """Start the document, with the stages that an earlier call left."""
        card = prepared["machine"]["card"]
        places = [self.asked.json]
        if self.asked.out is not None:
            places = [self.asked.out / f"{slug(card)}.json", RESULTS / f"{slug(card)}.json"]
        elif self.asked.json is None:
            places = [None if self.asked.rehearsal else RESULTS / f"{slug(card)}.json"]
        self.file = places[0]
        self.document = {
            "schema": SCHEMA,
            "date": now(),
            "benchmark": "gpu",
            "rehearsal": self.asked.rehearsal,
            "code": code(),
            "budget_s": self.asked.budget_s,
            "prepare_s": time.monotonic() - self.asked.began,
            **prepared,
            "stages": {},
        }
        earlier = next((place for place in places if place is not None and place.exists()), None)
        if earlier is not None:
            before = json.loads(earlier.read_text(encoding="utf-8"))
            if comparable(before, self.document):
                self.document["stages"] = before["stages"]
                say(f"kept from {earlier}: {', '.join(before['stages'])}")
        self.write()

    def stage(self, name: str) -> bool:
        """Measure one stage and write it down. Returns False if it is a smoke test that failed: the rest would measure
        the wrong thing."""
        if self.left_s < LEAST_S:
            self.document["stages"].setdefault(name, self.entry({"reason": "no time was left"}, 0.0))
            say(f"{name}: no time was left")
            self.write()
            return True
        began, asked_s = time.monotonic(), self.asked.suite_s if name in SUITES else LIMITS_S[name]
        limit_s = min(asked_s, self.left_s)
        say(f"{name} … ({limit_s:.0f} s at most, {self.ends - began:.0f} s left in all)")
        answer = self.measure(name, limit_s)
        if answer.get("reason", "").startswith("killed") and limit_s == asked_s:
            answer["failed"] = True  # it had all its time
        entry = self.document["stages"][name] = self.entry(answer, time.monotonic() - began)
        say(f"{name}: {entry.get('reason', 'done')}, {entry['seconds']:.1f} s")
        self.write()
        if name not in ("smoke", "smoke32"):
            return True
        return not entry.get("failed") and entry.get("result", {}).get("ok") is not False

    def measure(self, name: str, limit_s: float) -> dict[str, Any]:
        """The answer of a stage that may last ``limit_s`` seconds."""
        from gpu_process import Stage, run_apart

        epochs = self.asked.epochs
        if name == "suite32":
            epochs = self.suite32_epochs(limit_s)
        if not epochs:
            return {"reason": f"one epoch would not fit into {limit_s:.0f} s, or the stage 'steps' is missing"}
        stage = Stage(
            name=name,
            folder=self.folder,
            deadline=time.monotonic() + limit_s,
            epochs=epochs,
            data=self.asked.data,
            rehearsal=self.asked.rehearsal,
        )
        return run_apart(stage, f"gpu_stages:{name}")

    def suite32_epochs(self, limit_s: float) -> int:
        """As many epochs in fp32 as fit; 0 if none does, or if that cannot be known."""
        from gpu_goals import epochs_that_fit

        per_epoch = self.document["data"]["steps_per_epoch"]
        fit = epochs_that_fit(self.document["stages"], self.document["labels"], per_epoch, limit_s)
        return max(min(fit or 0, self.asked.epochs), 0)

    def entry(self, answer: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What the document says of a stage."""
        return {"date": now(), "code": self.document["code"], **answer, "seconds": seconds}

    def write(self) -> None:
        """Write the document, whole at every moment."""
        from gpu_estimates import estimates
        from gpu_goals import correct, extrapolated, goals

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
    """Whether stages of an earlier document belong to the same card, versions and data."""
    if before.get("schema") != SCHEMA or before["rehearsal"] != document["rehearsal"]:
        return False
    same = ("card", "torch", "lmconsole", "driver", "python")
    return before["data"] == document["data"] and all(before["machine"][k] == document["machine"][k] for k in same)


def slug(card: str) -> str:
    """Return a card's name as a file's: ``NVIDIA H100 80GB HBM3`` is ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def code() -> str:
    """Return a fingerprint of the package as it is measured: a checkout may have changed without a new version."""
    found = hashlib.sha256()
    for file in sorted((HERE.parent / "lmconsole").rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def now() -> str:
    """Return the time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def say(text: str) -> None:
    """Print a line that is not the table."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def ending_at(when: float) -> Iterator[None]:
    """End with BudgetSpentError at ``when``, whatever hangs, and with SystemExit on a request to terminate."""

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


def stages(text: str) -> list[str]:
    """Return the stages named in ``text``, separated by commas, in that order."""
    names = [ALIASES.get(name.strip(), name.strip()) for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in LIMITS_S]:
        raise argparse.ArgumentTypeError(f"no stage {', '.join(unknown)}; there are {', '.join(LIMITS_S)}")
    return list(dict.fromkeys(names))


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Measure lmconsole on one NVIDIA GPU.")
    parser.add_argument(
        "--stages", type=stages, metavar="A,B,...", default=list(LIMITS_S), help=f"in order: {','.join(LIMITS_S)}"
    )
    parser.add_argument("--budget-s", type=float, default=545.0, metavar="S", help="seconds for everything (545)")
    parser.add_argument("--suite-s", type=float, default=400.0, metavar="S", help="of these for a suite (400)")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="epochs of the suite (10)")
    parser.add_argument("--data", type=Path, metavar="DIR", default=os.environ.get("LMCONSOLE_DATA") or None)
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--json", type=Path, metavar="FILE", help="instead of benchmarks/results/CARD.json")
    place.add_argument("--out", type=Path, metavar="DIR", help="write DIR/CARD.json")
    parser.add_argument("--rehearsal", action="store_true", help="tiny, on the CPU: tests this program")
    asked = parser.parse_args()
    for name in ("data", "json", "out"):
        if (path := getattr(asked, name)) is not None:
            setattr(asked, name, Path(path).absolute())
    asked.began = time.monotonic()
    return asked


def main() -> int:
    """Measure everything asked for."""
    asked = parse()
    if lacking := missing(IMAGE | CARRIED):
        say(explain(lacking))
        return 2
    if lacking := missing(USEFUL):
        say(f"without {', '.join(lacking)} there are no readings of memory, power and energy from the driver")
    # Stages and all they start measure this checkout, and find what was carried here.
    places = [str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(place).absolute()) for place in places if place)
    if asked.rehearsal:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait for each other are no hurry here
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        benchmark = Benchmark(asked, Path(folder))
        with ending_at(benchmark.ends + END_S / 2):
            return benchmark.run()


if __name__ == "__main__":
    sys.exit(main())
