"""Captured steps against plain ones. Without a GPU the recording is played by the recorded function itself, which shows
that it reads nothing but what stays in place; with one, CUDA graphs are compared."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lmconsole.lm import device, steps
from lmconsole.lm import fast_paths as fast
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.fast_paths import PLAIN
from lmconsole.lm.model import LanguageModel, build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.lm.steps import CapturedSteps, Steps, prepare_steps
from lmconsole.plan.experiment import Precision, Settings
from lmconsole.plan.load import builtin_file, load_plan

SMALL = {"vocabulary": 50, "channels": 24, "window_tokens": 8, "batch_size": 4, "learning_rate": 1e-2}
WINDOWS = 22
"""Five batches of four and a short one, whose last window is short too."""


@pytest.fixture(autouse=True)
def only_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of our own are the business of test_fast.py."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(fast, "choose", lambda *_: None)


def settings_of(experiment: int, **changes: object) -> Settings:
    plan = load_plan(builtin_file())
    return plan.resolve(plan.experiment(experiment), "demo", {**SMALL, "precision": "fp32", **changes}).settings


def parts(settings: Settings, where: str = "cpu") -> tuple[LanguageModel, torch.optim.Optimizer, WindowedSplit]:
    torch.manual_seed(0)
    model = build_model(settings, vocabulary=50, tables=None).to(where)
    tokens = np.random.default_rng(0).integers(1, 50, WINDOWS * 8 - 3)
    return model, build_optimizer(settings, model.parameters()), WindowedSplit(tokens, settings.window_tokens, where)


def repeat(work: Callable[[], None]) -> Callable[[], None]:
    work()  # as a warm-up does
    return work


def curve(taken: Steps, epochs: int = 3, rate: Callable[[int], float | None] = lambda step: None) -> list[float]:
    """Loss sum after every step."""
    found, count = [], 0
    for epoch in range(epochs):
        taken.begin(torch.randperm(WINDOWS, generator=torch.Generator().manual_seed(epoch)), 0, 0.0)
        for _ in range(6):
            taken.take(rate(count))
            found.append(taken.nll.item())
            count += 1
    return found


def twins(
    settings: Settings, record: steps.Record = repeat, where: str = "cpu", precision: Precision = "fp32"
) -> tuple[Steps, CapturedSteps]:
    plain = Steps(*parts(settings, where), settings, precision, where)
    return plain, CapturedSteps(*parts(settings, where), settings, precision, where, record)


@pytest.mark.parametrize("experiment", range(1, 13))
def test_recorded_steps_train_as_plain_ones_do(experiment: int) -> None:
    plain, captured = twins(settings_of(experiment))
    assert curve(captured) == pytest.approx(curve(plain), rel=1e-5)


def test_counts_of_targets_are_the_same() -> None:
    order = torch.arange(WINDOWS)
    for taken in twins(settings_of(1)):
        taken.begin(order, 0, 0.0)
        counts = [taken.take(None) for _ in range(6)]
        assert counts[:5] == [32] * 5
        assert sum(counts) == taken.split.targets


@pytest.mark.parametrize("experiment", [2, 4])
def test_a_changing_learning_rate_reaches_the_recording(experiment: int) -> None:
    plain, captured = twins(settings_of(experiment, warmup_steps=4))

    def rate(step: int) -> float:
        return 0.05 / (1 + step)

    changing = curve(captured, rate=rate)
    assert changing == pytest.approx(curve(plain, rate=rate), rel=1e-5)
    assert changing != pytest.approx(curve(twins(settings_of(experiment))[0]), rel=1e-5)


def test_it_goes_on_in_the_middle_of_an_epoch() -> None:
    plain, captured = twins(settings_of(6, gradient_clip_norm=0.5))
    order = torch.randperm(WINDOWS, generator=torch.Generator().manual_seed(5))
    for taken in (plain, captured):
        taken.begin(order, 3, 100.0)
        for _ in range(3):
            taken.take(None)
    assert captured.nll.item() > 100
    assert captured.nll.item() == pytest.approx(plain.nll.item(), rel=1e-6)


@pytest.mark.parametrize("experiment", [2, 4])
def test_recording_leaves_weights_and_optimizer_as_they_were(experiment: int) -> None:
    settings = settings_of(experiment)
    model, optimizer, split = parts(settings)
    curve(Steps(model, optimizer, split, settings, "fp32", "cpu"), epochs=1)
    weights = [p.detach().clone() for p in model.parameters()]
    state = [t.clone() for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    CapturedSteps(model, optimizer, split, settings, "fp32", "cpu", repeat)
    after = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert len(state) == len(after) > 0
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


def stuck(_: Callable[[], None]) -> Callable[[], None]:
    return lambda: None


def broken(work: Callable[[], None]) -> Callable[[], None]:
    work()
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def broken_off(work: Callable[[], None]) -> Callable[[], None]:
    """As torch does: the end of a capture that was broken off complains too."""
    with contextlib.ExitStack() as ends_with:
        ends_with.callback(broken, work)
        raise ValueError("what went wrong first")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (broken_off, "what went wrong first"),
        (stuck, "replayed, it does something else"),
        (broken, "stream is capturing"),
    ],
)
def test_a_recording_that_is_wrong_is_dropped_with_a_line(
    record: steps.Record, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(2, learning_rate_decay="cosine")
    taken = prepare_steps(*parts(settings), settings, "fp32", "cpu", record)
    assert type(taken) is Steps
    assert taken.fell_back
    *trace, last = capsys.readouterr().out.splitlines()
    assert last.startswith("The training step is not captured as a CUDA graph: ")
    assert said in last
    assert trace[0].startswith("Traceback")
    assert any(said in line for line in trace)
    if record is broken_off:
        assert "During handling of the above exception, another exception occurred:" in trace
        assert trace[-1] == "and more", "the whole message of what went wrong next"
    untouched = Steps(*parts(settings), settings, "fp32", "cpu")
    assert curve(taken, rate=lambda step: 0.01 / (1 + step)) == curve(untouched, rate=lambda step: 0.01 / (1 + step))


SPARE = 20_000
"""Weights whose gradients are noise around zero, far more of them than others."""
NOISE = 1e-8
"""Their size, about a hundred-thousandth of the others'."""


