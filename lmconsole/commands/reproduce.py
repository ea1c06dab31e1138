"""`lmconsole reproduce`: train a run again and compare the two, bit by bit."""

import sys
from collections.abc import Iterator
from pathlib import Path

from lmconsole.commands.display import choose_display
from lmconsole.commands.follow import Follower
from lmconsole.commands.interrupts import Interrupts
from lmconsole.commands.output import print_data, print_json_line
from lmconsole.engine.queue import Action, requeue
from lmconsole.engine.reproduce import ask, check_original, queue_reproduction
from lmconsole.errors import ExitCode, LmconsoleError, RunNotFoundError
from lmconsole.formatting import counted
from lmconsole.runs.agreement import Agreement, Parting, compare_runs, differences
from lmconsole.runs.permissions import pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

ANNOUNCEMENTS = {
    Action.NEW: "queued",
    Action.RESUME: "queued to resume",
    Action.ACTIVE: "already active",
    Action.FINISHED: "already finished; --fresh trains it again",
}
PHASES = {"train": "training", "valid": "validation", "test": "test"}


def reproduce(root: Path, name: str, device: str, *, fresh: bool, json: bool) -> ExitCode:
    """Train the run ``name`` of the store at ``root`` again, next to it, and compare the two.

    The name of a reproduction continues it, if it has not finished, and compares it with its original. An interrupt
    stops the reproduction, which can be resumed.

    Returns:
        OK for the same bits, INCONCLUSIVE if they part or a log is damaged, RUN_FAILED if the reproduction failed or
        was stopped, INTERRUPTED.

    Raises:
        LmconsoleError: the run cannot be reproduced, or not here.
    """
    store = Store(root)
    found = store.find(name)
    original = _original(store, found)
    check_original(original)
    with Interrupts() as interrupts, choose_display(json=json) as display:
        if found is original:
            if sys.stderr.isatty():
                display.say("Checking data and devices …")
            answer = ask(store, original, device, display.say)
            for warning in answer.warnings:
                display.say(f"warning: {warning}")
            interrupts.hold()
            action, run = queue_reproduction(store, store.runs(), original, answer, fresh=fresh)
        else:
            interrupts.hold()
            action, run = _continue(store, found)
        display.say(f"{original.run}: reproduction {run} {ANNOUNCEMENTS[action]}")
        if changed := "; ".join(map(str, differences(original, store.find(run)))):
            display.say(f"warning: not as in the original: {changed}")
        own = frozenset({run}) if action in (Action.NEW, Action.RESUME) else frozenset()
        finished = frozenset({run}) if action is Action.FINISHED else frozenset()
        follower = Follower(store, [run], display, interrupts, own=own, finished=finished)
        try:
            code = follower.follow()
        finally:
            follower.leave()
    if code is not ExitCode.OK:
        return code
    agreement = compare_runs(original, follower.runs[0], store.runs())
    if json:
        print_json_line(agreement)
    else:
        print_data("\n".join(describe(agreement)))
    return ExitCode.OK if agreement.verdict == "same bits" else ExitCode.INCONCLUSIVE


def _original(store: Store, found: Run) -> Run:
    """Return the run that a reproduction trains again; any other run is its own original."""
    if found.info.reproduces is None:
        return found
    for run in store.runs():
        if run.run == found.info.reproduces:
            return run
    raise RunNotFoundError(f"{found.run}: its original, {found.info.reproduces}, is no longer in {store.root}")


def _continue(store: Store, run: Run) -> tuple[Action, str]:
    """Queue a reproduction again that has not finished and is not active, and return what was done and its name."""
    if run.status is Status.FINISHED:
        return Action.FINISHED, run.run
    if pending(store, [run]):
        return Action.ACTIVE, run.run
    if not requeue(store, [run.run]):
        raise LmconsoleError(f"{run.run}: cannot be resumed: {run.problem or 'a process holds its lock'}")
    return Action.RESUME, run.run


def describe(agreement: Agreement) -> Iterator[str]:
    """Yield the sentences on a comparison, the verdict first."""
    epochs, weights = counted(agreement.epochs, "epoch"), agreement.weights
    if agreement.evaluations:
        epochs += f" and {counted(agreement.evaluations, 'evaluation')} within them"
    if agreement.verdict == "same bits":
        parts = f"the losses of {epochs}, the test perplexities"
        tensors = "" if weights is None else f" and the best weights ({counted(weights.tensors, 'tensor')})"
        yield f"Same bits: {parts}{tensors}."
    elif agreement.verdict == "different":
        yield "Different bits: " + (_parting(agreement.first) if agreement.first else "only the best weights differ.")
    else:
        yield f"Same bits in the losses of {epochs}, as far as they can be read. A log is damaged:"
        yield from (f"  {each}" for each in agreement.damage)
    if weights is None:
        yield "The best weights were not compared: one of the runs has none that can be read."
    elif weights.different:
        size = "" if weights.largest is None else f", by at most {weights.largest:.2g}"
        yield f"Best weights: {weights.different} of {counted(weights.tensors, 'tensor')} differ{size}."
    if agreement.verdict == "different":
        yield from _size(agreement)
        if agreement.differences:
            yield f"What differs between them: {'; '.join(map(str, agreement.differences))}."
        else:
            yield "Nothing that is recorded differs between them. On a GPU, some sums have no fixed order."


def _parting(first: Parting) -> str:
    values = [_nats(first.original_nats), _nats(first.reproduction_nats)]
    by = "" if first.difference_nats is None else f" ({first.difference_nats:+.2g} nats)"
    at = f"in epoch {first.epoch}" if first.step is None else f"by step {first.step:,} of epoch {first.epoch}"
    return f"the runs part {at}, in {PHASES[first.phase]}: {values[0]} → {values[1]}{by}."


def _nats(loss: float | None) -> str:
    return "no finite loss" if loss is None else f"{loss:.9g}"


def _size(agreement: Agreement) -> Iterator[str]:
    """Yield how large the difference of the test losses is."""
    if agreement.test_difference_nats is None:
        return
    text = f"Test loss with the best weights: {agreement.test_difference_nats:+.2g} nats"
    if agreement.difference_in_sd is not None and agreement.seed_sd_nats is not None:
        sd = f"{agreement.seed_sd_nats:.2g} nats over {agreement.seeds} seeds"
        text += f", {agreement.difference_in_sd:.2g} standard deviations ({sd})"
    yield f"{text}."
