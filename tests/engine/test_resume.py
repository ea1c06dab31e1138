"""Killed at any step and resumed, a run ends with the bits of one that was never interrupted, and one history."""

from pathlib import Path
from typing import Any

import factories
import pytest
import tiny
from safetensors.torch import load_file

from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Resumed, Started
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

EAGER = """
import os, signal, threading
from lmconsole.lm import checkpoint, loop
loop.TICK_S = 0.0                                  # check at every step,
checkpoint.save_interval_s = lambda write_s: 0.0   # save each time,
submit = checkpoint.CheckpointWriter.submit
def submit_and_join(self, *arguments):             # and continue when it is written: each death has its place
    submit(self, *arguments)
    self.join()
checkpoint.CheckpointWriter.submit = submit_and_join
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""

IN_A_STEP = """
from lmconsole.lm.steps import Steps
real, steps = Steps.step, 0
def step(self, *arguments):
    global steps
    steps += 1
    if steps == {steps}:
        die()
    return real(self, *arguments)
Steps.step = step
"""

BETWEEN_LOG_AND_CHECKPOINT = """
real = loop.Training._save
def save(self):
    if self.state.step == 0:   # the epoch is in the log, and not yet in a checkpoint
        die()
    real(self)
loop.Training._save = save
"""

WHILE_A_CHECKPOINT_IS_REPLACED = """
real, times = os.replace, 0
def replace(source, target):
    global times
    real(source, target)
    times += 1
    if times == 5:   # the newest has become the previous one, and nothing has taken its place
        die()
os.replace = replace
"""

WHILE_A_CHECKPOINT_IS_WRITTEN = """
def save(obj, file):
    file.write(b"half a checkpoint")
    file.flush()
    die()
checkpoint.torch.save = save
"""

BEFORE_A_CHECKPOINT_IS_ON_THE_DISK = """
real, times = os.fsync, 0
def fsync(descriptor):
    global times
    if threading.current_thread().name == "checkpoint":
        times += 1
        if times == 3:   # file and folder of the first, and now the file of the second
            die()
    real(descriptor)
os.fsync = fsync
"""

TWO_STEPS_INTO_A_WRITE = """
from lmconsole.lm.steps import Steps
half = threading.Event()
def save(obj, file):
    file.write(b"half a checkpoint")
    file.flush()
    half.set()
    threading.Event().wait()   # without end: only training continues
checkpoint.torch.save = save
def submit_and_train_on(self, *arguments):
    submit(self, *arguments)
    half.wait()
checkpoint.CheckpointWriter.submit = submit_and_train_on
real, steps = Steps.step, 0
def step(self, *arguments):
    global steps
    steps += half.is_set()
    if steps == 3:
        die()
    return real(self, *arguments)
Steps.step = step
"""

IN_VALIDATION = """
real = loop.Training._evaluate
def evaluate(self, name, *more):
    if name == "{split}" and self.state.step in (0, self.steps_per_epoch):
        die()
    return real(self, name, *more)
loop.Training._evaluate = evaluate
"""

IN_AN_EVALUATION = """
real = loop.Training._evaluate
def evaluate(self, name, *more):
    if name == "validation" and self.state.step < self.steps_per_epoch:
        die()
    return real(self, name, *more)
loop.Training._evaluate = evaluate
"""

BETWEEN_EVALUATION_AND_CHECKPOINT = """
real = loop.Training._evaluate_within_epoch
def evaluate(self):
    real(self)
    die()
loop.Training._evaluate_within_epoch = evaluate
"""

BETWEEN_BEST_WEIGHTS_AND_LOG = """
real = loop.Training._save_best_weights
def keep(self):
    real(self)
    die()
