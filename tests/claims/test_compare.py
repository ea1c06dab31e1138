"""`lmconsole compare`: reading CSV files of others, verdicts, exit codes, messages."""

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmconsole.claims.table import read_samples
from lmconsole.commands.compare import compare_table
from lmconsole.errors import ExitCode, LmconsoleError

HEADER = "optimizer,model,seed,test_nll"
ADAM = [f"adam,lstm,{seed},{1 + seed / 10}" for seed in range(5)]
SGD = [f"sgd,lstm,{seed},{3 + seed / 10}" for seed in range(5)]


def write(folder: Path, rows: Sequence[str], header: str = HEADER, encoding: str = "utf-8") -> Path:
    path = folder / "runs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


def result(capsys: pytest.CaptureFixture[str], *arguments: object, **options: object) -> tuple[int, dict]:  # type: ignore[type-arg]
    code = compare_table(*arguments, json=True, **options)  # type: ignore[arg-type]
    return code, json.loads(capsys.readouterr().out)


def test_a_clear_difference_is_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = result(capsys, write(tmp_path, [*ADAM, *SGD]), "optimizer", "test_nll")
    (comparison,) = found["comparisons"]
    assert (code, comparison["verdict"], comparison["difference"]) == (0, "lower", pytest.approx(-2.0))
    assert found["rows"] == 10
    assert found["notes"] == []


def test_the_exit_code_is_3_without_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = [row.replace("adam", "other") for row in ADAM]
    path = write(tmp_path, [*ADAM, *SGD, *same])
    code, found = result(capsys, path, "optimizer", "test_nll")
    assert code == int(ExitCode.INCONCLUSIVE) == 3
    verdicts = {(each["first"]["name"], each["second"]["name"]): each["verdict"] for each in found["comparisons"]}
    assert verdicts == {("adam", "sgd"): "lower", ("adam", "other"): "inconclusive", ("sgd", "other"): "higher"}
    code, found = result(capsys, path, "optimizer", "test_nll", baseline="adam", delta=0.5)
    assert [each["verdict"] for each in found["comparisons"]] == ["higher", "equivalent"]
    assert code == ExitCode.OK
    code, _ = result(capsys, path, "optimizer", "test_nll", baseline="adam", delta=0.5, planned=6)
    assert code == ExitCode.INCONCLUSIVE


@pytest.mark.parametrize("text", ["inf", "NaN", "-inf", "Infinity", "diverged", "1e999"])
def test_diverged_runs_count_as_the_worst(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, [*ADAM, *SGD[:4], f"sgd,lstm,4,{text}"])
    code, found = result(capsys, path, "optimizer", "test_nll")
    (comparison,) = found["comparisons"]
    assert (code, comparison["verdict"], comparison["test"]) == (0, "lower", "rank permutation")
    assert comparison["second"]["mean"] is comparison["difference"] is None
    _, found = result(capsys, path, "optimizer", "test_nll", higher_is_better=True)
    assert found["comparisons"][0]["verdict"] == "inconclusive"


def test_perplexities_are_compared_as_logarithms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, ["a,1,2.0", "a,2,8.0", "b,1,1.0", "b,2,1.0"], "way,seed,ppl")
    _, found = result(capsys, path, "way", "ppl", log=True)
    (comparison,) = found["comparisons"]
    assert comparison["difference"] == pytest.approx(math.log(4))
    assert comparison["ratio"] == pytest.approx(4.0)
    assert comparison["verdict"] == "description only"


