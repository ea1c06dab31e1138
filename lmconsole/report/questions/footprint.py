"""Question 7: how much memory the runs need, and what for."""

import math
from collections.abc import Sequence

from lmconsole import formatting
from lmconsole.report.comparing import Measured
from lmconsole.report.questions.answer import Answer, Finding, Suite
from lmconsole.report.results import MIN_SAMPLES, memory_frame, uses_gpu
from lmconsole.runs.info import RunInfo


def footprint(suite: Suite) -> Finding:
    """Question 7: memory."""
    answer = Answer()
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


def _unknown(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
