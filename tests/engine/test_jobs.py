"""Runs that share a device, their threads, and the order in which they start."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny
from factories import append_events

from lmconsole.engine import queue, submit
from lmconsole.engine.parse_request import parse_request
from lmconsole.engine.probe import ONE_THREAD_FLOPS, ProbeAnswer, ResolvedRun, threads_for
from lmconsole.engine.queue import enqueue, jobs_at_once, requeue, training_order
from lmconsole.formatting import counted
from lmconsole.plan.flops import step_flops
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.runs.events import Queued, Stopped
from lmconsole.runs.info import CorpusInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store, queue_order
from lmconsole.telemetry import host
from lmconsole.telemetry.host import cores

LARGE = "hidden = 65536"
"""For an LSTM of the tiny preset: a step of more than the threshold."""


def stop(run: Run) -> None:
    append_events(run.paths, Stopped(epoch=1, step=0))


def answer(preset: str) -> ProbeAnswer:
    """The built-in twelve, resolved for a corpus of the demo's size."""
    plan = load_plan(builtin_file())
    tokens = {"train": 103_000, "validation": 12_900, "test": 12_900}
    runs = []
    for experiment in plan.experiments:
        settings = plan.resolve(experiment, preset, {}).settings
        corpus = CorpusInfo(
            name="", kind="demo", path=None, vocabulary=settings.vocabulary, tokenizer="", tokens=tokens, sha256="",
            max_tokens=None,
        )  # fmt: skip
        runs.append(
            ResolvedRun(
                experiment=experiment, preset=preset, settings=settings, seed=42, origins={}, corpus=corpus,
                embeddings=None, threads=1,
            )
        )  # fmt: skip
    return ProbeAnswer(
        preset=preset, reason="", devices=("cpu",), device_names=("a CPU",), device_keys=("cpu",),
        runs=tuple(runs),
    )  # fmt: skip


def order(found: Sequence[ResolvedRun]) -> list[tuple[int, int]]:
    """Experiment and seed."""
    return [(each.experiment.id, each.seed) for each in found]


# ---- threads


def test_a_small_step_gets_one_thread_and_a_large_one_all_of_them() -> None:
    assert threads_for(ONE_THREAD_FLOPS * 0.99, 16) == 1
    assert threads_for(ONE_THREAD_FLOPS, 16) == 16
    assert threads_for(0.0, 1) == threads_for(1e15, 1) == 1


def test_all_of_the_demo_is_small_and_all_of_the_paper_large() -> None:
    for preset, wanted in (("demo", 1), ("paper", 8)):
        for each in answer(preset).runs:
            assert threads_for(step_flops(each.settings, each.corpus.vocabulary), 8) == wanted


@pytest.mark.parametrize(
    ("threads", "jobs", "device", "at_once"),
    [
        (1, 8, "cpu", 8),
        (8, 8, "cpu", 1),
        (4, 8, "cpu", 2),
        (3, 8, "cpu", 2),
        (2, 1, "cpu", 1),
        (2, 4, "cpu", 4),
        (99, 8, "cpu", 1),
        (1, 20, "cpu", 20),
        (8, 4, "GPU-1", 4),
    ],
    ids=[
        "small", "large", "resumed with half of the cores", "uneven", "one at a time as asked", "as asked",
        "from a larger machine", "more than cores as asked", "on a GPU cores do not matter",
    ],
)  # fmt: skip
def test_as_many_runs_as_the_cores_have_room_for(
    monkeypatch: pytest.MonkeyPatch, threads: int, jobs: int, device: str, at_once: int
) -> None:
    monkeypatch.setattr(host, "cores", lambda: 8)
    monkeypatch.setattr(queue, "cores", lambda: 8)
    assert jobs_at_once(threads, Queued(devices=(device,), jobs=jobs)) == at_once


@pytest.mark.parametrize(
    ("jobs", "device", "threads", "shown"),
    [
        ("auto", "cpu", 1, "8 runs at once, 1 thread each (auto)"),
        ("auto", "cpu", 8, "1 run at once, 8 threads each (auto)"),
        ("auto", "GPU-1", 8, "1 run at once, 8 threads each (auto)"),
        ("3", "cpu", 1, "3 runs at once, 2 threads each"),
        (" 4 ", "GPU-1", 8, "4 runs at once, 2 threads each"),
    ],
)
def test_a_device_is_shared_as_its_runs_allow_or_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str, device: str, threads: int, shown: str
) -> None:
    for module in (host, queue, submit):
        monkeypatch.setattr(module, "cores", lambda: 8)
    asked = parse_request({"ids": ["1-12"], "preset": "demo", "jobs": jobs, "runs": tmp_path})
    given = answer("demo")
    runs = tuple(msgspec.structs.replace(each, threads=threads) for each in given.runs)
    given = msgspec.structs.replace(given, runs=runs, device_keys=(device,))
    assert submit.describe_sharing(given, asked) == shown


