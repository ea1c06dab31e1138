"""Estimates of how long runs will take, before they start."""

import json
from pathlib import Path
from typing import Any

import factories
import msgspec
import pytest
import tiny
import validation

from lmconsole import __version__
from lmconsole.commands.dry_run import dry_run
from lmconsole.engine import bench_cache
from lmconsole.engine.bench_cache import SCHEMA, BenchResult, Shape, save_result
from lmconsole.engine.estimate import Estimate, describe_sources, estimates, makespan_s
from lmconsole.engine.parse_request import parse_request
from lmconsole.engine.probe import ProbeAnswer, ResolvedRun
from lmconsole.engine.queue import decide
from lmconsole.plan.flops import run_flops
from lmconsole.runs.events import Event, Queued
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import threads_per_run

DEVICE = "some CPU"


@pytest.fixture(autouse=True)
def bench_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cache, "bench_folder", lambda: tmp_path / "bench")


def recorded(
    root: Path, model: str = "lstm", *, wall_s: float = 60.0, device: str = DEVICE, jobs: int = 1, **more: Any
) -> Run:
    """Record a run that trained all its epochs in ``wall_s``, or with 0 one that has trained half of them so far."""
    run = tiny.queue_tiny(root, model, jobs=jobs, threads=threads_per_run(jobs), fresh=True, **more)
    trained = run.info.settings.epochs if wall_s else run.info.settings.epochs // 2
    events: list[Event] = [factories.started(device_name=device)]
    events += [factories.epoch(n, train_s=1.0, valid_s=0.1, elapsed_train_s=1.0 * n) for n in range(1, trained + 1)]
    if wall_s:
        events.append(factories.finished(setup_s=1.0, wall_s=wall_s))
    factories.append_events(run.paths, *events)
    run.refresh()
    return run


def answer_for(like: Run, **settings: object) -> ProbeAnswer:
    """Return the probe's answer for one more run like ``like``, with other ``settings``."""
    info = like.info
    resolved = ResolvedRun(
        experiment=info.experiment,
        preset="tiny",
        settings=msgspec.structs.replace(info.settings, **settings),
        seed=info.seed,
        origins={},
        corpus=info.corpus,
        embeddings=None,
        threads=1,
    )
    return ProbeAnswer(
        preset="tiny", reason="", devices=("cpu",), device_names=(DEVICE,), device_keys=("cpu",), runs=(resolved,)
    )


def expected(root: Path, like: Run, *, jobs: int = 1, fresh: bool = True, **settings: object) -> Estimate | None:
    """Estimate one more run like ``like``, with other ``settings``."""
    answer = answer_for(like, **settings)
    runs = Store(root / "runs").runs()
    queued, threads = Queued(devices=("cpu",), jobs=jobs), threads_per_run(jobs)
    decisions = decide(runs, answer.runs, queued, active=(), fresh=fresh, threads=threads)
    (found,) = estimates(answer, decisions, runs)
    return found


def test_a_dry_run_says_from_how_many_runs_its_estimate_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [recorded(tmp_path, wall_s=wall_s) for wall_s in (60.0, 62.0, 64.0)]
    monkeypatch.setattr("lmconsole.commands.dry_run.ask", lambda *_: answer_for(runs[0]))
    given: dict[str, object] = {"ids": ["1"], "runs": tmp_path / "runs", "jobs": "1", "fresh": True, "dry_run": True}
    dry_run(parse_request(given))
    text = " ".join(capsys.readouterr().out.split())
    assert "time about 1 min for 1 run, estimated from 3 finished runs" in text
    dry_run(parse_request(given | {"json": True}))
    plan = json.loads(capsys.readouterr().out)
    validation.check_output(plan, "run-dry-run")
    (planned,) = plan["runs"]
    assert planned["expected_s"] == pytest.approx(62.0)
    assert set(planned["expected_from"]) == {run.run for run in runs}


def test_the_same_settings_take_as_long_as_the_newest_runs_and_more_epochs_longer(tmp_path: Path) -> None:
    recorded(tmp_path, wall_s=90_000.0)
    runs = [recorded(tmp_path, wall_s=wall_s) for wall_s in (60.0, 500.0, 50.0, 61.0, 62.0)]
    found = expected(tmp_path, runs[0])
    assert found is not None
    assert found.seconds == pytest.approx(61.0), "the median, which one slow run does not move"
    assert set(found.runs) == {run.run for run in runs}
    assert describe_sources([found, found]) == "5 finished runs"
    longer = expected(tmp_path, runs[0], epochs=20)
    assert longer is not None
    assert 9 * 61 < longer.seconds < 10 * 60 + 1, "ten times the epochs; set-up, of 1 s, and the tests once"


def test_the_most_similar_of_the_runs_that_were_long_enough_count(tmp_path: Path) -> None:
    short = recorded(tmp_path, wall_s=1.5)
    assert [each.runs for each in [expected(tmp_path, short)] if each] == [(short.run,)], "better than nothing"
    deeper = recorded(tmp_path, wall_s=60.0, layers=2)
    other = expected(tmp_path, short)
    assert other is not None
    assert other.runs == (deeper.run,)
    sgd = [recorded(tmp_path, wall_s=wall_s, optimizer="sgd", dropout=0.1) for wall_s in (60.0, 70.0)]
    found = expected(tmp_path, short)
    assert found is not None
    assert found.runs == (sgd[1].run, sgd[0].run), "the optimizer matters less than the shape"
    assert found.seconds == pytest.approx(65.0, rel=0.01)
    adam = recorded(tmp_path, wall_s=80.0, learning_rate=0.5)
    found = expected(tmp_path, short)
    assert found is not None
    assert found.runs == (adam.run,)
    assert found.seconds == pytest.approx(80.0)


