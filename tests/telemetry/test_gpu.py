"""GPUs are reported through the real bindings of NVML, which call a fake driver library."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import build_fake_nvml

GPU_0 = "GPU-abcdef00-0000-4000-8000-000000000000"
GPU_1 = "GPU-abcdef01-0000-4000-8000-000000000000"
NOBODY = 2**22 + 1
"""A pid above the highest one of Linux."""

SCRIPT_START = """\
import json, os, msgspec
from lmconsole.telemetry.gpu import Gpus
def say(value):
    print(json.dumps(msgspec.to_builtins(value)))
"""

Ask = Callable[..., Any]


def run_child(script: str, environment: dict[str, str]) -> Any:
    """Run a script and return the values of its calls of ``say``: a list, or the only value."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT_START + script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    values = [json.loads(line) for line in done.stdout.splitlines()]
    return values[0] if len(values) == 1 else values


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux":
        pytest.skip("NVML is loaded by its Linux name")
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def ask(library: Path) -> Ask:
    """Return a function that runs a script with the fake driver, which keywords configure."""

    def ask(script: str, **settings: str | int) -> Any:
        environment = {f"FAKE_NVML_{key.upper()}": str(value) for key, value in settings.items()}
        return run_child(script, {"LD_LIBRARY_PATH": str(library), **environment})

    return ask


def test_two_gpus_and_everything_known_about_them(ask: Ask) -> None:
    available, reason, driver, devices = ask(
        "g = Gpus.open(); say(g.available); say(g.reason); say(g.driver_version); say(g.devices())"
    )
    assert (available, reason, driver) == (True, None, "555.42.01")
    assert devices[0] == {
        "uuid": GPU_0,
        "name": "Fake GPU 0",
        "index": 0,
        "device_used_mib": 1000.0,
        "device_total_mib": 24576.0,
        "process_used_mib": None,
        "utilization_percent": 37.0,
        "power_w": 123.456,
        "temperature_c": 62.0,
    }
    assert [(d["index"], d["uuid"], d["device_used_mib"]) for d in devices[1:]] == [(1, GPU_1, 1100.0)]


@pytest.mark.parametrize("uuid", [GPU_1, GPU_1.upper(), GPU_1.removeprefix("GPU-")])
def test_a_gpu_is_found_by_its_uuid_however_it_is_written(ask: Ask, uuid: str) -> None:
    assert ask(f"say(Gpus.open().sample({uuid!r}))")["index"] == 1


def test_an_unknown_uuid_gives_no_sample(ask: Ask) -> None:
    assert ask("say(Gpus.open().sample('GPU-ffffffff-0000-0000-0000-000000000000'))") is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "kernel driver is not loaded"),
        (18, "different versions"),
        (4, "no permission"),
        (13, "too old"),
        (999, "refuses: Unknown Error"),
    ],
)
def test_a_driver_that_does_not_start_says_why(ask: Ask, code: int, words: str) -> None:
    script = f"g = Gpus.open(); say([g.available, g.reason, g.devices(), g.sample({GPU_0!r}), g.driver_version])"
    available, reason, devices, sample, driver = ask(script, fail=f"nvmlInitWithFlags={code}")
    assert (available, devices, sample, driver) == (False, [], None, None)
    assert words in reason


