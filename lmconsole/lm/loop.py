"""The training loop of a run: epochs, each followed by a validation, then tests of the final and the best weights."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lmconsole.data.cache import SPLITS
from lmconsole.data.corpus import Corpus
from lmconsole.lm import checkpoint
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.checkpoint import CheckpointWriter, TrainState
from lmconsole.lm.device import apply_precision, synchronize
from lmconsole.lm.embedding import Tables
from lmconsole.lm.energy import EnergyMeter
from lmconsole.lm.evaluation import evaluate, new_window_nats
from lmconsole.lm.fast_paths import prepare_steps
from lmconsole.lm.launch_limit import LaunchLimiter
from lmconsole.lm.memory import peak_allocated_mib, peak_rss_mib
from lmconsole.lm.model import build_model
from lmconsole.lm.optimizers import build_optimizer, has_schedule, learning_rate_at
from lmconsole.lm.restore import NOTHING_FOUND, Found
from lmconsole.plan.experiment import Precision
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import Epoch, Evaluation, Finished, Phase, Progress, Resumed, Stopped, perplexity
from lmconsole.runs.info import RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState

TICK_S = 0.5
"""Seconds between progress events, each of which waits for the device, and between checks for a stop request."""


class StopRequested(Exception):
    """The run was asked to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingContext:
    """Data, paths and callbacks of one attempt, as the worker provides them."""

    info: RunInfo
    paths: RunPaths
    log: EventLog
    history: RunState
    """State of the run's log before this attempt."""
    device: str
    corpus: Corpus
    tables: Tables | None
    stop_requested: Callable[[], bool]
    enter_phase: Callable[[Phase, int | None], None]
    """Called at the start of each phase, with its epoch or None in the tests; labels the telemetry samples."""
    end_telemetry: Callable[[], None]
    """Called before the outcome is written, so that the outcome is the last event."""
    stop_signal: Callable[[], str | None] = lambda: None
    """Returns the name of the signal that asks the run to stop; None if it was none."""
    found: Found = NOTHING_FOUND
    """The checkpoint to resume from, if there is one."""
    read_energy_j: Callable[[], float | None] = lambda: None
    """Returns the device's energy counter: cumulative joules with an arbitrary offset; None if it counts other work
    too."""


def train(context: TrainingContext, started_s: float | None = None) -> None:
    """Train or resume a run until it is finished or stopped, and log the outcome.

    ``started_s`` is ``time.monotonic()`` at the start of the attempt. Defaults to now.

    Raises:
        TrainingError: A checkpoint or the best weights cannot be written.
        OSError: The log cannot be written.
    """
    started_s = time.monotonic() if started_s is None else started_s
    training = Training(context)
    training.prepare_on_device()
    training.run(started_s)


