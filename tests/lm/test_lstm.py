"""The body of the LSTM: shapes, causality, the equations written out, and the recurrence in float16."""

import pytest
import torch
from torch import Tensor

from lmconsole.lm import lstm
from lmconsole.lm.lstm import Lstm


def body(layers: int = 1, dropout: float = 0.0) -> Lstm:
    torch.manual_seed(0)
    return Lstm(channels=6, hidden=5, layers=layers, dropout=dropout)


def by_hand(model: Lstm, embedded: Tensor) -> Tensor:
    """Hochreiter & Schmidhuber's cell with a forget gate, one step at a time, in torch's order of gates: i, f, g, o."""
    weights = dict(model.lstm.named_parameters())
    x = embedded
    for layer in range(model.lstm.num_layers):
        w_in, w_rec = weights[f"weight_ih_l{layer}"], weights[f"weight_hh_l{layer}"]
        bias = weights[f"bias_ih_l{layer}"] + weights[f"bias_hh_l{layer}"]
        hidden = cell = x.new_zeros(x.shape[0], w_rec.shape[1])
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (x[:, t] @ w_in.T + hidden @ w_rec.T + bias).chunk(4, dim=1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        x = torch.stack(outputs, dim=1)
    return (x @ model.project.weight.T + model.project.bias).clamp_min(0)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_features_follow_the_equations(layers: int) -> None:
    model, x = body(layers), torch.randn(3, 7, 6)
    features = model(x)
    assert features.shape == (3, 7, 6)
    torch.testing.assert_close(features, by_hand(model, x), rtol=1e-5, atol=1e-6)


def test_a_later_token_never_changes_an_earlier_feature() -> None:
    model, x = body(2), torch.randn(2, 9, 6)
    changed = x.clone()
    changed[:, 5:] += 1.0
    assert torch.equal(model(x)[:, :5], model(changed)[:, :5])
    assert not torch.equal(model(x)[:, 5:], model(changed)[:, 5:])


def test_windows_are_independent() -> None:
    model, x = body(), torch.randn(4, 9, 6)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]), rtol=1e-6, atol=1e-7)


def test_bf16_stays_close_and_so_do_its_gradients() -> None:
    model, x, weight = body(2), torch.randn(3, 7, 6), torch.randn(3, 7, 6)
    found = []
    for bf16 in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            features = model(x)
        (features.float() * weight).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((features.detach().float(), gradient))
    (exact, exact_gradient), (rough, rough_gradient) = found
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.01)
    assert (rough_gradient - exact_gradient).norm() < 0.03 * exact_gradient.norm()


def half_and_exact(layers: int, targets: float, by_layer: bool) -> list[tuple[Tensor, Tensor]]:
    """Return outputs of the recurrence and gradients of a mean over ``targets``: in float32, then in float16 as on
    GPUs."""
    torch.manual_seed(0)
    model = Lstm(channels=32, hidden=32, layers=layers, dropout=0.0)
    model.by_layer = by_layer
    x, weight = torch.randn(4, 16, 32), torch.randn(4, 16, 32)
    found = []
    for half in (False, True):
        model.zero_grad()
        learned = x.clone().requires_grad_()
        y = model._recur_in_float16(learned) if half else model.lstm(learned)[0]
        (y.float() * weight).sum().div(targets).backward()
        gradients = [each.grad for each in (learned, *model.lstm.parameters()) if each.grad is not None]
        assert len(gradients) == 1 + 4 * layers
        assert all(each.dtype == torch.float32 for each in gradients)
        found.append((y.detach().float(), torch.cat([each.flatten() for each in gradients])))
    return found


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_recurrence_in_float16_stays_close_and_so_do_its_gradients(layers: int, by_layer: bool) -> None:
    (exact, exact_gradient), (half, half_gradient) = half_and_exact(layers, 4096, by_layer)
    assert 0 < (half - exact).norm() < 0.005 * exact.norm()
    assert (half_gradient - exact_gradient).norm() < 0.01 * exact_gradient.norm()


def test_scaling_preserves_gradients_too_small_for_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of a mean over many targets are that small."""

    def error() -> float:
        (_, exact), (_, half) = half_and_exact(1, 1e7, by_layer=True)
        return float((half - exact).norm() / exact.norm())

    scaled = error()
    monkeypatch.setattr(lstm, "GRADIENT_SCALE", 1.0)
    assert scaled < 0.1 < 0.5 < error()


def test_a_cpu_does_not_use_float16() -> None:
    model, x = body(), torch.randn(1, 2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not model._uses_float16(x)


def test_dropout_acts_in_training_alone() -> None:
    model, x = body(2, dropout=0.5), torch.randn(3, 7, 6)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    torch.testing.assert_close(model(x), by_hand(model, x), rtol=1e-5, atol=1e-6)


def test_one_layer_with_dropout_gives_no_warning() -> None:
    assert body(1, dropout=0.5)(torch.randn(1, 2, 6)).shape == (1, 2, 6)


def test_no_dropout_draws_no_random_numbers() -> None:
    model, x = body(2), torch.randn(3, 7, 6)
    before = torch.get_rng_state()
    model(x)
    assert torch.equal(before, torch.get_rng_state())
