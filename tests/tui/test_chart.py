"""Perplexity curves as characters, for any numbers."""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import product

import pytest
from factories import STEPS, epoch, evaluation
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconsole.tui.plot.axes import XAxis, step_above, step_below
from lmconsole.tui.plot.chart import Drawing, draw
from lmconsole.tui.plot.curve import Point
from lmconsole.tui.plot.glyphs import ASCII, UNICODE, Glyphs
from lmconsole.tui.plot.series import SMOOTHING, ChartOptions, Series, ShownCurves

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 80, 20
NAN, INF = math.nan, math.inf
BRAILLE = re.compile("[\u2801-\u28ff]")


def series(
    *valid_nats: float, train_nats: Sequence[float] = (), slot: int = 0, planned: int | None = None, **more: object
) -> Series:
    """Return a run with an epoch for each validation loss, and train losses spread evenly over those epochs."""
    epochs = max(len(valid_nats), 1)
    points = [
        Point(
            epochs * (i + 1) / len(train_nats), 4.0 * epochs * (i + 1) / len(train_nats), x, x, x, not math.isfinite(x)
        )
        for i, x in enumerate(train_nats)
    ]
    given: dict[str, object] = {
        "run": f"run-{slot}",
        "experiment": slot + 1,
        "label": f"{slot + 1} LSTM 1L Adam",
        "slot": slot,
        "train": points,
        "validations": [epoch(n, loss, train_loss_nats=None, train_ppl=None) for n, loss in enumerate(valid_nats, 1)],
        "planned_epochs": planned or epochs,
        "tokens_per_epoch": 103_000,
        "expected_s": 4.0 * epochs,
    }
    return Series(**{**given, **more})  # type: ignore[arg-type]


def drawn(
    *runs: Series,
    options: ChartOptions | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
    glyphs: Glyphs = UNICODE,
) -> Drawing:
    """Draw the runs, and check the size of the grid."""
    drawing = draw(runs, options or ChartOptions(), width, height, glyphs)
    assert [len(row) for row in drawing.rows] == [width] * height
    assert all(len(text) == 1 for row in drawing.rows for text, _ in row)
    return drawing


def text(drawing: Drawing) -> str:
    """Return the grid as text."""
    return "\n".join("".join(character for character, _ in row).rstrip() for row in drawing.rows)


def ticks(drawing: Drawing) -> list[str]:
    """Return the labels of the y axis, from the top."""
    return [line[: line.index("┤")].strip() for line in text(drawing).splitlines() if "┤" in line]


def x_ticks(drawing: Drawing) -> list[str]:
    """Return the labels of the x axis."""
    return re.split(r"\s{2,}", text(drawing).splitlines()[-1].strip())


def places(drawing: Drawing, character: str) -> list[tuple[int, int]]:
    """Return column and row of every cell with that character."""
    return [(x, y) for y, row in enumerate(drawing.rows) for x, (shown, _) in enumerate(row) if shown == character]


def all_options() -> Iterator[ChartOptions]:
    """Yield every combination of options."""
    for x in XAxis:
        for log in (True, False):
            for shown in ShownCurves:
                for smoothing in SMOOTHING:
                    yield ChartOptions(x=x, log=log, shown=shown, smoothing=smoothing)


def test_falling_losses_are_drawn_from_top_left_to_bottom_right() -> None:
    drawing = drawn(series(6.0, 5.5, 5.2, 5.0, train_nats=[7.0, 6.0, 5.5, 5.2, 5.0, 4.8]))
    marks = sorted(places(drawing, "●"))
    assert len(marks) == 4
    assert [y for _, y in marks] == sorted(y for _, y in marks)
    assert BRAILLE.search(text(drawing)), "a line joins the epochs"
    assert places(drawing, "·"), "train losses are dots"
    assert drawing.x_at(marks[-1][0]) == pytest.approx(4.0, abs=0.05), "the last epoch is at x = 4"


