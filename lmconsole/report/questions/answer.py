"""What an answer to a question of the write-up is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmconsole.report.comparing import Comparison, Measured, Verdict, compare, measure
from lmconsole.report.markup import Document
from lmconsole.report.selection import Group

EQUAL_NATS = 0.02
"""Gaps that differ by no more than this count as equal."""


@dataclass(frozen=True)
class Finding:
    """The answer to one question. ``rule`` says how it was found; ``table`` holds what does not fit a sentence."""

    number: int
    question: str
    measured: Sequence[str]
    rule: str
    interpretation: Sequence[str]
    table: Document | None = None


@dataclass
class Answer:
    """A finding that is being written."""

    measured: list[str] = field(default_factory=list)
    interpretation: list[str] = field(default_factory=list)

    def compare(self, first: Measured | None, second: Measured | None, absent: str) -> Comparison:
        """Compare two experiments and write the sentence down; ``absent`` if one of them is not there."""
        if first is None or second is None:
            self.measured.append(f"{absent}: not both have been run, so nothing can be said.")
            return Comparison(Verdict.NONE, "")
        found = compare(first, second)
        self.measured.append(found.words)
        return found


class Suite:
    """The experiments of a group, found by what they are."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.all = measure(group)

    def find(self, model: str, layers: int, optimizer: str) -> Measured | None:
        """The experiment of that kind with the fewest settings of its own, the lowest id of equals."""
        fitting = [
            (len(experiment.overrides), experiment.id)
            for measured in self.all.values()
            for experiment in [measured.runs[0].info.experiment]
            if (experiment.model, experiment.layers, experiment.optimizer) == (model, layers, optimizer)
        ]
        return self.all[min(fitting)[1]] if fitting else None

    @property
    def judged(self) -> list[Measured]:
        """Complete experiments with a perplexity."""
        return [each for each in self.all.values() if each.complete and each.mean_ppl is not None]


def layer_words(layers: int) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{layers} layer" if layers == 1 else f"{layers} layers"
