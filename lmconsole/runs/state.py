"""The event log of a run folded into its present state: one history, whatever was interrupted and repeated."""

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
    """Status of a run. ``LOST``: the log says that it is running, but no worker holds its lock."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost"

    @property
    def active(self) -> bool:
        """Whether the run is waiting or running."""
        return self in (Status.QUEUED, Status.RUNNING)


class RunState:
    """State of a run after the events so far.

    ``epochs`` and ``progress`` hold the history that counts: a ``resumed`` event removes what comes after its point.
    ``telemetry`` keeps the samples of every attempt.
    """

    def __init__(self, recent: int | None = None) -> None:
        """Keep only the ``recent`` latest progress and telemetry events; all of them by default."""
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
        """Apply more events, in the order of the log."""
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
        """``seq`` of the last ``queued`` event; 0 before the first."""
        return self.queued.seq if self.queued else 0

    @property
    def best_epoch(self) -> Epoch | None:
        """Epoch with the lowest finite validation loss, the first of equals; None before there is one."""
        losses = ((epoch.valid_loss_nats, epoch.epoch) for epoch in self.epochs)
        finite = [(loss, number) for loss, number in losses if loss is not None and math.isfinite(loss)]
        return self.epochs[min(finite)[1] - self.epochs[0].epoch] if finite else None

    @property
    def last_epoch(self) -> Epoch | None:
        """Latest complete epoch."""
        return self.epochs[-1] if self.epochs else None

    @property
    def position(self) -> tuple[int, int]:
        """Current epoch, from 1, and the steps known to be done in it."""
        epoch = self.epochs[-1].epoch + 1 if self.epochs else 1
        if self.progress and self.progress[-1].epoch == epoch:
            return epoch, self.progress[-1].step
        return epoch, 0

    def done(self, epochs: int) -> float:
        """Return the fraction, 0 to 1, of a training of ``epochs`` epochs that is done."""
        if self.status is Status.FINISHED:
            return 1.0
        epoch, step = self.position
        within = step / self.progress[-1].steps if step else 0.0
        return min((epoch - 1 + within) / epochs, 1.0)

    @property
    def elapsed_train_s(self) -> float | None:
        """Training time so far; None before the first measurement."""
        last: list[Epoch | Progress] = [*self.epochs[-1:]]
        if self.progress:
            last.append(self.progress[-1])
        return max((event.elapsed_train_s for event in last if event.elapsed_train_s is not None), default=None)

    def seconds_left(self, epochs: int) -> float | None:
        """Estimate the remaining time of a training of ``epochs`` epochs, validation included, from its speed so far;
        None while that is unknown."""
        done, elapsed = self.done(epochs), self.elapsed_train_s
        if not elapsed or done <= 0.0:
            return None
        validation = [epoch.valid_s for epoch in self.epochs if epoch.valid_s is not None]
        per_validation = sum(validation) / len(validation) if validation else 0.0
        return elapsed / done * (1.0 - done) + per_validation * (epochs - len(self.epochs))

    @property
    def train_ppl(self) -> float | None:
        """Train perplexity of the latest complete epoch; not finite if it diverged."""
        return self.epochs[-1].train_ppl if self.epochs else None
