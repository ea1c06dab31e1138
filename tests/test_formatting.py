"""Numbers are formatted for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.formatting import UNKNOWN, about, clock, counted, energy, perplexity
from lmconsole.tui.widgets.experiment_table import WIDTHS


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, UNKNOWN),
        (float("inf"), UNKNOWN),
        (0.2, "1 s"),
        (40.4, "40 s"),
        (59.6, "1 min"),
        (3_500, "58 min"),
        (3_575, "1 h"),
        (3_600 + 299, "1 h 5 min"),
        (7_200 + 620, "2 h 10 min"),
        (84_599, "23 h 30 min"),
        (86_200, "1 d"),
        (86_400, "1 d"),
        (100 * 3_600, "4 d 4 h"),
    ],
)
def test_a_rough_time_is_given_in_two_units_at_most(seconds: float | None, words: str) -> None:
    assert about(seconds) == words


@pytest.mark.parametrize(("number", "words"), [(0, "0 runs"), (1, "1 run"), (2_048, "2,048 runs")])
def test_a_number_of_things_has_its_plural(number: int, words: str) -> None:
    assert counted(number, "run") == words


@pytest.mark.parametrize(
    ("joules", "words"),
    [
        (None, UNKNOWN),
        (0.0, "0 J"),
        (950.4, "950 J"),
        (999.7, "1.0 kJ"),
        (12_340.0, "12.3 kJ"),
        (999_949.0, "999.9 kJ"),
        (999_960.0, "1.0 MJ"),
    ],
)
def test_energy_is_given_in_the_unit_that_fits(joules: float | None, words: str) -> None:
    assert energy(joules) == words


@given(st.floats().map(abs))
def test_perplexities_and_times_fit_the_columns_of_the_console(value: float) -> None:
    assert len(perplexity(value)) <= WIDTHS["Train"] == WIDTHS["Valid"]
    assert len(clock(min(value, 1e9))) <= WIDTHS["Time"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (59.4, "59 s"),
        (599.0, "9:59"),
        (605.0, "10:05"),
        (3_600.0, "1:00:00"),
        (86_399.0, "23:59:59"),
        (90_000.0, "1 d 01 h"),
        (12 * 86_400.0 + 3_600.0, "12 d"),
    ],
)
def test_a_clock_time_needs_few_characters(value: float | None, words: str) -> None:
    assert clock(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(999.94, "999.9"), (999.96, "1,000"), (999_999.0, "999,999"), (1_234_567.0, "1.2e+06"), (1e300, "1e+300")],
)
def test_a_large_perplexity_is_short(value: float, words: str) -> None:
    assert perplexity(value) == words
