"""Online softmax: the softmax of a row whose logits arrive one tile at a time.

Each row keeps the largest logit so far and the sum of exponentials relative to it. When a tile raises the maximum, what
was accumulated before is rescaled (Milakov & Gimelshein, arXiv:1805.02867). FlashAttention carries a weighted sum along
in the same way (Dao et al., arXiv:2205.14135).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineSoftmaxState:
    """State of R rows after the tiles so far. All tensors are float32 and are updated in place."""

    max: Tensor
    """(R, 1) largest logit."""
    exp_sum: Tensor
    """(R, 1) sum of exp(logit - max)."""
    target_logit: Tensor
    """(R, 1) logit of the row's target; NaN until the tile that contains it."""
    weighted_sum: Tensor | None
    """(R, C) contiguous sum of exp(logit - max) W_v; uninitialized before the first tile, None if not needed."""

    @classmethod
    def start(cls, x: Tensor, *, with_weighted_sum: bool) -> "OnlineSoftmaxState":
        """Return the state before the first tile, for features ``x`` (R, C) and on their device."""
        R, C = x.shape
        zero = x.new_zeros(R, 1, dtype=torch.float32)
        return cls(
            max=zero - math.inf,
            exp_sum=zero.clone(),
            target_logit=zero + math.nan,
            weighted_sum=x.new_empty(R, C, dtype=torch.float32) if with_weighted_sum else None,
        )


def online_softmax_update(
    state: OnlineSoftmaxState,
    tile: Tensor,
    targets: Tensor,
    *,
    first_id: int,
    log2_scale: float,
    write_exp: bool,
    scratch: Tensor | None = None,
) -> None:
    """Update ``state`` with one tile of logits. With m' = max(m, max_j l_j), row by row:

        exp_sum      <- exp_sum · exp(m - m') + sum_j exp(l_j - m')
        weighted_sum <- weighted_sum · exp(m - m')
        max          <- m'

    Exponentials are computed as exp2(x · ``log2_scale``), since powers of two are cheaper: ``log2_scale`` is log2(e),
    or 1 for logits that were multiplied by log2(e) before. The caller adds exp tile @ W to ``weighted_sum``.

    ``online_softmax_triton.online_softmax_update`` is the same function for GPUs.

    Args:
        state: Updated in place. ``weighted_sum`` is not touched if ``first_id`` is 0.
        tile: (R, n) float32 or bfloat16 logits of the ids ``first_id`` to ``first_id`` + n - 1. Rows may be padded,
            the values of a row are adjacent. Overwritten: with ``write_exp`` by the exp tile, exp(l_j - m'), otherwise
            its values are undefined.
        targets: (R, 1) int64 ids of the targets, inside or outside the tile.
        first_id: Id of the tile's first column; 0 for the first tile.
        log2_scale: Factor that makes the logits exponents of two.
        write_exp: Whether the exp tile is needed.
        scratch: At least R · n float32 values, overwritten; required here if ``tile`` is not float32. The Triton
        version
            needs none.
    """
    R, n = tile.shape
    inside = (targets >= first_id) & (targets < first_id + n)
    candidates = tile.gather(1, (targets - first_id).clamp_(0, n - 1))
    torch.where(inside, candidates.float(), state.target_logit, out=state.target_logit)

    logits = tile
    if tile.dtype != torch.float32:
        assert scratch is not None
        # Widened by a plain copy first: arithmetic on two types at once takes a slow path on CPUs.
        logits = scratch[: R * n].view(R, n).copy_(tile)
    new_max = torch.maximum(state.max, logits.amax(1, keepdim=True))
    rescale = ((state.max - new_max) * log2_scale).exp2_()  # (R, 1)
    exp_tile = torch.add(new_max * -log2_scale, logits, alpha=log2_scale, out=logits).exp2_()
    state.max.copy_(new_max)
    state.exp_sum.mul_(rescale).add_(exp_tile.sum(1, keepdim=True))
    if state.weighted_sum is not None and first_id > 0:
        state.weighted_sum.mul_(rescale)
    if write_exp and exp_tile is not tile:
        tile.copy_(exp_tile)
