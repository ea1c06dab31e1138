"""Windows of a token stream: where each starts and how many targets it has."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def cut_windows(tokens: int, window_tokens: int) -> tuple[Indices, Indices]:
    """Cut a stream of ``tokens`` ids into windows of at most T = ``window_tokens`` targets.

    A window with start s and length n reads ids s … s+n-1 and predicts ids s+1 … s+n. Window i starts at T·i as long
    as all its T targets exist. The rest is one shorter window. As in the course that published the reference results,
    it starts one token late, after k full windows at T·k+1: the target with this index is never predicted, and a rest
    of one target is dropped. Keeping the flaw keeps our perplexities comparable with the published ones.

    Returns:
        Starts and lengths, each of shape (windows,); empty for fewer than 2 ids.
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
