"""Questions 5, 6 and 8: architectures, depth and overfitting."""

import math
import statistics
from collections.abc import Sequence

from lmconsole import formatting
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.comparing import ONE_SEED, Measured, Verdict
from lmconsole.report.questions.answer import EQUAL_NATS, Answer, Finding, Suite, layer_words


def architectures(suite: Suite) -> Finding:
    """Question 5: LSTM against GPT-1."""
    answer = Answer()
    lstm, gpt1 = suite.find("lstm", 1, "adam"), suite.find("gpt1", 1, "adam")
    found = answer.compare(gpt1, lstm, "GPT-1 and LSTM with Adam")
    verdict = found.verdict
    if lstm is not None and gpt1 is not None:
        if lstm.train_s and gpt1.train_s:
            answer.measured.append(
                f"Training time: {gpt1.label} {formatting.seconds(gpt1.train_s)}, {lstm.label} "
                f"{formatting.seconds(lstm.train_s)}: {gpt1.train_s / lstm.train_s:.2f} times as long."
            )
        if lstm.parameters_trainable and gpt1.parameters_trainable:
            answer.measured.append(
                f"Trained parameters: {gpt1.parameters_trainable:,} and {lstm.parameters_trainable:,}, "
                f"{gpt1.parameters_trainable / lstm.parameters_trainable:.2f} times as many."
            )
    if verdict.lower or verdict.higher:
        lower, higher = ("GPT-1", "LSTM") if verdict.lower else ("LSTM", "GPT-1")
        answer.interpretation.append(
            f"{lower} ends lower than {higher}. The two differ in architecture and in size, so this is not a "
            "comparison of architectures at equal parameters or equal time."
        )
        answer.interpretation.append(
            "A likely reason: attention sees every position of the window directly, while the LSTM has to carry all "
            "of it through a state of fixed width."
            if verdict.lower
            else "A likely reason: the recurrence has the order of the text built in, while attention has to learn it "
            "from positions."
        )
    elif verdict is not Verdict.NONE:
        answer.interpretation.append("No difference between the architectures is shown.")
    if found.caution:
        answer.interpretation.append(found.caution)
    return Finding(
        number=5,
        question="How do LSTM and GPT-1 compare, one layer each, with Adam?",
        measured=answer.measured,
        rule="Differences are judged as in Question 4.",
        interpretation=answer.interpretation,
    )


def depth(suite: Suite) -> Finding:
    """Question 6: deeper GPT-1."""
    answer = Answer()
    depths = [suite.find("gpt1", layers, "adamw") for layers in (1, 2, 4)]
    verdicts, cautions = [], []
    for shallow, deep, words in zip(depths, depths[1:], ("1 and 2 layers", "2 and 4 layers"), strict=False):
        found = answer.compare(deep, shallow, f"GPT-1 with AdamW, {words}")
        verdicts.append(found.verdict)
        cautions.append(found.caution)
        if deep is not None and shallow is not None and found.verdict is not Verdict.NONE:
            answer.interpretation.append(_depth_words(shallow, deep, found.verdict))
    if all(verdict.lower for verdict in verdicts):
        answer.interpretation.insert(0, "As expected: each doubling of the depth lowers validation perplexity.")
    elif any(verdict.higher for verdict in verdicts):
        answer.interpretation.insert(
            0, "Not as expected: more layers should fit at least as well, and do not throughout."
        )
    elif any(verdict.lower for verdict in verdicts):
        answer.interpretation.insert(
            0, "In part as expected: of one doubling of the depth, lower validation perplexity is shown, not of both."
        )
    elif Verdict.NONE not in verdicts:
        answer.interpretation.insert(0, "Neither as expected nor against it: the differences are too small to tell.")
    answer.interpretation += [caution for caution in dict.fromkeys(cautions) if caution]
    return Finding(
        number=6,
        question="Does a deeper GPT-1 do better, and is that as expected?",
        measured=answer.measured,
        rule="Expected: a lower validation perplexity with each doubling of the layers, judged as in Question 4.",
        interpretation=answer.interpretation,
    )


