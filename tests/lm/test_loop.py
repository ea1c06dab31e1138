"""The training loop compared with a plain PyTorch loop, and what it logs."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from lm.training import Clock, context, trained
from numpy.typing import NDArray
from safetensors import safe_open
from torch.nn import functional as F

from lmconsole.data.corpus import load_corpus
from lmconsole.lm import checkpoint, loop
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.checkpoint import weights_sha256
from lmconsole.lm.loop import Training, train
from lmconsole.lm.model import LanguageModel, build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.lm.steps import Steps
from lmconsole.runs.events import Progress, perplexity


def mean_nll(model: LanguageModel, tokens: NDArray[np.generic], window: int) -> float:
    """Return the mean loss from full logits, one window at a time."""
    split, total, count = WindowedSplit(tokens, window, "cpu"), 0.0, 0
    for i in range(len(split)):
        ids, targets = split.batch(torch.tensor([i]))
        logits = model.features(ids) @ model.table.T
        total += F.cross_entropy(logits[0], targets[0], ignore_index=-100, reduction="sum").double().item()
        count += int(split.lengths[i])
    return total / count


@pytest.mark.parametrize(("model", "optimizer"), [("lstm", "sgd"), ("gpt1", "momentum"), ("gpt1", "adamw")])
def test_epochs_agree_with_a_plain_pytorch_loop(tmp_path: Path, model: str, optimizer: str) -> None:
    run = trained(tmp_path, model, optimizer=optimizer, epochs=2)
    settings = run.info.settings
    corpus = load_corpus("tokens", tmp_path / "data", vocabulary=300, cache=tmp_path / "cache")
    torch.manual_seed(42)
    plain = build_model(settings, vocabulary=corpus.vocabulary, tables=None)
    stepper = build_optimizer(settings, plain.parameters())
    shuffle = torch.Generator().manual_seed(42)
    split = WindowedSplit(corpus.splits["train"], settings.window_tokens, "cpu")
    for epoch in run.state.epochs:
        nll, count = 0.0, 0
        for windows in torch.randperm(len(split), generator=shuffle).split(settings.batch_size):
            ids, targets = split.batch(windows)
            logits = (plain.features(ids) @ plain.table.T).flatten(0, 1)
            loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-100)
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            here = int((targets != -100).sum())
            nll, count = nll + loss.item() * here, count + here
        assert epoch.train_loss_nats == pytest.approx(nll / count, rel=1e-4)
        with torch.no_grad():
            valid = mean_nll(plain, corpus.splits["validation"], settings.window_tokens)
        assert epoch.valid_loss_nats == pytest.approx(valid, rel=1e-4)
        assert epoch.valid_ppl == pytest.approx(math.exp(valid), rel=1e-3)
    finished = run.state.finished
    assert finished is not None
    with torch.no_grad():
        test = math.exp(mean_nll(plain, corpus.splits["test"], settings.window_tokens))
    assert finished.test_ppl_final == pytest.approx(test, rel=1e-3)


@pytest.mark.slow
def test_validation_falls_and_the_best_weights_are_tested(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, "gpt1", epochs=40, learning_rate=0.05)
    torch.set_num_threads(1)
    training = Training(context(run, tmp_path))
    training.prepare_on_device()
    training.run(time.monotonic())
    run.refresh()
    state = run.state
    best, finished = state.best_epoch, state.finished
    assert best is not None
    assert finished is not None
    assert best.valid_ppl is not None
    assert state.epochs[0].valid_ppl is not None
    assert best.valid_ppl < state.epochs[0].valid_ppl
    assert (finished.best_epoch, finished.best_valid_ppl) == (best.epoch, best.valid_ppl)
    assert best.epoch < 40, "the test needs a run that overfits"
    assert finished.test_ppl_best != finished.test_ppl_final

    assert perplexity(training._evaluate("test")) == finished.test_ppl_final
    with safe_open(run.paths.best_weights, "pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    training.model.load_state_dict(weights)
    assert perplexity(training._evaluate("validation")) == best.valid_ppl
    assert perplexity(training._evaluate("test")) == finished.test_ppl_best
    assert metadata == {
        "run": run.run,
        "experiment": "GPT-1 1L Adam",
        "epoch": str(best.epoch),
        "valid_loss_nats": str(best.valid_loss_nats),
        "config_hash": run.info.config_hash,
        "sha256": weights_sha256(weights),
    }


def test_progress_adds_up_to_the_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    run = trained(tmp_path, epochs=1)
    (epoch,) = run.state.epochs
    corpus = load_corpus("tokens", tmp_path / "data", vocabulary=300, cache=tmp_path / "cache")
    split = WindowedSplit(corpus.splits["train"], 8, "cpu")
    steps = math.ceil(len(split) / 4)
    assert [p.step for p in run.state.progress] == list(range(1, steps + 1))
    assert {p.steps for p in run.state.progress} == {steps}
    losses = [p.train_loss_nats for p in run.state.progress]
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(42)).numpy()
    counts = [int(split.lengths[order[i : i + 4]].sum()) for i in range(0, len(split), 4)]
    mean = sum(loss * n for loss, n in zip(losses, counts, strict=True) if loss) / sum(counts)
    assert epoch.train_loss_nats == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("every", [0, 7])
def test_the_clock_counts_training_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Time passes only in these functions, in binary fractions of a second, so that sums are exact."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 2.0)
    clock.advance_in(monkeypatch, loop, "build_model", 1000.0)
    clock.advance_in(monkeypatch, Steps, "step", 0.25)  # two of them are a tick
    clock.advance_in(monkeypatch, Training, "_report", 2**-10)
    clock.advance_in(monkeypatch, Training, "_save", 100.0)
    clock.advance_in(monkeypatch, Training, "_evaluate", 32.0)
    run = tiny.queue_tiny(tmp_path, epochs=2, evaluate_every_steps=every)
    train(context(run, tmp_path), clock.monotonic())
    run.refresh()
    for each in run.state.evaluations:
        done = (each.epoch - 1) * each.steps + each.step
        assert (each.valid_s, each.elapsed_train_s) == (32.0, 0.25 * done)
    assert len(run.state.evaluations) > 2 or not every
    train_s = 0.25 * run.state.progress[-1].steps
    assert train_s > 2.0, "the test needs a checkpoint within an epoch"
    assert [(e.train_s, e.valid_s, e.elapsed_train_s) for e in run.state.epochs] == [
        (train_s, 32.0, train_s),
        (train_s, 32.0, 2 * train_s),
    ]
    finished = run.state.finished
    assert finished is not None
    assert finished.setup_s == 1000.0
    assert finished.wall_s == clock.now_s


def test_a_diverged_run_ends_as_finished_and_diverged(tmp_path: Path) -> None:
    run = trained(tmp_path, "lstm", optimizer="sgd", learning_rate=1000.0, epochs=9, weight_decay=900.0)
    finished = run.state.finished
    assert finished is not None
    assert finished.diverged
    assert len(run.state.epochs) < 9
    assert not math.isfinite(run.state.epochs[-1].valid_loss_nats or 0.0)
    assert math.isnan(finished.test_ppl_final or 0.0)
    assert not finished.stopped_early


def test_early_stopping_waits_for_its_number_of_epochs_without_improvement(tmp_path: Path) -> None:
    run = trained(tmp_path, "gpt1", epochs=60, learning_rate=0.05, early_stopping_epochs=2)
    finished = run.state.finished
    assert finished is not None
    assert finished.stopped_early
    assert finished.best_epoch == len(run.state.epochs) - 2


def test_clipping_changes_the_run_and_bounds_the_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    real = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: object) -> object:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in gradients if g is not None]).norm().item())
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    trained(tmp_path, optimizer="sgd", epochs=1, gradient_clip_norm=0.05)
    assert norms
    assert max(norms) <= 0.05 * 1.001


def test_the_schedule_reaches_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *arguments: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    run = trained(tmp_path, epochs=2, warmup_steps=4, learning_rate_decay="cosine")
    full = run.info.settings.learning_rate
    assert rates[:4] == pytest.approx([full / 4, full / 2, full * 3 / 4, full])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_a_run_stops_even_if_epochs_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.05)
    run = tiny.queue_tiny(tmp_path, epochs=100_000, repeats=1)
    torch.set_num_threads(1)
    checks: list[float] = []  # the first is in training, after any set-up

    def stop() -> bool:
        checks.append(time.monotonic())
        return checks[-1] > checks[0] + 0.3

    train(context(run, tmp_path, stop=stop))
    run.refresh()
    assert run.status == "stopped"
    assert len(run.state.epochs) > 1


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    runs = [trained(tmp_path / str(i), "gpt1", seed=seed, epochs=1) for i, seed in enumerate((3, 3, 4))]
    a, b, c = (run.state.epochs[0].valid_loss_nats for run in runs)
    assert a == b != c


def test_an_epoch_ends_with_a_progress_event(tmp_path: Path) -> None:
    run = trained(tmp_path, epochs=1)
    assert isinstance(run.state.progress[-1], Progress)
    assert run.state.progress[-1].step == run.state.progress[-1].steps
