"""Measure how often rules of comparison find a winner between a setting and itself, on real runs.

    python benchmarks/placebo.py [--train DIR | --draw | --check]

``results/placebo/runs.csv`` has 600 runs of one setting, which differ only in their seed. Split at random, one half is
called "Adam" and the other "placebo": whichever wins, wins falsely. Rates, figure, and the sections in README and
docs/method.md are made from this file in a minute.

``--train DIR`` first trains the runs that the store DIR does not have, by ``lmconsole run``, which takes half an hour
on two idle CPU cores. ``--draw`` makes figure and sections from the recorded rates. ``--check`` changes nothing and
exits with code 1 if the sections do not have the recorded rates.
"""

import argparse
import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from calibrate import METHOD, with_section, wrap, write
from placebo_figure import Line, draw_placebo
from placebo_rates import NO_DIFFERENCE, RULES, SGD_SIZES, SHIFT, SMALLEST, Rate, SgdFinding, rates, sgd_findings

import lmconsole
from lmconsole.claims.difference import Array
from lmconsole.engine.processes import python
from lmconsole.report.draw import encode_figure
from lmconsole.runs.store import Store

HERE = Path(__file__).resolve().parent
EXPERIMENTS_FILE = HERE / "placebo" / "experiments.toml"
RESULTS = HERE / "results" / "placebo"
RUNS_CSV, RATES_CSV, SGD_CSV, SOURCE = (RESULTS / name for name in ("runs.csv", "rates.csv", "sgd.csv", "source.json"))
README, FIGURE = HERE.parent / "README.md", HERE.parent / "docs" / "placebo.png"
BEGIN, END = "<!-- placebo: begin, made by benchmarks/placebo.py -->\n", "<!-- placebo: end -->"
OPTIONS = (
    "--preset",
    "placebo",
    "--max-tokens",
    "50000",
    "--device",
    "cpu",
    "--jobs",
    "2",
    "--headless",
    "--no-export",
)
TRAININGS = ((("2", "3"), "1-10"), (("1",), "1-600"))
"""Experiments of ``EXPERIMENTS_FILE`` and their seeds."""
TABLE_SIZES = (1, 2, 3, 5, 10)

# Runs


def commands(experiments_file: Path, store: Path) -> list[list[str]]:
    """Return the arguments of ``lmconsole`` that train all runs."""
    return [
        ["run", *experiments, "--experiments", str(experiments_file), "--seeds", seeds, "--runs", str(store), *OPTIONS]
        for experiments, seeds in TRAININGS
    ]


def train(store: Path) -> None:
    """Train the runs that the store does not have yet. Raises CalledProcessError if a run failed."""
    for arguments in commands(EXPERIMENTS_FILE, store):
        subprocess.run(python("lmconsole", *arguments), check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def source(store: Path) -> dict[str, object]:
    """Return the commands that trained the runs, and what else their results depend on."""
    runs = Store(store).runs()
    started, corpus = [run.state.started for run in runs if run.state.started], runs[0].info.corpus
    versions = [each.versions for each in started]
    return {
        "commands": [
            " ".join(("lmconsole", *arguments))
            for arguments in commands(EXPERIMENTS_FILE.relative_to(HERE.parent), Path("runs"))
        ],
        "versions": [each for i, each in enumerate(versions) if each not in versions[:i]],
        "devices": sorted({f"{each.device_name}, {each.threads} thread, {each.precision}" for each in started}),
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "train_s": round(sum(run.state.elapsed_train_s or 0.0 for run in runs)),
    }


def runs_csv(store: Path) -> str:
    """Return one row for each run in the store, with the losses of its best epoch in nats per token."""
    frame = lmconsole.results(store, "runs").sort_values(["experiment", "seed"])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    losses = ("train_nll", "valid_nll", "test_nll")
    writer.writerow(("model", "optimizer", "seed", "status", "diverged", "epochs", "best_epoch", *losses, "train_s"))
    for row in frame.to_dict("records"):
        of_run = [row[name] for name in ("architecture", "optimizer", "seed", "status", "diverged", "epochs", "epoch")]
        nats = (f"{math.log(row[name]):.9f}" for name in ("train_ppl", "valid_ppl", "test_ppl_best"))
        writer.writerow((*of_run, *nats, f"{row['elapsed_train_s']:.2f}"))
    return out.getvalue()


def test_nll(model: str, optimizer: str) -> Array:
    """Return the test losses of a setting in ``RUNS_CSV``, in nats per token, in the order of the seeds."""
    with RUNS_CSV.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["optimizer"]) == (model, optimizer)]
    return np.array([float(row["test_nll"]) for row in sorted(rows, key=lambda row: int(row["seed"]))])


# Files


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


Kind = TypeVar("Kind", Rate, SgdFinding)


def read(path: Path, kind: type[Kind]) -> list[Kind]:
    """Return the rows of ``to_csv``."""
    with path.open(encoding="utf-8", newline="") as file:
        return [msgspec.convert(row, kind, strict=False) for row in csv.DictReader(file)]


def figure(recorded: Sequence[Rate]) -> bytes:
    """Return the figure of the README."""

    def lines(truth: str) -> list[Line]:
        found = []
        for rule in RULES:
            chosen = [
                rate for rate in recorded if (rate.rule, rate.truth) == (rule, truth) and rate.runs >= SMALLEST[rule]
            ]
            numbers = [[getattr(rate, name) for rate in chosen] for name in ("runs", "share", "low", "high")]
            found.append(Line(rule, *numbers))
        return found

    wrong, right = lines(NO_DIFFERENCE), lines(SHIFT)
    note = (
        f"{len(test_nll('GPT-1', 'Adam'))} runs of GPT-1 (one layer, Adam, the demo made smaller), split at random. "
        "Bands: 95% intervals, runs resampled."
    )
    drawn = draw_placebo(wrong, right, SHIFT, test_nll("LSTM", "Adam"), test_nll("LSTM", "SGD"), note)
    return encode_figure(drawn, "png")


