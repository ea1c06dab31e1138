"""SIGINT and SIGTERM while a command works: first they end it, later they are requests that it can heed in order."""

import math
import signal
import time
from types import FrameType, TracebackType

SAME_S = 0.5
"""Two within this time are one that came by two ways, as from a tool that signals a process and its group."""


class Interrupted(BaseException):
    """A person or the system asked this command to end. Unlike KeyboardInterrupt, no library takes it for its own."""


def interrupted(_number: int, _frame: FrameType | None) -> None:
    """A signal handler that raises Interrupted."""
    raise Interrupted


class Interrupts:
    """Signals received within the context. Until ``hold`` is called each raises Interrupted."""

    def __init__(self) -> None:
        self.count = 0
        self._last = -math.inf
        self._raising = True
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def hold(self) -> None:
        """From here on count only."""
        self._raising = False

    def _received(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last < SAME_S:
            return
        self._last = now
        self.count += 1
        if self._raising:
            raise Interrupted
