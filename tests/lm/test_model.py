"""Models as the experiments define them."""

from pathlib import Path

import pytest
import tiny
import torch

from lmconsole.errors import EmbeddingsError
from lmconsole.lm.embedding import Tables
from lmconsole.lm.linear_cross_entropy import IGNORE
from lmconsole.lm.model import LanguageModel, build_model, count_parameters, parameters_of
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.plan.experiment import Precision, Settings
from lmconsole.plan.load import load_plan

TINY = {"channels": 16, "window_tokens": 8, "vocabulary": 40, "batch_size": 4}
LSTM_1, GPT1_1 = 2, 6  # with AdamW


def settings(number: int, preset: str = "paper", **overrides: object) -> Settings:
    plan = load_plan()
    return plan.resolve(plan.experiment(number), preset, overrides).settings


def tiny_settings(number: int, preset: str = "scratch", **overrides: object) -> Settings:
    sizes = {"hidden": 12} if number in (1, 2, 3, 4, 9, 10) else {"heads": 4, "mlp_channels": 24}
    return settings(number, preset, **{**TINY, **sizes, **overrides})


def random_tables(vocabulary: int = 40, window: int = 8, channels: int = 16) -> Tables:
    g = torch.Generator().manual_seed(1)
    tokens = torch.randn(vocabulary, channels, generator=g)
    tokens[0] = 0
    position = torch.randn(window, channels, generator=g)
    return Tables(tokens=tokens, position=position, sha256="0" * 64, path=Path("tables.npz"))


def build(number: int, preset: str = "scratch", *, seed: int = 0, **overrides: object) -> LanguageModel:
    chosen = tiny_settings(number, preset, **overrides)
    torch.manual_seed(seed)
    return build_model(chosen, vocabulary=40, tables=random_tables() if chosen.embeddings == "frozen" else None)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(1, 40, (4, 9), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


@pytest.mark.parametrize(
    ("number", "trainable"),
    [(1, 3_019_520), (9, 5_120_768), (10, 9_323_264), (5, 7_087_872), (11, 14_175_744), (12, 28_351_488)],
)
def test_paper_sizes_have_the_published_numbers_of_parameters(number: int, trainable: int) -> None:
    tables = random_tables(40_479, 256, 768)
    model = build_model(settings(number), vocabulary=40_479, tables=tables)
    frozen = 40_479 * 768 + (256 * 768 if model.position is not None else 0)
    assert count_parameters(model) == (trainable + frozen, trainable)


def test_learned_tables_count_as_trainable_and_only_gpt1_has_positions() -> None:
    assert count_parameters(build(GPT1_1))[1] - count_parameters(build(GPT1_1, "paper"))[1] == 40 * 16 + 8 * 16
    assert count_parameters(build(LSTM_1))[1] - count_parameters(build(LSTM_1, "paper"))[1] == 40 * 16


@pytest.mark.parametrize("number", [LSTM_1, GPT1_1])
def test_frozen_tables_stay_out_of_the_state_dict_and_never_change(number: int) -> None:
    model, tables = build(number, "paper"), random_tables()
    assert not {"tokens", "position"} & set(model.state_dict())
    assert not model.table.requires_grad
    optimizer = build_optimizer(tiny_settings(number, "paper"), model.parameters())
    model.loss_sum(*batch(), "fp32").backward()
    optimizer.step()
    assert torch.equal(model.table, tables.tokens)
    assert model.position is None or torch.equal(model.position, tables.position)


@pytest.mark.parametrize("number", [LSTM_1, GPT1_1])
def test_a_model_is_restored_from_its_state_dict(number: int) -> None:
    model, other = build(number), build(number, seed=1)
    assert not torch.equal(model.features(batch()[0]), other.features(batch()[0]))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.features(batch()[0]), other.features(batch()[0]))


def test_learned_tables_start_normal_with_a_zero_row_for_padding() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_settings(GPT1_1, vocabulary=20_000, window_tokens=1000), vocabulary=20_000, tables=None)
    assert model.table[0].abs().max() == 0
    assert model.position is not None
    for table in (model.table[1:], model.position):
        assert table.std().item() == pytest.approx(0.02, rel=0.02)
        assert table.mean().item() == pytest.approx(0, abs=1e-3)
    assert (model.table[1:].abs() > 0.06).float().mean().item() == pytest.approx(0.0027, rel=0.1)  # beyond 3 sigma


@pytest.mark.parametrize("number", [LSTM_1, GPT1_1])
def test_the_padding_row_gets_a_gradient_from_the_head_alone(number: int) -> None:
    model = build(number)
    ids, targets = batch()
    ids = ids.clone()
    ids[:, 3] = 0
    features = model.features(ids)
    features.sum().backward()  # a path that goes through the lookup only
    assert model.table.grad is not None
    assert model.table.grad[0].abs().max() == 0
    assert model.table.grad[ids[0, 0]].abs().max() > 0
    model.zero_grad()
    model.loss_sum(ids, targets, "fp32").backward()
    assert model.table.grad is not None
    assert model.table.grad[0].abs().max() > 0


