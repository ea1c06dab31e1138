"""Evaluation of a model on all windows of a split."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.launch_limit import LaunchLimiter
from lmconsole.lm.model import LanguageModel
from lmconsole.plan.experiment import Precision, Settings

EVALUATION_TOKENS = 8192
"""Tokens in an evaluation batch on a GPU: twice those of a training batch of the built-in experiments, in less memory
than a training step."""


def evaluate(
    model: LanguageModel,
    split: WindowedSplit,
    settings: Settings,
    device: str,
    tick: Callable[[], None],
    window_nats: Tensor | None = None,
) -> float:
    """Return the mean loss of a split in nats per target.

    Args:
        tick: called after each batch; what it raises ends the evaluation.
        window_nats: (N,) float64 to be filled with the loss of each window, summed over its targets. The mean is the
            same with and without.
    """
    precision = cast(Precision, settings.precision)
    nll = torch.zeros((), dtype=torch.float64, device=device)
    limiter = LaunchLimiter(device)
    model.eval()
    with torch.inference_mode():
        batch_size = _batch_size(settings, device)
        every = torch.arange(len(split), device=device).split(batch_size)
        parts = [None] * len(every) if window_nats is None else window_nats.split(batch_size)
        for windows, part in zip(every, parts, strict=True):
            nll += model.loss_sum(*split.batch(windows), precision, part)
            limiter.after_launch()
            tick()
    return nll.item() / split.targets


def _batch_size(settings: Settings, device: str) -> int:
    """Return the number of windows in a batch. On a GPU they are more than in training: the LSTM takes as long for
    large batches as for small ones."""
    if device == "cpu":
        return settings.batch_size
    return max(settings.batch_size, EVALUATION_TOKENS // settings.window_tokens)


def new_window_nats(split: WindowedSplit, device: str) -> Tensor:
    """Return a tensor for the losses of the windows of ``split``."""
    return torch.empty(len(split), dtype=torch.float64, device=device)
