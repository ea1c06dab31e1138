"""Cross-entropy of the tied head, without ever holding tokens x vocabulary logits."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

IGNORE = -100
"""Target of a slot that counts for nothing: padding of the last window."""


def head_loss_sum(
    features: Tensor, table: Tensor, targets: Tensor, *, compute_dtype: torch.dtype, chunk_rows: int | None = None
) -> Tensor:
    """Summed negative log-likelihood, in nats, of ``targets`` under softmax(features @ table.T); a float32 scalar."""
    rows = chunk_rows or 512
    need_features = torch.is_grad_enabled() and features.requires_grad
    need_table = torch.is_grad_enabled() and table.requires_grad
    with torch.autocast(features.device.type, enabled=False):
        loss: Tensor = _HeadLoss.apply(features, table, targets, compute_dtype, rows, need_features, need_table)
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, table, targets, dtype, rows, need_features, need_table):
        x = features.to(dtype)
        w = table.to(dtype)
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        grad_features = torch.empty_like(features) if need_features else None
        grad_table = torch.zeros_like(table, dtype=torch.float32) if need_table else None
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            target = targets[start : start + rows]
            used = target != IGNORE
            target = target.clamp_min(0).unsqueeze(1)
            logp = torch.log_softmax((part @ w.T).float(), dim=-1)
            total -= (logp.gather(1, target).squeeze(1).masked_fill(~used, 0)).double().sum()
            if not (need_features or need_table):
                continue
            p = logp.exp_()
            p.scatter_add_(1, target, p.new_full((len(part), 1), -1.0))
            p.masked_fill_(~used.unsqueeze(1), 0)
            p = p.to(dtype)
            if grad_features is not None:
                grad_features[start : start + rows] = p @ w
            if grad_table is not None:
                grad_table += p.T @ part
        ctx.grads = (grad_features, grad_table)
        return total.float()

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.grads
        return (a * grad if a is not None else None, b * grad if b is not None else None, None, None, None, None, None)
