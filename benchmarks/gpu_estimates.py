"""Estimates for an H100, made before one was measured, next to the measured values.

They come from the sources and from kernels compiled for it (torch 2.11, cuDNN 9.19), for 3.0 TB/s and 798 TFLOP/s in
bf16, and are not corrected afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_goals import PAPER_EPOCHS, Results


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Expected range of a quantity, and how to find its measured value."""

    what: str
    unit: str
    low: float
    high: float
    measured: Callable[[Results], float | None]


def estimates(stages: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every estimate with its measured value, or None."""
    results = Results(stages)
    return [
        {"what": e.what, "unit": e.unit, "low": e.low, "high": e.high, "measured": e.measured(results)}
        for e in ESTIMATES
    ]


def _smoke_value(results: Results, experiment: int, field: str) -> float | None:
    found: float | None = results.get("smoke", {}).get("shapes", {}).get(str(experiment), {}).get(field)
    return found


def _run_train_s(results: Results, experiment: int) -> float | None:
    """Return the training time of one run of the suite, if it trained all epochs."""
    train_s = results.get("suite", {}).get("runs", {}).get(str(experiment), {}).get("train_s", [])
    return sum(train_s) if len(train_s) == PAPER_EPOCHS and None not in train_s else None


def _full_suite(results: Results) -> dict[str, Any] | None:
    suite: dict[str, Any] | None = results.get("suite")
    return suite if suite and suite["complete"] and suite["epochs"] == PAPER_EPOCHS else None


def _suite_sum(results: Results, *fields: str) -> float | None:
    """Return the sum of ``fields``, in seconds, over all runs of the suite; unknown values count as 0."""
    if (suite := _full_suite(results)) is None:
        return None
    values = [run[field] for run in suite["runs"].values() for field in fields]
    return sum(sum(x or 0 for x in value) if isinstance(value, list) else value or 0 for value in values)


def _suite_s(results: Results) -> float | None:
    suite = _full_suite(results)
    return None if suite is None else suite["whole_s"]


def _outside_runs_s(results: Results) -> float | None:
    """Return the time of the suite outside its runs: starts, polls and exits."""
    whole_s, wall_s = _suite_s(results), _suite_sum(results, "wall_s")
    return None if whole_s is None or wall_s is None else whole_s - wall_s


def _other_s(results: Results) -> float | None:
    """Return the time of the runs outside setup, training and validation."""
    wall_s, known_s = _suite_sum(results, "wall_s"), _suite_sum(results, "setup_s", "train_s", "valid_s")
    return None if wall_s is None or known_s is None else wall_s - known_s


def _first_call_s(results: Results, direction: str) -> float | None:
    """Return the time of the slowest first call of cuDNN's attention."""
    cudnn = results.get("sdpa", {}).get("backends", {}).get("cuDNN", {})
    return max(cudnn.get(f"first_{direction}_s", {}).values(), default=None)


def _matmul_ms(results: Results, name: str) -> float | None:
    found: float | None = results.get("split", {}).get(name, {}).get("ms")
    return found


def _largest_gain(results: Results) -> float | None:
    return max((each["gain"] for each in results.get("gang", {}).get("together", [])), default=None)


def _reading_s(results: Results) -> float | None:
    smoke = results.get("smoke")
    return None if smoke is None else smoke["corpus_s"] + smoke["tables_s"]


def _estimate(what: str, unit: str, low: float, high: float, measured: Callable[[Results], float | None]) -> Estimate:
    return Estimate(what=what, unit=unit, low=low, high=high, measured=measured)


def _of_shape(experiment: int, label: str, step_ms: float, ten_epochs_s: float) -> tuple[Estimate, Estimate]:
    return (
        _estimate(
            f"{label}, bf16: a captured step", "ms", step_ms, step_ms, lambda r: _smoke_value(r, experiment, "step_ms")
        ),
        _estimate(
            f"{label}, bf16: training for ten epochs",
            "s",
            ten_epochs_s,
            ten_epochs_s,
            lambda r: _run_train_s(r, experiment),
        ),
    )


ESTIMATES: tuple[Estimate, ...] = (
    *_of_shape(2, "LSTM-1", 2.8, 16),
    *_of_shape(9, "LSTM-2", 4.0, 23),
    *_of_shape(10, "LSTM-4", 6.6, 38),
    *_of_shape(6, "GPT-1-1", 2.3, 13),
    *_of_shape(11, "GPT-1-2", 3.2, 18),
    *_of_shape(12, "GPT-1-4", 4.9, 28),
    _estimate("suite: training of all twelve", "s", 224, 224, lambda r: _suite_sum(r, "train_s")),
    _estimate("suite: evaluation (measured: validation only)", "s", 12, 18, lambda r: _suite_sum(r, "valid_s")),
    _estimate("suite: setup of all twelve", "s", 50, 50, lambda r: _suite_sum(r, "setup_s")),
    _estimate("suite: checkpoints (measured: with tests)", "s", 14, 58, _other_s),
    _estimate("suite: polls, exits and starts", "s", 20, 20, _outside_runs_s),
    _estimate("suite: the whole command", "s", 320, 370, _suite_s),
    _estimate("corpus and tables: reading and checking", "s", 0.5, 0.5, _reading_s),
    _estimate("GPT-1-2: reserved memory", "MiB", 1_126, 1_331, lambda r: _smoke_value(r, 11, "reserved_mib")),
    _estimate("GPT-1-4: reserved memory", "MiB", 1_434, 1_843, lambda r: _smoke_value(r, 12, "reserved_mib")),
    _estimate("cuDNN attention: first call forward", "s", 0.4, 0.4, lambda r: _first_call_s(r, "forward")),
    _estimate("cuDNN attention: first call backward", "s", 0.55, 0.55, lambda r: _first_call_s(r, "backward")),
    _estimate("fp32 logits: one fp32 matmul", "ms", 10, 10, lambda r: _matmul_ms(r, "one fp32 matmul")),
    _estimate(
        "fp32 logits: one fp16 matmul, 3 × inner dimension",
        "ms",
        3.5,
        3.5,
        lambda r: _matmul_ms(r, "one fp16 matmul, 3 × inner dimension"),
    ),
    _estimate("concurrent runs in one process: largest speed-up", "×", 1.0, 1.6, _largest_gain),
)
