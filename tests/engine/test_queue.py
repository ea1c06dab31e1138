"""Queuing: runs that are the same, and the action for each."""

import subprocess
import sys
from pathlib import Path

import factories
import pytest
import tiny
from factories import append_events

from lmconsole.errors import RunActiveError
from lmconsole.runs.events import Failed, Stopped
from lmconsole.runs.state import Status
from lmconsole.runs.store import Store

QUEUED_AGAIN = pytest.mark.parametrize("last", [Stopped(epoch=1, step=0), Failed(error="x", message="m", hint="h")])


def test_runs_are_the_same_if_everything_that_decides_their_numbers_is(tmp_path: Path) -> None:
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
    other_schedule = tiny.queue_tiny(tmp_path / "third", threads=2, jobs=3)
    assert other_schedule.info.config_hash == base


def test_an_active_run_is_refused_and_nothing_is_queued(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    with pytest.raises(RunActiveError, match=run.run):
        tiny.queue_tiny(tmp_path)
    assert len(Store(tmp_path / "runs").runs()) == 1


@QUEUED_AGAIN
def test_an_unfinished_run_whose_worker_is_still_there_is_active(tmp_path: Path, last: Stopped | Failed) -> None:
    run = tiny.queue_tiny(tmp_path)
    append_events(run.paths, last)
    with factories.locked_by_another_process(run.paths.lock), pytest.raises(RunActiveError, match=run.run):
        tiny.queue_tiny(tmp_path)


@QUEUED_AGAIN
def test_an_unfinished_run_is_queued_again_in_its_own_folder(tmp_path: Path, last: Stopped | Failed) -> None:
    run = tiny.queue_tiny(tmp_path)
    append_events(run.paths, last)
    run.paths.stop.touch()
    again = tiny.queue_tiny(tmp_path, jobs=3)
    assert again.run == run.run
    assert again.status is Status.QUEUED
    assert again.state.queued is not None
    assert again.state.queued.jobs == 3
    assert not again.stop_requested


def test_a_finished_run_is_not_repeated_unless_asked(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    append_events(run.paths, factories.finished())
    assert tiny.queue_tiny(tmp_path).run == run.run
    assert tiny.queue_tiny(tmp_path, fresh=True).run != run.run


def test_of_several_equal_runs_the_newest_counts(tmp_path: Path) -> None:
    append_events(tiny.queue_tiny(tmp_path).paths, factories.finished())
    newest = tiny.queue_tiny(tmp_path, fresh=True)
    append_events(newest.paths, factories.finished())
    assert tiny.queue_tiny(tmp_path).run == newest.run


def test_of_several_equal_runs_an_active_one_counts_before_a_finished_one(tmp_path: Path) -> None:
    append_events(tiny.queue_tiny(tmp_path).paths, factories.finished())
    for _ in range(2):
        active = tiny.queue_tiny(tmp_path, fresh=True)
        with pytest.raises(RunActiveError, match=f"{active.run}$|{active.run}\\n"):
            tiny.queue_tiny(tmp_path)


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
