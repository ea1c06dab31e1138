"""Checkpoints: a consistent copy, written in a thread, one at a time, and never torn."""

import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lmconsole.errors import TrainingError
from lmconsole.lm import checkpoint
from lmconsole.lm.checkpoint import CheckpointWriter, TrainState, save_interval_s
from lmconsole.runs.paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


def writer(paths: RunPaths) -> CheckpointWriter:
    return CheckpointWriter(paths, "hash", 0.0)


def parts(value: float) -> dict[str, Any]:
    weight = torch.full((4,), value)
    return {"model": {"w": weight}, "optimizer": {"state": {0: {"m": weight}}, "param_groups": [{"lr": weight}]}}


class Gate:
    """Blocks every write until the gate is opened, and records which have begun and ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        self.states: list[TrainState] = []
        self._open = threading.Event()
        real = checkpoint.save

        def save(paths: RunPaths, state: TrainState, parts: dict[str, Any], config_hash: str) -> None:
            self.order.append(f"begin {state.step}")
            self.states.append(state)
            self._open.wait()
            real(paths, state, parts, config_hash)
            self.order.append(f"end {state.step}")

        monkeypatch.setattr(checkpoint, "save", save)

    def open(self) -> None:
        self._open.set()

    def open_when_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = CheckpointWriter.join

        def join(writer: CheckpointWriter) -> None:
            if writer.busy:
                self.open()
            real(writer)

        monkeypatch.setattr(CheckpointWriter, "join", join)


@pytest.mark.parametrize(("write_s", "interval_s"), [(0.0, 10.0), (0.2, 10.0), (1.0, 10.0), (1.5, 15.0), (60.0, 600.0)])
def test_checkpoints_are_ten_seconds_apart_or_ten_times_a_write(write_s: float, interval_s: float) -> None:
    assert save_interval_s(write_s) == interval_s


def test_a_checkpoint_is_due_after_enough_training_since_the_last_write(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: 0.0))  # a write takes no time
    gate, one = Gate(monkeypatch), CheckpointWriter(paths, "hash", 100.0)
    assert not one.due(109.5)
    assert one.due(110.0)
    one.submit(TrainState(elapsed_train_s=110.0), parts(1.0))
    try:
        assert not one.due(130.0), "one is being written"
    finally:
        gate.open()
    one.wait()
    assert not one.due(130.5), "the interval starts where the write is seen to be done"
    assert not one.due(140.0)
    assert one.due(140.5)


def test_a_slow_write_delays_the_next_checkpoint(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now_s = 0.0

        def monotonic(self) -> float:
            return self.now_s

    clock, real = Clock(), checkpoint.save

    def save(*arguments: Any) -> None:
        real(*arguments)
        clock.now_s += 2.5

    monkeypatch.setattr(checkpoint, "time", clock)
    monkeypatch.setattr(checkpoint, "save", save)
    one = writer(paths)
    one.submit(TrainState(), parts(1.0))
    one.wait()
    assert one.write_s == 2.5
    assert not one.due(0.0)
    assert not one.due(24.5)
    assert one.due(25.0)


def test_a_checkpoint_does_not_change_while_training_goes_on(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, one, content, state = Gate(monkeypatch), writer(paths), parts(1.0), TrainState(step=1)
    one.submit(state, content)
    state.step = 2
    content["model"]["w"].fill_(2.0)  # the optimizer's state shares it here
    content["optimizer"]["param_groups"][0]["lr"] = 3.0
    gate.open()
    one.wait()
    read = torch.load(paths.checkpoint, weights_only=True)
    assert read["cursor"]["step"] == 1
    expected = torch.ones(4)
    assert read["model"]["w"].equal(expected)
    assert read["optimizer"]["state"][0]["m"].equal(expected)
    assert read["optimizer"]["param_groups"][0]["lr"].equal(expected)


def test_the_best_weights_are_not_copied_for_a_checkpoint(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, one = Gate(monkeypatch), writer(paths)
    gate.open()
    weights = {"w": torch.ones(2)}
    one.submit(TrainState(best_weights=weights), parts(1.0))
    one.wait()
    assert gate.states[0].best_weights is weights


def test_a_second_write_waits_for_the_first(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, one = Gate(monkeypatch), writer(paths)
    gate.open_when_waited_for(monkeypatch)
    try:
        one.submit(TrainState(step=1), parts(1.0))
        was_busy = one.busy
        one.submit(TrainState(step=2), parts(2.0))
        assert gate.order[:2] == ["begin 1", "end 1"]
        one.wait()
    finally:
        gate.open()
    assert gate.order == ["begin 1", "end 1", "begin 2", "end 2"]
    assert (was_busy, one.busy) == (True, False)
    older, newer = (torch.load(path, weights_only=True) for path in (paths.previous_checkpoint, paths.checkpoint))
    assert (older["cursor"]["step"], newer["cursor"]["step"]) == (1, 2)


def test_a_failed_write_raises_its_error_at_every_later_call(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    one = writer(paths)
    one.submit(TrainState(), parts(1.0))
    one.join()
    monkeypatch.undo()
    for ask in (one.check, one.wait, lambda: one.due(0.0), lambda: one.submit(TrainState(), parts(1.0))):
        with pytest.raises(TrainingError, match="No space left") as raised:
            ask()
        assert raised.value.kind == "disk-full"
    assert not list(paths.folder.iterdir())


def test_any_error_reaches_the_training_thread(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoint, "save", broken)
    one = writer(paths)
    one.submit(TrainState(), parts(1.0))
    with pytest.raises(MemoryError):
        one.wait()


def test_a_process_that_exits_finishes_its_write(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, one = Gate(monkeypatch), writer(paths)
    one.submit(TrainState(), parts(1.0))
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    gate.open()
    assert not thread.daemon
    one.wait()


def test_best_weights_are_replaced_atomically(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_best_weights(paths, {"body.w": torch.ones(2, 3).T}, {"epoch": "1"})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"best-weights\.safetensors: .*No space left"):
        checkpoint.save_best_weights(paths, {"body.w": torch.zeros(3, 2)}, {"epoch": "2"})
    assert list(paths.folder.iterdir()) == [paths.best_weights]
    with safe_open(paths.best_weights, "pt") as file:
        assert file.metadata() == {"epoch": "1", "sha256": checkpoint.weights_sha256({"body.w": torch.ones(3, 2)})}
        assert file.get_tensor("body.w").equal(torch.ones(3, 2))


def test_a_checkpoint_that_cannot_be_removed_is_only_reported(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.checkpoint.mkdir()
    paths.previous_checkpoint.write_bytes(b"a checkpoint")
    checkpoint.remove(paths)
    assert "checkpoint.pt is no longer needed but cannot be removed" in capsys.readouterr().out
    assert not paths.previous_checkpoint.exists()
    paths.checkpoint.rmdir()
    checkpoint.remove(paths)
    assert not list(paths.folder.iterdir())


@pytest.mark.parametrize("kind", ["link", "broken link", "pipe", "folder"])
@pytest.mark.parametrize(
    "name",
    [".checkpoint.tmp", "checkpoint.pt", "checkpoint-previous.pt", ".best-weights.tmp", "best-weights.safetensors"],
)
def test_nothing_is_written_through_what_stands_in_the_way(tmp_path: Path, kind: str, name: str) -> None:
    """A link or a pipe is replaced; a folder is named, and kept with its content."""
    (tmp_path / "run").mkdir()
    (tmp_path / "target").write_text("not ours")
    paths, other = RunPaths(tmp_path / "run"), tmp_path / "run" / name
    match kind:
        case "link":
            other.symlink_to(tmp_path / "target")
        case "broken link":
            other.symlink_to(tmp_path / "new")
        case "pipe":
            os.mkfifo(other)
        case "folder":
            other.mkdir()
            (other / "file").write_text("not ours")

    def save() -> None:
        for _ in range(2):
            checkpoint.save(paths, TrainState(), parts(1.0), "hash")
            checkpoint.save_best_weights(paths, {"w": torch.ones(2)}, {"epoch": "1"})

    if kind == "folder":
        with pytest.raises(TrainingError, match=r": (Is|Not) a directory: [a-z.-]+\n"):
            save()
        assert [path.read_text() for path in paths.folder.glob("*/file")] == ["not ours"]
    else:
        save()
        assert paths.checkpoint.is_file()
        assert paths.previous_checkpoint.is_file()
        assert paths.best_weights.is_file()
    assert (tmp_path / "target").read_text() == "not ours"
    assert not (tmp_path / "new").exists()
