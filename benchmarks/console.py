"""Measure the console on a terminal: bytes sent, time to first paint, time from key to screen, CPU time and memory.

The app runs on a pty of 120 × 40 that presents itself as an xterm with true colors. Another process simulates the runs
(``simulation.py``): epochs take eight seconds, and steps become slower, so that both axes are rescaled. For comparison,
the widget of textual-plotext draws the same runs (``textual_plotext_app.py``).
"""

import importlib.util
import itertools
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from result_rows import Row
from simulation import PROGRESS_S, live_runs
from store import STEPS, make_store
from terminal import HEIGHT, Chunk, Terminal, environment, visible

from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Progress

GOALS = {
    "two_runs_bytes_per_s": 1_100.0,
    "twelve_runs_bytes_per_s": 25_000.0,
    "first_paint_12_s": 0.45,
    "first_paint_1000_s": 0.8,
    "cpu_share": 0.06,
    "key_p95_s": 0.06,
    "slow_connection_lag_s": 0.5,
}
"""Upper limits."""
MAX_GROWTH_SHARE, MAX_GROWTH_MIB = 0.05, 5.0
"""Upper limits of the growth of memory, which must not exceed both."""
SLOW_BYTES_PER_S = 20_000.0
"""Speed of the slow connection."""
PLOTEXT = "textual_plotext"
TWO, TWELVE = (1, 5), tuple(range(1, 13))
DOWN, UP = b"\x1b[B", b"\x1b[A"
FIRST_ROW = 3
"""Screen row of the first experiment, counted from 1."""
TIME_AXIS_ROW = HEIGHT - 2
"""Screen row with the labels of the time axis."""
TIMEOUT_S = 20.0
TWO_HOURS_S = 7_200.0
MINIMAL_APP = """
from textual.app import App
from textual.widgets import Static
class Minimal(App):
    def compose(self):
        yield Static("word")
Minimal().run()
"""
"""A minimal Textual app."""
_ROW_12 = re.compile(rb"12 +GPT-1 +4 +AdamW")
_STEP = re.compile(rb"epoch (\d+)/\d+ step (\d+)/")


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """Durations and numbers of measurements."""

    window_s: float
    """Time for which traffic and CPU time are measured."""
    settle_s: float
    """Time before that which does not count."""
    presses: int
    """Number of key presses."""
    starts: int
    """Number of starts of the app."""
    stores: tuple[int, ...]
    """Numbers of runs in the stores that are opened."""
    memory_share: float
    """Share of two hours of twelve runs that is simulated for the memory."""
    memory_s: float
    """Duration of that simulation."""


FULL = Effort(window_s=24.0, settle_s=3.0, presses=100, starts=7, stores=(12, 1_000), memory_share=1.0, memory_s=120.0)
QUICK = Effort(window_s=3.0, settle_s=1.5, presses=8, starts=2, stores=(12,), memory_share=0.1, memory_s=5.0)


def measure(quick: bool) -> dict[str, Any]:
    """Return all measurements, each made on a fresh store."""
    effort = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "window_s": effort.window_s,
            "goals": GOALS,
            "slow_bytes_per_s": SLOW_BYTES_PER_S,
            "plotext_installed": importlib.util.find_spec(PLOTEXT) is not None,
            "first_paint": [first_paint(folder / f"paint-{runs}", runs, effort.starts) for runs in effort.stores],
            "two_runs": watch(folder / "two", TWO, effort, keys=b"x"),
            "two_runs_plotext": watch_plotext(folder / "two-plotext", effort),
            "twelve_runs": watch(folder / "twelve", TWELVE, effort, presses=effort.presses),
            "twelve_runs_time_axis": None if quick else watch(folder / "twelve-x", TWELVE, effort, keys=b"x"),
            "slow_connection": slow_connection(folder / "slow", effort),
            "slow_connection_plotext": None
            if quick
            else watch_plotext(folder / "slow-plotext", effort, SLOW_BYTES_PER_S),
            "memory": memory(folder / "memory", effort.memory_share, effort.memory_s),
        }


def console_command(folder: Path) -> list[str]:
    """Return the command that starts the console on the store ``folder / "runs"``."""
    return [sys.executable, "-P", "-m", "lmconsole", "--runs", str(folder / "runs")]


def console(folder: Path, bytes_per_s: float | None = None) -> Terminal:
    """Start the console on the store ``folder / "runs"``."""
    return Terminal(console_command(folder), cwd=folder, environment=environment(folder), bytes_per_s=bytes_per_s)


