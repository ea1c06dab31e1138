"""Import of runs: accepted sources, the messages for all others, and imports with problems in some runs only."""

import json
import math
from pathlib import Path

import pytest
import tiny

from lmconsole.engine.queue import requeue
from lmconsole.errors import StoreError
from lmconsole.importing.import_runs import ImportReport, import_runs
from lmconsole.plan.load import load_plan
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

ARGS = {
    "model": "gpt1", "layers": 1, "optimizer": "adam", "epochs": 3, "batch_size": 16, "lr": 1e-3, "seed": 7,
    "device": "cuda", "log": True,
}  # fmt: skip


def write_run(folder: Path, arguments: object = ARGS, **series: list[object]) -> Path:
    """Write the folder of a run, as a training script of another project would."""
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(arguments if isinstance(arguments, str) else json.dumps(arguments))
    for name, values in ({"valid_ppl": [300, 200, 250.5]} | series).items():
        (folder / f"{name}.txt").write_text("".join(f"{value}\n" for value in values))
    return folder


def import_into(root: Path, source: Path) -> ImportReport:
    return import_runs(Store(root / "runs"), source, load_plan())


def runs(root: Path) -> list[Run]:
    return Store(root / "runs").runs()


def test_a_run_has_the_numbers_of_its_folder_and_no_others(tmp_path: Path) -> None:
    write_run(
        tmp_path / "theirs/5", train_ppl=[400, 250, 100], train_loss=[6, 5.5, 4.6], train_time=[10, 11, 12],
        valid_loss=[5.7, 5.3, 5.5], valid_time=[1, 1, 1], test_ppl=[201.5], test_loss=[5.3], test_time=[2],
    )  # fmt: skip
    report = import_into(tmp_path, tmp_path / "theirs")
    assert report.problems == []
    (run,) = runs(tmp_path)
    assert report.imported == {str(tmp_path / "theirs/5"): run.run}
    info, state = run.info, run.state
    assert (info.experiment.id, info.origin, info.denominator, info.seed) == (5, "imported", "padded", 7)
    assert "-imported-s7-" in run.run
    assert run.status is Status.FINISHED
    assert [epoch.valid_ppl for epoch in state.epochs] == [300.0, 200.0, 250.5]
    assert [epoch.elapsed_train_s for epoch in state.epochs] == [10.0, 21.0, 33.0]
    assert state.best_epoch is state.epochs[1]
    assert state.finished is not None
    assert (state.finished.test_ppl_final, state.finished.wall_s, state.finished.best_epoch) == (201.5, None, 2)
    assert state.started is None
    assert info.origins["learning_rate"] == info.origins["batch_size"] == "stated by the source"
    assert info.origins["channels"] == "not stated; assumed"


def test_losses_alone_suffice_and_missing_times_stay_unknown(tmp_path: Path) -> None:
    write_run(tmp_path / "one", valid_ppl=[], valid_loss=[5.0, 4.0, 4.5])
    (tmp_path / "one/valid_ppl.txt").unlink()
    import_into(tmp_path, tmp_path / "one")
    (run,) = runs(tmp_path)
    assert [epoch.valid_ppl for epoch in run.state.epochs] == [pytest.approx(math.exp(x)) for x in (5.0, 4.0, 4.5)]
    assert run.state.epochs[0].train_ppl is None
    assert run.state.elapsed_train_s is None


def test_the_same_source_is_imported_once(tmp_path: Path) -> None:
    write_run(tmp_path / "theirs/a")
    first = import_into(tmp_path, tmp_path / "theirs")
    again = import_into(tmp_path, tmp_path / "theirs")
    assert (again.imported, again.problems) == ({}, [])
    assert list(again.imported_before.values()) == list(first.imported.values())
    assert len(runs(tmp_path)) == 1


def test_spellings_of_models_optimizers_and_keys(tmp_path: Path) -> None:
    write_run(
        tmp_path / "a/1", {"architecture": "LSTM", "num_layers": 2, "optim": "AdamW", "n_epochs": 3, "lr": "1e-3"}
    )
    write_run(tmp_path / "a/2", {"model": "GPT-1", "n_layers": "1", "optimizer": "SGD", "momentum": 0.9})
    write_run(tmp_path / "a/3", {"model": "gpt", "layers": 1.0, "optimizer": "sgd", "momentum": 0.0})
    assert import_into(tmp_path, tmp_path / "a").problems == []
    assert sorted(run.info.experiment.id for run in runs(tmp_path)) == [7, 8, 9]


