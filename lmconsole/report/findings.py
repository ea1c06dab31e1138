"""Questions 3 to 8 of the write-up, answered from a group's runs: what was measured, by which rule, and an
interpretation that the measurement chooses.

An interpretation claims no more than seeds and data carry; see ``comparing.RULE``.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmconsole import formatting
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.comparing import RULE, Comparison, Measured, Verdict, compare, measure
from lmconsole.report.groups import Group, clock_note
from lmconsole.report.markup import DASH, Cell, Document, decimals
from lmconsole.report.results import MIN_SAMPLES, memory_frame, uses_gpu
from lmconsole.report.targets import SLACK, common_target, reached
from lmconsole.runs.info import RunInfo

ONE_SEED = "This rests on one seed; other seeds may turn it round."


@dataclass(frozen=True)
class Finding:
    """The answer to one question. ``rule`` says how it was found; ``table`` holds what does not fit a sentence."""

    number: int
    question: str
    measured: Sequence[str]
    rule: str
    interpretation: Sequence[str]
    table: Document | None = None


@dataclass
class _Answer:
    """A finding that is being written."""

    measured: list[str] = field(default_factory=list)
    interpretation: list[str] = field(default_factory=list)

    def compare(self, first: Measured | None, second: Measured | None, absent: str) -> Comparison:
        """Compare two experiments and write the sentence down; ``absent`` if one of them is not there."""
        if first is None or second is None:
            self.measured.append(f"{absent}: not both have been run, so nothing can be said.")
            return Comparison(Verdict.NONE, "")
        found = compare(first, second)
        self.measured.append(found.words)
        return found


class _Suite:
    """The experiments of a group, found by what they are."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.all = measure(group)

    def find(self, model: str, layers: int, optimizer: str) -> Measured | None:
        """The experiment of that kind with the fewest settings of its own, the lowest id of equals."""
        fitting = [
            (len(experiment.overrides), experiment.id)
            for measured in self.all.values()
            for experiment in [measured.runs[0].info.experiment]
            if (experiment.model, experiment.layers, experiment.optimizer) == (model, layers, optimizer)
        ]
        return self.all[min(fitting)[1]] if fitting else None

    @property
    def judged(self) -> list[Measured]:
        """Complete experiments with a perplexity."""
        return [each for each in self.all.values() if each.complete and each.mean_ppl is not None]


def findings(group: Group) -> list[Finding]:
    """The answers to all questions, in order."""
    suite = _Suite(group)
    return [
        _choice(suite),
        _optimizers(suite),
        _architectures(suite),
        _depth(suite),
        _footprint(suite),
        _overfitting(suite),
    ]


def _choice(suite: _Suite) -> Finding:
    """Question 3."""
    answer = _Answer()
    target = common_target(suite.group)
    times = {each.id: reached(each.runs, target) for each in suite.all.values()} if target is not None else {}
    judged = suite.judged
    if target is None or not judged:
        answer.measured.append("No experiment is complete, so none can be chosen.")
    else:
        _fastest(suite, answer, target, {n: time.mean_s for n, time in times.items() if time.mean_s is not None})
        _best(answer, judged)
    return Finding(
        number=3,
        question="Which setting, if wall-clock time matters most, and which, if generalization does?",
        measured=answer.measured,
        rule=(
            "Wall-clock: least training time to a target validation perplexity, known at the ends of epochs. The "
            f"target lies {SLACK:.0%} above the lowest perplexity that every architecture has reached in some "
            "experiment, with every seed. Generalization: lowest validation perplexity of a complete experiment; the "
            "gap is validation loss minus train loss at the last epoch, in nats. Times within "
            f"{CLOSE:.0%} of the least count as equal."
        ),
        interpretation=answer.interpretation,
        table=_choice_table(suite, target, {n: time.mean_s for n, time in times.items()}),
    )


CLOSE = 0.1
"""Times that differ by no more than this share are called equal."""


