"""Fast paths for GPUs: the Triton kernel, the LSTM layer by layer, and steps replayed from a CUDA graph.

A run takes a fast path only where it computes the same as the reference implementation, which is checked on the run's
own first batches. Otherwise the run goes on with the reference implementation, and its log says why.
"""

import math
import os
import traceback
from collections.abc import Sequence

import torch
from torch import Tensor

from lmconsole.errors import escape_control_characters
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.cuda_graph import CHECKED_STEPS, Capture, capture_graph, capture_steps
from lmconsole.lm.memory import empty_cache, reset_peak_memory
from lmconsole.lm.model import LanguageModel
from lmconsole.lm.steps import Steps
from lmconsole.plan.experiment import Precision, Settings

DISABLE = "LMCONSOLE_PLAIN"
"""Environment variable that, set to anything, disables every fast path."""

_LOSS_TOLERANCE = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 2e-3}
"""Relative."""
_GRADIENT_TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.1}
"""Norm of the difference over the norm. In bf16 either implementation is a few percent off: rounding switches some
ReLUs."""


def prepare_steps(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    split: WindowedSplit,
    settings: Settings,
    precision: Precision,
    device: str,
    capture: Capture | None = None,
) -> Steps:
    """Return captured steps on fast paths on a GPU, and steps of the reference implementation elsewhere.

    A fast path that fails is not used; its traceback and the reason are printed. ``capture`` captures the step; by
    default as a CUDA graph, on a GPU only.
    """
    reference = Steps(model, optimizer, split, settings, precision, device)
    if capture is None and device.startswith("cuda"):
        capture = capture_graph
    if capture is None:
        return reference
    if reason := enable_fast_paths(model, split, settings, precision):
        print(f"Fast paths are not used: {reason}", flush=True)
        reference.fell_back = why_disabled(settings) is None
    empty_cache(device)
    reset_peak_memory(device)
    reason = _why_not_captured(split, settings)
    if reason is None:
        try:
            captured = capture_steps(model, optimizer, split, settings, precision, device, capture)
            captured.fell_back = reference.fell_back
            return captured
        except Exception as error:  # libraries may refuse with errors of their own
            reference.fell_back = True
            _print_traceback()
            reason = escape_control_characters(str(_first_cause(error)).partition("\n")[0])
        finally:
            empty_cache(device)
    print(f"The training step is not captured as a CUDA graph: {reason}", flush=True)
    return reference


def why_disabled(settings: Settings) -> str | None:
    """Return why fast paths are disabled on every device, or None if they are not."""
    if os.environ.get(DISABLE):
        return f"{DISABLE} is set"
    if settings.dropout:
        return "dropout would draw other random numbers"
    return None


def enable_fast_paths(
    model: LanguageModel, split: WindowedSplit, settings: Settings, precision: Precision
) -> str | None:
    """Enable the model's fast paths if loss and gradients of the first batch, and its loss in evaluation, agree with
    the reference implementation. Otherwise disable them and return the reason.

    Weights stay as they are. Triton compiles all it needs.
    """
    reason = why_disabled(settings)
    if reason is None:
        try:
            reason = _difference(model, split, settings.batch_size, precision)
        except Exception as error:  # Triton compiles here, with the machine's compiler, if there is one
            _print_traceback()
            reason = escape_control_characters(f"{type(error).__name__}: {error}".partition("\n")[0])
    model.use_fast_paths(reason is None)
    return reason


def _difference(model: LanguageModel, split: WindowedSplit, batch_size: int, precision: Precision) -> str | None:
    """Return how the fast paths differ from the reference implementation by more than rounding, or None."""
    windows = torch.arange(min(batch_size, len(split)), device=model.table.device)
    model.train()
    reference_loss, reference = _loss_and_gradients(model, split, windows, precision, fast=False)
    loss, gradients = _loss_and_gradients(model, split, windows, precision, fast=True)
    if not math.isfinite(reference_loss):
        return "the loss is not finite, so they cannot be compared"
    with torch.inference_mode():
        model.eval()
        evaluation_loss = float(_mean_loss(model, split, windows, precision))
    losses_agree = all(abs(each / reference_loss - 1) <= _LOSS_TOLERANCE[precision] for each in (loss, evaluation_loss))
    apart = norm_of_difference(gradients, reference) / max(norm(reference), 1e-300)
    if losses_agree and apart <= _GRADIENT_TOLERANCE[precision]:
        return None
    return (
        f"they give a loss of {loss:g} in training and {evaluation_loss:g} in evaluation instead of "
        f"{reference_loss:g}, and gradients {apart:.1%} apart"
    )


def _loss_and_gradients(
    model: LanguageModel, split: WindowedSplit, windows: Tensor, precision: Precision, *, fast: bool
) -> tuple[float, list[Tensor]]:
    model.use_fast_paths(fast)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = _mean_loss(model, split, windows, precision)
    return loss.item(), list(torch.autograd.grad(loss, trained))


def _mean_loss(model: LanguageModel, split: WindowedSplit, windows: Tensor, precision: Precision) -> Tensor:
    """Mean loss, as in training: the size of the gradients decides how much of them float16 can represent."""
    return model.loss_sum(*split.batch(windows), precision) / split.targets_in(windows)


def _why_not_captured(split: WindowedSplit, settings: Settings) -> str | None:
    if len(split) < CHECKED_STEPS * settings.batch_size:
        return "an epoch has too few windows"
    return why_disabled(settings)


def _first_cause(error: BaseException) -> BaseException:
    """Return the error that came first. An aborted capture raises another one, which hides the cause."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _print_traceback() -> None:
    """Print the exception being handled with its causes. Only the worker's log tells why a fast path failed."""
    print(escape_control_characters(traceback.format_exc()), end="", flush=True)


def norm(tensors: Sequence[Tensor]) -> float:
    """Norm over all tensors."""
    return sum(float(each.double().square().sum()) for each in tensors) ** 0.5


def norm_of_difference(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Norm of the differences over all pairs of tensors."""
    return norm([a - b for a, b in zip(tensors, others, strict=True)])
