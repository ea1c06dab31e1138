"""Questions 3 to 8 of the write-up, answered from a group's runs: what was measured, by which rule, and an
interpretation that the measurement chooses.

An interpretation claims no more than seeds and data carry; see ``comparing.RULE``.
"""

from lmconsole.report.questions.answer import Finding, Suite
from lmconsole.report.questions.choice import choice
from lmconsole.report.questions.footprint import footprint
from lmconsole.report.questions.models import architectures, depth, overfitting
from lmconsole.report.questions.optimizers import optimizers
from lmconsole.report.selection import Group


def findings(group: Group) -> list[Finding]:
    """The answers to all questions, in order."""
    suite = Suite(group)
    return [ask(suite) for ask in (choice, optimizers, architectures, depth, footprint, overfitting)]
