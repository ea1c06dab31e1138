"""Where the windows of a split begin and how many targets each has."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def cut_windows(tokens: int, window_tokens: int) -> tuple[Indices, Indices]:
    """Cuts a stream of ``tokens`` ids into windows of at most T = ``window_tokens`` targets.

    A window with start s and length n reads ids s … s+n-1 and predicts ids s+1 … s+n. Window i starts at T·i as long
    as all its T targets exist. What remains is one shorter window, and as in the course that published the reference
    numbers it starts one token late, at T·k+1: its first target, id T·k+1, is therefore never predicted, and a
    remainder of one target vanishes. Keeping the flaw keeps our perplexities comparable with the published ones.

    Returns starts and lengths, each of shape (windows,); both are empty for fewer than 2 ids.
    """
    assert tokens >= 0
    assert window_tokens >= 1
    full = max(tokens - 1, 0) // window_tokens
    starts = np.arange(full, dtype=np.int64) * window_tokens
    lengths = np.full(full, window_tokens, dtype=np.int64)
    tail = tokens - window_tokens * full - 2
    if tail > 0:
        starts = np.append(starts, np.int64(window_tokens * full + 1))
        lengths = np.append(lengths, np.int64(tail))
    return starts, lengths
