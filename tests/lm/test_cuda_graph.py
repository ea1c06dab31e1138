"""Captured steps compared with the reference steps.

On a CPU a capture returns the work itself. This shows that the work reads nothing but tensors at fixed addresses. On a
GPU, CUDA graphs are captured and compared.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from lm.small_models import SIZES, WINDOWS, small_parts, small_settings

from lmconsole.lm import device as devices
from lmconsole.lm.cuda_graph import Capture, CudaGraphSteps, capture_graph, capture_steps
from lmconsole.lm.steps import Steps
from lmconsole.plan.experiment import Precision, Settings

pytestmark = pytest.mark.slow


def run_once(work: Callable[[], None]) -> Callable[[], None]:
    work()  # as a warm-up does
    return work


def losses(steps: Steps, epochs: int = 3, rate: Callable[[int], float | None] = lambda step: None) -> list[float]:
    """Return the summed loss after every step."""
    found, count = [], 0
    for epoch in range(epochs):
        steps.start_epoch(torch.randperm(WINDOWS, generator=torch.Generator().manual_seed(epoch)), 0, 0.0)
        for _ in range(6):
            steps.step(rate(count))
            found.append(steps.nll.item())
            count += 1
    return found


def reference_and_captured(
    settings: Settings, capture: Capture = run_once, device: str = "cpu", precision: Precision = "fp32"
) -> tuple[Steps, CudaGraphSteps]:
    reference = Steps(*small_parts(settings, device), settings, precision, device)
    return reference, capture_steps(*small_parts(settings, device), settings, precision, device, capture)


@pytest.mark.parametrize("experiment", range(1, 13))
def test_captured_steps_train_as_reference_steps_do(experiment: int) -> None:
    reference, captured = reference_and_captured(small_settings(experiment))
    assert losses(captured) == pytest.approx(losses(reference), rel=1e-5)


def test_counts_of_targets_are_the_same() -> None:
    order = torch.arange(WINDOWS)
    for steps in reference_and_captured(small_settings(1)):
        steps.start_epoch(order, 0, 0.0)
        counts = [steps.step(None) for _ in range(6)]
        assert counts[:5] == [32] * 5
        assert sum(counts) == steps.split.targets


@pytest.mark.parametrize("experiment", [2, 4])
def test_a_changing_learning_rate_reaches_the_graph(experiment: int) -> None:
    reference, captured = reference_and_captured(small_settings(experiment, warmup_steps=4))

    def rate(step: int) -> float:
        return 0.05 / (1 + step)

    changing = losses(captured, rate=rate)
    assert changing == pytest.approx(losses(reference, rate=rate), rel=1e-5)
    assert changing != pytest.approx(losses(reference_and_captured(small_settings(experiment))[0]), rel=1e-5)


def test_an_epoch_is_resumed_in_the_middle() -> None:
    reference, captured = reference_and_captured(small_settings(6, gradient_clip_norm=0.5))
    order = torch.randperm(WINDOWS, generator=torch.Generator().manual_seed(5))
    for steps in (reference, captured):
        steps.start_epoch(order, 3, 100.0)
        for _ in range(3):
            steps.step(None)
    assert captured.nll.item() > 100
    assert captured.nll.item() == pytest.approx(reference.nll.item(), rel=1e-6)


@pytest.mark.parametrize("experiment", [2, 4])
def test_capturing_restores_weights_and_optimizer(experiment: int) -> None:
    settings = small_settings(experiment)
    model, optimizer, split = small_parts(settings)
    losses(Steps(model, optimizer, split, settings, "fp32", "cpu"), epochs=1)
    weights = [p.detach().clone() for p in model.parameters()]
    state = [t.clone() for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    capture_steps(model, optimizer, split, settings, "fp32", "cpu", run_once)
    after = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert len(state) == len(after) > 0
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


def fails(work: Callable[[], None]) -> Callable[[], None]:
    work()
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("experiment", [2, 4])
def test_a_failed_capture_restores_the_options_of_the_optimizer(experiment: int) -> None:
    settings = small_settings(experiment, warmup_steps=4)
    model, optimizer, split = small_parts(settings)
    before = [{**group} for group in optimizer.param_groups]
    with pytest.raises(RuntimeError, match="not permitted"):
        capture_steps(model, optimizer, split, settings, "fp32", "cpu", fails)
    assert optimizer.param_groups == before


@pytest.mark.parametrize("capture", [run_once, fails])
def test_warning_filters_stay_as_they_are(capture: Capture) -> None:
    settings = small_settings(2)
    before = list(warnings.filters)
    with contextlib.suppress(RuntimeError):
        capture_steps(*small_parts(settings), settings, "fp32", "cpu", capture)
    assert warnings.filters == before


def test_a_split_too_short_for_the_comparison_is_refused() -> None:
    settings = small_settings(2, batch_size=WINDOWS // 2 + 1)
    with pytest.raises(ValueError, match="needs 24 windows, but the split has 22"):
        capture_steps(*small_parts(settings), settings, "fp32", "cpu", run_once)


SPARE = 20_000
"""Weights whose gradients are noise around zero, far more than there are others."""
NOISE = 1e-8
"""Size of that noise, about a hundred-thousandth of the other gradients."""


class Noisy:
    """A model on a device that never computes the same gradients twice.

    Gradients of replayed steps are off by ``relative``. Of two additional parameters, half of ``spare`` and all of
    ``silent`` have gradients that are noise alone.
    """

    def __init__(self, settings: Settings, relative: float) -> None:
        self.settings, self.relative, self.replaying = settings, relative, False
        self.parts = small_parts(settings)
        self.model, self.optimizer, self.split = self.parts
        g = torch.Generator().manual_seed(1)
        spare = torch.nn.Parameter(0.05 * torch.randn(2, SPARE, generator=g))
        slope = 1e-3 * torch.randn(SPARE, generator=g)
        silent = torch.nn.Parameter(torch.zeros(64))
        self.model.register_parameter("spare", spare)
        self.model.register_parameter("silent", silent)
        self.optimizer.add_param_group({"params": [spare, silent]})
        loss_sum = self.model.loss_sum

        def loss_with_additions(
            ids: torch.Tensor, targets: torch.Tensor, precision: Precision, window_nats: torch.Tensor | None = None
        ) -> torch.Tensor:
            loss = loss_sum(ids, targets, precision, window_nats)
            return loss + 32 * (spare[0] * slope).sum() + 0 * silent.sum()

        self.model.loss_sum = loss_with_additions  # type: ignore[method-assign]
        self.noise = torch.Generator().manual_seed(2)
        for parameter in self.model.parameters():
            parameter.register_hook(self.disturb)
        spare.register_hook(lambda gradient: gradient + NOISE * self.draw(gradient) * torch.tensor([[0.0], [1.0]]))
        silent.register_hook(lambda gradient: NOISE * self.draw(gradient))

    def draw(self, gradient: torch.Tensor) -> torch.Tensor:
        return torch.randn(gradient.shape, generator=self.noise)

    def disturb(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (1 + self.relative * self.draw(gradient)) if self.replaying else gradient

    def capture_steps(self, fault: "Fault | None" = None) -> CudaGraphSteps:
        """Return captured steps whose replays have ``fault``."""

        def capture(work: Callable[[], None]) -> Callable[[], None]:
            work()
            captured = work.__self__  # type: ignore[attr-defined]

            def replay() -> None:
                self.replaying = True
                with contextlib.ExitStack() as stack:
                    if fault is not None:
                        stack.enter_context(fault(captured))
                    work()
                self.replaying = False

            return replay

        return capture_steps(*self.parts, self.settings, "fp32", "cpu", capture)


Fault = Callable[[CudaGraphSteps], contextlib.AbstractContextManager[None]]


@pytest.mark.parametrize("relative", [0.0, 1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
@pytest.mark.parametrize("experiment", range(1, 9))
def test_noise_is_tolerated(experiment: int, weight_decay: float, relative: float) -> None:
    Noisy(small_settings(experiment, weight_decay=weight_decay), relative).capture_steps()


def test_the_noise_flips_signs() -> None:
    noisy, updates = Noisy(small_settings(1), 0.0), []
    spare = noisy.model.get_parameter("spare")
    before = spare.detach().clone()
    for _ in range(2):
        Steps(*noisy.parts, noisy.settings, "fp32", "cpu")._train_on(torch.arange(4), 32)
        updates.append(spare.detach() - before)
        with torch.no_grad():
            spare.copy_(before)
        noisy.optimizer.state.clear()
    flipped = (updates[0].sign() != updates[1].sign()).float().mean(1)
    assert flipped[0] < 0.01
    assert flipped[1] > 0.4


@contextlib.contextmanager
def stale_windows(captured: CudaGraphSteps) -> Iterator[None]:
    """Read the first windows again, but advance the position."""
    position = captured._position.clone()
    captured._position.zero_()
    yield
    captured._position.copy_(position + 1)


@contextlib.contextmanager
def no_progress(captured: CudaGraphSteps) -> Iterator[None]:
    yield
    captured._position.zero_()


@contextlib.contextmanager
def no_optimizer_step(captured: CudaGraphSteps) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured.optimizer, "step", lambda: None)
        yield


def only_in_second_step(fault: "Fault") -> "Fault":
    @contextlib.contextmanager
    def limited(captured: CudaGraphSteps) -> Iterator[None]:
        with fault(captured) if captured._position.item() else contextlib.nullcontext():
            yield

    return limited


@contextlib.contextmanager
def no_loss(captured: CudaGraphSteps) -> Iterator[None]:
    """Train, but add no loss."""
    before = captured.nll.clone()
    yield
    captured.nll.copy_(before)


@contextlib.contextmanager
def constant_learning_rate(captured: CudaGraphSteps) -> Iterator[None]:
    """Use the learning rate of the capture."""
    rates = [group["lr"] for group in captured.optimizer.param_groups]
    for group in captured.optimizer.param_groups:
        group["lr"] = torch.tensor(SIZES["learning_rate"])
    yield
    for group, rate in zip(captured.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def decay_times(factor: float) -> Fault:
    @contextlib.contextmanager
    def fault(captured: CudaGraphSteps) -> Iterator[None]:
        for group in captured.optimizer.param_groups:
            group["weight_decay"] *= factor
        yield
        for group in captured.optimizer.param_groups:
            group["weight_decay"] /= factor

    return fault


def without(name: str) -> Fault:
    """Leave one parameter out of the update."""

    @contextlib.contextmanager
    def fault(captured: CudaGraphSteps) -> Iterator[None]:
        missing = captured.model.get_parameter(name)
        for group in captured.optimizer.param_groups:
            group["params"] = [each for each in group["params"] if each is not missing]
        yield
        missing.grad = None
        captured.optimizer.param_groups[name in ("spare", "silent")]["params"].append(missing)

    return fault


@pytest.mark.parametrize("relative", [0.0, 1e-5])
@pytest.mark.parametrize(
    "fault",
    [
        stale_windows,
        no_progress,
        no_optimizer_step,
        only_in_second_step(no_optimizer_step),
        no_loss,
        constant_learning_rate,
    ],
)
@pytest.mark.parametrize("experiment", range(1, 9))
def test_a_fault_is_distinguished_from_noise(experiment: int, fault: Fault, relative: float) -> None:
    with pytest.raises(RuntimeError, match="the replayed step differs"):
        Noisy(small_settings(experiment, warmup_steps=4), relative).capture_steps(fault)


@pytest.mark.parametrize("relative", [0.0, 1e-5])
@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("experiment", range(1, 9))
def test_a_wrong_weight_decay_is_distinguished_from_noise(experiment: int, factor: float, relative: float) -> None:
    """In all optimizers except AdamW it is part of the gradient, and here a thousandth of it."""
    settings = small_settings(experiment, weight_decay=5e-4 if experiment in (2, 6) else 1e-5)
    with pytest.raises(RuntimeError, match="decay"):
        Noisy(settings, relative).capture_steps(decay_times(factor))


@pytest.mark.parametrize("experiment", [2, 6])
def test_a_weight_decay_is_compared_at_the_learning_rate_of_its_step(experiment: int) -> None:
    """A tenth too much is a fault. The second step has half the learning rate, so half the decay."""
    settings = small_settings(experiment, weight_decay=5e-4, warmup_steps=4)
    Noisy(settings, 0.0).capture_steps(only_in_second_step(decay_times(1.05)))
    with pytest.raises(RuntimeError, match="decay"):
        Noisy(settings, 0.0).capture_steps(only_in_second_step(decay_times(1.15)))


@pytest.mark.parametrize("experiment", range(1, 9))
def test_a_parameter_without_update_is_distinguished_from_noise(experiment: int) -> None:
    names = [name for name, _ in Noisy(small_settings(experiment), 1e-5).model.named_parameters()]
    assert len(names) > 6
    for name in names:
        with pytest.raises(RuntimeError, match="the replayed step differs"):
            Noisy(small_settings(experiment), 1e-5).capture_steps(without(name))


def test_the_learning_rate_is_restored_after_the_comparison() -> None:
    captured = Noisy(small_settings(2, warmup_steps=4), 0.0).capture_steps()
    assert captured.optimizer.param_groups[0]["lr"].item() == pytest.approx(1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("experiment", range(1, 13))
def test_cuda_graphs_train_as_reference_steps_do(experiment: int, precision: Precision) -> None:
    devices.apply_precision(precision)
    reference, captured = reference_and_captured(small_settings(experiment), capture_graph, "cuda:0", precision)
    assert losses(captured) == pytest.approx(losses(reference), rel=1e-4 if precision == "fp32" else 1e-2)
