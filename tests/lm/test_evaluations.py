"""Evaluations within epochs: they change nothing that is trained, and a resumed run neither repeats nor lacks one."""

import copy
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lm.test_loop import mean_nll
from lm.training import next_attempt, trained
from safetensors.torch import load_file
from torch import Tensor

from lmconsole.lm import checkpoint, loop
from lmconsole.lm.checkpoint import CheckpointWriter, TrainState
from lmconsole.lm.cuda_graph import CudaGraphSteps
from lmconsole.lm.fast_paths import prepare_steps
from lmconsole.lm.loop import Training, train
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Evaluation, Progress, perplexity
from lmconsole.runs.store import Run

EVERY = 7
"""Steps between evaluations: no divisor of the steps in an epoch, so those of the second epoch are at other steps."""
DROPOUT: dict[str, Any] = {"dropout": 0.1, "learning_rate_decay": "cosine", "gradient_clip_norm": 1.0}


def outcome(run: Run) -> tuple[object, ...]:
    """Return all losses that depend on training."""
    finished = run.state.finished
    assert finished is not None
    losses = [(each.train_loss_nats, each.valid_loss_nats) for each in run.state.epochs]
    return losses, (finished.test_ppl_final, finished.test_ppl_best, finished.best_epoch)


def evaluations(run: Run) -> list[tuple[object, ...]]:
    return [(each.epoch, each.step, each.steps, each.valid_loss_nats) for each in run.state.evaluations]


def same_weights(one: Run, other: Run) -> bool:
    """Return whether the best weights of two runs have the same bits."""
    a, b = (load_file(run.paths.best_weights) for run in (one, other))
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("model", ["lstm", "gpt1"])
def test_training_has_the_same_bits_with_and_without(tmp_path: Path, model: str) -> None:
    off = trained(tmp_path / "off", model, **DROPOUT)
    on = trained(tmp_path / "on", model, evaluate_every_steps=EVERY, **DROPOUT)
    every_step = trained(tmp_path / "all", model, evaluate_every_steps=1, **DROPOUT)
    steps = off.state.progress[-1].steps
    assert outcome(on) == outcome(every_step) == outcome(off)
    assert same_weights(on, off)
    assert same_weights(every_step, off)
    expected = [divmod(done, steps) for done in range(EVERY, 2 * steps, EVERY)]
    assert [(each.epoch - 1, each.step) for each in on.state.evaluations] == expected
    assert all(step > 0 for _, step in expected), "no evaluation is at the end of an epoch"
    assert len(every_step.state.evaluations) == 2 * (steps - 1)
    assert set(evaluations(on)) < set(evaluations(every_step))
    assert off.state.evaluations == []


@pytest.mark.parametrize("model", ["lstm", "gpt1"])
def test_an_evaluation_has_the_loss_of_the_weights_at_its_step_without_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    weights: list[tuple[Tensor, ...]] = []
    expected: list[float] = []
    real = Training._evaluate_within_epoch

    def spied(self: Training) -> None:
        alone = copy.deepcopy(self.model).eval()
        with torch.no_grad():
            expected.append(mean_nll(alone, self.context.corpus.splits["validation"], self.settings.window_tokens))
        weights.append(tuple(parameter.detach().clone() for parameter in self.model.parameters()))
        real(self)
        assert self.model.training
        assert all(a.equal(b) for a, b in zip(weights[-1], self.model.parameters(), strict=True))

    monkeypatch.setattr(Training, "_evaluate_within_epoch", spied)
    run = trained(tmp_path, model, evaluate_every_steps=EVERY, **DROPOUT)
    assert len(expected) > 2
    losses = [each.valid_loss_nats for each in run.state.evaluations]
    assert losses == pytest.approx(expected, rel=1e-4)
    for event in run.state.evaluations:
        assert event.valid_ppl == perplexity(event.valid_loss_nats or math.nan)


@pytest.mark.parametrize("model", ["lstm", "gpt1"])
def test_captured_steps_find_their_tensors_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """On a CPU a capture returns the work itself; the short last batch of an epoch is not captured."""
    monkeypatch.setattr(loop, "prepare_steps", functools.partial(prepare_steps, capture=lambda work: work))
    off = trained(tmp_path / "off", model, learning_rate_decay="cosine")
    real = Training._evaluate_within_epoch
    calls = 0

    def spied(self: Training) -> None:
        nonlocal calls
        calls += 1
        steps = self.steps
        assert isinstance(steps, CudaGraphSteps)
        tensors = (steps.nll, steps._position, steps._order, *steps.trained)
        before = [(each.data_ptr(), each.detach().clone()) for each in tensors]
        real(self)
        after = (self.steps.nll, steps._position, steps._order, *steps.trained)
        for (address, value), each in zip(before, after, strict=True):
            assert address == each.data_ptr()
            assert value.equal(each)

    monkeypatch.setattr(Training, "_evaluate_within_epoch", spied)
    on = trained(tmp_path / "on", model, learning_rate_decay="cosine", evaluate_every_steps=EVERY)
    assert calls == len(on.state.evaluations) > 2
    assert outcome(on) == outcome(off)
    assert same_weights(on, off)


