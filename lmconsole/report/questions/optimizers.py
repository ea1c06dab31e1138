"""Effects of weight decay, momentum and adaptive step sizes."""

from collections.abc import Sequence

from lmconsole.importing.settings import ASSUMED, INFERRED, STATED, is_inferred
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.report.comparing import Comparison, Evidence, ExperimentResult, Pair, explain_comparisons
from lmconsole.report.questions.finding import Draft, Finding, GroupResults, describe_inferences

SMALL_SHRINKAGE = 0.05
"""A weight decay that shrinks weights by less than this share over a run is expected to have little effect."""


def optimizer_pairs(results: GroupResults) -> list[Pair]:
    """Return the pairs of optimizers that the question is about, three for each architecture."""
    pairs = []
    for model in ("lstm", "gpt1"):
        name = MODEL_NAMES[model]
        adam, adamw, sgd, momentum = (results.find(model, 1, each) for each in ("adam", "adamw", "sgd", "momentum"))
        pairs += [
            Pair(subject=f"{name}, AdamW against Adam", first=adamw, second=adam),
            Pair(subject=f"{name}, momentum against SGD", first=momentum, second=sgd),
            Pair(subject=f"{name}, AdamW against SGD", first=adamw, second=sgd),
        ]
    return pairs


def optimizers(results: GroupResults) -> Finding:
    """Compare the optimizers."""
    draft = Draft()
    comparisons = results.compare(optimizer_pairs)
    for found in comparisons:
        draft.note(found)
    interpret = (_interpret_decay, _interpret_momentum, _interpret_adaptive)
    for number, found in enumerate(comparisons):
        first, second = found.pair.first, found.pair.second
        if found.evidence is not Evidence.NO_DATA and first is not None and second is not None:
            draft.conclude(*interpret[number % len(interpret)](found, first, second))
    return Finding(
        question="What effect do weight decay, momentum and adaptive step sizes have?",
        observations=draft.observations,
        method=(
            "AdamW against Adam, momentum against SGD, and AdamW against SGD, with one layer each. "
            f"{explain_comparisons(comparisons)}"
        ),
        interpretation=draft.interpretation,
    )


def _interpret_decay(found: Comparison, adamw: ExperimentResult, adam: ExperimentResult) -> Sequence[str]:
    """State the weight decay of both before anything else: the pair is about it only if it differs."""
    decays = {each.info.settings.weight_decay for each in (adam, adamw)}
    unknown = [each for each in (adam, adamw) if each.info.origins.get("weight_decay") == ASSUMED]
    provenance = f"{found.pair.subject}: {' and '.join(_describe_decay(each) for each in (adam, adamw))}."
    result = f"Result: {found.outcome}"
    if unknown:
        names = " and ".join(OPTIMIZER_NAMES[each.info.experiment.optimizer] for each in unknown)
        limit = f"The sources do not state the weight decay of {names}, so this says nothing about its effect."
        return provenance, limit, result
    if len(decays) == 1:
        limit = (
            "They are equal, so this says nothing about the effect of weight decay, only about its form, which AdamW "
            "decouples from the gradient."
        )
        return provenance, limit, result
    limit = (
        "Adam is used here without weight decay and AdamW with decoupled weight decay, so the effect of the decay "
        "cannot be separated from that of its form."
        if adam.info.settings.weight_decay == 0.0
        else "They differ, and so does the form of the decay, which AdamW decouples from the gradient."
    )
    return provenance, limit, result, _expect_shrinkage(adamw)


def _describe_decay(result: ExperimentResult) -> str:
    """Return the weight decay of an experiment and where that is from."""
    info = result.info
    name, origin = OPTIMIZER_NAMES[info.experiment.optimizer], info.origins.get("weight_decay", "")
    if origin == ASSUMED:
        return f"{name} with an unknown weight decay"
    if is_inferred(origin):
        source = f"inferred: {origin.removeprefix(INFERRED)}"
    elif origin == STATED or not origin:
        source = origin
    else:
        source = f"from {origin.rpartition('/')[2]}"
    return f"{name} with a weight decay of {info.settings.weight_decay:g}{f' ({source})' if source else ''}"


def _expect_shrinkage(adamw: ExperimentResult) -> str:
    shrinkage = decay_shrinkage(adamw)
    if shrinkage is None:
        return ""
    settings = adamw.info.settings
    return (
        f"Weight decay of {settings.weight_decay:g} at a learning rate of {settings.learning_rate:g} alone would "
        f"shrink a weight by {shrinkage:.2%} over the whole run"
        + (", so little effect was to be expected." if shrinkage < SMALL_SHRINKAGE else ".")
    )


def decay_shrinkage(adamw: ExperimentResult) -> float | None:
    """Share by which the decay of AdamW alone shrinks a weight: 1 - (1 - learning rate × decay)^steps for a constant
    learning rate (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    run = adamw.runs[0]
    settings = run.info.settings
    if not run.state.progress or settings.warmup_steps or settings.learning_rate_decay != "none":
        return None
    steps = run.state.progress[-1].steps * run.state.epochs_done
    return 1.0 - (1.0 - settings.learning_rate * settings.weight_decay) ** steps


def _interpret_momentum(found: Comparison, momentum: ExperimentResult, sgd: ExperimentResult) -> Sequence[str]:
    info = momentum.info
    reason = ""
    if found.is_material and found.first_is_lower:
        decay = info.settings.momentum or 0.0
        reason = (
            "The size of the momentum is not stated."
            if info.origins.get("momentum") == ASSUMED
            else f"A possible reason: with a momentum of {decay:g}, a persistent gradient moves a weight "
            f"{1.0 / (1.0 - decay):.3g} times as far, which matters where plain SGD is too slow at its learning rate."
        )
    elif found.is_material:
        reason = "A possible reason: at this learning rate, the steps with momentum are too long."
    inferences = describe_inferences(momentum, sgd, keys=("optimizer",))
    return f"{found.pair.subject}: {found.outcome}", reason, inferences


def _interpret_adaptive(found: Comparison, adamw: ExperimentResult, sgd: ExperimentResult) -> Sequence[str]:
    reason = ""
    if found.is_material and found.first_is_lower:
        reason = (
            "A possible reason: the steps of AdamW do not depend on the scale of the gradient, while those of SGD are "
            "proportional to it."
        )
    limit = (
        "The sources do not state whether learning rates were tuned, so this says nothing about the best that SGD can "
        "do."
        if sgd.info.origin == "imported"
        else "No learning rate was tuned for either, so this says nothing about the best that SGD can do."
    )
    inferences = describe_inferences(adamw, sgd, keys=("optimizer",))
    return f"{found.pair.subject}: {found.outcome}", reason, limit, inferences
