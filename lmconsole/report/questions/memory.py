"""Memory that the runs need, and for what."""

import math
from collections.abc import Mapping, Sequence

from lmconsole import formatting
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.experiment_result import ExperimentResult
from lmconsole.report.questions.finding import Draft, Finding, GroupResults
from lmconsole.report.questions.models import DEPTH_MODELS, DEPTHS
from lmconsole.report.results import MIN_SAMPLES, memory_frame, uses_gpu
from lmconsole.report.selection import Group
from lmconsole.runs.info import RunInfo

MOMENT_BYTES = {"adam": 8, "adamw": 8, "momentum": 4}
"""Bytes of optimizer state per trained parameter, in single precision."""

SMALL_SPREAD_PERCENT = 25.0
"""If the largest amount is no more than this above the smallest, most of it is common to all runs."""


def memory(results: GroupResults) -> Finding:
    """Compare the memory of the runs."""
    draft = Draft()
    gpu = uses_gpu(results.group)
    used_mib = used_memory(results.group)
    imported = results.group.imported
    quantity = "Device memory used" if imported else "GPU memory during training" if gpu else "Peak host memory"
    if used_mib:
        low, high = min(used_mib, key=lambda n: used_mib[n]), max(used_mib, key=lambda n: used_mib[n])
        draft.observations.append(
            f"{quantity}: from {formatting.mib(used_mib[low])} ({results.by_id[low].label_with_id}) to "
            f"{formatting.mib(used_mib[high])} ({results.by_id[high].label_with_id})."
        )
        draft.conclude(_READINGS_CAVEAT if imported else _interpretation(used_mib, gpu=gpu))
        if not imported:
            draft.conclude(*_describe_layers(results))
            draft.conclude(*_describe_optimizers(results, used_mib))
    elif imported:
        draft.observations.append("The sources have no readings of memory.")
    else:
        draft.observations.append(f"No run recorded its memory in at least {MIN_SAMPLES} samples.")
    sized = [each for each in results.by_id.values() if each.parameters_trainable]
    if sized:
        draft.observations += [_describe_state(sized), _describe_logits(results.group.reference)]
    return Finding(
        question="How much memory do the runs need, and for what?",
        answer=_answer(results, used_mib, sized),
        observations=draft.observations,
        method=f"{quantity}: {_METHODS['readings' if imported else 'gpu' if gpu else 'host']} (Table 2)."
        + (
            " State: 4 bytes each for a trained weight and its gradient, and 8 more for Adam's two moments or 4 for "
            "the momentum buffer. Logits: batch × window × vocabulary × 4 bytes."
            if sized
            else ""
        ),
        interpretation=draft.interpretation,
    )


def used_memory(group: Group) -> dict[int, float]:
    """Return the MiB of Table 2 by experiment, of those that are known."""
    frame = memory_frame(group)
    column = frame["memory_mib" if uses_gpu(group) else "host_peak_mib"]
    return {
        int(experiment): float(mib)
        for experiment, mib in zip(frame["experiment"], column, strict=True)
        if mib is not None and not math.isnan(mib)
    }


_METHODS = {
    "readings": "mean over all readings of each source, which count all processes on the device",
    "gpu": "mean over training samples",
    "host": "largest resident memory",
}

_READINGS_CAVEAT = (
    "The sources do not state what the memory was used for. The readings include what a framework has reserved and "
    "does not use, so they are an upper bound, and a difference between them need not be one in what the models need."
)


def memory_per_layer(results: GroupResults, model: str) -> tuple[float, float] | None:
    """Return the MiB that each further layer of a model takes with AdamW, and those of them that are weights, gradients
    and optimizer state, from the shallowest to the deepest experiment; None unless memory is known of two depths."""
    used = used_memory(results.group)
    found = [each for layers in DEPTHS if (each := results.find(model, layers, "adamw")) and each.id in used]
    if len(found) < 2 or not all(each.parameters_trainable for each in found):
        return None
    shallow, deep = found[0], found[-1]
    layers = deep.info.experiment.layers - shallow.info.experiment.layers
    return (used[deep.id] - used[shallow.id]) / layers, (state_mib(deep) - state_mib(shallow)) / layers


