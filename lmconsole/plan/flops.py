"""How much arithmetic training takes: floating-point operations of the matrix products, counted on paper.

A multiplication and an addition are two operations. Only what has to be computed counts: no product twice, of causal
attention the half that the mask leaves, and no gradient that nobody needs, as of frozen tables or of what was looked up
in them. Everything but matrix products is left out. Counts are per target token, in windows that are full; the zero
state that an LSTM starts from is multiplied like any other.
"""

from collections.abc import Mapping

import msgspec

from lmconsole.plan.experiment import Settings


class Flops(msgspec.Struct, frozen=True, kw_only=True):
    """Floating-point operations per target token."""

    head: float
    """Of the softmax layer that shares the token table."""
    body: float
    """Of everything below it."""

    @property
    def total(self) -> float:
        """Both together."""
        return self.head + self.body


def training_flops(settings: Settings, vocabulary: int) -> Flops:
    """One token of a training step: the loss and every gradient the optimizer needs.

    A product y = x W takes two more on the way back, one for the gradient of x and one for that of W. The table's is
    needed if it learns, and so is the gradient of what the first layer reads.
    """
    learned = settings.embeddings == "learned"
    first, rest = _multiplications(settings)
    head = (3 if learned else 2) * vocabulary * settings.channels
    return Flops(head=2.0 * head, body=2.0 * ((3 if learned else 2) * first + 3 * rest))


def evaluation_flops(settings: Settings, vocabulary: int) -> Flops:
    """One token of an evaluation: the loss alone."""
    first, rest = _multiplications(settings)
    return Flops(head=2.0 * vocabulary * settings.channels, body=2.0 * (first + rest))


def step_flops(settings: Settings, vocabulary: int) -> float:
    """One training step on a full batch."""
    return settings.batch_size * settings.window_tokens * training_flops(settings, vocabulary).total


def run_flops(settings: Settings, vocabulary: int, tokens: Mapping[str, int]) -> float:
    """A whole run on a corpus with so many ``tokens`` in its splits: every epoch trained and validated, and two tests,
    with the last weights and with the best."""
    train, evaluate = (of(settings, vocabulary).total for of in (training_flops, evaluation_flops))
    epoch = tokens["train"] * train + tokens["validation"] * evaluate
    return settings.epochs * epoch + 2 * tokens["test"] * evaluate


def share_of_ceiling(settings: Settings, vocabulary: int, tokens_per_s: float, ceiling_gflops: float) -> float:
    """Part of a device's rate of plain matrix products that training so many tokens a second uses."""
    return tokens_per_s * training_flops(settings, vocabulary).total / (ceiling_gflops * 1e9)


def _multiplications(settings: Settings) -> tuple[float, float]:
    """Multiplications of the body per token on the way forward: those by weights whose input is the embeddings, and all
    others."""
    C, T = settings.channels, settings.window_tokens
    if settings.hidden is not None:
        H = settings.hidden
        recurrence, deeper, project = 4 * H * H, 4 * H * H, H * C  # four gates
        return 4 * H * C, settings.layers * recurrence + (settings.layers - 1) * deeper + project
    assert settings.mlp_channels is not None
    qkv, out, mlp = 3 * C * C, C * C, 2 * C * settings.mlp_channels
    attention = 2 * C * (T + 1) / 2  # scores and weighted values; a query sees half of the keys, and itself
    return qkv, settings.layers * (attention + out + mlp) + (settings.layers - 1) * qkv
