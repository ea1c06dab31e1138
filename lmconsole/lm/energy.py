"""Energy of training, from readings of a counter at the start and end of each epoch."""

from collections.abc import Callable

from lmconsole.lm.checkpoint import TrainState

MIN_S = 2.0
"""Over a shorter time the difference of two readings is too coarse: the driver updates its counter every 20 to 100
ms."""


class EnergyMeter:
    """Adds the increments of the counter ``read_j``, in joules, to the train state.

    The counter starts from an arbitrary value in every attempt. A reading that is None, or lower than the one before
    (the driver was reloaded), makes the energy of its epoch and of the run unknown.
    """

    def __init__(self, read_j: Callable[[], float | None], state: TrainState) -> None:
        self._read_j = read_j
        self._state = state
        self._last_j: float | None = None
        self._reading = False

    def start_epoch(self) -> None:
        """Start the current epoch, or resume it in the middle. The device must be idle.

        Energy used since the epoch before, mostly by its checkpoint, counts for the run and for no epoch.
        """
        state = self._state
        if state.step == 0:
            state.epoch_energy_j = 0.0
            if state.epoch == 1:
                state.energy_j = 0.0
        used_j = self._used_j()
        if self._reading:
            state.energy_j = _sum(state.energy_j, used_j)
        self._reading = True

    def update(self) -> None:
        """Add the energy used since the last call. The device must be idle.

        Does nothing between epochs, so that a checkpoint from the test phase contains no energy of tests.
        """
        state = self._state
        if state.step == 0:
            return
        used_j = self._used_j()
        state.energy_j = _sum(state.energy_j, used_j)
        state.epoch_energy_j = _sum(state.epoch_energy_j, used_j)

    def epoch_j(self, duration_s: float) -> float | None:
        """Return the joules of the current epoch, which took ``duration_s``; None if unknown."""
        return self._state.epoch_energy_j if duration_s >= MIN_S else None

    def run_j(self) -> float | None:
        """Return the joules of all epochs; None if unknown."""
        return self._state.energy_j if self._state.elapsed_train_s >= MIN_S else None

    def _used_j(self) -> float | None:
        before, self._last_j = self._last_j, self._read_j()
        if before is None or self._last_j is None or self._last_j < before:
            return None
        return self._last_j - before


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
