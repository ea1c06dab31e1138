"""The report on the published twelve runs, imported from the layout of the course's runner."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from course_folders import READINGS, CourseRun, course_runs, write_course_folders

from lmconsole.importing.import_runs import import_runs
from lmconsole.plan.load import load_plan
from lmconsole.report.export import export
from lmconsole.report.export_options import ExportOptions
from lmconsole.report.figure_content import BarChart, PanelGrid
from lmconsole.report.figures import figure_specs
from lmconsole.report.markup import format_ppl
from lmconsole.report.result_tables import memory_table
from lmconsole.report.selection import Group, choose_group
from lmconsole.runs.store import Store


@pytest.fixture
def runs(shared: Path) -> dict[int, CourseRun]:
    found = course_runs(shared / "reference/published.toml")
    assert len(found) == 12
    return {run.number: run for run in found}


def import_all(root: Path, runs: dict[int, CourseRun], **arguments: object) -> Store:
    write_course_folders(root / "logs", list(runs.values()), **arguments)
    store = Store(root / "runs")
    assert import_runs(store, root / "logs", load_plan()).problems == []
    return store


def group(store: Store) -> Group:
    return choose_group(store.runs(), imported=True)


def table_rows(text: str, title: str) -> list[list[str]]:
    """Return the cells of a table of the report, without header and emphasis."""
    lines = text[text.index(f"**{title}.**") :].split("\n\n")[1].splitlines()
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines[2:]]


def section(text: str, question: str) -> str:
    return text[text.index(f"### {question}") :].split("\n### ")[0].split("\n## ")[0]


@pytest.mark.slow
def test_the_report_on_twelve_imported_runs_is_right(tmp_path: Path, runs: dict[int, CourseRun]) -> None:
    store = import_all(tmp_path, runs)
    export(store, tmp_path / "out", ExportOptions(imported=True, against="published"))
    text = (tmp_path / "out/report.md").read_text()

    first = {int(row[7].rstrip("¶")): row for row in table_rows(text, "Table 1")}
    assert first.keys() == runs.keys()
    for number, run in runs.items():
        best = min(run.valid_ppl)
        assert first[number][2].lower() == run.optimizer
        assert first[number][3:7] == [
            format_ppl(run.train_ppl[run.best_epoch - 1]), format_ppl(best), "–", str(run.best_epoch)
        ]  # fmt: skip
    assert {number for number, row in first.items() if row[7].endswith("¶")} == {1, 3, 5, 7}
    bold = re.findall(r"\*\*(\d+)\*\* \|\n", text)
    assert sorted(map(int, bold)) == [6, 9]
    assert "Xavier" not in text

    second = {int(row[5].rstrip("¶")): row for row in table_rows(text, "Table 2")}
    for number, run in runs.items():
        assert second[number][3:5] == [f"{sum(run.memory_mib) / READINGS:,.0f}", f"{READINGS:,}"]
    assert "host memory" not in text

    third = table_rows(text, "Table 3")
    assert len(third) == 24
    assert {row[8] for row in third} == {"+0.0 %"}
    validation = next(row for row in third if row[3:5] == ["Validation", "146.20"])
    assert validation[5] == f"{146.199 ** (1 / 0.9970865885):.2f}" == "148.34"
    assert "Ours" not in text
    assert "Difference: imported / published − 1" in text

    assert "Device memory used: from 5,408 MiB (LSTM 2L AdamW (9)) to 6,680 MiB" in section(text, "How much memory")
    assert "chunk of logits" not in text
    effects = section(text, "What effect do weight decay")
    assert "Weight decay: Adam 0 (inferred: weight decay 0.0005 is recorded for adam; plain Adam has none)" in effects
    assert "that LSTM 1L SGD (3) and GPT-1 1L SGD (7) had no momentum: momentum 0.9 is recorded for sgd" in effects
    assert "No learning rate was tuned" not in text
    assert "Lowest validation perplexity: LSTM 2L AdamW (9), 139.34, at epoch 7 of 10." in text
    assert "No run yet" not in text
    assert "repeat" not in text.split("## Findings")[0]


@pytest.mark.usefixtures("quick_figures")
def test_provenance_names_what_is_stated_and_what_is_inferred(tmp_path: Path, runs: dict[int, CourseRun]) -> None:
    export(import_all(tmp_path, runs), tmp_path / "out", ExportOptions(imported=True, file_format="markdown"))
    text = (tmp_path / "out/report.md").read_text()
    table = text[text.index("## Provenance") :]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line][2:]
    rows = {(row[0], row[1], row[2]): row[3] for row in found}
    assert rows[("weight\\_decay", "0.0", "1, 5")].startswith("inferred: weight decay 0.0005 is recorded for adam")
    assert rows[("weight\\_decay", "0.0005", "2–4, 6–12")] == "stated by the source"
    assert rows[("optimizer", "sgd", "3, 7")].startswith("inferred: momentum 0.9 is recorded for sgd")
    assert rows[("momentum", "0.9", "4, 8")] == "stated by the source"
    assert not any("dropout" in row or "warmup" in row for row in map(str, rows))


def test_the_figures_show_the_imported_numbers(tmp_path: Path, runs: dict[int, CourseRun]) -> None:
    specs = figure_specs(group(import_all(tmp_path, runs)))
    panels = {}
    for spec in specs[1:5]:
        assert isinstance(spec.content, PanelGrid)
        for panel in spec.content.panels:
            panels[int(panel.title.split("(")[-1].rstrip(")"))] = panel
    assert panels.keys() == runs.keys()
    for number, run in runs.items():
        assert panels[number].curves["Validation"].y == pytest.approx(run.valid_ppl)
        assert panels[number].curves["Train"].y == pytest.approx(run.train_ppl)
    memory = specs[9].content
    assert isinstance(memory, BarChart)
    assert memory.x_label == "Device memory used (MiB)"
    assert None not in memory.values


def test_runs_without_readings_have_no_axis_and_no_host_memory(tmp_path: Path, runs: dict[int, CourseRun]) -> None:
    write_course_folders(tmp_path / "logs", list(runs.values())[:2])
    for file in (tmp_path / "logs").glob("*/gpu_memory.txt"):
        file.unlink()
    store = Store(tmp_path / "runs")
    import_runs(store, tmp_path / "logs", load_plan())
    table = memory_table(group(store))
    assert "The sources have no readings of memory" in table.notes
    assert [row["Device memory used (MiB)"].text for row in table.rows] == ["–", "–"]
    spec = figure_specs(group(store))[9]
    assert (spec.content, spec.omitted) == (None, "the memory of these runs is unknown")
    assert "host" not in spec.title


def test_readings_with_totals_and_utilization_have_columns(tmp_path: Path, runs: dict[int, CourseRun]) -> None:
    write_course_folders(tmp_path / "logs", [runs[1]])
    header = "memory.used [MiB], memory.total [MiB], utilization.gpu [%]"
    (tmp_path / "logs/1/gpu_memory.txt").write_text(f"{header}\n6364 MiB, 15109 MiB, 98 %\n6366 MiB, 15109 MiB, 96 %\n")
    store = Store(tmp_path / "runs")
    import_runs(store, tmp_path / "logs", load_plan())
    ((first, *_),) = [[cell.text for cell in row.values()][3:] for row in memory_table(group(store)).rows]
    (row,) = memory_table(group(store)).rows
    assert first == "6,365"
    assert [row[name].text for name in ("of total (MiB)", "GPU (%)", "n")] == ["15,109", "97", "2"]


@pytest.mark.parametrize(("batch_size", "share"), [(2, 0.999168), (16, 0.997087), (32, 0.997087)])
def test_padded_perplexities_are_converted_for_their_own_batch_size(
    tmp_path: Path, runs: dict[int, CourseRun], batch_size: int, share: float
) -> None:
    store = import_all(tmp_path, {1: runs[1]}, batch_size=batch_size)
    export(store, tmp_path / "out", ExportOptions(imported=True, against="published", file_format="csv"))
    _, valid = csv.DictReader((tmp_path / "out/table-3-against.csv").read_text().splitlines())
    windows, targets = 958, 245_044
    expected = targets / (math.ceil(windows / batch_size) * batch_size * 256)
    assert expected == pytest.approx(share, abs=1e-6)
    assert float(valid["ours_ppl"]) == pytest.approx(144.841 ** (1 / expected), abs=1e-3)
    assert float(valid["ours_ppl_as_given"]) == 144.841


def test_an_exported_time_of_a_reading_is_unknown(tmp_path: Path, runs: dict[int, CourseRun]) -> None:
    store = import_all(tmp_path, {1: runs[1]})
    export(store, tmp_path / "out", ExportOptions(imported=True, file_format="json"))
    samples: list[dict[str, Any]] = json.loads((tmp_path / "out/data/telemetry.json").read_text())
    assert {sample["t"] for sample in samples} == {None}
    assert sum(sample["samples"] for sample in samples) == READINGS


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize("known", [{"weight_decay": None}, {}])
def test_the_effect_of_weight_decay_is_not_claimed_where_it_is_unknown_or_equal(
    tmp_path: Path, runs: dict[int, CourseRun], known: dict[str, object]
) -> None:
    folders = {1: runs[1], 2: runs[2]}
    write_course_folders(tmp_path / "logs", list(folders.values()), **known)
    if not known:  # another Adam with another decay: it was chosen, so it had an effect
        write_course_folders(tmp_path / "logs/0", [runs[5]], weight_decay=0.1)
    store = Store(tmp_path / "runs")
    import_runs(store, tmp_path / "logs", load_plan())
    export(store, tmp_path / "out", ExportOptions(imported=True, file_format="markdown", template="course"))
    effects = section((tmp_path / "out/report.md").read_text(), "What effect do weight decay")
    assert "weight decay makes practically no difference" not in effects
    expected = "do not state the weight decay" if known else "about its form, which AdamW decouples from the gradient"
    assert expected in effects
