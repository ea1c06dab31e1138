"""Kernels of our own, in Triton: each does in one pass over device memory what its plain twin does in several.

Only to be imported where they are used, since Triton comes with builds of torch for GPUs alone.
"""

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from lmconsole.lm.linear_cross_entropy import Seen


@triton.jit
def _absorb(  # type: ignore[no-untyped-def]
    tile,
    row_stride,
    columns,
    first,
    unit,
    target,
    largest,
    summed,
    target_logit,
    mean,
    channels,
    with_powers: tl.constexpr,
    with_mean: tl.constexpr,
    wide: tl.constexpr,
    deep: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, wide)
    inside = column < columns
    place = tile + row * row_stride + column
    # All is read before the first sum over the row, at which threads wait for each other, and written after it.
    before = tl.load(largest + row)
    gathered = tl.load(summed + row)
    wanted = tl.load(target + row) - first
    logits = tl.load(place, mask=inside, other=-float("inf")).to(tl.float32)

    after = tl.maximum(before, tl.max(logits))
    found = tl.sum(tl.where(column == wanted, logits, 0.0))
    powers = tl.exp2((logits - after) * unit)
    shrink = tl.exp2((before - after) * unit)
    tl.store(largest + row, after)
    tl.store(summed + row, gathered * shrink + tl.sum(powers))
    tl.store(target_logit + row, found, mask=(wanted >= 0) & (wanted < columns))
    if with_powers:
        tl.store(place, powers.to(tile.dtype.element_ty), mask=inside)
    if with_mean:
        # Before the first tile the mean is not initialized, and where the maximum has not grown the factor is 1. Only
        # the other rows pay for reading and writing their mean.
        grew = (first > 0) & (after > before)
        if grew:
            channel = tl.arange(0, deep)
            known = channel < channels
            entry = mean + row * channels + channel
            tl.store(entry, tl.load(entry, mask=known) * shrink, mask=known)


def absorb(tile: Tensor, seen: "Seen", target: Tensor, first: int, unit: float, need_powers: bool) -> None:
    """One tile's part of an online softmax, one row a program: what ``loss.Tiles._absorb`` does, its plain twin.

    ``tile`` (R, n) holds logits of ids ``first`` and up, at most 16,384 of them, since a program holds its row in
    registers; rows may be apart. ``target`` (R, 1) are ids. ``seen.mean`` is not touched by the first tile, nor in rows
    whose largest logit is not in this one.
    """
    R, n = tile.shape
    columns, C = triton.next_power_of_2(n), 0 if seen.mean is None else seen.mean.shape[1]
    _absorb[(R,)](
        tile,
        tile.stride(0),
        n,
        first,
        unit,
        target,
        seen.largest,
        seen.summed,
        seen.target,
        seen.summed if seen.mean is None else seen.mean,
        C,
        with_powers=need_powers,
        with_mean=seen.mean is not None,
        wide=columns,
        deep=triton.next_power_of_2(max(C, 1)),
        num_warps=min(max(columns // 512, 1), 16),
    )
