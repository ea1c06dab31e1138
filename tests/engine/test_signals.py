"""Signals to workers and runners: each asks for a checkpoint and a clean stop, from a worker's first instruction on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny
from engine.test_prepared_worker import AHEAD, LONG, holder, status, trains
from engine.test_resume import EAGER, IN_A_STEP, IN_VALIDATION, metrics, uninterrupted
from factories import locked_by_another_process, wait_until

from lmconsole.commands import interrupts
from lmconsole.engine import stop_signals
from lmconsole.engine.stop_signals import STOP_SIGNALS
from lmconsole.lm.read_checkpoint import Expected, read_checkpoint
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Stopped
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

NAMES = [number.name for number in STOP_SIGNALS]
FIRST_INSTRUCTION = """
import os
SIGNALS = {signals}
number = 0
def count():
    global number
    number += 1
def send():
    os.kill(os.getpid(), SIGNALS[number % len(SIGNALS)])
os.register_at_fork(after_in_child=send, after_in_parent=count)
"""
"""Module of the fork server: each worker sends itself the next signal before it does anything else."""


def test_the_signals_of_people_service_managers_and_batch_systems_are_handled() -> None:
    assert {"SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"} <= set(NAMES)


def stopped_with_a_checkpoint(run: Run) -> bool:
    found = read_checkpoint(run.paths.checkpoint, Expected.of(run.info)).state
    assert status(run) is Status.STOPPED
    assert run.state.stopped is not None
    assert (run.state.stopped.epoch, run.state.stopped.step) == (found.epoch, found.step)
    return True


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere workers are not forked")
def test_a_worker_that_gets_a_signal_at_its_first_instruction_stops(tmp_path: Path) -> None:
    (tmp_path / "signal_at_fork.py").write_text(FIRST_INSTRUCTION.format(signals=list(map(int, STOP_SIGNALS))))
    runs = [tiny.queue_tiny(tmp_path, seed=seed, epochs=LONG) for seed in range(len(STOP_SIGNALS))]
    prelude = f"sys.path.append({str(tmp_path)!r})\nworker.PRELOAD = (*worker.PRELOAD, 'signal_at_fork')"
    serving = tiny.start_runner(tmp_path, prelude)
    assert serving.wait(120) == 0
    assert all(stopped_with_a_checkpoint(run) for run in runs)


SPAWNED = """
real = worker.get_context
class Unavailable:
    def set_forkserver_preload(self, modules): pass
    def Process(self, **more): return self
    def start(self): raise OSError("no fork server today")
worker.get_context = lambda method: Unavailable() if method == "forkserver" else real(method)
"""


@pytest.mark.slow
def test_workers_that_get_a_signal_while_they_are_being_imported_stop(tmp_path: Path) -> None:
    """A worker that is not forked imports PyTorch itself, which takes seconds."""
    jobs = len(STOP_SIGNALS)
    runs = [tiny.queue_tiny(tmp_path, seed=seed, epochs=LONG, jobs=jobs) for seed in range(jobs)]
    serving = tiny.start_runner(tmp_path, SPAWNED)
    signalled: set[int] = set()
    waiting = list(STOP_SIGNALS)
    while waiting:
        for child in psutil.Process(serving.pid).children():
            if child.pid not in signalled and "--multiprocessing-fork" in child.cmdline():
                signalled.add(child.pid)
                child.send_signal(waiting.pop())
        time.sleep(0.02)
    assert serving.wait(120) == 0
    assert all(stopped_with_a_checkpoint(run) for run in runs)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_worker_that_gets_a_signal_while_it_waits_for_its_lock_stops(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, epochs=LONG)
    with locked_by_another_process(run.paths.lock):
        serving = tiny.start("-m", "lmconsole.engine.worker", str(run.paths.folder), "--device", "cpu", root=tmp_path)
        # It handles signals from its first statement on; that this has come is visible in the set of those it catches.
        caught = 1 << (signal.SIGUSR2 - 1)
        wait_until(lambda: caught & int(_status(serving.pid, "SigCgt"), 16))
        serving.send_signal(signal.SIGUSR2)
    assert serving.wait(60) == 0
    assert stopped_with_a_checkpoint(run)


def _status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(name))


@pytest.mark.slow
def test_a_waiting_worker_that_gets_a_signal_stops_and_its_run_is_not_started(tmp_path: Path) -> None:
    first = tiny.queue_tiny(tmp_path, seed=99, epochs=LONG)
    later = [tiny.queue_tiny(tmp_path, seed=seed) for seed in range(len(STOP_SIGNALS))]
    serving = tiny.start_runner(tmp_path, AHEAD)
    for run, number in zip(later, STOP_SIGNALS, strict=True):
        wait_until(lambda run=run: trains(first) and holder(run))  # type: ignore[misc]
        pid = holder(run)
        assert pid is not None
        os.kill(pid, number)
        wait_until(lambda run=run: status(run) is Status.STOPPED)  # type: ignore[misc]
        assert run.state.started is None
        assert status(first) is Status.RUNNING
    first.request_stop()
    assert serving.wait(60) == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that was never interrupted."""
    return uninterrupted(tmp_path_factory.mktemp("alone"))


