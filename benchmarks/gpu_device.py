"""What a GPU is, what its gauges read, whether the head's loss is right on it, and its peak rates."""

import contextlib
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
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F

from lmconsole import __version__
from lmconsole.lm import device as devices
from lmconsole.lm.linear_cross_entropy import IGNORE, linear_cross_entropy
from lmconsole.plan.experiment import Precision
from lmconsole.telemetry.gpu import Gpus

MIB = 2**20
SMI_FIELDS = ("memory.used", "power.draw", "temperature.gpu", "utilization.gpu", "clocks.sm", "driver_version")
PACKAGES = ("torch", "triton", "numpy", "msgspec", "typer", "rich", "psutil", "safetensors", "nvidia-ml-py")
SHELL_S = 30.0
LOAD_S = 1.5
"""How long the card is kept busy before its gauges are read: they average over up to a second."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
LOSS_TOLERANCE = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 2e-3}
"""Relative; the reference is computed in float64."""
GRADIENT_TOLERANCE = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 1e-2}
"""Norm of the difference over the norm."""


def machine(where: str) -> dict[str, Any]:
    """What the numbers depend on; unknown is None."""
    found = devices.describe_device(where)
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
        **devices.versions(),
        "cudnn": torch.backends.cudnn.version() if where != "cpu" else None,
    }


def _driver() -> str | None:
    """The driver's version, where nvidia-ml-py is installed and answers."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def look(where: str, disk_mib: int) -> dict[str, Any]:
    """The machine around the card: driver, tools, disk, packages, and what a process pays to open a CUDA context."""
    found: dict[str, Any] = {
        "nvidia_smi": shell("nvidia-smi -L; nvidia-smi --format=csv,noheader --query-gpu=" + ",".join(SMI_FIELDS)),
        "tools": {name: shutil.which(name) for name in ("nvidia-cuda-mps-control", "nvcc", "gcc", "ncu", "make")},
        "disks": shell("df -h . /tmp /dev/shm"),
        "disk_write_mb_per_s": _disk_write_mb_per_s(disk_mib),
        "packages": {name: _version(name) for name in PACKAGES},
        "context_mib": None,
    }
    if where != "cpu":
        began = time.perf_counter()
        found["context_mib"] = _context_mib(where)
        found["import_and_context_s"] = time.perf_counter() - began
    return found


def shell(command: str) -> str:
    """Return what ``command`` prints, or why it printed nothing."""
    try:
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, timeout=SHELL_S, check=False, stdin=subprocess.DEVNULL
        )
        return (done.stdout + done.stderr).strip()[-3_000:]
    except subprocess.TimeoutExpired:
        return f"no answer within {SHELL_S:.0f} s"


def _disk_write_mb_per_s(mib: int) -> float:
    """How fast a file of random bytes reaches the disk of temporary files, fsync included: checkpoints pay that."""
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


def _context_mib(where: str) -> float:
    """Memory that a process takes on the card by merely opening it: what is free before and while one does."""
    ask = f"import torch; torch.zeros(1, device={where!r}); print(torch.cuda.mem_get_info({where!r})[0])"
    before = torch.cuda.mem_get_info(where)[0]
    done = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True, timeout=60)
    return (before - int(done.stdout)) / MIB - 2  # the tensor's own block


# ---- gauges


def gauge(where: str, size: int) -> dict[str, Any]:
    """What our gauge reads next to what nvidia-smi reads, idle and under load."""
    uuid = devices.describe_device(where).uuid
    gpus = Gpus.open()
    found: dict[str, Any] = {"available": gpus.available, "reason": gpus.reason, "uuid": uuid, "states": {}}
    if uuid is None or not gpus.available:
        return found | {"nvidia_smi": shell("nvidia-smi")}
    for state, seconds in (("idle", 0.0), ("load", LOAD_S)):
        began, before_j = time.perf_counter(), total_energy_j(gpus, uuid)
        _multiply(size, where, seconds)
        after_j, elapsed_s = total_energy_j(gpus, uuid), time.perf_counter() - began
        began = time.perf_counter()
        sample = gpus.sample(uuid, os.getpid())
        took_ms = 1000 * (time.perf_counter() - began)
        found["states"][state] = {
            "ours": None if sample is None else msgspec.structs.asdict(sample),
            "took_ms": took_ms,
            "other_processes": gpus.other_processes(uuid, {os.getpid()}),
            "torch_reserved_mib": torch.cuda.memory_reserved(where) / MIB,
            "nvidia_smi": _smi_readings(uuid),
            "energy_j": None if before_j is None or after_j is None else after_j - before_j,
            "elapsed_s": elapsed_s,
        }
    gpus.close()
    return found


def total_energy_j(gpus: Gpus, uuid: str) -> float | None:
    """The driver's own counter of the board's energy, where this version of ``Gpus`` reads it."""
    read = getattr(gpus, "total_energy_j", None)
    return None if read is None else read(uuid)


def _multiply(size: int, where: str, seconds: float) -> None:
    """Keep the card busy for so long."""
    a = torch.randn(size, size, device=where, dtype=torch.bfloat16)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            a @ a
        devices.synchronize(where)


def _smi_readings(uuid: str) -> dict[str, str]:
    """nvidia-smi's readings of one card, and the processes it lists on it."""
    query = f"nvidia-smi -i {uuid} --format=csv,noheader,nounits"
    values = shell(f"{query} --query-gpu={','.join(SMI_FIELDS)}").split(", ")
    processes = shell(f"{query} --query-compute-apps=pid,used_memory")
    return {**dict(zip(SMI_FIELDS, values, strict=False)), "processes": processes}


# ---- NVIDIA's Multi-Process Service


