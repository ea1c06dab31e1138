"""Tables 1 and 2 of recorded runs: complete texts, bold and marked cells, and excluded runs."""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pandas as pd
import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st
from pylatexenc.latex2text import LatexNodes2Text
from recorded import record

from lmconsole.errors import ExportError, escape_control_characters
from lmconsole.report.export import export, export_automatically
from lmconsole.report.export_options import ExportOptions
from lmconsole.report.markup import escape_latex, escape_markdown, format_ppl, format_spread
from lmconsole.report.result_tables import memory_table, results_table
from lmconsole.report.selection import Exclusion, choose_group
from lmconsole.report.table import Cell, Column, Table, frame_to_csv, to_latex
from lmconsole.runs.events import perplexity
from lmconsole.runs.info import read_info
from lmconsole.runs.store import Run, Store

CAPTION = (
    "Preset tiny, corpus “data”: 794 training, 116 validation and 84 test tokens; vocabulary of 300 (byte-level BPE of "
    "300 tokens trained on the train split); learned embeddings; 2 epochs; batches of 4 windows of 8 tokens; learning "
    "rate 0.01; fp32 precision. Trained on CPU."
)


def rows(markdown: str) -> list[list[str]]:
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    record(tmp_path, 3, "lstm", [(5.0, 5.5), (4.0, 5.0)], optimizer="sgd")
    record(tmp_path, 1, "lstm", [(5.0, 4.5), (4.0, 4.75)])
    record(tmp_path, 5, "gpt1", [(6.0, 6.0), (5.5, 5.25)])
    record(tmp_path, 7, "gpt1", [(6.0, 3.0)], optimizer="momentum", finish=False)
    record(tmp_path, 8, "gpt1", [(6.0, 5.0), (float("nan"), float("nan"))], optimizer="sgd")
    return Store(tmp_path / "runs")


NOTES = "Each experiment has one seed, so no uncertainty is known. †: unfinished or diverged; never bold."


def test_table_1_in_markdown(store: Store) -> None:
    text = results_table(choose_group(store.runs())).render("markdown")
    assert text == (
        "**Table 1.** Perplexity (PPL) of each experiment at its epoch with the lowest validation PPL. Bold: lowest "
        "validation PPL of each architecture, which is not a claim.\n"
        "\n"
        "| Architecture | Layers | Optimizer |  Train PPL | Validation PPL |   Test PPL | Epoch | Experiment |\n"
        "| ------------ | -----: | --------- | ---------: | -------------: | ---------: | ----: | ---------: |\n"
        "| **GPT-1**    |  **1** | **Adam**  | **244.69** |     **190.57** | **190.57** | **2** |      **5** |\n"
        "| GPT-1        |      1 | Momentum  |     403.43 |        20.086† |          – |     1 |          7 |\n"
        "| GPT-1        |      1 | SGD       |     403.43 |        148.41† |     148.41 |     1 |          8 |\n"
        "| **LSTM**     |  **1** | **Adam**  | **148.41** |     **90.017** | **90.017** | **1** |      **1** |\n"
        "| LSTM         |      1 | SGD       |     54.598 |         148.41 |     148.41 |     2 |          3 |\n"
        "\n"
        f"{NOTES} PPL is per target token. {CAPTION} Seed 42.\n"
    )


def test_without_bold_no_row_is_the_winner(store: Store) -> None:
    table = results_table(choose_group(store.runs()), bold=False)
    assert not any(cell.bold for row in table.rows for cell in row.values())
    assert "old" not in table.caption + table.notes
    assert table.data["best"].tolist() == [True, False, False, True, False]


