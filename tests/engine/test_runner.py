"""The runner, with real processes: starting workers, surviving them, and being survived by them."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny
from factories import append_events, wait_until

from lmconsole.engine import queue
from lmconsole.runs.events import Queued, Stopped
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry import host

pytestmark = pytest.mark.slow

LONG = 100_000
"""Epochs of a run that outlasts the test."""


def status(run: Run) -> Status:
    run.refresh()
    return run.status


def progressed(run: Run) -> bool:
    run.refresh()
    return bool(run.state.epochs)


def kill(run: Run) -> None:
    owner = run.worker()
    assert owner is not None
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGKILL)


def test_runs_are_trained_oldest_first_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    first = tiny.queue_tiny(tmp_path, seed=1)
    second = tiny.queue_tiny(tmp_path, seed=2)
    third = tiny.queue_tiny(tmp_path, seed=3, model="gpt1")
    info = second.paths.info
    info.write_text(info.read_text().replace(second.info.corpus.sha256, "0" * 64))
    tiny.permit(second)
    assert tiny.start_runner(tmp_path).wait(120) == 0
    assert [status(run) for run in (first, second, third)] == [Status.FINISHED, Status.FAILED, Status.FINISHED]
    assert second.state.failed is not None
    assert second.state.failed.error == "corpus-changed"
    assert "--fresh" in second.state.failed.hint
    assert first.state.started is not None
    assert third.state.started is not None
    assert first.state.last_t < third.state.started.t, "one at a time"


def test_a_killed_worker_is_declared_failed_and_the_next_one_started(tmp_path: Path) -> None:
    long = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG)
    short = tiny.queue_tiny(tmp_path, seed=2)
    runner = tiny.start_runner(tmp_path)
    wait_until(lambda: progressed(long))
    kill(long)
    assert runner.wait(60) == 0
    assert (status(long), status(short)) == (Status.FAILED, Status.FINISHED)
    assert long.state.failed is not None
    assert long.state.failed.error == "killed"
    assert "SIGKILL" in long.state.failed.message
    assert "resumes" in long.state.failed.hint


def test_workers_outlive_a_killed_runner_and_the_next_runner_respects_them(tmp_path: Path) -> None:
    orphan = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG)
    waiting = tiny.queue_tiny(tmp_path, seed=2)
    first = tiny.start_runner(tmp_path)
    wait_until(lambda: progressed(orphan))
    first.kill()
    first.wait()
    second = tiny.start_runner(tmp_path)
    try:
        epochs = len(orphan.state.epochs)
        wait_until(lambda: orphan.refresh() is not None and len(orphan.state.epochs) > epochs + 3)
        assert status(waiting) is Status.QUEUED, "the orphan has the only slot"
        orphan.request_stop()
        assert second.wait(60) == 0
        assert (status(orphan), status(waiting)) == (Status.STOPPED, Status.FINISHED)
        assert orphan.state.attempt == 1
    finally:
        if second.poll() is None:
            second.kill()
            second.wait()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere workers are not forked")
def test_workers_are_forked_from_one_process_and_each_has_a_session_of_its_own(tmp_path: Path) -> None:
    runs = [tiny.queue_tiny(tmp_path, seed=seed, epochs=LONG, jobs=2) for seed in (1, 2)]
    runner = tiny.start_runner(tmp_path)
    try:
        for run in runs:
            wait_until(lambda run=run: progressed(run))  # type: ignore[misc]
        pids = [run.state.started.pid for run in runs if run.state.started is not None]
        parents = {psutil.Process(pid).ppid() for pid in pids}
        assert len(set(pids)) == 2
        assert len(parents) == 1
        assert parents.isdisjoint({runner.pid, os.getpid(), 1})
        assert [os.getsid(pid) for pid in pids] == pids
        server = psutil.Process(parents.pop())
    finally:
        for run in runs:
            run.request_stop()
    assert runner.wait(60) == 0
    server.wait(10)
    assert [status(run) for run in runs] == [Status.STOPPED] * 2


def test_workers_outlive_the_process_they_were_forked_from(tmp_path: Path) -> None:
    run, later = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG), tiny.queue_tiny(tmp_path, seed=2)
    runner = tiny.start_runner(tmp_path)
    wait_until(lambda: progressed(run))
    assert run.state.started is not None
    server = psutil.Process(run.state.started.pid).parent()
    assert server is not None
    assert server.pid != runner.pid
    server.kill()
    epochs = len(run.state.epochs)
    wait_until(lambda: run.refresh() is not None and len(run.state.epochs) > epochs + 3)
    assert status(later) is Status.QUEUED, "the slot is not free"
    kill(run)
    assert runner.wait(60) == 0
    assert (status(run), status(later)) == (Status.FAILED, Status.FINISHED)


def test_the_folder_of_the_command_may_be_removed(tmp_path: Path) -> None:
    runs = [tiny.queue_tiny(tmp_path, seed=seed) for seed in (1, 2)]
    gone = tmp_path / "gone"
    gone.mkdir()
    assert tiny.start_runner(tmp_path, "import os\nos.rmdir(os.getcwd())", cwd=gone).wait(120) == 0
    assert not gone.exists()
    assert [status(run) for run in runs] == [Status.FINISHED] * 2


def test_an_interrupted_runner_ends_at_once_and_its_worker_continues(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, epochs=LONG)
    runner = tiny.start_runner(tmp_path)
    try:
        wait_until(lambda: progressed(run))
        runner.send_signal(signal.SIGINT)
        assert runner.wait(20) != 0
        epochs = len(run.state.epochs)
        wait_until(lambda: run.refresh() is not None and len(run.state.epochs) > epochs + 3)
    finally:
        run.request_stop()
        runner.kill()
        runner.wait()
    wait_until(lambda: status(run) is Status.STOPPED)


def test_where_workers_cannot_be_forked_they_are_started_as_new_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's name has at most 108 bytes, and the folder for temporary files may have a longer one."""
    long = tmp_path / ("long" * 25)
    long.mkdir()
    run = tiny.queue_tiny(tmp_path)
    monkeypatch.setenv("TMPDIR", str(long))
    assert tiny.start_runner(tmp_path).wait(120) == 0
    assert status(run) is Status.FINISHED
    output = (tmp_path / "output").read_text()
    forks = sys.platform.startswith("linux")
    assert ("as new programs instead of forked: AF_UNIX path too long" in output) is forks


