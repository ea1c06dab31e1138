"""Trainable parameters of a model and the disk space of its run, from the settings alone."""

from lmconsole.plan.experiment import Settings

BYTES = 4
"""Weights and optimizer states are float32 in every precision."""
OPTIMIZER_TENSORS = {"adam": 2, "adamw": 2, "momentum": 1, "sgd": 0}
"""Tensors like the parameter that an optimizer keeps for each."""
CHECKPOINTS = 3
"""Checkpoints of a run while the next one is written."""


def trainable_parameters(settings: Settings, vocabulary: int) -> int:
    """Return the number of trainable parameters; those of learned tables count, frozen ones do not."""
    C, T = settings.channels, settings.window_tokens
    learned = settings.embeddings == "learned"
    if settings.hidden is not None:
        H = settings.hidden
        inputs = C + (settings.layers - 1) * H
        body = 4 * H * (inputs + settings.layers * H) + settings.layers * 8 * H + H * C + C
        return body + (vocabulary * C if learned else 0)
    assert settings.mlp_channels is not None
    M = settings.mlp_channels
    layer = 4 * C * C + 4 * C + 2 * C * M + M + C + 4 * C  # attention, MLP, two norms
    return settings.layers * layer + ((vocabulary + T) * C if learned else 0)


def checkpoint_bytes(settings: Settings, vocabulary: int) -> int:
    """Return the size of a checkpoint: weights, the best weights so far, and the states of the optimizer."""
    return (2 + OPTIMIZER_TENSORS[settings.optimizer]) * weights_bytes(settings, vocabulary)


def weights_bytes(settings: Settings, vocabulary: int) -> int:
    """Return the size of the best weights, which a finished run keeps."""
    return BYTES * trainable_parameters(settings, vocabulary)
