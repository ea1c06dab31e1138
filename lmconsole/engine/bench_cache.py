"""Results of `lmconsole bench`, kept in the user's cache folder for estimates and for `started` events."""

import contextlib
import hashlib
from pathlib import Path

import msgspec

from lmconsole import __version__
from lmconsole.files import atomic_write, cache_folder, read_file
from lmconsole.plan.experiment import Settings

SCHEMA = 1

BUSY_LOAD = 0.5
"""Load average from which other processes have slowed a measurement of the CPU down."""

MAX_BYTES = 1_000_000
"""Size of the largest file of results that is read."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Experiments that differ in nothing but their optimizers, and how fast they train."""

    label: str
    """Name for display, such as ``GPT-1 2L``."""
    experiments: tuple[int, ...]
    """Ids of these experiments."""
    settings: Settings
    """Settings of one of them, with ``precision`` resolved."""
    estimated: bool
    """Whether the numbers are estimated from another shape instead of measured."""
    tokens_per_s: float
    """Target tokens trained per second."""
    step_s: float
    """Time of a step with the batch size in ``settings``, in seconds."""
    gflops: float
    """GFLOP/s in matrix products."""
    share_of_peak: float = msgspec.field(name="share_of_ceiling")
    """Rate of matrix products as a share of the peak matmul throughput, from 0 to 1."""
    peak_mib: float | None
    """Peak memory in MiB: of tensors on a GPU, of the process on a CPU. None if estimated."""
    run_s: float
    """Estimated time of one run in seconds, without setup."""


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """All results of one measurement, as `bench --json` prints them."""

    schema: int
    """Version of this layout."""
    lmconsole: str
    """Version of lmconsole."""
    torch: str | None
    """Version of PyTorch."""
    date: str
    """Time of the measurement: UTC, ISO 8601."""
    device: str
    """Device as PyTorch names it: ``cpu`` or ``cuda:0``."""
    device_name: str
    """Name of the device for people."""
    precision: str
    """Precision of matrix products: ``fp32``, ``tf32`` or ``bf16``."""
    threads: int
    """CPU threads."""
    preset: str
    """Preset from which the sizes come."""
    batch_size: int
    """Windows in a measured batch: the preset's number, or fewer where that would have taken too long."""
    peak_matmul_gflops: float = msgspec.field(name="ceiling_gflops")
    """Peak matmul throughput in GFLOP/s: the best rate of matrix products of these sizes."""
    tokens: dict[str, int]
    """Tokens in the splits of the corpus that ``run_s`` refers to."""
    shapes: tuple[Shape, ...]
    """Results for each shape."""
    all_runs: int
    """Number of experiments."""
    all_runs_s: float
    """Estimated time of one run of each, one after the other, in seconds."""
    load_1min: float
    """Load average before the measurement."""
    measured_s: float
    """Time that the measurement took, in seconds."""

    @property
    def busy(self) -> bool:
        """Whether other processes slowed the measurement down."""
        return self.device == "cpu" and self.load_1min >= BUSY_LOAD


def bench_folder() -> Path | None:
    """Return the folder of this user's measurements; None for a user without a home folder."""
    return cache_folder("bench")


def save_result(result: BenchResult) -> None:
    """Save the latest result for each device, precision, number of threads, preset and version. A cache that cannot be
    written is left alone."""
    folder = bench_folder()
    if folder is None:
        return
    key = (result.device_name, result.precision, result.threads, result.preset, result.lmconsole)
    path = folder / f"{hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:40]}.json"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, mode=0o600) as file:
            file.write(msgspec.json.encode(result))


def load_results() -> list[BenchResult]:
    """Return the results that this version measured on this machine, newest first. Damaged files are skipped."""
    folder = bench_folder()
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("*.json")) if folder else []:
            with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                found.append(msgspec.json.decode(read_file(path, MAX_BYTES, follow=True), type=BenchResult))
    own = [result for result in found if result.lmconsole == __version__]
    return sorted(own, key=lambda result: result.date, reverse=True)


def measured_peak_gflops(device_name: str, precision: str) -> float | None:
    """Return the peak matmul throughput of a device, GFLOP/s, as last measured with most threads; None if never."""
    found = [each for each in load_results() if (each.device_name, each.precision) == (device_name, precision)]
    return max(found, key=lambda each: each.threads).peak_matmul_gflops if found else None
