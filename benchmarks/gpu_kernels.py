"""Which kernels are fastest on this GPU: recurrence, attention, head, and the head's logits in float32.

What training uses is one line of each table; the others are what to try when a card proves that line wrong.
"""

import functools
import importlib.util
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from gpu_device import median_s
from gpu_process import Stage
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmconsole.lm import device as devices
from lmconsole.lm import linear_cross_entropy as loss
from lmconsole.lm import memory
from lmconsole.lm.cuda_graph import capture_graph
from lmconsole.lm.lstm import Lstm
from lmconsole.plan.experiment import Precision, Settings

LAYERS = (1, 2, 4)
LSTM_VARIANTS = ("fp32", "tf32", "bf16", "fp16", "fp16, by layer")
"""The last two are what training may use in bf16: under autocast cuDNN computes in float16 whatever is asked for, and
torch asks it for persistent kernels in float16 and one layer at a time alone."""
TILE_VALUES = {"cuda": (4, 8, 16, 32), "cpu": (0.001,)}
"""Millions of logits."""
ATTENTION = {
    "cuda": {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION},
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
}


def compare_kernels(settings: Settings, vocabulary: int, where: str, stage: Stage) -> dict[str, Any]:
    """Milliseconds of forward and backward together, as they are in a captured step; medians. What cannot be done is
    named with the reason."""
    warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")
    failed: dict[str, str] = {}
    found: dict[str, Any] = {"lstm_ms": {}, "head_ms": {}, "failed": failed}
    found["tile_values"] = loss._TILE_LOGITS[_kind(where)]
    variants = (("head_ms", _head_variants(settings, vocabulary, where)), ("lstm_ms", _lstm_variants(settings, where)))
    for part, each in variants:
        for name, work in each:
            if stage.left_s <= 0:
                failed[name] = "no time was left"
                continue
            try:
                found[part][name] = _milliseconds(work, where)
            except Exception as error:  # a variant that does not work is a finding
                failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            memory.empty_cache(where)
            stage.report(found)
    return found


def _kind(where: str) -> str:
    return "cpu" if where == "cpu" else "cuda"


def _milliseconds(work: Callable[[], object], where: str) -> float:
    """Milliseconds of ``work``, captured as a CUDA graph on a GPU."""

    def once() -> None:
        work()

    return 1000 * median_s(once if where == "cpu" else capture_graph(once), where)


def _lstm_variants(settings: Settings, where: str) -> Iterator[tuple[str, Callable[[], object]]]:
    assert settings.hidden is not None
    B, T, C = settings.batch_size, settings.window_tokens, settings.channels
    x = torch.randn(B, T, C, device=where) * 0.14
    gradient = torch.randn(B, T, settings.hidden, device=where) / (B * T)
    for layers, name in itertools.product(LAYERS, LSTM_VARIANTS):
        if where == "cpu" and name in ("tf32", "fp16"):
            continue
        body = Lstm(channels=C, hidden=settings.hidden, layers=layers, dropout=0.0).to(where)
        body.by_layer = name == "fp16, by layer"
        weights = list(body.lstm.parameters())

        def work(body: Lstm = body, name: str = name, weights: list[Parameter] = weights) -> list[Tensor]:
            devices.apply_precision("tf32" if name == "tf32" else "fp32")
            if name.startswith("fp16"):
                y = body._recur_in_float16(x)
            elif name == "bf16":
                zero = x.new_zeros(body.lstm.num_layers, B, body.lstm.hidden_size, dtype=torch.bfloat16)
                cast = [each.bfloat16() for each in weights]
                y = torch.lstm(x.bfloat16(), (zero, zero), cast, True, len(zero), 0.0, True, False, True)[0]
            else:
                y = body.lstm(x)[0]
            return list(torch.autograd.grad(y, weights, gradient.to(y.dtype)))

        yield f"{layers} layer{'s' if layers > 1 else ''}, {name}", work


def _head_variants(settings: Settings, vocabulary: int, where: str) -> Iterator[tuple[str, Callable[[], object]]]:
    N, C = settings.batch_size * settings.window_tokens, settings.channels
    features = torch.randn(N, C, device=where, requires_grad=True)
    targets = torch.randint(1, vocabulary, (N,), device=where)
    kept = loss._TILE_LOGITS[_kind(where)]
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        dtype = devices.compute_dtype(precision)
        table = torch.randn(vocabulary, C, device=where).mul_(0.14).to(dtype)
        x = features.detach().to(dtype)

        def products(precision: Precision = precision, table: Tensor = table, x: Tensor = x) -> Tensor:
            devices.apply_precision(precision)
            return (x @ table.t()) @ table

        yield f"{precision}, its two products alone", products
        for own, millions in itertools.product((False, True), TILE_VALUES[_kind(where)]):
            if own and (where == "cpu" or importlib.util.find_spec("triton") is None):
                continue

            def work(
                own: bool = own,
                millions: float = millions,
                precision: Precision = precision,
                table: Tensor = table,
                dtype: torch.dtype = dtype,
            ) -> Tensor:
                devices.apply_precision(precision)
                loss._TILE_LOGITS[_kind(where)] = int(millions * 2**20)
                try:
                    value = loss.linear_cross_entropy(features, table, targets, compute_dtype=dtype, use_triton=own)
                finally:
                    loss._TILE_LOGITS[_kind(where)] = kept
                return torch.autograd.grad(value, features)[0]

            yield f"{precision}, {'own kernel' if own else 'torch alone'}, tiles of {millions:g} M", work


# ---- attention


