"""Runs on SLURM in the console: states, nodes, reasons, gauges, details and actions, from its poller's file."""

from collections.abc import Mapping

import pytest
from factories import epoch_events, finished, progress, started, submission, telemetry, write_answer, write_submission
from tui.stage import Recorded, Stage, console_of, driver, experiment, line_with, screen, shows, shows_no_more

from lmconsole.engine.slurm.batch import folder_of
from lmconsole.runs.cluster import TaskStatus
from lmconsole.runs.events import Started, Stopped
from lmconsole.runs.store import Store

pytestmark = pytest.mark.usefixtures("slurm_installed")

WAITS = TaskStatus(job="7_0", state="PENDING", reason="Priority")
HELD = TaskStatus(job="7_2", state="PENDING", reason="JobHeldUser")


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """Return the stores for which the console saw that SLURM is asked. No process is started."""
    stores: list[Store] = []
    monkeypatch.setattr("lmconsole.engine.submit.wake_runner", stores.append)
    return stores


def on(node: str, **more: object) -> Started:
    """Return the start of an attempt on a node."""
    return started(slurm_job="7_1", slurm_node=node, **more)


def submit(stage: Stage, number: int, experiment: int = 1, **more: object) -> Recorded:
    """Queue a run on SLURM in the submission ``number``."""
    return stage.queue(experiment, slurm=submission(number), **more)  # type: ignore[arg-type]


def train(
    stage: Stage, number: int, experiment: int, node: str, *, seed: int = 42, uuid: str | None = None
) -> Recorded:
    """Let a run train on a node, on the GPU ``uuid`` if there is one."""
    run = submit(stage, number, experiment, seed=seed)
    run.append(on(node, device_uuid=uuid, device_name="NVIDIA H100" if uuid else "CPU"), progress(1, 4))
    gpu = {"device_used_mib": 12_288.0, "device_total_mib": 81_920.0, "process_used_mib": 10_240.0} if uuid else {}
    run.append(telemetry(**gpu, utilization_percent=87.0, power_w=310.0, temperature_c=61.0))
    return run


def answer(stage: Stage, tasks: Mapping[int, TaskStatus], *, problem: str = "") -> None:
    """Write what SLURM says about submissions."""
    write_answer(stage.store.root, tasks, problem=problem)


def four_runs(stage: Stage) -> None:
    """Record a run that waits, one that trains on n1, one that is held, and one that has finished."""
    submit(stage, 0, 1)
    train(stage, 1, 2, "n1")
    submit(stage, 2, 3)
    ended = submit(stage, 3, 4, epochs=1)
    ended.append(on("n2"), *epoch_events(1, 5.0), finished())
    answer(stage, {0: WAITS, 1: TaskStatus(job="7_1", state="RUNNING", node="n1"), 2: HELD})


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_rows_and_gauges_say_where_runs_train_and_why_others_wait(stage: Stage, size: tuple[int, int]) -> None:
    four_runs(stage)
    wide = size[0] > 80
    async with stage.console(size=size) as pilot:
        await shows(pilot, "3 on SLURM: 1 running, 1 waits (held), 1 waits (other jobs have priority)")
        assert ("queued, other jobs have priority" if wide else "other jobs hav") in experiment(pilot, 1)
        assert ("epoch 1/" if wide else " 1/") in experiment(pilot, 2)
        assert " on n1" in experiment(pilot, 2)
        assert ("queued, held" if wide else " held") in experiment(pilot, 3)
        assert "finished" in experiment(pilot, 4)
        assert all(
            words in line_with(pilot, "n1   runs") for words in ("runs 2.0 GiB", "12.3k tokens/s", "1 run", "CPU")
        )
        assert "Host memory" not in screen(pilot)
        answer(stage, {0: WAITS, 2: HELD}, problem="Unable to contact slurm controller")
        await shows(pilot, "SLURM does not answer: Unable to contact slurm controller. It did at")


async def test_an_experiment_sums_up_its_seeds_on_slurm_with_the_most_frequent_reason(stage: Stage) -> None:
    for seed, number in ((1, 0), (2, 1)):
        train(stage, number, 1, "n1", seed=seed)
    for seed, number in ((3, 2), (4, 3), (5, 4)):
        submit(stage, number, seed=seed)
    interrupted = submit(stage, 5, seed=6)
    interrupted.append(on("n3"), Stopped(epoch=1, step=3, signal="SIGUSR1"))
    answer(stage, {2: HELD, 3: WAITS, 4: WAITS, 5: TaskStatus(job="8_1", state="PENDING", reason="BeginTime")})
    async with stage.console() as pilot:
        await shows(pilot, "2 of 6 running; other jobs have priority")
        await pilot.press("right")
        await shows(pilot, "queued, held", "interrupted, starts again in a moment")
        await pilot.resize_terminal(80, 24)
        await shows(pilot, "2 of 6 running  ")
        for seed in (1, 2):
            run = next(run for run in stage.store.runs() if run.info.seed == seed)
            Recorded(run.paths.folder).append(*epoch_events(1, 5.0), finished())
        answer(stage, {2: HELD, 3: TaskStatus(job="7_3", state="RUNNING", node="n7"), 4: WAITS})
        await shows(pilot, "2/6, 0 running", "starting on n7")


