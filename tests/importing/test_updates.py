"""Sources that are imported again: the same, with more, or with something else."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny

from lmconsole.importing.import_runs import ImportReport, import_runs
from lmconsole.plan.load import load_plan
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import Queued
from lmconsole.runs.info import RunInfo, read_info, write_info
from lmconsole.runs.notes import change_notes
from lmconsole.runs.paths import TRASH, RunPaths
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.runs.trash import restore

ARGS = {"model": "gpt1", "layers": 1, "optimizer": "adamw", "epochs": 4, "lr": 1e-3, "seed": 7}


def write(folder: Path, valid_ppl: list[float], *, args: Mapping[str, object] | None = None, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps({**ARGS, **(args or {})}))
    (folder / "valid_ppl.txt").write_text("".join(f"{value}\n" for value in valid_ppl))
    for name, content in files.items():
        (folder / f"{name}.txt").write_text(str(content))
    return folder


def import_into(root: Path, source: Path | None = None) -> ImportReport:
    return import_runs(Store(root / "runs"), source or root / "logs", load_plan())


def runs(root: Path) -> list[Run]:
    return Store(root / "runs").runs()


MORE: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"valid_ppl": [300, 200, 190.5, 180]}, "2 more epochs"),
    "test": ({"valid_ppl": [300, 200], "test_ppl": 201.5, "args": {"epochs": 2}}, "test perplexity"),
    "train": ({"valid_ppl": [300, 200], "train_ppl": "310\n210\n"}, "train perplexities, train losses"),
    "times": ({"valid_ppl": [300, 200], "train_time": "10\n11\n"}, "training times"),
    "memory": ({"valid_ppl": [300, 200], "gpu_memory": "4191\n4192\n"}, "memory readings"),
    "settings": ({"valid_ppl": [300, 200], "args": {"batch_size": 8}}, "settings"),
    "all": ({"valid_ppl": [300, 200, 190.5, 180], "test_ppl": 1}, "2 more epochs, test perplexity"),
}


@pytest.mark.parametrize("case", MORE)
def test_a_source_that_has_more_replaces_its_run_and_the_earlier_one_is_in_the_trash(tmp_path: Path, case: str) -> None:
    more, changes = MORE[case]
    args = {"epochs": 2} if case == "test" else {}
    (before,) = import_into(tmp_path, write(tmp_path / "logs", [300, 200], args=args)).imported.values()
    change_notes(RunPaths(tmp_path / "runs" / before), note="kept", add=["good"])
    write(tmp_path / "logs", **more)
    report = import_into(tmp_path)
    assert (report.imported, report.imported_before, report.problems) == ({}, {}, [])
    (update,) = report.updated.values()
    assert (update.replaced, update.changes) == (before, changes)
    (run,) = runs(tmp_path)
    assert run.run == update.run != before
    assert (run.notes.note, run.notes.tags) == ("kept", ("good",))
    assert [epoch.valid_ppl for epoch in run.state.epochs] == more["valid_ppl"]
    assert (tmp_path / "runs" / TRASH / before / "events.jsonl").exists()
    assert list(import_into(tmp_path).imported_before.values()) == [update.run]
    restore(Store(tmp_path / "runs"), [before])
    assert len(runs(tmp_path)) == 2


def test_the_command_says_what_was_updated(tmp_path: Path) -> None:
    write(tmp_path / "logs/a", [300, 200, 190, 180])
    tiny.lmconsole("import", "logs", cwd=tmp_path, check=0)
    write(tmp_path / "logs/a", [300, 200, 190, 180], test_ppl=175.25)
    done = tiny.lmconsole("import", "logs", cwd=tmp_path, check=0)
    assert "updated from logs/a: test perplexity; the earlier import, 05-" not in done.stdout
    assert "updated from logs/a: test perplexity; the earlier import, 06-" in done.stdout
    (run,) = runs(tmp_path)
    assert run.state.finished is not None
    assert run.state.finished.test_ppl_final == 175.25


@pytest.mark.parametrize("fewer", [[300], [300, 200]])
def test_a_source_with_less_than_before_changes_nothing(tmp_path: Path, fewer: list[float]) -> None:
    import_into(tmp_path, write(tmp_path / "logs", [300, 200, 190], train_time="1\n1\n1\n"))
    (tmp_path / "logs/train_time.txt").unlink()
    write(tmp_path / "logs", fewer)
    report = import_into(tmp_path)
    assert (report.imported, report.updated) == ({}, {})
    assert len(report.imported_before) == 1


@pytest.mark.parametrize("other", [{"valid_ppl": [300, 250]}, {"valid_ppl": [300, 201, 190]}])
def test_other_numbers_at_the_same_place_are_another_run(tmp_path: Path, other: dict[str, list[float]]) -> None:
    import_into(tmp_path, write(tmp_path / "logs", [300, 200]))
    write(tmp_path / "logs", other["valid_ppl"])
    report = import_into(tmp_path)
    assert (len(report.imported), report.updated) == (1, {})
    assert len(runs(tmp_path)) == 2


def test_runs_that_begin_alike_at_different_places_are_different_runs(tmp_path: Path) -> None:
    write(tmp_path / "logs/short", [300], args={"epochs": 1})
    write(tmp_path / "logs/long", [300, 200], args={"epochs": 2})
    for _ in range(2):
        report = import_into(tmp_path)
        assert report.updated == {}
    assert len(runs(tmp_path)) == 2


def test_a_source_that_was_moved_is_recognized_by_its_numbers(tmp_path: Path) -> None:
    import_into(tmp_path, write(tmp_path / "logs/a", [300, 200]))
    shutil.move(tmp_path / "logs/a", tmp_path / "elsewhere")
    assert len(import_into(tmp_path, tmp_path / "elsewhere").imported_before) == 1
    write(tmp_path / "elsewhere", [300, 200], gpu_memory="4191\n")
    assert len(import_into(tmp_path, tmp_path / "elsewhere").updated) == 1


def test_a_csv_that_has_grown_updates_its_runs(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text("model,layers,optimizer,seed,epoch,valid_ppl\nlstm,1,adamw,1,1,300\nlstm,1,adamw,2,1,310\n")
    import_into(tmp_path, file)
    file.write_text(file.read_text() + "lstm,1,adamw,1,2,200\n")
    report = import_into(tmp_path, file)
    assert [update.changes for update in report.updated.values()] == ["1 more epoch, settings"]
    assert len(report.imported_before) == 1
    assert sorted(len(run.state.epochs) for run in runs(tmp_path)) == [1, 2]


def test_plain_sgd_that_version_0_1_0_read_as_momentum_is_corrected(tmp_path: Path) -> None:
    write(tmp_path / "logs", [300, 200], args={"optimizer": "sgd", "momentum": 0.9, "epochs": 2})
    import_into(tmp_path)
    (run,) = runs(tmp_path)
    run.paths.info.unlink()
    write_info(run.paths.info, as_version_0_1_0_read_it(run.info))
    report = import_into(tmp_path)
    assert [update.changes for update in report.updated.values()] == ["settings"]
    assert [each.info.experiment.optimizer for each in runs(tmp_path)] == ["sgd"]


def as_version_0_1_0_read_it(info: RunInfo) -> RunInfo:
    replace = msgspec.structs.replace
    return replace(
        info,
        experiment=replace(info.experiment, id=8, optimizer="momentum", source="imported from logs"),
        settings=replace(info.settings, optimizer="momentum", momentum=0.9),
        origins=dict.fromkeys(info.origins, "stated by the source"),
    )


def test_an_import_whose_log_lost_its_end_is_imported_again(tmp_path: Path) -> None:
    import_into(tmp_path, write(tmp_path / "logs", [300, 200], args={"epochs": 2}))
    (run,) = runs(tmp_path)
    run.paths.events.unlink()
    log = EventLog(run.paths.events)
    log.append(Queued(devices=(), jobs=1))
    log.close()
    assert len(import_into(tmp_path).updated) == 1
    assert [each.status for each in runs(tmp_path)] == [Status.FINISHED]


def test_a_damaged_epoch_comes_back_from_the_source(tmp_path: Path) -> None:
    import_into(tmp_path, write(tmp_path / "logs", [300, 200, 190, 180]))
    (run,) = runs(tmp_path)
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    damaged = [line if b'"epoch":2,' not in line else b"\0" * (len(line) - 1) + b"\n" for line in lines]
    run.paths.events.write_bytes(b"".join(damaged))
    assert [update.changes for update in import_into(tmp_path).updated.values()] == ["1 more epoch"]
    (run,) = runs(tmp_path)
    assert read_info(run.paths.info).origin == "imported"
    assert [epoch.valid_ppl for epoch in run.state.epochs] == [300, 200, 190, 180]
