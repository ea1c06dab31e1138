"""The training loop: what it computes, against plain formulas, and what it writes down."""

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open
from torch.nn import functional as F

from lmconsole.data.corpus import load_corpus
from lmconsole.errors import TrainingError
from lmconsole.lm import checkpoint, device, loop
from lmconsole.lm import throughput as bench
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.checkpoint import CheckpointWriter
from lmconsole.lm.loop import Job, Training, parameters_of, train
from lmconsole.lm.model import LanguageModel, build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.lm.steps import Steps
from lmconsole.runs.events import EventLog, EventReader, Progress, Started, perplexity
from lmconsole.runs.state import RunState
from lmconsole.runs.store import Run


def job(run: Run, root: Path, *, stop: Callable[[], bool] = lambda: False) -> Job:
    corpus = load_corpus("tokens", root / "data", vocabulary=run.info.settings.vocabulary, cache=root / "cache")
    history = RunState()
    history.apply(EventReader(run.paths.events).read_new())
    return Job(
        info=run.info,
        paths=run.paths,
        log=EventLog(run.paths.events),
        history=history,
        device="cpu",
        corpus=corpus,
        tables=None,
        stop_requested=stop,
        enter_phase=lambda phase, epoch: None,
        end_telemetry=lambda: None,
    )


def again(run: Run, root: Path, *, stop: Callable[[], bool] = lambda: False) -> Job:
    """One more attempt at ``run``, begun in its log as a worker does."""
    run.refresh()
    log = EventLog(run.paths.events)
    log.append(
        Started(
            attempt=run.state.attempt + 1, pid=1, host="h", device="cpu", device_name="CPU", device_uuid=None,
            versions={}, threads=1, precision="fp32", parameters_total=1, parameters_trainable=1,
        )
    )  # fmt: skip
    log.close()
    return job(run, root, stop=stop)


def trained(root: Path, model: str = "lstm", **settings: object) -> Run:
    run = tiny.queue_tiny(root, model, **settings)
    torch.set_num_threads(1)
    train(job(run, root))
    run.refresh()
    return run


