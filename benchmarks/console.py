"""The console on a terminal: what it sends, how soon it shows something, how soon it answers, and what it costs.

The app runs as a person starts it, on a pty of 120 × 40 that says it is an xterm with true colours. The runs it watches
are simulated by another process (``simulation.py``): epochs of eight seconds, and steps that take longer and longer, so
that both axes move; beside it the widget of textual-plotext draws the same runs (``stock.py``).
"""

import importlib.util
import itertools
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from simulation import PROGRESS_S, live_runs
from store import STEPS, make_store
from terminal import HEIGHT, Piece, Terminal, environment, shown

from lmconsole.runs.events import EventReader, Progress

GOALS = {
    "two_runs_bytes_per_s": 6_000.0,
    "twelve_runs_bytes_per_s": 25_000.0,
    "first_paint_12_s": 0.45,
    "first_paint_1000_s": 0.8,
    "cpu_share": 0.06,
    "key_p95_s": 0.06,
    "slow_line_lag_s": 0.5,
}
MOST_GROWTH_SHARE, MOST_GROWTH_MIB = 0.05, 5.0
"""Memory may grow by either."""
LINE_BYTES_PER_S = 20_000.0
STOCK = "textual_plotext"
TWO, TWELVE = (1, 5), tuple(range(1, 13))
DOWN, UP = b"\x1b[B", b"\x1b[A"
FIRST_ROW = 3
"""Line of the screen, from 1, with the first experiment."""
TIMES_LINE = HEIGHT - 2
"""Line of the screen with the labels of the time axis."""
PATIENCE_S = 20.0
TWO_HOURS_S = 7_200.0
ONE_WORD = """
from textual.app import App
from textual.widgets import Static
class OneWord(App):
    def compose(self):
        yield Static("word")
OneWord().run()
"""
"""The least that an app of Textual's can be."""
_ROW_12 = re.compile(rb"12 +GPT-1 +4 +AdamW")
_STEP = re.compile(rb"epoch (\d+)/\d+ step (\d+)/")


@dataclass(frozen=True)
class Effort:
    """How long and how often things are looked at."""

    window_s: float
    settle_s: float
    """Left out before a window."""
    presses: int
    paints: int
    stores: tuple[int, ...]
    """Runs in the stores that are opened."""
    memory_share: float
    """Of two hours of twelve runs."""
    memory_s: float
    """What they are pressed into."""


FULL = Effort(24.0, 3.0, 100, 7, (12, 1_000), 1.0, 120.0)
QUICK = Effort(3.0, 1.5, 8, 2, (12,), 0.1, 5.0)


def measure(quick: bool) -> dict[str, Any]:
    """Everything, each part on a fresh store."""
    effort = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "window_s": effort.window_s,
            "goals": GOALS,
            "line_bytes_per_s": LINE_BYTES_PER_S,
            "stock_installed": importlib.util.find_spec(STOCK) is not None,
            "first_paint": [first_paint(folder / f"paint-{runs}", runs, effort.paints) for runs in effort.stores],
            "two_runs": watch(folder / "two", TWO, effort, keys=b"x"),
            "two_runs_stock": stock(folder / "two-stock", effort),
            "twelve_runs": watch(folder / "twelve", TWELVE, effort, presses=effort.presses),
            "twelve_runs_time_axis": None if quick else watch(folder / "twelve-x", TWELVE, effort, keys=b"x"),
            "slow_line": slow_line(folder / "slow", effort),
            "slow_line_stock": None if quick else stock(folder / "slow-stock", effort, LINE_BYTES_PER_S),
            "memory": memory(folder / "memory", effort.memory_share, effort.memory_s),
        }


def console(folder: Path, bytes_per_s: float | None = None) -> Terminal:
    """The app on the store ``folder / "runs"``."""
    command = [sys.executable, "-P", "-m", "lmconsole", "--runs", str(folder / "runs")]
    return Terminal(command, cwd=folder, environment=environment(folder), bytes_per_s=bytes_per_s)


# ---- the start


