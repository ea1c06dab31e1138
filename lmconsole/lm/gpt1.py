"""GPT-1's body: a stack of post-norm decoder blocks (Radford et al. 2018, after Vaswani et al., arXiv:1706.03762)."""

import math
import re
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmconsole.errors import TrainingError
from lmconsole.lm.device import compute_capability

AttentionBackend = Literal["flash", "efficient", "math", "fused", "written out"]
"""``flash``, ``efficient`` and ``math`` are torch's for GPUs, by their names in ``torch.nn.attention.SDPBackend``.
``fused`` is torch's own choice on CPUs, and ``written out`` is ours there."""

_SDP_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_REFUSED = re.compile("No available kernel|No viable backend")
"""What torch says when the backends it may use cannot compute the attention it was asked for."""


def attention_backend(
    device_type: str, dtype: torch.dtype, *, head_channels: int, capability: tuple[int, int] | None
) -> AttentionBackend:
    """The one way in which attention over heads of ``head_channels`` channels is computed on this kind of device, in
    training and in evaluation.

    ``dtype`` is that of queries, keys and values; ``capability`` is a GPU's compute capability, None for a CPU. torch
    itself would choose by version too: on Hopper from 2.11 on it prefers cuDNN, which builds a plan for every shape.

    Flash attention takes 16-bit types from compute capability 8.0 on, and heads of up to 256 channels, of which torch
    pads those that are no multiple of 8; at 8.6 to 8.9 and from 12.0 on it is trained with up to 192. Memory-efficient
    attention takes rows of whole 16 bytes there, and any row before (``sdp_utils.cpp`` in ATen).
    """
    if device_type == "cpu":
        # torch's fused attention on CPUs is slow in bf16: three products and a softmax need two thirds of its time for
        # windows of 256, and a fifth for 64.
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
    """Causal attention (B, heads, T, C / heads) by the backend that ``attention_backend`` names, and by no other.

    Raises:
        TrainingError: this torch does not have the backend on this device.
    """
    D = q.shape[-1]
    backend = attention_backend(q.device.type, q.dtype, head_channels=D, capability=compute_capability(q.device))
    if backend == "written out":
        return _attend_plainly(q, k, v, dropout_p=dropout_p, is_causal=True)
    if backend == "fused":  # the only one that a CPU has, so that nothing needs to be ruled out
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


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float, is_causal: bool) -> Tensor:
    """What ``F.scaled_dot_product_attention`` computes, with the scores written out (B · heads, T, T)."""
    assert is_causal
    B, heads, T, D = q.shape
    q, k, v = (each.reshape(B * heads, T, D) for each in (q, k, v))
    future = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
    scores = torch.baddbmm(future.expand(B * heads, T, T), q, k.transpose(1, 2), alpha=D**-0.5)
    weights = scores.softmax(-1, dtype=torch.float32)
    return torch.bmm(F.dropout(weights, dropout_p).to(v.dtype), v).view(B, heads, T, D)


class Block(nn.Module):
    """x = LN(x + attention(x)), then x = LN(x + mlp(x)): the norm comes after the sum, as in GPT-1 and unlike GPT-2."""

    def __init__(self, *, channels: int, heads: int, mlp_channels: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention = Attention(channels=channels, heads=heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(channels, eps=eps)
        self.widen = nn.Linear(channels, mlp_channels)
        self.narrow = nn.Linear(mlp_channels, channels)
        self.mlp_norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C)
        x = self.attention_norm(x + self._drop(self.attention(x)))
        y = self.narrow(F.gelu(self.widen(x)))  # exact GELU: x times the normal distribution's erf
        return self.mlp_norm(x + self._drop(y))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class Gpt1(nn.Module):
    """The blocks one after another, and no norm at the end: post-norm blocks leave normed features already."""

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
        """Features (B, T, C) of the sum of token and position embeddings."""
        x = F.dropout(embedded, self.dropout) if self.dropout and self.training else embedded
        for block in self.blocks:
            x = block(x)
        return x