class Clock:
    """Stands in for the module ``time``: it moves only when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def passes_in(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, seconds: float) -> None:
        """From here on, every call of the function ``owner.name`` takes so many seconds."""
        real = getattr(owner, name)

        def timed(*arguments: object, **more: object) -> object:
            self.now_s += seconds
            return real(*arguments, **more)

        monkeypatch.setattr(owner, name, timed)


def mean_nll(model: torch.nn.Module, tokens: np.ndarray, window: int) -> float:
    """The textbook way: full logits, one window at a time, summed over targets."""
    split, total, targets_seen = WindowedSplit(tokens, window, "cpu"), 0.0, 0
    for i in range(len(split)):
        ids, targets = split.batch(torch.tensor([i]))
        logits = model.features(ids) @ model.table.T  # type: ignore[operator, union-attr]
        total += F.cross_entropy(logits[0], targets[0], ignore_index=-100, reduction="sum").double().item()
        targets_seen += int(split.lengths[i])
    return total / targets_seen


@pytest.mark.parametrize(("model", "optimizer"), [("lstm", "sgd"), ("gpt1", "momentum"), ("gpt1", "adamw")])
def test_an_epoch_is_what_a_plain_loop_computes(tmp_path: Path, model: str, optimizer: str) -> None:
    run = trained(tmp_path, model, optimizer=optimizer, epochs=2)
    settings = run.info.settings
    corpus = load_corpus("tokens", tmp_path / "data", vocabulary=300, cache=tmp_path / "cache")
    torch.manual_seed(42)
    plain = build_model(settings, vocabulary=corpus.vocabulary, tables=None)
    stepper = build_optimizer(settings, plain.parameters())
    shuffle = torch.Generator().manual_seed(42)
    split = WindowedSplit(corpus.splits["train"], settings.window_tokens, "cpu")
    for epoch in run.state.epochs:
        nll, count = 0.0, 0
        for windows in torch.randperm(len(split), generator=shuffle).split(settings.batch_size):
            ids, targets = split.batch(windows)
            logits = (plain.features(ids) @ plain.table.T).flatten(0, 1)
            loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-100)
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            here = int((targets != -100).sum())
            nll, count = nll + loss.item() * here, count + here
        assert epoch.train_loss_nats == pytest.approx(nll / count, rel=1e-4)
        with torch.no_grad():
            valid = mean_nll(plain, corpus.splits["validation"], settings.window_tokens)
        assert epoch.valid_loss_nats == pytest.approx(valid, rel=1e-4)
        assert epoch.valid_ppl == pytest.approx(math.exp(valid), rel=1e-3)
    finished = run.state.finished
    assert finished is not None
    with torch.no_grad():
        test = math.exp(mean_nll(plain, corpus.splits["test"], settings.window_tokens))
    assert finished.test_ppl_final == pytest.approx(test, rel=1e-3)


def test_validation_falls_and_the_best_weights_are_tested(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, "gpt1", epochs=40, learning_rate=0.05)
    torch.set_num_threads(1)
    training = Training(job(run, tmp_path))
    training.prepare_on_device()
    training.run(time.monotonic())
    run.refresh()
    state = run.state
    best, finished = state.best_epoch, state.finished
    assert best is not None
    assert finished is not None
    assert best.valid_ppl is not None
    assert state.epochs[0].valid_ppl is not None
    assert best.valid_ppl < state.epochs[0].valid_ppl
    assert (finished.best_epoch, finished.best_valid_ppl) == (best.epoch, best.valid_ppl)
    assert best.epoch < 40, "the test needs a run that overfits"
    assert finished.test_ppl_best != finished.test_ppl_final

    assert perplexity(training._evaluate("test")) == finished.test_ppl_final
    with safe_open(run.paths.best_weights, "pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    training.model.load_state_dict(weights)
    assert perplexity(training._evaluate("validation")) == best.valid_ppl
    assert perplexity(training._evaluate("test")) == finished.test_ppl_best
    assert metadata == {
        "run": run.run,
        "experiment": "GPT-1 1L Adam",
        "epoch": str(best.epoch),
        "valid_loss_nats": str(best.valid_loss_nats),
        "config_hash": run.info.config_hash,
    }


def test_progress_adds_up_to_the_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    run = trained(tmp_path, epochs=1)
    (epoch,) = run.state.epochs
    corpus = load_corpus("tokens", tmp_path / "data", vocabulary=300, cache=tmp_path / "cache")
    split = WindowedSplit(corpus.splits["train"], 8, "cpu")
    steps = math.ceil(len(split) / 4)
    assert [p.step for p in run.state.progress] == list(range(1, steps + 1))
    assert {p.steps for p in run.state.progress} == {steps}
    losses = [p.train_loss_nats for p in run.state.progress]
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(42)).numpy()
    counts = [int(split.lengths[order[i : i + 4]].sum()) for i in range(0, len(split), 4)]
    mean = sum(loss * n for loss, n in zip(losses, counts, strict=True) if loss) / sum(counts)
    assert epoch.train_loss_nats == pytest.approx(mean, rel=1e-9)


def test_the_clock_counts_training_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes only in the functions named here, in binary fractions of a second, so that sums are exact."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 2.0)
    clock.passes_in(monkeypatch, loop, "build_model", 1000.0)
    clock.passes_in(monkeypatch, Steps, "take", 0.25)  # two of them make a tick
    clock.passes_in(monkeypatch, Training, "_report", 2**-10)
    clock.passes_in(monkeypatch, Training, "_save", 100.0)
    clock.passes_in(monkeypatch, Training, "_evaluate", 32.0)
    run = tiny.queue_tiny(tmp_path, epochs=2)
    train(job(run, tmp_path), clock.monotonic())
    run.refresh()
    train_s = 0.25 * run.state.progress[-1].steps
    assert train_s > 2.0, "the test needs a checkpoint within an epoch"
    assert [(e.train_s, e.valid_s, e.elapsed_train_s) for e in run.state.epochs] == [
        (train_s, 32.0, train_s),
        (train_s, 32.0, 2 * train_s),
    ]
    finished = run.state.finished
    assert finished is not None
    assert finished.setup_s == 1000.0
    assert finished.wall_s == clock.now_s


class Board:
    """The energy counter of a GPU's board that draws 64 W by a clock."""

    WATTS = 64.0

    def __init__(self, clock: Clock, zero_j: float = 2.0**20) -> None:
        self._clock, self._zero_j = clock, zero_j

    def read_j(self) -> float:
        return self._zero_j + self.WATTS * self._clock.now_s


