"""Tuning runs, which are not tested, and their test if it is asked for later."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import factories
import msgspec
import pytest
import tiny
from factories import append_events

from lmconsole.engine.alerts import Alerts
from lmconsole.engine.digest import last_result, outcome, reason_of
from lmconsole.engine.queue import Action, decide, requeue
from lmconsole.errors import RunActiveError
from lmconsole.runs import endpoint
from lmconsole.runs.events import Failed, Finished, Queued, Resumed, Stopped
from lmconsole.runs.permissions import pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

OVERFITS: dict[str, Any] = {"model": "gpt1", "epochs": 12, "learning_rate": 0.2}
"""Settings with which the best epoch is mostly not the last: the CPU and the seed decide."""


def untested(root: Path) -> Run:
    """Return a finished tuning run that was not trained."""
    run = tiny.queue_tiny(root, test=False)
    append_events(run.paths, factories.started(), factories.epoch(), without_test())
    run.refresh()
    return run


def without_test(valid_nats: Sequence[float] = (5.0,)) -> Finished:
    return factories.finished(valid_nats, test_ppl_best=None, test_ppl_final=None)


def action(root: Path, *, test: bool, fresh: bool = False) -> tuple[Action, str | None]:
    """Return what would be done about the tiny run."""
    store = Store(root / "runs")
    runs = store.runs()
    active = {run.run for run in pending(store, runs)}
    template = Queued(devices=("cpu",), jobs=1, test=test)
    (decision,) = decide(runs, [tiny.resolved_tiny(root)], template, active=active, fresh=fresh)
    return decision.action, decision.run


@pytest.mark.slow
def test_a_tuning_run_is_tested_later_as_at_the_end_of_its_training(tmp_path: Path) -> None:
    for seed in range(1, 9):
        run = tiny.queue_tiny(tmp_path, test=False, seed=seed, **OVERFITS)
        assert tiny.worker(run, tmp_path).returncode == 0
        run.refresh()
        before = run.state.finished
        if before is not None and before.best_epoch != run.state.epochs_done:
            break
    tested = tiny.queue_tiny(tmp_path / "at-once", seed=seed, **OVERFITS)
    assert tiny.worker(tested, tmp_path).returncode == 0
    assert (run.status, run.info.test) == (Status.FINISHED, False)
    assert before is not None
    assert not before.tested
    assert run.can_be_tested
    assert not run.state.damage
    assert run.paths.best_weights.exists()
    assert not run.paths.test_losses.exists()
    assert endpoint.test_nll_best(run) is None

    assert tiny.queue_tiny(tmp_path, test=True, seed=seed, **OVERFITS).run == run.run
    run.refresh()
    assert run.state.being_tested
    assert run.state.done(12) == 1.0
    assert tiny.worker(run, tmp_path).returncode == 0
    run.refresh()
    tested.refresh()
    after, at_once = run.state.finished, tested.state.finished
    assert after is not None
    assert at_once is not None
    assert run.status is Status.FINISHED
    assert after.best_epoch != run.state.epochs_done, "the test needs a run that overfits"
    assert after.test_ppl_best == at_once.test_ppl_best  # to the bit
    assert after.test_ppl_final is None
    again = msgspec.structs.replace(after, seq=before.seq, t=before.t, test_ppl_best=None)
    assert again == before
    assert (run.state.attempt, run.state.started and run.state.started.attempt) == (2, 1)
    assert run.paths.test_losses.read_bytes() == tested.paths.test_losses.read_bytes()
    losses = endpoint.read_test_losses(run)
    assert losses is not None
    assert losses.mean_nats == pytest.approx(endpoint.test_nll_best(run), rel=1e-6)
    assert not run.state.damage


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def linked(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


@pytest.mark.slow
def test_weights_that_cannot_be_used_leave_a_finished_run_as_it_was(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, test=False)
    assert tiny.worker(run, tmp_path).returncode == 0
    other = tiny.queue_tiny(tmp_path, test=False, seed=1)
    assert tiny.worker(other, tmp_path).returncode == 0
    run.refresh()
    before, path = run.state.finished, run.paths.best_weights
    good = path.read_bytes()
    cases: list[tuple[Callable[[Path], object], str]] = [
        (Path.unlink, "there is no such file"),
        (damaged(lambda data: data[:-1] + bytes([data[-1] ^ 1])), "not those that were saved"),
        (damaged(lambda data: data[:-100]), "it is damaged"),
        (damaged(lambda data: data + bytes(2**20)), "larger than"),
        (damaged(lambda data: b"\xff" * len(data)), "it is damaged"),
        (damaged(lambda _: other.paths.best_weights.read_bytes()), "does not have the weights of this run"),
        (damaged(lambda data: data.replace(b'"epoch":"2"', b'"epoch":"1"')), "after epoch 2"),
        (linked, "symbolic link"),
    ]
    for damage, reason in cases:
        damage(path)
        assert tiny.queue_tiny(tmp_path).run == run.run
        assert tiny.worker(run, tmp_path).returncode == 1
        run.refresh()
        failed = run.state.failed
        assert failed is not None
        assert reason in failed.message
        assert str(path) in failed.message
        assert "--fresh" in failed.hint
        assert (run.status, run.state.finished, run.state.damage) == (Status.FINISHED, before, ())
        assert (last_result(run), outcome(run).result) == ("failed", "failed")
        assert not run.paths.test_losses.exists()
        path.unlink(missing_ok=True)
        path.write_bytes(good)
    assert requeue(Store(tmp_path / "runs"), [run.run]) == [run.run]  # as u in the console does
    assert tiny.worker(run, tmp_path).returncode == 0
    run.refresh()
    assert run.state.failed is None
    assert last_result(run) == "finished"
    assert endpoint.test_nll_best(run) is not None


@pytest.mark.slow
def test_a_test_that_is_stopped_or_killed_can_be_asked_for_again(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, test=False)
    assert tiny.worker(run, tmp_path).returncode == 0
    assert tiny.queue_tiny(tmp_path).run == run.run
    at_each_batch = "from lmconsole.lm import best_weights\nbest_weights.TICK_S = 0.0\n"
    run.request_stop()
    assert tiny.worker(run, tmp_path, at_each_batch).returncode == 0
    run.refresh()
    assert (run.status, last_result(run)) == (Status.FINISHED, "stopped")
    assert reason_of(run) == "before its test ended. `lmconsole run 1` with the same options tests it."
    assert tiny.queue_tiny(tmp_path).run == run.run
    die = "import os, signal\nfrom lmconsole.lm import checkpoint\n"
    die += "checkpoint.save_test_losses = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    assert tiny.worker(run, tmp_path, die).returncode != 0
    run.refresh()
    assert run.status is Status.LOST
    assert run.state.finished is not None
    assert "during its test" in str(reason_of(run))
    assert action(tmp_path, test=True) == (Action.TEST, run.run)
    assert action(tmp_path, test=False) == (Action.FINISHED, run.run)
    assert tiny.queue_tiny(tmp_path).run == run.run
    assert tiny.worker(run, tmp_path).returncode == 0
    run.refresh()
    assert endpoint.test_nll_best(run) is not None
    assert (run.status, run.state.attempt) == (Status.FINISHED, 4)


@pytest.mark.slow
def test_a_tuning_run_that_resumes_is_tested_if_that_is_asked_for(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, test=False)
    append_events(run.paths, Stopped(epoch=1, step=0))
    assert requeue(Store(tmp_path / "runs"), [run.run]) == [run.run]  # as it was queued
    run.refresh()
    assert not run.state.wants_test
    append_events(run.paths, Stopped(epoch=1, step=0))
    assert tiny.queue_tiny(tmp_path).run == run.run
    assert tiny.worker(run, tmp_path).returncode == 0
    run.refresh()
    assert run.state.finished is not None
    assert run.state.finished.tested


def test_what_is_done_about_a_finished_run_depends_on_whether_it_was_tested(tmp_path: Path) -> None:
    run = untested(tmp_path)
    assert action(tmp_path, test=False) == (Action.FINISHED, run.run)
    assert action(tmp_path, test=True) == (Action.TEST, run.run)
    assert action(tmp_path, test=True, fresh=True) == (Action.NEW, None)
    assert requeue(Store(tmp_path / "runs"), [run.run]) == []  # its test has never been asked for
    assert tiny.queue_tiny(tmp_path).run == run.run
    assert action(tmp_path, test=False) == (Action.ACTIVE, run.run)
    with pytest.raises(RunActiveError):
        tiny.queue_tiny(tmp_path)
    run.refresh()
    assert run.state.queued is not None
    assert run.state.queued.test
    append_events(run.paths, factories.started(attempt=2), factories.finished())
    for test in (True, False):
        assert action(tmp_path, test=test) == (Action.FINISHED, run.run)
    newest = tiny.queue_tiny(tmp_path, test=False, fresh=True)
    append_events(newest.paths, factories.started(), factories.epoch(), without_test())
    assert action(tmp_path, test=True) == (Action.TEST, newest.run)


def test_a_run_without_best_weights_has_nothing_to_test(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, test=False)
    append_events(run.paths, without_test(valid_nats=(float("nan"),)))
    assert action(tmp_path, test=True) == (Action.FINISHED, run.run)


def test_a_test_shares_its_device_as_its_training_did(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, test=False, jobs=3)
    append_events(run.paths, factories.started(), factories.epoch(), without_test())
    assert tiny.queue_tiny(tmp_path, jobs=1).run == run.run
    run.refresh()
    assert run.state.queued is not None
    assert run.state.queued.jobs == 3


def test_alerts_and_digest_of_a_later_test(tmp_path: Path) -> None:
    run = untested(tmp_path)
    assert (outcome(run).result, outcome(run).test_ppl, outcome(run).shows_test) == ("finished", None, True)
    store = Store(tmp_path / "runs")
    alerts = Alerts(store, None, print)  # type: ignore[arg-type]

    def due(own: tuple[str, ...] = ()) -> list[str]:
        run.refresh()
        return [event for event, _, _ in alerts._due(run, run.state.queued_seq, own)]

    assert due() == ["finished"]
    tiny.queue_tiny(tmp_path)
    assert due() == []
    append_events(run.paths, factories.started(attempt=2))
    assert due((run.run,)) == []  # the runner will record how its worker ended
    assert due() == ["lost"]
    append_events(run.paths, Failed(error="killed", message="m", hint="h"))
    assert due() == ["failed"]
    tiny.queue_tiny(tmp_path)
    append_events(run.paths, factories.started(attempt=3), Stopped(epoch=2, step=0))
    assert due() == ["stopped"]
    tiny.queue_tiny(tmp_path)
    append_events(run.paths, factories.started(attempt=4), factories.finished())
    assert due() == ["finished"]


def test_training_that_goes_on_is_no_test(tmp_path: Path) -> None:
    run = untested(tmp_path)
    append_events(run.paths, factories.started(attempt=2), Resumed(epoch=1, step=0))
    run.refresh()
    assert run.state.finished is None
    assert run.state.started == run.state.latest


@pytest.mark.slow
def test_the_command_tunes_and_tests_later(tmp_path: Path) -> None:
    tiny.write_experiments(tmp_path / "experiments.toml", tiny.row(1))
    tiny.write_corpus(tmp_path / "data")
    words = ("run", "1", "--preset", "tiny", "--data", "data", "--device", "cpu", "--no-export")

    def run(*more: str) -> str:
        done = tiny.lmconsole(*words, *more, cwd=tmp_path, check=0)
        return done.stdout + done.stderr

    text = run("--headless", "--no-test")
    assert "none: tuning runs (--no-test)" in text
    assert "test ppl – (not tested)" in text
    assert "Test –: not tested." in text
    assert "finished, but not tested" in tiny.lmconsole("status", cwd=tmp_path, check=0).stderr
    (name,) = (path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith("."))
    assert "already finished" in run("--headless", "--no-test")
    assert f"test {name}, trained before" in run("--dry-run")
    (planned,) = json.loads(run("--dry-run", "--json"))["runs"]
    assert (planned["action"], planned["run"], planned["expected_s"]) == ("test", name, None)
    assert "already trained; queued to be tested" in run("--headless")
    assert "already finished" in run("--headless", "--no-test")
    (summary,) = json.loads(tiny.lmconsole("status", "--json", cwd=tmp_path, check=0).stdout)
    assert (summary["status"], summary["tested"], summary["attempt"]) == ("finished", True, 2)
    assert summary["test_bits_per_byte"] > 0
    tiny.lmconsole("export", "--format", "csv", "--out", "exports", cwd=tmp_path, check=0)
    lines = (tmp_path / "exports" / "data" / "runs.csv").read_text(encoding="utf-8").splitlines()
    (row,) = csv.DictReader(lines)
    assert float(row["test_nll_best"]) == pytest.approx(math.log(summary["test_ppl_best"]))
    assert 0 < float(row["test_nll_se"]) < float(row["test_nll_best"])
    assert float(row["test_bits_per_byte"]) == summary["test_bits_per_byte"]