def first_paint(folder: Path, runs: int, repetitions: int) -> dict[str, Any]:
    """Seconds until the table of experiments is on the screen, and until the runs of the store are, in turn with an app
    of one word. The first start, which may have to compile, is not counted."""
    make_store(folder / "runs", runs)
    least, table, store, sizes = [], [], [], []
    for _ in range(repetitions + 1):
        with Terminal([sys.executable, "-P", "-c", ONE_WORD], cwd=folder, environment=environment(folder)) as terminal:
            least.append(terminal.until(lambda data: b"word" in data, PATIENCE_S))
        with console(folder) as terminal:
            table.append(terminal.until(_has_table, PATIENCE_S))
            sizes.append(terminal.received)
            store.append(terminal.until(lambda data: b"finished" in data, PATIENCE_S))
    return {
        "runs": runs,
        "repetitions": repetitions,
        "median_s": statistics.median(table[1:]),
        "one_word_median_s": statistics.median(least[1:]),
        "store_shown_median_s": statistics.median(store[1:]),
        "bytes": statistics.median(sizes[1:]),
        "one_word_s": least[1:],
        "table_s": table[1:],
        "store_shown_s": store[1:],
    }


def _has_table(data: bytes) -> bool:
    return b"Optimizer" in data and b"AdamW" in data and _ROW_12.search(shown(data)) is not None


# ---- what it sends, and what it costs


def watch(
    folder: Path, numbers: Sequence[int], effort: Effort, *, keys: bytes = b"", presses: int = 0
) -> dict[str, Any]:
    """Bytes and CPU seconds while the runs of these experiments stream and are selected; then ``presses`` key presses
    and how long they take to show."""
    folder.mkdir()
    with live_runs(folder / "runs", numbers), console(folder) as terminal:
        _select(terminal, numbers)
        for key in keys:
            terminal.send(bytes([key]))
            terminal.watch(0.2)
        terminal.watch(effort.settle_s)
        cpu_before_s = _cpu_s(terminal)
        pieces = terminal.watch(effort.window_s)
        cpu_s = _cpu_s(terminal) - cpu_before_s
        return {
            "runs": len(numbers),
            "cpu_share": cpu_s / effort.window_s,
            **_traffic(pieces, effort.window_s),
            "presses": _press(terminal, presses) if presses else None,
        }


def _select(terminal: Terminal, numbers: Sequence[int]) -> None:
    """Wait until all runs are on the screen, and select them."""
    terminal.until(lambda data: _has_table(data) and len(_STEP.findall(shown(data))) >= len(numbers), PATIENCE_S)
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


def _traffic(pieces: Sequence[Piece], window_s: float) -> dict[str, Any]:
    """Averages of a window, and what the bytes were."""
    data = b"".join(piece.data for piece in pieces)
    seconds: dict[int, int] = {}
    for piece in pieces:
        second = int(piece.at - pieces[0].at)
        seconds[second] = seconds.get(second, 0) + len(piece.data)
    return {
        "bytes_per_s": len(data) / window_s,
        "text_bytes_per_s": len(shown(data)) / window_s,
        "frames_per_s": data.count(b"\x1b[?2026h") / window_s,
        "busiest_second_bytes": max(seconds.values(), default=0),
        "time_axis_moves": sum(
            re.search(rb"\x1b\[%d;\d+H" % TIMES_LINE, frame) is not None for frame in data.split(b"\x1b[?2026h")
        ),
    }


def stock(folder: Path, effort: Effort, bytes_per_s: float | None = None) -> dict[str, Any] | None:
    """The same two runs in the widget of textual-plotext; None where it is not installed."""
    if importlib.util.find_spec(STOCK) is None:
        return None
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("stock.py")), str(folder / "runs")]
    with (
        live_runs(folder / "runs", TWO),
        Terminal(command, cwd=folder, environment=environment(folder), bytes_per_s=bytes_per_s) as terminal,
    ):
        terminal.until(lambda data: b"presses 0" in data, PATIENCE_S)
        terminal.watch(effort.settle_s)
        cpu_before_s, began, first = _cpu_s(terminal), time.monotonic(), len(terminal.pieces)
        lags = []
        if bytes_per_s is None:
            terminal.watch(effort.window_s)
        else:
            count = 0
            while time.monotonic() - began < effort.window_s:
                count += 1
                pressed, words = terminal.send(b"k"), b"presses %d" % count
                lags.append(_answered(terminal, pressed, lambda data, words=words: words in shown(data)))
                terminal.watch(0.5)
        lasted_s = time.monotonic() - began
        return {
            "runs": len(TWO),
            "cpu_share": (_cpu_s(terminal) - cpu_before_s) / lasted_s,
            **_traffic(terminal.pieces[first:], lasted_s),
            "lags": _lags(lags),
        }