def test_energy_is_of_epochs_and_not_of_set_up_and_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 2.0)
    clock.passes_in(monkeypatch, loop, "build_model", 1000.0)
    clock.passes_in(monkeypatch, loop, "prepare_steps", 1000.0)
    clock.passes_in(monkeypatch, Steps, "take", 0.25)
    clock.passes_in(monkeypatch, Training, "_save", 128.0)
    clock.passes_in(monkeypatch, Training, "_evaluate", 32.0)
    saves: list[tuple[int, int]] = []
    real_save = Training._save

    def save(self: Training) -> None:
        saves.append((self.cursor.epoch, self.cursor.step))
        real_save(self)
        self.writer.join()  # how long a write takes is real time

    monkeypatch.setattr(Training, "_save", save)
    run = tiny.queue_tiny(tmp_path, epochs=2)
    train(replace(job(run, tmp_path), read_energy_j=Board(clock).read_j))
    run.refresh()
    train_s = 0.25 * run.state.progress[-1].steps
    within = [sum(epoch == number and step > 0 for epoch, step in saves) for number in (1, 2)]
    assert min(within) > 0, "the test needs checkpoints within the epochs"
    epochs_j = [Board.WATTS * (train_s + 128.0 * count + 32.0) for count in within]
    assert [epoch.energy_j for epoch in run.state.epochs] == epochs_j
    assert run.state.finished is not None
    between_j = Board.WATTS * 128.0 * saves.count((2, 0))
    assert run.state.finished.energy_j == sum(epochs_j) + between_j, "a checkpoint between epochs counts too"
    assert saves[-1] == (3, 0), "the last one, before the tests, does not"


@pytest.mark.parametrize(
    ("epochs", "step_s", "valid_s", "epoch_is_known", "run_is_known"),
    [
        (2, 2**-5, 0.0, False, False),  # 0.8 s each, 1.6 s in all
        (3, 2**-5, 0.0, False, True),
        (3, 2**-5, 1.25, True, True),
        (1, 2**-3, 0.0, True, True),
    ],
)
def test_energy_over_less_than_two_seconds_is_unknown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    step_s: float,
    valid_s: float,
    epoch_is_known: bool,
    run_is_known: bool,
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    clock.passes_in(monkeypatch, Steps, "take", step_s)
    clock.passes_in(monkeypatch, Training, "_evaluate", valid_s)
    run = tiny.queue_tiny(tmp_path, epochs=epochs)
    train(replace(job(run, tmp_path), read_energy_j=Board(clock).read_j))
    run.refresh()
    epoch_j = Board.WATTS * (step_s * run.state.progress[-1].steps + valid_s)
    assert [epoch.energy_j for epoch in run.state.epochs] == [epoch_j if epoch_is_known else None] * epochs
    assert run.state.finished is not None
    assert run.state.finished.energy_j == (epochs * epoch_j if run_is_known else None)


