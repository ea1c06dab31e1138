"""Training steps over an epoch's windows: launched one operation at a time, or replayed from a CUDA graph."""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lmconsole.errors import escape_control_characters
from lmconsole.lm import device
from lmconsole.lm import fast_paths as fast
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.model import LanguageModel
from lmconsole.plan.experiment import Precision, Settings

Record = Callable[[Callable[[], None]], Callable[[], object]]
"""Takes what a step does and returns what repeats it; may run it before."""

_CHECKED_STEPS = 2
"""Steps that a captured step is compared over: the second sees whether it moves on."""
_WARM_UP_STEPS = 3
"""Steps before capturing, in which libraries choose their kernels and the optimizer makes its state."""
_LOSS_MAY_DIFFER = {"fp32": 1e-5, "tf32": 1e-4, "bf16": 1e-3}
_GRADIENT_MAY_DIFFER = {"fp32": 0.02, "tf32": 0.05, "bf16": 0.05}
"""Root mean square of the difference, relative to that of the plain steps."""
_NOISE_FLOOR = 0.1
"""A parameter's gradients may be noise and nothing else, as those of attention's key biases are. So they are compared
with this part of all parameters' root mean square where that is more than their own."""
_ABOVE_NOISE = 10.0
"""How many times the difference, as a root mean square, an entry's gradient has to be for its update to be compared."""
_UPDATES_MAY_DIFFER = 0.05
_OFF_SHARE = 0.25
"""Share of a parameter's compared entries whose updates may differ by more. A fault changes nearly all of them, a sign
that flips one."""
_DECAY_MAY_DIFFER = 0.1
_STANDARD_ERRORS = 6.0
"""How far a difference in weight decay has to stand above chance."""
_STILL = 0.1
"""A parameter that moves by less than this part of what it should is not updated."""
_PIECE = 2**20
"""Entries compared at once, so that comparing takes less memory than a step does."""


