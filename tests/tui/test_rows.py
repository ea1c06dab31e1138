"""The rows of the experiments table."""

import math
import shutil
from collections.abc import Iterable
from typing import Any

import pytest
from factories import STEPS, epoch, epoch_events, finished, progress, started
from recorded import mark_as_reproduction
from tui.stage import Recorded, Stage, following, wait_for_snapshot

from lmconsole.engine.queue import requeue
from lmconsole.plan.experiment import Experiment
from lmconsole.runs.events import Finished, Stopped
from lmconsole.runs.permissions import Permissions
from lmconsole.runs.store import Store
from lmconsole.tui.filter import parse_filter
from lmconsole.tui.plot.glyphs import ASCII, UNICODE
from lmconsole.tui.row_filter import matches as row_matches
from lmconsole.tui.rows import COLUMNS, Row, build_rows
from lmconsole.tui.sorting import Sort


def rows(stage: Stage, *, experiments: tuple[Experiment, ...] | None = None, **more: Any) -> list[Row]:
    """Return the rows for the store."""
    with following(stage.store.root) as feed:
        runs = wait_for_snapshot(feed, lambda now: len(now.runs) == len(stage.store.names())).runs
    given: dict[str, Any] = {"checked": frozenset(), "unfolded": frozenset(), "wide": False, "glyphs": UNICODE}
    given |= {"problems": {}} | more
    return build_rows(stage.plan.experiments if experiments is None else experiments, runs.values(), **given)


def matches(row: Row, text: str) -> bool:
    """Return whether a filter shows the row."""
    return row_matches(row, parse_filter(text), lambda experiment: {})


def ids(rows: Iterable[Row]) -> list[int]:
    """Return the ids of the experiments."""
    return [row.experiment.id for row in rows if row.experiment]


def cell(row: Row, column: str) -> str:
    """Return the text in a column."""
    return row.cells[COLUMNS.index(column)]


def order(row: Row, column: str) -> float:
    """Return the sort key of a column."""
    return row.sort_keys[COLUMNS.index(column)][0]


def status(stage: Stage, number: int = 1, **more: Any) -> str:
    """Return the status of an experiment."""
    return cell(rows(stage, **more)[number - 1], "Status")


def test_an_untrained_experiment_has_a_dash_as_status(stage: Stage) -> None:
    made = rows(stage)
    assert ids(made) == list(range(1, 13))
    assert made[8].cells == ("□", "9", "LSTM", "2", "AdamW", "–", "", "", "", "", "", "")
    assert (made[8].run, made[8].status_style) == (None, "")


def test_a_finished_run_shows_its_best_epoch_its_time_and_its_trend(stage: Stage) -> None:
    run = stage.record(5, valid=(6.0, 5.0, 5.5))
    row = rows(stage)[4]
    best, train = math.exp(5.0), math.exp(4.8)
    assert row.cells == (
        "□",
        "5",
        "GPT-1",
        "1",
        "Adam",
        "finished",
        f"{train:.1f}",
        f"{best:.1f}",
        "",
        "12 s",
        "█▁▅",
        "",
    )
    assert (order(row, "Valid"), order(row, "Train")) == pytest.approx((best, train))
    assert row.run is not None
    assert (row.run.run, row.status_style) == (run.run, "finished")


@pytest.mark.parametrize(
    ("given", "narrow", "wide"),
    [
        ("queued", "queued 1", "queued, 1 of 1"),
        ("running", "5/6 8.0 s left", "epoch 5/6 step 4/8, 8.0 s left"),
        ("stopped", "stopped in 5/6", "stopped in 5/6"),
        ("lost", "lost in 5/6", "lost in 5/6"),
        ("failed", "failed", "failed"),
        ("finished", "finished", "finished"),
    ],
)
def test_a_status_is_short_or_long_by_the_width(stage: Stage, given: str, narrow: str, wide: str) -> None:
    stage.record(1, given)
    assert (status(stage), status(stage, wide=True)) == (narrow, wide)
    assert rows(stage)[0].status_style == given


def test_a_running_run_is_starting_training_and_testing(stage: Stage) -> None:
    run = stage.queue(1, epochs=1)
    run.holder = stage.hold(run.paths.lock)
    run.append(started())
    assert status(stage) == "starting"
    run.append(progress(1, 1, 7.0))
    assert status(stage).startswith("1/1 ")
    run.append(progress(1, STEPS, 6.5))
    assert "left" in status(stage), "validation is still to come"
    run.append(epoch(1, 6.0))
    assert status(stage) == "testing"
    run.end(finished([6.0]))
    assert status(stage) == "finished"


