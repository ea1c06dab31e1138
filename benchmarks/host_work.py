"""Measure the time of a queue of all twelve experiments apart from training and evaluation, without a GPU.

    python benchmarks/host_work.py [--epochs 10] [--json FILE]

Sizes are the paper's. Runner, workers, data, models, optimizer states, checkpoints and logs are real. Training steps
and evaluations compute nothing and sleep for the time that they are expected to take on an H100 (``STEP_MS``,
estimates). As on a GPU, the runner prepares the next run while another one trains. The rest of the wall-clock time is
work of the host: processes, reading data, setup, copies to host memory, waiting for checkpoints, polling. It does not
include setup on the GPU itself (context, compilation, graph capture). Linux only.

Tokens and tables are random, with the paper's shapes, in a temporary folder (set TMPDIR to choose the disk).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from lmconsole.lm.loop import Training
    from lmconsole.lm.model import LanguageModel
    from lmconsole.lm.steps import Steps
    from lmconsole.runs.store import Run

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # an installed lmconsole takes precedence

STEP_MS = {
    ("lstm", 1): 2.8, ("lstm", 2): 4.0, ("lstm", 4): 6.6, ("gpt1", 1): 2.3, ("gpt1", 2): 3.2, ("gpt1", 4): 4.9,
}  # fmt: skip
"""Estimates, not measurements, for an H100 in bf16, by model and layers."""
EVALUATION_STEPS = 60
"""Time of one evaluation, in training steps."""
TOKENS = {"train": 2_356_376, "validation": 245_046, "test": 279_023}
TIMEOUT_S = 1_200.0


def replace_computation() -> None:
    """Replace training steps and evaluations by sleeping, in the process from which workers are forked."""
    from lmconsole.lm.loop import Training
    from lmconsole.lm.lstm import Lstm
    from lmconsole.lm.steps import Steps

    ends_s: WeakKeyDictionary[Steps, float] = WeakKeyDictionary()
    """Time at which the last step ended."""

    def step_s(model: "LanguageModel") -> float:
        body: Any = model.body
        shape = ("lstm", body.lstm.num_layers) if isinstance(body, Lstm) else ("gpt1", len(body.blocks))
        return STEP_MS[shape] / 1000

    def launch(self: "Steps", batch: slice, target_count: int) -> None:
        del batch
        if self not in ends_s:  # take one step with zero gradients, so that checkpoints have their real size
            for parameter in self.trained:
                parameter.grad = parameter.detach() * 0
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.nll += target_count
        end_s = ends_s.get(self, time.monotonic()) + step_s(self.model)
        ends_s[self] = end_s = max(end_s, time.monotonic() - 0.05)  # later steps do not make up for a delay of the host
        time.sleep(max(end_s - time.monotonic(), 0.0))

    def evaluate(self: "Training", name: str, window_nats: Any = None) -> float:
        del name, window_nats
        time.sleep(EVALUATION_STEPS * step_s(self.model))
        return 5.0 + abs(self.state.epoch - self.settings.epochs + 1)  # the last epoch but one is the best

    Steps._launch = launch  # type: ignore[method-assign]
    Training._evaluate = evaluate  # type: ignore[method-assign]


def measure(epochs: int, folder: Path) -> dict[str, Any]:
    """Train all twelve with a runner of their own and return the seconds by what they were spent on."""
    from lmconsole.engine.ask import ask
    from lmconsole.engine.queue import enqueue, training_order
    from lmconsole.engine.run_options import RunRequest
    from lmconsole.runs.events import Queued
    from lmconsole.runs.store import Store

    data = write_data(folder / "data")
    answer = ask(
        RunRequest(
            ids=tuple(range(1, 13)),
            preset="paper",
            data=data,
            embeddings=data / "embeddings.npz",
            device="cpu",
            epochs=epochs,
            precision="bf16",
        )
    )
    store = Store(folder / "runs")
    enqueue(
        store,
        training_order(answer.runs, None),
        Queued(devices=("cpu",), jobs=1),
        fresh=True,
        refuse_active=False,
        threads=1,
    )
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(store.root)]
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")]))
    started_s = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, timeout=TIMEOUT_S)
    total_s = time.monotonic() - started_s
    runs = [_seconds(run) for run in store.runs()]
    stored = sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
    simulated_s = sum(each["train_s"] + each["valid_s"] + each["test_s"] for each in runs)
    return {
        "epochs": epochs,
        "whole_s": total_s,
        "simulated_s": simulated_s,
        "host_s": total_s - simulated_s,
        "setup_s": sum(each["setup_s"] for each in runs),
        "stored_mib": stored / 2**20,
        "runs": runs,
    }


def _seconds(run: "Run") -> dict[str, Any]:
    state, settings = run.state, run.info.settings
    assert state.finished is not None, f"{run.run}: {state.failed.message if state.failed else run.status}"
    return {
        "label": run.info.experiment.label,
        "train_s": sum(epoch.train_s for epoch in state.epochs),
        "valid_s": sum(epoch.valid_s or 0.0 for epoch in state.epochs),
        "test_s": 2 * EVALUATION_STEPS * STEP_MS[settings.model, settings.layers] / 1000,
        "setup_s": state.finished.setup_s,
        "wall_s": state.finished.wall_s,
    }


def write_data(folder: Path) -> Path:
    """Write random tokens and tables with the paper's shapes and return ``folder``."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for split, count in TOKENS.items():
        np.savez(folder / f"wiki.{split}.npz", tokens=draw.integers(1, 40_479, count, dtype=np.uint16))
    tokens = draw.standard_normal((40_479, 768), dtype=np.float32) * 0.14
    tokens[0] = 0
    np.savez(folder / "embeddings.npz", tokens=tokens, position=draw.standard_normal((256, 768), dtype=np.float32))
    return folder


def serve(root: Path) -> int:
    """Run the runner of the store at ``root``, with workers that sleep instead of computing."""
    from lmconsole.engine import prepared_workers, runner, worker

    worker.PRELOAD = (*worker.PRELOAD, "host_work_stub")
    prepared_workers.prepares_ahead = lambda device: True
    return runner.main(root)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the work of the host for all twelve experiments.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    with tempfile.TemporaryDirectory(prefix="lmconsole-host-work-", ignore_cleanup_errors=True) as folder:
        result = measure(arguments.epochs, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)
    return 0


def show(result: dict[str, Any]) -> None:
    """Print the seconds by what they were spent on."""
    accounted = ("setup_s", "train_s", "valid_s", "test_s")
    other_s = sum(run["wall_s"] - sum(run[key] for key in accounted) for run in result["runs"])
    rows = {
        f"queue of twelve runs (epochs: {result['epochs']})": result["whole_s"],
        "  training and evaluation, simulated": result["simulated_s"],
        "  work of the host": result["host_s"],
        "    setup of the runs": result["setup_s"],
        "    checkpoints and logs during the runs": other_s,
        "    between the runs": result["host_s"] - result["setup_s"] - other_s,
    }
    for name, seconds in rows.items():
        print(f"{name:45}{seconds:8.1f} s")
    print(f"{'files of the runs':45}{result['stored_mib']:8,.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
