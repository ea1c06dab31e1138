"""`lmconsole doctor`: check whether this machine is ready, and advise where it is not."""

import contextlib
import locale
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from rich.table import Table
from rich.text import Text

from lmconsole import __version__, formatting
from lmconsole.commands.output import console, print_json
from lmconsole.data.lookup import find_data, find_embeddings, user_data_folder
from lmconsole.errors import LmconsoleError, escape_control_characters
from lmconsole.plan.parameters import CHECKPOINTS, checkpoint_bytes, weights_bytes
from lmconsole.runs import endpoint, lock
from lmconsole.runs.events import utc_now
from lmconsole.runs.permissions import pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.gpu import Gpus
from lmconsole.telemetry.host import cores, free_disk_mib, host_memory
from lmconsole.telemetry.logout import logout_risk
from lmconsole.telemetry.overnight import clock_synchronized, interruptions

Verdict = Literal["ok", "note", "problem"]
STYLES: dict[Verdict, str] = {"ok": "green", "note": "yellow", "problem": "bold red"}
LOW_DISK_MIB = 2 * 1024
"""Twelve paper-size runs, one at a time, need somewhat less: 0.4 GiB for their best weights, and 1.3 GiB for the
checkpoints of the largest run, of which there are three while the next one is written."""

TORCH_PROBE = """
import json, torch
from lmconsole.lm.device import describe_devices
devices = describe_devices()
print(json.dumps({"torch": str(torch.__version__), "cuda": torch.version.cuda,
                  "devices": [[d.device, d.name, d.bf16_native] for d in devices]}))
"""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one check. A ``note`` limits what can be done; a ``problem`` prevents training."""

    what: str
    """Subject of the check."""
    verdict: Verdict
    """Result: ``ok``, ``note`` or ``problem``."""
    found: str
    """Message for people: what was found."""
    advice: str = ""
    """Message for people: what to do; empty if there is nothing to do."""


class _Torch(msgspec.Struct, frozen=True):
    torch: str
    cuda: str | None
    devices: list[tuple[str, str, bool]]


def diagnose(data: Path | None, embeddings: Path | None, runs: Path, *, json: bool) -> None:
    """Check everything a run needs, and print the findings."""
    findings = check(data=data, embeddings=embeddings, runs=runs)
    if json:
        print_json(findings)
    else:
        print_findings(findings)


def check(*, data: Path | None, embeddings: Path | None, runs: Path) -> list[Finding]:
    """Check everything a run needs, without changing anything. Problems are findings: nothing is raised."""
    store = Store(runs)
    return [
        Finding(what="lmconsole", verdict="ok", found=f"{__version__}, Python {platform.python_version()}"),
        *_torch_and_gpu(),
        _host(),
        *_data(data, embeddings),
        _store(store),
        _disk(runs, _queue(store)),
        *_gpu_users(store),
        _logout(),
        _night(),
        _clock(),
        _locale(),
    ]


def _torch_and_gpu() -> Iterator[Finding]:
    """Check PyTorch in a child process, and whether it can use the driver."""
    gpus = Gpus.open()
    seen = [f"{gpu.name or 'GPU'}, {formatting.mib(gpu.device_total_mib)}" for gpu in gpus.devices()]
    reason, driver = gpus.reason, gpus.driver_version
    gpus.close()
    done = subprocess.run([sys.executable, "-P", "-c", TORCH_PROBE], capture_output=True, text=True, check=False)
    try:
        torch = msgspec.json.decode(done.stdout.strip().rpartition("\n")[2], type=_Torch)
    except msgspec.MsgspecError:
        last = done.stderr.strip().rpartition("\n")[2]
        yield Finding(
            what="PyTorch",
            verdict="problem",
            found=f"cannot be loaded: {last}",
            advice="Reinstall it: https://pytorch.org/get-started",
        )
        return
    native = {device: bf16 for device, _, bf16 in torch.devices}
    yield Finding(what="PyTorch", verdict="ok", found=f"{torch.torch}, CUDA {torch.cuda or 'not built in'}")
    cuda = [f"{device} {name}" for device, name, _ in torch.devices if device != "cpu"]
    if cuda:
        yield Finding(what="GPU", verdict="ok", found=f"{', '.join(cuda)}; driver {driver or 'unknown'}")
    elif seen and torch.cuda is None:
        yield Finding(
            what="GPU",
            verdict="problem",
            found=f"{'; '.join(seen)}: present, but this PyTorch is a CPU build",
            advice="Install a CUDA build of PyTorch: https://pytorch.org/get-started",
        )
    elif seen:
        yield Finding(
            what="GPU",
            verdict="problem",
            found=f"{'; '.join(seen)}, driver {driver}: PyTorch for CUDA {torch.cuda} cannot use it",
            advice="Check CUDA_VISIBLE_DEVICES; update the driver, or install PyTorch for an older CUDA.",
        )
    else:
        yield Finding(what="GPU", verdict="note", found=f"none ({reason})", advice="Runs train on the CPU.")
    fast = [device for device, bf16 in native.items() if bf16]
    yield Finding(
        what="precision",
        verdict="ok" if fast else "note",
        found=f"bf16 is native on {', '.join(fast)}" if fast else "no device has native bf16: auto means fp32",
    )


def _host() -> Finding:
    memory = host_memory()
    free = f"{formatting.mib(memory.available_mib)} of {formatting.mib(memory.total_mib)} memory free"
    return Finding(what="host", verdict="ok", found=f"{formatting.counted(cores(), 'core')}, {free}")


def _data(data: Path | None, embeddings: Path | None) -> Iterator[Finding]:
    folder = None
    try:
        folder = find_data(data, environ=os.environ, cwd=Path.cwd())
        if folder:
            yield Finding(what="data", verdict="ok", found=str(folder))
        else:
            yield Finding(
                what="data",
                verdict="note",
                found=f"none in LMCONSOLE_DATA, ./data or {user_data_folder() or 'the user data folder'}",
                advice="The demo preset needs none. For the others: `lmconsole data fetch`, or a folder with --data.",
            )
    except LmconsoleError as error:
        yield Finding(what="data", verdict="problem", found=error.message, advice=error.hint or "")
    try:
        tables = find_embeddings(embeddings, folder)
        yield Finding(
            what="embeddings",
            verdict="ok" if tables else "note",
            found=str(tables) if tables else "none",
            advice="" if tables else "Only the paper preset needs them: `lmconsole data fetch gpt1` downloads them.",
        )
    except LmconsoleError as error:
        yield Finding(what="embeddings", verdict="problem", found=error.message, advice=error.hint or "")


def _store(store: Store) -> Finding:
    try:
        found = store.runs()
    except LmconsoleError as error:
        return Finding(what="store", verdict="problem", found=error.message, advice=error.hint or "")
    place = next(each for each in (store.root, *store.root.parents) if each.exists())
    try:
        lock.check(place)
    except lock.NoLocksError as error:
        return Finding(what="store", verdict="problem", found=f"{place}: {error.strerror}", advice=lock.NO_LOCKS_HINT)
    except OSError as error:
        return Finding(
            what="store",
            verdict="problem",
            found=f"{place}: cannot be written: {error.strerror}",
            advice="Free space or correct its permissions, or name another store with --runs.",
        )
    shown = f"{store.root}: {formatting.counted(len(found), 'run')}"
    if store.problems:
        names = ", ".join(store.problems)
        return Finding(what="store", verdict="note", found=f"{shown}; unreadable: {names}")
    return Finding(what="store", verdict="ok", found=shown)


def _queue(store: Store) -> list[Run]:
    """Return the runs that are in training or will be; none if the store cannot be read, which ``_store`` reports."""
    with contextlib.suppress(LmconsoleError):
        return pending(store, store.runs())
    return []


def _disk(root: Path, queue: Sequence[Run]) -> Finding:
    """Check the space for what the runs in the queue will write, or for that of the twelve experiments."""
    free = free_disk_mib(root)
    if queue:
        needed = queue_disk_mib(queue)
        short = free is not None and free < needed
        runs = formatting.counted(len(queue), "run")
        return Finding(
            what="disk",
            verdict="problem" if short else "ok",
            found=f"{formatting.mib(free)} free for the store; the queue ({runs}) needs up to {formatting.mib(needed)}",
            advice="Free space before the disk is full, or stop runs: a run that cannot write fails." if short else "",
        )
    low = free is not None and free < LOW_DISK_MIB
    return Finding(
        what="disk",
        verdict="note" if low else "ok",
        found=f"{formatting.mib(free)} free for the store",
        advice=f"Twelve paper-size runs need up to {formatting.mib(LOW_DISK_MIB)} for checkpoints and weights."
        if low
        else "",
    )


def queue_disk_mib(queue: Sequence[Run]) -> float:
    """Return the space that the runs of a queue need at most, MiB: the checkpoints of those that train at once, the
    largest ones, and the best weights of each, as well as the test losses. Runs that are only tested have weights."""
    sizes = [(run.info.settings, run.info.corpus.vocabulary) for run in queue if not run.state.being_tested]
    events = [run.state.queued for run in queue if run.state.queued]
    at_once = max((event.jobs * len(event.devices) for event in events), default=1)
    checkpoints = sorted((checkpoint_bytes(*size) for size in sizes), reverse=True)[:at_once]
    windows = sum(run.info.corpus.tokens.get("test", 0) // run.info.settings.window_tokens + 1 for run in queue)
    best_weights = sum(weights_bytes(*size) for size in sizes)
    return (CHECKPOINTS * sum(checkpoints) + best_weights + endpoint.WINDOW_BYTES * windows) / 2**20


def _gpu_users(store: Store) -> Iterator[Finding]:
    """Check whether other processes use the GPUs. The workers of this store do not count."""
    gpus = Gpus.open()
    own: set[int] = set()
    with contextlib.suppress(LmconsoleError):
        owners = [run.worker() for run in store.runs() if run.status is Status.RUNNING]
        own = {owner.pid for owner in owners if owner is not None and owner.pid}
    for gpu in gpus.devices():
        others = gpus.other_processes(gpu.uuid, own) if gpu.uuid else None
        used = f"{formatting.mib(gpu.device_used_mib)} of {formatting.mib(gpu.device_total_mib)} in use"
        name = f"GPU {gpu.index}, {gpu.name or 'unknown'}"
        if others:
            yield Finding(
                what="GPU users",
                verdict="note",
                found=f"{name}: {others:,} other {'process' if others == 1 else 'processes'}, {used}",
                advice="They take memory and time from runs, and timings are marked. `nvidia-smi` lists them.",
            )
        else:
            known = "no other processes" if others == 0 else "other processes are not visible here"
            yield Finding(what="GPU users", verdict="ok", found=f"{name}: {known}, {used}")
    gpus.close()


def _night() -> Finding:
    found = interruptions()
    return Finding(
        what="night",
        verdict="note" if found else "ok",
        found="; ".join(what for what, _ in found) or "no suspend, battery or shutdown in the way",
        advice=" ".join(advice for _, advice in found),
    )


def _clock() -> Finding:
    synchronized = clock_synchronized()
    words = {True: "synchronized", False: "not synchronized", None: "synchronization unknown"}
    return Finding(
        what="clock",
        verdict="note" if synchronized is False else "ok",
        found=f"{formatting.local_time(utc_now())}, {words[synchronized]}",
        advice="Times in logs and alerts may be wrong; the order of runs does not depend on them."
        if synchronized is False
        else "",
    )


def _logout() -> Finding:
    risk = logout_risk()
    if risk is None:
        return Finding(what="logout", verdict="ok", found="systemd does not end runs at logout")
    return Finding(what="logout", verdict="note", found=risk[0], advice=risk[1])


def _locale() -> Finding:
    encoding = locale.getpreferredencoding(False)
    utf8 = encoding.lower().replace("-", "") == "utf8"
    return Finding(
        what="locale",
        verdict="ok" if utf8 else "note",
        found=f"{encoding}, terminal {os.environ.get('TERM', 'unknown')}",
        advice="" if utf8 else "Curves are drawn in ASCII; LANG=C.UTF-8 gives finer ones.",
    )


def print_findings(findings: list[Finding]) -> None:
    """Print a row for each finding, with its advice below it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(style="bold")
    table.add_column()
    for finding in findings:
        text = Text(escape_control_characters(finding.found))
        if finding.advice:
            text.append(f"\n{escape_control_characters(finding.advice)}", style="dim")
        table.add_row(Text(finding.verdict, style=STYLES[finding.verdict]), finding.what, text)
    console().print(table)
