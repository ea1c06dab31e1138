"""Effective settings of imported runs: a recorded default has no effect where the optimizer does not use it."""

import json
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.importing.import_runs import ImportReport, import_runs
from lmconsole.importing.settings import ASSUMED, INFERRED, STATED, Evidence, effective_settings, interpret
from lmconsole.plan.experiment import Experiment
from lmconsole.plan.load import load_plan
from lmconsole.runs.info import RunInfo
from lmconsole.runs.store import Store

OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")


def write(folder: Path, **arguments: object) -> None:
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps({"model": "lstm", "layers": 1, "epochs": 2} | arguments))
    (folder / "valid_ppl.txt").write_text(f"300\n{200 + len(folder.name)}.{hash(folder.name) % 1000:03d}\n")


def import_all(root: Path) -> tuple[ImportReport, dict[str, RunInfo]]:
    """Return the report and run.json by the name of the source's folder."""
    store = Store(root / "runs")
    report = import_runs(store, root / "logs", load_plan())
    return report, {Path(run.info.experiment.source).name: run.info for run in store.runs()}


defaults = st.fixed_dictionaries(
    {}, optional={"momentum": st.floats(0.0, 0.99), "weight_decay": st.floats(0.0, 0.5), "lr": st.floats(1e-5, 0.1)}
)


@given(defaults=defaults, present=st.sets(st.sampled_from(OPTIMIZERS), min_size=1))
def test_defaults_that_every_run_records_change_no_optimizer(defaults: dict[str, float], present: set[str]) -> None:
    recorded = {name: {"model": "lstm", "layers": 1, "optimizer": name, **defaults} for name in present}
    evidence = Evidence(recorded.values())
    for name, stated in recorded.items():
        found = interpret(stated, evidence)
        assert found.optimizer == name
        experiment = Experiment(id=1, model="lstm", layers=1, optimizer=name)  # type: ignore[arg-type]
        effective = effective_settings(stated, experiment, evidence, 1, found.optimizer_origin)
        assert ("momentum" in effective.values) == (name == "momentum" and "momentum" in defaults)
        if "weight_decay" in defaults:
            assert effective.values["weight_decay"] == (0.0 if name == "adam" else defaults["weight_decay"])
        inferred = {key for key, origin in effective.origins.items() if origin.startswith(INFERRED)}
        assert inferred - {"epochs"} == ({"weight_decay"} if name == "adam" and defaults.get("weight_decay") else set())
        assert found.optimizer_origin.startswith(INFERRED) == (name == "sgd" and bool(defaults.get("momentum")))


def test_the_courses_folder_keeps_its_three_optimizers(tmp_path: Path) -> None:
    for name in OPTIMIZERS:
        write(tmp_path / "logs" / name, optimizer=name, momentum=0.9, weight_decay=5e-4, lr=1e-3)
    report, infos = import_all(tmp_path)
    assert report.problems == []
    assert {name: info.experiment.id for name, info in infos.items()} == {
        "adam": 1,
        "adamw": 2,
        "sgd": 3,
        "momentum": 4,
    }
    assert [infos[name].settings.momentum for name in OPTIMIZERS] == [None, None, None, 0.9]
    assert [infos[name].settings.weight_decay for name in OPTIMIZERS] == [0.0, 5e-4, 5e-4, 5e-4]
    reason = "momentum 0.9 is recorded for sgd; runs with adam and adamw record it too"
    assert infos["sgd"].origins["optimizer"] == f"{INFERRED}{reason}"
    assert infos["momentum"].origins["optimizer"] == infos["momentum"].origins["momentum"] == STATED
    assert infos["adam"].origins["weight_decay"].startswith(f"{INFERRED}weight decay 0.0005 is recorded for adam")
    assert infos["sgd"].origins["seed"] == infos["sgd"].origins["denominator"] == ASSUMED
    assert any(note.startswith("momentum 0.9 is recorded for sgd: read as plain SGD") for note in report.notes)


def test_one_folder_alone_is_read_by_its_optimizer_and_the_output_says_so(tmp_path: Path) -> None:
    write(tmp_path / "logs", optimizer="sgd", momentum=0.9)
    done = tiny.lmconsole("import", "logs", cwd=tmp_path, check=0)
    assert "-sgd-imported-" in done.stdout
    assert 'read as plain SGD, because plain SGD has none. If it had an effect, write "optimizer": "momentum"' in (
        done.stderr
    )
    (tmp_path / "logs/args.json").write_text(
        json.dumps({"model": "lstm", "layers": 1, "epochs": 2, "optimizer": "momentum", "momentum": 0.9})
    )
    done = tiny.lmconsole("import", "logs", cwd=tmp_path, check=0)
    assert "-momentum-imported-" in done.stdout
    assert "updated from logs: settings" in done.stdout
    assert [run.info.experiment.optimizer for run in Store(tmp_path / "runs").runs()] == ["momentum"]


@pytest.mark.parametrize(
    ("optimizer", "setting", "values", "expected"),
    [
        ("sgd", "momentum", (0.0, 0.9), ("sgd", "momentum")),
        ("sgd", "momentum", (None, 0.9), ("sgd", "momentum")),
        ("sgd", "momentum", (0.5, 0.9), ("momentum", "momentum")),
        ("adam", "weight_decay", (0.0, 1e-2), (0.0, 1e-2)),
        ("adam", "weight_decay", (1e-3, 1e-2), (1e-3, 1e-2)),
    ],
)
def test_values_that_differ_between_runs_with_one_optimizer_had_an_effect(
    tmp_path: Path, optimizer: str, setting: str, values: tuple[float | None, float], expected: tuple[object, object]
) -> None:
    for name, value in zip("ab", values, strict=True):
        write(tmp_path / "logs" / name, optimizer=optimizer, **({} if value is None else {setting: value}))
    _, infos = import_all(tmp_path)
    field = "optimizer" if setting == "momentum" else setting
    assert tuple(getattr(infos[name].settings, field) for name in "ab") == expected
    assert infos["b"].origins[field].startswith(INFERRED)


def test_sgd_has_no_momentum_where_momentum_is_an_optimizer_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "logs/a", optimizer="sgd", momentum=0.5)
    write(tmp_path / "logs/b", optimizer="sgd", momentum=0.9)
    write(tmp_path / "logs/c", optimizer="momentum", momentum=0.9)
    _, infos = import_all(tmp_path)
    assert [infos[name].experiment.optimizer for name in "abc"] == ["sgd", "sgd", "momentum"]


def test_epochs_that_are_not_stated_are_inferred(tmp_path: Path) -> None:
    write(tmp_path / "logs/a", optimizer="adamw", epochs=None)
    _, infos = import_all(tmp_path)
    assert infos["a"].origins["epochs"] == f"{INFERRED}number of epochs in its files"
