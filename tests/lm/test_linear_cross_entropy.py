"""Fused linear cross-entropy compared with full logits in float64, for any chunks and tiles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lmconsole.lm import linear_cross_entropy as loss_module
from lmconsole.lm.linear_cross_entropy import IGNORE, linear_cross_entropy

FP32, BF16 = torch.float32, torch.bfloat16


def draw(n: int, vocabulary: int, channels: int, *, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, C), a table (V, C) and n targets."""
    g = torch.Generator().manual_seed(seed)
    features, table = torch.randn(n, channels, generator=g) * scale, torch.randn(vocabulary, channels, generator=g)
    return features, table, torch.randint(0, vocabulary, (n,), generator=g)


def fused(
    features: Tensor, table: Tensor, targets: Tensor, *, dtype: torch.dtype = FP32, rows: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and both gradients of the mean loss."""
    x, w = features.clone().requires_grad_(), table.clone().requires_grad_()
    value = linear_cross_entropy(x, w, targets, compute_dtype=dtype, chunk_rows=rows)
    (value / len(targets)).backward()
    assert x.grad is not None
    assert w.grad is not None
    return value.detach(), x.grad, w.grad


def full_logits(features: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same from full logits in float64."""
    x, w = features.double().requires_grad_(), table.double().requires_grad_()
    value = F.cross_entropy(x @ w.T, targets, ignore_index=IGNORE, reduction="sum")
    (value / len(targets)).backward()
    assert x.grad is not None
    assert w.grad is not None
    return value.detach(), x.grad, w.grad


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 logits a row, so that small vocabularies are cut too."""
    monkeypatch.setitem(loss_module._TILE_LOGITS, "cpu", 64)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("rows", [None, 1, 7, 50, 1000])
def test_loss_and_gradients_are_those_of_full_logits(rows: int | None) -> None:
    features, table, targets = draw(50, 301, 16)
    targets[::7] = IGNORE
    for mine, exact in zip(
        fused(features, table, targets, rows=rows), full_logits(features, table, targets), strict=True
    ):
        assert distance(mine, exact) < 1e-6


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    vocabulary=st.integers(1, 200),
    channels=st.integers(1, 9),
    rows=st.none() | st.integers(1, 50),
    ignored=st.floats(0, 1),
    scale=st.sampled_from([1e-3, 1.0, 10.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_any_chunk_agree_with_full_logits(
    n: int, vocabulary: int, channels: int, rows: int | None, ignored: float, scale: float, seed: int
) -> None:
    features, table, targets = draw(n, vocabulary, channels, seed=seed, scale=scale)
    targets[torch.rand(n, generator=torch.Generator().manual_seed(seed)) < ignored] = IGNORE
    value, grad_x, grad_w = fused(features, table, targets, rows=rows)
    exact, exact_x, exact_w = full_logits(features, table, targets)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-5 * n)
    atol = 2e-6 * max(scale, 1.0)  # a gradient is a difference of numbers of this size
    torch.testing.assert_close(grad_x.double(), exact_x, rtol=1e-5, atol=atol)
    torch.testing.assert_close(grad_w.double(), exact_w, rtol=1e-5, atol=atol)


def test_a_frozen_weight_has_no_gradient_and_that_of_the_features_is_the_same() -> None:
    features, table, targets = draw(30, 99, 8)
    x = features.clone().requires_grad_()
    (linear_cross_entropy(x, table, targets, compute_dtype=FP32) / 30).backward()
    assert table.grad is None
    assert x.grad is not None
    assert torch.equal(x.grad, fused(features, table, targets)[1])


def test_a_weight_can_be_learned_with_fixed_features() -> None:
    features, table, targets = draw(30, 99, 8)
    w = table.clone().requires_grad_()
    linear_cross_entropy(features, w, targets, compute_dtype=FP32).backward()
    assert w.grad is not None
    assert distance(w.grad / 30, full_logits(features, table, targets)[2]) < 1e-6


def test_without_gradients_the_loss_is_the_same_number() -> None:
    features, table, targets = draw(30, 99, 8)
    with_gradient = linear_cross_entropy(features.clone().requires_grad_(), table, targets, compute_dtype=FP32)
    with torch.no_grad():
        without = linear_cross_entropy(features.clone().requires_grad_(), table, targets, compute_dtype=FP32)
    assert without.requires_grad is False
    assert without.dtype == with_gradient.dtype == FP32
    assert without.shape == ()
    assert torch.equal(without, with_gradient.detach())


def test_an_ignored_position_changes_nothing_even_if_it_is_nan() -> None:
    features, table, targets = draw(20, 50, 8)
    targets[3] = IGNORE
    x = features.clone()
    x[3] = math.nan
    x.requires_grad_()
    value = linear_cross_entropy(x, table, targets, compute_dtype=FP32)
    value.backward()
    kept = torch.arange(20) != 3
    expected = F.cross_entropy(features[kept] @ table.T, targets[kept], reduction="sum")
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert x.grad is not None
    assert torch.equal(x.grad[3], torch.zeros(8))


def test_a_batch_of_padding_has_zero_loss() -> None:
    features, table, _ = draw(5, 50, 8)
    value, grad_x, grad_w = fused(features, table, torch.full((5,), IGNORE))
    assert value.item() == grad_x.abs().sum().item() == grad_w.abs().sum().item() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["features", "table"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_non_finite_input_gives_a_non_finite_loss(bad: float, place: str, dtype: torch.dtype) -> None:
    features, table, targets = draw(20, 50, 8)
    (features if place == "features" else table)[4, 2] = bad
    assert not fused(features, table, targets, dtype=dtype)[0].isfinite()
    with torch.no_grad():
        assert not linear_cross_entropy(features, table, targets, compute_dtype=dtype).isfinite()


@pytest.mark.usefixtures("small_tiles")
def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    table = torch.zeros(300, 1)
    table[7], table[250] = 300.0, 1000.0  # in different tiles; exp of either is infinite
    features = torch.ones(2, 1)
    value = linear_cross_entropy(features, table, torch.tensor([250, 7]), compute_dtype=FP32)
    assert value.item() == pytest.approx(700.0, rel=1e-6)


@pytest.mark.usefixtures("small_tiles")
def test_a_certain_prediction_has_exactly_zero_loss() -> None:
    table = torch.eye(200)
    features = 1000 * table
    assert linear_cross_entropy(features, table, torch.arange(200), compute_dtype=FP32).item() == 0.0


@pytest.mark.usefixtures("small_tiles")
def test_bf16_stays_close_to_fp32() -> None:
    features, table, targets = draw(200, 700, 64, scale=0.3)
    targets[::9] = IGNORE
    for rough, exact in zip(
        fused(features, table, targets, dtype=BF16), full_logits(features, table, targets), strict=True
    ):
        assert rough.dtype == FP32
        assert distance(rough, exact) < 0.01


def test_bf16_features_have_a_bf16_gradient() -> None:
    features, table, targets = draw(20, 50, 8)
    x = features.to(BF16).requires_grad_()
    linear_cross_entropy(x, table.to(BF16), targets, compute_dtype=BF16).backward()
    assert x.grad is not None
    assert x.grad.dtype == BF16


def test_autocast_changes_no_bit() -> None:
    features, table, targets = draw(20, 50, 8)
    plain = fused(features, table, targets)
    with torch.autocast("cpu", dtype=BF16):
        cast = fused(features, table, targets)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_same_input_gives_the_same_bits(dtype: torch.dtype) -> None:
    features, table, targets = draw(300, 500, 32)
    first = fused(features, table, targets, dtype=dtype, rows=128)
    second = fused(features, table, targets, dtype=dtype, rows=128)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_second_backward_pass_is_an_error() -> None:
    features, table, targets = draw(20, 50, 8)
    value = linear_cross_entropy(features.requires_grad_(), table, targets, compute_dtype=FP32)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Compute the loss again"):
        value.backward()


def test_no_tensor_of_tokens_times_vocabulary_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    N, V, C = 512, 4096, 4
    monkeypatch.setitem(loss_module._CHUNK_ROWS, "cpu", 64)
    monkeypatch.setitem(loss_module._TILE_LOGITS, "cpu", 64 * 64)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    features, table, targets = draw(N, V, C)
    with Watch():
        linear_cross_entropy(features.requires_grad_(), table, targets, compute_dtype=FP32).backward()
    assert 0 < largest <= max(64 * 64, V * C)
    largest = 0
    with Watch():
        linear_cross_entropy(features, table.requires_grad_(), targets, compute_dtype=FP32).backward()
    assert 0 < largest <= 64 * V
