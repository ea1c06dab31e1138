"""Optimizers compared with their formulas, and the learning rate over a run."""

import math

import pytest
import torch
from torch.nn import Parameter

from lmconsole.lm.optimizers import build_optimizer, learning_rate_at, state_names
from lmconsole.plan.experiment import Settings
from lmconsole.plan.load import load_plan

NUMBER = {"adam": 1, "adamw": 2, "sgd": 3, "momentum": 4}


def settings(optimizer: str = "sgd", **overrides: object) -> Settings:
    plan = load_plan()
    return plan.resolve(plan.experiment(NUMBER[optimizer]), "paper", overrides).settings


def by_hand(chosen: Settings, start: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Return the parameter after the papers' updates in float64. Velocity and moments start at zero."""
    p = start.double()
    velocity = m = v = torch.zeros_like(p)
    lr, decay = chosen.learning_rate, chosen.weight_decay
    for step, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        if chosen.optimizer in ("sgd", "momentum"):
            velocity = (chosen.momentum or 0.0) * velocity + g + decay * p
            p = p - lr * velocity
            continue
        assert chosen.beta1 is not None
        assert chosen.beta2 is not None
        assert chosen.adam_eps is not None
        if chosen.optimizer == "adam":
            g = g + decay * p
        else:
            p = p - lr * decay * p
        m = chosen.beta1 * m + (1 - chosen.beta1) * g
        v = chosen.beta2 * v + (1 - chosen.beta2) * g * g
        m_hat, v_hat = m / (1 - chosen.beta1**step), v / (1 - chosen.beta2**step)
        p = p - lr * m_hat / (v_hat.sqrt() + chosen.adam_eps)
    return p


@pytest.mark.parametrize("optimizer", NUMBER)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_updates_follow_the_formula(optimizer: str, decay: float) -> None:
    chosen = settings(optimizer, weight_decay=decay, learning_rate=0.01)
    torch.manual_seed(0)
    start, gradients = torch.randn(50), [torch.randn(50) for _ in range(5)]
    parameter = Parameter(start.clone())
    stepper = build_optimizer(chosen, [parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        stepper.step()
    torch.testing.assert_close(parameter.detach().double(), by_hand(chosen, start, gradients), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", NUMBER)
def test_the_state_of_an_optimizer_has_the_names_shapes_and_types_that_checkpoints_are_compared_with(
    optimizer: str,
) -> None:
    chosen, parameters = settings(optimizer), [Parameter(torch.ones(shape)) for shape in ((3, 4), (5,), ())]
    stepper = build_optimizer(chosen, parameters)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        stepper.step()
    for parameter in parameters:
        state = {name: value for name, value in stepper.state[parameter].items() if value is not None}
        assert tuple(state) == state_names(chosen)
        for name, value in state.items():
            assert value.shape == (() if name == "step" else parameter.shape)
            assert value.dtype == torch.float32


def test_the_optimizers_have_the_papers_hyperparameters() -> None:
    for optimizer in ("adam", "adamw"):
        (group,) = build_optimizer(settings(optimizer), [Parameter(torch.ones(1))]).param_groups
        assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.9, 0.999), 1e-8)
        assert group["weight_decay"] == (0.0 if optimizer == "adam" else 5e-4)
    for optimizer, momentum in (("sgd", 0.0), ("momentum", 0.9)):
        (group,) = build_optimizer(settings(optimizer), [Parameter(torch.ones(1))]).param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-3, momentum, 5e-4)
        assert group["nesterov"] is False


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum"])
def test_biases_and_norms_decay_too(optimizer: str) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    stepper = build_optimizer(settings(optimizer, weight_decay=0.5), layers.parameters())
    assert sum(len(group["params"]) for group in stepper.param_groups) == 4
    for parameter in layers.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    stepper.step()
    for parameter in layers.parameters():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 1 - 1e-3 * 0.5))


def test_frozen_parameters_are_not_optimized() -> None:
    frozen = Parameter(torch.ones(2), requires_grad=False)
    stepper = build_optimizer(settings("adamw"), [frozen, Parameter(torch.ones(3))])
    assert [p.numel() for group in stepper.param_groups for p in group["params"]] == [3]


@pytest.mark.parametrize("optimizer", NUMBER)
def test_a_restored_optimizer_continues_to_the_same_bits(optimizer: str) -> None:
    chosen = settings(optimizer, weight_decay=0.01)
    torch.manual_seed(0)
    gradients = [torch.randn(1000) for _ in range(6)]

    def steps(parameter: Parameter, stepper: torch.optim.Optimizer, some: list[torch.Tensor]) -> None:
        for gradient in some:
            parameter.grad = gradient.clone()
            stepper.step()

    whole = Parameter(torch.ones(1000))
    steps(whole, build_optimizer(chosen, [whole]), gradients)
    first = Parameter(torch.ones(1000))
    before = build_optimizer(chosen, [first])
    steps(first, before, gradients[:3])
    second = Parameter(first.detach().clone())
    after = build_optimizer(chosen, [second])
    after.load_state_dict(before.state_dict())
    steps(second, after, gradients[3:])
    assert torch.equal(whole, second)


def test_the_rate_is_constant_by_default() -> None:
    assert {learning_rate_at(settings(), step, 100) for step in range(100)} == {1e-3}


def test_warm_up_rises_linearly_to_the_full_rate_and_stays_there() -> None:
    chosen = settings(warmup_steps=4)
    rates = [learning_rate_at(chosen, step, 100) for step in range(6)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_cosine_falls_from_the_full_rate_to_zero_at_the_last_step() -> None:
    chosen = settings(learning_rate_decay="cosine")
    rates = [learning_rate_at(chosen, step, 101) for step in range(101)]
    assert rates[0] == 1e-3
    assert rates[50] == pytest.approx(0.5e-3)
    assert rates[25] == pytest.approx(1e-3 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[100] == 0.0
    assert rates == sorted(rates, reverse=True)


def test_cosine_starts_where_the_warm_up_ends() -> None:
    chosen = settings(learning_rate_decay="cosine", warmup_steps=10)
    rates = [learning_rate_at(chosen, step, 100) for step in range(100)]
    assert rates[9] == 1e-3 == max(rates)
    assert rates[8] < rates[9] > rates[10] > 0.99e-3
    assert rates[99] == 0.0


@pytest.mark.parametrize("steps", [1, 2, 10, 11, 12])
def test_runs_shorter_than_their_warm_up_have_a_rate_at_every_step(steps: int) -> None:
    chosen = settings(learning_rate_decay="cosine", warmup_steps=10)
    assert all(0 <= learning_rate_at(chosen, step, steps) <= 1e-3 for step in range(steps))


def test_a_run_of_one_step_has_the_full_rate() -> None:
    assert learning_rate_at(settings(learning_rate_decay="cosine"), 0, 1) == 1e-3
