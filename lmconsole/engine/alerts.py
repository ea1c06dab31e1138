"""Alerts: a program of the user is given one JSON object for each event that asks for attention.

The runner gives alerts for runs whose user asked for them with ``--on-event`` (``runs/permissions.py``), each once. One
program runs at a time, with a time limit. It never delays a run or the queue.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast

import msgspec

from lmconsole.engine.digest import Digest, RunResult, clip_lines, finite, last_result, one_line, outcome, reason_of
from lmconsole.engine.processes import LimitedProgram
from lmconsole.engine.stall import StallWatch
from lmconsole.errors import escape_json
from lmconsole.formatting import counted, perplexity, seconds
from lmconsole.runs.events import utc_now
from lmconsole.runs.permissions import Permission, Permissions, text_of
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import host_name

LIMIT_S = 30.0
"""Time after which a program is killed."""
CLOSE_LIMIT_S = 90.0
"""Time for all alerts that are left when the queue is empty."""
POLL_S = 0.05
TITLE_CHARACTERS = 60
"""Characters of an experiment's name in a title."""

AlertEvent = Literal["stalled", "diverged", "lost", "failed", "stopped", "finished", "digest"]


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """JSON object that the program of `run --on-event` reads from standard input. Unknown values are null, and so are
    all values of a run in a ``digest``."""

    schema: int = 1
    """Version of this object; it rises if a field changes its meaning."""
    event: AlertEvent
    """Kind of the alert."""
    time: str
    """When the alert was made: UTC, ISO 8601."""
    host: str
    """Name of the machine."""
    store: str
    """Absolute path of the store."""
    title: str
    """Summary for people, on one line."""
    text: str
    """Details and advice for people: at most 3,500 bytes, without control characters except line feeds."""
    run: str | None = None
    """Id of the run: the name of its folder in the store."""
    experiment: int | None = None
    """Number of the experiment."""
    label: str | None = None
    """Name of the experiment."""
    seed: int | None = None
    """Seed of initialization, shuffling and dropout."""
    preset: str | None = None
    """Preset from which the settings come."""
    epoch: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Current epoch, from 1; not above ``epochs``."""
    epochs: int | None = None
    """Epochs that the run was to have."""
    train_ppl: float | None = None
    """Train perplexity of the last complete epoch. Null if it is not finite; so are the other perplexities."""
    valid_ppl: float | None = None
    """Validation perplexity of the last complete epoch."""
    best_valid_ppl: float | None = None
    """Lowest validation perplexity so far."""
    best_epoch: int | None = None
    """Epoch with the lowest validation perplexity, from 1."""
    test_ppl: float | None = None
    """Test perplexity with the weights of the best epoch. Null if the run was not tested."""
    train_s: float | None = None
    """Training time over all attempts in seconds, without setup and evaluation."""
    reason: str | None = None
    """Cause and advice; null for ``finished``."""
    digest: Digest | None = None
    """Outcome of the runs of the queue, as many as fit into 20 kB; only in a ``digest``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    """An alert that waits for its program."""

    alert: Alert
    program: tuple[str, ...]
    cwd: str
    permission: Permission | None = None
    """Permission in which the alert is marked as given; None for a digest."""
    key: str = ""

    @property
    def name(self) -> str:
        """Name in the runner's log."""
        return f"{self.alert.run or self.alert.store}: alert {self.alert.event}"