# ---- how soon it answers


def _press(terminal: Terminal, presses: int, pause_s: tuple[float, float] = (0.1, 0.5)) -> dict[str, Any]:
    """Move the cursor up and down at odd moments: seconds until the row it comes to is repainted as the cursor's."""
    noise, row, waits = random.Random(1), FIRST_ROW + 1, []
    terminal.send(UP * len(TWELVE))
    terminal.watch(0.7)
    first = len(terminal.pieces)
    terminal.send(DOWN)
    terminal.watch(0.7)
    highlight = _background(b"".join(piece.data for piece in terminal.pieces[first:]), row)
    for _ in range(presses):
        terminal.watch(noise.uniform(*pause_s))
        down = row == FIRST_ROW or (row < FIRST_ROW + len(TWELVE) - 1 and noise.random() < 0.5)
        row += 1 if down else -1
        painted = re.compile(_row_start(row) + rb"[^m]*" + highlight + rb"m", re.DOTALL)
        pressed = terminal.send(DOWN if down else UP)
        waits.append(_answered(terminal, pressed, lambda data, painted=painted: painted.search(data)))
    return _lags(waits)


def _row_start(row: int) -> bytes:
    """A jump to the beginning of a line of the screen, and any colours but the last after it."""
    return rb"\x1b\[%d;1H(?:\x1b\[[0-9;]*m)*?\x1b\[" % row


def _background(data: bytes, row: int) -> bytes:
    """The last background colour that the beginning of a row was painted in."""
    found = re.findall(_row_start(row) + rb"[^m]*(48;2;\d+;\d+;\d+)m", data)
    if not found:
        raise RuntimeError(f"the cursor was not seen to come to line {row}:\n{data[-2_000:]!r}")
    return bytes(found[-1])


def _answered(terminal: Terminal, pressed: float, found: Callable[[bytes], object]) -> float:
    """Seconds from a key press until its effect has arrived; ``PATIENCE_S`` if it never does."""
    with suppress(TimeoutError):
        terminal.until(found, PATIENCE_S, first=len(terminal.pieces))
        return terminal.pieces[-1].at - pressed
    return PATIENCE_S


def _lags(waits: Sequence[float]) -> dict[str, Any] | None:
    if not waits:
        return None
    return {
        "presses": len(waits),
        "median_s": statistics.median(waits),
        "p95_s": statistics.quantiles(waits, n=20, method="inclusive")[-1] if len(waits) > 1 else waits[0],
        "largest_s": max(waits),
        "waits_s": list(waits),
    }


# ---- on a slow line


def slow_line(folder: Path, effort: Effort) -> dict[str, Any]:
    """The console with two runs on a line that carries ``LINE_BYTES_PER_S``: how long keys take to show, and how old
    the steps are that arrive. What it sends while it starts is not part of it."""
    folder.mkdir()
    with live_runs(folder / "runs", TWO), console(folder, LINE_BYTES_PER_S) as terminal:
        _select(terminal, TWO)
        terminal.send(b"x")
        terminal.watch(effort.settle_s)
        first, began = len(terminal.pieces), time.monotonic()
        epoch_s = time.time() - time.monotonic()
        waits = _press(terminal, int(effort.window_s / 0.75), (0.3, 1.0))
        lasted_s = time.monotonic() - began
        pieces = terminal.pieces[first:]
    gaps = [b.at - a.at for a, b in itertools.pairwise(pieces)]
    return {
        "runs": len(TWO),
        **_traffic(pieces, lasted_s),
        "lags": waits,
        "largest_gap_s": max(gaps, default=None),
        "said_slow": b"The line is slow" in b"".join(piece.data for piece in terminal.pieces),
        "ages_s": _ages(folder / "runs", pieces, epoch_s),
    }


