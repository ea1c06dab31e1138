"""What a queue of all twelve experiments costs apart from training and evaluation, at the paper's sizes, without a GPU.

    python benchmarks/host_work.py [--epochs 10] [--json FILE]

Runner, workers, data, models, optimizer states, checkpoints and logs are real. A training step and an evaluation are
replaced by waiting for as long as they are expected to take on an H100 (``STEP_MS``, estimates), with nothing done. The
runner is told that the CPU is a GPU in one respect: that the next run is prepared there while another one trains. What
is left of the wall-clock time is the work of the host: processes, reading, set-up, copies to host memory, checkpoints
that are waited for, polls. Set-up on a GPU itself (context, compiling, capturing) is not in it. Linux only.

Tokens and tables are random, of the paper's shape, in a temporary folder on the disk that TMPDIR names.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # an installed lmconsole comes first

STEP_MS = {
    ("lstm", 1): 2.8, ("lstm", 2): 4.0, ("lstm", 4): 6.6, ("gpt1", 1): 2.3, ("gpt1", 2): 3.2, ("gpt1", 4): 4.9,
}  # fmt: skip
"""Expected on an H100 in bf16, by model and layers: estimates, not measurements."""
EVALUATION_STEPS = 60
"""Training steps that take as long as one evaluation."""
TOKENS = {"train": 2_356_376, "validation": 245_046, "test": 279_023}
TIMEOUT_S = 1_200.0


def stub() -> None:
    """Replace steps and evaluations by waiting. Called in the process that workers are forked from."""
    from lmconsole.lm.loop import Training
    from lmconsole.lm.steps import Steps

    def step_s(model: Any) -> float:
        kind = "lstm" if hasattr(model.body, "lstm") else "gpt1"
        layers = model.body.lstm.num_layers if kind == "lstm" else len(model.body.blocks)
        return STEP_MS[kind, layers] / 1000

    def launch(self: Any, _rows: slice, targets: int) -> None:
        if not hasattr(self, "_due"):  # a checkpoint is as large as it would be
            for parameter in self.trained:
                parameter.grad = parameter.detach() * 0
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.nll += targets
        due = getattr(self, "_due", time.monotonic()) + step_s(self.model)
        self._due = max(due, time.monotonic() - 0.05)  # what the host did meanwhile is not made up for by later steps
        time.sleep(max(self._due - time.monotonic(), 0.0))

    def evaluate(self: Any, _name: str) -> float:
        time.sleep(EVALUATION_STEPS * step_s(self.model))
        return 5.0 + abs(self.state.epoch - self.settings.epochs + 1)  # the last epoch but one is the best

    Steps._launch = launch  # type: ignore[method-assign]
    Training._evaluate = evaluate  # type: ignore[method-assign]


def measure(epochs: int, folder: Path) -> dict[str, Any]:
    """Train all twelve with a runner of their own; seconds by what they were spent on."""
    from lmconsole.engine.probe import ask
    from lmconsole.engine.queue import enqueue, training_order
    from lmconsole.engine.run_options import RunRequest
    from lmconsole.runs.events import Queued
    from lmconsole.runs.store import Store

    data = make_data(folder / "data")
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
    began = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, timeout=TIMEOUT_S)
    whole_s = time.monotonic() - began
    runs = [_spent(run) for run in store.runs()]
    stored = sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
    simulated_s = sum(each["train_s"] + each["valid_s"] + each["test_s"] for each in runs)
    return {
        "epochs": epochs,
        "whole_s": whole_s,
        "simulated_s": simulated_s,
        "host_s": whole_s - simulated_s,
        "setup_s": sum(each["setup_s"] for each in runs),
        "stored_mib": stored / 2**20,
        "runs": runs,
    }


def _spent(run: Any) -> dict[str, Any]:
    state, settings = run.state, run.info.settings
    assert state.finished is not None, f"{run.run}: {state.failed.message if state.failed else run.status}"
    return {
        "label": run.info.experiment.label,
        "train_s": sum(epoch.train_s for epoch in state.epochs),
        "valid_s": sum(epoch.valid_s for epoch in state.epochs),
        "test_s": 2 * EVALUATION_STEPS * STEP_MS[settings.model, settings.layers] / 1000,
        "setup_s": state.finished.setup_s,
        "wall_s": state.finished.wall_s,
    }


def make_data(folder: Path) -> Path:
    """Random tokens and tables of the paper's shape."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for split, count in TOKENS.items():
        np.savez(folder / f"wiki.{split}.npz", tokens=draw.integers(1, 40_479, count, dtype=np.uint16))
    tokens = draw.standard_normal((40_479, 768), dtype=np.float32) * 0.14
    tokens[0] = 0
    np.savez(folder / "embeddings.npz", tokens=tokens, position=draw.standard_normal((256, 768), dtype=np.float32))
    return folder


def serve(root: Path) -> int:
    """Be the runner of the store at ``root``, with workers that wait instead of computing."""
    from lmconsole.engine import runner, worker

    worker.PRELOAD = (*worker.PRELOAD, "host_work_stub")
    runner.prepares_ahead = lambda device: True
    return runner.main(root)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the host's work of all twelve experiments.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        return serve(asked.serve)
    with tempfile.TemporaryDirectory(prefix="lmconsole-host-work-", ignore_cleanup_errors=True) as folder:
        found = measure(asked.epochs, Path(folder))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    known = ("setup_s", "train_s", "valid_s", "test_s")
    others = [each["wall_s"] - sum(each[key] for key in known) for each in found["runs"]]
    rows = {
        f"whole queue of twelve runs, {found['epochs']} epochs": found["whole_s"],
        "  training and evaluation, simulated": found["simulated_s"],
        "  work of the host": found["host_s"],
        "    set-up of the runs": found["setup_s"],
        "    inside the runs, checkpoints and logs": sum(others),
        "    between the runs": found["host_s"] - found["setup_s"] - sum(others),
    }
    for name, seconds in rows.items():
        print(f"{name:45}{seconds:8.1f} s")
    print(f"{'kept on disk by the runs':45}{found['stored_mib']:8,.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
