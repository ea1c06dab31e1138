"""Kernels of our own against their plain twins: on a GPU as they are, elsewhere in Triton's interpreter, which runs
them in numpy, program by program."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmconsole.lm import loss
from lmconsole.lm.loss import IGNORE, head_loss_sum

FP32, BF16 = torch.float32, torch.bfloat16
WHERE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = [pytest.mark.gpu] if WHERE == "cuda" else []


@pytest.fixture(autouse=True)
def triton_and_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 logits a row, so that small vocabularies are cut, and the last tile is narrower."""
    if WHERE == "cpu":
        monkeypatch.setattr(loss, "_WIDENING_PRODUCTS", False)  # torch has them for GPUs alone
    pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs, and for Linux alone")
    monkeypatch.setitem(loss._TILE_VALUES, WHERE, 64 * 16)


def draw(n: int = 40, vocabulary: int = 301, channels: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, C), a table (V, C), and n targets of which some are to be ignored."""
    g = torch.Generator().manual_seed(0)
    features, table = torch.randn(n, channels, generator=g), torch.randn(vocabulary, channels, generator=g)
    targets = torch.randint(0, vocabulary, (n,), generator=g)
    targets[::7] = IGNORE
    return features.to(WHERE), table.to(WHERE), targets.to(WHERE)


def of(
    features: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype, *, learned: bool, own: bool
) -> list[Tensor]:
    """Loss and gradients."""
    x, w = features.clone().requires_grad_(), table.clone().requires_grad_(learned)
    value = head_loss_sum(x, w, targets, compute_dtype=dtype, chunk_rows=16, own_kernels=own)
    value.backward()
    return [value.detach(), *(each.grad for each in (x, w) if each.grad is not None)]


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("vocabulary", [64, 301])
def test_the_head_comes_to_the_same_and_to_the_textbooks(dtype: torch.dtype, learned: bool, vocabulary: int) -> None:
    inputs = draw(vocabulary=vocabulary)
    ours, plain = (of(*inputs, dtype, learned=learned, own=own) for own in (True, False))
    x, w = inputs[0].double().requires_grad_(), inputs[1].double().requires_grad_(learned)
    value = F.cross_entropy(x @ w.T, inputs[2], ignore_index=IGNORE, reduction="sum")
    value.backward()
    exact = [value.detach(), *(each.grad for each in (x, w) if each.grad is not None)]
    assert len(ours) == len(plain) == len(exact) == 2 + learned
    for mine, twin, textbook in zip(ours, plain, exact, strict=True):
        assert distance(mine, twin) < (1e-6 if dtype == FP32 else 3e-3)
        assert distance(mine, textbook) < (1e-6 if dtype == FP32 else 1e-2)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_without_gradients_the_loss_is_the_same_number(dtype: torch.dtype) -> None:
    inputs = draw()
    with torch.no_grad():
        alone = head_loss_sum(*inputs, compute_dtype=dtype, chunk_rows=16, own_kernels=True)
    assert torch.equal(alone, of(*inputs, dtype, learned=False, own=True)[0])


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    table = torch.zeros(300, 1, device=WHERE)
    table[7], table[250] = 300.0, 1000.0  # in different tiles, exp of either being infinite
    targets = torch.tensor([250, 7], device=WHERE)
    value = head_loss_sum(
        torch.ones(2, 1, device=WHERE), table, targets, compute_dtype=FP32, chunk_rows=16, own_kernels=True
    )
    assert value.item() == pytest.approx(700.0, rel=1e-6)


@pytest.mark.filterwarnings(
    "ignore:(invalid value|All-NaN slice) encountered:RuntimeWarning"
)  # the interpreter's numpy
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["features", "table"])
def test_a_value_that_is_not_finite_gives_a_loss_that_is_not(bad: float, place: str) -> None:
    features, table, targets = draw()
    (features if place == "features" else table)[4, 2] = bad
    assert not of(features, table, targets, FP32, learned=False, own=True)[0].isfinite()


def test_only_what_the_rows_have_is_written() -> None:
    """Rows of the last tile are apart; what lies between them belongs to nobody."""
    from lmconsole.lm import kernels

    room = torch.full((8, 64), 5.0, device=WHERE)
    tile = room[:, :45]
    column = torch.zeros(8, 1, device=WHERE)
    mean = torch.ones(8, 3, device=WHERE)
    seen = loss.Seen(column - math.inf, column.clone(), column + math.nan, mean, [])
    kernels.absorb(tile, seen, torch.zeros(8, 1, dtype=torch.int64, device=WHERE), 64, 1.0, True)
    assert torch.equal(room[:, 45:], torch.full((8, 19), 5.0, device=WHERE))
    assert torch.equal(tile, torch.ones(8, 45, device=WHERE)), "every logit is the largest"
    assert torch.equal(seen.summed, column + 45)
    assert seen.target.isnan().all(), "the targets are in another tile"
    assert torch.equal(mean, torch.zeros(8, 3, device=WHERE)), "what was gathered before anything was seen is nothing"