@pytest.mark.parametrize("number", [LSTM_1, GPT1_1])
@pytest.mark.parametrize("preset", ["paper", "scratch"])
def test_loss_and_every_gradient_are_those_of_full_logits(number: int, preset: str) -> None:
    model = build(number, preset)
    ids, targets = batch()
    targets = targets.clone()
    targets[2, 5:] = IGNORE
    value = model.loss_sum(ids, targets, "fp32")
    value.backward()
    mine = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    logits = model.features(ids) @ model.table.T
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("number", [LSTM_1, GPT1_1])
def test_a_later_token_never_changes_an_earlier_feature(number: int) -> None:
    model = build(number)
    ids, _ = batch()
    changed = ids.clone()
    changed[:, 5:] = 40 - ids[:, 5:]
    before, after = model.features(ids), model.features(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-6)


def test_gpt1_distinguishes_positions_and_accepts_windows_shorter_than_its_table() -> None:
    features = build(GPT1_1).features(torch.full((1, 5), 7))
    assert features.shape == (1, 5, 16)
    assert not torch.allclose(features[0, 0], features[0, 1], atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("number", [LSTM_1, GPT1_1])
def test_one_batch_can_be_memorized(number: int, precision: Precision) -> None:
    model = build(number)
    optimizer = build_optimizer(tiny_settings(number, learning_rate=0.02, weight_decay=0.0), model.parameters())
    ids, targets = batch()
    first = model.loss_sum(ids, targets, precision).item() / 32
    for _ in range(200):
        optimizer.zero_grad()
        (model.loss_sum(ids, targets, precision) / 32).backward()
        optimizer.step()
    last = model.loss_sum(ids, targets, precision).item() / 32
    assert first == pytest.approx(3.69, abs=0.3)  # log 40
    assert last < 0.05  # no two of the windows start alike


@pytest.mark.parametrize("number", [LSTM_1, GPT1_1])
@pytest.mark.parametrize("preset", ["paper", "scratch"])
def test_bf16_stays_close_to_fp32_and_its_weights_stay_fp32(number: int, preset: str) -> None:
    model = build(number, preset)
    exact, rough = model.loss_sum(*batch(), "fp32"), model.loss_sum(*batch(), "bf16")
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.01)
    rough.backward()
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_a_frozen_table_is_cast_to_bf16_once() -> None:
    model = build(LSTM_1, "paper")
    assert model._head_table(torch.float32) is model.table
    assert model._head_table(torch.bfloat16) is model._head_table(torch.bfloat16)
    assert torch.equal(model._head_table(torch.bfloat16), model.table.bfloat16())


@pytest.mark.parametrize("number", [LSTM_1, GPT1_1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_seed_determines_every_bit(number: int, precision: Precision) -> None:
    def three_steps(seed: int) -> list[float]:
        model = build(number, seed=seed)
        optimizer = build_optimizer(tiny_settings(number), model.parameters())
        losses = []
        for step in range(3):
            optimizer.zero_grad()
            loss = model.loss_sum(*batch(step), precision)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert three_steps(0) == three_steps(0)
    assert three_steps(0) != three_steps(1)


def test_frozen_embeddings_without_tables_say_what_to_do() -> None:
    with pytest.raises(EmbeddingsError) as caught:
        build_model(tiny_settings(LSTM_1, "paper"), vocabulary=40, tables=None)
    assert "--embeddings" in str(caught.value)
    assert "scratch" in str(caught.value)


def test_tables_of_other_sizes_are_refused() -> None:
    with pytest.raises(EmbeddingsError, match="the model needs"):
        build_model(tiny_settings(LSTM_1, "paper"), vocabulary=41, tables=random_tables())


def test_parameters_are_counted_without_building_the_model(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, "gpt1")
    model = build_model(run.info.settings, vocabulary=run.info.corpus.vocabulary, tables=None)
    exact = sum(p.numel() for p in model.parameters())
    assert parameters_of(run.info) == (exact, exact)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("number", [LSTM_1, GPT1_1])
def test_the_loss_of_each_window_leaves_their_sum_as_it_is(number: int, precision: Precision) -> None:
    model, (ids, targets) = build(number), batch()
    targets = targets.clone()
    targets[3, 5:] = IGNORE
    window_nats = torch.full((4,), torch.nan, dtype=torch.float64)
    with torch.inference_mode():
        model.eval()
        alone = model.loss_sum(ids, targets, precision)
        assert model.loss_sum(ids, targets, precision, window_nats).equal(alone)
        pairs = zip(ids.split(1), targets.split(1), strict=True)
        each = torch.stack([model.loss_sum(*pair, precision) for pair in pairs])
    torch.testing.assert_close(window_nats.float(), each, rtol=1e-6 if precision == "fp32" else 1e-2, atol=0)
    torch.testing.assert_close(window_nats.sum().float(), alone, rtol=1e-6, atol=0)
