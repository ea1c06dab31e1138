"""Training steps captured as a CUDA graph: one launch replays all kernels of a step.

``capture_steps`` follows the whole-network capture of PyTorch's notes on CUDA graphs
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs): warm up on a side stream, capture with static
inputs, replay.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter

from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.memory import empty_cache, reset_peak_memory
from lmconsole.lm.model import LanguageModel
from lmconsole.lm.optimizers import has_schedule
from lmconsole.lm.step_comparison import StepComparison, first_moment_or_update
from lmconsole.lm.steps import Steps
from lmconsole.plan.experiment import Precision, Settings

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Captures the work it is called with, and returns a function that replays it. It may run the work first, as a
warm-up."""

CHECKED_STEPS = 2
"""Steps over which a captured step is checked: the second shows whether it advances to the next batch."""
_WARM_UP_STEPS = 3
"""Steps before the capture, in which libraries choose their kernels and the optimizer creates its state."""
_LOSS_TOLERANCE = {"fp32": 1e-5, "tf32": 1e-4, "bf16": 1e-3}
"""Difference of the loss of a replayed step, relative to that of the reference step."""


class CudaGraphSteps(Steps):
    """Steps that replay one captured training step. Until ``capture`` is called, they train as ``Steps`` do.

    A graph reads and writes fixed addresses. So the order of the windows, the index of the step and a changing learning
    rate are tensors that are filled in place, and the captured step increments the index itself. An epoch's last batch,
    if it is short, is launched without the graph.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        split: WindowedSplit,
        settings: Settings,
        precision: Precision,
        device: str,
    ) -> None:
        super().__init__(model, optimizer, split, settings, precision, device)
        # Before the capture come CHECKED_STEPS steps. Its warm-up, and one more step where the capture itself runs it,
        # may go on past the end of a short split: the order is zero there.
        size = len(split) + (_WARM_UP_STEPS + 1) * self.batch_size
        self._order = torch.zeros(size, dtype=torch.int64, device=device)
        self._position = torch.zeros((), dtype=torch.int64, device=device)
        self._batch_offsets = torch.arange(self.batch_size, device=device)
        self.learning_rate: Tensor | None = None
        """The optimizer's learning rate; None without a schedule."""
        self._replay: Callable[[], None] | None = None
        if has_schedule(settings):
            self.learning_rate = torch.tensor(settings.learning_rate, device=device)

    def start_epoch(self, permutation: Tensor, step: int, nll: float) -> None:
        """Start or resume an epoch, as in ``Steps``, in the tensors that the graph reads."""
        self._order[: len(permutation)].copy_(permutation)
        self._targets_per_window = self.split.lengths[permutation.numpy()]
        self._next_step = step
        self._position.fill_(step)
        self.nll.fill_(nll)

    def capture(self, capture: Capture) -> None:
        """Capture the step with ``capture``, and replay it from now on. A warm-up trains and changes the position."""
        self._replay = capture(self._static_step)

    def _set_learning_rate(self, learning_rate: float) -> None:
        assert self.learning_rate is not None
        self.learning_rate.fill_(learning_rate)

    def _launch(self, batch: slice, target_count: int) -> None:
        window_count = len(self._targets_per_window)
        if self._replay is None or batch.stop > window_count:
            self._train_on(self._order[batch.start : min(batch.stop, window_count)], target_count)
            self._position += 1
        else:
            self._replay()

    def _static_step(self) -> None:
        """Train on the next batch with static tensors alone: the work to capture."""
        windows = self._order[self._position * self.batch_size + self._batch_offsets]
        self._train_on(windows, self.split.targets_in(windows))
        self._position += 1


class TrainingSnapshot:
    """Weights and optimizer state in host memory. They are restored in place: captured kernels hold their addresses.

    State that did not exist when the snapshot was taken is zeroed, which is what all optimizers here start from.
    """

    def __init__(self, trained: list[Parameter], optimizer: torch.optim.Optimizer) -> None:
        self._trained, self._optimizer = trained, optimizer
        self.weights = [parameter.detach().to("cpu", copy=True) for parameter in trained]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        for owner, name, tensor in self._state_tensors():
            self.state.setdefault(owner, {})[name] = tensor.to("cpu", copy=True)

    def restore(self) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self._trained, self.weights, strict=True):
                parameter.copy_(weight)
            for owner, name, tensor in self._state_tensors():
                before = self.state.get(owner, {}).get(name)
                tensor.zero_() if before is None else tensor.copy_(before)

    def _state_tensors(self) -> list[tuple[Tensor, str, Tensor]]:
        """Return each tensor of the optimizer's state with its parameter and its name."""
        return [
            (owner, name, tensor)
            for owner, state in self._optimizer.state.items()
            for name, tensor in state.items()
            if isinstance(tensor, Tensor)
        ]


