"""An app with the widget of textual-plotext, with which ``console.py`` compares the console.

    python benchmarks/textual_plotext_app.py STORE

It uses the widget as the documentation of textual-plotext shows. It reads the store as the console does, and draws the
train curve of every run ten times per second in an area as large as the console's curves at 120 × 40. A line below
counts key presses.
"""

# textual-plotext is optional.
# mypy: disable-error-code="import-not-found"

import math
import sys
from pathlib import Path

from textual.app import App, ComposeResult
from textual.widgets import Static
from textual_plotext import PlotextPlot

from lmconsole.runs.store import Store

REFRESH_S = 0.1
AREA = 118, 23
"""Columns and rows of the console's curves, including the legend."""


class PlotextApp(App[None]):
    """A plot and a counter of key presses."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self._store = Store(store)
        self._presses = 0

    def compose(self) -> ComposeResult:
        yield PlotextPlot()
        yield Static("presses 0", id="presses")

    def on_mount(self) -> None:
        plot = self.query_one(PlotextPlot)
        plot.styles.width, plot.styles.height = AREA
        self.set_interval(REFRESH_S, self._draw)
        self._draw()

    def _draw(self) -> None:
        plot = self.query_one(PlotextPlot)
        plot.plt.clear_data()
        for run in self._store.runs():
            points = [(e.elapsed_train_s, e.train_loss_nats) for e in run.state.progress if e.train_loss_nats]
            if points:
                heights = [loss / math.log(10.0) for _, loss in points]
                plot.plt.plot([at for at, _ in points], heights, label=run.info.experiment.label)
        plot.plt.title("Perplexity (log10) over training time")
        plot.refresh()

    def on_key(self) -> None:
        self._presses += 1
        self.query_one("#presses", Static).update(f"presses {self._presses}")


if __name__ == "__main__":
    PlotextApp(Path(sys.argv[1])).run()
