"""The GPU benchmark, rehearsed on the CPU by a Python that has only PyTorch and the carried packages."""

import copy
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_nvml import build_fake_nvml

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the source distribution has no benchmarks"),
]

IMAGE = ("numpy", "psutil", "safetensors", "tokenizers")
"""Packages of a PyTorch image, apart from PyTorch and rich with their dependencies."""
FIRST = ["look", "gauge", "smoke", "suite", "head", "steps", "reference"]
SECOND = ["sdpa", "gang", "kernels", "split", "jobs", "peaks", "smoke32", "suite32", "tests"]

ImportBenchmark = Callable[[str], Any]


@pytest.fixture
def import_benchmark(monkeypatch: pytest.MonkeyPatch) -> ImportBenchmark:
    """Return a function that imports a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def with_dependencies(name: str) -> set[str]:
    """Return a distribution and all its dependencies."""
    requirements = pytest.importorskip("packaging.requirements")
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            each = (requirements.Requirement(line) for line in distribution(name).requires or ())
            waiting += [r.name for r in each if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def link(names: set[str], site: Path) -> None:
    """Link the files of the distributions ``names`` into the folder ``site``."""
    for each in map(distribution, names):
        for top in {Path(file).parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(each.locate_file(top)))


@dataclass(frozen=True, kw_only=True, slots=True)
class BareMachine:
    """A machine without a network: an interpreter of its own, and a folder of carried packages."""

    python: Path
    carried: Path
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Return an environment that has only PATH in common with this process."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONWARNINGS": "error",
            "OMP_NUM_THREADS": "1",
        } | more

    def run(self, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the benchmark with the carried packages."""
        return subprocess.run(
            [str(self.python), str(BENCHMARKS / "gpu.py"), *map(str, arguments)],
            env=self.environment(PYTHONPATH=str(self.carried), **more),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> BareMachine:
    """A machine with links to the packages installed here, chosen by the benchmark's own lists."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "image", symlinks=True)
    (site,) = (folder / "image").glob("lib/python*/site-packages")
    link(with_dependencies("torch") | with_dependencies("rich") | set(IMAGE), site)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        packages = importlib.import_module("gpu_packages")
    finally:
        sys.path.remove(str(BENCHMARKS))
    carried, home = folder / "carried", folder / "home"
    carried.mkdir()
    home.mkdir()
    link({re.split("[<>=]", each)[0] for each in packages.CARRIED.values()}, carried)
    for name in ("msgspec", "pandas", "matplotlib", "textual", "pytest", "lmconsole"):
        assert not list(site.glob(f"{name}*")), f"{name} is already installed, so nothing would be tested"
    return BareMachine(python=folder / "image" / "bin" / "python", carried=carried, home=home)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """Two calls that fill one file: the document after each, and the table of the second."""

    first: dict[str, Any]
    second: dict[str, Any]
    table: str


@pytest.fixture(scope="module")
def rehearsal(bare: BareMachine, tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    file = tmp_path_factory.mktemp("results") / "new" / "card.json"

    def call(stages: str, epochs: str) -> tuple[dict[str, Any], str]:
        done = bare.run(
            *("--rehearsal", "--budget-s", "200", "--epochs", epochs, "--json", file, "--stages", stages),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(file.read_text(encoding="utf-8")), done.stdout

    first, _ = call(",".join(FIRST).replace("reference", "twins"), "10")  # the stage's name in version 0.1.0
    second, table = call(",".join(SECOND), "2")
    return Rehearsal(first=first, second=second, table=table)


def test_a_bare_machine_measures_every_stage_in_two_calls(rehearsal: Rehearsal) -> None:
    assert list(rehearsal.first["stages"]) == FIRST
    assert list(rehearsal.second["stages"]) == [*FIRST, *SECOND]
    reasons = {name: entry["reason"] for name, entry in rehearsal.second["stages"].items() if "reason" in entry}
    assert reasons == {"tests": "packages are missing: pytest, hypothesis, pytest-timeout"}
    assert rehearsal.second["correct"] is True
    for name in FIRST:
        assert rehearsal.second["stages"][name] == rehearsal.first["stages"][name], "kept, not measured again"


def test_every_stage_has_results(rehearsal: Rehearsal) -> None:
    results = {name: entry["result"] for name, entry in rehearsal.second["stages"].items() if "result" in entry}
    assert results["look"]["disk_write_mb_per_s"] > 0
    for name in ("smoke", "smoke32"):
        assert all(each["step_ms"] > 0 and each["ok"] for each in results[name]["shapes"].values())
    for case in results["head"]["cases"]:
        assert 0 < case["loss_error"] + sum(case["gradient_errors"]) < 0.1
        assert case["nan_propagates"] is True
    for each in results["reference"]["experiments"].values():
        assert len(each["fast"]) == len(each["reference"]) == 4
        assert each["ok"] is True
    assert results["kernels"]["failed"] == {}
    assert len(results["kernels"]["lstm_ms"]) == 3 * 3, "three depths; TF32 and cuDNN in float16 are for GPUs"
    assert min(*results["kernels"]["lstm_ms"].values(), *results["kernels"]["head_ms"].values()) > 0
    assert len(results["split"]) == 3
    for matmul in results["split"].values():
        assert 0 < matmul["error"] < 1e-6
    for each in results["steps"]["experiments"].values():
        assert len(each["seconds"]["baseline_fp32"]) == 3
        assert min(*each["seconds"]["baseline_fp32"], *each["seconds"]["ours_bf16"]) > 0
    assert results["sdpa"]["verdict"].startswith("use ")
    assert results["gang"]["together"][0]["gain"] > 0


def test_suites_train_every_step(rehearsal: Rehearsal) -> None:
    for name, jobs, epochs in (("suite", 1, 10), ("suite32", 1, 2), ("jobs", 4, 2)):
        suite = rehearsal.second["stages"][name]["result"]
        assert suite["complete"] is True
        assert suite["jobs"] == jobs
        assert suite["epochs"] == epochs
        assert suite["exit_code"] == 0
        assert suite["whole_s"] > max(run["wall_s"] for run in suite["runs"].values())
        assert all(len(run["valid_ppl"]) == suite["epochs"] for run in suite["runs"].values())
        assert suite["trained_steps"] == len(suite["runs"]) * suite["epochs"] * suite["steps_per_epoch"]


def test_the_table_is_short_and_names_what_is_extrapolated(rehearsal: Rehearsal) -> None:
    assert len(rehearsal.table) <= 12_000
    assert "REHEARSAL" in rehearsal.table
    assert rehearsal.table.rstrip().endswith("Result: all checks passed.")
    assert rehearsal.second["extrapolated"].keys() == {"suite", "suite32"}
    for goal in rehearsal.second["goals"]:
        assert goal["met"] is None
        assert goal["what"] in rehearsal.table
        assert ("extrapolated" in goal["measured"]) == ("plain PyTorch in" in goal["what"])


def test_the_table_of_twelve_runs_and_every_kernel_is_short_enough(
    rehearsal: Rehearsal, import_benchmark: ImportBenchmark
) -> None:
    document = copy.deepcopy(rehearsal.second)
    results = {name: entry["result"] for name, entry in document["stages"].items() if "result" in entry}
    for name, part, count in (
        ("suite", "runs", 12),
        ("smoke", "shapes", 6),
        ("smoke32", "shapes", 6),
        ("steps", "experiments", 6),
        ("kernels", "lstm_ms", 15),
        ("kernels", "head_ms", 18),
    ):
        _, like = next(iter(results[name][part].items()))
        results[name][part] = {str(number): like for number in range(count)}
    for run in results["suite"]["runs"].values():
        run["message"] = "The training step is not captured as a CUDA graph: " + "some long reason " * 20
    results["gang"]["together"] *= 6
    text = import_benchmark("gpu_table").table(document, "benchmarks/results/nvidia-h100-80gb-hbm3.json")
    assert 8_000 < len(text) <= 12_000
    assert "every number is in the file" not in text, "nothing was left out"


def test_every_estimate_has_its_measured_value(rehearsal: Rehearsal) -> None:
    measured = {each["what"]: each["measured"] for each in rehearsal.second["estimates"]}
    assert len(measured) == len(rehearsal.second["estimates"]) >= 20
    suite = rehearsal.second["stages"]["suite"]["result"]
    assert measured["suite: the whole command"] == suite["whole_s"]
    assert measured["GPT-1-1, bf16: training for ten epochs"] == pytest.approx(sum(suite["runs"]["6"]["train_s"]))
    for line in rehearsal.second["estimates"]:
        assert line["what"] in rehearsal.table


def test_missing_packages_are_named_with_the_command_that_downloads_them(
    bare: BareMachine, import_benchmark: ImportBenchmark
) -> None:
    command = [str(bare.python), str(BENCHMARKS / "gpu.py"), "--rehearsal"]
    done = subprocess.run(command, env=bare.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    packages = import_benchmark("gpu_packages")
    first, *rest = done.stderr.splitlines()
    assert first.endswith(f"packages are missing: {', '.join(packages.CARRIED.values())}")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert any(line.strip() == packages.download_command(version, os.uname().machine) for line in rest)


def test_readme_pyproject_and_program_name_the_same_packages(import_benchmark: ImportBenchmark) -> None:
    packages = import_benchmark("gpu_packages")
    readme = " ".join((BENCHMARKS / "README.md").read_text(encoding="utf-8").replace("\\\n", "").split())
    assert packages.download_command("3.12", "x86_64") in readme
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = {re.split("[<>=]", each)[0]: each for each in project["dependencies"]}
    requirements = [*packages.IMAGE.values(), *packages.CARRIED.values(), *packages.OPTIONAL.values()]
    named = {re.split("[<>=]", each)[0]: each for each in requirements}
    shared = named.keys() & dependencies.keys() - {"torch"}  # of torch, the benchmark needs a newer version
    assert len(shared) >= 8
    assert {name: named[name] for name in shared} == {name: dependencies[name] for name in shared}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_finds_carried_packages_and_reports_that_there_is_no_gpu(bare: BareMachine) -> None:
    done = subprocess.run(
        ["make", "-C", str(ROOT), "gpu", f"VENV={bare.python.parents[1]}"],
        env=bare.environment(PYTHONPATH=str(bare.carried), CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    messages = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert messages[-1].startswith("benchmarks/gpu.py: nothing measured: no CUDA device found")
    assert len(messages) <= 2, "at most one more, about optional packages"


def test_a_smoke_test_that_fails_ends_the_call(bare: BareMachine, tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    arguments = ("--rehearsal", "--stages", "smoke,head", "--json", file)
    done = bare.run(*arguments, LMCONSOLE_PLAIN="1")
    assert done.returncode == 1, done.stdout + done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    assert list(document["stages"]) == ["smoke"]
    assert document["correct"] is False
    assert "LMCONSOLE_PLAIN is set" in done.stdout
    assert "the remaining stages are skipped" in done.stderr


HANGING = """\
import json, subprocess, sys, time
from pathlib import Path
import gpu_process
from gpu_process import Stage, run_isolated
gpu_process.GRACE_S = 2.0
folder = Path(sys.argv[1])
run_isolated(Stage(name="first", folder=folder, deadline=time.monotonic() + 90), "hanging:nothing")  # imports torch
stage = Stage(name="hanging", folder=folder, deadline=time.monotonic() + 1.5)
began = time.monotonic()
outcome = run_isolated(stage, "hanging:hang")
print(json.dumps(outcome | {"lasted_s": time.monotonic() - began}))
"""
HANG = """\
import subprocess, time
def nothing(stage):
    return {}
def hang(stage):
    stage.save_partial({"half": 1})
    subprocess.Popen(["sleep", "%s"], start_new_session=True)
    while True:
        time.sleep(1)
"""


def test_a_stage_that_hangs_is_killed_with_its_child_processes(tmp_path: Path) -> None:
    seconds = str(100_000 + os.getpid())
    (tmp_path / "hanging.py").write_text(HANG % seconds)
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(BENCHMARKS), str(tmp_path), *sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    outcome = json.loads(done.stdout)
    assert re.fullmatch(r"killed after \d+ s", outcome["reason"])
    assert "in hang\n" in outcome["trace"], "where it hung"
    assert outcome["result"] == {"half": 1}, "earlier measurements are kept"
    assert outcome["lasted_s"] < 30
    assert not [p.pid for p in psutil.process_iter(["cmdline"]) if seconds in (p.info["cmdline"] or ())]


def test_a_budget_that_is_spent_ends_the_call_in_time(bare: BareMachine, rehearsal: Rehearsal, tmp_path: Path) -> None:
    """The suite needs far more time than there is, and the stages after it get none."""
    file = tmp_path / "card.json"
    budget_s = 20.0 + 2 * rehearsal.second["prepare_s"]  # depends on how busy the machine is
    began = time.monotonic()
    done = bare.run(
        *("--rehearsal", "--budget-s", str(budget_s), "--epochs", "1000"),
        *("--stages", "suite,smoke,jobs", "--json", file),
    )
    assert time.monotonic() - began < budget_s
    stages = json.loads(file.read_text(encoding="utf-8"))["stages"]
    assert stages["suite"]["result"]["complete"] is False, done.stdout + done.stderr
    assert stages["smoke"]["reason"] == stages["jobs"]["reason"] == "no time was left"


def test_an_unknown_stage_is_an_error_that_lists_the_known_ones(bare: BareMachine) -> None:
    done = bare.run("--stages", "look,smok")
    assert done.returncode == 2
    assert "unknown: smok. Stages: look, gauge, smoke, suite" in done.stderr


GAUGE = """\
import itertools, json, sys, types
sys.path.insert(0, sys.argv[1])
import gpu_device, gpu_table, torch
uuid = "GPU-abcdef00-0000-4000-8000-000000000000"
gpu_device.describe_device = lambda device: types.SimpleNamespace(uuid=uuid)
gpu_device._keep_busy = lambda size, device, seconds: None
gpu_device.Gpus.total_energy_j = lambda self, uuid, counter=itertools.count(7_000.0, 450.0): next(counter)
torch.cuda.memory_reserved = lambda device: 3 * 2**20
found = gpu_device.gauge("cuda:0", 8)
print(json.dumps(found))
print("\\n".join(gpu_table.gauge_lines({"gauge": found})))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="NVML is loaded by its Linux name")
def test_gauges_are_read_through_nvml_and_by_nvidia_smi(tmp_path: Path) -> None:
    """NVML is a fake library, nvidia-smi a shell script."""
    library, program = build_fake_nvml(tmp_path), tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 4321, 98.70, 41, 7, 1980, 580.1\n")
    program.chmod(0o755)
    found = {"LD_LIBRARY_PATH": str(library), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", GAUGE, str(BENCHMARKS)],
        env=os.environ | found,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *table = done.stdout.splitlines()
    load = json.loads(first)["states"]["load"]
    assert load["ours"]["device_used_mib"] > 0
    assert (load["nvidia_smi"]["memory.used"], load["nvidia_smi"]["clocks.sm"]) == ("4321", "1980")
    assert load["energy_j"] == 450
    assert any(
        line.startswith("memory used, MiB") and f"{load['ours']['device_used_mib']:,.1f} / 4321" in line
        for line in table
    )
    assert table[-1].startswith("energy under load, by the driver's counter: 450 J in")


def test_the_attention_backend_is_chosen_by_the_time_of_first_calls_and_steps(
    import_benchmark: ImportBenchmark,
) -> None:
    verdict = import_benchmark("gpu_kernels").attention_verdict
    flash = {"first_calls_s": 0.1, "ms": 0.05, "run_s": [0.4, 1.3]}
    cudnn = {"first_calls_s": 0.6, "ms": 0.03, "run_s": [0.78, 1.1]}
    found: dict[str, Any] = {"steps": 6_000, "depths": [1, 4], "backends": {"flash": flash, "cuDNN": cudnn}}
    assert verdict(found).startswith("use flash with 1, cuDNN with 4 layers. Over 6,000 steps flash takes 0.10 s for")
    cudnn["run_s"] = [0.78, 1.4]
    assert verdict(found).startswith("use flash. Over")
    found["backends"]["cuDNN"] = {"failed": "RuntimeError: no"}
    assert verdict(found) == "use flash: cuDNN does not work here (RuntimeError: no)"


def test_a_long_table_keeps_its_beginning_and_its_end(import_benchmark: ImportBenchmark) -> None:
    shortened = import_benchmark("gpu_table").shortened
    assert shortened("short", 12_000) == "short"
    text = shortened("a" * 9_000 + "b" * 9_000, 12_000)
    assert len(text) <= 12_000
    assert (text[0], text[-1]) == ("a", "b")
    assert "every number is in the file" in text


def test_stages_of_another_gpu_or_other_data_are_not_kept(import_benchmark: ImportBenchmark) -> None:
    comparable = import_benchmark("gpu").comparable
    machine = {"card": "A", "torch": "2", "lmconsole": "1", "driver": None, "python": "3"}
    document = {"schema": 3, "rehearsal": False, "machine": machine, "data": {"tokens": "given"}}
    assert comparable(document, document)
    for change in (
        {"schema": 2},
        {"rehearsal": True},
        {"machine": machine | {"card": "B"}},
        {"machine": machine | {"torch": "3"}},
        {"data": {"tokens": "random"}},
    ):
        assert not comparable(document | change, document)


def test_the_multi_process_service_is_started_for_several_jobs_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, import_benchmark: ImportBenchmark
) -> None:
    """The service is a shell script of its name."""
    service = import_benchmark("gpu_device").multi_process_service
    monkeypatch.setenv("PATH", str(tmp_path))
    with service(tmp_path / "none") as started:
        assert started is False
    program, calls = tmp_path / "nvidia-cuda-mps-control", tmp_path / "calls"
    program.write_text(f'#!/bin/sh\necho "$CUDA_MPS_PIPE_DIRECTORY $*" >>{calls}\n[ "$1" ] || /bin/cat >>{calls}\n')
    program.chmod(0o755)
    with service(tmp_path / "mps", ["/bin/false"]) as started:
        assert started is False, "the client could not use it"
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    calls.unlink()
    with service(tmp_path / "mps", ["/bin/true"]) as started:
        assert started is True
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps")
    assert calls.read_text() == f"{tmp_path / 'mps'} -d\n{tmp_path / 'mps'} \nquit\n"
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


