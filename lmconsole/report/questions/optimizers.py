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

TITLES = ("AdamW against Adam", "Momentum against SGD", "AdamW against momentum", "AdamW against SGD")
"""Names of the pairs of an architecture, in the order of ``optimizer_pairs``."""

SMALL_SHRINKAGE = 0.05
"""A weight decay that shrinks weights by less than this share over a run is expected to have little effect."""


def optimizer_pairs(results: GroupResults) -> list[Pair]:
    """Return the pairs of optimizers that the question is about, ``TITLES`` for each architecture."""
    pairs = []
    for model in ("lstm", "gpt1"):
        name = MODEL_NAMES[model]
        adam, adamw, sgd, momentum = (results.find(model, 1, each) for each in ("adam", "adamw", "sgd", "momentum"))
        pairs += [
            Pair(subject=f"{name}, AdamW against Adam", first=adamw, second=adam),
            Pair(subject=f"{name}, momentum against SGD", first=momentum, second=sgd),
            Pair(subject=f"{name}, AdamW against momentum", first=adamw, second=momentum),
            Pair(subject=f"{name}, AdamW against SGD", first=adamw, second=sgd),
        ]
    return pairs


def optimizers(results: GroupResults) -> Finding:
    """Compare the optimizers."""
    draft = Draft()
    comparisons = results.compare(optimizer_pairs)
    draft.note(comparisons)
    answers = []
    for number, interpret in enumerate((_interpret_decay, _interpret_momentum, _interpret_adaptive, _interpret_both)):
        known = [found for found in comparisons[number :: len(TITLES)] if found.evidence is not Evidence.NO_DATA]
        if known:
            names = [found.pair.subject.partition(",")[0] for found in known]
            start, *rest = (list(zip(names, each, strict=True)) for each in zip(*map(interpret, known), strict=True))
            outcomes = [(name, found.order) for name, found in zip(names, known, strict=True)]
            unlearned = say_once([(name, _describe_unlearned(each)) for name, each in zip(names, known, strict=True)])
            draft.conclude(
                f"{TITLES[number]}.",
                say_once(start),
                by_name(outcomes),
                unlearned[:1].upper() + unlearned[1:],
                *map(say_once, rest),
            )
            answers.append(f"{TITLES[number]}: {', '.join(_short(found) for found in known)}")
    compared = [each for found in comparisons for each in (found.pair.first, found.pair.second)]
    if draft.interpretation:
        draft.conclude(describe_inferences(*compared, keys=("optimizer",)))
    return Finding(
        question="What effect do weight decay, momentum and adaptive step sizes have?",
        answer=Draft.answer(answers, comparisons),
        observations=draft.observations,
        method=(
            "With one layer each: AdamW against Adam for weight decay, momentum against SGD for momentum, AdamW "
            f"against momentum for adaptive step sizes, and AdamW against SGD for both. {AS_EXPLAINED}"
        ),
        interpretation=draft.interpretation,
        table=draft.table,
        table_lead=draft.table_lead,
    )


def _short(found: Comparison) -> str:
    """Return the result of a pair for the answer, such as ``LSTM AdamW`` or ``GPT-1 no order``."""
    name = found.pair.subject.partition(",")[0]
    if found.favored is None or found.short != found.favored.label_with_id:
        return f"{name} {found.short}"
    return f"{name} {OPTIMIZER_NAMES[found.favored.info.experiment.optimizer]}"


def _describe_unlearned(found: Comparison) -> str:
    """Return that neither of a pair has learned much; empty if one has."""
    first, second = _sides(found)
    if not (first.hardly_learned and second.hardly_learned):
        return ""
    baseline = "token frequencies" if first.info.corpus.unigram_ppl else "a uniform guess"
    return f"neither has learned much more than {baseline}, so the pair shows only which leaves the start sooner."


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
        reason = (
            "The size of the momentum is not stated."
            if info.origins.get("momentum") == ASSUMED
            else f"A possible reason: with a momentum of {info.settings.momentum or 0.0:g}, a persistent gradient "
            f"moves a weight {momentum_factor(momentum):.3g} times as far, which matters where plain SGD is too slow "
            "at its learning rate."
        )
    elif found.is_material:
        reason = "A possible reason: at this learning rate, the steps with momentum are too long."
    return "", reason


def momentum_factor(result: ExperimentResult) -> float:
    """Return how many times as far a persistent gradient moves a weight with momentum."""
    return 1.0 / (1.0 - (result.info.settings.momentum or 0.0))


def _interpret_adaptive(found: Comparison) -> Sequence[str]:
    """Return sentences before and after the outcome."""
    _, momentum = _sides(found)
    reason = ""
    if found.is_material and found.first_is_lower:
        reason = (
            "A possible reason: the steps of AdamW do not depend on the scale of the gradient, while those of momentum "
            "are proportional to it."
        )
    return "", reason, "Both average gradients; they also differ in the form of weight decay.", _untuned(momentum)


def _interpret_both(found: Comparison) -> Sequence[str]:
    """Return sentences before and after the outcome."""
    _, sgd = _sides(found)
    return "", "This pair has both, momentum and adaptive step sizes.", _untuned(sgd)


def _untuned(result: ExperimentResult) -> str:
    name = OPTIMIZER_NAMES[result.info.experiment.optimizer].replace("Momentum", "momentum")
    if result.info.origin == "imported":
        return f"The sources do not say whether learning rates were tuned, so nothing is known of the best of {name}."
    return f"No learning rate was tuned for either, so this says nothing about the best that {name} can do."
