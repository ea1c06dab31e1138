"""Runs in the tasks of a real SLURM: interrupted in every way, they end as on one machine."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tiny
from forked import ForkedProcess
from safetensors import safe_open
from slurm_rig import ClusterJob, SlurmCluster

from lmconsole.engine.slurm import last
from lmconsole.engine.slurm.batch import read_batch
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Queued, Started, Stopped
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

RUN = ("run", "--preset", "tiny", "--data", "corpus", "--device", "cpu", "--headless")
SLURM = (*RUN, "--executor", "slurm")
LONG = ("--epochs", "90")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a study's store"
    folder.mkdir()
    tiny.write_corpus(folder / "corpus")
    write_plan(folder)
    return folder


def write_plan(folder: Path, options: str = "") -> None:
    text = f"{tiny.TINY}[executor.slurm]\nmem = 100\n{options}\n{tiny.row(1)}{tiny.row(2, 'gpt1')}"
    (folder / "experiments.toml").write_text(text)


def variables(cluster: SlurmCluster) -> dict[str, str]:
    """Return the variables with which a command finds the cluster."""
    environment = cluster.environment()
    return {name: environment[name] for name in ("SLURM_CONF", "PATH")}


def start(cluster: SlurmCluster, folder: Path, *arguments: str) -> "ForkedProcess | subprocess.Popen[bytes]":
    """Start the command; what it prints is in ``folder / "output"``."""
    return tiny.start("-m", "lmconsole", *arguments, root=folder, env=variables(cluster))


def lmconsole(
    cluster: SlurmCluster, folder: Path, *arguments: str, check: int | None = None
) -> "subprocess.CompletedProcess[str]":
    return tiny.lmconsole(*arguments, cwd=folder, check=check, env=variables(cluster))


def runs_of(folder: Path) -> dict[int, Run]:
    """Return the runs of a store by seed."""
    return {run.info.seed: run for run in Store(folder / "runs").runs()}


def task_of(cluster: SlurmCluster, run: Run) -> ClusterJob | None:
    place = run.place
    assert place is not None
    own = [job for job in cluster.jobs().values() if job.name.startswith(f"lmconsole-{place.batch}.")]
    return next((job for job in own if job.id.endswith(f"_{place.index}")), None)


def waiting_jobs(cluster: SlurmCluster) -> list[ClusterJob]:
    return [job for job in cluster.jobs().values() if job.state == "PENDING" and job.name.startswith("lmconsole-")]


def result(run: Run) -> list[object]:
    """Return what must not depend on where a run trained, and how often it was interrupted."""
    assert run.status is Status.FINISHED, (run.status, run.state.failed)
    assert not run.problem
    assert not run.state.log_damaged
    assert run.state.damage == ()
    finished = run.state.finished
    assert finished is not None
    with safe_open(run.paths.best_weights, framework="numpy") as file:
        weights = file.metadata()["sha256"]
    losses = [(each.epoch, each.train_loss_nats, each.valid_loss_nats) for each in run.state.epochs]
    return [losses, finished.test_ppl_final, finished.test_ppl_best, finished.best_epoch, weights]


class Reference:
    """The runs of experiment 1 with ``LONG``, trained on this machine without SLURM: each once in a test process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._results: dict[int, list[object]] = {}

    def results(self, seeds: Sequence[int]) -> dict[int, list[object]]:
        """Return the results by seed."""
        missing = [str(seed) for seed in seeds if seed not in self._results]
        if missing:
            what = ("1", "--seeds", ",".join(missing), *LONG, "--no-export")
            tiny.lmconsole(*RUN, *what, cwd=self._folder, check=0)
            self._results = {seed: result(run) for seed, run in runs_of(self._folder).items()}
        return {seed: self._results[seed] for seed in seeds}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    tiny.write_corpus(folder / "corpus")
    write_plan(folder)
    return Reference(folder)


def test_interrupted_runs_end_as_on_one_machine(cluster: SlurmCluster, folder: Path, reference: Reference) -> None:
    what = ("1", "--seeds", "1..5", *LONG)
    process = start(cluster, folder, *SLURM, *what)
    cluster.wait_for(lambda: (folder / "runs").is_dir() and len(runs_of(folder)) == 5, "all runs to be queued")

    def trains(seed: int) -> bool:
        return bool(runs_of(folder)[seed].state.progress)

    def job(seed: int) -> ClusterJob:
        found = task_of(cluster, runs_of(folder)[seed])
        assert found is not None
        return found

    cluster.wait_for(lambda: all(map(trains, (1, 2, 3, 4))), "four runs to train")
    cluster.run("scontrol", "requeue", job(1).id)
    cluster.run("scancel", job(2).id)
    lmconsole(cluster, folder, "stop", runs_of(folder)[4].run)
    cluster.wait_for(lambda: runs_of(folder)[2].state.stopped and runs_of(folder)[4].state.stopped, "two runs to stop")
    killed = job(3).node
    cluster.kill_node(killed)
    cluster.declare_down(killed)
    cluster.start_node(killed)
    cluster.run("scontrol", "update", f"NodeName={killed}", "State=RESUME", check=False)
    batch = runs_of(folder)[5].place
    assert batch is not None
    script = folder / "runs/.slurm" / batch.batch / "array-0.sh"
    cluster.run("sbatch", f"--array={batch.index}", str(script))  # a second job for a run trains nothing
    cluster.restart_controller()
    assert process.wait(180) == 1, (folder / "output").read_text()
    states = {seed: run.state for seed, run in runs_of(folder).items()}
    ended_by = {seed: each.stopped.signal if each.stopped else None for seed, each in states.items()}
    # Seeds whose node died with them are finished, as are others of that node; one was cancelled, and one was stopped.
    assert states[4].status is Status.STOPPED
    assert ended_by[4] is None
    assert states[2].status in (Status.STOPPED, Status.FINISHED)
    for seed in (1, 3, 5):
        assert states[seed].status is Status.FINISHED
    for seed in (1, 3):
        assert states[seed].attempt >= 2
        place = runs_of(folder)[seed].place
        assert place is not None
        assert place.restarts >= 1
    assert start(cluster, folder, *SLURM, *what).wait(180) == 0, (folder / "output").read_text()
    assert {seed: result(run) for seed, run in runs_of(folder).items()} == reference.results(range(1, 6))
    assert (folder / "exports/table-1-results.csv").is_file()
    events = EventReader(runs_of(folder)[1].paths.events).read_new()
    started = [event for event in events if isinstance(event, Started)]
    assert all(event.slurm_job and event.slurm_node in cluster.nodes for event in started)
    assert len([event for event in events if isinstance(event, Queued)]) == len(started)