SEND = "os.kill(os.getpid(), signal.{name})"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "names"),
    [
        (IN_A_STEP.format(steps=4), NAMES),
        (IN_VALIDATION.format(split="validation"), ["SIGUSR1"]),
        (IN_VALIDATION.format(split="test"), ["SIGUSR2"]),
    ],
    ids=["training", "validation", "test"],
)
def test_a_run_stopped_by_a_signal_resumes_to_the_same_bits(
    tmp_path: Path, alone: Run, moment: str, names: list[str]
) -> None:
    for name in names:
        root = tmp_path / name
        run = tiny.queue_tiny(root)
        assert tiny.worker(run, root, EAGER + moment.replace("die()", SEND.format(name=name))).returncode == 0
        assert stopped_with_a_checkpoint(run)
        if name != names[0]:
            continue
        tiny.queue_tiny(root)
        assert tiny.worker(run, root).returncode == 0
        run.refresh()
        assert metrics(run) == metrics(alone)


@pytest.mark.slow
def test_a_batch_system_signals_every_process_of_a_job_at_once(tmp_path: Path) -> None:
    """The worker stops with a checkpoint. The runner, the process that workers are forked from, and multiprocessing's
    own process do not die of the signal, and the next run is started."""
    runs = [tiny.queue_tiny(tmp_path, seed=seed, epochs=LONG) for seed in (1, 2)]
    serving = tiny.start_runner(tmp_path)
    for number, run in zip((signal.SIGUSR1, signal.SIGUSR2), runs, strict=True):
        wait_until(lambda run=run: trains(run))  # type: ignore[misc]
        for process in [psutil.Process(serving.pid), *psutil.Process(serving.pid).children(recursive=True)]:
            process.send_signal(number)
        wait_until(lambda run=run: status(run) is Status.STOPPED)  # type: ignore[misc]
        assert stopped_with_a_checkpoint(run)
    assert serving.wait(60) == 0
    assert "Traceback" not in (tmp_path / "output").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_programs_that_the_runner_starts_die_of_signals_as_usual(tmp_path: Path) -> None:
    """They inherit neither its handlers nor blocked signals."""
    (tmp_path / "runs").mkdir()
    code = (
        "import subprocess, sys\nfrom pathlib import Path\nfrom lmconsole.engine import runner\n"
        "program = ['grep', '-E', 'SigBlk|SigIgn', '/proc/self/status']\n"
        "runner.Runner.serve = lambda self: subprocess.run(program, check=True)\n"
        "sys.exit(runner.main(Path(sys.argv[1])))"
    )
    with stop_signals.hold_back():
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "runs")], env=tiny.environment(tmp_path),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.stdout.count("Sig") == 2, done.stderr
    for line in done.stdout.splitlines():
        for number in set(STOP_SIGNALS) - {signal.SIGINT}:  # a shell in the background has its programs ignore that
            assert not int(line.split()[1], 16) & 1 << (number - 1), (line, number)


@pytest.mark.slow
def test_commands_that_get_a_signal_stop_the_runs_that_they_queued_and_no_others(tmp_path: Path) -> None:
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    tiny.write_corpus(tmp_path / "data")
    file = tiny.write_experiments(tmp_path / "mine.toml", tiny.row(1, more=f"epochs = {LONG}"))
    options = ["--headless", "--preset", "tiny", "--experiments", str(file), "--data", "data", "--no-export"]
    processes = [
        tiny.start("-m", "lmconsole", "run", "1", *options, "--seeds", str(seed), "--jobs", "3", root=tmp_path)
        for seed in range(len(numbers))
    ]
    store = Store(tmp_path / "runs")
    wait_until(lambda: sum(trains(run) for run in store.runs()) == len(numbers))
    runs = sorted(store.runs(), key=lambda run: run.info.seed)
    for process, number, run in zip(processes, numbers, runs, strict=True):
        assert status(run) is Status.RUNNING
        process.send_signal(number)
        assert process.wait(60) == 130, (tmp_path / "output").read_text()
        assert stopped_with_a_checkpoint(run)
        assert isinstance(EventReader(run.paths.events).read_new()[-1], Stopped)


def test_only_a_person_or_the_same_signal_again_makes_a_command_kill_what_it_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch system warns with SIGUSR1, and sends SIGTERM when the time is up."""
    monkeypatch.setattr(interrupts, "SAME_SIGNAL_S", 0.0)
    with interrupts.Interrupts() as received:
        received.hold()
        counts = []
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            counts.append(received.count)
    assert counts == [1, 1, 1, 2, 3]
