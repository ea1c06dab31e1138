"""Architectures, depth and overfitting."""

import math
import statistics
from collections.abc import Mapping, Sequence

from lmconsole import formatting
from lmconsole.importing.settings import ASSUMED
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.comparing import ONE_SEED, ExperimentResult, Verdict
from lmconsole.report.markup import format_ratio
from lmconsole.report.questions.finding import (
    EQUAL_NATS,
    Draft,
    Finding,
    GroupResults,
    describe_inferences,
    format_layers,
)
from lmconsole.runs.store import Run

UNDERFITTED = 2.0
"""Experiments whose perplexity is more than this many times the lowest have barely fitted the text."""

MATERIAL_GAIN = 0.01
"""A last epoch that lowers the validation loss by less than this, in nats, is no reason to expect more of others."""


def architectures(results: GroupResults) -> Finding:
    """Compare GPT-1 with LSTM."""
    draft = Draft()
    lstm, gpt1 = results.find("lstm", 1, "adam"), results.find("gpt1", 1, "adam")
    found = draft.compare(gpt1, lstm, "GPT-1 against LSTM with Adam")
    verdict = found.verdict
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
                f"a ratio of {gpt1.parameters_trainable / lstm.parameters_trainable:.2f}."
            )
    if verdict.first_is_lower or verdict.first_is_higher:
        lower, higher = ("GPT-1", "LSTM") if verdict.first_is_lower else ("LSTM", "GPT-1")
        draft.interpretation.append(
            f"{lower} reaches a lower perplexity than {higher}. The two differ in architecture and in size, so this is "
            "not a comparison at equal parameters or equal time."
        )
        draft.interpretation.append(
            "A likely reason: attention accesses every position of the window directly, while the LSTM has to carry "
            "all context through a state of fixed width."
            if verdict.first_is_lower
            else "A likely reason: the recurrence has the order of the text built in, while attention has to learn it "
            "from position embeddings."
        )
    elif verdict is not Verdict.NO_DATA:
        draft.interpretation.append("No difference between the architectures is shown.")
    if found.caution:
        draft.interpretation.append(found.caution)
    if found.verdict is not Verdict.NO_DATA and (inferences := describe_inferences(gpt1, lstm)):
        draft.interpretation.append(inferences)
    return Finding(
        question="How do LSTM and GPT-1 compare, with one layer each and Adam?",
        observations=draft.observations,
        method="Differences are judged as for the optimizers.",
        interpretation=draft.interpretation,
    )


def depth(results: GroupResults) -> Finding:
    """Compare GPT-1 models of different depths."""
    draft = Draft()
    depths = [results.find("gpt1", layers, "adamw") for layers in (1, 2, 4)]
    verdicts, cautions = [], []
    for shallow, deep, layers in zip(depths, depths[1:], ("2 layers against 1", "4 layers against 2"), strict=False):
        found = draft.compare(deep, shallow, f"GPT-1 with AdamW, {layers}")
        verdicts.append(found.verdict)
        cautions.append(found.caution)
        if deep is not None and shallow is not None and found.verdict is not Verdict.NO_DATA:
            draft.interpretation.append(_interpret_doubling(shallow, deep, found.verdict))
    if all(verdict.first_is_lower for verdict in verdicts):
        draft.interpretation.insert(0, "As expected: each doubling of the depth lowers validation perplexity.")
    elif any(verdict.first_is_higher for verdict in verdicts):
        draft.interpretation.insert(
            0,
            "Not as expected: more layers should fit at least as well, but at least one doubling of the depth "
            "raises validation perplexity.",
        )
    elif any(verdict.first_is_lower for verdict in verdicts):
        draft.interpretation.insert(
            0, "Partly as expected: one doubling of the depth lowers validation perplexity, but not both."
        )
    elif Verdict.NO_DATA not in verdicts:
        draft.interpretation.insert(0, "Inconclusive: the differences are too small to interpret.")
    draft.interpretation += [caution for caution in dict.fromkeys(cautions) if caution]
    return Finding(
        question="Does a deeper GPT-1 perform better, and is this expected?",
        observations=draft.observations,
        method="Expected: lower validation perplexity with each doubling of the layers, judged as for the optimizers.",
        interpretation=draft.interpretation,
    )