@pytest.mark.parametrize(
    ("readings", "epochs_j", "run_j"),
    [
        ([0.0, 100.0, 110.0, 210.0, 220.0, 320.0], [100.0, 100.0, 100.0], 320.0),
        ([0.0, 100.0, 110.0, None, 220.0, 320.0], [100.0, None, 100.0], None),
        ([None, 100.0, 110.0, 210.0, 220.0, 320.0], [None, 100.0, 100.0], None),
        ([50.0, 100.0, 110.0, 20.0, 30.0, 130.0], [50.0, None, 100.0], None),  # reloaded within an epoch
        ([50.0, 100.0, 10.0, 110.0, 120.0, 220.0], [50.0, 100.0, 100.0], None),  # and between two
        ([None] * 6, [None] * 3, None),
    ],
)
def test_a_counter_that_is_silent_or_goes_back_makes_energy_unknown_and_never_negative(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    readings: list[float | None],
    epochs_j: list[float | None],
    run_j: float | None,
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: math.inf)  # a checkpoint reads it too
    clock.passes_in(monkeypatch, Steps, "take", 0.25)
    run = tiny.queue_tiny(tmp_path, epochs=3)
    left = iter(readings)
    train(replace(job(run, tmp_path), read_energy_j=lambda: next(left)))
    run.refresh()
    assert next(left, "none left") == "none left"
    assert [epoch.energy_j for epoch in run.state.epochs] == epochs_j
    assert run.state.finished is not None
    assert run.state.finished.energy_j == run_j


class Killed(BaseException):
    """Stands in for SIGKILL: nothing is written after it."""


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_energy_of_a_resumed_run_is_that_of_the_steps_that_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Interrupted twice in its second epoch, and each time the counter starts from another zero. A killed run trains
    again what it did after its last checkpoint, which does not count twice."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    real_submit = CheckpointWriter.submit

    def submit(self: CheckpointWriter, *arguments: Any) -> None:
        real_submit(self, *arguments)
        self.join()  # how long a write takes is real time

    monkeypatch.setattr(CheckpointWriter, "submit", submit)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 2.0)
    clock.passes_in(monkeypatch, Training, "_evaluate", 32.0)
    clock.passes_in(monkeypatch, Steps, "take", 0.25)
    run = tiny.queue_tiny(tmp_path, epochs=3)
    first = Training(job(run, tmp_path))
    first.prepare_on_device()
    per_epoch = first.steps
    assert per_epoch > 20, "the test needs epochs with room for two interruptions"
    taken, death = 0, 0
    real_take = Steps.take

    def take(self: Steps, learning_rate: float | None) -> int:
        nonlocal taken
        taken += 1
        if how == "killed" and taken == death:
            raise Killed
        return real_take(self, learning_rate)

    monkeypatch.setattr(Steps, "take", take)
    for death, zero_j in ((per_epoch + 14, 0.0), (per_epoch + 19, 2.0**30)):
        attempt = again(run, tmp_path, stop=lambda death=death: how == "stopped" and taken >= death)
        with contextlib.suppress(Killed):
            train(replace(attempt, read_energy_j=Board(clock, zero_j).read_j))
        run.refresh()
        assert run.status == ("stopped" if how == "stopped" else "lost")
        assert len(run.state.epochs) == 1
        clock.now_s += 1000.0
    train(replace(again(run, tmp_path), read_energy_j=Board(clock).read_j))
    run.refresh()
    assert (taken > 3 * per_epoch) == (how == "killed"), "only a killed run trains some steps again"
    epoch_j = Board.WATTS * (0.25 * per_epoch + 32.0)
    assert [epoch.energy_j for epoch in run.state.epochs] == [epoch_j] * 3
    assert run.state.finished is not None
    assert run.state.finished.energy_j == 3 * epoch_j


def test_a_run_begun_without_a_meter_has_no_total_and_is_metered_from_its_next_epoch_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose checkpoint version 0.1.0 wrote: it has no fields for energy."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    clock.passes_in(monkeypatch, Steps, "take", 0.25)
    run = tiny.queue_tiny(tmp_path, epochs=3)
    train(again(run, tmp_path, stop=lambda: clock.now_s > 8.0))
    run.refresh()
    assert run.status == "stopped"
    assert run.state.position[0] == 2
    parts = torch.load(run.paths.checkpoint, weights_only=True)
    del parts["cursor"]["energy_j"], parts["cursor"]["epoch_energy_j"]
    torch.save(parts, run.paths.checkpoint)
    train(replace(again(run, tmp_path), read_energy_j=Board(clock).read_j))
    run.refresh()
    epoch_j = Board.WATTS * 0.25 * run.state.progress[-1].steps
    assert [epoch.energy_j for epoch in run.state.epochs] == [None, None, epoch_j]
    assert run.state.finished is not None
    assert run.state.finished.energy_j is None


