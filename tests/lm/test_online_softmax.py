"""The Triton version of the online softmax update compared with the PyTorch version.

On a GPU the kernel is compiled; elsewhere Triton's interpreter runs it in numpy, program by program.
"""

import importlib
import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmconsole.lm import linear_cross_entropy as loss
from lmconsole.lm.linear_cross_entropy import IGNORE, linear_cross_entropy
from lmconsole.lm.online_softmax import OnlineSoftmaxState

FP32, BF16 = torch.float32, torch.bfloat16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.fixture(autouse=True)
def triton_and_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles of 64 logits per row, so that small vocabularies have several, the last of them narrower."""
    if DEVICE == "cpu":
        monkeypatch.setattr(loss, "_HAS_OUT_DTYPE", False)  # such products exist on GPUs alone
    pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs, and for Linux alone")
    monkeypatch.setitem(loss._TILE_LOGITS, DEVICE, 64 * 16)


def draw(n: int = 40, vocabulary: int = 301, channels: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (n, C), a weight (V, C), and n targets, some of them ignored."""
    g = torch.Generator().manual_seed(0)
    features, table = torch.randn(n, channels, generator=g), torch.randn(vocabulary, channels, generator=g)
    targets = torch.randint(0, vocabulary, (n,), generator=g)
    targets[::7] = IGNORE
    return features.to(DEVICE), table.to(DEVICE), targets.to(DEVICE)


def loss_and_gradients(
    features: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype, *, learned: bool, use_triton: bool
) -> list[Tensor]:
    x, w = features.clone().requires_grad_(), table.clone().requires_grad_(learned)
    value = linear_cross_entropy(x, w, targets, compute_dtype=dtype, chunk_rows=16, use_triton=use_triton)
    value.backward()
    return [value.detach(), *(each.grad for each in (x, w) if each.grad is not None)]


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("vocabulary", [64, 301])
def test_the_loss_agrees_with_the_pytorch_version_and_with_full_logits(
    dtype: torch.dtype, learned: bool, vocabulary: int
) -> None:
    inputs = draw(vocabulary=vocabulary)
    triton, pytorch = (
        loss_and_gradients(*inputs, dtype, learned=learned, use_triton=use_triton) for use_triton in (True, False)
    )
    x, w = inputs[0].double().requires_grad_(), inputs[1].double().requires_grad_(learned)
    value = F.cross_entropy(x @ w.T, inputs[2], ignore_index=IGNORE, reduction="sum")
    value.backward()
    exact = [value.detach(), *(each.grad for each in (x, w) if each.grad is not None)]
    assert len(triton) == len(pytorch) == len(exact) == 2 + learned
    for from_triton, from_pytorch, from_logits in zip(triton, pytorch, exact, strict=True):
        assert distance(from_triton, from_pytorch) < (1e-6 if dtype == FP32 else 3e-3)
        assert distance(from_triton, from_logits) < (1e-6 if dtype == FP32 else 1e-2)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_without_gradients_the_loss_is_the_same_number(dtype: torch.dtype) -> None:
    inputs = draw()
    with torch.no_grad():
        alone = linear_cross_entropy(*inputs, compute_dtype=dtype, chunk_rows=16, use_triton=True)
    assert torch.equal(alone, loss_and_gradients(*inputs, dtype, learned=False, use_triton=True)[0])


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    table = torch.zeros(300, 1, device=DEVICE)
    table[7], table[250] = 300.0, 1000.0  # in different tiles; exp of either is infinite
    targets = torch.tensor([250, 7], device=DEVICE)
    value = linear_cross_entropy(
        torch.ones(2, 1, device=DEVICE), table, targets, compute_dtype=FP32, chunk_rows=16, use_triton=True
    )
    assert value.item() == pytest.approx(700.0, rel=1e-6)


