"""The stages of the GPU benchmark. Each of these functions runs in a process of its own and returns its result."""

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
from gpu_process import NotMeasured, Stage
from gpu_runs import PAPER, REHEARSAL, Bench

from lmconsole.errors import LmconsoleError
from lmconsole.lm.loop import EVALUATION_TOKENS

CHECKOUT = Path(__file__).resolve().parents[1]
GPU_TESTS = ("tests/lm", "tests/engine/test_gpu_runs.py")
"""Where the tests are that need a GPU. Collecting the others takes packages that a bare machine lacks."""
JOBS = 4
JOBS_EPOCHS = 2


def prepare(stage: Stage) -> dict[str, Any]:
    """Data, experiments and the card, before anything is measured. Raises NotMeasured if there is nothing to measure
    on, or with."""
    if not stage.rehearsal and not torch.cuda.is_available():
        raise NotMeasured("PyTorch finds no CUDA device; --rehearsal tests the program without one")
    where, sizes = ("cpu", REHEARSAL) if stage.rehearsal else ("cuda:0", PAPER)
    try:
        bench = Bench(stage.folder, sizes, where, stage.data)
    except LmconsoleError as error:
        raise NotMeasured(error.message) from None
    bench.save()
    return {
        "machine": gpu_device.machine(where),
        "data": bench.described,
        "labels": {str(number): label for number, label in bench.labels.items()},
    }


def look(stage: Stage) -> dict[str, Any]:
    """The machine: driver, tools, disk, versions, the price of a CUDA context."""
    bench = Bench.load(stage.folder)
    return gpu_device.look(bench.where, disk_mib=8 if stage.rehearsal else 512)


def gauge(stage: Stage) -> dict[str, Any]:
    """Our readings of NVML next to nvidia-smi's."""
    bench = Bench.load(stage.folder)
    return gpu_device.gauge(bench.where, bench.sizes.product)


def smoke(stage: Stage) -> dict[str, Any]:
    """Each shape captured and timed in bf16."""
    return gpu_captured.smoke(Bench.load(stage.folder), "bf16", stage)


def smoke32(stage: Stage) -> dict[str, Any]:
    """Each shape captured and timed in fp32."""
    return gpu_captured.smoke(Bench.load(stage.folder), "fp32", stage)


def suite(stage: Stage) -> dict[str, Any]:
    """All twelve in bf16, one after the other, as one whole command."""
    return Bench.load(stage.folder).suite("suite", "bf16", epochs=stage.epochs, jobs=1, stage=stage)


def suite32(stage: Stage) -> dict[str, Any]:
    """The same in fp32."""
    return Bench.load(stage.folder).suite("suite32", "fp32", epochs=stage.epochs, jobs=1, stage=stage)


def jobs(stage: Stage) -> dict[str, Any]:
    """All twelve in bf16, four at a time."""
    bench, epochs = Bench.load(stage.folder), min(stage.epochs, JOBS_EPOCHS)
    with nullcontext(False) if stage.rehearsal else gpu_device.multi_process_service(stage.folder / "mps") as mps:
        return {"mps": mps, **bench.suite("jobs", "bf16", epochs=epochs, jobs=JOBS, stage=stage)}


def head(stage: Stage) -> dict[str, Any]:
    """Loss and gradients of the head, compared with float64."""
    bench = Bench.load(stage.folder)
    return gpu_device.check_head(bench.any.vocabulary, bench.any.channels, bench.sizes.head_rows, bench.where)


def steps(stage: Stage) -> dict[str, Any]:
    """Steps of each shape, compared with plain PyTorch's. A shape that fails is no reason to lose the others."""
    bench = Bench.load(stage.folder)
    found: dict[str, Any] = {"experiments": {}, "skipped": {}, "traces": {}}
    for number in bench.shapes:
        if stage.left_s <= 0:
            found["skipped"][str(number)] = "no time was left"
            continue
        try:
            found["experiments"][str(number)] = each = bench.steps(number)
            times = each["baseline_bf16_s"] / each["ours_bf16_s"]
            stage.say(f"{each['label']}: {1000 * each['ours_bf16_s']:.2f} ms in bf16, {times:.1f} × plain PyTorch")
        except Exception as error:
            found["skipped"][str(number)] = f"{type(error).__name__}: {error}"
            found["traces"][str(number)] = traceback.format_exc()
        stage.report(found)
    if not found["experiments"]:
        raise RuntimeError(f"no experiment could be timed: {found['skipped']}")
    return found


def reference(stage: Stage) -> dict[str, Any]:
    """Short runs by the fast paths and by the reference implementation, in bf16."""
    return Bench.load(stage.folder).reference("bf16", stage)


def reference32(stage: Stage) -> dict[str, Any]:
    """The same in fp32."""
    return Bench.load(stage.folder).reference("fp32", stage)


def sdpa(stage: Stage) -> dict[str, Any]:
    """Which attention backend is faster over a run: flash or cuDNN."""
    bench = Bench.load(stage.folder)
    models = [each for each in bench.settings.values() if each.model == "gpt1"]
    settings, depths = models[0], sorted({each.layers for each in models})
    windows = {split: -(-(tokens - 1) // settings.window_tokens) for split, tokens in bench.tokens.items()}
    trained, evaluated = settings.batch_size, max(settings.batch_size, EVALUATION_TOKENS // settings.window_tokens)
    batches = {trained: True, windows.pop("train") % trained or trained: True}
    for count in windows.values():
        batches = batches | {n: False for n in (min(evaluated, count), count % evaluated) if n and n not in batches}
    steps = stage.epochs * bench.steps_per_epoch
    return gpu_kernels.compare_attention(settings, depths, batches, steps, bench.where, stage)


def peaks(stage: Stage) -> dict[str, Any]:
    """A copy on the device, and peak matmul throughput."""
    bench = Bench.load(stage.folder)
    return gpu_device.peak_rates(bench.sizes.copy_mib, bench.sizes.product, bench.where)


def gang(stage: Stage) -> dict[str, Any]:
    """Runs side by side on streams of one process."""
    return gpu_captured.gang(Bench.load(stage.folder), stage)


def kernels(stage: Stage) -> dict[str, Any]:
    """The LSTM's recurrence by type of number, the head by kernel and size of tile."""
    bench = Bench.load(stage.folder)
    return gpu_kernels.compare_kernels(bench.lstm, bench.any.vocabulary, bench.where, stage)


def split(stage: Stage) -> dict[str, Any]:
    """The head's logits in float32, as one product and as several of shorter numbers."""
    bench = Bench.load(stage.folder)
    return gpu_kernels.compare_products(bench.sizes.head_rows[0], bench.any.channels, bench.any.vocabulary, bench.where)


def tests(_: Stage) -> dict[str, Any]:
    """The tests that need a GPU, where what runs them is installed."""
    if lacking := missing(TESTS):
        raise NotMeasured(f"these packages are missing: {', '.join(lacking)}")
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
    summary = lines[-1].strip("= ") if lines else "it printed nothing"
    return {
        "ok": done.returncode == 0,
        "exit_code": done.returncode,
        "summary": summary,
        "output": done.stdout[-20_000:],
    }