EDGE_CASES = {
    "no run": [],
    "a run without points": [series()],
    "one epoch": [series(5.0)],
    "flat": [series(5.0, 5.0, 5.0)],
    "zero loss": [series(0.0, 0.0)],
    "always NaN": [series(NAN)],
    "always infinite": [series(INF, INF)],
    "sometimes finite": [series(5.0, NAN, 4.0, INF, 3.0, train_nats=[INF, 5.0, NAN, 4.0])],
    "one step, NaN": [series(train_nats=[NAN])],
    "one step": [series(train_nats=[6.0])],
    "beyond the largest perplexity": [series(500.0, 699.0, train_nats=[900.0, 1e300])],
    "around the largest perplexity": [series(13.0, 14.0)],
    "nearly zero loss": [series(1e-9, 1e-12)],
    "one epoch of 100,000": [series(5.0, planned=100_000)],
    "unknown time next to a very long one": [series(5.0, expected_s=None), series(4.0, slot=1, expected_s=1e9)],
    "no time and one token": [series(5.0, expected_s=0.0, tokens_per_epoch=1)],
    "published": [series(5.0, published_ppl=200.0), series(slot=1, published_ppl=1e9)],
    "two thousand epochs": [series(*[6.0 - i / 500 for i in range(2_000)], train_nats=[5.0] * 1_024)],
    "twelve runs": [series(6.0 - i / 10, 5.0, 4.9, slot=i, train_nats=[7.0, 6.0, 5.0]) for i in range(12)],
}
SIZES = [(200, 60), (40, 12), (17, 5), (16, 4), (15, 4), (16, 3), (1, 1), (0, 0)]


@pytest.mark.parametrize("runs", list(EDGE_CASES.values()), ids=list(EDGE_CASES))
def test_edge_cases_are_drawn_with_any_options_at_any_size(runs: list[Series]) -> None:
    for options in all_options():
        drawn(*runs, options=options)
    for (width, height), glyphs in product(SIZES, (UNICODE, ASCII)):
        drawing = drawn(*runs, width=width, height=height, glyphs=glyphs)
        if glyphs is ASCII:
            assert text(drawing).isascii()


any_options = st.sampled_from(list(all_options()))
sizes = st.tuples(st.integers(0, 140), st.integers(0, 50))
losses = st.floats(0.0) | st.floats(0.0, 20.0) | st.just(NAN)
anything = st.floats()


def draw_somehow(numbers: st.SearchStrategy[float], data: st.DataObject) -> None:
    """Draw runs with these numbers, with any options and any size."""
    train = data.draw(st.lists(numbers, max_size=12), "train")
    valid = data.draw(st.lists(st.lists(numbers, max_size=8), max_size=4), "valid")
    planned, published = data.draw(st.integers(8, 100_000), "planned"), data.draw(st.none() | st.floats(1.0, 1e12))
    runs = [
        series(*nats, train_nats=train, slot=slot, planned=planned, published_ppl=published)
        for slot, nats in enumerate(valid)
    ]
    (width, height), glyphs = data.draw(sizes, "size"), data.draw(st.sampled_from([UNICODE, ASCII]))
    drawing = drawn(*runs, options=data.draw(any_options, "options"), width=width, height=height, glyphs=glyphs)
    if glyphs is ASCII:
        assert text(drawing).isascii()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_losses_are_drawn_at_exactly_the_given_size(data: st.DataObject) -> None:
    draw_somehow(losses, data)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_numbers_are_drawn_at_exactly_the_given_size(data: st.DataObject) -> None:
    draw_somehow(anything, data)