@contextlib.contextmanager
def multi_process_service(folder: Path, client: Sequence[str] | None = None) -> Iterator[bool]:
    """NVIDIA's Multi-Process Service for what is started within: kernels of several processes then share a GPU at the
    same moment, where they would take turns. A daemon of our own, ended afterwards; no setting of the card changes.
    Whether it is there: it comes with most drivers, and counts when a ``client`` could use the GPU by it."""
    program = shutil.which("nvidia-cuda-mps-control")
    names = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    with contextlib.ExitStack() as ending:
        works = False
        if program is not None:
            folder.mkdir(exist_ok=True)
            ending.callback(_restore, {name: os.environ.get(name) for name in names})
            os.environ.update(names)
            if _succeeds([program, "-d"]):
                ending.callback(_succeeds, [program], "quit\n")
                works = _succeeds(client or [sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"])
            if not works:
                ending.close()
        yield works


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _succeeds(command: Sequence[str], words: str = "") -> bool:
    try:
        done = subprocess.run(
            command,
            input=words,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=60,
        )
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


# ---- the head's loss


def check_head(vocabulary: int, channels: int, sizes: tuple[int, ...], where: str) -> dict[str, Any]:
    """Loss and gradients of the chunked head compared with whole logits in float64, on fresh random inputs."""
    cases = []
    own = (False, True) if where != "cpu" and importlib.util.find_spec("triton") else (False,)
    for precision, learned, rows, own_kernels in itertools.product(PRECISIONS, (False, True), sizes, own):
        if precision == "tf32" and where == "cpu":
            continue
        seed = int.from_bytes(os.urandom(4), "little")
        try:
            case = _check_one(precision, learned, rows, own_kernels, vocabulary, channels, seed, where)
        except Exception as error:
            if not own_kernels:
                raise
            case = {
                "ok": None,
                "reason": f"{type(error).__name__}: {error}".partition("\n")[0],
            }  # training does without
        named = {"precision": precision, "table": "learned" if learned else "frozen", "rows": rows}
        cases.append({**named, "own_kernels": own_kernels, **case})
    return {
        "vocabulary": vocabulary,
        "channels": channels,
        "cases": cases,
        "ok": all(case["ok"] is not False for case in cases),
    }


def _check_one(
    precision: Precision,
    learned: bool,
    rows: int,
    own_kernels: bool,
    vocabulary: int,
    channels: int,
    seed: int,
    where: str,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, channels, generator=g).to(where)
    table = (torch.randn(vocabulary, channels, generator=g) * 0.14).to(where)
    targets = torch.randint(0, vocabulary, (rows,), generator=g)
    targets[:: max(rows // 7, 2)] = IGNORE
    targets = targets.to(where)

    devices.apply_precision(precision)
    loss, *gradients = _chunked(features, table, targets, precision, learned, own_kernels)
    exact_loss, *exact = _whole(features, table, targets, learned)
    loss_off = _distance(loss, exact_loss)
    off = [_distance(mine, theirs) for mine, theirs in zip(gradients, exact, strict=True)]

    features[0, 0] = math.nan  # a NaN must not be lost on the way
    targets[0] = 1
    spoilt = _chunked(features, table, targets, precision, learned, own_kernels)[0]
    return {
        "seed": seed,
        "loss_off_by": loss_off,
        "gradients_off_by": off,
        "nan_shows": not bool(torch.isfinite(spoilt)),
        # Written so that NaN fails.
        "ok": loss_off <= LOSS_TOLERANCE[precision]
        and all(each <= GRADIENT_TOLERANCE[precision] for each in off)
        and not bool(torch.isfinite(spoilt)),
    }


def _chunked(
    features: Tensor, table: Tensor, targets: Tensor, precision: Precision, learned: bool, own_kernels: bool
) -> list[Tensor]:
    """The loss as training computes it, then the gradients."""
    dtype = devices.compute_dtype(precision)
    x = features.clone().requires_grad_()
    w = table.clone().requires_grad_() if learned else table.to(dtype)
    loss = linear_cross_entropy(x, w, targets, compute_dtype=dtype, use_triton=own_kernels)
    loss.backward()
    return [each for each in (loss.detach(), x.grad, w.grad) if each is not None]


def _whole(features: Tensor, table: Tensor, targets: Tensor, learned: bool) -> list[Tensor]:
    """The same from whole logits in float64."""
    x, w = features.double().requires_grad_(), table.double().requires_grad_(learned)
    loss = F.cross_entropy(x @ w.T, targets, ignore_index=IGNORE, reduction="sum")
    loss.backward()
    return [each for each in (loss.detach(), x.grad, w.grad) if each is not None]


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


# ---- peak rates


def peak_rates(copy_mib: int, size: int, where: str) -> dict[str, Any]:
    """Bytes read and written per second by a copy on the device, and peak matmul throughput by a square product, both
    on random data, medians."""
    source = torch.rand(copy_mib * MIB // 4, device=where)
    target = torch.empty_like(source)
    found: dict[str, Any] = {
        "copy_mib": copy_mib,
        "product_size": size,
        "copy_gb_per_s": 2 * source.nbytes / median_s(lambda: target.copy_(source), where) / 1e9,
    }
    for precision in PRECISIONS:
        if precision == "tf32" and where == "cpu":
            continue
        devices.apply_precision(precision)
        a, b = (torch.randn(size, size, device=where, dtype=devices.compute_dtype(precision)) for _ in range(2))
        found[f"{precision}_tflop_per_s"] = 2 * size**3 / median_s(lambda a=a, b=b: a @ b, where) / 1e12
    return found


def median_s(work: Callable[[], object], where: str, repetitions: int = 20) -> float:
    """Seconds of ``work``, by the device's own clock."""
    for _ in range(3):
        work()
    if where == "cpu":
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
    torch.cuda.synchronize(where)
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events)) / 1000