def test_of_several_runners_at_once_one_serves(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    runners = [tiny.start_runner(tmp_path) for _ in range(4)]
    assert [runner.wait(120) for runner in runners] == [0, 0, 0, 0]
    assert status(run) is Status.FINISHED
    assert run.state.attempt == 1


def test_jobs_limit_how_many_run_at_once_and_the_strictest_run_decides(tmp_path: Path) -> None:
    runs = [tiny.queue_tiny(tmp_path, seed=seed, epochs=15, jobs=2) for seed in range(3)]
    alone = tiny.queue_tiny(tmp_path, seed=9, jobs=1)
    runner = tiny.start_runner(tmp_path)
    most = together_with_alone = 0
    while runner.poll() is None:
        active = [run for run in [*runs, alone] if run.worker() is not None]
        most = max(most, len(active))
        if alone in active:
            together_with_alone = max(together_with_alone, len(active))
        time.sleep(0.02)
    assert all(status(run) is Status.FINISHED for run in [*runs, alone])
    assert most == 2
    assert together_with_alone == 1


def test_a_stop_is_honored_for_a_queued_run(tmp_path: Path) -> None:
    long = tiny.queue_tiny(tmp_path, seed=1, epochs=LONG)
    waiting = tiny.queue_tiny(tmp_path, seed=2)
    waiting.request_stop()
    runner = tiny.start_runner(tmp_path)
    wait_until(lambda: status(waiting) is Status.STOPPED)
    wait_until(lambda: progressed(long))
    long.request_stop()
    assert runner.wait(60) == 0
    assert waiting.state.started is None
    assert status(long) is Status.STOPPED


def test_a_program_is_run_once_when_the_queue_is_empty(tmp_path: Path) -> None:
    marker = tmp_path / "done; touch not-a-shell"
    # The variable is for workers alone.
    program = ["sh", "-c", 'echo "empty$GOMP_SPINCOUNT" >>"$0"', str(marker)]
    done = tiny.lmconsole(
        "run", "1", "2", "--headless", "--preset", "tiny", "--data", str(tiny.write_corpus(tmp_path / "data")),
        "--experiments", str(tiny.write_experiments(tmp_path / "e.toml", tiny.row(1), tiny.row(2, "gpt1"))),
        "--no-export", "--jobs", "2", "--on-finish", shlex.join(program), cwd=tmp_path, check=0,
    )  # fmt: skip
    wait_until(lambda: Store(tmp_path / "runs").runner() is None)
    wait_until(lambda: not any(str(marker) in (p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])))
    assert marker.read_text() == "empty\n", done.stderr
    assert not (tmp_path / "not-a-shell").exists()
    assert not (tmp_path / "exports").exists()


def test_a_second_worker_writes_nothing(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, epochs=LONG)
    first = tiny.start("-m", "lmconsole.engine.worker", str(run.paths.folder), "--device", "cpu", root=tmp_path)
    try:
        wait_until(lambda: progressed(run))
        quick = "from lmconsole.engine import worker\nworker.LOCK_TIMEOUT_S = 0.1\n"
        assert tiny.worker(run, tmp_path, quick).returncode == 75
        run.request_stop()
        assert first.wait(60) == 0
    finally:
        first.kill()
        first.wait()
    run.refresh()
    assert (run.status, run.state.attempt, run.state.damaged) == (Status.STOPPED, 1, 0)


