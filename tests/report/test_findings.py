"""Findings on recorded runs with known answers, and the edge cases of each criterion."""

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

from lmconsole.report.comparing import NEGLIGIBLE_WITH_ONE_SEED, Verdict, compare, experiment_results
from lmconsole.report.findings import findings
from lmconsole.report.numbers import quantities
from lmconsole.report.questions.finding import Finding, GroupResults
from lmconsole.report.questions.memory import memory
from lmconsole.report.questions.models import architectures, depth, overfitting
from lmconsole.report.questions.optimizers import optimizers
from lmconsole.report.questions.recommendation import recommendation
from lmconsole.report.selection import Group, choose_group
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
    return " ".join((*finding.observations, *finding.interpretation))


def verdict(root: Path, first: int = 2, second: int = 1) -> Verdict:
    measured = experiment_results(group(root))
    return compare(measured[first], measured[second]).verdict


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([4.0], [4.0], Verdict.NEGLIGIBLE_IN_ONE_SEED),
        ([4.0], [4.0 - math.log(1 - NEGLIGIBLE_WITH_ONE_SEED) - 1e-6], Verdict.NEGLIGIBLE_IN_ONE_SEED),
        ([4.0], [4.0 - math.log(1 - NEGLIGIBLE_WITH_ONE_SEED) + 1e-6], Verdict.LOWER_IN_ONE_SEED),
        ([4.5], [4.0], Verdict.HIGHER_IN_ONE_SEED),
        ([4.0, 4.1], [4.5], Verdict.LOWER_IN_ONE_SEED),
        ([4.0, 4.1, 4.2], [4.5, 4.6, 4.7], Verdict.LOWER),
        ([4.5, 4.6], [4.0, 4.1], Verdict.HIGHER),
        ([4.0, 4.1, 4.6], [4.5, 4.6, 4.7], Verdict.WITHIN_SPREAD),
        ([4.0, 4.0], [4.0, 4.0], Verdict.WITHIN_SPREAD),
        ([3.0, 4.0], [4.01, 4.02], Verdict.WITHIN_SPREAD),
        ([NAN], [4.0], Verdict.NO_DATA),
    ],
)
def test_a_verdict_claims_what_the_seeds_support(
    tmp_path: Path, ours: list[float], theirs: list[float], expected: Verdict
) -> None:
    for optimizer, losses in (("adamw", ours), ("adam", theirs)):
        for seed, loss in enumerate(losses):
            record_kind(tmp_path, ("lstm", 1, optimizer), 5.0, loss, seed=seed)
    assert verdict(tmp_path) is expected


def test_a_complete_separation_has_a_p_value(tmp_path: Path) -> None:
    for seed in range(3):
        record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0 + seed / 100, seed=seed)
        record_kind(tmp_path, ("lstm", 1, "adam"), 4.5 + seed / 100, seed=seed)
    text = answer(tmp_path, optimizers).observations[0]
    assert "the seeds separate completely (p = 0.1)" in text
    assert "(n = 3)" in text


def test_unfinished_runs_support_no_claim(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0)
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, finish=False)
    assert verdict(tmp_path) is Verdict.NO_DATA
    reason = "unfinished, diverged, damaged or without a finite validation perplexity: LSTM 1L Adam (1)."
    assert f"No comparison: {reason}" in sentences(answer(tmp_path, optimizers))
    assert "AdamW with weight decay" not in sentences(answer(tmp_path, optimizers))


def test_a_seed_without_a_finite_perplexity_is_not_ignored(tmp_path: Path) -> None:
    """It finished without diverging, but the others are no mean over all seeds."""
    for seed in (1, 2):
        record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, seed=seed)
        record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, seed=seed)
    record_kind(tmp_path, ("lstm", 1, "adamw"), math.inf, seed=3)
    assert verdict(tmp_path) is Verdict.NO_DATA
    result = experiment_results(group(tmp_path))[2]
    assert len(result.valid_ppls) == 2
    assert (result.train_ppl_at_best, result.last_gap_nats, result.rise_nats) == (None, None, None)


