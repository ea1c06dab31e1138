"""A split of a corpus on the device, cut into windows. A batch is index arithmetic: no data loader, no copy."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmconsole.data.windows import cut_windows
from lmconsole.lm.linear_cross_entropy import IGNORE

PADDING = 0


class WindowedSplit:
    """Token stream of a split, and its windows of T targets. The last window may be shorter."""

    def __init__(self, tokens: NDArray[np.generic], window_tokens: int, device: str) -> None:
        starts, lengths = cut_windows(len(tokens), window_tokens)
        padded = np.zeros(len(tokens) + window_tokens, dtype=tokens.dtype)
        padded[: len(tokens)] = tokens
        # PyTorch cannot index uint16, and int64 would take four times the memory, which counts for a long text.
        self._unsigned = padded.dtype == np.uint16
        padded = padded.view(np.int16) if self._unsigned else padded
        self.lengths = lengths  # (N,) targets in each window, on the host, so that a mean needs no device sync
        self._tokens = torch.from_numpy(padded).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self._lengths = torch.from_numpy(lengths).to(device)
        self._offsets = torch.arange(window_tokens, device=device)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.lengths)

    @property
    def targets(self) -> int:
        """Number of targets in all windows."""
        return int(self.lengths.sum())

    def targets_in(self, windows: Tensor) -> Tensor:
        """Return the number of targets in the windows with the indices ``windows`` (B,), on the device."""
        return self._lengths[windows].sum()

    def batch(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids (B, T) and targets (B, T) of the windows with the indices ``windows`` (B,).

        Past the end of a window, ids are ``PADDING`` and targets ``IGNORE``.
        """
        positions = self._starts[windows, None] + self._offsets  # (B, T)
        inside = self._offsets < self._lengths[windows, None]
        ids = torch.where(inside, self._ids_at(positions), PADDING)
        targets = torch.where(inside, self._ids_at(positions + 1), IGNORE)
        return ids, targets

    def _ids_at(self, positions: Tensor) -> Tensor:
        """Return the ids at ``positions`` (B, T) as int64, of the same shape."""
        ids = self._tokens[positions].long()
        return ids & 0xFFFF if self._unsigned else ids
