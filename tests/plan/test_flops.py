"""FLOPs of training compared with numbers derived by hand and with PyTorch's FLOP counter."""

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lmconsole.lm import gpt1
from lmconsole.lm.embedding import Tables
from lmconsole.lm.lstm import Lstm
from lmconsole.lm.model import build_model
from lmconsole.plan.experiment import MODEL_NAMES, Model, Settings
from lmconsole.plan.flops import evaluation_flops, run_flops, step_flops, training_flops
from lmconsole.plan.load import builtin_file, load_plan

V = 40_479


def settings_of(model: Model, layers: int, preset: str = "paper") -> Settings:
    plan = load_plan(builtin_file())
    (found,) = (e for e in plan.experiments if (e.model, e.layers, e.optimizer) == (model, layers, "adamw"))
    return plan.resolve(found, preset).settings


def tiny(model: Model, layers: int, embeddings: str) -> Settings:
    sizes = {"channels": 12, "window_tokens": 8, "batch_size": 3, "embeddings": embeddings}
    own = {"hidden": 10} if model == "lstm" else {"heads": 2, "mlp_channels": 20}
    return msgspec.structs.replace(settings_of(model, layers), **sizes, **own)


def counted(settings: Settings, vocabulary: int, *, train: bool = True) -> int:
    """Return the FLOPs that PyTorch counts in a training step of the model, with every product written out, or without
    ``train`` in an evaluation."""
    T, C = settings.window_tokens, settings.channels
    tables = Tables(tokens=torch.rand(vocabulary, C), position=torch.rand(T, C), sha256="", path=Path())
    frozen = settings.embeddings == "frozen"
    model = build_model(settings, vocabulary=vocabulary, tables=tables if frozen else None)
    ids = torch.randint(1, vocabulary, (settings.batch_size, T))
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        if settings.model == "lstm":
            assert isinstance(model.body, Lstm)
            x = written_out(model.body, F.embedding(ids, model.table))
        else:
            x = model.features(ids)
        loss = F.cross_entropy((x @ model.table.T).flatten(0, 1), ids.flatten())
        if train:
            loss.backward()
    return int(counter.get_total_flops())


def written_out(body: Lstm, x: Tensor) -> Tensor:
    """Return the LSTM's features (B, T, C), step by step, since PyTorch counts nothing within its own LSTM."""
    lstm = body.lstm
    for layer in range(lstm.num_layers):
        w_x, w_h = getattr(lstm, f"weight_ih_l{layer}"), getattr(lstm, f"weight_hh_l{layer}")
        h = c = x.new_zeros(len(x), lstm.hidden_size)
        outputs = []
        for gates in (x @ w_x.T).unbind(1):
            i, f, g, o = (gates + h @ w_h.T).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        x = torch.stack(outputs, 1)
    features: Tensor = F.relu(body.project(x))
    return features


@pytest.mark.parametrize("embeddings", ["frozen", "learned"])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_flops_of_an_lstm_are_what_pytorch_counts(layers: int, embeddings: str) -> None:
    settings = tiny("lstm", layers, embeddings)
    B, H = settings.batch_size, 10
    # The zero state at the start of a window needs no gradient, which the formula ignores.
    zero_state = 2 * B * layers * 4 * H * H
    assert step_flops(settings, 50) == counted(settings, 50) + zero_state
    tokens = B * settings.window_tokens
    assert tokens * evaluation_flops(settings, 50).total == counted(settings, 50, train=False)


@pytest.mark.parametrize("embeddings", ["frozen", "learned"])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_flops_of_gpt1_are_what_pytorch_counts(
    monkeypatch: pytest.MonkeyPatch, layers: int, embeddings: str
) -> None:
    # With scores written out, PyTorch counts all of them, masked or not.
    monkeypatch.setattr(gpt1, "attention_backend", lambda *_, **__: "written out")
    settings = tiny("gpt1", layers, embeddings)
    C, T = settings.channels, settings.window_tokens
    tokens = settings.batch_size * T
    masked = 2 * layers * 2 * C * (T - (T + 1) / 2)  # per token: masked scores and weighted values
    assert step_flops(settings, 50) == counted(settings, 50) - 3 * tokens * masked
    assert tokens * evaluation_flops(settings, 50).total == counted(settings, 50, train=False) - tokens * masked


