"""Language models: embedding tables, a body, and a head tied to the token table."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmconsole.errors import EmbeddingsError
from lmconsole.lm.device import autocast, compute_capability, compute_dtype
from lmconsole.lm.embedding import Tables
from lmconsole.lm.gpt1 import AttentionBackend, Gpt1, attention_backend
from lmconsole.lm.linear_cross_entropy import linear_cross_entropy
from lmconsole.lm.lstm import Lstm
from lmconsole.plan.experiment import Precision, Settings
from lmconsole.runs.info import RunInfo

PADDING = 0
"""Id of the padding token. Its row of the table gets no gradient from the lookup, only from the head."""


class LanguageModel(nn.Module):
    """Token ids to features, and features to the loss of a tied head without bias.

    Frozen tables are buffers outside the state dict; a checkpoint stores their hash.
    """

    tokens: Tensor  # (V, C)
    position: Tensor | None  # (T, C); None for the LSTM

    def __init__(self, body: nn.Module, tokens: Tensor, position: Tensor | None, *, frozen: bool) -> None:
        super().__init__()
        self.body = body
        self.use_triton = False
        self._cast_table: Tensor | None = None
        for name, table in (("tokens", tokens), ("position", position)):
            if frozen or table is None:
                self.register_buffer(name, table, persistent=False)
            else:
                self.register_parameter(name, nn.Parameter(table))

    def use_fast_paths(self, fast: bool) -> None:
        """Compute the loss with Triton and the LSTM layer by layer, or both by the reference implementation.

        ``fast_paths.enable_fast_paths`` decides.
        """
        self.use_triton = fast
        if isinstance(self.body, Lstm):
            self.body.by_layer = fast

    @property
    def table(self) -> Tensor:
        """Token table (V, C), shared by lookup and head."""
        return self.tokens

    def features(self, ids: Tensor) -> Tensor:
        """Return features (B, T, C) of ids (B, T), from which the head predicts each next token."""
        x = F.embedding(ids, self.tokens, padding_idx=PADDING)  # (B, T, C)
        if self.position is not None:
            x = x + self.position[: ids.shape[1]]
        features: Tensor = self.body(x)
        return features

    def loss_sum(self, ids: Tensor, targets: Tensor, precision: Precision, window_nats: Tensor | None = None) -> Tensor:
        """Return the summed cross-entropy, in nats, of ``targets`` (B, T) that are not ``IGNORE``.

        ``window_nats`` (B,) float64 is filled with the sum of each window, in evaluation only.
        """
        with autocast(precision, ids.device.type):
            features = self.features(ids)
        dtype = compute_dtype(precision)
        row_nats = None if window_nats is None else torch.empty(targets.numel(), device=targets.device)
        loss = linear_cross_entropy(
            features.flatten(0, 1),
            self._head_table(dtype),
            targets.flatten(),
            compute_dtype=dtype,
            use_triton=self.use_triton,
            row_nats=row_nats,
        )
        if window_nats is not None and row_nats is not None:
            torch.sum(row_nats.view_as(targets), dim=1, dtype=torch.float64, out=window_nats)
        return loss

    def _head_table(self, dtype: torch.dtype) -> Tensor:
        """Return the table in the type that the head multiplies. A frozen table is cast once; a learned one changes at
        each step, and the loss casts it."""
        if self.tokens.requires_grad or self.tokens.dtype == dtype:
            return self.tokens
        cast = self._cast_table
        if cast is None or cast.dtype != dtype or cast.device != self.tokens.device:
            cast = self._cast_table = self.tokens.to(dtype)
        return cast


def build_model(settings: Settings, *, vocabulary: int, tables: Tables | None) -> LanguageModel:
    """Return a model on the CPU with weights drawn from PyTorch's global generator.

    Learned tables are drawn from N(0, ``embedding_std``²), except for the padding row of the token table, which is
    zero.

    Raises:
        EmbeddingsError: Embeddings are frozen, and ``tables`` is None or has other sizes.
    """
    C = settings.channels
    if settings.embeddings == "frozen":
        tokens, position = _frozen_tables(settings, vocabulary, tables)
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
    """Return the attention backend of the model on ``device``; None for the LSTM."""
    if settings.model == "lstm":
        return None
    assert settings.heads is not None
    torch_device = torch.device(device)
    return attention_backend(
        torch_device.type,
        compute_dtype(precision),
        head_channels=settings.channels // settings.heads,
        capability=compute_capability(torch_device),
    )


def count_parameters(model: LanguageModel) -> tuple[int, int]:
    """Return the number of parameters, including frozen tables, and the number of trainable ones."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(table.numel() for table in model.buffers())
    return trainable + frozen, trainable


def model_on_meta(info: RunInfo) -> LanguageModel:
    """Return the run's model on the meta device: names, shapes and types of its weights, without values."""
    settings, vocabulary = info.settings, info.corpus.vocabulary
    with torch.device("meta"):
        tokens = torch.empty(vocabulary, settings.channels)
        position = torch.empty(settings.window_tokens, settings.channels)
        tables = Tables(tokens=tokens, position=position, sha256="", path=Path())
        frozen = settings.embeddings == "frozen"
        return build_model(settings, vocabulary=vocabulary, tables=tables if frozen else None)


def parameters_of(info: RunInfo) -> tuple[int, int]:
    """Return the number of parameters and of trainable parameters of the run's model, without allocating them."""
    return count_parameters(model_on_meta(info))


def _frozen_tables(settings: Settings, vocabulary: int, tables: Tables | None) -> tuple[Tensor, Tensor | None]:
    if tables is None:
        raise EmbeddingsError(
            "Frozen embeddings need a file with the tables, and none was given.",
            hint="Name one with --embeddings, or train the tables with --preset scratch.",
        )
    expected = {
        "tokens": (vocabulary, settings.channels),
        "position": (settings.window_tokens, settings.channels),
    }
    found = {"tokens": tuple(tables.tokens.shape), "position": tuple(tables.position.shape)}
    if found != expected:
        raise EmbeddingsError(
            f"{tables.path}: the tables have shapes {found}, but the model needs {expected}",
            hint="Use tables made for this vocabulary and these settings.",
        )
    return tables.tokens, tables.position if settings.model == "gpt1" else None
