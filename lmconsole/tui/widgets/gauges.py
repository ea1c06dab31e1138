"""Memory gauges: one line for each GPU, or one for the host's memory where there is none."""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from rich.style import Style
from textual.reactive import reactive

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN, rate
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


class Gauges(Grid):
    """Used and total memory with its recent history, and the usage of the store's own runs."""

    snapshot = reactive(Snapshot(), init=False, repaint=False)

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__("gauges")
        self._glyphs = glyphs
        self._history: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))

    def watch_snapshot(self, old: Snapshot, new: Snapshot) -> None:
        """Add a new sample of the machine to the history, and draw."""
        if new.machine != old.machine:
            for key, used_share in _used_shares(new):
                self._history[key].append(used_share)
        self.redraw()

    def redraw(self) -> None:
        """Draw a line for each device."""
        machine, usage = self.snapshot.machine, usage_by_gpu(self.snapshot.runs.values())
        rows = [self._gpu_line(gpu, usage.get(bare_uuid(gpu.uuid), RunUsage())) for gpu in machine.gpus]
        if not rows and machine.host is not None:
            rows = [self._host_line(machine.host, machine.gpu_reason, usage.get(None, RunUsage()))]
        if not rows:
            text = f"GPU memory: {_short(machine.gpu_reason) or 'reading …'}"
            rows = [text_cells(text, rich_style("", dim=True))]
        self.styles.height = len(rows)
        self.put(rows)

    def _gpu_line(self, gpu: GpuSample, usage: RunUsage) -> list[GridCell]:
        facts = [
            f"{_whole(gpu.utilization_percent)} %",
            f"{_whole(gpu.temperature_c)} {'°' if self._glyphs.unicode else ''}C",
            f"{_whole(gpu.power_w)} W",
        ]
        name = escape_control_characters(gpu.name or "").removeprefix("NVIDIA ")
        used, total = gpu.device_used_mib, gpu.device_total_mib
        return self._line(f"GPU {gpu.index}", name, used, total, usage, facts, _gpu_key(gpu))

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
    ) -> list[GridCell]:
        """Return as many of the parts as fit, the most important first."""
        width = self.size.width
        bar_width = 8 if width < 70 else 20
        share = _share(used_mib, total_mib) or 0.0
        filled = bar(share, bar_width, self._glyphs)
        color = "" if self.app.no_color else self._color(share)
        line = text_cells(f"{label} ", rich_style("", bold=True))
        line += text_cells(filled, rich_style(color))
        line += text_cells(("░" if self._glyphs.unicode else ".") * (bar_width - len(filled)), rich_style("", dim=True))
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
