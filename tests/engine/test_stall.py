"""When a run counts as stalled: the clock is fake, the worker is a process that only holds the lock."""

import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest
import tiny
from factories import (
    append_events,
    epoch,
    evaluation,
    locked_by_another_process,
    progress,
    started,
    telemetry,
    wait_until,
)

from lmconsole.engine import stall
from lmconsole.engine.stall import FACTOR, FLOOR_S, MAX_GAP_S, Stall, StallWatch, expected_seconds
from lmconsole.runs.events import Stopped
from lmconsole.runs.store import Run

STEP_TOKENS = 4 * 8
"""Tokens of a training step of a tiny run."""


class Watched:
    """A run, a watch, and a clock that both take for real."""

    def __init__(self, run: Run, worker: "subprocess.Popen[str]") -> None:
        self.run, self.worker = run, worker
        self.now_s = 1000.0
        self.watch = StallWatch(lambda: self.now_s)

    def wait(self, seconds: float, *, poll_s: float = 1.0) -> Stall | None:
        """Let time pass, and return the last answer."""
        found = None
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += poll_s
            self.run.refresh()
            found = self.watch.check(self.run)
        return found

    def log(self, *events: object) -> None:
        append_events(self.run.paths, *events)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, "subprocess.Popen[str]"]]:
    run = tiny.queue_tiny(tmp_path_factory.mktemp("stall"))
    with locked_by_another_process(run.paths.lock) as worker:
        yield run, worker


@pytest.fixture
def watched(prepared: tuple[Run, "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Return a run whose attempt has begun, and whose worker holds its lock."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    run, worker = prepared
    run.paths.events.write_text(run.paths.events.read_text().partition("\n")[0] + "\n")
    watched = Watched(Run(run.paths, run.info), worker)
    watched.log(started(), telemetry(phase="setup"))
    return watched


def at(step: int, *, step_s: float = 0.1, number: int = 1) -> object:
    return progress(number, step, tokens_per_s=STEP_TOKENS / step_s)


def test_the_setup_is_never_judged(watched: Watched) -> None:
    assert watched.wait(2_000) is None
    assert expected_seconds(watched.run) is None


def test_a_step_that_takes_too_long_is_a_stall_and_the_same_one_for_the_next_runner(watched: Watched) -> None:
    watched.log(at(3), telemetry())
    assert watched.wait(FLOOR_S) is None
    first = watched.wait(3)
    assert first is not None
    assert "no training step has ended for 2 min; one takes 0.1 s (epoch 1, step 3)" in first.reason
    again = Watched(Run(watched.run.paths, watched.run.info), watched.worker)
    assert again.wait(FLOOR_S) is None, "a new runner has not seen the silence"
    second = again.wait(3)
    assert second is not None
    assert second.key == first.key
    watched.log(at(4))
    assert watched.wait(FLOOR_S) is None
    later = watched.wait(3)
    assert later is not None
    assert later.key != first.key


def test_slow_steps_may_take_longer_and_a_pause_does_not_count(watched: Watched) -> None:
    watched.log(*(at(step, step_s=10.0) for step in (1, 2)), at(3, step_s=3_600.0), telemetry())
    assert watched.wait(10 * FACTOR) is None
    assert watched.wait(3) is not None


@pytest.mark.parametrize(("phase", "split", "times"), [("valid", "validation", 1), ("test", "test", 2)])
def test_an_evaluation_may_take_as_long_as_training_on_its_tokens(
    watched: Watched, phase: str, split: str, times: int
) -> None:
    watched.log(at(20, step_s=2.0))  # the last step of the epoch; the next sample of the phase comes later
    tokens = watched.run.info.corpus.tokens[split] * times
    expected_s = 2.0 * tokens / STEP_TOKENS
    assert FACTOR * expected_s > FLOOR_S
    if phase == "valid":
        watched.log(telemetry(phase="train"))
    else:
        watched.log(epoch(1), telemetry(phase="test", epoch=None))
    watched.run.refresh()
    assert expected_seconds(watched.run) == pytest.approx(expected_s)
    assert watched.wait(FACTOR * expected_s) is None
    found = watched.wait(3)
    assert found is not None
    assert found.reason.startswith("the tests have taken " if times == 2 else "the validation after epoch 1 has taken ")


def test_an_evaluation_within_an_epoch_is_judged_as_one(watched: Watched) -> None:
    watched.log(at(4, step_s=2.0), telemetry(phase="valid"))
    expected_s = 2.0 * watched.run.info.corpus.tokens["validation"] / STEP_TOKENS
    assert watched.wait(FACTOR * expected_s) is None
    found = watched.wait(3)
    assert found is not None
    assert found.reason.startswith("the validation after step 4 of epoch 1 has taken ")
    watched.log(evaluation(1, 4))
    assert watched.wait(FACTOR * expected_s) is None, "its end is progress, before any sample of the next phase"
    watched.log(telemetry())
    watched.run.refresh()
    assert expected_seconds(watched.run) == pytest.approx(2.0)


def test_a_step_after_a_validation_is_judged_as_a_step(watched: Watched) -> None:
    watched.log(at(20), epoch(1), telemetry(epoch=2))
    watched.run.refresh()
    assert expected_seconds(watched.run) == pytest.approx(0.1)


def test_the_speed_of_an_earlier_attempt_does_not_count(watched: Watched) -> None:
    watched.log(at(3), Stopped(epoch=1, step=3), started(attempt=2))
    assert watched.wait(2_000) is None


def test_a_stopped_worker_does_not_count(watched: Watched) -> None:
    watched.log(at(3), telemetry())
    process = psutil.Process(watched.worker.pid)
    watched.worker.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        assert watched.wait(1_000) is None
    finally:
        watched.worker.send_signal(signal.SIGCONT)
    wait_until(lambda: process.status() != psutil.STATUS_STOPPED)
    assert watched.wait(FLOOR_S) is None
    assert watched.wait(3) is not None


def test_time_in_which_the_machine_slept_does_not_count(watched: Watched) -> None:
    watched.log(at(3), telemetry())
    polls = FLOOR_S / MAX_GAP_S
    assert watched.wait(polls * 36_000, poll_s=36_000) is None
    assert watched.wait(3 * MAX_GAP_S) is not None


def test_the_load_of_the_machine_extends_the_limit(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = os.cpu_count() or 1
    monkeypatch.setattr(os, "getloadavg", lambda: (8.0 * cores, 0.0, 0.0))
    watched.log(at(3, step_s=10.0), telemetry())
    assert watched.wait(8 * 10 * FACTOR) is None
    assert watched.wait(3) is not None
    assert stall._overload() == 8.0
