"""Devices, precisions and threads, and every global switch of PyTorch that depends on them."""

import contextlib
import functools
import platform
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from lmconsole.errors import DeviceError
from lmconsole.plan.experiment import Precision

_MIB = 2**20
_SPECS = "auto, cpu, cuda, all, or a list such as cuda:0,cuda:1"


@dataclass(frozen=True, kw_only=True)
class Device:
    """A CPU or GPU that a run can train on."""

    device: str
    """PyTorch's name: ``cpu``, ``cuda:0``."""
    name: str
    """The vendor's name."""
    uuid: str | None
    """NVML's name, ``GPU-…`` or ``MIG-…``, which does not depend on CUDA_VISIBLE_DEVICES; None for a CPU."""
    total_mib: int | None
    """Memory of the GPU, or of the machine for a CPU."""
    free_mib: int | None
    """Memory that no process uses at the moment."""
    bf16_native: bool
    """Whether the hardware multiplies bfloat16 matrices itself, instead of by way of float32."""


def describe_devices() -> list[Device]:
    """Return the CPU, then every GPU that CUDA_VISIBLE_DEVICES shows.

    Reading a GPU's free memory creates a CUDA context on it. Call this in a process that exits soon, or one that trains
    on the GPU anyway.
    """
    devices = [_describe_cpu()]
    if torch.cuda.is_available():
        devices += [_describe_gpu(index) for index in range(torch.cuda.device_count())]
    return devices


def describe_device(name: str) -> Device:
    """Return the device that PyTorch calls ``name``, without touching any other GPU.

    Raises:
        DeviceError: There is no such device.
    """
    device = torch.device(name)
    if device.type == "cpu":
        return _describe_cpu()
    index = device.index or 0
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise DeviceError(
            f"{name} is not available", hint="Check `lmconsole doctor` and nvidia-smi, then run the experiment again."
        )
    return _describe_gpu(index)


def unseen_gpu() -> Device:
    """Return what is known of a GPU that a job on another machine will have: that PyTorch calls it ``cuda:0``."""
    return Device(device="cuda:0", name="GPU of the job", uuid=None, total_mib=None, free_mib=None, bf16_native=True)


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Return a GPU's compute capability, (9, 0) for Hopper; None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def set_device(device: str) -> None:
    """Make ``device`` the current GPU; do nothing for a CPU."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


def cuda_broken_by_fork() -> bool:
    """Return whether this process was forked from one that had used CUDA. CUDA fails in such a child, but works after
    an exec."""
    return torch.cuda._is_in_bad_fork()


def resolve_devices(spec: str, devices: Sequence[Device]) -> list[str]:
    """Return PyTorch's names of the devices in ``spec``, in its order.

    ``auto`` is the GPU with the most free memory, or the CPU if there is no GPU; ``cuda`` is that GPU and never the
    CPU; ``all`` is every GPU.

    Raises:
        DeviceError: ``spec`` is invalid, or names a device that is not among ``devices``.
    """
    wanted = spec.strip().lower()
    gpus = [device for device in devices if device.device.startswith("cuda")]
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return ["cpu"]
    if wanted in ("auto", "cuda"):
        return [max(_require_gpus(spec, gpus), key=lambda gpu: -1 if gpu.free_mib is None else gpu.free_mib).device]
    if wanted == "all":
        return [gpu.device for gpu in _require_gpus(spec, gpus)]
    names = [name.strip() for name in wanted.split(",")]
    if not all(re.fullmatch(r"cuda:(0|[1-9][0-9]{0,3})", name) for name in names):
        raise DeviceError(f"--device {spec!r}: not a device", hint=f"Use one of: {_SPECS}.")
    known = [gpu.device for gpu in _require_gpus(spec, gpus)]
    if missing := [name for name in names if name not in known]:
        raise DeviceError(
            f"--device {spec!r}: {' and '.join(missing)} not found. Visible devices: {', '.join(known)}.",
            hint="Name a visible device, use --device auto, or check CUDA_VISIBLE_DEVICES.",
        )
    if len(set(names)) < len(names):
        raise DeviceError(
            f"--device {spec!r}: a device is named twice", hint="To run several experiments on one device, use --jobs."
        )
    return names


def resolve_precision(wanted: str, device: str | Device) -> Precision:
    """Return the precision that ``wanted`` means on ``device``: ``auto`` is bf16 where that is native, otherwise fp32.

    Raises:
        DeviceError: There is no such precision, or the device has no TF32.
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
                    f"--precision tf32: {found.device} ({found.name}) has no TF32. TF32 needs an NVIDIA GPU "
                    "with compute capability 8.0 or higher.",
                    hint="Use --precision fp32, bf16 or auto.",
                )
            return "tf32"
        case _:
            raise DeviceError(f"--precision {wanted!r}: not a precision", hint="Use one of: auto, fp32, tf32, bf16.")


def apply_precision(precision: Precision) -> None:
    """Turn TF32 on for ``tf32`` and off otherwise, in cuBLAS and in cuDNN, whose default is on.

    PyTorch 2.9 has newer names for these switches, but some of its own code still reads the older ones, and fails if
    only the newer ones were set. Set by the older names, both agree.
    """
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    # Sums inside a bf16 product stay float32, whatever the library would prefer.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def autocast(precision: Precision, device: str) -> AbstractContextManager[object]:
    """Return a context that casts the inputs of matrix products to bfloat16 for ``bf16``, and does nothing
    otherwise."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def compute_dtype(precision: Precision) -> torch.dtype:
    """Return the type of the factors of matrix products. TF32 multiplies float32."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def set_threads(n: int) -> None:
    """Compute with ``n`` threads. The number changes the last bits of a sum."""
    torch.set_num_threads(n)


def synchronize(device: str) -> None:
    """Wait until the device has finished all launched work. Do so on both sides of a timed section."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def versions() -> dict[str, str | None]:
    """Return the versions of PyTorch, CUDA and cuDNN, on which results depend; None where there is none."""
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    return {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
    }


def cpu_capability() -> str:
    """Return the vector instructions that PyTorch uses: ``AVX2``, ``AVX512``, ``DEFAULT`` for none."""
    return torch.backends.cpu.get_cpu_capability()


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
    """Return whether the text of /proc/cpuinfo lists bfloat16 products: AVX512_BF16 or AMX on x86, ``bf16`` on ARM.

    oneDNN computes them on any AVX-512 machine. Without these instructions it does so by way of float32, which is
    slower than float32 itself.
    """
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = set(lines[0].split()) if lines else set()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _require_gpus(spec: str, gpus: Sequence[Device]) -> Sequence[Device]:
    if gpus:
        return gpus
    if torch.version.cuda is None and torch.version.hip is None:
        why = f"PyTorch {torch.__version__} is built without CUDA"
        hint = "Install a CUDA build of PyTorch (https://pytorch.org/get-started), or use --device cpu."
    else:
        why = "no CUDA device found"
        hint = "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu."
    raise DeviceError(f"--device {spec!r}: {why}", hint=hint)
