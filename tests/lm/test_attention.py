"""The attention backend of each device and shape: the rule, and that no other backend is used."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmconsole.errors import TrainingError
from lmconsole.lm import device, gpt1
from lmconsole.lm.gpt1 import Attention, AttentionBackend, attention_backend
from lmconsole.lm.model import attention_of
from lmconsole.plan.experiment import Precision, Settings
from lmconsole.plan.load import load_plan

FP32, BF16 = torch.float32, torch.bfloat16
VOLTA, AMPERE, AMPERE_SMALL, ADA, HOPPER, BLACKWELL, BLACKWELL_SMALL = (
    (7, 0),
    (8, 0),
    (8, 6),
    (8, 9),
    (9, 0),
    (10, 0),
    (12, 0),
)


@pytest.mark.parametrize(
    ("device_type", "capability", "dtype", "head_channels", "backend"),
    [
        ("cpu", None, FP32, 64, "fused"),
        ("cpu", None, BF16, 64, "written out"),
        ("cpu", None, BF16, 7, "written out"),
        ("cuda", HOPPER, BF16, 64, "flash"),
        ("cuda", AMPERE, BF16, 64, "flash"),
        ("cuda", HOPPER, BF16, 20, "flash"),  # padded by torch
        ("cuda", HOPPER, BF16, 256, "flash"),
        ("cuda", BLACKWELL, BF16, 256, "flash"),
        ("cuda", HOPPER, BF16, 264, "efficient"),
        ("cuda", HOPPER, BF16, 260, "math"),
        ("cuda", ADA, BF16, 192, "flash"),
        ("cuda", ADA, BF16, 200, "efficient"),
        ("cuda", AMPERE_SMALL, BF16, 256, "efficient"),
        ("cuda", BLACKWELL_SMALL, BF16, 200, "efficient"),
        ("cuda", VOLTA, BF16, 64, "math"),
        ("cuda", HOPPER, FP32, 64, "efficient"),
        ("cuda", HOPPER, FP32, 20, "efficient"),
        ("cuda", HOPPER, FP32, 22, "math"),
        ("cuda", VOLTA, FP32, 22, "efficient"),
    ],
)
def test_device_and_shape_determine_the_backend(
    device_type: str, capability: tuple[int, int] | None, dtype: torch.dtype, head_channels: int, backend: str
) -> None:
    found = attention_backend(device_type, dtype, head_channels=head_channels, capability=capability)
    assert found == backend
    assert found in get_args(AttentionBackend)


def settings_of(experiment: int, **changes: object) -> Settings:
    plan = load_plan()
    return plan.resolve(plan.experiment(experiment), "demo", changes).settings


@pytest.mark.parametrize(
    ("experiment", "precision", "device_name", "backend"),
    [
        (1, "fp32", "cpu", None),
        (10, "bf16", "cuda:0", None),
        (5, "fp32", "cpu", "fused"),
        (12, "bf16", "cpu", "written out"),
        (5, "bf16", "cuda:0", "flash"),
        (5, "tf32", "cuda:0", "efficient"),
        (5, "fp32", "cuda:0", "efficient"),
    ],
)
def test_the_backend_in_the_log_follows_the_same_rule(
    experiment: int, precision: Precision, device_name: str, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: HOPPER)
    assert attention_of(settings_of(experiment), precision, device_name) == backend


class Called(torch.overrides.TorchFunctionMode):
    """Records whether PyTorch's own attention is called."""

    fused = False

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.fused |= func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_uses_the_logged_backend_in_training_and_in_evaluation(precision: Precision, training: bool) -> None:
    attention = Attention(channels=12, heads=3, dropout=0.0).train(training)
    with device.autocast(precision, "cpu"), Called() as called, torch.set_grad_enabled(training):
        attention(torch.randn(2, 7, 12))
    recorded = attention_of(settings_of(5, channels=12, heads=3), precision, "cpu")
    assert recorded == ("fused" if called.fused else "written out")


def operations(backend: AttentionBackend, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], list[Tensor]]:
    """Return the operations of a forward and a backward pass with ``backend``, and features and gradients."""
    monkeypatch.setattr(gpt1, "attention_backend", lambda *_, **__: backend)
    torch.manual_seed(0)
    attention, x = Attention(channels=12, heads=3, dropout=0.0), torch.randn(2, 7, 12, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = attention(x)
        y.sum().backward()
    assert x.grad is not None
    return {event.key for event in profile.key_averages()}, [y.detach(), x.grad]


def test_only_the_chosen_backend_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch has two backends for CPUs and prefers flash."""
    flash, found = operations("flash", monkeypatch)
    math, expected = operations("math", monkeypatch)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in flash
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in flash
    assert "aten::_scaled_dot_product_attention_math" not in flash
    assert "aten::_scaled_dot_product_attention_math" in math
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" not in math
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.filterwarnings("ignore")  # PyTorch warns about each backend it cannot use
def test_a_backend_that_pytorch_lacks_is_an_error_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError) as caught:
        operations("efficient", monkeypatch)
    assert caught.value.kind == "attention"
    assert "cpu" in caught.value.message
    assert "no efficient attention for heads of 4 channels in float32" in caught.value.message
    assert torch.backends.cuda.flash_sdp_enabled(), "the global switches are restored"


def test_other_errors_in_attention_are_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt1, "attention_backend", lambda *_, **__: "math")
    monkeypatch.setattr(F, "scaled_dot_product_attention", _runs_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        Attention(channels=12, heads=3, dropout=0.0)(torch.randn(2, 7, 12))


def _runs_out_of_memory(*_: object, **__: object) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_changes_no_global_switches(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("switches cost time on every call")

    monkeypatch.setattr(gpt1, "sdpa_kernel", refuse)
    with device.autocast(precision, "cpu"):
        Attention(channels=12, heads=3, dropout=0.0)(torch.randn(2, 7, 12))


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("precision", "kernel"), [("bf16", "flash"), ("fp32", "fmha")])
def test_a_gpu_runs_the_logged_kernel(precision: Precision, kernel: str, training: bool) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("flash attention needs compute capability 8.0")
    device.apply_precision(precision)
    attention = Attention(channels=768, heads=12, dropout=0.0).to("cuda").train(training)
    x = torch.randn(5, 256, 768, device="cuda", requires_grad=training)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile, torch.set_grad_enabled(training):
        with device.autocast(precision, "cuda"):
            y = attention(x)
        if training:
            y.float().sum().backward()
    seen = [event.key for event in profile.key_averages()]
    backend = {"flash": "flash", "fmha": "efficient"}[kernel]
    assert f"aten::_scaled_dot_product_{backend}_attention" in seen
    assert (f"aten::_scaled_dot_product_{backend}_attention_backward" in seen) == training
    assert not any("cudnn_attention" in name for name in seen)
    assert any(kernel in name.lower() for name in seen if not name.startswith("aten::")), seen
    assert attention_of(settings_of(5, channels=768, heads=12), precision, "cuda:0") == backend
