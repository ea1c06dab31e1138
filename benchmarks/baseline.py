"""The training step as a textbook writes it, in plain PyTorch: what ours is measured against."""

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
    """Every window of a token stream as (ids, targets)."""

    def __init__(self, tokens: Tensor, window: int) -> None:
        self.tokens, self.window = tokens, window

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.window

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        piece = self.tokens[i * self.window : (i + 1) * self.window + 1]
        return piece[:-1], piece[1:]


class TextbookModel(nn.Module):
    """The same architectures out of PyTorch's own parts."""

    def __init__(self, settings: Settings, tables: Tables) -> None:
        super().__init__()
        C = settings.channels
        self.embedding = nn.Embedding.from_pretrained(tables.tokens, freeze=True, padding_idx=0)
        self.lstm = self.encoder = None
        if settings.model == "lstm":
            self.lstm = nn.LSTM(C, settings.hidden, settings.layers, batch_first=True)
            self.project = nn.Linear(settings.hidden, C)
        else:
            self.register_buffer("position", tables.position)
            block = nn.TransformerEncoderLayer(
                C, settings.heads, settings.mlp_channels, dropout=0.0, activation="gelu", batch_first=True
            )
            self.encoder = nn.TransformerEncoder(block, settings.layers, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        x = self.embedding(ids)
        if self.lstm is not None:
            x = torch.relu(self.project(self.lstm(x)[0]))
        else:
            mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
            x = self.encoder(x + self.position, mask=mask, is_causal=True)
        return x @ self.embedding.weight.T


def their_names(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of PyTorch's encoder layer."""
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
    for name, weight in ours.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    return renamed


def textbook_steps(
    settings: Settings, tables: Tables, tokens: Tensor, weights: dict[str, Tensor], precision: Precision, where: str
) -> Iterator[float]:
    """One training step a turn, and its mean loss. ``weights`` to start from are our model's."""
    model = TextbookModel(settings, tables)
    model.load_state_dict(their_names(weights), strict=False)
    model.to(where)
    optimizer = OPTIMIZERS[settings.optimizer](
        [p for p in model.parameters() if p.requires_grad],
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        **({} if settings.momentum is None else {"momentum": settings.momentum}),
    )
    loader = DataLoader(Windows(tokens, settings.window_tokens), settings.batch_size)
    while True:
        for ids, targets in loader:
            ids, targets = ids.to(where), targets.to(where)
            optimizer.zero_grad()
            with autocast(precision, where):
                log_p = F.log_softmax(model(ids), dim=-1)
                loss = F.nll_loss(log_p.flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            yield loss.item()