def test_a_run_that_diverges_ends_finished_and_says_so(tmp_path: Path) -> None:
    run = trained(tmp_path, "lstm", optimizer="sgd", learning_rate=1000.0, epochs=9, weight_decay=900.0)
    finished = run.state.finished
    assert finished is not None
    assert finished.diverged
    assert len(run.state.epochs) < 9
    assert not math.isfinite(run.state.epochs[-1].valid_loss_nats or 0.0)
    assert math.isnan(finished.test_ppl_final or 0.0)
    assert not finished.stopped_early


def test_early_stopping_waits_for_so_many_epochs_without_a_better_one(tmp_path: Path) -> None:
    run = trained(tmp_path, "gpt1", epochs=60, learning_rate=0.05, early_stopping_epochs=2)
    finished = run.state.finished
    assert finished is not None
    assert finished.stopped_early
    assert finished.best_epoch == len(run.state.epochs) - 2


def test_clipping_changes_the_run_and_bounds_the_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    real = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: object) -> object:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in gradients if g is not None]).norm().item())
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    trained(tmp_path, optimizer="sgd", epochs=1, gradient_clip_norm=0.05)
    assert norms
    assert max(norms) <= 0.05 * 1.001


def test_the_schedule_reaches_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *arguments: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    run = trained(tmp_path, epochs=2, warmup_steps=4, learning_rate_decay="cosine")
    full = run.info.settings.learning_rate
    assert rates[:4] == pytest.approx([full / 4, full / 2, full * 3 / 4, full])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_a_stop_is_heeded_however_short_epochs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.05)
    run = tiny.queue_tiny(tmp_path, epochs=100_000, repeats=1)
    torch.set_num_threads(1)
    looks: list[float] = []  # the first comes in training, however long set-up took

    def stop() -> bool:
        looks.append(time.monotonic())
        return looks[-1] > looks[0] + 0.3

    train(job(run, tmp_path, stop=stop))
    run.refresh()
    assert run.status == "stopped"
    assert len(run.state.epochs) > 1


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    runs = [trained(tmp_path / str(i), "gpt1", seed=seed, epochs=1) for i, seed in enumerate((3, 3, 4))]
    a, b, c = (run.state.epochs[0].valid_loss_nats for run in runs)
    assert a == b != c


def test_parameters_are_counted_without_building_the_model(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, "gpt1")
    model = build_model(run.info.settings, vocabulary=run.info.corpus.vocabulary, tables=None)
    exact = sum(p.numel() for p in model.parameters())
    assert parameters_of(run.info) == (exact, exact)


def test_the_first_progress_comes_with_the_first_epoch_at_the_latest(tmp_path: Path) -> None:
    run = trained(tmp_path, epochs=1)
    assert isinstance(run.state.progress[-1], Progress)
    assert run.state.progress[-1].step == run.state.progress[-1].steps


