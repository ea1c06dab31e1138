"""`lmconsole bench`: measure how fast this machine trains, and print the results as a table."""

import sys
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lmconsole import formatting
from lmconsole.commands.output import console, plain_table, print_json
from lmconsole.engine.bench import BUDGET_S, WATCH_S, BenchRequest, bench
from lmconsole.engine.bench_cache import BenchResult, Shape, save_result
from lmconsole.errors import LmconsoleError, escape_control_characters
from lmconsole.formatting import counted
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import AUTO, unknown


def run_bench(preset: str, device: str, precision: str | None, experiments: Path | None, *, json: bool) -> None:
    """Measure, save the result for later estimates, and print it. Raises LmconsoleError."""
    result = measure(preset, device, precision, experiments)
    if json:
        print_json(result)
    else:
        print_result(result)


def measure(
    preset: str,
    device: str,
    precision: str | None,
    experiments: Path | None,
    *,
    budget_s: float = BUDGET_S,
    watch_s: float = WATCH_S,
) -> BenchResult:
    """Measure and save the result. Raises LmconsoleError."""
    plan = load_plan(experiments)
    if preset not in plan.presets:
        no_sizes = "auto has no sizes of its own; name a preset"
        raise LmconsoleError(f"--preset: {no_sizes if preset == AUTO else unknown('preset', preset, [*plan.presets])}")
    if precision not in (None, "auto", "fp32", "tf32", "bf16"):
        raise LmconsoleError(f"--precision: {unknown('precision', precision, ['auto', 'fp32', 'tf32', 'bf16'])}")
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
    """Print the device, the table of shapes, and notes on both."""
    out = console()
    for name, value in (
        (
            "device",
            f"{result.device} ({result.device_name}), {counted(result.threads, 'thread')}, torch {result.torch}",
        ),
        ("preset", f"{result.preset}, {result.precision}"),
        ("peak", f"{result.peak_matmul_gflops:,.0f} GFLOP/s in matrix products of these sizes"),
    ):
        out.print(Text(f"{name:<8} ", style="bold").append(escape_control_characters(value), style="not bold"))
    out.print()
    out.print(_table(result))
    out.print(Text(_notes(result), style="dim"))
    out.print()
    out.print(
        Text(
            f"All {counted(result.all_runs, 'run')}, one after the other: about "
            f"{formatting.about(result.all_runs_s)} (estimated)",
            style="bold",
        )
    )


def _table(result: BenchResult) -> Table:
    """Return a table with a row for each shape. Fits 80 columns."""
    table = plain_table(Shape="left", ID="left")
    for name in ("Tokens/s", "Step", "Of peak", "Memory", "One run"):
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
    memory = "resident memory of the process" if result.device == "cpu" else "memory of tensors"
    lines = [
        f"Step: {settings.batch_size} x {settings.window_tokens} tokens, AdamW, random data.",
        f"Memory: peak {memory}.",
        "Of peak: the matrix products of a step, as a share of the peak matmul throughput.",
        f"One run: estimated time of {counted(settings.epochs, 'epoch')} with evaluation, without setup;",
        f"{tokens} train, validation and test tokens.",
    ]
    if result.batch_size < settings.batch_size:
        windows = counted(result.batch_size, "window")
        lines.append(f"Measured with {windows} per step, memory too, to stay within a minute.")
    if any(shape.estimated for shape in result.shapes):
        lines.append("* estimated, not measured: its operations at the rate of the most similar shape.")
    if result.busy:
        lines.append(
            f"Other processes kept this machine busy (load {result.load_1min:.1f}). Measure again when it is idle,\n"
            "since estimates of runs use these numbers until such runs have finished here."
        )
    return "\n".join(lines)
