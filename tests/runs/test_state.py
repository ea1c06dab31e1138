"""The state of a run: one history, whatever was interrupted."""

import math

import msgspec
from factories import (
    STEP_S,
    STEPS,
    VALID_S,
    epoch,
    evaluation,
    finished,
    progress,
    queued,
    started,
    submission,
    telemetry,
)
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


def test_a_run_that_slurm_starts_again_was_requested_when_a_person_queued_it() -> None:
    times = [f"2026-11-27T12:0{minute}:00.000Z" for minute in range(4)]
    restarts = [0, 1, 2, 0]
    events = [
        msgspec.structs.replace(queued(slurm=submission(restarts=each)), t=t)
        for each, t in zip(restarts, times, strict=True)
    ]
    assert fold(*events[:3]).requested_t == times[0]
    assert fold(*events).requested_t == times[3]
    assert fold(*events[2:3]).requested_t == times[2]  # the first event is lost
    assert fold(*(msgspec.structs.replace(queued(), t=t) for t in times)).requested_t == times[3]


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
    """Each attempt resumes from an arbitrary checkpoint and trains to the end; the log has the events of all.

    Evaluations, after every other step, come before the checkpoint of the same step.
    """
    total = 4
    whole = [(e, s) for e in range(1, total + 1) for s in range(1, STEPS + 1)]

    def train(after: tuple[int, int]) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for e, s in whole:
            if (e, s) > after:
                events.append(progress(e, s))
                if s % 2 == 0 and s < STEPS:
                    events.append(evaluation(e, s))
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
    assert [(e.epoch, e.step) for e in state.evaluations] == [(e, s) for e, s in whole if s % 2 == 0 and s < STEPS]


def test_evaluations_and_ends_of_epochs_are_in_the_order_of_training() -> None:
    """A repeated one takes the place of the first, as where the ``resumed`` between them is damaged."""
    later = evaluation(1, 2, 4.0)
    state = fold(evaluation(1, 2), evaluation(1, 4), epoch(1), evaluation(2, 2), evaluation(1, 4), later)
    assert [event.passes for event in state.validations] == [2 / STEPS, 4 / STEPS, 1.0, 1 + 2 / STEPS]
    assert state.validations[0] is later
    assert state.last_validation is state.evaluations[-1]
    assert fold(evaluation(1, 2), epoch(1)).last_validation == epoch(1)
    assert fold(started()).last_validation is None


def test_the_best_epoch_is_no_evaluation() -> None:
    best = fold(evaluation(1, 4, 1.0), epoch(1, 5.0), evaluation(2, 4, 2.0), epoch(2, 6.0)).best_epoch
    assert best is not None
    assert (best.epoch, best.valid_loss_nats) == (1, 5.0)


def test_the_time_left_counts_evaluations_like_those_so_far() -> None:
    log: list[AnyEvent] = [
        started(),
        progress(1, 2),
        evaluation(1, 2),
        progress(1, 4),
        evaluation(1, 4),
        progress(1, STEPS),
        epoch(1),
    ]
    training_s = STEPS * STEP_S
    assert fold(*log).train_seconds_left(3) == 2 * training_s
    assert fold(*log).seconds_left(3) == 2 * (training_s + 2 * VALID_S + VALID_S)


def test_an_evaluation_whose_perplexity_is_not_that_of_its_loss_is_damage() -> None:
    assert fold(evaluation(1, 2), epoch(1)).damage == ()
    state = fold(evaluation(1, 2), evaluation(2, 4, valid_ppl=3.0), evaluation(2, 6, valid_ppl=3.0))
    assert state.damage == ("loss and perplexity after step 4 of epoch 2 contradict each other",)


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
