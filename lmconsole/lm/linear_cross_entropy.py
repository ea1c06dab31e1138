"""Cross-entropy of the tied head, exact, without ever holding tokens x vocabulary logits.

For a feature x, a table W and a target t the loss is log(sum_v exp(x·W_v)) - x·W_t, and its gradient with respect to x
is sum_v p_v W_v - W_t. The sum over v is attention with W as keys and as values, so it is computed as FlashAttention
computes it (Dao et al., arXiv:2205.14135, after Milakov & Gimelshein, arXiv:1805.02867): tile by tile over the
vocabulary, each row keeping the largest logit so far, and what was summed before rescaled whenever that grows. The
gradient is known when the loss is, at the price of two matrix products, and a tile never leaves the cache.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""Target of a slot that counts for nothing: padding of the last window."""

_LOG2_E = math.log2(math.e)

_ROWS = {"cpu": 1024, "cuda": 4096}
"""Rows worked on at a time."""
_TILE_VALUES = {"cpu": 2 * 2**20, "cuda": 16 * 2**20}
"""Logits in a tile. A CPU's last cache should hold it; a GPU has many cores to keep busy."""
_KEPT_BYTES = 256 * 2**20
"""Room for the tiles of one chunk of rows, when the table learns and they are needed once more."""
_WIDENING_PRODUCTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
"""Whether this torch adds a product of 16-bit factors to float32 in one call on GPUs."""
_ALIGNED = 64
"""Rows of a tile begin at multiples of so many values; GPUs multiply others slowly, and the last tile has odd ones."""


def head_loss_sum(
    features: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    compute_dtype: torch.dtype,
    chunk_rows: int | None = None,
    own_kernels: bool = False,
) -> Tensor:
    """Summed negative log-likelihood, in nats, of ``targets`` under softmax(``features`` @ ``table``.T).

    ``features`` are (N, C), ``table`` is (V, C), ``targets`` are N ids; those that are ``IGNORE`` count for nothing.
    The result is a float32 scalar, differentiable once with respect to ``features``, and to ``table`` if that requires
    a gradient. Factors of matrix products are of ``compute_dtype``; exponentials and sums are float32 at least.
    ``chunk_rows`` rows are worked on at a time; by default as many as measured fastest. With ``own_kernels``, which
    takes a GPU and Triton, what a tile's logits go through is one pass instead of seven. Nothing waits for the device,
    and inputs that are not finite give a loss that is not.
    """
    with_grad = torch.is_grad_enabled()
    need_features, need_table = with_grad and features.requires_grad, with_grad and table.requires_grad
    how = _How(compute_dtype, chunk_rows, own_kernels)
    with torch.autocast(features.device.type, enabled=False):
        if need_features or need_table:
            loss: Tensor = _HeadLoss.apply(features, table, targets, how)
            return loss
        return _walk(features, table, targets, how, False, False)[0]


class _How(NamedTuple):
    """What does not change the result but for rounding."""

    dtype: torch.dtype
    chunk_rows: int | None
    own_kernels: bool


