"""Memory gauges of GPUs and of the host."""

from factories import progress, started, telemetry
from tui.stage import Stage, driver, line_with, no_driver, shows

from lmconsole.plan.flops import training_flops
from lmconsole.runs.info import read_info


async def test_each_gpu_has_a_gauge_with_the_usage_of_the_stores_runs(stage: Stage) -> None:
    run = stage.queue(5)
    run.append(
        started(device="cuda:0", device_name="Fake 24G", device_uuid="GPU-00000001"),
        progress(1, 4, 6.0),
        telemetry(process_used_mib=6_144.0),
    )
    run.holder = stage.hold(run.paths.lock)
    async with stage.console(gpus=driver(4.0, 12.0)) as pilot:
        await shows(pilot, "GPU 1", seconds=3.0)
        first, second = line_with(pilot, "GPU 0"), line_with(pilot, "GPU 1")
        assert "4.0/24.0 GiB" in first
        assert "runs" not in first
        assert all(words in second for words in ("12.0/24.0 GiB", "runs 6.0 GiB", "87 %", "61 °C", "250 W", "Fake 24G"))
        assert second.count("█") > first.count("█")


async def test_unknown_values_of_a_gpu_are_dashes(stage: Stage) -> None:
    async with stage.console(gpus=driver(4.0, watts=None)) as pilot:
        await shows(pilot, "GPU 0")
        assert "– W" in line_with(pilot, "GPU 0")


async def test_without_a_gpu_the_host_memory_is_shown_with_the_reason(stage: Stage) -> None:
    stage.record(1, "running")
    async with stage.console(gpus=no_driver) as pilot:
        await shows(pilot, "Host memory")
        gauge = line_with(pilot, "Host memory")
        assert "runs 2.0 GiB" in gauge
        assert "(no NVIDIA driver)" in gauge


async def test_throughput_of_runs_on_one_device_adds_up_with_its_share_of_the_measured_peak(stage: Stage) -> None:
    first, second = stage.queue(2), stage.queue(3)
    info = read_info(first.paths.info)
    flops = training_flops(info.settings, info.corpus.vocabulary).total
    first_attempt = started(peak_matmul_gflops=10_000 * flops / 1e9)
    for run in (first, second):
        pace = progress(1, 4, 6.0, tokens_per_s=3_000.0)
        run.append(first_attempt, pace, telemetry())
        run.holder = stage.hold(run.paths.lock)
    async with stage.console(gpus=no_driver) as pilot:
        await shows(pilot, "of peak")
        assert all(words in line_with(pilot, "Host memory") for words in ("6.0k tokens/s", "60 % of peak"))
        await pilot.press("down", "enter")
        await shows(pilot, "tokens/s, 30 % of the device's measured peak")
