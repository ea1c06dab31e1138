"""A run's log folded into what it says now: one history, whatever was interrupted and repeated."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

from lmconsole.runs.events import (
    Epoch,
    Event,
    Failed,
    Finished,
    Progress,
    Queued,
    Resumed,
    Started,
    Stopped,
    Telemetry,
)


class Status(StrEnum):
    """Where a run stands. ``LOST``: the log says running, and no worker lives."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost"

    @property
    def active(self) -> bool:
        """Whether the run is still to come or under way."""
        return self in (Status.QUEUED, Status.RUNNING)


class RunState:
    """The fold of a run's events so far.

    ``epochs`` and ``progress`` hold the one history that counts: a ``resumed`` event takes back what lay beyond it.
    ``telemetry`` keeps every sample of every attempt, since each was measured.
    """

    def __init__(self, recent: int | None = None) -> None:
        """``recent``: how many progress and telemetry events to keep, the newest; all if None."""
        self.status = Status.QUEUED
        self.attempt = 0
        self.started: Started | None = None
        self.epochs: list[Epoch] = []
        self.progress: deque[Progress] = deque(maxlen=recent)
        self.telemetry: deque[Telemetry] = deque(maxlen=recent)
        self.finished: Finished | None = None
        self.stopped: Stopped | None = None
        self.failed: Failed | None = None
        self.queued: Queued | None = None
        self.last_t = ""
        self.seq = 0
        self.damaged = 0
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Queued: self._queued,
            Started: self._started,
            Resumed: self._resumed,
            Progress: self.progress.append,
            Epoch: self.epochs.append,
            Telemetry: self.telemetry.append,
            Finished: self._finished,
            Stopped: self._stopped,
            Failed: self._failed,
        }

    def apply(self, events: Iterable[Event]) -> None:
        """Fold more events, in the order of the log."""
        handlers = self._handlers
        event = None
        for event in events:
            handlers[type(event)](event)
        if event is not None:
            self.seq, self.last_t = event.seq, event.t

    def _queued(self, event: Queued) -> None:
        self.status = Status.QUEUED
        self.queued = event
        self.finished = self.stopped = self.failed = None

    def _started(self, event: Started) -> None:
        self.status = Status.RUNNING
        self.attempt = event.attempt
        self.started = event

    def _resumed(self, event: Resumed) -> None:
        while self.epochs and self.epochs[-1].epoch >= event.epoch:
            self.epochs.pop()
        while self.progress and (self.progress[-1].epoch, self.progress[-1].step) > (event.epoch, event.step):
            self.progress.pop()

    def _finished(self, event: Finished) -> None:
        self.status = Status.FINISHED
        self.finished = event

    def _stopped(self, event: Stopped) -> None:
        self.status = Status.STOPPED
        self.stopped = event

    def _failed(self, event: Failed) -> None:
        self.status = Status.FAILED
        self.failed = event

    @property
    def queued_seq(self) -> int:
        """Number of the last ``queued`` event; 0 before there is one."""
        return self.queued.seq if self.queued else 0

    @property
    def best_epoch(self) -> Epoch | None:
        """The epoch with the lowest finite validation loss, the first of equals."""
        losses = ((epoch.valid_loss_nats, epoch.epoch) for epoch in self.epochs)
        finite = [(loss, number) for loss, number in losses if loss is not None and math.isfinite(loss)]
        return self.epochs[min(finite)[1] - self.epochs[0].epoch] if finite else None

    @property
    def last_epoch(self) -> Epoch | None:
        """The newest complete epoch."""
        return self.epochs[-1] if self.epochs else None

    @property
    def position(self) -> tuple[int, int]:
        """Epoch under way, from 1, and the steps known to be done in it."""
        epoch = self.epochs[-1].epoch + 1 if self.epochs else 1
        if self.progress and self.progress[-1].epoch == epoch:
            return epoch, self.progress[-1].step
        return epoch, 0

    def done(self, epochs: int) -> float:
        """Share of ``epochs`` epochs of training that is done, 0 to 1."""
        if self.status is Status.FINISHED:
            return 1.0
        epoch, step = self.position
        within = step / self.progress[-1].steps if step else 0.0
        return min((epoch - 1 + within) / epochs, 1.0)

    @property
    def elapsed_train_s(self) -> float | None:
        """Seconds of training so far; None before the first measurement."""
        last: list[Epoch | Progress] = [*self.epochs[-1:]]
        if self.progress:
            last.append(self.progress[-1])
        return max((event.elapsed_train_s for event in last if event.elapsed_train_s is not None), default=None)

    def seconds_left(self, epochs: int) -> float | None:
        """Estimate for a run of ``epochs`` epochs under way, from its own pace so far, evaluation included; None before
        it has one."""
        done, elapsed = self.done(epochs), self.elapsed_train_s
        if not elapsed or done <= 0.0:
            return None
        validation = [epoch.valid_s for epoch in self.epochs if epoch.valid_s is not None]
        per_validation = sum(validation) / len(validation) if validation else 0.0
        return elapsed / done * (1.0 - done) + per_validation * (epochs - len(self.epochs))

    @property
    def train_ppl(self) -> float | None:
        """Train perplexity of the newest complete epoch, not finite if it diverged."""
        return self.epochs[-1].train_ppl if self.epochs else None
