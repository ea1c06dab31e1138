"""The event log of a run folded into its present state: one history, whatever was interrupted and repeated."""

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from lmconsole import formatting
from lmconsole.runs.event_reader import EventReader, LogDamage
from lmconsole.runs.events import (
    AnyEvent,
    Epoch,
    Evaluation,
    Event,
    Failed,
    Finished,
    Progress,
    Queued,
    Resumed,
    Started,
    Stopped,
    Telemetry,
    Validation,
    perplexity,
)

AGREEMENT = 1e-9
"""Relative difference up to which two values that the log states twice are equal."""


class Status(StrEnum):
    """Status of a run. ``lost``: the log says that it is running, but no worker holds its lock."""

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

    ``epochs``, ``evaluations`` and ``progress`` hold the history that counts: a ``resumed`` event removes what comes
    after its point. Epochs and evaluations are in the order of training, with gaps where the log is damaged; of two at
    the same point the later counts.
    ``telemetry`` keeps the samples of every attempt.
    """

    def __init__(self, recent: int | None = None) -> None:
        """Keep only the ``recent`` latest progress and telemetry events; all of them by default."""
        self.status = Status.QUEUED
        self.attempt = 0
        self.started: Started | None = None
        """Latest attempt at the training."""
        self.latest: Started | None = None
        """Latest attempt: another than ``started`` in a run that is tested later."""
        self.epochs: list[Epoch] = []
        self.evaluations: list[Evaluation] = []
        self.progress: deque[Progress] = deque(maxlen=recent)
        self.telemetry: deque[Telemetry] = deque(maxlen=recent)
        self.finished: Finished | None = None
        """Outcome of the training, and of the tests if there were any. It stays while the run is tested later."""
        self.stopped: Stopped | None = None
        """Stop of the last attempt; of a finished run, that of its later test."""
        self.failed: Failed | None = None
        """Failure of the last attempt; of a finished run, that of its later test."""
        self.queued: Queued | None = None
        self.requested_t = ""
        """When a person last queued the run: UTC, ISO 8601. SLURM may have started it again since."""
        self.first_place = 0
        """Place in the queue that the run was given first; 0 before that, and in runs of version 0.1.0."""
        self.last_t = ""
        self.seq = 0
        self.checkpoints_set_aside = 0
        """Checkpoints that no attempt could use."""
        self._log_damage = LogDamage()
        self._damage: tuple[str, ...] | None = None
        """Value of ``damage``; None until it is asked for."""
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Queued: self._queued,
            Started: self._started,
            Resumed: self._resumed,
            Progress: self.progress.append,
            Evaluation: lambda event: _insert(self.evaluations, event),
            Epoch: lambda event: _insert(self.epochs, event),
            Telemetry: self.telemetry.append,
            Finished: self._finished,
            Stopped: self._stopped,
            Failed: self._failed,
        }

    def read(self, reader: EventReader) -> Sequence[AnyEvent]:
        """Apply the new events of a log, note what is damaged in it, and return the events.

        Raises:
            FileNotFoundError: the log does not exist.
            StoreError: it cannot be read.
        """
        events = reader.read_new()
        self.apply(events)
        if reader.damage is not self._log_damage:
            self._log_damage, self._damage = reader.damage, None
        if self.damaged or self._log_damage.missing:
            self._begin_unseen(reader)
        return events

    def apply(self, events: Iterable[Event]) -> None:
        """Apply more events, in the order of the log."""
        handlers = self._handlers
        event = None
        for event in events:
            handlers[type(event)](event)
        if event is not None:
            self.seq, self.last_t = event.seq, event.t
            self._damage = None

    def restore(self, events: Iterable[Event], reader: EventReader) -> None:
        """Apply the events that are kept of a log without damage, which ``reader`` goes on with."""
        self.apply(events)
        self._log_damage, self._damage = reader.damage, ()

    def _begin_unseen(self, reader: EventReader) -> None:
        """Note that a queued run has begun if its damaged log goes on after ``queued``: ``started`` cannot be read."""
        waits = self.status is Status.QUEUED and self.queued is not None
        if waits and (reader.skipped_last or reader.highest != self.queued_seq):
            self.status = Status.RUNNING
            self.attempt += 1

    def _queued(self, event: Queued) -> None:
        self.status = Status.QUEUED
        if self.queued is None:
            self.first_place = event.place
        if self.queued is None or event.slurm is None or not event.slurm.restarts:
            self.requested_t = event.t
        self.queued = event
        self.stopped = self.failed = None

    def _started(self, event: Started) -> None:
        self.status = Status.RUNNING
        self.attempt = event.attempt
        self.latest = event
        if self.finished is None:
            self.started = event
        self.checkpoints_set_aside += event.checkpoints_set_aside

    def _resumed(self, event: Resumed) -> None:
        self.finished, self.started = None, self.latest  # training goes on
        while self.epochs and self.epochs[-1].epoch >= event.epoch:
            self.epochs.pop()
        while self.evaluations and _point(self.evaluations[-1]) > (event.epoch, event.step):
            self.evaluations.pop()
        while self.progress and (self.progress[-1].epoch, self.progress[-1].step) > (event.epoch, event.step):
            self.progress.pop()

    def _finished(self, event: Finished) -> None:
        self.status = Status.FINISHED
        self.finished = event
        self.stopped = self.failed = None

    def _stopped(self, event: Stopped) -> None:
        self.status = Status.STOPPED if self.finished is None else Status.FINISHED
        self.stopped = event

    def _failed(self, event: Failed) -> None:
        self.status = Status.FAILED if self.finished is None else Status.FINISHED
        self.failed = event

    @property
    def wants_test(self) -> bool:
        """Whether the run is tested at its end, as it was last queued."""
        return self.queued is None or self.queued.test

    @property
    def being_tested(self) -> bool:
        """Whether the run has finished, and is queued or running only to be tested."""
        return self.finished is not None and self.status.active

    @property
    def queued_seq(self) -> int:
        """``seq`` of the last ``queued`` event; 0 before the first."""
        return self.queued.seq if self.queued else 0

    @property
    def damaged(self) -> int:
        """Number of lines of the log that were skipped."""
        return self._log_damage.skipped

    @property
    def log_damaged(self) -> bool:
        """Whether lines of the log are damaged, missing or repeated."""
        return self._log_damage != LogDamage()

    @property
    def damage(self) -> tuple[str, ...]:
        """Phrases that say what is damaged and where; empty if nothing is known to be.

        A result of such a run is not a complete one. A number that the log states only once, such as a time, can
        change without being noticed.
        """
        if self._damage is None:
            self._damage = (*self._log_damage.describe(), *self._contradictions())
        return self._damage

    def _contradictions(self) -> Iterator[str]:
        numbers = [epoch.epoch for epoch in self.epochs]
        missing = sorted(set(range(1, numbers[-1])).difference(numbers)) if numbers else []
        if missing:
            yield f"{formatting.counted(len(missing), 'epoch')} missing, first epoch {missing[0]:,}"
        differing = [epoch.epoch for epoch in self.epochs if not _agrees(epoch)]
        if differing:
            yield f"loss and perplexity of epoch {differing[0]:,} contradict each other"
        for evaluation in [each for each in self.evaluations if not _agrees(each)][:1]:
            where = f"step {evaluation.step:,} of epoch {evaluation.epoch:,}"
            yield f"loss and perplexity after {where} contradict each other"
        finished, best = self.finished, self.best_epoch
        if finished is not None and finished.best_epoch is not None:
            stated = finished.best_epoch, finished.best_valid_ppl
            found = (best.epoch, best.valid_ppl) if best else (None, None)
            if stated[0] != found[0] or not _equal(*[ppl for _, ppl in (stated, found)]):
                yield f"best epoch {_name(*stated)} when it finished, {_name(*found)} in the log"
        if self.checkpoints_set_aside:
            yield f"{formatting.counted(self.checkpoints_set_aside, 'damaged checkpoint')} set aside"

    @property
    def best_epoch(self) -> Epoch | None:
        """Epoch with the lowest finite validation loss, the first of equals; None before there is one."""
        losses = ((epoch.valid_loss_nats, epoch.epoch, epoch) for epoch in self.epochs)
        finite = [(loss, number, epoch) for loss, number, epoch in losses if loss is not None and math.isfinite(loss)]
        return min(finite)[2] if finite else None

    @property
    def last_epoch(self) -> Epoch | None:
        """Latest complete epoch."""
        return self.epochs[-1] if self.epochs else None

    @property
    def validations(self) -> list[Validation]:
        """Evaluations within epochs and at their ends, in the order of training."""
        if not self.evaluations:
            return list(self.epochs)
        return sorted([*self.evaluations, *self.epochs], key=lambda event: event.passes)

    @property
    def last_validation(self) -> Validation | None:
        """Latest of ``validations``."""
        last: list[Validation] = [*self.evaluations[-1:], *self.epochs[-1:]]
        return max(last, key=lambda event: event.passes, default=None)

    @property
    def epochs_done(self) -> int:
        """Number of the latest complete epoch, 0 before it. ``epochs`` can be fewer, if the log is damaged."""
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def position(self) -> tuple[int, int]:
        """Current epoch, from 1, and the steps known to be done in it."""
        epoch = self.epochs_done + 1
        if self.progress and self.progress[-1].epoch == epoch:
            return epoch, self.progress[-1].step
        return epoch, 0

    def done(self, epochs: int) -> float:
        """Return the fraction, 0 to 1, of a training of ``epochs`` epochs that is done."""
        if self.finished is not None:
            return 1.0
        epoch, step = self.position
        within = min(step / self.progress[-1].steps, 1.0) if step else 0.0
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
        None while that is unknown, and for a test."""
        if self.finished is not None:
            return 0.0 if self.status is Status.FINISHED else None
        done, training = self.done(epochs), self.train_seconds_left(epochs)
        if training is None:
            return None
        validation = [epoch.valid_s for epoch in self.epochs if epoch.valid_s is not None]
        per_validation = sum(validation) / len(validation) if validation else 0.0
        evaluations = sum(evaluation.valid_s for evaluation in self.evaluations) / done * (1.0 - done)
        return training + evaluations + per_validation * max(epochs - self.epochs_done, 0)

    def train_seconds_left(self, epochs: int) -> float | None:
        """Estimate the remaining training time, without validation, as ``seconds_left`` does."""
        done, elapsed = self.done(epochs), self.elapsed_train_s
        return elapsed / done * (1.0 - done) if elapsed and done > 0.0 else None

    @property
    def train_ppl(self) -> float | None:
        """Train perplexity of the latest complete epoch; not finite if it diverged."""
        return self.epochs[-1].train_ppl if self.epochs else None


