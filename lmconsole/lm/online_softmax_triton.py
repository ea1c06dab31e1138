"""The online softmax update as one Triton kernel: a single pass over device memory where PyTorch makes seven.

Import it only where it is used: only PyTorch's GPU builds include Triton.
"""

import triton
import triton.language as tl
from torch import Tensor

from lmconsole.lm.online_softmax import OnlineSoftmaxState

_MAX_COLUMNS = 16_384
"""Most columns of a tile: a program keeps the logits of a row in registers."""


@triton.jit
def _update_kernel(  # type: ignore[no-untyped-def]
    tile_ptr,
    row_stride,
    n_columns,
    first_id,
    log2_scale,
    targets_ptr,
    max_ptr,
    exp_sum_ptr,
    target_logit_ptr,
    weighted_sum_ptr,
    n_channels,
    write_exp: tl.constexpr,
    has_weighted_sum: tl.constexpr,
    column_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, column_block)
    in_tile = column < n_columns
    tile_ptrs = tile_ptr + row * row_stride + column
    # Reductions over the row are barriers for the threads of a program. So everything is loaded before the first one.
    old_max = tl.load(max_ptr + row)
    old_sum = tl.load(exp_sum_ptr + row)
    target_column = tl.load(targets_ptr + row) - first_id
    logits = tl.load(tile_ptrs, mask=in_tile, other=-float("inf")).to(tl.float32)

    new_max = tl.maximum(old_max, tl.max(logits))
    found_logit = tl.sum(tl.where(column == target_column, logits, 0.0))
    exp_tile = tl.exp2((logits - new_max) * log2_scale)
    rescale = tl.exp2((old_max - new_max) * log2_scale)
    tl.store(max_ptr + row, new_max)
    tl.store(exp_sum_ptr + row, old_sum * rescale + tl.sum(exp_tile))
    tl.store(target_logit_ptr + row, found_logit, mask=(target_column >= 0) & (target_column < n_columns))
    if write_exp:
        tl.store(tile_ptrs, exp_tile.to(tile_ptr.dtype.element_ty), mask=in_tile)
    if has_weighted_sum:
        # Skip the first tile, before which the sum is uninitialized, and rows whose maximum did not grow (rescale = 1).
        grew = (first_id > 0) & (new_max > old_max)
        if grew:
            channel = tl.arange(0, channel_block)
            in_row = channel < n_channels
            sum_ptrs = weighted_sum_ptr + row * n_channels + channel
            tl.store(sum_ptrs, tl.load(sum_ptrs, mask=in_row) * rescale, mask=in_row)


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
    """Update ``state`` with one tile of logits. Same contract as ``online_softmax.online_softmax_update``, for tiles of
    at most 16,384 columns.

    One program updates one row. Rows of ``weighted_sum`` whose maximum does not grow are neither read nor written, and
    ``scratch`` is not used.
    """
    R, n = tile.shape
    assert n <= _MAX_COLUMNS
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
        num_warps=min(max(column_block // 512, 1), 16),  # 16 logits per thread; 32 in rows of more than 8,192 columns
    )