# ---- Startup


def first_paint(folder: Path, runs: int, repetitions: int) -> dict[str, Any]:
    """Return the seconds until the table of experiments is on the screen, until the runs of the store are, and until a
    minimal app shows its word. The first start, which may have to compile bytecode, is not counted."""
    make_store(folder / "runs", runs)
    minimal, table, store, sizes = [], [], [], []
    for _ in range(repetitions + 1):
        with Terminal(
            [sys.executable, "-P", "-c", MINIMAL_APP], cwd=folder, environment=environment(folder)
        ) as terminal:
            minimal.append(terminal.until(lambda data: b"word" in data, TIMEOUT_S))
        with console(folder) as terminal:
            table.append(terminal.until(has_table, TIMEOUT_S))
            sizes.append(terminal.received)
            store.append(terminal.until(lambda data: b"finished" in data, TIMEOUT_S))
    return {
        "runs": runs,
        "repetitions": repetitions,
        "median_s": statistics.median(table[1:]),
        "minimal_app_median_s": statistics.median(minimal[1:]),
        "store_shown_median_s": statistics.median(store[1:]),
        "bytes": statistics.median(sizes[1:]),
        "minimal_app_s": minimal[1:],
        "table_s": table[1:],
        "store_shown_s": store[1:],
    }


def has_table(data: bytes) -> bool:
    """Return whether the table of experiments is on the screen."""
    return b"Optimizer" in data and b"AdamW" in data and _ROW_12.search(visible(data)) is not None


# ---- Traffic and CPU time


def watch(
    folder: Path, numbers: Sequence[int], effort: Effort, *, keys: bytes = b"", presses: int = 0
) -> dict[str, Any]:
    """Return the traffic and CPU time with live, selected runs of these experiments, and the time to screen of
    ``presses`` key presses afterwards. ``keys`` are pressed before."""
    folder.mkdir()
    with live_runs(folder / "runs", numbers), console(folder) as terminal:
        _select(terminal, numbers)
        for key in keys:
            terminal.send(bytes([key]))
            terminal.watch(0.2)
        terminal.watch(effort.settle_s)
        cpu_before_s = _cpu_s(terminal)
        chunks = terminal.watch(effort.window_s)
        cpu_s = _cpu_s(terminal) - cpu_before_s
        return {
            "runs": len(numbers),
            "cpu_share": cpu_s / effort.window_s,
            **_traffic(chunks, effort.window_s),
            "presses": _press(terminal, presses) if presses else None,
        }


def _select(terminal: Terminal, numbers: Sequence[int]) -> None:
    """Wait until all runs are on the screen, and select them."""
    terminal.until(lambda data: has_table(data) and len(_STEP.findall(visible(data))) >= len(numbers), TIMEOUT_S)
    if len(numbers) == len(TWELVE):
        terminal.send(b"a")
    else:
        for last, number in itertools.pairwise((1, *numbers)):
            for _ in range(number - last):
                terminal.send(DOWN)
                terminal.watch(0.05)
            terminal.send(b" ")
            terminal.watch(0.1)
    terminal.watch(0.3)


def _cpu_s(terminal: Terminal) -> float:
    used = psutil.Process(terminal.process.pid).cpu_times()
    return used.user + used.system


def _traffic(chunks: Sequence[Chunk], window_s: float) -> dict[str, Any]:
    """Return averages over ``window_s`` and counts of what was sent."""
    data = b"".join(chunk.data for chunk in chunks)
    seconds: dict[int, int] = {}
    for chunk in chunks:
        second = int(chunk.at_s - chunks[0].at_s)
        seconds[second] = seconds.get(second, 0) + len(chunk.data)
    return {
        "bytes_per_s": len(data) / window_s,
        "text_bytes_per_s": len(visible(data)) / window_s,
        "frames_per_s": data.count(b"\x1b[?2026h") / window_s,
        "busiest_second_bytes": max(seconds.values(), default=0),
        "time_axis_updates": sum(
            re.search(rb"\x1b\[%d;\d+H" % TIME_AXIS_ROW, frame) is not None for frame in data.split(b"\x1b[?2026h")
        ),
    }


