"""The body of GPT-1: a stack of post-norm decoder blocks (Radford et al. 2018, after Vaswani et al.,
arXiv:1706.03762)."""

import math
import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmconsole.errors import TrainingError
from lmconsole.lm.device import compute_capability

AttentionBackend = Literal["flash", "efficient", "math", "fused", "written out"]
"""``flash``, ``efficient`` and ``math`` are PyTorch's backends for GPUs, as in ``torch.nn.attention.SDPBackend``. On
CPUs, ``fused`` is PyTorch's only backend, and ``written out`` is ``_attention_written_out``."""

_SDP_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_REFUSED = re.compile("No available kernel|No viable backend")
"""PyTorch's messages when none of the allowed backends supports the attention asked for."""


def attention_backend(
    device_type: str, dtype: torch.dtype, *, head_channels: int, capability: tuple[int, int] | None
) -> AttentionBackend:
    """Return the backend that computes attention over heads of ``head_channels`` channels on this kind of device, in
    training and in evaluation.

    ``dtype`` is the type of queries, keys and values; ``capability`` is a GPU's compute capability, None for a CPU.
    PyTorch's own choice depends on its version: on Hopper from 2.11 on it prefers cuDNN, which builds a plan for every
    shape.

    Flash attention supports 16-bit types from compute capability 8.0 on, and heads of up to 256 channels, which PyTorch
    pads to multiples of 8; for 8.6 to 8.9 and from 12.0 on, its backward pass supports up to 192. From 8.0 on,
    memory-efficient attention needs rows of whole 16 bytes; before, it takes any row (``sdp_utils.cpp`` in ATen).
    """
    if device_type == "cpu":
        # PyTorch's fused attention on CPUs is slow in bf16: three products and a softmax take two thirds of its time
        # for windows of 256, and a fifth for 64.
        return "written out" if dtype == torch.bfloat16 else "fused"
    assert capability is not None
    has_bf16 = capability >= (8, 0)
    if dtype != torch.float32:
        widest = 192 if (8, 6) <= capability <= (8, 9) or capability >= (12, 0) else 256
        if has_bf16 and head_channels <= widest:
            return "flash"
        return "efficient" if has_bf16 and head_channels % 8 == 0 else "math"
    return "efficient" if not has_bf16 or head_channels % 4 == 0 else "math"


class Attention(nn.Module):
    """Causal self-attention over ``heads`` heads of C / heads channels."""

    def __init__(self, *, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        # Fused, Xavier's bound would see 4C instead of 2C and start Q, K and V a factor 0.71 too small.
        for weight in (*self.qkv.weight.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C)
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, C / heads)
        y = _attend(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.out(y)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float) -> Tensor:
    """Return causal attention (B, heads, T, C / heads), computed by the backend that ``attention_backend`` names and by
    no other.

    Raises:
        TrainingError: This build of PyTorch lacks the backend on this device.
    """
    D = q.shape[-1]
    backend = attention_backend(q.device.type, q.dtype, head_channels=D, capability=compute_capability(q.device))
    if backend == "written out":
        return _attention_written_out(q, k, v, dropout_p=dropout_p, is_causal=True)
    if backend == "fused":  # the only backend on CPUs, so none has to be excluded
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
    try:
        with sdpa_kernel(_SDP_BACKENDS[backend]):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
    except RuntimeError as error:
        if not _REFUSED.search(str(error)):
            raise
        dtype = str(q.dtype).removeprefix("torch.")
        raise TrainingError(
            "attention",
            f"{q.device}: PyTorch {torch.__version__} has no {backend} attention for heads of {D} channels in {dtype}",
            hint="Use another build of PyTorch, another number of heads, or --precision fp32.",
        ) from error


def _attention_written_out(q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float, is_causal: bool) -> Tensor:
    """Compute ``F.scaled_dot_product_attention`` with the scores (B · heads, T, T) in memory."""
    assert is_causal
    B, heads, T, D = q.shape
    q, k, v = (each.reshape(B * heads, T, D) for each in (q, k, v))
    future = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
    scores = torch.baddbmm(future.expand(B * heads, T, T), q, k.transpose(1, 2), alpha=D**-0.5)
    weights = scores.softmax(-1, dtype=torch.float32)
    return torch.bmm(F.dropout(weights, dropout_p).to(v.dtype), v).view(B, heads, T, D)


class Block(nn.Module):
    """x = LN(x + attention(x)), then x = LN(x + mlp(x)): the norm follows the sum, as in GPT-1 and unlike GPT-2.

    State dicts call the two layers of the MLP ``widen`` and ``narrow``, as checkpoints and published weights do; both
    spellings are read.
    """

    def __init__(self, *, channels: int, heads: int, mlp_channels: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention = Attention(channels=channels, heads=heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(channels, eps=eps)
        self.mlp_in = nn.Linear(channels, mlp_channels)
        self.mlp_out = nn.Linear(mlp_channels, channels)
        self.mlp_norm = nn.LayerNorm(channels, eps=eps)
        self.register_state_dict_post_hook(_write_stored_names)
        self.register_load_state_dict_pre_hook(_read_stored_names)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C)
        x = self.attention_norm(x + self._drop(self.attention(x)))
        y = self.mlp_out(F.gelu(self.mlp_in(x)))  # exact GELU: x times the normal distribution's CDF
        return self.mlp_norm(x + self._drop(y))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


_STORED_NAMES = {"mlp_in": "widen", "mlp_out": "narrow"}
"""Names of modules in state dicts, and so in checkpoints and in best-weights.safetensors, where they are for good."""


def _write_stored_names(_: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: object) -> None:
    for name, stored in _STORED_NAMES.items():
        for parameter in ("weight", "bias"):
            state_dict[f"{prefix}{stored}.{parameter}"] = state_dict.pop(f"{prefix}{name}.{parameter}")


def _read_stored_names(_: nn.Module, state_dict: dict[str, Any], prefix: str, *_more: object) -> None:
    for name, stored in _STORED_NAMES.items():
        for parameter in ("weight", "bias"):
            if f"{prefix}{stored}.{parameter}" in state_dict:
                state_dict[f"{prefix}{name}.{parameter}"] = state_dict.pop(f"{prefix}{stored}.{parameter}")


class Gpt1(nn.Module):
    """A sequence of blocks without a final norm: the output of a post-norm block is normalized already."""

    def __init__(
        self, *, channels: int, layers: int, heads: int, mlp_channels: int, eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.blocks = nn.ModuleList(
            Block(channels=channels, heads=heads, mlp_channels=mlp_channels, eps=eps, dropout=dropout)
            for _ in range(layers)
        )

    def forward(self, embedded: Tensor) -> Tensor:  # (B, T, C)
        """Return features (B, T, C) of the sum of token and position embeddings."""
        x = F.dropout(embedded, self.dropout) if self.dropout and self.training else embedded
        for block in self.blocks:
            x = block(x)
        return x