class Alerts:
    """Gives the alerts of one store, for its runner."""

    def __init__(
        self, store: Store, permissions: Permissions, log: Callable[[str], None], watch: StallWatch | None = None
    ) -> None:
        self._store = store
        self._permissions = permissions
        self._log = log
        self._stalls = watch or StallWatch()
        self._watched: dict[str, Permission] = {}
        """Permissions of the runs that alerts are given for, by run."""
        self._pending: deque[_Pending] = deque()
        self._seen: set[tuple[str, int, str]] = set()
        """Alerts that are pending or given, by run, number of its ``queued`` event, and key."""
        self._running: tuple[_Pending, LimitedProgram] | None = None

    def resume(self) -> None:
        """Find runs that may have ended unseen, as while no runner was at work. Raises StoreError."""
        saved = {permission.run for permission in self._permissions.saved() if permission.after.on_event}
        for run in self._store.runs() if saved else []:
            if text_of(run.run) in saved and (permission := self._permissions.read(run)):
                self._watched[run.run] = permission

    def check(self, runs: Iterable[Run], own: Collection[str]) -> None:
        """Note which alerts are due, and start the next one.

        ``own`` are runs whose workers the runner has started and not seen end: none is lost, since the runner will
        record how it ended.
        """
        for run in runs:
            permission = None if run.problem else self._permission(run)
            if permission is not None and (run.run, permission.queued_seq, run.status.value) not in self._seen:
                for event, key, reason in self._due(run, permission.queued_seq, own):
                    self._add(run, permission, event, key, reason)
        self.poll()

    def _permission(self, run: Run) -> Permission | None:
        """Return the permission of a run that alerts are given for. A run that has ended is known from before."""
        if run.status.active:
            found = self._permissions.find(run)
            if found is None or not found.after.on_event:
                self._watched.pop(run.run, None)
                return None
            self._watched[run.run] = found
            return found
        known = self._watched.get(run.run)
        return known if known is not None and known.queued_seq == run.state.queued_seq else None

    def _due(self, run: Run, since: int, own: Collection[str]) -> Iterator[tuple[AlertEvent, str, str | None]]:
        """Yield event, key and reason of each alert that the state of ``run`` asks for, given or not."""
        if where := _divergence(run.state, since):
            yield "diverged", "diverged", where
        match run.status:
            case Status.RUNNING:
                if stall := self._stalls.check(run):
                    yield "stalled", stall.key, f"{stall.reason}. {_stall_advice(run)}"
            case Status.LOST if run.run in own:
                pass
            case Status.LOST | Status.FAILED | Status.STOPPED as status:
                yield cast(AlertEvent, status.value), status.value, reason_of(run)
            case Status.FINISHED:
                result = last_result(run)
                if result in ("failed", "stopped"):
                    yield cast(AlertEvent, result), result, reason_of(run)
                else:
                    yield "finished", "finished", None

    def _add(self, run: Run, permission: Permission, event: AlertEvent, key: str, reason: str | None) -> None:
        seen = run.run, permission.queued_seq, key
        if seen in self._seen:
            return
        self._seen.add(seen)
        if key in permission.given:
            return
        after = permission.after
        alert = describe(run, event, reason, text_of(str(self._store.root)))
        self._pending.append(
            _Pending(alert=alert, program=after.on_event, cwd=after.cwd, permission=permission, key=key)
        )

    def add_digest(self, digest: Digest, permissions: Iterable[Permission]) -> None:
        """Give the digest to each program that the users of these runs asked for, after all other alerts."""
        alert = Alert(
            event="digest",
            time=digest.time,
            host=digest.host,
            store=digest.store,
            title=one_line(f"{digest.host}: {digest.title}"),
            text=digest.text,
            digest=digest.shortened(),
        )
        wanted = ((each.after.on_event, each.after.cwd) for each in permissions if each.after.on_event)
        self._pending += [_Pending(alert=alert, program=program, cwd=cwd) for program, cwd in dict.fromkeys(wanted)]

    def mark_pending(self) -> None:
        """Mark all alerts as given that are left. Call it before another runner can find them due."""
        for item in self._pending:
            self._mark(item)
        self._pending = deque(replace(item, permission=None) for item in self._pending)

    def poll(self) -> bool:
        """See to the program that is running, or start the next one. Return whether anything is left to do."""
        if self._running is not None:
            item, program = self._running
            ended = program.poll()
            if ended is None:
                return True
            self._running = None
            self._log(f"{item.name}: {ended or 'given'}")
        if self._pending:
            item = self._pending.popleft()
            self._mark(item)
            try:
                data = escape_json(msgspec.json.encode(item.alert).decode()).encode() + b"\n"
                self._running = item, LimitedProgram(item.program, item.cwd, data, LIMIT_S)
            except OSError as error:
                self._log(f"{item.name}: {item.program[0]} cannot be started: {error}")
        return self._running is not None or bool(self._pending)

    def _mark(self, item: _Pending) -> None:
        """Save that an alert is given before it is, so that it is given once whatever happens to this process."""
        if item.permission is None:
            return
        try:
            current = self._watched.get(item.permission.run, item.permission)
            if current.queued_seq != item.permission.queued_seq:
                current = item.permission
            self._watched[item.permission.run] = self._permissions.add_given(current, item.key)
        except FileNotFoundError:  # the queue is empty, or the run was queued again: nothing can repeat the alert
            pass
        except OSError as error:  # better twice than never: the disk may be what the alert is about
            self._log(f"{item.name}: cannot be marked as given: {error.strerror}")

    def close(self) -> None:
        """Give what is left, within ``CLOSE_LIMIT_S``. Nothing else may depend on this process any more."""
        deadline_s = time.monotonic() + CLOSE_LIMIT_S
        while self.poll():
            if time.monotonic() > deadline_s:
                left = len(self._pending) + (self._running is not None)
                if self._running is not None:
                    self._running[1].kill()
                    self._running = None
                self._log(f"{counted(left, 'alert')} could not be given in time")
                return
            time.sleep(POLL_S)


