"""Question 4: what weight decay, momentum and adaptive step sizes change."""

from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.comparing import RULE, Measured, Verdict
from lmconsole.report.questions.answer import ONE_SEED, Answer, Finding, Suite


def optimizers(suite: Suite) -> Finding:
    """Question 4: weight decay, momentum, adaptive steps."""
    answer = Answer()
    for model in ("lstm", "gpt1"):
        name = MODEL_NAMES[model]
        adam, adamw, sgd, momentum = (suite.find(model, 1, each) for each in ("adam", "adamw", "sgd", "momentum"))
        decay = answer.compare(adamw, adam, f"{name}, AdamW and Adam")
        answer.interpretation.append(_decay_words(name, decay.verdict, adamw))
        moment = answer.compare(momentum, sgd, f"{name}, momentum and SGD")
        answer.interpretation.append(_momentum_words(name, moment.verdict))
        adaptive = answer.compare(adamw, sgd, f"{name}, AdamW and SGD")
        answer.interpretation.append(_adaptive_words(name, adaptive.verdict))
    return Finding(
        number=4,
        question="What do weight decay, momentum and adaptive step sizes change?",
        measured=answer.measured,
        rule=f"AdamW against Adam, momentum against SGD, AdamW against SGD, one layer each. {RULE}",
        interpretation=[words for words in answer.interpretation if words],
    )


def _decay_words(name: str, verdict: Verdict, adamw: Measured | None) -> str:
    if verdict is Verdict.NONE or adamw is None:
        return ""
    start = {
        Verdict.SPREAD: f"{name}: weight decay makes no difference that these seeds show.",
        Verdict.TINY: f"{name}: with weight decay the result is practically the same.",
    }.get(verdict, f"{name}: AdamW with weight decay ends {verdict.value} than Adam without.")
    words = [start, ONE_SEED if verdict in (Verdict.HINT_LOWER, Verdict.HINT_HIGHER) else ""]
    info = adamw.runs[0].info
    shrunk = _shrunk(adamw)
    if shrunk is not None:
        words.append(
            f"Decay of {info.settings.weight_decay:g} at a learning rate of {info.settings.learning_rate:g} alone "
            f"would have shrunk a weight by {shrunk:.2%} over the whole run"
            + (", so little was to be expected." if shrunk < 0.05 else ".")
        )
    words.append(
        "Adam here has no decay and AdamW a decoupled one: the effect of decay cannot be told from that of its form."
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


def _momentum_words(name: str, verdict: Verdict) -> str:
    if verdict is Verdict.NONE:
        return ""
    if verdict.lower:
        words = (
            f"{name}: momentum {'seems to help' if verdict.hint else 'helps'}. With 0.9 a lasting gradient moves a "
            "weight ten times as far, which matters where plain SGD is too slow at this learning rate."
        )
    elif verdict.higher:
        words = f"{name}: momentum {'seems to hurt' if verdict.hint else 'hurts'} at this learning rate."
    else:
        words = f"{name}: no difference between momentum and plain SGD is shown."
    return f"{words} {ONE_SEED}" if verdict.hint else words


def _adaptive_words(name: str, verdict: Verdict) -> str:
    if verdict is Verdict.NONE:
        return ""
    if verdict.lower:
        words = (
            f"{name}: AdamW gets further than SGD at the same learning rate. Its steps do not depend on the "
            "gradient's size, while SGD's are proportional to it; SGD was not given a learning rate of its own, so "
            "this says nothing about the best that SGD can do."
        )
    elif verdict.higher:
        words = f"{name}: SGD ends lower than AdamW at the same learning rate."
    else:
        words = f"{name}: no difference between AdamW and SGD is shown."
    return f"{words} {ONE_SEED}" if verdict.hint else words
