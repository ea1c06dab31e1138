"""Event files, read back by TensorBoard's own reader: values, steps, wall times, growth, and hostile stores."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import tiny
from disk import contents
from factories import STEPS, append_events
from recorded import mark_as_reproduction, record

from lmconsole.errors import ExportError
from lmconsole.report.export import POLL_S, export, keep_current
from lmconsole.report.export_options import ExportOptions
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import AnyEvent, Epoch, Failed, Progress, Resumed, Stopped, Telemetry
from lmconsole.runs.store import Run, Store

OPTIONS = ExportOptions(file_format="tensorboard")
NAN, INF = float("nan"), float("inf")

pytest.importorskip("tensorboard")


@pytest.fixture(scope="module")
def accumulator() -> Callable[[Path], Any]:
    """Return TensorBoard's reader of the event files in a folder."""
    from tensorboard.backend.event_processing import event_accumulator

    def open_folder(folder: Path) -> Any:
        return event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})

    return open_folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run that has completed an epoch."""
    run = tiny.queue_tiny(tmp_path)
    append_events(
        run.paths, factories.started(), factories.telemetry(power_w=75.5), *factories.epoch_events(1, 5.0)
    )  # fmt: skip
    return run


def event_file(out: Path, run: Run) -> Path:
    (path,) = (out / "tensorboard" / run.run).iterdir()
    return path


def seconds(event: AnyEvent) -> float:
    return datetime.fromisoformat(event.t).timestamp()


def scalars(reader: Any, tag: str) -> list[tuple[float, int, float]]:
    return [(each.wall_time, each.step, each.value) for each in reader.Scalars(tag)]


def single(value: float | None) -> float:
    assert value is not None
    return float(np.float32(value))


def test_tensorboard_reads_the_values_steps_and_wall_times_of_the_log(
    run: Run, tmp_path: Path, accumulator: Callable[[Path], Any]
) -> None:
    append_events(run.paths, *factories.epoch_events(2, 4.5), factories.finished([5.0, 4.5], energy_j=12.5))
    (path,) = export(Store(tmp_path / "runs"), tmp_path / "out", OPTIONS)
    assert path == event_file(tmp_path / "out", run)
    reader = accumulator(path.parent)
    reader.Reload()
    events = EventReader(run.paths.events).read_new()
    progress = [each for each in events if isinstance(each, Progress)]
    epochs = [each for each in events if isinstance(each, Epoch)]
    assert scalars(reader, "loss/train") == [
        (seconds(each), (each.epoch - 1) * STEPS + each.step, single(each.train_loss_nats)) for each in progress
    ]
    assert scalars(reader, "perplexity/validation") == [
        (seconds(each), each.epoch * STEPS, single(each.valid_ppl)) for each in epochs
    ]
    assert [value for *_, value in scalars(reader, "loss/train_epoch")] == [
        single(each.train_loss_nats) for each in epochs
    ]
    (sample,) = [each for each in events if isinstance(each, Telemetry)]
    assert scalars(reader, "system/power_w") == [(seconds(sample), 0, 75.5)]
    assert scalars(reader, "energy/run_j") == [(seconds(events[-1]), 2 * STEPS, 12.5)]
    assert set(reader.Tags()["scalars"]) == {
        *("loss/train", "loss/train_epoch", "loss/validation"),
        *("perplexity/train", "perplexity/validation", "perplexity/test_best", "perplexity/test_final"),
        *("speed/tokens_per_s", "time/train_s", "time/validation_s", "time/run_s", "energy/run_j"),
        *("system/rss_mib", "system/power_w"),
    }


def test_evaluations_within_epochs_are_points_of_the_validation_curve(
    run: Run, tmp_path: Path, accumulator: Callable[[Path], Any]
) -> None:
    evaluations = [factories.evaluation(2, 2, 4.9), factories.evaluation(2, 6, 4.7)]
    resumed = [factories.started(attempt=2), Resumed(epoch=2, step=2), factories.evaluation(2, 6, 4.6)]
    append_events(run.paths, *evaluations, *resumed, factories.epoch(2, 4.5))
    (path,) = export(Store(tmp_path / "runs"), tmp_path / "out", OPTIONS)
    reader = accumulator(path.parent)
    reader.Reload()
    found = [(step, value) for _, step, value in scalars(reader, "loss/validation")]
    assert found[-3:] == [(STEPS + 2, single(4.9)), (STEPS + 6, single(4.6)), (2 * STEPS, single(4.5))]


def test_the_settings_are_hyperparameters(run: Run, tmp_path: Path, accumulator: Callable[[Path], Any]) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2 as plugin

    append_events(run.paths, factories.finished())
    (path,) = export(Store(tmp_path / "runs"), tmp_path / "out", OPTIONS)
    reader = accumulator(path.parent)
    reader.Reload()
    found = {
        tag: plugin.HParamsPluginData.FromString(content)
        for tag, content in reader.PluginTagToContent("hparams").items()
    }
    assert set(found) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    hparams = found["_hparams_/session_start_info"].session_start_info.hparams
    assert hparams["model"].string_value == "lstm"
    assert hparams["learning_rate"].number_value == 0.01
    assert hparams["seed"].number_value == run.info.seed
    assert "momentum" not in hparams


def test_a_reproduction_is_marked_by_its_name_and_a_hyperparameter(run: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams import plugin_data_pb2 as plugin

    original = record(tmp_path, 1, "lstm", [(5.0, 4.5)], seed=9)
    again = mark_as_reproduction(record(tmp_path, 1, "lstm", [(5.0, 4.5)], seed=9, fresh=True), original.run)
    paths = export(Store(tmp_path / "runs"), tmp_path / "out", OPTIONS)
    reader = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "out" / "tensorboard"))
    reader.Reload()
    assert set(reader.Runs()) == {run.run, original.run, f"reproductions/{again.run}"}
    assert tmp_path / "out" / "tensorboard" / "reproductions" / again.run in {path.parent for path in paths}
    found = {}
    for name in reader.Runs():
        content = reader.GetAccumulator(name).PluginTagToContent("hparams")["_hparams_/session_start_info"]
        hparams = plugin.HParamsPluginData.FromString(content).session_start_info.hparams
        found[name] = hparams["reproduces"].string_value if "reproduces" in hparams else None
    assert found == {run.run: None, original.run: None, f"reproductions/{again.run}": original.run}


def test_values_after_the_point_of_a_resume_are_dropped(
    run: Run, tmp_path: Path, accumulator: Callable[[Path], Any]
) -> None:
    append_events(
        run.paths,
        factories.progress(2, 2, 4.9),
        factories.progress(2, 4, 9.9),
        factories.started(attempt=2),
        Resumed(epoch=2, step=2),
        factories.progress(2, 4, 4.8),
        *factories.epoch_events(2, 4.5),
    )
    (path,) = export(Store(tmp_path / "runs"), tmp_path / "out", OPTIONS)
    reader = accumulator(path.parent)
    reader.Reload()
    found = [(step, value) for _, step, value in scalars(reader, "loss/train")]
    assert found == [
        (step, single(loss)) for step, loss in ((4, 5.1), (8, 4.7), (10, 4.9), (12, 4.8), (12, 4.6), (16, 4.2))
    ]


def test_a_file_grows_by_appending_and_depends_on_the_log_alone(
    run: Run, tmp_path: Path, accumulator: Callable[[Path], Any]
) -> None:
    store, out = Store(tmp_path / "runs"), tmp_path / "out"
    path = export(store, out, OPTIONS)[0]
    before, inode = path.read_bytes(), path.stat().st_ino
    reader = accumulator(path.parent)
    reader.Reload()
    assert len(scalars(reader, "perplexity/validation")) == 1
    append_events(run.paths, Failed(error="out-of-memory", message="no", hint="no"))
    assert export(store, out, OPTIONS) == [path], "an event without values adds nothing"
    assert path.read_bytes() == before
    append_events(run.paths, Resumed(epoch=2, step=0), *factories.epoch_events(2, 4.5))
    tiny.lmconsole("export", "--format", "tensorboard", "--out", "out", cwd=tmp_path, check=0)  # another process
    after = path.read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)
    assert path.stat().st_ino == inode
    reader.Reload()
    assert len(scalars(reader, "perplexity/validation")) == 2
    export(Store(tmp_path / "runs"), tmp_path / "fresh", OPTIONS)
    assert event_file(tmp_path / "fresh", run).read_bytes() == after
    # What a killed export leaves is completed; anything else is replaced, but by another file: readers have it open.
    path.write_bytes(after[:-7])
    inode = path.stat().st_ino
    export(store, out, OPTIONS)
    assert (path.read_bytes(), path.stat().st_ino) == (after, inode)
    for damaged in (after[:50] + b"x" + after[51:], after + b"more", b"", after[:30] + b"x"):
        path.write_bytes(damaged)
        export(store, out, OPTIONS)
        assert path.read_bytes() == after


def test_files_are_kept_current_until_no_run_is_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulator: Callable[[Path], Any]
) -> None:
    first, second = tiny.queue_tiny(tmp_path), tiny.queue_tiny(tmp_path, "gpt1", number=5)
    out, reported = tmp_path / "out", list[Sequence[Path]]()
    append_events(first.paths, factories.started(), factories.progress(1, 2, 5.5))

    def steps() -> Iterator[None]:
        reader = accumulator(event_file(out, first).parent)
        reader.Reload()
        assert len(scalars(reader, "loss/train")) == 1, "before the first epoch"
        append_events(first.paths, factories.progress(1, 4, 5.4))
        yield
        reader.Reload()
        assert len(scalars(reader, "loss/train")) == 2
        append_events(first.paths, Stopped(epoch=1, step=4))
        append_events(second.paths, factories.started(), *factories.epoch_events(1, 5.0))
        yield
        event_file(out, second).write_bytes(b"overwritten by something else")
        append_events(second.paths, factories.finished())
        yield

    going = steps()
    running = {"runs": 3}

    def pause(duration: float) -> None:
        assert duration == POLL_S
        running["runs"] -= 1
        next(going)

    monkeypatch.setattr(time, "sleep", pause)
    # No worker holds the locks of these runs.
    monkeypatch.setattr("lmconsole.report.export.pending", lambda store, runs: list(runs)[: running["runs"]])
    keep_current(Store(tmp_path / "runs"), out, OPTIONS, reported.append)
    assert [len(paths) for paths in reported] == [1, 2]
    export(Store(tmp_path / "runs"), tmp_path / "fresh", OPTIONS)
    assert contents(tmp_path / "fresh") == contents(out)


def test_every_run_is_written_unless_options_name_some(tmp_path: Path) -> None:
    runs = [record(tmp_path, 1, "lstm", [(5.0, 4.5)]), record(tmp_path, 5, "gpt1", [(5.0, 4.5)], epochs=7)]
    source = tmp_path / "elsewhere"
    source.mkdir()
    (source / "args.json").write_text('{"model": "lstm", "layers": 1, "optimizer": "adam", "epochs": 2}')
    (source / "valid_ppl.txt").write_text("99\n98\n")
    tiny.lmconsole("import", "elsewhere", cwd=tmp_path, check=0)
    store = Store(tmp_path / "runs")
    written = {name: export(store, tmp_path / name, options) for name, options in {
        "all": OPTIONS,
        "one": ExportOptions(file_format="tensorboard", run=runs[1].run),
        "imported": ExportOptions(file_format="tensorboard", imported=True),
        "preset": ExportOptions(file_format="tensorboard", preset="tiny"),
    }.items()}  # fmt: skip
    assert {name: len(paths) for name, paths in written.items()} == {"all": 3, "one": 1, "imported": 1, "preset": 2}
    assert written["one"][0].parent.name == runs[1].run
    with pytest.raises(ExportError, match="no run of preset 'paper'"):
        export(store, tmp_path / "none", ExportOptions(file_format="tensorboard", preset="paper"))
    assert not (tmp_path / "none").exists()


def test_imported_runs_count_epochs_as_steps(tmp_path: Path, accumulator: Callable[[Path], Any]) -> None:
    source = tmp_path / "elsewhere"
    source.mkdir()
    (source / "args.json").write_text('{"model": "lstm", "layers": 1, "optimizer": "adam", "epochs": 2}')
    (source / "valid_ppl.txt").write_text("99\n98\n")
    tiny.lmconsole("import", "elsewhere", cwd=tmp_path, check=0)
    (path,) = export(Store(tmp_path / "runs"), tmp_path / "out", OPTIONS)
    reader = accumulator(path.parent)
    reader.Reload()
    assert [(step, value) for _, step, value in scalars(reader, "perplexity/validation")] == [(1, 99.0), (2, 98.0)]


def test_a_hostile_store_costs_no_other_run_and_leads_nowhere(
    run: Run, tmp_path: Path, accumulator: Callable[[Path], Any]
) -> None:
    """Names, times and numbers may be anything; so may what is in the folder of the export."""
    store, out, outside = tmp_path / "runs", tmp_path / "out", tmp_path / "outside"
    strange = store / "\x1b[31m\u202e name\n"
    shutil.copytree(run.paths.folder, strange)
    lines = [json.loads(line) for line in (strange / "events.jsonl").read_text().splitlines()]
    for line, t in zip(
        lines, ("", "now", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "x" * 999), strict=False
    ):
        line["t"] = t
    for number, kind in enumerate(("progress", "resumed"), len(lines) + 1):
        huge = {"kind": kind, "seq": number, "t": "", "epoch": 1_000_000, "step": 2**53, "steps": 2**53}
        lines.append(huge | {"train_loss_nats": 1e39, "tokens_per_s": 0.0, "elapsed_train_s": 0.0})
    lines[-3] |= {"valid_ppl": 1e300, "train_ppl": None, "non_finite": {"train_ppl": "nan"}}
    (strange / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "garbage\n")
    similar = store / "\x1b[31m\u202e_name_"
    shutil.copytree(strange, similar)
    unreadable = store / "unreadable"
    unreadable.mkdir()
    (unreadable / "run.json").write_text("{}")
    without_log = store / "without-log"
    shutil.copytree(run.paths.folder, without_log)
    (without_log / "events.jsonl").unlink()
    outside.mkdir()
    (outside / "mine").write_text("mine")
    target = out / "tensorboard" / run.run
    target.mkdir(parents=True)
    first = export(Store(store), tmp_path / "names", OPTIONS)[0].name
    (target / first).symlink_to(outside / "mine")

    warnings: list[str] = []
    paths = export(Store(store), out, OPTIONS, warn=warnings.append)
    assert len(paths) == len(set(paths)) == 3
    assert all(path.is_file() and not path.is_symlink() for path in paths), "the link was replaced"
    assert all(path.parent.parent == out / "tensorboard" and path.parent.name.isprintable() for path in paths)
    assert sorted("unreadable" in each or "without-log" in each for each in warnings) == [True, True]
    assert (outside / "mine").read_text() == "mine"
    odd = next(path for path in paths if path.parent.name != run.run)
    reader = accumulator(odd.parent)
    reader.Reload()
    assert [value for *_, value in scalars(reader, "perplexity/validation")] == [INF]
    assert str(scalars(reader, "perplexity/train")[0][2]) == "nan"


def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5)])
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tensorboard").symlink_to(tmp_path / "outside")
    with pytest.raises(ExportError, match="symbolic link, which is not followed"):
        export(Store(tmp_path / "runs"), tmp_path / "out", OPTIONS)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_full_disk_leaves_whole_records(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, out = Store(tmp_path / "runs"), tmp_path / "out"
    (path,) = export(store, out, OPTIONS)
    before = path.read_bytes()
    append_events(run.paths, *factories.epoch_events(2, 4.5))
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:20])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(ExportError, match="No space left on device") as error:
            export(store, out, OPTIONS)
    assert str(path) in error.value.message
    assert path.read_bytes() == before


def test_nothing_to_export_and_a_missing_package_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "runs")
    with pytest.raises(ExportError, match="the store has no runs"):
        export(store, tmp_path / "out", OPTIONS)
    tiny.queue_tiny(tmp_path)
    with pytest.raises(ExportError, match="1 run, none of which has started"):
        export(store, tmp_path / "out", OPTIONS)
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(ExportError, match="needs tensorboard, which is not installed") as error:
        export(store, tmp_path / "out", OPTIONS)
    assert "tensorboard" in str(error.value.hint)
    assert not (tmp_path / "out").exists()
