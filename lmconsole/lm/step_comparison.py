"""Whether two executions of the same training step did the same, up to noise.

Two computations of a gradient never agree to the bit on a GPU. Adam's first updates are signs of gradients, whatever
their size, and those of gradients around zero differ from one computation to the next. So what is linear in the
gradients is compared as a whole, and updates only where a gradient is well above the noise. A weight decay is too small
to be seen in any single entry, but it moves all of them along the weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmconsole.plan.experiment import Precision

_GRADIENT_TOLERANCE = {"fp32": 0.02, "tf32": 0.05, "bf16": 0.05}
"""Root mean square of the difference of the gradients, relative to that of the reference."""
_NOISE_FLOOR = 0.1
"""A parameter's gradients may be noise and nothing else, as those of attention's key biases are. So they are compared
with this part of all parameters' root mean square where that is more than their own."""
_ABOVE_NOISE = 10.0
"""An entry's update is compared if its gradient is this many times the root mean square of the difference."""
_UPDATE_TOLERANCE = 0.05
"""Relative difference of an entry's update."""
_MAX_OFF_SHARE = 0.25
"""Share of a parameter's compared entries whose updates may differ by more. A fault changes nearly all of them, a sign
that flips only one."""
_DECAY_TOLERANCE = 0.1
"""Difference of the weight decay, relative to the weight decay."""
_STANDARD_ERRORS = 6.0
"""Standard errors by which a difference in weight decay has to exceed zero."""
_MIN_UPDATE = 0.1
"""A parameter that moves by less than this part of the reference update is not updated."""
_PIECE = 2**20
"""Entries compared at once, so that the comparison takes less memory than a step does."""


def first_moment_or_update(new: Tensor, old: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Return the optimizer's first moment, or the update if it keeps none. Either is linear in the gradient."""
    moment = state.get("exp_avg", state.get("momentum_buffer"))
    return new - old if moment is None else moment


class StepComparison:
    """Compares the parameters after a step with those after the reference step, one parameter after the other."""

    def __init__(self, precision: Precision, reference_gradients: Sequence[Tensor]) -> None:
        """``reference_gradients``: ``first_moment_or_update`` of the reference step for all parameters."""
        self._tolerance = _GRADIENT_TOLERANCE[precision]
        self._floor = _NOISE_FLOOR * _rms(reference_gradients)
        self._decay = _Slope()

    def difference(
        self, new: Tensor, old: Tensor, reference_new: Tensor, gradient: Tensor, reference_gradient: Tensor
    ) -> str | None:
        """Return how a parameter's step differs from the reference by more than noise, or None.

        ``new`` are the weights after the step, on the device that compares; ``old`` those before both steps.
        """
        tensors = (new, old, reference_new, gradient, reference_gradient)
        for piece in zip(*(each.flatten().split(_PIECE) for each in tensors), strict=True):
            if found := self._difference_in_piece(*(each.to(new.device) for each in piece)):
                return found
        return None

    def decay_differs(self, decay: float) -> bool:
        """Return whether the compared parameters moved along the weights by more than chance and a tenth of ``decay``,
        the learning rate times the weight decay."""
        return self._decay.exceeds(decay)

    def _difference_in_piece(
        self, new: Tensor, old: Tensor, reference_new: Tensor, gradient: Tensor, reference_gradient: Tensor
    ) -> str | None:
        noise = gradient - reference_gradient
        noise_rms, size = _rms([noise]), _rms([reference_gradient])
        if not noise_rms <= self._tolerance * max(size, self._floor):
            return f"gradients {noise_rms / max(size, 1e-300):.1%} apart"
        reference_update = reference_new - old
        if not _rms([new - old]) >= _MIN_UPDATE * _rms([reference_update]):
            return "not updated"
        clear = reference_gradient.abs() > _ABOVE_NOISE * noise_rms
        difference = new - reference_new
        rounding = 4 * torch.finfo(new.dtype).eps * reference_new.abs()
        off = clear & (difference.abs() > _UPDATE_TOLERANCE * reference_update.abs() + rounding)
        compared, differing = int(clear.sum()), int(off.sum())
        if differing > _MAX_OFF_SHARE * compared:
            return f"{differing:,} of {compared:,} updates differ"
        similar = clear & ~off
        self._decay.add(difference[similar], old[similar])
        return None


class _Slope:
    """Least squares of ``difference = slope · weight``, with a standard error that large differences do not distort."""

    def __init__(self) -> None:
        self._products = self._squared_products = self._squared_weights = 0.0

    def add(self, difference: Tensor, weight: Tensor) -> None:
        products = difference.double() * weight
        self._products += float(products.sum())
        self._squared_products += float(products.square_().sum())
        self._squared_weights += float(weight.double().square_().sum())

    def exceeds(self, decay: float) -> bool:
        """Return whether the slope is more than a tenth of ``decay`` and cannot be chance."""
        limit = _DECAY_TOLERANCE * decay * self._squared_weights
        return decay > 0 and abs(self._products) > max(limit, _STANDARD_ERRORS * self._squared_products**0.5)


def _rms(tensors: Sequence[Tensor]) -> float:
    """Root mean square of all entries."""
    squares = sum(float(torch.linalg.vector_norm(each)) ** 2 for each in tensors)
    return (squares / max(sum(each.numel() for each in tensors), 1)) ** 0.5