def test_evaluations_within_epochs_take_as_long_as_their_operations(tmp_path: Path) -> None:
    run = recorded(tmp_path, wall_s=61.0)
    info = run.info
    with_them = msgspec.structs.replace(info.settings, evaluate_every_steps=5)
    ratio = run_flops(with_them, 300, info.corpus.tokens) / run_flops(info.settings, 300, info.corpus.tokens)
    found = expected(tmp_path, run, evaluate_every_steps=5)
    assert found is not None
    assert ratio > 1.1
    assert found.seconds == pytest.approx(60.0 * ratio + 1.0)


def test_another_shape_of_the_model_is_scaled_by_its_operations(tmp_path: Path) -> None:
    run = recorded(tmp_path, wall_s=60.0)
    deeper = expected(tmp_path, run, layers=3)
    assert deeper is not None
    settings, tokens = run.info.settings, run.info.corpus.tokens
    ratio = run_flops(msgspec.structs.replace(settings, layers=3), 300, tokens) / run_flops(settings, 300, tokens)
    assert ratio > 1
    assert deeper.seconds == pytest.approx(1 + 59 * ratio)
    assert expected(tmp_path, run, channels=800) is None, "too different for an estimate"
    assert expected(tmp_path, run, precision="bf16") is None


def test_other_devices_models_and_numbers_of_jobs_do_not_count(tmp_path: Path) -> None:
    run = recorded(tmp_path, device="another CPU")
    recorded(tmp_path, jobs=2)
    recorded(tmp_path, "gpt1")
    assert expected(tmp_path, run) is None


def test_only_the_rest_of_an_unfinished_run_counts_and_a_finished_one_takes_no_time(tmp_path: Path) -> None:
    recorded(tmp_path, wall_s=60.0, seed=1)
    half = recorded(tmp_path, wall_s=0.0, seed=2)
    found = expected(tmp_path, half, fresh=False)
    assert found is not None
    assert found.seconds == pytest.approx(1 + 59 / 2)
    done = recorded(tmp_path, wall_s=60.0, seed=3)
    assert expected(tmp_path, done, fresh=False) is None


def test_each_run_is_estimated_from_runs_that_shared_the_device_as_it_will(tmp_path: Path) -> None:
    like = recorded(tmp_path, wall_s=60.0)
    recorded(tmp_path, wall_s=90.0, jobs=64)
    alone, shared = expected(tmp_path, like), expected(tmp_path, like, jobs=64)
    assert alone is not None
    assert shared is not None
    assert [alone.seconds, shared.seconds] == pytest.approx([60.0, 90.0])


def test_the_makespan_of_a_queue_follows_the_order_of_the_runner() -> None:
    assert makespan_s([]) == 0.0
    one_at_a_time = [(seconds, 1) for seconds in (3.0, 1.0, 1.0, 4.0)]
    assert makespan_s(one_at_a_time) == 9.0
    assert makespan_s(one_at_a_time, devices=2) == 6.0
    assert makespan_s([(seconds, 2) for seconds, _ in one_at_a_time]) == 6.0
    assert makespan_s([(seconds, 9) for seconds, _ in one_at_a_time]) == 4.0


def test_in_a_mixed_queue_the_strictest_run_decides_and_no_run_overtakes() -> None:
    alone, shared = (2.0, 1), (5.0, 2)
    assert makespan_s([shared, alone, shared]) == 12.0, "the last could start at once, but waits for its turn"
    assert makespan_s([alone, shared, shared]) == 7.0
    assert makespan_s([alone, shared, shared], devices=2) == 5.0, "both are put on the other device"
    assert makespan_s([(4.0, 3), (1.0, 2), (4.0, 3)]) == 5.0, "the third waits for the second, which allows two"


def test_a_run_starts_when_the_first_of_those_before_it_ends_and_the_others_keep_their_room() -> None:
    assert makespan_s([(10.0, 2), (10.5, 2), (1.0, 2), (1.0, 2)]) == 11.5


@pytest.mark.parametrize(
    ("jobs", "load", "source"),
    [
        (1, 0.0, "`lmconsole bench`"),
        (4, 0.0, "`lmconsole bench`, its speed shared by 4 at once"),
        (1, 7.5, "`lmconsole bench` on a busy machine"),
    ],
)
def test_without_such_runs_a_saved_measurement_counts(tmp_path: Path, jobs: int, load: float, source: str) -> None:
    run = recorded(tmp_path, "gpt1", device="another CPU")
    settings = run.info.settings
    shape = {"label": "", "experiments": (1,), "settings": settings, "estimated": False, "tokens_per_s": 1.0}
    shape |= {"step_s": 1.0, "gflops": 2.0, "share_of_ceiling": 0.5, "peak_mib": None, "run_s": 1.0}
    values = {"schema": SCHEMA, "lmconsole": __version__, "torch": "2", "date": "2026-01-01", "device": "cpu"}
    values |= {"device_name": DEVICE, "precision": "fp32", "threads": threads_per_run(1), "preset": "tiny"}
    values |= {"batch_size": 4, "ceiling_gflops": 4.0, "tokens": {}, "shapes": (msgspec.convert(shape, Shape),)}
    values |= {"all_runs": 1, "all_runs_s": 1.0, "load_1min": load, "measured_s": 1.0}
    save_result(msgspec.convert(values, BenchResult))
    found = expected(tmp_path, run, jobs=jobs)
    assert found is not None
    assert found.seconds == pytest.approx(jobs * run_flops(settings, 300, run.info.corpus.tokens) / 2e9)
    assert (found.runs, found.measurement) == ((), source)
    trained = Estimate(seconds=1.0, runs=("one",))
    assert describe_sources([found, trained, found]) == f"1 finished run and {source}"
