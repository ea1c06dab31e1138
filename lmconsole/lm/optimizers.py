"""The four optimizers, and the learning rate at each step."""

import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter

from lmconsole.plan.experiment import Settings


def build_optimizer(settings: Settings, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """The optimizer that ``settings`` asks for, over every parameter that is trained, biases and norms included.

    Adam (Kingma & Ba, arXiv:1412.6980) takes ``weight_decay`` as an L2 term of the gradient, AdamW (Loshchilov &
    Hutter, arXiv:1711.05101) as a decay of its own. The fused kernels make one pass over each parameter and its state,
    where the loops over tensors make ten; one parameter's update depends on no other, so they resume to the same bits.
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


def load() -> None:
    """Have torch import all that an optimizer needs: the first one of a process loads torch's compiler, which takes a
    second."""
    torch.optim.AdamW([Parameter(torch.zeros(1))], fused=True)


def learning_rate_at(settings: Settings, step: int, total_steps: int) -> float:
    """Learning rate of ``step``, which counts from 0 over the whole run of ``total_steps``.

    It rises linearly over ``warmup_steps``, the first step taking the first rise above 0 and the last of them the full
    rate. With ``cosine`` it then falls along half a cosine (Loshchilov & Hutter, arXiv:1608.03983) and is 0 at the last
    step.
    """
    full, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return full * (step + 1) / warmup
    if settings.learning_rate_decay == "none":
        return full
    first = max(warmup - 1, 0)  # the step that has the full rate
    done = min((step - first) / max(total_steps - 1 - first, 1), 1.0)
    return full * 0.5 * (1.0 + math.cos(math.pi * done))