def watch_plotext(folder: Path, effort: Effort, bytes_per_s: float | None = None) -> dict[str, Any] | None:
    """Return the traffic and CPU time of textual-plotext's widget with the same two runs; None if it is not installed.

    With ``bytes_per_s``, keys are pressed as well and their time to screen is measured.
    """
    if importlib.util.find_spec(PLOTEXT) is None:
        return None
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("textual_plotext_app.py")), str(folder / "runs")]
    with (
        live_runs(folder / "runs", TWO),
        Terminal(command, cwd=folder, environment=environment(folder), bytes_per_s=bytes_per_s) as terminal,
    ):
        terminal.until(lambda data: b"presses 0" in data, TIMEOUT_S)
        terminal.watch(effort.settle_s)
        cpu_before_s, started_s, first = _cpu_s(terminal), time.monotonic(), len(terminal.chunks)
        lags = []
        if bytes_per_s is None:
            terminal.watch(effort.window_s)
        else:
            count = 0
            while time.monotonic() - started_s < effort.window_s:
                count += 1
                pressed_s = terminal.send(b"k")
                lags.append(_lag(terminal, pressed_s, re.compile(b"presses %d" % count), visible_only=True))
                terminal.watch(0.5)
        elapsed_s = time.monotonic() - started_s
        return {
            "runs": len(TWO),
            "cpu_share": (_cpu_s(terminal) - cpu_before_s) / elapsed_s,
            **_traffic(terminal.chunks[first:], elapsed_s),
            "lags": _statistics(lags) if lags else None,
        }


# ---- Time from key to screen


def _press(terminal: Terminal, presses: int, pause_s: tuple[float, float] = (0.1, 0.5)) -> dict[str, Any]:
    """Move the cursor up and down at random times and measure the time until its new row is painted as the cursor's."""
    noise, row, lags = random.Random(1), FIRST_ROW + 1, []
    terminal.send(UP * len(TWELVE))
    terminal.watch(0.7)
    first = len(terminal.chunks)
    terminal.send(DOWN)
    terminal.watch(0.7)
    highlight = _background(b"".join(chunk.data for chunk in terminal.chunks[first:]), row)
    for _ in range(presses):
        terminal.watch(noise.uniform(*pause_s))
        down = row == FIRST_ROW or (row < FIRST_ROW + len(TWELVE) - 1 and noise.random() < 0.5)
        row += 1 if down else -1
        painted = re.compile(_row_start(row) + rb"[^m]*" + highlight + rb"m", re.DOTALL)
        pressed_s = terminal.send(DOWN if down else UP)
        lags.append(_lag(terminal, pressed_s, painted))
    return _statistics(lags)


def _row_start(row: int) -> bytes:
    """Return a pattern for a move to the start of a screen row and for all colors set there but the last."""
    return rb"\x1b\[%d;1H(?:\x1b\[[0-9;]*m)*?\x1b\[" % row


def _background(data: bytes, row: int) -> bytes:
    """Return the last background color that the start of a row was painted in."""
    found = re.findall(_row_start(row) + rb"[^m]*(48;2;\d+;\d+;\d+)m", data)
    if not found:
        raise RuntimeError(f"the cursor did not reach row {row}:\n{data[-2_000:]!r}")
    return bytes(found[-1])


def _lag(terminal: Terminal, pressed_s: float, expected: re.Pattern[bytes], *, visible_only: bool = False) -> float:
    """Return the seconds from a key press until ``expected`` arrives, or ``TIMEOUT_S`` if it never does."""

    def arrived(data: bytes) -> bool:
        return expected.search(visible(data) if visible_only else data) is not None

    with suppress(TimeoutError):
        terminal.until(arrived, TIMEOUT_S, first=len(terminal.chunks))
        return terminal.chunks[-1].at_s - pressed_s
    return TIMEOUT_S


def _statistics(lags: Sequence[float]) -> dict[str, Any]:
    return {
        "presses": len(lags),
        "median_s": statistics.median(lags),
        "p95_s": statistics.quantiles(lags, n=20, method="inclusive")[-1] if len(lags) > 1 else lags[0],
        "largest_s": max(lags),
        "lags_s": list(lags),
    }


# ---- Slow connection


def slow_connection(folder: Path, effort: Effort) -> dict[str, Any]:
    """Return the times from key to screen and the ages of the steps shown, with two runs and ``SLOW_BYTES_PER_S``. The
    output of the startup does not count."""
    folder.mkdir()
    with live_runs(folder / "runs", TWO), console(folder, SLOW_BYTES_PER_S) as terminal:
        _select(terminal, TWO)
        terminal.send(b"x")
        terminal.watch(effort.settle_s)
        first, started_s = len(terminal.chunks), time.monotonic()
        clock_offset_s = time.time() - time.monotonic()
        lags = _press(terminal, int(effort.window_s / 0.75), (0.3, 1.0))
        elapsed_s = time.monotonic() - started_s
        chunks = terminal.chunks[first:]
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(chunks)]
    return {
        "runs": len(TWO),
        **_traffic(chunks, elapsed_s),
        "lags": lags,
        "largest_gap_s": max(gaps, default=None),
        "detected": b"Slow connection" in b"".join(chunk.data for chunk in terminal.chunks),
        "ages_s": _ages(folder / "runs", chunks, clock_offset_s),
    }


