"""Comparison with published, imported and other stores' results."""

import math
from pathlib import Path

import msgspec
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from recorded import record

from lmconsole.data import wikitext2
from lmconsole.data.windows import cut_windows
from lmconsole.errors import ExportError
from lmconsole.report.against import (
    PUBLISHED_PADDING,
    comparison_table,
    group_results,
    per_target,
    published_results,
)
from lmconsole.report.export import export, print_table
from lmconsole.report.export_options import ExportOptions
from lmconsole.report.reference import PUBLISHED_CORPUS, padded_share, padded_shares, published
from lmconsole.report.selection import Group, choose_group
from lmconsole.runs.info import read_info
from lmconsole.runs.store import Run, Store


def on_wikitext(run: Run) -> None:
    """Let run.json say that the run was trained on what the published runs were."""
    info = read_info(run.paths.info)
    tokens = {split: count for split, count in PUBLISHED_CORPUS.items() if split != "vocabulary"}
    corpus = msgspec.structs.replace(
        info.corpus, tokens=tokens, vocabulary=PUBLISHED_CORPUS["vocabulary"], sha256=wikitext2.SHA256
    )
    run.paths.info.write_bytes(msgspec.json.encode(msgspec.structs.replace(info, corpus=corpus)))


def group(root: Path) -> Group:
    return choose_group(Store(root / "runs").runs())


def test_padded_perplexities_are_converted_by_the_share_of_their_logarithm() -> None:
    assert per_target(100.0, "valid", None) == 100.0
    assert math.log(per_target(100.0, "valid", PUBLISHED_PADDING) or 0.0) == pytest.approx(
        math.log(100.0) / padded_shares()["valid"]
    )
    assert per_target(None, "train", PUBLISHED_PADDING) is None


def test_the_shares_of_the_published_results_are_those_of_batches_of_16() -> None:
    shares = {split: round(share, 6) for split, share in padded_shares().items()}
    assert shares == {"train": 0.998761, "valid": 0.997087, "test": 0.987252}


@given(tokens=st.integers(0, 5_000), window=st.integers(1, 64), batch=st.integers(1, 40))
def test_a_share_is_targets_by_positions_of_full_batches(tokens: int, window: int, batch: int) -> None:
    _, lengths = cut_windows(tokens, window)
    batches = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    positions = len(batches) * batch * window
    expected = sum(int(each.sum()) for each in batches) / positions if positions else 1.0
    assert padded_share(tokens, window, batch) == pytest.approx(expected)


def test_published_results_are_shown_as_given_and_converted(tmp_path: Path) -> None:
    on_wikitext(record(tmp_path, 1, "lstm", [(4.5, 5.0)]))
    table = comparison_table(group(tmp_path), published_results(group(tmp_path)))
    train, valid = table.data.to_dict("records")
    result = published()[1]
    assert (train["split"], valid["split"]) == ("Train", "Validation")
    assert valid["theirs_ppl_as_given"] == result.valid_ppl
    converted = result.valid_ppl_per_target
    assert valid["theirs_ppl_per_target"] == pytest.approx(converted, abs=1e-3)
    assert valid["difference_percent"] == pytest.approx(100 * (math.exp(5.0) / converted - 1), abs=1e-3)
    assert "their logarithm is 0.998761 (train) or 0.997087 (validation) times" in table.notes


def test_results_on_other_text_are_shown_but_not_compared(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(4.5, 5.0)])
    table = comparison_table(group(tmp_path), published_results(group(tmp_path)))
    assert table.data["difference_percent"].isna().all()
    assert "no difference is given" in table.notes
    assert table.data["theirs_ppl_as_given"].notna().all()


def test_a_truncated_text_is_named(tmp_path: Path) -> None:
    whole, part = record(tmp_path / "a", 1, "lstm", [(4.5, 5.0)]), record(tmp_path / "b", 1, "lstm", [(4.5, 5.0)])
    for run, max_tokens in ((whole, None), (part, 20_000)):
        on_wikitext(run)
        info = read_info(run.paths.info)
        corpus = msgspec.structs.replace(info.corpus, max_tokens=max_tokens)
        run.paths.info.write_bytes(msgspec.json.encode(msgspec.structs.replace(info, corpus=corpus)))
    own, other = group(tmp_path / "a"), group(tmp_path / "b")
    parts = "The two used different parts of one text: all training tokens and the first 20,000 training tokens."
    assert parts in comparison_table(own, group_results(own, other, "Other store")).notes
    notes = comparison_table(other, published_results(other)).notes
    assert "the others for the first 20,000 training tokens of corpus" in notes
    assert "no difference is given" in notes


def test_another_store_is_compared_experiment_by_experiment(tmp_path: Path) -> None:
    record(tmp_path / "a", 1, "lstm", [(4.5, 5.0)])
    record(tmp_path / "a", 5, "gpt1", [(4.5, 4.0)])
    for seed, loss in ((1, 5.0), (2, 5.2)):
        record(tmp_path / "b", 1, "lstm", [(4.5, loss)], seed=seed)
    text = print_table(Store(tmp_path / "a/runs"), ExportOptions(against=str(tmp_path / "b/runs"), file_format="csv"))
    rows = [line.split(",") for line in text.splitlines()[1:]]
    mean = (math.exp(5.0) + math.exp(5.2)) / 2
    found = {(row[0], row[3]): row[5] for row in rows}
    assert float(found[("LSTM", "Validation")]) == pytest.approx(mean, abs=1e-3)
    assert found[("GPT-1", "Validation")] == ""
    assert float(rows[-1][7]) == pytest.approx(100 * (math.exp(5.0) / mean - 1), abs=1e-3)


def test_unfinished_runs_are_marked_on_both_sides(tmp_path: Path) -> None:
    record(tmp_path / "a", 1, "lstm", [(4.5, 5.0)], finish=False)
    record(tmp_path / "a", 5, "gpt1", [(4.5, 4.0)])
    record(tmp_path / "b", 5, "gpt1", [(4.5, 4.0)], finish=False)
    own = group(tmp_path / "a")
    table = comparison_table(own, group_results(own, group(tmp_path / "b"), "Other store"))
    found = [(row["Ours"].text[-1], row["Other store"].text[-1]) for row in table.rows]
    assert found == [("7", "†"), ("8", "†"), ("†", "–"), ("†", "–")]
    assert "†: unfinished or diverged." in table.notes


def test_missing_results_to_compare_with_are_an_error(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(4.5, 5.0)])
    store = Store(tmp_path / "runs")
    with pytest.raises(ExportError, match="no such folder"):
        print_table(store, ExportOptions(against=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"--against .*empty: nothing to export: the store has no runs"):
        print_table(store, ExportOptions(against=str(tmp_path / "empty")))
    with pytest.raises(ExportError, match="no imported run"):
        export(store, tmp_path / "out", ExportOptions(against="imported"))
    assert not (tmp_path / "out").exists()


def test_the_command_compares(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(4.5, 5.0)])
    done = tiny.lmconsole("export", "-o", "-", "--against", "published", cwd=tmp_path, check=0)
    assert done.stdout.startswith("**Table 3.**")
