"""The published twelve runs in the layout of the course's runner.

``python tests/course_folders.py FOLDER [published.toml]`` writes a folder for each of them. Perplexities and memory of
the best epoch are the published ones; everything else is made up around them. As the runner does, every ``args.json``
has all defaults of the argument parser, whether the optimizer uses them or not.
"""

import json
import math
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EPOCHS = 10
READINGS = 3_000
"""Lines of ``gpu_memory.txt``."""

DEFAULTS = {
    "batch_size": 16, "lr": 0.001, "momentum": 0.9, "weight_decay": 0.0005, "epochs": EPOCHS, "seed": 42,
    "device": "cuda", "data": "data", "log_dir": "logs",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class CourseRun:
    """A published result and the curves that were made up for it."""

    number: int
    model: str
    layers: int
    optimizer: str
    best_epoch: int
    train_ppl: list[float]
    valid_ppl: list[float]
    train_s: list[float]
    memory_mib: list[int]

    @property
    def test_ppl(self) -> float:
        return round(self.valid_ppl[-1] * 0.97, 4)


def course_runs(published: Path) -> list[CourseRun]:
    """Return the runs of a ``published.toml``."""
    return [_course_run(each) for each in tomllib.loads(published.read_text(encoding="utf-8"))["result"]]


def _course_run(result: dict[str, Any]) -> CourseRun:
    best = result["epoch"]
    seconds = (50.0 if result["model"] == "lstm" else 65.0) * (1 + 0.6 * (result["layers"] - 1))
    return CourseRun(
        number=result["id"],
        model=result["model"],
        layers=result["layers"],
        optimizer=result["optimizer"],
        best_epoch=best,
        train_ppl=[round(result["train_ppl"] * math.exp(0.25 * (best - epoch)), 4) for epoch in range(1, EPOCHS + 1)],
        valid_ppl=[
            round(result["valid_ppl"] * math.exp(0.12 * (best - epoch) if epoch <= best else 0.015 * (epoch - best)), 4)
            for epoch in range(1, EPOCHS + 1)
        ],
        train_s=[round(seconds + 0.1 * (epoch % 3), 2) for epoch in range(1, EPOCHS + 1)],
        memory_mib=[int(result["memory_mib"]) + (line % 5 - 2) for line in range(READINGS)],
    )


def write_course_folders(folder: Path, runs: list[CourseRun], **arguments: object) -> None:
    """Write ``folder/<number>`` for each run; ``arguments`` replace defaults of the runner."""
    for run in runs:
        own = folder / str(run.number)
        own.mkdir(parents=True)
        stated = {"experiment": run.number, "model": run.model, "layers": run.layers, "optimizer": run.optimizer}
        (own / "args.json").write_text(json.dumps(DEFAULTS | stated | arguments, indent=2))
        _write(own / "gpu_memory.txt", [str(reading) for reading in run.memory_mib])
        for split, ppls in (("train", run.train_ppl), ("valid", run.valid_ppl), ("test", [run.test_ppl])):
            _write(own / f"{split}_ppl.txt", [f"{ppl:.4f}" for ppl in ppls])
            _write(own / f"{split}_loss.txt", [f"{math.log(ppl):.6f}" for ppl in ppls])
        _write(own / "train_time.txt", [f"{seconds:.2f}" for seconds in run.train_s])
        _write(own / "valid_time.txt", ["2.10"] * EPOCHS)
        _write(own / "test_time.txt", ["2.3"])


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    default = Path(os.environ.get("LMCONSOLE_SHARED", "../shared")) / "reference/published.toml"
    source = Path(sys.argv[2]) if len(sys.argv) > 2 else default
    write_course_folders(Path(sys.argv[1]), course_runs(source))
