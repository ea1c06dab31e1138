"""Questions of the report, answered from the runs of a group: observations, the method, and an interpretation that
follows from the observations.

Findings are exploratory: an interpretation says no more than seeds and data support, and is never a claim.
"""

from collections.abc import Sequence
from dataclasses import replace

from lmconsole.report.comparing import Comparison
from lmconsole.report.experiment_result import Endpoint
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


def explain_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Return how comparisons are made and what they are about, with what occurs among them."""
    known = [each for each in comparisons if each.contrast is not None]
    if not known:
        return "Nothing can be compared."
    sentences = []
    if any(each.endpoint is Endpoint.TEST for each in known):
        sentences.append(
            "Test loss: negative log-likelihood of the test split with the weights of the epoch that validated best."
        )
    if any(each.endpoint is Endpoint.VALIDATION for each in known):
        lacking = "These runs have" if all(each.endpoint is Endpoint.VALIDATION for each in known) else "Some runs have"
        sentences.append(
            f"{lacking} no test loss of their best epoch, so the validation loss is compared, which also chose the "
            "epoch."
        )
    sentences.append(
        "Seeds vary initialization and order of the data, so a comparison is about two settings, not about optimizers "
        "or architectures as such. All are exploratory: no claim was registered before the runs."
    )
    results = [each.result for each in known if each.result is not None]
    if any(each.interval for each in results):
        sentences.append("Intervals are those of Welch, each for one comparison alone.")
    if any(each.p_adjusted is not None for each in results):
        sentences.append("p-values are two-sided and adjusted by Holm over the contrasts of each question.")
    return " ".join(sentences)
