"""Measurement of how fast this machine trains, in a child process and within a minute.

Experiments of the plan that differ in nothing but their optimizers have one shape. Each shape is trained for a few
steps, the smallest first, as long as time allows. Where a whole batch takes too long, smaller batches are measured. A
shape that was not measured is estimated from its operations and the rate of the most similar measured shape.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lmconsole import __version__
from lmconsole.engine.bench_cache import SCHEMA, BenchResult, Shape
from lmconsole.engine.child import answer_parent, ask_child
from lmconsole.errors import DeviceError
from lmconsole.plan.experiment import MODEL_NAMES, Experiment, Precision, Settings
from lmconsole.plan.flops import run_flops, step_flops
from lmconsole.plan.load import load_plan
from lmconsole.telemetry.host import threads_per_run

if TYPE_CHECKING:
    from lmconsole.lm.throughput import Throughput

BUDGET_S = 40.0
"""Time for measuring, without loading PyTorch."""
GRACE_S = 260.0
"""Time beyond the budget after which a measurement counts as hung."""
STEPS_PER_SHAPE = 4
"""Steps that measuring a shape takes where steps are slow: one to warm up, two that count, one in reserve."""
LIKELY_SHARE = 0.7
"""Share of the peak matmul throughput that a step is expected to reach before any was measured."""
WATCH_S = 1.5
"""Time for which each shape is measured where steps are fast."""
SHAPE = (
    *("model", "layers", "channels", "hidden", "heads", "mlp_channels", "embeddings"),
    *("vocabulary", "window_tokens", "batch_size", "precision"),
)
"""Settings other than the optimizer that decide how long a step takes."""
WIKITEXT_2 = {"train": 2_356_376, "validation": 245_046, "test": 279_023}
"""Tokens in the splits of WikiText-2, as GPT-1 tokenizes them."""


class BenchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Preset, device and precision to measure."""

    experiments_file: str | None
    preset: str
    device: str
    precision: str | None
    """None: the precision of the preset."""
    budget_s: float = BUDGET_S
    watch_s: float = WATCH_S


def bench(request: BenchRequest) -> BenchResult:
    """Measure in a child process. Raises LmconsoleError if the request or the machine is unsuitable."""
    return ask_child("lmconsole.engine.bench", request, BenchResult, request.budget_s + GRACE_S)


class _Group:
    """Experiments of one shape, represented by one with AdamW if there is one."""

    def __init__(self, members: Sequence[tuple[Experiment, Settings]]) -> None:
        self.members = members
        adamw = [settings for _, settings in members if settings.optimizer == "adamw"]
        self.settings = (adamw or [members[0][1]])[0]
        self.flops = step_flops(self.settings, self.settings.vocabulary)
        self.label = f"{MODEL_NAMES[self.settings.model]} {self.settings.layers}L"
        self.tokens = self.settings.batch_size * self.settings.window_tokens


def measure(request: BenchRequest) -> BenchResult:
    """Measure in this process, which loads torch. Raises LmconsoleError."""
    from lmconsole.lm import device
    from lmconsole.lm.memory import keep_freed_memory
    from lmconsole.lm.throughput import peak_matmul_gflops

    began, load_1min = time.monotonic(), os.getloadavg()[0]
    everything = device.describe_devices()
    names = device.resolve_devices(request.device, everything)
    if len(names) > 1:
        raise DeviceError(
            f"--device {request.device}: one device is measured at a time", hint="Use auto, cpu, cuda or cuda:0."
        )
    (chosen,) = (each for each in everything if each.device == names[0])
    device.set_device(chosen.device)
    device.set_threads(threads_per_run(1))
    keep_freed_memory(chosen.device)
    groups = _groups(request, lambda wanted: device.resolve_precision(wanted, chosen))
    first = groups[0].settings
    tokens = _tokens(first)
    peak_gflops = peak_matmul_gflops(first, first.vocabulary, chosen.device)
    batch_size = affordable_batch([group.settings for group in groups], peak_gflops, request.budget_s)
    paces = _measure_all(groups, chosen.device, batch_size, request, began)
    peak_gflops = max(peak_gflops, peak_matmul_gflops(first, first.vocabulary, chosen.device))
    shapes = tuple(_shape(group, groups, paces, peak_gflops, tokens) for group in groups)
    return BenchResult(
        schema=SCHEMA,
        lmconsole=__version__,
        torch=device.versions()["torch"],
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=chosen.device,
        device_name=chosen.name,
        precision=first.precision,
        threads=threads_per_run(1),
        preset=request.preset,
        batch_size=batch_size,
        peak_matmul_gflops=peak_gflops,
        tokens=tokens,
        shapes=shapes,
        all_runs=sum(len(group.members) for group in groups),
        all_runs_s=sum(
            run_flops(settings, settings.vocabulary, tokens) / shape.gflops / 1e9
            for group, shape in zip(groups, shapes, strict=True)
            for _, settings in group.members
        ),
        load_1min=load_1min,
        measured_s=time.monotonic() - began,
    )


