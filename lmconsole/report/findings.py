"""Questions of the report, answered from the runs of a group: observations, the method, and an interpretation that
follows from the observations.

Findings are exploratory: an interpretation says no more than seeds and data support, and is never a claim.
"""

from lmconsole.report.questions.finding import Finding, GroupResults
from lmconsole.report.questions.memory import memory
from lmconsole.report.questions.models import architectures, depth
from lmconsole.report.questions.optimizers import optimizers
from lmconsole.report.questions.overfitting import overfitting
from lmconsole.report.questions.recommendation import recommendation
from lmconsole.report.selection import Group


def findings(group: Group) -> list[Finding]:
    """Answer all questions, in order."""
    results = GroupResults(group)
    return [answer(results) for answer in (recommendation, optimizers, architectures, depth, memory, overfitting)]
