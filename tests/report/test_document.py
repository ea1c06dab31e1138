"""The report as a whole: its two templates, the first page, and the PDF that LaTeX makes of it."""

import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
from factories import append_events
from recorded import record

import lmconsole
from lmconsole.errors import LmconsoleError
from lmconsole.report.blocks import Block, BulletList, FigureRow, Heading, NumberedTable, Paragraph
from lmconsole.report.document import build_report, choose_template
from lmconsole.report.export import export
from lmconsole.report.export_files import report_tables
from lmconsole.report.export_options import ExportOptions
from lmconsole.report.figures import figure_specs
from lmconsole.report.result_tables import results_table
from lmconsole.report.selection import Group, choose_group
from lmconsole.runs.events import Failed
from lmconsole.runs.store import Store

KINDS = [
    *(("lstm", 1, optimizer) for optimizer in ("adam", "adamw", "sgd", "momentum")),
    *(("gpt1", 1, optimizer) for optimizer in ("adam", "adamw", "sgd", "momentum")),
    *(("lstm", 2, "adamw"), ("lstm", 4, "adamw"), ("gpt1", 2, "adamw"), ("gpt1", 4, "adamw")),
]


FIVE_SENTENCES = """\
3 experiments with GPT-1 and LSTM language models (4 runs, seeds 1, 2) were trained for 2 epochs on 794 tokens of \
corpus “data” in fp32 precision on CPU.
Lowest validation perplexity of each architecture: GPT-1 1L Adam (5)†, 90.017 (test 90.017). LSTM 1L Adam (1), \
63.513 ± 4.487 over 2 seeds (test 63.513 ± 4.487 over 2 seeds).
Time and host memory (mean time, most memory of all seeds): 2.0 s of training and 123 MiB for GPT-1 1L Adam (5)†; \
1:00 min of training and 123 MiB for LSTM 1L Adam (1).
No claim was registered before these runs, so every comparison here is exploratory, and one seed shows no uncertainty.
2 of 4 runs complete; diverged: experiment 5; lost: experiment 3."""


def twelve(root: Path, *, left_out: tuple[int, ...] = (), **more: Any) -> None:
    for number, (model, layers, optimizer) in enumerate(KINDS, 1):
        if number not in left_out:
            loss = 4.0 + 0.1 * number
            record(root, number, model, [(loss + 0.5, loss + 0.3), (loss - 0.3, loss)], optimizer=optimizer,
                   layers=layers, **more)  # fmt: skip


def group(root: Path) -> Group:
    return choose_group(Store(root / "runs").runs())


def report(root: Path, **more: Any) -> list[Block]:
    found = group(root)
    template = more.pop("template", None) or choose_template(found)
    return build_report(found, report_tables(found, template), figure_specs(found), template=template, **more)


def headings(blocks: list[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, Heading)]


def test_the_twelve_have_the_template_of_the_course_even_if_one_has_failed(tmp_path: Path) -> None:
    twelve(tmp_path, left_out=(8,))
    assert choose_template(group(tmp_path)) == "general"
    failed = tiny.queue_tiny(tmp_path, "gpt1", number=8, optimizer="momentum")
    append_events(failed.paths, Failed(error="out-of-memory", message="no", hint="less"))
    assert choose_template(group(tmp_path)) == "course"
    record(tmp_path, 13, "lstm", [(4.0, 4.0)])
    assert choose_template(group(tmp_path)) == "general", "another experiment has joined them"


def test_the_first_page_answers_in_five_sentences_a_table_and_a_figure(tmp_path: Path) -> None:
    for seed in (1, 2):
        record(tmp_path, 1, "lstm", [(5.0, 5.0), (4.0, 4.0 + seed / 10)], seed=seed, seconds=30.0)
    record(tmp_path, 3, "lstm", [(5.0, 4.0)], seed=1, optimizer="sgd", finish=False)
    record(tmp_path, 5, "gpt1", [(5.0, 4.5), (float("nan"), float("nan"))], seed=1)
    heading, sentences, table, figure, *details = report(tmp_path)
    assert heading == Heading(1, "Summary")
    assert isinstance(sentences, BulletList)
    assert "\n".join(sentences.items) == FIVE_SENTENCES
    assert isinstance(table, NumberedTable)
    assert table.name == "table-1-results"
    assert isinstance(figure, FigureRow)
    assert figure.figures[0].name == "overview"
    assert details[0] == Heading(1, "Notation and setting")


def test_the_first_page_names_experiments_that_have_hardly_learned(tmp_path: Path) -> None:
    frequencies = {"train": 70.0, "validation": 80.25, "test": 81.5}
    for root, unigram_ppl in ((tmp_path / "known", frequencies), (tmp_path / "unknown", None)):
        known = root.name == "known"
        for seed, loss in ((1, 4.3), (2, 4.5)):
            record(root, 1, "lstm", [(5.0, 5.0), (4.0, 4.0)], seed=seed)  # of an earlier version
            record(root, 3, "lstm", [(5.7, loss if known else 5.7)], seed=seed, optimizer="sgd",
                   unigram_ppl=unigram_ppl)  # fmt: skip
        _, sentences, table, *_ = report(root)
        assert isinstance(sentences, BulletList)
        assert isinstance(table, NumberedTable)
        mean = (math.exp(4.3) + math.exp(4.5)) / 2
        not_below = f"Not below the validation perplexity of token frequencies (80.250): LSTM 1L SGD (3), {mean:.3f}."
        uniform = "Close to a uniform guess over the vocabulary, with hardly anything learned: LSTM 1L SGD (3)."
        assert sentences.items[1].endswith(f" {not_below if known else uniform}")
        notes = results_table(group(root)).notes
        frequent = "Token frequencies alone have a validation PPL of 80.250 (test 81.500); that of experiment 3 is not"
        assert (frequent in notes) == known
        assert "Token frequencies" not in notes or known