def _ages(root: Path, chunks: Sequence[Chunk], clock_offset_s: float) -> dict[str, float] | None:
    """Return the median and largest age of steps when they arrive, by the times in the log.

    A new step may wait half a second until it is read and another half second until it is drawn. ``clock_offset_s`` is
    ``time.time() - time.monotonic()``.
    """
    written: dict[tuple[int, int], list[float]] = {}
    for log in root.glob("*/events.jsonl"):
        for epoch, step, at_s in _progress(log):
            written.setdefault((epoch, step), []).append(at_s)
    ages: list[float] = []
    shown: set[tuple[int, int]] = set()
    tail = b""
    for chunk in chunks:
        arrived_s = chunk.at_s + clock_offset_s
        text = visible(tail + chunk.data)
        tail = (tail + chunk.data)[-200:]
        for position in {(int(epoch), int(step)) for epoch, step in _STEP.findall(text)} - shown:
            times = [at_s for at_s in written.get(position, ()) if at_s <= arrived_s]
            shown.add(position)
            if times:
                ages.append(arrived_s - max(times))  # both runs may reach the same step
    return {"median": statistics.median(ages), "largest": max(ages), "steps": len(ages)} if ages else None


def _progress(log: Path) -> list[tuple[int, int, float]]:
    """Return the epoch, step and Unix time of every progress event."""
    events = EventReader(log).read_new()
    return [(e.epoch, e.step, datetime.fromisoformat(e.t).timestamp()) for e in events if isinstance(e, Progress)]


# ---- Memory


def memory(folder: Path, share: float, duration_s: float) -> dict[str, Any]:
    """Return the resident memory after a tenth and at the end of ``share`` of two hours with twelve selected runs,
    simulated in ``duration_s``."""
    folder.mkdir()
    events = share * TWO_HOURS_S / PROGRESS_S
    simulated = live_runs(
        folder / "runs",
        TWELVE,
        interval_s=duration_s / events,
        pace=1.0,
        doubling_s=None,
        steps_per_event=10 * STEPS / events,
    )
    with simulated, console(folder) as terminal:
        _select(terminal, TWELVE)
        terminal.send(b"x")
        process, started_s = psutil.Process(terminal.process.pid), time.monotonic()
        samples: list[tuple[float, float]] = []
        """Bytes in the logs, and resident MiB."""
        shown_after_s = None
        while shown_after_s is None and time.monotonic() - started_s < duration_s + TIMEOUT_S:
            terminal.chunks.clear()
            data = b"".join(chunk.data for chunk in terminal.watch(min(1.0, duration_s / 40)))
            samples.append((_log_bytes(folder / "runs"), process.memory_info().rss / 2**20))
            if b"testing" in data:  # follows the last epoch
                shown_after_s = time.monotonic() - started_s
        terminal.watch(2.0)
        samples.append((_log_bytes(folder / "runs"), process.memory_info().rss / 2**20))
    size = max(written for written, _ in samples)
    early_mib = next(mib for written, mib in samples if written >= size / 10)
    return {
        "runs": len(TWELVE),
        "simulated_s": share * TWO_HOURS_S,
        "shown_after_s": shown_after_s,
        "log_mib": size / 2**20,
        "early_mib": early_mib,
        "end_mib": samples[-1][1],
        "growth_share": samples[-1][1] / early_mib - 1.0,
        "samples": samples,
    }


def _log_bytes(root: Path) -> float:
    return float(sum(log.stat().st_size for log in root.glob("*/events.jsonl")))


# ---- Rows of the table


def rows(result: dict[str, Any]) -> list[Row]:
    """Return a row for each measurement that has a goal."""
    goals = result["goals"]
    return [
        *[_first_paint_row(found, goals) for found in result["first_paint"]],
        _two_runs_row(result),
        _twelve_runs_row(result),
        Row(
            what="console, twelve live runs: CPU time",
            measured=f"{result['twelve_runs']['cpu_share']:.1%} of a core",
            goal=f"≤ {goals['cpu_share']:.0%}",
            met=result["twelve_runs"]["cpu_share"] <= goals["cpu_share"],
        ),
        _key_row(result["twelve_runs"]["presses"], goals["key_p95_s"]),
        _slow_connection_row(result),
        _memory_row(result["memory"]),
    ]