def test_queued_runs_show_their_position_and_sort_by_it(stage: Stage) -> None:
    for number in (5, 2, 9):
        stage.queue(number)
    stage.record(1, "running")
    again = stage.record(3, "stopped")
    requeue(stage.store, [again.run])
    stage.queue(12)
    made = rows(stage)
    assert [cell(made[n - 1], "Status") for n in (5, 2, 9, 3, 12)] == [f"queued {place}" for place in range(1, 6)]
    assert status(stage, 3, wide=True) == "queued, 4 of 5"
    assert {made[n - 1].status_style for n in (5, 2, 9, 3, 12)} == {"queued"}
    by_status = sorted(made, key=lambda row: row.sort_keys[COLUMNS.index("Status")])
    assert ids(by_status)[:6] == [1, 5, 2, 9, 3, 12]


def test_a_run_that_nobody_will_start_has_no_place_in_the_queue(stage: Stage) -> None:
    for number in (5, 2):
        strange = stage.queue(number)
    Permissions(stage.store.root).forget(strange.run)
    assert status(stage, 5, wide=True) == "queued, 1 of 1"
    assert status(stage, 2, wide=True) == "queued, not by you"
    assert status(stage, 2) == "queued"


def test_a_group_shows_the_position_of_its_next_seed(stage: Stage) -> None:
    stage.record(4, seed=1, epochs=6)
    stage.queue(8, epochs=6)
    for seed in (3, 2):
        stage.queue(4, seed=seed, epochs=6)
    made = rows(stage, wide=True, unfolded=frozenset({"/4"}))
    assert cell(made[3], "Status") == "1/3 seeds, queued 2"
    assert [cell(row, "Status") for row in made[4:7]] == ["queued, 3 of 3", "queued, 2 of 3", "finished"]
    assert status(stage, 4) == "1/3 seeds, queued"


def test_a_run_that_was_asked_to_stop_is_stopping(stage: Stage) -> None:
    run = stage.record(1, "running")
    run.paths.stop.touch()
    assert status(stage) == "stopping"


def test_a_run_stopped_after_its_last_epoch_is_shown_in_its_last_epoch(stage: Stage) -> None:
    run = stage.queue(1, epochs=2)
    run.append(started(), *epoch_events(1, 6.0), *epoch_events(2, 5.5), Stopped(epoch=3, step=0))
    assert status(stage) == "stopped in 2/2"


def test_a_run_that_stopped_early_or_diverged_is_not_just_finished(stage: Stage) -> None:
    early = stage.queue(1, epochs=6)
    early.append(started(), *epoch_events(1, 6.0), finished([6.0], stopped_early=True))
    stage.record(2, "diverged", valid=(6.0, math.nan, math.nan))
    made = rows(stage)
    assert cell(made[0], "Status") == "stopped early"
    assert (cell(made[1], "Status"), made[1].status_style) == ("diverged", "diverged")
    assert cell(made[1], "Valid") == f"{math.exp(6.0):.1f}", "the best epoch"


def test_a_run_without_finite_losses_shows_nan_and_sorts_as_unknown(stage: Stage) -> None:
    stage.record(1, "diverged", valid=(math.nan, math.nan))
    row = rows(stage)[0]
    assert (cell(row, "Valid"), cell(row, "Trend")) == ("nan", "")
    assert order(row, "Valid") == math.inf


def test_an_infinite_loss_is_left_out_of_the_trend(stage: Stage) -> None:
    stage.record(1, "diverged", valid=(6.0, 5.5, math.inf))
    row = rows(stage)[0]
    assert cell(row, "Valid") == f"{math.exp(5.5):.1f}"
    assert cell(row, "Trend") == "█▁"


def test_seeds_of_one_experiment_are_one_row_with_their_mean(stage: Stage) -> None:
    for seed, best in ((1, 5.0), (2, 5.2), (3, 5.4)):
        stage.record(4, seed=seed, valid=(6.0, best))
    made = rows(stage)
    assert len(made) == 12
    assert cell(made[3], "") == "□▸"
    assert cell(made[3], "Status") == "3/3 seeds"
    assert status(stage, 4, wide=True) == "finished, 3 seeds"
    mean = (math.exp(5.0) + math.exp(5.2) + math.exp(5.4)) / 3
    assert cell(made[3], "Valid") == f"{mean:.1f}"


