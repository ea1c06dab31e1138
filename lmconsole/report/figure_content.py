"""Content of a figure as values, from which it is drawn, and its caption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LARGEST_PPL = 1e6
"""Largest perplexity on an axis; a uniform guess over any vocabulary here has a lower one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Line ``y`` over ``x`` with a band from ``low`` to ``high``."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    off_scale: Sequence[float] = ()
    """x of values that are not finite or larger than ``LARGEST_PPL``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Curves of one experiment by label."""

    title: str
    curves: Mapping[str, Curve] = field(default_factory=dict)
    note: str = ""
    """Note on what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelGrid:
    """Panels with shared axes; perplexity is on a logarithmic axis."""

    panels: Sequence[Panel]
    columns: int
    x_label: str
    y_label: str
    integer_x: bool
    """Whether x is a count and has integer ticks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BarChart:
    """Horizontal bars, colored by group and annotated with their values."""

    labels: Sequence[str]
    values: Sequence[float | None]
    groups: Sequence[str]
    x_label: str
    missing: Sequence[str]
    """Annotation of each bar in place of a value that is None."""
    spans: Sequence[tuple[float, float] | None] = ()
    """Lowest and highest of the values whose mean a bar shows."""
    value_format: str = ",.0f"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlot:
    """Step curves of shares, from 0 to 1, over a logarithmic axis that starts at 1."""

    curves: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    missing: str
    """Text in place of the curves if there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureSpec:
    """Everything that defines a figure of the export."""

    number: int
    title: str
    caption: str
    content: PanelGrid | BarChart | StepPlot
    full_width: bool = False
    """Whether the figure takes the full width of the text in LaTeX."""

    @property
    def name(self) -> str:
        """File name without suffix."""
        return f"figure-{self.number}"


def time_unit(longest_s: float) -> tuple[str, float]:
    """Return a unit for times up to ``longest_s``, and its seconds."""
    if longest_s <= 180:
        return "s", 1.0
    return ("min", 60.0) if longest_s <= 3 * 3600 else ("h", 3600.0)
