"""Devices and precisions: what is asked for, what there is, and what is said where they differ."""

import contextlib
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lmconsole.errors import DeviceError
from lmconsole.lm import device as d
from lmconsole.lm.device import Device


def gpu(index: int, free_mib: int | None, *, bf16: bool = True) -> Device:
    return Device(
        device=f"cuda:{index}",
        name="Some GPU",
        uuid=f"GPU-{index}",
        total_mib=80_000,
        free_mib=free_mib,
        bf16_native=bf16,
    )


CPU = Device(device="cpu", name="Some CPU", uuid=None, total_mib=64_000, free_mib=32_000, bf16_native=False)
BOX = [CPU, gpu(0, 1_000), gpu(1, 70_000), gpu(2, None)]


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("auto", ["cuda:1"]),
        ("cuda", ["cuda:1"]),
        ("cpu", ["cpu"]),
        ("all", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:0", ["cuda:0"]),
        ("cuda:2,cuda:0", ["cuda:2", "cuda:0"]),
        (" CUDA:0 , cuda:1 ", ["cuda:0", "cuda:1"]),
    ],
)
def test_a_box_with_gpus_gives_what_is_asked_for(spec: str, names: list[str]) -> None:
    assert d.resolve_devices(spec, BOX) == names


@pytest.mark.parametrize("spec", ["auto", "cpu"])
def test_a_machine_without_gpus_gives_its_cpu(spec: str) -> None:
    assert d.resolve_devices(spec, [CPU]) == ["cpu"]


def test_gpus_that_do_not_say_what_is_free_are_still_found() -> None:
    assert d.resolve_devices("auto", [CPU, gpu(0, None)]) == ["cuda:0"]