def compare_attention(
    settings: Settings, depths: list[int], batches: dict[int, bool], steps: int, where: str, stage: Stage
) -> dict[str, Any]:
    """Which backend of scaled dot product attention is faster over a run of ``steps`` steps: seconds of the first call
    with each size of batch, since cuDNN builds a plan for every shape, and milliseconds a layer from then on.

    ``depths`` are the numbers of layers, ``batches`` the numbers of windows that a run meets, and whether it trains on
    them.
    """
    found: dict[str, Any] = {"backends": {}, "steps": steps, "depths": depths, "batches": list(batches)}
    for name, backend in ATTENTION[_kind(where)].items():
        try:
            with sdpa_kernel([backend]):
                entry: dict[str, Any] = _time_attention(settings, batches, where)
            entry["run_s"] = [entry["first_calls_s"] + layers * steps * entry["ms"] / 1000 for layers in depths]
        except Exception as error:
            entry = {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
        found["backends"][name] = entry
        stage.report(found)
    return found | {"verdict": attention_verdict(found)}


def _time_attention(settings: Settings, batches: dict[int, bool], where: str) -> dict[str, Any]:
    forward_s, backward_s = {}, {}
    for windows, trains in batches.items():
        qkv = _attention_inputs(settings, windows, where)
        with nullcontext() if trains else torch.inference_mode():  # plans differ, too
            y, forward_s[windows] = _clocked(functools.partial(_attend, qkv), where)
        if trains:
            back = functools.partial(torch.autograd.grad, y, qkv, torch.ones_like(y))
            _, backward_s[windows] = _clocked(back, where)
    qkv = _attention_inputs(settings, settings.batch_size, where)
    gradient = torch.randn_like(_attend(qkv))
    return {
        "first_forward_s": forward_s,
        "first_backward_s": backward_s,
        "first_calls_s": sum(forward_s.values()) + sum(backward_s.values()),
        "ms": _milliseconds(lambda: torch.autograd.grad(_attend(qkv), qkv, gradient), where),
    }


def _attention_inputs(settings: Settings, windows: int, where: str) -> Tensor:
    """Queries, keys and values (B, T, 3, heads, D)."""
    assert settings.heads is not None
    T, heads, D = settings.window_tokens, settings.heads, settings.channels // settings.heads
    return torch.randn(windows, T, 3, heads, D, device=where, dtype=torch.bfloat16, requires_grad=True)


def _attend(qkv: Tensor) -> Tensor:
    """Causal attention as ``lm.gpt1`` lays out its inputs: (B, T, 3, heads, D) to (B, heads, T, D)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _clocked(work: Callable[[], Any], where: str) -> tuple[Any, float]:
    """The result of ``work``, and seconds until the device has it."""
    devices.synchronize(where)
    began = time.perf_counter()
    result = work()
    devices.synchronize(where)
    return result, time.perf_counter() - began


def attention_verdict(found: dict[str, Any]) -> str:
    """Say in words which backend to use for which depth, and why. Seconds of a run are first calls and measured
    milliseconds times layers times steps."""
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
        f"{name} takes {each['first_calls_s']:.2f} s for its first calls, then {each['ms']:.3f} ms a layer, in all "
        f"{' / '.join(f'{seconds:.1f}' for seconds in each['run_s'])} s with {depths} layer{'s' * (depths != '1')}"
        for name, each in works.items()
    )
    return f"{choice}. Over {found['steps']:,} steps {'; '.join(reasons)}"


# ---- the head's logits in float32


def compare_products(rows: int, channels: int, vocabulary: int, where: str) -> dict[str, dict[str, float]]:
    """The head's logits in float32: as one product without TF32; as the sum of three with it, of factors cut in two (as
    in Markidis et al., arXiv:1803.04014); and as one float16 product three times as deep. Milliseconds, and distance
    from float64. Should another be as exact as the first and much faster, fp32 training can be."""
    x = torch.relu(torch.randn(rows, channels, device=where))
    w = torch.randn(vocabulary, channels, device=where) * 0.14
    exact = x[:256].double() @ w.double().t()
    variants: dict[str, tuple[Precision, Callable[[], Tensor]]] = {
        "one, fp32": ("fp32", lambda: x @ w.t()),
        "three, tf32": ("tf32", _three_products(x, w)),
        "one, float16, three times as deep": ("fp32", _deep_product(x, w)),
    }
    found = {}
    for name, (precision, work) in variants.items():
        devices.apply_precision(precision)
        off = float((work()[:256].double() - exact).norm() / exact.norm())
        found[name] = {"ms": 1000 * median_s(work, where), "off_by": off}
    return found


def _three_products(x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    def cut(a: Tensor) -> tuple[Tensor, Tensor]:
        """The ten bits of the mantissa that TF32 keeps, and the rest."""
        high = (a.view(torch.int32) & ~0x1FFF).view(torch.float32)
        return high, a - high

    w_high, w_low = cut(w)

    def work() -> Tensor:
        x_high, x_low = cut(x)
        return (x_high @ w_low.t()).addmm_(x_low, w_high.t()).addmm_(x_high, w_high.t())

    return work


def _deep_product(x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """[high high low] · [high low high], the factors scaled so that float16 holds their low parts."""
    x_scale, w_scale = 2.0**6, 2.0**8

    def cut(a: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        a = a * scale
        high = a.half()
        return high, (a - high.float()).half()

    w_high, w_low = cut(w, w_scale)
    w_deep = torch.cat([w_high, w_low, w_high], 1)

    def work() -> Tensor:
        x_high, x_low = cut(x, x_scale)
        x_deep = torch.cat([x_high, x_high, x_low], 1)
        if x.device.type == "cpu":  # which has no such product
            return (x_deep.float() @ w_deep.float().t()) / (x_scale * w_scale)
        return torch.mm(x_deep, w_deep.t(), out_dtype=torch.float32) / (x_scale * w_scale)

    return work
