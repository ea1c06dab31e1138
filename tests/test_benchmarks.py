"""Benchmarks run, and their results have the fields that are compared. The timings themselves are not tested."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmconsole.engine.probe import ONE_THREAD_FLOPS
from lmconsole.plan.load import load_plan

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the source distribution does not include the benchmarks"),
]

ENVIRONMENT = {"PYTHONSAFEPATH": "", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "error"}


def run_benchmark(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Return the JSON file of a quick run and its standard output."""
    file = tmp_path_factory.mktemp("benchmarks") / "new" / "local.json"
    arguments = ["--quick", "--only", "startup", "store", "export", "overhead", "--json", str(file)]
    process = run_benchmark("run.py", *arguments)
    assert process.returncode == 0, process.stderr
    return json.loads(file.read_text(encoding="utf-8")), process.stdout


def test_result_file_names_benchmarks_machine_and_date(quick_run: tuple[dict[str, Any], str]) -> None:
    document, _ = quick_run
    assert document["schema"] == 1
    assert document["quick"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", document["date"])
    assert document["machine"].keys() >= {"cpu", "cores", "memory_mib", "python", "torch", "msgspec", "lmconsole"}
    assert document["results"].keys() == document["seconds"].keys() == {"startup", "store", "export", "overhead"}


def test_startup_is_compared_with_bare_python(quick_run: tuple[dict[str, Any], str]) -> None:
    found = quick_run[0]["results"]["startup"]
    names = {"python -c pass", "lmconsole --help", "lmconsole list", "lmconsole status"}
    assert found["commands"].keys() == names
    for name in names:
        each = found["commands"][name]
        assert len(each["wall_s"]) == len(each["cpu_s"]) == found["repetitions"]
        assert 0 < min(each["wall_s"]) <= each["median_s"] <= each["p90_s"] <= max(each["wall_s"])
    assert found["commands"]["python -c pass"]["median_ratio"] == 1


def test_store_is_read_completely_and_polled(quick_run: tuple[dict[str, Any], str]) -> None:
    found = quick_run[0]["results"]["store"]
    for i, reading in enumerate(found["readings"]):
        # Each reading appends five events, which the next one reads too.
        assert reading["events"] == found["runs"] * found["events_per_run"] + 5 * i
        assert 0 < reading["poll_s"] < reading["read_s"]
        assert 0 < reading["start_mib"] < reading["peak_mib"]
    assert found["median"].keys() == found["readings"][0].keys() >= {"poll_one_changed_s", "decode_s"}


def test_exports_are_timed_as_whole_commands(quick_run: tuple[dict[str, Any], str]) -> None:
    found = quick_run[0]["results"]["export"]
    assert found["commands"].keys() == {"all", "latex with pdf", "table", "tables and data"}
    for each in found["commands"].values():
        assert 0 < min(each["wall_s"]) <= each["median_s"] <= max(each["wall_s"])
        assert each["peak_mib"] > 0
    assert 0 < found["figures_share"] < 1


def test_overhead_is_paired_and_accounted(quick_run: tuple[dict[str, Any], str]) -> None:
    shapes = quick_run[0]["results"]["overhead"]["shapes"]
    assert len(shapes) == 2
    for found in shapes.values():
        assert len(found["blocks"]) >= 2 * found["pairs"] >= 6
        assert found["paired_low"] <= found["paired_share"] <= found["paired_high"]
        assert found["accounted_share"] == pytest.approx(sum(found["accounted_parts"].values()))
        for i in range(0, 2 * found["pairs"], 2):
            on, off = sorted(found["blocks"][i : i + 2], key=lambda block: not block["on"])
            assert on["on"]
            assert on["events"] > 0
            assert on["training_s"] > 0
            assert not off["on"]
            assert not any(off[key] for key in ("events", "training_s", "sampler_cpu_s", "epoch_end_s"))


def test_table_of_all_rows_is_printed_last(quick_run: tuple[dict[str, Any], str]) -> None:
    document, printed = quick_run
    assert "\x1b" not in printed
    for row in document["table"]:
        assert row.keys() == {"what", "measured", "goal", "met"}
        assert row["what"] in printed
    assert {row["what"] for row in document["table"] if row["goal"]} >= {"startup: lmconsole --help"}
    starts = [line for line in printed.splitlines() if line[:1].strip()]  # a long cell continues on an indented line
    assert starts[-1].startswith("overhead of log and telemetry")


def test_precisions_are_compared_by_seed_and_by_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    precision = importlib.import_module("precision")
    plan = load_plan(precision.write_perturbed("demo", tmp_path / "runs"))
    rates = {plan.resolve(each, "demo").settings.learning_rate for each in plan.experiments}
    assert (len(plan.experiments), rates) == (12, {0.001 * (1 + 1e-6)})
    fp32, bf16 = {1: [100.0, 50.0], 2: [200.0, 100.0], 3: [1.0, 1.0]}, {1: [102.0, 50.0], 2: [197.0, 100.2]}
    differences = precision.compare(fp32, bf16)
    assert differences["by_seed"] == {"1": pytest.approx([0.02, 0]), "2": pytest.approx([-0.015, 0.002])}
    assert differences["largest"] == pytest.approx(0.02)
    assert differences["largest_in_last_epoch"] == pytest.approx(0.002)
    assert differences["largest_of_means"] == pytest.approx(299 / 300 - 1)
    assert precision.spread({1: [2.0, 1.0], 2: [4.0, 1.0]}) == pytest.approx(2**0.5 / 3)
    assert precision.spread({1: [2.0]}) is None
    none = precision.compare(fp32, fp32)
    precision.show([{"label": "Some", "bf16": differences, "perturbed": none, "spread_of_seeds": None}])
    out = capsys.readouterr().out
    assert out.splitlines()[2].split() == ["Some", "+2.00%", "+0.20%", "-0.33%", "+0.00%", "+0.00%", "–"]
    assert "bf16: 0 of 1" in out
    assert "perturbed: 1 of 1" in out


def test_threshold_is_where_the_gain_falls_below_a_level_for_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    crossing = importlib.import_module("jobs").crossing
    assert crossing([(1e9, 2.0), (1e11, 1.0)], 1.5) == pytest.approx(1e10), "halfway on a logarithmic scale"
    assert crossing([(1e9, 2.0), (2e9, 0.9), (4e9, 1.6), (8e9, 0.9), (16e9, 0.9)], 0.9 + 1e-9) == pytest.approx(8e9)
    assert crossing([(1e9, 2.0), (2e9, 1.2)], 1.1) is None, "still above the level at the largest size"
    assert crossing([(1e9, 0.9), (2e9, 0.8)], 1.0) == 1e9, "never above the level"
    assert crossing([], 1.0) is None


def test_parallel_runs_are_compared_with_one_run_on_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    jobs = importlib.import_module("jobs")
    monkeypatch.setattr(jobs, "cores", lambda: 2)
    monkeypatch.setattr(jobs, "QUICK", ("demo LSTM 1L",))
    monkeypatch.setattr(jobs, "WATCH_S", 0.2)
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # its processes import modules from its folder
    found = jobs.measure(quick=True)
    (size,) = found["sizes"]
    assert size["flops"] == pytest.approx(1.5e9, rel=0.01)
    assert size["ratio"] == pytest.approx(size["together_tokens_per_s"][0] / size["alone_tokens_per_s"][0])
    one, threshold = jobs.rows(found)
    assert one.what.startswith("2 parallel runs, demo LSTM 1L")
    assert one.met is (size["ratio"] >= 1)
    assert threshold.measured.endswith(f"{ONE_THREAD_FLOPS / 1e9:g} GFLOP")
    monkeypatch.setattr(jobs, "cores", lambda: 1)
    (row,) = jobs.rows(jobs.measure(quick=True))
    assert row.measured == "one core: nothing to compare"


def test_readme_has_the_table_of_the_recorded_results() -> None:
    process = run_benchmark("table.py", "--check")
    assert process.returncode == 0, process.stderr


@pytest.fixture
def step_result() -> dict[str, Any]:
    """Return the part of a result of ``step.py`` that the performance table shows."""
    baseline = {"implementation": "baseline", "precision": "fp32"}
    step = {
        "implementation": "lmconsole",
        "precision": "fp32",
        "speedup_over_baseline_fp32": 1.25,
        "memory_relative_to_baseline": 0.5,
        "share_of_measured_peak": 0.75,
    }
    models = {"lstm": {"steps": [baseline, step]}}
    return {"device": "Some CPU", "threads": 2, "batch_size": 16, "cuda": None, "models": models}


def test_table_reads_step_results_of_this_version_and_of_0_1_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_result: dict[str, Any]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("table").table
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps(step_result), encoding="utf-8")
    text = table(tmp_path)
    assert text.splitlines()[2].startswith("| Some CPU, 2 threads | LSTM, one layer, fp32")
    assert "1.25× as fast, 50% of the memory, 75% of the measured matmul peak | ≥ 1.3× (not met)" in text
    old_step = {
        "way": "ours",
        "precision": "fp32",
        "speedup_over_textbook_fp32": 1.25,
        "step_memory_of_textbook": 0.5,
        "share_of_ceiling": 0.75,
    }
    step_result["models"] = {"lstm": {"ways": [{"way": "another", "precision": "fp32"}, old_step]}}
    file.write_text(json.dumps(step_result), encoding="utf-8")
    assert table(tmp_path) == text