def test_an_unknown_rise_of_one_seed_is_not_averaged_over_the_others(tmp_path: Path) -> None:
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, 4.5, seed=1)
    assert experiment_results(group(tmp_path))[6].rise_nats == 0.5
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, math.inf, seed=2)
    assert experiment_results(group(tmp_path))[6].rise_nats is None


def test_a_tiny_difference_that_separates_the_seeds_has_a_direction(tmp_path: Path) -> None:
    for seed in range(2):
        record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0 + seed / 1e5, seed=seed)
        record_kind(tmp_path, ("lstm", 1, "adam"), 4.0005 + seed / 1e5, seed=seed)
    assert verdict(tmp_path) is Verdict.LOWER
    text = answer(tmp_path, optimizers).observations[0]
    assert "The first is lower, by less than 0.1%, and the seeds separate completely" in text


def test_one_seed_against_several_is_named(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, seed=1)
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, seed=1)
    assert "lower, with one seed each." in answer(tmp_path, optimizers).observations[0]
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, seed=2)
    assert "lower, with one seed on one side." in answer(tmp_path, optimizers).observations[0]


def test_an_unknown_gap_is_not_a_gap_of_zero(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.0, train=math.inf)
    record_kind(tmp_path, ("lstm", 1, "sgd"), 5.0)
    assert "the experiment with the lowest validation perplexity, LSTM 1L Adam (1), has an unknown gap." in sentences(
        answer(tmp_path, recommendation)
    )
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, train=math.inf)
    assert "LSTM with AdamW and 1 layer: the gap is unknown." in answer(tmp_path, overfitting).observations


def test_missing_experiments_leave_the_question_open(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.0)
    for question in (optimizers, architectures, depth):
        finding = answer(tmp_path, question)
        assert all("no comparison, because at least one has no run" in text for text in finding.observations)
        assert not [text for text in finding.interpretation if "seed" not in text]


def test_time_to_a_target_is_not_the_shortest_run(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, 4.5, 4.0, seconds=10.0)
    record_kind(tmp_path, ("lstm", 1, "sgd"), 7.0, 6.9, 6.8, seconds=5.0)
    record_kind(tmp_path, ("gpt1", 1, "adam"), 4.2, 3.9, 3.5, seconds=8.0)
    target = common_target(group(tmp_path))
    assert target is not None
    assert math.exp(4.0) * (1 + TARGET_MARGIN) <= target <= math.exp(4.0) * (1 + TARGET_MARGIN) * 1.01
    text = sentences(answer(tmp_path, recommendation))
    assert "GPT-1 1L Adam (5), 16 s of training" in text
    assert "If wall-clock time matters most: GPT-1 1L Adam (5)." in text
    assert "The shortest run, LSTM 1L SGD (3), is not the answer" in text
    assert "If generalization matters most: GPT-1 1L Adam (5)." in text


def test_times_too_close_to_call_are_named_together(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 5.0, 4.0, seconds=10.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 5.0, 4.0, seconds=10.9)
    text = sentences(answer(tmp_path, recommendation))
    assert "If wall-clock time matters most: LSTM 1L Adam (1), LSTM 1L AdamW (2). The measurements" in text
    assert "The measurements do not distinguish it from" in text


def test_the_smallest_gap_alone_is_misleading(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.0, train=3.0)
    record_kind(tmp_path, ("lstm", 1, "sgd"), 7.0, train=7.0)
    assert "The smallest gap alone is misleading: LSTM 1L SGD (3)" in sentences(answer(tmp_path, recommendation))
    record_kind(tmp_path, ("lstm", 1, "momentum"), 3.0, train=3.0)
    text = sentences(answer(tmp_path, recommendation))
    assert "misleading" not in text
    assert "Smallest gap between train and validation loss: LSTM 1L Momentum (4), +0.000 nats, at" in text
    assert "the experiment with the lowest" not in text


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
    assert (reached.reached, reached.mean_s) == (True, None)


def test_only_complete_experiments_are_recommended(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.5, 4.0, seconds=50.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, seconds=1.0, finish=False)
    finding = answer(tmp_path, recommendation)
    assert "If wall-clock time matters most: LSTM 1L Adam (1)." in finding.interpretation
    assert "AdamW" not in sentences(finding)
    assert times(tmp_path) == {"LSTM 1L Adam (1)": "100.0", "LSTM 1L AdamW (2)†": "1.0"}
    assert "†: unfinished or diverged, and not recommended." in finding.method