def _interpret_doubling(shallow: ExperimentResult, deep: ExperimentResult, verdict: Verdict) -> str:
    """Explain the effect of depth by the train perplexity and by whether the deeper model was still improving."""
    start = f"From {shallow.label_with_id} to {deep.label_with_id}"
    if shallow.train_ppl_at_best is None or deep.train_ppl_at_best is None:
        return f"{start}: train perplexities are unknown."
    fits_better = deep.train_ppl_at_best < shallow.train_ppl_at_best
    if verdict.first_is_higher and fits_better:
        cause = "train perplexity falls while validation perplexity rises, which indicates overfitting"
    elif verdict.first_is_higher:
        cause = "train perplexity is higher too, so the deeper model is harder to optimize here"
        info = deep.runs[0].info
        if info.origin == "trained" and not info.settings.warmup_steps:
            cause += ": post-layer normalization without learning rate warm-up is known to slow training of deep stacks"
    elif verdict.first_is_lower:
        cause = f"train perplexity is {'lower too' if fits_better else 'not lower, but validation perplexity is'}"
    else:
        cause = "no difference in validation perplexity is shown"
    return f"{start}: {cause}{_still_improving(shallow, deep, verdict)}."


def _still_improving(shallow: ExperimentResult, deep: ExperimentResult, verdict: Verdict) -> str:
    """Return that more epochs may change the order, if the deeper model is not better and its last epoch improved it by
    more than ``MATERIAL_GAIN`` and by enough to close the difference within as many epochs again; else empty."""
    gains = [gain for run in deep.runs if (gain := last_gain_nats(run)) is not None]
    if verdict.first_is_lower or len(gains) < len(deep.runs) or not deep.mean_ppl or not shallow.mean_ppl:
        return ""
    gain, epochs = min(gains), min(len(run.state.epochs) for run in deep.runs)
    difference = math.log(deep.mean_ppl / shallow.mean_ppl)
    if gain <= MATERIAL_GAIN or gain * epochs < difference:
        return ""
    unknown = (
        " (its source does not state whether the learning rate was constant)"
        if deep.runs[0].info.origins.get("learning_rate_decay") == ASSUMED
        else ""
    )
    return (
        f"; its best epoch is the last and lowered its perplexity by {1 - math.exp(-gain):.1%}, so more epochs may "
        f"change the order{unknown}"
    )


def last_gain_nats(run: Run) -> float | None:
    """Return by how much the last epoch lowered the validation loss; None if it is not the best, or the only one."""
    best, epochs = run.state.best_epoch, run.state.epochs
    if best is None or best is not run.state.last_epoch or len(epochs) < 2:
        return None
    before, last = epochs[-2].valid_loss_nats, best.valid_loss_nats
    return None if before is None or last is None or not math.isfinite(before) else before - last


def overfitting(results: GroupResults) -> Finding:
    """Find the architecture that overfits more."""
    draft = Draft()
    by_model = _known_gaps(results)
    for model, by_depth in by_model.items():
        for layers in DEPTHS:
            each = by_depth.get(layers)
            if each is not None:
                ratio = each.last_gap_ratio
                shown = (
                    "" if ratio is None else f" (validation perplexity is {format_ratio(ratio)} times train perplexity)"
                )
                draft.observations.append(
                    f"{each.label_with_id}: gap of {each.last_gap_nats:+.3f} nats at the last epoch{shown}; validation "
                    f"loss has risen by {each.rise_nats:.3f} nats since its best epoch."
                )
                continue
            found = results.find(model, layers, "adamw")
            reason = "no complete run" if found is None or not found.complete else "the gap is unknown"
            draft.observations.append(f"{MODEL_NAMES[model]} with AdamW and {format_layers(layers)}: {reason}.")
    compared = _without_underfitted(by_model)
    if aside := [
        each.label_with_id
        for model, by_depth in by_model.items()
        for layers, each in by_depth.items()
        if layers not in compared[model]
    ]:
        verb = "has" if len(aside) == 1 else "have"
        draft.interpretation.append(
            f"Set aside, because {'it' if len(aside) == 1 else 'they'} {verb} barely fitted the text and the gap "
            f"therefore says nothing: {', '.join(aside)}."
        )
    common = sorted(compared["lstm"].keys() & compared["gpt1"].keys())
    if common:
        draft.interpretation += _interpret_gaps(results, compared, common)
    return Finding(
        question="Which architecture overfits more, and what would help?",
        observations=draft.observations,
        method=(
            "Gap: validation loss minus train loss at the last epoch, with AdamW, mean over seeds. An architecture "
            "overfits more if its gap is larger at every depth that both have, by more than "
            f"{EQUAL_NATS:g} nats and more than the standard deviation over seeds. Set aside: experiments whose lowest "
            f"validation perplexity is more than {UNDERFITTED:g} times the lowest of these. "
            + (
                "The sources do not state how train loss was computed; if it was averaged over the epoch, the gaps are "
                "slightly underestimated."
                if results.group.imported
                else "Train loss is averaged over the epoch, so the gaps are slightly underestimated."
            )
        ),
        interpretation=draft.interpretation,
    )


