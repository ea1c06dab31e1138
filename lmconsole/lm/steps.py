"""Training steps over the windows of an epoch."""

import torch
from torch import Tensor
from torch.nn import Parameter

from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.model import LanguageModel
from lmconsole.plan.experiment import Precision, Settings


class Steps:
    """Optimizer steps on the mean loss of each batch. ``nll`` is the epoch's summed loss in nats, on the device."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        split: WindowedSplit,
        settings: Settings,
        precision: Precision,
        device: str,
    ) -> None:
        self.model, self.optimizer, self.split, self.precision = model, optimizer, split, precision
        self.batch_size, self.clip_norm = settings.batch_size, settings.gradient_clip_norm
        self.device = device
        self.fell_back = False
        """Whether a fast path failed that should have worked, for instance because another run held the memory."""
        self.trained: list[Parameter] = [p for p in model.parameters() if p.requires_grad]
        self.nll = torch.zeros((), dtype=torch.float64, device=device)
        self._order = torch.empty(0, dtype=torch.int64)
        self._targets_per_window = split.lengths
        self._next_step = 0

    def start_epoch(self, permutation: Tensor, step: int, nll: float) -> None:
        """Start an epoch over windows in the order of ``permutation`` (N,), or resume it after ``step`` steps whose
        losses sum to ``nll``."""
        self._order = permutation.to(self.device)
        self._targets_per_window = self.split.lengths[permutation.numpy()]
        self._next_step = step
        self.nll = torch.tensor(nll, dtype=torch.float64).to(self.device)

    def step(self, learning_rate: float | None) -> int:
        """Launch a training step on the next batch and return its number of targets, without waiting for the device.

        ``learning_rate`` is None where it never changes.
        """
        batch = slice(self._next_step * self.batch_size, (self._next_step + 1) * self.batch_size)
        target_count = int(self._targets_per_window[batch].sum())
        if learning_rate is not None:
            self._set_learning_rate(learning_rate)
        self._launch(batch, target_count)
        self._next_step += 1
        return target_count

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def _launch(self, batch: slice, target_count: int) -> None:
        """Train on the slice ``batch`` of the epoch's order, whose windows have ``target_count`` targets."""
        self._train_on(self._order[batch], target_count)

    def _train_on(self, windows: Tensor, target_count: Tensor | int) -> None:
        loss_sum = self.model.loss_sum(*self.split.batch(windows), self.precision)
        (loss_sum / target_count).backward()
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.nll += loss_sum.detach()
