"""Content of a figure as values, from which it is drawn, and its caption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LARGEST_PPL = 1e6
"""Largest perplexity on an axis; a uniform guess over any vocabulary here has a lower one."""

OVERVIEW, CLAIMS = 0, -1
"""Numbers of the figures on the first page and on claims, which are shown without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedCurve:
    """Line of one run."""

    x: Sequence[float]
    y: Sequence[float]
    best: tuple[float, float] | None = None
    """Point with the lowest validation perplexity, drawn as a dot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Lines of all seeds, and their mean ``y`` over ``x`` where every seed has a value."""

    x: Sequence[float]
    y: Sequence[float]
    seeds: Sequence[SeedCurve] = ()
    off_scale: Sequence[float] = ()
    """x of values that are not finite or larger than ``LARGEST_PPL``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Curves by label, over the same x."""

    title: str
    x_label: str
    integer_x: bool
    """Whether x is a count and has integer ticks."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    y_limits: tuple[float, float] = (0.0, 1.0)
    log_y: bool = False
    """Whether the axis of y is logarithmic."""
    note: str = ""
    """Note on what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelGrid:
    """Panels row by row; those with the same ``x_label`` share the limits of x."""

    panels: Sequence[Panel]
    columns: int
    y_label: str
    unigram_ppl: float | None = None
    """Perplexity of a unigram model, drawn as a line where it is within the axis."""
    stamp: str = ""
    """Word in a corner of the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BarChart:
    """Horizontal bars, colored by group and annotated with their values, with a dot for each seed."""

    labels: Sequence[str]
    values: Sequence[float | None]
    groups: Sequence[str]
    x_label: str
    missing: Sequence[str]
    """Annotation of each bar in place of a value that is None."""
    seeds: Sequence[Sequence[float]]
    """Values of the seeds of each bar."""
    value_format: str = ",.0f"
    stamp: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlot:
    """Step curves of shares, from 0 to 1, over a logarithmic axis that starts at 1, with a dot at each step."""

    curves: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    stamp: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferenceRow:
    """Two settings with the value of each seed, and their difference with its interval, if there is one."""

    first: str
    second: str
    first_values: Sequence[float]
    second_values: Sequence[float]
    diverged: tuple[int, int]
    """Seeds of each side without a finite value."""
    difference: float | None
    low: float | None
    high: float | None
    delta: float | None
    """Largest difference that does not matter."""
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferencePlot:
    """Values of the seeds on the left, differences on the right, one comparison below the other. In one column,
    differences are below values."""

    rows: Sequence[DifferenceRow]
    columns: int = 2
    values_label: str = "Test loss (nats per token)"
    difference_label: str = "Difference (nats per token)"
    stamp: str = ""


Content = PanelGrid | BarChart | StepPlot | DifferencePlot


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureSpec:
    """Everything that defines a figure of the export."""

    number: int
    title: str
    caption: str = ""
    content: Content | None = None
    """None if the figure is not drawn."""
    omitted: str = ""
    """Reason why the figure is not drawn."""
    full_width: bool = False
    """Whether the figure takes the full width of the text in LaTeX."""

    @property
    def name(self) -> str:
        """File name without suffix."""
        return _UNNUMBERED.get(self.number, f"figure-{self.number}").lower()

    @property
    def label(self) -> str:
        """``Figure 1``, with which the caption begins."""
        return _UNNUMBERED.get(self.number, f"Figure {self.number}")


_UNNUMBERED = {OVERVIEW: "Overview", CLAIMS: "Claims"}


def time_unit(longest_s: float) -> tuple[str, float]:
    """Return a unit for times up to ``longest_s``, and its seconds."""
    if longest_s <= 180:
        return "s", 1.0
    return ("min", 60.0) if longest_s <= 3 * 3600 else ("h", 3600.0)