@pytest.mark.parametrize(
    ("model", "preset", "head", "body"),
    [
        # LSTM: input 4 x 512 x 768 = 1,572,864, recurrence 4 x 512 x 512 = 1,048,576, projection 512 x 768 = 393,216.
        ("lstm", "paper", 2 * 2 * V * 768, 2 * (2 * 1_572_864 + 3 * 1_048_576 + 3 * 393_216)),
        ("lstm", "scratch", 2 * 3 * V * 768, 2 * 3 * (1_572_864 + 1_048_576 + 393_216)),
        # GPT-1: QKV 3 x 768², out 768², MLP 2 x 768 x 3,072, attention 768 x 257.
        ("gpt1", "paper", 2 * 2 * V * 768, 2 * (2 * 1_769_472 + 3 * (589_824 + 4_718_592 + 197_376))),
        ("gpt1", "scratch", 2 * 3 * V * 768, 2 * 3 * (1_769_472 + 589_824 + 4_718_592 + 197_376)),
    ],
)
def test_one_layer_at_the_papers_size_has_the_flops_derived_by_hand(
    model: Model, preset: str, head: float, body: float
) -> None:
    found = training_flops(settings_of(model, 1, preset), V)
    assert (found.head, found.body) == (head, body)


@pytest.mark.parametrize("every", [1, 7, 24, 36, 1_000])
def test_evaluations_within_epochs_count_as_often_as_they_come(every: int) -> None:
    settings = msgspec.structs.replace(settings_of("lstm", 1), epochs=36, evaluate_every_steps=every)
    steps, tokens = 48, {"train": 48 * settings.batch_size * settings.window_tokens, "validation": 1_000, "test": 10}
    within = [done for done in range(1, 36 * steps) if done % every == 0 and done % steps]
    extra = run_flops(settings, V, tokens) - run_flops(
        msgspec.structs.replace(settings, evaluate_every_steps=0), V, tokens
    )
    found = extra / (1_000 * evaluation_flops(settings, V).total)
    assert found == pytest.approx(len(within), abs=1.0), "a mean over all epochs"


def test_the_head_has_most_of_the_flops() -> None:
    lstm, gpt = (training_flops(settings_of(model, 1), V) for model in ("lstm", "gpt1"))
    assert round(lstm.head / 1e6) == round(gpt.head / 1e6) == 124
    # 142 and 168 MFLOP with the unnecessary gradient of the frozen embeddings.
    assert round((lstm.total + 2 * 4 * 512 * 768) / 1e6) == 142
    assert round((gpt.total + 2 * 3 * 768 * 768) / 1e6) == 168


PERFORMANCE = Path(__file__).parents[2] / "docs" / "performance.md"
TARGETS = {"train": 2_356_374, "validation": 245_044, "test": 279_021}


@pytest.mark.skipif(not PERFORMANCE.is_file(), reason="the documentation does not travel with the source distribution")
@pytest.mark.parametrize("experiment", [1, 5, 9, 10, 11, 12])
def test_the_documented_table_is_what_is_counted(experiment: int) -> None:
    plan = load_plan(builtin_file())
    settings = plan.resolve(plan.experiment(experiment), "paper", {}).settings
    V = 40_479
    train, valid = training_flops(settings, V), evaluation_flops(settings, V)
    cells = [
        f"{train.head / 1e6:.1f}",
        f"{train.body / 1e6:.1f}",
        f"{train.total / 1e6:.1f}",
        f"{train.head / train.total:.0%}",
        f"{step_flops(settings, V) / 1e9:.0f}",
        f"{TARGETS['train'] * train.total / 1e12:.0f}",
        f"{TARGETS['validation'] * valid.total / 1e12:.1f}",
        f"{run_flops(settings, V, TARGETS) / 1e15:.2f}",
    ]
    name = f"{MODEL_NAMES[settings.model]}-{settings.layers}"
    row = next(line for line in PERFORMANCE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name} |"))
    assert [cell.strip() for cell in row.strip("|").split("|")][2:] == cells
