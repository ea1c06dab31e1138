"""`lmconsole reproduce`, with real workers: the same bits, other bits, and reasons to refuse."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import factories
import msgspec
import pytest
import recorded
import tiny
import validation

from lmconsole.commands.reproduce import describe, reproduce
from lmconsole.errors import ExitCode, LmconsoleError, RunNotFoundError
from lmconsole.runs.agreement import Agreement, Difference, Parting, WeightDifference
from lmconsole.runs.events import Resumed, Stopped
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

STOP_IN_THE_SECOND_EPOCH = """
from lmconsole.lm import loop
def stop(training):
    if (training.state.epoch, training.state.step) == (2, 3):
        raise loop.StopRequested
loop.TICK_S = 0.0
loop.Training._raise_if_interrupted = stop
"""


def runs_in(root: Path) -> list[Run]:
    return Store(root / "runs").runs()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lstm", "gpt1"])
def test_a_run_that_was_stopped_and_resumed_is_reproduced_to_the_same_bits(model: str, tmp_path: Path) -> None:
    """The settings come from run.json: the experiments.toml with which the run was queued is gone."""
    original = tiny.queue_tiny(tmp_path, model, dropout=0.1, epochs=3, evaluate_every_steps=2)
    assert tiny.worker(original, tmp_path, STOP_IN_THE_SECOND_EPOCH).returncode == 0
    original.refresh()
    assert original.state.stopped == Stopped(epoch=2, step=3, seq=original.state.seq, t=original.state.last_t)
    assert tiny.queue_tiny(tmp_path, model, dropout=0.1, epochs=3, evaluate_every_steps=2).run == original.run
    assert tiny.worker(original, tmp_path).returncode == 0
    assert any(isinstance(event, Resumed) for event in original.refresh())
    (tmp_path / "experiments" / "1.toml").unlink()

    done = tiny.lmconsole("reproduce", "1", "--json", cwd=tmp_path, check=0)
    *events, agreement = [json.loads(line) for line in done.stdout.splitlines()]
    for document in (*events, agreement):
        validation.check_output(document, "reproduce")
    assert {event["run"] for event in events} == {agreement["run"]} != {original.run}
    assert agreement["reproduces"] == original.run
    assert (agreement["verdict"], agreement["epochs"], agreement["first"]) == ("same bits", 3, None)
    assert agreement["evaluations"] == len(original.state.evaluations) > 3
    assert agreement["weights"]["different"] == 0
    assert agreement["weights"]["tensors"] > 3
    before, after = runs_in(tmp_path)
    assert (before.run, after.info.reproduces) == (original.run, original.run)
    assert before.state.seq == original.state.seq, "nothing was written to the original"
    assert "exports" not in os.listdir(tmp_path)

    again = tiny.lmconsole("reproduce", "1", cwd=tmp_path, check=0)
    assert "already finished; --fresh trains it again" in again.stderr
    assert again.stdout.startswith("Same bits: the losses of 3 epochs and ")
    assert len(runs_in(tmp_path)) == 2


@pytest.mark.slow
def test_other_weights_at_the_start_are_other_bits_from_the_first_evaluation(tmp_path: Path) -> None:
    original = tiny.queue_tiny(tmp_path, evaluate_every_steps=2)
    other = "import torch; from lmconsole.lm import loop; torch.manual_seed = lambda seed: None"
    assert tiny.worker(original, tmp_path, other).returncode == 0
    done = tiny.lmconsole("reproduce", original.run, cwd=tmp_path, check=3)
    assert done.stdout.startswith("Different bits: the runs part by step 2 of epoch 1, in validation: ")
    assert "tensors differ, by at most " in done.stdout
    assert "Nothing that is recorded differs" in done.stdout
    (_, reproduction) = runs_in(tmp_path)
    named = tiny.lmconsole("reproduce", reproduction.run, "--json", cwd=tmp_path, check=3)
    (line,) = named.stdout.splitlines()
    assert (json.loads(line)["first"]["epoch"], json.loads(line)["first"]["step"]) == (1, 2)


@pytest.mark.slow
def test_an_interrupt_stops_the_reproduction_and_its_name_resumes_it(tmp_path: Path) -> None:
    original = tiny.queue_tiny(tmp_path, epochs=400)
    factories.append_events(original.paths, factories.started(), factories.epoch(1), factories.finished())
    process = subprocess.Popen(
        [sys.executable, "-m", "lmconsole", "reproduce", "1"],
        cwd=tmp_path, env=tiny.environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "  started on cpu" in line:
                break
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (ExitCode.INTERRUPTED, "")
    (_, stopped) = runs_in(tmp_path)
    assert stopped.status is Status.STOPPED
    assert stopped.info.reproduces == original.run


@pytest.mark.slow
def test_a_corpus_that_has_changed_is_refused_before_anything_is_queued(tmp_path: Path) -> None:
    original = tiny.queue_tiny(tmp_path)
    factories.append_events(original.paths, factories.started(), factories.epoch(1), factories.finished())
    (tmp_path / "data" / "train.txt").write_text("something else entirely. " * 99)
    done = tiny.lmconsole("reproduce", "1", cwd=tmp_path, check=2)
    assert "the corpus is not the one this run was queued with" in done.stderr
    done = tiny.lmconsole("reproduce", "1", "--device", "cuda", cwd=tmp_path, check=2)
    assert "--device" in done.stderr
    assert len(runs_in(tmp_path)) == 1


def test_a_finished_reproduction_is_compared_by_its_name_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = recorded.record(tmp_path, 1, "lstm", [(4.0, 4.5)])
    run = recorded.record(tmp_path, 1, "lstm", [(4.0, 4.5)], fresh=True)
    run = recorded.mark_as_reproduction(run, original.run)
    assert reproduce(tmp_path / "runs", run.run, "auto", fresh=False, json=True) is ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    validation.check_output(found, "reproduce")
    assert (found["run"], found["reproduces"], found["verdict"]) == (run.run, original.run, "same bits")
    original.paths.folder.rename(tmp_path / "deleted")
    with pytest.raises(RunNotFoundError, match=f"its original, {original.run}, is no longer in"):
        reproduce(tmp_path / "runs", run.run, "auto", fresh=False, json=True)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    with pytest.raises(LmconsoleError, match="only a finished run"):
        reproduce(tmp_path / "runs", run.run, "auto", fresh=False, json=False)


SAME = Agreement(
    run="b",
    reproduces="a",
    verdict="same bits",
    epochs=6,
    evaluations=0,
    first=None,
    test_difference_nats=0.0,
    seeds=5,
    seed_sd_nats=0.01,
    difference_in_sd=0.0,
    weights=WeightDifference(tensors=14, different=0, largest=0.0),
    differences=(),
    damage=(),
)
PARTED = msgspec.structs.replace(
    SAME,
    verdict="different",
    first=Parting(epoch=2, step=None, phase="valid", original_nats=4.5, reproduction_nats=4.25, difference_nats=-0.25),
    test_difference_nats=0.005,
    difference_in_sd=0.5,
    weights=WeightDifference(tensors=14, different=3, largest=0.001),
    differences=(Difference(name="torch", original="2.13", reproduction="2.14"),),
)


@pytest.mark.parametrize(
    ("agreement", "text"),
    [
        (SAME, "Same bits: the losses of 6 epochs, the test perplexities and the best weights (14 tensors)."),
        (
            msgspec.structs.replace(SAME, weights=None),
            (
                "Same bits: the losses of 6 epochs, the test perplexities.\n"
                "The best weights were not compared: one of the runs has none that can be read."
            ),
        ),
        (
            PARTED,
            (
                "Different bits: the runs part in epoch 2, in validation: 4.5 → 4.25 (-0.25 nats).\n"
                "Best weights: 3 of 14 tensors differ, by at most 0.001.\n"
                "Test loss with the best weights: +0.005 nats, 0.5 standard deviations (0.01 nats over 5 seeds).\n"
                "What differs between them: torch 2.13 → 2.14."
            ),
        ),
        (
            msgspec.structs.replace(SAME, evaluations=1),
            (
                "Same bits: the losses of 6 epochs and 1 evaluation within them, the test perplexities and the best "
                "weights (14 tensors)."
            ),
        ),
        (
            msgspec.structs.replace(
                PARTED,
                first=Parting(
                    epoch=2, step=1040, phase="valid", original_nats=4.5, reproduction_nats=4.25, difference_nats=-0.25
                ),
                test_difference_nats=None,
                weights=None,
            ),
            (
                "Different bits: the runs part by step 1,040 of epoch 2, in validation: 4.5 → 4.25 (-0.25 nats).\n"
                "The best weights were not compared: one of the runs has none that can be read.\n"
                "What differs between them: torch 2.13 → 2.14."
            ),
        ),
        (
            msgspec.structs.replace(
                PARTED,
                first=Parting(
                    epoch=1, step=None, phase="train", original_nats=None, reproduction_nats=4.0, difference_nats=None
                ),
                test_difference_nats=None,
                difference_in_sd=None,
                weights=None,
                differences=(),
            ),
            (
                "Different bits: the runs part in epoch 1, in training: no finite loss → 4.\n"
                "The best weights were not compared: one of the runs has none that can be read.\n"
                "Nothing that is recorded differs between them. On a GPU, some sums have no fixed order."
            ),
        ),
        (
            msgspec.structs.replace(SAME, verdict="incomplete", damage=("a: 1 epoch missing",)),
            "Same bits in the losses of 6 epochs, as far as they can be read. A log is damaged:\n  a: 1 epoch missing",
        ),
    ],
)
def test_the_comparison_is_said_in_sentences(agreement: Agreement, text: str) -> None:
    assert "\n".join(describe(agreement)) == text
