"""Architectures and depth."""

import itertools
import math
from collections.abc import Sequence

from lmconsole import formatting
from lmconsole.importing.settings import ASSUMED
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.report.comparing import Comparison, Evidence, Pair
from lmconsole.report.experiment_result import ExperimentResult
from lmconsole.report.questions.finding import (
    AS_EXPLAINED,
    Draft,
    Finding,
    GroupResults,
    describe_inferences,
    format_layers,
)

MATERIAL_GAIN = 0.01
"""A last epoch that lowers the validation loss by less than this, in nats, is no reason to expect more of others."""

DEPTHS = (1, 2, 4)
"""Layers of the experiments that are compared."""

DEPTH_MODELS = ("gpt1", "lstm")
"""Architectures of the experiments that are compared by depth."""


def architecture_pairs(results: GroupResults) -> list[Pair]:
    """Return the pairs of architectures: with Adam, which the question is about, and deeper ones with AdamW."""
    kinds = [(1, "adam"), *((layers, "adamw") for layers in DEPTHS[1:])]
    found = [
        Pair(
            subject=f"GPT-1 against LSTM with {OPTIMIZER_NAMES[optimizer]} and {format_layers(layers)}",
            first=results.find("gpt1", layers, optimizer),
            second=results.find("lstm", layers, optimizer),
        )
        for layers, optimizer in kinds
    ]
    return [found[0], *(pair for pair in found[1:] if pair.exists)]


def architectures(results: GroupResults) -> Finding:
    """Compare GPT-1 with LSTM."""
    draft = Draft()
    found, *deeper = comparisons = results.compare(architecture_pairs)
    draft.note(comparisons)
    gpt1, lstm = found.pair.first, found.pair.second
    if lstm is not None and gpt1 is not None:
        if lstm.train_s and gpt1.train_s:
            draft.observations.append(
                f"Training time: {formatting.seconds(gpt1.train_s)} for {gpt1.label_with_id} and "
                f"{formatting.seconds(lstm.train_s)} for {lstm.label_with_id}, "
                f"a ratio of {gpt1.train_s / lstm.train_s:.2f}."
            )
        if lstm.parameters_trainable and gpt1.parameters_trainable:
            draft.observations.append(
                f"Trained parameters: {gpt1.parameters_trainable:,} and {lstm.parameters_trainable:,}, "
                f"a ratio of {gpt1.parameters_trainable / lstm.parameters_trainable:.2f}"
                f"{_without_embeddings(gpt1, lstm)}."
            )
    if found.evidence is not Evidence.NO_DATA:
        draft.conclude(
            f"GPT-1 against LSTM: {found.order}",
            f"With AdamW and more layers: {'; '.join(each.order.removesuffix('.') for each in known)}."
            if (known := [each for each in deeper if each.evidence is not Evidence.NO_DATA])
            else "",
            "The two differ in architecture and in size, so this is not a comparison at equal parameters or equal "
            "time.",
        )
        if found.is_material:
            draft.conclude(
                "A possible reason: attention accesses every position of the window directly, while the LSTM has to "
                "carry all context through a state of fixed width."
                if found.first_is_lower
                else "A possible reason: the recurrence has the order of the text built in, while attention has to "
                "learn it from position embeddings."
            )
        draft.conclude(describe_inferences(gpt1, lstm))
    return Finding(
        question="How do LSTM and GPT-1 compare, with one layer each and Adam?",
        answer=Draft.answer(_answer_architectures(comparisons), comparisons),
        observations=draft.observations,
        method=AS_EXPLAINED,
        interpretation=draft.interpretation,
        table=draft.table,
        table_lead=draft.table_lead,
    )