loop.Training._save_best_weights = keep
"""

NO_STEP = """
from lmconsole.lm.steps import Steps
Steps.step = None
"""

DEATHS = [
    IN_A_STEP.format(steps=3),
    WHILE_A_CHECKPOINT_IS_WRITTEN,
    TWO_STEPS_INTO_A_WRITE,
    BETWEEN_EVALUATION_AND_CHECKPOINT,
    IN_AN_EVALUATION,
    IN_A_STEP.format(steps=9),
    BEFORE_A_CHECKPOINT_IS_ON_THE_DISK,
    WHILE_A_CHECKPOINT_IS_REPLACED,
    IN_VALIDATION.format(split="validation"),
    BETWEEN_LOG_AND_CHECKPOINT,
    IN_VALIDATION.format(split="test"),
    BETWEEN_BEST_WEIGHTS_AND_LOG,
]
FINISHED_FILES = {"run.json", "events.jsonl", "best-weights.safetensors", "test-losses.safetensors", "lock"}
"""Files of a finished run that no runner started."""


def metrics(run: Run) -> list[tuple[object, ...]]:
    """Return everything a table could show, bit for bit, without times."""
    state = run.state
    epochs = [(e.epoch, e.train_loss_nats, e.train_ppl, e.valid_loss_nats, e.valid_ppl) for e in state.epochs]
    evaluations = [(e.epoch, e.step, e.valid_loss_nats, e.valid_ppl) for e in state.evaluations]
    f = state.finished
    assert f is not None
    return [*evaluations, *epochs, (f.test_ppl_final, f.test_ppl_best, f.best_epoch, f.best_valid_ppl, f.diverged)]


def uninterrupted(root: Path, model: str = "lstm", **settings: Any) -> Run:
    """Train a run without interruption, for comparison."""
    run = tiny.queue_tiny(root, model, **settings)
    done = tiny.worker(run, root)
    assert done.returncode == 0, done.stderr
    run.refresh()
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that was never interrupted."""
    return uninterrupted(tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "precision", "deaths"),
    [
        ("lstm", "fp32", DEATHS),
        ("gpt1", "bf16", DEATHS[1::2]),
        ("lstm", "bf16", DEATHS[::3]),
        ("gpt1", "fp32", DEATHS[::3]),
    ],
    ids=["lstm-fp32", "gpt1-bf16", "lstm-bf16", "gpt1-fp32"],
)
def test_a_run_killed_again_and_again_ends_like_an_uninterrupted_one(
    tmp_path: Path, model: str, precision: str, deaths: list[str]
) -> None:
    settings: dict[str, Any] = {"precision": precision, "dropout": 0.1, "optimizer": "adamw", "evaluate_every_steps": 7}
    alone = uninterrupted(tmp_path / "alone", model, **settings)
    for death in deaths:
        run = tiny.queue_tiny(tmp_path / "killed", model, **settings)
        assert tiny.worker(run, tmp_path / "killed", EAGER + death).returncode == -9
        run.refresh()
        assert run.status is Status.LOST
    last = tiny.queue_tiny(tmp_path / "killed", model, **settings)
    done = tiny.worker(last, tmp_path / "killed")
    assert done.returncode == 0, done.stderr

    (killed,) = Store(tmp_path / "killed" / "runs").runs()
    assert killed.state.attempt == len(deaths) + 1
    assert killed.state.damaged == 0
    assert metrics(killed) == metrics(alone)
    assert [e.epoch for e in killed.state.epochs] == [1, 2]
    assert len(killed.state.evaluations) > 2
    steps = [(p.epoch, p.step) for p in killed.state.progress]
    assert steps == sorted(set(steps))
    log = killed.paths.events.read_bytes()
    assert log.count(b'"kind":"resumed"') == len(deaths)
    assert {path.name for path in killed.paths.folder.iterdir()} == FINISHED_FILES
    best = [load_file(run.paths.best_weights) for run in (killed, alone)]
    assert best[0].keys() == best[1].keys()
    assert all(best[0][name].equal(best[1][name]) for name in best[0])


@pytest.mark.slow
@pytest.mark.parametrize("death", [IN_VALIDATION.format(split="test"), BETWEEN_BEST_WEIGHTS_AND_LOG])
def test_killed_in_its_tests_a_run_resumes_there_and_takes_no_step(tmp_path: Path, alone: Run, death: str) -> None:
    run = tiny.queue_tiny(tmp_path / "killed")
    assert tiny.worker(run, tmp_path / "killed", EAGER + death).returncode == -9
    tiny.queue_tiny(tmp_path / "killed")
    done = tiny.worker(run, tmp_path / "killed", NO_STEP)
    assert done.returncode == 0, done.stderr
    run.refresh()
    assert metrics(run) == metrics(alone)


