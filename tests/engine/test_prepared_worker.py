"""The worker of the next run, prepared while another run trains. The CPU plays the GPU: the runner is made to prepare
ahead there."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import factories
import pytest
import tiny
from engine.test_resume import EAGER, IN_A_STEP
from factories import alive, wait_until

from lmconsole.engine import worker
from lmconsole.engine.prepared_workers import PreparedWorker, prepares_ahead
from lmconsole.engine.runner import Runner, _Worker
from lmconsole.engine.worker import Command, PrepareOnDevice, Train
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import Epoch, Queued, Stopped, Telemetry
from lmconsole.runs.lock import Owner
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

LONG = 100_000
AHEAD = "from lmconsole.engine import prepared_workers\nprepared_workers.prepares_ahead = lambda device: True\n"


def status(run: Run) -> Status:
    run.refresh()
    return run.status


def trains(run: Run) -> bool:
    run.refresh()
    return bool(run.state.epochs) and run.status is Status.RUNNING


def holder(run: Run) -> int | None:
    owner = run.worker()
    return None if owner is None else owner.pid


@pytest.mark.slow
def test_the_next_run_waits_prepared_and_its_clock_starts_with_its_turn(tmp_path: Path) -> None:
    first = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG)
    second, third = (tiny.queue_tiny(tmp_path, seed=seed) for seed in (2, 3))
    alone = tiny.queue_tiny(tmp_path / "alone", seed=2)
    assert tiny.worker(alone, tmp_path / "alone").returncode == 0
    serving = tiny.start_runner(tmp_path, AHEAD)
    wait_until(lambda: trains(first) and holder(second))
    waiting = holder(second)
    since = time.monotonic()
    wait_until(lambda: trains(first) and time.monotonic() - since > 1.5)  # a clock that ran while waiting would show it
    assert holder(third) is None, "one at a time"
    assert (status(second), second.state.started, list(second.state.telemetry)) == (Status.QUEUED, None, [])
    assert second.paths.events.read_bytes().count(b"\n") == 1, "nothing is written before the turn"
    first.request_stop()
    assert serving.wait(60) == 0
    assert [status(run) for run in (first, second, third)] == [Status.STOPPED, Status.FINISHED, Status.FINISHED]
    alone.refresh()
    started, finished, same = second.state.started, second.state.finished, alone.state.finished
    assert started is not None
    assert finished is not None
    assert same is not None
    assert (started.pid, started.attempt) == (waiting, 1)
    assert first.state.last_t < started.t, "one run trains at a time"
    assert finished.wall_s is not None
    after_first = datetime.fromisoformat(second.state.last_t) - datetime.fromisoformat(first.state.last_t)
    assert finished.wall_s < after_first.total_seconds() + 0.5, "it had waited for longer than that before"
    assert (finished.test_ppl_final, finished.best_valid_ppl) == (same.test_ppl_final, same.best_valid_ppl)


@pytest.mark.slow
def test_a_waiting_run_that_is_stopped_records_it_and_makes_room_for_the_next(tmp_path: Path) -> None:
    runs = [tiny.queue_tiny(tmp_path, seed=seed, epochs=LONG) for seed in (1, 2, 3)]
    serving = tiny.start_runner(tmp_path, AHEAD)
    wait_until(lambda: trains(runs[0]) and holder(runs[1]))
    runs[1].request_stop()
    wait_until(lambda: status(runs[1]) is Status.STOPPED)
    assert runs[1].state.started is None
    wait_until(lambda: holder(runs[2]))
    assert status(runs[0]) is Status.RUNNING
    for run in runs:
        run.request_stop()
    assert serving.wait(60) == 0
    assert [status(run) for run in runs] == [Status.STOPPED] * 3
    again = tiny.queue_tiny(tmp_path, seed=2, epochs=LONG)
    assert again.run == runs[1].run


@pytest.mark.slow
def test_a_waiting_worker_ends_with_its_runner_and_the_next_runner_starts_the_run(tmp_path: Path) -> None:
    first, second = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG), tiny.queue_tiny(tmp_path, seed=2)
    killed = tiny.start_runner(tmp_path, AHEAD)
    wait_until(lambda: trains(first) and holder(second))
    killed.kill()
    killed.wait()
    wait_until(lambda: holder(second) is None)
    assert status(second) is Status.QUEUED
    assert holder(first) is not None, "the run that trains goes on"
    serving = tiny.start_runner(tmp_path, AHEAD)
    wait_until(lambda: holder(second) is not None)
    first.request_stop()
    assert serving.wait(60) == 0
    assert (status(first), status(second)) == (Status.STOPPED, Status.FINISHED)
    assert second.state.attempt == 1


@pytest.mark.slow
def test_a_run_whose_waiting_worker_is_killed_is_started_when_its_turn_comes(tmp_path: Path) -> None:
    first, second = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG), tiny.queue_tiny(tmp_path, seed=2)
    serving = tiny.start_runner(tmp_path, AHEAD)
    wait_until(lambda: trains(first) and holder(second))
    pid = holder(second)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "before its turn" in (tmp_path / "output").read_text())
    assert status(second) is Status.QUEUED
    first.request_stop()
    assert serving.wait(60) == 0
    assert (status(first), status(second)) == (Status.STOPPED, Status.FINISHED)


@pytest.mark.slow
def test_a_failure_while_waiting_is_tried_again_and_recorded_at_its_turn(tmp_path: Path) -> None:
    first, second = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG), tiny.queue_tiny(tmp_path, seed=2)
    info = second.paths.info
    info.write_text(info.read_text().replace(second.info.corpus.sha256, "0" * 64))
    tiny.permit(second)
    serving = tiny.start_runner(tmp_path, AHEAD)
    wait_until(lambda: trains(first) and second.paths.worker_log.exists())
    wait_until(lambda: "it starts when that one ends" in second.paths.worker_log.read_text())
    wait_until(lambda: holder(second) is None)
    assert status(second) is Status.QUEUED
    first.request_stop()
    assert serving.wait(60) == 0
    assert (status(first), status(second)) == (Status.STOPPED, Status.FAILED)
    assert second.state.started is not None
    assert second.state.failed is not None
    assert second.state.failed.error == "corpus-changed"


@pytest.mark.slow
def test_data_is_read_once_for_all_runs_of_a_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus is removed while the first run trains, and the next run still has its data."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    first, second = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG), tiny.queue_tiny(tmp_path, seed=2)
    serving = tiny.start_runner(tmp_path)
    wait_until(lambda: trains(first))
    (folder,) = (tmp_path / "temporary").glob("lmconsole-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    (entry,) = folder.glob("corpus-*-all")
    assert sorted(file.name for file in entry.iterdir()) == ["test.npy", "train.npy", "validation.npy"]
    for file in (tmp_path / "data").iterdir():
        file.unlink()
    first.request_stop()
    assert serving.wait(60) == 0
    assert status(second) is Status.FINISHED
    assert not folder.exists()


def test_a_fast_path_that_fails_while_waiting_leaves_the_run_to_another_process() -> None:
    """The memory that another run leaves must not decide which kernels this one uses."""
    steps: list[str] = []
    attempt: Any = SimpleNamespace(
        fell_back=True,
        prepare_on_host=lambda: steps.append("host"),
        prepare_on_device=lambda: steps.append("device"),
    )
    receiver, sender = multiprocessing.Pipe(duplex=False)
    sender.send(PrepareOnDevice(environment={}))
    with pytest.raises(RuntimeError, match="fast path"):
        worker._wait(attempt, receiver, lambda: False)
    assert steps == ["host", "device"]
    attempt.fell_back = False
    train = Train(environment={}, sibling_pids=(7,), sent_at_s=3.0)
    for command in (PrepareOnDevice(environment={}), train):
        sender.send(command)
    assert worker._wait(attempt, receiver, lambda: False) == train
    assert worker._wait(attempt, receiver, lambda: True) is None, "stopped"
    sender.close()
    with pytest.raises(worker._ConnectionClosed):
        worker._wait(attempt, receiver, lambda: False)


@pytest.mark.slow
def test_a_waiting_worker_ends_when_its_run_is_removed(tmp_path: Path) -> None:
    first, second = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG), tiny.queue_tiny(tmp_path, seed=2)
    serving = tiny.start_runner(tmp_path, AHEAD)
    wait_until(lambda: trains(first) and holder(second))
    pid = holder(second)
    assert pid is not None
    second.paths.folder.rename(tmp_path / "elsewhere")  # at once: the worker may be opening its log
    wait_until(lambda: not alive(pid))
    first.request_stop()
    assert serving.wait(60) == 0


# ---- the commands that the runner sends


def running(run: Run, *events: Epoch | Telemetry, device: str) -> None:
    """Write into the log of ``run`` that it trains on ``device``, then ``events``."""
    start = factories.started(device="cuda:0", device_name="GPU", device_uuid=device)
    factories.append_events(run.paths, start, *events)


class FakeWorkers:
    """A runner whose workers are names in a list, and the commands that each was sent."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = Store(root / "runs")
        self.runner = Runner(self.store)
        self.started: list[tuple[str, str]] = []
        self.sent: dict[str, list[Command]] = {}
        monkeypatch.setattr(worker, "start", self.start)
        monkeypatch.setattr(worker, "start_waiting", self.start_waiting)
        monkeypatch.setattr(Run, "worker", lambda run: self.owner(run))

    def start(self, run: Run, device: str, *_: object) -> Any:
        self.started.append((run.run, device))
        return SimpleNamespace(pid=0, exitcode=None, sentinel=0)

    def owner(self, run: Run) -> Owner | None:
        """A worker holds its lock from its start on."""
        return Owner(1) if run.run in self.runner._workers or run.run in self.runner._prepared.by_run else None

    def start_waiting(self, run: Run, *_: object) -> Any:
        sent = self.sent.setdefault(run.run, [])
        return SimpleNamespace(pid=0, exitcode=None, sentinel=0), SimpleNamespace(send=sent.append, close=lambda: None)

    def step(self) -> None:
        """Do what ``serve`` does in each round."""
        runs = self.store.runs()
        busy = self.runner._busy(runs)
        waiting = [run for run in runs if self.runner._waits(run) and run.run not in busy]
        for run in waiting:
            self.runner._start(run, busy)
        self.runner._prepare_ahead(waiting, busy, runs)


