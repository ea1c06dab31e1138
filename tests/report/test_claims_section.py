"""The section of the report on registered claims, its table and its figure, and the settings that differ."""

from pathlib import Path
from typing import Any

import factories
import pytest
import tiny
from claimed import Box, claim
from factories import append_events

from lmconsole.plan.claims import Claim
from lmconsole.report.blocks import Block, BulletList, FigureRow, Heading, InlineTable, NumberedTable, Paragraph
from lmconsole.report.claims import ReportedClaims, claim_sentences, claims_section, reported_claims
from lmconsole.report.draw import draw_figure, in_one_column
from lmconsole.report.draw_style import SINGLE_IN
from lmconsole.report.provenance import provenance
from lmconsole.report.selection import Group, choose_group
from lmconsole.report.table import Table
from lmconsole.runs.paths import CLAIMS
from lmconsole.runs.store import Store


def group(box: Box) -> Group:
    return choose_group(Store(box.store.root).runs())


def reported(box: Box) -> ReportedClaims:
    return reported_claims(Store(box.store.root), group(box))


def paragraphs(blocks: list[Block]) -> dict[str, str]:
    return {block.lead: block.text for block in blocks if isinstance(block, Paragraph)}


def table(blocks: list[Block]) -> Table:
    (found,) = (block.table for block in blocks if isinstance(block, NumberedTable))
    return found


def caption(blocks: list[Block]) -> str:
    (row,) = (block for block in blocks if isinstance(block, FigureRow))
    return row.figures[0].caption


def remove(box: Box) -> None:
    (box.store.root / CLAIMS / f"{box.registration.short_hash}.json").unlink()