async def test_gauges_of_nodes_take_the_place_of_this_machine_unless_a_run_trains_here(stage: Stage) -> None:
    for number in range(6):
        train(stage, number, number + 1, f"gpu{number + 7}", uuid=f"GPU-{number}")
    async with stage.console(gpus=driver(4.0)) as pilot:
        await shows(pilot, "6 on SLURM: 6 running")
        gauge = line_with(pilot, "gpu7 GPU")
        for words in ("12.0/80.0 GiB", "runs 10.0 GiB", "12.3k tokens/s", "87 %", "61 °C", "310 W"):
            assert words in gauge
        lines = screen(pilot).splitlines()
        assert [line.split()[0] for line in lines if " GPU " in line] == ["gpu7", "gpu8", "gpu9", "gpu10"]
        assert "and 2 more devices: 2 runs, 24.7k tokens/s" in screen(pilot)
        assert "GPU 0" not in screen(pilot)
        await pilot.press(*["down"] * 5)
        await shows(pilot, "gpu12 GPU")
        assert "gpu10 GPU" not in screen(pilot)
        stage.record(7, "running")
        await shows(pilot, "GPU 0 ")


async def test_details_show_job_node_restarts_reason_and_the_output_of_the_job(stage: Stage) -> None:
    run = stage.queue(1, slurm=submission(1, restarts=2))
    run.append(on("n2"), progress(1, 4), Stopped(epoch=1, step=4, signal="SIGTERM"))
    answer(stage, {1: WAITS})
    root, batch = stage.store.root, submission(1).batch
    write_submission(root, batch)
    (folder_of(root, batch) / "0_0.log").write_text("slurmstepd: CANCELLED DUE TO JOB REQUEUE\x1b[2J\n")
    async with stage.console(size=(80, 24)) as pilot:
        await pilot.press("enter")
        await shows(
            pilot,
            "7_0, started again 2 times so far",
            "last node      n2",
            "PENDING, interrupted; SLURM starts it again (other",
        )
        await pilot.press("left")
        await shows(pilot, "slurmstepd: CANCELLED DUE TO JOB REQUEUE\\x1b[2J")
        await pilot.press("right", "escape")
        await shows_no_more(pilot, "last node")


async def test_the_console_sees_that_slurm_is_asked_about_active_runs(stage: Stage, kept: list[Store]) -> None:
    train(stage, 1, 2, "n1")
    async with stage.console() as pilot:
        await shows(pilot, "1 on SLURM")
        await pilot.app.workers.wait_for_complete()
    assert [store.root for store in kept] == [stage.store.root]


async def test_a_run_of_this_machine_has_no_page_and_no_actions_of_slurm(stage: Stage, kept: list[Store]) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("S", "H", "L", "enter")
        await shows(pilot, "Worker log")
        assert "SLURM" not in screen(pilot)
        commands = console_of(pilot).get_system_commands(console_of(pilot).main)
        assert not [command.title for command in commands if "SLURM" in command.title]
    assert kept == []


async def test_actions_on_slurm_apply_to_waiting_or_running_runs_of_the_selection(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    four_runs(stage)
    monkeypatch.setenv("PATH", str(stage.root))  # no SLURM
    root = stage.store.root
    for number in (0, 1, 2):
        write_submission(root, submission(number).batch)
    async with stage.console() as pilot:
        await shows(pilot, "3 on SLURM")
        titles = [each.title for each in console_of(pilot).get_system_commands(console_of(pilot).main)]
        assert {"Hold on SLURM", "Release on SLURM", "Start again on SLURM"} <= set(titles)
        await pilot.press("S")
        await shows(pilot, "None of the selected runs is running on SLURM.")
        await pilot.press("H")
        await shows(pilot, "squeue: no such program")
        await pilot.press("down", "L")
        await shows(pilot, "None of the selected runs is waiting on SLURM.")
        await pilot.press("S")
        await shows(pilot, "Start 1 run again?", "2 LSTM 1L AdamW, s42 on n1", "last checkpoint.")
        await pilot.press("n")
        await shows_no_more(pilot, "Start 1 run again?")


async def test_s_keeps_an_interrupted_run_from_being_started_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(stage.root))
    run = submit(stage, 0)
    run.append(on("n1"), Stopped(epoch=1, step=3, signal="SIGUSR1"))
    answer(stage, {0: WAITS})
    async with stage.console() as pilot:
        await shows(pilot, "interrupted, other jobs have priority")
        await pilot.press("s")
        await shows(pilot, "Stop 1 run?")
        await pilot.press("y")
        await shows(pilot, "1 run will stop.", "stopped in 1/")
        assert run.paths.stop_requested


async def test_all_runs_have_not_ended_while_slurm_starts_one_again(stage: Stage) -> None:
    run = train(stage, 0, 1, "n1")
    answer(stage, {0: TaskStatus(job="7_0", state="RUNNING", node="n1")})
    async with stage.console() as pilot:
        await shows(pilot, "on n1")
        run.append(Stopped(epoch=1, step=4, signal="SIGUSR1"))
        await shows(pilot, "interrupted 1/")
        assert "All runs have ended" not in screen(pilot)
        answer(stage, {0: TaskStatus(job="7_0", state="CANCELLED", ended=True)})
        await shows(pilot, "All runs have ended", "stopped in 1/")
