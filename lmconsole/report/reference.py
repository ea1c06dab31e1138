"""The published results of the twelve experiments, to compare with."""

import tomllib
from functools import cache
from pathlib import Path

import msgspec

PADDED_SHARE = {"train": 0.998761, "valid": 0.997087}
"""The published perplexities divide by padded slots as well as by targets: their logarithm is this share of ours, for
WikiText-2 cut into windows of 256 (docs/protocol.md)."""

PUBLISHED_CORPUS = {"train": 2_356_376, "validation": 245_046, "test": 279_023, "vocabulary": 40_479}
"""Tokens of WikiText-2 as the published runs used it (docs/protocol.md)."""


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment of ``reference.toml``, as published."""

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
        """Validation perplexity per target token, as ours is."""
        return float(self.valid_ppl ** (1.0 / PADDED_SHARE["valid"]))


@cache
def published() -> dict[int, Published]:
    """The published results by the experiment's id."""
    data = tomllib.loads((Path(__file__).parent / "reference.toml").read_text(encoding="utf-8"))
    results = msgspec.convert(data["result"], list[Published])
    return {result.id: result for result in results}
