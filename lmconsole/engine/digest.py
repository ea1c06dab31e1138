"""The digest: what came of the runs of a queue, for the person who reads it in the morning.

The runner writes it to the store when the queue is empty, and it is the last alert.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lmconsole import formatting
from lmconsole.errors import StoreError, escape_control_characters
from lmconsole.files import atomic_write, read_file
from lmconsole.runs.comparable import comparable
from lmconsole.runs.events import DAMAGED, Name, Number, utc_now
from lmconsole.runs.paths import DIGEST
from lmconsole.runs.permissions import text_of
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import host_name

MAX_BYTES = 2**24
"""Largest digest that is read."""
TEXT_BYTES = 3_500
"""Most bytes of a ready text. Services for messages take 4,096."""
REASON_CHARACTERS = 500
LINE_CHARACTERS = 1_000
RUNS_BYTES = 20_000
"""Most bytes of the runs in an alert. Services that read JSON take 32 KiB."""
MAX_BEST = 5
"""Best runs that are named: one for each group of comparable runs."""

Result = Literal["finished", "diverged", "failed", "stopped", "lost", "queued", "running"]
ORDER: tuple[Result, ...] = ("failed", "lost", "diverged", "stopped", "finished", "queued", "running")
"""Results in the order of the text: the ones first that ask for something to be done."""

Perplexity = Annotated[float, msgspec.Meta(gt=0.0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0)]


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of one run. Perplexities that are unknown or not finite are null."""

    run: Name
    """Id of the run: the name of its folder."""
    experiment: Number
    """Number of the experiment."""
    label: str
    """Name of the experiment."""
    seed: int
    """Seed of initialization, shuffling and dropout."""
    preset: Name
    """Preset from which the settings come."""
    result: Result
    """Outcome: its status, or ``diverged``; that of a later test if it failed or was stopped."""
    best_valid_ppl: Perplexity | None
    """Lowest validation perplexity per target token."""
    best_epoch: Number | None
    """Epoch with the lowest validation perplexity, from 1."""
    test_ppl: Perplexity | None
    """Test perplexity with the weights of the best epoch; null if the run was not tested."""
    train_s: Seconds | None
    """Training time over all attempts in seconds, without setup and evaluation."""
    reason: str | None
    """Cause and advice, if the run failed, was lost, was stopped or diverged."""
    reproduces: Name | None = None
    """Id of the run that this one trains again, to compare the two; null for all other runs."""

    @property
    def name(self) -> str:
        """Name, number and seed for people, on one line."""
        mark = "" if self.reproduces is None else ", reproduction"
        return one_line(f"{self.label} ({self.experiment}), seed {self.seed}{mark}")

    @property
    def shows_test(self) -> bool:
        """Whether texts for people have the test perplexity, even an unknown one."""
        return self.test_ppl is not None or self.result == "finished"


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of the runs of a queue."""

    schema: int = 1
    """Version of this object."""
    time: str
    """When the queue was empty: UTC, ISO 8601."""
    host: str
    """Name of the machine."""
    store: str
    """Absolute path of the store."""
    runs: tuple[RunResult, ...]
    """Outcome of each run of the queue."""
    best: tuple[RunResult, ...]
    """Best finished run of the whole store, so far, among those that can be compared with ``runs``; one for each group
    of comparable runs."""
    wall_s: Seconds | None
    """Time in seconds from the queuing of the first of ``runs`` to the last event of any."""
    train_s: Seconds
    """Training time of ``runs``, in seconds."""

    @property
    def title(self) -> str:
        """Numbers of runs on one line: ``10 finished, 2 failed``."""
        counts = Counter(run.result for run in self.runs)
        return ", ".join(f"{counts[result]:,} {result}" for result in ORDER if counts[result]) or "no runs"

    @property
    def lines(self) -> list[str]:
        """Summary in full lines: numbers, time used, and the best run so far."""
        time = f" in {formatting.seconds(self.wall_s)}" if self.wall_s is not None else ""
        return [
            f"{self.title}{time}; training took {formatting.seconds(self.train_s)}.",
            *(f"Lowest so far, one run and not a claim: {_describe(best)}{self._group(best)}." for best in self.best),
        ]

    @property
    def problems(self) -> list[str]:
        """A line for each run that has not finished, or diverged, with the reason."""
        return [_outcome(run) for run in self._sorted() if run.result != "finished"]

    @property
    def text(self) -> str:
        """The whole digest for people, of at most ``TEXT_BYTES``."""
        finished = [f"finished: {_describe(run)}" for run in self._sorted() if run.result == "finished"]
        return clip_lines([*self.lines, *self.problems, *finished])

    def shortened(self) -> "Digest":
        """Return the digest with as many runs as ``RUNS_BYTES`` allow, those first that need a person."""
        kept, size = [], 0
        for run in self._sorted():
            size += len(msgspec.json.encode(run))
            if size > RUNS_BYTES:
                break
            kept.append(run)
        return msgspec.structs.replace(self, runs=tuple(kept))

    def _sorted(self) -> list[RunResult]:
        return sorted(self.runs, key=lambda run: (ORDER.index(run.result), run.best_valid_ppl or float("inf"), run.run))

    def _group(self, best: RunResult) -> str:
        earlier = "" if any(run.run == best.run for run in self.runs) else ", an earlier run"
        return f"{one_line(f' (preset {best.preset})') if len(self.best) > 1 else ''}{earlier}"


def one_line(text: str) -> str:
    """Return text from a file on one line, without control characters."""
    return escape_control_characters(" ".join(text.split()))


def clip_lines(lines: Iterable[str]) -> str:
    """Return as many of the lines as ``TEXT_BYTES`` allow, and the number of the others."""
    lines = list(lines)
    shown: list[str] = []
    left = TEXT_BYTES - 40
    for line in (line[:LINE_CHARACTERS] for line in lines):
        left -= len(line.encode()) + 1
        if left < 0:
            return "\n".join([*shown, f"… and {formatting.counted(len(lines) - len(shown), 'more line')}"])
        shown.append(line)
    return "\n".join(shown)


def _describe(run: RunResult) -> str:
    test = f", test {formatting.perplexity(run.test_ppl)}" if run.shows_test else ""
    epoch = f" in epoch {run.best_epoch}" if run.best_epoch is not None else ""
    return f"{run.name}: validation perplexity {formatting.perplexity(run.best_valid_ppl)}{epoch}{test}"


def _outcome(run: RunResult) -> str:
    return f"{run.result}: {run.name}{f': {one_line(run.reason)}' if run.reason else ''}"


def result_of(run: Run) -> Result:
    """Return the status of a run in a word; a finished one may have diverged."""
    diverged = run.state.finished is not None and run.state.finished.diverged
    return "diverged" if diverged and run.status is Status.FINISHED else run.status.value


def last_result(run: Run) -> Result:
    """Return the outcome of the last attempt at a run: that of its later test if it failed or was stopped."""
    if run.status is Status.FINISHED and run.state.failed:
        return "failed"
    if run.status is Status.FINISHED and run.state.stopped:
        return "stopped"
    return result_of(run)


def reason_of(run: Run) -> str | None:
    """Return why a run that has ended has no result, and what to do."""
    state = run.state
    does = "tests it" if state.finished else "resumes it"
    again = f"{run.info.resume_command} {does}."
    match last_result(run):
        case "failed" if state.failed:
            text = f"{state.failed.message.rstrip('.')}. {state.failed.hint}"
        case "lost":
            where = "during its test" if state.finished else f"in epoch {state.position[0]}"
            text = f"its process ended without recording why, {where}. {again}"
        case "stopped" if state.stopped:
            where = f"in epoch {state.stopped.epoch}, step {state.stopped.step}"
            text = f"{'before its test ended' if state.finished else where}. {again}"
        case "diverged":
            text = f"its loss was not finite in epoch {max(state.epochs_done, 1)}."
        case _:
            return None
    return text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]}…"


def finite(value: float | None) -> float | None:
    """Return the value if it is known and finite, else None."""
    return value if value is not None and abs(value) != float("inf") and value == value else None


def outcome(run: Run) -> RunResult:
    """Return what came of ``run`` so far."""
    state, info = run.state, run.info
    best = state.best_epoch
    return RunResult(
        run=run.run,
        experiment=info.experiment.id,
        label=info.experiment.label,
        seed=info.seed,
        preset=info.preset,
        result=last_result(run),
        best_valid_ppl=finite(best.valid_ppl if best else None),
        best_epoch=best.epoch if best else None,
        test_ppl=finite(state.finished.test_ppl_best if state.finished else None),
        train_s=state.elapsed_train_s,
        reason=reason_of(run),
        reproduces=info.reproduces,
    )


def summarize(store: Store, runs: Sequence[Run], everything: Iterable[Run]) -> Digest:
    """Return the digest of ``runs``. ``everything`` are the runs of the store, among which is the best so far."""
    return Digest(
        time=utc_now(),
        host=host_name(),
        store=text_of(str(store.root)),
        runs=tuple(map(outcome, runs)),
        best=tuple(outcome(run) for run in _best(runs, list(everything))),
        wall_s=_wall_s(runs),
        train_s=sum(run.state.elapsed_train_s or 0.0 for run in runs),
    )


def _best(runs: Sequence[Run], everything: Sequence[Run]) -> list[Run]:
    """Return the run with the lowest validation loss of each group of comparable runs: those that have finished without
    diverging, and are not damaged."""
    groups: list[Run] = []
    for run in runs:
        if len(groups) < MAX_BEST and not any(comparable(run.info, known.info) for known in groups):
            groups.append(run)
    complete = [
        run
        for run in everything
        if result_of(run) == "finished" and not (run.problem or run.state.damage or run.info.reproduces)
    ]
    found = []
    for group in groups:
        losses = [
            (run.state.best_epoch.valid_loss_nats, run.run, run)
            for run in complete
            if run.state.best_epoch and comparable(run.info, group.info)
        ]
        if losses:
            found.append(min(losses)[2])
    return list({run.run: run for run in found}.values())


def _wall_s(runs: Iterable[Run]) -> float | None:
    times = []
    with contextlib.suppress(ValueError):  # the log is a file that anyone may have written
        for run in runs:
            times += [datetime.fromisoformat(each) for each in (run.state.requested_t, run.state.last_t) if each]
    with contextlib.suppress(TypeError):  # one has no time zone
        return (max(times) - min(times)).total_seconds() if times else None
    return None


def write_digest(store: Store, digest: Digest) -> None:
    """Write the digest to the store in place of the one before. Raises OSError."""
    with atomic_write(_path(store)) as file:
        file.write(msgspec.json.format(msgspec.json.encode(digest), indent=2) + b"\n")


def read_digest(store: Store) -> Digest | None:
    """Return the last digest of the store; None if there is none. Raises StoreError if it cannot be read."""
    path = _path(store)
    try:
        return msgspec.json.decode(read_file(path, MAX_BYTES, follow=False), type=Digest)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    except DAMAGED as error:
        raise StoreError(
            f"{path}: not a digest of lmconsole: {error}", hint="Remove it; the next empty queue writes another one."
        ) from None


def _path(store: Store) -> Path:
    return store.root / DIGEST
