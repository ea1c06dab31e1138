"""Training steps captured as a CUDA graph: one launch replays all kernels of a step.

``capture_steps`` follows the whole-network capture of PyTorch's notes on CUDA graphs
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs): warm up on a side stream, capture with static
inputs, replay.
"""

import itertools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter

from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.memory import empty_cache, reset_peak_memory
from lmconsole.lm.model import LanguageModel
from lmconsole.lm.step_comparison import StepComparison, linear_in_gradient
from lmconsole.lm.steps import Steps
from lmconsole.plan.experiment import Precision, Settings

Capture = Callable[[Callable[[], None]], Callable[[], object]]
"""Capture the work of a step, possibly after running it, and return a function that replays it."""

CHECKED_STEPS = 2
"""Steps over which a captured step is checked: the second shows whether it advances to the next batch."""
_WARM_UP_STEPS = 3
"""Steps before the capture, in which libraries choose their kernels and the optimizer creates its state."""
_LOSS_TOLERANCE = {"fp32": 1e-5, "tf32": 1e-4, "bf16": 1e-3}
"""Relative difference of the loss of a replayed step."""


class CudaGraphSteps(Steps):
    """Steps that replay a captured one, which reads on the device which windows come next, and counts on.

    A graph reads and writes fixed addresses, so an epoch's order, the position in it and a changing learning rate are
    tensors that are filled in place. An epoch's last batch, if it is short, is launched without the graph.

    ``capture_steps`` makes instances; without a captured step, this class trains as ``Steps`` does.
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
        size = len(split) + (_WARM_UP_STEPS + 1) * self.batch_size  # warm-up and capture may run past the end
        self._order = torch.zeros(size, dtype=torch.int64, device=device)
        self._position = torch.zeros((), dtype=torch.int64, device=device)
        self._rows = torch.arange(self.batch_size, device=device)
        self.learning_rate: Tensor | None = None
        """The optimizer's learning rate, where a schedule changes it."""
        self.replay: Callable[[], object] | None = None
        """Replays the captured step."""
        if settings.warmup_steps or settings.learning_rate_decay != "none":
            self.learning_rate = torch.tensor(settings.learning_rate, device=device)

    def start_epoch(self, permutation: Tensor, step: int, nll: float) -> None:
        """Start or resume an epoch, as in ``Steps``, in the tensors that the graph reads."""
        self._order[: len(permutation)].copy_(permutation)
        self._counts = self.split.lengths[permutation.numpy()]
        self._next_step = step
        self._position.fill_(step)
        self.nll.fill_(nll)

    def _set_learning_rate(self, learning_rate: float) -> None:
        assert self.learning_rate is not None
        self.learning_rate.fill_(learning_rate)

    def _launch(self, rows: slice, targets: int) -> None:
        if self.replay is None or rows.stop > len(self._counts):
            self._train_on(self._order[rows.start : min(rows.stop, len(self._counts))], targets)
            self._position += 1
        else:
            self.replay()

    def static_step(self) -> None:
        """Train on the next batch with static tensors alone: the work to capture."""
        windows = self._order[self._position * self.batch_size + self._rows]
        self._train_on(windows, self.split.targets_in(windows))
        self._position += 1


