"""Windows of a split as batches: every target once, after its input, and nothing past the end of a window."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

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


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 65_535), (np.int32, 70_000), (np.int64, 2**40)])
def test_ids_of_every_type_come_back_and_take_no_more_memory(dtype: type, largest: int) -> None:
    stream: NDArray[Any] = np.array([0, 1, 32_767, 32_768, largest, 5], dtype=dtype)
    split = WindowedSplit(stream, 2, "cpu")
    ids, targets = split.batch(torch.arange(len(split)))
    assert ids.dtype == targets.dtype == torch.int64
    assert ids.flatten().tolist() == stream[:4].tolist()
    assert targets.flatten().tolist() == stream[1:5].tolist()
    assert split._tokens.element_size() == stream.itemsize
