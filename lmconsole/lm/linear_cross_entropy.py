"""Fused linear cross-entropy: the loss of softmax(features @ weight.T) without the tokens x vocabulary logits.

For a feature x, a weight W (V, C) and a target t, the loss is log(sum_v exp(x·W_v)) - x·W_t, and its gradient with
respect to x is sum_v p_v W_v - W_t, where p is the softmax. The sum over v is attention with W as both keys and values,
so an online softmax computes it tile by tile over the vocabulary, with each tile still in the cache. The forward pass
yields the gradient along with the loss; the backward pass only scales it. Liger Kernel (Hsu et al., arXiv:2410.10989)
computes the gradient in the forward pass too, and Cut Your Losses (Wijmans et al., arXiv:2411.09009) tiles the
vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmconsole.lm.online_softmax import OnlineSoftmaxState, OnlineSoftmaxUpdate, online_softmax_update

IGNORE = -100
"""Target of a position that is excluded from the loss: padding of the last window. PyTorch's ``ignore_index``."""

_LOG2_E = math.log2(math.e)

_CHUNK_ROWS = {"cpu": 1024, "cuda": 4096}
"""Rows of features processed at a time, by default: the fastest measured."""
_MIN_ROWS = 64
"""Rows processed at a time even if their saved tiles exceed ``_SAVED_BYTES``."""
_TILE_LOGITS = {"cpu": 2 * 2**20, "cuda": 16 * 2**20}
"""Logits in a tile. A CPU's last-level cache should hold it; a GPU has many cores to keep busy."""
_SAVED_BYTES = 256 * 2**20
"""Memory for the tiles of one chunk of rows, which the gradient of a learned weight needs once more. Chunks get fewer
rows to stay below it, but not fewer than ``_MIN_ROWS``."""
_HAS_OUT_DTYPE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
"""Whether ``torch.addmm`` adds a product of 16-bit factors to a float32 tensor in one call on GPUs."""
_ALIGNMENT = 64
"""Rows of a tile are padded in memory to a multiple of this many values: GPUs multiply unaligned rows slowly, and the
width of the last tile is arbitrary."""


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    compute_dtype: torch.dtype,
    chunk_rows: int | None = None,
    use_triton: bool = False,
    row_nats: Tensor | None = None,
) -> Tensor:
    """Return the summed cross-entropy, in nats, of ``targets`` under softmax(``features`` @ ``weight``.T).

    Equal, up to rounding, to ``F.cross_entropy(features @ weight.T, targets, reduction="sum")``. The result can be
    differentiated once. Does not synchronize with the device. Non-finite inputs give a non-finite loss.

    Args:
        features: (N, C).
        weight: (V, C), a linear layer's without bias.
        targets: (N,) int64 ids; those equal to ``IGNORE`` are excluded.
        compute_dtype: Type of the factors of matrix products, float32 or bfloat16. The softmax is float32; losses are
            summed over rows in float64.
        chunk_rows: Rows processed at a time; by default at most 1,024 on a CPU and 4,096 on a GPU.
        use_triton: Update the softmax with the Triton kernel, one pass over a tile instead of seven. Needs a GPU.
        row_nats: (N,) float32 to be filled with the cross-entropy of each row, 0 for those excluded. The sum is the
            same with and without. Only without a gradient.

    Returns:
        A float32 scalar.
    """
    config = _LossConfig(compute_dtype=compute_dtype, chunk_rows=chunk_rows, use_triton=use_triton)
    with torch.autocast(features.device.type, enabled=False):
        if torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad):
            assert row_nats is None
            loss: Tensor = _LinearCrossEntropy.apply(features, weight, targets, config)
            return loss
        return _forward_backward(
            features, weight, targets, config, features_grad=False, weight_grad=False, row_nats=row_nats
        )[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class _LossConfig:
    """Options that change the result by rounding only."""

    compute_dtype: torch.dtype
    chunk_rows: int | None
    use_triton: bool


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, for ``grad_output`` = 1. The backward pass scales them in place, so
    ``backward()`` can be called only once."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, config: _LossConfig) -> Tensor:
        features_grad, weight_grad, *_ = ctx.needs_input_grad
        loss, *ctx.gradients = _forward_backward(
            features, weight, targets, config, features_grad=features_grad, weight_grad=weight_grad
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The gradient of the loss is available once. Compute the loss again.")
        gradients, ctx.gradients = ctx.gradients, None
        # in place: a learned weight's gradient is as large as the weight
        return *(None if each is None else each.mul_(grad_output) for each in gradients), None, None


def _forward_backward(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    config: _LossConfig,
    *,
    features_grad: bool,
    weight_grad: bool,
    row_nats: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss, and its gradients with respect to features and weight: each None unless it is requested."""
    features, weight = features.detach(), weight.detach()
    rows, columns = _chunk_and_tile_size(features, weight, config, save=weight_grad)
    w = weight.to(config.compute_dtype)
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    grad_features = torch.empty_like(features) if features_grad else None
    grad_weight = torch.zeros_like(weight, dtype=torch.float32) if weight_grad else None
    tiles = _VocabularyTiles(w, rows, columns, save=weight_grad, use_triton=config.use_triton)
    for start in range(0, len(features), rows):
        chunk = slice(start, start + rows)
        x = features[chunk]
        ignored = (targets[chunk] == IGNORE).unsqueeze(1)  # (R, 1)
        target = targets[chunk].unsqueeze(1).masked_fill(ignored, 0)  # (R, 1)
        state, saved = tiles.accumulate(x, target, with_weighted_sum=features_grad)
        nats = ((state.max - state.target_logit) * tiles.log2_scale + state.exp_sum.log2()) / _LOG2_E
        total += nats.masked_fill_(ignored, 0.0).sum(dtype=torch.float64)
        if row_nats is not None:
            row_nats[chunk] = nats.squeeze(1)
        if grad_features is not None and state.weighted_sum is not None:
            gradient = state.weighted_sum.div_(state.exp_sum).sub_(w[target.squeeze(1)])
            grad_features[chunk] = gradient.masked_fill_(ignored, 0.0)
        if grad_weight is not None:
            tiles.add_weight_gradient(grad_weight, x.float(), target, ignored, state, saved)
    return total.float(), grad_features, grad_weight


@dataclass(frozen=True, kw_only=True, slots=True)
class _SavedTile:
    """The exp tile of one slice of the vocabulary, relative to the maximum at the time."""

    ids: slice
    exp_tile: Tensor
    """(R, n) 2^(s · (logit - running_max)), where s is ``log2_scale``."""
    running_max: Tensor
    """(R, 1) largest logit of this tile and those before, in the units of the logits: see ``_VocabularyTiles``."""


class _VocabularyTiles:
    """The weight cut along the vocabulary, and buffers for the logits of one tile, or of all tiles with ``save``.

    Exponentials are powers of two, which are cheaper, so logits are multiplied by log2(e). float32 logits get the
    factor through the features, before the product; 16-bit ones after the cast to float32, since rounding the features
    once more would cost accuracy. ``log2_scale`` is the factor that is left, so tiles, and the states and saved tiles
    made of them, are in natural units if it is log2(e), and in units of log(2) if it is 1.

    With ``save``, the buffer holds the tiles one after the other, each (R, n) row by row with padded rows.
    """

    def __init__(self, w: Tensor, rows: int, columns: int, *, save: bool, use_triton: bool) -> None:
        self.log2_scale = 1.0 if w.dtype == torch.float32 else _LOG2_E
        self._w, self._columns, self._save, self._use_triton = w, columns, save, use_triton
        self._logits = w.new_empty(rows * _aligned(len(w) if save else columns))
        needs_scratch = w.dtype != torch.float32 and not use_triton
        self._scratch = w.new_empty(rows * columns, dtype=torch.float32) if needs_scratch else None
        self._update = _softmax_update(use_triton)

    def accumulate(
        self, x: Tensor, target: Tensor, *, with_weighted_sum: bool
    ) -> tuple[OnlineSoftmaxState, list[_SavedTile]]:
        """Return the state of the rows ``x`` (R, C) after all tiles of the vocabulary, and the saved tiles, if any."""
        state = OnlineSoftmaxState.start(x, with_weighted_sum=with_weighted_sum)
        factor = (x.float() * _LOG2_E if self.log2_scale == 1.0 else x).to(self._w.dtype)
        saved: list[_SavedTile] = []
        for start in range(0, len(self._w), self._columns):
            ids = slice(start, min(start + self._columns, len(self._w)))
            tile = self._process_tile(state, factor, target, ids)
            if self._save:
                saved.append(_SavedTile(ids=ids, exp_tile=tile, running_max=state.max.clone()))
        return state, saved

    def _process_tile(self, state: OnlineSoftmaxState, factor: Tensor, target: Tensor, ids: slice) -> Tensor:
        """Update ``state`` with the logits ``factor`` (R, C) @ W.T of ``ids``. Return the exp tile (R, n); its values
        are undefined if neither ``save`` nor the weighted sum needs it."""
        w, R, n = self._w[ids], len(factor), ids.stop - ids.start
        buffer = self._logits[R * ids.start :] if self._save else self._logits
        tile = buffer[: R * _aligned(n)].view(R, -1)[:, :n]
        torch.mm(factor, w.t(), out=tile)
        self._update(
            state,
            tile,
            target,
            first_id=ids.start,
            log2_scale=self.log2_scale,
            write_exp=self._save or state.weighted_sum is not None,
            scratch=self._scratch,
        )
        if state.weighted_sum is not None:
            self._add_product(state.weighted_sum, tile, w, overwrite=ids.start == 0)
        return tile

    def add_weight_gradient(
        self,
        gradient: Tensor,
        x: Tensor,
        target: Tensor,
        ignored: Tensor,
        state: OnlineSoftmaxState,
        saved: list[_SavedTile],
    ) -> None:
        """Add sum_n (p_nv - [v = target_n]) x_n to row v of ``gradient`` (V, C).

        With one ``scale`` per row, p = exp_tile · scale. Scaling ``x`` (R, C) is cheaper than scaling the tile (R, n).
        """
        for tile in saved:
            scale = (
                ((tile.running_max - state.max) * self.log2_scale)
                .exp2_()
                .div_(state.exp_sum)
                .masked_fill_(ignored, 0.0)
            )
            self._add_product(gradient[tile.ids], tile.exp_tile.t(), (x * scale).to(tile.exp_tile.dtype))
        gradient.index_add_(0, target.squeeze(1), x.masked_fill(ignored, 0.0), alpha=-1)

    def _add_product(self, total: Tensor, a: Tensor, b: Tensor, *, overwrite: bool = False) -> None:
        """Compute total += a @ b in place, or total = a @ b with ``overwrite``. ``total`` is float32, whatever the
        factors are."""
        if a.dtype == torch.float32:
            total.addmm_(a, b, beta=0 if overwrite else 1)
        elif self._use_triton and _HAS_OUT_DTYPE:  # Triton implies a GPU
            torch.addmm(total, a, b, beta=0 if overwrite else 1, out_dtype=torch.float32, out=total)
        elif overwrite:
            total.copy_(a @ b)
        else:
            total.add_((a @ b).float())  # cast first: mixed-dtype addition is slow on CPUs


def _softmax_update(use_triton: bool) -> OnlineSoftmaxUpdate:
    """Return the PyTorch or the Triton version of ``online_softmax_update``."""
    if not use_triton:
        return online_softmax_update
    from lmconsole.lm import online_softmax_triton  # Triton is installed only where GPUs are

    return online_softmax_triton.online_softmax_update


def _aligned(columns: int) -> int:
    """Round up to a multiple of ``_ALIGNMENT``."""
    return -(-columns // _ALIGNMENT) * _ALIGNMENT


def _chunk_and_tile_size(features: Tensor, weight: Tensor, config: _LossConfig, *, save: bool) -> tuple[int, int]:
    """Return the rows of a chunk and the columns of a tile: large enough for fast products, small enough for caches.

    On a GPU the columns do not depend on the rows, since a Triton kernel is compiled for each width.
    """
    kind = "cpu" if features.device.type == "cpu" else "cuda"
    N, V = len(features), len(weight)
    rows = config.chunk_rows or _CHUNK_ROWS[kind]
    if save and not config.chunk_rows:
        rows = min(rows, max(_SAVED_BYTES // (V * config.compute_dtype.itemsize), _MIN_ROWS))
    rows = max(min(rows, N), 1)
    tile_rows = rows if kind == "cpu" else _CHUNK_ROWS[kind]
    columns = _TILE_LOGITS[kind] // tile_rows // _ALIGNMENT * _ALIGNMENT
    return rows, min(max(columns, _ALIGNMENT), V)