class Steps:
    """Optimizer steps on the mean loss of each batch. ``nll`` is the epoch's summed loss, on the device."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        split: WindowedSplit,
        settings: Settings,
        precision: Precision,
        where: str,
    ) -> None:
        self.model, self.optimizer, self.split, self.precision = model, optimizer, split, precision
        self.batch_size, self.clip_norm = settings.batch_size, settings.gradient_clip_norm
        self.device = where
        self.fell_back = False
        """Whether a fast path that nothing ruled out failed, for instance because another run held the memory."""
        self.trained: list[Parameter] = [p for p in model.parameters() if p.requires_grad]
        self.nll = torch.zeros((), dtype=torch.float64, device=where)
        self._order = torch.empty(0, dtype=torch.int64)
        self._counts = split.lengths
        self._next = 0

    def begin(self, permutation: Tensor, step: int, nll: float) -> None:
        """Go on behind ``step`` steps of an epoch with windows in the order of ``permutation`` (N,), whose losses so
        far sum to ``nll``."""
        self._order = permutation.to(self.device)
        self._counts = self.split.lengths[permutation.numpy()]
        self._next = step
        self.nll = torch.tensor(nll, dtype=torch.float64).to(self.device)

    def take(self, learning_rate: float | None) -> int:
        """One step, with ``learning_rate`` if it changes; returns its number of targets and waits for nothing."""
        rows = slice(self._next * self.batch_size, (self._next + 1) * self.batch_size)
        targets = int(self._counts[rows].sum())
        if learning_rate is not None:
            self._set_rate(learning_rate)
        self._take(rows, targets)
        self._next += 1
        return targets

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _take(self, rows: slice, targets: int) -> None:
        self._work(self._order[rows], targets)

    def _work(self, windows: Tensor, targets: Tensor | int) -> None:
        loss_sum = self.model.loss_sum(*self.split.batch(windows), self.precision)
        (loss_sum / targets).backward()
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.nll += loss_sum.detach()


class CapturedSteps(Steps):
    """Steps as one recorded piece of work that reads which windows come next, and counts on, on the device. An epoch's
    last batch, if it is short, is launched plainly.

    Recording trains a few steps, and so does the comparison with plain ones that follows; weights and optimizer are put
    back each time.

    Raises:
        RuntimeError: the step cannot be recorded, or what is replayed does something else than the plain step. Weights
            and optimizer are as before.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        split: WindowedSplit,
        settings: Settings,
        precision: Precision,
        where: str,
        record: Record,
    ) -> None:
        super().__init__(model, optimizer, split, settings, precision, where)
        room = len(split) + (_WARM_UP_STEPS + 1) * self.batch_size  # recording may run past the end
        self._order = torch.zeros(room, dtype=torch.int64, device=where)
        self._at = torch.zeros((), dtype=torch.int64, device=where)
        self._lanes = torch.arange(self.batch_size, device=where)
        self._settings = settings
        self._replay: Callable[[], object] | None = None
        self._rate: Tensor | None = None
        # Comparing takes plain steps, and so does the short batch at each epoch's end.
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
        kept, rates = _Kept(self.trained, optimizer), [group["lr"] for group in optimizer.param_groups]
        try:
            if settings.warmup_steps or settings.learning_rate_decay != "none":
                self._rate = torch.tensor(settings.learning_rate, device=where)
            for group in optimizer.param_groups:
                group["lr"] = self._rate if self._rate is not None else group["lr"]
                if "capturable" in group:
                    group["capturable"] = True
            model.train()
            self._compare(record, kept)
            if self._rate is not None:
                self._rate.fill_(settings.learning_rate)
        except BaseException:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            kept.put_back()
            raise
        kept.put_back()

    def begin(self, permutation: Tensor, step: int, nll: float) -> None:
        """As in ``Steps``, into the places that the recording reads."""
        self._order[: len(permutation)].copy_(permutation)
        self._counts = self.split.lengths[permutation.numpy()]
        self._next = step
        self._at.fill_(step)
        self.nll.fill_(nll)

    def _set_rate(self, rate: float) -> None:
        assert self._rate is not None
        self._rate.fill_(rate)

    def _take(self, rows: slice, targets: int) -> None:
        if self._replay is None or rows.stop > len(self._counts):
            self._work(self._order[rows.start : min(rows.stop, len(self._counts))], targets)
            self._at += 1
        else:
            self._replay()

    def _recorded(self) -> None:
        windows = self._order[self._at * self.batch_size + self._lanes]
        self._work(windows, self.split.targets_in(windows))
        self._at += 1

    def _compare(self, record: Record, kept: "_Kept") -> None:
        """Records the step, and raises RuntimeError unless it does what plain ones do. Each replayed step starts from
        what the plain one before it left, so that what noise made of one does not reach the next."""
        losses, states = [], [kept]
        for step in range(_CHECKED_STEPS):
            losses.append(self._step_from(states[step], step))
            states.append(_Kept(self.trained, self.optimizer))
        self._replay = record(self._recorded)
        for step in range(_CHECKED_STEPS):
            loss = self._step_from(states[step], step)
            if not abs(loss - losses[step]) <= _LOSS_MAY_DIFFER[self.precision] * abs(losses[step]):
                fault: str | None = f"loss {loss:g} instead of {losses[step]:g}"
            else:
                fault = self._difference(states[step], states[step + 1])
            if fault:
                raise RuntimeError(f"replayed, it does something else: {fault}")

    def _step_from(self, state: "_Kept", step: int) -> float:
        """Take a step from ``state`` over the windows in their own order, and return the loss so far. If the learning
        rate may change, it does."""
        state.put_back()
        if step == 0:
            self.begin(torch.arange(len(self.split)), 0, 0.0)
        self.take(None if self._rate is None else self._settings.learning_rate / (1 + step))
        return self.nll.item()

    def _difference(self, before: "_Kept", plain: "_Kept") -> str | None:
        """How what a step made of the state ``before`` differs beyond noise from ``plain``; None if it does not.

        Adam's first updates are signs of gradients, whatever their size, and those of gradients around zero differ from
        one computation to the next. So what is linear in the gradients is compared as a whole, and updates only where
        a gradient stands well above the noise. A weight decay is too small to be seen in any entry, but it moves all of
        them along the weights.
        """
        expected = [
            _gradient(new, old, plain.state.get(id(parameter), {}))
            for parameter, new, old in zip(self.trained, plain.weights, before.weights, strict=True)
        ]
        comparison = _Comparison(_GRADIENT_MAY_DIFFER[self.precision], floor=_NOISE_FLOOR * _rms(expected))
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        compared = zip(names, self.trained, before.weights, plain.weights, expected, strict=True)
        for name, parameter, old, plain_new, plain_gradient in compared:
            new = parameter.detach()
            gradient = _gradient(new, old.to(new.device), self.optimizer.state.get(parameter, {}))
            every = (new, old, plain_new, gradient, plain_gradient)
            for piece in zip(*(each.flatten().split(_PIECE) for each in every), strict=True):
                if fault := comparison.fault(*(each.to(new.device) for each in piece)):
                    return f"{name}: {fault}"
        if comparison.along_weights.beyond(self._settings.learning_rate * self._settings.weight_decay):
            return "weights decay differently"
        return None


def _gradient(new: Tensor, old: Tensor, state: Mapping[str, Any]) -> Tensor:
    """What of a step is linear in its gradient: the optimizer's first moment, or the update where it keeps none."""
    moment = state.get("exp_avg", state.get("momentum_buffer"))
    return new - old if moment is None else moment


