"""What bf16 does to perplexities: the same experiments and seeds in both precisions, compared epoch by epoch.

    python benchmarks/precision.py [--preset demo] [--seeds 1,2,3] [--jobs 2] [--runs DIR] [--json FILE]

Training magnifies differences, whatever they come from. So fp32 is trained once more with a learning rate that is
larger by a millionth, a change that no rounding to bf16 is as small as. What that makes of a perplexity, no precision
can be blamed for.

All of it is trained by `lmconsole run --all`, so runs that the folders already hold are not repeated, and a benchmark
that was cut off goes on where it was. On two CPU cores the demo takes twenty minutes.
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
"""Largest relative difference of a validation perplexity."""
ROOT = Path(__file__).resolve().parents[1]


def nudged(preset: str, root: Path) -> Path:
    """Experiments whose learning rate is larger by a millionth, in a file beside the runs."""
    plan = load_plan(builtin_file())
    rate = plan.resolve(plan.experiments[0], preset).settings.learning_rate
    root.mkdir(parents=True, exist_ok=True)
    file = root / "nudged.toml"
    file.write_text(f"include_builtin = true\n[presets.{preset}]\nlearning_rate = {rate * (1 + 1e-6)!r}\n")
    return file


def train(preset: str, precision: str, seeds: str, jobs: int, root: Path, experiments: Path) -> None:
    """Train whatever is missing. Raises CalledProcessError if a run failed."""
    options = ["--preset", preset, "--precision", precision, "--seeds", seeds, "--jobs", str(jobs)]
    options += ["--experiments", str(experiments)]
    command = python("lmconsole", "run", "--all", *options, "--headless", "--no-export", "--runs", str(root))
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def curves(preset: str, precision: str, root: Path) -> dict[int, tuple[str, dict[int, list[float]]]]:
    """Label and validation perplexities of each epoch, by experiment and seed."""
    found: dict[int, tuple[str, dict[int, list[float]]]] = {}
    for run in Store(root).runs():
        info = run.info
        if (run.status, info.preset, info.settings.precision) == (Status.FINISHED, preset, precision):
            _, seeds = found.setdefault(info.experiment.id, (info.experiment.label, {}))
            known = [epoch.valid_ppl for epoch in run.state.epochs if epoch.valid_ppl is not None]
            if len(known) == info.settings.epochs:
                seeds[info.seed] = known
    return found


def compare(exact: dict[int, list[float]], other: dict[int, list[float]]) -> dict[str, Any]:
    """``other`` over ``exact`` in validation perplexity, less one: seed by seed and epoch by epoch, and of the means
    over seeds."""
    seeds = sorted(exact.keys() & other.keys())
    by_seed = {str(seed): [b / a - 1 for a, b in zip(exact[seed], other[seed], strict=True)] for seed in seeds}
    means = [[mean(each) for each in zip(*(ppl[seed] for seed in seeds), strict=True)] for ppl in (exact, other)]
    return {
        "by_seed": by_seed,
        "largest": max((each for epochs in by_seed.values() for each in epochs), key=abs),
        "largest_in_last_epoch": max((epochs[-1] for epochs in by_seed.values()), key=abs),
        "largest_of_means": max((b / a - 1 for a, b in zip(*means, strict=True)), key=abs),
    }


def spread(exact: dict[int, list[float]]) -> float | None:
    """Standard deviation of the seeds over their mean, at the epoch where it is largest; None for one seed."""
    epochs = list(zip(*exact.values(), strict=True))
    return max(stdev(each) / mean(each) for each in epochs) if len(exact) > 1 else None


def show(experiments: list[dict[str, Any]]) -> None:
    """A line an experiment."""
    print(f"{'':18}{'bf16 against fp32':^33}{'fp32, nudged':^22}{'seeds':>8}")
    print(f"{'':18}{'any epoch':>11}{'last':>11}{'of means':>11}{'any epoch':>11}{'of means':>11}{'':>8}")
    for each in experiments:
        bf16, other = each["bf16"], each["nudged"]
        numbers = (
            bf16["largest"],
            bf16["largest_in_last_epoch"],
            bf16["largest_of_means"],
            other["largest"],
            other["largest_of_means"],
        )
        of_seeds = "–" if each["spread_of_seeds"] is None else f"{each['spread_of_seeds']:.1%}"
        print(f"{each['label']:18}" + "".join(f"{number:>+11.2%}" for number in numbers) + f"{of_seeds:>8}")
    for name, words in (("bf16", "bf16"), ("nudged", "fp32 nudged")):
        within = sum(abs(each[name]["largest"]) <= GOAL for each in experiments)
        print(f"Within {GOAL:.0%} at every epoch and seed, {words}: {within} of {len(experiments)} experiments.")
    print("Largest difference of a validation perplexity: at any epoch of any seed, in any seed's last epoch, of the")
    print("mean over seeds. Nudged: the learning rate is larger by a millionth. Seeds: standard deviation over mean in")
    print("fp32, where it is largest.")


def main() -> None:
    """Train, compare, show."""
    parser = argparse.ArgumentParser(description="Compare perplexities of bf16 and fp32.")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "precision", metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    asked = parser.parse_args()
    root: Path = asked.runs.absolute()
    again = root.with_name(f"{root.name}-again")
    again = root.with_name(f"{root.name}-nudged")
    builtin = builtin_file()
    train(asked.preset, "fp32", asked.seeds, asked.jobs, root, builtin)
    train(asked.preset, "bf16", asked.seeds, asked.jobs, root, builtin)
    train(asked.preset, "fp32", asked.seeds, asked.jobs, again, nudged(asked.preset, again))
    exact, bf16, other = (curves(asked.preset, *each) for each in (("fp32", root), ("bf16", root), ("fp32", again)))
    experiments = [
        {
            "id": number,
            "label": label,
            "bf16": compare(seeds, bf16[number][1]),
            "nudged": compare(seeds, other[number][1]),
            "spread_of_seeds": spread(seeds),
            "fp32_ppl": {str(seed): ppl for seed, ppl in seeds.items()},
        }
        for number, (label, seeds) in sorted(exact.items())
    ]
    show(experiments)
    if asked.json:
        document = {
            "schema": 1,
            "benchmark": "precision",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "preset": asked.preset,
            "seeds": asked.seeds,
            "experiments": experiments,
        }
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