def dry(root: Path, *arguments: str) -> dict[str, Any]:
    """Return the JSON of a dry run of small and large experiments."""
    rows = [tiny.row(1), tiny.row(2, more=LARGE), tiny.row(3, "gpt1"), tiny.row(4, layers=2)]
    file, data = tiny.write_experiments(root / "mine.toml", *rows), tiny.write_corpus(root / "data")
    words = ["--preset", "tiny", "--experiments", str(file), "--data", str(data), "--dry-run", "--json"]
    plan: dict[str, Any] = json.loads(tiny.lmconsole("run", *arguments, *words, cwd=root, check=0).stdout)
    return plan


@pytest.mark.slow
def test_a_run_alone_and_among_all_gets_the_same_threads(tmp_path: Path) -> None:
    every = {run["experiment"]: run for run in dry(tmp_path, "--all")["runs"]}
    assert {number: run["threads"] for number, run in every.items()} == {1: 1, 2: cores(), 3: 1, 4: 1}
    assert {number: run["jobs"] for number, run in every.items()} == {1: cores(), 2: 1, 3: cores(), 4: cores()}
    for number in ("1", "2"):
        plan = dry(tmp_path, number)
        (run,) = plan["runs"]
        assert run == every[int(number)]
        assert plan["jobs"] == run["jobs"]
    assert dry(tmp_path, "--all")["jobs"] == (None if cores() > 1 else 1)