def test_numbers_at_the_ends_of_their_range_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a warning, which is an error in tests; a ratio that is too large for a number is null."""
    ends = ["5e-324", "1e-300", "0.0", "-0.0", "1", "1e16", "1e150", "-1e150", "nan"]
    for one, other in itertools.product(ends, repeat=2):
        rows = [f"a,{one}", f"a,{other}", f"a,{one}"] * 2 + [f"b,{other}", f"b,{one}", f"b,{other}"] * 2
        path = write(tmp_path, rows, "way,loss")
        assert result(capsys, path, "way", "loss", delta=1e300)[1]["rows"] == 12
    path = write(
        tmp_path,
        [f"{way},{ppl}" for way, ppl in zip("aaabbb", ["1e308", "1e300", "1e305"] + ["1e-300"] * 3, strict=True)],
        "way,ppl",
    )
    (comparison,) = result(capsys, path, "way", "ppl", log=True)[1]["comparisons"]
    assert comparison["difference"] > 1e3
    assert comparison["ratio"] is comparison["ratio_interval"]["high"] is None


def test_pairs_are_matched_by_their_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"a,{seed},{seed}" for seed in range(8)] + [
        f"b,{seed},{seed + 0.5 + seed % 2 / 10}" for seed in range(7, -1, -1)
    ]
    path = write(tmp_path, rows, "way,seed,nll")
    code, found = result(capsys, path, "way", "nll", pair_by="seed")
    assert (code, found["comparisons"][0]["test"], found["comparisons"][0]["verdict"]) == (0, "paired t", "lower")
    code, found = result(capsys, path, "way", "nll")
    assert (code, found["comparisons"][0]["verdict"]) == (3, "inconclusive")
    write(tmp_path, rows[:-1], "way,seed,nll")
    with pytest.raises(LmconsoleError, match="seed 0 occurs in only one of a and b"):
        compare_table(path, "way", "nll", pair_by="seed")


def test_what_a_reader_should_know_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ADAM, *SGD, "sgd,gpt1,7,3.2"]
    _, found = result(capsys, write(tmp_path, rows), "optimizer", "test_nll")
    assert ["model" in note for note in found["notes"]] == [True, False]
    assert "different numbers of seeds" in found["notes"][1]
    _, found = result(capsys, write(tmp_path, rows), "optimizer", "test_nll", where=["model=lstm"])
    assert (found["notes"], found["where"], found["rows"]) == ([], {"model": "lstm"}, 10)


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_is_for_people(
    columns: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    rows = [*ADAM, *SGD[:4], "sgd,lstm,4,inf", *(row.replace("sgd", "\x1b[31mred") for row in SGD)]
    compare_table(write(tmp_path, rows), "optimizer", "test_nll", baseline="adam")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "higher, by ranks" in " ".join(shown.split())
    assert "Runs diverged: sgd 1 of 5." in shown
    assert re.search(r"5, 5 +\+2\.00  \[\+1\.77, \+2\.23\] +\S", shown)
    assert "…" not in shown
    assert re.search(r"^adam +5 +1\.2 +0\.16 +0 *$", shown, re.MULTILINE)
    assert re.search(r"^sgd +5 +– +– +1  \[1%, 72%\] *$", shown, re.MULTILINE)  # beta quantiles: 0.5 % and 71.6 %
    assert "exploratory" in shown


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_files_of_other_programs_are_read(delimiter: str, encoding: str, tmp_path: Path) -> None:
    rows = [row.replace(",", delimiter) for row in [*ADAM, *SGD, ""]]
    found = read_samples(write(tmp_path, rows, HEADER.replace(",", delimiter), encoding), "optimizer", "test_nll")
    assert {group: len(values) for group, values in found.values.items()} == {"adam": 5, "sgd": 5}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "runs.csv: no rows"),
        (ADAM, {}, "optimizer is 'adam' in every row"),
        ([*ADAM, *SGD], {"by": "optimiser"}, "no column 'optimiser'\nThe columns are optimizer, model, seed, test_nll"),
        ([*ADAM, *SGD], {"baseline": "x"}, "no row has optimizer 'x'\nIt is one of adam, sgd"),
        ([*ADAM, *SGD], {"where": ["model=x"]}, "no row has model=x\nIn this file, model is lstm"),
        ([*ADAM, *SGD], {"where": ["model"]}, "--where model: expected COLUMN=VALUE"),
        ([*ADAM, *SGD], {"delta": -1.0}, "--delta must be positive"),
        ([*ADAM, *SGD], {"delta": math.nan}, "--delta must be positive"),
        ([*ADAM, *SGD, SGD[1]], {}, "lines 8 and 12: optimizer 'sgd' has seed '1' twice"),
        ([*ADAM, "sgd,lstm,1,"], {}, "line 7: test_nll is '', which is no result"),
        ([*ADAM, "sgd,lstm,1,1;2"], {}, "line 7: test_nll is '1;2', not a number"),
        ([*ADAM, "sgd,lstm,1,-1"], {"log": True}, "line 7: test_nll is '-1', which has no logarithm"),
        ([*ADAM, "sgd,lstm,1,-1e151"], {}, "line 7: test_nll is '-1e151', too large to compare"),
        ([*ADAM, "sgd,lstm,1"], {}, "line 7: 3 fields, but the header has 4"),
        ([*ADAM, 'sgd,"lstm,1,2'], {}, "line 7: unexpected end of data"),
        ([f"o{number},lstm,1,2" for number in range(30)], {}, "optimizer has 30 values, which make 435 pairs"),
    ],
)
def test_one_message_says_what_is_wrong(
    rows: list[str], options: dict[str, object], message: str, tmp_path: Path
) -> None:
    arguments = {"by": "optimizer", "metric": "test_nll"} | options
    with pytest.raises(LmconsoleError) as raised:
        compare_table(write(tmp_path, rows), **arguments)  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(LmconsoleError, match="No such file"):
        read_samples(path, "a", "b")
    with pytest.raises(LmconsoleError, match="found a folder"):
        read_samples(tmp_path, "a", "b")
    path.write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(LmconsoleError, match="not UTF-8"):
        read_samples(path, "a", "b")
    path.write_bytes(b"")
    with pytest.raises(LmconsoleError, match="no column 'a'"):
        read_samples(path, "a", "b")
    path.write_bytes(b"a,b,b\n1,2,3\n")
    with pytest.raises(LmconsoleError, match="2 columns are called 'b'"):
        read_samples(path, "a", "b")