def test_a_short_run_saves_once_before_its_tests_and_keeps_its_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many epochs it has."""
    monkeypatch.setattr(loop, "time", Clock())  # training takes no time
    happened: list[str] = []

    def noted(owner: object, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (happened.append(name), real(*a, **k))[1])

    noted(EventLog, "sync")
    noted(CheckpointWriter, "submit")
    noted(Training, "_test")
    noted(checkpoint, "save_best_weights")
    run = tiny.queue_tiny(tmp_path, epochs=3)
    train(job(run, tmp_path), 0.0)
    run.refresh()
    assert happened == ["sync", "submit", "_test", "save_best_weights"]
    assert run.status == "finished"
    left = {path.name for path in run.paths.folder.iterdir()}
    assert left == {"run.json", "events.jsonl", "best-weights.safetensors", "lock"}


def test_a_checkpoint_follows_ten_seconds_of_training_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still but in steps, four a second; the loop looks every other step."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(checkpoint, "time", clock)
    clock.passes_in(monkeypatch, Steps, "take", 0.25)
    saved_at: list[float] = []
    real = CheckpointWriter.submit

    def submit(self: CheckpointWriter, *arguments: object) -> None:
        saved_at.append(clock.now_s)
        real(self, *arguments)
        self.join()  # so that the next look finds it written

    monkeypatch.setattr(CheckpointWriter, "submit", submit)
    run = tiny.queue_tiny(tmp_path, epochs=4)
    train(job(run, tmp_path), 0.0)
    assert len(saved_at) > 2
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *saved_at[:-1]])]
    assert all(10.0 <= gap <= 11.0 for gap in gaps), gaps
    assert saved_at[-1] == clock.now_s, "the last is that of the end"


def full(*_: object) -> None:
    raise TrainingError("disk-full", "no room", hint="")


@pytest.fixture
def saving_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write is over before the next step."""
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 0.0)
    real = CheckpointWriter.submit
    monkeypatch.setattr(CheckpointWriter, "submit", lambda self, *arguments: (real(self, *arguments), self.join())[1])


