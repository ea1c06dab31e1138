"""Whether a run and its reproduction have the same bits, and where they part if not."""

import math
from collections.abc import Sequence
from pathlib import Path

import factories
import msgspec
import numpy as np
import pytest
import recorded
from safetensors.numpy import save

from lmconsole.runs.agreement import Agreement, compare_runs, differences
from lmconsole.runs.state import RunState
from lmconsole.runs.store import Run, Store

LOSSES = [(5.0, 5.5), (4.0, 4.5), (3.5, 4.0)]
WEIGHTS = {"head": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, dtype=np.float32)}


def trained(
    root: Path,
    losses: list[tuple[float, float]] = LOSSES,
    *,
    seed: int = 42,
    reproduces: str = "",
    within: Sequence[Sequence[float]] = (),
) -> Run:
    """Record a run, whose test loss is the last validation loss; with ``reproduces`` the reproduction of that run."""
    run = recorded.record(root, 1, "lstm", losses, seed=seed, fresh=True, finish=False, within=within)
    ppl = math.exp(losses[-1][1]) if math.isfinite(losses[-1][1]) else losses[-1][1]
    factories.append_events(
        run.paths, factories.finished([valid for _, valid in losses], test_ppl_best=ppl, test_ppl_final=ppl)
    )
    return recorded.mark_as_reproduction(run, reproduces) if reproduces else Store(root / "runs").find(run.run)


def compared(root: Path, losses: list[tuple[float, float]], *, others: int = 0) -> Agreement:
    """Compare a run with a reproduction that has these losses; ``others`` is the number of other seeds."""
    original = trained(root)
    for number in range(others):
        trained(root, [*LOSSES[:-1], (3.5, 4.0 + 0.01 * (number + 1))], seed=number)
    reproduction = trained(root, losses, reproduces=original.run)
    return compare_runs(original, reproduction, Store(root / "runs").runs())


def test_equal_logs_are_the_same_bits(tmp_path: Path) -> None:
    found = compared(tmp_path, LOSSES)
    assert (found.verdict, found.epochs, found.first, found.weights) == ("same bits", 3, None, None)
    assert found.test_difference_nats == 0.0


@pytest.mark.parametrize(
    ("epoch", "column", "phase"), [(0, 0, "train"), (0, 1, "valid"), (1, 0, "train"), (2, 1, "valid")]
)
def test_the_first_loss_that_differs_in_its_last_bit_is_named(
    epoch: int, column: int, phase: str, tmp_path: Path
) -> None:
    losses = [list(pair) for pair in LOSSES]
    for later in range(epoch, 3):
        for each in (0, 1):
            if (later, each) >= (epoch, column):
                losses[later][each] = math.nextafter(losses[later][each], math.inf)
    found = compared(tmp_path, [(train, valid) for train, valid in losses])
    assert found.verdict == "different"
    assert found.first is not None
    assert (found.first.epoch, found.first.phase) == (epoch + 1, phase)
    assert found.first.difference_nats == math.nextafter(LOSSES[epoch][column], math.inf) - LOSSES[epoch][column]


def test_evaluations_within_epochs_name_the_step(tmp_path: Path) -> None:
    inside = [[5.9, 5.7], [5.2, 5.0], [4.3, 4.1]]
    original = trained(tmp_path, within=inside)
    later = [(5.0, 5.5), (4.1, 4.5), (3.5, 4.0)]
    cases = [
        (LOSSES, inside, None),
        (later, [inside[0], [5.2, 5.0 + 1e-9], inside[2]], (2, 2, "valid")),
        (later, [inside[0], [5.2, math.nan], inside[2]], (2, 2, "valid")),
        (later, inside, (2, None, "train")),
        (LOSSES, [inside[0], [5.2], inside[2]], (2, 2, "valid")),
        (LOSSES, [], (1, 1, "valid")),
    ]
    for losses, within, first in cases:
        reproduction = trained(tmp_path, losses, reproduces=original.run, within=within)
        found = compare_runs(original, reproduction, ())
        assert found.verdict == ("different" if first else "same bits"), within
        assert (found.first and (found.first.epoch, found.first.step, found.first.phase)) == first
        if first is None:
            assert (found.epochs, found.evaluations) == (3, 6)


def test_evaluations_that_a_damaged_log_lacks_are_not_compared(tmp_path: Path) -> None:
    original = trained(tmp_path, within=[[5.9, 5.7], [5.2, 5.0], [4.3, 4.1]])
    run = trained(tmp_path, within=[[5.9, 5.7], [5.2, 5.0], [4.3, 4.1]], reproduces=original.run)
    lines = run.paths.events.read_text().splitlines(keepends=True)
    (gone, *_) = [line for line in lines if '"kind":"evaluation"' in line]
    run.paths.events.write_text("".join(line for line in lines if line != gone))
    found = compare_runs(original, Store(tmp_path / "runs").find(run.run), ())
    assert (found.verdict, found.epochs, found.evaluations) == ("incomplete", 3, 5)


