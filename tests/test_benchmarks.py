"""The benchmarks run, and what they write has the fields that people compare. How fast anything is, is not tested."""

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
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks do not travel with the source distribution"),
]

ENVIRONMENT = {"PYTHONSAFEPATH": "", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "error"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The JSON file of a quick run, and what it printed."""
    file = tmp_path_factory.mktemp("benchmarks") / "new" / "local.json"
    arguments = ["--quick", "--only", "startup", "store", "export", "overhead", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *arguments],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text(encoding="utf-8")), done.stdout


def test_the_file_says_what_was_measured_where_and_when(written: tuple[dict[str, Any], str]) -> None:
    document, _ = written
    assert document["schema"] == 1
    assert document["quick"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", document["date"])
    assert document["machine"].keys() >= {"cpu", "cores", "memory_mib", "python", "torch", "msgspec", "lmconsole"}
    assert document["results"].keys() == document["seconds"].keys() == {"startup", "store", "export", "overhead"}


def test_starting_up_is_timed_beside_bare_python(written: tuple[dict[str, Any], str]) -> None:
    found = written[0]["results"]["startup"]
    names = {"python -c pass", "lmconsole --help", "lmconsole list", "lmconsole status"}
    assert found["commands"].keys() == names
    for name in names:
        each = found["commands"][name]
        assert len(each["wall_s"]) == len(each["cpu_s"]) == found["repetitions"]
        assert 0 < min(each["wall_s"]) <= each["median_s"] <= each["p90_s"] <= max(each["wall_s"])
    assert found["commands"]["python -c pass"]["median_ratio"] == 1


def test_the_store_is_read_whole_and_looked_at_again(written: tuple[dict[str, Any], str]) -> None:
    found = written[0]["results"]["store"]
    for i, reading in enumerate(found["readings"]):
        # Each reading leaves a few events of its own behind, and every one of them was seen.
        assert reading["events"] == found["runs"] * found["events_per_run"] + 5 * i
        assert 0 < reading["poll_s"] < reading["read_s"]
        assert 0 < reading["start_mib"] < reading["peak_mib"]
    assert found["median"].keys() == found["readings"][0].keys() >= {"poll_one_changed_s", "floor_s"}


def test_exports_are_timed_as_whole_commands(written: tuple[dict[str, Any], str]) -> None:
    found = written[0]["results"]["export"]
    assert found["commands"].keys() == {"all", "latex with pdf", "table", "tables and data"}
    for each in found["commands"].values():
        assert 0 < min(each["wall_s"]) <= each["median_s"] <= max(each["wall_s"])
        assert each["peak_mib"] > 0
    assert 0 < found["figures_share"] < 1


def test_overhead_is_found_in_pairs_and_accounted_for(written: tuple[dict[str, Any], str]) -> None:
    shapes = written[0]["results"]["overhead"]["shapes"]
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


def test_a_table_comes_last_with_a_line_for_each_goal(written: tuple[dict[str, Any], str]) -> None:
    document, printed = written
    assert "\x1b" not in printed
    for row in document["table"]:
        assert row.keys() == {"what", "measured", "goal", "met"}
        assert row["what"] in printed
    assert {row["what"] for row in document["table"] if row["goal"]} >= {"starting lmconsole --help"}
    starts = [line for line in printed.splitlines() if line[:1].strip()]  # a long cell goes on in an indented line
    assert starts[-1].startswith("log and telemetry")


def benchmark(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the files as a person would."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *map(str, arguments)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_precisions_are_compared_seed_by_seed_and_in_their_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    precision = importlib.import_module("precision")
    plan = load_plan(precision.nudged("demo", tmp_path / "runs"))
    rates = {plan.resolve(each, "demo").settings.learning_rate for each in plan.experiments}
    assert (len(plan.experiments), rates) == (12, {0.001 * (1 + 1e-6)})
    exact, other = {1: [100.0, 50.0], 2: [200.0, 100.0], 3: [1.0, 1.0]}, {1: [102.0, 50.0], 2: [197.0, 100.2]}
    found = precision.compare(exact, other)
    assert found["by_seed"] == {"1": pytest.approx([0.02, 0]), "2": pytest.approx([-0.015, 0.002])}
    assert found["largest"] == pytest.approx(0.02)
    assert found["largest_in_last_epoch"] == pytest.approx(0.002)
    assert found["largest_of_means"] == pytest.approx(299 / 300 - 1)
    assert precision.spread({1: [2.0, 1.0], 2: [4.0, 1.0]}) == pytest.approx(2**0.5 / 3)
    assert precision.spread({1: [2.0]}) is None
    line = {"label": "Some", "bf16": found, "nudged": precision.compare(exact, exact), "spread_of_seeds": None}
    precision.show([line])
    out = capsys.readouterr().out
    assert out.splitlines()[2].split() == ["Some", "+2.00%", "+0.20%", "-0.33%", "+0.00%", "+0.00%", "–"]
    assert "bf16: 0 of 1" in out
    assert "nudged: 1 of 1" in out


def test_a_threshold_is_where_the_gain_is_gone_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    crossing = importlib.import_module("jobs").crossing
    assert crossing([(1e9, 2.0), (1e11, 1.0)], 1.5) == pytest.approx(1e10), "half of the way, over logarithms"
    assert crossing([(1e9, 2.0), (2e9, 0.9), (4e9, 1.6), (8e9, 0.9), (16e9, 0.9)], 0.9 + 1e-9) == pytest.approx(8e9)
    assert crossing([(1e9, 2.0), (2e9, 1.2)], 1.1) is None, "it always pays"
    assert crossing([(1e9, 0.9), (2e9, 0.8)], 1.0) == 1e9, "it never does"
    assert crossing([], 1.0) is None


def test_runs_together_are_compared_with_one_that_has_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    jobs = importlib.import_module("jobs")
    monkeypatch.setattr(jobs, "cores", lambda: 2)
    monkeypatch.setattr(jobs, "QUICK", ("demo LSTM 1L",))
    monkeypatch.setattr(jobs, "WATCH_S", 0.2)
    found = jobs.measure(quick=True)
    (size,) = found["sizes"]
    assert size["flops"] == pytest.approx(1.5e9, rel=0.01)
    assert size["ratio"] == pytest.approx(size["together_tokens_per_s"][0] / size["alone_tokens_per_s"][0])
    one, threshold = jobs.rows(found)
    assert one["what"].startswith("2 runs at once, demo LSTM 1L")
    assert one["met"] is (size["ratio"] >= 1)
    assert f"set: {ONE_THREAD_FLOPS / 1e9:g} GFLOP" in threshold["measured"]
    monkeypatch.setattr(jobs, "cores", lambda: 1)
    (line,) = jobs.rows(jobs.measure(quick=True))
    assert line["measured"] == "one core: nothing to compare"


def test_the_table_in_the_readme_is_what_the_results_say() -> None:
    done = benchmark("table.py", "--check")
    assert done.returncode == 0, done.stderr
