"""A limit on the work that the host launches ahead of a GPU."""

from collections import deque
from typing import Any, Protocol

import torch

MAX_AHEAD = 16
"""Launches, of steps or evaluation batches, that may be outstanding at once."""
MAX_AHEAD_S = 0.1
"""Seconds of work that may be outstanding at once, where two launches take less."""


class Event(Protocol):
    """A point in a GPU's queue of work, as ``torch.cuda.Event`` is."""

    def synchronize(self) -> None:
        """Wait until the GPU has reached the event."""

    def elapsed_time(self, later: Any, /) -> float:
        """Return the milliseconds between two events that the GPU has reached."""


def record_event(device: str) -> Event | None:
    """Record an event after all work launched so far on ``device``; None on a CPU, which never lags.

    Waiting for the event leaves the processor to other processes.
    """
    if not device.startswith("cuda"):
        return None
    event = torch.cuda.Event(enable_timing=True, blocking=True)
    event.record()
    return event


class LaunchLimiter:
    """Keeps the host at most ``MAX_AHEAD`` launches ahead of a GPU, and fewer where they are slow.

    Launches return at once. Without a limit, reading a loss could take as long as an epoch.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._outstanding: deque[Event] = deque()
        self._last: Event | None = None
        self._allowed = 2

    def after_launch(self) -> None:
        """Wait until another launch may follow the one just made."""
        event = record_event(self._device)
        if event is None:
            return
        self._outstanding.append(event)
        while len(self._outstanding) >= self._allowed:
            done = self._outstanding.popleft()
            done.synchronize()
            if self._last is not None:
                self._allowed = launches_ahead(self._last.elapsed_time(done) / 1000)
            self._last = done


def launches_ahead(launch_s: float) -> int:
    """Return how many launches of ``launch_s`` seconds each may be outstanding: at least two, which keep a GPU busy."""
    return max(2, min(MAX_AHEAD, int(MAX_AHEAD_S / max(launch_s, 1e-9))))