V = TypeVar("V", Evaluation, Epoch)


def _insert(events: list[V], event: V) -> None:
    """Insert ``event`` in the order of training, in place of one at the same point."""
    if not events or _point(event) > _point(events[-1]):
        events.append(event)
        return
    index = bisect.bisect_left(events, _point(event), key=_point)
    same = _point(events[index]) == _point(event)
    events[index : index + same] = [event]


def _point(event: Validation) -> tuple[int, int]:
    """Return a point of training: epoch, and steps done in it; 0 for those of a whole epoch."""
    return event.epoch, event.step if isinstance(event, Evaluation) else 0


def _agrees(event: Validation) -> bool:
    """Return whether the perplexities of an event are those of its losses."""
    pairs = [(event.valid_loss_nats, event.valid_ppl)]
    if isinstance(event, Epoch):
        pairs.append((event.train_loss_nats, event.train_ppl))
    return all(loss is None or ppl is None or _equal(perplexity(loss), ppl) for loss, ppl in pairs)


def _equal(one: float | None, other: float | None) -> bool:
    """Return whether two values are equal, NaN included; an unknown one equals any."""
    if one is None or other is None or (math.isnan(one) and math.isnan(other)):
        return True
    return math.isclose(one, other, rel_tol=AGREEMENT)


def _name(epoch: int | None, ppl: float | None) -> str:
    return "unknown" if epoch is None else f"{epoch:,} with a valid ppl of {formatting.perplexity(ppl)}"
