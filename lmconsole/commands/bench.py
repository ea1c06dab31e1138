"""`lmconsole bench`: what `engine/bench.py` measured, as a table."""

import sys
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from lmconsole import formatting
from lmconsole.commands.listing import console
from lmconsole.engine.bench import BUDGET_S, WATCH_S, BenchRequest, bench
from lmconsole.engine.bench_cache import BenchResult, Shape, save_result
from lmconsole.errors import LmconsoleError, escape_control_characters
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import AUTO, unknown

BUSY = 0.5
"""Load from which on somebody else is said to use the machine."""


def measure(
    preset: str,
    device: str,
    precision: str | None,
    experiments: Path | None,
    *,
    budget_s: float = BUDGET_S,
    watch_s: float = WATCH_S,
) -> BenchResult:
    """Measure and remember. Raises LmconsoleError."""
    plan = load_plan(experiments)
    if preset not in plan.presets:
        words = "names no sizes: name a preset" if preset == AUTO else unknown("preset", preset, list(plan.presets))
        raise LmconsoleError(f"--preset {preset}: {words}")
    if precision not in (None, "auto", "fp32", "tf32", "bf16"):
        words = unknown("precision", precision, ["auto", "fp32", "tf32", "bf16"])
        raise LmconsoleError(f"--precision {precision}: {words}")
    if sys.stderr.isatty():
        console(stderr=True).print(Text("Measuring, for less than a minute …", style="dim"))
    result = bench(
        BenchRequest(
            experiments_file=None if experiments is None else str(experiments),
            preset=preset,
            device=device,
            precision=precision,
            budget_s=budget_s,
            watch_s=watch_s,
        )
    )
    save_result(result)
    return result


def print_result(result: BenchResult) -> None:
    """The table, what it was measured on above it, and what it means below."""
    out = console()
    for name, value in (
        ("device", f"{result.device} ({result.device_name}), {result.threads} threads, torch {result.torch}"),
        ("preset", f"{result.preset}, {result.precision}"),
        ("ceiling", f"{result.peak_matmul_gflops:,.0f} GFLOP/s in plain matrix products of these sizes"),
    ):
        out.print(Text(f"{name:<8} ", style="bold").append(escape_control_characters(value), style="not bold"))
    out.print()
    out.print(_table(result))
    out.print(Text(_notes(result), style="dim"))
    out.print()
    out.print(
        Text(
            f"All {result.all_runs} runs, one after the other: about {formatting.about(result.all_runs_s)} (ESTIMATE)",
            style="bold",
        )
    )


def _table(result: BenchResult) -> Table:
    """One row a shape. Fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("Shape", no_wrap=True)
    table.add_column("ID", no_wrap=True)
    for name in ("Tokens/s", "Step", "Ceiling", "Memory", "A run"):
        table.add_column(name, justify="right", no_wrap=True)
    for shape in sorted(result.shapes, key=lambda shape: shape.experiments):
        table.add_row(*_row(shape), style="dim" if shape.estimated else "")
    return table


def _row(shape: Shape) -> list[str]:
    step = f"{shape.step_s * 1e3:,.1f} ms" if shape.step_s < 1 else formatting.seconds(shape.step_s)
    return [
        f"{shape.label}{' *' if shape.estimated else ''}",
        " ".join(map(str, shape.experiments)),
        formatting.rate(shape.tokens_per_s),
        step,
        f"{shape.share_of_peak:.0%}",
        formatting.mib(shape.peak_mib),
        formatting.about(shape.run_s),
    ]


def _notes(result: BenchResult) -> str:
    settings = result.shapes[0].settings
    tokens = " + ".join(f"{count:,}" for count in result.tokens.values())
    memory = "what the process held" if result.device == "cpu" else "what tensors held"
    lines = [
        f"Step: {settings.batch_size} x {settings.window_tokens} tokens, AdamW, made-up data.",
        f"Memory: {memory} at most.",
        "Ceiling: share of it that the products which a step cannot do without come to.",
        f"A run: ESTIMATE of {settings.epochs} epochs with evaluation, without set-up;",
        f"{tokens} train, validation and test tokens.",
    ]
    if result.batch_size < settings.batch_size:
        lines.append(f"Measured with {result.batch_size} windows a step, memory too, to keep within a minute.")
    if any(shape.estimated for shape in result.shapes):
        lines.append("* estimated, not measured: its arithmetic at the rate of the shape most like it.")
    if result.device == "cpu" and result.load_1min >= BUSY:
        lines.append(f"Others kept this machine busy (load {result.load_1min:.1f}): idle, it is faster.")
    return "\n".join(lines)
