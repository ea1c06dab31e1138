"""The state of a run: one history, whatever was interrupted."""

import math

from factories import STEPS, epoch, finished, progress, queued, started, telemetry
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.runs.events import AnyEvent, Failed, Resumed, Stopped
from lmconsole.runs.state import RunState, Status


def fold(*events: AnyEvent) -> RunState:
    state = RunState()
    state.apply(events)
    return state


def test_status_follows_the_last_event() -> None:
    assert fold(queued()).status is Status.QUEUED
    assert fold(queued(), started()).status is Status.RUNNING
    assert fold(queued(), started(), Stopped(epoch=1, step=0)).status is Status.STOPPED
    assert fold(queued(), started(), Failed(error="x", message="m", hint="h")).status is Status.FAILED
    assert fold(queued(), started(), finished()).status is Status.FINISHED
    assert fold(queued(), started(), Stopped(epoch=1, step=0), queued()).status is Status.QUEUED


def test_resuming_removes_what_comes_after_the_checkpoint() -> None:
    state = fold(
        queued(), started(), progress(1, 2), progress(1, 4), epoch(1), progress(2, 2), progress(2, 4), epoch(2),
        progress(3, 1), queued(), started(attempt=2), Resumed(epoch=2, step=2), progress(2, 3), epoch(2),
    )  # fmt: skip
    assert [e.epoch for e in state.epochs] == [1, 2]
    assert [(p.epoch, p.step) for p in state.progress] == [(1, 2), (1, 4), (2, 2), (2, 3)]
    assert state.position == (3, 0)


def test_starting_over_removes_everything_except_telemetry() -> None:
    state = fold(started(), telemetry(), progress(1, 4), epoch(1), started(attempt=2), Resumed(epoch=1, step=0))
    assert (state.epochs, list(state.progress), len(state.telemetry)) == ([], [], 1)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, STEPS)), max_size=6))
def test_after_any_interruptions_the_history_is_that_of_an_uninterrupted_run(points: list[tuple[int, int]]) -> None:
    """Each attempt resumes from an arbitrary checkpoint and trains to the end; the log has the events of all."""
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
        log += [started(attempt=attempt), Resumed(epoch=point[0], step=point[1]), *train(point)]
    state = fold(*log)
    assert [e.epoch for e in state.epochs] == [1, 2, 3, 4]
    assert [(p.epoch, p.step) for p in state.progress] == whole


def test_the_best_epoch_is_the_first_with_the_lowest_finite_loss() -> None:
    losses = (9.0, 5.0, 5.0, -math.inf, math.nan, None)
    best = fold(*(epoch(n, loss) for n, loss in enumerate(losses, 1))).best_epoch
    assert best is not None
    assert best.epoch == 2
    assert fold(epoch(1, math.nan), epoch(2, None)).best_epoch is None


def test_the_fraction_done_counts_steps_and_epochs() -> None:
    assert fold(queued()).done(2) == 0.0
    assert fold(started(), progress(1, STEPS // 2)).done(2) == 0.25
    assert fold(started(), progress(1, STEPS), epoch(1)).done(2) == 0.5
    assert fold(started(), finished()).done(2) == 1.0


def test_a_later_test_keeps_the_outcome_of_the_training() -> None:
    trained = finished(test_ppl_best=None, test_ppl_final=None)
    history: list[AnyEvent] = [queued(test=False), started(), epoch(1), trained]
    asked: list[AnyEvent] = [queued(), started(attempt=2, device="cuda:0")]
    state = fold(*history, *asked)
    assert (state.status, state.finished, state.done(9), state.seconds_left(9)) == (
        Status.RUNNING, trained, 1.0, None,
    )  # fmt: skip
    assert state.being_tested
    assert state.started is not None
    assert state.latest is not None
    assert (state.started.device, state.latest.device) == ("cpu", "cuda:0")
    for end in (Stopped(epoch=2, step=0), Failed(error="x", message="m", hint="h")):
        state = fold(*history, *asked, end)
        assert (state.status, state.finished, state.damage) == (Status.FINISHED, trained, ())
        assert end in (state.stopped, state.failed)
        assert fold(*history, *asked, end, *asked).failed is None
    tested = finished()
    state = fold(*history, *asked, Failed(error="x", message="m", hint="h"), *asked, tested)
    assert (state.status, state.finished, state.failed, state.damage) == (Status.FINISHED, tested, None, ())
    assert len(state.epochs) == 1
