"""Memory: errors that mean it ran out, and freed memory that the C library keeps."""

import contextlib
import platform
import subprocess
import sys

import pytest
import torch

from lmconsole.lm import memory


def test_pytorch_does_not_count_the_memory_of_a_cpu() -> None:
    assert memory.allocator_mib("cpu") == (None, None)
    assert memory.peak_allocated_mib("cpu") is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/clear_refs")
def test_the_peak_of_resident_memory_can_be_reset() -> None:
    block = torch.ones(2**26)  # 256 MiB
    before = memory.peak_rss_since_reset_mib()
    del block
    memory.reset_peak_rss()
    assert memory.peak_rss_since_reset_mib() < before - 200
    assert memory.peak_rss_mib() > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs GNU's C library")
def test_freed_memory_is_kept_and_not_requested_again() -> None:
    code = (
        "import resource, sys, torch\n"
        "from lmconsole.lm import memory\n"
        "memory.keep_freed_memory(sys.argv[1])\n"
        "def faults():\n    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "found = []\n"
        "for _ in range(40):\n    torch.ones(2**24)\n    torch.ones(2**22)\n    found.append(faults())\n"
        "print(found[-1] - found[-11])"
    )

    def faults(word: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", code, word], capture_output=True, text=True, check=True, timeout=60
        )
        return int(done.stdout)

    assert faults("cpu") < 100
    assert faults("cuda:0") > 10_000


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_running_out_of_memory_is_recognized(error: BaseException) -> None:
    assert memory.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory"), KeyError("x")]
)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not memory.is_out_of_memory(error)


def test_the_error_of_the_real_cpu_allocator_is_recognized() -> None:
    with contextlib.suppress(NotImplementedError), pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.float64)
    assert memory.is_out_of_memory(caught.value)
