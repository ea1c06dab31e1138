"""Curves of any length in a bounded number of points."""

import math

import msgspec
import pytest
from factories import progress
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.tui.plot.curve import MAX_BUCKETS, Curve

losses = st.lists(st.floats(0.0, 700.0), min_size=1, max_size=200)


def curve_of(*losses_nats: float, steps: int) -> Curve:
    """Return a curve with one loss for each step."""
    curve = Curve()
    for i, loss in enumerate(losses_nats):
        curve.add(progress(1 + i // steps, 1 + i % steps, loss, steps=steps))
    return curve


def area(curve: Curve) -> float:
    """Return the integral of the loss over epochs."""
    total, before = 0.0, 0.0
    for point in curve:
        total += point.loss_nats * (point.epochs - before)
        before = point.epochs
    return total


def test_a_short_curve_has_every_point() -> None:
    curve = curve_of(7.0, 6.5, 6.0, 5.5, steps=2)
    assert [(point.epochs, point.loss_nats) for point in curve] == [(0.5, 7.0), (1.0, 6.5), (1.5, 6.0), (2.0, 5.5)]
    assert all(point.low_nats == point.loss_nats == point.high_nats and not point.non_finite for point in curve)


@pytest.mark.parametrize("count", [MAX_BUCKETS - 1, MAX_BUCKETS, MAX_BUCKETS + 1, 3 * MAX_BUCKETS, 50_000])
def test_the_number_of_points_is_bounded(count: int) -> None:
    curve = curve_of(*(5.0 + i / count for i in range(count)), steps=count)
    assert min(count, MAX_BUCKETS // 2) <= len(curve) <= MAX_BUCKETS
    points = list(curve)
    assert len(points) == len(curve)
    assert points[-1].epochs == pytest.approx(1.0), "the newest loss is in the last point"
    assert [point.epochs for point in points] == sorted(point.epochs for point in points)


def test_merging_keeps_the_mean_over_steps() -> None:
    count = 5 * MAX_BUCKETS + 3
    losses_nats = [5.0 + math.sin(i / 50) for i in range(count)]
    curve = curve_of(*losses_nats, steps=count)
    assert area(curve) == pytest.approx(sum(losses_nats) / count, rel=1e-9)


def test_losses_are_weighted_by_their_steps() -> None:
    curve = Curve()
    steps = 100 * MAX_BUCKETS
    for i in range(MAX_BUCKETS):  # pairs of a loss over 90 steps and one over 10
        curve.add(progress(1, 100 * i + 90, 4.0, steps=steps))
        curve.add(progress(1, 100 * (i + 1), 6.0, steps=steps))
    assert len(curve) == MAX_BUCKETS
    assert [point.loss_nats for point in curve] == pytest.approx([4.2] * MAX_BUCKETS)


def test_merging_keeps_the_lowest_and_the_highest_loss() -> None:
    losses_nats = [5.0] * (4 * MAX_BUCKETS)
    losses_nats[777], losses_nats[2_000] = 2.0, 9.0
    points = list(curve_of(*losses_nats, steps=4 * MAX_BUCKETS))
    assert min(point.low_nats for point in points) == 2.0
    assert max(point.high_nats for point in points) == 9.0
    assert max(point.loss_nats for point in points) < 9.0


@pytest.mark.parametrize("loss_nats", [math.nan, math.inf])
def test_a_non_finite_loss_is_marked_and_left_out_of_the_mean(loss_nats: float) -> None:
    losses_nats = [5.0] * (4 * MAX_BUCKETS)
    losses_nats[1_001] = loss_nats
    points = list(curve_of(*losses_nats, steps=4 * MAX_BUCKETS))
    (marked,) = [point for point in points if point.non_finite]
    assert marked.epochs == pytest.approx(1_002 / (4 * MAX_BUCKETS), abs=4 / (4 * MAX_BUCKETS))
    assert all(point.loss_nats == 5.0 for point in points)


def test_steps_with_a_non_finite_loss_have_no_weight() -> None:
    losses_nats = [4.0, math.nan, math.nan, 6.0] * MAX_BUCKETS
    points = list(curve_of(*losses_nats, steps=4 * MAX_BUCKETS))
    assert [point.loss_nats for point in points[:4]] == pytest.approx([5.0] * 4)
    unequal = list(curve_of(*[4.0, math.nan, 6.0, 6.0] * MAX_BUCKETS, steps=4 * MAX_BUCKETS))
    assert unequal[0].loss_nats == pytest.approx(16 / 3), "one step of 4.0 and two of 6.0"


def test_a_curve_that_diverges_ends_in_non_finite_points() -> None:
    points = list(curve_of(*[5.0] * 10, *[math.nan] * 10, steps=20))
    assert [point.non_finite for point in points] == [False] * 10 + [True] * 10
    assert all(math.isnan(point.loss_nats) for point in points[10:])


def test_an_unknown_loss_is_no_point() -> None:
    curve = Curve()
    curve.add(msgspec.structs.replace(progress(1, 1, 5.0), train_loss_nats=None))
    assert len(curve) == 0


def test_iterating_while_points_are_added_gives_whole_points() -> None:
    curve = curve_of(*[5.0] * 10, steps=20)
    reading = iter(curve)
    next(reading)
    for step in range(11, 21):
        curve.add(progress(1, step, 4.0, steps=20))
    assert len(list(reading)) == 9


@given(losses)
def test_every_mean_lies_between_its_lowest_and_its_highest_loss(losses_nats: list[float]) -> None:
    curve = curve_of(*losses_nats, steps=len(losses_nats))
    assert all(point.low_nats <= point.loss_nats <= point.high_nats for point in curve)
    assert area(curve) == pytest.approx(sum(losses_nats) / len(losses_nats), rel=1e-9, abs=1e-9)