def _answer_architectures(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the results for the answer; empty without data."""
    found, *deeper = [each.short for each in comparisons if each.short] or [""]
    if not found:
        return []
    return [f"Lowest loss: {found}", f"with more layers {', '.join(deeper)}"] if deeper else [f"Lowest loss: {found}"]


def _without_embeddings(*results: ExperimentResult) -> str:
    """Return the ratio of parameters besides learned token embeddings, of which both have equally many; empty if they
    are frozen."""
    counts = [body_parameters(each) for each in results]
    if None in counts or min(count or 0 for count in counts) <= 0:
        return ""
    first, second = (count or 0 for count in counts)
    return f"; besides token embeddings {first:,} and {second:,}, a ratio of {first / second:.2f}"


def body_parameters(result: ExperimentResult) -> int | None:
    """Return the number of trained parameters besides token embeddings; None if it is unknown, or if these are not
    trained."""
    info = result.info
    if result.parameters_trainable is None or info.settings.embeddings != "learned" or info.origin != "trained":
        return None
    return result.parameters_trainable - info.corpus.vocabulary * info.settings.channels


def depth_pairs(results: GroupResults) -> list[Pair]:
    """Return the pairs of depths of each architecture, the deeper one first."""
    pairs = []
    for model in DEPTH_MODELS:
        depths = [results.find(model, layers, "adamw") for layers in DEPTHS]
        pairs += [
            Pair(
                subject=f"{MODEL_NAMES[model]} with AdamW, {format_layers(more)} against {fewer}",
                first=deep,
                second=shallow,
            )
            for (fewer, shallow), (more, deep) in itertools.pairwise(zip(DEPTHS, depths, strict=True))
        ]
    return pairs


def depth(results: GroupResults) -> Finding:
    """Compare models of different depths."""
    draft = Draft()
    comparisons = results.compare(depth_pairs)
    draft.note(comparisons)
    doublings = len(DEPTHS) - 1
    answers = []
    for number, model in enumerate(DEPTH_MODELS):
        own = comparisons[number * doublings : (number + 1) * doublings]
        answers += _answer_depths(MODEL_NAMES[model], own)
        draft.conclude(_summarize_depths(MODEL_NAMES[model], own))
        for found in own:
            deep, shallow = found.pair.first, found.pair.second
            if found.evidence is not Evidence.NO_DATA and deep is not None and shallow is not None:
                draft.conclude(
                    f"From {shallow.label_with_id} to {deep.label_with_id}: {found.order}",
                    _explain_doubling(shallow, deep, found),
                )
    return Finding(
        question="Does a deeper model perform better, and is this expected?",
        answer=Draft.answer(answers, comparisons),
        observations=draft.observations,
        method=(
            f"{_describe_expectation(results)} A model was still improving if its last epoch lowered the validation "
            f"loss by more than {MATERIAL_GAIN:g} nats. {AS_EXPLAINED}"
        ),
        interpretation=draft.interpretation,
        table=draft.table,
        table_lead=draft.table_lead,
    )


def _describe_expectation(results: GroupResults) -> str:
    """Return what is expected of depth in general, and with the budget of these runs."""
    text = "With enough text and training, a lower loss is expected with each doubling of the layers."
    runs = [run for result in results.by_id.values() for run in result.runs if run.state.progress]
    tokens = results.group.reference.corpus.tokens.get("train")
    if results.group.imported or not runs or not tokens:
        return text
    steps = max(run.state.progress[-1].steps * run.state.epochs_done for run in runs)
    warmup = "" if results.group.reference.settings.warmup_steps else ", without warm-up of the learning rate"
    return (
        f"{text} These runs have {tokens:,} tokens of text and up to {steps:,} steps{warmup}, so optimization may "
        "limit the deeper ones."
    )


def _answer_depths(name: str, comparisons: Sequence[Comparison]) -> list[str]:
    """Return the result of each doubling for the answer; empty without data."""
    pairs = [(found, found.pair.second, found.pair.first) for found in comparisons]
    shown = [
        f"{_direction(found)} from {shallow.info.experiment.layers} to {format_layers(deep.info.experiment.layers)}"
        for found, shallow, deep in pairs
        if found.evidence is not Evidence.NO_DATA and shallow and deep
    ]
    return [f"{name}: the loss {', '.join(shown)}"] if shown else []


def _direction(found: Comparison) -> str:
    """Return what a doubling did to the loss."""
    if found.evidence in (Evidence.DESCRIPTION, Evidence.INCONCLUSIVE):
        return f"is open ({found.evidence.value!s})"
    if found.first_is_lower is None:
        return "hardly changes"
    return "falls" if found.first_is_lower else "rises"


def _summarize_depths(name: str, comparisons: Sequence[Comparison]) -> str:
    """Return whether the order of the depths of a model is the expected one, with the evidence of both doublings."""
    evidence = {found.evidence for found in comparisons}
    if Evidence.NO_DATA in evidence:
        return ""
    lower = [found.first_is_lower for found in comparisons]
    order = (
        "as expected, the loss falls with each doubling of the depth"
        if all(lower)
        else "as expected for one doubling of the depth, but not for both"
        if any(lower)
        else "not as expected, the loss falls with no doubling of the depth"
    )
    if evidence == {Evidence.EXPLORATORY}:
        return f"{name}: {order}."
    if Evidence.ONE_SEED in evidence:
        return f"{name}: {order}."
    return f"{name}: open, because not every doubling is more than a description."


def _explain_doubling(shallow: ExperimentResult, deep: ExperimentResult, found: Comparison) -> str:
    """Explain the effect of depth by the train perplexity and by whether the deeper model was still improving."""
    if not found.is_material:
        return _still_improving(shallow, deep, found)
    if not (shallow.several_epochs and deep.several_epochs):
        return "One epoch shows neither how well a model fits nor whether it overfits."
    if shallow.train_ppl_at_best is None or deep.train_ppl_at_best is None:
        return f"Train perplexities are unknown. {_still_improving(shallow, deep, found)}".strip()
    fits_better = deep.train_ppl_at_best < shallow.train_ppl_at_best
    if found.first_is_lower:
        cause = "Train perplexity falls too." if fits_better else "Train perplexity does not fall with it."
    elif fits_better:
        cause = "Train perplexity falls while the loss on other text rises, which may be overfitting."
    else:
        cause = "Train perplexity rises too, so a possible reason is that the deeper model is harder to optimize here."
        trained, settings = deep.info.origin == "trained", deep.info.settings
        if trained and deep.info.experiment.model == "gpt1" and not settings.warmup_steps:
            cause += " Post-layer normalization without learning rate warm-up is known to slow training of deep stacks."
    return f"{cause} {_still_improving(shallow, deep, found)}".strip()


def _still_improving(shallow: ExperimentResult, deep: ExperimentResult, found: Comparison) -> str:
    """Return whether more epochs may change the order, if the deeper model is behind and was still improving; else
    empty. At the pace of the last epochs it catches up by its gain less that of the shallower model."""
    gain = deep.last_gain_nats
    if found.first_is_lower is not False or gain is None or gain <= MATERIAL_GAIN:
        return ""
    if not deep.mean_ppl or not shallow.mean_ppl:
        return ""
    epochs = min(len(run.state.epochs) for run in deep.runs)
    difference = math.log(deep.mean_ppl / shallow.mean_ppl)
    catches_up = gain - max(shallow.last_gain_nats or 0.0, 0.0)
    improved = (
        f"The best epoch of {deep.label_with_id} is the last and lowered its perplexity by {1 - math.exp(-gain):.1%}"
    )
    if catches_up * epochs < difference:
        return f"{improved}; at that pace, as many epochs again would not change the order."
    text = f"{improved}, so more epochs may change the order"
    if deep.info.origins.get("learning_rate_decay") == ASSUMED:
        return f"{text}; its source does not state whether a scheduler changed the learning rate."
    if deep.info.settings.learning_rate_decay != "none":
        return f"{text}, but with a longer schedule: its learning rate decayed over the planned epochs."
    return f"{text}."