def _describe_layers(results: GroupResults) -> list[str]:
    """Return what each further layer takes, and for what."""
    found = [(MODEL_NAMES[model], each) for model in DEPTH_MODELS if (each := memory_per_layer(results, model))]
    if not found:
        return []
    amounts = "; ".join(
        f"{name} {format_mib(mib)} MiB, of which weights, gradients and optimizer state are {format_mib(state)}"
        for name, (mib, state) in found
    )
    rest = all(mib > state for _, (mib, state) in found)
    return [
        f"Each further layer takes, with AdamW: {amounts}.",
        "The rest is mostly activations kept for the backward pass, and what the allocators keep." if rest else "",
    ]


def _describe_optimizers(results: GroupResults, used_mib: Mapping[int, float]) -> list[str]:
    """Return what AdamW takes more than SGD, and how much of that is its state."""
    found = [(MODEL_NAMES[model], mib) for model in DEPTH_MODELS if (mib := memory_of_adamw(results, used_mib, model))]
    parts = [f"{name} {format_mib(more)} MiB (its moments: {format_mib(moments)})" for name, (more, moments) in found]
    return [f"AdamW takes more than SGD, with one layer: {'; '.join(parts)}."] if parts else []


def memory_of_adamw(results: GroupResults, used_mib: Mapping[int, float], model: str) -> tuple[float, float] | None:
    """Return the MiB that AdamW takes more than SGD with one layer of a model, and those of its two moments; None if
    they are unknown."""
    adamw, sgd = results.find(model, 1, "adamw"), results.find(model, 1, "sgd")
    if adamw is None or sgd is None or adamw.id not in used_mib or sgd.id not in used_mib:
        return None
    if not adamw.parameters_trainable or not sgd.parameters_trainable:
        return None
    return used_mib[adamw.id] - used_mib[sgd.id], state_mib(adamw) - state_mib(sgd)


def _answer(results: GroupResults, used_mib: Mapping[int, float], sized: Sequence[ExperimentResult]) -> str:
    if not used_mib:
        return "Unknown."
    low, high = min(used_mib.values()), max(used_mib.values())
    text = formatting.mib(low) if low == high else f"{formatting.mib(low)} to {formatting.mib(high)}"
    if results.group.imported or not sized:
        return f"{text}."
    return (
        f"{text}, of which weights, gradients and optimizer state are {min(map(state_mib, sized)):,.1f} to "
        f"{max(map(state_mib, sized)):,.1f} MiB."
    )


def format_mib(mib: float) -> str:
    """Return an amount per layer with one decimal."""
    return f"{mib:,.1f}".replace("-", "−")


def spread_percent(used_mib: Mapping[int, float]) -> float:
    """Return by how many percent the largest amount is above the smallest."""
    return 100.0 * (max(used_mib.values()) / min(used_mib.values()) - 1.0)


def _interpretation(used_mib: Mapping[int, float], *, gpu: bool) -> str:
    spread = spread_percent(used_mib)
    if spread <= SMALL_SPREAD_PERCENT:
        return (
            f"The largest amount is {spread:.0f}% above the smallest, though the models differ: most of it is common "
            "to all: "
            + ("the CUDA context and kernels" if gpu else "the interpreter, the libraries, the corpus")
            + ", the embedding tables, and one chunk of logits, which are never held in memory as a whole."
        )
    return (
        "The difference grows with the model: weights, gradients and moments with its parameters, activations kept for "
        "the backward pass with its layers. Logits are computed in chunks and never held in memory as a whole."
    )


def state_mib(result: ExperimentResult) -> float:
    """Return the MiB of trained weights, their gradients and the state of the optimizer."""
    moments = MOMENT_BYTES.get(result.runs[0].info.experiment.optimizer, 0)
    return (result.parameters_trainable or 0) * (8 + moments) / 2**20


def _describe_state(sized: Sequence[ExperimentResult]) -> str:
    low, high = min(sized, key=state_mib), max(sized, key=state_mib)
    return (
        f"Weights, gradients and optimizer state: from {state_mib(low):,.1f} MiB ({low.label_with_id}) to "
        f"{state_mib(high):,.1f} MiB ({high.label_with_id})."
    )


def logits_mib(info: RunInfo) -> float:
    """Return the MiB of the logits of one step in single precision."""
    return info.settings.batch_size * info.settings.window_tokens * info.corpus.vocabulary * 4 / 2**20


def _describe_logits(info: RunInfo) -> str:
    s = info.settings
    return (
        f"Logits of one step in single precision, if all were held at once: {s.batch_size} × {s.window_tokens} × "
        f"{info.corpus.vocabulary:,} × 4 bytes = {logits_mib(info):,.1f} MiB."
    )