def test_finished_seeds_are_counted(stage: Stage) -> None:
    stage.record(4, seed=1, epochs=6)
    stage.record(4, "running", seed=2)
    stage.record(4, "queued", seed=3, epochs=6)
    made = rows(stage)[3]
    assert (cell(made, "Status"), made.status_style) == ("1/3 seeds, running", "running")
    assert status(stage, 4, wide=True) == "1/3 seeds, 5/6 8.0 s left"


def test_a_failed_seed_decides_the_status_of_its_group(stage: Stage) -> None:
    stage.record(4, "failed", seed=1)
    stage.record(4, seed=2, epochs=6)
    stage.record(4, seed=3, epochs=6)
    made = rows(stage)[3]
    assert (cell(made, "Status"), made.status_style) == ("2/3 seeds, failed", "failed")


def test_an_unfolded_experiment_shows_its_runs_newest_first(stage: Stage) -> None:
    runs = [stage.record(4, seed=seed) for seed in (1, 2, 3)]
    made = rows(stage, unfolded=frozenset({"/4"}), checked=frozenset({runs[1].run}))
    assert len(made) == 15
    assert cell(made[3], "") == "□▾"
    children = made[4:7]
    assert [row.key for row in children] == [run.run for run in reversed(runs)]
    assert [row.cells[:5] for row in children] == [
        ("└□", "", "demo", "", "seed 3"),
        ("└■", "", "demo", "", "seed 2"),
        ("└□", "", "demo", "", "seed 1"),
    ]
    assert all(row.child for row in children)


def test_runs_with_other_settings_are_not_in_the_group(stage: Stage) -> None:
    stage.record(4, seed=1, valid=(6.0, 3.0), learning_rate=0.5)
    stage.record(4, seed=1, valid=(6.0, 5.0))
    stage.record(4, seed=2, valid=(6.0, 5.0))
    made = rows(stage, unfolded=frozenset({"/4"}))
    assert cell(made[3], "Status") == "2/2 seeds"
    assert cell(made[3], "Valid") == f"{math.exp(5.0):.1f}"
    assert len(made) == 15, "the older run has a row as well"


def test_of_two_runs_with_the_same_seed_the_newer_one_counts(stage: Stage) -> None:
    stage.record(4, valid=(6.0, 5.0))
    newer = stage.record(4, valid=(6.0, 5.5))
    row = rows(stage)[3]
    assert (cell(row, "Status"), cell(row, "Valid")) == ("finished", f"{math.exp(5.5):.1f}")
    assert row.run is not None
    assert row.run.run == newer.run


def test_experiments_that_only_runs_know_come_last(stage: Stage) -> None:
    stage.record(2)
    made = rows(stage, experiments=stage.plan.experiments[4:])
    assert ids(made) == [*range(5, 13), 2]
    assert cell(made[-1], "Status") == "finished"


def test_runs_that_are_unreadable_or_block_have_a_problem(stage: Stage) -> None:
    unreadable, stuck = stage.record(1), stage.record(2)
    shutil.copy(unreadable.paths.info, unreadable.paths.events)  # not an event log
    made = rows(stage, problems={stuck.run: "its files do not answer"})
    assert [cell(row, "Status") for row in made[:2]] == ["unreadable", "not answering"]
    assert [row.status_style for row in made[:2]] == ["problem", "problem"]


def damage(run: Recorded) -> None:
    with run.paths.events.open("ab") as log:
        log.write(b"\x00\x00\n")


def test_damaged_runs_are_marked_and_can_be_filtered(stage: Stage) -> None:
    for seed in (1, 2):
        run = stage.record(4, seed=seed)
    damage(run)
    damage(stage.record(2, "stopped"))
    stage.record(3)
    made = rows(stage, unfolded=frozenset({"/4"}), wide=True)
    assert [cell(made[n], "Status") for n in (1, 2)] == ["§ stopped in 5/6", "finished"]
    assert [cell(row, "Status") for row in made[3:6]] == ["§ finished, 2 seeds", "§ finished", "finished"]
    assert [row.damaged for row in made[1:6]] == [True, False, True, True, False]
    assert [row.status_style for row in made[3:6]] == ["damaged", "damaged", "finished"]
    assert ids(row for row in made if matches(row, "damaged")) == [4, 4]
    assert cell(rows(stage, glyphs=ASCII)[1], "Status") == "! stopped in 5/6"