@pytest.mark.slow
def test_a_number_of_jobs_holds_for_all(tmp_path: Path) -> None:
    for jobs in (1, 3):
        plan = dry(tmp_path, "--all", "--jobs", str(jobs))
        assert plan["jobs"] == jobs
        assert {run["jobs"] for run in plan["runs"]} == {jobs}
        assert {run["threads"] for run in plan["runs"]} == {max(1, cores() // jobs)}


@pytest.mark.slow
def test_the_text_of_a_dry_run_shows_the_sharing_and_the_order_of_the_queue(tmp_path: Path) -> None:
    def shown(*more: str) -> str:
        words = ["--preset", "tiny", "--experiments", "mine.toml", "--data", "data", "--dry-run"]
        return tiny.lmconsole("run", *more, *words, cwd=tmp_path, check=0).stdout

    dry(tmp_path, "--all")
    threads = f"{counted(cores(), 'thread')} each"
    small = f"{counted(cores(), 'run')} at once, 1 thread each"
    assert f"{small} (auto)" in shown("1", "3-4")
    every = shown("--all")
    if cores() > 1:
        assert f"{small} for 1 3-4; 1 run at once, {threads} for 2 (auto)" in every
    assert f", 1 run at once, {threads}\n" in shown("1", "--jobs", "1"), "not chosen by auto"
    lines = [int(number) for number in re.findall(r"^ +(\d) .* seed 42 +new$", every, re.MULTILINE)]
    assert lines == [2, 4, 3, 1], "the longest first"


# ---- order


def test_seed_by_seed_and_within_a_seed_the_longest_first() -> None:
    found = order(training_order(answer("demo").runs, (7, 3)))
    assert [seed for _, seed in found] == [7] * 12 + [3] * 12
    numbers = [number for number, _ in found]
    assert numbers[:12] == numbers[12:] == [12, 11, 10, 5, 6, 7, 8, 9, 1, 2, 3, 4]


def test_ids_typed_one_by_one_keep_their_order_seed_by_seed() -> None:
    given = answer("demo")
    given = msgspec.structs.replace(given, runs=tuple(given.runs[i] for i in (2, 11, 0)))
    found = order(training_order(given.runs, (7, 8), keep_order=True))
    assert found == [(3, 7), (12, 7), (1, 7), (3, 8), (12, 8), (1, 8)]
    assert order(training_order(given.runs, None, keep_order=True)) == [(3, 42), (12, 42), (1, 42)]
    assert order(training_order(given.runs, None)) == [(12, 42), (1, 42), (3, 42)]


@pytest.mark.slow
def test_only_single_ids_on_the_command_line_are_an_order(tmp_path: Path) -> None:
    def numbers(*arguments: str) -> list[int]:
        return [run["experiment"] for run in dry(tmp_path, *arguments)["runs"]]

    assert numbers("3", "1", "2") == numbers("3,1,2") == [3, 1, 2]
    longest_first = numbers("--all")
    assert longest_first != sorted(longest_first)
    assert longest_first[0] == 2
    assert numbers("1-4") == numbers("3-4", "1", "2") == longest_first


def queued_at_once(root: Path, monkeypatch: pytest.MonkeyPatch, seeds: Sequence[int], **more: Any) -> list[Run]:
    """Queue runs by one command, all in the same millisecond."""
    monkeypatch.setattr(queue, "utc_now", lambda: "2026-01-01T00:00:00.000Z")
    wanted = [tiny.resolved_tiny(root, seed=seed, **more) for seed in seeds]
    store = Store(root / "runs")
    made = enqueue(store, wanted, Queued(devices=("cpu",), jobs=1), fresh=False, refuse_active=True, threads=1)
    return [store.find(str(decision.run)) for decision in made]


def waiting(root: Path) -> list[int]:
    """Return the seeds of the queued runs, in the order of the queue."""
    runs = [run for run in Store(root / "runs").runs() if run.status is Status.QUEUED]
    return [run.info.seed for run in sorted(runs, key=lambda run: queue_order(run.info, run.state.queued))]


def test_runs_queued_within_one_millisecond_have_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queued_at_once(tmp_path, monkeypatch, (3, 1, 2))
    assert waiting(tmp_path) == [3, 1, 2]
    queued_at_once(tmp_path, monkeypatch, (9, 0))
    assert waiting(tmp_path) == [3, 1, 2, 9, 0], "runs of a later command come after them"


def test_a_resumed_run_takes_its_place_in_the_new_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, other = queued_at_once(tmp_path, monkeypatch, (5, 6))
    stop(old)
    stop(other)
    queued_at_once(tmp_path, monkeypatch, (1, 5, 0))
    assert waiting(tmp_path) == [1, 5, 0], "not first because it is old"
    assert requeue(Store(tmp_path / "runs"), [other.run]) == [other.run]
    assert waiting(tmp_path) == [1, 5, 0, 6]


def test_runs_queued_again_by_hand_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = queued_at_once(tmp_path, monkeypatch, (3, 1, 2))
    for run in runs:
        stop(run)
    requeue(Store(tmp_path / "runs"), sorted(run.run for run in runs))
    assert waiting(tmp_path) == [3, 1, 2]


def test_runs_of_version_0_1_come_before_later_ones_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for second, seed in enumerate((8, 7)):
        monkeypatch.setattr(queue, "utc_now", lambda now=second: f"2026-01-01T00:00:0{now}.000Z")
        run = tiny.queue_tiny(tmp_path, seed=seed)
        log = run.paths.events.read_bytes()
        assert b'"place":' in log
        run.paths.events.write_bytes(log.replace(b'"place":', b'"was_not_there":'))
    tiny.queue_tiny(tmp_path, seed=1)
    assert waiting(tmp_path) == [8, 7, 1]


# ---- queued with their threads


def test_threads_and_the_requested_jobs_are_saved_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 4)
    monkeypatch.setattr(queue, "cores", lambda: 4)
    small, large = (tiny.queue_tiny(tmp_path, seed=n, threads=n, jobs=4, auto=True) for n in (1, 4))
    asked = tiny.queue_tiny(tmp_path, seed=9, threads=2, jobs=2)
    found = [(run.info.threads, run.info.jobs, run.state.queued and run.state.queued.jobs) for run in (small, large)]
    assert found == [(1, "auto", 4), (4, "auto", 1)]
    assert (asked.info.threads, asked.info.jobs) == (2, 2)


def test_a_resumed_run_keeps_its_threads_and_takes_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 4)
    monkeypatch.setattr(queue, "cores", lambda: 4)
    run = tiny.queue_tiny(tmp_path, threads=4, jobs=1)
    stop(run)
    again = tiny.queue_tiny(tmp_path, threads=1, jobs=4)
    assert again.run == run.run
    assert again.info.threads == 4
    assert again.state.queued is not None
    assert again.state.queued.jobs == 1
    stop(again)
    monkeypatch.setattr(queue, "cores", lambda: 8)
    monkeypatch.setattr(host, "cores", lambda: 8)
    tiny.queue_tiny(tmp_path, threads=1, jobs=8, auto=True)
    again.refresh()
    assert again.state.queued is not None
    assert again.state.queued.jobs == 2, "two such runs have room"


@pytest.mark.slow
def test_a_dry_run_shows_the_threads_a_resumed_run_keeps(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, threads=7)
    stop(run)
    words = ["run", "1", "--preset", "tiny", "--experiments", "experiments/1.toml", "--data", "data", "--dry-run"]
    (planned,) = json.loads(tiny.lmconsole(*words, "--json", cwd=tmp_path, check=0).stdout)["runs"]
    assert (planned["run"], planned["threads"]) == (run.run, 7)
    assert planned["jobs"] == max(1, cores() // 7)
    assert f"resume {run.run} in epoch 1 with 7 threads as before" in tiny.lmconsole(*words, cwd=tmp_path).stdout
