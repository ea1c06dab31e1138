"""Running without the app: queue, show progress, wait, print the results. The runs do not need anybody to watch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
from rich.text import Text

from lmconsole import formatting
from lmconsole.display import Display, choose_display
from lmconsole.engine.local import start_runner
from lmconsole.engine.probe import ProbeAnswer, ProbeRequest, ask
from lmconsole.engine.queue import Action, Decision, decide, enqueue, wanted_runs
from lmconsole.errors import ExitCode, printable
from lmconsole.listing import console, results_table
from lmconsole.runs.events import Queued
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import cores, free_disk_mib

POLL_S = 0.2
GRACE_S = 5.0
"""How long a run may look lost before it is taken to be: its runner may be about to write what happened."""


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`lmconsole run`, parsed."""

    probe: ProbeRequest
    store: Path
    seeds: tuple[int, ...] | None
    jobs: int
    fresh: bool
    everything: bool
    """``--all``: an active run is waited for instead of refused."""
    exports: Path | None
    on_finish: tuple[str, ...]
    json: bool


def dry_run(options: RunOptions) -> ExitCode:
    """Print what `run` would do, and do nothing."""
    answer = ask(options.probe)
    store = Store(options.store)
    runs = store.runs()
    decisions = decide(runs, wanted_runs(answer, options.seeds), fresh=options.fresh)
    out = console()
    if options.json:
        sys.stdout.write(msgspec.json.encode(_plan_as_dict(answer, decisions, options)).decode() + "\n")
        return ExitCode.OK
    for name, value in _overview(answer, options):
        out.print(Text(f"{name:<12}", style="bold").append(value, style="not bold"))
    for warning in answer.warnings:
        console(stderr=True).print(Text(f"warning: {warning}", style="yellow"))
    known = {run.run: run for run in runs}
    out.print()
    for decision in decisions:
        out.print(_decision_line(decision, known))
    out.print()
    _print_settings(answer)
    return ExitCode.OK


def _overview(answer: ProbeAnswer, options: RunOptions) -> list[tuple[str, str]]:
    first = answer.prepared[0]
    tokens = ", ".join(f"{count:,} {split}" for split, count in first.corpus.tokens.items())
    free = free_disk_mib(options.store)
    devices = ", ".join(f"{d} ({n})" for d, n in zip(answer.devices, answer.device_names, strict=True))
    precisions = dict.fromkeys(prepared.settings.precision for prepared in answer.prepared)
    rows = [
        ("preset", f"{answer.preset} ({answer.reason})"),
        ("device", f"{devices}, {options.jobs} at once, {threads_per_run(options.jobs)} threads each"),
        ("precision", ", ".join(precisions)),
        ("corpus", f"{first.corpus.name}: {tokens} tokens, vocabulary {first.corpus.vocabulary:,}"),
        ("", f"{first.corpus.tokenizer}; {first.corpus.path or 'built in'}"),
        ("store", f"{options.store.absolute()} ({formatting.mib(free)} free)"),
        ("exports", str(options.exports) if options.exports else "none (--no-export)"),
    ]
    if first.embeddings:
        rows.insert(5, ("embeddings", first.embeddings.path))
    return [(name, printable(value)) for name, value in rows]


def _decision_line(decision: Decision, known: dict[str, Run]) -> str:
    experiment = decision.wanted.prepared.experiment
    text = f"{experiment.id:>3} {experiment.label:<18} seed {decision.wanted.seed:<6} "
    expected = _expected_s(decision, known)
    time_left = f", about {formatting.seconds(expected)}" if expected else ""
    match decision.action:
        case Action.NEW:
            return f"{text}new{time_left}"
        case Action.RESUME:
            return f"{text}resume {decision.run} in epoch {decision.epoch}{time_left}"
        case Action.FINISHED:
            return f"{text}skip, finished: {decision.run}"
        case Action.ACTIVE:
            return f"{text}{'wait for' if decision.run else ''} {decision.run}, which is under way"


def _expected_s(decision: Decision, known: dict[str, Run]) -> float | None:
    """Wall seconds that the newest finished run with the same settings, other seed or not, has taken."""
    wanted = decision.wanted.prepared
    for run in reversed(list(known.values())):
        same = run.info.settings == wanted.settings and run.info.corpus.tokens == wanted.corpus.tokens
        if same and run.state.finished:
            return run.state.finished.wall_s
    return None