@pytest.mark.slow
def test_killed_before_its_checkpoints_are_removed_a_run_is_finished(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    assert tiny.worker(run, tmp_path, EAGER + "checkpoint.remove = lambda paths: die()").returncode == -9
    run.refresh()
    assert run.status is Status.FINISHED
    assert run.paths.best_weights.exists()
    assert run.paths.checkpoint.exists()


@pytest.mark.slow
def test_if_the_newest_checkpoint_is_damaged_the_previous_one_is_used(tmp_path: Path, alone: Run) -> None:
    run = tiny.queue_tiny(tmp_path / "killed")
    assert tiny.worker(run, tmp_path / "killed", EAGER + IN_A_STEP.format(steps=6)).returncode == -9
    whole = run.paths.checkpoint.read_bytes()
    run.paths.checkpoint.write_bytes(whole[: len(whole) // 2])
    tiny.queue_tiny(tmp_path / "killed")
    done = tiny.worker(run, tmp_path / "killed")
    assert "checkpoint.pt cannot be used" in done.stdout
    run.refresh()
    assert metrics(run) == metrics(alone)
    assert b'"kind":"resumed"' in run.paths.events.read_bytes()


@pytest.mark.slow
def test_without_any_checkpoint_the_run_starts_over_in_the_same_log(tmp_path: Path, alone: Run) -> None:
    run = tiny.queue_tiny(tmp_path / "killed")
    assert tiny.worker(run, tmp_path / "killed", EAGER + BETWEEN_LOG_AND_CHECKPOINT).returncode == -9
    for path in (run.paths.checkpoint, run.paths.previous_checkpoint):
        path.unlink(missing_ok=True)
    tiny.queue_tiny(tmp_path / "killed")
    assert tiny.worker(run, tmp_path / "killed").returncode == 0
    run.refresh()
    assert metrics(run) == metrics(alone)


@pytest.mark.slow
def test_stopped_in_the_middle_and_resumed_it_ends_the_same(tmp_path: Path, alone: Run) -> None:
    stop = EAGER + IN_A_STEP.replace("die()", "os.kill(os.getpid(), signal.SIGTERM)").format(steps=4)
    run = tiny.queue_tiny(tmp_path / "stopped")
    assert tiny.worker(run, tmp_path / "stopped", stop).returncode == 0
    run.refresh()
    assert run.status is Status.STOPPED
    assert run.state.stopped is not None
    assert (run.state.stopped.epoch, run.state.stopped.step) == (1, 4)
    tiny.queue_tiny(tmp_path / "stopped")
    assert tiny.worker(run, tmp_path / "stopped").returncode == 0
    run.refresh()
    assert metrics(run) == metrics(alone)
    resumed = [event for event in EventReader(run.paths.events).read_new() if isinstance(event, Resumed)]
    assert [(event.epoch, event.step) for event in resumed] == [(1, 4)]


def damaged(kind: str, run: Run) -> None:
    """Damage the log of ``run`` where it states the first epoch."""
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    (at,) = [index for index, line in enumerate(lines) if b'"kind":"epoch"' in line]
    match kind:
        case "zeroed":
            lines[at] = b"\0" * (len(lines[at]) - 1) + b"\n"
        case "gone":
            del lines[at]
        case "half":
            lines[at] = lines[at][: len(lines[at]) // 2] + b"\n"
        case "ends there":
            del lines[at:]
    run.paths.events.write_bytes(b"".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zeroed", "gone", "half"])
def test_a_damaged_epoch_in_the_log_does_not_stop_a_run_from_resuming(tmp_path: Path, alone: Run, kind: str) -> None:
    run = tiny.queue_tiny(tmp_path / "cut")
    assert tiny.worker(run, tmp_path / "cut", EAGER + IN_A_STEP.format(steps=30)).returncode == -9
    damaged(kind, run)
    tiny.queue_tiny(tmp_path / "cut")
    done = tiny.worker(run, tmp_path / "cut")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (again,) = Store(tmp_path / "cut" / "runs").runs()
    assert metrics(again)[-2:] == metrics(alone)[-2:], "the last epoch and the results"
    assert [e.epoch for e in again.state.epochs] == [2], "and the epoch stays missing"


@pytest.mark.slow
def test_a_log_that_lost_its_end_is_not_continued_by_a_checkpoint_that_counts_more(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    assert tiny.worker(run, tmp_path, EAGER + IN_A_STEP.format(steps=30)).returncode == -9
    damaged("ends there", run)
    for text in ("events that the event log does not contain", ""):  # and not the next time either
        tiny.queue_tiny(tmp_path)
        done = tiny.worker(run, tmp_path)
        assert done.returncode == 1
        assert text in done.stdout
        run = Store(tmp_path / "runs").runs()[0]
        assert run.status is Status.FAILED
        assert run.state.failed is not None
        assert "lmconsole run 1 --fresh" in run.state.failed.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "earlier", "status"), [(1, 0, Status.FINISHED), (2, 0, Status.FAILED), (0, 1, Status.FINISHED)]
)
def test_an_attempt_records_the_checkpoints_that_were_set_aside(
    tmp_path: Path, bad: int, earlier: int, status: Status
) -> None:
    """By itself, and by a worker that ended before its turn and recorded nothing."""
    run = tiny.queue_tiny(tmp_path)
    assert tiny.worker(run, tmp_path, EAGER + IN_A_STEP.format(steps=6)).returncode == -9
    for path in (run.paths.checkpoint, run.paths.previous_checkpoint)[:bad]:
        path.write_bytes(b"not a checkpoint")
    for number in range(earlier):
        (run.paths.folder / f"checkpoint.pt.damaged-{number}").touch()
    tiny.queue_tiny(tmp_path)
    tiny.worker(run, tmp_path)
    run.refresh()
    started = [event for event in EventReader(run.paths.events).read_new() if isinstance(event, Started)]
    assert [event.checkpoints_set_aside for event in started] == [0, bad + earlier]
    assert run.status is status


@pytest.mark.slow
def test_an_epoch_is_not_counted_twice_if_the_start_of_the_first_attempt_is_damaged(tmp_path: Path, alone: Run) -> None:
    """Without a checkpoint, too: what the log has of an attempt is void when another starts over."""
    run = tiny.queue_tiny(tmp_path / "cut")
    assert tiny.worker(run, tmp_path / "cut", EAGER + IN_A_STEP.format(steps=30)).returncode == -9
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    (at,) = [index for index, line in enumerate(lines) if b'"kind":"started"' in line]
    lines[at] = b"\0\n"
    run.paths.events.write_bytes(b"".join(lines))
    for path in (run.paths.checkpoint, run.paths.previous_checkpoint):
        path.unlink()
    factories.append_events(run.paths, factories.queued())
    done = tiny.worker(run, tmp_path / "cut")
    assert done.returncode == 0, done.stderr
    (again,) = Store(tmp_path / "cut" / "runs").runs()
    assert metrics(again) == metrics(alone)