def test_a_run_that_ended_is_not_trained_again_by_a_late_worker(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    assert tiny.worker(run, tmp_path).returncode == 0
    before = run.paths.events.read_bytes()
    assert tiny.worker(run, tmp_path).returncode == 75
    assert run.paths.events.read_bytes() == before


@pytest.mark.parametrize(
    ("prelude", "error", "words"),
    [
        ("raise MemoryError", "out-of-memory", "cpu ran out of memory: host "),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate 9 GiB')", "out-of-memory", "--precision bf16"),
        ("raise OSError(28, 'No space left on device')", "disk-full", "Free space"),
        ("raise ValueError('\\x1b[31m odd')", "crash", "worker.log"),
        ("import sys; sys.exit(3)", "crash", "worker.log"),
    ],
)
def test_any_failure_is_recorded_with_advice(tmp_path: Path, prelude: str, error: str, words: str) -> None:
    run = tiny.queue_tiny(tmp_path)
    code = f"from lmconsole.lm import steps\ndef broken(*_):\n    {prelude}\nsteps.Steps.step = broken\n"
    assert tiny.worker(run, tmp_path, code).returncode == 1
    run.refresh()
    failed = run.state.failed
    assert run.status is Status.FAILED
    assert failed is not None
    assert failed.error == error
    assert words in failed.message + failed.hint
    assert tiny.worker(tiny.queue_tiny(tmp_path), tmp_path).returncode == 0


def test_a_full_disk_fails_the_run_and_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    limit = "import resource\nfrom lmconsole.lm import checkpoint, loop\nreal, n = checkpoint.save, 0\n"
    limit += "loop.TICK_S, checkpoint.save_interval_s = 0.0, lambda write_s: 0.0\n"
    limit += "def save(*a):\n    global n\n    n += 1\n"
    limit += "    if n == 2:\n        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n    real(*a)\n"
    limit += "checkpoint.save = save\n"
    assert tiny.worker(run, tmp_path, limit).returncode == 1
    run.refresh()
    assert run.state.failed is not None
    assert run.state.failed.error == "disk-full"
    assert "resumes from its last checkpoint" in run.state.failed.hint
    assert not (run.paths.folder / ".checkpoint.tmp").exists()
    again = tiny.queue_tiny(tmp_path)
    done = tiny.worker(again, tmp_path)
    assert done.returncode == 0
    assert "cannot be used" not in done.stdout
    again.refresh()
    assert b'"kind":"resumed","seq"' in again.paths.events.read_bytes()
    assert [epoch.epoch for epoch in again.state.epochs] == [1, 2]


def test_a_resumed_run_with_all_threads_has_the_cores_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (host, queue):
        monkeypatch.setattr(module, "cores", lambda: 2)
    large = tiny.queue_tiny(tmp_path, seed=9, epochs=2, threads=2)
    append_events(large.paths, Stopped(epoch=1, step=0))
    before = [tiny.queue_tiny(tmp_path, seed=seed, epochs=15, jobs=2, auto=True) for seed in (1, 2)]
    assert tiny.queue_tiny(tmp_path, seed=9, epochs=2, jobs=2, auto=True).run == large.run
    after = [tiny.queue_tiny(tmp_path, seed=seed, epochs=15, jobs=2, auto=True) for seed in (3, 4)]
    assert tiny.start_runner(tmp_path).wait(120) == 0
    assert all(status(run) is Status.FINISHED for run in [*before, large, *after])
    assert large.state.started is not None
    assert large.state.started.threads == 2
    assert [run for run in [*before, *after] if at_once(run, large)] == []
    assert at_once(*before)
    assert at_once(*after)


def at_once(one: Run, other: Run) -> bool:
    """Return whether two runs trained at the same time, by their logs."""
    assert one.state.started is not None
    assert other.state.started is not None
    return one.state.started.t < other.state.last_t and other.state.started.t < one.state.last_t


def test_runs_are_started_in_the_order_of_the_queue_whatever_their_age_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "utc_now", lambda: "2026-01-01T00:00:00.000Z")
    old = tiny.queue_tiny(tmp_path, seed=8)
    append_events(old.paths, Stopped(epoch=1, step=0))
    wanted = [tiny.resolved_tiny(tmp_path, seed=seed) for seed in (7, 8, 3, 5)]
    store, queued = Store(tmp_path / "runs"), Queued(devices=("cpu",), jobs=1)
    queue.enqueue(store, wanted, queued, fresh=False, refuse_active=True, threads=1)
    assert tiny.start_runner(tmp_path).wait(120) == 0
    started = {run.info.seed: run.state.started.t for run in store.runs() if run.state.started}
    assert sorted(started, key=lambda seed: started[seed]) == [7, 8, 3, 5]
