"""Findings on recorded runs with known answers, and the edge cases of each criterion."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import record

from lmconsole.report.comparing import Comparison, Evidence, Pair, compare
from lmconsole.report.experiment_result import Endpoint, experiment_results
from lmconsole.report.findings import findings
from lmconsole.report.numbers import quantities
from lmconsole.report.questions.finding import Finding, GroupResults
from lmconsole.report.questions.memory import memory
from lmconsole.report.questions.models import architectures, depth
from lmconsole.report.questions.optimizers import optimizer_pairs, optimizers
from lmconsole.report.questions.overfitting import overfitting
from lmconsole.report.questions.recommendation import recommendation
from lmconsole.report.questions.times import leaders
from lmconsole.report.selection import Group, choose_group
from lmconsole.report.summary import summary
from lmconsole.report.targets import (
    TARGET_MARGIN,
    best_valid_ppl,
    common_target,
    performance_profile,
    seconds_to_target,
    time_to_target,
)
from lmconsole.runs.info import read_info
from lmconsole.runs.store import Run, Store

NAN = float("nan")
IDS = {
    ("lstm", 1, "adam"): 1, ("lstm", 1, "adamw"): 2, ("lstm", 1, "sgd"): 3, ("lstm", 1, "momentum"): 4,
    ("gpt1", 1, "adam"): 5, ("gpt1", 1, "adamw"): 6, ("gpt1", 1, "sgd"): 7, ("gpt1", 1, "momentum"): 8,
    ("lstm", 2, "adamw"): 9, ("lstm", 4, "adamw"): 10, ("gpt1", 2, "adamw"): 11, ("gpt1", 4, "adamw"): 12,
}  # fmt: skip


def record_kind(root: Path, kind: tuple[str, int, str], *valid: float, train: float = 4.0, **more: Any) -> None:
    """Record a run with one epoch for each validation loss, all with the same train loss."""
    model, layers, optimizer = kind
    losses = [(train, each) for each in valid]
    record(root, IDS[kind], model, losses, optimizer=optimizer, layers=layers, **more)


def group(root: Path) -> Group:
    return choose_group(Store(root / "runs").runs())


def answer(root: Path, question: Callable[[GroupResults], Finding]) -> Finding:
    return question(GroupResults(group(root)))


def sentences(finding: Finding) -> str:
    return " ".join((finding.answer, *finding.observations, *finding.interpretation))


def gaps(finding: Finding) -> dict[str, tuple[str, ...]]:
    """Return gap, ratio, lag, rise and gain of each experiment as the table shows them."""
    assert finding.table is not None
    columns = ("Gap", "PPL ratio", "Lag", "Rise", "Gain")
    return {row["Experiment"].text: tuple(row[column].text for column in columns) for row in finding.table.rows}


def compared(root: Path, first: int = 2, second: int = 1) -> Comparison:
    measured = experiment_results(group(root))
    (found,) = compare([Pair(subject="", first=measured[first], second=measured[second])])
    return found


def test_unfinished_runs_support_no_statement(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0)
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, finish=False)
    assert compared(tmp_path).evidence is Evidence.NO_DATA
    text = sentences(answer(tmp_path, optimizers))
    assert "no comparison; unfinished, damaged or without a result: LSTM 1L Adam (1)." in text
    assert "AdamW against Adam." not in text


def test_a_seed_without_a_finite_perplexity_counts_as_diverged(tmp_path: Path) -> None:
    """It finished without diverging, but the others are no mean over all seeds."""
    for seed in (1, 2):
        record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, seed=seed)
        record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, seed=seed)
    record_kind(tmp_path, ("lstm", 1, "adamw"), math.inf, seed=3)
    found = compared(tmp_path)
    assert (found.evidence, found.endpoint) == (Evidence.DESCRIPTION, Endpoint.VALIDATION)
    assert "Diverged: 1 of 3 (95% interval 1% to 91%) and 0 of 2 (95% interval 0% to 84%)." in found.sentence
    result = experiment_results(group(tmp_path))[2]
    assert len(result.valid_ppls) == 2
    assert not result.complete
    assert (result.train_ppl_at_best, result.last_gap_nats, result.rise_nats) == (None, None, None)


def test_an_unknown_rise_of_one_seed_is_not_averaged_over_the_others(tmp_path: Path) -> None:
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, 4.5, seed=1)
    assert experiment_results(group(tmp_path))[6].rise_nats == 0.5
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, math.inf, seed=2)
    assert experiment_results(group(tmp_path))[6].rise_nats is None


def test_an_unknown_gap_is_not_a_gap_of_zero(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.1, 4.0, train=math.inf)
    record_kind(tmp_path, ("lstm", 1, "sgd"), 5.1, 5.0)
    record_kind(tmp_path, ("lstm", 1, "momentum"), 5.2, 5.1)
    assert "the lowest validation perplexity goes with an unknown gap (LSTM 1L Adam (1))." in sentences(
        answer(tmp_path, recommendation)
    )
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, train=math.inf)
    assert "Gap unknown: LSTM with AdamW and 1 layer." in answer(tmp_path, overfitting).observations


def test_missing_experiments_leave_the_question_open(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.0)
    for question in (optimizers, architectures, depth):
        finding = answer(tmp_path, question)
        assert len(finding.observations) == 1
        assert "No comparison, because at least one has no run: " in finding.observations[0]
        assert not finding.interpretation


def test_time_to_a_target_is_not_the_shortest_run(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, 4.5, 4.0, seconds=10.0)
    record_kind(tmp_path, ("lstm", 1, "sgd"), 7.0, 6.9, 6.8, seconds=5.0)
    record_kind(tmp_path, ("gpt1", 1, "adam"), 4.2, 3.9, 3.5, seconds=8.0)
    target = common_target(group(tmp_path))
    assert target is not None
    assert math.exp(4.0) * (1 + TARGET_MARGIN) <= target <= math.exp(4.0) * (1 + TARGET_MARGIN) * 1.01
    text = sentences(answer(tmp_path, recommendation))
    assert "GPT-1 1L Adam (5), 16 s of training" in text
    limits = "(one seed, not a claim; target chosen after the runs)."
    assert f"If wall-clock time matters most: GPT-1 1L Adam (5) {limits}" in text
    assert "is not the answer by itself: LSTM 1L SGD (3) ends early but never reaches the target." in text
    assert "If generalization matters most: GPT-1 1L Adam (5) (one seed, not a claim)." in text


def test_times_too_close_to_call_are_named_together(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, 4.0, seconds=10.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 5.0, 4.0, seconds=10.9)
    text = sentences(answer(tmp_path, recommendation))
    assert "If wall-clock time matters most: LSTM 1L Adam (1), LSTM 1L AdamW (2) (one seed, not a claim; " in text
    assert "The measurements do not distinguish between these." in text
    assert (
        "Shortest runs, within 10% of 20 s of training: LSTM 1L Adam (1), LSTM 1L AdamW (2); all of them reach" in text
    )


def test_times_are_as_exact_as_the_pace_of_the_runs(tmp_path: Path) -> None:
    """The slowest epoch of each run takes a quarter longer than its fastest, apart from the first."""
    for kind, seconds in ((("lstm", 1, "adam"), 10.0), (("lstm", 2, "adamw"), 12.0), (("lstm", 4, "adamw"), 13.0)):
        record_kind(tmp_path, kind, 5.0, 4.5, 4.4, 4.0, seconds=seconds)
    for run in group(tmp_path).runs:
        base = 4 * run.state.epochs[0].elapsed_train_s  # type: ignore[operator]
        events = run.paths.events.read_text().splitlines()
        ends = iter((base, base + 4.0, base + 9.0, base + 13.0))
        changed = [
            json.dumps(event | {"elapsed_train_s": next(ends)}) if event["kind"] == "epoch" else json.dumps(event)
            for event in map(json.loads, events)
        ]
        run.paths.events.write_text("".join(f"{line}\n" for line in changed))
    finding = answer(tmp_path, recommendation)
    assert "Times within 25% of the shortest count as equal: by that much, the slowest epoch" in finding.method
    text = sentences(finding)
    assert "of training; within 25% of that: LSTM 2L AdamW (9), LSTM 4L AdamW (10)." in text


def test_a_slower_run_with_as_many_steps_to_the_target_is_named(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, 3.88, 3.85, seconds=10.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 5.0, 3.88, 3.85, seconds=15.0)
    record_kind(tmp_path, ("lstm", 2, "adamw"), 5.0, 3.88, 3.85, seconds=15.0)
    record_kind(tmp_path, ("lstm", 1, "sgd"), 6.0, 5.0, 3.88, seconds=15.0)
    text = sentences(answer(tmp_path, recommendation))
    assert "LSTM 1L AdamW (2), with equal architecture and depth, reaches it after no more steps." in text
    assert "For wall-clock time LSTM 1L Adam (1), LSTM 1L AdamW (2); for generalization" in text


def test_the_lead_changes_with_the_training_time(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, 4.5, 4.4, seconds=10.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 5.0, 4.49, 4.4, seconds=10.5)  # as low within 0.02 nats
    record_kind(tmp_path, ("gpt1", 2, "adamw"), 4.7, 4.2, 3.9, seconds=14.0)
    record_kind(tmp_path, ("gpt1", 4, "adamw"), 5.1, 4.1, 3.0, seconds=40.0, finish=False)
    found = [(time_s, id_, round(math.log(ppl), 6)) for time_s, id_, ppl in leaders(GroupResults(group(tmp_path)))]
    assert found == [(10.0, 1, 5.0), (14.0, 11, 4.7), (20.0, 1, 4.5), (28.0, 11, 4.2)]
    assert "from 28 s on GPT-1 2L AdamW (11) (66.686 then)." in sentences(answer(tmp_path, recommendation))


def test_each_question_has_a_short_answer_that_says_what_it_is_worth(tmp_path: Path) -> None:
    for number, kind in enumerate(IDS):
        record_kind(tmp_path, kind, 6.0, 4.0 + number / 10)
    answers = [each.answer for each in findings(group(tmp_path))]
    assert answers[0].startswith("For wall-clock time LSTM 1L Adam (1), LSTM 1L AdamW (2), ")
    assert "; for generalization LSTM 1L Adam (1) (one seed" in answers[0]
    assert answers[1].startswith("AdamW against Adam: LSTM Adam, GPT-1 Adam; Momentum against SGD: LSTM SGD")
    assert answers[2].startswith(
        "Lowest loss: LSTM 1L Adam (1); with more layers LSTM 2L AdamW (9), LSTM 4L AdamW (10)"
    )
    assert answers[3].startswith("GPT-1: the loss rises from 1 to 2 layers, rises from 2 to 4 layers; LSTM: the loss")
    assert all(each.endswith("(one seed each, not a claim).") for each in answers[:4])


@pytest.mark.parametrize(("difference", "named"), [(0.019, False), (0.021, True)])
def test_one_seed_names_no_order_of_losses_that_are_practically_the_same(
    tmp_path: Path, difference: float, named: bool
) -> None:
    for model in ("lstm", "gpt1"):
        record_kind(tmp_path, (model, 1, "adamw"), 5.0, 4.0)
        record_kind(tmp_path, (model, 1, "adam"), 5.0, 4.0 + difference)
    assert (compared(tmp_path).favored is not None) == named
    text = sentences(answer(tmp_path, optimizers))
    label = "LSTM 1L AdamW (2)"
    assert (f"lowest is {label}, by {difference:.4f} nats." in text) == named
    assert (f"LSTM: no order is named, since the losses differ by {difference:.4f} nats." in text) != named
    (best,) = [sentence for sentence in summary(group(tmp_path), []) if sentence.startswith("Lowest")]
    assert ("; within 2% of it: LSTM 1L Adam (1)." in best) != named


@pytest.mark.parametrize(
    ("unigram", "learned"), [({}, True), ({"validation": 150.0}, True), ({"validation": 110.0}, False)]
)
def test_a_pair_that_has_learned_no_more_than_token_frequencies_shows_only_a_start(
    tmp_path: Path, unigram: dict[str, float], learned: bool
) -> None:
    record_kind(tmp_path, ("lstm", 1, "sgd"), 5.0, 4.9, unigram_ppl=unigram)  # perplexities of 134 and 122
    record_kind(tmp_path, ("lstm", 1, "momentum"), 5.0, 4.8, unigram_ppl=unigram)
    text = sentences(answer(tmp_path, optimizers))
    assert ("Neither has learned much more than token frequencies" in text) != learned


def test_comparisons_of_several_seeds_are_a_table_with_their_uncertainty(tmp_path: Path) -> None:
    for model in ("lstm", "gpt1"):
        for optimizer, loss in (("adam", 4.0), ("adamw", 4.3), ("sgd", 5.0), ("momentum", 4.9)):
            for seed in range(5):
                record_kind(tmp_path, (model, 1, optimizer), 6.0, loss + seed**2 / 100, seed=seed)
    finding = answer(tmp_path, optimizers)
    assert finding.table is not None
    assert finding.table.headers == [
        "First", "Second", "Seeds", "Difference", "95% interval", "PPL ratio", "p (Holm)", "Permutation p"
    ]  # fmt: skip
    row = {header: cell.text for header, cell in finding.table.rows[0].items()}
    found = GroupResults(group(tmp_path)).compare(optimizer_pairs)[0]
    assert row["Difference"] == "+0.3000"
    assert row["PPL ratio"] == f"{math.exp(0.3):.4g}"
    assert found.result is not None
    assert found.result.interval is not None
    assert row["95% interval"] == f"{found.result.interval.low:+.4f} to {found.result.interval.high:+.4f}"
    text = sentences(finding)
    assert text.count("With 80% power, 5 seeds each detect a difference of 2.1 standard deviations") == 1
    assert text.count("Untuned: both at the settings of the preset.") == 1
    assert "No uncertainty" not in text


def test_the_lowest_gap_alone_is_misleading(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.1, 4.0, train=3.0)
    record_kind(tmp_path, ("lstm", 1, "sgd"), 7.1, 7.0, train=7.0)
    text = sentences(answer(tmp_path, recommendation))
    assert "at the last epoch: +0.000 nats (LSTM 1L SGD (3)) to +1.000 (LSTM 1L Adam (1))." in text
    assert "The lowest gap alone is misleading: what LSTM 1L SGD (3) has learned holds on other text, but" in text
    record_kind(tmp_path, ("lstm", 1, "momentum"), 3.1, 3.0, train=3.1)
    text = sentences(answer(tmp_path, recommendation))
    assert "at the last epoch: −0.100 nats (LSTM 1L Momentum (4)) to +1.000 (LSTM 1L Adam (1))." in text
    assert "misleading" not in text


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.1, 4.0)
    text = sentences(answer(tmp_path, recommendation))
    assert "against" not in text
    assert "the next" not in text
    assert text.count("nats (") == 1
    assert "at the last epoch: +0.000 nats (LSTM 1L Adam (1))." in text


def test_after_one_epoch_there_is_no_statement_on_curves(tmp_path: Path) -> None:
    for layers, loss in ((1, 4.0), (2, 4.2), (4, 4.4)):
        record_kind(tmp_path, ("gpt1", layers, "adamw"), loss, train=4.0 - loss / 10)
        record_kind(tmp_path, ("lstm", layers, "adamw"), loss, train=3.9)
    answers = {question: sentences(answer(tmp_path, question)) for question in (recommendation, depth, overfitting)}
    assert "After one epoch, the gap between train and validation loss is not compared." in answers[recommendation]
    assert "One epoch shows neither how well a model fits nor whether it overfits." in answers[depth]
    assert gaps(answer(tmp_path, overfitting))["GPT-1 1L AdamW (6)"] == ("+0.400", "1.49", "–", "–", "–")
    assert "Only one epoch: LSTM 1L AdamW (2), LSTM 2L AdamW (9)" in answers[overfitting]
    for text in answers.values():
        for word in ("risen", "misleading", "may be overfitting", "overfitting more", "more epochs"):
            assert word not in text


def forget_times(run: Run) -> None:
    """Let the epochs of a run be without times, as those of imported runs can be."""
    run.paths.events.write_text(
        re.sub(r'"(train_s|elapsed_train_s)":[0-9.]+', r'"\1":null', run.paths.events.read_text())
    )


def times(root: Path) -> dict[str, str]:
    table = answer(root, recommendation).table
    assert table is not None
    return {row["Experiment"].text: row[table.headers[1]].text for row in table.rows}


def test_a_target_that_was_reached_at_an_unknown_time_is_not_called_unreached(tmp_path: Path) -> None:
    forget_times(record(tmp_path, 1, "lstm", [(4.0, 4.0)]))
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, seconds=12.0)
    record_kind(tmp_path, ("lstm", 1, "sgd"), 7.0, seconds=20.0)
    assert times(tmp_path) == {"LSTM 1L Adam (1)": "–", "LSTM 1L AdamW (2)": "12.0", "LSTM 1L SGD (3)": "not reached"}
    assert "“–”: reached, but the run does not record its times." in answer(tmp_path, recommendation).method
    reached = time_to_target(experiment_results(group(tmp_path))[1].runs, 100.0)
    assert (reached.reached, reached.median_s) == (True, None)


def test_only_complete_experiments_are_recommended(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.5, 4.0, seconds=50.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, seconds=1.0, finish=False)
    finding = answer(tmp_path, recommendation)
    assert "If wall-clock time matters most: LSTM 1L Adam (1) (one seed" in " ".join(finding.interpretation)
    assert "AdamW" not in sentences(finding)
    assert times(tmp_path) == {"LSTM 1L Adam (1)": "100.0", "LSTM 1L AdamW (2)†": "1.0"}
    assert "†: unfinished or diverged, and not recommended." in finding.method


def test_a_target_that_only_unfinished_experiments_reach_recommends_none_for_time(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 6.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, finish=False)
    text = sentences(answer(tmp_path, recommendation))
    assert "No complete experiment reaches a validation perplexity of 57.4" in text
    assert "wall-clock time matters" not in text
    assert "If generalization matters most: LSTM 1L Adam (1) (one seed, not a claim)." in text


def test_the_target_is_one_that_every_seed_has_reached(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.0, seed=1)
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.5, seed=2)
    both = group(tmp_path)
    target = common_target(both)
    assert target is not None
    assert target >= math.exp(4.5)
    assert time_to_target(both.runs, math.exp(4.2)).median_s is None
    assert time_to_target(both.runs, target).median_s == 1.0


def test_a_seed_that_misses_the_target_counts_as_infinite(tmp_path: Path) -> None:
    for seed, loss in enumerate((4.0, 4.1, 4.5), 1):
        record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, loss, seed=seed, seconds=float(seed))
    runs = group(tmp_path).runs
    two_of_three, one_of_three = (time_to_target(runs, math.exp(loss)) for loss in (4.2, 4.05))
    assert (two_of_three.median_s, two_of_three.lowest_s, two_of_three.highest_s) == (4.0, None, None)
    assert (one_of_three.reached, one_of_three.median_s) == (False, None)
    assert time_to_target(runs[:2], math.exp(4.05)).reached is False


def test_targets_and_decaying_learning_rates_are_named(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, 4.0)
    method = answer(tmp_path, recommendation).method
    assert "It was chosen after the runs, from these results, so times to it are exploratory." in method
    assert "midway" not in method
    record_kind(tmp_path, ("lstm", 1, "adamw"), 5.0, 4.0, learning_rate_decay="cosine")
    assert "rankings midway may flip by the end" in answer(tmp_path, recommendation).method


def test_without_a_finite_perplexity_there_is_no_target(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), NAN)
    assert common_target(group(tmp_path)) is None
    assert "none can be recommended" in sentences(answer(tmp_path, recommendation))


@pytest.mark.parametrize(
    ("losses", "order"),
    [
        ((5.0, 4.5, 4.0), "as expected, the loss falls with each doubling of the depth."),
        ((4.5, 4.0, 4.2), "as expected for one doubling of the depth, but not for both."),
        ((4.0, 4.0, 4.0), "not as expected, the loss falls with no doubling of the depth."),
    ],
)
def test_depth_is_judged_against_what_is_expected(
    tmp_path: Path, losses: tuple[float, float, float], order: str
) -> None:
    for layers, loss in zip((1, 2, 4), losses, strict=True):
        record_kind(tmp_path, ("gpt1", layers, "adamw"), loss)
    assert answer(tmp_path, depth).interpretation[0] == f"GPT-1: {order}"


def test_an_order_of_several_seeds_is_named_only_if_no_doubling_is_inconclusive(tmp_path: Path) -> None:
    for layers, loss in ((1, 5.0), (2, 4.5), (4, 4.0)):
        for seed in range(3):
            record_kind(tmp_path, ("gpt1", layers, "adamw"), loss + seed / 100, seed=seed)
    start = answer(tmp_path, depth).interpretation[0]
    assert start == "GPT-1: as expected, the loss falls with each doubling of the depth."
    record_kind(tmp_path, ("gpt1", 4, "adamw"), 9.0, seed=2)
    interpretation = answer(tmp_path, depth).interpretation
    assert interpretation[0].startswith("GPT-1: open, because not every doubling is more than a description")
    assert interpretation[2].endswith("inconclusive, which is not evidence of equal settings.")


def test_a_deeper_model_that_fits_better_and_validates_worse_may_overfit(tmp_path: Path) -> None:
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, 4.1, train=3.5)
    record_kind(tmp_path, ("gpt1", 2, "adamw"), 4.5, 4.6, train=3.0)
    record_kind(tmp_path, ("gpt1", 4, "adamw"), 5.2, 4.9, train=4.8)
    first, second = answer(tmp_path, depth).interpretation[1:3]
    assert "Train perplexity falls while the loss on other text rises, which may be overfitting." in first
    assert "more epochs" not in first
    assert "a possible reason is that the deeper model is harder to optimize here" in second
    assert "is the last and lowered its perplexity by 25.9%, so more epochs may change the order." in second


@pytest.mark.parametrize(
    ("shallow", "deep"),
    [
        ((4.1, 4.0), (4.9002, 4.9)),  # no material gain
        ((4.1, 4.0), (4.95, 4.9)),  # too small for the difference
        ((4.6, 4.0), (5.5, 4.9)),  # the shallower model gains as much
    ],
)
def test_a_last_epoch_that_catches_up_with_nothing_promises_no_other_order(
    tmp_path: Path, shallow: tuple[float, ...], deep: tuple[float, ...]
) -> None:
    record_kind(tmp_path, ("gpt1", 1, "adamw"), *shallow)
    record_kind(tmp_path, ("gpt1", 2, "adamw"), *deep)
    record_kind(tmp_path, ("gpt1", 4, "adamw"), 4.9, 4.8)
    assert "more epochs" not in answer(tmp_path, depth).interpretation[1]


def test_gap_and_rise_decide_together_which_architecture_overfits_more(tmp_path: Path) -> None:
    for layers in (1, 2, 4):
        record_kind(tmp_path, ("lstm", layers, "adamw"), 4.0, 4.0, train=3.9)
        record_kind(tmp_path, ("gpt1", layers, "adamw"), 4.0, 4.1, train=3.0)
    question = " as overfitting more (1, 2, 4 layers; one seed, not a claim)."
    assert answer(tmp_path, overfitting).answer == f"Gap and rise both point to GPT-1{question}"
    for layers in (1, 2, 4):
        record_kind(tmp_path, ("gpt1", layers, "adamw"), 4.1, 4.1, train=3.0)
    found = answer(tmp_path, overfitting).answer
    assert "Only the gap points to GPT-1 as overfitting more, the rise to neither (1, 2, 4 layers; one seed" in found
    for layers in (1, 2, 4):
        record_kind(tmp_path, ("lstm", layers, "adamw"), 4.0, 4.2, train=4.1)
    assert "The measures disagree: the gap points to GPT-1 as overfitting more, the rise to LSTM" in sentences(
        answer(tmp_path, overfitting)
    )
    record_kind(tmp_path, ("lstm", 4, "adamw"), 4.6, 4.6, train=2.0)
    assert "Inconclusive: neither gap nor rise points to one architecture at every depth" in sentences(
        answer(tmp_path, overfitting)
    )


def test_several_seeds_give_gaps_and_rises_intervals(tmp_path: Path) -> None:
    for seed in range(3):
        record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, 4.0 + seed / 100, train=3.9, seed=seed)
        record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, 4.3 + seed / 100, train=3.0, seed=seed)
    finding = answer(tmp_path, overfitting)
    text = sentences(finding)
    start = "GPT-1 1L AdamW (experiment 6) against LSTM 1L AdamW (experiment 2), "
    assert f"{start}gap: 1.310 (n = 3, sd 0.010) and 0.110 (n = 3, sd 0.010) nats. Difference +1.200, " in sentences(
        finding
    )
    assert f"{start}rise: " in sentences(finding)
    assert finding.answer == "Gap and rise both point to GPT-1 as overfitting more (1 layer; exploratory)."
    assert "Holm over 2 contrasts" in text


def test_underfitted_models_are_set_aside(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, 4.0, train=3.6)
    record_kind(tmp_path, ("lstm", 2, "adamw"), 4.15, 4.1, train=3.7)
    record_kind(tmp_path, ("lstm", 4, "adamw"), 4.5, 4.3, train=4.2)
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, 4.07, train=2.8)
    record_kind(tmp_path, ("gpt1", 2, "adamw"), 6.0, 6.0, train=6.1)
    text = sentences(answer(tmp_path, overfitting))
    assert "More than 2 times the lowest perplexity of these: GPT-1 2L AdamW (11) 7.39 times." in text
    assert "Last epoch still lowered the validation loss by more than 0.1 nats: LSTM 4L AdamW (10) by 0.200." in text
    assert "Gap and rise both point to GPT-1 as overfitting more (1 layer;" in text
    assert (
        "This rests on GPT-1 1L AdamW (6): gap of at most +1.270 and rise of at most 0.070 nats; LSTM 1L AdamW (2), "
        "LSTM 2L AdamW (9): gap of at most +0.400 and rise of at most 0.000 nats."
    ) in text
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 6.0, 6.0, train=5.0)
    assert "No depth is left at which both architectures have fitted the text" in sentences(
        answer(tmp_path, overfitting)
    )


def test_a_loss_that_rises_beyond_any_perplexity_is_a_gap_without_a_ratio(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.5, 2000.0)
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.5, 30.0)
    found_gaps = gaps(answer(tmp_path, overfitting))
    assert found_gaps["LSTM 1L AdamW (2)"] == ("+1996.000", "–", "0.000", "1995.500", "–")
    assert found_gaps["GPT-1 1L AdamW (6)"] == ("+26.000", "1.96e+11", "0.000", "25.500", "–")
    found = {each.name: each.values for each in quantities(group(tmp_path))}
    assert found["lmGapRatio"] == {("6",): "1.96e+11"}


def test_gaps_that_the_seeds_do_not_tell_apart_are_inconclusive(tmp_path: Path) -> None:
    for seed, extra in enumerate((0.0, 0.2, 0.4)):
        record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, 4.0, train=3.5 + extra, seed=seed)
        record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, 4.0, train=3.4 + extra, seed=seed)
    text = sentences(answer(tmp_path, overfitting))
    assert "Inconclusive: neither gap nor rise points to one architecture at every depth" in text
    assert "No validation loss has risen since its best epoch, so none of these has overfitted to its harm yet." in text
    assert "Remedies" not in text


def test_equal_gaps_are_not_called_misleading(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.1, 4.00, train=3.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.6, 4.50, train=3.501)
    assert "misleading" not in sentences(answer(tmp_path, recommendation))


def test_other_settings_that_differ_are_named(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.0)
    run = record(tmp_path, 2, "lstm", [(4.0, 5.0)], optimizer="adamw")
    info = read_info(run.paths.info)
    own = msgspec.structs.replace(info.experiment, overrides={"learning_rate": 0.5})
    settings = msgspec.structs.replace(info.settings, learning_rate=0.5)
    run.paths.info.write_bytes(msgspec.json.encode(msgspec.structs.replace(info, experiment=own, settings=settings)))
    assert "They also differ in learning rate." in answer(tmp_path, optimizers).observations[0]


def test_memory_names_the_least_and_the_most(tmp_path: Path) -> None:
    for kind, mib in ((("lstm", 1, "adam"), 700.0), (("gpt1", 4, "adamw"), 2100.0)):
        record_kind(tmp_path, kind, 4.0, 3.9, device="cuda:0", samples=5, process_mib=mib)
    finding = answer(tmp_path, memory)
    assert "from 700 MiB (LSTM 1L Adam (1)) to 2,100 MiB (GPT-1 4L AdamW (12))" in finding.observations[0]
    assert "The difference grows with the model" in finding.interpretation[0]
    assert "4 × 8 × 300 × 4 bytes = 0.0 MiB" in finding.observations[2]


def test_memory_is_divided_by_layer(tmp_path: Path) -> None:
    for layers, mib in ((1, 700.0), (2, 730.0), (4, 760.0)):
        record_kind(tmp_path, ("gpt1", layers, "adamw"), 4.0, 3.9, device="cuda:0", samples=5, process_mib=mib)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, 3.9, device="cuda:0", samples=5, process_mib=700.0)
    spread, layers_of = answer(tmp_path, memory).interpretation
    assert spread.startswith("The largest amount is 9% above the smallest")
    assert layers_of.startswith("Each further layer takes, with AdamW: GPT-1 20.0 MiB, of which weights, gradients and")


def test_every_question_has_observations_and_a_method_even_for_one_unfinished_run(tmp_path: Path) -> None:
    record_kind(tmp_path, ("gpt1", 1, "sgd"), NAN, finish=False)
    answers = findings(group(tmp_path))
    assert len({each.question for each in answers}) == 6
    assert all(each.observations and each.method for each in answers)


@pytest.mark.slow
@settings(deadline=None)  # each example writes a run to the disk
@given(st.lists(st.floats(2.0, 9.0), min_size=1, max_size=6), st.floats(5.0, 9000.0))
def test_a_target_is_reached_at_the_first_epoch_that_is_no_higher(
    tmp_path_factory: pytest.TempPathFactory, losses: list[float], target: float
) -> None:
    root = tmp_path_factory.mktemp("target")
    run = record(root, 1, "lstm", [(4.0, loss) for loss in losses], seconds=2.0)
    run.refresh()
    places = [epoch for epoch, loss in enumerate(losses, 1) if math.exp(loss) <= target]
    assert seconds_to_target(run, target) == (2.0 * places[0] if places else None)
    assert best_valid_ppl(run) == pytest.approx(math.exp(min(losses)))


def test_a_target_can_be_reached_within_an_epoch(tmp_path: Path) -> None:
    within = [(5.5, 5.0, 5.2), (4.8, 4.4, 4.6)]
    run = record(tmp_path, 1, "lstm", [(4.0, 5.1), (4.0, 4.5)], seconds=8.0, within=within, evaluate_every_steps=1)
    run.refresh()
    times = {loss: seconds_to_target(run, math.exp(loss)) for loss in (5.6, 5.0, 4.9, 4.5, 4.39)}
    assert times == {5.6: 2.0, 5.0: 4.0, 4.9: 10.0, 4.5: 12.0, 4.39: None}
    assert best_valid_ppl(run) == math.exp(4.5), "the best epoch is still the end of one"


def test_a_profile_counts_problems_by_ratio_to_the_fastest(tmp_path: Path) -> None:
    """The targets are given: 60 is reached by both, 50 by no run, and SGD has a median over three seeds."""
    for model in ("lstm", "gpt1"):
        record_kind(tmp_path, (model, 1, "adam"), 4.0, seconds=1.0)
        for seed, loss, seconds in ((1, 4.0, 3.0), (2, 4.0, 5.0), (3, 4.5, 1.0)):
            record_kind(tmp_path, (model, 1, "sgd"), loss, seconds=seconds, seed=seed)
    record_kind(tmp_path, ("lstm", 2, "adamw"), 4.0)
    profile = performance_profile(group(tmp_path), [60.0, 50.0, 60.0])
    assert profile.workloads == 2
    assert profile.curves == {"Adam": [(1.0, 0.25), (1.0, 0.5)], "SGD": [(5.0, 0.25), (5.0, 0.5)]}


def test_a_profile_needs_two_optimizers_of_the_same_model(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.0)
    record_kind(tmp_path, ("gpt1", 1, "sgd"), 4.0)
    profile = performance_profile(group(tmp_path), [60.0])
    assert (profile.workloads, profile.curves) == (0, {})
