"""Comparison of a run with its reproduction, bit by bit: whether, where and by how much the two part."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from lmconsole.files import read_file
from lmconsole.runs.comparable import differ_only_in_seed
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run
from lmconsole.telemetry.host import MIB, host_memory

if TYPE_CHECKING:
    import numpy as np

MIN_SEEDS = 3
"""Fewest seeds whose standard deviation says something."""

Verdict = Literal["same bits", "different", "incomplete"]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Something about code, packages or machine that differs between the two runs."""

    name: str
    """Name of the package, or of what differs."""
    original: str
    """Value of the original."""
    reproduction: str
    """Value of the reproduction."""

    def __str__(self) -> str:
        return f"{self.name} {self.original} → {self.reproduction}"


class Parting(msgspec.Struct, frozen=True, kw_only=True):
    """First number of the logs in which the two runs differ."""

    epoch: int
    """Epoch, from 1."""
    step: int | None
    """Steps of the epoch that were done at the evaluation within it; null for the losses of a whole epoch and of the
    test."""
    phase: Literal["train", "valid", "test"]
    """Whether the loss of training, validation or the test differs first."""
    original_nats: float | None
    """Loss of the original in nats per target; null if it is unknown or not finite."""
    reproduction_nats: float | None
    """Loss of the reproduction in nats per target; null if it is unknown or not finite."""
    difference_nats: float | None
    """Loss of the reproduction minus that of the original, in nats per target."""


class WeightDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of the weights of the best epochs."""

    tensors: int
    """Number of tensors of either run."""
    different: int
    """Number of tensors that differ in a bit, in shape or type, or that one of the runs lacks."""
    largest: float | None
    """Largest absolute difference of two values; null if it is not finite or the tensors have other shapes."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True, tag="reproduction", tag_field="kind"):
    """Comparison of a run with its reproduction: the last line that `reproduce --json` prints."""

    run: str
    """Id of the reproduction."""
    reproduces: str
    """Id of the original."""
    verdict: Verdict
    """``same bits``: all losses, test perplexities and weights that are known. ``incomplete``: so far as the logs,
    one of which is damaged, can be read."""
    epochs: int
    """Epochs that were compared."""
    evaluations: int
    """Evaluations within epochs that were compared."""
    first: Parting | None
    """First loss in which the two part; null if their losses do not."""
    test_difference_nats: float | None
    """Test loss of the reproduction minus that of the original with the weights of their best epochs, in nats per
    target; null if one is unknown or not finite."""
    seeds: int
    """Seeds of the same experiment and settings that have finished in the store, the original among them."""
    seed_sd_nats: float | None
    """Standard deviation of the test loss over these seeds, in nats per target; null for fewer than three."""
    difference_in_sd: float | None
    """Size of the difference of the test losses in these standard deviations; null if one of them is unknown."""
    weights: WeightDifference | None
    """Comparison of the best weights; null if one of the runs has not kept them, or they cannot be read."""
    differences: tuple[Difference, ...]
    """Differences in code, packages and machine."""
    damage: tuple[str, ...]
    """Damage of the two logs; empty if none is known."""


def compare_runs(original: Run, reproduction: Run, runs: Iterable[Run]) -> Agreement:
    """Compare two finished runs; ``runs`` are those of the store, whose seeds tell how much a difference weighs."""
    first = next(_partings(original, reproduction), None)
    compared = _losses(original).keys() & _losses(reproduction).keys()
    weights = _compare_weights(original.paths.best_weights, reproduction.paths.best_weights)
    damage = tuple(f"{run.run}: {each}" for run in (original, reproduction) for each in run.state.damage)
    test = _difference(_test_loss(original), _test_loss(reproduction))
    losses = _losses_of_seeds(original, runs)
    sd = stdev(losses) if len(losses) >= MIN_SEEDS else None
    verdict: Verdict = "incomplete" if damage else "same bits"
    if first is not None or (weights is not None and weights.different):
        verdict = "different"
    return Agreement(
        run=reproduction.run,
        reproduces=original.run,
        verdict=verdict,
        epochs=sum(point.phase == "train" for point in compared),
        evaluations=sum(point.step < math.inf for point in compared),
        first=first,
        test_difference_nats=test,
        seeds=len(losses),
        seed_sd_nats=sd,
        difference_in_sd=abs(test) / sd if test is not None and sd else None,
        weights=weights,
        differences=tuple(differences(original, reproduction)),
        damage=damage,
    )


def differences(original: Run, reproduction: Run) -> Iterator[Difference]:
    """Yield what is known to differ in code, packages and machine, as far as it is known of both."""
    one, other = _conditions(original), _conditions(reproduction)
    for name, value in one.items():
        if name in other and other[name] != value:
            yield Difference(name=name, original=value or "none", reproduction=other[name] or "none")


