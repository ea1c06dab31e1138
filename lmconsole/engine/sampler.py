"""A thread that samples the machine about once a second during training and writes it into the log."""

import os
import threading
import time
from collections.abc import Callable

from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import Phase, Telemetry
from lmconsole.telemetry.gpu import Gpus
from lmconsole.telemetry.host import rss_mib

EAGER_S = 20.0
"""Seconds at the start of an attempt with four times as many samples, for the sake of short runs."""
INTERVAL_S = 1.0

GPU_FIELDS = (
    "device_used_mib",
    "device_total_mib",
    "process_used_mib",
    "utilization_percent",
    "power_w",
    "temperature_c",
)

TorchMemory = Callable[[], tuple[float, float] | tuple[None, None]]


class Sampler:
    """Writes samples from ``start`` to ``close``. On a CPU only the host's memory is known."""

    def __init__(self, log: EventLog, gpu_uuid: str | None, torch_memory_mib: TorchMemory) -> None:
        self._log = log
        self._uuid = gpu_uuid
        self._torch_memory_mib = torch_memory_mib
        self._phase: tuple[Phase, int | None] = ("setup", None)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._gpus = Gpus.open() if gpu_uuid else None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def enter(self, phase: Phase, epoch: int | None) -> None:
        """Label the samples from now on with a phase and an epoch."""
        self._phase = phase, epoch

    def close(self) -> None:
        """Stop the thread; nothing is written after this returns. May be called more than once."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._gpus is not None:
            self._gpus.close()

    def _run(self) -> None:
        began = due = time.monotonic()
        while True:
            now = time.monotonic()
            interval = INTERVAL_S / 4 if now - began < EAGER_S else INTERVAL_S
            due = max(due + interval, now)  # a fixed schedule does not drift; missed samples are left out
            if self._closed.wait(due - now):
                return
            try:
                self._log.append(self.sample())
            except OSError:  # the disk is full: the training thread meets the same and reports it
                return

    def total_energy_j(self) -> float | None:
        """Return the energy counter of the GPU's board in joules; None without a GPU or where the driver has none."""
        return self._gpus.total_energy_j(self._uuid) if self._gpus and self._uuid else None

    def sample(self) -> Telemetry:
        """Return a sample of the machine."""
        phase, epoch = self._phase
        gpu = self._gpus.sample(self._uuid, os.getpid()) if self._gpus and self._uuid else None
        allocated, reserved = self._torch_memory_mib()
        known = {} if gpu is None else {field: getattr(gpu, field) for field in GPU_FIELDS}
        return Telemetry(
            phase=phase,
            epoch=epoch,
            torch_allocated_mib=allocated,
            torch_reserved_mib=reserved,
            rss_mib=rss_mib(),
            **known,
        )
