"""Parts of a finding: the answer to one question of the report."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lmconsole.importing.settings import INFERRED, is_inferred
from lmconsole.report.comparing import Comparison, Evidence, Pair, compare
from lmconsole.report.experiment_result import ExperimentResult, experiment_results
from lmconsole.report.questions.comparison_table import (
    comparison_table,
    describe_listed,
    describe_table,
    is_listed,
)
from lmconsole.report.selection import Group
from lmconsole.report.table import Table

AS_EXPLAINED = "Settings are compared as explained for the first question."
"""Method of a finding that compares settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Answer to one question, in sentences."""

    question: str
    answer: str
    """Short answer, which comes first; empty if there is none."""
    observations: Sequence[str]
    method: str
    interpretation: Sequence[str]
    table: Table | None = None
    table_lead: str = ""
    """Content of the table."""


@dataclass
class Draft:
    """Sentences of a finding, collected one by one."""

    observations: list[str] = field(default_factory=list)
    interpretation: list[str] = field(default_factory=list)
    table: Table | None = None
    table_lead: str = ""

    def note(self, comparisons: Sequence[Comparison]) -> None:
        """Add the numbers of comparisons, as a table if there are several, and the pairs of which one has no run."""
        listed = [each for each in comparisons if is_listed(each)]
        if len(listed) > 1:
            self.table, self.table_lead = comparison_table(listed), describe_table(listed)
            self.observations += describe_listed(listed)
        else:
            listed = []
        self.observations += [each.sentence for each in comparisons if each.pair.exists and each not in listed]
        if missing := [each.pair.subject for each in comparisons if not each.pair.exists]:
            self.observations.append(f"No comparison, because at least one has no run: {'; '.join(missing)}.")

    @staticmethod
    def answer(parts: Sequence[str], comparisons: Sequence[Comparison]) -> str:
        """Return the short answer of these parts, with what the comparisons behind it are worth."""
        known = {each.evidence for each in comparisons} - {Evidence.NO_DATA}
        if not parts or not known:
            return "Open, because runs are missing."
        worth = "one seed each, not a claim" if known == {Evidence.ONE_SEED} else "exploratory"
        return f"{'; '.join(parts)} ({worth})."

    def conclude(self, *sentences: str) -> None:
        """Add one item of the interpretation, of those sentences that are not empty; none if all are."""
        if text := " ".join(sentence for sentence in sentences if sentence):
            self.interpretation.append(text)


class GroupResults:
    """Results of the experiments of a group."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.by_id = experiment_results(group)
        self._compared: dict[Callable[[GroupResults], Sequence[Pair]], list[Comparison]] = {}

    def compare(self, pairs: "Callable[[GroupResults], Sequence[Pair]]") -> list[Comparison]:
        """Compare the pairs of a question as one family, once."""
        if pairs not in self._compared:
            self._compared[pairs] = compare(pairs(self))
        return self._compared[pairs]

    @property
    def compared(self) -> list[Comparison]:
        """Comparisons of all questions that have been answered."""
        return [comparison for family in self._compared.values() for comparison in family]

    def find(self, model: str, layers: int, optimizer: str) -> ExperimentResult | None:
        """Return the experiment of that kind with the fewest settings of its own, and of these the lowest id."""
        fitting = [
            (len(experiment.overrides), experiment.id)
            for result in self.by_id.values()
            for experiment in [result.runs[0].info.experiment]
            if (experiment.model, experiment.layers, experiment.optimizer) == (model, layers, optimizer)
        ]
        return self.by_id[min(fitting)[1]] if fitting else None

    @property
    def complete(self) -> list[ExperimentResult]:
        """Complete experiments."""
        return [each for each in self.by_id.values() if each.complete]


_MEANINGS = {"sgd": "no momentum", "momentum": "momentum"}
"""Meaning of an inferred optimizer."""


def describe_inferences(*results: ExperimentResult | None, keys: Sequence[str] = ("optimizer", "weight_decay")) -> str:
    """Return a sentence for each of these settings of imported runs that is inferred, to follow every conclusion that
    rests on it; empty if there are none."""
    inferred: dict[tuple[str, str], dict[str, None]] = {}
    for result in results:
        if result is None:
            continue
        for info, key in itertools.product([run.info for run in result.runs], keys):
            if is_inferred(origin := info.origins.get(key, "")):
                value = getattr(info.settings, key)
                meaning = f"a {key.replace('_', ' ')} of {value:g}" if isinstance(value, float) else _MEANINGS[value]
                inferred.setdefault((meaning, origin.removeprefix(INFERRED)), {})[result.label_with_id] = None
    return " ".join(
        f"This rests on an inference, that {' and '.join(labels)} had {meaning}: {reason}."
        for (meaning, reason), labels in inferred.items()
    )


def say_once(texts: Sequence[tuple[str, str]]) -> str:
    """Return what there is to say about each model, by its name; what is the same about all once and without names."""
    if len({text for _, text in texts}) == 1:
        return texts[0][1]
    return by_name(texts)


def by_name(texts: Sequence[tuple[str, str]]) -> str:
    """Return what there is to say about each model, after its name unless it begins with it."""
    return " ".join(text if text.startswith(name) else f"{name}: {text}" for name, text in texts if text)


def format_layers(layers: int) -> str:
    """Return ``1 layer``, ``2 layers``."""
    return f"{layers} layer" if layers == 1 else f"{layers} layers"
