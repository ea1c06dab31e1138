"""Sentences on claims."""

import math
from pathlib import Path
from typing import Any

import pytest
from claimed import SEEDS, Box, claim

from lmconsole.claims.verdict import Verdict
from lmconsole.claims.wording import describe_missing, exact, scope, state
from lmconsole.runs.events import perplexity


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Both sides used the same seeds; the test treats them as independent, since no pairing was declared."),
        ({"seeds": {1: (1, 2, 3), 2: (2, 3, 4)}}, "Both sides share seeds 2–3; the test treats them as independent"),
        ({"paired": True, "seeds": dict.fromkeys((1, 2), (1, 2, 3, 4, 5, 6))}, "are compared in pairs, as declared"),
        ({"seeds": {1: (1, 2, 3), 2: (4, 5, 6)}}, None),
    ],
)
def test_the_scope_says_how_equal_seeds_are_treated(
    tmp_path: Path, changes: dict[str, Any], expected: str | None
) -> None:
    box = Box(tmp_path, claim(**changes))
    box.finish_all()
    text = " ".join(scope(box.result().contrasts))
    assert ("Both sides" in text) == (expected is not None)
    assert expected is None or expected in text


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, "All runs validated best at their last epoch, so longer training may change the difference."),
        ({1: (4.9, 5.0)}, "All runs of LSTM 1L SGD (2) validated best at their last epoch, so longer training"),
        ({1: (4.9, 5.0), 2: (4.9, 5.0)}, None),
    ],
)
def test_the_scope_says_where_longer_training_may_change_the_difference(
    tmp_path: Path, losses: dict[int, tuple[float, ...]], expected: str | None
) -> None:
    box = Box(tmp_path, claim())
    box.finish_all(losses=losses)
    text = " ".join(scope(box.result().contrasts))
    assert ("longer training" in text) == (expected is not None)
    assert expected is None or expected in text


def test_one_run_that_validated_best_before_its_end_is_enough_for_a_side(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    for (_, seed), run in box.queue().items():
        box.finish(run, 4.0, *((4.8, 4.9) if seed == 3 else (5.0, 4.9)))
    assert "longer training" not in " ".join(scope(box.result().contrasts))


def test_a_side_validated_best_at_the_end_only_if_it_did_so_in_every_comparison(tmp_path: Path) -> None:
    box = Box(tmp_path, claim(), claim(name="later", seeds=dict.fromkeys((1, 2), (6, 7, 8))))
    for (id_, seed), run in box.queue().items():
        box.finish(run, 4.0, *((4.8, 4.9) if (id_, seed) == (2, 7) else (5.0, 4.9)))
    (sentence,) = (each for each in scope(box.result().contrasts) if "longer training" in each)
    assert sentence.startswith("All runs of LSTM 1L Adam (1) validated best at their last epoch")


def test_costs_of_targets_depend_on_the_length_of_training_only_where_runs_missed(tmp_path: Path) -> None:
    box = Box(tmp_path, claim(endpoint="steps", targets=(perplexity(5.5), perplexity(1.0))))
    box.finish_all()
    reached, missed = box.result().contrasts
    assert "longer training" not in " ".join(scope([reached]))
    assert "longer training" in " ".join(scope([missed]))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (4.0, 5.0, ""),
        (4.0, 5.61, "LSTM 1L SGD (2) has hardly learned: its median test loss is less than 0.1 nats per token below"),
        (5.7, 5.61, "LSTM 1L Adam (1) and LSTM 1L SGD (2) have hardly learned: their median test losses are less than"),
    ],
)
def test_sides_that_have_hardly_learned_are_named(tmp_path: Path, first: float, second: float, expected: str) -> None:
    assert math.log(300) - 0.1 == pytest.approx(5.604, abs=1e-3)
    box = Box(tmp_path, claim())
    box.finish_all(first=first, second=second)
    sentences = [sentence for sentence in scope(box.result().contrasts) if "hardly learned" in sentence]
    assert len(sentences) == bool(expected)
    assert not expected or sentences[0].startswith(expected)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (4.0, 4.96, []),
        (4.0, 4.971, ["LSTM 1L SGD (2) has hardly learned: its median test loss is"]),
        (5.2, 5.1, ["LSTM 1L Adam (1) and LSTM 1L SGD (2) have hardly learned: their median test losses are"]),
    ],
)
def test_a_side_has_learned_if_its_losses_are_below_those_of_token_frequencies(
    tmp_path: Path, first: float, second: float, expected: list[str]
) -> None:
    """The third of five seeds, the median, is 0.03 above the given loss."""
    box = Box(tmp_path, claim(), unigram_ppl={"validation": 1.0, "test": math.exp(5.0)})
    box.finish_all(first=first, second=second)
    sentences = [sentence for sentence in scope(box.result().contrasts) if "hardly learned" in sentence]
    assert sentences == [f"{start} not below that of token frequencies (5.0000 nats per token)." for start in expected]
    assert box.contrast().unigram_nats == pytest.approx((5.0, 5.0))