def _fastest(suite: _Suite, answer: _Answer, target: float, times: dict[int, float]) -> None:
    known = {each.id: each.train_s for each in suite.judged if each.train_s is not None}
    if not times or not known:
        answer.measured.append("The runs do not say how long they took.")
        return
    first = min(times, key=lambda number: times[number])
    others = [n for n in times if n != first and times[n] <= times[first] * (1 + CLOSE)]
    answer.measured.append(
        f"Least time to a validation perplexity of {target:,.10g}: {suite.all[first].label}, "
        f"{formatting.seconds(times[first])} of training"
        + (f"; within {CLOSE:.0%} of that: {_labels(suite, others)}." if others else ".")
    )
    shortest = min(known, key=lambda number: known[number])
    reach = "reaches it as well" if shortest in times else "never reaches it"
    answer.measured.append(
        f"Shortest run: {suite.all[shortest].label}, {formatting.seconds(known[shortest])} of training; it {reach}."
    )
    choice = _labels(suite, sorted([first, *others]))
    answer.interpretation.append(
        f"If wall-clock time matters: {choice}."
        + (" Between these the measurement does not decide." if others else "")
        + (
            f" The shortest run, {suite.all[shortest].label}, is not the answer: it ends soonest without getting there."
            if shortest not in times
            else ""
        )
    )
    if note := clock_note(suite.group):
        answer.interpretation.append(note)


def _best(answer: _Answer, judged: Sequence[Measured]) -> None:
    ranked = sorted(judged, key=lambda each: each.mean_ppl or math.inf)
    best = ranked[0]
    answer.measured.append(f"Lowest validation perplexity: {best.label}, {best.ppl_words()}.")
    words = f"If generalization matters: {best.label}."
    if len(ranked) > 1:
        found = compare(best, ranked[1])
        answer.measured.append(f"Beside the next: {found.words}")
        if found.verdict in (Verdict.SPREAD, Verdict.TINY):
            words += f" The measurement does not tell it from {ranked[1].label}."
        elif found.verdict.hint:
            words += f" {ONE_SEED}"
    answer.interpretation.append(words)
    gaps = [(abs(each.gap_nats), each) for each in judged if each.gap_nats is not None]
    if not gaps:
        return
    smallest = min(gaps, key=lambda pair: pair[0])[1]
    answer.measured.append(
        f"Smallest gap between train and validation loss: {smallest.label}, {smallest.gap_nats:+.3f} nats, at a "
        f"validation perplexity of {smallest.ppl_words()}; {best.label} has {best.gap_nats or 0.0:+.3f} nats."
    )
    if smallest.id != best.id:
        answer.interpretation.append(
            f"The smallest gap alone misleads: {smallest.label} generalizes what it has learnt, but has learnt less. "
            "Train perplexity is averaged over an epoch in which the weights still improve, so early gaps can even be "
            "negative."
        )


LONG_LABEL = 32
"""Longer labels are cut in a table."""


def _choice_table(suite: _Suite, target: float | None, times: dict[int, float | None]) -> Document:
    rows = [
        [
            Cell(each.label if len(each.label) <= LONG_LABEL else f"{each.label[: LONG_LABEL - 6]}… ({each.id})"),
            Cell(_seconds(times.get(each.id), "not reached" if target is not None else DASH)),
            Cell(_seconds(each.train_s, DASH)),
            Cell(decimals(each.mean_ppl) if each.mean_ppl is not None else DASH),
            Cell(f"{each.gap_nats:+.3f}" if each.gap_nats is not None else DASH),
        ]
        for each in suite.all.values()
    ]
    words = "target" if target is None else f"{target:,.10g}"
    return Document(
        label="tab:choice",
        title="",
        caption="",
        headers=["Experiment", f"Time to PPL {words} (s)", "Training (s)", "Validation PPL", "Gap (nats)"],
        numeric=[False, True, True, True, True],
        rows=rows,
    )


def _optimizers(suite: _Suite) -> Finding:
    """Question 4."""
    answer = _Answer()
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


