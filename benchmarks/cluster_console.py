"""Measure the console while runs of its store train on SLURM: its starts, and what it costs while it is open."""

import contextlib
import os
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil
from console import TIMEOUT_S, console_command, has_table
from terminal import Terminal, environment, visible

SAMPLE_S = 1.0
SETTLE_S = 10.0
"""Time after the start of a console that counts as its start."""
WINDOW_S = 65.0
"""Time around a moment in which the share of a console is measured."""
END_OF_FRAME = b"\x1b[?2026l"
_GAUGES = re.compile(rb"GiB|\d on SLURM")
_MIB = 2**20


def cluster_environment(folder: Path, cluster: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a console in ``folder`` that finds the cluster with these variables."""
    return environment(folder) | {name: cluster[name] for name in ("PATH", "SLURM_CONF")}


# ---- Starts


def starts(
    folder: Path, empty: Path, cluster: Mapping[str, str], runs: int, status: Sequence[str], turns: int
) -> dict[str, float]:
    """Start the console, and ``lmconsole status``, on a store with ``runs`` and on an empty one, in turns. Return the
    medians in seconds, and the ratios of the one to the other."""
    seconds: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)

    for _ in range(turns):
        for prefix, place, count in (("", folder, runs), ("empty_", empty, 0)):
            where = cluster_environment(place, cluster)
            with Terminal(console_command(place), cwd=place, environment=where) as terminal:
                add(f"{prefix}table_s", terminal.until(has_table, TIMEOUT_S))
                add(f"{prefix}frame_s", terminal.until(_has_whole_frame(count), TIMEOUT_S))
            wall_s, cpu_s = timed(status, place, where)
            add(f"{prefix}status_s", wall_s)
            add(f"{prefix}status_cpu_s", cpu_s)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    names = [name for name in medians if not name.startswith("empty_")]
    return medians | {f"{name}_ratio": medians[name] / medians[f"empty_{name}"] for name in names}


def _has_whole_frame(runs: int) -> Callable[[bytes], bool]:
    """Return a function that tells whether a frame has ended that shows the number of runs, and what the gauges show:
    the machine's memory, or how many runs are on SLURM."""
    counts = re.compile(rb"(?:\d/|\d of |finished, )%d\b" % runs)

    def found(data: bytes) -> bool:
        text = visible(data[: max(data.rfind(END_OF_FRAME), 0)])
        return bool(has_table(text) and _GAUGES.search(text) and (not runs or counts.search(text)))

    return found


def timed(command: Sequence[str], folder: Path, where: Mapping[str, str]) -> tuple[float, float]:
    """Return the wall and CPU time of a command and of its children. Raises RuntimeError if it fails."""
    began_s = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(where),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise RuntimeError(f"{command} ended with exit code {process.returncode}")
    return time.monotonic() - began_s, used.ru_utime + used.ru_stime


# ---- Costs of processes that stay open


class Sample(NamedTuple):
    """CPU time, memory and traffic of a process up to a time."""

    at_s: float
    own_s: float
    """CPU time of the process."""
    children_s: float
    """CPU time of the processes that it has started, and of theirs."""
    rss: int
    received: int
    """Bytes that it has sent to its terminal; 0 without one."""


class Meter:
    """Samples processes in a thread, and reads the terminals that some of them have."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {}
        self._processes: dict[str, psutil.Process] = {}
        self._terminals: dict[str, Terminal] = {}
        self._readers: dict[str, threading.Thread] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="meter", daemon=True)

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        for name in list(self._terminals):
            self.close(name)

    def watch(self, name: str, pid: int) -> None:
        """Sample a process from now on, until it ends."""
        self.samples[name] = []
        with contextlib.suppress(psutil.Error):
            self._processes[name] = psutil.Process(pid)

    def open(self, name: str, folder: Path, cluster: Mapping[str, str]) -> None:
        """Start a console on the store in ``folder``, and sample it."""
        terminal = Terminal(console_command(folder), cwd=folder, environment=cluster_environment(folder, cluster))
        self._terminals[name] = terminal
        self._readers[name] = threading.Thread(target=self._read, args=(terminal,), name=name, daemon=True)
        self._readers[name].start()
        self.watch(name, terminal.process.pid)

    def close(self, name: str) -> None:
        """Close a console."""
        self._processes.pop(name, None)
        terminal = self._terminals.pop(name)
        terminal.process.terminate()
        self._readers.pop(name).join()
        terminal.close()

    def peak_mib(self, name: str) -> float:
        """Return the largest resident memory that a process had so far, as the kernel knows it."""
        status = Path(f"/proc/{self._processes[name].pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    def _read(self, terminal: Terminal) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended
            while True:
                terminal.read(1.0)

    def _sample(self) -> None:
        while not self._closed.wait(SAMPLE_S):
            for name, process in list(self._processes.items()):
                with contextlib.suppress(psutil.Error):
                    sample = self._sample_of(name, process)
                    if sample.rss:  # it has not ended
                        self.samples[name].append(sample)

    def _sample_of(self, name: str, process: psutil.Process) -> Sample:
        used = process.cpu_times()
        children_s = used.children_user + used.children_system
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                children_s += sum(child.cpu_times()[:4])
        terminal = self._terminals.get(name)
        received = terminal.received if terminal else 0
        return Sample(time.monotonic(), used.user + used.system, children_s, process.memory_info().rss, received)

    def costs(self, name: str, first_s: float, last_s: float) -> dict[str, float]:
        """Return what a process has used per second between two times, with names that begin with its name."""
        within = [sample for sample in self.samples.get(name, ()) if first_s <= sample.at_s <= last_s]
        if len(within) < 2:
            return {}
        first, last = within[0], within[-1]
        seconds = last.at_s - first.at_s
        found = {
            "watched_s": seconds,
            "cpu_share": (last.own_s - first.own_s) / seconds,
            "children_cpu_share": (last.children_s - first.children_s) / seconds,
            "rss_mib": last.rss / _MIB,
            "max_rss_mib": max(sample.rss for sample in within) / _MIB,
        }
        if last.received:
            found["bytes_per_s"] = (last.received - first.received) / seconds
        return {f"{name}_{key}": value for key, value in found.items()}

    def used(self, name: str) -> dict[str, float]:
        """Return the CPU time that a process and its children had used when they were sampled last."""
        samples = self.samples.get(name)
        if not samples:
            return {}
        return {f"{name}_cpu_s": samples[-1].own_s, f"{name}_children_cpu_s": samples[-1].children_s}
