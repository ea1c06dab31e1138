"""The rows of the experiments table that a filter shows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial

import msgspec

from lmconsole.plan.experiment import Experiment
from lmconsole.tui.filter import LIMIT_S, Facts, Filter, TimeLimitExceeded, time_limit
from lmconsole.tui.rows import Row
from lmconsole.tui.snapshot import RunView

Values = Callable[[Experiment], Mapping[str, object]]
"""Function that returns the settings with which an experiment without runs would be trained, by name."""


def matching_rows(rows: Iterable[Row], shown: Filter, planned: Values) -> tuple[list[Row], Filter]:
    """Return the rows that the filter shows, and the filter to use from now on: without patterns that take too long."""
    rows = list(rows)
    try:
        with time_limit(LIMIT_S) if shown.patterns else nullcontext():
            return [row for row in rows if matches(row, shown, planned)], shown
    except TimeLimitExceeded:
        return matching_rows(rows, shown.without_patterns(), planned)


def matches(row: Row, shown: Filter, planned: Values) -> bool:
    """Whether the filter matches the row: an experiment by one of ``Row.runs``."""
    return any(map(shown.matches, _facts(row, planned)))


def _facts(row: Row, planned: Values) -> Iterator[Facts]:
    """Yield what a filter knows of each run of a row. Each text is a line, so that ``^`` and ``$`` match."""
    label = row.experiment.label if row.experiment else ""
    texts = [label, *row.cells, row.status_style]
    if row.experiment and not row.runs:
        yield Facts(text="\n".join(texts).lower(), values=partial(planned, row.experiment))
    elif not row.runs:
        yield Facts(text="\n".join(texts).lower())
    for view in row.runs:
        notes = view.notes
        text = "\n".join([*texts, view.run, *notes.tags, notes.note]).lower()
        yield Facts(text=text, note=notes.note, tags=notes.tags, values=partial(_run_values, view))


def _run_values(view: RunView) -> dict[str, object]:
    """Return the settings and results of a run by the names that a filter uses."""
    info, epoch = view.info, view.shown_epoch
    return msgspec.structs.asdict(info.settings) | {
        "id": info.experiment.id,
        "seed": info.seed,
        "preset": info.preset,
        "status": view.status.value,
        "origin": info.origin,
        "epoch": len(view.epochs),
        "train": epoch and epoch.train_ppl,
        "valid": epoch and epoch.valid_ppl,
        "test": view.finished and view.finished.test_ppl_best,
        "time": view.elapsed_train_s,
    }
