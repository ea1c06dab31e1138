"""The LSTM language model's body (Hochreiter & Schmidhuber 1997)."""

from torch import Tensor, nn
from torch.nn import functional as F


class Lstm(nn.Module):
    """Stacked LSTM, a linear layer back to the width of the embeddings, and ReLU.

    Dropout, if any, sits on each layer's inputs and on the last one's outputs, never on the recurrent path (Zaremba et
    al., arXiv:1409.2329).
    """

    def __init__(self, *, channels: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.lstm = nn.LSTM(channels, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.project = nn.Linear(hidden, channels)

    def forward(self, embedded: Tensor) -> Tensor:  # (B, T, C)
        """Features (B, T, C) of embedded tokens; every window starts from a zero state."""
        x, _ = self.lstm(self._drop(embedded))  # (B, T, hidden)
        return F.relu(self.project(self._drop(x)))  # (B, T, C)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x