def _conditions(run: Run) -> Mapping[str, str | None]:
    """Return what is known about code, packages and machine by name; None for what there is not."""
    info, started = run.info, run.state.started
    found: dict[str, str | None] = {}
    if info.provenance is not None:
        found |= {"code": info.provenance.code_sha256[:12], **info.provenance.versions}
        found |= {"platform": info.provenance.platform, "CPU": info.provenance.cpu}
        found |= {"vector instructions": info.provenance.cpu_capability}
    if started is not None:
        found |= started.versions
        found |= {"device": started.device_name, "threads": str(started.threads), "attention": started.attention}
        if started.code_sha256 is not None:
            found["code"] = started.code_sha256[:12]
    return found


class _Point(NamedTuple):
    """A loss of a run; points are sorted in the order of training."""

    epoch: int
    step: float
    """Steps of the epoch that were done; infinite at its end."""
    phase: Literal["train", "valid"]


def _losses(run: Run) -> dict[_Point, float | None]:
    """Return the losses in nats of epochs and evaluations. Those in ``progress`` events are means over spans of time,
    which differ from run to run."""
    found = {_Point(each.epoch, each.step, "valid"): each.valid_loss_nats for each in run.state.evaluations}
    for epoch in run.state.epochs:
        found[_Point(epoch.epoch, math.inf, "train")] = epoch.train_loss_nats
        found[_Point(epoch.epoch, math.inf, "valid")] = epoch.valid_loss_nats
    return found


def _partings(original: Run, reproduction: Run) -> Iterator[Parting]:
    """Yield every loss in which the two runs differ, in the order of training."""
    one, other = _losses(original), _losses(reproduction)
    whole = not (original.state.damage or reproduction.state.damage)
    for point in sorted(one.keys() | other.keys() if whole else one.keys() & other.keys()):
        first, second = one.get(point), other.get(point)
        if not _same(first, second):
            step = int(point.step) if point.step < math.inf else None
            yield _parting(point.epoch, step, point.phase, first, second)
    ends = original.state.finished, reproduction.state.finished
    if ends[0] is not None and ends[1] is not None:
        for name in ("test_ppl_final", "test_ppl_best"):
            first, second = (getattr(end, name) for end in ends)
            if not _same(first, second):
                epoch = original.state.epochs_done if name == "test_ppl_final" else (ends[0].best_epoch or 0)
                yield _parting(epoch, None, "test", _log(first), _log(second))


def _parting(
    epoch: int, step: int | None, phase: Literal["train", "valid", "test"], first: float | None, second: float | None
) -> Parting:
    return Parting(
        epoch=epoch,
        step=step,
        phase=phase,
        original_nats=_finite(first),
        reproduction_nats=_finite(second),
        difference_nats=_difference(first, second),
    )


def _same(one: float | None, other: float | None) -> bool:
    """Return whether two numbers have the same bits. All NaNs are one."""
    if one is None or other is None:
        return one is other
    return one == other or (math.isnan(one) and math.isnan(other))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _log(perplexity: float | None) -> float | None:
    return None if perplexity is None or not 0.0 < perplexity < math.inf else math.log(perplexity)


def _difference(one: float | None, other: float | None) -> float | None:
    one, other = _finite(one), _finite(other)
    return None if one is None or other is None else other - one


def _test_loss(run: Run) -> float | None:
    return _log(run.state.finished.test_ppl_best) if run.state.finished else None


def _losses_of_seeds(original: Run, runs: Iterable[Run]) -> list[float]:
    """Return the finite test losses of the latest finished run of each seed, in nats."""
    found = {
        run.info.seed: loss
        for run in runs
        if run.status is Status.FINISHED
        and not run.problem
        and not run.state.damage
        and differ_only_in_seed(run.info, original.info)
        and (loss := _test_loss(run)) is not None
    }
    return list(found.values())


def _compare_weights(one: Path, other: Path) -> WeightDifference | None:
    first, second = _read_weights(one), _read_weights(other)
    if first is None or second is None:
        return None
    names = first.keys() | second.keys()
    sizes = []
    for name in names:
        a, b = first.get(name), second.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            sizes.append(math.nan)
        elif a.tobytes() != b.tobytes():
            sizes.append(float(abs(a.astype("float64") - b.astype("float64")).max()))
    largest = max(sizes, default=0.0) if all(map(math.isfinite, sizes)) else None
    return WeightDifference(tensors=len(names), different=len(sizes), largest=largest)


def _read_weights(path: Path) -> "dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] | None":
    """Return the tensors of a safetensors file by name; None if there is none that can be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = read_file(path, int(host_memory().available_mib * MIB) // 4, follow=False)
        return load(data)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
