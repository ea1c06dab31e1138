"""Numbers of the report as LaTeX commands: all of them, compiled by LaTeX, and documented."""

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import factories
import pytest
from recorded import record

from lmconsole.report import draw, pair_numbers
from lmconsole.report.against import comparison_table, published_results
from lmconsole.report.comparing import Pair, compare
from lmconsole.report.comparison_text import DIGITS
from lmconsole.report.experiment_result import Endpoint, experiment_results
from lmconsole.report.export import export
from lmconsole.report.export_options import ExportOptions
from lmconsole.report.findings import findings
from lmconsole.report.numbers import quantities, to_latex
from lmconsole.report.quantity import Quantity
from lmconsole.report.questions.overfitting import UNDERFITTED
from lmconsole.report.questions.times import EQUAL_TIME
from lmconsole.report.result_tables import memory_table, results_table
from lmconsole.report.selection import Group, choose_group
from lmconsole.report.table import Table
from lmconsole.runs.events import perplexity
from lmconsole.runs.store import Store

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "exporting.md"
TWELVE = (
    *(("lstm", 1, optimizer) for optimizer in ("adam", "adamw", "sgd", "momentum")),
    *(("gpt1", 1, optimizer) for optimizer in ("adam", "adamw", "sgd", "momentum")),
    *(("lstm", 2, "adamw"), ("lstm", 4, "adamw"), ("gpt1", 2, "adamw"), ("gpt1", 4, "adamw")),
)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Return the twelve experiments on a GPU with two seeds each, all with different numbers."""
    root = tmp_path_factory.mktemp("twelve")
    for number, (model, layers, optimizer) in enumerate(TWELVE, 1):
        for seed in (1, 2):
            loss = 4.0 + 0.137 * number + 0.011 * seed
            run = record(
                root, number, model, [(loss + 0.5, loss + 0.4), (loss - 0.31, loss), (loss - 0.5, loss + 0.071)],
                optimizer=optimizer, layers=layers, seed=seed, finish=False, device="cuda:0", samples=6,
                process_mib=700.0 + 31 * number, seconds=100.7 + 13 * number, energy_j=9_000.0 * number,
                unigram_ppl={"train": 150.71, "validation": 160.72, "test": 160.73},
            )  # fmt: skip
            outcome = factories.finished(
                [loss + 0.4, loss, loss + 0.071], test_ppl_best=80.0 + number, torch_peak_mib=500.0 + number,
                energy_j=9_000.0 * number,
            )  # fmt: skip
            factories.append_events(run.paths, factories.progress(3, loss_nats=4.0), outcome)
    return choose_group(Store(root / "runs").runs())


def numbers_in(text: str) -> Iterator[str]:
    """Yield the numbers in a sentence or cell of the report, without separators, signs and units."""
    names = (
        r"GPT-1|\b\d+L\b|\((?:experiment )?\d+\)[§¶]*|Tables? \d|(?<=with )\d layers?|\d layers? against \d|\d bytes"
    )
    for number in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?::\d\d)*", re.sub(names, "", text)):
        yield number.rstrip(",").replace(",", "")


def values(found: list[Quantity]) -> set[str]:
    return {number for each in found for value in each.values.values() for number in numbers_in(value)}


def assert_every_number_has_a_command(group: Group, thresholds: str, against: Table | None = None) -> None:
    known = values(quantities(group, None if against is None else against.data)) | set(numbers_in(thresholds))
    tables = [results_table(group), memory_table(group), *([] if against is None else [against])]
    shown = [row[name].text for table in tables for row in table.rows for name in row if name != "Experiment"]
    shown += re.findall("Token frequencies[^;]*", tables[0].notes)
    for finding in findings(group):
        shown += [*finding.observations, *finding.interpretation]
        if finding.table is not None:
            shown += [row[name].text for row in finding.table.rows for name in row if name != "Experiment"]
    found = {number for text in shown for number in numbers_in(text)}
    assert len(found) > 90
    assert found <= known, sorted(found - known)


def test_every_number_of_tables_and_findings_has_a_command(twelve: Group) -> None:
    against = comparison_table(twelve, published_results(twelve))
    assert_every_number_has_a_command(twelve, f"{EQUAL_TIME:.0%} {UNDERFITTED:g}", against)


@pytest.fixture(scope="module")
def ten_seeds(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Return five experiments with ten seeds each, of which one run diverged."""
    root = tmp_path_factory.mktemp("ten")
    kinds = {1: ("lstm", "adam"), 2: ("lstm", "adamw"), 3: ("lstm", "sgd"), 5: ("gpt1", "adam"), 6: ("gpt1", "adamw")}
    for number, (model, optimizer) in kinds.items():
        for seed in range(10):
            loss = 4.0 + 0.0131 * number + 0.007 * (seed * 7 % 10)
            last = math.nan if (number, seed) == (3, 4) else loss + 0.031 * number
            losses = [(loss + 0.5, loss + 0.4), (loss - 0.31, loss), (loss - 0.5, last)]
            record(root, number, model, losses, optimizer=optimizer, seed=seed, seconds=1.7 * number + 0.013 * seed)
    return choose_group(Store(root / "runs").runs())


