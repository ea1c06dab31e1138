"""Floating-point operations of training, derived from the sizes of the matrix products.

A multiplication and an addition are two operations. Only necessary work counts: no recomputation, the half of causal
attention that is not masked, and no gradient that is not needed, such as those of frozen tables and of the embeddings
from them. Everything except matrix products is left out. Counts are per target token, in full windows. The zero state
at the start of an LSTM is multiplied like any other.
"""

import math
from collections.abc import Mapping

import msgspec

from lmconsole.plan.experiment import Settings


class Flops(msgspec.Struct, frozen=True, kw_only=True):
    """Floating-point operations per target token."""

    head: float
    """The tied output layer."""
    body: float
    """All layers below the head."""

    @property
    def total(self) -> float:
        return self.head + self.body


def training_flops(settings: Settings, vocabulary: int) -> Flops:
    """Return the FLOPs per token of a training step: the loss and every gradient that the optimizer needs.

    The backward pass of a product y = x W has two more products, one for the gradient of x and one for that of W. The
    gradients of the table and of the first layer's input are needed only if the table is learned.
    """
    learned = settings.embeddings == "learned"
    first, rest = _multiplications(settings)
    head = (3 if learned else 2) * vocabulary * settings.channels
    return Flops(head=2.0 * head, body=2.0 * ((3 if learned else 2) * first + 3 * rest))


def evaluation_flops(settings: Settings, vocabulary: int) -> Flops:
    """Return the FLOPs per token of an evaluation: the loss alone."""
    first, rest = _multiplications(settings)
    return Flops(head=2.0 * vocabulary * settings.channels, body=2.0 * (first + rest))


def step_flops(settings: Settings, vocabulary: int) -> float:
    """Return the FLOPs of a training step on a full batch."""
    return settings.batch_size * settings.window_tokens * training_flops(settings, vocabulary).total


def run_flops(settings: Settings, vocabulary: int, tokens: Mapping[str, int]) -> float:
    """Return the FLOPs of a run on a corpus with ``tokens`` in each split.

    They include training and validation in every epoch, evaluations within epochs, and two tests, with the final and
    with the best weights.
    """
    train, evaluate = (of(settings, vocabulary).total for of in (training_flops, evaluation_flops))
    evaluations = settings.epochs * (1.0 + _evaluations_per_epoch(settings, tokens["train"]))
    evaluated = evaluations * tokens["validation"] + 2 * tokens["test"]
    return settings.epochs * tokens["train"] * train + evaluated * evaluate


def _evaluations_per_epoch(settings: Settings, train_tokens: int) -> float:
    """Return the mean number of evaluations within an epoch."""
    every = settings.evaluate_every_steps
    if not every:
        return 0.0
    steps = math.ceil(train_tokens / (settings.window_tokens * settings.batch_size))
    return (steps - math.gcd(steps, every)) / every  # without those at the end of an epoch


def share_of_peak(settings: Settings, vocabulary: int, tokens_per_s: float, peak_gflops: float) -> float:
    """Return the share of a device's measured peak matmul throughput that training at ``tokens_per_s`` uses.

    With the vendor's peak it is the model FLOPs utilization (Chowdhery et al., arXiv:2204.02311).
    """
    return tokens_per_s * training_flops(settings, vocabulary).total / (peak_gflops * 1e9)


def _multiplications(settings: Settings) -> tuple[float, float]:
    """Return the multiplications per token of the body's forward pass: of the products that read the embeddings, and of
    all others."""
    C, T = settings.channels, settings.window_tokens
    if settings.hidden is not None:
        H = settings.hidden
        recurrence, deeper, project = 4 * H * H, 4 * H * H, H * C  # four gates
        return 4 * H * C, settings.layers * recurrence + (settings.layers - 1) * deeper + project
    assert settings.mlp_channels is not None
    qkv, out, mlp = 3 * C * C, C * C, 2 * C * settings.mlp_channels
    attention = 2 * C * (T + 1) / 2  # scores and weighted values; on average a query attends to (T + 1) / 2 keys
    return qkv, settings.layers * (attention + out + mlp) + (settings.layers - 1) * qkv
