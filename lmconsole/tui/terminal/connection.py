"""Recognizing a connection that is too slow for the usual rate of drawing."""

SLOW_SHARE = 0.4
"""Share of a tick spent in blocked writes from which on the tick counts as slow."""
SLOW_TICKS = 4
"""Slow ticks in a row that make a slow connection."""


class SlowConnectionDetector:
    """Counts ticks in which the terminal accepted output slowly."""

    def __init__(self) -> None:
        self._slow_ticks = 0

    def record(self, blocked_s: float, interval_s: float) -> bool:
        """Add a tick of ``interval_s`` seconds, ``blocked_s`` of which went into blocked writes. Return whether the
        connection is slow."""
        self._slow_ticks = self._slow_ticks + 1 if blocked_s > SLOW_SHARE * interval_s else 0
        return self._slow_ticks >= SLOW_TICKS
