"""Question 4: what weight decay, momentum and adaptive step sizes change."""

from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.comparing import RULE, Comparison, Measured, Verdict
from lmconsole.report.questions.answer import Answer, Finding, Suite


def optimizers(suite: Suite) -> Finding:
    """Question 4: weight decay, momentum, adaptive steps."""
    answer = Answer()
    for model in ("lstm", "gpt1"):
        name = MODEL_NAMES[model]
        adam, adamw, sgd, momentum = (suite.find(model, 1, each) for each in ("adam", "adamw", "sgd", "momentum"))
        decay = answer.compare(adamw, adam, f"{name}, AdamW and Adam")
        answer.interpretation.append(_decay_words(name, decay, adam, adamw))
        moment = answer.compare(momentum, sgd, f"{name}, momentum and SGD")
        answer.interpretation.append(_momentum_words(name, moment, momentum))
        adaptive = answer.compare(adamw, sgd, f"{name}, AdamW and SGD")
        answer.interpretation.append(_adaptive_words(name, adaptive))
    return Finding(
        number=4,
        question="What do weight decay, momentum and adaptive step sizes change?",
        measured=answer.measured,
        rule=f"AdamW against Adam, momentum against SGD, AdamW against SGD, one layer each. {RULE}",
        interpretation=[words for words in answer.interpretation if words],
    )


def _decay_words(name: str, found: Comparison, adam: Measured | None, adamw: Measured | None) -> str:
    verdict = found.verdict
    if verdict is Verdict.NONE or adam is None or adamw is None:
        return ""
    start = {
        Verdict.SPREAD: f"{name}: weight decay makes no difference that these seeds show.",
        Verdict.TINY: f"{name}: with weight decay the result is practically the same.",
    }.get(verdict, f"{name}: AdamW with weight decay ends {'lower' if verdict.lower else 'higher'} than Adam.")
    words = [start, "" if verdict is Verdict.TINY else found.caution]
    info = adamw.runs[0].info
    shrunk = _shrunk(adamw)
    if shrunk is not None:
        words.append(
            f"Decay of {info.settings.weight_decay:g} at a learning rate of {info.settings.learning_rate:g} alone "
            f"would have shrunk a weight by {shrunk:.2%} over the whole run"
            + (", so little was to be expected." if shrunk < 0.05 else ".")
        )
    if info.origin == "trained" and adam.runs[0].info.settings.weight_decay == 0.0:
        words.append(
            "Adam here has no decay and AdamW a decoupled one: the effect of decay cannot be told from that of its "
            "form."
        )
    return " ".join(word for word in words if word)


def _shrunk(adamw: Measured) -> float | None:
    """Share by which AdamW's decay alone shrinks a weight: 1 - (1 - learning rate × decay)^steps, with a constant
    learning rate (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    run = adamw.runs[0]
    settings = run.info.settings
    if not run.state.progress or settings.warmup_steps or settings.learning_rate_decay != "none":
        return None
    steps = run.state.progress[-1].steps * len(run.state.epochs)
    return 1.0 - (1.0 - settings.learning_rate * settings.weight_decay) ** steps


def _momentum_words(name: str, found: Comparison, momentum: Measured | None) -> str:
    verdict = found.verdict
    if verdict is Verdict.NONE or momentum is None:
        return ""
    decay = momentum.runs[0].info.settings.momentum or 0.0
    if verdict.lower:
        words = (
            f"{name}: momentum {'seems to help' if verdict.hint else 'helps'}. With {decay:g} a lasting gradient moves "
            f"a weight {1.0 / (1.0 - decay):.3g} times as far, which matters where plain SGD is too slow at its "
            "learning rate."
        )
    elif verdict.higher:
        words = f"{name}: momentum {'seems to hurt' if verdict.hint else 'hurts'} at this learning rate."
    else:
        words = f"{name}: no difference between momentum and plain SGD is shown."
    return f"{words} {found.caution}".rstrip()


def _adaptive_words(name: str, found: Comparison) -> str:
    verdict = found.verdict
    if verdict is Verdict.NONE:
        return ""
    if verdict.lower:
        words = (
            f"{name}: AdamW gets further than SGD. Its steps do not depend on the gradient's size, while SGD's are "
            "proportional to it; no learning rate was searched for either, so this says nothing about the best that "
            "SGD can do."
        )
    elif verdict.higher:
        words = f"{name}: SGD ends lower than AdamW."
    else:
        words = f"{name}: no difference between AdamW and SGD is shown."
    return f"{words} {found.caution}".rstrip()
