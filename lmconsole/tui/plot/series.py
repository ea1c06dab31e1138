"""A curve that never grows: points of a long run gathered into a bounded number of buckets, none left out."""

import math
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from lmconsole.runs.events import Progress

MAX_BUCKETS = 1024
"""More than the dots that any terminal's plot has side by side."""


class Point(NamedTuple):
    """A value on a curve. ``loss_nats`` may be NaN or infinite."""

    epochs: float
    """Passes over the train split so far."""
    elapsed_train_s: float
    loss_nats: float
    low_nats: float
    """The lowest of the losses gathered here; ``loss_nats`` where it is one alone."""
    high_nats: float
    odd: bool
    """Whether one of the losses gathered here was not finite; such losses have no part in the mean."""


class Curve:
    """Train losses as they come, at most ``MAX_BUCKETS`` of them: when there are more, neighbours are joined, weighted
    by the steps they stand for. Appending and reading may happen in two threads: an append is one change."""

    def __init__(self) -> None:
        self._numbers = array("d")
        """Buckets one after the other: a fifth of the memory that as many tuples take."""
        self._per_bucket = 1
        self._last_step = 0.0

    def add(self, event: Progress) -> None:
        """One more ``progress`` event."""
        loss = event.train_loss_nats
        if loss is None:
            return
        epochs = event.epoch - 1 + event.step / event.steps
        weight = max(epochs - self._last_step, 0.0) or 1.0 / event.steps
        self._last_step = epochs
        new = _Bucket.of(epochs, event.elapsed_train_s, loss, weight)
        if self._numbers and (last := _Bucket(*self._numbers[-_WIDTH:])).events < self._per_bucket:
            self._numbers[-_WIDTH:] = array("d", last.joined(new))
            return
        if len(self) >= MAX_BUCKETS:
            buckets = self._buckets()
            joined = [left.joined(right) for left, right in zip(buckets[::2], buckets[1::2], strict=True)]
            self._numbers = array("d", chain.from_iterable(joined))
            self._per_bucket *= 2
        self._numbers.extend(array("d", new))

    def _buckets(self) -> list["_Bucket"]:
        numbers = iter(self._numbers[:])
        return [_Bucket(*values) for values in zip(*[numbers] * _WIDTH, strict=True)]

    def __len__(self) -> int:
        return len(self._numbers) // _WIDTH

    def __iter__(self) -> Iterator[Point]:
        return iter([bucket.point for bucket in self._buckets()])


class _Bucket(NamedTuple):
    """A point, the events it stands for, and the weight of those of them whose losses are finite."""

    epochs: float
    elapsed_train_s: float
    loss_nats: float
    low_nats: float
    high_nats: float
    odd: float
    events: float
    weight: float

    @classmethod
    def of(cls, epochs: float, elapsed_train_s: float, loss: float, weight: float) -> "_Bucket":
        odd = not math.isfinite(loss)
        return cls(epochs, elapsed_train_s, loss, loss, loss, odd, 1.0, 0.0 if odd else weight)

    @property
    def point(self) -> Point:
        return Point(self.epochs, self.elapsed_train_s, self.loss_nats, self.low_nats, self.high_nats, bool(self.odd))

    def joined(self, later: "_Bucket") -> "_Bucket":
        """Both as one, at the place of the later. A loss that is not finite is remembered and not averaged."""
        weight = self.weight + later.weight
        if math.isfinite(self.loss_nats) and math.isfinite(later.loss_nats):
            mean = (self.loss_nats * self.weight + later.loss_nats * later.weight) / weight
            low, high = min(self.low_nats, later.low_nats), max(self.high_nats, later.high_nats)
        else:
            finite = self if math.isfinite(self.loss_nats) else later
            mean, low, high = finite.loss_nats, finite.low_nats, finite.high_nats
        odd, events = max(self.odd, later.odd), self.events + later.events
        return _Bucket(later.epochs, later.elapsed_train_s, mean, low, high, odd, events, weight)


_WIDTH = len(_Bucket._fields)
