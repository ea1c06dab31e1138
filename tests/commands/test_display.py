"""Displays of runs in progress: a live table on a terminal, plain lines elsewhere."""

import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import factories
import pytest
import tiny

from lmconsole import formatting
from lmconsole.commands.display import active_table, sentence
from lmconsole.commands.output import console
from lmconsole.commands.results import results_table
from lmconsole.runs.events import Epoch, Event, Failed, Finished
from lmconsole.runs.store import Run

STARTED = factories.started()


def epoch(n: int) -> Epoch:
    return factories.epoch(n, 5.5, 5.0, train_s=10.0, valid_s=2.0, elapsed_train_s=10.0 * n)


def run_with(root: Path, *events: Event) -> Run:
    run = tiny.queue_tiny(root, epochs=4)
    factories.append_events(run.paths, *events)
    run.refresh()
    run._lost = False
    return run


PROGRESS = factories.progress(2, 5, steps=10, elapsed_train_s=15.0)


def test_a_row_of_the_live_table_is_complete(tmp_path: Path) -> None:
    run = run_with(tmp_path, STARTED, epoch(1), PROGRESS)
    out = console()
    out.width = 80
    with out.capture() as captured:
        out.print(active_table([run]))
    line = captured.get().splitlines()[1].split()
    assert line == ["1", "LSTM", "1L", "Adam", "2/4", "5/10", "12.3k", "148.4", "244.7", "31", "s"]


def test_the_time_left_follows_from_the_runs_own_speed_with_validation(tmp_path: Path) -> None:
    run = run_with(tmp_path, STARTED, epoch(1), PROGRESS)
    assert run.state.seconds_left(run.info.settings.epochs) == pytest.approx(10.0 * 2.5 + 2.0 * 3)
    assert run_with(tmp_path / "new", STARTED).state.seconds_left(6) is None


def test_evaluations_within_epochs_are_shown(tmp_path: Path) -> None:
    latest = factories.evaluation(2, 4, math.log(200.0), steps=10, elapsed_train_s=14.0)
    run = run_with(tmp_path, STARTED, epoch(1), latest, PROGRESS)
    assert sentence(run, latest) == "epoch 2/4, step 4/10  valid ppl 200.0  14 s"
    out = console()
    with out.capture() as captured:
        out.print(active_table([run]))
    assert " 200.0 " in captured.get()


def test_sentences_name_the_outcome_and_advice(tmp_path: Path) -> None:
    run = run_with(tmp_path, STARTED, epoch(1), PROGRESS)
    assert sentence(run, epoch(1)) == "epoch 1/4  train ppl 148.4  valid ppl 244.7  79 tokens/s  10 s"
    failed = sentence(run, Failed(error="x", message="it broke", hint="fix it"))
    assert failed == "failed: it broke\n   fix it"
    diverged = Finished(
        test_ppl_final=None, test_ppl_best=None, best_epoch=None, best_valid_ppl=None, setup_s=0.0, wall_s=0.0,
        diverged=True, non_finite={"test_ppl_final": "nan"},
    )  # fmt: skip
    assert sentence(run, diverged) == "finished (diverged)  best valid ppl – in epoch –  test ppl –"
    assert sentence(run, PROGRESS) is None


def test_names_from_files_are_shown_as_text(tmp_path: Path) -> None:
    file = tiny.write_experiments(tmp_path / "mine.toml", tiny.row(1, more='name = "[red]x[/red] ../ \\"y\\""'))
    out = tiny.lmconsole("list", "--experiments", str(file), cwd=tmp_path, check=0).stdout
    assert '[red]x[/red] ../ "y"' in out


def test_the_results_fit_eighty_columns(tmp_path: Path) -> None:
    run = run_with(tmp_path, STARTED, epoch(1), PROGRESS)
    out = console()
    out.width = 80
    with out.capture() as captured:
        out.print(results_table([run, run]))
    assert "…" not in captured.get()
    assert max(map(len, captured.get().splitlines())) <= 80


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (3.14159, "3.1"), (999.94, "999.9"), (2048.4, "2,048"), (1e12, "1.0e+12"), (float("inf"), "inf")],
)
def test_perplexities(value: float | None, text: str) -> None:
    assert formatting.perplexity(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3599, "59:59 min"),
     (3600, "1:00:00 h"), (90_061, "1 d 01 h"), (float("inf"), "–")],
)  # fmt: skip
def test_durations(value: float | None, text: str) -> None:
    assert formatting.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (12.3, "12"), (1_500, "1.5k"), (250_000, "250k"), (2e6, "2.0M")]
)
def test_rates(value: float | None, text: str) -> None:
    assert formatting.rate(value) == text


@pytest.mark.slow
def test_on_a_terminal_progress_is_drawn_in_place_and_the_terminal_left_as_it_was(tmp_path: Path) -> None:
    file = tiny.write_experiments(tmp_path / "mine.toml", tiny.row(1, more="epochs = 60"))
    data = tiny.write_corpus(tmp_path / "data")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lmconsole", "run", "1", "--headless", "--preset", "tiny", "--experiments", str(file),
         "--data", str(data), "--no-export", "--jobs", "2"],
        cwd=tmp_path, env=tiny.environment(tmp_path) | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([leader], [], [], 0.5)[0]:
            try:
                chunk = os.read(leader, 65536)
            except OSError:
                break
            if not chunk:
                break
            shown += chunk
    os.close(leader)
    assert process.wait(30) == 0
    text = shown.decode()
    assert "Tokens/s" in text
    assert "0/1 run" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is hidden once and shown again"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r" 1  LSTM 1L Adam +finished ", plain)
