"""Folding a log: one history, whatever was interrupted."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lmconsole.runs.events import (
    AnyEvent,
    Epoch,
    Failed,
    Finished,
    Progress,
    Queued,
    Resumed,
    Started,
    Stopped,
    Telemetry,
)
from lmconsole.runs.state import RunState, Status

QUEUED = Queued(devices=("cpu",), jobs=1)
STEPS = 4


def started(attempt: int = 1) -> Started:
    return Started(
        attempt=attempt,
        pid=1,
        host="h",
        device="cpu",
        device_name="CPU",
        device_uuid=None,
        versions={},
        threads=1,
        precision="fp32",
        parameters_total=1,
        parameters_trainable=1,
    )


def progress(epoch: int, step: int) -> Progress:
    return Progress(epoch=epoch, step=step, steps=STEPS, train_loss_nats=1.0, tokens_per_s=1.0, elapsed_train_s=1.0)


def epoch(n: int, valid_ppl: float | None = 10.0) -> Epoch:
    return Epoch(
        epoch=n,
        train_loss_nats=1.0,
        train_ppl=2.7,
        valid_loss_nats=valid_ppl and math.log(valid_ppl),
        valid_ppl=valid_ppl,
        train_s=1.0,
        valid_s=1.0,
        elapsed_train_s=float(n),
    )


FINISHED = Finished(
    test_ppl_final=1.0, test_ppl_best=1.0, best_epoch=1, best_valid_ppl=1.0, setup_s=0.0, wall_s=1.0, diverged=False
)


def fold(*events: AnyEvent) -> RunState:
    state = RunState()
    state.apply(events)
    return state


def test_status_follows_the_last_word() -> None:
    assert fold(QUEUED).status is Status.QUEUED
    assert fold(QUEUED, started()).status is Status.RUNNING
    assert fold(QUEUED, started(), Stopped(epoch=1, step=0)).status is Status.STOPPED
    assert fold(QUEUED, started(), Failed(error="x", message="m", hint="h")).status is Status.FAILED
    assert fold(QUEUED, started(), FINISHED).status is Status.FINISHED
    assert fold(QUEUED, started(), Stopped(epoch=1, step=0), QUEUED).status is Status.QUEUED


def test_resuming_takes_back_what_lies_beyond_the_checkpoint() -> None:
    state = fold(
        QUEUED, started(), progress(1, 2), progress(1, 4), epoch(1), progress(2, 2), progress(2, 4), epoch(2),
        progress(3, 1), QUEUED, started(2), Resumed(epoch=2, step=2), progress(2, 3), epoch(2),
    )  # fmt: skip
    assert [e.epoch for e in state.epochs] == [1, 2]
    assert [(p.epoch, p.step) for p in state.progress] == [(1, 2), (1, 4), (2, 2), (2, 3)]
    assert state.position == (3, 0)


def test_starting_over_takes_everything_back_but_what_was_measured_of_the_machine() -> None:
    state = fold(started(), Telemetry(phase="train"), progress(1, 4), epoch(1), started(2), Resumed(epoch=1, step=0))
    assert (state.epochs, list(state.progress), len(state.telemetry)) == ([], [], 1)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, STEPS)), max_size=6))
def test_after_any_interruptions_the_history_is_that_of_an_undisturbed_run(points: list[tuple[int, int]]) -> None:
    """Attempts die at arbitrary places and resume at any checkpoint before; each trains on from there to the end."""
    total = 4
    whole = [(e, s) for e in range(1, total + 1) for s in range(1, STEPS + 1)]

    def train(after: tuple[int, int]) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for e, s in whole:
            if (e, s) > after:
                events.append(progress(e, s))
                if s == STEPS:
                    events.append(epoch(e))
            elif (e, s) == after and s == STEPS:
                events.append(epoch(e))
        return events

    log: list[AnyEvent] = [started(), *train((1, 0))]
    for attempt, point in enumerate(points, 2):
        log += [started(attempt), Resumed(epoch=point[0], step=point[1]), *train(point)]
    state = fold(*log)
    assert [e.epoch for e in state.epochs] == [1, 2, 3, 4]
    assert [(p.epoch, p.step) for p in state.progress] == whole


def test_the_best_epoch_is_the_first_of_the_lowest_and_never_a_diverged_one() -> None:
    best = fold(epoch(1, 9.0), epoch(2, 5.0), epoch(3, 5.0), epoch(4, None)).best_epoch
    assert best is not None
    assert best.epoch == 2
    assert fold(epoch(1, None)).best_epoch is None


def test_the_share_done_counts_steps_and_epochs() -> None:
    assert fold(QUEUED).done(2) == 0.0
    assert fold(started(), progress(1, 2)).done(2) == 0.25
    assert fold(started(), progress(1, 4), epoch(1)).done(2) == 0.5
    assert fold(started(), FINISHED).done(2) == 1.0