class _HeadLoss(torch.autograd.Function):
    """Works the gradient out on the way forward, for a loss of weight 1; on the way back there is only a scaling."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, table: Tensor, targets: Tensor, how: _How) -> Tensor:
        loss, *ctx.gradients = _walk(features, table, targets, how, *ctx.needs_input_grad[:2])
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the head's gradient is handed out once; compute the loss again")
        gradients, ctx.gradients = ctx.gradients, None
        # In place, since a learned table's gradient is as large as the table.
        return *(None if each is None else each.mul_(weight) for each in gradients), None, None


@dataclass(slots=True)
class Seen:
    """What R rows have gathered from the tiles of the vocabulary passed so far."""

    largest: Tensor  # (R, 1) largest logit
    summed: Tensor  # (R, 1) sum of exp(logit - largest)
    target: Tensor  # (R, 1) the target's logit; NaN until its tile comes by
    mean: Tensor | None  # (R, C) sum of exp(logit - largest) W_v; uninitialized before the first tile
    kept: list[tuple[slice, Tensor, Tensor]]  # a tile's place, its exp(logit - largest), and what largest was then


def _walk(
    features: Tensor, table: Tensor, targets: Tensor, how: _How, need_features: bool, need_table: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, and its gradients with respect to features and table where needed."""
    features, table = features.detach(), table.detach()
    rows, width = _sizes(features, table, how, need_table)
    w = table.to(how.dtype)
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    grad_features = torch.empty_like(features) if need_features else None
    grad_table = torch.zeros_like(table, dtype=torch.float32) if need_table else None
    tiles = Tiles(w, rows, width, keep=need_table, own_kernels=how.own_kernels)
    for start in range(0, len(features), rows):
        chunk = slice(start, start + rows)
        x = features[chunk]
        ignored = (targets[chunk] == IGNORE).unsqueeze(1)  # (R, 1)
        target = targets[chunk].unsqueeze(1).masked_fill(ignored, 0)  # (R, 1)
        seen = tiles.see(x, target, need_mean=need_features)
        nats = ((seen.largest - seen.target) * tiles.unit + seen.summed.log2()) / _LOG2_E
        total += nats.masked_fill_(ignored, 0.0).sum(dtype=torch.float64)
        if grad_features is not None and seen.mean is not None:
            gradient = seen.mean.div_(seen.summed).sub_(w[target.squeeze(1)])
            grad_features[chunk] = gradient.masked_fill_(ignored, 0.0)
        if grad_table is not None:
            tiles.add_table_gradient(grad_table, x.float(), target, ignored, seen)
    return total.float(), grad_features, grad_table


