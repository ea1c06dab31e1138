"""When a running run counts as stalled: it takes many times as long as its own speed predicts.

A run is judged in the runner, from its log and the state of its process. The limit is ``FACTOR`` times the time that
its recent speed predicts, times the load of the machine where that is more than its cores, but never less than
``FLOOR_S``. A step is expected to take as long as one of its own, a validation and the tests as long as training
on as many tokens, which is more than they need. The setup has no speed, so it is never judged, and neither is a test
that was asked for later.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from statistics import median_low

import psutil

from lmconsole.errors import StoreError
from lmconsole.formatting import about
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run

FACTOR = 30
"""Multiple of the expected time from which a run counts as stalled."""
FLOOR_S = 120.0
"""Shortest silence that counts: checkpoints, slow disks and busy neighbors delay a step by seconds."""
RECENT = 32
"""Progress events of which the median is the speed of a run: 16 s, or as many steps if they are longer. A pause slows
down only one of them."""
MAX_GAP_S = 2.0
"""Longest time between two checks that counts. If more has passed, this process, its container or the machine slept,
and the run with it."""


@dataclass
class _Silence:
    """Time without progress of one run."""

    position: tuple[object, ...]
    checked_s: float
    """``time.monotonic()`` of the last check."""
    silent_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stall:
    """A stall of a run."""

    key: str
    """Names the position in the log: the same for the same stall under another runner."""
    reason: str


class StallWatch:
    """Measures how long runs have been silent. Call ``check`` about as often as runs are read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silences: dict[str, _Silence] = {}

    def check(self, run: Run) -> Stall | None:
        """Return the stall of ``run``, if it has one now."""
        now_s, position = self._clock(), _position(run.state)
        expected_s = expected_seconds(run) if run.status is Status.RUNNING else None
        if expected_s is None:
            self._silences.pop(run.run, None)
            return None
        silence = self._silences.get(run.run)
        if silence is None or silence.position != position or _is_paused(run):
            self._silences[run.run] = _Silence(position, now_s)
            return None
        silence.silent_s += min(now_s - silence.checked_s, MAX_GAP_S)
        silence.checked_s = now_s
        if silence.silent_s <= max(FACTOR * expected_s * _overload(), FLOOR_S):
            return None
        return Stall(key=f"stalled-{position[0]}", reason=_reason(run.state, silence.silent_s, expected_s))


def expected_seconds(run: Run) -> float | None:
    """Return how long the current step, validation or test should take at the speed of the run's own training; None
    before this attempt has trained, and for one that only tests."""
    state, settings, tokens = run.state, run.info.settings, run.info.corpus.tokens
    began = state.latest.seq if state.latest else 0
    recent = [each for each in islice(reversed(state.progress), RECENT) if each.seq > began]
    speeds = [each.tokens_per_s for each in recent if each.tokens_per_s]
    if not speeds:
        return None
    expected = {
        "train": settings.batch_size * settings.window_tokens,
        "valid": tokens.get("validation", 0),
        "test": 2 * tokens.get("test", 0),  # with the last and with the best weights
    }
    return expected[_phase(state)] / median_low(speeds)


def _phase(state: RunState) -> str:
    """Return ``train``, ``valid`` or ``test``. Samples say so, up to a second late."""
    sample, progress = state.telemetry[-1] if state.telemetry else None, state.progress[-1]
    began = state.latest.seq if state.latest else 0
    phase = sample.phase if sample and sample.seq > began and sample.phase != "setup" else "train"
    validated = state.last_epoch is not None and state.last_epoch.seq > progress.seq
    return "valid" if phase == "train" and progress.step >= progress.steps and not validated else phase


def _position(state: RunState) -> tuple[object, ...]:
    """Return what changes when a run gets on. The first item is a number of an event."""
    events = (state.latest, state.last_validation, state.progress[-1] if state.progress else None)
    last = max((event.seq for event in events if event), default=0)
    return last, state.telemetry[-1].phase if state.telemetry else None


def _is_paused(run: Run) -> bool:
    """Return whether the worker is stopped, by SIGSTOP or a debugger, as far as that is known here."""
    try:
        owner = run.worker()
        if owner is None or not owner.pid:
            return False
        return psutil.Process(owner.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except (StoreError, psutil.Error):
        return False


def _overload() -> float:
    """Return how many threads wait for each core of the machine, at least 1."""
    try:
        return max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)
    except OSError:
        return 1.0


def _reason(state: RunState, silent_s: float, expected_s: float) -> str:
    expected = f"{expected_s:.2g} s" if expected_s < 10 else about(expected_s)
    match _phase(state):
        case "train":
            epoch, step = state.position
            return (
                f"no training step has ended for {about(silent_s)}; one takes {expected} (epoch {epoch}, step {step})"
            )
        case "valid":
            progress = state.progress[-1]
            within = f"step {progress.step:,} of " if progress.step < progress.steps else ""
            what = f"the validation after {within}epoch {progress.epoch} has"
        case _:
            what = "the tests have"
    return f"{what} taken {about(silent_s)}; training on as many tokens takes {expected}"
