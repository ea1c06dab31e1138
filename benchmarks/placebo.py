"""Measure how often rules of comparison find a winner between a setting and itself, on real runs.

    python benchmarks/placebo.py [--train DIR | --check]

``results/placebo/runs.csv`` has 600 runs of one setting, which differ only in their seed. Split at random, half of
them are called "Adam" and the other half "placebo": whichever wins, wins falsely. With ``--train DIR``, the runs are
trained into a store in DIR by ``lmconsole run``, which takes half an hour on two CPU cores; finished runs are not
repeated. Without it, rates, figure and the section in the README are computed from the file, in two minutes. ``--check``
changes nothing and exits with code 1 if figure numbers and README do not match the recorded rates.
"""

import argparse
import csv
import io
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from calibration import shipped
from numpy.random import Generator
from numpy.typing import NDArray

from lmconsole.claims.difference import Array
from lmconsole.engine.processes import python

HERE = Path(__file__).resolve().parent
EXPERIMENTS_FILE = HERE / "placebo" / "experiments.toml"
RESULTS = HERE / "results" / "placebo"
RUNS_CSV, RATES_CSV, SGD_CSV = (RESULTS / name for name in ("runs.csv", "rates.csv", "sgd.csv"))
OPTIONS = (
    "--preset",
    "placebo",
    "--max-tokens",
    "50000",
    "--device",
    "cpu",
    "--jobs",
    "2",
    "--no-export",
    "--headless",
)
TRAININGS = ((("2", "3"), "1-10"), (("1",), "1-600"))
"""Experiments of ``EXPERIMENTS_FILE`` and their seeds."""

SIZES = range(1, 11)
"""Numbers of runs of each setting."""
SGD_SIZES = (3, 5, 10)
SHIFT_SD = 2.0
"""Difference in standard deviations that is added to the runs to measure what the rules find."""
SPLITS = 50_000
RESAMPLES, RESAMPLED_SPLITS = 200, 5_000
SEED = 17

Codes = NDArray[np.int8]
"""−1 if the first setting is found to be lower, 1 if higher, 0 without a finding."""


# Rules


def lowest_mean(first: Array, second: Array) -> Codes:
    """Find the setting with the lower mean: the one in bold in many tables."""
    codes: Codes = np.sign(first.mean(-1) - second.mean(-1)).astype(np.int8)
    return codes


def sd_apart(first: Array, second: Array) -> Codes:
    """Find a difference if mean ± standard deviation of both settings do not overlap; nothing for single runs."""
    if first.shape[-1] < 2:
        return np.zeros(len(first), dtype=np.int8)
    difference = first.mean(-1) - second.mean(-1)
    apart = np.abs(difference) > first.std(-1, ddof=1) + second.std(-1, ddof=1)
    return np.where(apart, np.sign(difference), 0).astype(np.int8)


def verdict(first: Array, second: Array) -> Codes:
    """Find what ``lmconsole compare`` finds with the planned number of runs."""
    outcome = shipped(first[:, None], second[:, None], None, first.shape[-1])
    return np.where(outcome.decided, outcome.verdicts * 2 - 1, 0)[:, 0].astype(np.int8)


RULES: dict[str, Callable[[Array, Array], Codes]] = {
    "lowest mean": lowest_mean,
    "mean ± sd apart": sd_apart,
    "lmconsole": verdict,
}


# Rates


@dataclass(frozen=True, slots=True)
class Rate:
    """Share of random splits in which a rule has a finding."""

    rule: str
    runs: int
    """Runs of each setting."""
    truth: str
    """"no difference", where each finding is false, or "2 sd", where the finding that is right is counted."""
    share: float
    low: float
    """Lower end of the 95 % percentile interval over runs."""
    high: float


def draw_splits(random: Generator, pool: NDArray[np.intp], size: int, count: int) -> NDArray[np.intp]:
    """Return ``count`` splits, (count, size): places in the list of runs, none of them twice in a split.

    ``pool`` has the place of a run as often as it was resampled.
    """
    kept: list[NDArray[np.intp]] = []
    while sum(map(len, kept)) < count:
        drawn = pool[random.integers(len(pool), size=(count, size))]
        ordered = np.sort(drawn, axis=1)
        kept.append(drawn[(ordered[:, 1:] != ordered[:, :-1]).all(axis=1)])
    return np.concatenate(kept)[:count]


def split_shares(
    values: Array, pool: NDArray[np.intp], n: int, count: int, random: Generator, shift: float
) -> dict[tuple[str, str], float]:
    """Return, by rule and truth, the share of ``count`` splits in which a rule has a finding."""
    drawn = values[draw_splits(random, pool, 2 * n, count)]
    adam, placebo = drawn[:, :n], drawn[:, n:]
    shares = {}
    for name, rule in RULES.items():
        shares[name, "no difference"] = float((rule(adam, placebo) != 0).mean())
        shares[name, f"{SHIFT_SD:g} sd"] = float((rule(adam, placebo - shift) == 1).mean())
    return shares


