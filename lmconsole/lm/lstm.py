"""The body of the LSTM language model (Hochreiter & Schmidhuber 1997)."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GRADIENT_SCALE = 2.0**10
"""Factor of float16 gradients. The smallest normal float16 is 6e-5 and the largest 65,504."""


class Lstm(nn.Module):
    """Stacked LSTM, a linear layer back to the width of the embeddings, and ReLU.

    Dropout, if any, applies to the inputs of each layer and the outputs of the last, never to the recurrent path
    (Zaremba et al., arXiv:1409.2329). With ``by_layer``, a float16 recurrence runs one layer at a time.
    """

    def __init__(self, *, channels: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.by_layer = False
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.project = nn.Linear(hidden, channels)

    def forward(self, embedded: Tensor) -> Tensor:  # (B, T, C)
        """Return features (B, T, C) of embedded tokens. Every window starts from a zero state."""
        x = self._drop(embedded)
        x = self._recur_in_float16(x) if self._uses_float16(x) else self.lstm(x)[0]  # (B, T, hidden)
        return F.relu(self.project(self._drop(x)))  # (B, T, C)

    def _uses_float16(self, x: Tensor) -> bool:
        """Return whether cuDNN computes the recurrence in float16: always under autocast, even for bfloat16
        (AutocastRNN.cpp in ATen casts to half in any case)."""
        return x.is_cuda and torch.is_autocast_enabled("cuda")

    def _recur_in_float16(self, x: Tensor) -> Tensor:
        """Return the outputs (B, T, hidden) of the recurrence, computed in float16 and cast to bfloat16.

        Products are summed in float32, states are within ±1 and cells within ±T, so float16, which has three bits more
        than bfloat16, can represent them. Gradients need scaling; those of weights may then be as large as 2**16 /
        GRADIENT_SCALE. For one layer at a time, PyTorch makes cuDNN keep the weights on the chip over all time steps
        (PERSIST_STATIC in ATen's RNN.cpp); for several layers at once it does not.
        """
        layers, unscale = self.lstm.num_layers, 1 / GRADIENT_SCALE
        x = _ScaleGradient.apply(x, unscale)
        weights = [[_ScaleGradient.apply(each, unscale) for each in layer] for layer in self.lstm.all_weights]
        parts = weights if self.by_layer else [list(itertools.chain.from_iterable(weights))]
        zero = x.new_zeros(layers // len(parts), len(x), self.lstm.hidden_size, dtype=torch.float16)
        dropout = 0.0 if self.by_layer else self.lstm.dropout
        with torch.autocast(x.device.type, dtype=torch.float16):
            for part in parts:
                x, _, _ = torch.lstm(x.half(), (zero, zero), part, True, len(zero), dropout, self.training, False, True)
        outputs: Tensor = _ScaleGradient.apply(x.bfloat16(), GRADIENT_SCALE)
        return outputs

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class _ScaleGradient(torch.autograd.Function):
    """Identity in the forward pass; multiplies the gradient by a factor in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output * ctx.factor, None
