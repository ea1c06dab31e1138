"""Actions on the tasks of runs: hold, release and start again."""

from pathlib import Path

import pytest
import tiny
from factories import submission, write_submission

from lmconsole.engine.slurm import tasks
from lmconsole.engine.slurm.commands import SlurmError, SlurmJob, SlurmUnreachableError
from lmconsole.engine.slurm.tasks import control_tasks
from lmconsole.runs.store import Run, Store


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Three runs in submissions of their own."""
    for number in range(3):
        run = tiny.queue_tiny(tmp_path, seed=number, slurm=submission(number))
        write_submission(tmp_path / "runs", submission(number).batch, [run.run])
    return Store(tmp_path / "runs").runs()


def test_slurm_that_does_not_answer_is_named_once(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SlurmUnreachableError("Unable to contact slurm controller")

    monkeypatch.setattr(tasks, "jobs", Slurm().jobs)
    monkeypatch.setattr(tasks, "control", fail)
    assert control_tasks(Store(runs[0].paths.folder.parent), runs, "hold") == ["Unable to contact slurm controller"]


class Slurm:
    """SLURM with a waiting job for each run, which refuses an action on some jobs, also in a list of jobs."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.commands: list[tuple[str, str]] = []

    def jobs(self, _: object) -> list[SlurmJob]:
        return [
            SlurmJob(
                batch=submission(number).batch, index=0, array_job=f"{number + 1}", task=0, state="PENDING", reason="",
                node="", number=number,
            )
            for number in range(3)
        ]  # fmt: skip

    def control(self, action: str, names: str) -> None:
        self.commands.append((action, names))
        for name in names.split(","):
            if name in self.refused:
                raise SlurmError(f"{name}: Access denied")


def act(
    monkeypatch: pytest.MonkeyPatch, runs: list[Run], action: str, *refused: str
) -> tuple[list[str], list[tuple[str, str]]]:
    """Act on the runs, and return the lines about them, without their names, and the commands."""
    slurm = Slurm(*refused)
    monkeypatch.setattr(tasks, "jobs", slurm.jobs)
    monkeypatch.setattr(tasks, "control", slurm.control)
    lines = control_tasks(Store(runs[0].paths.folder.parent), runs, action)
    return [line.partition(": ")[2] for line in lines], slurm.commands


def test_runs_are_held_with_one_command(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    lines, commands = act(monkeypatch, runs, "hold")
    assert lines == ["held (job 1_0)", "held (job 2_0)", "held (job 3_0)"]
    assert commands == [("hold", "1_0,2_0,3_0")]


def test_a_job_that_cannot_be_released_is_named(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    lines, commands = act(monkeypatch, runs, "release", "2_0")
    assert lines == ["released (job 1_0)", "2_0: Access denied", "released (job 3_0)"]
    assert commands == [("release", name) for name in ("1_0,2_0,3_0", "1_0", "2_0", "3_0")]


def test_runs_are_started_again_one_by_one(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    lines, commands = act(monkeypatch, runs, "requeue", "3_0")
    assert lines == ["is started again (job 1_0)", "is started again (job 2_0)", "3_0: Access denied"]
    assert commands == [("requeue", name) for name in ("1_0", "2_0", "3_0")]  # twice would be an error
