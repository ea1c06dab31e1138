"""Alternative kernels on this GPU: LSTM recurrence, linear cross-entropy, attention, and matmuls for fp32 logits.

Each table has the variant that training uses, and others to consider if a GPU runs them faster.
"""

import functools
import importlib.util
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Literal

import torch
from gpu_device import median_s
from gpu_process import Stage
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmconsole.lm.cuda_graph import capture_graph
from lmconsole.lm.device import apply_precision, compute_dtype, synchronize
from lmconsole.lm.linear_cross_entropy import _TILE_LOGITS, linear_cross_entropy
from lmconsole.lm.lstm import Lstm
from lmconsole.lm.memory import empty_cache
from lmconsole.plan.experiment import Precision, Settings

LAYERS = (1, 2, 4)
LSTM_VARIANTS = ("fp32", "tf32", "bf16", "fp16", "fp16, layer by layer")
"""bf16 training uses the last two: under autocast, cuDNN computes in float16 for any type, and PyTorch requests its
persistent kernels only for float16 and one layer at a time."""
TILE_MILLIONS = {"cuda": (4, 8, 16, 32), "cpu": (0.001,)}
"""Logits in a tile, in units of 2**20."""
ATTENTION_BACKENDS = {
    "cuda": {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION},
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
}

Work = Callable[[], object]


def compare_kernels(settings: Settings, vocabulary: int, device: str, stage: Stage) -> dict[str, Any]:
    """Return the median milliseconds of forward and backward pass of every variant, each in a CUDA graph as in a
    captured step, and the reasons of those that failed."""
    warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")
    failed: dict[str, str] = {}
    found: dict[str, Any] = {"lstm_ms": {}, "head_ms": {}, "failed": failed, "tile_logits": _TILE_LOGITS[_kind(device)]}
    variants = (
        ("head_ms", _linear_cross_entropy_variants(settings, vocabulary, device)),
        ("lstm_ms", _lstm_variants(settings, device)),
    )
    for key, each in variants:
        for name, work in each:
            if stage.left_s <= 0:
                failed[name] = "no time was left"
                continue
            try:
                found[key][name] = _milliseconds(work, device)
            except Exception as error:  # that a variant does not work is a result, too
                failed[name] = _first_line(error)
            empty_cache(device)
            stage.save_partial(found)
    return found


def _kind(device: str) -> Literal["cpu", "cuda"]:
    return "cpu" if device == "cpu" else "cuda"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _milliseconds(work: Work, device: str) -> float:
    """Return the median milliseconds of ``work``, captured as a CUDA graph on a GPU."""

    def run() -> None:
        work()

    return 1000 * median_s(run if device == "cpu" else capture_graph(run), device)


def _lstm_variants(settings: Settings, device: str) -> Iterator[tuple[str, Work]]:
    assert settings.hidden is not None
    B, T, C = settings.batch_size, settings.window_tokens, settings.channels
    x = torch.randn(B, T, C, device=device) * 0.14
    gradient = torch.randn(B, T, settings.hidden, device=device) / (B * T)
    for layers, variant in itertools.product(LAYERS, LSTM_VARIANTS):
        if device == "cpu" and variant in ("tf32", "fp16"):
            continue
        body = Lstm(channels=C, hidden=settings.hidden, layers=layers, dropout=0.0).to(device)
        body.by_layer = variant == "fp16, layer by layer"
        work = functools.partial(_recur, body, variant, x, gradient)
        yield f"{layers} layer{'s' if layers > 1 else ''}, {variant}", work


