"""Results of damaged runs are marked everywhere, never bold, never complete, and the findings say so."""

import math
import re
from pathlib import Path

import pytest
from recorded import record

from lmconsole.commands.list_experiments import list_experiments
from lmconsole.commands.results import DAMAGE_NOTE, print_results
from lmconsole.commands.status import show_status
from lmconsole.formatting import DAMAGE_MARK
from lmconsole.report.against import comparison_table, published_results
from lmconsole.report.draw import draw_figure
from lmconsole.report.export import export
from lmconsole.report.export_options import ExportOptions
from lmconsole.report.figures import figure_specs
from lmconsole.report.findings import findings
from lmconsole.report.notation import notation
from lmconsole.report.result_tables import memory_table, results_table
from lmconsole.report.results import is_complete, run_frame
from lmconsole.report.selection import Group, choose_group
from lmconsole.runs.store import Run, Store

BEST = [(5.6, 5.7), (5.4, 5.7), (5.2, 5.5), (5.1, 5.9)]


def damage(run: Run, number: int) -> None:
    """Fill the line of an epoch with zeros."""
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    (at,) = [i for i, line in enumerate(lines) if b'"kind":"epoch"' in line and b'"epoch":%d,' % number in line]
    lines[at] = bytes(len(lines[at]) - 1) + b"\n"
    run.paths.events.write_bytes(b"".join(lines))


@pytest.fixture(params=[1, 2, 3, 4])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The run that would be the best, with one of its epochs damaged; and one that is whole."""
    damaged = record(tmp_path, 1, "lstm", BEST, samples=6)
    record(tmp_path, 2, "lstm", [(5.9, 6.0), (5.8, 5.9)], optimizer="sgd", samples=6)
    damage(damaged, request.param)
    return Store(tmp_path / "runs")


def group_of(store: Store) -> Group:
    return choose_group(store.runs())


def test_table_1_marks_the_result_and_gives_the_best_of_the_remaining_epochs_by_number(store: Store) -> None:
    group = group_of(store)
    table = results_table(group)
    rows = {row["Experiment"].text: row for row in table.rows}
    remaining = {epoch.epoch: epoch.valid_loss_nats for epoch in group.runs[0].state.epochs}
    number, loss = min(remaining.items(), key=lambda item: (item[1], item[0]))
    assert rows["1"]["Validation PPL"].text == f"{math.exp(loss or 0.0):.2f}{DAMAGE_MARK}"
    assert rows["1"]["Epoch"].text == str(number)
    assert not rows["1"]["Validation PPL"].bold
    assert rows["2"]["Validation PPL"].bold
    assert f"{DAMAGE_MARK}: rests on a damaged event log; never bold." in table.notes
    assert "†" not in table.notes
    assert table.data["complete"].tolist() == [False, True]


def test_tables_2_and_3_and_figures_mark_it_too(store: Store) -> None:
    group = group_of(store)
    memory = memory_table(group)
    assert [row["Experiment"].text for row in memory.rows] == [f"1{DAMAGE_MARK}", "2"]
    against = comparison_table(group, published_results(group))
    assert [row["Ours"].text.endswith(DAMAGE_MARK) for row in against.rows] == [True, True, False, False]
    note = f"{DAMAGE_MARK}: rests on a damaged event log."
    assert note in memory.notes
    assert note in against.notes
    assert note in [each.text for each in notation(group, exploratory=True)]
    for figure in figure_specs(group):
        if figure.number in (9, 10):
            assert [DAMAGE_MARK in label for label in figure.content.labels] == [True, False]  # type: ignore[union-attr]
            assert figure.content is not None
            assert draw_figure(figure.content).axes
        elif figure.number in (1, 5):
            assert "Damaged event logs: 1." in figure.caption


def test_it_is_not_complete_and_the_data_say_why(store: Store) -> None:
    group = group_of(store)
    assert [is_complete(run) for run in group.runs] == [False, True]
    frame = run_frame(group)
    assert re.match(
        r"1 damaged line skipped, first line \d+; 1 epoch missing, first epoch|1 damaged", frame["damage"][0]
    )
    assert frame["damage"][1] == ""


def test_the_findings_name_the_experiment_and_do_not_recommend_it(store: Store) -> None:
    first, *others = findings(group_of(store))
    assert first.observations[0] == (
        f"Results of experiment 1 rest on damaged event logs ({DAMAGE_MARK}): they may be wrong, and are not "
        "recommended or compared."
    )
    assert not any("LSTM 1L Adam (1)" in sentence for sentence in first.interpretation)
    everything = " ".join(sentence for finding in (first, *others) for sentence in finding.observations)
    assert "LSTM 1L Adam (1)" not in everything.replace(f"LSTM 1L Adam (1){DAMAGE_MARK}", "")


@pytest.mark.usefixtures("quick_figures")
def test_the_report_says_so_in_both_formats(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "out", ExportOptions())
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "1 of 2 runs complete. The others:" in markdown
    assert "damaged: 1 damaged line skipped, first line" in markdown
    assert "{\\textsection}" in (tmp_path / "out" / "table-1-results.tex").read_text()


def test_lists_show_the_mark_and_what_is_damaged(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    runs = store.runs()
    list_experiments(store.root.parent / "experiments" / "1.toml", store.root, json=False)
    assert f"finished{DAMAGE_MARK}" in (listed := capsys.readouterr().out)
    assert DAMAGE_NOTE in listed
    show_status(store.root, json=False)
    printed = capsys.readouterr()
    assert printed.out.count(f"finished{DAMAGE_MARK}") == 1
    assert f"{runs[0].run}: warning: damaged ({DAMAGE_MARK}): 1 damaged line skipped" in printed.err
    print_results(runs, stderr=False)
    assert DAMAGE_NOTE in capsys.readouterr().out


@pytest.mark.usefixtures("quick_figures")
def test_without_damage_nothing_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, 1, "lstm", BEST, samples=6)
    store = Store(tmp_path / "runs")
    export(store, tmp_path / "out", ExportOptions(file_format="markdown"))
    show_status(store.root, json=False)
    list_experiments(tmp_path / "experiments" / "1.toml", store.root, json=False)
    files = [path.read_text() for path in (tmp_path / "out").rglob("*.md")]
    assert files
    assert DAMAGE_MARK not in "".join(files) + capsys.readouterr().out
