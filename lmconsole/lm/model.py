"""A language model: embedding tables, an architecture, and the head that shares the token table."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmconsole.errors import EmbeddingsError
from lmconsole.lm.device import autocast, compute_capability, compute_dtype
from lmconsole.lm.embedding import Tables
from lmconsole.lm.gpt1 import AttentionBackend, Gpt1, attention_backend
from lmconsole.lm.linear_cross_entropy import head_loss_sum
from lmconsole.lm.lstm import Lstm
from lmconsole.plan.experiment import Precision, Settings

PADDING = 0
"""Id of the padding token; its row of the table takes no gradient from the lookup, only from the head."""


class LanguageModel(nn.Module):
    """Token ids to features, and features to the loss of a tied head without bias.

    Frozen tables are buffers outside the state dict: a checkpoint names them by their hash.
    """

    tokens: Tensor  # (V, C)
    position: Tensor | None  # (T, C); None for the LSTM, which counts by itself

    def __init__(self, body: nn.Module, tokens: Tensor, position: Tensor | None, *, frozen: bool) -> None:
        super().__init__()
        self.body = body
        self.own_kernels = False
        self._cast_table: Tensor | None = None
        for name, table in (("tokens", tokens), ("position", position)):
            if frozen or table is None:
                self.register_buffer(name, table, persistent=False)
            else:
                self.register_parameter(name, nn.Parameter(table))

    def take_fast_ways(self, fast: bool) -> None:
        """Whether to compute in the ways that are made for a GPU from here on: the head with kernels of our own, and
        the LSTM layer by layer. ``fast.choose`` decides."""
        self.own_kernels = fast
        if isinstance(self.body, Lstm):
            self.body.by_layer = fast

    @property
    def table(self) -> Tensor:
        """Token table (V, C): the lookup's and the head's."""
        return self.tokens

    def features(self, ids: Tensor) -> Tensor:
        """Features (B, T, C) that the head predicts each next token from, given ids (B, T)."""
        x = F.embedding(ids, self.tokens, padding_idx=PADDING)  # (B, T, C)
        if self.position is not None:
            x = x + self.position[: ids.shape[1]]
        features: Tensor = self.body(x)
        return features

    def loss_sum(self, ids: Tensor, targets: Tensor, precision: Precision) -> Tensor:
        """Summed negative log-likelihood in nats of ``targets`` (B, T), those that are ``IGNORE`` left out."""
        with autocast(precision, ids.device.type):
            features = self.features(ids)
        dtype = compute_dtype(precision)
        return head_loss_sum(
            features.flatten(0, 1),
            self._head_table(dtype),
            targets.flatten(),
            compute_dtype=dtype,
            own_kernels=self.own_kernels,
        )

    def _head_table(self, dtype: torch.dtype) -> Tensor:
        """The table as the head multiplies by it. A frozen one is cast once and kept; a learned one changes each step,
        and the loss casts it."""
        if self.tokens.requires_grad or self.tokens.dtype == dtype:
            return self.tokens
        cast = self._cast_table
        if cast is None or cast.dtype != dtype or cast.device != self.tokens.device:
            cast = self._cast_table = self.tokens.to(dtype)
        return cast


def build_model(settings: Settings, *, vocabulary: int, tables: Tables | None) -> LanguageModel:
    """A model with fresh weights, drawn from torch's global generator, on the CPU.

    Learned tables are drawn from N(0, ``embedding_std``²), the padding row of the token table zero.

    Raises:
        EmbeddingsError: the embeddings are to be frozen and there are none, or of other sizes.
    """
    C = settings.channels
    if settings.embeddings == "frozen":
        tokens, position = _frozen(settings, vocabulary, tables)
    else:
        tokens = torch.empty(vocabulary, C).normal_(std=settings.embedding_std)
        tokens[PADDING] = 0
        position = None
        if settings.model == "gpt1":
            position = torch.empty(settings.window_tokens, C).normal_(std=settings.embedding_std)
    body: nn.Module
    if settings.model == "lstm":
        assert settings.hidden is not None
        body = Lstm(channels=C, hidden=settings.hidden, layers=settings.layers, dropout=settings.dropout)
    else:
        assert settings.heads is not None
        assert settings.mlp_channels is not None
        assert settings.layer_norm_eps is not None
        body = Gpt1(
            channels=C,
            layers=settings.layers,
            heads=settings.heads,
            mlp_channels=settings.mlp_channels,
            eps=settings.layer_norm_eps,
            dropout=settings.dropout,
        )
    return LanguageModel(body, tokens, position, frozen=settings.embeddings == "frozen")


def attention_of(settings: Settings, precision: Precision, device: str) -> AttentionBackend | None:
    """How the model computes attention on ``device``; None for the LSTM, which has none."""
    if settings.model == "lstm":
        return None
    assert settings.heads is not None
    where = torch.device(device)
    return attention_backend(
        where.type,
        compute_dtype(precision),
        head_channels=settings.channels // settings.heads,
        capability=compute_capability(where),
    )


def count_parameters(model: LanguageModel) -> tuple[int, int]:
    """How many numbers the model consists of, frozen tables included, and how many of them are trained."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(table.numel() for table in model.buffers())
    return trainable + frozen, trainable


def _frozen(settings: Settings, vocabulary: int, tables: Tables | None) -> tuple[Tensor, Tensor | None]:
    if tables is None:
        raise EmbeddingsError(
            "frozen embeddings need a file with the tables, and none was given",
            hint="Name one with --embeddings, or train the tables too: --preset scratch.",
        )
    wanted = {
        "tokens": (vocabulary, settings.channels),
        "position": (settings.window_tokens, settings.channels),
    }
    found = {"tokens": tuple(tables.tokens.shape), "position": tuple(tables.position.shape)}
    if found != wanted:
        raise EmbeddingsError(
            f"{tables.path}: tables of shapes {found} do not fit this model, which needs {wanted}",
            hint="Use tables made for this vocabulary and these settings.",
        )
    return tables.tokens, tables.position if settings.model == "gpt1" else None