@settings(deadline=None, max_examples=300)
@given(st.floats(1e-300, 1e300))
def test_axis_steps_enclose_their_value(value: float) -> None:
    assert value / 1.7 <= step_below(value) <= value * (1 + 1e-6)
    assert value * (1 - 1e-6) <= step_above(value) <= value * 1.7


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("shown", list(ShownCurves))
@pytest.mark.parametrize("nats", [(0.5, 0.1), (6.0, 5.0), (9.0, 3.0), (13.0, 2.0), (2.0, 1.99), (7.601, 7.6)])
def test_y_ticks_are_distinct_plain_numbers(nats: tuple[float, float], shown: ShownCurves, log: bool) -> None:
    drawing = drawn(series(*nats, train_nats=nats), options=ChartOptions(log=log, shown=shown))
    assert 2 <= len(ticks(drawing)) <= HEIGHT // 3 + 1
    assert all(re.fullmatch(r"\d{1,3}(,\d{3})*(\.\d)?", tick) for tick in ticks(drawing)), ticks(drawing)
    values = [float(tick.replace(",", "")) for tick in ticks(drawing)]
    assert values == sorted(set(values), reverse=True), "no two ticks have the same label"


@pytest.mark.parametrize(
    ("axis", "planned", "expected_s", "words"),
    [
        (XAxis.EPOCHS, 6, None, ["0", "2", "4", "6"]),
        (XAxis.EPOCHS, 1, None, ["0", "1"]),
        (XAxis.EPOCHS, 2_000, None, ["0", "500", "1000", "1500", "2000"]),
        (XAxis.TIME, 6, 100.0, ["0", "20 s", "40 s", "60 s", "80 s", "100 s"]),
        (XAxis.TIME, 6, 290.0, ["0", "1 min", "2 min", "3 min", "4 min", "5 min"]),
        (XAxis.TIME, 6, 36_000.0, ["0", "5 h", "10 h"]),
        (XAxis.TOKENS, 10, None, ["0", "500k", "1000k"]),
        (XAxis.TOKENS, 100, None, ["0", "5M", "10M"]),
    ],
)
def test_the_x_axis_counts_in_round_steps_with_a_unit(
    axis: XAxis, planned: int, expected_s: float | None, words: list[str]
) -> None:
    run = series(5.0, planned=planned, expected_s=expected_s)
    assert x_ticks(drawn(run, options=ChartOptions(x=axis))) == words


def test_evaluations_within_epochs_are_points_of_the_line_and_of_means_where_all_seeds_have_them() -> None:
    within = [evaluation(1, 2, 6.5), evaluation(1, 6, 6.2), epoch(1, 6.0), evaluation(2, 2, INF), epoch(2, 5.0)]
    with_them = series(6.0, 5.0, validations=within)
    (trace,) = drawn(with_them).traces
    assert [x for x, _ in trace.valid] == [2 / STEPS, 6 / STEPS, 1.0, 2.0]
    assert trace.off_scale == [1 + 2 / STEPS]
    (over_time,) = drawn(with_them, options=ChartOptions(x=XAxis.TIME)).traces
    assert [x for x, _ in over_time.valid] == [1.0, 3.0, 4.0, 8.0]
    fewer = series(6.0, 5.0, validations=[*within[1:3], epoch(2, 5.0)])
    (mean,) = drawn(series(seeds=(with_them, fewer))).traces
    assert [x for x, _, _ in mean.band] == [6 / STEPS, 1.0, 2.0]


def test_a_run_without_progress_has_the_train_losses_of_its_epochs() -> None:
    epochs = [epoch(1, 6.0, 5.9), epoch(2, 5.5, NAN), epoch(3, 5.0, 4.5)]
    (trace,) = drawn(series(6.0, 5.5, 5.0, validations=epochs)).traces
    assert trace.train == [(1, 5.9 / math.log(10)), (3, 4.5 / math.log(10))]
    assert trace.off_scale == [2]
    (trace,) = drawn(series(6.0, 5.5, 5.0, train_nats=(5.8,), validations=epochs)).traces
    assert trace.train == [(3, 5.8 / math.log(10))]


def test_axis_limits_do_not_move_with_every_new_point() -> None:
    losses = [6.0 - i / 100 for i in range(20)]
    grown = [drawn(series(*losses[:n], planned=20)) for n in range(3, 20)]
    assert len({(tuple(ticks(each)), each.x_limits) for each in grown}) == 1


