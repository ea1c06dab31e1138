"""What one run is asked to do: an experiment of the list, and the settings it resolves to."""

from typing import Annotated, Literal

import msgspec

Model = Literal["gpt1", "lstm"]
Optimizer = Literal["adam", "adamw", "momentum", "sgd"]
Precision = Literal["fp32", "tf32", "bf16"]

MODEL_NAMES: dict[str, str] = {"gpt1": "GPT-1", "lstm": "LSTM"}
OPTIMIZER_NAMES: dict[str, str] = {"adam": "Adam", "adamw": "AdamW", "momentum": "Momentum", "sgd": "SGD"}

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Rate = Annotated[float, msgspec.Meta(gt=0.0, le=1_000.0)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a run computes, but for its seed and its data.

    A field that the model or optimizer has no use for is None; a file never spells None. See ``APPLIES_TO``.
    """

    model: Model
    """Architecture: ``lstm`` or ``gpt1``."""
    layers: Annotated[int, msgspec.Meta(ge=1, le=256)]
    """Stacked LSTM layers, or transformer blocks."""
    optimizer: Optimizer
    """``adam``, ``adamw``, ``sgd``, or ``momentum`` (SGD with momentum)."""

    channels: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    """C, width of the embeddings and, in GPT-1, of the residual stream."""
    hidden: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    """LSTM: width of the hidden state of each layer."""
    heads: Annotated[int, msgspec.Meta(ge=1, le=1_024)] | None = None
    """GPT-1: attention heads; divides ``channels``."""
    mlp_channels: Annotated[int, msgspec.Meta(ge=1, le=262_144)] | None = None
    """GPT-1: width of the hidden layer of each block's MLP."""
    layer_norm_eps: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] | None = None
    """GPT-1: added to the variance in LayerNorm."""

    embeddings: Literal["frozen", "learned"]
    """``frozen``: tables read from a file and left alone. ``learned``: drawn from N(0, ``embedding_std``²), trained."""
    embedding_std: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)]
    """Standard deviation of learned tables before the first step."""

    corpus: Literal["tokens", "demo"]
    """``tokens``: the folder that --data, LMCONSOLE_DATA, ./data or the user data folder names. ``demo``: built in."""
    vocabulary: Annotated[int, msgspec.Meta(ge=2, le=10_000_000)]
    """V: token ids are below it; a tokenizer trained on the corpus gets at most this many."""
    window_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """T, targets in a window."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """B, windows in a step."""
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    """Passes over the train split."""

    learning_rate: Rate
    """Step size of the optimizer."""
    weight_decay: Annotated[float, msgspec.Meta(ge=0.0, le=1_000.0)]
    """Decay on every trainable parameter: decoupled in AdamW, an L2 term of the gradient elsewhere."""
    beta1: Fraction | None = None
    """Adam, AdamW: decay of the gradient's running mean."""
    beta2: Fraction | None = None
    """Adam, AdamW: decay of the squared gradient's running mean."""
    adam_eps: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] | None = None
    """Adam, AdamW: added to the denominator."""
    momentum: Fraction | None = None
    """SGD with momentum: decay of the velocity."""

    gradient_clip_norm: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
    """Largest L2 norm of the whole gradient; 0 is off."""
    warmup_steps: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
    """Steps over which the learning rate rises linearly from 0; 0 is off."""
    learning_rate_decay: Literal["none", "cosine"]
    """``cosine``: to 0 at the last step, after the warm-up."""
    dropout: Fraction
    """Probability with which GPT-1 drops embeddings, attention weights and residual branches, and the LSTM its inputs
    and outputs; 0 is off."""
    early_stopping_epochs: Annotated[int, msgspec.Meta(ge=0, le=100_000)]
    """Stop after this many epochs without a better validation perplexity; 0 is off."""
    precision: Literal["fp32", "tf32", "bf16", "auto"]
    """Arithmetic of matrix products; ``auto`` is bf16 where the hardware computes it natively, else fp32."""


APPLIES_TO: dict[str, tuple[str, ...]] = {
    "hidden": ("lstm",),
    "heads": ("gpt1",),
    "mlp_channels": ("gpt1",),
    "layer_norm_eps": ("gpt1",),
    "beta1": ("adam", "adamw"),
    "beta2": ("adam", "adamw"),
    "adam_eps": ("adam", "adamw"),
    "momentum": ("momentum",),
}
"""The fields that only some models or optimizers have, and which; every other field is everybody's."""


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """One row of experiments.toml."""

    id: Annotated[int, msgspec.Meta(ge=1, le=999_999)]
    """What people type to name it."""
    model: Model
    layers: Annotated[int, msgspec.Meta(ge=1, le=256)]
    optimizer: Optimizer
    name: str = ""
    """A person's own label; empty for the built-in twelve."""
    overrides: dict[str, object] = {}
    """Settings that this row fixes for itself."""
    source: str = ""
    """File the row stands in."""

    @property
    def label(self) -> str:
        """Short name for one line of a screen, for example ``GPT-1 2L AdamW``."""
        return self.name or f"{MODEL_NAMES[self.model]} {self.layers}L {OPTIMIZER_NAMES[self.optimizer]}"
