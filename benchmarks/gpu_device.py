"""The GPU itself: its properties, gauges and peak rates, MPS, and the linear cross-entropy compared with float64."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F

from lmconsole import __version__
from lmconsole.lm.device import apply_precision, compute_dtype, describe_device, synchronize, versions
from lmconsole.lm.linear_cross_entropy import IGNORE, linear_cross_entropy
from lmconsole.plan.experiment import Precision
from lmconsole.telemetry.gpu import Gpus

MIB = 2**20
SMI_FIELDS = ("memory.used", "power.draw", "temperature.gpu", "utilization.gpu", "clocks.sm", "driver_version")
PACKAGES = ("torch", "triton", "numpy", "msgspec", "typer", "rich", "psutil", "safetensors", "nvidia-ml-py")
SHELL_TIMEOUT_S = 30.0
LOAD_S = 1.5
"""Time of load before the gauges are read: they average over up to a second."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
LOSS_TOLERANCE = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 2e-3}
"""Relative difference from float64."""
GRADIENT_TOLERANCE = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 1e-2}
"""Norm of the difference from float64 over the norm."""


def machine(device: str) -> dict[str, Any]:
    """Return the properties of the machine on which the numbers depend; None is unknown."""
    found = describe_device(device)
    return {
        "card": found.name,
        "memory_mib": found.total_mib,
        "free_mib": found.free_mib,
        "bf16_native": found.bf16_native,
        "driver": _driver(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "lmconsole": __version__,
        **versions(),
        "cudnn": None if device == "cpu" else torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    """Return the driver's version, if nvidia-ml-py is installed and the driver answers."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def look(device: str, disk_mib: int) -> dict[str, Any]:
    """Return the driver, tools, disks and packages of the machine, and the memory of a CUDA context."""
    found: dict[str, Any] = {
        "nvidia_smi": shell("nvidia-smi -L; nvidia-smi --format=csv,noheader --query-gpu=" + ",".join(SMI_FIELDS)),
        "tools": {name: shutil.which(name) for name in ("nvidia-cuda-mps-control", "nvcc", "gcc", "ncu", "make")},
        "disks": shell("df -h . /tmp /dev/shm"),
        "disk_write_mb_per_s": _disk_write_mb_per_s(disk_mib),
        "packages": {name: _version(name) for name in PACKAGES},
        "context_mib": None,
    }
    if device != "cpu":
        began = time.perf_counter()
        found["context_mib"] = _context_mib(device)
        found["import_and_context_s"] = time.perf_counter() - began
    return found


def shell(command: str) -> str:
    """Return the output of ``command``, or a message if it does not end in time."""
    try:
        done = subprocess.run(
            command,
            shell=True,
            capture_output=True,
            text=True,
            timeout=SHELL_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return (done.stdout + done.stderr).strip()[-3_000:]
    except subprocess.TimeoutExpired:
        return f"no answer within {SHELL_TIMEOUT_S:.0f} s"


def _disk_write_mb_per_s(mib: int) -> float:
    """Return the speed of writing random bytes to a temporary file with fsync, as checkpoints do."""
    with tempfile.NamedTemporaryFile() as file:
        block = os.urandom(MIB)
        began = time.perf_counter()
        for _ in range(mib):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return mib * MIB / 1e6 / (time.perf_counter() - began)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _context_mib(device: str) -> float:
    """Return the memory of a CUDA context: the free memory before and while another process has one."""
    script = f"import torch; torch.zeros(1, device={device!r}); print(torch.cuda.mem_get_info({device!r})[0])"
    before = torch.cuda.mem_get_info(device)[0]
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    return (before - int(done.stdout)) / MIB - 2  # the tensor's own block


# ---- gauges


def gauge(device: str, size: int) -> dict[str, Any]:
    """Return the readings of ``Gpus`` and of nvidia-smi, idle and under load."""
    uuid = describe_device(device).uuid
    gpus = Gpus.open()
    found: dict[str, Any] = {"available": gpus.available, "reason": gpus.reason, "uuid": uuid, "states": {}}
    if uuid is None or not gpus.available:
        return found | {"nvidia_smi": shell("nvidia-smi")}
    for state, seconds in (("idle", 0.0), ("load", LOAD_S)):
        began, before_j = time.perf_counter(), gpus.total_energy_j(uuid)
        _keep_busy(size, device, seconds)
        after_j, elapsed_s = gpus.total_energy_j(uuid), time.perf_counter() - began
        began = time.perf_counter()
        sample = gpus.sample(uuid, os.getpid())
        took_ms = 1000 * (time.perf_counter() - began)
        found["states"][state] = {
            "ours": None if sample is None else msgspec.structs.asdict(sample),
            "took_ms": took_ms,
            "other_processes": gpus.other_processes(uuid, {os.getpid()}),
            "torch_reserved_mib": torch.cuda.memory_reserved(device) / MIB,
            "nvidia_smi": _smi_readings(uuid),
            "energy_j": None if before_j is None or after_j is None else after_j - before_j,
            "elapsed_s": elapsed_s,
        }
    gpus.close()
    return found


def _keep_busy(size: int, device: str, seconds: float) -> None:
    """Multiply matrices for so long."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            a @ a
        synchronize(device)


def _smi_readings(uuid: str) -> dict[str, str]:
    """Return nvidia-smi's readings of one GPU and the processes it lists on it."""
    query = f"nvidia-smi -i {uuid} --format=csv,noheader,nounits"
    values = shell(f"{query} --query-gpu={','.join(SMI_FIELDS)}").split(", ")
    processes = shell(f"{query} --query-compute-apps=pid,used_memory")
    return {**dict(zip(SMI_FIELDS, values, strict=False)), "processes": processes}


# ---- NVIDIA's Multi-Process Service


@contextlib.contextmanager
def multi_process_service(folder: Path, client: Sequence[str] | None = None) -> Iterator[bool]:
    """Run NVIDIA's Multi-Process Service for the processes started within, and yield whether it works.

    With MPS, kernels of several processes run on a GPU at the same time; without, the processes take turns. Most
    drivers include it. It works if the command ``client`` can use the GPU through it. The daemon is this program's own
    and ends with the context; no setting of the GPU changes.
    """
    program = shutil.which("nvidia-cuda-mps-control")
    names = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    with contextlib.ExitStack() as cleanup:
        works = False
        if program is not None:
            folder.mkdir(exist_ok=True)
            cleanup.callback(_restore, {name: os.environ.get(name) for name in names})
            os.environ.update(names)
            if _succeeds([program, "-d"]):
                cleanup.callback(_succeeds, [program], "quit\n")
                works = _succeeds(client or [sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"])
            if not works:
                cleanup.close()
        yield works


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _succeeds(command: Sequence[str], stdin: str = "") -> bool:
    try:
        done = subprocess.run(
            command,
            input=stdin,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=60,
        )
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


# ---- linear cross-entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCase:
    """One way of computing the linear cross-entropy."""

    precision: Precision
    learned: bool
    """Whether the embedding table, which is the weight, has a gradient."""
    rows: int
    use_triton: bool


def check_linear_cross_entropy(vocabulary: int, channels: int, rows: tuple[int, ...], device: str) -> dict[str, Any]:
    """Compare loss and gradients of ``linear_cross_entropy`` with those of full logits in float64, on new random
    inputs."""
    found = []
    use_triton = (False, True) if device != "cpu" and importlib.util.find_spec("triton") else (False,)
    for precision, learned, R, triton in itertools.product(PRECISIONS, (False, True), rows, use_triton):
        if precision == "tf32" and device == "cpu":
            continue
        case = LossCase(precision=precision, learned=learned, rows=R, use_triton=triton)
        seed = int.from_bytes(os.urandom(4), "little")
        try:
            checked = _check(case, vocabulary, channels, seed, device)
        except Exception as error:
            if not triton:
                raise
            # Where Triton cannot compile, training does without it.
            checked = {"ok": None, "reason": f"{type(error).__name__}: {error}".partition("\n")[0]}
        table = "learned" if learned else "frozen"
        found.append({"precision": precision, "table": table, "rows": R, "use_triton": triton, **checked})
    return {
        "vocabulary": vocabulary,
        "channels": channels,
        "cases": found,
        "ok": all(each["ok"] is not False for each in found),
    }


def _check(case: LossCase, vocabulary: int, channels: int, seed: int, device: str) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(case.rows, channels, generator=g).to(device)
    table = (torch.randn(vocabulary, channels, generator=g) * 0.14).to(device)
    targets = torch.randint(0, vocabulary, (case.rows,), generator=g)
    targets[:: max(case.rows // 7, 2)] = IGNORE
    targets = targets.to(device)

    apply_precision(case.precision)
    loss, *gradients = _loss_and_gradients(case, features, table, targets)
    exact_loss, *exact_gradients = _exact_loss_and_gradients(case, features, table, targets)
    loss_error = _relative_error(loss, exact_loss)
    gradient_errors = [_relative_error(a, b) for a, b in zip(gradients, exact_gradients, strict=True)]

    features[0, 0] = math.nan
    targets[0] = 1
    nan_loss, *_ = _loss_and_gradients(case, features, table, targets)
    nan_propagates = not bool(torch.isfinite(nan_loss))
    return {
        "seed": seed,
        "loss_error": loss_error,
        "gradient_errors": gradient_errors,
        "nan_propagates": nan_propagates,
        # Comparisons with NaN are false, so a NaN is an error.
        "ok": loss_error <= LOSS_TOLERANCE[case.precision]
        and all(each <= GRADIENT_TOLERANCE[case.precision] for each in gradient_errors)
        and nan_propagates,
    }


def _loss_and_gradients(case: LossCase, features: Tensor, table: Tensor, targets: Tensor) -> list[Tensor]:
    """Return the loss as training computes it, then its gradients."""
    dtype = compute_dtype(case.precision)
    x = features.clone().requires_grad_()
    w = table.clone().requires_grad_() if case.learned else table.to(dtype)
    loss = linear_cross_entropy(x, w, targets, compute_dtype=dtype, use_triton=case.use_triton)
    return [loss.detach(), *torch.autograd.grad(loss, [x, w] if case.learned else [x])]


def _exact_loss_and_gradients(case: LossCase, features: Tensor, table: Tensor, targets: Tensor) -> list[Tensor]:
    """Return the same from full logits in float64."""
    x, w = features.double().requires_grad_(), table.double().requires_grad_(case.learned)
    loss = F.cross_entropy(x @ w.T, targets, ignore_index=IGNORE, reduction="sum")
    return [loss.detach(), *torch.autograd.grad(loss, [x, w] if case.learned else [x])]


def _relative_error(a: Tensor, exact: Tensor) -> float:
    return float((a.double() - exact).norm() / exact.norm())


# ---- peak rates


def peak_rates(copy_mib: int, size: int, device: str) -> dict[str, Any]:
    """Measure peak bandwidth and peak matmul throughput on random data; medians.

    Bandwidth is that of a copy on the device, bytes read and written; throughput that of a product of square matrices.
    """
    source = torch.rand(copy_mib * MIB // 4, device=device)
    target = torch.empty_like(source)
    found: dict[str, Any] = {
        "copy_mib": copy_mib,
        "matmul_size": size,
        "copy_gb_per_s": 2 * source.nbytes / median_s(lambda: target.copy_(source), device) / 1e9,
    }
    for precision in PRECISIONS:
        if precision == "tf32" and device == "cpu":
            continue
        apply_precision(precision)
        a, b = (torch.randn(size, size, device=device, dtype=compute_dtype(precision)) for _ in range(2))
        seconds = median_s(functools.partial(torch.matmul, a, b), device)
        found[f"{precision}_tflop_per_s"] = 2 * size**3 / seconds / 1e12
    return found


def median_s(work: Callable[[], object], device: str, repetitions: int = 20) -> float:
    """Return the median time of ``work`` in seconds, by CUDA events on a GPU."""
    for _ in range(3):
        work()
    if device == "cpu":
        seconds = []
        for _ in range(repetitions):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize(device)
    milliseconds: list[float] = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
    return statistics.median(milliseconds) / 1000
