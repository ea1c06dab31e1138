"""Measure runs on a SLURM cluster of real daemons on this machine: faults survived, overhead, and many runs.

`faults` trains small runs as a job array and causes faults at random moments. Afterwards every run must have finished,
with a log without damage, and with the same losses and weights, bit for bit, as the same run trained without SLURM.
`overhead` compares the time of a queue of runs with that of the local runner, in turns. `many` queues runs that train
for a moment, and measures the queue, the questions to SLURM, and the console and the commands meanwhile.

    python benchmarks/cluster.py faults --kind requeue --count 20
    python benchmarks/cluster.py overhead
    python benchmarks/cluster.py many --runs 1000
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cluster_console import SETTLE_S, WINDOW_S, Meter, starts
from safetensors import safe_open
from slurm_rig import SlurmCluster

from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

LMCONSOLE = (sys.executable, "-P", "-m", "lmconsole")
RUNS = ("--preset", "demo", "--device", "cpu", "--precision", "fp32", "--headless", "--no-export")
LIMIT_S = 1_500.0
LOOK_S = 5.0
"""Interval at which the progress of an array is read, from the output of its command."""
STOP_S = 120.0
"""Seconds that the command has to stop its runs and end."""


def lmconsole(folder: Path, *arguments: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start lmconsole in ``folder``."""
    with open(folder / "output.log", "ab") as output:
        return subprocess.Popen(
            [*LMCONSOLE, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def result_of(run: Run) -> dict[str, object]:
    """Return what must be equal however often a run was interrupted."""
    state = run.state
    assert state.finished is not None
    return {
        "epochs": [[each.epoch, each.train_loss_nats, each.valid_loss_nats] for each in state.epochs],
        "test": [state.finished.test_ppl_final, state.finished.test_ppl_best],
        "best": [state.finished.best_epoch, state.finished.best_valid_ppl],
        "weights": weights_sha256(run.paths.best_weights),
    }


def weights_sha256(path: Path) -> str:
    """Return the hash of the weights in a file, as the worker has stored it."""
    with safe_open(path, framework="numpy") as file:
        return str(file.metadata()["sha256"])


def problems(folder: Path, expected: Mapping[tuple[int, int], dict[str, object]]) -> list[str]:
    """Return what is wrong with the runs of a store, compared with those that were trained without SLURM."""
    found: dict[tuple[int, int], Run] = {}
    wrong = []
    for run in Store(folder / "runs").runs():
        key = run.info.experiment.id, run.info.seed
        if key in found:
            wrong.append(f"{run.run}: a second run of its kind")
        found[key] = run
        if run.problem or run.state.log_damaged or run.state.damage:
            wrong.append(f"{run.run}: {run.problem or run.state.damage}")
        if run.status is not Status.FINISHED:
            wrong.append(f"{run.run}: {run.status}")
        elif result_of(run) != expected[key]:
            wrong.append(f"{run.run}: another result")
    return wrong + [f"{key}: missing" for key in expected.keys() - found.keys()]


class Faults:
    """Causes faults of one kind in a cluster."""

    def __init__(self, cluster: SlurmCluster, kind: str, chance: random.Random, store: Store) -> None:
        self._cluster, self._kind, self._chance, self._store = cluster, kind, chance, store

    def cause(self) -> str | None:
        """Cause one fault, and return what it hit; None if nothing is running."""
        running = [job for job in self._cluster.jobs().values() if job.state == "RUNNING" and "_" in job.id]
        # Most of the time of a small run is its start: three of four faults are to hit its training.
        if self._chance.random() < 0.75:
            places = [run.place for run in self._store.runs() if run.status is Status.RUNNING and run.state.progress]
            names = {f"lmconsole-{place.batch}.0 {place.index}" for place in places if place}
            running = [job for job in running if f"{job.name} {job.id.partition('_')[2]}" in names]
        if not running:
            return None
        job = self._chance.choice(sorted(running, key=lambda each: each.id))
        causes = {
            "requeue": self._requeue,
            "scancel": self._cancel,
            "kill": self._kill,
            "drain": self._take_out,
            "controller": self._restart,
            "node": self._lose_node,
            "preemption": self._preempt,
        }
        kind = self._chance.choice(sorted(causes)) if self._kind == "all" else self._kind
        return f"{kind} {causes[kind](job.id, job.node)}"

    def _requeue(self, job: str, _: str) -> str:
        self._cluster.run("scontrol", "requeue", job, check=False)
        return job

    def _cancel(self, job: str, _: str) -> str:
        self._cluster.run("scancel", job, check=False)
        return job

    def _kill(self, job: str, _: str) -> str:
        self._cluster.run("scancel", "--signal=KILL", "--full", job, check=False)
        return job

    def _take_out(self, _: str, node: str) -> str:
        self._cluster.drain(node)
        time.sleep(self._chance.uniform(0.5, 4.0))
        self._cluster.resume(node)
        return node

    def _restart(self, *_: str) -> str:
        self._cluster.stop_controller()
        time.sleep(self._chance.uniform(0.0, 4.0))
        self._cluster.start_controller()
        return "slurmctld"

    def _lose_node(self, _: str, node: str) -> str:
        self._cluster.kill_node(node)
        self._cluster.declare_down(node)
        time.sleep(self._chance.uniform(0.5, 3.0))
        self._cluster.start_node(node)
        self._cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        return node

    def _preempt(self, *_: str) -> str:
        number = self._cluster.preempt(self._chance.uniform(1.0, 3.0))
        self._cluster.wait_for(lambda: self._cluster.jobs()[number].state == "COMPLETED", "the preemption to end")
        return f"job {number}"


def reference(folder: Path, what: tuple[str, ...]) -> dict[tuple[int, int], dict[str, object]]:
    """Train runs without SLURM, and return their results by experiment and seed."""
    folder.mkdir()
    process = lmconsole(folder, "run", *what, *RUNS, environment=dict(os.environ))
    if process.wait(LIMIT_S):
        raise SystemExit((folder / "output.log").read_text())
    return {(run.info.experiment.id, run.info.seed): result_of(run) for run in Store(folder / "runs").runs()}


def faults(options: argparse.Namespace) -> dict[str, object]:
    """Cause faults until enough have hit, and return what became of the runs."""
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="lmconsole-faults-") as temporary:
        root = Path(temporary)
        hit: list[str] = []
        wrong: list[str] = []
        attempts = runs = commands = 0
        first = 1
        while len(hit) < options.count:
            last = first + options.runs - 1
            what = (*options.ids, "--seeds", f"{first}..{last}", "--epochs", str(options.epochs))
            what += ("--max-tokens", str(options.tokens))
            expected = reference(root / f"reference-{first}", what)
            folder = root / f"slurm with space {first}"
            folder.mkdir()
            (folder / "experiments.toml").write_text(
                f"include_builtin = true\n[executor.slurm]\nat_once = {options.at_once}\n"
                f"warning_s = {options.warning_s}\n" + ("time = 1\n" if options.kind == "time" else "")
            )
            settings = {"preempt_mode": options.preempt_mode, "grace_s": options.grace_s}
            with SlurmCluster(nodes=3, cpus=4, **settings) as cluster:
                environment = cluster.environment()
                injector = Faults(cluster, options.kind, chance, Store(folder / "runs"))
                while True:
                    command = ("run", *what, *RUNS, "--executor", "slurm")
                    process = lmconsole(folder, *command, environment=environment)
                    commands += 1
                    while process.poll() is None:
                        time.sleep(chance.uniform(*options.pause_s))
                        if options.kind != "time" and len(hit) < options.count:
                            with contextlib.suppress(KeyError):
                                if (where := injector.cause()) is not None:
                                    hit.append(where)
                    if process.returncode == 0 or commands > 60:
                        break
                wrong += problems(folder, expected)
                store = Store(folder / "runs")
                attempts += sum(run.state.attempt for run in store.runs())
                runs += len(expected)
                if options.kind == "time":
                    hit += [run.run for run in store.runs() for _ in range(run.state.attempt - 1)]
                if wrong:
                    print("\n".join(wrong), file=sys.stderr)
                    print(f"kept: {folder}", file=sys.stderr)
                    subprocess.run(["cp", "-a", str(folder), f"{tempfile.gettempdir()}/lmconsole-faults-kept"])
            first = last + 1
    return {
        "kind": options.kind,
        "seed": options.seed,
        "faults": len(hit),
        "hit": hit,
        "runs": runs,
        "attempts": attempts,
        "commands": commands,
        "wrong": wrong,
    }


def overhead(options: argparse.Namespace) -> dict[str, object]:
    """Return the time of the same queue with the local runner and with SLURM, in turns."""
    what = ("1", "--seeds", f"1..{options.runs}", "--epochs", "1", "--max-tokens", "2000")
    seconds: dict[str, list[float]] = {"local": [], "slurm": []}
    with tempfile.TemporaryDirectory(prefix="lmconsole-overhead-") as temporary, SlurmCluster(cpus=2) as cluster:
        for turn in range(options.turns):
            for executor in ("local", "slurm"):
                folder = Path(temporary) / f"{executor}-{turn}"
                folder.mkdir()
                (folder / "experiments.toml").write_text("include_builtin = true\n[executor.slurm]\nat_once = 2\n")
                began_s = time.monotonic()
                command = ("run", *what, *RUNS, "--executor", executor)
                process = lmconsole(folder, *command, environment=cluster.environment())
                assert process.wait(LIMIT_S) == 0, (folder / "output.log").read_text()
                seconds[executor].append(time.monotonic() - began_s)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    more_s = (medians["slurm"] - medians["local"]) / options.runs
    return {"runs": options.runs, "seconds": seconds, "medians": medians, "more_s_per_run": more_s}


def many(options: argparse.Namespace) -> dict[str, object]:
    """Queue many runs at once, and return times of the queue and, while they train, of starts of the console; costs of
    the commands that follow them; how often SLURM is asked; and what became of the runs."""
    what = ("--epochs", str(options.epochs), "--max-tokens", str(options.tokens))
    folder = Path(options.folder or tempfile.mkdtemp(prefix="lmconsole-many-"))
    store, empty = folder / "store", folder / "empty"
    for each in (store, empty):
        (each / "runs").mkdir(parents=True)
        (each / "experiments.toml").write_text("include_builtin = true\n[executor.slurm]\nmem = 50\n")
    with SlurmCluster(cpus=options.at_once) as cluster, Meter() as meter:
        result = _follow_many(options, what, store, empty, cluster, meter)
        if not result["stopped"]:
            result |= _finished_many(store, cluster, meter)
    runs = Store(store / "runs").runs()
    finished = [run for run in runs if run.status is Status.FINISHED]
    known = {run.info.seed for run in finished}
    seeds = random.Random(options.seed).sample(sorted(known), min(options.sample, len(known)))
    expected = (
        reference(folder / "reference", ("1", "--seeds", ",".join(map(str, sorted(seeds))), *what)) if seeds else {}
    )
    different = [run.run for run in finished if run.info.seed in seeds and result_of(run) != expected[1, run.info.seed]]
    return result | {
        "finished": len(finished),
        "attempts": sum(run.state.attempt for run in runs),
        "damaged": [run.run for run in runs if run.problem or run.state.log_damaged or run.state.damage],
        "compared": len(expected),
        "different": different,
        "folder": str(folder),
    }


def _follow_many(
    options: argparse.Namespace,
    what: tuple[str, ...],
    folder: Path,
    empty: Path,
    cluster: SlurmCluster,
    meter: Meter,
) -> dict[str, object]:
    """Queue runs, and follow them with the command that queued them and with a console until they have finished."""
    environment = cluster.environment()
    command = ("run", "1", "--seeds", f"1..{options.runs}", *what, *RUNS, "--executor", "slurm")
    began_s = time.monotonic()
    process = lmconsole(folder, *command, environment=environment)
    meter.watch("command", process.pid)
    log = folder / "output.log"
    while "started on" not in log.read_text() and process.poll() is None:
        time.sleep(0.1)
    started_s = time.monotonic()
    store = Store(folder / "runs")
    names = sorted(store.names())
    if not names or process.poll() is not None:
        raise SystemExit(log.read_text())
    created = [(store.root / name / "run.json").stat().st_mtime for name in names]
    scripts = [path.stat().st_mtime for path in (store.root / ".slurm").glob("*/last.sh")]
    poller = store.runner()
    if poller is not None and poller.pid:
        meter.watch("poller", poller.pid)
    asked = _questions(cluster)
    meter.open("console", folder, environment)
    meter.open("empty_console", empty, environment)
    opened_s = time.monotonic()
    result: dict[str, object] = {"stopped": False}
    peaks: dict[str, float] = {}
    places = [0, *options.at]
    visited: list[tuple[int, float]] = []
    while process.poll() is None:
        time.sleep(LOOK_S)
        for name in ("console", "empty_console", "command", "poller"):
            with contextlib.suppress(KeyError, OSError):
                peaks[f"{name}_peak_mib"] = max(meter.peak_mib(name), peaks.get(f"{name}_peak_mib", 0.0))
        if options.stop_after_s is not None and time.monotonic() - started_s > options.stop_after_s:
            result["stopped"] = True
            break
        ended = log.read_text().count("  finished  ")
        if places and ended >= len(names) * places[0] / 100 and time.monotonic() - opened_s > SETTLE_S:
            place = places.pop(0)
            visited.append((place, time.monotonic()))
            found = starts(folder, empty, environment, len(names), (*LMCONSOLE, "status"), options.turns)
            result[f"finished_at_{place}"] = ended
            result[f"load_1min_at_{place}"] = os.getloadavg()[0]
            result |= {f"{name}_at_{place}": value for name, value in found.items()}
    ended_s = time.monotonic()
    minutes = (ended_s - opened_s) / 60.0
    result["squeue_per_minute"] = (_questions(cluster) - asked) / minutes
    if result["stopped"]:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        result["stop_s"] = time.monotonic() - ended_s
        if process.poll() is None:
            process.kill()
            process.wait()
    for name in ("console", "empty_console", "command", "poller"):
        result |= meter.costs(name, opened_s + SETTLE_S, ended_s)
        for place, at_s in visited:
            near = meter.costs(name, max(at_s - WINDOW_S / 2, opened_s + SETTLE_S), min(at_s + WINDOW_S / 2, ended_s))
            result |= {f"{key}_at_{place}": value for key, value in near.items() if key.endswith("cpu_share")}
    return {
        "runs": len(names),
        "at_once": options.at_once,
        "exit": process.returncode,
        "first_started_s": started_s - began_s,
        "queue_s": max(scripts) - min(created),
        "minutes": minutes,
        "seconds": ended_s - began_s,
        **result,
        **peaks,
        **meter.used("command"),
        **meter.used("poller"),
    }


def _finished_many(folder: Path, cluster: SlurmCluster, meter: Meter) -> dict[str, object]:
    """Return what a console costs on the store when all runs have finished."""
    for name in ("console", "empty_console"):
        meter.close(name)
    meter.open("idle_console", folder, cluster.environment())
    opened_s = time.monotonic()
    time.sleep(SETTLE_S + WINDOW_S)
    peak_mib = meter.peak_mib("idle_console")
    return {**meter.costs("idle_console", opened_s + SETTLE_S, time.monotonic()), "idle_console_peak_mib": peak_mib}


def _questions(cluster: SlurmCluster) -> int:
    """Return how often the controller was asked for all jobs, as squeue does."""
    found = re.search(r"REQUEST_JOB_INFO\s.*count:(\d+)", cluster.run("sdiag"))
    return int(found[1]) if found else 0


def main() -> None:
    """Run one of the measurements and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("faults")
    one.add_argument("--kind", required=True)
    one.add_argument("--count", type=int, default=20)
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--ids", nargs="*", default=["1", "5"])
    one.add_argument("--runs", type=int, default=6, help="seeds of each experiment")
    one.add_argument("--epochs", type=int, default=6)
    one.add_argument("--tokens", type=int, default=20_000)
    one.add_argument("--at-once", type=int, default=4)
    one.add_argument("--warning-s", type=int, default=30)
    one.add_argument("--preempt-mode", default="REQUEUE")
    one.add_argument("--grace-s", type=int, default=5)
    one.add_argument("--pause-s", type=float, nargs=2, default=(0.5, 4.0))
    one.set_defaults(measure=faults)
    two = commands.add_parser("overhead")
    two.add_argument("--runs", type=int, default=12)
    two.add_argument("--turns", type=int, default=3)
    two.set_defaults(measure=overhead)
    three = commands.add_parser("many")
    three.add_argument("--runs", type=int, default=1_000)
    three.add_argument("--at-once", type=int, default=3)
    three.add_argument("--epochs", type=int, default=1)
    three.add_argument("--tokens", type=int, default=1_000)
    three.add_argument(
        "--at", type=int, nargs="*", default=(10, 50, 90), help="percentages finished at which to start the console"
    )
    three.add_argument("--turns", type=int, default=3, help="starts of the console at each of them")
    three.add_argument("--sample", type=int, default=20, help="runs that are trained without SLURM, too")
    three.add_argument("--seed", type=int, default=1, help="seed of the choice of that sample")
    three.add_argument("--stop-after-s", type=float, help="stop the runs so many seconds after the first has started")
    three.add_argument("--folder")
    three.set_defaults(measure=many)
    options = parser.parse_args()
    print(json.dumps(options.measure(options), indent=2))


if __name__ == "__main__":
    main()