def test_every_number_of_a_comparison_has_a_command(ten_seeds: Group) -> None:
    constants = f"{EQUAL_TIME:.0%} {UNDERFITTED:g} 95% 80% 9,999"
    assert_every_number_has_a_command(ten_seeds, constants)
    known = {each.name: each.values for each in quantities(ten_seeds)}
    results = experiment_results(ten_seeds)
    (found,) = compare([Pair(subject="", first=results[5], second=results[1])])
    assert found.result is not None
    assert found.result.interval is not None
    key = ("architectures", "5", "1")
    assert known["lmContrastDifference"][key] == f"{found.result.difference:+.{DIGITS}f}"
    assert known["lmContrastLow"][key] == f"{found.result.interval.low:+.{DIGITS}f}"
    assert known["lmContrastP"][key] == known["lmPValue"][("5", "1")] == known["lmPValue"][("1", "5")]
    assert known["lmContrastCount"][("optimizers", "2", "1")] == "3"
    losses = results[5].losses(Endpoint.TEST)
    assert losses is not None
    assert known["lmTestNatsOf"][("5", "0")] == f"{losses[0]:.4f}"
    assert known["lmDiverged"][("3",)] == "1"
    assert ("3",) not in known["lmTestNats"]
    assert ("2", "3") not in known["lmPValue"]


def test_the_numbers_are_those_of_the_runs(twelve: Group) -> None:
    known = {each.name: each.values for each in quantities(twelve)}
    assert known["lmValidPpl"][("3",)] == f"{twelve_ppl(3):.3f}"
    assert known["lmTestPpl"][("3",)] == "83.000"
    assert known["lmEpoch"][("3",)] == "2"
    assert known["lmTrainSeconds"][("3",)] == "419.1"
    assert known["lmTrainTime"][("3",)] == "6:59 min"
    assert known["lmEnergyKj"][("12",)] == "108.0"
    assert known["lmGapNats"][("3",)] == "+0.571"
    assert known["lmDifferencePercent"][("2", "1")] == "+14.7"
    assert known["lmDifference"][("1", "2")] == "12.8% lower"
    assert not known["lmPValue"]  # two seeds
    assert known["lmContrastDifference"][("optimizers", "2", "1")] == f"{math.log(82 / 81):+.4f}"
    assert known["lmBestExperiment"][()] == known["lmBestOf"][("LSTM",)] == "1"
    assert known["lmSetting"][("learning rate",)] == "0.01"


def twelve_ppl(number: int) -> float:
    losses = [4.0 + 0.137 * number + 0.011 * seed for seed in (1, 2)]
    return sum(perplexity(loss) for loss in losses) / 2