def test_a_target_that_only_unfinished_experiments_reach_recommends_none_for_time(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 6.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, finish=False)
    text = sentences(answer(tmp_path, recommendation))
    assert "No complete experiment reaches a validation perplexity of 57.4" in text
    assert "wall-clock time matters" not in text
    assert "If generalization matters most: LSTM 1L Adam (1)." in text


def test_the_target_is_one_that_every_seed_has_reached(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.0, seed=1)
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.5, seed=2)
    both = group(tmp_path)
    target = common_target(both)
    assert target is not None
    assert target >= math.exp(4.5)
    assert time_to_target(both.runs, math.exp(4.2)).mean_s is None
    assert time_to_target(both.runs, target).mean_s == 1.0


def test_without_a_finite_perplexity_there_is_no_target(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), NAN)
    assert common_target(group(tmp_path)) is None
    assert "none can be recommended" in sentences(answer(tmp_path, recommendation))


@pytest.mark.parametrize(
    ("losses", "start"),
    [
        ((5.0, 4.5, 4.0), "As expected"),
        ((4.0, 4.5, 4.2), "Not as expected"),
        ((4.0, 4.0, 4.0), "Inconclusive"),
    ],
)
def test_depth_is_judged_against_what_is_expected(
    tmp_path: Path, losses: tuple[float, float, float], start: str
) -> None:
    for layers, loss in zip((1, 2, 4), losses, strict=True):
        record_kind(tmp_path, ("gpt1", layers, "adamw"), loss)
    assert answer(tmp_path, depth).interpretation[0].startswith(start)


def test_a_deeper_model_that_fits_better_and_validates_worse_overfits(tmp_path: Path) -> None:
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, 4.1, train=3.5)
    record_kind(tmp_path, ("gpt1", 2, "adamw"), 4.5, 4.6, train=3.0)
    record_kind(tmp_path, ("gpt1", 4, "adamw"), 5.2, 4.9, train=4.8)
    first, second = answer(tmp_path, depth).interpretation[1:3]
    assert "which indicates overfitting" in first
    assert "more epochs" not in first
    assert "harder to optimize" in second
    assert "lowered its perplexity by 25.9%, so more epochs may change the order" in second


@pytest.mark.parametrize("before", [4.9002, 4.95])
def test_a_last_epoch_that_gains_little_promises_no_other_order(tmp_path: Path, before: float) -> None:
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.1, 4.0)
    record_kind(tmp_path, ("gpt1", 2, "adamw"), before, 4.9)
    record_kind(tmp_path, ("gpt1", 4, "adamw"), 4.9, 4.8)
    assert "more epochs" not in answer(tmp_path, depth).interpretation[1]


def test_the_architecture_with_the_larger_gap_at_every_depth_overfits_more(tmp_path: Path) -> None:
    for layers in (1, 2, 4):
        record_kind(tmp_path, ("lstm", layers, "adamw"), 4.0, train=3.9)
        record_kind(tmp_path, ("gpt1", layers, "adamw"), 4.0, train=3.0)
    assert "GPT-1 has the larger gap at every depth compared (1, 2, 4 layers)" in sentences(
        answer(tmp_path, overfitting)
    )
    record_kind(tmp_path, ("lstm", 4, "adamw"), 4.6, train=2.0)
    assert "Neither architecture overfits more" in sentences(answer(tmp_path, overfitting))


def test_models_that_have_barely_fitted_are_set_aside(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, train=3.6)
    record_kind(tmp_path, ("lstm", 2, "adamw"), 4.1, train=3.7)
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, 4.07, train=2.8)
    record_kind(tmp_path, ("gpt1", 2, "adamw"), 6.0, train=6.1)
    text = sentences(answer(tmp_path, overfitting))
    assert "barely fitted the text and the gap therefore says nothing: GPT-1 2L AdamW (11)." in text
    assert "GPT-1 has the larger gap at every depth compared (1 layer)" in text
    assert (
        "Its validation loss has risen by up to 0.070 nats since its best epoch, that of LSTM by up to 0.000." in text
    )


