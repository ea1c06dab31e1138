"""Rates and figure of the placebo are those of the recorded runs."""

import csv
import importlib
import io
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded
from scipy.stats import ttest_ind

from lmconsole.engine.option_values import parse_seeds
from lmconsole.plan.load import load_plan

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the source distribution has no benchmarks")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    """Return the modules of the placebo by name."""
    names = ("placebo", "placebo_rates", "placebo_figure")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture(scope="module")
def placebo(modules: dict[str, Any]) -> Any:
    return modules["placebo"]


@pytest.fixture(scope="module")
def rates(modules: dict[str, Any]) -> Any:
    return modules["placebo_rates"]


@pytest.fixture(scope="module")
def cells(placebo: Any, rates: Any) -> dict[tuple[str, str, int], Any]:
    """Return the recorded rates by rule, truth and number of seeds."""
    return {(each.rule, each.truth, each.runs): each for each in placebo.read(placebo.RATES_CSV, rates.Rate)}


@pytest.fixture(scope="module")
def losses(placebo: Any) -> Any:
    return placebo.test_nll("GPT-1", "Adam")


@pytest.mark.parametrize(
    ("rule", "first", "second", "code"),
    [
        ("bold the lowest", [1.0], [2.0], -1),
        ("bold the lowest", [2.0, 3.0], [2.0, 2.9], 1),
        ("bold the lowest", [1.0, 3.0], [2.0, 2.0], 0),
        ("mean ± sd apart", [1.0], [2.0], 0),
        ("mean ± sd apart", [1.0, 2.0, 3.0], [3.1, 4.1, 5.1], -1),  # means 2.1 apart, sd 1 and 1
        ("mean ± sd apart", [2.9, 3.9, 4.9], [1.0, 2.0, 3.0], 0),
        ("mean ± sd apart", [4.0, 4.0], [1.0, 2.0], 1),
        ("lmconsole", [1.0], [9.0], 0),
        ("lmconsole", [1.0, 1.1], [9.0, 9.1], 0),
        ("lmconsole", [1.0, 1.1, 1.2], [9.0, 9.1, 9.2], -1),
        ("lmconsole", [9.0, 9.1, 9.2], [1.0, 1.1, 1.2], 1),
        ("lmconsole", [1.0, 2.0, 3.0], [2.0, 3.0, 4.0], 0),
    ],
)
def test_rules(rates: Any, rule: str, first: list[float], second: list[float], code: int) -> None:
    found = rates.RULES[rule](np.array([first, second]), np.array([second, first]))
    assert [*found] == [code, -code]
    assert code == 0 or len(first) >= rates.SMALLEST[rule]


def test_splits_have_every_run_once_and_as_often_as_it_was_resampled(rates: Any) -> None:
    pool = np.array([0, 0, 1, 2, 3, 4, 5])
    splits = rates.draw_splits(np.random.default_rng(1), pool, 2, 30_000)
    assert splits.shape == (30_000, 2)
    assert (splits[:, 0] != splits[:, 1]).all()
    pairs = {frozenset(pair): (2 if 0 in pair else 1) for pair in itertools.combinations(range(6), 2)}
    for pair, weight in pairs.items():
        share = np.mean([frozenset(split) == pair for split in splits.tolist()])
        assert share == pytest.approx(weight / sum(pairs.values()), abs=0.01)


def test_runs_are_of_one_setting_and_differ_in_their_seed(placebo: Any, losses: Any) -> None:
    with placebo.RUNS_CSV.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [("GPT-1", "Adam", seed) for seed in range(1, 601)]
    wanted += [("LSTM", optimizer, seed) for optimizer in ("Adam", "SGD") for seed in range(1, 11)]
    assert [(row["model"], row["optimizer"], int(row["seed"])) for row in rows] == wanted
    assert {(row["status"], row["diverged"], row["epochs"]) for row in rows} == {("finished", "False", "6")}
    assert len(losses) == 600
    assert len({(row["train_nll"], row["valid_nll"], row["test_nll"]) for row in rows}) == len(rows)
    assert 0.005 < losses.std() < 0.05
    drift = np.polyfit(range(600), losses, 1)[0] * 600
    assert abs(drift) < 4 * losses.std() * math.sqrt(12 / 600)


def test_commands_are_recorded_and_plan_the_runs(placebo: Any) -> None:
    source = json.loads(placebo.SOURCE.read_text(encoding="utf-8"))
    file = placebo.EXPERIMENTS_FILE.relative_to(BENCHMARKS.parent)
    commands = placebo.commands(file, Path("runs"))
    assert source["commands"] == [" ".join(("lmconsole", *command)) for command in commands]
    assert len(source["versions"]) == len(source["devices"]) == 1
    plan = load_plan(placebo.EXPERIMENTS_FILE)
    experiments = {
        plan.experiment(int(number)).label: seeds for numbers, seeds in placebo.TRAININGS for number in numbers
    }
    assert {label: len(parse_seeds(seeds, plan)) for label, seeds in experiments.items()} == {
        "LSTM 1L Adam": 10,
        "LSTM 1L SGD": 10,
        "GPT-1 1L Adam": 600,
    }
    settings = plan.resolve(plan.experiment(1), "placebo").settings
    assert (settings.corpus, settings.epochs, settings.learning_rate) == ("demo", 6, 1e-3)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_recorded_rates_are_those_of_an_independent_computation(losses: Any, cells: Any, n: int) -> None:
    random, count = np.random.default_rng(99), 4_000
    drawn = np.array([losses[random.permutation(600)[: 2 * n]] for _ in range(count)])
    adam, placebo = drawn[:, :n], drawn[:, n:]
    gap = adam.mean(1) - placebo.mean(1)
    spread = adam.std(1, ddof=1) + placebo.std(1, ddof=1)
    shift = 2 * losses.std(ddof=1)
    welch = [ttest_ind(adam, placebo - each, axis=1, equal_var=False) for each in (0.0, shift)]
    wanted = {
        ("bold the lowest", "no difference"): gap != 0,
        ("bold the lowest", "2 sd"): gap + shift > 0,
        ("mean ± sd apart", "no difference"): abs(gap) > spread,
        ("mean ± sd apart", "2 sd"): gap + shift > spread,
        ("lmconsole", "no difference"): welch[0].pvalue <= 0.05,
        ("lmconsole", "2 sd"): (welch[1].pvalue <= 0.05) & (welch[1].statistic > 0),
    }
    for (rule, truth), found in wanted.items():
        share = cells[rule, truth, n].share
        error = math.sqrt(max(share * (1 - share), 1 / count) / count)
        assert found.mean() == pytest.approx(share, abs=4 * error), (rule, truth)


def test_recorded_rates_have_intervals_of_resampled_runs(rates: Any, losses: Any, cells: Any) -> None:
    assert len(cells) == len(rates.RULES) * 2 * 10
    for each in cells.values():
        assert 0 <= each.low <= each.share <= each.high <= 1
        if each.runs < rates.SMALLEST[each.rule]:
            assert each.share == each.high == 0
    again = rates.rates(losses, sizes=(3,), splits=5_000, resamples=60, resampled_splits=1_000)
    for each in again:
        before = cells[each.rule, each.truth, 3]
        assert each.share == pytest.approx(before.share, abs=0.03)
        assert each.high - each.low == pytest.approx(before.high - before.low, abs=0.04)


def test_sgd_is_compared_in_every_subset(placebo: Any, rates: Any) -> None:
    found = rates.sgd_findings(placebo.test_nll("LSTM", "Adam"), placebo.test_nll("LSTM", "SGD"))
    assert found == placebo.read(placebo.SGD_CSV, rates.SgdFinding)
    assert {(each.runs, each.subsets) for each in found} == {(3, 120**2), (5, 252**2), (10, 1)}
    (bold, *_) = rates.sgd_findings(np.array([1.0, 3.0, *[2.0] * 8]), np.array([1.7] * 10))
    assert bold.adam_lower == pytest.approx(math.comb(8, 2) / 120)  # a mean below 1.7 is that of 1, 2 and 2
    assert bold.sgd_lower == pytest.approx(1 - math.comb(8, 2) / 120)


def test_documents_and_figure_show_the_recorded_rates(
    placebo: Any, rates: Any, modules: dict[str, Any], cells: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, text in placebo.documents().items():
        assert path.read_text(encoding="utf-8") == text, "run benchmarks/placebo.py --draw"
    readme = placebo.README.read_text(encoding="utf-8")
    for n in (3, 5, 10):
        assert f"{100 * cells['lmconsole', 'no difference', n].share:.1f}%" in readme
        assert f"{100 * cells['lmconsole', '2 sd', n].share:.0f}%" in readme
    drawn: list[Any] = []
    draw = modules["placebo_figure"].draw_placebo

    def keep(*arguments: Any) -> Any:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(placebo, "draw_placebo", keep)
    image = placebo.figure([*cells.values()])
    assert image == placebo.figure([*cells.values()])  # nothing depends on the time
    assert image.startswith(b"\x89PNG")
    assert placebo.FIGURE.read_bytes().startswith(b"\x89PNG")
    wrong, right, dots = drawn[0].axes
    for axes, truth in ((wrong, "no difference"), (right, "2 sd")):
        lines = {line.get_color(): [*zip(*line.get_data(), strict=True)] for line in axes.lines[:3]}
        for rule, style in modules["placebo_figure"].LINES.items():
            sizes = range(rates.SMALLEST[rule], 11)
            assert lines[style["color"]] == [(n, cells[rule, truth, n].share) for n in sizes]
    adam, sgd = dots.lines
    assert [*adam.get_ydata()] == [*placebo.test_nll("LSTM", "Adam")]
    assert [*sgd.get_ydata()] == [*placebo.test_nll("LSTM", "SGD")]


def test_runs_of_a_store_become_rows(placebo: Any, tmp_path: Path) -> None:
    for seed in (2, 1):
        recorded.record(tmp_path, 1, "gpt1", [(5.0, 5.5), (4.0, 4.75), (3.0, 5.0)], seed=seed)
    rows = list(csv.DictReader(io.StringIO(placebo.runs_csv(tmp_path / "runs"))))
    assert [row["seed"] for row in rows] == ["1", "2"]
    assert rows[0] == {
        "model": "GPT-1",
        "optimizer": "Adam",
        "seed": "1",
        "status": "finished",
        "diverged": "False",
        "epochs": "3",
        "best_epoch": "2",
        "train_nll": "4.000000000",
        "valid_nll": "4.750000000",
        "test_nll": "4.750000000",
        "train_s": "3.00",
    }
