"""Published results of the twelve experiments."""

import tomllib
from functools import cache
from pathlib import Path

import msgspec

PADDED_SHARE = {"train": 0.998761, "valid": 0.997087}
"""Logarithm of a perplexity that counts the padding of the last batch as targets, as the published ones do, divided by
the logarithm of the perplexity per target token; for WikiText-2 in windows of 256 tokens (docs/protocol.md)."""

PUBLISHED_CORPUS = {"train": 2_356_376, "validation": 245_046, "test": 279_023, "vocabulary": 40_479}
"""Numbers of tokens in WikiText-2 as used for the published results (docs/protocol.md)."""


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
        return float(self.valid_ppl ** (1.0 / PADDED_SHARE["valid"]))


@cache
def published() -> dict[int, Published]:
    """Return the published results by experiment id."""
    data = tomllib.loads((Path(__file__).parent / "reference.toml").read_text(encoding="utf-8"))
    results = msgspec.convert(data["result"], list[Published])
    return {result.id: result for result in results}
