"""When the training loop writes checkpoints, and what follows if a write fails."""

import itertools
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lm.training import Clock, context, trained

from lmconsole.errors import TrainingError
from lmconsole.lm import checkpoint, loop
from lmconsole.lm.checkpoint import CheckpointWriter, TrainState
from lmconsole.lm.loop import Training, train
from lmconsole.lm.model import LanguageModel
from lmconsole.lm.read_checkpoint import Expected, read_checkpoint
from lmconsole.lm.steps import Steps
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.store import Run


def test_a_short_run_of_several_epochs_saves_once_before_its_tests_and_keeps_its_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "time", Clock())  # training takes no time
    happened: list[str] = []

    def record(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def recorded(*arguments: Any, **more: Any) -> Any:
            happened.append(name)
            return real(*arguments, **more)

        monkeypatch.setattr(owner, name, recorded)

    run = tiny.queue_tiny(tmp_path, epochs=3)
    record(EventLog, "sync")
    record(CheckpointWriter, "submit")
    record(Training, "_test")
    record(checkpoint, "save_best_weights")
    train(context(run, tmp_path), 0.0)
    run.refresh()
    assert happened == ["sync", "submit", "_test", "save_best_weights"]
    assert run.status == "finished"
    left = {path.name for path in run.paths.folder.iterdir()}
    assert left == {"run.json", "events.jsonl", "best-weights.safetensors", "test-losses.safetensors", "lock"}


def test_a_checkpoint_follows_ten_seconds_of_training_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time passes only in steps, four per second, and every other step is a tick."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(checkpoint, "time", clock)
    clock.advance_in(monkeypatch, Steps, "step", 0.25)
    saved_at: list[float] = []
    real = CheckpointWriter.submit

    def submit(self: CheckpointWriter, *arguments: Any) -> None:
        saved_at.append(clock.now_s)
        real(self, *arguments)
        self.join()  # so that it is written at the next tick

    monkeypatch.setattr(CheckpointWriter, "submit", submit)
    run = tiny.queue_tiny(tmp_path, epochs=4)
    train(context(run, tmp_path), 0.0)
    assert len(saved_at) > 2
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *saved_at[:-1]])]
    assert all(10.0 <= gap <= 11.0 for gap in gaps), gaps
    assert saved_at[-1] == clock.now_s, "the last checkpoint is that before the tests"


def saved(run: Run) -> TrainState:
    """Return the state in the newest checkpoint, which must be valid."""
    return read_checkpoint(run.paths.checkpoint, Expected.of(run.info)).state


def full(*_: object) -> None:
    raise TrainingError("disk-full", "no room", hint="")


@pytest.fixture
def saving_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a checkpoint at every step, and wait for it."""
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 0.0)
    real = CheckpointWriter.submit
    monkeypatch.setattr(CheckpointWriter, "submit", lambda self, *arguments: (real(self, *arguments), self.join())[1])


@pytest.mark.usefixtures("saving_at_every_step")
def test_a_failed_write_ends_training_at_the_next_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, real = [], checkpoint.save

    def save(*arguments: Any) -> None:
        writes.append(arguments)
        if len(writes) == 3:
            full()
        real(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    run = tiny.queue_tiny(tmp_path)
    with pytest.raises(TrainingError, match="no room"):
        train(context(run, tmp_path))
    run.refresh()
    assert run.state.progress[-1].step == 4
    assert saved(run).step == 2


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_failed_write_ends_an_evaluation_at_the_next_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    evaluate, loss_sum = Training._evaluate, LanguageModel.loss_sum
    batches: list[tuple[Any, ...]] = []

    def evaluated(self: Training, name: str, *more: Any) -> float:
        if name == split:
            self.writer.wait()
            monkeypatch.setattr(checkpoint, "save", full)
            self._save()
            self.writer.join()
            batches.clear()
        return evaluate(self, name, *more)

    def counted(*arguments: Any) -> torch.Tensor:
        batches.append(arguments)
        return loss_sum(*arguments)

    monkeypatch.setattr(Training, "_evaluate", evaluated)
    monkeypatch.setattr(LanguageModel, "loss_sum", counted)
    run = tiny.queue_tiny(tmp_path)
    with pytest.raises(TrainingError, match="no room"):
        train(context(run, tmp_path))
    assert len(batches) == 1


@pytest.mark.parametrize("stop", [True, False], ids=["stop", "end"])
def test_a_run_ends_only_when_its_last_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    """The write fails once the loop waits for it."""
    waited, join = threading.Event(), CheckpointWriter.join

    def failing(*_: object) -> None:
        waited.wait()
        full()

    def noticed(self: CheckpointWriter) -> None:
        if self.busy:
            waited.set()
        join(self)

    monkeypatch.setattr(loop, "TICK_S", 0.0 if stop else 60.0)
    monkeypatch.setattr(checkpoint, "save", failing)
    monkeypatch.setattr(CheckpointWriter, "join", noticed)
    run = tiny.queue_tiny(tmp_path)
    try:
        with pytest.raises(TrainingError, match="no room"):
            train(context(run, tmp_path, stop=lambda: stop))
    finally:
        waited.set()
    run.refresh()
    assert run.state.finished is None
    assert run.state.stopped is None
    assert not run.paths.best_weights.exists()


def test_a_failed_step_does_not_tear_the_checkpoint_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write goes on once the loop waits for it."""
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 0.0)
    waited, steps = threading.Event(), 0
    save, join, step = checkpoint.save, CheckpointWriter.join, Steps.step

    def slow(*arguments: Any) -> None:
        waited.wait()
        save(*arguments)

    def noticed(self: CheckpointWriter) -> None:
        if self.busy:
            waited.set()
        join(self)

    def failing(self: Steps, learning_rate: float | None) -> int:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise RuntimeError("a step fails")
        return step(self, learning_rate)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(CheckpointWriter, "join", noticed)
    monkeypatch.setattr(Steps, "step", failing)
    run = tiny.queue_tiny(tmp_path)
    try:
        with pytest.raises(RuntimeError, match="a step fails"):
            train(context(run, tmp_path))
        found = saved(run)
    finally:
        waited.set()
    assert found.step == 1


def test_a_run_whose_disk_is_full_at_the_end_resumes_at_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.queue_tiny(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_best_weights", full)
        with pytest.raises(TrainingError, match="no room"):
            train(context(run, tmp_path))
    run.refresh()
    assert run.status != "finished"
    found = saved(run)
    assert (found.epoch, found.step) == (3, 0)

    monkeypatch.setattr(Steps, "step", None)
    second = context(run, tmp_path)
    second.history.attempt = 1
    train(second)
    run.refresh()
    assert run.status == "finished"
    assert run.paths.best_weights.exists()
    assert not run.paths.checkpoint.exists()


def test_a_run_that_never_had_a_finite_validation_loss_keeps_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Training._evaluate
    monkeypatch.setattr(Training, "_evaluate", lambda self, *split: evaluate(self, *split) * math.nan)
    run = trained(tmp_path)
    assert run.state.finished is not None
    assert run.state.finished.diverged
    assert run.state.finished.best_epoch is None
    assert not run.paths.best_weights.exists()
