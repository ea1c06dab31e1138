"""Energy of epochs and runs, from a counter that follows a clock."""

import contextlib
import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lm.training import Clock, context, next_attempt

from lmconsole.lm import checkpoint, loop
from lmconsole.lm.checkpoint import CheckpointWriter
from lmconsole.lm.loop import Training, train
from lmconsole.lm.model import LanguageModel
from lmconsole.lm.steps import Steps

pytestmark = pytest.mark.slow


class Board:
    """Energy counter of a GPU's board that draws 64 W on the given clock."""

    WATTS = 64.0

    def __init__(self, clock: Clock, zero_j: float = 2.0**20) -> None:
        self._clock, self._zero_j = clock, zero_j

    def read_j(self) -> float:
        return self._zero_j + self.WATTS * self._clock.now_s


def test_energy_includes_epochs_but_not_set_up_and_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 2.0)
    clock.advance_in(monkeypatch, loop, "build_model", 1000.0)
    clock.advance_in(monkeypatch, loop, "prepare_steps", 1000.0)
    clock.advance_in(monkeypatch, Steps, "step", 0.25)
    clock.advance_in(monkeypatch, Training, "_save", 128.0)
    clock.advance_in(monkeypatch, Training, "_evaluate", 32.0)
    saves: list[tuple[int, int]] = []
    real_save = Training._save

    def save(self: Training) -> None:
        saves.append((self.state.epoch, self.state.step))
        real_save(self)
        self.writer.join()  # the duration of a write is real time

    monkeypatch.setattr(Training, "_save", save)
    run = tiny.queue_tiny(tmp_path, epochs=2)
    train(replace(context(run, tmp_path), read_energy_j=Board(clock).read_j))
    run.refresh()
    train_s = 0.25 * run.state.progress[-1].steps
    within = [sum(epoch == number and step > 0 for epoch, step in saves) for number in (1, 2)]
    assert min(within) > 0, "the test needs checkpoints within the epochs"
    epochs_j = [Board.WATTS * (train_s + 128.0 * count + 32.0) for count in within]
    assert [epoch.energy_j for epoch in run.state.epochs] == epochs_j
    assert run.state.finished is not None
    between_j = Board.WATTS * 128.0 * saves.count((2, 0))
    assert run.state.finished.energy_j == sum(epochs_j) + between_j, "a checkpoint between epochs counts too"
    assert saves[-1] == (3, 0), "the last one, before the tests, does not"


@pytest.mark.parametrize(
    ("epochs", "step_s", "valid_s", "epoch_is_known", "run_is_known"),
    [
        (2, 2**-5, 0.0, False, False),  # 0.8 s each, 1.6 s in all
        (3, 2**-5, 0.0, False, True),
        (3, 2**-5, 1.25, True, True),
        (1, 2**-3, 0.0, True, True),
    ],
)
def test_energy_over_less_than_two_seconds_is_unknown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    step_s: float,
    valid_s: float,
    epoch_is_known: bool,
    run_is_known: bool,
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    clock.advance_in(monkeypatch, Steps, "step", step_s)
    clock.advance_in(monkeypatch, Training, "_evaluate", valid_s)
    run = tiny.queue_tiny(tmp_path, epochs=epochs)
    train(replace(context(run, tmp_path), read_energy_j=Board(clock).read_j))
    run.refresh()
    epoch_j = Board.WATTS * (step_s * run.state.progress[-1].steps + valid_s)
    assert [epoch.energy_j for epoch in run.state.epochs] == [epoch_j if epoch_is_known else None] * epochs
    assert run.state.finished is not None
    assert run.state.finished.energy_j == (epochs * epoch_j if run_is_known else None)


@pytest.mark.parametrize(
    ("readings", "epochs_j", "run_j"),
    [
        ([0.0, 100.0, 110.0, 210.0, 220.0, 320.0], [100.0, 100.0, 100.0], 320.0),
        ([0.0, 100.0, 110.0, None, 220.0, 320.0], [100.0, None, 100.0], None),
        ([None, 100.0, 110.0, 210.0, 220.0, 320.0], [None, 100.0, 100.0], None),
        ([50.0, 100.0, 110.0, 20.0, 30.0, 130.0], [50.0, None, 100.0], None),  # driver reloaded within an epoch
        ([50.0, 100.0, 10.0, 110.0, 120.0, 220.0], [50.0, 100.0, 100.0], None),  # driver reloaded between two
        ([None] * 6, [None] * 3, None),
    ],
)
def test_a_missing_or_falling_reading_makes_energy_unknown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    readings: list[float | None],
    epochs_j: list[float | None],
    run_j: float | None,
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: math.inf)  # a checkpoint reads it too
    clock.advance_in(monkeypatch, Steps, "step", 0.25)
    run = tiny.queue_tiny(tmp_path, epochs=3)
    left = iter(readings)
    train(replace(context(run, tmp_path), read_energy_j=lambda: next(left)))
    run.refresh()
    assert next(left, "none left") == "none left"
    assert [epoch.energy_j for epoch in run.state.epochs] == epochs_j
    assert run.state.finished is not None
    assert run.state.finished.energy_j == run_j


