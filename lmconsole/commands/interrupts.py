"""Signals that ask a command to stop: at first they end it, later they only count as requests."""

import math
import signal
import time
from types import FrameType, TracebackType

from lmconsole.engine.stop_signals import STOP_SIGNALS

SAME_SIGNAL_S = 0.5
"""Two signals within this time count once: some tools signal a process and then its group."""


class Interrupted(BaseException):
    """A signal asked this command to end. Unlike KeyboardInterrupt, no library catches it."""


def raise_interrupted(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal by raising Interrupted."""
    raise Interrupted


class Interrupts:
    """Counter of the signals received within the context. Until ``hold`` is called each raises Interrupted.

    After the first, only SIGINT or the same signal again counts: a batch system sends SIGUSR1 and, later, SIGTERM, and
    the second must not cut short what the first began.
    """

    def __init__(self) -> None:
        self.count = 0
        self._seen: set[int] = set()
        self._last = -math.inf
        self._raising = True
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def hold(self) -> None:
        """Stop raising: from now on signals are only counted."""
        self._raising = False

    def _received(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last < SAME_SIGNAL_S:
            return
        self._last = now
        if not self._seen or number in self._seen or number == signal.SIGINT:
            self.count += 1
        self._seen.add(number)
        if self._raising:
            raise Interrupted
