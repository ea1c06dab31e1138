"""Memory gauges: one line for each GPU, or one for the host's memory where there is none.

While SLURM trains all runs, a line for each device that their workers report on takes the place of this machine's.
"""

import re
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.style import Style
from textual.reactive import reactive

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN, counted, rate
from lmconsole.runs.events import Telemetry
from lmconsole.runs.state import Status
from lmconsole.telemetry.gpu import GpuSample
from lmconsole.telemetry.host import HostMemory
from lmconsole.tui.plot.glyphs import Glyphs, bar, rich_style, sparkline
from lmconsole.tui.snapshot import RunView, Snapshot
from lmconsole.tui.widgets.grid import Grid, GridCell, text_cells

HISTORY = 60
"""Samples kept, two seconds apart."""
SPARK_WIDTH = 16
MIB_PER_GIB = 1024.0
MOST_DEVICES = 4
"""Devices on nodes with a line each."""
FEWER_DEVICES = 2
TALL = 30
"""Height of a screen from which on there is room for ``MOST_DEVICES``, and below for ``FEWER_DEVICES``."""

Device = tuple[str, str | None]
"""Name of a node, and UUID of its GPU; None for its CPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunUsage:
    """Memory and throughput of the store's runs on one device; None while unknown."""

    used_mib: float | None = None
    tokens_per_s: float | None = None
    share_of_peak: float | None = None
    """Share of the device's measured peak matmul throughput."""

    def __add__(self, other: "RunUsage") -> "RunUsage":
        return RunUsage(
            used_mib=_sum(self.used_mib, other.used_mib),
            tokens_per_s=_sum(self.tokens_per_s, other.tokens_per_s),
            share_of_peak=_sum(self.share_of_peak, other.share_of_peak),
        )

    def texts(self) -> list[str]:
        """Return a text for each known value."""
        texts = []
        if self.used_mib is not None:
            texts.append(f"runs {self.used_mib / MIB_PER_GIB:.1f} GiB")
        if self.tokens_per_s is not None:
            texts.append(f"{rate(self.tokens_per_s)} tokens/s")
        if self.share_of_peak is not None:
            texts.append(f"{100 * self.share_of_peak:.0f} % of peak")
        return texts


def _sum(a: float | None, b: float | None) -> float | None:
    return a if b is None else (a or 0.0) + b


def usage_by_gpu(runs: Iterable[RunView]) -> dict[str | None, RunUsage]:
    """Return the usage of the running ``runs`` by the UUID of their GPU, None for the CPU."""
    usage: dict[str | None, RunUsage] = {}
    for view in runs:
        sample, started = view.telemetry, view.latest
        if view.status is Status.RUNNING and sample is not None and started is not None:
            uuid = bare_uuid(started.device_uuid)
            used_mib = sample.rss_mib if uuid is None else sample.process_used_mib or sample.torch_reserved_mib
            trains = view.finished is None  # a finished run is only tested
            tokens_per_s = view.progress.tokens_per_s if view.progress and trains else None
            share = view.share_of_peak if trains else None
            usage[uuid] = usage.get(uuid, RunUsage()) + RunUsage(
                used_mib=used_mib, tokens_per_s=tokens_per_s, share_of_peak=share
            )
    return usage


def runs_by_device(runs: Iterable[RunView]) -> dict[Device, list[RunView]]:
    """Return the runs that train on each device of SLURM's nodes."""
    found: dict[Device, list[RunView]] = {}
    for view in runs:
        if view.place is not None and view.status is Status.RUNNING and view.node and view.latest:
            found.setdefault((view.node, bare_uuid(view.latest.device_uuid)), []).append(view)
    return found


def _latest_sample(runs: Iterable[RunView]) -> Telemetry:
    """Return the latest sample of any of these runs; one without values if there is none."""
    samples = [view.telemetry for view in runs if view.telemetry is not None]
    return max(samples, key=lambda sample: sample.t, default=Telemetry(phase="setup"))