def percent(share: float) -> str:
    """Return ``4.5%``, ``36%``, or ``less than 0.1%``."""
    digits = f"{100 * share:.1f}" if share < 0.0995 else f"{100 * share:.0f}"
    return "less than 0.1%" if 0 < share < 0.001 else f"{digits}%"


def readme_section(recorded: Sequence[Rate]) -> str:
    """Return the generated part of the README."""
    share = {(rate.rule, rate.truth, rate.runs): rate.share for rate in recorded}

    def ours(truth: str) -> str:
        first, second, third = (percent(share["lmconsole", truth, n]) for n in SGD_SIZES)
        return f"{first}, {second} and {third}"

    cells = ((NO_DIFFERENCE, 2), (NO_DIFFERENCE, 10), (SHIFT, 10))
    apart = [percent(share["mean ± sd apart", *cell]) for cell in cells]
    runs = len(test_nll("GPT-1", "Adam"))
    text = (
        f"{runs} runs of one setting were split at random into “Adam” and a “placebo”, so every winner is a false one. "
        f"Bold for the lowest mean always has a winner. “Mean ± sd do not overlap” has one in {apart[0]} of the "
        f"comparisons with two seeds and in {apart[1]} with ten, where it finds a true difference of two standard "
        f"deviations in only {apart[2]}. lmconsole gives no verdict on fewer than three seeds. With 3, 5 and 10 it is "
        f"wrong in {ours(NO_DIFFERENCE)}, and finds that difference in {ours(SHIFT)} ([method, calibration, and what "
        "fails](docs/method.md))."
    )
    alt = (
        "How often a winner is declared between two settings that are the same, by number of seeds; how often a true "
        "difference of two standard deviations is found; test losses of Adam and SGD"
    )
    return f"![{alt}](docs/placebo.png)\n\n{wrap(text)}\n"


def method_section(recorded: Sequence[Rate], findings: Sequence[SgdFinding]) -> str:
    """Return the generated part of docs/method.md."""
    by_cell = {(rate.rule, rate.truth, rate.runs): rate for rate in recorded}
    lines = [f"| truth | seeds | {' | '.join(RULES)} |", "|---|---|" + "---|" * len(RULES)]
    for truth in (NO_DIFFERENCE, SHIFT):
        for n in TABLE_SIZES:
            cells = (interval(by_cell[rule, truth, n]) for rule in RULES)
            lines.append(f"| {truth} | {n} | {' | '.join(cells)} |")
    sgd = {(each.rule, each.runs): percent(each.adam_lower) for each in findings}
    sentences = (f"{rule} in {', '.join(sgd[rule, n] for n in SGD_SIZES)}" for rule in RULES)
    text = (
        "SGD and Adam on the LSTM, ten seeds each, untuned: in all subsets of 3, 5 and 10 seeds of each, the rules "
        f"find Adam lower: {'; '.join(sentences)}."
    )
    return "\n".join(lines) + f"\n\n{wrap(text)}\n"


def interval(rate: Rate) -> str:
    """Return ``4.5% (4.0–5.1)``, or a dash if the rule can find nothing."""
    if rate.runs < SMALLEST[rate.rule]:
        return "–"
    return f"{100 * rate.share:.1f}% ({100 * rate.low:.1f}–{100 * rate.high:.1f})"


def documents() -> dict[Path, str]:
    """Return the documents with their sections, complete."""
    recorded, findings = read(RATES_CSV, Rate), read(SGD_CSV, SgdFinding)
    return {
        README: with_section(README.read_text(encoding="utf-8"), readme_section(recorded), BEGIN, END),
        METHOD: with_section(METHOD.read_text(encoding="utf-8"), method_section(recorded, findings), BEGIN, END),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how often rules find a winner between a setting and itself.")
    parser.add_argument("--train", type=Path, metavar="DIR", help="train the runs into this store first")
    parser.add_argument("--draw", action="store_true", help="only make the figure and sections from the recorded rates")
    parser.add_argument("--check", action="store_true", help="only check that the sections have the recorded rates")
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train.absolute())
        RESULTS.mkdir(parents=True, exist_ok=True)
        RUNS_CSV.write_text(runs_csv(arguments.train), encoding="utf-8")
        SOURCE.write_text(json.dumps(source(arguments.train), indent=1) + "\n", encoding="utf-8")
    if not (arguments.draw or arguments.check):
        RATES_CSV.write_text(to_csv(rates(test_nll("GPT-1", "Adam"))), encoding="utf-8")
        SGD_CSV.write_text(to_csv(sgd_findings(test_nll("LSTM", "Adam"), test_nll("LSTM", "SGD"))), encoding="utf-8")
    if not arguments.check:
        FIGURE.write_bytes(figure(read(RATES_CSV, Rate)))
    stale = [path.name for path, text in documents().items() if not write(path, text, arguments.check)]
    if stale:
        sys.exit(f"{', '.join(stale)}: not generated from {RATES_CSV.name}. Run benchmarks/placebo.py --draw.")


if __name__ == "__main__":
    main()