def test_a_loss_that_rises_beyond_any_perplexity_is_a_gap_without_a_ratio(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.5, 2000.0)
    record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.5, 30.0)
    observations = overfitting(GroupResults(group(tmp_path))).observations
    assert "gap of +1996.000 nats at the last epoch; validation loss has risen by 1995.500 nats" in observations[0]
    assert "(validation perplexity is 1.96e+11 times train perplexity)" in " ".join(observations)
    found = {each.name: each.values for each in quantities(group(tmp_path))}
    assert found["lmGapRatio"] == {("6",): "1.96e+11"}


def test_gaps_within_the_seeds_spread_are_no_difference(tmp_path: Path) -> None:
    for seed, extra in enumerate((0.0, 0.2, 0.4)):
        record_kind(tmp_path, ("lstm", 1, "adamw"), 4.0, train=3.5 + extra, seed=seed)
        record_kind(tmp_path, ("gpt1", 1, "adamw"), 4.0, train=3.4 + extra, seed=seed)
    assert "Neither architecture overfits more" in sentences(answer(tmp_path, overfitting))


def test_equal_gaps_are_not_called_misleading(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.00, train=3.0)
    record_kind(tmp_path, ("lstm", 1, "adamw"), 4.50, train=3.501)
    assert "misleading" not in sentences(answer(tmp_path, recommendation))


def test_few_seeds_lead_to_a_caution(tmp_path: Path) -> None:
    for seed in range(4):
        for optimizer, loss in (("momentum", 4.0), ("sgd", 5.0)):
            record_kind(tmp_path, ("lstm", 1, optimizer), loss + seed / 100, seed=seed)
        if seed == 2:
            assert "With so few seeds this may be due to chance (p = 0.1)." in sentences(answer(tmp_path, optimizers))
    text = sentences(answer(tmp_path, optimizers))
    assert "p = 0.029" in text
    assert "due to chance" not in text


def test_one_of_two_doublings_is_partly_as_expected(tmp_path: Path) -> None:
    for layers, loss in ((1, 4.5), (2, 4.0), (4, 4.0)):
        record_kind(tmp_path, ("gpt1", layers, "adamw"), loss)
    assert answer(tmp_path, depth).interpretation[0].startswith("Partly as expected")


def test_other_settings_that_differ_are_named(tmp_path: Path) -> None:
    record_kind(tmp_path, ("lstm", 1, "adam"), 4.0)
    run = record(tmp_path, 2, "lstm", [(4.0, 5.0)], optimizer="adamw")
    info = read_info(run.paths.info)
    own = msgspec.structs.replace(info.experiment, overrides={"learning_rate": 0.5})
    settings = msgspec.structs.replace(info.settings, learning_rate=0.5)
    run.paths.info.write_bytes(msgspec.json.encode(msgspec.structs.replace(info, experiment=own, settings=settings)))
    assert "They also differ in learning rate." in answer(tmp_path, optimizers).observations[0]


def test_no_positive_gap_is_no_overfitting(tmp_path: Path) -> None:
    for model in ("lstm", "gpt1"):
        record_kind(tmp_path, (model, 1, "adamw"), 4.0, train=4.5)
    assert "no overfitting yet" in sentences(answer(tmp_path, overfitting))


def test_memory_names_the_least_and_the_most(tmp_path: Path) -> None:
    for kind, mib in ((("lstm", 1, "adam"), 700.0), (("gpt1", 4, "adamw"), 2100.0)):
        record_kind(tmp_path, kind, 4.0, 3.9, device="cuda:0", samples=5, process_mib=mib)
    finding = answer(tmp_path, memory)
    assert "from 700 MiB (LSTM 1L Adam (1)) to 2,100 MiB (GPT-1 4L AdamW (12))" in finding.observations[0]
    assert "The difference grows with the model" in finding.interpretation[0]
    assert "4 × 8 × 300 × 4 bytes = 0.0 MiB" in finding.observations[2]


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
