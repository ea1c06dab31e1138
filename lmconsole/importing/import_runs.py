"""Import of runs that were not trained by lmconsole.

Everything that the source states is kept; everything else stays unknown or is marked as inferred or assumed. A source
that has more than when it was imported replaces its run, which moves to the trash of the store.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmconsole.errors import StoreError, escape_control_characters
from lmconsole.importing.candidates import candidates
from lmconsole.importing.differences import compare_with
from lmconsole.importing.imported_run import ORIGIN, Experiments, ImportedRun, make_run
from lmconsole.importing.settings import Evidence
from lmconsole.importing.sources import Candidate, ImportSourceError
from lmconsole.plan.presets import Plan
from lmconsole.runs.create import create_run, next_places, queue_lock
from lmconsole.runs.notes import NO_NOTES, change_notes
from lmconsole.runs.store import Run, Store
from lmconsole.runs.trash import discard

_CSV_LINES = re.compile(r" lines \d+-\d+$")
"""End of the place of a run from a CSV file, as version 0.1.0 wrote it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """A run that replaced an earlier import of its source."""

    run: str
    replaced: str
    """Run that is in the trash now."""
    changes: str
    """Parts of the source that are new: ``2 more epochs, test perplexity``."""


@dataclass
class ImportReport:
    """Result of an import. Runs are by the location of their source."""

    imported: dict[str, str] = field(default_factory=dict)
    updated: dict[str, Update] = field(default_factory=dict)
    imported_before: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Notes on what was inferred or left out, and the locations that each concerns."""
    problems: list[str] = field(default_factory=list)
    """Sources that could not be imported, and the reasons."""


def import_runs(store: Store, path: Path, plan: Plan) -> ImportReport:
    """Import every run under ``path`` into the store. Runs with problems are reported and skipped.

    Raises:
        StoreError: ``path`` contains no runs, or the store cannot be written.
    """
    found = list(candidates(path, store.root))
    evidence = Evidence(_recorded(found))
    with queue_lock(store):
        return _Importer(store, plan, evidence).import_all(found)


def _recorded(found: Sequence[Candidate]) -> Iterator[Mapping[str, Any]]:
    for each in found:
        with contextlib.suppress(ImportSourceError):
            yield each.read_stated()


class _Importer:
    """Imports sources into a store whose queue lock is held."""

    def __init__(self, store: Store, plan: Plan, evidence: Evidence) -> None:
        self._store = store
        self._plan = plan
        self._evidence = evidence
        runs = store.runs()
        self._places = next_places(store, runs)
        self._experiments = Experiments(plan)
        self._by_hash: dict[str, list[Run]] = {}
        self._by_place: dict[str, list[Run]] = {}
        self._replaced: set[str] = set()
        for run in runs:
            self._experiments.add(run.info.experiment)
            if run.info.origin == "imported" and not run.problem:
                self._add_known(run)

    def _add_known(self, run: Run) -> None:
        self._by_hash.setdefault(run.info.config_hash, []).append(run)
        place = _CSV_LINES.sub("", run.info.experiment.source.removeprefix(ORIGIN))
        self._by_place.setdefault(os.path.abspath(place), []).append(run)

    def import_all(self, found: Sequence[Candidate]) -> ImportReport:
        """Import every candidate; earlier imports of those that have more now move to the trash."""
        report = ImportReport()
        try:
            for each in found:
                try:
                    self._import_one(each, report)
                except ImportSourceError as error:
                    report.problems.append(f"{each.location}: {escape_control_characters(error)}")
        finally:
            if report.updated:
                discard(self._store, [update.replaced for update in report.updated.values()])
        return report

    def _import_one(self, candidate: Candidate, report: ImportReport) -> None:
        source = candidate.read()
        made = make_run(source, candidate.place, self._plan, self._experiments, self._evidence)
        replaced, changes = None, ""
        for run in self._earlier_imports(made, candidate.place):
            difference = compare_with(made, run)
            if difference.nothing_new:
                report.imported_before[candidate.location] = run.run
                return
            if difference.extends:
                replaced, changes = run, ", ".join(difference.more)
        new = self._create(made)
        if replaced is not None and replaced.notes != NO_NOTES:
            change_notes(new.paths, note=replaced.notes.note, add=replaced.notes.tags)
        if replaced is None:
            report.imported[candidate.location] = new.run
        else:
            report.updated[candidate.location] = Update(run=new.run, replaced=replaced.run, changes=changes)
            self._replaced.add(replaced.run)
        self._add_known(new)
        for note in [*made.notes, *source.notes]:
            report.notes.setdefault(escape_control_characters(note), []).append(candidate.location)

    def _earlier_imports(self, made: ImportedRun, place: str) -> list[Run]:
        """Return the imported runs that may come from this source: with the same numbers, or from the same place."""
        csv_file = place.rpartition(": ")[0]  # version 0.1.0 recorded no more of a run from a CSV file
        found = [*self._by_hash.get(made.info.config_hash, ()), *self._by_place.get(place, ())]
        found += self._by_place.get(csv_file, ()) if csv_file else ()
        return [run for run in {run.run: run for run in found}.values() if run.run not in self._replaced]

    def _create(self, made: ImportedRun) -> Run:
        try:
            name = create_run(self._store, made.info, made.events(next(self._places)))
        except OSError as error:
            raise StoreError(f"{error.filename or self._store.root}: cannot be written: {error.strerror}") from None
        run = self._store.open(name)
        assert run is not None
        run.refresh()
        self._experiments.add(run.info.experiment)
        return run