@pytest.mark.filterwarnings(
    "ignore:(invalid value|All-NaN slice) encountered:RuntimeWarning"
)  # the interpreter's numpy
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("place", "row"), [("features", 4), ("table", 4), ("table", 150), ("table", 300)])
def test_a_non_finite_input_gives_a_non_finite_loss(bad: float, place: str, row: int) -> None:
    features, table, targets = draw(n=8)
    (features if place == "features" else table)[row, 2] = bad
    assert not loss_and_gradients(features, table, targets, FP32, learned=False, use_triton=True)[0].isfinite()


TILES = 4
GROWS_IN = [{0}, {0, 1, 2, 3}, {0, 2}, {0, 3}, {0, 1}, {0, 1, 3}]
"""Tiles that raise the maximum, for each row."""


def logits_that_grow(tiles: int = TILES) -> Tensor:
    """Return logits (R, 64 · tiles) whose maximum grows in the tiles of ``GROWS_IN`` and is repeated in the others."""
    logits = torch.randn(len(GROWS_IN), 64 * tiles, generator=torch.Generator().manual_seed(3)).clamp_(-3, 3)
    for row, grows in enumerate(GROWS_IN):
        for tile in range(tiles):
            logits[row, 64 * tile + 5 * row] = 4.0 + sum(each <= tile for each in grows)
    return logits


@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("tiles", [1, 2, TILES])
@pytest.mark.parametrize("use_triton", [True, False], ids=["triton", "pytorch"])
def test_a_maximum_may_grow_in_any_tile(use_triton: bool, tiles: int, dtype: torch.dtype, learned: bool) -> None:
    logits = logits_that_grow(tiles).to(DEVICE)
    features, table = torch.eye(len(logits), device=DEVICE), logits.T.contiguous()
    targets = torch.arange(len(logits), device=DEVICE) * 64 * tiles // len(logits)
    found = loss_and_gradients(features, table, targets, dtype, learned=learned, use_triton=use_triton)
    x, w = features.double().requires_grad_(), table.to(dtype).double().requires_grad_(learned)
    value = F.cross_entropy(x @ w.T, targets, reduction="sum")
    value.backward()
    exact_ones = [value.detach(), *(each.grad for each in (x, w) if each.grad is not None)]
    for mine, exact in zip(found, exact_ones, strict=True):
        assert distance(mine, exact) < (1e-6 if dtype == FP32 else 1e-2)


def updates() -> list[Any]:
    """Return the PyTorch and the Triton version."""
    return [importlib.import_module(f"lmconsole.lm.{name}") for name in ("online_softmax", "online_softmax_triton")]


def update(module: Any, state: OnlineSoftmaxState, tile: Tensor, targets: Tensor, *, first_id: int) -> None:
    """Update ``state`` with logits of base 2."""
    scratch = torch.empty(tile.numel(), device=DEVICE)
    module.online_softmax_update(
        state, tile, targets, first_id=first_id, log2_scale=1.0, write_exp=True, scratch=scratch
    )


def start(rows: int, weighted_sum: Tensor) -> OnlineSoftmaxState:
    """Return the state before the first tile, with a given weighted sum (R, C)."""
    zero = torch.zeros(rows, 1, device=DEVICE)
    return OnlineSoftmaxState(
        max=zero - math.inf, exp_sum=zero.clone(), target_logit=zero + math.nan, weighted_sum=weighted_sum
    )


