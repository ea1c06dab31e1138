"""Races between a runner, a person and a dying worker, and damaged runs."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import factories
import psutil
import pytest
import tiny

from lmconsole.engine import processes, runner, worker
from lmconsole.engine.runner import Runner
from lmconsole.engine.worker import EXIT_NOT_TRAINED
from lmconsole.runs.events import Stopped
from lmconsole.runs.state import Status
from lmconsole.runs.store import Store


class Dead:
    """A worker that has ended."""

    pid = 0

    def __init__(self, code: int) -> None:
        self.exitcode = code

    def start(self) -> None:
        pass


def test_a_run_queued_again_before_its_end_was_noticed_is_not_marked_failed(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    store = Store(tmp_path / "runs")
    serving = Runner(store)
    (seen,) = store.runs()
    serving._workers[run.run] = runner._Worker(Dead(0), "cpu", seen.state.queued_seq)  # type: ignore[arg-type]
    factories.append_events(run.paths, factories.started(), Stopped(epoch=1, step=1), factories.queued())
    serving._reap(store.runs())
    run.refresh()
    assert run.status is Status.QUEUED


def test_a_worker_that_died_without_an_outcome_gets_a_failed_event(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    run.paths.worker_log.write_bytes(b"something\n\x1b[31mImportError: no torch\x1b[0m\n")
    store = Store(tmp_path / "runs")
    serving = Runner(store)
    (seen,) = store.runs()
    serving._workers[run.run] = runner._Worker(Dead(3), "cpu", seen.state.queued_seq)  # type: ignore[arg-type]
    serving._reap(store.runs())
    run.refresh()
    assert run.status is Status.FAILED
    assert run.state.failed is not None
    assert "exit code 3" in run.state.failed.message
    assert "ImportError: no torch" in run.state.failed.message
    assert "\x1b" not in run.state.failed.message


def test_a_worker_that_did_not_train_leaves_its_run_queued(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    store = Store(tmp_path / "runs")
    serving = Runner(store)
    (seen,) = store.runs()
    dead = Dead(EXIT_NOT_TRAINED)
    serving._workers[run.run] = runner._Worker(dead, "cpu", seen.state.queued_seq)  # type: ignore[arg-type]
    serving._reap(store.runs())
    run.refresh()
    assert run.status is Status.QUEUED
    assert not serving._workers


@pytest.mark.slow
def test_damaged_logs_stop_neither_the_runner_nor_commands(tmp_path: Path) -> None:
    broken = [tiny.queue_tiny(tmp_path, seed=seed) for seed in (1, 2, 3)]
    good = tiny.queue_tiny(tmp_path, seed=4)
    for run, damage in zip(broken, (b"", b"\x00\xff\xfe\n", b"[" * 100_000 + b"\n"), strict=True):
        run.paths.events.write_bytes(damage)
    assert tiny.start_runner(tmp_path).wait(120) == 0, (tmp_path / "output").read_text()
    good.refresh()
    assert good.status is Status.FINISHED
    shown = tiny.lmconsole("status", cwd=tmp_path, check=0)
    assert shown.stdout.count("unreadable") == len(broken)
    assert shown.stderr.count("no event says that it was queued") == len(broken)
    again = [tiny.queue_tiny(tmp_path, seed=seed) for seed in (1, 2, 3)]
    assert {run.run for run in again}.isdisjoint(run.run for run in broken)


def test_a_run_json_that_is_not_text_is_named_and_other_runs_are_shown(tmp_path: Path) -> None:
    broken, good = tiny.queue_tiny(tmp_path, seed=1), tiny.queue_tiny(tmp_path, seed=2)
    data = broken.paths.info.read_bytes()
    broken.paths.info.write_bytes(data.replace(b'"tiny"', b'"\xff\xfe"', 1))
    os.rename(broken.paths.folder, tmp_path / "runs" / "\x1b[31mred")
    shown = tiny.lmconsole("status", cwd=tmp_path, check=0)
    assert good.run in shown.stdout
    assert "\\x1b[31mred: " in shown.stderr
    assert "\x1b" not in shown.stdout + shown.stderr


def test_a_full_store_refuses_to_queue_and_leaves_no_half_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.queue_tiny(tmp_path, seed=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="cannot be written: No space left on device"):
        tiny.queue_tiny(tmp_path, seed=2)
    monkeypatch.undo()
    assert len(Store(tmp_path / "runs").runs()) == 1
    assert not list((tmp_path / "runs").glob(".tmp-*"))


def test_a_worker_sees_only_the_gpu_with_its_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[object, ...]] = []

    class Context:
        def __init__(self, method: str) -> None:
            assert method == ("forkserver" if sys.platform.startswith("linux") else "spawn")

        def set_forkserver_preload(self, modules: list[str]) -> None:
            assert all(importlib.util.find_spec(module) for module in modules)

        def Process(self, target: object, args: tuple[object, ...]) -> Dead:  # noqa: N802
            assert target is worker._child_main
            started.append(args)
            return Dead(0)

    monkeypatch.setattr(worker, "get_context", Context)
    run = tiny.queue_tiny(tmp_path)
    worker.start(run, "GPU-aaaa", [7])
    worker.start(run, "cpu", [])
    folder, log = str(run.paths.folder), str(run.paths.worker_log)
    assert started == [
        ([folder, "--device", "cuda:0", "--siblings", "7"], log, {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, None),
        ([folder, "--device", "cpu", "--siblings"], log, {}, None),
    ]


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a symbolic link"])
def test_a_worker_that_cannot_write_its_log_is_not_started(tmp_path: Path, kind: str) -> None:
    run = tiny.queue_tiny(tmp_path)
    log = run.paths.worker_log
    match kind:
        case "a folder":
            log.mkdir()
        case "a named pipe":
            os.mkfifo(log)
        case _:
            log.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=f"expected a file, found {kind}"):
        worker.start(run, "cpu", [])
    serving = Runner(Store(tmp_path / "runs"))
    serving._start(run, {})
    run.refresh()
    assert run.state.failed is not None
    assert f"worker.log: expected a file, found {kind}" in run.state.failed.message
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere workers are not forked")
def test_a_worker_restarts_as_a_new_program_if_cuda_was_used_before_the_fork(tmp_path: Path) -> None:
    """The check is replaced, since CUDA's own refusal needs a GPU."""
    run = tiny.queue_tiny(tmp_path)
    code = (
        "import sys\nfrom lmconsole.engine import attempt, worker\nfrom lmconsole.lm import device\n"
        "device.cuda_broken_by_fork = lambda: True\n"
        "worker.main = lambda arguments: sys.exit('not restarted')\n"
        "worker._child_main([sys.argv[1], '--device', 'cpu'], sys.argv[2], {'LMCONSOLE_PLAIN': '1'}, None)"
    )
    log = tmp_path / "worker.log"
    done = tiny.run_code(code, str(run.paths.folder), str(log), root=tmp_path)
    assert done.returncode == 0, done.stderr + log.read_text()
    run.refresh()
    assert run.status is Status.FINISHED


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("own", "spin"), [({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)]
)
def test_threads_of_a_worker_spin_briefly_unless_its_user_sets_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, str], spin: str | None
) -> None:
    """GNU's OpenMP reads the variable when it is loaded, in the process that workers are forked from."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (tiny.environment(tmp_path) | own).items():
        monkeypatch.setenv(name, value)
    run = tiny.queue_tiny(tmp_path, epochs=100_000)
    process = processes.start_runner(Store(tmp_path / "runs"))
    assert process is not None
    try:
        factories.wait_until(lambda: run.refresh() is not None and run.state.started)
        assert run.state.started is not None
        found = Path(f"/proc/{run.state.started.pid}/environ").read_bytes().split(b"\0")
        values = [entry.partition(b"=")[2].decode() for entry in found if entry.startswith(b"GOMP_SPINCOUNT=")]
        assert values == ([] if spin is None else [spin])
    finally:
        run.request_stop()
        assert process.wait(60) == 0


@pytest.mark.slow
def test_the_process_that_workers_are_forked_from_leaves_gpus_alone() -> None:
    """CUDA that was used before a fork does not work after it."""
    code = (
        "import torch\n"
        "def used(*_):\n    raise SystemExit('CUDA was used')\n"
        "for name in ('is_available', 'device_count', '_lazy_init', 'get_device_properties'):\n"
        "    setattr(torch.cuda, name, used)\n"
        "import lmconsole.engine.preload, sys, threading\n"
        "assert 'lmconsole.engine.attempt' in sys.modules\n"
        "assert threading.active_count() == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupt_before_anything_is_queued_leaves_nothing(tmp_path: Path, number: int) -> None:
    tiny.write_corpus(tmp_path / "data")
    file = tiny.write_experiments(tmp_path / "mine.toml", tiny.row(1))
    options = ["--headless", "--preset", "tiny", "--experiments", str(file), "--data", "data"]
    slow = (
        "import sys, time\nfrom pathlib import Path\n"
        "from lmconsole.cli import main\nfrom lmconsole.data import corpus\n"
        "corpus.load_corpus = lambda *_, **more: (Path('checked').touch(), time.sleep(60))\nmain(sys.argv[1:])"
    )
    process = tiny.start("-c", slow, "run", "1", *options, root=tmp_path)
    forks = sys.platform.startswith("linux")  # so that the child process that checks data has the slow function too
    factories.wait_until((tmp_path / "checked").exists if forks else psutil.Process(process.pid).children)
    process.send_signal(number)
    code = process.wait(60)
    printed = (tmp_path / "output").read_text()
    assert code == 130, printed
    assert "Traceback" not in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_runner_that_fails_at_once_is_reported(tmp_path: Path) -> None:
    tiny.write_corpus(tmp_path / "data")
    file = tiny.write_experiments(tmp_path / "mine.toml", tiny.row(1))
    code = (
        "import sys\nfrom lmconsole.engine import processes\nreal = processes.python\n"
        "def python(module, *a):\n"
        "    return [sys.executable, '-c', 'raise SystemExit(\"no runner today\")'] if 'runner' in module "
        "else real(module, *a)\n"
        "processes.python = python\nfrom lmconsole.cli import main\nmain(sys.argv[1:])"
    )
    options = ["--headless", "--preset", "tiny", "--experiments", str(file), "--data", "data"]
    done = tiny.run_code(code, "run", "1", *options, root=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "the runner fails at once: no runner today" in done.stderr
