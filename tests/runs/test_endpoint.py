"""The test loss of a run, its standard error, and bits per byte."""

import math
from pathlib import Path

import factories
import msgspec
import numpy as np
import pytest
import safetensors.numpy
import tiny
from factories import append_events
from numpy.typing import NDArray

from lmconsole.errors import StoreError
from lmconsole.runs import endpoint
from lmconsole.runs.endpoint import NLL, TARGETS, WindowLosses
from lmconsole.runs.store import Run


def losses(nll: list[float] | NDArray[np.float64], targets: list[int] | NDArray[np.int64]) -> WindowLosses:
    return WindowLosses(nll_nats=np.asarray(nll, np.float64), targets=np.asarray(targets, np.int64))


def finished_run(root: Path) -> Run:
    run = tiny.queue_tiny(root)
    append_events(run.paths, factories.started(), factories.epoch(), factories.finished())
    run.refresh()
    return run


def test_the_standard_error_of_equal_windows_is_that_of_a_mean() -> None:
    nll = np.random.default_rng(1).gamma(40.0, 8.0, 50)
    known = losses(nll, [64] * 50)
    assert known.mean_nats == pytest.approx(nll.mean() / 64)
    assert known.standard_error_nats == pytest.approx((nll / 64).std(ddof=1) / math.sqrt(50))


def test_the_standard_error_covers_the_loss_of_a_long_text_with_unequal_windows() -> None:
    """Draw 2,000 samples of 60 windows: nearly 95% have the true loss within 1.96 standard errors. Longer windows have
    lower losses, so that their number in a sample counts."""
    rng = np.random.default_rng(2)
    targets = rng.integers(5, 100, (2000, 60))
    nll = targets * (5.0 - targets / 50) + rng.normal(0, 3.0, targets.shape) * np.sqrt(targets)
    all_targets = np.arange(5, 100)
    true = (all_targets * (5.0 - all_targets / 50)).sum() / all_targets.sum()
    samples = [losses(*each) for each in zip(nll, targets, strict=True)]
    inside = [abs(each.mean_nats - true) <= 1.96 * (each.standard_error_nats or 0.0) for each in samples]
    assert 0.92 <= np.mean(inside) <= 0.97


def test_one_window_or_an_infinite_loss_has_no_standard_error() -> None:
    assert losses([30.0], [8]).standard_error_nats is None
    assert losses([30.0, math.inf], [8, 8]).standard_error_nats is None


def test_the_loss_is_that_of_the_best_weights_and_infinite_for_a_diverged_run(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    append_events(run.paths, factories.started(), factories.epoch())
    run.refresh()
    assert endpoint.test_nll_best(run) is None
    append_events(run.paths, factories.finished((5.0, 4.0, 6.0)))
    run.refresh()
    assert endpoint.test_nll_best(run) == pytest.approx(4.1, rel=1e-12)
    for diverged in (factories.finished((5.0, math.nan)), factories.finished((math.nan,))):
        assert endpoint.nll_best(diverged) == math.inf
    assert endpoint.nll_best(factories.finished(test_ppl_best=math.inf)) == math.inf
    assert endpoint.nll_best(factories.finished(test_ppl_best=None, test_ppl_final=None)) is None
    assert endpoint.nll_best(factories.finished(test_ppl_best=None)) is None  # an import states the last weights


def test_bits_per_byte_are_known_where_the_text_is(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    corpus, nats = run.info.corpus, endpoint.test_nll_best(run)
    assert nats is not None
    bits = endpoint.bits_per_byte(run.state.finished, corpus)
    assert bits == pytest.approx(nats * corpus.targets["test"] / corpus.bytes["test"] / math.log(2))
    assert endpoint.bits_per_byte(run.state.finished, msgspec.structs.replace(corpus, bytes={})) is None
    assert endpoint.bits_per_byte(None, corpus) is None


def test_a_difference_has_the_standard_error_of_its_windows(tmp_path: Path) -> None:
    """Both models find the same windows hard, so their difference is better known than either loss."""
    runs = [finished_run(tmp_path / name) for name in ("one", "other")]
    rng = np.random.default_rng(3)
    targets, hard, differences = np.full(50, 64), rng.normal(0.0, 30.0, 50), rng.normal(0.0, 2.0, 50)
    differences -= differences.mean()
    for run, extra in zip(runs, (differences, 0.0 * differences), strict=True):
        mean = endpoint.test_nll_best(run)
        assert mean is not None
        assert endpoint.difference_standard_error(*runs) is None, "one has no losses of windows"
        nll = targets * mean + hard - hard.mean() + extra
        run.paths.test_losses.write_bytes(safetensors.numpy.save({NLL: nll, TARGETS: targets}))
    expected = (differences / 64).std(ddof=1) / math.sqrt(50)
    assert endpoint.difference_standard_error(*runs) == pytest.approx(expected)
    found = endpoint.read_test_losses(runs[0])
    assert found is not None
    assert (found.standard_error_nats or 0.0) > 10 * expected
    nll = np.full(49, 64 * (endpoint.test_nll_best(runs[1]) or 0.0))
    runs[1].paths.test_losses.write_bytes(safetensors.numpy.save({NLL: nll, TARGETS: targets[:49]}))
    assert endpoint.difference_standard_error(*runs) is None, "of other windows"


def test_the_losses_of_windows_are_read_if_they_are_those_of_the_log(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    path, mean = run.paths.test_losses, endpoint.test_nll_best(run)
    assert mean is not None
    assert endpoint.read_test_losses(run) is None  # as of a run of version 0.1.0
    targets = np.array([8, 8, 5])
    nll = targets * mean + np.array([1.0, -2.0, 1.0])
    good = safetensors.numpy.save({NLL: nll, TARGETS: targets})
    path.write_bytes(good)
    found = endpoint.read_test_losses(run)
    assert found is not None
    assert np.array_equal(found.nll_nats, nll)
    assert found.mean_nats == pytest.approx(mean)

    wrong = [
        b"",
        good[:-1],
        good + bytes(2**20),
        b"\xff" * 64,
        safetensors.numpy.save({NLL: nll}),
        safetensors.numpy.save({NLL: nll.astype(np.float32), TARGETS: targets}),
        safetensors.numpy.save({NLL: nll, TARGETS: targets.astype(np.float64)}),
        safetensors.numpy.save({NLL: nll, TARGETS: targets[:2]}),
        safetensors.numpy.save({NLL: nll[:0], TARGETS: targets[:0]}),
        safetensors.numpy.save({NLL: nll, TARGETS: targets * 0}),
        safetensors.numpy.save({NLL: nll * 1.001, TARGETS: targets}),
        safetensors.numpy.save({NLL: nll * math.nan, TARGETS: targets}),
    ]
    for data in wrong:
        path.write_bytes(data)
        with pytest.raises(StoreError, match=r"test-losses\.safetensors"):
            endpoint.read_test_losses(run)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(StoreError, match="symbolic link"):
        endpoint.read_test_losses(run)