def _ages(root: Path, pieces: Sequence[Piece], epoch_s: float) -> dict[str, float] | None:
    """How old steps are when they arrive, from the log's own times: median and largest. A new step may wait for half a
    second until it is read, and as long again until it is drawn."""
    written: dict[tuple[int, int], list[float]] = {}
    for log in root.glob("*/events.jsonl"):
        for epoch, step, at in _progress(log):
            written.setdefault((epoch, step), []).append(at)
    ages, seen, tail = [], set(), b""
    for piece in pieces:
        text = shown(tail + piece.data)
        tail = (tail + piece.data)[-200:]
        for place in {(int(epoch), int(step)) for epoch, step in _STEP.findall(text)} - seen:
            times = [at for at in written.get(place, ()) if at <= piece.at + epoch_s]
            seen.add(place)
            if times:
                ages.append(piece.at + epoch_s - max(times))  # two runs may come to the same step
    return {"median": statistics.median(ages), "largest": max(ages), "steps": len(ages)} if ages else None


def _progress(log: Path) -> list[tuple[int, int, float]]:
    """(epoch, step, time) of every progress event."""
    events = EventReader(log).read_new()
    return [(e.epoch, e.step, datetime.fromisoformat(e.t).timestamp()) for e in events if isinstance(e, Progress)]


# ---- how much memory


def memory(folder: Path, share: float, lasts_s: float) -> dict[str, Any]:
    """Resident memory while twelve runs go through ``share`` of two hours in ``lasts_s``, all selected: at a tenth of
    it, and at the end."""
    folder.mkdir()
    events = share * TWO_HOURS_S / PROGRESS_S
    pace = {"interval_s": lasts_s / events, "pace": 1.0, "doubling_s": None, "steps_per_event": 10 * STEPS / events}
    with live_runs(folder / "runs", TWELVE, **pace), console(folder) as terminal:
        _select(terminal, TWELVE)
        terminal.send(b"x")
        process, began = psutil.Process(terminal.process.pid), time.monotonic()
        samples: list[tuple[float, float]] = []
        ended_s = None
        while ended_s is None and time.monotonic() - began < lasts_s + PATIENCE_S:
            terminal.pieces.clear()
            data = b"".join(piece.data for piece in terminal.watch(min(1.0, lasts_s / 40)))
            samples.append((_done(folder / "runs"), process.memory_info().rss / 2**20))
            if b"testing" in data:  # the last epoch is over
                ended_s = time.monotonic() - began
        terminal.watch(2.0)
        samples.append((_done(folder / "runs"), process.memory_info().rss / 2**20))
    size = max(done for done, _ in samples)
    early = next(mib for done, mib in samples if done >= size / 10)
    return {
        "runs": len(TWELVE),
        "simulated_s": share * TWO_HOURS_S,
        "shown_after_s": ended_s,
        "log_mib": size / 2**20,
        "early_mib": early,
        "end_mib": samples[-1][1],
        "growth_share": samples[-1][1] / early - 1.0,
        "samples": samples,
    }


def _done(root: Path) -> float:
    """Bytes in the logs so far."""
    return float(sum(log.stat().st_size for log in root.glob("*/events.jsonl")))