@pytest.mark.usefixtures("saving_at_every_step")
def test_a_failed_write_ends_training_at_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, real = [], checkpoint.save

    def save(*arguments: object) -> None:
        writes.append(arguments)
        if len(writes) == 3:
            full()
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", save)
    run = tiny.queue_tiny(tmp_path)
    with pytest.raises(TrainingError, match="no room"):
        train(job(run, tmp_path))
    run.refresh()
    assert run.state.progress[-1].step == 4
    found = checkpoint.load(run.paths, run.info.config_hash)
    assert found is not None
    assert found[0].step == 2


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_failed_write_ends_an_evaluation_at_its_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    evaluate, loss_sum, batches = Training._evaluate, LanguageModel.loss_sum, []

    def evaluated(self: Training, name: str) -> float:
        if name == split:
            self.writer.wait()
            monkeypatch.setattr(checkpoint, "save", full)
            self._save()
            self.writer.join()
            batches.clear()
        return evaluate(self, name)

    def counted(*arguments: object) -> torch.Tensor:
        batches.append(arguments)
        return loss_sum(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_evaluate", evaluated)
    monkeypatch.setattr(LanguageModel, "loss_sum", counted)
    run = tiny.queue_tiny(tmp_path)
    with pytest.raises(TrainingError, match="no room"):
        train(job(run, tmp_path))
    assert len(batches) == 1


@pytest.mark.parametrize("stop", [True, False], ids=["stop", "end"])
def test_a_run_ends_only_when_its_last_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    """The write fails once it is waited for."""
    waited, join = threading.Event(), CheckpointWriter.join

    def failing(*_: object) -> None:
        waited.wait()
        full()

    def noticed(self: CheckpointWriter) -> None:
        if self.busy:
            waited.set()
        join(self)

    monkeypatch.setattr(loop, "TICK_S", 0.0 if stop else 60.0)
    monkeypatch.setattr(checkpoint, "save", failing)
    monkeypatch.setattr(CheckpointWriter, "join", noticed)
    run = tiny.queue_tiny(tmp_path)
    try:
        with pytest.raises(TrainingError, match="no room"):
            train(job(run, tmp_path, stop=lambda: stop))
    finally:
        waited.set()
    run.refresh()
    assert run.state.finished is None
    assert run.state.stopped is None
    assert not run.paths.best_weights.exists()


def test_training_that_fails_leaves_the_checkpoint_that_was_being_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write goes on only once it is waited for."""
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    monkeypatch.setattr(checkpoint, "save_interval_s", lambda write_s: 0.0)
    waited, steps = threading.Event(), 0
    save, join, take = checkpoint.save, CheckpointWriter.join, Steps.take

    def slow(*arguments: object) -> None:
        waited.wait()
        save(*arguments)  # type: ignore[arg-type]

    def noticed(self: CheckpointWriter) -> None:
        if self.busy:
            waited.set()
        join(self)

    def failing(self: Steps, learning_rate: float | None) -> int:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise RuntimeError("a step fails")
        return take(self, learning_rate)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(CheckpointWriter, "join", noticed)
    monkeypatch.setattr(Steps, "take", failing)
    run = tiny.queue_tiny(tmp_path)
    try:
        with pytest.raises(RuntimeError, match="a step fails"):
            train(job(run, tmp_path))
        found = checkpoint.load(run.paths, run.info.config_hash)
    finally:
        waited.set()
    assert found is not None
    assert found[0].step == 1


def test_a_disk_that_is_full_at_the_end_fails_the_run_which_resumes_at_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.queue_tiny(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_best_weights", full)
        with pytest.raises(TrainingError, match="no room"):
            train(job(run, tmp_path))
    run.refresh()
    assert run.state.finished is None
    found = checkpoint.load(run.paths, run.info.config_hash)
    assert found is not None
    assert (found[0].epoch, found[0].step) == (3, 0)

    monkeypatch.setattr(Steps, "take", None)
    again = job(run, tmp_path)
    again.history.attempt = 1
    train(again)
    run.refresh()
    assert run.state.finished is not None
    assert run.paths.best_weights.exists()
    assert not run.paths.checkpoint.exists()


def test_a_run_that_never_had_a_finite_validation_loss_keeps_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Training._evaluate
    monkeypatch.setattr(Training, "_evaluate", lambda self, name: evaluate(self, name) * math.nan)
    run = trained(tmp_path)
    assert run.state.finished is not None
    assert run.state.finished.diverged
    assert run.state.finished.best_epoch is None
    assert not run.paths.best_weights.exists()


class InstantGpu:
    """Stands in for a GPU: a launch returns at once and adds ``launch_s`` to a queue, which markers and losses wait
    for. Time is that of ``clock``; each launch takes 20 µs of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Clock, launch_s: float) -> None:
        self.clock, self.launch_s = clock, launch_s
        self.done_s: list[float] = []
        """When each launch is, or will be, done."""
        self.deepest = 0
        """Most launches that were outstanding."""
        item = torch.Tensor.item

        def take(steps: Steps, _: float | None) -> int:
            self.launch()
            return steps.batch_size * len(steps.split._offsets)

        def loss_sum(*_: object) -> torch.Tensor:
            self.launch()
            return torch.zeros(())

        def waiting_item(tensor: torch.Tensor) -> float:
            self.drain()
            return item(tensor)

        monkeypatch.setattr(Steps, "take", take)
        monkeypatch.setattr(LanguageModel, "loss_sum", loss_sum)
        monkeypatch.setattr(torch.Tensor, "item", waiting_item)
        monkeypatch.setattr(device, "mark", lambda _: InstantMarker(self, self.done_s[-1]), raising=False)

    def launch(self) -> None:
        self.clock.now_s += 20e-6
        start = max(self.clock.now_s, self.done_s[-1] if self.done_s else 0.0)
        self.done_s.append(start + self.launch_s)
        oldest = len(self.done_s)
        while oldest and self.done_s[oldest - 1] > self.clock.now_s:
            oldest -= 1
        self.deepest = max(self.deepest, len(self.done_s) - oldest)

    def drain(self) -> None:
        self.clock.now_s = max(self.clock.now_s, self.done_s[-1] if self.done_s else 0.0)


@dataclass(frozen=True)
class InstantMarker:
    gpu: InstantGpu
    at_s: float

    def synchronize(self) -> None:
        self.gpu.clock.now_s = max(self.gpu.clock.now_s, self.at_s)

    def elapsed_time(self, later: "InstantMarker") -> float:
        assert max(self.at_s, later.at_s) <= self.gpu.clock.now_s, "CUDA refuses while one is not reached"
        return (later.at_s - self.at_s) * 1000