def test_a_difference_is_measured_by_the_spread_of_the_seeds(tmp_path: Path) -> None:
    apart = [*LOSSES[:-1], (3.5, 4.002)]
    found = compared(tmp_path / "few", apart, others=1)
    assert (found.seeds, found.seed_sd_nats, found.difference_in_sd) == (2, None, None)
    found = compared(tmp_path / "enough", apart, others=4)
    assert found.seeds == 5, "the reproduction is no seed"
    assert found.test_difference_nats == pytest.approx(0.002)
    assert found.seed_sd_nats == pytest.approx(0.0158, rel=0.01)
    assert found.difference_in_sd == pytest.approx(0.1265, rel=0.01)


def test_runs_that_diverge_alike_are_the_same_and_unlike_are_not(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    original = trained(tmp_path, [(5.0, nan)])
    same = trained(tmp_path, [(5.0, nan)], reproduces=original.run)
    other = trained(tmp_path, [(5.0, inf)], reproduces=original.run)
    assert compare_runs(original, same, ()).verdict == "same bits"
    found = compare_runs(original, other, ())
    assert found.first is not None
    assert (found.verdict, found.first.original_nats, found.first.difference_nats) == ("different", None, None)
    msgspec.json.encode(found)


def test_a_run_with_fewer_epochs_parts_where_it_ended(tmp_path: Path) -> None:
    found = compared(tmp_path, LOSSES[:2])
    assert found.first is not None
    assert (found.verdict, found.epochs, found.first.epoch) == ("different", 2, 3)


def test_a_damaged_log_cannot_prove_the_same_bits_but_can_prove_others(tmp_path: Path) -> None:
    original = trained(tmp_path)
    runs = [trained(tmp_path, losses, reproduces=original.run) for losses in (LOSSES, [(5.1, 5.5), *LOSSES[1:]])]
    for run in runs:
        lines = run.paths.events.read_text().splitlines(keepends=True)
        kept = [line for line in lines if '"epoch":2' not in line or '"kind":"epoch"' not in line]
        assert len(kept) < len(lines)
        run.paths.events.write_text("".join(kept))
    found = [compare_runs(original, Store(tmp_path / "runs").find(run.run), ()) for run in runs]
    assert [each.verdict for each in found] == ["incomplete", "different"]
    assert [each.epochs for each in found] == [2, 2]
    assert all(runs[0].run in each for each in found[0].damage)


@pytest.mark.parametrize(
    ("weights", "different", "largest"),
    [
        (WEIGHTS, 0, 0.0),
        (WEIGHTS | {"head": WEIGHTS["head"] + np.float32(0.5)}, 1, 0.5),
        (WEIGHTS | {"bias": -WEIGHTS["bias"]}, 1, 0.0),
        (WEIGHTS | {"bias": np.full(3, np.nan, np.float32), "head": WEIGHTS["head"] + np.float32(0.5)}, 2, None),
        (WEIGHTS | {"head": WEIGHTS["head"].T}, 1, None),
        (WEIGHTS | {"more": WEIGHTS["bias"]}, 1, None),
        ({"head": WEIGHTS["head"]}, 1, None),
    ],
)
def test_weights_are_compared_by_their_bits(
    weights: dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"],
    different: int,
    largest: float | None,
    tmp_path: Path,
) -> None:
    original = trained(tmp_path)
    reproduction = trained(tmp_path, reproduces=original.run)
    original.paths.best_weights.write_bytes(save(WEIGHTS, {"run": "one"}))
    reproduction.paths.best_weights.write_bytes(save({k: np.ascontiguousarray(v) for k, v in weights.items()}))
    found = compare_runs(original, reproduction, ())
    assert found.weights is not None
    assert (found.weights.different, found.weights.largest) == (different, largest)
    assert found.weights.tensors == len(WEIGHTS.keys() | weights.keys())
    assert found.verdict == ("different" if different else "same bits")


@pytest.mark.parametrize("content", [b"", b"no weights", save(WEIGHTS)[:-4], b"\xff" * 64])
def test_weights_that_cannot_be_read_are_not_compared(content: bytes, tmp_path: Path) -> None:
    original = trained(tmp_path)
    reproduction = trained(tmp_path, reproduces=original.run)
    original.paths.best_weights.write_bytes(save(WEIGHTS))
    reproduction.paths.best_weights.write_bytes(content)
    found = compare_runs(original, reproduction, ())
    assert (found.verdict, found.weights) == ("same bits", None)


def test_only_what_is_known_of_both_runs_can_differ(tmp_path: Path) -> None:
    original = trained(tmp_path)
    other = trained(tmp_path, reproduces=original.run)
    assert list(differences(original, other)) == []
    state = RunState()
    versions = {"torch": "2.14.0", "driver": "570.1", "numpy": "2.0"}
    state.apply([factories.started(versions=versions, device_name="H100", code_sha256="a" * 64)])
    changed = Run(other.paths, other.info, state)
    assert [str(each) for each in differences(original, changed)] == [
        "torch 2.13.0 → 2.14.0",
        "driver none → 570.1",
        "device CPU → H100",
    ]
