"""Effects of weight decay, momentum and adaptive step sizes."""

from lmconsole.importing.settings import ASSUMED
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.comparing import METHOD, Comparison, ExperimentResult, Verdict
from lmconsole.report.questions.finding import Draft, Finding, GroupResults, describe_inferences


def optimizers(results: GroupResults) -> Finding:
    """Compare the optimizers."""
    draft = Draft()
    for model in ("lstm", "gpt1"):
        name = MODEL_NAMES[model]
        adam, adamw, sgd, momentum = (results.find(model, 1, each) for each in ("adam", "adamw", "sgd", "momentum"))
        decay_effect = draft.compare(adamw, adam, f"{name}, AdamW against Adam")
        draft.interpretation.append(_interpret_decay(name, decay_effect, adam, adamw))
        momentum_effect = draft.compare(momentum, sgd, f"{name}, momentum against SGD")
        draft.interpretation.append(_interpret_momentum(name, momentum_effect, momentum, sgd))
        adaptive_effect = draft.compare(adamw, sgd, f"{name}, AdamW against SGD")
        draft.interpretation.append(_interpret_adaptive(name, adaptive_effect, adamw, sgd))
    return Finding(
        question="What effect do weight decay, momentum and adaptive step sizes have?",
        observations=draft.observations,
        method=f"AdamW against Adam, momentum against SGD, and AdamW against SGD, with one layer each. {METHOD}",
        interpretation=[sentence for sentence in draft.interpretation if sentence],
    )


def _interpret_decay(
    name: str, found: Comparison, adam: ExperimentResult | None, adamw: ExperimentResult | None
) -> str:
    verdict = found.verdict
    if verdict is Verdict.NO_DATA or adam is None or adamw is None:
        return ""
    direction = "lower" if verdict.first_is_lower else "higher"
    infos = {"Adam": adam.runs[0].info, "AdamW": adamw.runs[0].info}
    decays = {optimizer: info.settings.weight_decay for optimizer, info in infos.items()}
    unknown = [optimizer for optimizer, info in infos.items() if info.origins.get("weight_decay") == ASSUMED]
    if unknown or decays["Adam"] == decays["AdamW"]:
        effect = {
            Verdict.WITHIN_SPREAD: f"{name}: these seeds show no difference between AdamW and Adam.",
            Verdict.NEGLIGIBLE_IN_ONE_SEED: f"{name}: AdamW and Adam differ by practically nothing.",
        }.get(verdict, f"{name}: AdamW reaches a {direction} perplexity than Adam.")
    else:
        effect = {
            Verdict.WITHIN_SPREAD: f"{name}: these seeds show no effect of weight decay.",
            Verdict.NEGLIGIBLE_IN_ONE_SEED: f"{name}: weight decay makes practically no difference.",
        }.get(verdict, f"{name}: AdamW with weight decay reaches a {direction} perplexity than Adam.")
    sentences = [effect, "" if verdict is Verdict.NEGLIGIBLE_IN_ONE_SEED else found.caution]
    info = infos["AdamW"]
    shrinkage = decay_shrinkage(adamw)
    if shrinkage is not None:
        sentences.append(
            f"Weight decay of {info.settings.weight_decay:g} at a learning rate of {info.settings.learning_rate:g} "
            f"alone would shrink a weight by {shrinkage:.2%} over the whole run"
            + (", so little effect was to be expected." if shrinkage < 0.05 else ".")
        )
    if unknown:
        sentences.append(
            f"The sources do not state the weight decay of {' and '.join(unknown)}, so this says nothing about its "
            "effect."
        )
    elif decays["Adam"] == decays["AdamW"]:
        sentences.append(
            f"Both have a weight decay of {decays['Adam']:g}, which AdamW decouples from the gradient. This says "
            "something about the form of the decay, not about its effect."
        )
    elif decays["Adam"] == 0.0:
        sentences.append(
            "Adam is used here without weight decay and AdamW with decoupled weight decay, so the effect of the decay "
            "cannot be separated from that of its form."
        )
    sentences.append(describe_inferences(adam, adamw, keys=("weight_decay",)))
    return " ".join(sentence for sentence in sentences if sentence)


def decay_shrinkage(adamw: ExperimentResult) -> float | None:
    """Share by which the decay of AdamW alone shrinks a weight: 1 - (1 - learning rate × decay)^steps for a constant
    learning rate (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    run = adamw.runs[0]
    settings = run.info.settings
    if not run.state.progress or settings.warmup_steps or settings.learning_rate_decay != "none":
        return None
    steps = run.state.progress[-1].steps * run.state.epochs_done
    return 1.0 - (1.0 - settings.learning_rate * settings.weight_decay) ** steps


def _interpret_momentum(
    name: str, found: Comparison, momentum: ExperimentResult | None, sgd: ExperimentResult | None
) -> str:
    verdict = found.verdict
    if verdict is Verdict.NO_DATA or momentum is None:
        return ""
    info = momentum.runs[0].info
    decay = info.settings.momentum or 0.0
    if verdict.first_is_lower:
        effect = f"{name}: momentum {'seems to help' if verdict.one_seed else 'helps'}."
        if info.origins.get("momentum") == ASSUMED:
            effect += " Its size is not stated."
        else:
            effect += (
                f" With a momentum of {decay:g}, a persistent gradient moves a weight {1.0 / (1.0 - decay):.3g} times "
                "as far, which matters where plain SGD is too slow at its learning rate."
            )
    elif verdict.first_is_higher:
        effect = f"{name}: momentum {'seems to hurt' if verdict.one_seed else 'hurts'} at this learning rate."
    else:
        effect = f"{name}: no difference between momentum and plain SGD is shown."
    inferences = describe_inferences(momentum, sgd, keys=("optimizer",))
    return " ".join(sentence for sentence in (effect, found.caution, inferences) if sentence)


def _interpret_adaptive(
    name: str, found: Comparison, adamw: ExperimentResult | None, sgd: ExperimentResult | None
) -> str:
    verdict = found.verdict
    if verdict is Verdict.NO_DATA or adamw is None or sgd is None:
        return ""
    if verdict.first_is_lower:
        tuned = (
            "The sources do not state whether the learning rates were tuned"
            if sgd.runs[0].info.origin == "imported"
            else "No learning rate was tuned for either"
        )
        effect = (
            f"{name}: AdamW reaches a lower perplexity than SGD. Its steps do not depend on the scale of the gradient, "
            f"while those of SGD are proportional to it. {tuned}, so this says nothing about the best that SGD can do."
        )
    elif verdict.first_is_higher:
        effect = f"{name}: SGD reaches a lower perplexity than AdamW."
    else:
        effect = f"{name}: no difference between AdamW and SGD is shown."
    inferences = describe_inferences(adamw, sgd, keys=("optimizer",))
    return " ".join(sentence for sentence in (effect, found.caution, inferences) if sentence)