@dataclass
class Simulated:
    """What a run on an ``InstantGpu`` did, and when."""

    gpu: InstantGpu
    reports: list[tuple[int, int, float]] = field(default_factory=list)
    """Epoch, step and time of each progress event."""
    epochs_began: list[float] = field(default_factory=list)
    saved: list[float] = field(default_factory=list)
    """When the GPU had nothing left to do, so that a checkpoint's state could be copied."""

    def gaps(self) -> Iterator[float]:
        """Seconds between progress events of an epoch, and from its start to the first."""
        for i, began in enumerate(self.epochs_began, 1):
            times = [began, *(t for epoch, _, t in self.reports if epoch == i)]
            yield from (later - earlier for earlier, later in itertools.pairwise(times))


def simulate(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch, launch_s: float, stop_s: float = math.inf
) -> Simulated:
    """Train ``run`` from the start on an ``InstantGpu``, and ask it to stop ``stop_s`` after its first step."""
    clock = Clock()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", clock)
        simulated = Simulated(InstantGpu(patched, clock, launch_s))
        report = Training._report

        def reported(self: Training, *arguments: float) -> None:
            simulated.reports.append((self.cursor.epoch, self.cursor.step, clock.now_s))
            report(self, *arguments)

        def saved(_: Training) -> None:
            simulated.gpu.drain()  # as copying the state from a GPU would
            simulated.saved.append(clock.now_s)

        def entered(phase: str, _: int | None) -> None:
            if phase == "train":
                simulated.epochs_began.append(clock.now_s)

        patched.setattr(Training, "_report", reported)
        patched.setattr(Training, "_save", saved)
        asked = job(run, root, stop=lambda: clock.now_s >= stop_s)
        train(replace(asked, enter_phase=entered), 0.0)
    run.refresh()
    return simulated


def queue_long(root: Path) -> Run:
    """Two epochs of some 400 steps, and evaluations of some 50 batches."""
    return tiny.queue_tiny(root, epochs=2, batch_size=1, window_tokens=2)


@pytest.mark.parametrize("launch_s", [0.0001, 0.002, 0.005, 0.030])
def test_however_soon_a_launch_returns_progress_comes_twice_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch_s: float
) -> None:
    simulated = simulate(queue_long(tmp_path), tmp_path, monkeypatch, launch_s)
    assert simulated.gpu.deepest <= 16
    assert max(simulated.gaps()) <= 0.7
    last = max(step for _, step, _ in simulated.reports)
    ticks = [t for _, step, t in simulated.reports if step != last]
    assert all(later - earlier >= loop.TICK_S for earlier, later in itertools.pairwise(ticks))


@pytest.mark.parametrize("launch_s", [0.005, 0.030])
def test_however_soon_a_launch_returns_a_stop_is_noticed_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch_s: float
) -> None:
    run = queue_long(tmp_path)
    whole = simulate(run, tmp_path, monkeypatch, launch_s)
    for i in range(60):  # in training, validation and tests
        stop_s = i / 60 * (whole.gpu.done_s[-1] - 1.0)
        stopped = simulate(run, tmp_path, monkeypatch, launch_s, stop_s)
        assert run.status == "stopped"
        assert stopped.saved[-1] - stop_s <= 1.0


@pytest.mark.parametrize("launch_s", [0.005, 0.030])
def test_the_pace_of_a_gpu_whose_launches_return_at_once_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch_s: float
) -> None:
    settings = tiny.queue_tiny(tmp_path).info.settings
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(bench, "time", clock)
    InstantGpu(monkeypatch, clock, launch_s)
    pace = bench.measure_pace(settings, 300, "cpu", for_s=2.0, at_most_s=60.0)
    assert pace is not None
    tokens = settings.batch_size * settings.window_tokens
    assert pace.tokens_per_s == pytest.approx(tokens / launch_s, rel=0.05)
    assert clock.now_s <= 4.0
