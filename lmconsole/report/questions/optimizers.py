"""Effects of weight decay, momentum and adaptive step sizes."""

from collections.abc import Sequence

from lmconsole.importing.settings import ASSUMED, INFERRED, STATED, is_inferred
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.report.comparing import Comparison, Evidence, Pair
from lmconsole.report.experiment_result import ExperimentResult
from lmconsole.report.questions.finding import (
    AS_EXPLAINED,
    Draft,
    Finding,
    GroupResults,
    by_name,
    describe_inferences,
    say_once,
)

TITLES = ("AdamW against Adam.", "Momentum against SGD.", "AdamW against SGD.")
"""Beginnings of the interpretation, in the order of ``optimizer_pairs``."""

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
    draft.note(comparisons)
    for number, interpret in enumerate((_interpret_decay, _interpret_momentum, _interpret_adaptive)):
        known = [found for found in comparisons[number::3] if found.evidence is not Evidence.NO_DATA]
        if known:
            names = [found.pair.subject.partition(",")[0] for found in known]
            start, *rest = (list(zip(names, each, strict=True)) for each in zip(*map(interpret, known), strict=True))
            outcomes = [(name, found.outcome) for name, found in zip(names, known, strict=True)]
            draft.conclude(TITLES[number], say_once(start), by_name(outcomes), *map(say_once, rest))
    compared = [each for found in comparisons for each in (found.pair.first, found.pair.second)]
    if draft.interpretation:
        draft.conclude(describe_inferences(*compared, keys=("optimizer",)))
    return Finding(
        question="What effect do weight decay, momentum and adaptive step sizes have?",
        observations=draft.observations,
        method=f"AdamW against Adam, momentum against SGD, and AdamW against SGD, with one layer each. {AS_EXPLAINED}",
        interpretation=draft.interpretation,
        table=draft.table,
        table_lead=draft.table_lead,
    )


def _sides(found: Comparison) -> tuple[ExperimentResult, ExperimentResult]:
    """Return the experiments of a comparison that has data."""
    assert found.pair.first is not None
    assert found.pair.second is not None
    return found.pair.first, found.pair.second


def _interpret_decay(found: Comparison) -> Sequence[str]:
    """Return the weight decay of both, to precede the outcome, since the pair is about it only if it differs; and after
    it what the pair says nothing about."""
    adamw, adam = _sides(found)
    decays = {each.info.settings.weight_decay for each in (adam, adamw)}
    unknown = [each for each in (adam, adamw) if each.info.origins.get("weight_decay") == ASSUMED]
    provenance = f"Weight decay: {_describe_decay(adam)}, {_describe_decay(adamw)}."
    shrinkage = ""
    if unknown:
        names = " and ".join(OPTIMIZER_NAMES[each.info.experiment.optimizer] for each in unknown)
        limit = f"The sources do not state the weight decay of {names}, so this says nothing about its effect."
    elif len(decays) == 1:
        limit = (
            "They are equal, so this says nothing about the effect of weight decay, only about its form, which AdamW "
            "decouples from the gradient."
        )
    else:
        limit = (
            "AdamW without weight decay would be Adam, so this pair shows the effect of decoupled weight decay. Decay "
            "through the gradient was not run with Adam."
            if adam.info.settings.weight_decay == 0.0
            else "They differ, and so does the form of the decay, which AdamW decouples from the gradient."
        )
        shrinkage = _expect_shrinkage(adamw)
    return provenance, limit, shrinkage


def _describe_decay(result: ExperimentResult) -> str:
    """Return the weight decay of an experiment and where that is from."""
    info = result.info
    name, origin = OPTIMIZER_NAMES[info.experiment.optimizer], info.origins.get("weight_decay", "")
    if origin == ASSUMED:
        return f"{name} unknown"
    if is_inferred(origin):
        source = f"inferred: {origin.removeprefix(INFERRED)}"
    elif origin == STATED or not origin:
        source = origin
    else:
        source = f"from {origin.rpartition('/')[2]}"
    return f"{name} {info.settings.weight_decay:g}{f' ({source})' if source else ''}"


def _expect_shrinkage(adamw: ExperimentResult) -> str:
    shrinkage = decay_shrinkage(adamw)
    if shrinkage is None:
        return ""
    settings = adamw.info.settings
    share = f"{shrinkage:.2%}" if shrinkage >= 0.00005 else "less than 0.01%"
    return (
        f"Weight decay of {settings.weight_decay:g} at a learning rate of {settings.learning_rate:g} alone would "
        f"shrink a weight by {share} over the whole run"
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


def _interpret_momentum(found: Comparison) -> Sequence[str]:
    """Return sentences before and after the outcome."""
    momentum, _ = _sides(found)
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
    return "", reason


def _interpret_adaptive(found: Comparison) -> Sequence[str]:
    """Return sentences before and after the outcome."""
    _, sgd = _sides(found)
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
    return "", reason, limit