def _divergence(state: RunState, since: int) -> str | None:
    """Return where the loss stopped being finite after the event ``since``; None if it has not."""
    progress = state.progress[-1] if state.progress else None
    if progress is not None and progress.seq > since:
        loss = progress.train_loss_nats
        if loss is not None and not math.isfinite(loss):
            return (
                f"the loss is {loss} in epoch {progress.epoch}, step {progress.step:,}. The run ends after this epoch."
            )
    epoch = state.last_epoch
    if epoch is not None and epoch.seq > since:
        for name, loss in (("train", epoch.train_loss_nats), ("validation", epoch.valid_loss_nats)):
            if loss is not None and not math.isfinite(loss):
                return f"the {name} loss is {loss} after epoch {epoch.epoch}, so the run ends."
    return None


def _stall_advice(run: Run) -> str:
    started, name = run.state.latest, run.info.experiment.id if run.info.reproduces is None else run.run
    process = f"process {started.pid} on {started.host}" if started else "its process"
    return (
        f"`lmconsole stop {name}` saves a checkpoint if the run still responds. If it does not, kill {process}; "
        f"{run.info.resume_command} resumes from its last checkpoint."
    )


def describe(run: Run, event: AlertEvent, reason: str | None, store: str) -> Alert:
    """Return the alert on ``event`` of ``run`` in ``store``."""
    state, info, result = run.state, run.info, outcome(run)
    last, host = state.last_epoch, host_name()
    return Alert(
        event=event,
        time=utc_now(),
        host=host,
        store=store,
        title=one_line(f"{host}: {result.label[:TITLE_CHARACTERS]} ({result.experiment}) {_HAPPENED[event]}"),
        text=clip_lines(_text(result, reason)),
        run=run.run,
        experiment=result.experiment,
        label=result.label,
        seed=result.seed,
        preset=result.preset,
        epoch=min(state.position[0], info.settings.epochs),
        epochs=info.settings.epochs,
        train_ppl=finite(state.train_ppl),
        valid_ppl=finite(last.valid_ppl if last else None),
        best_valid_ppl=result.best_valid_ppl,
        best_epoch=result.best_epoch,
        test_ppl=result.test_ppl,
        train_s=result.train_s,
        reason=reason,
    )


_HAPPENED: dict[AlertEvent, str] = {
    "stalled": "has stalled",
    "diverged": "diverges",
    "lost": "was lost",
    "failed": "failed",
    "stopped": "was stopped",
    "finished": "has finished",
}


def _text(result: RunResult, reason: str | None) -> Sequence[str]:
    lines = [] if reason is None else [one_line(reason[0].upper() + reason[1:])]
    if result.best_valid_ppl is not None:
        test = f", test {perplexity(result.test_ppl)}" if result.shows_test else ""
        lines.append(
            f"Best validation perplexity {perplexity(result.best_valid_ppl)} in epoch {result.best_epoch}{test}."
        )
    return [*lines, f"Seed {result.seed}, training time {seconds(result.train_s)}.", f"Run {one_line(result.run)}"]
