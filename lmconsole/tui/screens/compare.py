"""Runs side by side: best perplexities and what lies between them."""

import math

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import perplexity, seconds
from lmconsole.tui.feed import RunView


def comparison(views: list[RunView]) -> tuple[list[tuple[str, ...]], str]:
    """Lines of the comparison, the best first, and what the differences mean."""
    ranked = sorted(views, key=_valid_ppl)
    lines: list[tuple[str, ...]] = [("Run", "Valid", "Epoch", "To best", "Train", "Test", "Time")]
    first = ranked[0].best.valid_ppl if ranked[0].best else None
    several = len({(view.info.experiment.id) for view in views}) < len(views)
    for view in ranked:
        best = view.best
        assert best is not None
        valid = best.valid_ppl
        difference = ""
        if view is not ranked[0] and valid is not None and first:
            difference = _difference(valid, first)
        test = view.finished.test_ppl_best if view.finished else None
        label = f"{view.info.experiment.id:>2} {view.info.experiment.label}" + (
            f" s{view.info.seed}" if several else ""
        )
        cells: tuple[str, ...] = (perplexity(valid), str(best.epoch), difference)
        cells += (perplexity(best.train_ppl), perplexity(test))
        lines.append((escape_control_characters(label), *cells, seconds(view.elapsed_train_s)))
    corpora = {(view.info.corpus.sha256, view.info.corpus.max_tokens) for view in views}
    note = "Perplexities at the epoch that validated best. Time: training alone."
    if len(corpora) > 1:
        note += "\nThese runs have different corpora: their perplexities cannot be compared."
    elif len({view.info.preset for view in views}) > 1:
        note += "\nThese runs have different presets."
    if len({view.started.device_name for view in views if view.started}) > 1:
        note += "\nThey ran on different devices: times cannot be compared."
    return lines, note


def _valid_ppl(view: RunView) -> float:
    """Return the lowest validation perplexity, for ranking; unknown comes last."""
    ppl = view.best.valid_ppl if view.best else None
    return math.inf if ppl is None else ppl


def _difference(value: float, best: float) -> str:
    """``+9.3 (+10 %)``, or from twice the best on ``+200.8 (×3.2)``."""
    share = value / best
    return f"+{perplexity(value - best)} ({f'+{100 * (share - 1):.0f} %' if share < 2 else f'×{share:.1f}'})"
