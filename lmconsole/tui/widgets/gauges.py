"""Memory gauges: one line for each GPU, or one for the host's memory where there is none."""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich.style import Style

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN, rate
from lmconsole.telemetry.gpu import GpuSample
from lmconsole.telemetry.host import HostMemory
from lmconsole.tui.plot.glyphs import Glyphs, bar, rich_style, sparkline
from lmconsole.tui.widgets.grid import Grid, GridCell, text_cells

HISTORY = 60
"""Looks that the history goes back, two seconds apart."""
GIB = 1024.0


class Ours(NamedTuple):
    """What runs of this store hold of a device and get out of it; None while unknown."""

    mib: float | None = None
    tokens_per_s: float | None = None
    share: float | None = None
    """Of its measured rate of matrix products."""

    def plus(self, mib: float | None, tokens_per_s: float | None, share: float | None) -> "Ours":
        """One run more."""
        more = (mib, tokens_per_s, share)
        return Ours(*(a if b is None else (a or 0.0) + b for a, b in zip(self, more, strict=True)))

    def parts(self) -> list[str]:
        """In words."""
        words = []
        if self.mib is not None:
            words.append(f"runs {self.mib / GIB:.1f} GiB")
        if self.tokens_per_s is not None:
            words.append(f"{rate(self.tokens_per_s)} tokens/s")
        if self.share is not None:
            words.append(f"{100 * self.share:.0f} % of ceiling")
        return words


class Gauges(Grid):
    """Used memory over total, with what has gone before and what our own runs hold of it."""

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__("gauges")
        self._glyphs = glyphs
        self._history: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self.lines = 1

    def show(
        self,
        gpus: Iterable[GpuSample],
        host: HostMemory | None,
        reason: str | None,
        ours: Mapping[str | None, Ours],
        *,
        fresh: bool,
    ) -> None:
        """``ours``: what running runs hold and do, by the UUID of their GPU, None for runs on the CPU. ``fresh``
        says that these are new samples, for the history."""
        rows = []
        for gpu in gpus:
            share = _share(gpu.device_used_mib, gpu.device_total_mib)
            key = gpu.uuid or str(gpu.index)
            if fresh and share is not None:
                self._history[key].append(share)
            facts = [
                f"{_whole(gpu.utilization_percent)} %",
                f"{_whole(gpu.temperature_c)} {'°' if self._glyphs.unicode else ''}C",
                f"{_whole(gpu.power_w)} W",
            ]
            name = escape_control_characters(gpu.name or "").removeprefix("NVIDIA ")
            size = _of(gpu.device_used_mib, gpu.device_total_mib)
            mine = ours.get(bare_uuid(gpu.uuid), Ours())
            rows.append(self._line(f"GPU {gpu.index}", name, share, size, mine, facts, key))
        if not rows and host is not None:
            share = _share(host.used_mib, host.total_mib)
            if fresh and share is not None:
                self._history["host"].append(share)
            size, mine = _of(host.used_mib, host.total_mib), ours.get(None, Ours())
            rows.append(self._line("Host memory", "", share, size, mine, [f"({_short(reason)})"], "host"))
        if not rows:
            rows.append(text_cells(f"GPU memory: {_short(reason) or 'looking …'}", rich_style("", dim=True)))
        self.lines = len(rows)
        self.styles.height = self.lines
        self.put(rows)

    def _line(
        self, label: str, name: str, share: float | None, size: str, mine: Ours, facts: list[str], key: str
    ) -> list[GridCell]:
        """As many of the parts as fit, the most telling first."""
        width = self.size.width
        narrow = width < 70
        wide_bar = 8 if narrow else 20
        filled = bar(share or 0.0, wide_bar, self._glyphs)
        colour = "" if self.app.no_color else self._colour(share or 0.0)
        line = text_cells(f"{label} ", rich_style("", bold=True))
        line += text_cells(filled, rich_style(colour))
        line += text_cells(("░" if self._glyphs.unicode else ".") * (wide_bar - len(filled)), rich_style("", dim=True))
        line += text_cells(f" {size}")
        spark = sparkline(list(self._history[key])[-16:], 16, self._glyphs)
        parts: list[tuple[str, Style]] = [(text, Style.null()) for text in (*mine.parts(), *facts)]
        parts += [(spark, rich_style(colour)), (name, rich_style("", dim=True))]
        for text, style in parts:
            if text and len(line) + 2 + len(text) <= width:
                line += text_cells("  ") + text_cells(text, style)
        return line

    def _colour(self, share: float) -> str:
        variables = self.app.theme_variables
        return variables["error" if share > 0.95 else "warning" if share > 0.85 else "success"]


def _share(used: float | None, total: float | None) -> float | None:
    return None if used is None or not total else used / total


def _of(used: float | None, total: float | None) -> str:
    shown = [UNKNOWN if value is None else f"{value / GIB:.1f}" for value in (used, total)]
    return f"{shown[0]}/{shown[1]} GiB"


def _whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}"


def _short(reason: str | None) -> str:
    return escape_control_characters((reason or "").partition(":")[0])


def bare_uuid(uuid: str | None) -> str | None:
    """A GPU's UUID without the prefix that PyTorch leaves out and NVML does not."""
    return None if uuid is None else uuid.lower().removeprefix("gpu-").removeprefix("mig-")