def _print_settings(answer: ProbeAnswer) -> None:
    """Every setting, once where all experiments share it; where it came from behind it."""
    out = console()
    settings = [msgspec.to_builtins(prepared.settings) for prepared in answer.prepared]
    for key in settings[0]:
        if key in ("model", "layers", "optimizer"):
            continue
        values = {p.experiment.id: s[key] for p, s in zip(answer.prepared, settings, strict=True) if s[key] is not None}
        if not values:
            continue
        if len(set(values.values())) == 1:
            shown = str(next(iter(values.values())))
            if len(values) < len(settings):
                shown += f" (experiments {', '.join(map(str, values))})"
        else:
            shown = ", ".join(f"{number}: {value}" for number, value in values.items())
        sources = dict.fromkeys(p.origins[key] for p in answer.prepared if key in p.origins)
        out.print(Text(f"{key:<22} {printable(shown)}").append(f"  [{printable('; '.join(sources))}]", style="dim"))


def _plan_as_dict(answer: ProbeAnswer, decisions: Sequence[Decision], options: RunOptions) -> dict[str, Any]:
    return {
        "preset": answer.preset,
        "reason": answer.reason,
        "devices": answer.devices,
        "jobs": options.jobs,
        "warnings": answer.warnings,
        "store": str(options.store.absolute()),
        "runs": [
            {
                "experiment": decision.wanted.prepared.experiment.id,
                "seed": decision.wanted.seed,
                "action": decision.action.value,
                "run": decision.run,
                "same_run": decision.wanted.same_run,
                "settings": msgspec.to_builtins(decision.wanted.prepared.settings),
                "origins": decision.wanted.prepared.origins,
                "corpus": msgspec.to_builtins(decision.wanted.prepared.corpus),
            }
            for decision in decisions
        ],
    }


