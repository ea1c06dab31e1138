"""Findings on twelve imported runs with the numbers of a report that was graded: one seed, on real text."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from course_folders import EPOCHS, CourseRun, write_course_folders

from lmconsole.importing.import_runs import import_runs
from lmconsole.plan.load import load_plan
from lmconsole.report.findings import findings
from lmconsole.report.questions.finding import Finding
from lmconsole.report.selection import choose_group
from lmconsole.runs.store import Store


def course_run(
    number: int,
    model: str,
    layers: int,
    optimizer: str,
    valid_ppl: Sequence[float],
    last_gap_nats: float,
    seconds: float,
    memory_mib: int,
) -> CourseRun:
    """Return a run with these validation perplexities; the last one is ``last_gap_nats`` above the train loss."""
    train = valid_ppl[-1] * math.exp(-last_gap_nats)
    return CourseRun(
        number=number,
        model=model,
        layers=layers,
        optimizer=optimizer,
        best_epoch=0,
        train_ppl=[train * math.exp(0.1 * (EPOCHS - epoch)) for epoch in range(1, EPOCHS + 1)],
        valid_ppl=list(valid_ppl),
        train_s=[seconds] * EPOCHS,
        memory_mib=[memory_mib] * 3,
    )


def falling(last: float, ratio: float) -> list[float]:
    """Return perplexities that fall by ``ratio`` in each epoch."""
    return [last * ratio ** (EPOCHS - epoch) for epoch in range(1, EPOCHS + 1)]


def flat(best: float, last: float) -> list[float]:
    """Return perplexities that fall to ``best`` in the epoch before the last."""
    return [*(best * 1.02**epoch for epoch in range(EPOCHS - 2, -1, -1)), last]


GPT1_1L = [320.0, 230.0, 180.0, 158.0, 148.0, 146.12, 147.5, 150.0, 153.0, 157.0]
RUNS = (
    course_run(1, "lstm", 1, "adam", flat(154.0, 154.1), 0.44, 50.0, 5_500),
    course_run(2, "lstm", 1, "adamw", flat(153.8, 153.9), 0.45, 50.5, 5_500),
    course_run(3, "lstm", 1, "sgd", falling(2174.0, 1.01), -0.062, 51.0, 5_500),
    course_run(4, "lstm", 1, "momentum", falling(1652.0, 1.02), -0.020, 52.0, 5_500),
    course_run(5, "gpt1", 1, "adam", [*GPT1_1L[:5], 146.9, *GPT1_1L[6:]], 1.26, 70.0, 5_900),
    course_run(6, "gpt1", 1, "adamw", GPT1_1L, 1.27, 70.0, 5_900),
    course_run(7, "gpt1", 1, "sgd", falling(2050.0, 1.01), -0.010, 54.0, 5_900),
    course_run(8, "gpt1", 1, "momentum", falling(1600.0, 1.02), -0.015, 71.0, 5_900),
    course_run(9, "lstm", 2, "adamw", flat(152.3, 152.4), 0.40, 80.0, 5_400),
    course_run(10, "lstm", 4, "adamw", flat(163.0, 163.1), 0.30, 140.0, 5_700),
    course_run(11, "gpt1", 2, "adamw", falling(414.0, 1.0012), 0.05, 120.0, 6_300),
    course_run(12, "gpt1", 4, "adamw", falling(1488.0, 1.0002), -0.05, 220.0, 6_700),
)


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    return answer(tmp_path_factory.mktemp("graded"), RUNS)


def answer(root: Path, runs: Sequence[CourseRun], **arguments: object) -> dict[str, Finding]:
    """Return the findings on imported runs, by the first words of their questions."""
    write_course_folders(root / "logs", list(runs), **arguments)
    store = Store(root / "runs")
    assert import_runs(store, root / "logs", load_plan()).problems == []
    return {" ".join(each.question.split()[:2]): each for each in findings(choose_group(store.runs(), imported=True))}


def text_of(finding: Finding) -> str:
    return " ".join((finding.answer, *finding.observations, *finding.interpretation))


def test_overfitting_rests_on_gap_and_rise_of_fitted_models(graded: dict[str, Finding]) -> None:
    finding = graded["Which architecture"]
    text = text_of(finding)
    assert finding.table is not None
    (row,) = [row for row in finding.table.rows if row["Experiment"].text == "GPT-1 1L AdamW (6)"]
    assert (row["Gap"].text, row["Rise"].text, row["Gain"].text) == ("+1.270", "0.072", "–")
    assert "Validation loss has risen since its best epoch in LSTM 1L AdamW (2) by 0.001 nats, " in text
    assert (
        "More than 2 times the lowest perplexity of these: GPT-1 2L AdamW (11) 2.83 times, GPT-1 4L AdamW (12) 10.18"
        " times."
    ) in text
    assert finding.answer == "Gap and rise both point to GPT-1 as overfitting more (1 layer; one seed, not a claim)."
    assert (
        "This rests on GPT-1 1L AdamW (6): gap of at most +1.270 and rise of at most 0.072 nats; LSTM 1L AdamW (2), "
        "LSTM 2L AdamW (9), LSTM 4L AdamW (10): gap of at most +0.450 and rise of at most 0.001 nats."
    ) in finding.interpretation
    assert "either architecture overfits more" not in text
    assert "more than 2 times the lowest validation perplexity of these" in finding.method


def test_early_stopping_and_the_last_epoch_have_a_winner_each_with_its_cost(graded: dict[str, Finding]) -> None:
    finding = graded["Which setting"]
    assert "Lowest validation perplexity: GPT-1 1L AdamW (6), 146.12, at epoch 6 of 10." in finding.observations
    assert "Lowest at the last epoch: LSTM 2L AdamW (9), 152.40; GPT-1 1L AdamW (6) has 157.00 there." in (
        finding.observations
    )
    text = text_of(finding)
    assert (
        "If generalization matters most: GPT-1 1L AdamW (6) (one seed, not a claim), but only if training stops at its "
        "best epoch; of models trained to their last epoch, LSTM 2L AdamW (9)."
    ) in text
    assert (
        "Cost: GPT-1 1L AdamW (6), 7:00 min of training to its best epoch (11:40 min in all) and 5,900 MiB of memory; "
        "LSTM 2L AdamW (9), 13:20 min of training and 5,400 MiB of memory."
    ) in text


def test_more_epochs_are_no_hope_for_a_model_that_gains_nothing(graded: dict[str, Finding]) -> None:
    text = text_of(graded["Does a"])
    finding = graded["Does a"]
    assert finding.table_lead == "Validation loss at the best epoch, in nats per padded position."
    assert finding.table is not None
    (row,) = [row for row in finding.table.rows if row["First"].text == "GPT-1 4L AdamW (12)"]
    assert [row[name].text for name in ("Second", "Difference", "PPL ratio")] == [
        "GPT-1 2L AdamW (11)",
        "+1.2793",
        "3.594",
    ]
    assert "more epochs" not in text
    assert "not as expected, the loss falls with no doubling of the depth" in text


def test_a_scheduler_that_may_have_run_is_named_where_more_epochs_may_help(tmp_path: Path) -> None:
    catching_up = course_run(11, "gpt1", 2, "adamw", falling(170.0, 1.05), 0.05, 120.0, 6_300)
    text = text_of(answer(tmp_path, [*RUNS[:10], catching_up, RUNS[11]])["Does a"])
    assert (
        "The best epoch of GPT-1 2L AdamW (11) is the last and lowered its perplexity by 4.8%, so more epochs may "
        "change the order; its source does not state whether a scheduler changed the learning rate."
    ) in text


def test_all_shortest_runs_are_named_and_gaps_agree_with_the_table(graded: dict[str, Finding]) -> None:
    finding = graded["Which setting"]
    text = text_of(finding)
    shortest = "LSTM 1L Adam (1), LSTM 1L AdamW (2), LSTM 1L SGD (3), LSTM 1L Momentum (4), GPT-1 1L SGD (7)"
    assert f"Shortest runs, within 10% of 8:20 min of training: {shortest}; of these, LSTM 1L Adam (1), LSTM" in text
    assert (
        "Gap between validation and train loss at the last epoch: −0.062 nats (LSTM 1L SGD (3)) to +1.270 (GPT-1 1L "
        "AdamW (6))."
    ) in text
    assert finding.table is not None
    gaps = [float(row["Gap (nats)"].text) for row in finding.table.rows]
    assert (min(gaps), max(gaps)) == (-0.062, 1.270)
    for sentence in (*finding.observations, *finding.interpretation):
        for number in range(1, 13):
            assert f"(experiment {number}) against" not in sentence or f"(experiment {number})," not in sentence


@pytest.mark.parametrize(
    ("arguments", "other_adam", "provenance", "limit"),
    [
        (
            {},
            False,
            "Weight decay: Adam 0 (inferred: weight decay 0.0005 is recorded for adam; ",
            "so this pair shows the effect of decoupled weight decay.",
        ),
        (
            {"weight_decay": None},
            False,
            "Weight decay: Adam unknown, AdamW unknown.",
            "The sources do not state the weight decay of Adam and AdamW, so this says nothing about its effect.",
        ),
        (  # another Adam with another decay: it was chosen, so it had an effect
            {},
            True,
            "Weight decay: Adam 0.0005 (inferred: weight decay 0.0005 is recorded for adam; ",
            "They are equal, so this says nothing about the effect of weight decay, only about its form, which AdamW",
        ),
    ],
)
def test_the_effect_of_weight_decay_begins_with_where_both_decays_come_from(
    tmp_path: Path, arguments: dict[str, object], other_adam: bool, provenance: str, limit: str
) -> None:
    if other_adam:
        write_course_folders(tmp_path / "logs/0", [RUNS[4]], weight_decay=0.1)
    found = answer(tmp_path, RUNS[:2], **arguments)["What effect"].interpretation[0]
    assert found.startswith(f"AdamW against Adam. {provenance}")
    assert limit in found
    assert "LSTM: no order is named, since the losses differ by 0.0013 nats." in found
    assert "practically" not in found


def test_imported_runs_are_compared_by_validation_and_their_tuning_is_unknown(graded: dict[str, Finding]) -> None:
    text = text_of(graded["What effect"])
    table = graded["What effect"].table
    assert table is not None
    assert [table.rows[0][name].text for name in ("Loss of first", "Loss of second")] == ["5.0357", "5.0370"]
    assert text.count("Whether they were tuned is not stated by the sources.") == 1
    assert "These runs have no test loss of their best epoch" in graded["Which setting"].method
    assert "if it did, rankings midway may flip by the end" in graded["Which setting"].method
