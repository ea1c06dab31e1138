"""A curve that never grows: points of a long run gathered into a bounded number of buckets, none left out."""

import math
from collections.abc import Iterator
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
    by the steps they stand for. Appending and reading may happen in two threads."""

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []
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
        if self._buckets and self._buckets[-1].events < self._per_bucket:
            self._buckets[-1] = self._buckets[-1].joined(_Bucket.of(epochs, event.elapsed_train_s, loss, weight))
            return
        if len(self._buckets) >= MAX_BUCKETS:
            pairs = zip(self._buckets[::2], self._buckets[1::2], strict=True)
            self._buckets = [left.joined(right) for left, right in pairs]
            self._per_bucket *= 2
        self._buckets.append(_Bucket.of(epochs, event.elapsed_train_s, loss, weight))

    def __len__(self) -> int:
        return len(self._buckets)

    def __iter__(self) -> Iterator[Point]:
        return iter([bucket.point for bucket in self._buckets])


class _Bucket(NamedTuple):
    point: Point
    events: int
    weight: float
    """Of the losses that are finite."""

    @classmethod
    def of(cls, epochs: float, elapsed_train_s: float, loss: float, weight: float) -> "_Bucket":
        odd = not math.isfinite(loss)
        return cls(Point(epochs, elapsed_train_s, loss, loss, loss, odd), 1, 0.0 if odd else weight)

    def joined(self, later: "_Bucket") -> "_Bucket":
        """Both as one, at the place of the later. A loss that is not finite is remembered and not averaged."""
        a, b = self.point, later.point
        weight = self.weight + later.weight
        if math.isfinite(a.loss_nats) and math.isfinite(b.loss_nats):
            mean = (a.loss_nats * self.weight + b.loss_nats * later.weight) / weight
            low, high = min(a.low_nats, b.low_nats), max(a.high_nats, b.high_nats)
        else:
            finite = a if math.isfinite(a.loss_nats) else b
            mean, low, high = finite.loss_nats, finite.low_nats, finite.high_nats
        odd = a.odd or b.odd
        return _Bucket(Point(b.epochs, b.elapsed_train_s, mean, low, high, odd), self.events + later.events, weight)