def _kb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e3:.1f} kB/s"


def _first_paint_row(found: dict[str, Any], goals: dict[str, float]) -> Row:
    goal = goals.get(f"first_paint_{found['runs']}_s")
    return Row(
        what=f"console, first paint, {found['runs']:,} runs",
        measured=f"{found['median_s']:.2f} s ({min(found['table_s']):.2f} to {max(found['table_s']):.2f}; a minimal "
        f"Textual app {found['minimal_app_median_s']:.2f} s), with runs {found['store_shown_median_s']:.2f} s",
        goal=None if goal is None else f"≤ {goal:g} s",
        met=None if goal is None else found["median_s"] <= goal,
    )


def _two_runs_row(result: dict[str, Any]) -> Row:
    console, plotext = result["two_runs"], result["two_runs_plotext"]
    goal, sent = result["goals"]["two_runs_bytes_per_s"], console["bytes_per_s"]
    compared = f"{_kb(plotext['bytes_per_s'])}, {plotext['bytes_per_s'] / sent:.0f}× as much" if plotext else None
    return Row(
        what="console, two live runs: sent",
        measured=f"{_kb(sent)}, time axis updated {console['time_axis_updates']} times{_comparison(result, compared)}",
        goal=f"≤ {_kb(goal)}",
        met=sent <= goal,
    )


def _comparison(result: dict[str, Any], plotext: str | None) -> str:
    """Return the measurement of textual-plotext's widget in parentheses."""
    if plotext is not None:
        return f" (textual-plotext {plotext})"
    return "" if result["plotext_installed"] else " (textual-plotext is not installed)"


def _twelve_runs_row(result: dict[str, Any]) -> Row:
    sent, over_time = result["twelve_runs"]["bytes_per_s"], result["twelve_runs_time_axis"]
    goal = result["goals"]["twelve_runs_bytes_per_s"]
    return Row(
        what="console, twelve live runs: sent",
        measured=_kb(sent) + (f", over training time {_kb(over_time['bytes_per_s'])}" if over_time else ""),
        goal=f"≤ {_kb(goal)}",
        met=sent <= goal,
    )


def _key_row(lags: dict[str, Any], goal: float) -> Row:
    return Row(
        what="console, twelve live runs: key to screen",
        measured=f"p95 {lags['p95_s'] * 1e3:.0f} ms, median {lags['median_s'] * 1e3:.0f} ms, "
        f"largest {lags['largest_s'] * 1e3:.0f} ms of {lags['presses']} key presses",
        goal=f"p95 ≤ {goal * 1e3:.0f} ms",
        met=lags["p95_s"] <= goal,
    )


def _slow_connection_row(result: dict[str, Any]) -> Row:
    console, plotext = result["slow_connection"], result["slow_connection_plotext"]
    goal, largest_s = result["goals"]["slow_connection_lag_s"], console["lags"]["largest_s"]
    compared = _comparison(result, f"{plotext['lags']['largest_s']:.1f} s" if plotext else None)
    age = f", steps at most {console['ages_s']['largest']:.1f} s old" if console["ages_s"] else ""
    return Row(
        what=f"console, connection of {result['slow_bytes_per_s'] / 1e3:.0f} kB/s: key to screen",
        measured=f"at most {largest_s:.2f} s{age}{compared}",
        goal=f"≤ {goal:g} s",
        met=largest_s <= goal,
    )


def _memory_row(found: dict[str, Any]) -> Row:
    growth_mib, full_length = found["end_mib"] - found["early_mib"], found["simulated_s"] == TWO_HOURS_S
    within = found["growth_share"] <= MAX_GROWTH_SHARE or growth_mib <= MAX_GROWTH_MIB
    return Row(
        what=f"console, {found['simulated_s'] / 60:.0f} min of twelve runs: memory",
        measured=f"{found['early_mib']:.1f} MiB after a tenth, {found['end_mib']:.1f} MiB at the end "
        f"({growth_mib:+.1f} MiB)",
        goal=f"≤ +{MAX_GROWTH_SHARE:.0%} or {MAX_GROWTH_MIB:g} MiB" if full_length else None,
        met=within if full_length else None,
    )
