"""What the console is compared with: the widget of textual-plotext, used as its documentation shows.

It draws the train curves of every run of a store, each tenth of a second, in an area as large as the console's own
curves at 120 × 40, and nothing else but a line that counts key presses. It reads the store as the console does.

    python benchmarks/stock.py STORE
"""

import math
import sys
from pathlib import Path

from textual.app import App, ComposeResult
from textual.widgets import Static
from textual_plotext import PlotextPlot

from lmconsole.runs.store import Store

REFRESH_S = 0.1
AREA = 118, 23
"""Columns and rows of the console's curves, legend included."""


class StockApp(App[None]):
    """A plot, and a line that shows that keys arrive."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self._store = Store(store)
        self._presses = 0

    def compose(self) -> ComposeResult:
        """The plot and the line."""
        yield PlotextPlot()
        yield Static("presses 0", id="presses")

    def on_mount(self) -> None:
        """Begin to draw."""
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
        """Count it, where it can be seen."""
        self._presses += 1
        self.query_one("#presses", Static).update(f"presses {self._presses}")


if __name__ == "__main__":
    StockApp(Path(sys.argv[1])).run()
