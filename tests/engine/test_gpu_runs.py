"""Whole runs on a GPU: losses agree with the CPU, memory and energy are measured, out-of-memory is explained."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from lmconsole.engine.attempt import uses_gpu_alone
from lmconsole.lm.energy import MIN_S
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

pytestmark = pytest.mark.gpu


def train_on_gpu(run: Run, root: Path, prelude: str = "") -> int:
    """Run ``prelude`` and then the worker in a new process, and return its exit code."""
    environment = {k: v for k, v in tiny.environment(root).items() if k != "CUDA_VISIBLE_DEVICES"}
    code = f"{prelude}\nimport sys\nfrom lmconsole.engine.worker import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(run.paths.folder), "--device", "cuda:0"]
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, timeout=240, check=False).returncode


@pytest.mark.parametrize("model", ["lstm", "gpt1"])
def test_a_run_on_the_gpu_has_the_losses_of_the_cpu(tmp_path: Path, model: str) -> None:
    gpu, cpu = (tiny.queue_tiny(tmp_path / name, model, evaluate_every_steps=7) for name in ("gpu", "cpu"))
    assert train_on_gpu(gpu, tmp_path / "gpu") == 0
    assert tiny.worker(cpu, tmp_path / "cpu").returncode == 0
    gpu.refresh()
    cpu.refresh()
    assert gpu.state.evaluations
    for on_gpu, on_cpu in zip(gpu.state.validations, cpu.state.validations, strict=True):
        assert on_gpu.passes == on_cpu.passes
        assert on_gpu.valid_loss_nats == pytest.approx(on_cpu.valid_loss_nats, rel=2e-3)


def test_memory_and_energy_of_the_gpu_are_measured(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, "gpt1", epochs=200)
    assert train_on_gpu(run, tmp_path) == 0
    run.refresh()
    assert run.state.started is not None
    assert run.state.started.device_uuid is not None
    training = [sample for sample in run.state.telemetry if sample.phase == "train"]
    assert training
    assert all(sample.device_used_mib and sample.torch_allocated_mib for sample in training)
    assert run.state.finished is not None
    assert run.state.finished.torch_peak_mib
    train_s, wall_s = run.state.elapsed_train_s, run.state.finished.wall_s
    assert train_s is not None
    assert wall_s is not None
    if train_s >= MIN_S and uses_gpu_alone(run.state.started, run.state.queued):
        assert run.state.finished.energy_j is not None
        assert 5 * train_s < run.state.finished.energy_j < 1_500 * wall_s, "5 to 1,500 W: the power of real boards"


def test_a_run_too_large_for_the_gpu_fails_with_a_memory_summary(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, "lstm", hidden=2_048)
    assert train_on_gpu(run, tmp_path, "import torch\ntorch.cuda.set_per_process_memory_fraction(0.001)") == 1
    run.refresh()
    assert run.status is Status.FAILED
    assert run.state.failed is not None
    assert run.state.failed.error == "out-of-memory"
    assert "MiB in use" in run.state.failed.message