class Tiles:
    """A table cut along the vocabulary, and room for the logits of one tile; of every tile if they are to be kept.

    Powers of two are cheaper than powers of e, so logits are multiplied by log2(e): float32 ones through the features,
    before the product, others as they are widened to float32, since rounding the features again would cost accuracy.
    ``unit`` is what is left to multiply by.
    """

    def __init__(self, w: Tensor, rows: int, width: int, *, keep: bool, own_kernels: bool) -> None:
        self.w, self.width, self.keep = w, width, keep
        self.unit = 1.0 if w.dtype == torch.float32 else _LOG2_E
        self.products = w.new_empty(rows * _aligned(len(w) if keep else width))
        self.own_kernels = own_kernels
        widen = w.dtype != torch.float32 and not own_kernels
        self.powers = w.new_empty(rows * width, dtype=torch.float32) if widen else None

    def see(self, x: Tensor, target: Tensor, *, need_mean: bool) -> Seen:
        """Passes the rows ``x`` (R, C) by the whole vocabulary."""
        R, C = x.shape
        column = x.new_zeros(R, 1, dtype=torch.float32)
        mean = x.new_empty(R, C, dtype=torch.float32) if need_mean else None
        seen = Seen(column - math.inf, column.clone(), column + math.nan, mean, [])
        x = (x.float() * _LOG2_E if self.unit == 1.0 else x).to(self.w.dtype)
        for start in range(0, len(self.w), self.width):
            self._see_tile(seen, x, target, slice(start, min(start + self.width, len(self.w))))
        return seen

    def _see_tile(self, seen: Seen, x: Tensor, target: Tensor, place: slice) -> None:
        w, R, n = self.w[place], len(x), place.stop - place.start
        room = self.products[R * place.start :] if self.keep else self.products
        tile = room[: R * _aligned(n)].view(R, -1)[:, :n]
        torch.mm(x, w.t(), out=tile)
        need_powers = self.keep or seen.mean is not None
        if self.own_kernels:
            from lmconsole.lm import online_softmax as kernels  # Triton is only where GPUs are

            kernels.absorb(tile, seen, target, place.start, self.unit, need_powers)
        else:
            self._absorb(tile, seen, target, place.start, self.unit, need_powers)
        if self.keep:
            seen.kept.append((place, tile, seen.largest.clone()))
        if seen.mean is not None:
            self._add_product(seen.mean, tile, w, overwrite=place.start == 0)

    def _absorb(self, tile: Tensor, seen: Seen, target: Tensor, first: int, unit: float, need_powers: bool) -> None:
        """Brings ``seen`` up to date with the logits in ``tile`` (R, n), but for what the tile adds to the mean; leaves
        exp2((logit - largest) · unit) in it if they are needed."""
        R, n = tile.shape
        inside = (target >= first) & (target < first + n)
        found = tile.gather(1, (target - first).clamp_(0, n - 1))
        torch.where(inside, found.float(), seen.target, out=seen.target)

        # Widened by a plain copy first: arithmetic on two types at once takes a slow path on CPUs.
        powers = tile if self.powers is None else self.powers[: R * n].view(R, n).copy_(tile)
        largest = torch.maximum(seen.largest, powers.amax(1, keepdim=True))
        shrink = ((seen.largest - largest) * unit).exp2_()  # (R, 1)
        torch.add(largest * -unit, powers, alpha=unit, out=powers).exp2_()
        seen.largest.copy_(largest)
        seen.summed.mul_(shrink).add_(powers.sum(1, keepdim=True))
        if seen.mean is not None and first > 0:
            seen.mean.mul_(shrink)
        if need_powers and powers is not tile:
            tile.copy_(powers)

    def add_table_gradient(self, gradient: Tensor, x: Tensor, target: Tensor, ignored: Tensor, seen: Seen) -> None:
        """Adds sum_n (p_nv - [v = target_n]) x_n to row v of ``gradient`` (V, C). What turns a kept tile into
        probabilities is one factor a row, which the narrow ``x`` takes in place of the wide tile."""
        for place, powers, largest in seen.kept:
            scale = ((largest - seen.largest) * self.unit).exp2_().div_(seen.summed).masked_fill_(ignored, 0.0)
            self._add_product(gradient[place], powers.t(), (x * scale).to(powers.dtype))
        gradient.index_add_(0, target.squeeze(1), x.masked_fill(ignored, 0.0), alpha=-1)

    def _add_product(self, total: Tensor, a: Tensor, b: Tensor, *, overwrite: bool = False) -> None:
        """total += a @ b, in place; ``total`` is float32 whatever the factors are. With ``overwrite``, total = a @ b,
        whatever is in it."""
        if a.dtype == torch.float32:
            total.addmm_(a, b, beta=0 if overwrite else 1)
        elif self.own_kernels and _WIDENING_PRODUCTS:
            torch.addmm(total, a, b, beta=0 if overwrite else 1, out_dtype=torch.float32, out=total)
        elif overwrite:
            total.copy_(a @ b)
        else:
            total.add_((a @ b).float())  # widened apart: arithmetic on two types at once is slow on CPUs


def _aligned(columns: int) -> int:
    return -(-columns // _ALIGNED) * _ALIGNED


def _sizes(features: Tensor, table: Tensor, how: _How, keep: bool) -> tuple[int, int]:
    """Rows of a chunk and columns of a tile: as large as products need to be fast, as small as caches are. On a GPU
    columns do not depend on rows, since a kernel is compiled for each width."""
    kind = "cpu" if features.device.type == "cpu" else "cuda"
    N, V = len(features), len(table)
    rows = how.chunk_rows or _ROWS[kind]
    if keep and not how.chunk_rows:
        rows = min(rows, max(_KEPT_BYTES // (V * how.dtype.itemsize), 64))
    rows = max(min(rows, N), 1)
    width = max(_TILE_VALUES[kind] // (rows if kind == "cpu" else _ROWS[kind]) // 64 * 64, 64)
    return rows, min(width, V)