def queued_on(root: Path, devices: tuple[str, ...], *, seeds: int, jobs: int = 1) -> list[Run]:
    runs = [tiny.queue_tiny(root, seed=seed) for seed in range(seeds)]
    for run in runs:
        lines = run.paths.events.read_bytes()
        run.paths.events.write_bytes(b"")
        log = EventLog(run.paths.events)
        log.append(Queued(devices=devices, jobs=jobs))
        log.close()
        assert lines != run.paths.events.read_bytes()
    return runs


def test_the_device_is_left_alone_until_the_other_run_only_has_its_tests_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = queued_on(tmp_path, ("GPU-a",), seeds=3)
    fake = FakeWorkers(tmp_path, monkeypatch)
    fake.step()
    assert fake.started == [(first.run, "GPU-a")]
    assert not fake.sent, "nothing is prepared before the first run is known to train"
    running(first, device="GPU-a")
    fake.step()
    assert fake.sent == {second.run: []}
    log = EventLog(first.paths.events)
    log.append(Telemetry(phase="train", epoch=1))
    log.append(factories.epoch(1))
    fake.step()
    assert fake.sent == {second.run: []}
    log.append(factories.epoch(2))  # its last
    log.close()
    for _ in range(3):
        fake.step()
    assert fake.sent[second.run] == [PrepareOnDevice(environment={"CUDA_VISIBLE_DEVICES": "GPU-a"})]
    assert list(fake.sent) == [second.run]
    assert third.run not in fake.sent, "one run is prepared for each GPU"
    del fake.runner._workers[first.run]
    end(first)
    fake.step()
    assert [type(each) for each in fake.sent[second.run]] == [PrepareOnDevice, Train]
    assert fake.started == [(first.run, "GPU-a")], "the worker that waited trains the run"
    assert fake.runner._workers[second.run].device == "GPU-a"


