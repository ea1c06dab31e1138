"""One attempt at a run, inside the worker: what it trains on is loaded and checked, and its errors put into words."""

import errno
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from lmconsole import __version__
from lmconsole.data.corpus import Corpus, load_corpus
from lmconsole.engine.estimate import measured_ceiling
from lmconsole.engine.sampler import Sampler
from lmconsole.errors import LmconsoleError, TrainingError, printable
from lmconsole.lm import device
from lmconsole.lm.embedding import Tables, read_tables
from lmconsole.lm.loop import Job, parameters_of, train
from lmconsole.lm.model import attention_of
from lmconsole.plan.experiment import Precision
from lmconsole.runs.events import EventLog, Failed, Started
from lmconsole.runs.info import RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState
from lmconsole.telemetry.gpu import Gpus
from lmconsole.telemetry.host import host_memory, host_name, rss_mib


def run_attempt(
    info: RunInfo,
    paths: RunPaths,
    log: EventLog,
    history: RunState,
    *,
    where: str,
    siblings: Sequence[int],
    began: float,
    stop_requested: Callable[[], bool],
) -> None:
    """Train ``info`` on the device ``where``, from its last checkpoint if it has been tried before.

    ``siblings`` are the pids of workers of the same store, so that only strangers count as other users of a GPU.
    ``began`` is ``time.monotonic()`` at the start of the process. Raises whatever goes wrong: see ``explain``.
    """
    device.set_threads(info.threads or 1)
    device.keep_freed_memory(where)
    chosen = device.describe_device(where)
    device.use(where)
    log.append(_started(info, history.attempt + 1, chosen, siblings), sync=True)
    sampler = Sampler(log, chosen.uuid, lambda: device.memory_mib(where))
    sampler.start()
    try:
        job = Job(
            info=info,
            paths=paths,
            log=log,
            history=history,
            device=where,
            corpus=load_the_corpus(info),
            tables=load_the_tables(info),
            began=began,
            stop_requested=stop_requested,
            enter_phase=sampler.enter,
            end_telemetry=sampler.close,
        )
        train(job)
    finally:
        sampler.close()


def load_the_corpus(info: RunInfo) -> Corpus:
    """The corpus the run was queued with. Raises TrainingError if the files hold something else by now."""
    asked = info.corpus
    corpus = load_corpus(
        "demo" if asked.kind == "demo" else "tokens",
        None if asked.path is None else Path(asked.path),
        vocabulary=info.settings.vocabulary,
        max_tokens=asked.max_tokens,
    )
    if corpus.sha256 != asked.sha256:
        raise TrainingError(
            "corpus-changed",
            f"{asked.path or corpus.name}: the corpus is not the one this run was queued with "
            f"(fingerprint {corpus.sha256[:12]}, expected {asked.sha256[:12]})",
            hint="Put the old files back, or run the experiment anew on the new ones: lmconsole run ID --fresh.",
        )
    return corpus


def load_the_tables(info: RunInfo) -> Tables | None:
    """The frozen tables the run was queued with. Raises TrainingError if the file holds others by now."""
    if info.embeddings is None:
        return None
    settings = info.settings
    tables = read_tables(
        Path(info.embeddings.path),
        vocabulary=info.corpus.vocabulary,
        channels=settings.channels,
        window_tokens=settings.window_tokens,
    )
    if tables.sha256 != info.embeddings.sha256:
        raise TrainingError(
            "embeddings-changed",
            f"{info.embeddings.path}: the tables are not those this run was queued with",
            hint="Put the old file back, or run the experiment anew with the new one: lmconsole run ID --fresh.",
        )
    return tables


def _started(info: RunInfo, attempt: int, chosen: device.Device, siblings: Sequence[int]) -> Started:
    gpus = Gpus.open() if chosen.uuid else None
    others = gpus.other_processes(chosen.uuid, {*siblings, os.getpid()}) if gpus and chosen.uuid else None
    total, trainable = parameters_of(info)
    started = Started(
        attempt=attempt,
        pid=os.getpid(),
        host=host_name(),
        device=chosen.device,
        device_name=chosen.name,
        device_uuid=chosen.uuid,
        versions={
            "lmconsole": __version__,
            "python": platform.python_version(),
            **device.versions(),
            "driver": gpus.driver_version if gpus else None,
        },
        threads=info.threads or 1,
        precision=info.settings.precision,
        parameters_total=total,
        parameters_trainable=trainable,
        shared_gpu=None if others is None else others > 0,
        ceiling_gflops=measured_ceiling(chosen.name, info.settings.precision),
        attention=attention_of(info.settings, cast(Precision, info.settings.precision), chosen.device),
    )
    if gpus:
        gpus.close()
    return started


def explain(error: BaseException, paths: RunPaths, where: str) -> Failed:
    """``error`` as the ``failed`` event that says what happened and what to do."""
    if isinstance(error, LmconsoleError):
        hint = error.hint or f"The trace is in {paths.worker_log}."
        return Failed(error=error.kind, message=error.message, hint=hint)
    if device.out_of_memory(error):
        try:
            picture = memory_picture(where)
        except Exception:  # a GPU in that state may refuse to answer
            picture = "how much is in use cannot be told"
        return Failed(
            error="out-of-memory",
            message=f"{where} ran out of memory: {picture}",
            hint="A smaller batch_size or window_tokens in experiments.toml needs less, and so does --precision bf16; "
            "--jobs 1 and an idle device leave more. Then run the experiment again.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Failed(
            error="disk-full",
            message=f"{paths.events}: {error.strerror}",
            hint="Make room on that disk, then run the experiment again: it resumes from its last checkpoint.",
        )
    return Failed(
        error="crash",
        message=printable(f"{type(error).__name__}: {str(error) or 'no message'}"),
        hint=f"The trace is in {paths.worker_log}. Running the experiment again resumes from its last checkpoint.",
    )


def memory_picture(where: str) -> str:
    """Who holds how much of the device's memory, as far as that is known."""
    allocated, reserved = device.memory_mib(where)
    parts = []
    if where == "cpu":
        memory = host_memory()
        parts.append(f"host {memory.used_mib:,.0f} of {memory.total_mib:,.0f} MiB in use")
    else:
        chosen = device.describe_device(where)
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
        parts.append(f"of which tensors {allocated:,.0f} MiB, PyTorch's reserve {reserved:,.0f} MiB")
    rss = rss_mib()
    if rss is not None:
        parts.append(f"this process {rss:,.0f} MiB of host memory")
    return ", ".join(parts)
