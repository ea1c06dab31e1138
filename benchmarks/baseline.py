"""The baseline: the same training step in plain PyTorch."""

# torch is only partly annotated.
# mypy: allow-untyped-calls

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lmconsole.lm.device import autocast
from lmconsole.lm.embedding import Tables
from lmconsole.plan.experiment import Precision, Settings

OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
}


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """The windows of a token stream as pairs of ids and targets, (T,) each."""

    def __init__(self, tokens: Tensor, window: int) -> None:
        self.tokens, self.window = tokens, window

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.window

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        window = self.tokens[i * self.window : (i + 1) * self.window + 1]
        return window[:-1], window[1:]


class BaselineModel(nn.Module):
    """The architectures of ``lmconsole.lm``, built from PyTorch's own modules."""

    position: Tensor
    """Position embeddings (T, C)."""

    def __init__(self, settings: Settings, tables: Tables) -> None:
        super().__init__()
        C = settings.channels
        self.embedding: nn.Embedding = nn.Embedding.from_pretrained(tables.tokens, freeze=True, padding_idx=0)
        self.lstm: nn.LSTM | None = None
        if settings.model == "lstm":
            assert settings.hidden is not None
            self.lstm = nn.LSTM(C, settings.hidden, settings.layers, batch_first=True)
            self.project = nn.Linear(settings.hidden, C)
        else:
            assert settings.heads is not None
            assert settings.mlp_channels is not None
            self.register_buffer("position", tables.position)
            block = nn.TransformerEncoderLayer(
                C, settings.heads, settings.mlp_channels, dropout=0.0, activation="gelu", batch_first=True
            )
            self.encoder = nn.TransformerEncoder(block, settings.layers, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T)
        """Return logits (B, T, V)."""
        x: Tensor = self.embedding(ids)  # (B, T, C)
        if self.lstm is not None:
            x = torch.relu(self.project(self.lstm(x)[0]))
        else:
            mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
            x = self.encoder(x + self.position, mask=mask, is_causal=True)
        return x @ self.embedding.weight.T


def baseline_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of an lmconsole model under the parameter names of ``BaselineModel``."""
    names = [
        (r"^body\.(lstm|project)\.", r"\1."),
        (r"^body\.blocks\.", "encoder.layers."),
        (r"attention\.qkv\.", "self_attn.in_proj_"),
        (r"attention\.out\.", "self_attn.out_proj."),
        (r"attention_norm\.", "norm1."),
        (r"mlp_norm\.", "norm2."),
        (r"widen\.", "linear1."),
        (r"narrow\.", "linear2."),
    ]
    renamed = {}
    for name, weight in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    return renamed


def baseline_steps(
    settings: Settings, tables: Tables, tokens: Tensor, state: dict[str, Tensor], precision: Precision, device: str
) -> Iterator[float]:
    """Take a training step at each iteration and yield its mean loss in nats. ``state`` is an lmconsole model's."""
    model = BaselineModel(settings, tables)
    model.load_state_dict(baseline_state(state), strict=False)
    model.to(device)
    optimizer = OPTIMIZERS[settings.optimizer](
        [p for p in model.parameters() if p.requires_grad],
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        **({} if settings.momentum is None else {"momentum": settings.momentum}),
    )
    loader = DataLoader(Windows(tokens, settings.window_tokens), settings.batch_size)
    while True:
        for ids, targets in loader:
            ids, targets = ids.to(device), targets.to(device)
            optimizer.zero_grad()
            with autocast(precision, device):
                log_p = F.log_softmax(model(ids), dim=-1)
                loss = F.nll_loss(log_p.flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            yield loss.item()
