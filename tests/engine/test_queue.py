"""Queuing: what is the same run, and what happens to it."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from lmconsole.errors import RunActiveError
from lmconsole.runs.events import EventLog, Failed, Finished, Stopped
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

FINISHED = Finished(
    test_ppl_final=1.0, test_ppl_best=1.0, best_epoch=1, best_valid_ppl=1.0, setup_s=0.0, wall_s=1.0, diverged=False
)


def end(run: Run, event: Finished | Stopped | Failed) -> None:
    log = EventLog(run.paths.events)
    log.append(event)
    log.close()


def test_what_decides_the_numbers_decides_whether_runs_are_the_same(tmp_path: Path) -> None:
    base = tiny.queue_tiny(tmp_path).info.config_hash
    others = [
        tiny.queue_tiny(tmp_path, seed=1),
        tiny.queue_tiny(tmp_path, epochs=3),
        tiny.queue_tiny(tmp_path, learning_rate=0.5),
        tiny.queue_tiny(tmp_path, precision="bf16"),
        tiny.queue_tiny(tmp_path, number=2),
        tiny.queue_tiny(tmp_path, model="gpt1"),
    ]
    others.append(tiny.queue_tiny(tmp_path / "elsewhere", repeats=9))
    assert len({base, *(run.info.config_hash for run in others)}) == 8
    scheduled_otherwise = tiny.queue_tiny(tmp_path / "third", threads=2, jobs=3)
    assert scheduled_otherwise.info.config_hash == base


def test_an_active_run_is_refused_and_nothing_is_queued(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    with pytest.raises(RunActiveError, match=run.run):
        tiny.queue_tiny(tmp_path)
    assert len(Store(tmp_path / "runs").runs()) == 1


@pytest.mark.parametrize("last", [Stopped(epoch=1, step=0), Failed(error="x", message="m", hint="h")])
def test_an_unfinished_run_is_queued_again_in_its_own_folder(tmp_path: Path, last: Stopped | Failed) -> None:
    run = tiny.queue_tiny(tmp_path)
    end(run, last)
    run.paths.stop.touch()
    again = tiny.queue_tiny(tmp_path, jobs=3)
    assert again.run == run.run
    assert again.status is Status.QUEUED
    assert again.state.queued is not None
    assert again.state.queued.jobs == 3
    assert not again.stop_requested


def test_a_finished_run_is_not_repeated_unless_asked(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    end(run, FINISHED)
    assert tiny.queue_tiny(tmp_path).run == run.run
    assert tiny.queue_tiny(tmp_path, fresh=True).run != run.run


QUEUE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import tiny
from lmconsole.errors import RunActiveError
try:
    print(tiny.queue_tiny(Path(sys.argv[1])).run)
except RunActiveError:
    print("refused")
"""


def test_of_many_commands_at_once_one_makes_the_run(tmp_path: Path) -> None:
    tiny.queue_tiny(tmp_path, seed=1)  # the corpus is tokenized and the folders are made
    command = [sys.executable, "-c", QUEUE, str(tmp_path), str(Path(tiny.__file__).parent)]
    commands = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    made = [process.communicate(timeout=60)[0].strip() for process in commands]
    assert made.count("refused") == 5, made
    assert len(Store(tmp_path / "runs").runs()) == 2
    assert not list((tmp_path / "runs").glob(".tmp-*"))