# ---- the table


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the table that ``run.py`` prints."""
    goals = result["goals"]
    return [
        *[_paint_row(found, goals) for found in result["first_paint"]],
        _two_row(result),
        _twelve_row(result),
        _row(
            "console, twelve live runs: processor",
            f"{result['twelve_runs']['cpu_share']:.1%} of a core",
            f"≤ {goals['cpu_share']:.0%}",
            result["twelve_runs"]["cpu_share"] <= goals["cpu_share"],
        ),
        _key_row(result["twelve_runs"]["presses"], goals["key_p95_s"]),
        _slow_row(result),
        _memory_row(result["memory"]),
    ]


def _row(what: str, measured: str, goal: str | None, met: bool | None) -> dict[str, Any]:
    return {"what": what, "measured": measured, "goal": goal, "met": met}


def _kb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e3:.1f} kB/s"


def _paint_row(found: dict[str, Any], goals: dict[str, float]) -> dict[str, Any]:
    goal = goals.get(f"first_paint_{found['runs']}_s")
    return _row(
        f"console, first paint, {found['runs']:,} runs",
        f"{found['median_s']:.2f} s ({min(found['table_s']):.2f} to {max(found['table_s']):.2f}; an app of one word "
        f"{found['one_word_median_s']:.2f} s), the store's runs after {found['store_shown_median_s']:.2f} s",
        None if goal is None else f"≤ {goal:g} s",
        None if goal is None else found["median_s"] <= goal,
    )


def _two_row(result: dict[str, Any]) -> dict[str, Any]:
    ours, other = result["two_runs"], result["two_runs_stock"]
    goal = result["goals"]["two_runs_bytes_per_s"]
    beside = _beside(
        result,
        f"{_kb(other['bytes_per_s'])}, {other['bytes_per_s'] / ours['bytes_per_s']:.0f} ×" if other else None,
    )
    return _row(
        "console, two live runs: sent",
        f"{_kb(ours['bytes_per_s'])}, time axis moved {ours['time_axis_moves']} ×{beside}",
        f"≤ {_kb(goal)}",
        ours["bytes_per_s"] <= goal,
    )


def _beside(result: dict[str, Any], other: str | None) -> str:
    """What the other widget did, in brackets."""
    if other is not None:
        return f" (textual-plotext {other})"
    return "" if result["stock_installed"] else " (textual-plotext is not installed)"


def _twelve_row(result: dict[str, Any]) -> dict[str, Any]:
    found, moving = result["twelve_runs"], result["twelve_runs_time_axis"]
    goal = result["goals"]["twelve_runs_bytes_per_s"]
    return _row(
        "console, twelve live runs: sent",
        _kb(found["bytes_per_s"]) + (f", over training time {_kb(moving['bytes_per_s'])}" if moving else ""),
        f"≤ {_kb(goal)}",
        found["bytes_per_s"] <= goal,
    )


def _key_row(found: dict[str, Any], goal: float) -> dict[str, Any]:
    return _row(
        "console, twelve live runs: key to screen",
        f"p95 {found['p95_s'] * 1e3:.0f} ms, median {found['median_s'] * 1e3:.0f} ms, "
        f"largest {found['largest_s'] * 1e3:.0f} ms of {found['presses']}",
        f"p95 ≤ {goal * 1e3:.0f} ms",
        found["p95_s"] <= goal,
    )


def _slow_row(result: dict[str, Any]) -> dict[str, Any]:
    ours, other, goal = result["slow_line"], result["slow_line_stock"], result["goals"]["slow_line_lag_s"]
    beside = _beside(result, f"{other['lags']['largest_s']:.1f} s" if other else None)
    age = f", steps at most {ours['ages_s']['largest']:.1f} s old" if ours["ages_s"] else ""
    return _row(
        f"console, a line of {result['line_bytes_per_s'] / 1e3:.0f} kB/s: key to screen",
        f"at most {ours['lags']['largest_s']:.2f} s{age}{beside}",
        f"≤ {goal:g} s",
        ours["lags"]["largest_s"] <= goal,
    )


def _memory_row(found: dict[str, Any]) -> dict[str, Any]:
    grown, whole = found["end_mib"] - found["early_mib"], found["simulated_s"] == TWO_HOURS_S
    return _row(
        f"console, {found['simulated_s'] / 60:.0f} min of twelve runs: memory",
        f"{found['early_mib']:.1f} MiB after a tenth, {found['end_mib']:.1f} MiB at the end ({grown:+.1f} MiB)",
        f"≤ +{MOST_GROWTH_SHARE:.0%}" if whole else None,
        found["growth_share"] <= MOST_GROWTH_SHARE or grown <= MOST_GROWTH_MIB if whole else None,
    )
