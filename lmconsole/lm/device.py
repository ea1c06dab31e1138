"""Devices, precisions and threads: the few global switches of torch, each thrown in one place."""

import contextlib
import ctypes
import functools
import platform
import re
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lmconsole.errors import DeviceError
from lmconsole.plan.experiment import Precision

_MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h: bytes free at the heap's end, bytes of a block of its own
AHEAD = 16
"""Launches, of steps or evaluation batches, that a GPU may have before it at once."""
AHEAD_S = 0.1
"""Seconds of work that it may have before it at once, where two launches take less."""
_SPECS = "auto, cpu, cuda, all, or a list such as cuda:0,cuda:1"


@dataclass(frozen=True, kw_only=True)
class Device:
    """Something a run can train on."""

    device: str
    """torch's name for it: ``cpu``, ``cuda:0``."""
    name: str
    """The maker's name for it."""
    uuid: str | None
    """NVML's name for it, ``GPU-…`` or ``MIG-…``, which survives CUDA_VISIBLE_DEVICES; None for a CPU."""
    total_mib: int | None
    """Memory of the GPU, or of the machine for a CPU."""
    free_mib: int | None
    """What nobody uses of it just now."""
    bf16_native: bool
    """Whether products of bfloat16 matrices are computed by instructions made for them, not by way of float32."""


def describe_devices() -> list[Device]:
    """The CPU, then every GPU that CUDA_VISIBLE_DEVICES shows. Asking a GPU for its free memory opens a context on it,
    so this belongs into a process that ends soon or trains there anyway."""
    devices = [_describe_cpu()]
    if torch.cuda.is_available():
        devices += [_describe_gpu(index) for index in range(torch.cuda.device_count())]
    return devices


def describe_device(name: str) -> Device:
    """The device that torch calls ``name``; no other GPU is touched. Raises DeviceError if it is not there."""
    where = torch.device(name)
    if where.type == "cpu":
        return _describe_cpu()
    index = where.index or 0
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise DeviceError(
            f"{name} is not there (any more)", hint="`lmconsole doctor` and nvidia-smi tell what is; then run it again."
        )
    return _describe_gpu(index)


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """A GPU's compute capability, (9, 0) for Hopper; None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def use(name: str) -> None:
    """Makes ``name`` the GPU that calls mean which name none."""
    if name.startswith("cuda"):
        torch.cuda.set_device(name)


def lost_in_fork() -> bool:
    """Whether CUDA was used before this process was forked off: it does not work in such a child, but would in a
    program begun anew."""
    return torch.cuda._is_in_bad_fork()


def resolve_devices(spec: str, devices: Sequence[Device]) -> list[str]:
    """torch's names for the devices that ``spec`` asks for, in its order.

    ``auto`` is the GPU with most free memory, or else the CPU; ``cuda`` is that GPU and nothing else will do; ``all``
    is every GPU.

    Raises:
        DeviceError: ``spec`` is not understood, or names a device that is not among ``devices``.
    """
    wanted = spec.strip().lower()
    gpus = [device for device in devices if device.device.startswith("cuda")]
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return ["cpu"]
    if wanted in ("auto", "cuda"):
        return [max(_need_gpus(spec, gpus), key=lambda gpu: -1 if gpu.free_mib is None else gpu.free_mib).device]
    if wanted == "all":
        return [gpu.device for gpu in _need_gpus(spec, gpus)]
    names = [name.strip() for name in wanted.split(",")]
    if not all(re.fullmatch(r"cuda:(0|[1-9][0-9]{0,3})", name) for name in names):
        raise DeviceError(f"--device {spec!r}: not a device", hint=f"Use one of: {_SPECS}.")
    known = [gpu.device for gpu in _need_gpus(spec, gpus)]
    if missing := [name for name in names if name not in known]:
        raise DeviceError(
            f"--device {spec!r}: there is no {' or '.join(missing)}; visible here: {', '.join(known)}",
            hint="Name one that is visible, use --device auto, or look at CUDA_VISIBLE_DEVICES.",
        )
    if len(set(names)) < len(names):
        raise DeviceError(
            f"--device {spec!r}: a device is named twice", hint="To put several runs on one device, use --jobs."
        )
    return names


def resolve_precision(wanted: str, device: str | Device) -> Precision:
    """The precision that ``wanted`` means on ``device``: ``auto`` is bf16 where that is native, else fp32.

    Raises:
        DeviceError: no such precision, or TF32 where there is none.
    """
    match wanted:
        case "auto":
            return "bf16" if _describe(device).bf16_native else "fp32"
        case "fp32":
            return "fp32"
        case "bf16":
            return "bf16"
        case "tf32":
            found = _describe(device)
            if found.device == "cpu" or not found.bf16_native:  # NVIDIA brought both with compute capability 8.0
                raise DeviceError(
                    f"--precision tf32: {found.device} ({found.name}) has no TF32; it takes an NVIDIA GPU of compute "
                    "capability 8.0 or newer",
                    hint="Use --precision fp32, or bf16, or auto.",
                )
            return "tf32"
        case _:
            raise DeviceError(f"--precision {wanted!r}: not a precision", hint="Use one of: auto, fp32, tf32, bf16.")


def apply_precision(precision: Precision) -> None:
    """Turns TF32 on for ``tf32`` and off for everything else, in cuBLAS and in cuDNN (whose own default is on).

    torch 2.9 has newer names for these switches, but some of its own code still asks by the older ones, and fails where
    only the newer were set; set by the older, both agree.
    """
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    # Sums inside a bf16 product stay float32, whatever the library would prefer.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def autocast(precision: Precision, device: str) -> AbstractContextManager[object]:
    """Casts the inputs of matrix products to bfloat16 within it, if that is the precision; else does nothing."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def compute_dtype(precision: Precision) -> torch.dtype:
    """Type of the factors of a matrix product. (TF32 is a way to multiply float32.)"""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def set_threads(n: int) -> None:
    """Computes with ``n`` threads from here on. One thread against two changes the last bits of a sum."""
    torch.set_num_threads(n)


