"""The LSTM language model's body (Hochreiter & Schmidhuber 1997)."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GRADIENT_SCALE = 2.0**10
"""What gradients are multiplied by where they are float16, whose smallest normal number is 6e-5 and largest 65,504."""


class Lstm(nn.Module):
    """Stacked LSTM, a linear layer back to the width of the embeddings, and ReLU.

    Dropout, if any, sits on each layer's inputs and on the last one's outputs, never on the recurrent path (Zaremba et
    al., arXiv:1409.2329). ``by_layer`` asks for layers one after the other where the recurrence is float16.
    """

    def __init__(self, *, channels: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.by_layer = False
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.project = nn.Linear(hidden, channels)

    def forward(self, embedded: Tensor) -> Tensor:  # (B, T, C)
        """Features (B, T, C) of embedded tokens; every window starts from a zero state."""
        x = self._drop(embedded)
        x = self._recur_in_half(x) if self._takes_half(x) else self.lstm(x)[0]  # (B, T, hidden)
        return F.relu(self.project(self._drop(x)))  # (B, T, C)

    def _takes_half(self, x: Tensor) -> bool:
        """Whether cuDNN computes the recurrence in float16: under autocast always, bfloat16 or not (AutocastRNN.cpp in
        ATen casts to half whatever is asked for)."""
        return x.is_cuda and torch.is_autocast_enabled("cuda")

    def _recur_in_half(self, x: Tensor) -> Tensor:
        """The recurrence in float16: (B, T, C) to (B, T, hidden) in bfloat16.

        Products are summed in float32, states lie within ±1 and cells within ±T, so that float16, which has three bits
        more than bfloat16, holds them. Gradients it holds because they are scaled, those of weights up to 2**16 /
        GRADIENT_SCALE. One layer at a time torch has cuDNN keep the weights on the chip for all steps (PERSIST_STATIC
        in ATen's RNN.cpp), several together it does not.
        """
        layers, back = self.lstm.num_layers, 1 / GRADIENT_SCALE
        x = _ScaleGradient.apply(x, back)
        weights = [[_ScaleGradient.apply(each, back) for each in layer] for layer in self.lstm.all_weights]
        parts = weights if self.by_layer else [list(itertools.chain.from_iterable(weights))]
        zero = x.new_zeros(layers // len(parts), len(x), self.lstm.hidden_size, dtype=torch.float16)
        dropout = 0.0 if self.by_layer else self.lstm.dropout
        with torch.autocast(x.device.type, dtype=torch.float16):
            for part in parts:
                x, _, _ = torch.lstm(x.half(), (zero, zero), part, True, len(zero), dropout, self.training, False, True)
        recurred: Tensor = _ScaleGradient.apply(x.bfloat16(), GRADIENT_SCALE)
        return recurred

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