class Noisy:
    """A model and a device that never computes the same gradients twice: those of replayed steps are off by
    ``relative``, and half of ``spare`` and all of ``silent``, two parameters more, have gradients of noise alone."""

    def __init__(self, settings: Settings, relative: float) -> None:
        self.settings, self.relative, self.replaying = settings, relative, False
        self.parts = parts(settings)
        self.model, self.optimizer, self.split = self.parts
        g = torch.Generator().manual_seed(1)
        spare = torch.nn.Parameter(0.05 * torch.randn(2, SPARE, generator=g))
        slope = 1e-3 * torch.randn(SPARE, generator=g)
        silent = torch.nn.Parameter(torch.zeros(64))
        self.model.register_parameter("spare", spare)
        self.model.register_parameter("silent", silent)
        self.optimizer.add_param_group({"params": [spare, silent]})
        loss_sum = self.model.loss_sum

        def with_more(*batch: Any) -> torch.Tensor:
            return loss_sum(*batch) + 32 * (spare[0] * slope).sum() + 0 * silent.sum()

        self.model.loss_sum = with_more  # type: ignore[method-assign]
        self.noise = torch.Generator().manual_seed(2)
        for parameter in self.model.parameters():
            parameter.register_hook(self.disturb)
        spare.register_hook(lambda gradient: gradient + NOISE * self.draw(gradient) * torch.tensor([[0.0], [1.0]]))
        silent.register_hook(lambda gradient: NOISE * self.draw(gradient))

    def draw(self, gradient: torch.Tensor) -> torch.Tensor:
        return torch.randn(gradient.shape, generator=self.noise)

    def disturb(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (1 + self.relative * self.draw(gradient)) if self.replaying else gradient

    def capture(self, fault: "Fault | None" = None) -> CapturedSteps:
        """Steps whose replays go wrong as ``fault`` says."""

        def record(work: Callable[[], None]) -> Callable[[], None]:
            work()
            captured = work.__self__  # type: ignore[attr-defined]

            def replay() -> None:
                self.replaying = True
                with contextlib.ExitStack() as ends_with:
                    if fault is not None:
                        ends_with.enter_context(fault(captured))
                    work()
                self.replaying = False

            return replay

        return CapturedSteps(*self.parts, self.settings, "fp32", "cpu", record)


Fault = Callable[[CapturedSteps], contextlib.AbstractContextManager[None]]


@pytest.mark.parametrize("relative", [0.0, 1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
@pytest.mark.parametrize("experiment", range(1, 9))
def test_noise_is_no_reason_to_drop_a_recording(experiment: int, weight_decay: float, relative: float) -> None:
    Noisy(settings_of(experiment, weight_decay=weight_decay), relative).capture()


def test_signs_of_noise_do_differ_there() -> None:
    noisy, updates = Noisy(settings_of(1), 0.0), []
    spare = noisy.model.get_parameter("spare")
    before = spare.detach().clone()
    for _ in range(2):
        Steps(*noisy.parts, noisy.settings, "fp32", "cpu")._work(torch.arange(4), 32)
        updates.append(spare.detach() - before)
        with torch.no_grad():
            spare.copy_(before)
        noisy.optimizer.state.clear()
    flipped = (updates[0].sign() != updates[1].sign()).float().mean(1)
    assert flipped[0] < 0.01
    assert flipped[1] > 0.4


@contextlib.contextmanager
def stale_windows(captured: CapturedSteps) -> Iterator[None]:
    """It reads the first windows again, although it counts on."""
    at = captured._at.clone()
    captured._at.zero_()
    yield
    captured._at.copy_(at + 1)


@contextlib.contextmanager
def standing_still(captured: CapturedSteps) -> Iterator[None]:
    yield
    captured._at.zero_()


@contextlib.contextmanager
def no_optimizer_step(captured: CapturedSteps) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured.optimizer, "step", lambda: None)
        yield


@contextlib.contextmanager
def no_second_optimizer_step(captured: CapturedSteps) -> Iterator[None]:
    with no_optimizer_step(captured) if captured._at.item() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def no_loss(captured: CapturedSteps) -> Iterator[None]:
    """It trains as it should and counts no loss."""
    before = captured.nll.clone()
    yield
    captured.nll.copy_(before)


@contextlib.contextmanager
def its_own_learning_rate(captured: CapturedSteps) -> Iterator[None]:
    """The one that it was recorded with."""
    rates = [group["lr"] for group in captured.optimizer.param_groups]
    for group in captured.optimizer.param_groups:
        group["lr"] = torch.tensor(SMALL["learning_rate"])
    yield
    for group, rate in zip(captured.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def decay_times(factor: float) -> Fault:
    @contextlib.contextmanager
    def fault(captured: CapturedSteps) -> Iterator[None]:
        for group in captured.optimizer.param_groups:
            group["weight_decay"] *= factor
        yield
        for group in captured.optimizer.param_groups:
            group["weight_decay"] /= factor

    return fault


def without(name: str) -> Fault:
    """One parameter is not updated."""

    @contextlib.contextmanager
    def fault(captured: CapturedSteps) -> Iterator[None]:
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
    [stale_windows, standing_still, no_optimizer_step, no_second_optimizer_step, no_loss, its_own_learning_rate],
)
@pytest.mark.parametrize("experiment", range(1, 9))
def test_a_fault_is_told_from_noise(experiment: int, fault: Fault, relative: float) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        Noisy(settings_of(experiment, warmup_steps=4), relative).capture(fault)


@pytest.mark.parametrize("relative", [0.0, 1e-5])
@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("experiment", range(1, 9))
def test_a_wrong_weight_decay_is_told_from_noise(experiment: int, factor: float, relative: float) -> None:
    """In all optimizers but AdamW it is part of the gradient, and here a thousandth of that."""
    settings = settings_of(experiment, weight_decay=5e-4 if experiment in (2, 6) else 1e-5)
    with pytest.raises(RuntimeError, match="decay"):
        Noisy(settings, relative).capture(decay_times(factor))


@pytest.mark.parametrize("experiment", range(1, 9))
def test_a_parameter_that_is_not_updated_is_told_from_noise(experiment: int) -> None:
    names = [name for name, _ in Noisy(settings_of(experiment), 1e-5).model.named_parameters()]
    assert len(names) > 6
    for name in names:
        with pytest.raises(RuntimeError, match="something else"):
            Noisy(settings_of(experiment), 1e-5).capture(without(name))


def test_a_learning_rate_is_put_back_after_comparing() -> None:
    captured = Noisy(settings_of(2, warmup_steps=4), 0.0).capture()
    assert captured.optimizer.param_groups[0]["lr"].item() == pytest.approx(1e-2)


@pytest.mark.parametrize("settings", [settings_of(1, dropout=0.1), settings_of(1, batch_size=12)])
def test_what_is_not_recorded(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    taken = prepare_steps(*parts(settings), settings, "fp32", "cpu", repeat)
    assert type(taken) is Steps
    assert not taken.fell_back, "nothing failed"
    assert "not captured" in capsys.readouterr().out


def test_a_person_may_ask_for_plain_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(1)
    assert type(prepare_steps(*parts(settings), settings, "fp32", "cpu", repeat)) is CapturedSteps
    monkeypatch.setenv(PLAIN, "1")
    assert type(prepare_steps(*parts(settings), settings, "fp32", "cpu", repeat)) is Steps
    assert PLAIN in capsys.readouterr().out


def test_on_a_cpu_nothing_is_recorded_and_nothing_said(capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(1)
    assert type(prepare_steps(*parts(settings), settings, "fp32", "cpu")) is Steps
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("experiment", range(1, 13))
def test_cuda_graphs_train_as_plain_steps_do(experiment: int, precision: Precision) -> None:
    device.apply_precision(precision)
    plain, captured = twins(settings_of(experiment), steps.record_graph, "cuda:0", precision)
    assert curve(captured) == pytest.approx(curve(plain), rel=1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.gpu
def test_on_a_gpu_steps_are_captured() -> None:
    settings = settings_of(6)
    assert type(prepare_steps(*parts(settings, "cuda:0"), settings, "fp32", "cuda:0")) is CapturedSteps