def test_unknown_and_infinite_numbers_have_no_command(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5), (float("inf"), float("nan"))], finish=False)
    group = choose_group(Store(tmp_path / "runs").runs())
    text = to_latex(group, quantities(group))
    assert "lm@lmValidPpl@1}{90.017\\ensuremath{^\\dagger}}" in text
    assert "Unfinished, diverged or damaged in the report: experiment 1}" in text
    assert "lm@lmValidPpl@1}{90.017}" in to_latex(group, quantities(group), siunitx=True)
    assert not re.search(r"\{(nan|inf|None|–)\}", text)
    for name in ("lmTestPpl", "lmEnergyKj", "lmGapNats", "lmValidPplSd"):
        assert f"\\newcommand{{\\{name}}}[1]" in text
        assert f"lm@{name}@1" not in text


def test_pairs_of_very_many_experiments_are_left_out(twelve: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_numbers, "MAX_COMPARED", 11)
    found = {each.name: each.values for each in quantities(twelve)}
    assert not found["lmDifference"]
    assert len(found["lmValidPpl"]) == 12


def test_siunitx_gets_plain_digits(twelve: Group) -> None:
    found = quantities(twelve)
    plain, typeset = to_latex(twelve, found, siunitx=True), to_latex(twelve, found)
    for key, digits, text in (
        ("lmAllocatedMib@1", "501", "501"),
        ("lmUnigramPpl@validation", "160.72", "160.72"),
        ("lmDeviceMib@1", "80000", "80{,}000"),
        ("lmDifferencePercent@1@2", "-12.8", r"\ensuremath{-}12.8"),
        ("lmGapNats@3", "0.571", "+0.571"),
        ("lmDifference@1@2", r"12.8\% lower", r"12.8\% lower"),
    ):
        assert f"\\@namedef{{lm@{key}}}{{{digits}}}\n" in plain
        assert f"\\@namedef{{lm@{key}}}{{{text}}}\n" in typeset
    large = Quantity(name="lmX", arguments=(), meaning="", values={(): "1.234e+08"})
    assert r"{1.234\ensuremath{\times10^{8}}}" in to_latex(twelve, [large])
    assert "{1.234e+08}" in to_latex(twelve, [large], siunitx=True)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles_every_command_and_marks_missing_numbers(twelve: Group, tmp_path: Path) -> None:
    found = quantities(twelve, comparison_table(twelve, published_results(twelve)).data)
    (tmp_path / "numbers.tex").write_text(to_latex(twelve, found))
    uses = [f"\\{each.name}{''.join(f'{{{argument}}}' for argument in key)}" for each in found for key in each.values]
    assert len(uses) > 500
    body = [
        r"\typeout{BEST=\lmValidPpl{\lmBestExperiment}}\typeout{PAIR=\lmDifference{1}{2}}",
        r"None: \lmValidPpl{99}. $x = \lmDifferencePercent{1}{2}$ \section{Of \lmTrainPpl{5}}",
        *uses,
    ]
    head = "\\documentclass{article}\\input{numbers}\\begin{document}"
    (tmp_path / "draft.tex").write_text("\n".join([head, *body, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "draft"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2_000:]
    log = (tmp_path / "draft.log").read_text(errors="replace")
    assert f"BEST={twelve_ppl(1):.3f}" in log
    assert "PAIR=12.8\\% lower" in log
    assert log.count("has no number for") == 1


def test_a_latex_export_writes_the_numbers(twelve: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "draw_figure", lambda _: None)
    monkeypatch.setattr(draw, "encode_figure", lambda *_: b"")
    store = Store(twelve.runs[0].paths.folder.parent)
    export(store, tmp_path / "a", ExportOptions(file_format="latex", against="published"))
    text = (tmp_path / "a" / "numbers.tex").read_text()
    assert "\\@namedef{lm@lmOtherPpl@5@validation}" in text
    assert text.isascii()


def test_the_documentation_lists_every_command(twelve: Group) -> None:
    rows = re.findall(r"^\| `(\\lm[^`]*)` \| (.*) \|$", DOCUMENTATION.read_text(encoding="utf-8"), re.MULTILINE)
    against = comparison_table(twelve, published_results(twelve))
    assert rows == [(each.usage, each.meaning) for each in quantities(twelve, against.data)]
