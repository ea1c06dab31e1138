"""The records of an attempt: energy, other GPU processes, and the kind of attention."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import factories
import msgspec
import pytest
import tiny
from fake_nvml import build_fake_nvml
from forked import ForkServer

from lmconsole.engine.attempt import uses_gpu_alone
from lmconsole.runs.events import Queued
from lmconsole.runs.store import Run

GPU_0 = "GPU-abcdef00-0000-4000-8000-000000000000"
STARTED = factories.started(device="cuda:0", device_uuid=GPU_0, shared_gpu=False)


@pytest.mark.parametrize(
    ("uuid", "shared", "jobs", "alone"),
    [
        (GPU_0, False, 1, True),
        (GPU_0, None, 1, True),  # the driver hides processes
        (GPU_0, True, 1, False),
        (GPU_0, False, 2, False),
        (GPU_0, True, 2, False),
        (GPU_0.replace("GPU", "MIG"), False, 1, False),
        (None, None, 1, False),  # a CPU
    ],
)
def test_energy_counts_for_a_run_that_uses_the_gpu_alone(
    uuid: str | None, shared: bool | None, jobs: int, alone: bool
) -> None:
    started = msgspec.structs.replace(STARTED, device_uuid=uuid, shared_gpu=shared)
    assert uses_gpu_alone(started, Queued(devices=("cpu",), jobs=jobs)) is alone


FAKE_GPU = f"""
import dataclasses
from lmconsole.engine import sampler
from lmconsole.lm import device, energy
energy.MIN_S, sampler.INTERVAL_S = 0.0, 0.04
describe = device.describe_device
device.describe_device = lambda name: dataclasses.replace(describe(name), uuid="{GPU_0}")
"""
"""Makes the CPU appear as the fake driver's GPU, and meters epochs as short as those of a tiny run."""


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ForkServer]]:
    """Return the folder of the fake driver, and a server for workers that find it."""
    if sys.platform != "linux":
        pytest.skip("NVML is loaded by its Linux name")
    library = str(build_fake_nvml(tmp_path_factory.mktemp("driver")))
    server = tiny.fork_server(LD_LIBRARY_PATH=library)
    yield library, server
    server.end()


def train_on_fake_gpu(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_driver: tuple[str, ForkServer],
    *,
    jobs: int = 1,
    **environment: str,
) -> tuple[Run, dict[str, object]]:
    library, server = fake_driver
    monkeypatch.setenv("LD_LIBRARY_PATH", library)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = tiny.queue_tiny(root, jobs=jobs, epochs=2)
    done = tiny.worker(run, root, FAKE_GPU, server)
    assert done.returncode == 0, done.stderr
    run.refresh()
    lines = [json.loads(line) for line in run.paths.events.read_bytes().splitlines()]
    return run, lines[-1]


@pytest.mark.slow
def test_a_run_records_the_joules_of_the_gpu_it_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_driver: tuple[str, ForkServer]
) -> None:
    run, last = train_on_fake_gpu(
        tmp_path, monkeypatch, fake_driver, FAKE_NVML_POWER_W="1000", FAKE_NVML_PROCESSES="self:300"
    )
    assert run.state.started is not None
    assert run.state.started.shared_gpu is False
    epochs_j = 0.0
    for epoch in run.state.epochs:
        assert epoch.train_s is not None
        assert epoch.valid_s is not None
        assert epoch.energy_j is not None
        assert epoch.energy_j >= 1000 * (epoch.train_s + epoch.valid_s) - 0.002
        epochs_j += epoch.energy_j
    assert run.state.finished is not None
    assert run.state.finished.wall_s is not None
    assert last["kind"] == "finished"
    assert isinstance(last["energy_j"], float)
    assert epochs_j <= last["energy_j"] <= 1000 * run.state.finished.wall_s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "environment"),
    [
        (2, {"FAKE_NVML_PROCESSES": "self:300"}),
        (1, {"FAKE_NVML_PROCESSES": "self:300,1:50"}),
        (1, {"FAKE_NVML_FAIL": "nvmlDeviceGetTotalEnergyConsumption=3"}),
    ],
    ids=["several-jobs", "shared-gpu", "old-gpu"],
)
def test_a_run_whose_own_joules_are_unknown_records_null(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_driver: tuple[str, ForkServer],
    jobs: int,
    environment: dict[str, str],
) -> None:
    run, last = train_on_fake_gpu(tmp_path, monkeypatch, fake_driver, jobs=jobs, **environment)
    assert [epoch.energy_j for epoch in run.state.epochs] == [None, None]
    assert last["energy_j"] is None
    assert any(sample.power_w for sample in run.state.telemetry), "the driver answered other questions"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "precision", "attention"),
    [("lstm", "fp32", None), ("gpt1", "fp32", "fused"), ("gpt1", "bf16", "written out")],
)
def test_started_names_the_kind_of_attention(tmp_path: Path, model: str, precision: str, attention: str | None) -> None:
    run = tiny.queue_tiny(tmp_path, model, epochs=1, precision=precision)
    assert tiny.worker(run, tmp_path).returncode == 0
    run.refresh()
    assert run.state.started is not None
    assert run.state.started.attention == attention
