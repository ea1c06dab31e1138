"""The training loop of one run: epochs, validation, checkpoints, the two tests at the end, and the best weights."""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from lmconsole.data.corpus import SPLITS, Corpus
from lmconsole.lm import checkpoint, device
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.checkpoint import CheckpointWriter, Cursor
from lmconsole.lm.embedding import Tables
from lmconsole.lm.energy import EnergyMeter
from lmconsole.lm.model import build_model, count_parameters
from lmconsole.lm.optimizers import build_optimizer, learning_rate_at
from lmconsole.lm.steps import prepare_steps
from lmconsole.plan.experiment import Precision
from lmconsole.runs.events import (
    Epoch,
    EventLog,
    Finished,
    Phase,
    Progress,
    Resumed,
    Stopped,
    perplexity,
)
from lmconsole.runs.info import RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState

TICK_S = 0.5
"""How often the host looks at the losses on the device and at whether it should stop."""
EVALUATION_TOKENS = 8192
"""Tokens that a GPU evaluates at once: twice the paper's batch, with less memory than a training step."""


class StopRequested(Exception):
    """Somebody asked the run to stop."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker hands to the loop."""

    info: RunInfo
    paths: RunPaths
    log: EventLog
    history: RunState
    """The run's log as it was before this attempt."""
    device: str
    corpus: Corpus
    tables: Tables | None
    stop_requested: Callable[[], bool]
    enter_phase: Callable[[Phase, int | None], None]
    """Told which phase and epoch follow, for the telemetry."""
    end_telemetry: Callable[[], None]
    """Called before the outcome is written, which is to be the last event."""
    read_energy_j: Callable[[], float | None] = lambda: None
    """Reads the device's energy counter in joules, whose zero is arbitrary; None where its rise is not this run's."""


def train(job: Job, began: float | None = None) -> None:
    """Train, or go on training, until the run is finished or stopped, and write that into its log.

    ``began`` is ``time.monotonic()`` when the attempt began; None: now.

    Raises:
        TrainingError: a checkpoint or the best weights cannot be written.
        OSError: the log cannot be written.
    """
    began = time.monotonic() if began is None else began
    training = Training(job)
    training.prepare_on_device()
    training.run(began)