@pytest.mark.parametrize("spec", ["cuda", "all", "cuda:0", "cuda:0,cuda:1"])
def test_asking_for_a_gpu_without_cuda_says_so_and_what_to_do(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    with pytest.raises(DeviceError) as caught:
        d.resolve_devices(spec, [CPU])
    assert spec in caught.value.message
    assert "built without CUDA" in caught.value.message
    assert "--device cpu" in str(caught.value.hint)


def test_a_cuda_build_that_finds_no_gpu_points_at_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(DeviceError) as caught:
        d.resolve_devices("cuda", [CPU])
    assert "no CUDA device" in caught.value.message
    assert "nvidia-smi" in str(caught.value.hint)


@pytest.mark.parametrize("spec", ["cuda:3", "cuda:0,cuda:7"])
def test_an_index_too_large_names_what_there_is(spec: str) -> None:
    with pytest.raises(DeviceError) as caught:
        d.resolve_devices(spec, BOX)
    assert spec[-6:] in caught.value.message
    assert "cuda:0, cuda:1, cuda:2" in caught.value.message


@pytest.mark.parametrize(
    "spec", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0,", "cuda:01", "cpu,cuda:0", "\x1b[31m"]
)
def test_nonsense_is_no_device(spec: str) -> None:
    with pytest.raises(DeviceError, match="not a device") as caught:
        d.resolve_devices(spec, BOX)
    assert "cuda:0,cuda:1" in str(caught.value.hint)
    assert "\x1b" not in str(caught.value)


def test_a_device_named_twice_is_refused() -> None:
    with pytest.raises(DeviceError, match="twice"):
        d.resolve_devices("cuda:0,cuda:0", BOX)


def test_this_machine_describes_itself() -> None:
    first, *gpus = d.describe_devices()
    assert first.device == "cpu"
    assert first.name
    assert first.uuid is None
    assert first.total_mib is None or first.total_mib > 100
    assert [each.device for each in gpus] == [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def test_a_gpu_is_named_as_nvml_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA A100-SXM4-40GB", uuid="1F2E-aa", total_memory=40 * 2**30, major=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (30 * 2**30, 40 * 2**30))
    found = d._describe_gpu(1)
    assert (found.device, found.uuid, found.bf16_native) == ("cuda:1", "GPU-1f2e-aa", True)
    assert (found.free_mib, found.total_mib) == (30 * 1024, 40 * 1024)
    properties.name += " MIG 1g.5gb"
    assert d._describe_gpu(1).uuid == "MIG-1f2e-aa"


def test_a_gpu_too_full_to_ask_has_unknown_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> tuple[int, int]:
        raise RuntimeError("CUDA error: out of memory")

    properties = SimpleNamespace(name="Tesla V100", total_memory=2**34, major=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    found = d._describe_gpu(0)
    assert (found.free_mib, found.uuid, found.bf16_native) == (None, None, False)


@pytest.mark.parametrize(
    ("cpuinfo", "native"),
    [
        ("model name : x\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx512f avx512bw avx512vl avx512dq avx512_vnni\n", False),  # computed, but by way of float32
        ("Features\t: fp asimd sve\n", False),
        ("", False),
    ],
)
def test_a_cpu_has_bf16_only_with_instructions_for_it(cpuinfo: str, native: bool) -> None:
    assert d.has_bf16_products(cpuinfo) is native


def test_auto_precision_is_bf16_only_where_that_is_native() -> None:
    assert d.resolve_precision("auto", CPU) == "fp32"
    assert d.resolve_precision("auto", gpu(0, 1)) == "bf16"
    assert d.resolve_precision("auto", gpu(0, 1, bf16=False)) == "fp32"
    assert d.resolve_precision("auto", "cpu") == ("bf16" if d.describe_devices()[0].bf16_native else "fp32")


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_named_precision_is_taken_at_its_word(wanted: str) -> None:
    assert d.resolve_precision(wanted, CPU) == d.resolve_precision(wanted, gpu(0, 1)) == wanted


def test_tf32_takes_an_ampere_gpu() -> None:
    assert d.resolve_precision("tf32", gpu(0, 1)) == "tf32"
    for without in (CPU, "cpu", gpu(0, 1, bf16=False)):
        with pytest.raises(DeviceError, match="no TF32") as caught:
            d.resolve_precision("tf32", without)
        assert "--precision fp32" in str(caught.value.hint)


def test_an_unknown_precision_lists_the_known() -> None:
    with pytest.raises(DeviceError) as caught:
        d.resolve_precision("fp8", CPU)
    assert "auto, fp32, tf32, bf16" in str(caught.value.hint)


def test_tf32_is_off_for_fp32_in_cudnn_too_whatever_was_set_before() -> None:
    try:
        d.apply_precision("tf32")
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        for precision in ("fp32", "bf16"):
            d.apply_precision("tf32")
            d.apply_precision(precision)  # type: ignore[arg-type]
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        d.apply_precision("fp32")


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 brought the newer names"
)
def test_the_newer_switches_say_the_same() -> None:
    cudnn = torch.backends.cudnn
    try:
        for precision, on in (("tf32", True), ("fp32", False)):
            d.apply_precision(precision)  # type: ignore[arg-type]
            for switch in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn):  # type: ignore[attr-defined]
                assert (switch.fp32_precision == "tf32") is on
    finally:
        d.apply_precision("fp32")


def test_autocast_casts_products_for_bf16_alone() -> None:
    a = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with d.autocast(precision, "cpu"):  # type: ignore[arg-type]
            assert (a @ a).dtype == dtype
        assert d.compute_dtype(precision) == dtype  # type: ignore[arg-type]


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        d.set_threads(2)
        assert torch.get_num_threads() == 2
    finally:
        d.set_threads(before)


def test_a_cpu_has_nothing_to_wait_for_and_no_allocator_to_ask() -> None:
    d.synchronize("cpu")
    assert d.memory_mib("cpu") == (None, None)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs GNU's C library")
def test_freed_memory_is_kept_and_not_asked_for_again() -> None:
    code = (
        "import resource, sys, torch\n"
        "from lmconsole.lm import device\n"
        "device.keep_freed_memory(sys.argv[1])\n"
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


def test_versions_name_torch_and_cuda() -> None:
    assert d.versions() == {"torch": torch.__version__, "cuda": torch.version.cuda}


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
def test_memory_that_ran_out_is_recognised(error: BaseException) -> None:
    assert d.out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory"), KeyError("x")]
)
def test_other_failures_are_not_taken_for_it(error: BaseException) -> None:
    assert not d.out_of_memory(error)


def test_the_real_cpu_allocator_is_recognised() -> None:
    with contextlib.suppress(NotImplementedError), pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.float64)
    assert d.out_of_memory(caught.value)


@pytest.mark.gpu
def test_a_real_gpu_is_described_and_measured() -> None:
    found = d.describe_devices()[1]
    assert found.uuid is not None
    assert found.uuid.startswith(("GPU-", "MIG-"))
    assert found.total_mib is not None
    held = torch.empty(2**20, device="cuda:0")
    d.synchronize("cuda:0")
    allocated, reserved = d.memory_mib("cuda:0")
    assert allocated is not None
    assert reserved is not None
    assert held.nbytes / 2**20 <= allocated <= reserved <= found.total_mib


def test_a_cpu_is_never_waited_for() -> None:
    assert d.mark("cpu") is None
    d.LaunchBound("cpu").launched()


@pytest.mark.parametrize(("launch_s", "ahead"), [(0.0, 16), (0.0023, 16), (0.02, 5), (0.03, 3), (0.2, 2)])
def test_slow_launches_are_let_ahead_a_tenth_of_a_second_and_two_at_least(launch_s: float, ahead: int) -> None:
    assert d.launches_ahead(launch_s) == ahead


@pytest.mark.gpu
def test_a_gpu_has_at_most_sixteen_launches_before_it() -> None:
    x, marks = torch.randn(2048, 2048, device="cuda:0"), []
    bound = d.LaunchBound("cuda:0")
    for _ in range(100):
        x = torch.mm(x, x).clamp(-1.0, 1.0)
        marks.append(torch.cuda.Event())
        marks[-1].record()
        assert sum(not mark.query() for mark in marks) <= d.AHEAD
        bound.launched()
    assert bound._allowed > 2
