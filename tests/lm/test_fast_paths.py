"""Fast ways are taken where they come to the same as the plain ones, and nowhere else."""

from typing import Any

import numpy as np
import pytest
import torch

from lmconsole.lm import device
from lmconsole.lm import fast_paths as fast
from lmconsole.lm import linear_cross_entropy as loss
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.linear_cross_entropy import Tiles
from lmconsole.lm.lstm import Lstm
from lmconsole.lm.model import LanguageModel, build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.lm.steps import prepare_steps
from lmconsole.plan.experiment import Precision, Settings
from lmconsole.plan.load import builtin_file, load_plan

SMALL = {"vocabulary": 50, "channels": 24, "window_tokens": 8, "batch_size": 4}
LSTM, GPT1 = 2, 6


def settings_of(experiment: int, **changes: object) -> Settings:
    plan = load_plan(builtin_file())
    return plan.resolve(plan.experiment(experiment), "demo", {**SMALL, "precision": "fp32", **changes}).settings


def parts(settings: Settings, where: str = "cpu") -> tuple[LanguageModel, WindowedSplit]:
    torch.manual_seed(0)
    model = build_model(settings, vocabulary=50, tables=None).to(where)
    return model, WindowedSplit(np.random.default_rng(0).integers(1, 50, 100), settings.window_tokens, where)


def taken(model: LanguageModel) -> tuple[bool, bool | None]:
    """Whether our kernels are used, and layers one after the other."""
    return model.own_kernels, model.body.by_layer if isinstance(model.body, Lstm) else None


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stands in for the kernels: does what their plain twin does, times the number in the list."""
    factor = [1.0]
    plain = Tiles._see_tile

    def see(self: Tiles, seen: Any, *rest: Any) -> None:
        own, self.own_kernels = self.own_kernels, False
        plain(self, seen, *rest)
        if own:
            seen.summed.mul_(factor[0])
        self.own_kernels = own

    monkeypatch.setattr(Tiles, "_see_tile", see)
    monkeypatch.setattr(loss, "_WIDENING_PRODUCTS", False)  # torch has them for GPUs alone
    return factor


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("experiment", "precision", "ways"),
    [(LSTM, "fp32", (True, True)), (LSTM, "bf16", (True, True)), (GPT1, "fp32", (True, None))],
)
def test_ways_that_agree_are_taken(experiment: int, precision: Precision, ways: tuple[bool, bool | None]) -> None:
    settings = settings_of(experiment)
    model, split = parts(settings)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert fast.choose(model, split, settings, precision) is None
    assert taken(model) == ways
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("factor", [1.001, float("nan"), float("inf")])
def test_a_way_that_comes_to_something_else_is_not_taken(kernels: list[float], factor: float) -> None:
    settings = settings_of(GPT1)
    model, split = parts(settings)
    kernels[0] = factor
    reason = fast.choose(model, split, settings, "fp32")
    assert reason is not None
    assert "instead of" in reason
    assert taken(model) == (False, None)


def test_a_way_that_does_not_work_is_not_taken_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Tiles._see_tile

    def see(self: Tiles, *rest: Any) -> None:
        if self.own_kernels:
            raise OSError("no C compiler was found\nand more")
        plain(self, *rest)

    monkeypatch.setattr(Tiles, "_see_tile", see)
    settings = settings_of(LSTM)
    model, split = parts(settings)

    def record(work: Any) -> Any:
        work()
        return work

    prepare_steps(model, build_optimizer(settings, model.parameters()), split, settings, "bf16", "cpu", record)
    assert taken(model) == (False, False)
    *trace, last = capsys.readouterr().out.splitlines()
    assert last == "The fast ways of this GPU are not taken: OSError: no C compiler was found"
    assert trace[0].startswith("Traceback")
    assert trace[-2:] == ["OSError: no C compiler was found", "and more"]


@pytest.mark.usefixtures("kernels")
def test_a_loss_that_is_not_finite_proves_nothing() -> None:
    settings = settings_of(GPT1)
    model, split = parts(settings)
    with torch.no_grad():
        model.table.fill_(float("nan"))
    assert "not finite" in (fast.choose(model, split, settings, "fp32") or "")
    assert taken(model) == (False, None)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("changes", "variables"), [({"dropout": 0.1}, {}), ({}, {fast.PLAIN: "1"})])
def test_what_keeps_to_the_plain_ways(
    changes: dict[str, object], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = settings_of(LSTM, **changes)
    model, split = parts(settings)
    assert fast.choose(model, split, settings, "bf16")
    assert taken(model) == (False, False)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("experiment", range(1, 13))
def test_a_gpu_takes_the_fast_ways(experiment: int, precision: Precision) -> None:
    device.apply_precision(precision)
    settings = settings_of(experiment, channels=192, hidden=128, batch_size=8)
    model, split = parts(settings, "cuda:0")
    assert fast.choose(model, split, settings, precision) is None
    assert model.own_kernels