def end(run: Run) -> None:
    factories.append_events(run.paths, Stopped(epoch=1, step=0))


@pytest.mark.parametrize("queued_again", [False, True])
def test_the_death_of_a_worker_is_recorded_unless_its_run_was_queued_again(tmp_path: Path, queued_again: bool) -> None:
    run = tiny.queue_tiny(tmp_path)
    own = Runner(Store(tmp_path / "runs"))
    process = cast(BaseProcess, SimpleNamespace(pid=1, exitcode=-9, sentinel=0))
    own._workers[run.run] = _Worker(process, "cpu", run.state.queued_seq)
    if queued_again:
        end(run)
        tiny.queue_tiny(tmp_path)
    own._reap(own.store.runs())
    run.refresh()
    assert run.status is (Status.QUEUED if queued_again else Status.FAILED)


def test_tests_that_come_early_are_seen_by_the_telemetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that diverges or stops early has fewer epochs."""
    first, second = queued_on(tmp_path, ("GPU-a",), seeds=2)
    fake = FakeWorkers(tmp_path, monkeypatch)
    fake.step()
    running(first, factories.epoch(1), Telemetry(phase="test"), device="GPU-a")
    fake.step()
    assert [type(each) for each in fake.sent[second.run]] == [PrepareOnDevice]


def test_epochs_of_an_earlier_attempt_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose last attempt ended before its checkpoint was whole trains its last epoch again."""
    first, second = queued_on(tmp_path, ("GPU-a",), seeds=2)
    fake = FakeWorkers(tmp_path, monkeypatch)
    fake.step()
    running(first, factories.epoch(1), factories.epoch(2), device="GPU-a")
    running(first, Telemetry(phase="setup"), device="GPU-a")
    fake.step()
    assert fake.sent == {second.run: []}


