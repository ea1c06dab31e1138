"""Training steps over an epoch's windows: launched one operation at a time, or replayed from a CUDA graph."""

import itertools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter

from lmconsole.errors import printable
from lmconsole.lm import device, fast
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
_UPDATE_MAY_DIFFER = {"fp32": 0.02, "tf32": 0.05, "bf16": 0.05}
"""Relative to the plain steps. Adam's first updates are signs of gradients, and the tiniest of those may flip."""


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
        """Records the step, and raises RuntimeError unless two of it do what two plain ones do."""
        plain_loss, plain = self._two_steps(kept)
        self._replay = record(self._recorded)
        loss, replayed = self._two_steps(kept)
        off = abs(loss - plain_loss) / max(abs(plain_loss), 1e-300)
        change, size = fast.distance(replayed, plain), fast.distance(plain, kept.weights)
        loss_fits = off <= _LOSS_MAY_DIFFER[self.precision]
        if not (loss_fits and change <= _UPDATE_MAY_DIFFER[self.precision] * size):
            raise RuntimeError(
                f"replayed, it does something else: loss {loss:g} instead of {plain_loss:g}, "
                f"weights {change / max(size, 1e-300):.1%} of an update apart"
            )

    def _two_steps(self, kept: "_Kept") -> tuple[float, list[Tensor]]:
        """Loss and weights after the first steps over the windows in their own order."""
        kept.put_back()
        self.begin(torch.arange(len(self.split)), 0, 0.0)
        for _ in range(_CHECKED_STEPS):
            self.take(None)
        return self.nll.item(), [p.detach().cpu().clone() for p in self.trained]


class _Kept:
    """Weights and optimizer state in host memory, to be put back in place: a recording knows them by their addresses.
    State that did not exist is zeroed, which is what each of our optimizers starts from."""

    def __init__(self, trained: list[Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.trained, self.optimizer = trained, optimizer
        self.weights = [p.detach().cpu().clone() for p in trained]
        self.state = {(id(p), name): t.cpu().clone() for p, name, t in self._tensors()}

    def put_back(self) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.trained, self.weights, strict=True):
                parameter.copy_(weight)
            for owner, name, tensor in self._tensors():
                before = self.state.get((id(owner), name))
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
    """Captured steps that compute in fast ways on a GPU, plain ones elsewhere. What does not work is left, with a line
    that says why. ``record`` is how to record; by default as a CUDA graph, where there is CUDA."""
    plain = Steps(model, optimizer, split, settings, precision, where)
    if record is None and where.startswith("cuda"):
        record = record_graph
    if record is None:
        return plain
    if reason := fast.choose(model, split, settings, precision):
        print(f"The fast ways of this GPU are not taken: {reason}", flush=True)
    device.give_back_memory(where)
    device.forget_peaks(where)
    reason = _why_not_captured(split, settings)
    if reason is None:
        try:
            return CapturedSteps(model, optimizer, split, settings, precision, where, record)
        except Exception as error:  # libraries may refuse in words of their own
            reason = printable(str(_first_cause(error)).partition("\n")[0])
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
