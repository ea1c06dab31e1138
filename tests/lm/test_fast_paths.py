"""Fast paths are taken where they agree with the reference implementation, and nowhere else."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm.small_models import small_parts, small_settings
from torch import Tensor

from lmconsole.lm import device, fast_paths
from lmconsole.lm import linear_cross_entropy as loss
from lmconsole.lm.cuda_graph import Capture, CudaGraphSteps
from lmconsole.lm.fast_paths import DISABLE, enable_fast_paths, prepare_steps
from lmconsole.lm.lstm import Lstm
from lmconsole.lm.model import LanguageModel
from lmconsole.lm.online_softmax import OnlineSoftmaxState, online_softmax_update
from lmconsole.lm.steps import Steps
from lmconsole.plan.experiment import Precision, Settings

LSTM, GPT1 = 2, 6

Update = Callable[..., None]


def enabled(model: LanguageModel) -> tuple[bool, bool | None]:
    """Return whether the Triton kernel is used, and whether the LSTM runs layer by layer."""
    return model.use_triton, model.body.by_layer if isinstance(model.body, Lstm) else None


def use_kernel(monkeypatch: pytest.MonkeyPatch, kernel: Update) -> None:
    """Replace the Triton kernel by ``kernel``, which runs on CPUs."""
    monkeypatch.setattr(loss, "_softmax_update", lambda use_triton: kernel if use_triton else online_softmax_update)
    monkeypatch.setattr(loss, "_HAS_OUT_DTYPE", False)  # products with out_dtype exist on GPUs alone


@pytest.fixture
def sum_factor(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the Triton kernel by the reference implementation times the number in the list."""
    factor = [1.0]

    def kernel(state: OnlineSoftmaxState, tile: Tensor, targets: Tensor, **options: Any) -> None:
        scratch = torch.empty(tile.numel())
        online_softmax_update(state, tile, targets, **{**options, "scratch": scratch})
        state.exp_sum.mul_(factor[0])

    use_kernel(monkeypatch, kernel)
    return factor


@pytest.mark.usefixtures("sum_factor")
@pytest.mark.parametrize(
    ("experiment", "precision", "expected"),
    [(LSTM, "fp32", (True, True)), (LSTM, "bf16", (True, True)), (GPT1, "fp32", (True, None))],
)
def test_fast_paths_that_agree_are_enabled(
    experiment: int, precision: Precision, expected: tuple[bool, bool | None]
) -> None:
    settings = small_settings(experiment)
    model, _, split = small_parts(settings)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert enable_fast_paths(model, split, settings, precision) is None
    assert enabled(model) == expected
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("factor", [1.001, float("nan"), float("inf")])
def test_a_fast_path_that_differs_is_not_enabled(sum_factor: list[float], factor: float) -> None:
    settings = small_settings(GPT1)
    model, _, split = small_parts(settings)
    sum_factor[0] = factor
    reason = enable_fast_paths(model, split, settings, "fp32")
    assert reason is not None
    assert "instead of" in reason
    assert enabled(model) == (False, None)


def test_a_fast_path_that_fails_is_not_enabled_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kernel(*_: object, **__: object) -> None:
        raise OSError("no C compiler was found\nand more")

    use_kernel(monkeypatch, kernel)
    settings = small_settings(LSTM)
    model, optimizer, split = small_parts(settings)
    steps = prepare_steps(model, optimizer, split, settings, "bf16", "cpu", run_once)
    assert isinstance(steps, CudaGraphSteps)
    assert steps.fell_back
    assert enabled(model) == (False, False)
    *trace, last = capsys.readouterr().out.splitlines()
    assert last == "Fast paths are not used: OSError: no C compiler was found"
    assert trace[0].startswith("Traceback")
    assert trace[-2:] == ["OSError: no C compiler was found", "and more"]


@pytest.mark.usefixtures("sum_factor")
def test_a_loss_that_is_not_finite_proves_nothing() -> None:
    settings = small_settings(GPT1)
    model, _, split = small_parts(settings)
    with torch.no_grad():
        model.table.fill_(float("nan"))
    assert "not finite" in (enable_fast_paths(model, split, settings, "fp32") or "")
    assert enabled(model) == (False, None)


