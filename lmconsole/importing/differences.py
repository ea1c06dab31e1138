"""Differences between a source and a run that was imported from it earlier."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from lmconsole.importing.imported_run import ImportedRun, telemetry_event
from lmconsole.importing.memory import Reading
from lmconsole.importing.settings import ASSUMED
from lmconsole.runs.events import Telemetry
from lmconsole.runs.info import RunInfo
from lmconsole.runs.store import Run


@dataclass(kw_only=True, slots=True)
class Difference:
    """Difference between a source and a run that was imported."""

    more: list[str] = field(default_factory=list)
    less: bool = False
    contradicts: bool = False

    @property
    def extends(self) -> bool:
        """Whether the source has all that the run has, and more."""
        return bool(self.more) and not self.less and not self.contradicts

    @property
    def nothing_new(self) -> bool:
        """Whether the run has all that the source has."""
        return not self.more and not self.contradicts


_METRICS = {
    "train_ppl": "train perplexities",
    "train_loss_nats": "train losses",
    "valid_ppl": "validation perplexities",
    "train_s": "training times",
    "valid_s": "validation times",
}
"""Fields of an epoch that are compared, and how a change of each is described."""


def compare_with(made: ImportedRun, run: Run) -> Difference:
    """Compare what a source has now with an imported run, which may come from it."""
    found = Difference()
    if (made.info.experiment.model, made.info.experiment.layers) != (
        run.info.experiment.model,
        run.info.experiment.layers,
    ):
        found.contradicts = True
        return found
    earlier = {epoch.epoch: epoch for epoch in run.state.epochs}  # damaged lines can be missing in between
    added = sum(epoch.epoch not in earlier for epoch in made.epochs)
    if added:
        found.more.append(f"{added} more epoch{'' if added == 1 else 's'}")
    found.less = not earlier.keys() <= {epoch.epoch for epoch in made.epochs}
    for name, description in _METRICS.items():
        for epoch in made.epochs:
            if epoch.epoch in earlier:
                _compare_numbers(found, getattr(epoch, name), getattr(earlier[epoch.epoch], name), description)
    finished = run.state.finished
    _compare_numbers(
        found,
        made.test_ppl if made.finished else None,
        finished.test_ppl_final if finished else None,
        "test perplexity",
    )
    _compare_memory(found, made.memory, run.state.telemetry)
    if not found.less and _known_settings(made.info) != _known_settings(run.info):
        found.more.append("settings")
    return found


def _compare_numbers(found: Difference, now: float | None, before: float | None, description: str) -> None:
    if now == before or (now is not None and before is not None and math.isnan(now) and math.isnan(before)):
        return
    if now is None:
        found.less = True
    elif before is not None:
        found.contradicts = True
    elif description not in found.more:
        found.more.append(description)


def _compare_memory(found: Difference, now: Sequence[Reading], before: Iterable[Telemetry]) -> None:
    """Compare readings; those of another moment are no contradiction, since they do not identify a run."""
    earlier = [msgspec.structs.replace(each, seq=0, t="") for each in before]
    later = [telemetry_event(reading) for reading in now]
    if later == earlier:
        return
    if sum(each.samples or 1 for each in later) < sum(each.samples or 1 for each in earlier):
        found.less = True
    else:
        found.more.append("memory readings")


def _known_settings(info: RunInfo) -> dict[str, object]:
    """Return the settings that are not assumed, whether stated or inferred."""
    settings = {key: getattr(info.settings, key) for key in info.settings.__struct_fields__} | {"seed": info.seed}
    known = {key: value for key, value in settings.items() if info.origins.get(key, ASSUMED) != ASSUMED}
    return known | {"denominator": info.denominator}
