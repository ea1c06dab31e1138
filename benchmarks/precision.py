"""Measure the effect of bf16 on perplexity: the same experiments and seeds in bf16 and fp32, compared epoch by epoch.

    python benchmarks/precision.py [--preset demo] [--seeds 1,2,3] [--jobs 2] [--runs DIR] [--json FILE]

Training amplifies any difference, however small. Therefore fp32 is trained a second time with the learning rate
perturbed by a factor of 1 + 1e-6, which is less than any rounding to bf16. Differences as large as those of the
perturbed runs are not evidence against a precision.

``lmconsole run --all`` trains everything, so finished runs in the folders are not repeated and an interrupted benchmark
continues where it stopped. On two CPU cores the demo takes twenty minutes.
"""

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from run import machine

from lmconsole.engine.processes import python
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.runs.state import Status
from lmconsole.runs.store import Store

GOAL = 0.01
"""Upper limit of the relative difference of a validation perplexity."""
ROOT = Path(__file__).resolve().parents[1]


def write_perturbed(preset: str, root: Path) -> Path:
    """Write the experiments with a perturbed learning rate to a file in ``root`` and return its path."""
    plan = load_plan(builtin_file())
    rate = plan.resolve(plan.experiments[0], preset).settings.learning_rate
    root.mkdir(parents=True, exist_ok=True)
    file = root / "perturbed.toml"
    file.write_text(f"include_builtin = true\n[presets.{preset}]\nlearning_rate = {rate * (1 + 1e-6)!r}\n")
    return file


def train(preset: str, precision: str, seeds: str, jobs: int, root: Path, experiments: Path) -> None:
    """Train the runs that ``root`` does not have yet. Raises CalledProcessError if a run failed."""
    options = ["--preset", preset, "--precision", precision, "--seeds", seeds, "--jobs", str(jobs)]
    options += ["--experiments", str(experiments)]
    command = python("lmconsole", "run", "--all", *options, "--headless", "--no-export", "--runs", str(root))
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def curves(preset: str, precision: str, root: Path) -> dict[int, tuple[str, dict[int, list[float]]]]:
    """Return for each experiment its label and, by seed, the validation perplexity after each epoch."""
    experiments: dict[int, tuple[str, dict[int, list[float]]]] = {}
    for run in Store(root).runs():
        info = run.info
        if (run.status, info.preset, info.settings.precision) == (Status.FINISHED, preset, precision):
            _, seeds = experiments.setdefault(info.experiment.id, (info.experiment.label, {}))
            perplexities = [epoch.valid_ppl for epoch in run.state.epochs if epoch.valid_ppl is not None]
            if len(perplexities) == info.settings.epochs:
                seeds[info.seed] = perplexities
    return experiments


def compare(fp32: dict[int, list[float]], other: dict[int, list[float]]) -> dict[str, Any]:
    """Return the relative differences of ``other`` from ``fp32`` in validation perplexity: for each seed and epoch, the
    largest ones, and the largest between the means over seeds."""
    seeds = sorted(fp32.keys() & other.keys())
    by_seed = {str(seed): [b / a - 1 for a, b in zip(fp32[seed], other[seed], strict=True)] for seed in seeds}
    means = [[mean(epoch) for epoch in zip(*(ppl[seed] for seed in seeds), strict=True)] for ppl in (fp32, other)]
    return {
        "by_seed": by_seed,
        "largest": max((each for epochs in by_seed.values() for each in epochs), key=abs),
        "largest_in_last_epoch": max((epochs[-1] for epochs in by_seed.values()), key=abs),
        "largest_of_means": max((b / a - 1 for a, b in zip(*means, strict=True)), key=abs),
    }


def spread(seeds: dict[int, list[float]]) -> float | None:
    """Return the coefficient of variation over seeds in the epoch where it is largest; None for a single seed."""
    epochs = list(zip(*seeds.values(), strict=True))
    return max(stdev(epoch) / mean(epoch) for epoch in epochs) if len(seeds) > 1 else None


def show(experiments: list[dict[str, Any]]) -> None:
    """Print a line for each experiment, and how many of them meet the goal."""
    print(f"{'':18}{'bf16 against fp32':^33}{'fp32, perturbed':^22}{'seeds':>8}")
    print(f"{'':18}{'any epoch':>11}{'last':>11}{'of means':>11}{'any epoch':>11}{'of means':>11}{'':>8}")
    for each in experiments:
        bf16, perturbed = each["bf16"], each["perturbed"]
        numbers = (
            bf16["largest"],
            bf16["largest_in_last_epoch"],
            bf16["largest_of_means"],
            perturbed["largest"],
            perturbed["largest_of_means"],
        )
        of_seeds = "–" if each["spread_of_seeds"] is None else f"{each['spread_of_seeds']:.1%}"
        print(f"{each['label']:18}" + "".join(f"{number:>+11.2%}" for number in numbers) + f"{of_seeds:>8}")
    for name, label in (("bf16", "bf16"), ("perturbed", "fp32 perturbed")):
        within = sum(abs(each[name]["largest"]) <= GOAL for each in experiments)
        print(f"Within {GOAL:.0%} at every epoch and seed, {label}: {within} of {len(experiments)} experiments.")
    print(
        "Numbers: largest relative difference in validation perplexity from fp32, at any epoch of any seed, at the last"
    )
    print(
        "epoch of any seed, and between the means over seeds. Perturbed: the learning rate is multiplied by 1 + 1e-6."
    )
    print("Seeds: largest coefficient of variation over the seeds in fp32.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the perplexities of bf16 and fp32.")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "precision", metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    arguments = parser.parse_args()
    preset, seeds, jobs = arguments.preset, arguments.seeds, arguments.jobs
    root: Path = arguments.runs.absolute()
    perturbed_root = root.with_name(f"{root.name}-perturbed")
    train(preset, "fp32", seeds, jobs, root, builtin_file())
    train(preset, "bf16", seeds, jobs, root, builtin_file())
    train(preset, "fp32", seeds, jobs, perturbed_root, write_perturbed(preset, perturbed_root))
    bf16, perturbed = curves(preset, "bf16", root), curves(preset, "fp32", perturbed_root)
    experiments = [
        {
            "id": number,
            "label": label,
            "bf16": compare(fp32, bf16[number][1]),
            "perturbed": compare(fp32, perturbed[number][1]),
            "spread_of_seeds": spread(fp32),
            "fp32_ppl": {str(seed): perplexities for seed, perplexities in fp32.items()},
        }
        for number, (label, fp32) in sorted(curves(preset, "fp32", root).items())
    ]
    show(experiments)
    if arguments.json:
        document = {
            "schema": 1,
            "benchmark": "precision",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "preset": preset,
            "seeds": seeds,
            "experiments": experiments,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