def keep_freed_memory(device: str) -> None:
    """Has the C library keep memory that tensors on the CPU give up, instead of giving it back to the system and asking
    for it again at the next step: the system hands it out page by page, each filled with zeros, which took a third of
    the time of a small step. On a GPU, and where that cannot be asked for, as of other libraries than GNU's, nothing
    happens."""
    if device != "cpu":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def synchronize(device: str) -> None:
    """Returns when the device has done all it was given, so that a clock read next to it is right."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class Marker(Protocol):
    """A point in a GPU's queue of work, as ``torch.cuda.Event`` is."""

    def synchronize(self) -> None:
        """Return when the GPU has reached it."""

    def elapsed_time(self, later: Any, /) -> float:
        """Milliseconds from here to a later one, both reached."""


def mark(device: str) -> Marker | None:
    """A marker behind all that ``device`` was given; None on a CPU, which is never behind. Waiting for it leaves the
    processor to others."""
    if not device.startswith("cuda"):
        return None
    event = torch.cuda.Event(enable_timing=True, blocking=True)
    event.record()
    return event


class LaunchBound:
    """Keeps the host from running far ahead of a GPU, whose launches return at once: at most ``AHEAD`` of them, and
    fewer where they are slow, are outstanding. Otherwise reading a loss could take as long as an epoch."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._outstanding: deque[Marker] = deque()
        self._last: Marker | None = None
        self._allowed = 2

    def launched(self) -> None:
        """Call after each launch: returns when another one may follow."""
        marker = mark(self._device)
        if marker is None:
            return
        self._outstanding.append(marker)
        while len(self._outstanding) >= self._allowed:
            done = self._outstanding.popleft()
            done.synchronize()
            if self._last is not None:
                self._allowed = launches_ahead(self._last.elapsed_time(done) / 1000)
            self._last = done


def launches_ahead(launch_s: float) -> int:
    """How many launches of ``launch_s`` seconds may be outstanding. Two keep a GPU at work."""
    return max(2, min(AHEAD, int(AHEAD_S / max(launch_s, 1e-9))))


def forget_peaks(device: str) -> None:
    """Counts peaks of memory from here on."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def give_back_memory(device: str) -> None:
    """Gives memory that is not in use back to the driver. After a capture that was broken off torch before 2.13 refuses
    to, which hurts nothing but later attempts to find room."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def memory_mib(device: str) -> tuple[float, float] | tuple[None, None]:
    """MiB that tensors hold now and MiB that torch keeps from the driver; None on a CPU, where nobody counts."""
    if not device.startswith("cuda"):
        return None, None
    return torch.cuda.memory_allocated(device) / _MIB, torch.cuda.memory_reserved(device) / _MIB


def versions() -> dict[str, str | None]:
    """Versions that numbers depend on."""
    return {"torch": str(torch.__version__), "cuda": torch.version.cuda}


_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|cudaErrorMemoryAllocation"
    r"|CU(BLAS|DNN|SOLVER)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on a GPU or in the machine; CPU allocators and CUDA's libraries raise
    a plain RuntimeError and only their words tell."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and _OUT_OF_MEMORY.search(str(error)) is not None


def _describe(device: str | Device) -> Device:
    return device if isinstance(device, Device) else describe_device(device)


def _describe_gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    try:
        free_mib = torch.cuda.mem_get_info(index)[0] // _MIB
    except RuntimeError:  # full, or reserved for another process
        free_mib = None
    uuid = getattr(properties, "uuid", None)
    prefix = "MIG" if re.search(r"\bMIG\b", properties.name) else "GPU"
    return Device(
        device=f"cuda:{index}",
        name=properties.name,
        uuid=None if uuid is None else f"{prefix}-{str(uuid).lower()}",
        total_mib=properties.total_memory // _MIB,
        free_mib=free_mib,
        bf16_native=torch.version.hip is not None or properties.major >= 8,
    )


@functools.cache
def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _describe_cpu() -> Device:
    cpuinfo = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    memory: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if found := re.match(r"(MemTotal|MemAvailable):\s*(\d+) kB", line):
                memory[found[1]] = int(found[2]) // 1024
    return Device(
        device="cpu",
        name=model[1].strip() if model else platform.processor() or platform.machine() or "CPU",
        uuid=None,
        total_mib=memory.get("MemTotal"),
        free_mib=memory.get("MemAvailable"),
        bf16_native=torch.backends.mkldnn.is_available() and has_bf16_products(cpuinfo),
    )


def has_bf16_products(cpuinfo: str) -> bool:
    """Whether the text of /proc/cpuinfo promises bfloat16 products: AVX512_BF16 or AMX on x86, ``bf16`` on ARM. oneDNN
    computes them on any AVX-512 machine, but without these by way of float32, which is slower than float32 itself."""
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = set(lines[0].split()) if lines else set()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _need_gpus(spec: str, gpus: Sequence[Device]) -> Sequence[Device]:
    if gpus:
        return gpus
    if torch.version.cuda is None and torch.version.hip is None:
        why = f"this PyTorch ({torch.__version__}) is built without CUDA"
        hint = "Install a CUDA build of PyTorch (https://pytorch.org/get-started), or use --device cpu."
    else:
        why = "PyTorch finds no CUDA device"
        hint = "See whether nvidia-smi works and what CUDA_VISIBLE_DEVICES hides, or use --device cpu."
    raise DeviceError(f"--device {spec!r}: {why}", hint=hint)
