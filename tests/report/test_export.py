"""Files of an export, their replacement as a whole, and errors."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import factories
import msgspec
import pandas as pd
import pytest
import tiny
from disk import contents, fail_in_call
from factories import append_events
from recorded import record

from lmconsole.engine.probe import ProbeAnswer
from lmconsole.engine.register import register
from lmconsole.errors import ExportError
from lmconsole.plan.claims import Claim
from lmconsole.plan.experiment import hashed_settings
from lmconsole.report.export import POLL_S, export, export_automatically, keep_current, print_table
from lmconsole.report.export_options import ExportOptions, FileFormat
from lmconsole.report.findings import findings
from lmconsole.report.manifest import read_manifest
from lmconsole.report.provenance import reproduce
from lmconsole.report.selection import choose_group
from lmconsole.runs.comparable import EXPERIMENT_SETTINGS, conditions
from lmconsole.runs.events import Failed, Stopped
from lmconsole.runs.paths import CLAIMS
from lmconsole.runs.store import Store

NAN = float("nan")
DRAWN = (1, 2, 5, 6, 9, 10)
"""Numbers of figures of the store; no run has several layers, and no target was fixed beforehand."""
FIGURES = {"figures/overview.png", *(f"figures/figure-{number}.png" for number in DRAWN)}
FIGURES_OF_ONE = {"figures/overview.png", *(f"figures/figure-{number}.png" for number in (1, 5, 9, 10))}
"""Figures of an LSTM with one layer."""
MARKDOWN = {"report.md", "figures/captions.md", "table-1-results.md", "table-2-memory.md"}
LATEX = {"report.tex", "numbers.tex", "figures/captions.tex", "table-1-results.tex", "table-2-memory.tex"}
CSV = {"table-1-results.csv", "table-2-memory.csv", "data/runs.csv", "data/epochs.csv", "data/telemetry.csv"}

OPTIMIZERS = {1: "adam", 2: "sgd"}
"""Optimizers of the experiments of a claim."""

NAME = r"&%$#_{}~^\ | <b> `x` -- 🚀 λ é"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    record(tmp_path, 1, "lstm", [(5.0, 4.5), (4.0, 4.75)], samples=2)
    record(tmp_path, 5, "gpt1", [(6.0, 6.0), (5.5, 5.25)], samples=2)
    return Store(tmp_path / "runs")


def written(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {".group.json"}


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    ("file_format", "expected"),
    [
        ("all", MARKDOWN | LATEX | CSV | FIGURES),
        ("markdown", MARKDOWN | FIGURES),
        ("latex", LATEX | FIGURES),
        ("csv", CSV),
        ("json", {"data/runs.json", "data/epochs.json", "data/telemetry.json"}),
        ("parquet", {"data/runs.parquet", "data/epochs.parquet", "data/telemetry.parquet"}),
    ],
)
def test_each_format_writes_its_files_and_names_them(
    store: Store, tmp_path: Path, file_format: FileFormat, expected: set[str]
) -> None:
    if file_format == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "new" / "exports"
    paths = export(store, out, ExportOptions(file_format=file_format))
    assert written(out) == expected == {path.relative_to(out).as_posix() for path in paths}


def test_the_frames_are_the_same_in_every_format(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for form in ("csv", "json", "parquet"):
        export(store, tmp_path / form, ExportOptions(file_format=form))
    epochs = pd.read_csv(tmp_path / "csv/data/epochs.csv")
    assert list(epochs["valid_loss_nats"]) == [6.0, 5.25, 4.5, 4.75]
    assert list(epochs["epoch"]) == [1, 2, 1, 2]
    assert {"train_ppl", "valid_ppl", "train_s", "elapsed_train_s", "seed", "denominator"} <= set(epochs)
    parquet = pd.read_parquet(tmp_path / "parquet/data/epochs.parquet")
    records = json.loads((tmp_path / "json/data/epochs.json").read_text())
    assert list(parquet["valid_ppl"]) == [row["valid_ppl"] for row in records] == list(epochs["valid_ppl"])
    telemetry = pd.read_csv(tmp_path / "csv/data/telemetry.csv")
    assert len(telemetry) == 8
    assert set(telemetry["phase"]) == {"train"}
    runs = pd.read_csv(tmp_path / "csv/data/runs.csv")
    assert list(runs["epoch"]) == [2, 1]
    assert runs["test_ppl_final"].tolist() == [1.0, 1.0]
    assert runs["unigram_valid_ppl"].isna().all()


def test_evaluations_within_epochs_have_a_file_if_there_are_any(tmp_path: Path) -> None:
    losses, within = [(6.0, 5.5), (5.0, 4.5)], [(7.0, math.nan), (5.2, 5.0)]
    record(tmp_path, 1, "lstm", losses, seed=2)
    runs = Store(tmp_path / "runs")
    export(runs, tmp_path / "out", ExportOptions(file_format="csv"))
    assert not (tmp_path / "out/data/evaluations.csv").exists()
    record(tmp_path, 1, "lstm", losses, seed=1, within=within, evaluate_every_steps=1)
    export(runs, tmp_path / "out", ExportOptions(file_format="csv"))
    frame = pd.read_csv(tmp_path / "out/data/evaluations.csv")
    assert frame[["seed", "epoch", "step", "steps"]].to_numpy().tolist() == [
        [1, 1, 1, 3], [1, 1, 2, 3], [1, 2, 1, 3], [1, 2, 2, 3],
    ]  # fmt: skip
    assert frame["valid_loss_nats"].tolist()[2:] == [5.2, 5.0]
    assert frame["non_finite"].tolist()[1] == "valid_loss_nats=nan valid_ppl=nan"
    assert list(frame.columns[-3:]) == ["valid_s", "elapsed_train_s", "non_finite"]
    table = (tmp_path / "out/table-1-results.csv").read_text()
    assert len(table.splitlines()) == 2, "both seeds are one row"


def test_the_group_of_runs_has_the_key_that_it_had_before_evaluations(tmp_path: Path) -> None:
    """Exports of it are recognized, so the runner goes on replacing them."""
    off = record(tmp_path / "off", 1, "lstm", [(6.0, 5.5)])
    on = record(tmp_path / "on", 1, "lstm", [(6.0, 5.5)], evaluate_every_steps=1)
    keys = {choose_group(Store(tmp_path / name / "runs").runs()).key for name in ("off", "on")}
    values = {**conditions(off.info), **hashed_settings(off.info.settings)}
    shared = {key: value for key, value in values.items() if key not in {"corpus_sha256", *EXPERIMENT_SETTINGS}}
    assert keys == {hashlib.sha256(msgspec.json.encode(shared, order="deterministic")).hexdigest()}
    assert off.info.config_hash != on.info.config_hash


def test_energy_is_in_the_frames_and_empty_where_it_is_unknown(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5), (4.0, 4.75)], device="cuda:0", energy_j=9_000.5)
    record(tmp_path, 5, "gpt1", [(6.0, 6.0), (5.5, 5.25)], device="cuda:0")
    store = Store(tmp_path / "runs")
    export(store, tmp_path / "csv", ExportOptions(file_format="csv"))
    export(store, tmp_path / "json", ExportOptions(file_format="json"))
    for name, joules in (("runs", [None, 9_000.5]), ("epochs", [None, None, 4_500.25, 4_500.25])):
        rows = json.loads((tmp_path / f"json/data/{name}.json").read_text())
        assert [row["energy_j"] for row in rows] == joules
        assert [
            None if value != value else value for value in pd.read_csv(tmp_path / f"csv/data/{name}.csv").energy_j
        ] == (joules)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_store_without_energy_is_exported_like_one_with_unknown_energy(tmp_path: Path, device: str) -> None:
    """Version 0.1.0 wrote events without that field."""
    run = record(tmp_path, 1, "lstm", [(5.0, 4.5), (4.0, 4.75)], device=device, samples=5)
    export(Store(tmp_path / "runs"), tmp_path / "now", ExportOptions(file_format="csv"))
    text = run.paths.events.read_text()
    assert text.count(',"energy_j":null') == 3
    run.paths.events.write_text(text.replace(',"energy_j":null', ""))
    store = Store(tmp_path / "runs")
    (old,) = store.runs()
    assert (old.state.damaged, old.status) == (0, "finished")
    export(store, tmp_path / "before", ExportOptions(file_format="csv"))
    for path in written(tmp_path / "now"):
        assert (tmp_path / "now" / path).read_bytes() == (tmp_path / "before" / path).read_bytes()


def test_a_number_that_is_not_finite_is_named_in_every_format(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0), (NAN, float("inf"))])
    store = Store(tmp_path / "runs")
    export(store, tmp_path / "out", ExportOptions(file_format="json"))
    last = json.loads((tmp_path / "out/data/epochs.json").read_text())[-1]
    assert last["valid_ppl"] is None
    assert "valid_ppl=inf" in last["non_finite"]
    assert "train_ppl=nan" in last["non_finite"]


def test_pdf_is_written_in_addition_to_png(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "out", ExportOptions(file_format="markdown", figure_format="pdf"))
    assert {path.suffix for path in (tmp_path / "out/figures").glob("figure-1.*")} == {".png", ".pdf"}


@pytest.mark.usefixtures("quick_figures")
def test_reports_name_each_figure_table_and_question(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path, ExportOptions(template="course"))
    markdown, latex = (tmp_path / "report.md").read_text(), (tmp_path / "report.tex").read_text()
    shown = re.findall(r"\]\(figures/(?:figure-)?(\w+)\.png\)", markdown)
    assert shown == ["overview", *map(str, DRAWN)] == re.findall(r"\]\{figures/(?:figure-)?(\w+)\}", latex)
    assert "Figure 11 is not drawn: no targets were fixed before the runs" in markdown
    for each in findings(choose_group(store.runs())):
        assert f"### {each.question}\n" in markdown
        assert each.question in latex
    assert markdown.count("**Interpretation.**") == 3
    assert set(re.findall(r"\\input\{([^}]*)\}", latex)) == {"figures/captions", "table-1-results", "table-2-memory"}
    macros = set(re.findall(r"\\newcommand\{(\\\w+)\}", (tmp_path / "figures/captions.tex").read_text()))
    assert set(re.findall(r"\\caption.*?(\\figure\w+)\}", latex)) | {r"\figuresSetting"} == macros
    assert len(macros) == 8
    assert latex.count("\\begin{") == latex.count("\\end{")


def test_the_command_that_reproduces_trains_the_same_runs(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5)], seed=7, epochs=3, jobs=2)
    record(tmp_path, 5, "gpt1", [(5.0, 4.5)], seed=8, epochs=3, jobs=2)
    words = reproduce(choose_group(Store(tmp_path / "runs").runs())).split()
    assert words[:5] == ["lmconsole", "run", "1", "5", "--preset"]
    assert words[5:8] == ["tiny", "--seeds", "7,8"]
    assert words[words.index("--epochs") + 1] == "3"
    assert words[words.index("--jobs") + 1] == "2"
    assert words[words.index("--data") + 1] == str(tmp_path / "data")
    assert words[-1] == "--headless"


@pytest.mark.parametrize(
    ("jobs", "device", "expected"),
    [
        (["auto", "auto"], "cpu", []),
        ([1, 1], "cpu", ["--jobs", "1"]),
        ([1, 1], "cuda:0", []),
        ([4, 4], "cuda:0", ["--jobs", "4"]),
        ([None, None], "cpu", ["--jobs", "2"]),
        (["auto", 3], "cpu", ["--jobs", "3"]),
    ],
    ids=["auto", "one as asked", "one on a GPU", "four on a GPU", "of 0.1.0", "both"],
)
def test_the_command_that_reproduces_uses_the_same_number_of_threads(
    tmp_path: Path, jobs: list[int | str | None], device: str, expected: list[str]
) -> None:
    for seed, asked in enumerate(jobs):
        run = record(tmp_path, 1, "lstm", [(5.0, 4.5)], seed=seed, jobs=2, device=device)
        found = json.loads(run.paths.info.read_text())
        run.paths.info.write_text(json.dumps(found | {"jobs": asked}))
    group = choose_group(Store(tmp_path / "runs").runs())
    assert reproduce(group).split()[-1 - len(expected) :] == [*expected, "--headless"]
    assert reproduce(group).count("--jobs") == bool(expected)
    assert reproduce(group).count("--device cpu") == (device == "cpu")


@pytest.mark.usefixtures("quick_figures")
def test_the_report_names_different_numbers_of_threads_and_their_effect_on_times(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5)], jobs=4, threads=1)
    record(tmp_path, 2, "lstm", [(5.0, 4.5)], jobs=1, threads=2)
    export(Store(tmp_path / "runs"), tmp_path / "out", ExportOptions(file_format="markdown"))
    text = (tmp_path / "out/report.md").read_text()
    assert "Device: CPU; 1 or 2 CPU threads per run." in text
    assert "different numbers of runs shared the device (1, 4); the runs used different numbers of threads" in text


@pytest.mark.slow
def test_the_command_that_reproduces_gives_the_same_table(tmp_path: Path) -> None:
    """In another folder, with real training."""
    experiments = tiny.write_experiments(tmp_path / "own.toml", tiny.row(1), tiny.row(2, "gpt1"))
    data = tiny.write_corpus(tmp_path / "data")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    arguments = ["--all", "--preset", "tiny", "--data", str(data), "--experiments", str(experiments), "--seeds", "3"]
    tiny.lmconsole("run", *arguments, "--headless", cwd=first, check=0)
    report = (first / "exports/report.md").read_text()
    (command,) = re.findall(r"```sh\nlmconsole (.*)\n```", report)
    tiny.lmconsole(*command.split(), cwd=second, check=0)
    table = "exports/table-1-results.csv"
    assert (first / table).read_bytes() == (second / table).read_bytes()


def test_names_full_of_markup_pass_through_every_file(tmp_path: Path) -> None:
    record(tmp_path, 31, "lstm", [(5.0, 4.5)], name=NAME)
    export(Store(tmp_path / "runs"), tmp_path / "out", ExportOptions(against="published"))
    rows = [line for line in (tmp_path / "out/report.md").read_text().splitlines() if line.startswith("| LSTM")]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 9
    assert (
        r"\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} \textbar{} \textless{}b\textgreater{}"
        in (tmp_path / "out/table-1-results.tex").read_text()
    )
    assert pd.read_csv(tmp_path / "out/table-1-results.csv")["name"].tolist() == [NAME]
    assert (tmp_path / "out/report.tex").read_text().isascii()


@pytest.mark.usefixtures("quick_figures")
def test_files_of_another_group_are_removed(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(store, out, ExportOptions(against="published", figure_format="svg"))
    (out / "notes.txt").write_text("mine")
    record(tmp_path, 1, "lstm", [(5.0, 3.0)], epochs=7)
    export(store, out, ExportOptions())
    assert written(out) == MARKDOWN | LATEX | CSV | FIGURES_OF_ONE | {"notes.txt"}


@pytest.mark.usefixtures("quick_figures")
def test_more_formats_of_one_group_gather_in_one_folder(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for file_format in ("csv", "json", "markdown"):
        export(store, out, ExportOptions(file_format=file_format))
    assert written(out) >= CSV | MARKDOWN | {"data/runs.json"}
    listed = set(json.loads((out / ".group.json").read_text())["files"])
    assert listed == written(out)


@pytest.mark.usefixtures("quick_figures")
def test_an_export_replaces_the_files_of_its_formats_and_no_others(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for file_format in ("html", "json"):
        export(store, out, ExportOptions(file_format=file_format))
    export(store, out, ExportOptions(against="published", figure_format="pdf"))
    others = {"report.html", "data/runs.json", "data/epochs.json", "data/telemetry.json"}
    against = {f"table-3-against.{suffix}" for suffix in ("md", "tex", "csv")}
    figures = {name.replace("png", "pdf") for name in FIGURES}
    assert written(out) == MARKDOWN | LATEX | CSV | FIGURES | others | against | figures
    (out / "table-3-against.md").write_text("my notes")
    warnings: list[str] = []
    export(store, out, ExportOptions(file_format="markdown"), warn=warnings.append)
    left = MARKDOWN | LATEX | CSV | FIGURES | others | against
    assert written(out) == left | figures, "PDFs belong to report.tex"
    export(store, out, ExportOptions(), warn=warnings.append)
    assert written(out) == MARKDOWN | LATEX | CSV | FIGURES | others | {"table-3-against.md"}
    (warning,) = warnings
    assert f"{out}/table-3-against.md: kept, although it is not part of this export: changed since" in warning
    listed = set(json.loads((out / ".group.json").read_text())["files"])
    assert listed == MARKDOWN | LATEX | CSV | FIGURES | others


@pytest.mark.usefixtures("quick_figures")
def test_tables_and_figures_of_claims_are_files_of_an_export(tmp_path: Path) -> None:
    store, out = Store(tmp_path / "runs"), tmp_path / "out"
    answer = ProbeAnswer(
        preset="tiny",
        reason="test",
        devices=("cpu",),
        device_names=("CPU",),
        device_keys=("cpu",),
        runs=tuple(tiny.resolved_tiny(tmp_path, number=number, optimizer=name) for number, name in OPTIMIZERS.items()),
        claims=(Claim(contrasts=(((1,), (2,)),), seeds={1: (1,), 2: (1,)}),),
    )
    register(store, answer, "claims.toml")
    for number, name in OPTIMIZERS.items():
        record(tmp_path, number, "lstm", [(5.0, 4.0 + number)], seed=1, optimizer=name)
    export(store, out, ExportOptions())
    claims = {f"table-claims.{suffix}" for suffix in ("md", "tex", "csv")} | {"figures/claims.png"}
    assert written(out) >= claims
    assert read_manifest(out).files == tuple(sorted(written(out)))
    shutil.rmtree(tmp_path / "runs" / CLAIMS)
    export(store, out, ExportOptions())
    assert not written(out) & claims


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(out: Path, *names: str, hashed: bool = True, **fields: object) -> None:
    """Write the manifest of another group that lists ``names``, with their present hashes."""
    hashes = {name: sha256(out / name) for name in names if "\0" not in name and (out / name).is_file()}
    manifest = {"group": "other", "preset": "", "files": names, **({"sha256": hashes} if hashed else {}), **fields}
    (out / ".group.json").write_text(json.dumps(manifest))


NOT_OURS = (
    "../precious.txt", "notes.txt", "linked/thesis.tex", "data/runs.json.bak", "data", "figures", "data/../notes.txt",
    "report.md\n", "table-4-mine.csv", "figures/photo.png", ".git/config", "a\0b", "", ".", "/", "~", "figures/1.png/x",
)  # fmt: skip
"""Names in a manifest that no export of ours can have written, or that are behind a link."""


@pytest.mark.usefixtures("quick_figures")
def test_an_export_removes_nothing_that_no_export_has_written(store: Store, tmp_path: Path) -> None:
    for name in ("precious.txt", "elsewhere/thesis.tex", "out/notes.txt", "out/data/runs.json.bak", "out/.git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    for name in ("table-4-mine.csv", "figures/photo.png"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    out = tmp_path / "out"
    (out / "linked").symlink_to("../elsewhere")
    before = contents(tmp_path)
    for name in NOT_OURS:
        write_manifest(out, name, str(tmp_path / "precious.txt"))
        export(store, out, ExportOptions())
        after = contents(tmp_path)
        assert {each: after.get(each) for each in before} == before


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize("kept", ["data/runs.json", "table-3-against.csv", "figures/figure-2.pdf"])
def test_a_file_of_another_group_that_was_changed_is_kept_and_named(store: Store, tmp_path: Path, kept: str) -> None:
    out = tmp_path / "out"
    export(store, out, ExportOptions(file_format="json"))
    export(store, out, ExportOptions(against="published", figure_format="pdf"))
    (out / kept).write_bytes((out / kept).read_bytes() + b"my notes")
    record(tmp_path, 1, "lstm", [(5.0, 3.0)], epochs=7)
    warnings: list[str] = []
    export(store, out, ExportOptions(), warn=warnings.append)
    assert written(out) == MARKDOWN | LATEX | CSV | FIGURES_OF_ONE | {kept}
    assert (out / kept).read_bytes().endswith(b"my notes")
    (warning,) = warnings
    assert f"{out / kept}: kept" in warning
    assert "changed since" in warning
    export(store, out, ExportOptions(), warn=warnings.append)
    assert len(warnings) == 1, "the file is a person's now"


@pytest.mark.usefixtures("store")
def test_files_of_an_export_of_version_0_1_0_are_kept_and_named(tmp_path: Path) -> None:
    """Its manifest has no hashes, so nobody knows what a person has done to the files since."""
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data/runs.json").write_text("[]")
    (out / "report.md").write_text("old")
    write_manifest(out, "data/runs.json", "report.md", hashed=False)
    done = tiny.lmconsole("export", "--out", "out", cwd=tmp_path, check=0)
    assert f"{out}/data/runs.json: kept" in done.stderr
    assert "version 0.1.0" in done.stderr
    assert (out / "data/runs.json").read_text() == "[]"
    assert (out / "report.md").read_text() != "old"


@pytest.mark.usefixtures("quick_figures")
def test_the_manifest_of_version_0_1_0_is_recognized(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(store, out, ExportOptions(file_format="json"))
    manifest = json.loads((out / ".group.json").read_text())
    del manifest["sha256"], manifest["corpus_sha256"]
    (out / ".group.json").write_text(json.dumps(manifest))
    assert export_automatically(store, out)[0].parent == out
    assert "data/runs.json" in json.loads((out / ".group.json").read_text())["files"]


@pytest.mark.usefixtures("quick_figures")
def test_every_file_of_an_export_can_be_removed_by_the_next(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options in (
        ExportOptions(file_format="json"),
        ExportOptions(file_format="parquet"),
        ExportOptions(against="published", figure_format="svg"),
        ExportOptions(figure_format="pdf"),
    ):
        export(store, out, options)
    every = written(out)
    assert every > MARKDOWN | LATEX | CSV | FIGURES
    record(tmp_path, 1, "lstm", [(5.0, 3.0)], epochs=7)
    export(store, out, ExportOptions(), warn=lambda warning: pytest.fail(warning))
    assert written(out) == MARKDOWN | LATEX | CSV | FIGURES_OF_ONE


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine").write_text("mine")


def a_link(path: Path) -> None:
    path.with_name("precious").write_text('{"group": "other"}')
    path.symlink_to("precious")


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content)

    return write


@pytest.mark.parametrize(
    "make",
    [
        a_pipe, a_folder, a_link, a_link_to_a_device, a_huge_file, text("{"), text("[]"), text("[" * 100_000),
        text('{"files": ["a\\u0000b", "\\ud800"]}'), text('{"group": 1}'), text('{"files": "report.md"}'), text("\0"),
        text('{"group": "other", "sha256": []}'), text('{"group": "other", "files": ["data", "figures"]}'),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize("automatic", [False, True])
def test_a_damaged_or_forged_manifest_refuses_no_export(
    store: Store, tmp_path: Path, make: Callable[[Path], None], automatic: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(out / ".group.json")
    before = {name: data for name, data in contents_if_small(out).items() if not name.startswith(".group.json")}
    for _ in range(2):
        paths = export_automatically(store, out) if automatic else export(store, out, ExportOptions())
        assert all(path.is_file() for path in paths)
        assert out in (paths[0].parent, paths[0].parents[1])
    after = contents_if_small(out)
    assert {name: after[name] for name in before} == before
    assert (out / ".group.json").is_file()
    mine = list(tmp_path.rglob("mine"))
    assert len(mine) == (make is a_folder)


def contents_if_small(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 2**30)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if not path.is_symlink()}


@pytest.mark.usefixtures("quick_figures")
def test_nothing_is_written_through_a_link_in_the_folder(store: Store, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "report.md").write_text("mine")
    (out / "report.md").symlink_to("../elsewhere/report.md")
    export(store, out, ExportOptions(file_format="markdown"))
    assert not (out / "report.md").is_symlink()
    assert contents(elsewhere) == {"report.md": b"mine"}
    (out / "data").symlink_to("../elsewhere")
    before = contents(out)
    refused = "out/data: cannot be written: this folder is a symbolic link"
    with pytest.raises(ExportError, match=refused) as caught:
        export(store, out, ExportOptions(file_format="csv"))
    assert "--out" in str(caught.value)
    with pytest.raises(ExportError, match=refused):
        export_automatically(store, out)
    assert contents(out) == before
    assert contents(elsewhere) == {"report.md": b"mine"}


def test_the_folder_itself_may_be_a_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    export(store, tmp_path / "out", ExportOptions(file_format="csv"))
    assert written(tmp_path / "real") == CSV


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize("preset", ["../../x", "/abs", "..", ".", "", "a/b", "x" * 200, "\u202e\x1b[2J", "nul\0"])
def test_a_preset_from_a_file_names_a_folder_in_the_exports(tmp_path: Path, preset: str) -> None:
    for run in (record(tmp_path, 1, "lstm", [(5.0, 4.5)]), record(tmp_path, 1, "lstm", [(5.0, 4.0)], epochs=7)):
        found = json.loads(run.paths.info.read_text())
        run.paths.info.write_text(json.dumps(found | {"preset": preset}))
    outside = {path for path in tmp_path.rglob("*") if "runs" not in path.parts}
    exports = tmp_path / "deep/exports"
    exports.mkdir(parents=True)
    used = []
    for _ in range(4):
        used.append(export_automatically(Store(tmp_path / "runs"), exports)[0].parent)
        write_manifest(used[-1], group="another")
    assert len(set(used)) == 4, "each folder shows another group by then, but the last, which is replaced"
    assert all(folder.parent in (exports, exports.parent) for folder in used)
    new = {path for path in tmp_path.rglob("*") if "runs" not in path.parts} - outside
    assert {path.parts[: len(exports.parts)] for path in new} == {(tmp_path / "deep").parts, exports.parts}


@pytest.mark.usefixtures("quick_figures")
def test_a_link_in_place_of_the_subfolder_of_a_preset_is_left_alone(store: Store, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for folder in (out, elsewhere):
        folder.mkdir()
    write_manifest(out)
    preset = store.runs()[0].info.preset
    (out / preset).symlink_to("../elsewhere")
    folder = export_automatically(store, out)[0].parent
    assert folder.parent == out
    assert folder.name.startswith(f"{preset}-")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_export_that_fails_leaves_the_earlier_export_unchanged(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    out, options = tmp_path / "out", ExportOptions(file_format="csv")
    export(store, out, options)
    before = contents(out)
    record(tmp_path, 6, "gpt1", [(5.0, 3.0)], optimizer="adamw", samples=1)
    options = replace(options, against="published")
    for number in range(1, 8):
        with monkeypatch.context() as patch:
            fail_in_call(patch, function, number)
            with pytest.raises(ExportError, match="cannot be written: No space left on device"):
                export(store, out, options)
        assert contents(out) == before, f"{function}, call {number}"
    export(store, out, options)
    after = contents(out)
    assert after.keys() - before.keys() == {"table-3-against.csv"}
    changed = {name for name, content in before.items() if content is not None and after[name] != content}
    assert changed == {".group.json"} | CSV


def test_a_file_in_place_of_the_folder_is_an_error(store: Store, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for name in ("taken", "taken/exports"):
        with pytest.raises(ExportError, match=f"^{tmp_path}/taken: cannot be written: File exists"):
            export(store, tmp_path / name, ExportOptions(file_format="csv"))
    assert (tmp_path / "taken").read_text() == "mine"
    done = tiny.lmconsole("export", "--format", "csv", "--out", "taken", cwd=tmp_path, check=2)
    assert done.stderr.count("\n") <= 2
    assert "Use --out to name another folder" in done.stderr


def test_a_folder_without_write_permission_is_an_error(
    store: Store, tmp_path: Path, ordinary_user: Callable[[], None]
) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    store.runs()
    ordinary_user()
    with pytest.raises(ExportError, match=r"/closed(/data)?: .*Permission denied"):
        export(store, tmp_path / "closed", ExportOptions(file_format="csv"))
    assert list((tmp_path / "closed").iterdir()) == []


def test_a_figure_that_is_open_elsewhere_stays_whole_there(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "out", ExportOptions(file_format="markdown"))
    with (tmp_path / "out/figures/figure-1.png").open("rb") as file:
        start = file.read(100)
        record(tmp_path, 1, "lstm", [(5.0, 3.0)])
        export(store, tmp_path / "out", ExportOptions(file_format="markdown"))
        whole = start + file.read()
    assert whole.endswith(b"IEND\xaeB`\x82")
    assert whole != (tmp_path / "out/figures/figure-1.png").read_bytes()


def test_a_store_of_failed_runs_is_an_error(tmp_path: Path) -> None:
    for number in (1, 2):
        run = tiny.queue_tiny(tmp_path, number=number)
        append_events(run.paths, Failed(error="out-of-memory", message="no", hint="less"))
    done = tiny.lmconsole("export", cwd=tmp_path, check=2)
    assert "nothing to export: none of 2 runs has completed an epoch (2 failed)" in done.stderr
    assert not (tmp_path / "exports").exists()


def test_parquet_without_pyarrow_says_what_to_install(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportError, match="pyarrow") as caught:
        export(store, tmp_path / "out", ExportOptions(file_format="parquet"))
    assert re.search(r"uv tool install '\.\[parquet\b", str(caught.value))
    with pytest.raises(ExportError, match="parquet is not a table of text"):
        print_table(store, ExportOptions(file_format="parquet"))


def test_siunitx_aligns_what_it_can(store: Store) -> None:
    text = print_table(store, ExportOptions(file_format="latex", siunitx=True, template="course"))
    assert "\\usepackage{siunitx}" in text
    assert "{lrlS[table-format=3.2," in text
    assert "{Validation PPL}" in text
    assert "\\bfseries 90.017" in text


def test_exports_follow_runs_until_none_is_active(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "lmconsole", "export", "--watch", "--format", "csv"],
        cwd=tmp_path, env=tiny.environment(tmp_path), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for number in (1, 2):
            append_events(run.paths, factories.epoch(number))
            assert "5 files" in process.stdout.readline()
            rows = pd.read_csv(tmp_path / "exports/data/epochs.csv")
            assert len(rows) == number
        append_events(run.paths, Stopped(epoch=3, step=0))
        assert "5 files" in process.stdout.readline()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_watching_waits_for_the_group_that_is_asked_for(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other runs have epochs already; the run asked for has none before it stops."""
    run = tiny.queue_tiny(tmp_path, "gpt1", number=9)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        assert not (tmp_path / "out").exists()
        pauses.append(seconds)
        append_events(run.paths, Stopped(epoch=1, step=0))

    monkeypatch.setattr(time, "sleep", pause)
    options = ExportOptions(file_format="csv", run=run.run)
    with pytest.raises(ExportError, match="the run has not completed an epoch"):
        keep_current(store, tmp_path / "out", options, lambda paths: None)
    assert pauses == [POLL_S]


def test_watching_a_store_without_active_runs_exports_once(store: Store, tmp_path: Path) -> None:
    times: list[int] = []
    keep_current(store, tmp_path / "out", ExportOptions(file_format="csv"), lambda paths: times.append(len(paths)))
    assert times == [5]


def test_the_runner_keeps_imported_runs_out(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/args.json").write_text('{"model": "lstm", "layers": 1, "optimizer": "adam", "epochs": 1}')
    (tmp_path / "elsewhere/valid_ppl.txt").write_text("99\n")
    tiny.lmconsole("import", "elsewhere", cwd=tmp_path, check=0)
    export_automatically(store, tmp_path / "out")
    assert "Imported" not in (tmp_path / "out/report.md").read_text()
    table = tiny.lmconsole("export", "-o", "-", "--imported", cwd=tmp_path, check=0).stdout
    assert "Imported runs with padded perplexities, seed unknown." in table
    assert " 99.000 " in table
