"""Experiments, and the settings of a run."""

from functools import cache
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
    """Everything that determines what a run computes, except its seed and data.

    A field that does not apply to the model or optimizer is None, which no file can spell. See ``APPLIES_TO``.
    """

    model: Model
    """Architecture: ``lstm`` or ``gpt1``."""
    layers: Annotated[int, msgspec.Meta(ge=1, le=256)]
    """Stacked LSTM layers, or transformer blocks."""
    optimizer: Optimizer
    """``adam``, ``adamw``, ``sgd``, or ``momentum`` (SGD with momentum)."""

    channels: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    """C, the width of the embeddings and, in GPT-1, of the residual stream."""
    hidden: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    """LSTM: width of each layer's hidden state."""
    heads: Annotated[int, msgspec.Meta(ge=1, le=1_024)] | None = None
    """GPT-1: number of attention heads, a divisor of ``channels``."""
    mlp_channels: Annotated[int, msgspec.Meta(ge=1, le=262_144)] | None = None
    """GPT-1: width of the MLP's hidden layer."""
    layer_norm_eps: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] | None = None
    """GPT-1: added to the variance in LayerNorm."""

    embeddings: Literal["frozen", "learned"]
    """``frozen``: tables are read from a file and not trained. ``learned``: drawn from N(0, ``embedding_std``²),
    trained."""
    embedding_std: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)]
    """Standard deviation of learned tables at initialization."""

    corpus: Literal["tokens", "demo"]
    """``tokens``: the folder given by --data, LMCONSOLE_DATA, ./data or the user data folder. ``demo``: built in."""
    vocabulary: Annotated[int, msgspec.Meta(ge=2, le=10_000_000)]
    """V, an upper bound of token ids. A tokenizer trained on the corpus has at most this many tokens."""
    window_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """T, the number of targets in a window."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """B, the number of windows in a training step."""
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    """Number of passes over the train split."""

    learning_rate: Rate
    """Step size of the optimizer."""
    weight_decay: Annotated[float, msgspec.Meta(ge=0.0, le=1_000.0)]
    """Decay of every trainable parameter: decoupled in AdamW, an L2 term of the gradient otherwise."""
    beta1: Fraction | None = None
    """Adam, AdamW: decay rate of the first moment."""
    beta2: Fraction | None = None
    """Adam, AdamW: decay rate of the second moment."""
    adam_eps: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] | None = None
    """Adam, AdamW: added to the denominator."""
    momentum: Fraction | None = None
    """SGD with momentum: decay rate of the velocity."""

    gradient_clip_norm: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
    """Maximum L2 norm of the gradient over all parameters; 0 is off."""
    warmup_steps: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
    """Steps over which the learning rate rises linearly from 0; 0 is off."""
    learning_rate_decay: Literal["none", "cosine"]
    """``cosine``: decay to 0 at the last step, after the warm-up."""
    dropout: Fraction
    """Dropout probability, in GPT-1 of embeddings, attention weights and residual branches, in the LSTM of inputs and
    outputs; 0 is off."""
    early_stopping_epochs: Annotated[int, msgspec.Meta(ge=0, le=100_000)]
    """Stop after this many epochs without a better validation perplexity; 0 is off."""
    evaluate_every_steps: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    """Steps of the run between evaluations of the validation split within epochs, in addition to those at their ends; 0
    is off. They change no result, and their time is not training time."""
    precision: Literal["fp32", "tf32", "bf16", "auto"]
    """Precision of matrix products; ``auto`` is bf16 where the hardware computes it natively, otherwise fp32."""


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
"""Models or optimizers of the fields that apply to these only; every other field applies to all."""

# fmt: off
ALWAYS_HASHED = frozenset((
    "model", "layers", "optimizer", "channels", "hidden", "heads", "mlp_channels", "layer_norm_eps", "embeddings",
    "embedding_std", "corpus", "vocabulary", "window_tokens", "batch_size", "epochs", "learning_rate", "weight_decay",
    "beta1", "beta2", "adam_eps", "momentum", "gradient_clip_norm", "warmup_steps", "learning_rate_decay", "dropout",
    "early_stopping_epochs", "precision",
))
# fmt: on
"""Settings of version 0.1.0. A later one needs a default, at which runs compute what they computed without it."""


RECORDING_SETTINGS = frozenset(("evaluate_every_steps",))
"""Settings that add to what a run records, and change nothing that it computes."""


def hashed_settings(settings: Settings) -> dict[str, object]:
    """Return the settings that identify a run: those of version 0.1.0, and later ones that are not at their default.

    Runs of a store that was written before a setting existed are therefore recognized as the same runs.
    """
    values = [(name, getattr(settings, name), default) for name, default in _defaults(type(settings))]
    return {name: value for name, value, default in values if name in ALWAYS_HASHED or value != default}


@cache
def _defaults(settings: type[Settings]) -> tuple[tuple[str, object], ...]:
    """Return names and defaults of the settings: msgspec resolves type hints each time it is asked."""
    return tuple((field.name, field.default) for field in msgspec.structs.fields(settings))


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """One row of experiments.toml."""

    id: Annotated[int, msgspec.Meta(ge=1, le=999_999)]
    """Number that names the experiment on the command line."""
    model: Model
    """Architecture: ``lstm`` or ``gpt1``."""
    layers: Annotated[int, msgspec.Meta(ge=1, le=256)]
    """Stacked LSTM layers, or transformer blocks."""
    optimizer: Optimizer
    """``adam``, ``adamw``, ``sgd``, or ``momentum`` (SGD with momentum)."""
    name: Annotated[str, msgspec.Meta(max_length=255)] = ""
    """Label; empty for the built-in experiments."""
    overrides: dict[str, object] = {}
    """Settings that the row overrides."""
    source: str = ""
    """File and number of the row."""

    @property
    def label(self) -> str:
        """Name for display, such as ``GPT-1 2L AdamW``."""
        return self.name or f"{MODEL_NAMES[self.model]} {self.layers}L {OPTIMIZER_NAMES[self.optimizer]}"