DEPTHS = (1, 2, 4)
"""Layers of the experiments whose gaps are compared."""


def _known_gaps(results: GroupResults) -> dict[str, dict[int, ExperimentResult]]:
    """Return the complete experiments with AdamW whose gap and rise are known, by model and depth."""
    found: dict[str, dict[int, ExperimentResult]] = {"lstm": {}, "gpt1": {}}
    for model, by_depth in found.items():
        for layers in DEPTHS:
            each = results.find(model, layers, "adamw")
            if each is not None and each.complete and each.last_gap_nats is not None and each.rise_nats is not None:
                by_depth[layers] = each
    return found


def _without_underfitted(
    by_model: Mapping[str, Mapping[int, ExperimentResult]],
) -> dict[str, dict[int, ExperimentResult]]:
    """Leave out experiments that have learned too little for their gap to mean anything."""
    ppls = {each.id: each.mean_ppl or math.inf for by_depth in by_model.values() for each in by_depth.values()}
    limit = UNDERFITTED * min(ppls.values(), default=math.inf)
    return {
        model: {layers: each for layers, each in by_depth.items() if ppls[each.id] <= limit}
        for model, by_depth in by_model.items()
    }


def comparable_gaps(results: GroupResults) -> dict[str, dict[int, ExperimentResult]]:
    """Return the experiments in whose gaps overfitting is compared, by model and depth."""
    return _without_underfitted(_known_gaps(results))


def _has_larger_gap(one: ExperimentResult, other: ExperimentResult) -> bool:
    margin = max(EQUAL_NATS, one.last_gap_sd_nats, other.last_gap_sd_nats)
    return (one.last_gap_nats or 0.0) - (other.last_gap_nats or 0.0) > margin


def _interpret_gaps(
    results: GroupResults, by_model: Mapping[str, Mapping[int, ExperimentResult]], common: Sequence[int]
) -> list[str]:
    larger = {
        model: all(_has_larger_gap(by_model[model][layers], by_model[other][layers]) for layers in common)
        for model, other in (("gpt1", "lstm"), ("lstm", "gpt1"))
    }
    depths = f"{', '.join(map(str, common))} layer{'s' if common != [1] else ''}"
    gaps_nats = {
        model: {layers: each.last_gap_nats or 0.0 for layers, each in by_depth.items()}
        for model, by_depth in by_model.items()
    }
    if not any(larger.values()):
        sentences = [f"Neither architecture overfits more: neither has the larger gap at every depth ({depths})."]
    else:
        more, less = ("gpt1", "lstm") if larger["gpt1"] else ("lstm", "gpt1")
        means = [statistics.fmean(gaps_nats[model][layers] for layers in common) for model in (more, less)]
        average = f"{means[0]:+.3f} nats against {means[1]:+.3f}"
        sentences = [
            f"{MODEL_NAMES[more]} has the larger gap at every depth compared ({depths}): on average {average}."
        ]
        rises = [max(each.rise_nats or 0.0 for each in by_model[model].values()) for model in (more, less)]
        sentences.append(
            f"Its validation loss has risen by up to {rises[0]:.3f} nats since its best epoch, that of "
            f"{MODEL_NAMES[less]} by up to {rises[1]:.3f}."
        )
        sizes = [results.find(model, common[0], "adamw") for model in (more, less)]
        trained = [each.parameters_trainable for each in sizes if each is not None and each.parameters_trainable]
        if len(trained) == 2 and trained[0] > trained[1]:
            sentences.append(
                f"It also has more trained parameters at equal depth ({trained[0]:,} against {trained[1]:,} with "
                f"{format_layers(common[0])}), so the architecture itself need not be the reason."
            )
    if max(max(gaps.values()) for gaps in gaps_nats.values()) <= 0.0:
        sentences.append("No gap is positive, so there is no overfitting yet.")
    elif len(results.group.seeds) == 1:
        sentences.append(ONE_SEED)
    sentences.append(
        "Remedies, cheapest first: stop at the best epoch, as in the tables; dropout; stronger weight decay; fewer or "
        "narrower layers; more text."
    )
    return sentences