def test_an_imported_run_without_its_end_is_not_queued(stage: Stage) -> None:
    run = stage.queue(1)
    run.paths.info.write_text(run.paths.info.read_text().replace('"origin": "trained"', '"origin": "imported"'))
    run.append(epoch(1, 5.0))
    stage.queue(2)
    made = rows(stage)
    assert [cell(row, "Status") for row in made[:2]] == ["imported, 1/6", "queued 1"]
    assert made[0].status_style == "lost"


def test_control_characters_in_names_are_escaped(stage: Stage) -> None:
    named = Experiment(id=1, model="lstm", layers=1, optimizer="adam", name="\x1b[31mmine\u202e")
    assert cell(rows(stage, experiments=(named,))[0], "Optimizer") == "\\x1b[31mmine\\u202e"


def test_without_unicode_a_row_is_ascii_except_for_dashes(stage: Stage) -> None:
    stage.record(4, seed=1)
    stage.record(4, seed=2)
    made = rows(stage, unfolded=frozenset({"/4"}), checked=frozenset({"/4"}), glyphs=ASCII)
    assert [cell(row, "") for row in made[3:6]] == ["xv", "`.", "`."]
    assert all("".join(row.cells).replace("–", "-").isascii() for row in made)


@pytest.mark.parametrize(
    ("words", "matching"),
    [
        ("", list(range(1, 13))),
        ("lstm", [1, 2, 3, 4, 9, 10]),
        ("GPT adamw", [6, 11, 12]),
        ("finished", [3]),
        ("sgd -s42-", [3]),
        ("  ", list(range(1, 13))),
        ("nothing like it", []),
    ],
)
def test_a_row_matches_if_every_word_is_in_it(stage: Stage, words: str, matching: list[int]) -> None:
    stage.record(3)
    assert ids(row for row in rows(stage) if matches(row, words)) == matching


@pytest.mark.parametrize(
    ("column", "first"),
    [
        ("Status", [2, 3, 1]),
        ("Train", [2, 1]),
        ("Valid", [2, 1]),
        ("Time", [3, 1, 2]),
        ("Trend", [2, 1]),
        ("L", [1, 2]),
    ],
)
def test_columns_sort_by_value_with_unknown_values_last(stage: Stage, column: str, first: list[int]) -> None:
    stage.record(1, valid=(6.0, 5.2))
    stage.record(2, "running")
    stage.record(3, "diverged", valid=(math.nan,))
    made = sorted(rows(stage), key=lambda row: row.sort_keys[COLUMNS.index(column)])
    assert ids(made)[: len(first)] == first
    if column != "L":
        assert [row.run for row in made[3:]] == [None] * 9


def test_a_result_without_numbers_is_shown_as_unknown(stage: Stage) -> None:
    run = stage.queue(1, epochs=1)
    run.append(
        started(),
        Finished(
            test_ppl_final=None, test_ppl_best=None, best_epoch=None, best_valid_ppl=None, setup_s=0.0, wall_s=0.0,
            diverged=False,
        ),
    )  # fmt: skip
    assert rows(stage)[0].cells[5:] == ("finished", "–", "–", "", "–", "", "")


def test_sorting_by_the_next_column_skips_those_without_text() -> None:
    after_valid = Sort(column=COLUMNS.index("Valid")).by_next_column({"Change", "Notes"})
    assert COLUMNS[after_valid.column] == "Time"
    assert COLUMNS[Sort(column=COLUMNS.index("Trend")).by_next_column({"Notes"}).column] == "ID"
    assert COLUMNS[Sort(column=COLUMNS.index("Trend")).by_next_column().column] == "Notes"


def test_a_reproduction_is_marked_and_stands_for_nothing(stage: Stage) -> None:
    original = stage.record(1, valid=(6.0, 5.0))
    again = stage.record(1, valid=(6.0, 5.0))
    mark_as_reproduction(Store(stage.store.root).find(again.run), original.run)
    made = rows(stage, unfolded={"/1"})
    assert made[0].run is not None
    assert made[0].run.run == original.run
    assert [view.run for view in made[0].runs] == [original.run]
    assert [(row.key, cell(row, "Model")) for row in made[1:3]] == [(again.run, "repro"), (original.run, "demo")]
    shutil.rmtree(original.paths.folder)
    first, child = rows(stage, unfolded={"/1"})[:2]
    assert (first.run, cell(first, "Status")) == (None, "–")
    assert child.key == again.run