def test_the_counter_is_read_when_the_device_is_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop during validation leaves work outstanding."""
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    work_is_outstanding = False
    found: list[bool] = []
    phases: list[str] = []
    loss_sum, item = LanguageModel.loss_sum, torch.Tensor.item

    def launch(*arguments: Any) -> torch.Tensor:
        nonlocal work_is_outstanding
        work_is_outstanding = True
        return loss_sum(*arguments)

    def wait(*_: object) -> None:
        nonlocal work_is_outstanding
        work_is_outstanding = False

    def waiting_item(tensor: torch.Tensor) -> float:
        wait()
        return item(tensor)

    def read_j() -> float:
        found.append(work_is_outstanding)
        return 0.0

    monkeypatch.setattr(LanguageModel, "loss_sum", launch)
    monkeypatch.setattr(torch.Tensor, "item", waiting_item)
    monkeypatch.setattr(loop, "synchronize", wait)
    run = tiny.queue_tiny(tmp_path)
    stopping = context(run, tmp_path, stop=lambda: phases[-1] == "valid")
    train(replace(stopping, read_energy_j=read_j, enter_phase=lambda phase, _: phases.append(phase)))
    run.refresh()
    assert run.status == "stopped"
    assert phases == ["train", "valid"]
    assert found == [False, False], "at the start of the epoch, and for the checkpoint"


class Killed(BaseException):
    """Simulates SIGKILL: nothing is written afterwards."""


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_energy_of_a_resumed_run_counts_each_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The run is interrupted twice in its second epoch, and each time the counter starts from another zero. A killed
    run repeats the steps after its last checkpoint, which must not count twice."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    real_submit = CheckpointWriter.submit

    def submit(self: CheckpointWriter, *arguments: Any) -> None:
        real_submit(self, *arguments)
        self.join()  # the duration of a write is real time

    monkeypatch.setattr(CheckpointWriter, "submit", submit)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 2.0)
    clock.advance_in(monkeypatch, Training, "_evaluate", 32.0)
    clock.advance_in(monkeypatch, Steps, "step", 0.25)
    run = tiny.queue_tiny(tmp_path, epochs=3)
    first = Training(context(run, tmp_path))
    first.prepare_on_device()
    per_epoch = first.steps_per_epoch
    assert per_epoch > 20, "the test needs epochs with room for two interruptions"
    steps, death = 0, 0
    real_step = Steps.step

    def step(self: Steps, learning_rate: float | None) -> int:
        nonlocal steps
        steps += 1
        if how == "killed" and steps == death:
            raise Killed
        return real_step(self, learning_rate)

    def stops_after(count: int) -> bool:
        return how == "stopped" and steps >= count

    monkeypatch.setattr(Steps, "step", step)
    for death, zero_j in ((per_epoch + 14, 0.0), (per_epoch + 19, 2.0**30)):
        attempt = next_attempt(run, tmp_path, stop=functools.partial(stops_after, death))
        with contextlib.suppress(Killed):
            train(replace(attempt, read_energy_j=Board(clock, zero_j).read_j))
        run.refresh()
        assert run.status == ("stopped" if how == "stopped" else "lost")
        assert len(run.state.epochs) == 1
        clock.now_s += 1000.0
    train(replace(next_attempt(run, tmp_path), read_energy_j=Board(clock).read_j))
    run.refresh()
    assert (steps > 3 * per_epoch) == (how == "killed"), "only a killed run trains some steps again"
    epoch_j = Board.WATTS * (0.25 * per_epoch + 32.0)
    assert [epoch.energy_j for epoch in run.state.epochs] == [epoch_j] * 3
    assert run.state.finished is not None
    assert run.state.finished.energy_j == 3 * epoch_j


def test_a_run_started_without_a_counter_has_no_total_and_is_metered_from_its_next_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of version 0.1.0 have no fields for energy."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    clock.advance_in(monkeypatch, Steps, "step", 0.25)
    run = tiny.queue_tiny(tmp_path, epochs=3)
    train(next_attempt(run, tmp_path, stop=lambda: clock.now_s > 8.0))
    run.refresh()
    assert run.status == "stopped"
    assert run.state.position[0] == 2
    parts = torch.load(run.paths.checkpoint, weights_only=True)
    del parts["cursor"]["energy_j"], parts["cursor"]["epoch_energy_j"]
    torch.save(parts, run.paths.checkpoint)
    train(replace(next_attempt(run, tmp_path), read_energy_j=Board(clock).read_j))
    run.refresh()
    epoch_j = Board.WATTS * 0.25 * run.state.progress[-1].steps
    assert [epoch.energy_j for epoch in run.state.epochs] == [None, None, epoch_j]
    assert run.state.finished is not None
    assert run.state.finished.energy_j is None
