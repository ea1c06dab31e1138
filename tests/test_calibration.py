"""A short calibration passes, methods that err too often fail it, and the documentation has the recorded rates."""

import importlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmconsole.claims.ranks import rank_permutation_p
from lmconsole.claims.verdict import Verdict

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the source distribution has no benchmarks")

SHORT = 2_000
"""Experiments in a cell."""


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    """Return the modules of the calibration by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in ("calibration", "calibrate")}


@pytest.fixture(scope="module")
def calibration(modules: dict[str, Any]) -> Any:
    return modules["calibration"]


@pytest.fixture(scope="module")
def recorded(modules: dict[str, Any]) -> list[Any]:
    calibrate = modules["calibrate"]
    rows: list[Any] = calibrate.from_csv(calibrate.CSV.read_text(encoding="utf-8"))
    return rows


def find(rows: list[Any], measure: str, **fields: object) -> Any:
    (row,) = [row for row in rows if row.measure == measure and all(getattr(row, key) == fields[key] for key in fields)]
    return row


def test_a_short_calibration_agrees_with_the_recorded_one(calibration: Any, recorded: list[Any]) -> None:
    """Every kind of cell once, with verdicts that ``compare`` confirms on a sample of the same data."""
    diverged, log_normal = calibration.STRESS[4], calibration.STRESS[2]
    rows = [
        *calibration.error_rows(calibration.NORMAL, 3, 3, 1, SHORT),
        *calibration.error_rows(calibration.NORMAL, 5, 5, 6, SHORT),
        *calibration.error_rows(calibration.NORMAL, 3, 10, 12, SHORT),
        *calibration.error_rows(diverged, 5, 5, 6, SHORT),
        *calibration.error_rows(diverged, 10, 10, 1, SHORT // 4),
        *calibration.equivalence_rows(log_normal, 3, 10, SHORT),
        *calibration.power_rows(2.0, (3, 5, 10), 1, SHORT),
        *calibration.look_rows(calibration.NORMAL, 1, SHORT),
    ]
    cell = ("population", "first_seeds", "second_seeds", "contrasts")
    for row in rows:
        before = find(
            recorded,
            row.measure,
            difference_sd=pytest.approx(row.difference_sd, rel=1e-4),
            **{name: getattr(row, name) for name in cell},
        )
        assert row.value == pytest.approx(before.value, abs=4 * max(row.mc_error, 1 / row.experiments)), row
    missed = [(row.measure, row.population, row.second_seeds) for row in rows if not row.met]
    assert missed == [("family-wise error", "normal", 10), ("equivalence at delta", "log-normal", 10)]
    widths = [row for row in calibration.width_rows(SHORT) if row.relation]
    assert [round(row.bound, 2) for row in widths] == [4.30, 2.27, 1.46, 0.94]
    assert all(row.met for row in widths)


def old_rule(calibration: Any) -> Any:
    """Return the rule of version 0.1.0: all seeds apart, and more than the larger standard deviation."""

    def decide(first: Any, second: Any, _delta: float | None, _planned: int) -> Any:
        lower, higher = first.max(-1) < second.min(-1), first.min(-1) > second.max(-1)
        difference = first.mean(-1) - second.mean(-1)
        clear = np.abs(difference) > np.maximum(first.std(-1, ddof=1), second.std(-1, ddof=1))
        codes = np.full(difference.shape, calibration.INCONCLUSIVE)
        codes[lower & clear], codes[higher & clear] = calibration.LOWER, calibration.HIGHER
        unknown = np.full(difference.shape, math.nan)
        return calibration.Outcome(codes, unknown, unknown)

    return decide


def test_the_old_rule_fails(calibration: Any) -> None:
    method = old_rule(calibration)
    (error,) = calibration.error_rows(calibration.NORMAL, 3, 3, 1, SHORT, method)
    assert not error.met
    assert error.value == pytest.approx(0.10, abs=0.02)
    power = list(calibration.power_rows(2.0, (3, 5, 10), 1, SHORT, method))
    assert [round(row.value, 1) for row in power] == [0.6, 0.4, 0.1]  # more seeds, fewer findings
    assert not any(row.met for row in power)


def test_intervals_by_bca_fail(calibration: Any) -> None:
    from scipy.stats import bootstrap

    def decide(first: Any, second: Any, _delta: float | None, _planned: int) -> Any:
        def difference(a: Any, b: Any, axis: int) -> Any:
            return a.mean(axis) - b.mean(axis)

        found = bootstrap((first, second), difference, n_resamples=499, vectorized=True, axis=-1, rng=1, method="BCa")
        low, high = found.confidence_interval
        codes = np.full(low.shape, calibration.INCONCLUSIVE)
        codes[high < 0], codes[low > 0] = calibration.LOWER, calibration.HIGHER
        return calibration.Outcome(codes, low, high)

    error, coverage = calibration.error_rows(calibration.NORMAL, 3, 3, 1, SHORT // 2, decide)
    assert not error.met
    assert not coverage.met
    assert coverage.value == pytest.approx(0.78, abs=0.05)


@pytest.mark.parametrize("fresh_seeds", [False, True])
def test_comparing_on_the_seeds_of_tuning_fails(calibration: Any, fresh_seeds: bool) -> None:
    """The first setting is the best of twenty equal ones, chosen on the seeds that are compared, or on others."""

    class Tuned(calibration.Population):  # type: ignore[misc]
        def samples(self, random: Any, shape: tuple[int, ...], m: int, n: int) -> tuple[Any, Any]:
            trials = random.standard_normal((20, *shape, m))
            best = trials.mean(-1).argmin(0)
            compared = random.standard_normal(trials.shape) if fresh_seeds else trials
            return np.take_along_axis(compared, best[None, ..., None], 0)[0], random.standard_normal((*shape, n))

    population = Tuned(calibration.NORMAL.name, calibration.NORMAL.draw)
    for n in (3, 5, 10):
        error = calibration.error_rows(population, n, n, 1, SHORT)[0]
        assert error.met is fresh_seeds, error


def test_a_verdict_that_differs_from_the_command_is_noticed(calibration: Any) -> None:
    random = np.random.default_rng(2)
    first, second = random.normal(size=(2, 4, 2, 5))
    outcome = calibration.shipped(first, second, None, 5)
    assert calibration.differs_from_shipped(first, second, None, 5, outcome, 4) is None
    for wrong in (calibration.LOWER, calibration.HIGHER, calibration.DESCRIPTION):
        codes = outcome.verdicts.copy()
        codes[3, 1] = wrong
        changed = calibration.Outcome(codes, outcome.low, outcome.high)
        assert "experiment 3, contrast 1" in calibration.differs_from_shipped(first, second, None, 5, changed, 4)
    changed = calibration.Outcome(outcome.verdicts, outcome.low - 1e-6, outcome.high)
    assert calibration.differs_from_shipped(first, second, None, 5, changed, 4) is not None


@pytest.mark.parametrize(("m", "n"), [(5, 5), (6, 7), (9, 9), (10, 10), (5, 12)])
def test_rank_tests_of_many_experiments_are_those_of_one(calibration: Any, m: int, n: int) -> None:
    random = np.random.default_rng(m)
    values = random.normal(size=(12, m + n)).round(1)  # with ties
    values[random.random(values.shape) < 0.3] = math.inf
    first, second = values[:, :m], values[:, m:] + 0.5
    p, first_is_lower = calibration.rank_tests(first, second)
    for place, (a, b) in enumerate(zip(first, second, strict=True)):
        assert p[place] == pytest.approx(rank_permutation_p(a, b), rel=1e-12)
        below = sum((x < y) + (x == y) / 2 for x, y in itertools.product(a, b))
        assert first_is_lower[place] == (below > m * n / 2)


def test_all_cells_are_recorded_with_their_bounds(calibration: Any, recorded: list[Any]) -> None:
    assert {row.experiments for row in recorded} == {20_000}
    errors = [row for row in recorded if row.measure == "family-wise error"]
    shapes = {(row.population, row.first_seeds, row.second_seeds, row.contrasts) for row in errors}
    populations = ("normal", "sd 1:4", "log-normal", "t₃", "10% diverged")
    wanted = {
        (population, *size, family)
        for population in populations
        for size in ((3, 3), (5, 5), (10, 10), (3, 10))
        for family in (1, 6, 12)
    }
    assert shapes == wanted | {("sd 4:1", 3, 10, family) for family in (1, 6, 12)}
    margin = 3 * math.sqrt(0.05 * 0.95 / 20_000)
    for row in recorded:
        match row.measure:
            case "family-wise error" | "error over all looks, planned":
                usual = row.population == "normal" and row.first_seeds == row.second_seeds
                assert row.met == (row.value <= (0.05 + margin if usual else 0.075)), row
            case "equivalence at delta":
                assert row.met == (row.value <= 0.05 + margin), row
            case "coverage":
                assert row.met == (row.value >= 0.93), row
            case "power" | "half width in sd":
                assert row.relation == "equal to"
            case _:
                assert row.relation == ""
    assert len(list(Verdict)) == len(calibration.VERDICTS)


def test_documents_have_the_recorded_rates(modules: dict[str, Any], recorded: list[Any]) -> None:
    calibrate = modules["calibrate"]
    for path, text in calibrate.documents(recorded).items():
        assert path.read_text(encoding="utf-8") == text, "run benchmarks/calibrate.py --tables"
    page = calibrate.page(recorded)
    for row in recorded:
        if row.relation and not row.met:
            assert f"**{100 * row.value:.1f}%**" in page
            assert f"{100 * row.value:.3f}%, at most" in page
