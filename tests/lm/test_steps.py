"""Captured steps against plain ones. Without a GPU the recording is played by the recorded function itself, which shows
that it reads nothing but what stays in place; with one, CUDA graphs are compared."""

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lmconsole.lm import device, fast, steps
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.fast import PLAIN
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
    out = capsys.readouterr().out
    assert out.startswith("The training step is not captured as a CUDA graph: ")
    assert said in out
    assert out.count("\n") == 1
    untouched = Steps(*parts(settings), settings, "fp32", "cpu")
    assert curve(taken, rate=lambda step: 0.01 / (1 + step)) == curve(untouched, rate=lambda step: 0.01 / (1 + step))


@pytest.mark.parametrize("settings", [settings_of(1, dropout=0.1), settings_of(1, batch_size=12)])
def test_what_is_not_recorded(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert type(prepare_steps(*parts(settings), settings, "fp32", "cpu", repeat)) is Steps
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
