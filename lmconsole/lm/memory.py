"""Memory of the process and of PyTorch's GPU allocator: readings, peaks, and whether it ran out."""

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

import torch

_MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h: free bytes at the end of the heap, bytes of a separate block
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|cudaErrorMemoryAllocation"
    r"|CU(BLAS|DNN|SOLVER)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


def allocator_mib(device: str) -> tuple[float, float] | tuple[None, None]:
    """Return the MiB in tensors and the MiB that PyTorch has reserved on a GPU; None for a CPU, where PyTorch does not
    count."""
    if not device.startswith("cuda"):
        return None, None
    return torch.cuda.memory_allocated(device) / _MIB, torch.cuda.memory_reserved(device) / _MIB


def peak_allocated_mib(device: str) -> float | None:
    """Return the peak MiB in tensors on a GPU since ``reset_peak_memory``; None for a CPU."""
    return None if device == "cpu" else torch.cuda.max_memory_allocated(device) / _MIB


def peak_rss_mib() -> float:
    """Return the peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def peak_rss_since_reset_mib() -> float:
    """Return the peak resident memory of this process in MiB since ``reset_peak_rss``; outside Linux, ever."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) / 1024
    return peak_rss_mib()


def reset_peak_memory(device: str) -> None:
    """Reset the GPU allocator's peak to what is allocated now."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def reset_peak_rss() -> None:
    """Reset the kernel's peak of resident memory to what is resident now; outside Linux, do nothing."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def empty_cache(device: str) -> None:
    """Return the GPU memory that PyTorch has reserved and does not use to the driver.

    After an aborted graph capture, PyTorch before 2.13 raises instead. That is ignored: it costs memory that only later
    attempts to allocate would miss.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def keep_freed_memory(device: str) -> None:
    """Make the C library keep the memory of freed CPU tensors instead of returning it to the system.

    Otherwise the next step requests it again, and the system hands it out page by page, each filled with zeros, which
    took a third of the time of a small step. Does nothing for a GPU, nor where the C library has no ``mallopt``.
    """
    if device != "cpu":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that a GPU or the machine ran out of memory.

    CPU allocators and CUDA libraries raise a plain RuntimeError, which only its message identifies.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and _OUT_OF_MEMORY.search(str(error)) is not None
