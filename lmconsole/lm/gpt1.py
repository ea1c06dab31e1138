"""GPT-1's body: a stack of post-norm decoder blocks (Radford et al. 2018, after Vaswani et al., arXiv:1706.03762)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        dropout = self.dropout if self.training else 0.0
        attend = _attend_plainly if _plain_is_faster(q) else F.scaled_dot_product_attention
        y = attend(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.out(y)


def _plain_is_faster(q: Tensor) -> bool:
    """torch's fused attention on CPUs is slow in bf16: three products and a softmax need two thirds of its time for
    windows of 256, and a fifth for 64."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16


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
