"""Signals that ask a process to stop cleanly: from people, service managers and batch systems."""

import contextlib
import signal
from collections.abc import Iterator

BATCH_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""SLURM and other batch systems send one of these to every process of a job, some time before they kill it."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *BATCH_SIGNALS)


@contextlib.contextmanager
def hold_back() -> Iterator[None]:
    """Block the signals in this thread. A process that is started here inherits that: it neither dies of such a signal
    nor loses it until it calls ``release``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Let signals through that were held back when this process was started, after it has installed its handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def collect() -> list[int]:
    """Return a list to which each of the signals is added from now on, and those that were held back."""
    received: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: received.append(number))
    release()
    return received
