"""Sentences of the first page: what was trained, the best results and their cost, what is claimed, what is missing."""

import math
import statistics
from collections.abc import Mapping, Sequence

from lmconsole import formatting
from lmconsole.formatting import counted
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.captions import describe_outcomes, excluded_runs, seed_list
from lmconsole.report.comparing import MATERIAL_NATS
from lmconsole.report.experiment_result import experiment_results
from lmconsole.report.markup import format_ppl, format_spread
from lmconsole.report.results import best_experiments, is_complete, marks, memory_frame, not_below_unigram, uses_gpu
from lmconsole.report.selection import Group
from lmconsole.runs.store import Run


def summary(group: Group, claim_sentences: Sequence[str]) -> list[str]:
    """Return the five sentences of the first page. ``claim_sentences``, if any, say what is claimed."""
    best = best_experiments(group)
    sentences = [
        _describe_runs(group),
        _describe_best(group, best) + _describe_unlearned(group),
        _describe_cost(group, best),
    ]
    return [*filter(None, sentences), *(claim_sentences or [_no_claim(group)]), _describe_incomplete(group)]


def _describe_runs(group: Group) -> str:
    info = group.reference
    models = " and ".join(dict.fromkeys(MODEL_NAMES[run.info.experiment.model] for run in group.runs))
    subject = f"{counted(len(group.by_experiment), 'experiment')} with {models} language models"
    runs = f"{counted(len(group.runs), 'run')}{'' if group.imported else f', seeds {seed_list(group)}'}"
    if len(group.seeds) == 1:
        runs = runs.replace("seeds", "seed")
    if group.imported:
        return f"{subject} ({runs}) were imported; lmconsole did not train them."
    tokens = info.corpus.tokens.get("train")
    text = f"{tokens:,} tokens of corpus “{info.corpus.name}”" if tokens else f"corpus “{info.corpus.name}”"
    epochs = sorted({run.info.settings.epochs for run in group.runs})
    length = counted(epochs[0], "epoch") if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]} epochs"
    devices = ", ".join(group.devices) or "an unknown device"
    was = "was" if len(group.by_experiment) == 1 else "were"
    return (
        f"{subject} ({runs}) {was} trained for {length} on {text} in {info.settings.precision} precision on {devices}."
    )


def _describe_best(group: Group, best: Mapping[int, list[Run]]) -> str:
    if not best:
        return "No run has a finite perplexity."
    phrases = [f"{_label(id_, runs)}, {_ppls(runs)}{_describe_near(group, id_)}" for id_, runs in best.items()]
    return f"Lowest validation perplexity{' of each architecture' if len(best) > 1 else ''}: {'. '.join(phrases)}."


def _describe_near(group: Group, best: int) -> str:
    """Name experiments of the same architecture whose validation perplexity is hardly higher than the lowest."""
    results = experiment_results(group)
    model, lowest = results[best].info.experiment.model, results[best].mean_ppl
    near = [
        each.label_with_id
        for each in results.values()
        if each.id != best and each.info.experiment.model == model and each.complete
        if lowest and each.mean_ppl and math.log(each.mean_ppl / lowest) <= MATERIAL_NATS
    ]
    return f"; within {MATERIAL_NATS:.0%} of it: {', '.join(near)}" if near else ""


def _describe_unlearned(group: Group) -> str:
    """Name experiments whose validation perplexity is not below that of token frequencies or, where that is unknown,
    whose best validation losses are those of a uniform guess, or little lower."""
    unigram = group.unigram_ppl.get("validation")
    if unigram is not None:
        above = [
            f"{_label(id_, group.by_experiment[id_])}, {format_ppl(ppl)}"
            for id_, ppl in not_below_unigram(group).items()
        ]
        start = f" Not below the validation perplexity of token frequencies ({format_ppl(unigram)})"
        return f"{start}: {'; '.join(above)}." if above else ""
    results = experiment_results(group)
    found = [_label(id_, each.runs) for id_, each in results.items() if each.hardly_learned]
    if not found:
        return ""
    return f" Close to a uniform guess over the vocabulary, with hardly anything learned: {', '.join(found)}."


def _ppls(runs: Sequence[Run]) -> str:
    """Return validation and test perplexity over the seeds, with the spread if there is one."""
    found = [_over_seeds([run.state.best_epoch.valid_ppl if run.state.best_epoch else None for run in runs])]
    test = _over_seeds([run.state.finished.test_ppl_best if run.state.finished else None for run in runs])
    return "".join([found[0] or "unknown", f" (test {test})" if test else ""])


def _over_seeds(ppls: Sequence[float | None]) -> str:
    known = [ppl for ppl in ppls if ppl is not None and math.isfinite(ppl)]
    if not known or len(known) < len(ppls):
        return f"{format_ppl(statistics.fmean(known))} in {len(known)} of {len(ppls)} seeds" if known else ""
    if len(known) == 1:
        return format_ppl(known[0])
    return f"{format_spread(statistics.fmean(known), statistics.stdev(known))} over {len(known)} seeds"


def _describe_cost(group: Group, best: Mapping[int, list[Run]]) -> str:
    memory, gpu = memory_frame(group), uses_gpu(group)
    used = memory["memory_mib" if gpu else "host_peak_mib"].astype(float)
    mib_by_id = dict(zip(memory["experiment"].tolist(), used.tolist(), strict=True))
    phrases = []
    for id_, runs in best.items():
        times = [run.state.elapsed_train_s for run in runs]
        known = [time for time in times if time is not None]
        mib = mib_by_id[id_]
        costs = [f"{formatting.seconds(statistics.fmean(known))} of training"] if len(known) == len(times) else []
        costs += [] if math.isnan(mib) else [formatting.mib(mib)]
        if costs:
            phrases.append(f"{' and '.join(costs)} for {_label(id_, runs)}")
    if not phrases:
        return ""
    mean = " (mean time, most memory of all seeds)" if any(len(runs) > 1 for runs in best.values()) else ""
    return f"Time and {'device memory' if gpu else 'host memory'}{mean}: {'; '.join(phrases)}."


def _label(id_: int, runs: Sequence[Run]) -> str:
    return f"{runs[0].info.experiment.label} ({id_}){marks(runs)}"


def _no_claim(group: Group) -> str:
    fewest = min(len(runs) for runs in group.by_experiment.values())
    doubt = ", and one seed shows no uncertainty" if fewest == 1 else ""
    return f"No claim was registered before these runs, so every comparison here is exploratory{doubt}."


def _describe_incomplete(group: Group) -> str:
    incomplete = [run for run in group.runs if not is_complete(run)]
    complete = len(group.runs) - len(incomplete)
    if not incomplete:
        sentence = "The run is complete" if complete == 1 else f"All {complete} runs are complete"
    else:
        sentence = f"{complete} of {counted(len(group.runs), 'run')} complete; {describe_outcomes(incomplete)}"
    left_out = excluded_runs(group)
    return f"{sentence}; left out: {left_out}." if left_out else f"{sentence}."