def _groups(request: BenchRequest, resolve_precision: Callable[[str], Precision]) -> list[_Group]:
    """Group the experiments by shape: the smallest of each model first, then the next larger ones."""
    plan = load_plan(None if request.experiments_file is None else Path(request.experiments_file))
    overrides: dict[str, object] = {} if request.precision is None else {"precision": request.precision}
    found: dict[tuple[object, ...], list[tuple[Experiment, Settings]]] = {}
    for experiment in plan.experiments:
        settings = plan.resolve(experiment, request.preset, overrides).settings
        settings = msgspec.structs.replace(settings, precision=resolve_precision(settings.precision))
        found.setdefault(tuple(getattr(settings, key) for key in SHAPE), []).append((experiment, settings))
    groups = sorted(map(_Group, found.values()), key=lambda group: group.flops)
    by_model: dict[str, list[_Group]] = {}
    for group in groups:
        by_model.setdefault(group.settings.model, []).append(group)
    turns = zip_longest(*by_model.values())
    return [group for turn in turns for group in turn if group is not None]


def _tokens(settings: Settings) -> dict[str, int]:
    """Return the tokens in the splits of the demo corpus, or those of WikiText-2 for a corpus of the user's own."""
    from lmconsole.data.corpus import load_corpus

    if settings.corpus != "demo":
        return WIKITEXT_2
    return load_corpus("demo", None, vocabulary=settings.vocabulary, max_tokens=None).counts()


def affordable_batch(settings: Sequence[Settings], peak_gflops: float, budget_s: float) -> int:
    """Return the largest batch, halving the one in ``settings``, with which all of them can likely be measured."""
    batch_size = settings[0].batch_size
    while batch_size > 1 and budget_s < sum(
        STEPS_PER_SHAPE
        * step_flops(each, each.vocabulary)
        * batch_size
        / each.batch_size
        / (LIKELY_SHARE * peak_gflops * 1e9)
        for each in settings
    ):
        batch_size //= 2
    return batch_size


def _measure_all(
    groups: Sequence[_Group], device_name: str, batch_size: int, request: BenchRequest, began: float
) -> "dict[str, Throughput]":
    """Return measurements by label. The first group is measured in any case, the others while time is left."""
    from lmconsole.lm.memory import is_out_of_memory
    from lmconsole.lm.throughput import measure_throughput

    paces: dict[str, Throughput] = {}
    for group in groups:
        left_s = request.budget_s - (time.monotonic() - began)
        if paces:
            latest = list(paces.values())[-1].tokens_per_s
            likely_s = STEPS_PER_SHAPE * batch_size * group.settings.window_tokens / latest
            if likely_s > left_s:
                break
        settings = msgspec.structs.replace(group.settings, batch_size=batch_size)
        try:
            pace = measure_throughput(
                settings, settings.vocabulary, device_name, for_s=request.watch_s, at_most_s=max(left_s, 1.0)
            )
        except (RuntimeError, OSError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"{device_name} ran out of memory while measuring {group.label}",
                hint="Free memory, or measure a smaller preset: lmconsole bench --preset demo.",
            ) from None
        if pace is None:
            break
        paces[group.label] = pace
    if not paces:
        raise DeviceError(
            f"{device_name}: fewer than two steps of {groups[0].label} were completed in {request.budget_s:.0f} s",
            hint="Measure a smaller preset: lmconsole bench --preset demo.",
        )
    return paces


def _shape(
    group: _Group,
    groups: Sequence[_Group],
    paces: "Mapping[str, Throughput]",
    peak_gflops: float,
    tokens: Mapping[str, int],
) -> Shape:
    """Return the group's own measurement, or an estimate from the most similar group that was measured."""
    nearest = min(
        (each for each in groups if each.label in paces),
        key=lambda each: (each is not group, each.settings.model != group.settings.model, -each.flops),
    )
    pace = paces[nearest.label]
    gflops = pace.tokens_per_s * nearest.flops / nearest.tokens / 1e9
    return Shape(
        label=group.label,
        experiments=tuple(experiment.id for experiment, _ in group.members),
        settings=group.settings,
        estimated=nearest is not group,
        tokens_per_s=gflops * 1e9 * group.tokens / group.flops,
        step_s=group.flops / gflops / 1e9,
        gflops=gflops,
        share_of_peak=gflops / peak_gflops,
        peak_mib=pace.peak_mib if nearest is group else None,
        run_s=run_flops(group.settings, group.settings.vocabulary, tokens) / gflops / 1e9,
    )


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = str(threads_per_run(1))
    sys.exit(answer_parent(BenchRequest, measure))