class Gauges(Grid):
    """Used and total memory with its recent history, and the usage of the store's own runs."""

    snapshot = reactive(Snapshot(), init=False, repaint=False)

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__("gauges")
        self._glyphs = glyphs
        self._history: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._sampled: dict[str, str] = {}
        """Time of the last sample in the history of each device on a node."""
        self._selected: frozenset[str] = frozenset()

    def watch_snapshot(self, old: Snapshot, new: Snapshot) -> None:
        """Add a new sample of the machine to the history, and draw."""
        if new.machine != old.machine:
            for key, used_share in _used_shares(new):
                self._history[key].append(used_share)
        self._sample_nodes(runs_by_device(new.runs.values()))
        self.redraw()

    def _sample_nodes(self, devices: Mapping[Device, Sequence[RunView]]) -> None:
        """Add new samples of devices on nodes to the history, and forget devices on which no run trains."""
        samples = {_device_key(device): _latest_sample(runs) for device, runs in devices.items()}
        for key in self._sampled.keys() - samples.keys():
            del self._sampled[key]
            self._history.pop(key, None)
        for key, sample in samples.items():
            share = _share(sample.device_used_mib, sample.device_total_mib)
            if share is not None and self._sampled.get(key) != sample.t:
                self._sampled[key] = sample.t
                self._history[key].append(share)

    def select(self, runs: Collection[str]) -> None:
        """Prefer the devices of these runs, where there is no room for all."""
        if self._selected != (selected := frozenset(runs)):
            self._selected = selected
            self.redraw()

    def redraw(self) -> None:
        """Draw a line for each device, and one about the runs on SLURM."""
        views = self.snapshot.runs.values()
        on_slurm = [view for view in views if view.active_on_slurm]
        here = [view for view in views if view.place is None and view.status is Status.RUNNING]
        rows = self._rows_of_machine(here) if here or not on_slurm else []
        rows += self._rows_of_nodes(on_slurm)
        self.styles.height = len(rows)
        self.put(rows)

    def _rows_of_machine(self, runs: Iterable[RunView]) -> list[list[GridCell]]:
        """Return a line for each device of this machine, with the usage of its ``runs``."""
        machine, usage = self.snapshot.machine, usage_by_gpu(runs)
        rows = [self._gpu_line(gpu, usage.get(bare_uuid(gpu.uuid), RunUsage())) for gpu in machine.gpus]
        if not rows and machine.host is not None:
            rows = [self._host_line(machine.host, machine.gpu_reason, usage.get(None, RunUsage()))]
        if not rows:
            text = f"GPU memory: {_short(machine.gpu_reason) or 'reading …'}"
            rows = [text_cells(text, rich_style("", dim=True))]
        return rows

    def _rows_of_nodes(self, on_slurm: Sequence[RunView]) -> list[list[GridCell]]:
        """Return lines for devices on nodes, those of selected runs first, and a line about all runs on SLURM."""
        if not on_slurm:
            return []
        from lmconsole.engine.slurm.reasons import count_tasks, no_answer  # not needed before there are such runs

        devices = runs_by_device(on_slurm)
        chosen = {device for device, runs in devices.items() if any(view.run in self._selected for view in runs)}
        order = sorted(devices, key=lambda device: (device not in chosen, _natural(device[0]), device[1] or ""))
        most = MOST_DEVICES if self.app.size.height >= TALL else FEWER_DEVICES
        shown = order if len(order) == most + 1 else order[:most]
        rows = [self._node_line(device, devices[device]) for device in shown]
        others = [view for device in order[len(shown) :] for view in devices[device]]
        if others:
            total = sum(usage_by_gpu(others).values(), RunUsage())
            speed = f", {rate(total.tokens_per_s)} tokens/s" if total.tokens_per_s is not None else ""
            text = f"and {counted(len(order) - len(shown), 'more device')}: {counted(len(others), 'run')}{speed}"
            rows.append(text_cells(text))
        width = self.size.width
        for text in filter(None, (count_tasks(on_slurm), no_answer(self.snapshot.cluster))):
            line = escape_control_characters(text).replace("\n", " ")
            rows.append(text_cells(line if len(line) <= width else f"{line[: max(width - 1, 0)]}…"))
        return rows

    def _node_line(self, device: Device, runs: Sequence[RunView]) -> list[GridCell]:
        node, uuid = device
        sample, started = _latest_sample(runs), runs[0].latest
        usage = sum(usage_by_gpu(runs).values(), RunUsage())
        label = escape_control_characters(node)
        if uuid is None:
            facts = [counted(len(runs), "run"), "CPU"]
            return self._line(label, "", None, None, usage, facts, _device_key(device), has_gauge=False)
        name = escape_control_characters(started.device_name if started else "").removeprefix("NVIDIA ")
        used, total = sample.device_used_mib, sample.device_total_mib
        return self._line(f"{label} GPU", name, used, total, usage, self._gpu_facts(sample), _device_key(device))

    def _gpu_facts(self, sample: GpuSample | Telemetry) -> list[str]:
        return [
            f"{_whole(sample.utilization_percent)} %",
            f"{_whole(sample.temperature_c)} {'°' if self._glyphs.unicode else ''}C",
            f"{_whole(sample.power_w)} W",
        ]

    def _gpu_line(self, gpu: GpuSample, usage: RunUsage) -> list[GridCell]:
        name = escape_control_characters(gpu.name or "").removeprefix("NVIDIA ")
        used, total = gpu.device_used_mib, gpu.device_total_mib
        return self._line(f"GPU {gpu.index}", name, used, total, usage, self._gpu_facts(gpu), _gpu_key(gpu))

    def _host_line(self, host: HostMemory, gpu_reason: str | None, usage: RunUsage) -> list[GridCell]:
        facts = [f"({_short(gpu_reason)})"]
        return self._line("Host memory", "", host.used_mib, host.total_mib, usage, facts, "host")

    def _line(
        self,
        label: str,
        name: str,
        used_mib: float | None,
        total_mib: float | None,
        usage: RunUsage,
        facts: list[str],
        key: str,
        *,
        has_gauge: bool = True,
    ) -> list[GridCell]:
        """Return as many of the parts as fit, the most important first."""
        width = self.size.width
        share = _share(used_mib, total_mib) or 0.0
        color = "" if self.app.no_color else self._color(share)
        line = text_cells(f"{label} ", rich_style("", bold=True))
        if has_gauge:
            bar_width = 8 if width < 70 else 20
            filled, empty = bar(share, bar_width, self._glyphs), "░" if self._glyphs.unicode else "."
            line += text_cells(filled, rich_style(color))
            line += text_cells(empty * (bar_width - len(filled)), rich_style("", dim=True))
            line += text_cells(f" {_used_of_total(used_mib, total_mib)}")
        spark = sparkline(list(self._history[key])[-SPARK_WIDTH:], SPARK_WIDTH, self._glyphs)
        parts: list[tuple[str, Style]] = [(text, Style.null()) for text in (*usage.texts(), *facts)]
        parts += [(spark, rich_style(color)), (name, rich_style("", dim=True))]
        for text, style in parts:
            if text and len(line) + 2 + len(text) <= width:
                line += text_cells("  ") + text_cells(text, style)
        return line

    def _color(self, share: float) -> str:
        variables = self.app.theme_variables
        return variables["error" if share > 0.95 else "warning" if share > 0.85 else "success"]


