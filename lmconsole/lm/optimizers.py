"""The four optimizers, and the learning rate at each step."""

import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter

from lmconsole.plan.experiment import Settings


def build_optimizer(settings: Settings, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of ``settings`` over all trainable parameters, including biases and norms.

    Adam (Kingma & Ba, arXiv:1412.6980) adds ``weight_decay`` to the gradient as an L2 term, AdamW (Loshchilov & Hutter,
    arXiv:1711.05101) decouples it. The fused kernels make one pass over each parameter and its state, where the loops
    over tensors make ten. Each parameter's update is independent of the others, so a resumed run has the same bits.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    lr, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer in ("adam", "adamw"):
        assert settings.beta1 is not None
        assert settings.beta2 is not None
        assert settings.adam_eps is not None
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
        betas = (settings.beta1, settings.beta2)
        return kind(trained, lr=lr, betas=betas, eps=settings.adam_eps, weight_decay=decay, fused=True)
    momentum = settings.momentum if settings.optimizer == "momentum" else 0.0
    assert momentum is not None
    return torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=decay, fused=True)


def state_names(settings: Settings) -> tuple[str, ...]:
    """Return the names of the tensors that the optimizer keeps for each parameter after its first step: ``step`` is a
    float32 scalar, all others are like the parameter.

    They are listed because taking a step asks for the machine's GPU, even if all parameters are on the CPU.
    """
    match settings.optimizer:
        case "adam" | "adamw":
            return "step", "exp_avg", "exp_avg_sq"
        case "momentum":
            return ("momentum_buffer",)
        case "sgd":
            return ()


def load() -> None:
    """Import everything that an optimizer needs: a process's first one loads PyTorch's compiler, which takes a
    second."""
    torch.optim.AdamW([Parameter(torch.zeros(1))], fused=True)


def has_schedule(settings: Settings) -> bool:
    """Return whether the learning rate changes during training."""
    return settings.warmup_steps > 0 or settings.learning_rate_decay != "none"


def learning_rate_at(settings: Settings, step: int, total_steps: int) -> float:
    """Return the learning rate of ``step``, counted from 0 over the whole run of ``total_steps``.

    It rises linearly over ``warmup_steps``: the first step has the first value above 0, the last of them the full rate.
    With ``cosine`` it then falls along half a cosine (Loshchilov & Hutter, arXiv:1608.03983) to 0 at the last step.
    """
    full, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return full * (step + 1) / warmup
    if settings.learning_rate_decay == "none":
        return full
    first = max(warmup - 1, 0)  # the step with the full rate
    progress = min((step - first) / max(total_steps - 1 - first, 1), 1.0)
    return full * 0.5 * (1.0 + math.cos(math.pi * progress))