def capture_steps(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    split: WindowedSplit,
    settings: Settings,
    precision: Precision,
    device: str,
    capture: Capture,
) -> CudaGraphSteps:
    """Return steps that replay a captured one, after comparing replays with steps launched without a graph.

    Warm-up, capture and comparison train for a few steps; weights and optimizer state are restored afterwards.

    Raises:
        ValueError: ``split`` has fewer than ``CHECKED_STEPS`` full batches.
        RuntimeError: The step cannot be captured, or its replay does something else. Weights and optimizer are as
            before.
    """
    steps = CudaGraphSteps(model, optimizer, split, settings, precision, device)
    needed = CHECKED_STEPS * steps.batch_size
    if len(split) < needed:  # replays of short batches would launch the reference steps that they are compared with
        raise ValueError(f"checking a captured step needs {needed} windows, but the split has {len(split)}")
    snapshot = TrainingSnapshot(steps.trained, optimizer)
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            if steps.learning_rate is not None:
                group["lr"] = steps.learning_rate
            if "capturable" in group:
                group["capturable"] = True
        model.train()
        _capture_and_check(steps, settings, capture, snapshot)
        if steps.learning_rate is not None:
            steps.learning_rate.fill_(settings.learning_rate)
    except BaseException:
        for group, before in zip(optimizer.param_groups, options, strict=True):
            group.update(before)
        optimizer.zero_grad(set_to_none=True)
        snapshot.restore()
        raise
    snapshot.restore()
    return steps


def _capture_and_check(steps: CudaGraphSteps, settings: Settings, capture: Capture, start: TrainingSnapshot) -> None:
    """Capture the step, and raise RuntimeError unless its replays do what steps without a graph do.

    Each replayed step starts from the state that the reference step before it left, so that rounding differences do not
    accumulate. With a schedule, the learning rate differs between the steps: a replay must use the current one.
    """
    rates = [settings.learning_rate / (1 if steps.learning_rate is None else 1 + step) for step in range(CHECKED_STEPS)]
    losses, states = [], [start]
    for step, rate in enumerate(rates):
        losses.append(_step_from(states[step], steps, step, rate))
        states.append(TrainingSnapshot(steps.trained, steps.optimizer))
    steps.capture(capture)
    for step, rate in enumerate(rates):
        loss = _step_from(states[step], steps, step, rate)
        # ``not <=`` instead of ``>``, so that a NaN differs too
        if not abs(loss - losses[step]) <= _LOSS_TOLERANCE[steps.precision] * abs(losses[step]):
            mismatch: str | None = f"loss {loss:g} instead of {losses[step]:g}"
        else:
            mismatch = _describe_mismatch(
                steps, before=states[step], reference=states[step + 1], decay=rate * settings.weight_decay
            )
        if mismatch:
            raise RuntimeError(f"the replayed step differs: {mismatch}")


def _step_from(state: TrainingSnapshot, steps: CudaGraphSteps, step: int, rate: float) -> float:
    """Train for step ``step`` of an epoch of unshuffled windows from ``state``, at the learning rate ``rate``, and
    return the epoch's loss so far."""
    state.restore()
    if step == 0:
        steps.start_epoch(torch.arange(len(steps.split)), 0, 0.0)
    steps.step(None if steps.learning_rate is None else rate)
    return steps.nll.item()


def _describe_mismatch(
    steps: CudaGraphSteps, *, before: TrainingSnapshot, reference: TrainingSnapshot, decay: float
) -> str | None:
    """Return how the step from ``before`` to the current weights, on the device, differs by more than noise from the
    step that led to ``reference``; None if it does not.

    ``decay`` is the learning rate of the step times the weight decay. Both snapshots are in host memory.
    """
    reference_moments = [
        first_moment_or_update(new, old, reference.state.get(parameter, {}))
        for parameter, new, old in zip(steps.trained, reference.weights, before.weights, strict=True)
    ]
    comparison = StepComparison(steps.precision, reference_moments)
    names = [name for name, parameter in steps.model.named_parameters() if parameter.requires_grad]
    compared = zip(names, steps.trained, before.weights, reference.weights, reference_moments, strict=True)
    for name, parameter, old, reference_new, reference_moment in compared:
        new = parameter.detach()
        moment = first_moment_or_update(new, old.to(new.device), steps.optimizer.state.get(parameter, {}))
        if found := comparison.difference(new, old, reference_new, moment, reference_moment):
            return f"{name}: {found}"
    return "weights decay differently" if comparison.decay_differs(decay) else None


def capture_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture ``work`` as a CUDA graph on the current device, after a warm-up on a side stream. Return its replay.

    Resets the peak-memory statistics just before the capture: the graph's memory pool stays allocated, that of the
    warm-up does not. Raises whatever ``work`` raises; the current stream is then as before.
    """
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP_STEPS):
            work()
    current.wait_stream(side)
    device = f"cuda:{torch.cuda.current_device()}"
    empty_cache(device)
    reset_peak_memory(device)
    graph = torch.cuda.CUDAGraph()
    # ``torch.cuda.graph`` does not restore the stream if ending a failed capture raises, so the outer context does.
    # thread_local: CUDA calls of other threads, such as the one that samples telemetry, do not abort the capture.
    with torch.cuda.stream(current), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