def _used_shares(snapshot: Snapshot) -> list[tuple[str, float]]:
    """Return the known shares of used memory, by the key of their history."""
    machine = snapshot.machine
    shares = [(_gpu_key(gpu), _share(gpu.device_used_mib, gpu.device_total_mib)) for gpu in machine.gpus]
    if not machine.gpus and machine.host is not None:
        shares = [("host", _share(machine.host.used_mib, machine.host.total_mib))]
    return [(key, share) for key, share in shares if share is not None]


def _device_key(device: Device) -> str:
    """Return the key of the history of a device on a node, which is none of a device here."""
    return f"{device[0]}/{device[1] or ''}"


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which n2 comes before n10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,9})", name)]


def _gpu_key(gpu: GpuSample) -> str:
    return gpu.uuid or str(gpu.index)


def _share(used: float | None, total: float | None) -> float | None:
    return None if used is None or not total else used / total


def _used_of_total(used_mib: float | None, total_mib: float | None) -> str:
    used, total = [UNKNOWN if value is None else f"{value / MIB_PER_GIB:.1f}" for value in (used_mib, total_mib)]
    return f"{used}/{total} GiB"


def _whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}"


def _short(reason: str | None) -> str:
    return escape_control_characters((reason or "").partition(":")[0])


def bare_uuid(uuid: str | None) -> str | None:
    """Return a GPU's UUID without the prefix, which NVML writes and PyTorch does not."""
    return None if uuid is None else uuid.lower().removeprefix("gpu-").removeprefix("mig-")
