"""Questions of the report, answered from the runs of a group: observations, the method, and an interpretation that
follows from the observations.

Findings are exploratory: an interpretation says no more than seeds and data support, and is never a claim.
"""

from dataclasses import replace

from lmconsole.report.comparing import explain_comparisons
from lmconsole.report.questions.finding import Finding, GroupResults
from lmconsole.report.questions.memory import memory
from lmconsole.report.questions.models import architectures, depth
from lmconsole.report.questions.optimizers import optimizers
from lmconsole.report.questions.overfitting import overfitting
from lmconsole.report.questions.recommendation import recommendation
from lmconsole.report.selection import Group


def findings(group: Group) -> list[Finding]:
    """Answer all questions, in order. The method of the first explains the comparisons of all."""
    results = GroupResults(group)
    answers = [answer(results) for answer in (recommendation, optimizers, architectures, depth, memory, overfitting)]
    explained = f"{answers[0].method} {explain_comparisons(results.compared)}".rstrip()
    return [replace(answers[0], method=explained), *answers[1:]]