class Training:
    """One attempt at one run: prepared on the host, then on the device, and run.

    ``cursor``, the weights and the optimizer are all that a checkpoint needs to hold.
    """

    def __init__(self, job: Job) -> None:
        """Prepare what needs no device: fresh weights, or those of the checkpoint that the attempt continues from."""
        self.job = job
        self.settings = job.info.settings
        self.precision = cast(Precision, self.settings.precision)
        device.apply_precision(self.precision)
        torch.manual_seed(job.info.seed)
        self.model = build_model(self.settings, vocabulary=job.corpus.vocabulary, tables=job.tables)
        self.shuffle = torch.Generator().manual_seed(job.info.seed)
        self.cursor = Cursor()
        self._checkpoint: dict[str, Any] | None = None
        if job.history.attempt:
            found = checkpoint.load(job.paths, job.info.config_hash, self._fits)
            if found is not None:
                self.cursor, self._checkpoint = found

    def prepare_on_device(self) -> None:
        """Move weights, optimizer and data to the device, and compile and capture the step where it is a GPU."""
        job = self.job
        self.model.to(job.device)
        self.optimizer = build_optimizer(self.settings, self.model.parameters())
        self.splits = {
            split: WindowedSplit(job.corpus.splits[split], self.settings.window_tokens, job.device) for split in SPLITS
        }
        self.steps = math.ceil(len(self.splits["train"]) / self.settings.batch_size)
        self._restore()
        self.writer = CheckpointWriter(job.paths, job.info.config_hash, self.cursor.elapsed_train_s)
        self.energy = EnergyMeter(job.read_energy_j, self.cursor)
        self.training = prepare_steps(
            self.model, self.optimizer, self.splits["train"], self.settings, self.precision, job.device
        )
        device.synchronize(job.device)

    def run(self, began: float) -> None:
        """Train to the end, or until a stop. ``began`` is ``time.monotonic()`` when the attempt began."""
        job, cursor = self.job, self.cursor
        if job.history.attempt:
            job.log.append(Resumed(epoch=cursor.epoch, step=cursor.step), sync=True)
        self._began, self._wall_before_s = began, cursor.wall_s
        self._next_tick = time.monotonic() + TICK_S
        cursor.setup_s += time.monotonic() - began
        try:
            while not self._training_is_over():
                job.enter_phase("train", cursor.epoch)
                self._train_epoch()
                job.enter_phase("valid", cursor.epoch)
                self._finish_epoch()
            self._save()  # written while the tests run; an attempt that ends in them is resumed there
            job.enter_phase("test", None)
            final, best = self._test()
            self.writer.wait()
            self._keep_best_weights()
            finished = self._finished(final, best)
        except StopRequested:
            self._save()
            self.writer.wait()
            job.end_telemetry()
            job.log.append(Stopped(epoch=cursor.epoch, step=cursor.step), sync=True)
        else:
            job.end_telemetry()
            job.log.append(finished, sync=True)
            checkpoint.remove(job.paths)
        finally:
            self.writer.join()

    def _training_is_over(self) -> bool:
        cursor, patience = self.cursor, self.settings.early_stopping_epochs
        if cursor.epoch > self.settings.epochs or (cursor.diverged and cursor.step == 0):
            return True
        return self._stops_early(patience)

    def _stops_early(self, patience: int) -> bool:
        cursor = self.cursor
        since_best = cursor.epoch - 1 - (cursor.best_epoch or 0)
        return patience > 0 and cursor.step == 0 and since_best >= patience

    def _train_epoch(self) -> None:
        """Train on the windows of the epoch that are left. Only twice a second does the host wait for all steps."""
        cursor = self.cursor
        if cursor.permutation is None:
            cursor.permutation = torch.randperm(len(self.splits["train"]), generator=self.shuffle)
        self.training.begin(cursor.permutation, cursor.step, cursor.epoch_nll)
        self.model.train()

        device.synchronize(self.job.device)
        self.energy.start_epoch()
        bound = device.LaunchBound(self.job.device)
        clock = last_look = time.monotonic()
        nll_seen, targets_seen = cursor.epoch_nll, cursor.epoch_targets
        while cursor.step < self.steps:
            targets = self.training.take(self._learning_rate())
            cursor.step += 1
            cursor.epoch_targets += targets
            bound.launched()

            due = time.monotonic() >= self._next_tick
            if due or cursor.step == self.steps:
                cursor.epoch_nll = self.training.nll.item()
                now = time.monotonic()
                self._count_training(now - clock)
                new = cursor.epoch_targets - targets_seen
                self._report((cursor.epoch_nll - nll_seen) / new, new / max(now - last_look, 1e-9))
                last_look, nll_seen, targets_seen = now, cursor.epoch_nll, cursor.epoch_targets
                if due:
                    self._heed_stop()
                    self._next_tick = now + TICK_S
                if cursor.step < self.steps:
                    self._save_if_due()
                clock = last_look = time.monotonic()  # reporting and saving are not training

    def _learning_rate(self) -> float | None:
        """Of the next step; None where it never changes."""
        settings, cursor = self.settings, self.cursor
        if not settings.warmup_steps and settings.learning_rate_decay == "none":
            return None
        step = (cursor.epoch - 1) * self.steps + cursor.step
        return learning_rate_at(settings, step, settings.epochs * self.steps)

    def _finish_epoch(self) -> None:
        """Validate, keep the weights if they are the best, write the epoch down, and only then move on."""
        cursor = self.cursor
        began = time.monotonic()
        valid_loss = self._evaluate("validation")
        valid_s = time.monotonic() - began
        self.energy.update()
        train_loss = cursor.epoch_nll / cursor.epoch_targets
        best = cursor.best_valid_loss_nats
        if math.isfinite(valid_loss) and (best is None or valid_loss < best):
            cursor.best_epoch, cursor.best_valid_loss_nats = cursor.epoch, valid_loss
            cursor.best_weights = checkpoint.host_copy(self.model.state_dict())
        cursor.diverged = not (math.isfinite(train_loss) and math.isfinite(valid_loss))
        self.job.log.append(
            Epoch(
                epoch=cursor.epoch,
                train_loss_nats=train_loss,
                train_ppl=perplexity(train_loss),
                valid_loss_nats=valid_loss,
                valid_ppl=perplexity(valid_loss),
                train_s=cursor.epoch_train_s,
                valid_s=valid_s,
                elapsed_train_s=cursor.elapsed_train_s,
                energy_j=self.energy.epoch_j(cursor.epoch_train_s + valid_s),
            ),
            sync=True,
        )
        cursor.epoch, cursor.step, cursor.permutation = cursor.epoch + 1, 0, None
        cursor.epoch_nll, cursor.epoch_targets, cursor.epoch_train_s = 0.0, 0, 0.0
        if not self._training_is_over():
            self._save_if_due()

    def _test(self) -> tuple[float, float]:
        """Mean loss on the test split, in nats per target, with the last and with the best weights."""
        cursor = self.cursor
        self._note_peaks()
        final = best = self._evaluate("test")
        if cursor.best_weights is None:
            best = math.nan
        elif cursor.best_epoch != cursor.epoch - 1:
            last = checkpoint.host_copy(self.model.state_dict())
            self.model.load_state_dict(cursor.best_weights)
            try:
                best = self._evaluate("test")
            finally:  # a stop in the middle saves the model as it was trained
                self.model.load_state_dict(last)
        return final, best

    def _keep_best_weights(self) -> None:
        cursor, info = self.cursor, self.job.info
        if cursor.best_weights is None:
            return
        metadata = {
            "run": info.run,
            "experiment": info.experiment.label,
            "epoch": str(cursor.best_epoch),
            "valid_loss_nats": repr(cursor.best_valid_loss_nats),
            "config_hash": info.config_hash,
        }
        checkpoint.save_best_weights(self.job.paths, cursor.best_weights, metadata)

    def _finished(self, final: float, best: float) -> Finished:
        cursor = self.cursor
        best_valid = cursor.best_valid_loss_nats
        return Finished(
            test_ppl_final=perplexity(final),
            test_ppl_best=perplexity(best),
            best_epoch=cursor.best_epoch,
            best_valid_ppl=None if best_valid is None else perplexity(best_valid),
            setup_s=cursor.setup_s,
            wall_s=self._wall_s(),
            diverged=cursor.diverged,
            stopped_early=cursor.epoch <= self.settings.epochs and not cursor.diverged,
            torch_peak_mib=cursor.torch_peak_mib,
            rss_peak_mib=cursor.rss_peak_mib,
            energy_j=self.energy.run_j(),
        )

    def _evaluate(self, name: str) -> float:
        """Mean negative log-likelihood of a split in nats per target."""
        split = self.splits[name]
        nll = torch.zeros((), dtype=torch.float64, device=self.job.device)
        bound = device.LaunchBound(self.job.device)
        self.model.eval()
        with torch.inference_mode():
            for windows in torch.arange(len(split), device=self.job.device).split(self._evaluation_windows()):
                nll += self.model.loss_sum(*split.batch(windows), self.precision)
                bound.launched()
                if time.monotonic() >= self._next_tick:
                    self._heed_stop()
                    self._next_tick = time.monotonic() + TICK_S
        return nll.item() / split.targets

    def _evaluation_windows(self) -> int:
        """A GPU takes more of them at once than a batch has: the LSTM's time does not grow with it."""
        batch_size = self.settings.batch_size
        if self.job.device == "cpu":
            return batch_size
        return max(batch_size, EVALUATION_TOKENS // self.settings.window_tokens)

    def _report(self, loss: float, tokens_per_s: float) -> None:
        cursor = self.cursor
        self.job.log.append(
            Progress(
                epoch=cursor.epoch,
                step=cursor.step,
                steps=self.steps,
                train_loss_nats=loss,
                tokens_per_s=tokens_per_s,
                elapsed_train_s=cursor.elapsed_train_s,
            )
        )

    def _count_training(self, seconds: float) -> None:
        self.cursor.epoch_train_s += seconds
        self.cursor.elapsed_train_s += seconds

    def _heed_stop(self) -> None:
        self.writer.check()
        if self.job.stop_requested():
            raise StopRequested

    def _wall_s(self) -> float:
        return self._wall_before_s + time.monotonic() - self._began

    def _save_if_due(self) -> None:
        if self.writer.due(self.cursor.elapsed_train_s):
            self._save()

    def _save(self) -> None:
        """Start writing a checkpoint of this moment; the log is on the disk before it."""
        self.job.log.sync()
        self._note_peaks()
        self.energy.update()
        self.cursor.wall_s, self.cursor.seq = self._wall_s(), self.job.log.seq
        parts: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shuffle": self.shuffle.get_state(),
            "random": torch.get_rng_state(),
            "tables_sha256": self.job.tables.sha256 if self.job.tables else None,
        }
        if self.job.device != "cpu":
            parts["random_cuda"] = torch.cuda.get_rng_state(self.job.device)
        self.writer.submit(self.cursor, parts)

    def _note_peaks(self) -> None:
        """Memory peaks are those of all attempts."""
        cursor, allocated = self.cursor, peak_allocated_mib(self.job.device)
        cursor.rss_peak_mib = max(cursor.rss_peak_mib, peak_rss_mib())
        if allocated is not None:
            cursor.torch_peak_mib = max(cursor.torch_peak_mib or 0.0, allocated)

    def _restore(self) -> None:
        """Continue from the checkpoint, if there is one."""
        parts, self._checkpoint = self._checkpoint, None
        if parts is None:
            return
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.shuffle.set_state(parts["shuffle"])
        torch.set_rng_state(parts["random"])
        if self.job.device != "cpu" and "random_cuda" in parts:
            torch.cuda.set_rng_state(parts["random_cuda"], self.job.device)

    def _fits(self, cursor: Cursor) -> bool:
        """Whether the log has every epoch that the checkpoint counts as done."""
        recorded = {epoch.epoch for epoch in self.job.history.epochs}
        return recorded.issuperset(range(1, cursor.epoch))


def peak_rss_mib() -> float:
    """Most memory this process ever held in MiB, as the kernel counted."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def peak_allocated_mib(where: str) -> float | None:
    """Most MiB that tensors held on a GPU at once; None on a CPU, where torch does not count."""
    return None if where == "cpu" else torch.cuda.max_memory_allocated(where) / 2**20


def parameters_of(info: RunInfo) -> tuple[int, int]:
    """Numbers in the run's model, and those of them that are trained, counted on shapes alone."""
    settings, vocabulary = info.settings, info.corpus.vocabulary
    with torch.device("meta"):
        tokens = torch.empty(vocabulary, settings.channels)
        position = torch.empty(settings.window_tokens, settings.channels)
        tables = Tables(tokens=tokens, position=position, sha256="", path=Path())
        frozen = settings.embeddings == "frozen"
        return count_parameters(build_model(settings, vocabulary=vocabulary, tables=tables if frozen else None))
