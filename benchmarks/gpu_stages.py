"""Stages of the GPU benchmark, by name. Each function runs in a process of its own and returns the stage's result."""

import os
import subprocess
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gpu_captured
import gpu_device
import gpu_kernels
import torch
from gpu_packages import TESTS, missing
from gpu_process import NotMeasuredError, Stage
from gpu_runs import PAPER, REHEARSAL, Workload

from lmconsole.errors import LmconsoleError
from lmconsole.lm.evaluation import EVALUATION_TOKENS

CHECKOUT = Path(__file__).resolve().parents[1]
GPU_TESTS = ("tests/lm", "tests/engine/test_gpu_runs.py")
"""Tests that need a GPU. Merely collecting the others needs packages that a bare machine lacks."""
JOBS = 4
JOBS_EPOCHS = 2


def prepare(stage: Stage) -> dict[str, Any]:
    """Prepare data and experiments, and describe the machine, before anything is measured.

    Raises:
        NotMeasuredError: There is no GPU, or the data cannot be used.
    """
    if not stage.rehearsal and not torch.cuda.is_available():
        raise NotMeasuredError("no CUDA device found. Check nvidia-smi, or test this program on the CPU: --rehearsal")
    device, sizes = ("cpu", REHEARSAL) if stage.rehearsal else ("cuda:0", PAPER)
    try:
        workload = Workload(stage.folder, sizes, device, stage.data)
    except LmconsoleError as error:
        raise NotMeasuredError(error.message) from None
    workload.save()
    return {
        "machine": gpu_device.machine(device),
        "data": workload.data_info,
        "labels": {str(experiment): label for experiment, label in workload.labels.items()},
    }


def look(stage: Stage) -> dict[str, Any]:
    """Describe the machine: driver, tools, disks, packages, memory of a CUDA context."""
    workload = Workload.load(stage.folder)
    return gpu_device.look(workload.device, disk_mib=8 if stage.rehearsal else 512)


def gauge(stage: Stage) -> dict[str, Any]:
    """Compare lmconsole's readings of the GPU with nvidia-smi's."""
    workload = Workload.load(stage.folder)
    return gpu_device.gauge(workload.device, workload.sizes.matmul_size)


def smoke(stage: Stage) -> dict[str, Any]:
    """Capture and time a step of each shape in bf16."""
    return gpu_captured.smoke(Workload.load(stage.folder), "bf16", stage)


def smoke32(stage: Stage) -> dict[str, Any]:
    """Capture and time a step of each shape in fp32."""
    return gpu_captured.smoke(Workload.load(stage.folder), "fp32", stage)


def suite(stage: Stage) -> dict[str, Any]:
    """Train all experiments in bf16, one after the other, by one command."""
    return Workload.load(stage.folder).train_all("suite", "bf16", epochs=stage.epochs, jobs=1, stage=stage)


def suite32(stage: Stage) -> dict[str, Any]:
    """Train all experiments in fp32, one after the other, by one command."""
    return Workload.load(stage.folder).train_all("suite32", "fp32", epochs=stage.epochs, jobs=1, stage=stage)


def jobs(stage: Stage) -> dict[str, Any]:
    """Train all experiments in bf16, four at a time."""
    workload, epochs = Workload.load(stage.folder), min(stage.epochs, JOBS_EPOCHS)
    with nullcontext(False) if stage.rehearsal else gpu_device.multi_process_service(stage.folder / "mps") as mps:
        return {"mps": mps, **workload.train_all("jobs", "bf16", epochs=epochs, jobs=JOBS, stage=stage)}


def head(stage: Stage) -> dict[str, Any]:
    """Compare loss and gradients of the linear cross-entropy with float64."""
    workload = Workload.load(stage.folder)
    settings = workload.common
    return gpu_device.check_linear_cross_entropy(
        settings.vocabulary, settings.channels, workload.sizes.head_rows, workload.device
    )


