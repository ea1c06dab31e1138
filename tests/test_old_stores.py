"""A store that version 0.1.0 wrote opens with this version, and its stopped run is resumed to the same bits."""

import math
import shutil
from pathlib import Path

import pytest
import tiny

from lmconsole.engine.probe import ResolvedRun
from lmconsole.runs import endpoint
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import AnyEvent, Epoch, Finished, Resumed, Started
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

STORE = Path(__file__).parent / "stores" / "v0.1.0"
WRITTEN_IN = "/tmp/lmconsole-0.1.0"
WRITTEN_WITH = ("2.13.0", "AVX512")
"""PyTorch and the vector instructions of the CPU."""

FINISHED = ["01-lstm-1l-adam-tiny-s7-20261126T155330Z", "02-gpt1-2l-adamw-tiny-s7-20261126T155330Z"]
STOPPED = "03-gpt1-2l-adamw-tiny-s7-20261126T155439Z"
KILLED = "01-lstm-1l-adam-tiny-s8-20261126T155519Z"
IMPORTED = "101-gpt1-1l-adam-imported-s1-20261126T155541Z"
RUN = ("--preset", "tiny", "--data", "data", "--headless", "--no-export")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that the commands of 0.1.0 were given in, moved; the paths in its files move with it."""
    folder = tmp_path / "moved"
    shutil.copytree(STORE, folder)
    for file in [*folder.glob("runs/*/run.json"), *folder.glob("runs/*/events.jsonl")]:
        file.write_text(file.read_text(encoding="utf-8").replace(WRITTEN_IN, str(folder)), encoding="utf-8")
    return folder


def runs_in(folder: Path) -> dict[str, Run]:
    return {run.run: run for run in Store(folder / "runs").runs()}


def events_of(run: Run) -> list[AnyEvent]:
    return list(EventReader(run.paths.events).read_new())


def numbers_of(run: Run) -> list[float | None]:
    """Losses of every epoch, and the perplexities on the test split."""
    found: list[float | None] = []
    for event in events_of(run):
        if isinstance(event, Epoch):
            found += [event.train_loss_nats, event.valid_loss_nats]
        elif isinstance(event, Finished):
            found += [event.test_ppl_final, event.test_ppl_best, event.best_valid_ppl, event.best_epoch]
    return found


def on_one_kind_of_machine(run: Run) -> bool:
    """Return whether all attempts at a run, the first with version 0.1.0, had what decides the last bits of a loss."""
    import torch

    processors = {event.device_name for event in events_of(run) if isinstance(event, Started)}
    here = torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()
    return len(processors) == 1 and here == WRITTEN_WITH


def test_every_run_is_read_whole(folder: Path) -> None:
    runs = runs_in(folder)
    assert {name: run.status for name, run in runs.items()} == {
        **dict.fromkeys(FINISHED, Status.FINISHED),
        STOPPED: Status.STOPPED,
        KILLED: Status.FAILED,
        IMPORTED: Status.FINISHED,
    }
    for run in runs.values():
        assert run.info.version == "0.1.0"
        assert (run.state.damaged, run.problem) == (0, None)
        assert endpoint.read_test_losses(run) is None
        assert endpoint.bits_per_byte(run.state.finished, run.info.corpus) is None
        assert not run.can_be_tested
    for name in FINISHED:
        finished = runs[name].state.finished
        assert finished is not None
        assert finished.test_ppl_best == pytest.approx(math.exp(endpoint.test_nll_best(runs[name]) or 0.0))
    assert endpoint.test_nll_best(runs[IMPORTED]) is None
    for run in runs.values():
        lines = run.paths.events.read_text(encoding="utf-8").splitlines()
        assert [event.seq for event in events_of(run)] == list(range(1, len(lines) + 1))


def test_every_run_has_the_hash_that_this_version_gives_it(folder: Path) -> None:
    for run in runs_in(folder).values():
        if run.info.origin == "trained":
            names = ("experiment", "preset", "settings", "seed", "origins", "corpus", "embeddings")
            resolved = ResolvedRun(**{name: getattr(run.info, name) for name in names}, threads=1)
            assert resolved.config_hash == run.info.config_hash


def test_a_finished_run_is_not_repeated(folder: Path) -> None:
    done = tiny.lmconsole("run", "1", "2", "--seeds", "7", *RUN, cwd=folder, check=0)
    assert done.stderr.count("already finished") == 2
    assert set(runs_in(folder)) == {*FINISHED, STOPPED, KILLED, IMPORTED}


def test_a_stopped_run_is_resumed_to_the_numbers_of_one_that_was_never_interrupted(folder: Path) -> None:
    tiny.lmconsole("run", "3", "--seeds", "7", *RUN, cwd=folder, check=0)
    runs = runs_in(folder)
    assert set(runs) == {*FINISHED, STOPPED, KILLED, IMPORTED}
    assert [(e.epoch, e.step) for e in events_of(runs[STOPPED]) if isinstance(e, Resumed)] == [(3, 61)]
    resumed, uninterrupted = numbers_of(runs[STOPPED]), numbers_of(runs[FINISHED[1]])
    assert len(resumed) == 14
    if on_one_kind_of_machine(runs[STOPPED]):
        assert resumed == uninterrupted
    else:
        assert resumed == pytest.approx(uninterrupted, rel=2e-2)  # small differences grow while it trains


def test_a_killed_run_is_resumed_from_its_checkpoint(folder: Path) -> None:
    tiny.lmconsole("run", "1", "--seeds", "8", *RUN, cwd=folder, check=0)
    run = runs_in(folder)[KILLED]
    assert run.status is Status.FINISHED
    assert [(e.epoch, e.step) for e in events_of(run) if isinstance(e, Resumed)] == [(2, 0)]
    assert [e.epoch for e in events_of(run) if isinstance(e, Epoch)] == [1, 2, 3, 4, 5]


def test_its_results_are_exported(folder: Path) -> None:
    tiny.lmconsole("export", "--preset", "tiny", cwd=folder, check=0)
    table = (folder / "exports" / "table-1-results.md").read_text(encoding="utf-8")
    epochs = [e for e in events_of(runs_in(folder)[FINISHED[1]]) if isinstance(e, Epoch)]
    best = min(epochs, key=lambda epoch: epoch.valid_ppl or 0.0)
    (row,) = [line for line in table.splitlines() if f"{best.valid_ppl:.3f}" in line]
    assert "GPT-1" in row