def _architectures(suite: _Suite) -> Finding:
    """Question 5."""
    answer = _Answer()
    lstm, gpt1 = suite.find("lstm", 1, "adam"), suite.find("gpt1", 1, "adam")
    verdict = answer.compare(gpt1, lstm, "GPT-1 and LSTM with Adam").verdict
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
    if verdict.hint:
        answer.interpretation.append(ONE_SEED)
    return Finding(
        number=5,
        question="How do LSTM and GPT-1 compare, one layer each, with Adam?",
        measured=answer.measured,
        rule="Differences are judged as in Question 4.",
        interpretation=answer.interpretation,
    )


def _depth(suite: _Suite) -> Finding:
    """Question 6."""
    answer = _Answer()
    depths = [suite.find("gpt1", layers, "adamw") for layers in (1, 2, 4)]
    verdicts = []
    for shallow, deep, words in zip(depths, depths[1:], ("1 and 2 layers", "2 and 4 layers"), strict=False):
        found = answer.compare(deep, shallow, f"GPT-1 with AdamW, {words}")
        verdicts.append(found.verdict)
        if deep is not None and shallow is not None and found.verdict is not Verdict.NONE:
            answer.interpretation.append(_depth_words(shallow, deep, found.verdict))
    if all(verdict.lower for verdict in verdicts):
        answer.interpretation.insert(0, "As expected: each doubling of the depth lowers validation perplexity.")
    elif any(verdict.higher for verdict in verdicts):
        answer.interpretation.insert(
            0, "Not as expected: more layers should fit at least as well, and do not throughout."
        )
    elif Verdict.NONE not in verdicts:
        answer.interpretation.insert(0, "Neither as expected nor against it: the differences are too small to tell.")
    if any(verdict.hint for verdict in verdicts):
        answer.interpretation.append(ONE_SEED)
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
        cause = (
            "train perplexity is higher too, so the deeper model is harder to optimize here: norms after the residual "
            "sums and no warm-up of the learning rate are known to slow deep stacks"
        )
    elif verdict.lower:
        cause = f"train perplexity is {'lower too' if fits_better else 'not lower, yet validation is'}"
    else:
        cause = "no difference in validation perplexity is shown"
    still = [run for run in deep.runs if run.state.best_epoch is run.state.last_epoch]
    more = "; its best epoch is the last, so more epochs may change the order" if still else ""
    return f"{start}: {cause}{more}."


def _footprint(suite: _Suite) -> Finding:
    """Question 7."""
    answer = _Answer()
    table = memory_frame(suite.group)
    gpu = uses_gpu(suite.group)
    column = "memory_mib" if gpu else "host_peak_mib"
    used = {
        int(experiment): float(mib)
        for experiment, mib in zip(table["experiment"], table[column], strict=True)
        if not _unknown(mib)
    }
    what = "GPU memory while training" if gpu else "Peak host memory"
    if used:
        low, high = min(used, key=lambda n: used[n]), max(used, key=lambda n: used[n])
        answer.measured.append(
            f"{what}: from {formatting.mib(used[low])}, {suite.all[low].label}, to {formatting.mib(used[high])}, "
            f"{suite.all[high].label}."
        )
        answer.interpretation.append(_footprint_words(used[low], used[high], gpu))
    else:
        answer.measured.append(f"No run has told its memory in at least {MIN_SAMPLES} samples.")
    sized = [each for each in suite.all.values() if each.parameters_trainable]
    if sized:
        answer.measured += [_state_words(sized), _logits_words(suite.group.reference)]
    return Finding(
        number=7,
        question="How much memory do the runs need, and what for?",
        measured=answer.measured,
        rule=(
            f"{what}: " + ("mean over samples of training, Table 2." if gpu else "largest resident memory, Table 2.")
            + " State: 4 bytes each for a trained weight and its gradient, and 8 more for Adam's two moments, or 4 for "
            "momentum's one. Logits: batch × window × vocabulary × 4 bytes."
        ),
        interpretation=answer.interpretation,
    )  # fmt: skip


def _footprint_words(low_mib: float, high_mib: float, gpu: bool) -> str:
    if high_mib <= low_mib * 1.25:
        words = (
            "The experiments need about the same although their models differ, so most of it is common to all: "
            + ("the driver's context and kernels" if gpu else "the interpreter, the library and the corpus")
            + ", the embedding tables, and the logits of a step."
        )
    else:
        words = (
            "What differs grows with the model: weights, gradients and moments with its parameters, activations kept "
            "for the backward pass with its layers."
        )
    return words + " Logits are worked on in pieces, so that they never lie in memory as a whole."


