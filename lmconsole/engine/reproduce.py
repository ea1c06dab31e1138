"""Reproductions: runs that train another one again from its run.json, to compare the two.

A short child process checks corpus, embeddings and devices before anything is queued, as the probe does.
"""

import os
import sys
from collections.abc import Callable, Sequence

import msgspec

from lmconsole import __version__
from lmconsole.engine.child import answer_parent, ask_child
from lmconsole.engine.probe import TIMEOUT_S, busy_gpu_warnings
from lmconsole.engine.provenance import Captured, capture, find_checkouts
from lmconsole.engine.queue import Action, decide_one, granting, jobs_at_once, requeue
from lmconsole.errors import DeviceError, LmconsoleError
from lmconsole.runs.create import create_run, next_places, queue_lock
from lmconsole.runs.events import Queued, utc_now
from lmconsole.runs.info import Provenance, RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.permissions import AfterQueue, pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import cores

CPU = ("cpu",)


class ReproduceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A run to be trained again."""

    info: RunInfo
    device: str
    """Value of ``--device``."""
    device_name: str | None
    """Name of the device on which it was trained; None if that is unknown."""
    on_cpu: bool
    """Whether that was a CPU."""
    store: str
    """Folder of the store."""


class ReproduceAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """Devices and code with which a run can be trained again here."""

    device_names: tuple[str, ...]
    device_keys: tuple[str, ...]
    """Device keys in the queue: ``cpu``, or UUIDs."""
    captured: Captured
    warnings: tuple[str, ...] = ()


def check_original(run: Run) -> None:
    """Raise LmconsoleError if a run cannot be reproduced."""
    if run.problem:
        raise LmconsoleError(f"{run.run}: cannot be reproduced: {run.problem}")
    if run.info.origin == "imported":
        raise LmconsoleError(
            f"{run.run}: an imported run cannot be reproduced, since its code is not lmconsole's",
            hint="Its source may say how to train it again.",
        )
    if run.status is not Status.FINISHED:
        hint = "`lmconsole watch RUN` waits for it." if run.status.active else f"{run.info.resume_command} resumes it."
        raise LmconsoleError(
            f"{run.run}: {run.status.value}; only a finished run can be reproduced",
            hint=hint[0].upper() + hint[1:],
        )


def ask(store: Store, original: Run, device: str, report: Callable[[str], None] = lambda _: None) -> ReproduceAnswer:
    """Check in a child process whether ``original`` can be trained again here.

    Raises LmconsoleError if its corpus or embeddings have changed, or this machine lacks the device.
    """
    started, queued = original.state.started, original.state.queued
    request = ReproduceRequest(
        info=original.info,
        device=device,
        device_name=started.device_name if started else None,
        on_cpu=started.device == "cpu" if started else queued is None or queued.devices == CPU,
        store=str(store.root),
    )
    return ask_child("lmconsole.engine.reproduce", request, ReproduceAnswer, TIMEOUT_S, report)


def answer_request(request: ReproduceRequest) -> ReproduceAnswer:
    """Check corpus, embeddings and devices, as the child process. Raises LmconsoleError."""
    from pathlib import Path

    from lmconsole.engine.attempt import load_verified_corpus, load_verified_tables
    from lmconsole.lm import device

    checkouts = find_checkouts(None)
    everything = device.describe_devices()
    wanted = request.device
    if wanted == "auto":
        wanted = "cpu" if request.on_cpu else "cuda"
        alike = [each for each in everything if each.name == request.device_name and each.uuid]
        everything = alike or everything
    try:
        names = device.resolve_devices(wanted, everything)
    except DeviceError as error:
        if request.device != "auto":
            raise
        raise DeviceError(
            f"{request.info.run} was trained on {request.device_name or 'a GPU'}: {error.message}",
            hint="--device cpu trains it on the CPU, which gives other bits.",
        ) from None
    chosen = [each for each in everything if each.device in names]
    for each in chosen:
        device.resolve_precision(request.info.settings.precision, each)
    load_verified_corpus(request.info)
    load_verified_tables(request.info)
    return ReproduceAnswer(
        device_names=tuple(each.name for each in chosen),
        device_keys=tuple(each.uuid or each.device for each in chosen),
        captured=capture(checkouts, gpu=any(each.uuid for each in chosen)),
        warnings=tuple(busy_gpu_warnings(chosen, Path(request.store))),
    )


def queue_reproduction(
    store: Store, runs: Sequence[Run], original: Run, answer: ReproduceAnswer, *, fresh: bool
) -> tuple[Action, str]:
    """Queue a reproduction of ``original``, or continue the last one with the same code, packages and device, and
    return what was done and its name. The caller starts a runner.

    Args:
        runs: runs of the store, oldest first.
        fresh: create a new one in any case.

    Raises StoreError, or RunActiveError if a worker has just started the run.
    """
    same = [] if fresh else [run for run in runs if _is_same(run, original, answer)]
    action, found = decide_one(same, {run.run for run in pending(store, same)}, test=_tested(original))
    if found is None:
        return action, _create(store, original, answer)
    if action.queues:
        requeue(store, [found.run])
    return action, found.run


def _tested(original: Run) -> bool:
    """Return whether the original was tested, so that its reproduction is too."""
    return original.state.finished is None or original.state.finished.tested


def _is_same(run: Run, original: Run, answer: ReproduceAnswer) -> bool:
    """Return whether ``run`` is a reproduction of ``original`` as it would be made now."""
    queued = run.state.queued
    return (
        run.info.reproduces == original.run
        and not run.problem
        and queued is not None
        and (queued.devices == CPU) == (answer.device_keys == CPU)
        and _without_checkouts(run.info.provenance) == _without_checkouts(answer.captured.provenance)
    )


def _without_checkouts(provenance: Provenance | None) -> Provenance | None:
    return provenance and msgspec.structs.replace(provenance, checkout=None, experiments=None)


def _create(store: Store, original: Run, answer: ReproduceAnswer) -> str:
    """Create and permit a reproduction, and return its id."""
    info = msgspec.structs.replace(
        original.info,
        queued_t=utc_now(),
        command=tuple(sys.argv),
        cwd=os.getcwd(),
        version=__version__,
        provenance=answer.captured.provenance,
        reproduces=original.run,
    )
    jobs = cores() if answer.device_keys == CPU else 1
    queued = Queued(devices=answer.device_keys, jobs=jobs, test=_tested(original))
    with queue_lock(store), granting(store) as permissions:
        place = next(next_places(store, store.runs()))
        event = msgspec.structs.replace(queued, jobs=jobs_at_once(info.threads or 1, queued), place=place)
        name = create_run(store, info, [event], source_diff=answer.captured.source_diff)
        permissions.grant(RunPaths(store.root / name), 1, AfterQueue())
    return name


if __name__ == "__main__":
    sys.exit(answer_parent(ReproduceRequest, answer_request))