def test_a_sentence_that_holds_for_some_comparisons_names_them(tmp_path: Path) -> None:
    studies, apart = ((11, 12, 13), (21, 22, 23)), {1: (8, 9, 10), 2: (8, 9, 10), 11: (16, 17, 18)}
    box = Box(
        tmp_path,
        claim(name="Settings", contrasts=(((1,), (2,)), ((1,), (11,))), seeds={1: SEEDS, 2: SEEDS, 11: SEEDS}),
        claim(contrasts=(studies,), seeds=dict.fromkeys((*studies[0], *studies[1]), (6, 7))),
        claim(
            name="Apart",
            contrasts=(((2,), (1,)), ((11,), (1,))),
            seeds=apart,
        ),
    )
    for (id_, seed), run in box.queue().items():
        box.finish(run, 3.0 + 0.01 * id_ * seed, 5.0, 4.9)
    sentences = scope(box.result().contrasts)
    settings, seeds, studies_are = sentences[:3]
    assert settings.startswith("“Settings”; “Apart”: Replicates are fresh seeds")
    assert seeds.startswith("“Settings”; 11–13 against 21–23; “Apart”, 2 against 1: Both sides used the same seeds")
    assert studies_are.startswith("11–13 against 21–23: Replicates are independent studies")
    assert sentences[3] == "All runs validated best at their last epoch, so longer training may change the difference."
    assert "Standard deviations over studies in nats per token:" in sentences[4]
    assert "5 seeds detect 2.1 standard deviations, 3 studies detect 3.5" in sentences[4]
    assert len(sentences) == 5


def test_a_diverged_run_of_few_seeds_leaves_no_verdict_and_says_why(tmp_path: Path) -> None:
    box = Box(tmp_path, claim(seeds=dict.fromkeys((1, 2), (1, 2, 3))))
    for (id_, seed), run in box.queue().items():
        box.finish(run, math.inf if (id_, seed) == (2, 1) else 4.0)
    assert box.contrast().result.verdict is Verdict.DESCRIPTION
    assert "runs diverged, and a comparison by ranks takes 5 seeds on each side" in state(box.contrast())
    assert "1 of 3 diverged" in state(box.contrast())


def test_what_was_fixed_beforehand_is_shown_with_all_its_digits(tmp_path: Path) -> None:
    box = Box(
        tmp_path,
        claim(endpoint="tokens", targets=(123456.75, 300.0)),
        claim(delta=0.0012345678, seeds=dict.fromkeys((1, 2), (6, 7, 8))),
    )
    for run in box.queue().values():
        box.finish(run, 4.0)
    first, second, test_loss = map(state, box.result().contrasts)
    assert "a validation perplexity of 123,456.75" in first
    assert "a validation perplexity of 300 " in second
    assert exact(0.0012345678) == "0.0012345678"
    assert "±" not in test_loss  # without any spread, nothing is shown to be equivalent


def test_at_most_ten_missing_runs_are_named_each_once(tmp_path: Path) -> None:
    seeds = dict.fromkeys((1, 2, 11), (1, 2, 3, 4, 5))
    box = Box(tmp_path, claim(contrasts=(((1,), (2,)), ((1,), (11,))), seeds=seeds))
    lines = describe_missing(box.result().contrasts)
    assert len(lines) == 11
    assert lines[0] == "experiment 1, seed 1: not queued"
    assert lines[-1] == "… and 5 more"