class Snapshot:
    """Weights and optimizer state in host memory. They are restored in place, since a graph knows their addresses.

    State that did not exist when the snapshot was taken is zeroed, which is what all optimizers here start from.
    """

    def __init__(self, trained: list[Parameter], optimizer: torch.optim.Optimizer) -> None:
        self._trained, self._optimizer = trained, optimizer
        self.weights = [p.detach().cpu().clone() for p in trained]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        for p, name, t in self._state_tensors():
            self.state.setdefault(p, {})[name] = t.cpu().clone()

    def restore(self) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self._trained, self.weights, strict=True):
                parameter.copy_(weight)
            for owner, name, tensor in self._state_tensors():
                before = self.state.get(owner, {}).get(name)
                tensor.zero_() if before is None else tensor.copy_(before)

    def _state_tensors(self) -> list[tuple[Tensor, str, Tensor]]:
        state = self._optimizer.state
        return [(p, k, t) for p in state for k, t in state[p].items() if isinstance(t, Tensor)]


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
        RuntimeError: The step cannot be captured, or its replay does something else. Weights and optimizer are as
            before.
    """
    steps = CudaGraphSteps(model, optimizer, split, settings, precision, device)
    # The comparison launches steps without a graph, and so does the short batch at each epoch's end.
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    snapshot = Snapshot(steps.trained, optimizer)
    learning_rates = [group["lr"] for group in optimizer.param_groups]
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
        for group, learning_rate in zip(optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        snapshot.restore()
        raise
    snapshot.restore()
    return steps


def _capture_and_check(steps: CudaGraphSteps, settings: Settings, capture: Capture, start: Snapshot) -> None:
    """Capture the step, and raise RuntimeError unless its replays do what steps without a graph do.

    Each replayed step starts from the state that the reference step before it left, so that the noise of one does not
    reach the next.
    """
    losses, states = [], [start]
    for step in range(CHECKED_STEPS):
        losses.append(_step_from(states[step], steps, settings, step))
        states.append(Snapshot(steps.trained, steps.optimizer))
    steps.replay = capture(steps.static_step)
    for step in range(CHECKED_STEPS):
        loss = _step_from(states[step], steps, settings, step)
        if not abs(loss - losses[step]) <= _LOSS_TOLERANCE[steps.precision] * abs(losses[step]):
            difference: str | None = f"loss {loss:g} instead of {losses[step]:g}"
        else:
            difference = _difference(steps, settings, before=states[step], reference=states[step + 1])
        if difference:
            raise RuntimeError(f"the replayed step differs: {difference}")


def _step_from(state: Snapshot, steps: CudaGraphSteps, settings: Settings, step: int) -> float:
    """Train for one step from ``state`` over the windows in their own order, and return the loss so far. A learning
    rate that a schedule changes is changed here too."""
    state.restore()
    if step == 0:
        steps.start_epoch(torch.arange(len(steps.split)), 0, 0.0)
    steps.step(None if steps.learning_rate is None else settings.learning_rate / (1 + step))
    return steps.nll.item()


def _difference(steps: CudaGraphSteps, settings: Settings, *, before: Snapshot, reference: Snapshot) -> str | None:
    """Return how the step from ``before`` differs from the one that led to ``reference`` by more than noise, or
    None."""
    reference_gradients = [
        linear_in_gradient(new, old, reference.state.get(parameter, {}))
        for parameter, new, old in zip(steps.trained, reference.weights, before.weights, strict=True)
    ]
    comparison = StepComparison(steps.precision, reference_gradients)
    names = [name for name, parameter in steps.model.named_parameters() if parameter.requires_grad]
    compared = zip(names, steps.trained, before.weights, reference.weights, reference_gradients, strict=True)
    for name, parameter, old, reference_new, reference_gradient in compared:
        new = parameter.detach()
        gradient = linear_in_gradient(new, old.to(new.device), steps.optimizer.state.get(parameter, {}))
        if found := comparison.difference(new, old, reference_new, gradient, reference_gradient):
            return f"{name}: {found}"
    if comparison.decay_differs(settings.learning_rate * settings.weight_decay):
        return "weights decay differently"
    return None


def capture_graph(work: Callable[[], None]) -> Callable[[], object]:
    """Capture ``work`` as a CUDA graph after warming it up on a side stream, and return its replay.

    Peaks of memory count from the capture on, whose memory every replay uses. Raises whatever ``work`` raises; the
    current stream is then as before.
    """
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in itertools.repeat(None, _WARM_UP_STEPS):
            work()
    current.wait_stream(side)
    device = f"cuda:{torch.cuda.current_device()}"
    empty_cache(device)
    reset_peak_memory(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(current), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