def test_table_leaves_out_local_and_quick_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_result: dict[str, Any]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("table").table
    empty = table(tmp_path)
    (tmp_path / "local.json").write_text(json.dumps(step_result), encoding="utf-8")
    (tmp_path / "quick.json").write_text(json.dumps(step_result | {"batch_size": 4}), encoding="utf-8")
    assert table(tmp_path) == empty
    assert empty.count("not measured yet") == 2


def test_step_summary_has_what_the_tables_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    step, run = importlib.import_module("step"), importlib.import_module("run")
    seconds = {
        ("baseline", "fp32"): 8.0,
        ("lmconsole", "fp32"): 4.0,
        ("baseline", "bf16"): 6.0,
        ("lmconsole", "bf16"): 2.0,
    }
    warm_up = {"seconds": 99.0, "loss": 10.0, "peak_mib": 100.0, "step_mib": 50.0}
    steps = {
        variant: [warm_up, warm_up | {"seconds": seconds[variant], "step_mib": 10 * seconds[variant]}]
        for variant in step.VARIANTS
    }
    summary = step.summary(6e9, steps, {"fp32": {"a": 1.0, "b": 2.0}, "bf16": {"a": 4.0}})
    assert [each["speedup_over_baseline_fp32"] for each in summary["steps"]] == [1, 2, pytest.approx(8 / 6), 4]
    assert [each["share_of_measured_peak"] for each in summary["steps"]] == [0.375, 0.75, 0.25, 0.75]
    fp32, bf16 = run.rows("step", {"cuda": None, "batch_size": 16, "models": {"lstm": summary}})
    assert fp32.measured == "2.00× as fast as plain PyTorch in fp32, 50% of its memory, 75% of the measured matmul peak"
    assert bf16.measured.startswith("4.00× as fast as plain PyTorch in fp32 (3.00× in bf16), 25% of its memory")
    assert (fp32.met, bf16.met) == (True, True)