def test_an_experiment_outside_the_plan_gets_a_number_and_keeps_it(tmp_path: Path) -> None:
    write_run(tmp_path / "a/1", ARGS | {"layers": 3})
    write_run(tmp_path / "a/2", ARGS | {"layers": 3, "seed": 8})
    write_run(tmp_path / "a/3", ARGS | {"layers": 6})
    import_into(tmp_path, tmp_path / "a")
    assert sorted(run.info.experiment.id for run in runs(tmp_path)) == [101, 101, 102]


@pytest.mark.parametrize(
    ("arguments", "series", "reason"),
    [
        ("{", {}, "args.json is not JSON"),
        ("[]", {}, "args.json is not an object"),
        (ARGS | {"model": "gru"}, {}, "model: 'gru' is not one of lstm, gpt1"),
        ({**ARGS, "optimizer": None}, {}, "optimizer is not stated"),
        (ARGS | {"layers": "two"}, {}, "layers: 'two' is not a whole number"),
        (ARGS | {"layers": 0}, {}, "layers"),
        (ARGS | {"lr": -1}, {}, "learning_rate"),
        (ARGS | {"seed": -1}, {}, "seed: -1"),
        (ARGS | {"denominator": "words"}, {}, "denominator: 'words' is neither"),
        (ARGS | {"epochs": 2}, {}, "numbers for 3 epochs, but epochs is 2"),
        (ARGS, {"valid_ppl": [1, "x", 3]}, "valid_ppl.txt line 2: 'x' is not a number"),
        (ARGS, {"valid_ppl": []}, "no epoch"),
        (ARGS, {"valid_ppl": [1, -2, 3]}, "a perplexity of -2 is impossible"),
        (ARGS, {"valid_ppl": [1, 1e307, 3]}, "epoch 2: Expected float <= 1e+306 - at valid_ppl"),
        (ARGS, {"valid_ppl": [1, 2, 3], "train_time": [1, 1, 1e11]}, "epoch 3: Expected float <= 1"),
        (ARGS, {"train_ppl": [1, 2]}, "different numbers of epochs: train_ppl.txt 2, valid_ppl.txt 3"),
        (ARGS, {"train_time": [1, "nan", 3]}, "train_s: nan is not a time"),
        (ARGS, {"test_ppl": [1, 2]}, "test_ppl.txt has 2 numbers instead of one"),
    ],
)
def test_invalid_folders_are_reported_and_the_others_imported(
    tmp_path: Path, arguments: object, series: dict[str, list[object]], reason: str
) -> None:
    write_run(tmp_path / "theirs/invalid", arguments, **series)
    write_run(tmp_path / "theirs/valid")
    report = import_into(tmp_path, tmp_path / "theirs")
    (problem,) = report.problems
    assert problem.startswith(str(tmp_path / "theirs/invalid: "))
    assert reason in problem
    assert list(report.imported) == [str(tmp_path / "theirs/valid")]


def test_folders_with_missing_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "theirs/empty").mkdir(parents=True)
    (write_run(tmp_path / "theirs/half") / "valid_ppl.txt").unlink()
    (write_run(tmp_path / "theirs/binary") / "valid_ppl.txt").write_bytes(b"\xff\xfe\x00")
    problems = import_into(tmp_path, tmp_path / "theirs").problems
    assert [problem.rpartition(": ")[2] for problem in problems] == [
        "valid_ppl.txt is not text",
        "no args.json",
        "neither valid_ppl.txt nor valid_loss.txt",
    ]


def test_a_source_that_stopped_early_is_not_finished_and_cannot_be_resumed(tmp_path: Path) -> None:
    write_run(tmp_path / "one", ARGS | {"epochs": 10})
    import_into(tmp_path, tmp_path / "one")
    (run,) = runs(tmp_path)
    assert run.status is Status.STOPPED
    assert requeue(Store(tmp_path / "runs"), [run.run]) == []
    assert "imported, 3/10" in tiny.lmconsole("status", cwd=tmp_path, check=0).stdout


def test_a_source_that_diverged_is_shown_as_diverged(tmp_path: Path) -> None:
    write_run(tmp_path / "one", valid_ppl=[300, "inf", "nan"], train_ppl=[300, 400, "nan"])
    import_into(tmp_path, tmp_path / "one")
    (run,) = runs(tmp_path)
    assert run.state.finished is not None
    assert run.state.finished.diverged
    assert "imported, diverged" in tiny.lmconsole("status", cwd=tmp_path, check=0).stdout


def test_a_trained_run_stays_the_latest_of_its_experiment(tmp_path: Path) -> None:
    own = tiny.queue_tiny(tmp_path, "gpt1", number=5)
    write_run(tmp_path / "one")
    import_into(tmp_path, tmp_path / "one")
    store = Store(tmp_path / "runs")
    assert store.runs()[-1].run == own.run
    assert store.find("5").run == own.run


