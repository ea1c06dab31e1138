"""Devices and precisions: what is requested, what exists, and the errors if they differ."""

from types import SimpleNamespace

import pytest
import torch

from lmconsole.errors import DeviceError
from lmconsole.lm import device as d
from lmconsole.lm.device import Device
from lmconsole.lm.memory import allocator_mib
from lmconsole.plan.experiment import Precision


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
def test_a_machine_with_gpus_has_the_requested_devices(spec: str, names: list[str]) -> None:
    assert d.resolve_devices(spec, BOX) == names


@pytest.mark.parametrize("spec", ["auto", "cpu"])
def test_a_machine_without_gpus_has_its_cpu(spec: str) -> None:
    assert d.resolve_devices(spec, [CPU]) == ["cpu"]


def test_gpus_with_unknown_free_memory_are_found() -> None:
    assert d.resolve_devices("auto", [CPU, gpu(0, None)]) == ["cuda:0"]


@pytest.mark.parametrize("spec", ["cuda", "all", "cuda:0", "cuda:0,cuda:1"])
def test_a_gpu_requested_without_cuda_is_an_error_with_a_hint(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    with pytest.raises(DeviceError) as caught:
        d.resolve_devices(spec, [CPU])
    assert spec in caught.value.message
    assert "built without CUDA" in caught.value.message
    assert "--device cpu" in str(caught.value.hint)


def test_a_cuda_build_without_gpu_refers_to_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(DeviceError) as caught:
        d.resolve_devices("cuda", [CPU])
    assert "no CUDA device" in caught.value.message
    assert "nvidia-smi" in str(caught.value.hint)


@pytest.mark.parametrize("spec", ["cuda:3", "cuda:0,cuda:7"])
def test_an_index_too_large_lists_the_devices(spec: str) -> None:
    with pytest.raises(DeviceError) as caught:
        d.resolve_devices(spec, BOX)
    assert spec[-6:] in caught.value.message
    assert "cuda:0, cuda:1, cuda:2" in caught.value.message


@pytest.mark.parametrize(
    "spec", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0,", "cuda:01", "cpu,cuda:0", "\x1b[31m"]
)
def test_an_invalid_spec_is_an_error(spec: str) -> None:
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
        ("flags\t\t: fpu avx512f avx512bw avx512vl avx512dq avx512_vnni\n", False),  # emulated by way of float32
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
def test_a_named_precision_is_used_as_it_is(wanted: str) -> None:
    assert d.resolve_precision(wanted, CPU) == d.resolve_precision(wanted, gpu(0, 1)) == wanted


def test_tf32_needs_an_ampere_gpu() -> None:
    assert d.resolve_precision("tf32", gpu(0, 1)) == "tf32"
    for without in (CPU, "cpu", gpu(0, 1, bf16=False)):
        with pytest.raises(DeviceError, match="no TF32") as caught:
            d.resolve_precision("tf32", without)
        assert "--precision fp32" in str(caught.value.hint)


def test_an_unknown_precision_lists_the_known() -> None:
    with pytest.raises(DeviceError) as caught:
        d.resolve_precision("fp8", CPU)
    assert "auto, fp32, tf32, bf16" in str(caught.value.hint)


def tf32_switches() -> list[bool]:
    return [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]


def test_tf32_is_off_for_fp32_in_cublas_and_in_cudnn() -> None:
    try:
        others: tuple[Precision, ...] = ("fp32", "bf16")
        for precision in others:
            d.apply_precision("tf32")
            assert tf32_switches() == [True, True]
            d.apply_precision(precision)
            assert tf32_switches() == [False, False]
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        d.apply_precision("fp32")


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 brought the newer names"
)
def test_the_newer_switches_agree() -> None:
    cudnn = torch.backends.cudnn
    try:
        switches: tuple[tuple[Precision, bool], ...] = (("tf32", True), ("fp32", False))
        for precision, on in switches:
            d.apply_precision(precision)
            for switch in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn):  # type: ignore[attr-defined]
                assert (switch.fp32_precision == "tf32") is on
    finally:
        d.apply_precision("fp32")


def test_autocast_casts_products_for_bf16_alone() -> None:
    a = torch.ones(2, 2)
    dtypes: dict[Precision, torch.dtype] = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
    for precision, dtype in dtypes.items():
        with d.autocast(precision, "cpu"):
            assert (a @ a).dtype == dtype
        assert d.compute_dtype(precision) == dtype


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        d.set_threads(2)
        assert torch.get_num_threads() == 2
    finally:
        d.set_threads(before)


def test_a_cpu_needs_no_synchronization() -> None:
    d.synchronize("cpu")


def test_versions_name_torch_and_cuda() -> None:
    cudnn = str(torch.backends.cudnn.version()) if torch.version.cuda else None
    assert d.versions() == {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}


@pytest.mark.gpu
def test_a_real_gpu_is_described_and_measured() -> None:
    found = d.describe_devices()[1]
    assert found.uuid is not None
    assert found.uuid.startswith(("GPU-", "MIG-"))
    assert found.total_mib is not None
    held = torch.empty(2**20, device="cuda:0")
    d.synchronize("cuda:0")
    allocated, reserved = allocator_mib("cuda:0")
    assert allocated is not None
    assert reserved is not None
    assert held.nbytes / 2**20 <= allocated <= reserved <= found.total_mib
