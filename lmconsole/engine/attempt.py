"""One attempt at a run, inside the worker: load and check its data, train, and explain errors."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from lmconsole.data.cache import SPLITS
from lmconsole.data.corpus import Corpus, load_corpus
from lmconsole.engine.bench_cache import measured_peak_gflops
from lmconsole.engine.provenance import code_sha256, package_versions
from lmconsole.engine.sampler import Sampler
from lmconsole.engine.shared_data import Arrays, load_shared
from lmconsole.errors import LmconsoleError, TrainingError, escape_control_characters
from lmconsole.lm import device
from lmconsole.lm.best_weights import BestWeightsTest
from lmconsole.lm.embedding import TABLES, Tables, arrays_of, read_tables, tables_from
from lmconsole.lm.loop import Training, TrainingContext
from lmconsole.lm.memory import allocator_mib, is_out_of_memory, keep_freed_memory
from lmconsole.lm.model import attention_of, parameters_of
from lmconsole.lm.restore import NOTHING_FOUND, Found, find_checkpoint
from lmconsole.plan.experiment import Precision
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import Failed, Queued, Started
from lmconsole.runs.info import RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState
from lmconsole.telemetry.gpu import Gpus
from lmconsole.telemetry.host import host_memory, host_name, rss_mib


class Attempt:
    """One attempt at a run: prepared in one go, or in two parts while another run uses the device, and then run.

    A run that has finished is only tested.
    """

    def __init__(
        self,
        info: RunInfo,
        paths: RunPaths,
        log: EventLog,
        history: RunState,
        *,
        device_name: str,
        shared: Path | None,
        stop_requested: Callable[[], bool],
        stop_signal: Callable[[], str | None] = lambda: None,
        log_damaged: bool = False,
        set_aside_before: int = 0,
        slurm_job: str | None = None,
        slurm_node: str | None = None,
    ) -> None:
        """Args:
        history: state of the log before this attempt.
        log_damaged: whether events are missing in the middle of the log.
        set_aside_before: checkpoints that were set aside according to the log.
        device_name: torch's name of the device.
        shared: folder of the data that the workers of one queue share.
        stop_requested: whether the run is to stop at the next step.
        stop_signal: name of the signal that asks for that, if it was one.
        slurm_job, slurm_node: SLURM's names of the job and its node, for a run that it starts.
        """
        self._info, self._paths, self._log, self._history = info, paths, log, history
        self._device, self._shared, self._stop_requested = device_name, shared, stop_requested
        self._stop_signal, self._slurm = stop_signal, (slurm_job, slurm_node)
        self._log_damaged, self._set_aside_before = log_damaged, set_aside_before
        self._found: Found | None = None
        self._sampler: Sampler | None = None
        self._only_tests = history.finished is not None
        self._training: Training | BestWeightsTest | None = None
        self._on_device = False
        self._read_energy_j: Callable[[], float | None] = lambda: None

    def prepare_on_host(self) -> None:
        """Read the data and build the model, without touching a GPU. Any exception may be raised: see ``explain``."""
        device.set_threads(self._info.threads or 1)
        keep_freed_memory(self._device)
        context = TrainingContext(
            info=self._info,
            paths=self._paths,
            log=self._log,
            history=self._history,
            found=self._find_checkpoint(),
            device=self._device,
            corpus=load_verified_corpus(self._info, self._shared),
            tables=load_verified_tables(self._info, self._shared),
            stop_requested=self._stop_requested,
            stop_signal=self._stop_signal,
            enter_phase=lambda phase, epoch: self._sampler.enter(phase, epoch) if self._sampler else None,
            end_telemetry=lambda: self._sampler.close() if self._sampler else None,
            read_energy_j=lambda: self._read_energy_j(),
        )
        self._training = BestWeightsTest(context) if self._only_tests else Training(context)

    def _find_checkpoint(self) -> Found:
        if self._only_tests:
            return NOTHING_FOUND
        if self._found is None:
            self._found = find_checkpoint(self._paths, self._info, self._history, log_damaged=self._log_damaged)
        return self._found

    def prepare_on_device(self) -> None:
        """Do the rest of the setup. Any exception may be raised."""
        if self._training is None:
            self.prepare_on_host()
        assert self._training is not None
        device.set_device(self._device)
        self._training.prepare_on_device()
        self._on_device = True

    @property
    def fell_back(self) -> bool:
        """Whether a fast path failed while the device was prepared."""
        return self._training is not None and self._on_device and self._training.fell_back

    def run(self, sibling_pids: Sequence[int], began: float) -> None:
        """Train on the device, from the last checkpoint if the run has been tried before, or test a finished run.

        ``sibling_pids`` are other workers of the store, which do not count as other GPU processes. ``began`` is
        ``time.monotonic()`` when the attempt began. Any exception may be raised: see ``explain``.
        """
        chosen = device.describe_device(self._device)
        device.set_device(self._device)
        found = self._find_checkpoint()
        # A worker that was dismissed before its turn has recorded nothing.
        set_aside = max(len(found.kept) - self._set_aside_before, len(found.reasons))
        started = _started(self._info, self._history.attempt + 1, chosen, sibling_pids, set_aside)
        job, node = self._slurm
        started = self._log.append(msgspec.structs.replace(started, slurm_job=job, slurm_node=node), sync=True)
        self._sampler = Sampler(self._log, chosen.uuid, lambda: allocator_mib(self._device))
        if uses_gpu_alone(started, self._history.queued):
            self._read_energy_j = self._sampler.total_energy_j
        self._sampler.start()
        try:
            if not self._on_device:
                self.prepare_on_device()
            assert self._training is not None
            self._training.run(began)
        finally:
            self._sampler.close()


def uses_gpu_alone(started: Started, queued: Queued | None) -> bool:
    """Return whether the energy of the board is this run's alone: processes and MIG slices share one counter.

    A GPU whose processes the driver hides, as in containers, counts as used alone.
    """
    uuid, jobs = started.device_uuid, queued.jobs if queued else 1
    return uuid is not None and not uuid.startswith("MIG-") and started.shared_gpu is not True and jobs == 1


def load_verified_corpus(info: RunInfo, shared: Path | None = None) -> Corpus:
    """Return the corpus the run was queued with, from the folder ``shared`` if another run of the queue has read it.

    Raises TrainingError if the files have changed since.
    """
    asked = info.corpus

    def read() -> Arrays:
        corpus = load_corpus(
            "demo" if asked.kind == "demo" else "tokens",
            None if asked.path is None else Path(asked.path),
            vocabulary=info.settings.vocabulary,
            max_tokens=asked.max_tokens,
            only=cast(Any, asked.kind) if asked.kind in ("npz", "text") else None,
            tokenizer=None if asked.tokenizer_path is None else Path(asked.tokenizer_path),
        )
        if corpus.sha256 != asked.sha256:
            raise TrainingError(
                "corpus-changed",
                f"{asked.path or corpus.name}: the corpus is not the one this run was queued with "
                f"(fingerprint {corpus.sha256[:12]}, expected {asked.sha256[:12]})",
                hint="Restore the old files, or train on the new ones as a new run: lmconsole run ID --fresh.",
            )
        return corpus.splits

    corpus = Corpus(
        name=asked.name,
        kind=cast(Any, asked.kind),
        path=None if asked.path is None else Path(asked.path),
        vocabulary=asked.vocabulary,
        tokenizer=asked.tokenizer,
        splits=dict(load_shared(shared, f"corpus-{asked.sha256}-{asked.max_tokens or 'all'}", SPLITS, read)),
        sha256=asked.sha256,
        max_tokens=asked.max_tokens,
    )
    if corpus.counts() != asked.tokens:  # a checkpoint is compared with these numbers
        raise TrainingError(
            "corpus-changed",
            f"{info.run}: run.json gives {asked.tokens} tokens, but the corpus has {corpus.counts()}",
            hint="Train it as a new run: lmconsole run ID --fresh.",
        )
    return corpus


def load_verified_tables(info: RunInfo, shared: Path | None = None) -> Tables | None:
    """Return the frozen tables the run was queued with, from the folder ``shared`` if another run has read them.

    Raises TrainingError if the file has changed since.
    """
    asked = info.embeddings
    if asked is None:
        return None
    path, sha256 = Path(asked.path), asked.sha256

    def read() -> Arrays:
        settings = info.settings
        tables = read_tables(
            path,
            vocabulary=info.corpus.vocabulary,
            channels=settings.channels,
            window_tokens=settings.window_tokens,
        )
        if tables.sha256 != sha256:
            raise TrainingError(
                "embeddings-changed",
                f"{path}: the tables are not those this run was queued with",
                hint="Restore the old file, or train on the new one as a new run: lmconsole run ID --fresh.",
            )
        return arrays_of(tables)

    return tables_from(load_shared(shared, f"tables-{sha256}", TABLES, read), sha256=sha256, path=path)


def _started(
    info: RunInfo, attempt: int, chosen: device.Device, sibling_pids: Sequence[int], set_aside: int
) -> Started:
    gpus = Gpus.open() if chosen.uuid else None
    others = gpus.other_processes(chosen.uuid, {*sibling_pids, os.getpid()}) if gpus and chosen.uuid else None
    total, trainable = parameters_of(info)
    started = Started(
        attempt=attempt,
        pid=os.getpid(),
        host=host_name(),
        device=chosen.device,
        device_name=chosen.name,
        device_uuid=chosen.uuid,
        versions=package_versions(device.versions(), gpus.driver_version if gpus else None),
        code_sha256=code_sha256(),
        threads=info.threads or 1,
        precision=info.settings.precision,
        parameters_total=total,
        parameters_trainable=trainable,
        shared_gpu=None if others is None else others > 0,
        peak_matmul_gflops=measured_peak_gflops(chosen.name, info.settings.precision),
        attention=attention_of(info.settings, cast(Precision, info.settings.precision), chosen.device),
        checkpoints_set_aside=set_aside,
    )
    if gpus:
        gpus.close()
    return started


def explain(error: BaseException, paths: RunPaths, device_name: str, *, only_tests: bool = False) -> Failed:
    """Return the ``failed`` event for ``error``, which says what happened and what to do. ``only_tests``: the run had
    finished and was to be tested."""
    again = "it is tested again" if only_tests else "it resumes from its last checkpoint"
    if isinstance(error, LmconsoleError):
        hint = error.hint or f"The trace is in {paths.worker_log}."
        return Failed(error=error.kind, message=error.message, hint=hint)
    if is_out_of_memory(error):
        try:
            summary = memory_summary(device_name)
        except Exception:  # a GPU in that state may refuse to answer
            summary = "memory in use is unknown"
        return Failed(
            error="out-of-memory",
            message=f"{device_name} ran out of memory: {summary}",
            hint="Use an idle device, then run the experiment again."
            if only_tests
            else "Use a smaller batch_size or window_tokens in experiments.toml, --precision bf16, --jobs 1 or an idle "
            "device, then run the experiment again.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Failed(
            error="disk-full",
            message=f"{paths.events}: {error.strerror}",
            hint=f"Free space on that disk, then run the experiment again: {again}.",
        )
    return Failed(
        error="crash",
        message=escape_control_characters(f"{type(error).__name__}: {str(error) or 'no message'}"),
        hint=f"The trace is in {paths.worker_log}. Run the experiment again: {again}.",
    )


def memory_summary(device_name: str) -> str:
    """Return how much memory of the device is in use, and by what, as far as that is known."""
    allocated, reserved = allocator_mib(device_name)
    parts = []
    if device_name == "cpu":
        memory = host_memory()
        parts.append(f"host {memory.used_mib:,.0f} of {memory.total_mib:,.0f} MiB in use")
    else:
        chosen = device.describe_device(device_name)
        gpus = Gpus.open()
        sample = gpus.sample(chosen.uuid, os.getpid()) if chosen.uuid else None
        if sample and sample.device_used_mib is not None and sample.device_total_mib is not None:
            parts.append(f"device {sample.device_used_mib:,.0f} of {sample.device_total_mib:,.0f} MiB in use")
        elif chosen.total_mib is not None and chosen.free_mib is not None:
            parts.append(f"device {chosen.total_mib - chosen.free_mib:,} of {chosen.total_mib:,} MiB in use")
        if sample and sample.process_used_mib is not None:
            parts.append(f"this run {sample.process_used_mib:,.0f} MiB")
        gpus.close()
    if allocated is not None and reserved is not None:
        parts.append(f"of which tensors {allocated:,.0f} MiB, reserved by PyTorch {reserved:,.0f} MiB")
    rss = rss_mib()
    if rss is not None:
        parts.append(f"this process {rss:,.0f} MiB of host memory")
    return ", ".join(parts)