def test_csv_has_one_row_per_epoch_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(
        "Model,Layers,Optimizer,Seed,Epoch,Valid PPL,train_s,denominator,test_ppl\n"
        "lstm,1,adam,1,2,200,11,targets,190\n"
        "lstm,1,adam,1,1,300,10,targets,\n"
        "lstm,1,adam,2,1,310,,targets,\n"
        "gpt1,1,adam,1,2,200,,,\n"
    )
    report = import_into(tmp_path, tmp_path / "runs.csv")
    assert len(report.imported) == 2
    (problem,) = report.problems
    assert "epochs are not 1 to 1: 2" in problem
    first, second = sorted(runs(tmp_path), key=lambda run: run.info.seed)
    assert [epoch.valid_ppl for epoch in first.state.epochs] == [300.0, 200.0]
    assert first.info.denominator == "targets"
    assert first.state.finished is not None
    assert first.state.finished.test_ppl_final == 190.0
    assert second.state.epochs[0].train_s is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"missing columns: model \(or architecture\); layers; optimizer; epoch; valid_ppl \(or valid_loss_nats\)"),
        ("model,layers,optimizer,epoch\nlstm,1,adam,1\n", r"missing column: valid_ppl \(or valid_loss_nats\)"),
        ('model,layers,optimizer,epoch,valid_ppl\nlstm,1,adam,1,"3\n', "not CSV"),
    ],
)
def test_an_invalid_csv_is_an_error(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "invalid.csv").write_text(text)
    with pytest.raises(StoreError, match=reason):
        import_into(tmp_path, tmp_path / "invalid.csv")


@pytest.mark.parametrize("epoch", ["inf", "nan", "1.5"])
def test_an_epoch_in_a_csv_is_a_whole_number(tmp_path: Path, epoch: str) -> None:
    (tmp_path / "runs.csv").write_text(f"model,layers,optimizer,epoch,valid_ppl\nlstm,1,adam,{epoch},300\n")
    (problem,) = import_into(tmp_path, tmp_path / "runs.csv").problems
    assert f"line 2: epoch {epoch} is not a whole number" in problem


def test_a_source_that_version_0_1_0_imported_is_not_imported_again(tmp_path: Path) -> None:
    write_run(tmp_path / "one", train_ppl=[400, "nan", "inf"], train_time=[10, 11, 12])
    import_into(tmp_path, tmp_path / "one")
    (run,) = runs(tmp_path)
    assert run.info.config_hash == "imported-47bf33f8890ca5158aaac4e148c0dd990686981c7c6ee785e3f7babe383addf8"


def test_nothing_to_import_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file or folder"):
        import_into(tmp_path, tmp_path / "none")
    (tmp_path / "bare").mkdir()
    with pytest.raises(StoreError, match="no run folders"):
        import_into(tmp_path, tmp_path / "bare")


def test_exported_data_can_be_imported_unchanged(tmp_path: Path) -> None:
    write_run(tmp_path / "theirs/1", valid_ppl=[300, 200, "nan"], train_ppl=[310, 210, "inf"], train_time=[1, 2, 3])
    write_run(tmp_path / "theirs/2", ARGS | {"seed": 8})
    import_into(tmp_path, tmp_path / "theirs")
    tiny.lmconsole("export", "--imported", "--format", "csv", cwd=tmp_path, check=0)
    tiny.lmconsole("import", "exports/data/epochs.csv", "--runs", "other", cwd=tmp_path, check=0)
    before, after = runs(tmp_path), Store(tmp_path / "other").runs()

    def numbers(run: Run) -> list[object]:
        return [
            (epoch.train_ppl, epoch.valid_ppl, epoch.elapsed_train_s, epoch.non_finite) for epoch in run.state.epochs
        ]

    assert sorted(map(str, map(numbers, before))) == sorted(map(str, map(numbers, after)))


def test_a_store_of_lmconsole_is_not_imported(tmp_path: Path) -> None:
    tiny.queue_tiny(tmp_path)
    (problem,) = import_runs(Store(tmp_path / "other"), tmp_path / "runs", load_plan()).problems
    assert "already a run of lmconsole; use --runs to open its store" in problem


def test_exit_codes_tell_whether_all_runs_were_imported(tmp_path: Path) -> None:
    write_run(tmp_path / "theirs/valid")
    assert "imported from" in tiny.lmconsole("import", "theirs", cwd=tmp_path, check=0).stdout
    write_run(tmp_path / "theirs/invalid", "{")
    assert "invalid: args.json is not JSON" in tiny.lmconsole("import", "theirs", cwd=tmp_path, check=1).stderr
    assert "not imported" in tiny.lmconsole("import", "theirs/invalid", cwd=tmp_path, check=2).stderr
