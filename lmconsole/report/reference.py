"""Published results of the twelve experiments, and perplexities that are averaged as they are."""

import math
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec

from lmconsole.data import wikitext2
from lmconsole.runs.info import RunInfo

PUBLISHED_CORPUS = {**wikitext2.TOKENS, "vocabulary": wikitext2.VOCABULARY}
"""Numbers of tokens in WikiText-2 as used for the published results (docs/protocol.md)."""

PUBLISHED_BATCH_SIZE, PUBLISHED_WINDOW_TOKENS = 16, 256

SPLIT_NAMES = {"train": "train", "valid": "validation", "test": "test"}
"""Keys of ``PUBLISHED_CORPUS`` by the names of splits in metrics."""


def padded_share(tokens: int, window_tokens: int, batch_size: int) -> float:
    """Return the logarithm of a padded perplexity, divided by that of the perplexity per target token.

    A padded perplexity divides the loss of all targets by the positions of as many full batches as there are batches:
    the last batch of an epoch has fewer windows, and those that are missing count like full ones. (The padding within
    the last window counts too, but is less than one window.) The share is therefore targets / (batches × batch size ×
    window). The windows are those of ``data.windows``, which needs NumPy.
    """
    full = max(tokens - 1, 0) // window_tokens
    tail = max(tokens - window_tokens * full - 2, 0)
    batches = math.ceil((full + (tail > 0)) / batch_size)
    positions = batches * batch_size * window_tokens
    return (full * window_tokens + tail) / positions if positions else 1.0


def padded_shares(
    window_tokens: int = PUBLISHED_WINDOW_TOKENS,
    batch_size: int = PUBLISHED_BATCH_SIZE,
    tokens: Mapping[str, int] = PUBLISHED_CORPUS,
) -> dict[str, float]:
    """Return ``padded_share`` for each split; by default those of the published results."""
    return {split: padded_share(tokens[name], window_tokens, batch_size) for split, name in SPLIT_NAMES.items()}


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """Published results of one experiment, from ``reference.toml``."""

    id: int
    model: str
    layers: int
    optimizer: str
    train_ppl: float
    valid_ppl: float
    epoch: int
    memory_mib: float
    memory_total_mib: float
    utilization_percent: float

    @property
    def valid_ppl_per_target(self) -> float:
        """Validation perplexity per target token."""
        return float(self.valid_ppl ** (1.0 / padded_shares()["valid"]))


def is_published_text(info: RunInfo) -> bool:
    """Return whether a run was trained on all of the text of the published results, in the same tokens."""
    return info.corpus.sha256 == wikitext2.SHA256 and info.corpus.max_tokens is None


@cache
def published() -> dict[int, Published]:
    """Return the published results by experiment id."""
    data = tomllib.loads((Path(__file__).parent / "reference.toml").read_text(encoding="utf-8"))
    results = msgspec.convert(data["result"], list[Published])
    return {result.id: result for result in results}