def threads_per_run(jobs: int) -> int:
    """CPU threads for each of ``jobs`` runs at once."""
    return max(1, cores() // jobs)


def run_headless(options: RunOptions) -> ExitCode:
    """Queue, follow until everything is over, print the results. Raises LmconsoleError for what cannot be queued."""
    store = Store(options.store)
    with choose_display(json=options.json) as display:
        display.say("Looking at data and devices …" if sys.stderr.isatty() else f"runs: {store.root}")
        answer = ask(options.probe)
        for name, value in _overview(answer, options):
            if name and name != "exports":
                display.say(f"{name:<10} {value}")
        for warning in answer.warnings:
            display.say(f"warning: {warning}")
        queued = Queued(
            devices=answer.devices,
            jobs=options.jobs,
            exports=None if options.exports is None else str(options.exports),
            on_finish=options.on_finish,
        )
        decisions = enqueue(
            store,
            wanted_runs(answer, options.seeds),
            queued,
            fresh=options.fresh,
            refuse_active=not options.everything,
            threads=threads_per_run(options.jobs),
            announce=lambda decision: display.say(_announcement(decision)),
        )
        names = [str(decision.run) for decision in decisions]
        mine = {str(d.run) for d in decisions if d.action in (Action.NEW, Action.RESUME)}
        follower = Follower(store, names, mine, display)
        code = follower.follow()
        if mine and options.exports and code is not ExitCode.INTERRUPTED:
            follower.wait_for_exports(options.exports)
    _print_results(follower.runs, to_stderr=options.json)
    return code


def _announcement(decision: Decision) -> str:
    name = f"{decision.wanted.prepared.experiment.id:>2} {decision.wanted.prepared.experiment.label}"
    match decision.action:
        case Action.FINISHED:
            return f"{name}  finished before: {decision.run} (--fresh trains it anew)"
        case Action.RESUME:
            return f"{name}  resumes in epoch {decision.epoch}: {decision.run}"
        case Action.ACTIVE:
            return f"{name}  already under way: {decision.run}"
        case Action.NEW:
            return f"{name}  queued"


def watch(store: Store, names: Sequence[str], *, json: bool) -> ExitCode:
    """Follow runs that somebody else started; an interrupt leaves them alone."""
    with choose_display(json=json) as display:
        follower = Follower(store, names, set(), display)
        code = follower.follow()
    _print_results(follower.runs, to_stderr=json)
    return code


def _print_results(runs: Sequence[Run], *, to_stderr: bool) -> None:
    out = console(stderr=to_stderr)
    out.print()
    out.print(results_table(runs))
    out.print(Text("PPL: perplexity per target token, at the epoch that validated best. Time: training.", style="dim"))


class Follower:
    """Follows runs until all are over. ``mine`` are those this command queued: an interrupt stops them."""

    def __init__(self, store: Store, names: Sequence[str], mine: set[str], display: Display) -> None:
        self._store = store
        self._mine = mine
        self._display = display
        self._interrupts = 0
        self._heeded = 0
        self._lost_since: dict[str, float] = {}
        self._runner: subprocess.Popen[bytes] | None = None
        known = {run.run: run for run in Store(store.root).runs()}
        self.runs = [Run(known[name].paths, known[name].info) for name in dict.fromkeys(names)]

    def follow(self) -> ExitCode:
        """Wait for the end of all runs; the exit code says how it went."""
        before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while True:
                for run in self.runs:
                    self._display.show(run, run.refresh())
                self._display.refresh(self.runs)
                if self._heeded < self._interrupts:
                    self._heeded += 1
                    if self._stop():
                        return ExitCode.INTERRUPTED
                if all(self._over(run) for run in self.runs):
                    break
                self._keep_a_runner()
                time.sleep(POLL_S)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._interrupts:
            return ExitCode.INTERRUPTED
        finished = all(run.status is Status.FINISHED for run in self.runs)
        return ExitCode.OK if finished else ExitCode.RUN_FAILED

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1

    def _stop(self) -> bool:
        """Heed an interrupt; True if there is nothing more to wait for."""
        active = [run for run in self.runs if run.run in self._mine and run.status.active]
        if not self._mine:
            self._display.say("Left; the runs go on.")
            return True
        if self._interrupts == 1:
            self._display.say("Stopping the runs; each saves a checkpoint first. Interrupt again to kill them.")
            for run in active:
                run.request_stop()
            return False
        self._display.say("Killing the runs; each can be resumed from its last checkpoint.")
        for run in active:
            run.request_stop()
            owner = run.worker()
            if owner is not None and owner.pid is not None:
                os.kill(owner.pid, signal.SIGKILL)
        return False

    def _over(self, run: Run) -> bool:
        if run.problem:
            return True
        if run.status is not Status.LOST:
            self._lost_since.pop(run.run, None)
            return not run.status.active
        since = self._lost_since.setdefault(run.run, time.monotonic())
        return time.monotonic() - since > GRACE_S

    def _keep_a_runner(self) -> None:
        """Runs are queued: see that a runner is there to start them, even if somebody killed it."""
        if self._runner is not None and self._runner.poll() is None:
            return
        if any(run.status is Status.QUEUED for run in self.runs):
            self._runner = start_runner(self._store)

    def wait_for_exports(self, exports: Path) -> None:
        """Wait for the runner to write the exports, unless other people's runs keep it busy; say where they are."""
        self._display.say("Writing the exports …")
        while self._store.runner() is not None or (self._runner is not None and self._runner.poll() is None):
            if any(run.status.active for run in self._store.runs()):
                self._display.say(f"Other runs are under way; the exports come after them, in {exports}.")
                return
            time.sleep(POLL_S)
        self._display.say(_exports_line(self._store, exports))


def _exports_line(store: Store, exports: Path) -> str:
    """What the runner said about its exports, as it is the last thing in its log."""
    try:
        lines = store.runner_log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line for line in lines[-20:] if line.startswith("exports: ")]
    return said[-1] if said else f"exports: none were written to {exports}; see {store.runner_log}"


def stop_runs(store: Store, runs: Sequence[Run]) -> list[str]:
    """Ask active ``runs`` to stop and see that queued ones are taken out; what was done, a line each."""
    lines = []
    for run in runs:
        if run.status.active:
            run.request_stop()
            lines.append(f"{run.run}: asked to stop; it saves a checkpoint first")
        else:
            lines.append(f"{run.run}: not active ({run.status.value})")
    if any(run.status is Status.QUEUED for run in runs):
        start_runner(store)
    return lines
