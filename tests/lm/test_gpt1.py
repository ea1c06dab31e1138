"""The body of GPT-1: shapes, causality, a post-norm block written out, initialization, and names in state dicts."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmconsole.lm.gpt1 import Attention, Block, Gpt1, _attention_written_out

C, HEADS, MLP, EPS = 12, 3, 20, 1e-5


def body(layers: int = 1, dropout: float = 0.0) -> Gpt1:
    torch.manual_seed(0)
    return Gpt1(channels=C, layers=layers, heads=HEADS, mlp_channels=MLP, eps=EPS, dropout=dropout)


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt() * layer.weight + layer.bias


def block_by_hand(block: Block, x: Tensor) -> Tensor:
    """x = LN(x + attention(x)); x = LN(x + mlp(x)), head by head, with a mask and the error function."""
    T, size = x.shape[1], C // HEADS
    attention = block.attention
    joined = []
    for head in range(HEADS):
        q, k, v = (
            x @ attention.qkv.weight[start : start + size].T + attention.qkv.bias[start : start + size]
            for start in (head * size, C + head * size, 2 * C + head * size)
        )
        scores = q @ k.transpose(1, 2) / math.sqrt(size)
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        joined.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v)
    y = torch.cat(joined, -1) @ attention.out.weight.T + attention.out.bias
    x = norm(x + y, block.attention_norm)
    hidden = x @ block.mlp_in.weight.T + block.mlp_in.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return norm(x + hidden @ block.mlp_out.weight.T + block.mlp_out.bias, block.mlp_norm)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_body_is_a_sequence_of_post_norm_blocks(layers: int) -> None:
    model, x = body(layers), torch.randn(2, 7, C)
    for parameter in model.parameters():  # so that unused biases and norms are noticed
        torch.nn.init.normal_(parameter, std=0.5)
    expected = x
    for block in model.blocks:
        assert isinstance(block, Block)
        expected = block_by_hand(block, expected)
    features = model(x)
    assert features.shape == (2, 7, C)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_a_later_token_never_changes_an_earlier_feature() -> None:
    model, x = body(2), torch.randn(2, 9, C)
    changed = x.clone()
    changed[:, 5:] += 1.0
    torch.testing.assert_close(model(x)[:, :5], model(changed)[:, :5], rtol=0, atol=1e-6)
    assert (model(x)[:, 5:] - model(changed)[:, 5:]).abs().max() > 0.1


def test_queries_keys_values_and_output_are_each_xavier_uniform() -> None:
    torch.manual_seed(0)
    attention = Attention(channels=768, heads=12, dropout=0.0)
    bound = math.sqrt(6 / (768 + 768))
    for weight in (*attention.qkv.weight.chunk(3), attention.out.weight):
        assert weight.shape == (768, 768)
        assert 0.999 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
        assert weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert attention.qkv.bias.abs().max() == 0
    assert attention.out.bias.abs().max() == 0


def test_the_mlp_and_the_norms_have_pytorchs_initialization() -> None:
    torch.manual_seed(0)
    block = Block(channels=768, heads=12, mlp_channels=3072, eps=EPS, dropout=0.0)
    for linear, inputs in ((block.mlp_in, 768), (block.mlp_out, 3072)):
        for drawn in (linear.weight, linear.bias):
            assert drawn.abs().max() <= 1 / math.sqrt(inputs)
            assert drawn.std().item() == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.05)
    for layer in (block.attention_norm, block.mlp_norm):
        assert layer.eps == EPS
        assert torch.equal(layer.weight, torch.ones(768))
        assert torch.equal(layer.bias, torch.zeros(768))


def test_features_are_normalized_at_initialization() -> None:
    features = body(4)(torch.randn(2, 7, C))
    assert features.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(features.var(-1, correction=0), torch.ones(2, 7), rtol=1e-3, atol=0)


def test_bf16_stays_close() -> None:
    model, x = body(2), torch.randn(3, 7, C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x)
    torch.testing.assert_close(rough.float(), model(x), rtol=0.05, atol=0.05)


def test_dropout_acts_in_training_alone() -> None:
    model, plain, x = body(2, dropout=0.5), body(2), torch.randn(3, 7, C)
    assert not torch.equal(model(x), model(x))
    model.eval()
    torch.testing.assert_close(model(x), plain(x))


def test_no_dropout_draws_no_random_numbers() -> None:
    model, x = body(2), torch.randn(3, 7, C)
    before = torch.get_rng_state()
    model(x)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_attention_written_out_agrees_with_pytorch(dtype: torch.dtype, most: float) -> None:
    found = []
    for attend in (_attention_written_out, F.scaled_dot_product_attention):
        g = torch.Generator().manual_seed(0)
        # Adjacent in memory, as they come out of one product.
        qkv = torch.randn(2, 7, 3, HEADS, 4, generator=g).to(dtype).requires_grad_()
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, dropout_p=0.0, is_causal=True)
        y.backward(torch.randn(y.shape, generator=g).to(dtype))
        assert qkv.grad is not None
        found.append((y.detach().double(), qkv.grad.double()))
    for ours, pytorchs in zip(*found, strict=True):
        assert ours.shape == pytorchs.shape
        assert (ours - pytorchs).norm() < most * pytorchs.norm()


STORED = [f"blocks.{i}.{name}.{kind}" for i in (0, 1) for name in ("widen", "narrow") for kind in ("weight", "bias")]
"""Names of the MLP's parameters in files: in those of version 0.1.0, and in all since."""


def test_state_dicts_are_written_with_the_stored_names() -> None:
    model = body(2)
    state_dict = model.state_dict()
    assert set(STORED) < set(state_dict)
    assert not any("mlp_in" in name or "mlp_out" in name for name in state_dict)
    assert torch.equal(state_dict["blocks.1.widen.weight"], model.get_parameter("blocks.1.mlp_in.weight"))
    assert torch.equal(state_dict["blocks.1.narrow.bias"], model.get_parameter("blocks.1.mlp_out.bias"))


@pytest.mark.parametrize("spelling", ["stored", "modules"])
def test_state_dicts_are_read_with_either_names(spelling: str) -> None:
    state_dict = body(2).state_dict()
    if spelling == "modules":
        state_dict = {
            name.replace("widen", "mlp_in").replace("narrow", "mlp_out"): tensor for name, tensor in state_dict.items()
        }
    torch.manual_seed(1)
    model = Gpt1(channels=C, layers=2, heads=HEADS, mlp_channels=MLP, eps=EPS, dropout=0.0)
    x = torch.randn(2, 7, C)
    assert not torch.equal(model(x), body(2)(x))
    names = set(state_dict)
    model.load_state_dict(state_dict)
    assert torch.equal(model(x), body(2)(x))
    assert set(state_dict) == names, "the caller's state dict is not changed"


@pytest.mark.parametrize("name", STORED)
def test_a_missing_parameter_of_the_mlp_is_an_error(name: str) -> None:
    state_dict = body(2).state_dict()
    del state_dict[name]
    with pytest.raises(RuntimeError, match="Missing key"):
        body(2).load_state_dict(state_dict)


def test_the_order_of_parameters_is_that_of_stored_optimizer_states() -> None:
    """Optimizers store their state by the index of a parameter."""
    names = [name for name, _ in body(1).blocks[0].named_parameters()]
    layers = ["attention.qkv", "attention.out", "attention_norm", "mlp_in", "mlp_out", "mlp_norm"]
    assert names == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
