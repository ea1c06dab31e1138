"""Notation and setting: what all tables and figures share, which is stated once instead of in every caption."""

from lmconsole.formatting import counted
from lmconsole.report.blocks import Paragraph
from lmconsole.report.captions import (
    describe_evaluations,
    describe_group,
    join_sentences,
    ppl_denominator,
    timing_caveat,
)
from lmconsole.report.results import explain_marks, marks
from lmconsole.report.selection import Group
from lmconsole.runs.info import RunInfo

EXPLORATORY = "Exploratory"
"""Word for runs that no claim covers; figures of them have it in a corner."""

NO_CLAIM = (
    "Runs that are not covered by a claim that was registered before them suggest what to test, and support no verdict."
)


def notation(group: Group, *, exploratory: bool) -> list[Paragraph]:
    """Return the setting of a group, and the notation of its tables and figures."""
    best = "Tables show each run at its best epoch, that with the lowest validation PPL."
    if group.imported:
        origin = "The sources do not state how train PPL was computed."
    else:
        origin = (
            "Train PPL is computed from the training losses of the epoch, during which the model improves, so it can "
            "begin above validation PPL. Test PPL uses the weights of the best epoch. The splits are different texts, "
            "so levels are not comparable across splits."
        )
    if any(len(runs) > 1 for runs in group.by_experiment.values()):
        lines = "Thin lines are seeds, thick ones means where all seeds have a value."
    else:
        lines = "Each line is one run, since there is one seed."
    axes = (
        "Rings mark best epochs. Axes of perplexity are logarithmic where no curve rises after its best epoch, else "
        "linear and without the first epochs, which would hide a rise by a few percent."
    )
    if group.unigram_ppl:
        axes += " Dotted: validation perplexity of token frequencies, where it is within an axis."
    times = ["Time is cumulative training time, without setup and evaluation.", timing_caveat(group)]
    shown = explain_marks("".join(marks(runs) for runs in group.by_experiment.values()))
    paragraphs = {
        "Runs.": describe_group(group),
        "Models.": "" if group.imported else _describe_models(group),
        "Perplexity.": join_sentences(
            [f"Perplexity (PPL) is per {ppl_denominator(group)}.", best, origin, describe_evaluations(group)]
        ),
        "Figures.": f"Numbers in parentheses are experiments. {lines} {axes}",
        "Times.": join_sentences(times),
        "Marks.": shown,
        f"{EXPLORATORY}.": NO_CLAIM if exploratory else "",
    }
    return [Paragraph(text, lead=lead) for lead, text in paragraphs.items() if text]


def _describe_models(group: Group) -> str:
    """Describe the models of trained runs, with their sizes."""
    sentences = []
    for model, describe in (("lstm", _describe_lstm), ("gpt1", _describe_gpt1)):
        infos = [runs[0].info for runs in group.by_experiment.values() if runs[0].info.experiment.model == model]
        if infos:
            sentences.append(describe(infos[0]))
            if sizes := _describe_sizes(group, model):
                sentences.append(f"Trained parameters: {sizes}.")
    steps = {run.state.progress[-1].steps for run in group.runs if run.state.progress}
    if len(steps) == 1:
        sentences.append(f"An epoch has {counted(steps.pop(), 'step')}.")
    return join_sentences(sentences)


def _describe_lstm(info: RunInfo) -> str:
    s = info.settings
    return (
        f"LSTM: token embeddings of {s.channels} channels, shared with the output layer; {s.hidden} hidden units in "
        "each layer, then a linear layer back to the embeddings and ReLU; each window begins with a zero state."
    )


def _describe_gpt1(info: RunInfo) -> str:
    s = info.settings
    return (
        f"GPT-1: token embeddings of {s.channels} channels, shared with the output layer, and positions; "
        f"{counted(s.heads or 0, 'head')}; MLPs of {s.mlp_channels} channels; layer normalization after each residual "
        "sum. Attention projections begin as Xavier uniform with zero biases, which the published protocol leaves open."
    )


def _describe_sizes(group: Group, model: str) -> str:
    """Return the numbers of trained parameters by depth."""
    sizes: dict[int, int] = {}
    for runs in group.by_experiment.values():
        experiment, started = runs[0].info.experiment, runs[0].state.started
        if experiment.model == model and started is not None:
            sizes.setdefault(experiment.layers, started.parameters_trainable)
    return ", ".join(f"{size:,} with {counted(layers, 'layer')}" for layers, size in sorted(sizes.items()))