def test_each_evaluation_follows_a_progress_event_at_its_step(tmp_path: Path) -> None:
    run = trained(tmp_path, evaluate_every_steps=EVERY)
    events = EventReader(run.paths.events).read_new()
    pairs = [(before, each) for before, each in itertools.pairwise(events) if isinstance(each, Evaluation)]
    assert len(pairs) == len(run.state.evaluations) > 2
    for before, evaluation in pairs:
        assert isinstance(before, Progress)
        assert (before.epoch, before.step, before.elapsed_train_s) == (
            evaluation.epoch, evaluation.step, evaluation.elapsed_train_s,
        )  # fmt: skip


def test_at_one_step_the_evaluation_comes_before_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 0.0)
    saved: dict[tuple[int, int], int] = {}
    real = CheckpointWriter.submit

    def submit(self: CheckpointWriter, state: TrainState, parts: dict[str, Any]) -> None:
        saved[state.epoch, state.step] = state.seq
        real(self, state, parts)
        self.join()

    monkeypatch.setattr(CheckpointWriter, "submit", submit)
    run = trained(tmp_path, evaluate_every_steps=EVERY)
    points = {(each.epoch, each.step): each.seq for each in run.state.evaluations}
    assert len(points) > 2
    assert {point: saved.get(point) for point in points} == points, "each is the last event before its checkpoint"


@pytest.mark.parametrize("model", ["lstm", "gpt1"])
def test_stopped_again_and_again_a_run_has_the_same_evaluations_and_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Every other attempt is stopped in an evaluation, which the next one has to begin with."""
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    whole = trained(tmp_path / "whole", model, evaluate_every_steps=EVERY, **DROPOUT)
    run = tiny.queue_tiny(tmp_path / "stopped", model, evaluate_every_steps=EVERY, **DROPOUT)
    evaluating, checks, attempts, stopped_within = False, 0, 0, 0
    real = Training._evaluate_within_epoch

    def evaluate(self: Training) -> None:
        nonlocal evaluating, stopped_within
        evaluating = True
        try:
            real(self)
        except loop.StopRequested:
            stopped_within += 1
            raise
        finally:
            evaluating = False

    def stop() -> bool:
        nonlocal checks
        checks += 1
        return evaluating if attempts % 2 else checks > 10

    monkeypatch.setattr(Training, "_evaluate_within_epoch", evaluate)
    while run.status != "finished":
        checks, attempts = 0, attempts + 1
        train(next_attempt(run, tmp_path / "stopped", stop=stop))
        run.refresh()
    assert stopped_within > 1
    assert evaluations(run) == evaluations(whole)
    assert outcome(run) == outcome(whole)
    assert same_weights(run, whole)
    assert not run.state.damage
    events = [each for each in EventReader(run.paths.events).read_new() if isinstance(each, Evaluation)]
    assert len(events) == len(run.state.evaluations), "stopped by request, a run repeats none"


def test_a_loss_that_is_not_finite_within_an_epoch_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Training._evaluate
    monkeypatch.setattr(
        Training,
        "_evaluate",
        lambda self, name, *more: math.nan if 0 < self.state.step < self.steps_per_epoch else real(self, name, *more),
    )
    run = trained(tmp_path, evaluate_every_steps=EVERY)
    assert run.state.finished is not None
    assert not run.state.finished.diverged
    assert all(math.isnan(each.valid_ppl or 0.0) for each in run.state.evaluations)
    assert b'"non_finite":{"valid_loss_nats":"nan","valid_ppl":"nan"}' in run.paths.events.read_bytes()
    assert run.state.best_epoch is not None


def test_an_attempt_without_checkpoint_evaluates_all_of_it_again(tmp_path: Path) -> None:
    whole = trained(tmp_path, evaluate_every_steps=EVERY)
    expected = evaluations(whole)
    train(next_attempt(whole, tmp_path))
    whole.refresh()
    assert evaluations(whole) == expected
    events = [each for each in EventReader(whole.paths.events).read_new() if isinstance(each, Evaluation)]
    assert len(events) == 2 * len(expected)