class _Comparison:
    """Compares what two ways of taking the same step made of parameters, piece by piece."""

    def __init__(self, gradients_may_differ: float, *, floor: float) -> None:
        self._may_differ, self._floor = gradients_may_differ, floor
        self.along_weights = _Slope()

    def fault(
        self, new: Tensor, old: Tensor, plain_new: Tensor, gradient: Tensor, plain_gradient: Tensor
    ) -> str | None:
        """How ``new`` weights and ``gradient`` differ from the plain ones, ``old`` being the weights before; None if by
        noise alone. Each is flat and on the same device."""
        noise = gradient - plain_gradient
        apart, size = _rms([noise]), _rms([plain_gradient])
        if not apart <= self._may_differ * max(size, self._floor):
            return f"gradients {apart / max(size, 1e-300):.1%} apart"
        plain_update = plain_new - old
        if not _rms([new - old]) >= _STILL * _rms([plain_update]):
            return "not updated"
        clear = plain_gradient.abs() > _ABOVE_NOISE * apart
        difference = new - plain_new
        rounding = 4 * torch.finfo(new.dtype).eps * plain_new.abs()
        off = clear & (difference.abs() > _UPDATES_MAY_DIFFER * plain_update.abs() + rounding)
        compared, differing = int(clear.sum()), int(off.sum())
        if differing > _OFF_SHARE * compared:
            return f"{differing:,} of {compared:,} updates differ"
        like = clear & ~off
        self.along_weights.add(difference[like], old[like])
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

    def beyond(self, expected: float) -> bool:
        """Whether the slope is more than a tenth of ``expected``, the weight decay, and cannot be chance."""
        most = _DECAY_MAY_DIFFER * expected * self._squared_weights
        return expected > 0 and abs(self._products) > max(most, _STANDARD_ERRORS * self._squared_products**0.5)


def _rms(tensors: Sequence[Tensor]) -> float:
    """Root mean square of all entries."""
    squares = sum(float(torch.linalg.vector_norm(each)) ** 2 for each in tensors)
    return (squares / max(sum(each.numel() for each in tensors), 1)) ** 0.5


class _Kept:
    """Weights and optimizer state in host memory, to be put back in place: a recording knows them by their addresses.
    State that did not exist is zeroed, which is what each of our optimizers starts from."""

    def __init__(self, trained: list[Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.trained, self.optimizer = trained, optimizer
        self.weights = [p.detach().cpu().clone() for p in trained]
        self.state: dict[int, dict[str, Tensor]] = {}
        for p, name, t in self._tensors():
            self.state.setdefault(id(p), {})[name] = t.cpu().clone()

    def put_back(self) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.trained, self.weights, strict=True):
                parameter.copy_(weight)
            for owner, name, tensor in self._tensors():
                before = self.state.get(id(owner), {}).get(name)
                tensor.zero_() if before is None else tensor.copy_(before)

    def _tensors(self) -> list[tuple[Tensor, str, Tensor]]:
        state = self.optimizer.state
        return [(p, k, t) for p in state for k, t in state[p].items() if isinstance(t, Tensor)]


def prepare_steps(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    split: WindowedSplit,
    settings: Settings,
    precision: Precision,
    where: str,
    record: Record | None = None,
) -> Steps:
    """Captured steps that compute in fast ways on a GPU, plain ones elsewhere. What does not work is left, with its
    traceback and a line that says why. ``record`` is how to record; by default as a CUDA graph, where there is CUDA."""
    plain = Steps(model, optimizer, split, settings, precision, where)
    if record is None and where.startswith("cuda"):
        record = record_graph
    if record is None:
        return plain
    if reason := fast.choose(model, split, settings, precision):
        print(f"The fast ways of this GPU are not taken: {reason}", flush=True)
        plain.fell_back = fast.why_plain(settings) is None
    device.give_back_memory(where)
    device.forget_peaks(where)
    reason = _why_not_captured(split, settings)
    if reason is None:
        try:
            captured = CapturedSteps(model, optimizer, split, settings, precision, where, record)
            captured.fell_back = plain.fell_back
            return captured
        except Exception as error:  # libraries may refuse in words of their own
            plain.fell_back = True
            fast.print_traceback()
            reason = escape_control_characters(str(_first_cause(error)).partition("\n")[0])
        finally:
            device.give_back_memory(where)
    print(f"The training step is not captured as a CUDA graph: {reason}", flush=True)
    return plain


def _first_cause(error: BaseException) -> BaseException:
    """What went wrong first: a capture that is broken off complains of that too, and hides why."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _why_not_captured(split: WindowedSplit, settings: Settings) -> str | None:
    if len(split) < _CHECKED_STEPS * settings.batch_size:
        return "an epoch has too few windows"
    return fast.why_plain(settings)


def record_graph(work: Callable[[], None]) -> Callable[[], object]:
    """Captures ``work`` as a CUDA graph after warming it up on a stream of its own, as torch asks for. Peaks of memory
    count from the capture on, which takes what every replay uses.

    Raises whatever ``work`` raises; the stream is then what it was.
    """
    current = torch.cuda.current_stream()
    stream = torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in itertools.repeat(None, _WARM_UP_STEPS):
            work()
    current.wait_stream(stream)
    where = f"cuda:{torch.cuda.current_device()}"
    device.give_back_memory(where)
    device.forget_peaks(where)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(current), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
