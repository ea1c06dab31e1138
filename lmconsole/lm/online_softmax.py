"""Online softmax: the softmax of a row whose logits arrive one tile at a time.

Each row keeps the largest logit so far and the sum of exponentials relative to it. When a tile raises the maximum, what
was accumulated before is rescaled (Milakov & Gimelshein, arXiv:1805.02867). FlashAttention carries a weighted sum along
in the same way (Dao et al., arXiv:2205.14135).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineSoftmaxState:
    """State of R rows after the tiles so far, all float32. The fields are fixed; the tensors are updated in place.

    Logits are in the units of the tiles; s is the ``log2_scale`` of the updates.
    """

    max: Tensor
    """(R, 1) largest logit."""
    exp_sum: Tensor
    """(R, 1) sum of 2^(s · (logit - max))."""
    target_logit: Tensor
    """(R, 1) logit of the row's target; NaN until the tile that contains it."""
    weighted_sum: Tensor | None
    """(R, C) contiguous sum over the vocabulary of 2^(s · (logit_v - max)) · W_v, where W_v (C,) is row v of the head's
    weight; uninitialized before the first tile, None if not needed."""

    @classmethod
    def start(cls, x: Tensor, *, with_weighted_sum: bool) -> "OnlineSoftmaxState":
        """Return the state before the first tile, for features of the shape (R, C) and device of ``x``."""
        R, C = x.shape
        return cls(
            max=x.new_full((R, 1), -math.inf, dtype=torch.float32),
            exp_sum=x.new_zeros(R, 1, dtype=torch.float32),
            target_logit=x.new_full((R, 1), math.nan, dtype=torch.float32),
            weighted_sum=x.new_empty(R, C, dtype=torch.float32) if with_weighted_sum else None,
        )


class OnlineSoftmaxUpdate(Protocol):
    """Signature of ``online_softmax_update`` and its Triton version."""

    def __call__(
        self,
        state: OnlineSoftmaxState,
        tile: Tensor,
        targets: Tensor,
        *,
        first_id: int,
        log2_scale: float,
        write_exp: bool,
        scratch: Tensor | None = None,
    ) -> None: ...


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
    """Update ``state`` with one tile of logits. With s = ``log2_scale`` and m' = max(m, max_j l_j), row by row:

        exp_sum      <- exp_sum · 2^(s · (m - m')) + sum_j 2^(s · (l_j - m'))
        weighted_sum <- weighted_sum · 2^(s · (m - m')), except for the first tile
        max          <- m'

    exp2 is cheaper than exp. The caller completes ``weighted_sum`` with the product of the exp tile
    and the tile's rows of W: it stores the product of the first tile, and adds the others.

    ``online_softmax_triton.online_softmax_update`` has the same contract, as a Triton kernel.

    Args:
        state: Updated in place.
        tile: (R, n) float32 or bfloat16 logits of the ids ``first_id`` to ``first_id`` + n - 1. Its stride(1) is 1; its
            stride(0) may exceed n. Overwritten: with ``write_exp`` by the exp tile, 2^(s · (l_j - m')), otherwise by
            undefined values.
        targets: (R, 1) int64 ids of the targets, inside or outside the tile.
        first_id: Index in the vocabulary of the tile's first column; 0 for the first tile.
        log2_scale: Factor that turns logits into exponents of two: log2(e) for natural logits, 1 for logits already
            multiplied by log2(e).
        write_exp: Whether the exp tile is needed.
        scratch: At least R · n float32 values, overwritten. Required if ``tile`` is not float32; the Triton version
            needs none.
    """
    R, n = tile.shape
    inside = (targets >= first_id) & (targets < first_id + n)
    candidates = tile.gather(1, (targets - first_id).clamp_(0, n - 1))  # clamped indices are used only where inside
    torch.where(inside, candidates.float(), state.target_logit, out=state.target_logit)

    logits = tile
    if tile.dtype != torch.float32:
        assert scratch is not None
        logits = scratch[: R * n].view(R, n).copy_(tile)  # cast first: mixed-dtype arithmetic is slow on CPUs
    new_max = torch.maximum(state.max, logits.amax(1, keepdim=True))
    rescale = ((state.max - new_max) * log2_scale).exp2_()  # (R, 1)
    # exp2((logits - new_max) * log2_scale), in place
    exp_tile = torch.add(new_max * -log2_scale, logits, alpha=log2_scale, out=logits).exp2_()
    state.max.copy_(new_max)
    state.exp_sum.mul_(rescale).add_(exp_tile.sum(1, keepdim=True))
    if state.weighted_sum is not None and first_id > 0:
        state.weighted_sum.mul_(rescale)
    if write_exp and exp_tile is not tile:
        tile.copy_(exp_tile)
