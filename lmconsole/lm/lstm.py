"""The LSTM language model's body (Hochreiter & Schmidhuber 1997)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GRADIENT_SCALE = 2.0**10
"""What gradients are multiplied by where they are float16, whose smallest normal number is 6e-5."""


class Lstm(nn.Module):
    """Stacked LSTM, a linear layer back to the width of the embeddings, and ReLU.

    Dropout, if any, sits on each layer's inputs and on the last one's outputs, never on the recurrent path (Zaremba et
    al., arXiv:1409.2329). With ``half_recurrence`` the recurrence is computed in float16: see ``_in_half``.
    """

    def __init__(self, *, channels: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.half_recurrence = False
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.project = nn.Linear(hidden, channels)

    def forward(self, embedded: Tensor) -> Tensor:  # (B, T, C)
        """Features (B, T, C) of embedded tokens; every window starts from a zero state."""
        x = self._drop(embedded)
        x = self._in_half(x) if self.half_recurrence else self.lstm(x)[0]  # (B, T, hidden)
        return F.relu(self.project(self._drop(x)))  # (B, T, C)

    def _in_half(self, x: Tensor) -> Tensor:
        """The recurrence in float16, layer by layer: torch then has cuDNN keep the weights on the chip for all steps
        (PERSIST_STATIC in ATen's RNN.cpp), which it does neither for bfloat16 nor for several layers at once. Products
        are summed in float32, states lie within ±1 and cells within ±T, so that float16, which has three bits more than
        bfloat16, holds them; gradients it holds because they are scaled. (B, T, C) to (B, T, hidden) in bfloat16.
        """
        device, hidden, back = x.device.type, self.lstm.hidden_size, 1 / GRADIENT_SCALE
        x = _ScaleGradient.apply(x, back)
        zero = x.new_zeros(1, len(x), hidden, dtype=torch.float16)
        with torch.autocast(device, dtype=torch.float16):
            for weights in self.lstm.all_weights:
                scaled = [_ScaleGradient.apply(weight, back) for weight in weights]
                x, _, _ = torch.lstm(x.half(), (zero, zero), scaled, True, 1, 0.0, self.training, False, True)
        scaled_up: Tensor = _ScaleGradient.apply(x.bfloat16(), GRADIENT_SCALE)
        return scaled_up

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class _ScaleGradient(torch.autograd.Function):
    """Nothing on the way forward; a factor on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