def test_goals_depend_only_on_measurements(tmp_path: Path, import_benchmark: ImportBenchmark) -> None:
    goals, table = import_benchmark("gpu_goals").goals, import_benchmark("table").table
    run = {"label": "LSTM 1L AdamW", "process_used_mib": None, "torch_reserved_mib": None}
    suite: dict[str, Any] = {"complete": True, "runs": {"2": run}, "steps_per_epoch": 100}
    step: dict[str, Any] = dict.fromkeys(("baseline_fp32_mib", "ours_fp32_mib", "ours_bf16_mib"))
    step |= {"label": "LSTM 1L AdamW", "ours_fp32_s": 1.0, "ours_bf16_s": 0.5}
    document: dict[str, Any] = {
        "benchmark": "gpu",
        "rehearsal": True,
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"card": "Some card"},
        "data": {"tokens": "random", "tables": "random"},
        "stages": {"suite": {"result": suite}, "steps": {"result": {"experiments": {"2": step}}}},
    }

    def readme_table() -> str:
        (tmp_path / "card.json").write_text(json.dumps(document | {"goals": goals(document)}), encoding="utf-8")
        return str(table(tmp_path))

    for epochs, whole_s, met in ((10, 299, True), (10, 301, False), (9, 100, None)):
        # Plain PyTorch needs eight times as long in fp32, and as long in bf16.
        suite |= {"epochs": epochs, "whole_s": whole_s}
        step |= {"baseline_fp32_s": 8 * whole_s / epochs / 100, "baseline_bf16_s": whole_s / epochs / 100}
        document["rehearsal"] = True
        assert {goal["met"] for goal in goals(document)} == {None}
        assert "| GPU | all twelve experiments, ten epochs, bf16 | not measured yet |" in readme_table()
        document["rehearsal"] = False
        whole, fp32, bf16, *_ = goals(document)
        assert (whole["met"], fp32["met"]) == (met, True)
        assert bf16["met"] is (False if epochs == 10 else None)
        assert (
            f"| Some card, 2026-01-02 | all twelve experiments, ten epochs, bf16, one command | {whole_s} s"
            in readme_table()
        )
        note = "" if epochs == 10 else " (9 epochs instead of 10)"
        assert f"8.0×{note} (plain PyTorch extrapolated to {8 * whole_s:,} s" in readme_table()
        assert "| GPU |" not in readme_table()
    suite["complete"] = False
    assert {goal["measured"] for goal in goals(document)} == {"not measured"}


def test_a_failed_check_or_run_makes_the_document_incorrect(import_benchmark: ImportBenchmark) -> None:
    correct = import_benchmark("gpu_goals").correct
    head = {"result": {"ok": True}}
    assert correct({}) is None
    assert correct({"head": head}) is True
    assert correct({"head": head, "reference": {"reason": "no time was left"}}) is True
    assert correct({"head": head, "reference": {"reason": "RuntimeError: x", "failed": True}}) is False
    for status, expected in (("finished", True), ("stopped", True), ("failed", False)):
        assert correct({"head": head, "jobs": {"result": {"runs": {"1": {"status": status}}}}}) is expected
