"""Which way is fastest on this GPU: the LSTM's recurrence by type of number, and the head by kernel and size of tile.

What training takes is one line of each table; the others are what to try when a card proves that line wrong.
"""

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_device import median_s
from torch import Tensor
from torch.nn import Parameter

from lmconsole.lm import device as devices
from lmconsole.lm import loss
from lmconsole.lm.lstm import Lstm
from lmconsole.lm.steps import record_graph
from lmconsole.plan.experiment import Precision, Settings

LAYERS = (1, 2, 4)
LSTM_WAYS = ("fp32", "tf32", "bf16", "fp16", "fp16, by layer")
"""The last two are what training may take in bf16: under autocast cuDNN computes in float16 whatever is asked for, and
torch asks it for persistent kernels in float16 and one layer at a time alone."""
TILE_VALUES = {"cuda": (4, 8, 16, 32), "cpu": (0.001,)}
"""Millions of logits."""


def compare_kernels(settings: Settings, vocabulary: int, where: str) -> dict[str, Any]:
    """Milliseconds of forward and backward together, as they are in a captured step; medians. What cannot be done is
    named with the reason."""
    failed: dict[str, str] = {}
    warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")
    lstm = _timed(_lstm_ways(settings, where), failed, where)
    head = _timed(_head_ways(settings, vocabulary, where), failed, where)
    products = compare_products(settings, vocabulary, where)
    return {
        "lstm_ms": lstm,
        "head_ms": head,
        "products": products,
        "failed": failed,
        "tile_values": loss._TILE_VALUES[_kind(where)],
    }


def _kind(where: str) -> str:
    return "cpu" if where == "cpu" else "cuda"


def _timed(ways: Iterator[tuple[str, Callable[[], object]]], failed: dict[str, str], where: str) -> dict[str, float]:
    found = {}
    for name, work in ways:

        def once(work: Callable[[], object] = work) -> None:
            work()

        try:
            found[name] = 1000 * median_s(once if where == "cpu" else record_graph(once), where)
        except Exception as error:  # one way that does not work is a finding
            failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        devices.give_back_memory(where)
    return found


def _lstm_ways(settings: Settings, where: str) -> Iterator[tuple[str, Callable[[], object]]]:
    assert settings.hidden is not None
    B, T, C = settings.batch_size, settings.window_tokens, settings.channels
    x = torch.randn(B, T, C, device=where) * 0.14
    gradient = torch.randn(B, T, settings.hidden, device=where) / (B * T)
    for layers, name in itertools.product(LAYERS, LSTM_WAYS):
        if where == "cpu" and name in ("tf32", "fp16"):
            continue
        body = Lstm(channels=C, hidden=settings.hidden, layers=layers, dropout=0.0).to(where)
        body.by_layer = name == "fp16, by layer"
        weights = list(body.lstm.parameters())

        def work(body: Lstm = body, name: str = name, weights: list[Parameter] = weights) -> list[Tensor]:
            devices.apply_precision("tf32" if name == "tf32" else "fp32")
            if name.startswith("fp16"):
                y = body._recur_in_half(x)
            elif name == "bf16":
                zero = x.new_zeros(body.lstm.num_layers, B, body.lstm.hidden_size, dtype=torch.bfloat16)
                cast = [each.bfloat16() for each in weights]
                y = torch.lstm(x.bfloat16(), (zero, zero), cast, True, len(zero), 0.0, True, False, True)[0]
            else:
                y = body.lstm(x)[0]
            return list(torch.autograd.grad(y, weights, gradient.to(y.dtype)))

        yield f"{layers} layer{'s' if layers > 1 else ''}, {name}", work


def _head_ways(settings: Settings, vocabulary: int, where: str) -> Iterator[tuple[str, Callable[[], object]]]:
    N, C = settings.batch_size * settings.window_tokens, settings.channels
    features = torch.randn(N, C, device=where, requires_grad=True)
    targets = torch.randint(1, vocabulary, (N,), device=where)
    kept = loss._TILE_VALUES[_kind(where)]
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
                loss._TILE_VALUES[_kind(where)] = int(millions * 2**20)
                try:
                    value = loss.head_loss_sum(features, table, targets, compute_dtype=dtype, own_kernels=own)
                finally:
                    loss._TILE_VALUES[_kind(where)] = kept
                return torch.autograd.grad(value, features)[0]

            yield f"{precision}, {'own kernel' if own else 'torch alone'}, tiles of {millions:g} M", work


def compare_products(settings: Settings, vocabulary: int, where: str) -> dict[str, dict[str, float]]:
    """The head's logits in float32, as one product without TF32 and as the sum of three with it, of factors cut in two
    (as in Markidis et al., arXiv:1803.04014): milliseconds, and distance from float64. Should the second be as exact as
    the first and much faster, fp32 training can be."""
    N, C = settings.batch_size * settings.window_tokens, settings.channels
    x, w = torch.randn(N, C, device=where), torch.randn(vocabulary, C, device=where) * 0.14
    exact = x[:256].double() @ w.double().t()

    def cut(a: Tensor) -> tuple[Tensor, Tensor]:
        """The ten bits of the mantissa that TF32 keeps, and the rest."""
        high = (a.view(torch.int32) & ~0x1FFF).view(torch.float32)
        return high, a - high

    w_high, w_low = cut(w)

    def in_three() -> Tensor:
        x_high, x_low = cut(x)
        return (x_high @ w_low.t()).addmm_(x_low, w_high.t()).addmm_(x_high, w_high.t())

    found = {}
    ways: dict[str, tuple[Precision, Callable[[], Tensor]]] = {
        "one, fp32": ("fp32", lambda: x @ w.t()),
        "three, tf32": ("tf32", in_three),
    }
    for name, (precision, work) in ways.items():
        devices.apply_precision(precision)
        off = float((work()[:256].double() - exact).norm() / exact.norm())
        found[name] = {"ms": 1000 * median_s(work, where), "off_by": off}
    return found


def show_kernels(found: dict[str, Any]) -> None:
    """Two short tables, fastest first within what is alike."""
    print()
    print(f"{'LSTM, forward and backward':38}{'ms':>9}   {'head, loss and gradient':38}{'ms':>9}")
    lstm, head = (list(found[part].items()) for part in ("lstm_ms", "head_ms"))
    for left, right in itertools.zip_longest(lstm, head, fillvalue=("", None)):
        print("   ".join(f"{name:38}{'' if ms is None else f'{ms:9.3f}':9}" for name, ms in (left, right)).rstrip())
    for name, reason in found["failed"].items():
        print(f"{name}: {reason}")
    for name, each in found["products"].items():
        print(f"{f'logits in float32: {name}':38}{each['ms']:9.3f}   {each['off_by']:.1e} off float64")
    print(f"Training takes 'fp16, by layer' in bf16, and tiles of {found['tile_values'] / 2**20:g} M.")
