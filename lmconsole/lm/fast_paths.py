"""Whether a run computes in the ways that are made for a GPU: only where they come to what the plain ways come to."""

import math
import os
import traceback
from collections.abc import Sequence

import torch
from torch import Tensor

from lmconsole.errors import escape_control_characters
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.model import LanguageModel
from lmconsole.plan.experiment import Precision, Settings

PLAIN = "LMCONSOLE_PLAIN"
"""Environment variable that, set to anything, keeps every fast path from being taken."""

_LOSS_MAY_DIFFER = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 2e-3}
"""Relative."""
_GRADIENT_MAY_DIFFER = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.1}
"""Norm of the difference over the norm. In bf16 either way is a few percent off: rounding switches some ReLUs."""


def why_plain(settings: Settings) -> str | None:
    """Why no fast path can be taken, whatever the device; None if nothing is in the way."""
    if os.environ.get(PLAIN):
        return f"{PLAIN} is set"
    if settings.dropout:
        return "it has dropout, whose draws would differ"
    return None


def choose(model: LanguageModel, split: WindowedSplit, settings: Settings, precision: Precision) -> str | None:
    """Has ``model`` take the fast ways if loss and gradients of the first batch come to the same, and the loss in
    evaluation too; else the plain ones, and says why. Weights stay as they are; Triton has compiled what it has to."""
    reason = why_plain(settings)
    if reason is None:
        try:
            reason = _how_they_differ(model, split, settings.batch_size, precision)
        except Exception as error:  # Triton compiles here, with whatever compiler the machine has, or has not
            print_traceback()
            reason = escape_control_characters(f"{type(error).__name__}: {error}".partition("\n")[0])
    model.take_fast_ways(reason is None)
    return reason


def _how_they_differ(model: LanguageModel, split: WindowedSplit, batch_size: int, precision: Precision) -> str | None:
    windows = torch.arange(min(batch_size, len(split)), device=model.table.device)
    model.train()
    plain_loss, plain = _loss_and_gradients(model, split, windows, precision, fast=False)
    loss, gradients = _loss_and_gradients(model, split, windows, precision, fast=True)
    if not math.isfinite(plain_loss):
        return "the loss is not finite, so they cannot be compared"
    with torch.inference_mode():
        model.eval()
        evaluated = float(_mean_loss(model, split, windows, precision))
    fits = all(abs(each / plain_loss - 1) <= _LOSS_MAY_DIFFER[precision] for each in (loss, evaluated))
    apart = distance(gradients, plain) / max(norm(plain), 1e-300)
    if fits and apart <= _GRADIENT_MAY_DIFFER[precision]:
        return None
    return (
        f"they come to a loss of {loss:g} in training and {evaluated:g} in evaluation instead of {plain_loss:g}, "
        f"and to gradients {apart:.1%} apart"
    )


def _loss_and_gradients(
    model: LanguageModel, split: WindowedSplit, windows: Tensor, precision: Precision, *, fast: bool
) -> tuple[float, list[Tensor]]:
    model.take_fast_ways(fast)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = _mean_loss(model, split, windows, precision)
    return loss.item(), list(torch.autograd.grad(loss, trained))


def _mean_loss(model: LanguageModel, split: WindowedSplit, windows: Tensor, precision: Precision) -> Tensor:
    """As in training: how large gradients are decides what of them float16 can hold."""
    return model.loss_sum(*split.batch(windows), precision) / split.targets_in(windows)


def print_traceback() -> None:
    """Prints the exception being handled, and those that led to it: only the worker's log tells why a fast path
    failed."""
    print(escape_control_characters(traceback.format_exc()), end="", flush=True)


def norm(tensors: Sequence[Tensor]) -> float:
    """Of all of them together."""
    return sum(float(each.double().square().sum()) for each in tensors) ** 0.5


def distance(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Norm of what they differ by."""
    return norm([a - b for a, b in zip(tensors, others, strict=True)])
