"""Windows have every target exactly once, except the one that the last window skips."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconsole.data.windows import cut_windows


def targets(starts: np.ndarray, lengths: np.ndarray) -> list[int]:
    """Return the positions that the windows predict, in order."""
    return [position for s, n in zip(starts, lengths, strict=True) for position in range(s + 1, s + n + 1)]


@pytest.mark.parametrize(
    ("tokens", "windows", "predicted", "tail"),
    [(2_356_376, 9_205, 2_356_374, 150), (245_046, 958, 245_044, 52), (279_023, 1_090, 279_021, 237)],
    ids=["train", "validation", "test"],
)
def test_wikitext2_gives_the_windows_of_the_published_runs(
    tokens: int, windows: int, predicted: int, tail: int
) -> None:
    starts, lengths = cut_windows(tokens, 256)
    assert (len(starts), lengths.sum(), lengths[-1]) == (windows, predicted, tail)
    assert starts[-1] == 256 * (windows - 1) + 1


@settings(deadline=None)
@given(tokens=st.integers(0, 400), window=st.integers(1, 60))
def test_every_target_is_predicted_once_except_the_one_that_the_last_window_skips(tokens: int, window: int) -> None:
    starts, lengths = cut_windows(tokens, window)
    skipped = set()
    if tokens > 1 and (tokens - 1) % window:
        skipped = {(tokens - 1) // window * window + 1}
    assert targets(starts, lengths) == [t for t in range(1, tokens) if t not in skipped]


@settings(deadline=None)
@given(tokens=st.integers(3, 10**5), window=st.integers(1, 10**6))
def test_all_windows_but_the_last_are_full_and_all_are_inside_the_stream(tokens: int, window: int) -> None:
    starts, lengths = cut_windows(tokens, window)
    assert len(starts) == len(lengths) >= 1
    assert (lengths[:-1] == window).all()
    assert 1 <= lengths[-1] <= window
    assert (starts[:-1] == np.arange(len(starts) - 1) * window).all()
    dropped = 1 if (tokens - 1) % window == 1 else 0
    assert starts[-1] + lengths[-1] == tokens - 1 - dropped
    assert starts.dtype == lengths.dtype == np.int64


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, []),
        (1, []),
        (2, []),
        (3, [(1, 1)]),
        (5, [(0, 4)]),
        (6, [(0, 4)]),
        (7, [(0, 4), (5, 1)]),
        (8, [(0, 4), (5, 2)]),
    ],
)
def test_short_streams_give_the_windows_counted_by_hand(tokens: int, expected: list[tuple[int, int]]) -> None:
    starts, lengths = cut_windows(tokens, 4)
    assert list(zip(starts.tolist(), lengths.tolist(), strict=True)) == expected