def test_nothing_is_named_if_all_experiments_are_below_token_frequencies(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(4.0, 4.0)], unigram_ppl={"validation": 54.7})
    record(tmp_path, 3, "lstm", [(float("nan"), float("nan"))], optimizer="sgd")
    _, sentences, *_ = report(tmp_path)
    assert isinstance(sentences, BulletList)
    assert "Token frequencies alone have a validation PPL of 54.700." in results_table(group(tmp_path)).notes
    assert "token frequencies" not in sentences.items[1]


def test_claims_follow_the_first_page_in_both_templates(tmp_path: Path) -> None:
    twelve(tmp_path)
    claims = [Heading(1, "Claims"), Paragraph("A beats B.")]
    for template in ("course", "general"):
        blocks = report(tmp_path, template=template, claims=claims, claim_sentences=["A beats B."], exploratory=False)
        assert headings(blocks)[:3] == ["Summary", "Claims", "Notation and setting"]
        assert isinstance(blocks[1], BulletList)
        assert blocks[1].items[3] == "A beats B."
        assert "xploratory" not in str([block for block in blocks if not isinstance(block, FigureRow)])


def test_figures_appear_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    twelve(tmp_path)
    blocks = report(tmp_path)
    shown = [figure.number for block in blocks if isinstance(block, FigureRow) for figure in block.figures]
    assert shown == list(range(11))
    assert Paragraph(f"Figure 11 is not drawn: {figure_specs(group(tmp_path))[11].omitted}.") in blocks


def test_the_general_template_answers_what_reviewers_ask_and_admits_what_is_not_known(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5)], seed=1, seconds=30.0)
    record(tmp_path, 1, "lstm", [(5.0, 4.5)], seed=1, seconds=40.0, fresh=True)
    record(tmp_path, 1, "lstm", [(5.0, 4.5)], seed=2, seconds=20.0)
    blocks = report(tmp_path)
    expected = ["Summary", "Notation and setting", "Results", "Method", "Appendix: reproducibility", "Provenance"]
    assert headings(blocks) == expected
    appendix = blocks[blocks.index(Heading(1, expected[4])) : blocks.index(Heading(1, expected[5]))]
    answers = {block.lead: block.text for block in appendix if isinstance(block, Paragraph)}
    assert answers["Claims."].startswith("No claim that was registered before the runs covers all of them")
    assert answers["Setting."].endswith("Trained parameters: 1,000.")
    assert (
        "2 runs of 1 experiment (2 runs each of experiment 1). 1 comparable run of this store is left out."
        in answers["Runs."]
    )
    assert "Seeds 1, 2 vary initial weights" in answers["Uncertainty."]
    assert "20 s to 40 s; in total 1:30 min, runs left out included. Energy of the GPU: not" in answers["Compute."]
    assert answers["Data."].endswith("License, consent and contents: not known.")
    assert answers["Impact, safeguards, human subjects."] == "Not known."


def test_what_captions_share_is_stated_once(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5)], jobs=2)
    export(Store(tmp_path / "runs"), tmp_path / "out", ExportOptions(figure_format="png"))
    markdown, latex = ((tmp_path / "out" / f"report.{suffix}").read_text() for suffix in ("md", "tex"))
    captions = [(tmp_path / "out/figures" / f"captions.{suffix}").read_text() for suffix in ("md", "tex")]
    for text in (markdown, latex, *captions):
        assert text.count("learned embeddings") == text.count("Up to 2 runs shared the device") == 1
        assert text.count("without setup and evaluation") == 1
    assert captions[1].count("\\newcommand{\\figuresSetting}") == 1
    assert "learned embeddings" in (tmp_path / "out/table-1-results.tex").read_text(), "a table has it too"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_pdf_has_no_overfull_box_and_a_first_page_of_its_own(tmp_path: Path, seeds: int) -> None:
    for seed in range(1, seeds + 1):
        twelve(tmp_path, seed=seed, device="cuda:0", samples=6, process_mib=700.0, energy_j=9_000.0)
    record(tmp_path, 13, "lstm", [(5.0, 4.5)], name="a name that is longer than a column is wide", finish=False)
    for template in ("course", "general"):
        out = tmp_path / template
        export(
            Store(tmp_path / "runs"), out, ExportOptions(file_format="latex", against="published", template=template)
        )
        for _ in range(2):
            command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report"]
            done = subprocess.run(command, cwd=out, capture_output=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout[-2_000:]
        log = (out / "report.log").read_text(errors="replace")
        overfull = [float(width) for width in re.findall(r"Overfull .hbox \(([\d.]+)pt too wide\)", log)]
        assert max(overfull, default=0.0) <= 2.0
        assert "LaTeX Warning" not in log
        assert re.search(r"\[1.*?figures/overview\.png", log, re.DOTALL), "the overview is on page 1"


def test_the_command_and_the_library_choose_the_template(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5)])
    done = tiny.lmconsole("export", "--format", "csv", "--template", "course", cwd=tmp_path, check=2)
    assert "--template has no effect on --format csv" in done.stderr
    template: Literal["course", "general"] | None
    for template, section in (("course", "## Findings"), ("general", "## Method"), (None, "## Method")):
        lmconsole.export(tmp_path / "runs", tmp_path / "out", format="markdown", template=template)
        assert section in (tmp_path / "out/report.md").read_text()
    with pytest.raises(LmconsoleError, match="unknown template 'paper'; known: course, general"):
        lmconsole.export(tmp_path / "runs", tmp_path / "out", template="paper")  # type: ignore[arg-type]