def test_a_device_without_memory_for_two_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = queued_on(tmp_path, ("GPU-a",), seeds=2)
    fake = FakeWorkers(tmp_path, monkeypatch)
    fake.step()
    sample = Telemetry(phase="test", device_total_mib=8_000.0, device_used_mib=5_000.0, torch_reserved_mib=4_000.0)
    running(first, sample, device="GPU-a")
    fake.step()
    assert fake.sent == {second.run: []}


def test_a_run_that_waits_for_room_is_not_overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, alone, last = queued_on(tmp_path, ("cpu",), seeds=3)
    for run, jobs in ((first, 2), (alone, 1), (last, 2)):
        run.paths.events.write_bytes(b"")
        factories.append_events(run.paths, factories.queued(jobs=jobs))
    fake = FakeWorkers(tmp_path, monkeypatch)
    fake.step()
    fake.step()
    assert fake.started == [(first.run, "cpu")]


def test_a_run_that_cannot_be_prepared_is_not_overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later run would hold the device while this one trains."""
    first, second, third = queued_on(tmp_path, ("GPU-a",), seeds=3)
    fake = FakeWorkers(tmp_path, monkeypatch)
    fake.step()
    running(first, factories.epoch(1), factories.epoch(2), device="GPU-a")
    fake.runner._prepared.not_ahead.add(second.run)
    fake.step()
    assert third.run not in fake.sent


def test_the_run_that_is_prepared_on_a_device_goes_first_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c, d = queued_on(tmp_path, ("GPU-a", "GPU-b"), seeds=4)
    fake = FakeWorkers(tmp_path, monkeypatch)
    fake.step()
    for run, device in ((a, "GPU-a"), (b, "GPU-b")):
        running(run, factories.epoch(1), factories.epoch(2), device=device)
    fake.step()
    assert {fake.runner._prepared.by_run[run.run].device for run in (c, d)} == {"GPU-a", "GPU-b"}
    free = fake.runner._prepared.by_run[d.run].device
    ended = next(run for run in (a, b) if fake.runner._workers[run.run].device == free)
    del fake.runner._workers[ended.run]
    end(ended)
    fake.step()
    assert [type(each) for each in fake.sent[d.run]] == [PrepareOnDevice, Train]
    assert [type(each) for each in fake.sent[c.run]] == [PrepareOnDevice], "its device is not free"


def test_a_worker_that_waits_on_a_device_ends_when_another_run_is_started_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its memory on the device would be measured as that run's."""
    first, later = queued_on(tmp_path, ("GPU-a",), seeds=2)
    fake = FakeWorkers(tmp_path, monkeypatch)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process: Any = SimpleNamespace(pid=0, exitcode=None, sentinel=0)
    fake.runner._prepared.by_run[later.run] = PreparedWorker(process, sender, later.state.queued_seq, "GPU-a")
    fake.step()
    assert fake.started == [(first.run, "GPU-a")]
    with pytest.raises(EOFError):
        receiver.recv()
    receiver.close()
    process.exitcode = worker.EXIT_NOT_TRAINED
    fake.runner._reap(fake.store.runs())
    assert later.run not in fake.runner._prepared.by_run
    assert later.run not in fake.runner._prepared.not_ahead, "it may be prepared again"


