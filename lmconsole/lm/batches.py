"""One split of a corpus on the device, cut into windows: a batch is index arithmetic, no loader, no copy."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmconsole.data.windows import cut_windows
from lmconsole.lm.linear_cross_entropy import IGNORE

PADDING = 0


class WindowedSplit:
    """The token stream of a split and its windows of T targets, the last one shorter."""

    def __init__(self, tokens: NDArray[np.generic], window_tokens: int, device: str) -> None:
        starts, lengths = cut_windows(len(tokens), window_tokens)
        padded = np.zeros(len(tokens) + window_tokens, dtype=np.int64)
        padded[: len(tokens)] = tokens
        self.lengths = lengths  # (N,) targets in each window, on the host: means need no look at the device
        self._tokens = torch.from_numpy(padded).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self._lengths = torch.from_numpy(lengths).to(device)
        self._offsets = torch.arange(window_tokens, device=device)

    def __len__(self) -> int:
        """Windows."""
        return len(self.lengths)

    @property
    def targets(self) -> int:
        """Targets of all windows together."""
        return int(self.lengths.sum())

    def targets_in(self, windows: Tensor) -> Tensor:
        """Targets of the windows numbered ``windows`` (B,), a count on the device."""
        return self._lengths[windows].sum()

    def batch(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, T) and targets (B, T) of the windows numbered ``windows`` (B,); past a window's end the ids are
        padding and the targets ``IGNORE``."""
        at = self._starts[windows, None] + self._offsets  # (B, T)
        inside = self._offsets < self._lengths[windows, None]
        ids = torch.where(inside, self._tokens[at], PADDING)
        targets = torch.where(inside, self._tokens[at + 1], IGNORE)
        return ids, targets