def test_table_1_in_latex(store: Store) -> None:
    text = results_table(choose_group(store.runs())).render("latex")
    body = text[text.index("  \\begin{tabular}") :]
    assert text.startswith(
        "% needs \\usepackage{booktabs}\n\\begin{table}[htbp]\n  \\centering\\small\n  \\caption{Perplexity (PPL)"
    )
    assert body.startswith(
        "  \\begin{tabular}{lrlrrrrr}\n"
        "    \\toprule\n"
        "    Architecture & Layers & Optimizer & Train PPL & Validation PPL & Test PPL & Epoch & Experiment \\\\\n"
        "    \\midrule\n"
        "    \\textbf{GPT-1} & \\textbf{1} & \\textbf{Adam} & \\textbf{244.69}\\phantom{0} & "
        "\\textbf{190.57}\\phantom{0} & \\textbf{190.57}\\phantom{0} & \\textbf{2} & \\textbf{5} \\\\\n"
        "    GPT-1 & 1 & Momentum & 403.43\\phantom{0} & 20.086$^\\dagger$ & -- & 1 & 7 \\\\\n"
        "    GPT-1 & 1 & SGD & 403.43\\phantom{0} & 148.41$^\\dagger$\\phantom{0} & "
        "148.41\\phantom{0} & 1 & 8 \\\\\n"
        "    \\textbf{LSTM} & \\textbf{1} & \\textbf{Adam} & \\textbf{148.41}\\phantom{0} & \\textbf{90.017} & "
        "\\textbf{90.017} & \\textbf{1} & \\textbf{1} \\\\\n"
        "    LSTM & 1 & SGD & 54.598 & 148.41\\phantom{0} & 148.41\\phantom{0} & 2 & 3 \\\\\n"
        "    \\bottomrule\n"
        "  \\end{tabular}\n"
        "  \\par\\smallskip{\\footnotesize\\raggedright Each experiment has one seed"
    )
    report, own = body.split("\\ifdefined\\lmReport\\else ")
    assert "never bold" in report
    assert own == f"PPL is per target token. {escape_latex(CAPTION)} Seed 42.\\fi\\par}}\n\\end{{table}}\n"


def test_table_1_in_csv_holds_plain_numbers(store: Store) -> None:
    assert results_table(choose_group(store.runs())).render("csv") == (
        "architecture,layers,optimizer,train_ppl,train_ppl_sd,valid_ppl,valid_ppl_sd,epoch,config,name,seeds,complete,"
        "best,test_ppl,test_ppl_sd\n"
        "GPT-1,1,Adam,244.692,,190.566,,2,5,,1,True,True,190.566,\n"
        "GPT-1,1,Momentum,403.429,,20.086,,1,7,,1,False,False,,\n"
        "GPT-1,1,SGD,403.429,,148.413,,1,8,,1,False,False,148.413,\n"
        "LSTM,1,Adam,148.413,,90.017,,1,1,,1,True,True,90.017,\n"
        "LSTM,1,SGD,54.598,,148.413,,2,3,,1,True,False,148.413,\n"
    )


