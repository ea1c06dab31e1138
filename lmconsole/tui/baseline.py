"""The baseline, and how far other runs are from it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmconsole.runs.comparable import same_text
from lmconsole.tui.snapshot import RunView


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """The run, or the seeds of an experiment, with which the others are compared."""

    key: str
    """Key of the row."""
    label: str
    views: tuple[RunView, ...]

    @property
    def valid_ppl(self) -> float | None:
        """Mean of the best validation perplexities; None if there is none yet."""
        return mean_valid_ppl(self.views)

    def ratio(self, group: Sequence[RunView]) -> float | None:
        """Return the perplexity of ``group`` divided by that of the baseline; None if they cannot be compared, as on
        different texts."""
        ppl, base = mean_valid_ppl(group), self.valid_ppl
        if ppl is None or math.isnan(ppl) or not base or not math.isfinite(base):
            return None
        return ppl / base if all(same_text(view.info, self.views[0].info) for view in group) else None


def change(ratio: float) -> str:
    """Return a ratio of perplexities as a change: ``-3.1 %``, or from twice the baseline on ``×3.2``."""
    if ratio >= 1_000:
        return "×1000+"
    return f"{100 * (ratio - 1):+.1f} %" if ratio < 2 else f"×{ratio:.1f}"


def mean_valid_ppl(views: Iterable[RunView]) -> float | None:
    """Return the mean of the best validation perplexities of several runs, of those that have one."""
    return mean_of_known(view.shown_epoch.valid_ppl for view in views if view.shown_epoch)


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if all of them are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
