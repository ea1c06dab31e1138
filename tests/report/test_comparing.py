"""Sentences on the difference between two settings: for each number of seeds, what is known and nothing more."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import record
from scipy.stats import false_discovery_control, permutation_test, ttest_ind

from lmconsole.report.comparing import Comparison, Evidence, Pair, compare
from lmconsole.report.experiment_result import Endpoint, ExperimentResult, experiment_results
from lmconsole.report.findings import explain_comparisons, findings
from lmconsole.report.selection import choose_group
from lmconsole.runs.info import read_info
from lmconsole.runs.store import Store

INF = math.inf
CLAIM_WORDS = re.compile(
    r"\b(lower|higher|better|worse|beats?|wins?|outperforms?|helps?|hurts?|significant\w*|equivalent|same|identical|"
    r"no difference|practically|distinguish)\b"
)
OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")
LOSSES = (4.00, 4.10, 3.95, 4.05, 4.02, 4.08, 3.97, 4.01, 4.06, 3.99)
"""Results of up to ten seeds; those of the other setting are 0.3 above them."""


@dataclass(frozen=True)
class Given(ExperimentResult):
    """Results of an experiment whose losses a test chooses, whatever its runs record."""

    values: tuple[float, ...] = ()

    def losses(self, endpoint: Endpoint) -> tuple[float, ...] | None:
        return self.values if endpoint is Endpoint.TEST else None


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentResult, ExperimentResult]:
    """Return AdamW and Adam, with one finished run each."""
    root = tmp_path_factory.mktemp("both")
    record(root, 1, "lstm", [(4.0, 4.0)], optimizer="adam")
    record(root, 2, "lstm", [(4.0, 4.0)], optimizer="adamw")
    results = experiment_results(choose_group(Store(root / "runs").runs()))
    return results[2], results[1]


def compare_losses(
    both: tuple[ExperimentResult, ExperimentResult], *samples: tuple[tuple[float, ...], tuple[float, ...]]
) -> list[Comparison]:
    adamw, adam = both
    return compare(
        [
            Pair(subject="AdamW against Adam", first=Given(adamw.runs, first), second=Given(adam.runs, second))
            for first, second in samples
        ]
    )


def two_samples(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return LOSSES[:n], tuple(loss + 0.3 for loss in LOSSES[:n])


PARTS = {
    "no uncertainty": "No uncertainty known.",
    "description": "Description only.",
    "difference": "ifference",
    "interval": "95% interval",
    "ratio": "Ratio of the geometric means of perplexity",
    "p": "Exploratory p",
    "power": "With 80% power",
    "permutation": "ermutation",
    "superiority": "P(first < second)",
}
WITH_INTERVAL = {"difference", "interval", "ratio", "p", "power"}


@pytest.mark.parametrize(
    ("n", "parts", "evidence"),
    [
        (1, {"no uncertainty", "difference"}, Evidence.ONE_SEED),
        (2, {"description", "difference"}, Evidence.DESCRIPTION),
        (3, WITH_INTERVAL, Evidence.EXPLORATORY),
        (4, WITH_INTERVAL, Evidence.EXPLORATORY),
        (5, WITH_INTERVAL | {"permutation"}, Evidence.EXPLORATORY),
        (10, WITH_INTERVAL | {"permutation", "superiority"}, Evidence.EXPLORATORY),
    ],
)
def test_each_number_of_seeds_has_its_parts(
    both: tuple[ExperimentResult, ExperimentResult], n: int, parts: set[str], evidence: Evidence
) -> None:
    (found,) = compare_losses(both, two_samples(n))
    assert {part for part, text in PARTS.items() if text in found.sentence} == parts
    assert found.evidence is evidence
    assert found.sentence.startswith("LSTM 1L AdamW (experiment 2) against LSTM 1L Adam (experiment 1), test loss: ")
    assert found.sentence.endswith(" Untuned: both at the settings of the preset.")


def test_the_sentences_are_these(both: tuple[ExperimentResult, ExperimentResult]) -> None:
    start = "LSTM 1L AdamW (experiment 2) against LSTM 1L Adam (experiment 1), test loss: "
    stamp = "Untuned: both at the settings of the preset."
    one, two, three = (compare_losses(both, two_samples(n))[0] for n in (1, 2, 3))
    assert one.sentence == (
        f"{start}4.0000 and 4.3000 nats per token (perplexity 54.598 and 73.700); difference −0.3000. No "
        f"uncertainty known. {stamp}"
    )
    assert one.outcome == "lowest is LSTM 1L AdamW (2), by 0.3000 nats (one seed, not a claim)."
    assert two.sentence == (
        f"{start}4.0000, 4.1000 and 4.3000, 4.4000 nats per token; difference of the means −0.3000. Description only. "
        f"{stamp}"
    )
    assert two.outcome == "description only, so nothing is concluded."
    t = ttest_ind(*two_samples(3), equal_var=False)
    low, high = t.confidence_interval(0.95)
    assert three.sentence == (
        f"{start}4.0167 (n = 3, sd 0.0764) and 4.3167 (n = 3, sd 0.0764) nats per token. Difference −0.3000, 95% "
        f"interval −{-low:.4f} to −{-high:.4f} for this comparison alone. Ratio of the geometric means of perplexity: "
        f"{math.exp(-0.3):.4g}, 95% interval {math.exp(low):.4g} to {math.exp(high):.4g}. Exploratory p = "
        f"{t.pvalue:.2g} (Welch's t, the only contrast). With 80% power, 3 seeds each detect a difference of 3.5 "
        f"standard deviations, before correction. {stamp}"
    )
    assert three.outcome == (
        "the difference favors LSTM 1L AdamW (2) (exploratory, since no claim was registered before the runs)."
    )


def test_p_values_are_adjusted_over_the_family(both: tuple[ExperimentResult, ExperimentResult]) -> None:
    wide = (LOSSES[:5], tuple(loss + 0.09 for loss in LOSSES[:5]))
    (alone,), family = compare_losses(both, wide), compare_losses(both, *[wide] * 4)
    assert alone.evidence is Evidence.EXPLORATORY
    assert {found.evidence for found in family} == {Evidence.INCONCLUSIVE}
    assert "Holm over 4 contrasts" in family[0].sentence
    assert family[0].outcome == "inconclusive, which is not evidence of equal settings."
    p = [ttest_ind(*sample, equal_var=False).pvalue for sample in (wide, two_samples(5))]
    mixed = compare_losses(both, wide, two_samples(5))
    assert mixed[0].result is not None
    assert mixed[0].result.p_adjusted == pytest.approx(max(p[0], 2 * min(p)))
    assert false_discovery_control(p).max() <= mixed[0].result.p_adjusted  # Holm is the stricter of the two


def test_a_permutation_test_checks_the_means(both: tuple[ExperimentResult, ExperimentResult]) -> None:
    (found,) = compare_losses(both, two_samples(5))
    expected = permutation_test(two_samples(5), lambda a, b: np.mean(a) - np.mean(b), n_resamples=np.inf).pvalue
    assert f"Exact permutation p = {expected:.2g}, as a check." in found.sentence
    assert "Permutation (9,999 draws) p" in compare_losses(both, two_samples(10))[0].sentence


DIVERGED = (
    "median 4.2000 (n = 5) and median ∞ (n = 5) nats per token. Diverged: 0 of 5 (95% interval 0% to 52%) and 4 of "
    "5 (95% interval 28% to 99%). A diverged run counts as infinite: no mean. Exploratory p = 0.0079 (rank permutation,"
    " exact, the only contrast)."
)


@pytest.mark.parametrize(
    ("first", "second", "expected", "evidence", "outcome"),
    [
        ((4.0,), (INF,), "4.0000 and diverged nats per token. Diverged: 0 of 1", Evidence.ONE_SEED, "lowest is LSTM"),
        ((4.0, 4.1, 4.2), (4.0, INF, INF), "no test with fewer than 5", Evidence.DESCRIPTION, "description only"),
        (
            (4.0, 4.1, 4.2, 4.3, 4.4),
            (4.5, INF, INF, INF, INF),
            DIVERGED,
            Evidence.EXPLORATORY,
            "the difference favors LSTM 1L AdamW (2)",
        ),
        ((INF,) * 5, (INF,) * 5, "Exploratory p = 1 (", Evidence.INCONCLUSIVE, "inconclusive, which is not evidence"),
    ],
)  # fmt: skip
def test_diverged_runs_count_as_infinite(
    both: tuple[ExperimentResult, ExperimentResult],
    first: tuple[float, ...],
    second: tuple[float, ...],
    expected: str,
    evidence: Evidence,
    outcome: str,
) -> None:
    (found,) = compare_losses(both, (first, second))
    assert expected in found.sentence
    assert found.evidence is evidence
    assert found.outcome.startswith(outcome)
    for word in ("sd ", "Welch", "Ratio", "nan"):
        assert word not in found.sentence


@pytest.mark.parametrize("values", [(4.0,), (4.0, 4.0), (4.0, 4.0, 4.0)])
def test_values_that_do_not_vary_have_no_interval(
    both: tuple[ExperimentResult, ExperimentResult], values: tuple[float, ...]
) -> None:
    (found,) = compare_losses(both, (values, values))
    assert "Exploratory p" not in found.sentence
    assert "interval " not in found.sentence
    assert found.favored is None
    assert found.outcome.startswith(("no order is named, since", "description only"))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([1, 2, 3, 5, 10]), st.integers(0, 2**32 - 1), st.booleans())
def test_a_placebo_gets_no_word_of_a_claim(
    both: tuple[ExperimentResult, ExperimentResult], n: int, seed: int, diverges: bool
) -> None:
    """One setting is split in two at random: however the seeds fall, no sentence calls one half better."""
    losses = np.random.default_rng(seed).normal(4.0, 0.02, 2 * n)
    if diverges:
        losses[-1] = INF
    (found,) = compare_losses(both, (tuple(losses[:n].tolist()), tuple(losses[n:].tolist())))
    text = f"{found.sentence} {found.outcome}"
    assert not CLAIM_WORDS.search(text), text
    assert not re.search(r"\bnan\b|None", text)
    if n == 1:
        assert "No uncertainty known." in text or "no test with fewer than 5 seeds" in text
        assert "(one seed, not a claim)" in text
    elif n == 2:
        assert "description only" in text
    if n < 3 or (diverges and n < 5):
        assert "xploratory" not in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_report_on_a_placebo_has_no_word_of_a_claim(tmp_path: Path, seeds: int) -> None:
    """All experiments have the same results but for noise."""
    noise = np.random.default_rng(seeds).normal(0.0, 0.01, 1_000).tolist()
    for number, (model, layers, optimizer) in enumerate(
        [
            *((model, 1, optimizer) for model in ("lstm", "gpt1") for optimizer in OPTIMIZERS),
            *((model, layers, "adamw") for model in ("lstm", "gpt1") for layers in (2, 4)),
        ],
        1,
    ):
        for seed in range(seeds):
            losses = [(3.9 + noise.pop(), 4.0 + noise.pop()) for _ in range(2)]
            record(tmp_path, number, model, losses, layers=layers, optimizer=optimizer, seed=seed)
    for finding in findings(choose_group(Store(tmp_path / "runs").runs())):
        for sentence in (*finding.observations, *finding.interpretation):
            if "wall-clock" not in sentence and "The measurements do not distinguish" not in sentence:
                assert not CLAIM_WORDS.search(sentence), sentence


def test_without_a_test_the_validation_loss_is_compared_and_named(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(4.0, 4.5), (4.0, 4.6)], optimizer="adam", tested=False)
    record(tmp_path, 2, "lstm", [(4.0, 4.0), (4.0, 4.1)], optimizer="adamw")
    record(tmp_path, 3, "lstm", [(4.0, 4.3)], optimizer="sgd")
    results = experiment_results(choose_group(Store(tmp_path / "runs").runs()))
    untested, tested = compare(
        [
            Pair(subject="", first=results[2], second=results[1]),
            Pair(subject="", first=results[2], second=results[3]),
        ]
    )
    assert ", validation loss at the best epoch: 4.0000 and 4.5000 nats per token" in untested.sentence
    assert ", test loss: 4.0000 and 4.3000" in tested.sentence
    method = explain_comparisons([untested, tested])
    assert "Some runs have no test loss of their best epoch, so the validation loss is compared, which also" in method
    assert "a comparison is about two settings, not about optimizers or architectures as such" in method


def test_stamps_and_confounders_are_named(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(4.0, 4.0)], optimizer="adam")
    run = record(tmp_path, 2, "lstm", [(4.0, 5.0)], optimizer="adamw")
    record(tmp_path, 9, "lstm", [(4.0, 5.0)], optimizer="adamw", layers=2)
    info = read_info(run.paths.info)
    own = msgspec.structs.replace(info.experiment, overrides={"learning_rate": 0.5})
    changed = msgspec.structs.replace(info.settings, learning_rate=0.5)
    run.paths.info.write_bytes(msgspec.json.encode(msgspec.structs.replace(info, experiment=own, settings=changed)))
    results = experiment_results(choose_group(Store(tmp_path / "runs").runs()))
    tuned, depths = compare(
        [
            Pair(subject="", first=results[2], second=results[1]),
            Pair(subject="", first=results[9], second=results[2]),
        ]
    )
    stamp = "Untuned: both at the settings of experiments.toml."
    assert f"They also differ in learning rate. {stamp}" in tuned.sentence
    assert "ntuned" not in depths.sentence