def rates(
    values: Array,
    sizes: Sequence[int] = SIZES,
    splits: int = SPLITS,
    resamples: int = RESAMPLES,
    resampled_splits: int = RESAMPLED_SPLITS,
) -> list[Rate]:
    """Return the rates of all rules and their intervals.

    Splits share runs, so the intervals are those of a bootstrap over runs: the runs are resampled, and the splits drawn
    again from what was resampled, without a run twice in one split. Drawing only some of the splits makes the intervals
    slightly wider.
    """
    shift = SHIFT_SD * float(values.std(ddof=1))
    every = np.arange(len(values))
    found = []
    for n in sizes:
        random = np.random.default_rng([SEED, n])
        shares = split_shares(values, every, n, splits, random, shift)
        resampled = [
            split_shares(values, random.choice(every, len(every)), n, resampled_splits, random, shift)
            for _ in range(resamples)
        ]
        for (rule, truth), share in shares.items():
            low, high = np.quantile([each[rule, truth] for each in resampled], [0.025, 0.975])
            found.append(Rate(rule, n, truth, share, min(float(low), share), max(float(high), share)))
    return sorted(found, key=lambda rate: (rate.truth != "no difference", list(RULES).index(rate.rule), rate.runs))


@dataclass(frozen=True, slots=True)
class SgdFinding:
    """Findings of a rule on SGD and Adam in all subsets of their seeds."""

    rule: str
    runs: int
    """Runs of each setting in a subset."""
    subsets: int
    adam_lower: float
    """Share of the subsets in which the rule finds Adam lower."""
    sgd_lower: float


def sgd_findings(adam: Array, sgd: Array) -> list[SgdFinding]:
    """Apply the rules to every subset of n seeds of Adam and of n seeds of SGD."""
    found = []
    for n in SGD_SIZES:
        sides = [np.array([*itertools.combinations(side, n)]) for side in (adam, sgd)]
        first = np.repeat(sides[0], len(sides[1]), axis=0)
        second = np.tile(sides[1], (len(sides[0]), 1))
        for name, rule in RULES.items():
            codes = rule(first, second)
            found.append(SgdFinding(name, n, len(codes), float((codes == -1).mean()), float((codes == 1).mean())))
    return found


# Runs


def train(folder: Path) -> None:
    """Train the runs that the store in ``folder`` does not have yet. Raises CalledProcessError if a run failed."""
    for experiments, seeds in TRAININGS:
        options = ["--experiments", str(EXPERIMENTS_FILE), "--seeds", seeds, "--runs", str(folder), *OPTIONS]
        command = python("lmconsole", "run", *experiments, *options)
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def runs_csv(folder: Path) -> str:
    """Return one row for each run in the store, with the losses of its best epoch in nats per token."""
    import lmconsole

    frame = lmconsole.results(folder, "runs").sort_values(["experiment", "seed"])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    losses = ("train_nll", "valid_nll", "test_nll")
    writer.writerow(("model", "optimizer", "seed", "status", "diverged", "epochs", "best_epoch", *losses, "train_s"))
    for row in frame.to_dict("records"):
        of_run = [row[name] for name in ("architecture", "optimizer", "seed", "status", "diverged", "epochs", "epoch")]
        nats = (f"{math.log(row[name]):.9f}" for name in ("train_ppl", "valid_ppl", "test_ppl_best"))
        writer.writerow((*of_run, *nats, f"{row['elapsed_train_s']:.2f}"))
    return out.getvalue()


def losses(model: str, optimizer: str) -> Array:
    """Return the test losses of a setting in ``RUNS_CSV``, in nats per token, by seed."""
    with RUNS_CSV.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["optimizer"]) == (model, optimizer)]
    return np.array([float(row["test_nll"]) for row in sorted(rows, key=lambda row: int(row["seed"]))])


# Tables


def to_csv(rows: Sequence[Rate] | Sequence[SgdFinding]) -> str:
    """Return one line for each row, with six digits."""
    names = [field.name for field in fields(rows[0])]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in values)
    return out.getvalue()


def read_rates() -> list[Rate]:
    """Return the recorded rates."""
    with RATES_CSV.open(encoding="utf-8", newline="") as file:
        return [
            Rate(row["rule"], int(row["runs"]), row["truth"], *(float(row[name]) for name in ("share", "low", "high")))
            for row in csv.DictReader(file)
        ]