class Training:
    """One attempt at a run. A worker may create it before its GPU is free, and then calls ``prepare_on_device`` and
    ``run``.

    A checkpoint consists of ``state``, the weights, the optimizer and the random number generators.
    """

    def __init__(self, context: TrainingContext) -> None:
        """Prepare what needs no device: a model with fresh weights.

        Raises:
            TrainingError: all checkpoints of the run have been set aside.
        """
        self.context = context
        self.settings = context.info.settings
        self.precision = cast(Precision, self.settings.precision)
        apply_precision(self.precision)
        torch.manual_seed(context.info.seed)
        self.model = build_model(self.settings, vocabulary=context.corpus.vocabulary, tables=context.tables)
        self.shuffle_generator = torch.Generator().manual_seed(context.info.seed)
        self._restored = context.found.require(context.info, context.paths.folder)
        self.state = self._restored.state if self._restored else TrainState()

    def prepare_on_device(self) -> None:
        """Move weights, optimizer and data to the device. On a GPU, compile kernels and capture the training step."""
        context, device = self.context, self.context.device
        self.model.to(device)
        self.optimizer = build_optimizer(self.settings, self.model.parameters())
        self.splits = {
            split: WindowedSplit(context.corpus.splits[split], self.settings.window_tokens, device) for split in SPLITS
        }
        self.steps_per_epoch = math.ceil(len(self.splits["train"]) / self.settings.batch_size)
        self._restore()
        self.writer = CheckpointWriter(context.paths, context.info.config_hash, self.state.elapsed_train_s)
        self.energy = EnergyMeter(context.read_energy_j, self.state)
        self.steps = prepare_steps(
            self.model, self.optimizer, self.splits["train"], self.settings, self.precision, device
        )
        synchronize(device)

    def run(self, started_s: float) -> None:
        """Train to the end or until a stop. ``started_s`` is ``time.monotonic()`` at the start of the attempt."""
        context, state = self.context, self.state
        history = context.history
        if history.attempt > 0 or history.epochs or history.progress or (state.epoch, state.step) != (1, 0):
            context.log.append(Resumed(epoch=state.epoch, step=state.step), sync=True)
        self._started_s, self._earlier_wall_s = started_s, state.wall_s
        self._next_tick_s = time.monotonic() + TICK_S
        state.setup_s += time.monotonic() - started_s
        try:
            while not self._training_done():
                context.enter_phase("train", state.epoch)
                self._train_epoch()
                context.enter_phase("valid", state.epoch)
                self._finish_epoch()
            self._record_peak_memory()
            final = best = None
            if history.wants_test:
                self._save()  # written during the tests; an attempt that is interrupted there resumes with the tests
                context.enter_phase("test", None)
                final, best = self._test()
            self.writer.wait()
            self._save_best_weights()
            finished = self._finished_event(final, best)
        except StopRequested:
            self._save()
            self.writer.wait()
            context.end_telemetry()
            stopped = Stopped(epoch=state.epoch, step=state.step, signal=context.stop_signal())
            context.log.append(stopped, sync=True)
        else:
            context.end_telemetry()
            context.log.append(finished, sync=True)
            checkpoint.remove(context.paths)
        finally:
            self.writer.join()

    @property
    def fell_back(self) -> bool:
        """Whether a fast path failed while the device was prepared."""
        return self.steps.fell_back

    def _training_done(self) -> bool:
        state, patience = self.state, self.settings.early_stopping_epochs
        if state.epoch > self.settings.epochs:
            return True
        epochs_since_best = state.epoch - 1 - (state.best_epoch or 0)
        return state.diverged or (patience > 0 and epochs_since_best >= patience)

    def _train_epoch(self) -> None:
        """Train on the remaining windows of the epoch.

        At each tick, before an evaluation and at the end, reading the loss waits for all launched work. In between,
        ``limiter`` waits only to keep the number of outstanding launches small.

        An evaluation comes before the checkpoint at the same step, so a run that resumes there has it in its log.
        """
        state = self.state
        if state.permutation is None:
            state.permutation = torch.randperm(len(self.splits["train"]), generator=self.shuffle_generator)
        self.steps.start_epoch(state.permutation, state.step, state.epoch_nll)
        self.model.train()

        synchronize(self.context.device)
        self.energy.start_epoch()
        if self._evaluation_due() and not self._evaluated_before():  # the last attempt was stopped in it
            self._evaluate_within_epoch()
        limiter = LaunchLimiter(self.context.device)
        interval_start_s = time.monotonic()
        reported_nll, reported_targets = state.epoch_nll, state.epoch_targets
        while state.step < self.steps_per_epoch:
            target_count = self.steps.step(self._learning_rate())
            state.step += 1
            state.epoch_targets += target_count
            limiter.after_launch()

            tick = time.monotonic() >= self._next_tick_s
            evaluation = self._evaluation_due()
            if tick or evaluation or state.step == self.steps_per_epoch:
                state.epoch_nll = self.steps.nll.item()  # waits for the device
                now_s = time.monotonic()
                interval_s = now_s - interval_start_s
                self._add_train_time(interval_s)
                new_targets = state.epoch_targets - reported_targets
                self._report((state.epoch_nll - reported_nll) / new_targets, new_targets / max(interval_s, 1e-9))
                reported_nll, reported_targets = state.epoch_nll, state.epoch_targets
                if tick:
                    self._raise_if_interrupted()
                    self._next_tick_s = now_s + TICK_S
                if evaluation:
                    self._evaluate_within_epoch()
                if state.step < self.steps_per_epoch:
                    self._save_if_due()
                interval_start_s = time.monotonic()  # reporting and saving are not training

    def _learning_rate(self) -> float | None:
        """Return the learning rate of the next step; None if it never changes."""
        settings = self.settings
        if not has_schedule(settings):
            return None
        return learning_rate_at(settings, self._steps_done(), settings.epochs * self.steps_per_epoch)

    def _steps_done(self) -> int:
        """Return the steps of the run that are done."""
        return (self.state.epoch - 1) * self.steps_per_epoch + self.state.step

    def _evaluation_due(self) -> bool:
        """Return whether an evaluation within the epoch belongs to the present step. The end of an epoch has its own,
        and so does the start of the next."""
        every = self.settings.evaluate_every_steps
        return every > 0 and 0 < self.state.step < self.steps_per_epoch and self._steps_done() % every == 0

    def _evaluated_before(self) -> bool:
        """Return whether the log of earlier attempts has the evaluation of the present step."""
        here = self.state.epoch, self.state.step
        return any((event.epoch, event.step) == here for event in self.context.history.evaluations)

    def _evaluate_within_epoch(self) -> None:
        """Evaluate the validation split outside the training clock, and log the result. Nothing else depends on it."""
        state = self.state
        self.context.enter_phase("valid", state.epoch)
        start_s = time.monotonic()
        loss = self._evaluate("validation")
        self.context.log.append(
            Evaluation(
                epoch=state.epoch,
                step=state.step,
                steps=self.steps_per_epoch,
                valid_loss_nats=loss,
                valid_ppl=perplexity(loss),
                valid_s=time.monotonic() - start_s,
                elapsed_train_s=state.elapsed_train_s,
            )
        )
        self.model.train()
        self.context.enter_phase("train", state.epoch)

    def _finish_epoch(self) -> None:
        """Validate, keep the weights if they are the best, log the epoch, and only then advance to the next."""
        state = self.state
        start_s = time.monotonic()
        valid_loss = self._evaluate("validation")
        valid_s = time.monotonic() - start_s
        self.energy.update()
        train_loss = state.epoch_nll / state.epoch_targets
        best = state.best_valid_loss_nats
        if math.isfinite(valid_loss) and (best is None or valid_loss < best):
            state.best_epoch, state.best_valid_loss_nats = state.epoch, valid_loss
            state.best_weights = checkpoint.host_copy(self.model.state_dict())
        state.diverged = not (math.isfinite(train_loss) and math.isfinite(valid_loss))
        self.context.log.append(
            Epoch(
                epoch=state.epoch,
                train_loss_nats=train_loss,
                train_ppl=perplexity(train_loss),
                valid_loss_nats=valid_loss,
                valid_ppl=perplexity(valid_loss),
                train_s=state.epoch_train_s,
                valid_s=valid_s,
                elapsed_train_s=state.elapsed_train_s,
                energy_j=self.energy.epoch_j(duration_s=state.epoch_train_s + valid_s),
            ),
            sync=True,
        )
        state.epoch, state.step, state.permutation = state.epoch + 1, 0, None
        state.epoch_nll, state.epoch_targets, state.epoch_train_s = 0.0, 0, 0.0
        if not self._training_done():
            self._save_if_due()

    def _test(self) -> tuple[float, float]:
        """Return the mean test loss in nats per target with the final and with the best weights, and keep that of each
        window with the best weights."""
        state, context = self.state, self.context
        window_nats = new_window_nats(self.splits["test"], context.device)
        final = best = self._evaluate("test", window_nats)
        if state.best_weights is None:
            return final, math.nan
        if state.best_epoch != state.epoch - 1:
            final_weights = checkpoint.host_copy(self.model.state_dict())
            self.model.load_state_dict(state.best_weights)
            try:
                best = self._evaluate("test", window_nats)
            finally:  # a stop in between saves the final weights
                self.model.load_state_dict(final_weights)
        checkpoint.save_test_losses(context.paths, window_nats, self.splits["test"].lengths)
        return final, best

    def _save_best_weights(self) -> None:
        state, info = self.state, self.context.info
        if state.best_weights is None:
            return
        metadata = {
            "run": info.run,
            "experiment": info.experiment.label,
            "epoch": str(state.best_epoch),
            "valid_loss_nats": repr(state.best_valid_loss_nats),
            "config_hash": info.config_hash,
        }
        checkpoint.save_best_weights(self.context.paths, state.best_weights, metadata)

    def _finished_event(self, final: float | None, best: float | None) -> Finished:
        state = self.state
        best_valid = state.best_valid_loss_nats
        return Finished(
            test_ppl_final=None if final is None else perplexity(final),
            test_ppl_best=None if best is None else perplexity(best),
            best_epoch=state.best_epoch,
            best_valid_ppl=None if best_valid is None else perplexity(best_valid),
            setup_s=state.setup_s,
            wall_s=self._wall_s(),
            diverged=state.diverged,
            stopped_early=state.epoch <= self.settings.epochs and not state.diverged,
            torch_peak_mib=state.torch_peak_mib,
            rss_peak_mib=state.rss_peak_mib,
            energy_j=self.energy.run_j(),
        )

    def _evaluate(self, name: str, window_nats: Tensor | None = None) -> float:
        """Return the mean loss of a split in nats per target; ``window_nats`` is filled as by ``evaluate``."""
        return evaluate(self.model, self.splits[name], self.settings, self.context.device, self._tick, window_nats)

    def _tick(self) -> None:
        if time.monotonic() >= self._next_tick_s:
            self._raise_if_interrupted()
            self._next_tick_s = time.monotonic() + TICK_S

    def _report(self, loss: float, tokens_per_s: float) -> None:
        state = self.state
        self.context.log.append(
            Progress(
                epoch=state.epoch,
                step=state.step,
                steps=self.steps_per_epoch,
                train_loss_nats=loss,
                tokens_per_s=tokens_per_s,
                elapsed_train_s=state.elapsed_train_s,
            )
        )

    def _add_train_time(self, seconds: float) -> None:
        self.state.epoch_train_s += seconds
        self.state.elapsed_train_s += seconds

    def _raise_if_interrupted(self) -> None:
        """Raise the error of a failed checkpoint write, or StopRequested."""
        self.writer.check()
        if self.context.stop_requested():
            raise StopRequested

    def _wall_s(self) -> float:
        return self._earlier_wall_s + time.monotonic() - self._started_s

    def _save_if_due(self) -> None:
        if self.writer.due(self.state.elapsed_train_s):
            self._save()

    def _save(self) -> None:
        """Flush the event log, then write a checkpoint of the current state in the background."""
        self.context.log.sync()
        self._record_peak_memory()
        synchronize(self.context.device)  # a stop during validation leaves work outstanding
        self.energy.update()
        self.state.wall_s, self.state.seq = self._wall_s(), self.context.log.seq
        parts: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shuffle": self.shuffle_generator.get_state(),
            "random": torch.get_rng_state(),
            # Not read back: for people who examine a checkpoint.
            "tables_sha256": self.context.tables.sha256 if self.context.tables else None,
        }
        if self.context.device != "cpu":
            parts["random_cuda"] = torch.cuda.get_rng_state(self.context.device)
        self.writer.submit(self.state, parts)

    def _record_peak_memory(self) -> None:
        """Update the memory peaks, which are those of all attempts."""
        state, allocated = self.state, peak_allocated_mib(self.context.device)
        state.rss_peak_mib = max(state.rss_peak_mib, peak_rss_mib())
        if allocated is not None:
            state.torch_peak_mib = max(state.torch_peak_mib or 0.0, allocated)

    def _restore(self) -> None:
        """Assign the checkpoint, if there is one. The optimizer's options are those of the run's settings."""
        restored, self._restored = self._restored, None
        if restored is None:
            return
        self.model.load_state_dict(restored.model)
        options = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": restored.optimizer, "param_groups": options})
        self.shuffle_generator.set_state(restored.shuffle)
        torch.set_rng_state(restored.random)
        if self.context.device != "cpu" and restored.random_cuda is not None:
            torch.cuda.set_rng_state(restored.random_cuda, self.context.device)
