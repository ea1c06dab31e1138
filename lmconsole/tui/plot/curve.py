"""A curve of bounded size: the points of a long run are averaged in a bounded number of buckets."""

import math
from array import array
from collections.abc import Iterator
from itertools import chain

import msgspec

from lmconsole.runs.events import Progress

MAX_BUCKETS = 1024
"""More than the dots side by side in the plot of any terminal."""


class Point(msgspec.Struct, frozen=True, gc=False):
    """A point of a curve. A struct, because thousands are made each time that curves are drawn."""

    epochs: float
    """Passes over the train split so far."""
    elapsed_train_s: float | None
    """None if unknown."""
    loss_nats: float
    """Mean of the losses in this bucket; may be NaN or infinite."""
    low_nats: float
    """Lowest of the losses in this bucket."""
    high_nats: float
    """Highest of the losses in this bucket."""
    non_finite: bool
    """Whether a loss in this bucket was NaN or infinite; such losses are left out of the mean."""


class Curve:
    """Train losses in at most ``MAX_BUCKETS`` buckets.

    When there are more, neighboring buckets are merged, weighted by the steps they cover. One thread may append while
    another iterates: each append is a single change of the array.
    """

    def __init__(self) -> None:
        self._numbers = array("d")
        """Fields of all buckets, one bucket after the other: a fifth of the memory of as many tuples."""
        self._per_bucket = 1
        self._last_epochs = 0.0

    def add(self, event: Progress) -> None:
        """Append the train loss of a ``progress`` event, if it has one."""
        loss_nats = event.train_loss_nats
        if loss_nats is None:
            return
        epochs = event.epoch - 1 + event.step / event.steps
        weight = max(epochs - self._last_epochs, 0.0) or 1.0 / event.steps
        self._last_epochs = epochs
        new = _Bucket.of(epochs, event.elapsed_train_s, loss_nats, weight)
        if self._numbers and (last := _Bucket(*self._numbers[-_WIDTH:])).events < self._per_bucket:
            self._numbers[-_WIDTH:] = array("d", msgspec.structs.astuple(last.merged(new)))
            return
        if len(self) >= MAX_BUCKETS:
            buckets = self._buckets()
            merged = [left.merged(right) for left, right in zip(buckets[::2], buckets[1::2], strict=True)]
            self._numbers = array("d", chain.from_iterable(map(msgspec.structs.astuple, merged)))
            self._per_bucket *= 2
        self._numbers.extend(array("d", msgspec.structs.astuple(new)))

    def _buckets(self) -> list["_Bucket"]:
        numbers = iter(self._numbers[:])
        return [_Bucket(*values) for values in zip(*[numbers] * _WIDTH, strict=True)]

    def __len__(self) -> int:
        return len(self._numbers) // _WIDTH

    def __iter__(self) -> Iterator[Point]:
        return iter([bucket.point for bucket in self._buckets()])


class _Bucket(msgspec.Struct, frozen=True, gc=False):
    """A point, the number of events in it, and the weight of those whose losses are finite."""

    epochs: float
    elapsed_train_s: float
    loss_nats: float
    low_nats: float
    high_nats: float
    non_finite: float
    events: float
    weight: float

    @classmethod
    def of(cls, epochs: float, elapsed_train_s: float, loss_nats: float, weight: float) -> "_Bucket":
        """Return the bucket of one event."""
        non_finite = not math.isfinite(loss_nats)
        weight = 0.0 if non_finite else weight
        return cls(epochs, elapsed_train_s, loss_nats, loss_nats, loss_nats, float(non_finite), 1.0, weight)

    @property
    def point(self) -> Point:
        """The point to draw."""
        return Point(
            self.epochs, self.elapsed_train_s, self.loss_nats, self.low_nats, self.high_nats, bool(self.non_finite)
        )

    def merged(self, later: "_Bucket") -> "_Bucket":
        """Return both buckets as one, at the x values of the later one."""
        weight = self.weight + later.weight
        if math.isfinite(self.loss_nats) and math.isfinite(later.loss_nats):
            mean = (self.loss_nats * self.weight + later.loss_nats * later.weight) / weight
            low, high = min(self.low_nats, later.low_nats), max(self.high_nats, later.high_nats)
        else:
            finite = self if math.isfinite(self.loss_nats) else later
            mean, low, high = finite.loss_nats, finite.low_nats, finite.high_nats
        non_finite, events = max(self.non_finite, later.non_finite), self.events + later.events
        return _Bucket(later.epochs, later.elapsed_train_s, mean, low, high, non_finite, events, weight)


_WIDTH = len(_Bucket.__struct_fields__)
