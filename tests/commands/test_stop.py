"""`lmconsole stop --wait` returns when the workers have ended, and says how."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import factories
import pytest
import tiny
from factories import wait_until

from lmconsole.runs.events import Failed
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

LONG = 100_000


def trains(run: Run) -> bool:
    run.refresh()
    return bool(run.state.epochs) and run.status is Status.RUNNING


def test_without_an_active_run_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    done = tiny.lmconsole("stop", "--all", "--wait", cwd=tmp_path, check=0)
    assert "no active run" in done.stderr


@pytest.mark.slow
def test_it_returns_when_running_and_queued_runs_have_no_worker(tmp_path: Path) -> None:
    runs = [tiny.queue_tiny(tmp_path, seed=seed, epochs=LONG) for seed in (1, 2)]
    process = tiny.start_runner(tmp_path)
    wait_until(lambda: trains(runs[0]))
    done = tiny.lmconsole("stop", "--all", "--wait", cwd=tmp_path, check=0)
    for run in runs:
        run.refresh()
        assert (run.status, run.worker()) == (Status.STOPPED, None)
    assert runs[0].paths.checkpoint.exists()
    assert [done.stderr.count(words) for words in ("asked to stop", "removed from the queue")] == [1, 1]
    assert done.stderr.count("stopped in epoch") == 2
    assert process.wait(60) == 0


@pytest.mark.slow
def test_a_queued_run_without_a_runner_is_taken_out_of_the_queue(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    tiny.lmconsole("stop", "1", "--wait", cwd=tmp_path, check=0)
    run.refresh()
    assert run.status is Status.STOPPED
    assert "not active (stopped)" in tiny.lmconsole("stop", "1", "--wait", cwd=tmp_path, check=0).stderr


@pytest.mark.slow
def test_an_interrupt_ends_the_waiting_and_a_failure_is_its_exit_code(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    factories.append_events(run.paths, factories.started())
    command = [sys.executable, "-m", "lmconsole", "stop", "1", "--wait"]
    for number, code, text in ((signal.SIGTERM, 130, "No longer waiting"), (None, 1, "failed: gone")):
        with factories.locked_by_another_process(run.paths.lock):
            process = subprocess.Popen(
                command, cwd=tmp_path, env=tiny.environment(tmp_path), stderr=subprocess.PIPE, text=True
            )
            wait_until(run.paths.stop.exists)
            assert process.stderr is not None
            assert "asked to stop" in process.stderr.readline()
            if number is None:
                factories.append_events(run.paths, Failed(error="crash", message="gone", hint=""))
            else:
                os.kill(process.pid, number)
                _, err = process.communicate(timeout=60)
            assert number is not None or process.poll() is None, "the worker is still there"
        if number is None:
            _, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert text in err
        run.paths.stop.unlink()