@pytest.mark.parametrize(
    ("ppl", "text"),
    [
        (1.0, "1.000"), (9.99996, "10.000"), (99.99949, "99.999"), (99.9996, "100.00"), (148.264, "148.26"),
        (999.996, "1000.0"), (19726.078, "19726.1"), (1e7, "1.000e+07"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_a_perplexity_has_five_digits(ppl: float, text: str) -> None:
    assert format_ppl(ppl) == text
    assert format_spread(148.264, 0.0421) == "148.26 ± 0.04"


def test_hyphens_are_minus_signs_only_before_numbers() -> None:
    text = "gap -0.020 (-3.1 %), 1e-05, GPT-1 of 2026-11-27, s3-2026, 5-8, --jobs -x"
    assert escape_markdown(text) == "gap −0.020 (−3.1 %), 1e−05, GPT-1 of 2026-11-27, s3-2026, 5-8, --jobs -x"
    assert escape_latex(text).startswith("gap $-$0.020 ($-$3.1 \\%), 1e$-$05, GPT-1 of 2026-11-27")


def test_seeds_give_mean_and_standard_deviation_of_each_seeds_best_epoch(tmp_path: Path) -> None:
    for seed, valid in ((1, 4.0), (2, 4.2), (3, 4.4)):
        record(tmp_path, 1, "lstm", [(5.0, 5.0), (3.0, valid)], seed=seed)
    record(tmp_path, 3, "lstm", [(5.0, 3.9), (3.0, 4.5)], seed=1, optimizer="sgd")
    table = results_table(choose_group(Store(tmp_path / "runs").runs()))
    ppls = [perplexity(loss) for loss in (4.0, 4.2, 4.4)]
    mean = sum(ppls) / 3
    sd = (sum((ppl - mean) ** 2 for ppl in ppls) / 2) ** 0.5
    first, second = rows(table.render("markdown"))
    assert first[3:6] == [f"{perplexity(3.0):.3f} ± 0.000", f"{mean:.3f} ± {sd:.3f}", f"{mean:.3f} ± {sd:.3f}"]
    assert second[3:6] == [f"**{perplexity(5.0):.2f}**", f"**{perplexity(3.9):.3f}**", "**49.402**"]
    assert (first[6], second[6]) == ("2", "**1**")
    assert "over seeds (1, 2, 3)" in table.notes
    assert "Experiment 1 has 3 seeds; experiment 3 has 1 seed." in table.notes
    read = list(csv.DictReader(io.StringIO(table.render("csv"))))
    assert float(read[0]["valid_ppl"]) == pytest.approx(mean, abs=5e-4)
    assert float(read[0]["valid_ppl_sd"]) == pytest.approx(sd, abs=5e-4)
    assert read[1]["valid_ppl_sd"] == ""


def test_ties_are_all_bold(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    record(tmp_path, 3, "lstm", [(4.0, 4.0)], optimizer="sgd")
    table = rows(results_table(choose_group(Store(tmp_path / "runs").runs())).render("markdown"))
    assert all(row[0] == "**LSTM**" for row in table)


def test_the_latest_finished_run_counts_and_repetitions_are_not_averaged(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    record(tmp_path, 1, "lstm", [(5.0, 4.5)], fresh=True)
    record(tmp_path, 1, "lstm", [(5.0, 1.0)], fresh=True, finish=False)
    table = results_table(choose_group(Store(tmp_path / "runs").runs()))
    assert [row[4] for row in rows(table.render("markdown"))] == ["**90.017**"]
    assert "Excluded runs: 2 superseded by another run." in table.setting


@pytest.mark.usefixtures("quick_figures")
def test_runs_on_another_corpus_are_another_group(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    store, out = Store(tmp_path / "runs"), tmp_path / "exports"
    export(store, out, ExportOptions(file_format="csv"))
    record(tmp_path, 3, "lstm", [(5.0, 4.5)], optimizer="sgd", repeats=9)
    group = choose_group(store.runs())
    assert [run.info.experiment.id for run in group.runs] == [3]
    assert export_automatically(store, out)[0].parent == out / "tiny"


@pytest.mark.usefixtures("quick_figures")
def test_exports_of_version_0_1_0_are_replaced(tmp_path: Path) -> None:
    """Their manifest does not name the corpus."""
    record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    store, out = Store(tmp_path / "runs"), tmp_path / "exports"
    export(store, out, ExportOptions(file_format="csv"))
    manifest = json.loads((out / ".group.json").read_text())
    del manifest["corpus_sha256"]
    (out / ".group.json").write_text(json.dumps(manifest))
    assert export_automatically(store, out)[0].parent == out


def test_runs_of_another_precision_preset_or_length_are_another_group(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0)], epochs=5)
    record(tmp_path, 2, "lstm", [(5.0, 4.0)], precision="bf16")
    other = record(tmp_path, 3, "lstm", [(5.0, 4.0)], batch_size=2)
    record(tmp_path, 5, "gpt1", [(5.0, 4.0)])
    newest = record(tmp_path, 4, "lstm", [(5.0, 3.5)])
    runs = Store(tmp_path / "runs").runs()
    assert [run.info.experiment.id for run in choose_group(runs).runs] == [5, 4]
    assert choose_group(runs).reference.run == newest.run
    assert [run.run for run in choose_group(runs, run_id=other.run).runs] == [other.run]
    with pytest.raises(ExportError, match="no run of preset 'paper'; the store has tiny"):
        choose_group(runs, preset="paper")


def override(run: Run, epochs: int) -> None:
    """Make the number of epochs a setting of the experiment itself."""
    info = read_info(run.paths.info)
    experiment = msgspec.structs.replace(info.experiment, overrides={"epochs": epochs})
    settings = msgspec.structs.replace(info.settings, epochs=epochs)
    changed = msgspec.structs.replace(info, experiment=experiment, settings=settings)
    run.paths.info.write_bytes(msgspec.json.encode(changed))


def test_the_caption_states_shared_settings_although_the_reference_overrides_one(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    override(record(tmp_path, 2, "lstm", [(5.0, 4.0)]), epochs=7)
    group = choose_group(Store(tmp_path / "runs").runs())
    assert group.reference.experiment.id == 2
    setting = results_table(group).setting
    assert "learned embeddings; 2 epochs;" in setting
    assert "Experiment 2 has its own settings: epochs 7." in setting


def test_excluded_runs_have_a_reason(tmp_path: Path) -> None:
    older = record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    override(older, epochs=6)
    shown = record(tmp_path, 1, "lstm", [(5.0, 4.0)], seed=1)
    override(shown, epochs=7)
    unfinished = record(tmp_path, 1, "lstm", [(5.0, 4.0)], seed=1, finish=False, fresh=True)
    override(unfinished, epochs=7)
    started = record(tmp_path, 1, "lstm", [], finish=False, seed=2)
    override(started, epochs=7)
    group = choose_group(Store(tmp_path / "runs").runs(), run_id=older.run)
    assert [run.run for run in group.runs] == [shown.run]
    assert {run.run: reason for run, reason in group.excluded} == {
        older.run: Exclusion.OTHER_SETTINGS,
        unfinished.run: Exclusion.SUPERSEDED,
        started.run: Exclusion.NO_EPOCH,
    }
    setting = results_table(group).setting
    assert "1 with older settings of the experiment" in setting
    assert "1 superseded by another run" in setting
    assert "1 lost without a complete epoch" in setting


def test_filters_that_no_run_passes_are_named(tmp_path: Path) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    runs = Store(tmp_path / "runs").runs()
    with pytest.raises(ExportError, match=f"no imported run with the id '{run.run}'"):
        choose_group(runs, run_id=run.run, imported=True)
    with pytest.raises(ExportError, match="no imported run of preset 'tiny'"):
        choose_group(runs, preset="tiny", imported=True)


@pytest.mark.usefixtures("quick_figures")
def test_automatic_exports_do_not_overwrite_those_of_another_group(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    store, out = Store(tmp_path / "runs"), tmp_path / "exports"
    assert export_automatically(store, out)[0].parent == out
    before = (out / "table-1-results.md").read_bytes()
    assert export_automatically(store, out)[0].parent == out
    assert (out / "table-1-results.md").read_bytes() == before
    record(tmp_path, 1, "lstm", [(5.0, 3.0)], epochs=7)
    assert export_automatically(store, out)[0].parent == out / "tiny"
    assert (out / "table-1-results.md").read_bytes() == before
    export(store, out, ExportOptions(file_format="markdown"))
    assert (out / "table-1-results.md").read_bytes() != before
    assert not list(out.glob(".export-*"))


def test_table_2_shows_host_memory_without_a_gpu(store: Store) -> None:
    table = memory_table(choose_group(store.runs()))
    assert table.caption.startswith("Peak host memory")
    assert rows(table.render("markdown"))[0] == ["GPT-1", "1", "Adam", "123", "5"]


def test_table_2_shows_process_memory_from_the_second_epoch_on(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0), (4.0, 3.0)], device="cuda:0", samples=5, process_mib=700.0)
    record(tmp_path, 5, "gpt1", [(5.0, 4.0), (4.0, 3.0)], device="cuda:0", samples=5)
    record(tmp_path, 6, "gpt1", [(5.0, 4.0), (4.0, 3.0)], device="cuda:0", samples=4, optimizer="adamw")
    table = memory_table(choose_group(Store(tmp_path / "runs").runs()))
    assert rows(table.render("markdown")) == [
        ["GPT-1", "1", "Adam", "2,000\\*/80,000", "512", "50", "5", "–", "5"],
        ["GPT-1", "1", "AdamW", "–/–", "512", "–", "4", "–", "6"],
        ["LSTM", "1", "Adam", "700/80,000", "512", "50", "5", "–", "1"],
    ]
    assert "memory of the whole device" in table.notes


def test_table_2_shows_mean_energy_if_it_is_known_for_all_seeds(tmp_path: Path) -> None:
    losses = [(5.0, 4.0), (4.0, 3.0)]
    for seed, energy_j in ((1, 10_000.0), (2, 14_600.0)):
        record(tmp_path, 1, "lstm", losses, device="cuda:0", seed=seed, energy_j=energy_j)
    record(tmp_path, 5, "gpt1", losses, device="cuda:0", seed=1, energy_j=20_000.0)
    record(tmp_path, 5, "gpt1", losses, device="cuda:0", seed=2, energy_j=None)
    for seed in (1, 2):
        record(tmp_path, 6, "gpt1", losses, device="cuda:0", seed=seed, optimizer="adamw", energy_j=33_333.0)
    record(tmp_path, 7, "gpt1", losses, device="cuda:0", seed=1, optimizer="sgd", finish=False, energy_j=33_333.0)
    table = memory_table(choose_group(Store(tmp_path / "runs").runs()))
    assert "Energy (kJ)" in table.headers
    found = [(row[2], row[0], row[-2]) for row in rows(table.render("markdown"))]
    assert found == [
        ("Adam", "GPT-1", "–"),
        ("AdamW", "GPT-1", "33.3"),
        ("SGD", "GPT-1", "–"),
        ("Adam", "LSTM", "12.3"),
    ]
    assert "Energy: that of the whole board, from the driver's counter, for training and validation" in table.notes
    assert "mean over seeds. It is unknown (–) if the GPU was shared" in table.notes
    read = list(csv.DictReader(io.StringIO(table.render("csv"))))
    assert [row["energy_j"] for row in read] == ["", "33333.0", "", "12300.0"]


def test_table_2_has_units_on_a_second_line_in_latex_and_a_valid_rule_in_markdown(tmp_path: Path) -> None:
    """Markdown rejects a cell ``:`` in the rule, and headers with units would make the table wider than a page."""
    record(tmp_path, 1, "lstm", [(5.0, 4.0)], device="cuda:0", samples=5, energy_j=12_345.0)
    table = memory_table(choose_group(Store(tmp_path / "runs").runs()))
    assert (
        "    \\toprule\n"
        "    Architecture & Layers & Optimizer & Memory & Peak allocated & GPU & n & Energy & Experiment \\\\\n"
        "     &  &  & (MiB) & (MiB) & (\\%) &  & (kJ) &  \\\\\n"
        "    \\midrule\n"
        "    LSTM & 1 & Adam & 1,000*/80,000 & 512 & 50 & 5 & 12.3 & 1 \\\\\n"
    ) in table.render("latex")
    assert " & {(kJ)} & " in table.render("latex", siunitx=True)
    rule = next(line for line in table.render("markdown").splitlines() if line.startswith("| -"))
    assert all(re.fullmatch("-+:?", cell.strip()) for cell in rule.strip("|").split("|"))


def test_table_2_explains_dashes_only_if_there_are_any(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0)], device="cuda:0", energy_j=960.0)
    table = memory_table(choose_group(Store(tmp_path / "runs").runs()))
    assert rows(table.render("markdown"))[0][-2] == "1.0"
    assert "It is unknown" not in table.notes
    assert "mean over seeds" not in table.notes


def test_table_2_has_no_energy_where_no_gpu_was_used(store: Store) -> None:
    table = memory_table(choose_group(store.runs()))
    assert "Energy" not in table.render("markdown") + table.render("latex")
    assert "energy" not in table.render("csv")


def test_names_full_of_markup_stay_text() -> None:
    name = r"&%$#_{}~^\ | <b> [red] *x* `y` 🎉"
    markdown, latex = escape_markdown(name), escape_latex(name)
    assert re.sub(r"\\([\\`*_{}\[\]<>#|~&$])", r"\1", markdown) == name
    assert latex.startswith(r"\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} \textbar{} ")


@given(st.text())
def test_no_text_breaks_out_of_its_cell(text: str) -> None:
    markdown, latex = escape_markdown(text), escape_latex(text)
    assert "\n" not in markdown + latex
    unescaped = re.sub(r"\\.", "", markdown)
    assert not set(unescaped) & set("|<>*`$")
    assert latex.isascii()
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")
    plain = re.sub(r"\$(\\[a-z]+|\^\\d?dagger|\^\d|-)\$|\\([a-zA-Z]+|[^a-zA-Z])", "", latex)
    assert not set(plain.replace("~", "")) & set("&%$#_^\\")
    assert "--" not in text or "-{}-" in latex


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'`\"|<>^~")))
def test_another_reader_of_latex_reads_the_same_text(text: str) -> None:
    read = LatexNodes2Text(strict_latex_spaces=True).latex_to_text(escape_latex(text))
    assert read == text


def test_characters_that_tex_cannot_print_are_named() -> None:
    assert escape_latex("λ = 0.5, café, 🚀, ą") == (
        r"\ensuremath{\lambda} = 0.5, caf\'e, [rocket], [latin small letter a with ogonek]"
    )


def test_nothing_to_export_is_an_error_with_the_reason(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    with pytest.raises(ExportError, match="the store has no runs"):
        choose_group(store.runs())
    tiny.queue_tiny(tmp_path)
    with pytest.raises(ExportError, match="the run has not completed an epoch"):
        choose_group(store.runs())


@pytest.mark.slow
def test_the_same_data_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in export(store, tmp_path / "a", ExportOptions(against="published"))}
    second = {
        path.name: path.read_bytes()
        for path in export(Store(store.root), tmp_path / "b", ExportOptions(against="published"))
    }
    assert first == second
    assert len(first) == 24
    assert all(str(tmp_path).encode() not in data for name, data in first.items() if not name.startswith("report."))


def test_huge_perplexities_are_in_scientific_notation(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(300.0, 400.0)])
    assert rows(results_table(choose_group(Store(tmp_path / "runs").runs())).render("markdown"))[0][3:5] == [
        "**1.942e+130**",
        "**5.221e+173**",
    ]


FORMULAS = [
    "=1+1",
    "+1",
    "-1 layer",
    "@SUM(A1)",
    "'=1+1",
    "''-x",
    "=cmd|' /C calc'!A0",
    "\t=1",
    "\r=1",
    " =1",
    "' =1",
    "＝1",
]
OTHERS = ["LSTM", "'quoted'", "a=b", "naïve", "", "1,5", 'say "x"', "two\nlines", "–"]


@given(st.lists(st.sampled_from(FORMULAS + OTHERS) | st.text(), min_size=1))
@example(["\x00"])
def test_no_cell_of_a_csv_is_a_formula_and_the_text_can_be_recovered(texts: list[str]) -> None:
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object), "number": [-1.5] * len(texts)})
    read = list(csv.DictReader(io.StringIO(frame_to_csv(frame), newline="")))
    assert {row["number"] for row in read} == {"-1.5"}
    assert frame["text"].tolist() == texts
    for row, text in zip(read, texts, strict=True):
        cell = row["text"]
        assert not re.match(r"\s*[=+\-@＝＋－＠]", cell)
        original = re.sub(r"^'(?=['\s]*[=+\-@＝＋－＠])", "", cell)
        assert original == escape_control_characters(text)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
@pytest.mark.parametrize("word", ["x" * 3_000, "W" * 20_000, "é" * 3_000, "two words " * 2_000, "a_b-" * 2_000])
def test_latex_compiles_with_names_of_any_length(tmp_path: Path, word: str) -> None:
    columns = [Column(header="Name"), Column(header="Number", numeric=True), Column(header="Note")]
    row = {"Name": Cell(word), "Number": Cell("1.5"), "Note": Cell(word, bold=True)}
    table = to_latex(Table(columns=columns, rows=[row], caption=f"Runs on {word}", label="tab:x"))
    start = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}"
    (tmp_path / "long.tex").write_text(f"{start}{table}{escape_latex(word)}\\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "long"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2_000:]
