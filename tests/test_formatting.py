"""Numbers are formatted for people."""

import pytest

from lmconsole.formatting import UNKNOWN, about, counted, energy


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
