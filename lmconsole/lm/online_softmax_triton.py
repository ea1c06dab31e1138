"""The online softmax update as one Triton kernel: a single pass over device memory where PyTorch makes seven.

Import it only where it is used: Triton comes with PyTorch's builds for GPUs alone.
"""

import triton
import triton.language as tl
from torch import Tensor

from lmconsole.lm.online_softmax import OnlineSoftmaxState


@triton.jit
def _update_kernel(  # type: ignore[no-untyped-def]
    tile,
    row_stride,
    columns,
    first_id,
    log2_scale,
    targets,
    max_,
    exp_sum,
    target_logit,
    weighted_sum,
    channels,
    write_exp: tl.constexpr,
    has_weighted_sum: tl.constexpr,
    column_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, column_block)
    in_tile = column < columns
    tile_ptr = tile + row * row_stride + column
    # Everything is read before the first reduction over the row, at which threads wait for each other, and written
    # after.
    old_max = tl.load(max_ + row)
    old_sum = tl.load(exp_sum + row)
    target_column = tl.load(targets + row) - first_id
    logits = tl.load(tile_ptr, mask=in_tile, other=-float("inf")).to(tl.float32)

    new_max = tl.maximum(old_max, tl.max(logits))
    found_logit = tl.sum(tl.where(column == target_column, logits, 0.0))
    exp_tile = tl.exp2((logits - new_max) * log2_scale)
    rescale = tl.exp2((old_max - new_max) * log2_scale)
    tl.store(max_ + row, new_max)
    tl.store(exp_sum + row, old_sum * rescale + tl.sum(exp_tile))
    tl.store(target_logit + row, found_logit, mask=(target_column >= 0) & (target_column < columns))
    if write_exp:
        tl.store(tile_ptr, exp_tile.to(tile.dtype.element_ty), mask=in_tile)
    if has_weighted_sum:
        # Before the first tile the sum is uninitialized, and where the maximum has not grown the factor is 1. Only the
        # other rows pay for reading and writing their sum.
        grew = (first_id > 0) & (new_max > old_max)
        if grew:
            channel = tl.arange(0, channel_block)
            in_row = channel < channels
            sum_ptr = weighted_sum + row * channels + channel
            tl.store(sum_ptr, tl.load(sum_ptr, mask=in_row) * rescale, mask=in_row)


def online_softmax_update(
    state: OnlineSoftmaxState,
    tile: Tensor,
    targets: Tensor,
    *,
    first_id: int,
    log2_scale: float,
    write_exp: bool,
    scratch: Tensor | None = None,  # noqa: ARG001 (the PyTorch version needs it)
) -> None:
    """Update ``state`` with one tile of logits, as ``online_softmax.online_softmax_update`` does, whose contract holds.

    One program updates one row and keeps its logits in registers, so ``tile`` has at most 16,384 columns. Rows of
    ``weighted_sum`` whose maximum does not grow are neither read nor written, and ``scratch`` is not used.
    """
    R, n = tile.shape
    weighted_sum = state.weighted_sum
    column_block, C = triton.next_power_of_2(n), 0 if weighted_sum is None else weighted_sum.shape[1]
    _update_kernel[(R,)](
        tile,
        tile.stride(0),
        n,
        first_id,
        log2_scale,
        targets,
        state.max,
        state.exp_sum,
        state.target_logit,
        state.exp_sum if weighted_sum is None else weighted_sum,  # never read if there is no weighted sum
        C,
        write_exp=write_exp,
        has_weighted_sum=weighted_sum is not None,
        column_block=column_block,
        channel_block=triton.next_power_of_2(max(C, 1)),
        num_warps=min(max(column_block // 512, 1), 16),
    )
