"""Kernels of our own against their plain twins: on a GPU as they are, elsewhere in Triton's interpreter, which runs
them in numpy, program by program."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmconsole.lm import linear_cross_entropy as loss
from lmconsole.lm.linear_cross_entropy import IGNORE, head_loss_sum

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
@pytest.mark.parametrize(("place", "row"), [("features", 4), ("table", 4), ("table", 150), ("table", 300)])
def test_a_value_that_is_not_finite_gives_a_loss_that_is_not(bad: float, place: str, row: int) -> None:
    features, table, targets = draw(n=8)
    (features if place == "features" else table)[row, 2] = bad
    assert not of(features, table, targets, FP32, learned=False, own=True)[0].isfinite()


TILES = 4
GROWS_IN = [{0}, {0, 1, 2, 3}, {0, 2}, {0, 3}, {0, 1}, {0, 1, 3}]
"""For each row, the tiles in which its largest logit so far comes."""


def logits_that_grow(tiles: int = TILES) -> Tensor:
    """Logits (R, 64 · tiles) whose maximum over a row grows in the tiles of ``GROWS_IN`` and comes again in others."""
    logits = torch.randn(len(GROWS_IN), 64 * tiles, generator=torch.Generator().manual_seed(3)).clamp_(-3, 3)
    for row, grows in enumerate(GROWS_IN):
        for tile in range(tiles):
            logits[row, 64 * tile + 5 * row] = 4.0 + sum(each <= tile for each in grows)
    return logits


@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("tiles", [1, 2, TILES])
@pytest.mark.parametrize("own", [True, False], ids=["kernel", "reference"])
def test_a_maximum_may_grow_in_any_tile(own: bool, tiles: int, dtype: torch.dtype, learned: bool) -> None:
    logits = logits_that_grow(tiles).to(WHERE)
    features, table = torch.eye(len(logits), device=WHERE), logits.T.contiguous()
    targets = torch.arange(len(logits), device=WHERE) * 64 * tiles // len(logits)
    ours = of(features, table, targets, dtype, learned=learned, own=own)
    x, w = features.double().requires_grad_(), table.to(dtype).double().requires_grad_(learned)
    value = F.cross_entropy(x @ w.T, targets, reduction="sum")
    value.backward()
    exact_ones = [value.detach(), *(each.grad for each in (x, w) if each.grad is not None)]
    for mine, exact in zip(ours, exact_ones, strict=True):
        assert distance(mine, exact) < (1e-6 if dtype == FP32 else 1e-2)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_logits_of_minus_infinity_count_for_nothing() -> None:
    """Some in every tile, and one tile of nothing else."""
    logits = logits_that_grow()
    logits[:, ::3] = -math.inf
    logits[:, 64:128] = -math.inf
    states = []
    for own in (True, False):
        tiles = loss.Tiles(torch.zeros(64 * TILES, 1, device=WHERE), len(logits), 64, keep=False, own_kernels=own)
        column = torch.zeros(len(logits), 1, device=WHERE)
        target = torch.full((len(logits), 1), 200, device=WHERE)
        seen = loss.Seen(column - math.inf, column.clone(), column + math.nan, column + 1, [])
        for first in range(0, 64 * TILES, 64):
            absorb_tile(tiles, logits[:, first : first + 64].contiguous().to(WHERE), seen, target, first)
        assert seen.mean is not None
        states.append([seen.largest, seen.summed, seen.target, seen.mean])
    for mine, reference in zip(*states, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=0)
    exact = (logits.double() * math.log(2)).logsumexp(1, keepdim=True)
    found = (states[0][0] + states[0][1].log2()).double().cpu() * math.log(2)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


def absorb_tile(tiles: loss.Tiles, tile: Tensor, seen: loss.Seen, target: Tensor, first: int) -> None:
    """As ``Tiles._see_tile`` does, without the products around it; logits are of base 2."""
    from lmconsole.lm import online_softmax as kernels

    absorb = kernels.absorb if tiles.own_kernels else tiles._absorb
    absorb(tile, seen, target, first, 1.0, True)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("vocabulary", [64, 301])
@pytest.mark.parametrize("own", [True, False], ids=["kernel", "reference"])
def test_memory_that_is_not_initialized_reaches_no_result(
    own: bool, vocabulary: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(n=8, vocabulary=vocabulary)
    clean = of(*inputs, dtype, learned=True, own=own)
    new_empty = Tensor.new_empty

    def filled(*args: Any, **more: Any) -> Tensor:
        made = new_empty(*args, **more)
        return made.fill_(math.nan) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", filled)
    for mine, expected in zip(of(*inputs, dtype, learned=True, own=own), clean, strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("first", [0, 64])
def test_a_mean_is_rescaled_only_where_the_maximum_grew(first: int) -> None:
    """A signaling NaN keeps its bits until somebody computes with it. The first tile has no mean to rescale."""
    from lmconsole.lm import online_softmax as kernels

    signaling = 0x7F800001
    largest = torch.tensor([[9.0], [1.0], [0.0], [5.0]], device=WHERE)
    tile = torch.full((4, 64), 1.0, device=WHERE)
    grew = [first > 0 and old < 1.0 for old in largest.flatten().tolist()]
    mean = torch.full((4, 40), signaling, dtype=torch.int32, device=WHERE).view(torch.float32)
    mean[2] = 8.0
    before = mean.view(torch.int32).clone()
    seen = loss.Seen(largest, torch.ones_like(largest), torch.full_like(largest, math.nan), mean, [])
    kernels.absorb(tile, seen, torch.zeros(4, 1, dtype=torch.int64, device=WHERE), first, 1.0, True)
    kept = (mean.view(torch.int32) == before).all(1).tolist()
    assert kept == [not each for each in grew]
    if first:
        assert torch.equal(mean[2], torch.full((40,), 4.0, device=WHERE)), "2 to the power of 0 - 1"


def test_only_what_the_rows_have_is_written() -> None:
    """Rows of the last tile are apart; what lies between them belongs to nobody."""
    from lmconsole.lm import online_softmax as kernels

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