@pytest.mark.usefixtures("sum_factor")
@pytest.mark.parametrize(("overrides", "variables"), [({"dropout": 0.1}, {}), ({}, {DISABLE: "1"})])
def test_dropout_and_the_environment_variable_disable_fast_paths(
    overrides: dict[str, object], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = small_settings(LSTM, **overrides)
    model, _, split = small_parts(settings)
    assert enable_fast_paths(model, split, settings, "bf16")
    assert enabled(model) == (False, False)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("experiment", range(1, 13))
def test_a_gpu_uses_the_fast_paths(experiment: int, precision: Precision) -> None:
    device.apply_precision(precision)
    settings = small_settings(experiment, channels=192, hidden=128, batch_size=8)
    model, _, split = small_parts(settings, "cuda:0")
    assert enable_fast_paths(model, split, settings, precision) is None
    assert model.use_triton


# ---- graph capture; on a CPU the Triton kernel cannot run


@pytest.fixture
def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(fast_paths, "enable_fast_paths", lambda *_: None)


def run_once(work: Callable[[], None]) -> Callable[[], None]:
    work()  # as a warm-up does
    return work


def losses(steps: Steps) -> list[float]:
    """Return the summed loss after every step of an epoch, with a changing learning rate."""
    windows = torch.randperm(len(steps.split), generator=torch.Generator().manual_seed(0))
    steps.start_epoch(windows, 0, 0.0)
    found = []
    for step in range(6):
        steps.step(0.01 / (1 + step))
        found.append(steps.nll.item())
    return found


def replays_nothing(_: Callable[[], None]) -> Callable[[], None]:
    return lambda: None


def fails(work: Callable[[], None]) -> Callable[[], None]:
    work()
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def fails_twice(work: Callable[[], None]) -> Callable[[], None]:
    """Raise as PyTorch does: the end of an aborted capture raises an error too."""
    with contextlib.ExitStack() as stack:
        stack.callback(fails, work)
        raise ValueError("the first error")


@pytest.mark.usefixtures("without_kernel")
@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (fails_twice, "the first error"),
        (replays_nothing, "the replayed step differs"),
        (fails, "stream is capturing"),
    ],
)
def test_a_capture_that_fails_leaves_the_reference_steps_and_a_message(
    capture: Capture, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_settings(LSTM, learning_rate_decay="cosine")
    steps = prepare_steps(*small_parts(settings), settings, "fp32", "cpu", capture)
    assert type(steps) is Steps
    assert steps.fell_back
    *trace, last = capsys.readouterr().out.splitlines()
    assert last.startswith("The training step is not captured as a CUDA graph: ")
    assert reason in last
    assert trace[0].startswith("Traceback")
    assert any(reason in line for line in trace)
    if capture is fails_twice:
        assert "During handling of the above exception, another exception occurred:" in trace
        assert trace[-1] == "and more", "the whole message of the second error"
    untouched = Steps(*small_parts(settings), settings, "fp32", "cpu")
    assert losses(steps) == losses(untouched)


@pytest.mark.usefixtures("without_kernel")
@pytest.mark.parametrize("settings", [small_settings(1, dropout=0.1), small_settings(1, batch_size=12)])
def test_dropout_and_short_epochs_are_not_captured(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    steps = prepare_steps(*small_parts(settings), settings, "fp32", "cpu", run_once)
    assert type(steps) is Steps
    assert not steps.fell_back, "nothing failed"
    assert "not captured" in capsys.readouterr().out


@pytest.mark.usefixtures("without_kernel")
def test_the_environment_variable_disables_the_capture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_settings(1)
    assert type(prepare_steps(*small_parts(settings), settings, "fp32", "cpu", run_once)) is CudaGraphSteps
    monkeypatch.setenv(DISABLE, "1")
    assert type(prepare_steps(*small_parts(settings), settings, "fp32", "cpu", run_once)) is Steps
    assert DISABLE in capsys.readouterr().out


def test_a_cpu_uses_the_reference_steps_without_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_settings(1)
    assert type(prepare_steps(*small_parts(settings), settings, "fp32", "cpu")) is Steps
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
def test_a_gpu_replays_captured_steps() -> None:
    settings = small_settings(GPT1)
    steps = prepare_steps(*small_parts(settings, "cuda:0"), settings, "fp32", "cuda:0")
    assert type(steps) is CudaGraphSteps
