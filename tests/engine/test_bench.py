"""Measurements of `lmconsole bench`, estimates from them, and the cache of results."""

from itertools import pairwise
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import tiny

from lmconsole import __version__
from lmconsole.engine import bench as engine
from lmconsole.engine import bench_cache
from lmconsole.engine.bench import BenchRequest, affordable_batch, bench
from lmconsole.engine.bench_cache import BenchResult, Shape, load_results, save_result
from lmconsole.errors import LmconsoleError
from lmconsole.lm import device
from lmconsole.lm import throughput as lm_bench
from lmconsole.lm.throughput import Throughput
from lmconsole.plan.flops import run_flops, step_flops
from lmconsole.plan.load import builtin_file, load_plan


def request(**changes: object) -> BenchRequest:
    values = {"experiments_file": None, "preset": "demo", "device": "cpu", "precision": "fp32", "watch_s": 0.0}
    return msgspec.convert(values | changes, BenchRequest)


@pytest.mark.slow
def test_a_child_process_measures_each_shape(tmp_path: Path) -> None:
    file = tiny.write_experiments(
        tmp_path / "mine.toml",
        tiny.row(1, "lstm", 2),
        tiny.row(2, "lstm"),
        tiny.row(3, "gpt1", optimizer="sgd"),
        tiny.row(4, "lstm", optimizer="adamw"),
    )
    result = bench(request(experiments_file=str(file), preset="tiny"))
    assert [shape.experiments for shape in result.shapes] == [(2, 4), (3,), (1,)], "smallest of each model first"
    assert result.shapes[0].settings.optimizer == "adamw"
    assert result.all_runs == 4
    assert result.peak_matmul_gflops > 0
    for shape in result.shapes:
        assert not shape.estimated
        assert shape.peak_mib
        assert 100 < shape.peak_mib < 4_000
        flops = step_flops(shape.settings, 300)
        assert shape.step_s == pytest.approx(4 * 8 / shape.tokens_per_s)
        assert shape.gflops == pytest.approx(flops / shape.step_s / 1e9)
        assert shape.share_of_peak == pytest.approx(shape.gflops / result.peak_matmul_gflops)
        assert shape.run_s == pytest.approx(run_flops(shape.settings, 300, engine.WIKITEXT_2) / shape.gflops / 1e9)
    two, gpt, deep = (shape.run_s for shape in result.shapes)
    assert result.all_runs_s == pytest.approx(2 * two + gpt + deep)


def test_a_batch_is_halved_until_all_can_be_measured() -> None:
    plan = load_plan(builtin_file())
    settings = [plan.resolve(plan.experiment(number), "paper").settings for number in (2, 6)]
    flops = sum(step_flops(each, each.vocabulary) for each in settings)
    rate = flops / 1e9 / engine.LIKELY_SHARE * engine.STEPS_PER_SHAPE  # of a machine that would take 1 s
    assert affordable_batch(settings, rate, 1.001) == 16
    assert affordable_batch(settings, rate, 0.6) == 8
    assert affordable_batch(settings, rate, 1e-9) == 1


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that measures, with this process's threads left alone and a peak of 100 GFLOP/s."""
    monkeypatch.setattr(device, "set_threads", lambda _: None)
    monkeypatch.setattr(lm_bench, "peak_matmul_gflops", lambda *_, **__: 100.0)
    return lm_bench


def test_shapes_without_time_to_be_measured_are_estimated_from_their_operations(
    monkeypatch: pytest.MonkeyPatch, measuring: ModuleType
) -> None:
    # At this rate the time is too short for a second shape.
    monkeypatch.setattr(measuring, "measure_throughput", lambda *_, **__: Throughput(tokens_per_s=1.0, peak_mib=500.0))
    result = engine.measure(request(budget_s=30.0))
    assert [shape.label for shape in result.shapes if not shape.estimated] == ["LSTM 1L"]
    first = result.shapes[0]
    for shape in result.shapes[1:]:
        assert shape.peak_mib is None
        assert shape.gflops == first.gflops
        flops = (step_flops(each.settings, 2_048) for each in (shape, first))
        assert shape.step_s / first.step_s == pytest.approx(next(flops) / next(flops))


def test_a_machine_too_slow_to_measure_is_an_error(monkeypatch: pytest.MonkeyPatch, measuring: ModuleType) -> None:
    monkeypatch.setattr(measuring, "measure_throughput", lambda *_, **__: None)
    with pytest.raises(LmconsoleError, match="fewer than two steps of LSTM 1L were completed in 5 s") as caught:
        engine.measure(request(budget_s=5.0))
    assert "--preset demo" in str(caught.value.hint)


@pytest.mark.slow
def test_an_error_of_the_child_reaches_the_caller() -> None:
    with pytest.raises(LmconsoleError, match="cuda:7"):
        bench(request(device="cuda:7"))


def made_up(**changes: object) -> BenchResult:
    """A result in which every shape of the demo trains at 10 GFLOP/s."""
    plan = load_plan(builtin_file())
    shapes = []
    for number in (2, 6):
        settings = plan.resolve(plan.experiment(number), "demo", {"precision": "fp32"}).settings
        shape = {"label": "", "experiments": (number,), "settings": settings, "estimated": False, "tokens_per_s": 1.0}
        shape |= {"step_s": 1.0, "gflops": 10.0, "share_of_ceiling": 0.5, "peak_mib": None, "run_s": 1.0}
        shapes.append(msgspec.convert(shape, Shape))
    values: dict[str, object] = {"schema": 1, "lmconsole": __version__, "torch": "2", "date": "2026-01-01"}
    values |= {"device": "cpu", "device_name": "a CPU", "precision": "fp32", "threads": 2, "preset": "demo"}
    values |= {"batch_size": 16, "ceiling_gflops": 20.0, "tokens": engine.WIKITEXT_2, "shapes": tuple(shapes)}
    values |= {"all_runs": 2, "all_runs_s": 2.0, "load_1min": 0.0, "measured_s": 1.0}
    return msgspec.convert(values | changes, BenchResult)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench_cache, "bench_folder", lambda: tmp_path / "cache" / "bench")
    return tmp_path / "cache" / "bench"


def test_the_latest_result_of_each_kind_is_saved(folder: Path) -> None:
    assert not folder.exists()
    assert load_results() == []
    old, new, other = made_up(), made_up(date="2026-01-02"), made_up(threads=1, date="2026-01-03")
    for result in (old, new, other, made_up(lmconsole="0.0.0")):
        save_result(result)
    assert load_results() == [other, new]
    assert all(a.date > b.date for a, b in pairwise(load_results()))


def test_damaged_results_are_skipped_and_a_cache_that_cannot_be_written_is_no_error(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("in the way")
    save_result(made_up())
    assert load_results() == []
    folder.unlink()
    save_result(made_up())
    (folder / "torn.json").write_bytes(b'{"schema": 1, "lmc')
    assert load_results() == [made_up()]
