"""A curve that never grows: points of a long run gathered into a bounded number of buckets, none left out."""

import math
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from lmconsole.runs.events import Progress, number

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
        """Buckets one after the other: a tenth of the memory that as many tuples take."""
        self._per_bucket = 1
        self._last_step = 0.0

    def add(self, event: Progress) -> None:
        """One more ``progress`` event."""
        loss = number(event, "train_loss_nats")
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
        a, b = self, later
        weight = a.weight + b.weight
        if math.isfinite(a.loss_nats) and math.isfinite(b.loss_nats):
            mean = (a.loss_nats * a.weight + b.loss_nats * b.weight) / weight
            low, high = min(a.low_nats, b.low_nats), max(a.high_nats, b.high_nats)
        else:
            finite = a if math.isfinite(a.loss_nats) else b
            mean, low, high = finite.loss_nats, finite.low_nats, finite.high_nats
        odd, events = max(a.odd, b.odd), a.events + b.events
        return _Bucket(b.epochs, b.elapsed_train_s, mean, low, high, odd, events, weight)


_WIDTH = len(_Bucket._fields)
