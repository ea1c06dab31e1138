"""Appendix: what the checklists of NeurIPS and TMLR ask about experiments, answered from the runs.

What no run records is “not known”; its authors have to answer it.
"""

import re
from collections.abc import Mapping, Sequence

from lmconsole import formatting
from lmconsole.formatting import counted
from lmconsole.plan.flops import run_flops
from lmconsole.report.blocks import Block, Heading, Paragraph
from lmconsole.report.captions import join_sentences, name_experiments, ppl_denominator, seed_list
from lmconsole.report.results import test_nll_se
from lmconsole.report.selection import Group
from lmconsole.runs.store import Run

NOT_KNOWN = "Not known."


def reproducibility(group: Group, *, exploratory: bool) -> list[Block]:
    """Return the appendix with the answers."""
    answers: Mapping[str, Sequence[str]] = {
        "Claims.": [
            "No claim that was registered before the runs covers all of them; results that none covers are exploratory."
            if exploratory
            else "Registered before the runs; see Claims."
        ],
        "Limitations.": [_LIMITATIONS],
        "Setting.": _setting(group),
        "Choice of settings.": [_choice_of_settings(group)],
        "Measure.": [
            f"Perplexity per {ppl_denominator(group)}. The epoch was chosen by validation perplexity alone.",
        ],
        "Runs.": _runs(group),
        "Uncertainty.": [_uncertainty(group)],
        "Compute.": _compute(group),
        "Data.": [_data(group), f"License, consent and contents: {NOT_KNOWN.lower()}"],
        "Code.": [
            "Versions and the command that trains the runs again are in Provenance."
            if not group.imported
            else f"Of the program that trained the runs: {NOT_KNOWN.lower()}"
        ],
        "Impact, safeguards, human subjects.": [NOT_KNOWN],
    }
    heading = Heading(1, "Appendix: reproducibility")
    return [heading, *(Paragraph(join_sentences(answer), lead=lead) for lead, answer in answers.items())]


_LIMITATIONS = (
    "Results hold for this corpus, its test split, this budget and these settings. Other corpora, sizes and budgets "
    "were not tried here."
)


def _setting(group: Group) -> list[str]:
    if group.imported:
        return [
            "What the sources state, and what is inferred from them, is in Provenance. Other settings are not known."
        ]
    trained = [run.state.started.parameters_trainable for run in group.runs if run.state.started]
    sizes = sorted({size for size in trained if size})
    parameters = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}" if sizes else "not known"
    return [f"All settings and their sources are in Provenance. Trained parameters: {parameters}."]


def _choice_of_settings(group: Group) -> str:
    if group.imported:
        return NOT_KNOWN
    origins = dict.fromkeys(origin for run in group.runs for origin in run.info.origins.values())
    files = dict.fromkeys(re.split(r" row | \[|, ", origin.rpartition("/")[2])[0] for origin in origins)
    return f"From: {', '.join(files)}. Whether these settings were tuned, and on which data, is not known."


def _runs(group: Group) -> list[str]:
    by_count: dict[int, list[int]] = {}
    for id_, runs in group.by_experiment.items():
        by_count.setdefault(len(runs), []).append(id_)
    seeds = "; ".join(f"{counted(count, 'run')} each of {name_experiments(ids)}" for count, ids in by_count.items())
    count = len(group.excluded)
    left_out = f"{count or 'No'} comparable {'run' if count <= 1 else 'runs'}"
    are = "is" if count <= 1 else "are"
    return [
        f"{counted(len(group.runs), 'run')} of {counted(len(group.by_experiment), 'experiment')} ({seeds}).",
        f"{left_out} of this store {are} left out. Runs that were deleted, or made elsewhere, are not known.",
    ]


def _uncertainty(group: Group) -> str:
    if group.imported:
        return "Seeds and what they vary: not known."
    if all(len(runs) == 1 for runs in group.by_experiment.values()):
        return f"One seed of each experiment: the spread over seeds is not known. {_sampling_error(group)}"
    return (
        f"Seeds {seed_list(group)} vary initial weights and the order of the data. ± is the standard deviation (n − 1) "
        f"over seeds. {_sampling_error(group)}"
    )


def _sampling_error(group: Group) -> str:
    """Return a sentence on the error of test losses as estimates for other text like that of the test split."""
    errors = [error for run in group.runs if (error := test_nll_se(run)) is not None]
    if not errors:
        return "The sampling error of the test split is not known."
    low, high = min(errors), max(errors)
    span = f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
    return (
        f"The sampling error of the test split comes on top: a standard error of {span} nats per token, over its "
        "windows. It is common to all runs, so differences between them have less of it."
    )


def _compute(group: Group) -> list[str]:
    every = [*group.runs, *(run for run, _ in group.excluded)]
    times = [run.state.elapsed_train_s for run in every if run.state.elapsed_train_s is not None]
    sentences = [f"Device: {', '.join(group.devices) or 'not known'}."]
    if times:
        span = formatting.seconds(min(times))
        span += f" to {formatting.seconds(max(times))}" if len(times) > 1 else ""
        sentences.append(
            f"Training time of a run: {span}; in total {formatting.seconds(sum(times))}, runs left out included."
        )
    else:
        sentences.append("Training time: not known.")
    joules = [run.state.finished.energy_j if run.state.finished else None for run in every]
    known = [each for each in joules if each is not None]
    energy = formatting.energy(sum(known)) if len(known) == len(joules) else "not known"
    flops = [_flops(run) for run in group.runs]
    operations = [each for each in flops if each is not None]
    work = f"{sum(operations) / 1e12:,.3g} TFLOP" if len(operations) == len(flops) else "not known"
    return [*sentences, f"Energy of the GPU: {energy}.", f"Matrix products of the runs shown, as planned: {work}."]


def _flops(run: Run) -> float | None:
    """Return the operations of a run as planned, or None if its corpus or model is unknown."""
    corpus = run.info.corpus
    known = run.info.origin == "trained" and {"train", "validation", "test"} <= corpus.tokens.keys()
    return run_flops(run.info.settings, corpus.vocabulary, corpus.tokens) if known else None


def _data(group: Group) -> str:
    corpus = group.reference.corpus
    if group.imported or not corpus.sha256:
        return "Text and splits: not known."
    splits = ", ".join(f"{tokens:,} {split}" for split, tokens in corpus.tokens.items())
    return f"Corpus “{corpus.name}” in tokens: {splits}. Its fingerprint is in Provenance."