def _state_words(sized: Sequence[Measured]) -> str:
    def state_mib(each: Measured) -> float:
        optimizer = each.runs[0].info.experiment.optimizer
        moments = {"adam": 8, "adamw": 8, "momentum": 4}.get(optimizer, 0)
        return (each.parameters_trainable or 0) * (8 + moments) / 2**20

    low, high = min(sized, key=state_mib), max(sized, key=state_mib)
    return (
        f"Weights, gradients and optimizer state: from {state_mib(low):,.1f} MiB, {low.label}, to "
        f"{state_mib(high):,.1f} MiB, {high.label}."
    )


def _logits_words(info: RunInfo) -> str:
    s = info.settings
    logits_mib = s.batch_size * s.window_tokens * info.corpus.vocabulary * 4 / 2**20
    return (
        f"Logits of one step in single precision, if they were kept whole: {s.batch_size} × {s.window_tokens} × "
        f"{info.corpus.vocabulary:,} × 4 bytes = {logits_mib:,.1f} MiB."
    )


def _overfitting(suite: _Suite) -> Finding:
    """Question 8."""
    answer = _Answer()
    gaps: dict[str, dict[int, float]] = {}
    for model in ("lstm", "gpt1"):
        for layers in (1, 2, 4):
            each = suite.find(model, layers, "adamw")
            if each is None or not each.complete or each.gap_nats is None:
                answer.measured.append(f"{MODEL_NAMES[model]}, AdamW, {_layers(layers)}: no complete run.")
                continue
            gaps.setdefault(model, {})[layers] = each.gap_nats
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
            "Gap: validation loss minus train loss at the last epoch, AdamW. A class overfits more if its gap is "
            "larger at every depth that both classes have. Train loss is averaged over the epoch, which makes gaps a "
            "little smaller than they are."
        ),
        interpretation=answer.interpretation,
    )


def _class_words(suite: _Suite, gaps: dict[str, dict[int, float]], common: Sequence[int]) -> list[str]:
    larger = {layers: gaps["gpt1"][layers] > gaps["lstm"][layers] for layers in common}
    depths = f"{', '.join(map(str, common))} layer{'s' if common != [1] else ''}"
    if len(set(larger.values())) > 1:
        words = ["Neither class overfits more throughout: which one has the larger gap depends on the depth."]
    else:
        more, less = ("gpt1", "lstm") if larger[common[0]] else ("lstm", "gpt1")
        means = [statistics.fmean(gaps[model][layers] for layers in common) for model in (more, less)]
        sides = f"{means[0]:+.3f} nats against {means[1]:+.3f}"
        words = [f"{MODEL_NAMES[more]} has the larger gap at every depth compared ({depths}): on average {sides}."]
        sizes = [suite.find(model, common[0], "adamw") for model in (more, less)]
        trained = [each.parameters_trainable for each in sizes if each is not None and each.parameters_trainable]
        if len(trained) == 2 and trained[0] > trained[1]:
            words.append(
                f"It also has more trained parameters at equal depth ({trained[0]:,} against {trained[1]:,} with "
                f"{_layers(common[0])}), so the class itself need not be the reason."
            )
    if max(max(values.values()) for values in gaps.values()) <= 0.0:
        words.append("No gap is positive, so nothing is overfitted yet.")
    elif len(suite.group.seeds) == 1:
        words.append(ONE_SEED)
    words.append(
        "Remedies, from the cheapest: stop at the best epoch, which is what the tables show; dropout; stronger weight "
        "decay; fewer or narrower layers; more text."
    )
    return words


def _layers(layers: int) -> str:
    return f"{layers} layer" if layers == 1 else f"{layers} layers"


def _labels(suite: _Suite, numbers: Sequence[int]) -> str:
    return ", ".join(suite.all[number].label for number in numbers)


def _seconds(value: float | None, absent: str) -> str:
    return absent if value is None else f"{value:,.1f}"


def _unknown(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