def test_a_store_without_claims_has_no_section(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    append_events(run.paths, factories.started(), *factories.epoch_events(1, 5.0), factories.finished())
    store = Store(tmp_path / "runs")
    found = reported_claims(store, choose_group(store.runs()))
    assert (claims_section(found), claim_sentences(found)) == ([], [])


def test_one_registration_names_its_margin_and_needs_neither_its_number_nor_an_endpoint(tmp_path: Path) -> None:
    box = Box(tmp_path, claim(name="Lower", delta=0.0125))
    box.finish_all()
    blocks = claims_section(reported(box))
    assert "Registrations." not in paragraphs(blocks)
    assert paragraphs(blocks)["Registration 1."].startswith("claims.toml: 1 comparison, 10 runs, registered 20")
    assert paragraphs(blocks)["Registration 1."].endswith("All planned runs have a result.")
    assert table(blocks).headers == ["First − second", "n", "Difference", "95% interval", "p (Holm)", "Verdict"]
    assert "95% Welch interval. Shaded: up to ±δ, fixed beforehand" in caption(blocks)
    assert caption(blocks).endswith("δ = 0.0125 nats per token.")
    assert "{p{3.8cm}rrlrl}" in table(blocks).render("latex")
    scope = blocks[blocks.index(Paragraph("", lead="Scope.")) + 1]
    assert isinstance(scope, BulletList)
    assert any("same seeds" in item for item in scope.items)
    assert any("longer training" in item for item in scope.items)
    assert "Missing." not in paragraphs(blocks)


def test_a_report_counts_all_registrations_of_the_store_and_lists_those_it_does_not_show(tmp_path: Path) -> None:
    def on(first: int, seeds: int = 3, **more: Any) -> Claim:
        return claim(seeds=dict.fromkeys((1, 2), tuple(range(first, first + seeds))), **more)

    shown = Box(tmp_path, on(1, delta=0.5))
    shown.finish_all()
    removed = Box(tmp_path, on(11))
    Box(tmp_path, on(21, 6, paired=True, delta=0.25), on(31, 5, endpoint="steps", targets=(150.5,))).finish_all()
    Box(tmp_path, on(41), epochs=7)
    last = Box(tmp_path, on(51), epochs=7)
    last.queue()
    remove(removed)
    remove(last)
    found = reported(shown)
    assert ([each.number for each in found.shown], [each.number for each in found.others]) == ([1, 3], [4])
    assert found.missing == [2, 5]
    blocks = claims_section(found)
    text = paragraphs(blocks)["Registrations."]
    gone = "Registrations 2, 5 are missing: their files were removed from the store."
    assert text.startswith("This store has 3 registrations with 4 comparisons altogether. Each is corrected for")
    assert text.endswith(gone)
    other = "Registration 4, claims.toml: 1 comparison, 6 runs. 0 of 6 planned runs have a result."
    assert BulletList([f"{other} Verdicts: 1 unfinished."]) in blocks
    assert table(blocks).headers[:3] == ["Reg.", "First − second", "Endpoint"]
    assert [row["Endpoint"].text for row in table(blocks).rows] == ["test loss", "test loss", "steps to 150.5"]
    assert list(table(blocks).data["registration"]) == [1, 3, 3]
    assert "95% interval (Welch; of pairs Student's t)" in caption(blocks)
    assert caption(blocks).endswith("δ in nats per token.")
    assert claim_sentences(found)[0].endswith(gone)


def test_all_registrations_removed_leave_a_section_that_says_so(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    box.finish_all()
    remove(box)
    found = reported(box)
    assert not found.covers(group(box))
    gone = "Registration 1 is missing: its file was removed from the store."
    assert claims_section(found) == [Heading(1, "Claims"), Paragraph(gone, lead="Registrations.")]
    assert claim_sentences(found) == [f"No claim in this store is about these runs, so all is exploratory. {gone}"]


def test_missing_runs_are_listed_with_reasons(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    runs = box.queue()
    box.finish(runs[1, 1], 4.0)
    blocks = claims_section(reported(box))
    assert paragraphs(blocks)["Registration 1."].endswith("1 of 10 planned runs have a result.")
    missing = blocks[blocks.index(Paragraph("", lead="Missing.")) + 1]
    assert isinstance(missing, BulletList)
    assert missing.items[0] == f"experiment 1, seed 2: unfinished ({runs[1, 2]})"
    assert len(missing.items) == 9


@pytest.mark.parametrize("delta", [0.02, None])
def test_the_figure_names_the_margin_and_has_a_narrow_form(tmp_path: Path, delta: float | None) -> None:
    box = Box(tmp_path, claim(delta=delta))
    box.finish_all()
    (row,) = (block for block in claims_section(reported(box)) if isinstance(block, FigureRow))
    content = row.figures[0].content
    assert content is not None
    wide, narrow = draw_figure(content), in_one_column(content)
    assert narrow is not None
    assert in_one_column(narrow) is None
    small = draw_figure(narrow)
    assert small.get_figwidth() == SINGLE_IN
    assert small.get_figheight() == pytest.approx(2 * wide.get_figheight())
    for figure in (wide, small):
        written = [text.get_text() for axes in figure.axes for text in axes.texts]
        assert ("δ = 0.02" in written) == (delta is not None)
    labels = [label.get_text() for label in small.axes[1].get_yticklabels()]
    assert labels == ["LSTM 1L Adam (1)\n− LSTM 1L SGD (2)"]


def test_settings_that_differ_between_claimed_experiments_are_in_a_table(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    box.finish_all()
    blocks = provenance(group(box))
    found = blocks[blocks.index(Paragraph("", lead="Settings that differ.")) + 1]
    assert isinstance(found, InlineTable)
    rows = [tuple(row[header].text for header in ("Setting", "Value", "Experiments")) for row in found.table.rows]
    assert rows[:2] == [("weight_decay", "0.0", "1"), ("weight_decay", "0.0005", "2")]
    assert rows[2:] == [("beta1", "0.9", "1"), ("beta2", "0.999", "1"), ("adam_eps", "1e-08", "1")]