def _depth_words(shallow: Measured, deep: Measured, verdict: Verdict) -> str:
    """Why a deeper model may have done what it did: told by train perplexity, and by whether it was still improving."""
    start = f"From {shallow.label} to {deep.label}"
    if shallow.train_ppl is None or deep.train_ppl is None:
        return f"{start}: train perplexities are unknown."
    fits_better = deep.train_ppl < shallow.train_ppl
    if verdict.higher and fits_better:
        cause = "train perplexity falls while validation perplexity rises, the sign of overfitting"
    elif verdict.higher:
        cause = "train perplexity is higher too, so the deeper model is harder to optimize here"
        info = deep.runs[0].info
        if info.origin == "trained" and not info.settings.warmup_steps:
            cause += ": norms after the residual sums and no warm-up of the learning rate are known to slow deep stacks"
    elif verdict.lower:
        cause = f"train perplexity is {'lower too' if fits_better else 'not lower, yet validation is'}"
    else:
        cause = "no difference in validation perplexity is shown"
    still = [run for run in deep.runs if run.state.best_epoch is run.state.last_epoch]
    more = "; its best epoch is the last, so more epochs may change the order" if still else ""
    return f"{start}: {cause}{more}."


def overfitting(suite: Suite) -> Finding:
    """Question 8: which class overfits more."""
    answer = Answer()
    gaps: dict[str, dict[int, Measured]] = {}
    for model in ("lstm", "gpt1"):
        for layers in (1, 2, 4):
            each = suite.find(model, layers, "adamw")
            if each is None or not each.complete or each.gap_nats is None:
                answer.measured.append(f"{MODEL_NAMES[model]}, AdamW, {layer_words(layers)}: no complete run.")
                continue
            gaps.setdefault(model, {})[layers] = each
            answer.measured.append(
                f"{each.label}: gap at the last epoch {each.gap_nats:+.3f} nats (validation perplexity "
                f"{math.exp(each.gap_nats):.2f} times train perplexity); validation loss has risen by "
                f"{each.rise_nats or 0.0:.3f} nats since its best epoch."
            )
    common = sorted(set(gaps.get("lstm", {})) & set(gaps.get("gpt1", {})))
    if common:
        answer.interpretation += _class_words(suite, gaps, common)
    return Finding(
        number=8,
        question="Which class of models overfits more, and what would help?",
        measured=answer.measured,
        rule=(
            "Gap: validation loss minus train loss at the last epoch, AdamW, mean over seeds. A class overfits more if "
            f"its gap is larger at every depth that both classes have, by more than {EQUAL_NATS:g} nats and than the "
            "standard deviation over seeds. Train loss is averaged over the epoch, which makes gaps a little smaller "
            "than they are."
        ),
        interpretation=answer.interpretation,
    )


def _larger(one: Measured, other: Measured) -> bool:
    """Whether the gap of ``one`` is larger by more than what counts as equal."""
    margin = max(EQUAL_NATS, one.gap_sd_nats, other.gap_sd_nats)
    return (one.gap_nats or 0.0) - (other.gap_nats or 0.0) > margin


def _class_words(suite: Suite, gaps: dict[str, dict[int, Measured]], common: Sequence[int]) -> list[str]:
    larger = {
        model: all(_larger(gaps[model][layers], gaps[other][layers]) for layers in common)
        for model, other in (("gpt1", "lstm"), ("lstm", "gpt1"))
    }
    depths = f"{', '.join(map(str, common))} layer{'s' if common != [1] else ''}"
    all_gaps = {model: {n: each.gap_nats or 0.0 for n, each in its.items()} for model, its in gaps.items()}
    if not any(larger.values()):
        words = [f"Neither class overfits more throughout: no gap is the larger one at every depth ({depths})."]
    else:
        more, less = ("gpt1", "lstm") if larger["gpt1"] else ("lstm", "gpt1")
        means = [statistics.fmean(all_gaps[model][layers] for layers in common) for model in (more, less)]
        sides = f"{means[0]:+.3f} nats against {means[1]:+.3f}"
        words = [f"{MODEL_NAMES[more]} has the larger gap at every depth compared ({depths}): on average {sides}."]
        sizes = [suite.find(model, common[0], "adamw") for model in (more, less)]
        trained = [each.parameters_trainable for each in sizes if each is not None and each.parameters_trainable]
        if len(trained) == 2 and trained[0] > trained[1]:
            words.append(
                f"It also has more trained parameters at equal depth ({trained[0]:,} against {trained[1]:,} with "
                f"{layer_words(common[0])}), so the class itself need not be the reason."
            )
    if max(max(values.values()) for values in all_gaps.values()) <= 0.0:
        words.append("No gap is positive, so nothing is overfitted yet.")
    elif len(suite.group.seeds) == 1:
        words.append(ONE_SEED)
    words.append(
        "Remedies, from the cheapest: stop at the best epoch, which is what the tables show; dropout; stronger weight "
        "decay; fewer or narrower layers; more text."
    )
    return words