def steps(stage: Stage) -> dict[str, Any]:
    """Compare the steps of each shape with plain PyTorch's. A shape that fails is skipped."""
    workload = Workload.load(stage.folder)
    found: dict[str, Any] = {"experiments": {}, "skipped": {}, "traces": {}}
    for experiment in workload.shapes:
        if stage.left_s <= 0:
            found["skipped"][str(experiment)] = "no time was left"
            continue
        try:
            found["experiments"][str(experiment)] = each = workload.time_steps(experiment)
            speedup = each["baseline_bf16_s"] / each["ours_bf16_s"]
            stage.progress(
                f"{each['label']}: {1000 * each['ours_bf16_s']:.2f} ms per step in bf16, "
                f"{speedup:.1f}× as fast as plain PyTorch"
            )
        except Exception as error:
            found["skipped"][str(experiment)] = f"{type(error).__name__}: {error}"
            found["traces"][str(experiment)] = traceback.format_exc()
        stage.save_partial(found)
    if not found["experiments"]:
        raise RuntimeError(f"no experiment could be timed: {found['skipped']}")
    return found


def reference(stage: Stage) -> dict[str, Any]:
    """Compare short runs on the fast paths with the reference implementation, in bf16."""
    return Workload.load(stage.folder).compare_with_reference("bf16", stage)


def reference32(stage: Stage) -> dict[str, Any]:
    """Compare short runs on the fast paths with the reference implementation, in fp32."""
    return Workload.load(stage.folder).compare_with_reference("fp32", stage)


def sdpa(stage: Stage) -> dict[str, Any]:
    """Compare attention backends over a run."""
    workload = Workload.load(stage.folder)
    models = [each for each in workload.settings.values() if each.model == "gpt1"]
    settings, depths = models[0], sorted({each.layers for each in models})
    windows = {split: -(-(tokens - 1) // settings.window_tokens) for split, tokens in workload.tokens.items()}
    trained, evaluated = settings.batch_size, max(settings.batch_size, EVALUATION_TOKENS // settings.window_tokens)
    batches = {trained: True, windows.pop("train") % trained or trained: True}
    for count in windows.values():
        batches = batches | {n: False for n in (min(evaluated, count), count % evaluated) if n and n not in batches}
    steps = stage.epochs * workload.steps_per_epoch
    return gpu_kernels.compare_attention(settings, depths, batches, steps, workload.device, stage)


def peaks(stage: Stage) -> dict[str, Any]:
    """Measure peak copy bandwidth and peak matmul throughput."""
    workload = Workload.load(stage.folder)
    return gpu_device.peak_rates(workload.sizes.copy_mib, workload.sizes.matmul_size, workload.device)


def gang(stage: Stage) -> dict[str, Any]:
    """Train several experiments concurrently on CUDA streams of one process."""
    return gpu_captured.gang(Workload.load(stage.folder), stage)


def kernels(stage: Stage) -> dict[str, Any]:
    """Compare kernels of the LSTM recurrence and of the linear cross-entropy."""
    workload = Workload.load(stage.folder)
    return gpu_kernels.compare_kernels(workload.lstm, workload.common.vocabulary, workload.device, stage)


def split(stage: Stage) -> dict[str, Any]:
    """Compare matmuls for fp32 logits."""
    workload = Workload.load(stage.folder)
    settings = workload.common
    return gpu_kernels.compare_matmuls(
        workload.sizes.head_rows[0], settings.channels, settings.vocabulary, workload.device
    )


def tests(_: Stage) -> dict[str, Any]:
    """Run the tests that need a GPU.

    Raises:
        NotMeasuredError: pytest or one of its plugins is missing.
    """
    if requirements := missing(TESTS):
        raise NotMeasuredError(f"packages are missing: {', '.join(requirements)}")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *GPU_TESTS]
    done = subprocess.run(
        command,
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    return {
        "ok": done.returncode == 0,
        "exit_code": done.returncode,
        "summary": lines[-1].strip("= ") if lines else "no output",
        "output": done.stdout[-20_000:],
    }
