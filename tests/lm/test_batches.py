"""Windows of a split as batches: every target once, after its input, and nothing past the end of a window."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.linear_cross_entropy import IGNORE


@given(tokens=st.integers(3, 60), window=st.integers(1, 12), batch=st.integers(1, 5))
def test_each_target_follows_its_input_and_occurs_once(tokens: int, window: int, batch: int) -> None:
    stream = np.arange(1, tokens + 1, dtype=np.uint16)  # each token is its position
    split = WindowedSplit(stream, window, "cpu")
    seen: list[int] = []
    for windows in torch.arange(len(split)).split(batch):
        ids, targets = split.batch(windows)
        assert ids.shape == targets.shape == (len(windows), window)
        used = targets != IGNORE
        assert torch.equal(targets[used], ids[used] + 1)
        assert (ids[~used] == 0).all()
        seen += targets[used].tolist()
    assert len(seen) == len(set(seen)) == split.targets
    assert sum(split.lengths) == split.targets


def test_windows_come_in_the_given_order() -> None:
    split = WindowedSplit(np.arange(1, 30, dtype=np.int32), 4, "cpu")
    ids, _ = split.batch(torch.tensor([3, 0]))
    assert ids.tolist() == [[13, 14, 15, 16], [1, 2, 3, 4]]