def _recur(body: Lstm, variant: str, x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the weights of the recurrence."""
    weights = list(body.lstm.parameters())
    apply_precision("tf32" if variant == "tf32" else "fp32")
    if variant.startswith("fp16"):
        y = body._recur_in_float16(x)
    elif variant == "bf16":
        zero = x.new_zeros(body.lstm.num_layers, len(x), body.lstm.hidden_size, dtype=torch.bfloat16)
        cast = [each.bfloat16() for each in weights]
        y = torch.lstm(x.bfloat16(), (zero, zero), cast, True, len(zero), 0.0, True, False, True)[0]
    else:
        y = body.lstm(x)[0]
    return torch.autograd.grad(y, weights, gradient.to(y.dtype))


def _linear_cross_entropy_variants(settings: Settings, vocabulary: int, device: str) -> Iterator[tuple[str, Work]]:
    N, C = settings.batch_size * settings.window_tokens, settings.channels
    features = torch.randn(N, C, device=device, requires_grad=True)
    targets = torch.randint(1, vocabulary, (N,), device=device)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        dtype = compute_dtype(precision)
        table = torch.randn(vocabulary, C, device=device).mul_(0.14).to(dtype)
        x = features.detach().to(dtype)
        yield f"{precision}, only the two matmuls", functools.partial(_two_matmuls, precision, x, table)
        for use_triton, millions in itertools.product((False, True), TILE_MILLIONS[_kind(device)]):
            if use_triton and (device == "cpu" or importlib.util.find_spec("triton") is None):
                continue
            work = functools.partial(
                _loss_gradient, features, table, targets, precision, int(millions * 2**20), use_triton
            )
            yield f"{precision}, {'Triton' if use_triton else 'PyTorch'}, tiles of {millions:g} M", work


def _two_matmuls(precision: Precision, x: Tensor, table: Tensor) -> Tensor:
    """Multiply to logits and back to the width of the features, as every variant does."""
    apply_precision(precision)
    return (x @ table.t()) @ table


def _loss_gradient(
    features: Tensor, table: Tensor, targets: Tensor, precision: Precision, tile_logits: int, use_triton: bool
) -> Tensor:
    """Return the gradient of the features with tiles of ``tile_logits``."""
    apply_precision(precision)
    kind = _kind(features.device.type)
    default = _TILE_LOGITS[kind]
    _TILE_LOGITS[kind] = tile_logits
    try:
        loss = linear_cross_entropy(
            features, table, targets, compute_dtype=compute_dtype(precision), use_triton=use_triton
        )
    finally:
        _TILE_LOGITS[kind] = default
    return torch.autograd.grad(loss, features)[0]


# ---- attention


def compare_attention(
    settings: Settings, depths: list[int], batches: dict[int, bool], steps: int, device: str, stage: Stage
) -> dict[str, Any]:
    """Compare the backends of scaled dot product attention over a run of ``steps`` steps.

    cuDNN builds a plan for every shape, so the first call with each batch size is timed apart from the later ones.

    Args:
        depths: Numbers of layers.
        batches: Batch sizes of a run, and whether it trains on them.

    Returns:
        For each backend the seconds of the first calls, the milliseconds of a layer from then on, and the seconds of
        a run for each of ``depths``; and which backend to use, as text.
    """
    found: dict[str, Any] = {"backends": {}, "steps": steps, "depths": depths, "batches": list(batches)}
    for name, backend in ATTENTION_BACKENDS[_kind(device)].items():
        try:
            with sdpa_kernel([backend]):
                entry: dict[str, Any] = _time_attention(settings, batches, device)
            entry["run_s"] = [entry["first_calls_s"] + layers * steps * entry["ms"] / 1000 for layers in depths]
        except Exception as error:
            entry = {"failed": _first_line(error)}
        found["backends"][name] = entry
        stage.save_partial(found)
    return found | {"verdict": attention_verdict(found)}


def _time_attention(settings: Settings, batches: dict[int, bool], device: str) -> dict[str, Any]:
    forward_s, backward_s = {}, {}
    for windows, trains in batches.items():
        qkv = _attention_inputs(settings, windows, device)
        with nullcontext() if trains else torch.inference_mode():  # cuDNN's plans differ between the two
            y, forward_s[windows] = _timed(functools.partial(_attention, qkv), device)
        if trains:
            backward = functools.partial(torch.autograd.grad, y, qkv, torch.ones_like(y))
            _, backward_s[windows] = _timed(backward, device)
    qkv = _attention_inputs(settings, settings.batch_size, device)
    gradient = torch.randn_like(_attention(qkv))
    return {
        "first_forward_s": forward_s,
        "first_backward_s": backward_s,
        "first_calls_s": sum(forward_s.values()) + sum(backward_s.values()),
        "ms": _milliseconds(lambda: torch.autograd.grad(_attention(qkv), qkv, gradient), device),
    }


def _attention_inputs(settings: Settings, windows: int, device: str) -> Tensor:
    """Return random queries, keys and values (B, T, 3, heads, D)."""
    assert settings.heads is not None
    T, heads, D = settings.window_tokens, settings.heads, settings.channels // settings.heads
    return torch.randn(windows, T, 3, heads, D, device=device, dtype=torch.bfloat16, requires_grad=True)


def _attention(qkv: Tensor) -> Tensor:
    """Return causal attention on the layout of ``lm.gpt1``: (B, T, 3, heads, D) to (B, heads, T, D)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """Return the result of ``work``, and its seconds with a device sync on both sides."""
    synchronize(device)
    began = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - began


def attention_verdict(found: dict[str, Any]) -> str:
    """Return which backend is faster at each depth, and the times that decide it.

    The seconds of a run are its first calls plus measured milliseconds × layers × steps.
    """
    works = {name: each for name, each in found["backends"].items() if "run_s" in each}
    broken = [f"{name} does not work here ({e['failed']})" for name, e in found["backends"].items() if "failed" in e]
    if not works:
        return f"no backend works: {'; '.join(broken)}"
    if broken:
        return f"use {', '.join(works)}: {'; '.join(broken)}"
    best = [min(works, key=lambda name: works[name]["run_s"][i]) for i in range(len(found["depths"]))]
    if len(set(best)) == 1:
        choice = f"use {best[0]}"
    else:
        pairs = zip(best, found["depths"], strict=True)
        choice = "use " + ", ".join(f"{name} with {layers}" for name, layers in pairs) + " layers"
    depths = " / ".join(map(str, found["depths"]))
    reasons = (
        f"{name} takes {each['first_calls_s']:.2f} s for its first calls, then {each['ms']:.3f} ms per layer, in all "
        f"{' / '.join(f'{seconds:.1f}' for seconds in each['run_s'])} s with {depths} layer{'s' * (depths != '1')}"
        for name, each in works.items()
    )
    return f"{choice}. Over {found['steps']:,} steps {'; '.join(reasons)}"


# ---- fp32 logits


def compare_matmuls(rows: int, channels: int, vocabulary: int, device: str) -> dict[str, dict[str, float]]:
    """Compare ways of computing the logits in float32: milliseconds, and relative error against float64.

    They are one matmul without TF32; the sum of three with TF32, of factors split in two (as in Markidis et al.,
    arXiv:1803.04014); and one float16 matmul with three times the inner dimension. If one of the others is as exact as
    the first and much faster, training in fp32 can use it.
    """
    x = torch.relu(torch.randn(rows, channels, device=device))
    w = torch.randn(vocabulary, channels, device=device) * 0.14
    exact = x[:256].double() @ w.double().t()
    variants: dict[str, tuple[Precision, Callable[[], Tensor]]] = {
        "one fp32 matmul": ("fp32", lambda: x @ w.t()),
        "three TF32 matmuls": ("tf32", _three_tf32_matmuls(x, w)),
        "one fp16 matmul, 3 × inner dimension": ("fp32", _one_fp16_matmul(x, w)),
    }
    found = {}
    for name, (precision, work) in variants.items():
        apply_precision(precision)
        error = float((work()[:256].double() - exact).norm() / exact.norm())
        found[name] = {"ms": 1000 * median_s(work, device), "error": error}
    return found


def _three_tf32_matmuls(x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    def split(a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ten bits of the mantissa that TF32 keeps, and the rest."""
        high = (a.view(torch.int32) & ~0x1FFF).view(torch.float32)
        return high, a - high

    w_high, w_low = split(w)

    def work() -> Tensor:
        x_high, x_low = split(x)
        return (x_high @ w_low.t()).addmm_(x_low, w_high.t()).addmm_(x_high, w_high.t())

    return work


def _one_fp16_matmul(x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """Multiply [high high low] by [high low high], with factors scaled so that float16 can represent their low
    parts."""
    x_scale, w_scale = 2.0**6, 2.0**8

    def split(a: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        a = a * scale
        high = a.half()
        return high, (a - high.float()).half()

    w_high, w_low = split(w, w_scale)
    w_parts = torch.cat([w_high, w_low, w_high], 1)

    def work() -> Tensor:
        x_high, x_low = split(x, x_scale)
        x_parts = torch.cat([x_high, x_high, x_low], 1)
        if x.device.type == "cpu":  # which has no float16 matmul with float32 output
            return (x_parts.float() @ w_parts.float().t()) / (x_scale * w_scale)
        return torch.mm(x_parts, w_parts.t(), out_dtype=torch.float32) / (x_scale * w_scale)

    return work