def test_constant_losses_are_a_horizontal_line() -> None:
    drawing = drawn(series(5.0, 5.0, 5.0))
    rows = {y for _, y in places(drawing, "●")}
    assert len(places(drawing, "●")) == 3
    assert len(rows) == 1


def test_one_epoch_is_one_mark() -> None:
    assert len(places(drawn(series(5.0)), "●")) == 1


def test_a_diverged_run_is_marked_and_does_not_flatten_the_others() -> None:
    good, alone = series(6.0, 5.5, 5.2, 5.0), drawn(series(6.0, 5.5, 5.2, 5.0))
    both = drawn(good, series(6.0, NAN, INF, 400.0, slot=1))
    crosses = places(both, "✗")
    assert len(crosses) == 3
    assert {y for _, y in crosses} == {0}, "at the upper edge"
    assert ticks(both) == ticks(alone)


def test_a_non_finite_train_loss_is_marked_too() -> None:
    drawing = drawn(series(6.0, 5.5, train_nats=[6.0, 5.9, NAN, 5.5]))
    assert len(places(drawing, "✗")) == 1


def test_a_single_low_value_among_two_thousand_epochs_is_drawn() -> None:
    losses = [5.0] * 2_000
    losses[1_234] = 3.0
    with_valley, without = drawn(series(*losses)), drawn(series(*[5.0] * 2_000))
    assert math.log10(math.e) * 3.0 >= math.log10(float(ticks(with_valley)[-1]))
    assert max(y for y, row in enumerate(with_valley.rows) if BRAILLE.search("".join(c for c, _ in row))) > max(
        y for y, row in enumerate(without.rows) if BRAILLE.search("".join(c for c, _ in row))
    )


def test_each_of_twelve_runs_has_a_marker_of_its_own() -> None:
    drawing = drawn(*(series(6.0 - slot / 4, 5.9 - slot / 4, slot=slot) for slot in range(12)))
    assert all(places(drawing, marker) for marker in UNICODE.markers)
    slots = {role.slot for row in drawing.rows for shown, role in row if shown in UNICODE.markers}
    assert slots == set(range(12))


def test_only_the_chosen_curves_are_drawn() -> None:
    run = series(6.0, 5.0, train_nats=[6.0, 5.5, 5.0], published_ppl=150.0)
    shown = {each: text(drawn(run, options=ChartOptions(shown=each))) for each in ShownCurves}
    assert ["●" in shown[each] for each in ShownCurves] == [True, True, False]
    assert ["·" in shown[each] for each in ShownCurves] == [True, False, True]
    assert ["╌" in shown[each] for each in ShownCurves] == [True, True, False]


def test_without_unicode_markers_are_ascii() -> None:
    drawing = drawn(series(6.0, 5.0, train_nats=[7.0, 6.0]), series(5.5, 4.5, slot=1), glyphs=ASCII)
    assert text(drawing).isascii()
    assert places(drawing, "*")
    assert places(drawing, "o")
    assert places(drawing, ".")


def test_smoothing_applies_to_train_losses_only() -> None:
    losses = [6.0 + (-1) ** i for i in range(40)]
    rough, smooth = (
        drawn(series(6.0, 5.9, train_nats=losses), options=ChartOptions(smoothing=s)).traces[0] for s in (0.0, 0.95)
    )
    spread = [max(y for _, y in t.train[20:]) - min(y for _, y in t.train[20:]) for t in (rough, smooth)]
    assert spread[1] < spread[0] / 5
    assert rough.valid == smooth.valid


@pytest.mark.parametrize("options", [ChartOptions(log=log, x=x) for log in (True, False) for x in XAxis])
def test_readings_are_the_recorded_values(options: ChartOptions) -> None:
    drawing = drawn(series(6.0, 5.5, 5.0, train_nats=[6.2, 5.4, 4.8]), options=options)
    (trace,) = drawing.traces
    high = drawing.x_limits[1]
    assert drawing.reading(trace, high) == pytest.approx((math.exp(4.8), math.exp(5.0)))
    second = trace.valid[1][0]
    assert drawing.reading(trace, second) == pytest.approx((math.exp(5.4), math.exp(5.5)))
    assert drawing.reading(trace, second * 0.99)[1] == pytest.approx(math.exp(6.0)), "the last one before x"
    assert drawing.reading(trace, 0.0) == (None, None), "before the first there is none"


