"""The energy of training, from readings of a counter at the edges of epochs."""

from collections.abc import Callable

from lmconsole.lm.checkpoint import Cursor

MIN_S = 2.0
"""Over a shorter time the difference of two readings says little: the driver updates its counter every 20 to 100 ms."""


class EnergyMeter:
    """Adds up in ``cursor`` what the counter ``read_j`` has risen by, in joules.

    The counter starts from an arbitrary value in every attempt. A reading that is None, or lower than the one before it
    (the driver was reloaded), makes the energy of its epoch and of the run unknown.
    """

    def __init__(self, read_j: Callable[[], float | None], cursor: Cursor) -> None:
        self._read_j = read_j
        self._cursor = cursor
        self._last_j: float | None = None
        self._reading = False

    def start_epoch(self) -> None:
        """Begin with the cursor's epoch, or go on in its middle. The device must be idle.

        What was used since the epoch before, mostly by its checkpoint, belongs to the run and to no epoch."""
        cursor = self._cursor
        if cursor.step == 0:
            cursor.epoch_energy_j = 0.0
            if cursor.epoch == 1:
                cursor.energy_j = 0.0
        used_j = self._used_j()
        if self._reading:
            cursor.energy_j = _sum(cursor.energy_j, used_j)
        self._reading = True

    def update(self) -> None:
        """Add what was used since the last call. The device must be idle. Between epochs this does nothing, so that a
        checkpoint made in the test phase holds no energy of tests."""
        cursor = self._cursor
        if cursor.step == 0:
            return
        used_j = self._used_j()
        cursor.energy_j = _sum(cursor.energy_j, used_j)
        cursor.epoch_energy_j = _sum(cursor.epoch_energy_j, used_j)

    def epoch_j(self, seconds: float) -> float | None:
        """Joules of the cursor's epoch, which took so long; None if they are unknown."""
        return self._cursor.epoch_energy_j if seconds >= MIN_S else None

    def run_j(self) -> float | None:
        """Joules of all epochs; None if they are unknown."""
        return self._cursor.energy_j if self._cursor.elapsed_train_s >= MIN_S else None

    def _used_j(self) -> float | None:
        before, self._last_j = self._last_j, self._read_j()
        if before is None or self._last_j is None or self._last_j < before:
            return None
        return self._last_j - before


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
