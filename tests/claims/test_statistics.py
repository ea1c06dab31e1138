"""The statistics of claims, compared with statsmodels, with simulations and with values that can be counted by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind

from lmconsole.claims.difference import paired, welch
from lmconsole.claims.power import detectable_sd, half_width_sd, power, seeds_to_detect
from lmconsole.claims.ranks import (
    is_exact,
    mean_permutation_p,
    rank_permutation_p,
    share_interval,
    superiority,
)
from lmconsole.claims.verdict import Contrast, Verdict, compare, holm
from lmconsole.errors import LmconsoleError

INF = math.inf
LOSSES = st.floats(0.5, 12.0, allow_subnormal=False)


def samples(least: int = 3, most: int = 10) -> st.SearchStrategy[list[float]]:
    return st.lists(LOSSES, min_size=least, max_size=most)


def spread(*values: list[float]) -> bool:
    return all(np.std(each) > 1e-3 for each in values)


@settings(max_examples=60)
@given(samples(), samples(), st.floats(0.01, 3.0))
def test_the_difference_is_that_of_statsmodels(first: list[float], second: list[float], delta: float) -> None:
    assume(spread(first, second))
    means = CompareMeans(DescrStatsW(first), DescrStatsW(second))
    found = welch(first, second)
    assert found.estimate == pytest.approx(np.mean(first) - np.mean(second), abs=1e-9)
    assert found.p == pytest.approx(means.ttest_ind(usevar="unequal")[1], rel=1e-6, abs=1e-12)
    wide = means.tconfint_diff(0.05, usevar="unequal")
    narrow = means.tconfint_diff(0.10, usevar="unequal")
    assert [*map(float, (found.low, found.high))] == pytest.approx([*wide], abs=1e-7)
    assert [*map(float, (found.low90, found.high90))] == pytest.approx([*narrow], abs=1e-7)
    larger_p = ttost_ind(first, second, -delta, delta, usevar="unequal")[0]
    assume(abs(larger_p - 0.05) > 1e-6)
    assert found.within(delta) == (larger_p < 0.05)


@settings(max_examples=40)
@given(st.lists(st.tuples(LOSSES, LOSSES), min_size=3, max_size=10))
def test_paired_differences_are_those_of_one_sample(pairs: list[tuple[float, float]]) -> None:
    first, second = [list(side) for side in zip(*pairs, strict=True)]
    differences = np.subtract(first, second)
    assume(differences.std() > 1e-3)
    found, one = paired(first, second), DescrStatsW(differences)
    low, high = one.tconfint_mean(0.05)
    assert found.p == pytest.approx(one.ttest_mean()[1], rel=1e-6, abs=1e-12)
    assert [*map(float, (found.low, found.high))] == pytest.approx([low, high], abs=1e-7)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_p_values_are_those_of_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_a_contrast_without_a_test_counts_in_the_family() -> None:
    assert list(holm([0.02, math.nan])) == pytest.approx([0.04, 1.0])


def test_experiments_are_computed_side_by_side() -> None:
    random = np.random.default_rng(3)
    first, second = random.normal(size=(2, 7, 5)), random.normal(size=(2, 7, 4))
    together = welch(first, second)
    for place in itertools.product(range(2), range(7)):
        alone = welch(first[place], second[place])
        for field in ("estimate", "p", "low", "high", "low90", "high90"):
            assert getattr(together, field)[place] == pytest.approx(float(getattr(alone, field)))
    assert holm(together.p)[1] == pytest.approx(holm(together.p[1]))


@pytest.mark.parametrize("of", [welch, paired])
@pytest.mark.parametrize(
    ("first", "second"), [([2.0] * 3, [1.0] * 3), ([0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3]), ([1.0], [2.0])]
)
def test_values_without_variance_give_no_interval(of: object, first: list[float], second: list[float]) -> None:
    found = of(first, second)  # type: ignore[operator]
    assert found.estimate == pytest.approx(np.mean(first) - np.mean(second))
    assert all(math.isnan(each) for each in (found.p, found.low, found.high, found.low90, found.high90))
    assert not found.within(100.0)


def test_one_side_without_variance_still_gives_an_interval() -> None:
    found = welch([2.0, 2.0, 2.0], [1.0, 1.1, 1.3])
    assert found.low < 2.0 - np.mean([1.0, 1.1, 1.3]) < found.high
    assert 0 < found.p < 0.05


def count_p(first: list[float], second: list[float]) -> float:
    """Count the permutations whose rank sum is at least as far out, on the nearer side, and double them."""
    pooled = sorted([*first, *second])
    rank = {value: np.mean([place for place, each in enumerate(pooled, 1) if each == value]) for value in pooled}
    ranks = [rank[value] for value in [*first, *second]]
    sums = [sum(chosen) for chosen in itertools.combinations(ranks, len(first))]
    observed = sum(ranks[: len(first)])
    below, above = (float(np.mean(each)) for each in (np.array(sums) <= observed, np.array(sums) >= observed))
    return min(1.0, 2 * min(below, above))


@settings(max_examples=30, deadline=None)
@given(*[st.lists(st.sampled_from([1.0, 1.5, 2.0, 2.5, INF]), min_size=2, max_size=5) for _ in range(2)])
def test_the_rank_test_counts_every_permutation(first: list[float], second: list[float]) -> None:
    assert is_exact(len(first), len(second))
    assert rank_permutation_p(first, second) == pytest.approx(count_p(first, second))


def test_permutation_tests_are_the_same_every_time() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=10), random.normal(size=10) + 1
    assert not is_exact(10, 10)
    assert rank_permutation_p(first, second) == rank_permutation_p(first, second)
    assert mean_permutation_p(first, second) == pytest.approx(float(welch(first, second).p), abs=0.02)
    assert rank_permutation_p(range(10), range(100, 110)) == pytest.approx(2 / 10_000)


@pytest.mark.parametrize(("count", "total"), [(0, 5), (1, 5), (5, 5), (3, 10)])
def test_the_interval_of_a_share_is_exact(count: int, total: int) -> None:
    assert share_interval(count, total) == pytest.approx(proportion_confint(count, total, method="beta"), abs=1e-9)


def test_superiority_has_an_interval_within_0_and_1() -> None:
    assert superiority([1, 2], [3, 4])[0] == 1.0
    assert superiority([1, INF], [INF, 2])[0] == pytest.approx(0.625)
    random = np.random.default_rng(5)
    covered = 0
    truth = 0.5 * math.erfc(-1 / 2)  # P(X < Y) for N(0, 1) and N(1, 1) is Φ(1 / √2)
    for _ in range(300):
        estimate, low, high = superiority(random.normal(size=10), random.normal(size=10) + 1)
        assert 0 <= low <= estimate <= high <= 1
        covered += low <= truth <= high
    assert covered >= 0.92 * 300


def test_power_is_that_of_a_simulation() -> None:
    random = np.random.default_rng(7)
    for n, difference in ((3, 2.0), (5, 2.0), (10, 1.0)):
        found = welch(random.normal(size=(40_000, n)) + difference, random.normal(size=(40_000, n))).p < 0.05
        assert power(n, difference) == pytest.approx(found.mean(), abs=4 * math.sqrt(0.25 / 40_000))


def test_what_seeds_can_show() -> None:
    assert [round(half_width_sd(n), 2) for n in (2, 3, 5, 10)] == [4.30, 2.27, 1.46, 0.94]
    assert round(detectable_sd(3), 1) == 3.5
    assert detectable_sd(1) == half_width_sd(1) == INF
    found = [power(n, 1.0) for n in range(2, 30)]
    assert found == sorted(found)
    needed = seeds_to_detect(1.0)
    assert needed is not None
    assert power(needed - 1, 1.0) < 0.8 <= power(needed, 1.0)
    assert seeds_to_detect(0.0) is seeds_to_detect(1e-3) is None
    assert detectable_sd(5, alpha=0.05 / 6) > detectable_sd(5)


LOW, HIGH = (1.0, 1.1, 1.2, 1.05, 1.15), (2.0, 2.1, 2.2, 2.05, 2.15)


@pytest.mark.parametrize(
    ("first", "second", "delta", "planned", "verdict"),
    [
        (LOW, HIGH, None, None, Verdict.LOWER),
        (HIGH, LOW, None, 5, Verdict.HIGHER),
        (LOW, HIGH, None, 6, Verdict.UNFINISHED),
        (LOW[:2], HIGH[:2], None, None, Verdict.DESCRIPTION),
        (LOW[:1], HIGH, None, None, Verdict.DESCRIPTION),
        (LOW, LOW, None, None, Verdict.INCONCLUSIVE),
        (LOW, LOW, 0.05, None, Verdict.INCONCLUSIVE),
        (LOW, LOW, 0.5, None, Verdict.EQUIVALENT),
        (LOW, HIGH, 5.0, None, Verdict.EQUIVALENT),
        ((1.0,) * 3, (1.0,) * 3, 0.5, None, Verdict.INCONCLUSIVE),
        (LOW, (*HIGH[:4], INF), None, None, Verdict.LOWER),
        (LOW, (1.1, INF, INF, INF, INF), 0.5, None, Verdict.LOWER),
        (LOW[:4], (INF,) * 4, None, None, Verdict.DESCRIPTION),
        ((INF,) * 5, (INF,) * 5, 1.0, None, Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts(
    first: tuple[float, ...],
    second: tuple[float, ...],
    delta: float | None,
    planned: int | None,
    verdict: Verdict,
) -> None:
    (found,) = compare([Contrast("a", "b", first, second)], delta=delta, planned=planned)
    assert found.verdict is verdict
    if INF in (*first, *second):
        assert (found.difference, found.interval, found.ratio) == (None, None, None)
        assert (found.first.diverged, found.second.diverged) == (first.count(INF), second.count(INF))


def test_verdicts_are_corrected_for_the_family() -> None:
    close = Contrast("a", "b", (1.0, 1.2, 1.4), (1.7, 1.9, 2.1))
    (alone,) = compare([close])
    family = compare([close] * 12)
    assert alone.verdict is Verdict.LOWER
    assert {each.verdict for each in family} == {Verdict.INCONCLUSIVE}
    assert family[0].p == alone.p == pytest.approx(alone.p_adjusted)
    assert family[0].p_adjusted == pytest.approx(12 * float(alone.p or 0))


def test_ratios_belong_to_logarithms() -> None:
    (plain,), (logs,) = (compare([Contrast("a", "b", LOW, HIGH)], log=log) for log in (False, True))
    assert (plain.ratio, plain.ratio_interval) == (None, None)
    assert logs.ratio is not None
    assert logs.ratio == pytest.approx(math.exp(-1.0))
    assert logs.ratio_interval is not None
    assert logs.ratio_interval.low < logs.ratio < logs.ratio_interval.high


def test_pairs_need_partners_and_six_of_them() -> None:
    with pytest.raises(LmconsoleError, match="5 and 4 values cannot be paired"):
        compare([Contrast("a", "b", LOW, HIGH[:4], paired=True)])
    (few,) = compare([Contrast("a", "b", LOW, HIGH, paired=True)])
    assert few.verdict is Verdict.DESCRIPTION
    six = tuple(np.linspace(1, 3, 6)), tuple(np.linspace(1, 3, 6) + 0.1 + np.array([0, 1, 0, 1, 0, 1]) * 0.01)
    (found,) = compare([Contrast("a", "b", *six, paired=True)])
    assert (found.verdict, found.test) == (Verdict.LOWER, "paired t")