@pytest.fixture
def other_mount() -> Iterator[Path]:
    """Return a folder on a file system of its own, where there is one."""
    place = "/dev/shm" if os.path.ismount("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="lmconsole a store ", dir=place) as folder:
        tiny.write_corpus(Path(folder) / "corpus")
        yield Path(folder)


def test_a_preempted_run_is_submitted_again_where_jobs_are_not_requeued(
    other_mount: Path, reference: Reference
) -> None:
    folder = other_mount
    with SlurmCluster(cpus=2, preempt_mode="CANCEL", grace_s=5, max_array_size=2) as cluster:
        write_plan(folder, "no-requeue = true\nat_once = 1\nwarning_s = 5")
        what = ("1", "--seeds", "1..3", *LONG)
        process = start(cluster, folder, *SLURM, *what)
        cluster.wait_for(
            lambda: (folder / "runs").is_dir() and any(run.state.progress for run in runs_of(folder).values()),
            "a run to train",
        )
        seed = next(seed for seed, run in runs_of(folder).items() if run.state.progress)
        cluster.preempt(1)
        assert process.wait(180) == 0, (folder / "output").read_text()
        content = read_batch(folder / "runs", runs_of(folder)[seed].place.batch)  # type: ignore[union-attr]
        assert content.part_of(2) == 2  # three runs do not fit into one array
        preempted = runs_of(folder)[seed]
        assert preempted.state.attempt == 2
        stopped = [event for event in EventReader(preempted.paths.events).read_new() if isinstance(event, Stopped)]
        assert [event.signal for event in stopped] in (["SIGUSR1"], ["SIGTERM"])
        jobs = {
            event.slurm_job for event in EventReader(preempted.paths.events).read_new() if isinstance(event, Started)
        }
        assert len(jobs) == 2
        assert {seed: result(run) for seed, run in runs_of(folder).items()} == reference.results(range(1, 4))


def test_a_request_is_resolved_on_a_node_and_nothing_is_queued_that_slurm_refuses(
    cluster: SlurmCluster, folder: Path
) -> None:
    write_plan(folder, "setup = 'export CUDA_VISIBLE_DEVICES='\ncpus-per-task = 2\ncomment = 'a $(b) \"c\"'")
    arguments = ("run", "1", "--preset", "tiny", "--data", "corpus", "--executor", "slurm")
    shown = lmconsole(cluster, folder, *arguments, "--dry-run", check=0)
    assert "checks data and devices on a node" in shown.stderr
    assert "cpu" in shown.stdout
    assert '#SBATCH --comment="a $(b) \\"c\\""' in shown.stdout
    assert "#SBATCH --cpus-per-task=2" in shown.stdout
    assert "to start at" in shown.stdout
    assert list((folder / "runs/.slurm").iterdir()) == []
    refused = lmconsole(cluster, folder, *arguments, "--device", "cpu", "--sbatch", "--partition=none", "--headless")
    assert refused.returncode == 2
    assert "invalid partition specified: none" in refused.stderr
    assert not runs_of(folder)


def test_without_its_last_job_a_submission_is_concluded_by_whoever_asks_slurm(
    cluster: SlurmCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.drain("n1")
    cluster.drain("n2")
    process = start(cluster, folder, *SLURM, "1", "--seeds", "1..3", "--epochs", "2")
    cluster.wait_for(lambda: len(waiting_jobs(cluster)) == 4, "all tasks and the last job to wait")
    runs = runs_of(folder)
    batch = runs[1].place.batch  # type: ignore[union-attr]
    last_job = next(job for job in waiting_jobs(cluster) if job.name.endswith(".last"))
    cluster.run("scancel", last_job.id)
    lmconsole(cluster, folder, "stop", runs[3].run, check=0)
    waiting = task_of(cluster, runs[3])
    assert waiting is None or waiting.state == "CANCELLED"
    cancelled = task_of(cluster, runs[2])
    assert cancelled is not None
    cluster.run("scancel", cancelled.id)
    assert cancelled.id not in {job.id for job in waiting_jobs(cluster)}
    for node in cluster.nodes:
        cluster.resume(node)
    cluster.wait_for(lambda: runs_of(folder)[1].status is Status.FINISHED, "the first run to finish")
    cluster.wait_until_idle()
    for name, value in variables(cluster).items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    assert last.conclude(Store(folder / "runs"), batch, lines.append)
    states = {seed: run.state.status for seed, run in runs_of(folder).items()}
    assert states == {1: Status.FINISHED, 2: Status.STOPPED, 3: Status.STOPPED}, lines
    assert (folder / "exports/table-1-results.csv").is_file()
    process.kill()  # a viewer, which has nothing left to follow
    process.wait()