def test_columns_map_to_x_values() -> None:
    drawing = drawn(series(6.0, 5.5, 5.0, 4.5))
    assert drawing.x_at(drawing.first_column) == 0.0
    assert drawing.x_at(drawing.first_column + drawing.columns - 1) == 4.0
    assert drawing.x_at(0) == 0.0
    assert drawing.x_at(10_000) == 4.0
    for n, (x, _) in enumerate(sorted(places(drawing, "●")), 1):
        assert drawing.x_at(x) == pytest.approx(n, abs=4.0 / drawing.columns)


def mean(*seeds: Series, log: bool = True) -> Drawing:
    """Draw the mean of several seeds."""
    options = ChartOptions(log=log)
    return draw([series(seeds=seeds, planned=3)], options, WIDTH, HEIGHT, UNICODE)


@pytest.mark.parametrize("log", [True, False])
def test_seeds_are_drawn_as_the_mean_of_their_perplexities_with_their_range(log: bool) -> None:
    ppl = ((900.0, 300.0, 200.0), (700.0, 500.0, 100.0), (800.0, 700.0, 60.0))
    losses = [[math.log(each) for each in seed] for seed in ppl]
    drawing = mean(*(series(*each, train_nats=each) for each in losses), log=log)
    (trace,) = drawing.traces
    unit = [10.0**y if log else y for _, y in trace.valid]
    assert unit == pytest.approx([800.0, 500.0, 120.0])
    assert [10.0**y if log else y for _, y in trace.train] == pytest.approx([800.0, 500.0, 120.0])
    assert [x for x, _ in trace.valid] == [1, 2, 3]
    lows, highs = [[10.0 ** each[i] if log else each[i] for each in trace.band] for i in (1, 2)]
    assert lows == pytest.approx([700.0, 300.0, 60.0])
    assert highs == pytest.approx([900.0, 700.0, 200.0])
    shaded = [(y, x) for y, row in enumerate(drawing.rows) for x, (text, role) in enumerate(row) if role.kind == "band"]
    assert len(shaded) > 50
    assert all(drawing.rows[y][x][0] == UNICODE.band for y, x in shaded)


def test_a_mean_covers_what_all_seeds_have_and_no_epoch_that_one_of_them_lacks() -> None:
    seeds = (series(6.0, 5.0, 4.0), series(6.1, 5.1), series(NAN, 5.2, 4.2))
    (trace,) = mean(*seeds).traces
    assert [x for x, _ in trace.valid] == [2]
    assert trace.off_scale == [1]
    later = series(5.0, 4.0)
    gap = series(validations=[epoch(2, 4.5), epoch(3, 4.4)])
    (trace,) = mean(later, gap).traces
    assert [(x, round(low, 3), round(high, 3)) for x, low, high in trace.band] == [
        (2, round(4.0 / math.log(10), 3), round(4.5 / math.log(10), 3))
    ]


@given(st.lists(st.lists(st.floats(), max_size=4), min_size=2, max_size=3), st.booleans(), st.sampled_from(list(XAxis)))
@settings(max_examples=60, deadline=None)
def test_any_seeds_can_be_drawn(losses: list[list[float]], log: bool, x: XAxis) -> None:
    seeds = tuple(series(*each, train_nats=each[::-1]) for each in losses)
    for glyphs in (UNICODE, ASCII):
        drawing = draw([series(seeds=seeds)], ChartOptions(log=log, x=x), WIDTH, HEIGHT, glyphs)
        assert [len(row) for row in drawing.rows] == [WIDTH] * HEIGHT
        assert glyphs.unicode or all(text.isascii() for row in drawing.rows for text, _ in row)