def test_both_versions_have_the_same_signature() -> None:
    pytorch, triton = (inspect.signature(module.online_softmax_update) for module in updates())
    assert pytorch == triton


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_logits_of_minus_infinity_count_for_nothing() -> None:
    """There are some in every tile, and one tile has no others."""
    logits = logits_that_grow()
    logits[:, ::3] = -math.inf
    logits[:, 64:128] = -math.inf
    targets = torch.full((len(logits), 1), 200, device=DEVICE)
    states = []
    for module in updates():
        weighted_sum = torch.ones(len(logits), 1, device=DEVICE)
        state = start(len(logits), weighted_sum)
        for first_id in range(0, 64 * TILES, 64):
            tile = logits[:, first_id : first_id + 64].contiguous().to(DEVICE)
            update(module, state, tile, targets, first_id=first_id)
        states.append([state.max, state.exp_sum, state.target_logit, weighted_sum])
    for pytorch, triton in zip(*states, strict=True):
        assert triton.isfinite().all()
        torch.testing.assert_close(triton, pytorch, rtol=1e-6, atol=0)
    exact = (logits.double() * math.log(2)).logsumexp(1, keepdim=True)
    found = (states[1][0] + states[1][1].log2()).double().cpu() * math.log(2)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("vocabulary", [64, 301])
@pytest.mark.parametrize("use_triton", [True, False], ids=["triton", "pytorch"])
def test_memory_that_is_not_initialized_reaches_no_result(
    use_triton: bool, vocabulary: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(n=8, vocabulary=vocabulary)
    clean = loss_and_gradients(*inputs, dtype, learned=True, use_triton=use_triton)
    new_empty = Tensor.new_empty

    def filled(*args: Any, **more: Any) -> Tensor:
        made = new_empty(*args, **more)
        return made.fill_(math.nan) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", filled)
    for mine, expected in zip(
        loss_and_gradients(*inputs, dtype, learned=True, use_triton=use_triton), clean, strict=True
    ):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("first_id", [0, 64])
def test_triton_rescales_a_weighted_sum_only_where_the_maximum_grows(first_id: int) -> None:
    """A signaling NaN keeps its bits until it is used in arithmetic. The first tile has no sum to rescale."""
    signaling = 0x7F800001
    maximum = torch.tensor([[9.0], [1.0], [0.0], [5.0]], device=DEVICE)
    tile = torch.full((4, 64), 1.0, device=DEVICE)
    grew = [first_id > 0 and old < 1.0 for old in maximum.flatten().tolist()]
    weighted_sum = torch.full((4, 40), signaling, dtype=torch.int32, device=DEVICE).view(torch.float32)
    weighted_sum[2] = 8.0
    before = weighted_sum.view(torch.int32).clone()
    state = OnlineSoftmaxState(
        max=maximum,
        exp_sum=torch.ones_like(maximum),
        target_logit=torch.full_like(maximum, math.nan),
        weighted_sum=weighted_sum,
    )
    _, triton = updates()
    update(triton, state, tile, torch.zeros(4, 1, dtype=torch.int64, device=DEVICE), first_id=first_id)
    unchanged = (weighted_sum.view(torch.int32) == before).all(1).tolist()
    assert unchanged == [not each for each in grew]
    if first_id:
        assert torch.equal(weighted_sum[2], torch.full((40,), 4.0, device=DEVICE)), "2 to the power of 0 - 1"


@pytest.mark.parametrize("version", [0, 1], ids=["pytorch", "triton"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_only_the_columns_of_the_tile_are_written(dtype: torch.dtype, version: int) -> None:
    """Rows of the last tile are padded."""
    buffer = torch.full((8, 64), 5.0, dtype=dtype, device=DEVICE)
    tile = buffer[:, :45]
    weighted_sum = torch.ones(8, 3, device=DEVICE)
    state = start(8, weighted_sum)
    targets = torch.zeros(8, 1, dtype=torch.int64, device=DEVICE)
    update(updates()[version], state, tile, targets, first_id=64)
    assert torch.equal(buffer[:, 45:], torch.full((8, 19), 5.0, dtype=dtype, device=DEVICE))
    assert torch.equal(tile, torch.ones(8, 45, dtype=dtype, device=DEVICE)), "every logit is the maximum"
    assert torch.equal(state.exp_sum, torch.full((8, 1), 45.0, device=DEVICE))
    assert state.target_logit.isnan().all(), "the targets are in another tile"
    assert torch.equal(weighted_sum, torch.zeros(8, 3, device=DEVICE)), "the sum over no tiles is zero"
