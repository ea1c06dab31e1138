"""The cluster of tests/slurm_rig.py does what other tests expect of SLURM."""

from pathlib import Path

import psutil
import pytest
from slurm_rig import SlurmCluster, SlurmError

REPEAT = 'echo start ${SLURM_RESTART_COUNT:-0} on $SLURMD_NODENAME; [ -n "$SLURM_RESTART_COUNT" ] || sleep 300'
"""A script that runs for long when it starts first, and ends at once when it starts again."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a store"
    folder.mkdir()
    return folder


def submit(cluster: SlurmCluster, folder: Path, script: str, *options: str) -> str:
    return cluster.submit(script, "--open-mode=append", "--output=%x.out", *options, folder=folder)


def wait_for_text(cluster: SlurmCluster, path: Path, text: str) -> str:
    def read() -> str:
        return path.read_text() if path.exists() else ""

    cluster.wait_for(lambda: text in read(), f"{text!r} in {path}")
    return read()


def test_jobs_run_in_a_folder_with_spaces_and_see_their_gpus(cluster: SlurmCluster, folder: Path) -> None:
    job = submit(
        cluster, folder, 'echo "$PWD" $CUDA_VISIBLE_DEVICES', "--job-name=a", "--array=0-1", "--gres=gpu:1", "-c4"
    )
    cluster.wait_until_idle()
    assert {task: cluster.jobs()[task].state for task in (f"{job}_0", f"{job}_1")} == {
        f"{job}_0": "COMPLETED",
        f"{job}_1": "COMPLETED",
    }
    assert (folder / "a.out").read_text() == f"{folder} 0\n" * 2


def test_requeued_and_cancelled_jobs_survive_a_restart_of_the_controller(cluster: SlurmCluster, folder: Path) -> None:
    again = submit(cluster, folder, REPEAT, "--job-name=again")
    ended = submit(cluster, folder, "echo start; sleep 300", "--job-name=ended")
    going = submit(cluster, folder, "echo start; while [ ! -e go ]; do sleep 0.1; done", "--job-name=going")
    for name in ("again", "ended", "going"):
        wait_for_text(cluster, folder / f"{name}.out", "start")
    cluster.run("scontrol", "requeue", again)
    cluster.wait_for_state(again, "PENDING")  # else its end is reported to a stopped controller, and again after 20 s
    cluster.stop_controller()
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        cluster.jobs()
    cluster.start_controller()
    cluster.run("scancel", ended)
    assert cluster.jobs()[going].state == "RUNNING"
    cluster.skip_requeue_delay(again)
    wait_for_text(cluster, folder / "again.out", "start 1")
    (folder / "go").touch()
    cluster.wait_until_idle()
    jobs = cluster.jobs()
    assert [jobs[job].state for job in (again, ended, going)] == ["COMPLETED", "CANCELLED", "COMPLETED"]
    assert [jobs[job].restarts for job in (again, ended, going)] == [1, 0, 0]
    assert "DUE TO JOB REQUEUE" in (folder / "again.out").read_text()


def test_the_jobs_of_a_lost_node_start_again_elsewhere(cluster: SlurmCluster, folder: Path) -> None:
    jobs = {node: submit(cluster, folder, REPEAT, f"--job-name={node}", "-c4") for node in cluster.nodes}
    for node in jobs:
        wait_for_text(cluster, folder / f"{node}.out", "start 0")
    assert {cluster.jobs()[job].node for job in jobs.values()} == set(cluster.nodes)
    cluster.kill_node("n1")
    assert cluster.processes("n1") == []
    cluster.partition_node("n2")
    for node in cluster.nodes:
        cluster.declare_down(node)
    assert cluster.processes("n2") != []
    for node in cluster.nodes:
        cluster.start_node(node)
    cluster.wait_for(lambda: not cluster.processes("n2"), "the second start of SLURM's daemon to end the old job")
    cluster.skip_requeue_delay(*jobs.values())
    for name, job in jobs.items():
        wait_for_text(cluster, folder / f"{name}.out", "start 1")
        assert cluster.jobs()[job].restarts == 1


def test_a_preempted_job_is_requeued_and_a_drained_node_gets_none(cluster: SlurmCluster, folder: Path) -> None:
    cluster.drain("n2")
    job = submit(cluster, folder, REPEAT, "--job-name=low", "-c4")
    wait_for_text(cluster, folder / "low.out", "start 0 on n1")
    waiting = submit(cluster, folder, "true", "--job-name=other", "-c4")
    cluster.resume("n2")
    cluster.wait_for_state(waiting, "COMPLETED")
    cluster.set_grace(0)
    cluster.preempt(0.1)
    wait_for_text(cluster, folder / "low.out", "DUE TO PREEMPTION")
    cluster.wait_for_state(job, "PENDING")


def test_nothing_is_left_of_a_cluster_in_which_a_test_failed(tmp_path: Path) -> None:
    root, processes, names = Path(), list[psutil.Process](), set[str]()
    with pytest.raises(RuntimeError, match="failed"), SlurmCluster() as cluster:  # noqa: PT012 - the cluster ends inside
        root = cluster.root
        cluster.submit("nohup setsid sleep 301 & sleep 302; sleep 303", folder=tmp_path)
        cluster.wait_for(lambda: len(cluster.processes()) == 4, "the job to start its processes")
        processes = [*cluster.processes(), *cluster.daemons()]
        names = {each.name() for each in processes}
        raise RuntimeError("failed")
    assert {"munged", "slurmctld", "slurmd", "slurmstepd", "sleep"} <= names
    assert [each for each in processes if each.is_running()] == []
    assert not root.exists()