def test_one_run_is_prepared_for_each_gpu_and_takes_whichever_is_free_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, d, _ = queued_on(tmp_path, ("GPU-a", "GPU-b"), seeds=5)
    fake = FakeWorkers(tmp_path, monkeypatch)
    fake.step()
    assert {run for run, _ in fake.started} == {a.run, b.run}
    for run, device in ((a, "GPU-a"), (b, "GPU-b")):
        running(run, device=device)
    fake.step()
    assert fake.sent == {c.run: [], d.run: []}
    free = fake.runner._workers.pop(b.run).device
    end(b)
    fake.step()
    assert [each.environment for each in fake.sent[c.run]] == [{"CUDA_VISIBLE_DEVICES": free}]
    assert fake.sent[d.run] == []


@pytest.mark.parametrize(("devices", "jobs"), [(("cpu",), 1), (("GPU-a",), 2)])
def test_nothing_is_prepared_on_a_cpu_or_where_several_runs_share_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], jobs: int
) -> None:
    runs = queued_on(tmp_path, devices, seeds=4, jobs=jobs)
    fake = FakeWorkers(tmp_path, monkeypatch)
    fake.step()
    for run in runs[:jobs]:
        running(run, device=devices[0])
    fake.step()
    assert len(fake.started) == jobs
    assert not fake.sent


@pytest.mark.slow
def test_preparing_on_the_host_leaves_gpus_alone(tmp_path: Path) -> None:
    """Any use of CUDA takes memory of the device on which another run is measured."""
    run = tiny.queue_tiny(tmp_path)
    assert tiny.worker(run, tmp_path, EAGER + IN_A_STEP.format(steps=3)).returncode == -9  # with a checkpoint to read
    code = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from lmconsole.engine.attempt import Attempt\n"
        "from lmconsole.runs.event_log import EventLog\nfrom lmconsole.runs.event_reader import EventReader\n"
        "from lmconsole.runs.state import RunState\n"
        "from lmconsole.runs.info import read_info\nfrom lmconsole.runs.paths import RunPaths\n"
        "def used(*_, **__):\n    raise SystemExit('CUDA was used')\n"
        "for name in ('is_available', 'device_count', '_lazy_init', 'get_device_properties', 'synchronize'):\n"
        "    setattr(torch.cuda, name, used)\n"
        "for name in ('is_available', 'device_count', 'current_accelerator', 'current_stream', 'synchronize'):\n"
        "    setattr(torch.accelerator, name, used)\n"
        "paths = RunPaths(Path(sys.argv[1]))\n"
        "log = EventLog(paths.events)\n"
        "history = RunState()\n"
        "history.apply(EventReader(paths.events).read_new())\n"
        "attempt = Attempt(read_info(paths.info), paths, log, history, device_name='cuda:0', shared=None,\n"
        "                  stop_requested=lambda: False)\n"
        "attempt.prepare_on_host()\nprint('prepared', attempt._training.state.step)"
    )
    command = [sys.executable, "-c", code, str(run.paths.folder)]
    done = subprocess.run(
        command, env=tiny.environment(tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "prepared 2\n", done.stderr
    assert prepares_ahead("GPU-a")
    assert not prepares_ahead("cpu")