def test_no_driver_library_is_a_normal_case(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    script = "g = Gpus.open(); say([g.available, g.reason, g.devices(), g.other_processes('GPU-1', [])]); g.close()"
    available, reason, devices, others = run_child(script, {"LD_LIBRARY_PATH": str(tmp_path)})
    assert (available, devices, others) == (False, [], None)
    assert "libnvidia-ml.so.1" in reason


def test_missing_bindings_are_a_reason_too() -> None:
    script = "import sys; sys.modules['pynvml'] = None; g = Gpus.open(); say([g.available, g.reason])"
    available, reason = run_child(script, {})
    assert not available
    assert "nvidia-ml-py" in reason


def test_a_driver_without_gpus(ask: Ask) -> None:
    available, reason = ask("g = Gpus.open(); say([g.available, g.reason])", gpus=0)
    assert not available
    assert "no GPU" in reason


@pytest.mark.parametrize("code", [3, 4, 13, 999])
@pytest.mark.parametrize(
    ("functions", "field"),
    [
        (["nvmlDeviceGetPowerUsage"], "power_w"),
        (["nvmlDeviceGetUtilizationRates"], "utilization_percent"),
        (["nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"], "temperature_c"),
        (["nvmlDeviceGetName"], "name"),
    ],
)
def test_an_unanswered_query_leaves_one_field_unknown(ask: Ask, functions: list[str], field: str, code: int) -> None:
    sample = ask(f"say(Gpus.open().sample({GPU_0!r}))", fail=",".join(f"{each}={code}" for each in functions))
    assert {key for key, value in sample.items() if value is None} == {field, "process_used_mib"}


def test_the_used_memory_of_an_old_driver_includes_its_own(ask: Ask) -> None:
    first, second = ask(
        f"g = Gpus.open(); say(g.sample({GPU_0!r})); say(g.sample({GPU_0!r}))", fail="nvmlDeviceGetMemoryInfo_v2=13"
    )
    assert first["device_used_mib"] == second["device_used_mib"] == 1512.0
    assert first["device_total_mib"] == 24576.0


def test_temperature_of_an_old_driver(ask: Ask) -> None:
    sample = ask(f"say(Gpus.open().sample({GPU_0!r}))", fail="nvmlDeviceGetTemperatureV=13")
    assert sample["temperature_c"] == 61.0


def test_a_gpu_without_permission_is_listed_as_unknown(ask: Ask) -> None:
    first, second = ask("say(Gpus.open().devices())", fail="nvmlDeviceGetHandleByIndex_v2=4")
    assert (first["index"], second["index"]) == (0, 1)
    assert {value for key, value in first.items() if key != "index"} == {None}


def test_a_lost_gpu_is_unknown_and_keeps_its_name(ask: Ask) -> None:
    script = f"""
g = Gpus.open()
say(g.sample({GPU_0!r}, os.getpid()))
os.environ["FAKE_NVML_LOST_AFTER"] = "0"
say(g.sample({GPU_0!r}, os.getpid()))
say(g.other_processes({GPU_0!r}, [os.getpid()]))
del os.environ["FAKE_NVML_LOST_AFTER"]
say(g.sample({GPU_0!r}, os.getpid()))
"""
    before, lost, others, after = ask(script, processes="self:300")
    assert before["device_used_mib"] == after["device_used_mib"] == 1000.0
    assert {key for key, value in lost.items() if value is not None} == {"uuid", "name", "index"}
    assert others is None


def test_our_memory_is_known_if_the_driver_lists_us(ask: Ask) -> None:
    script = f"say(Gpus.open().sample({GPU_0!r}, os.getpid()))"
    assert ask(script, processes="self:300,1:50")["process_used_mib"] == 300.0


def test_a_process_listed_twice_is_added_up(ask: Ask) -> None:
    script = f"say(Gpus.open().sample({GPU_0!r}, os.getpid()))"
    assert ask(script, processes="self:300,self:20")["process_used_mib"] == 320.0


@pytest.mark.parametrize(
    "processes",
    [
        "",
        f"{NOBODY}:300",  # pids of the host only
        f"self:300,{NOBODY}:50",  # our pid by chance, among pids of the host
        "self:300,0:50",
        "self:unavailable",
        "self:300,self:unavailable",
    ],
)
def test_our_memory_is_unknown_rather_than_guessed(ask: Ask, processes: str) -> None:
    sample = ask(f"say(Gpus.open().sample({GPU_0!r}, os.getpid()))", processes=processes)
    assert sample["process_used_mib"] is None
    assert sample["device_used_mib"] == 1000.0


def test_old_drivers_list_processes_too(ask: Ask) -> None:
    script = f"say(Gpus.open().sample({GPU_0!r}, os.getpid()))"
    sample = ask(script, processes="self:300", fail="nvmlDeviceGetComputeRunningProcesses_v3=13")
    assert sample["process_used_mib"] == 300.0


@pytest.mark.parametrize(
    ("processes", "own", "others"),
    [
        ("self:300", "[os.getpid()]", 0),
        ("self:300,1:50", "[os.getpid()]", 1),
        ("self:300,1:50,1:20", "[os.getpid()]", 1),
        ("", "[]", 0),
        (f"{NOBODY}:50,{NOBODY + 1}:50", "[]", 2),  # none is ours, so no pid needs to be compared
        (f"{NOBODY}:50", "[os.getpid()]", None),  # this can be our process or another one
        (f"{NOBODY}:50,{NOBODY + 1}:50", "[os.getpid()]", 1),
        ("", "[os.getpid()]", None),  # we use the GPU and are not listed: the driver hides processes
    ],
)
def test_other_processes_on_the_gpu(ask: Ask, processes: str, own: str, others: int | None) -> None:
    assert ask(f"say(Gpus.open().other_processes({GPU_0!r}, {own}))", processes=processes) == others


def test_other_processes_are_unknown_if_the_driver_hides_them(ask: Ask) -> None:
    fail = "nvmlDeviceGetComputeRunningProcesses_v3=4,nvmlDeviceGetComputeRunningProcesses_v2=4"
    assert ask(f"say(Gpus.open().other_processes({GPU_0!r}, []))", fail=fail) is None


def test_names_may_be_bytes_as_in_old_bindings(ask: Ask) -> None:
    script = """
import pynvml
pynvml.nvmlInit()
pynvml.nvmlDeviceGetName = pynvml.nvmlDeviceGetName.__wrapped__
pynvml.nvmlDeviceGetUUID = pynvml.nvmlDeviceGetUUID.__wrapped__
assert isinstance(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)), bytes)
say(Gpus.open().devices())
"""
    first, _ = ask(script)
    assert (first["name"], first["uuid"]) == ("Fake GPU 0", GPU_0)


def test_a_name_that_is_not_text_is_unknown(ask: Ask) -> None:
    script = f"say(Gpus.open().sample({GPU_0!r}))"
    sample = ask(script, name=os.fsdecode(b"\xff\xfe"))
    assert sample["name"] is None
    assert sample["device_used_mib"] == 1000.0


def test_slices_of_a_gpu_take_its_place(ask: Ask) -> None:
    devices, sample = ask(
        "g = Gpus.open(); say(g.devices()); say(g.sample(g.devices()[1].uuid, os.getpid()))",
        mig=1,
        processes="self:300",
    )
    assert [(d["index"], d["uuid"][:4]) for d in devices] == [(0, "MIG-"), (0, "MIG-"), (1, "GPU-")]
    assert devices[0]["uuid"] != devices[1]["uuid"]
    assert devices[0]["name"] == "Fake GPU 0 MIG 1g.12gb"
    assert devices[0]["device_used_mib"] == 1000.0
    assert devices[0]["utilization_percent"] is devices[0]["power_w"] is devices[0]["temperature_c"] is None
    assert sample["process_used_mib"] == 300.0


def test_energy_is_the_rise_of_the_boards_counter_in_joules(ask: Ask) -> None:
    """The counter of the fake driver is power times the monotonic clock."""
    script = f"""
import time
g = Gpus.open()
for _ in range(2):
    before = time.monotonic()
    joules = g.total_energy_j({GPU_1!r})
    say([before, joules, time.monotonic()])
    while g.total_energy_j({GPU_1!r}) < joules + 10:
        pass
"""
    (t0, first, t1), (t2, second, t3) = ask(script, power_w=250)
    assert 250 * t0 - 0.001 <= first <= 250 * t1
    assert 250 * (t2 - t1) - 0.001 <= second - first <= 250 * (t3 - t0) + 0.001


def test_a_large_energy_counter_keeps_every_millijoule(ask: Ask) -> None:
    assert ask(f"say(Gpus.open().total_energy_j({GPU_0!r}))", energy_mj=987_654_321_012) == 987_654_321.012


@pytest.mark.parametrize("code", [3, 4, 13, 999])
def test_energy_is_unknown_if_the_driver_does_not_report_it(ask: Ask, code: int) -> None:
    energy, power = ask(
        f"g = Gpus.open(); say(g.total_energy_j({GPU_0!r})); say(g.sample({GPU_0!r}).power_w)",
        fail=f"nvmlDeviceGetTotalEnergyConsumption={code}",
    )
    assert (energy, power) == (None, 123.456)


def test_the_energy_of_a_lost_or_missing_gpu_is_unknown(ask: Ask) -> None:
    script = f"""
g = Gpus.open()
say(g.total_energy_j('GPU-ffffffff-0000-0000-0000-000000000000'))
os.environ["FAKE_NVML_LOST_AFTER"] = "0"
say(g.total_energy_j({GPU_0!r}))
"""
    assert ask(script) == [None, None]


def test_a_slice_has_no_energy_even_if_the_driver_reports_that_of_the_board(ask: Ask) -> None:
    script = """
g = Gpus.open()
energies = lambda: say([g.total_energy_j(each.uuid) for each in g.devices()])
energies()
import pynvml
pynvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 5_000
energies()
"""
    assert ask(script, mig=1, energy_mj=7_000) == [[None, None, 7.0], [None, None, 5.0]]


def test_after_closing_there_are_no_gpus_and_no_errors(ask: Ask) -> None:
    script = f"""
g = Gpus.open(); g.close(); g.close()
say([g.available, g.reason, g.devices(), g.sample({GPU_0!r}), g.total_energy_j({GPU_0!r})])
"""
    assert ask(script) == [False, "closed", [], None, None]


def test_importing_the_module_loads_no_bindings() -> None:
    assert run_child("import sys; say('pynvml' in sys.modules)", {}) is False
