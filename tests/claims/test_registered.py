"""Registered claims: which runs count, and what they come to."""

import hashlib
import json
import math
from pathlib import Path

import factories
import msgspec
import numpy as np
import pytest
import tiny
import validation
from claimed import SEEDS, Box, claim
from factories import append_events
from safetensors.numpy import save

from lmconsole.claims.verdict import Verdict
from lmconsole.claims.wording import describe_missing, scope, state
from lmconsole.commands.claims import show_claims
from lmconsole.engine.queue import Action
from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.submit import preview
from lmconsole.errors import LmconsoleError, StoreError
from lmconsole.runs import endpoint
from lmconsole.runs.events import Failed, perplexity
from lmconsole.runs.paths import CLAIMS, RunPaths
from lmconsole.runs.registration import read_registrations
from lmconsole.runs.store import Store
from lmconsole.runs.trash import discard


def test_runs_queued_after_the_registration_get_a_verdict_at_the_planned_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = Box(tmp_path, claim(delta=0.01))
    runs = box.queue()
    for seed in SEEDS:
        assert box.contrast().result.verdict is Verdict.UNFINISHED
        box.finish(runs[1, seed], 4.0 + 0.01 * seed)
        box.finish(runs[2, seed], 5.0 + 0.02 * seed)
    found = box.contrast()
    assert found.result.verdict is Verdict.LOWER
    assert found.result.difference == pytest.approx(-1.03)
    assert found.result.ratio == pytest.approx(math.exp(-1.03))
    assert [each.outcome for each in (*found.first_runs, *found.second_runs)] == ["counts"] * 10
    assert "test loss is lower for LSTM 1L Adam (1) than for LSTM 1L SGD (2): difference −1.030 nats" in state(found)
    assert "fresh seeds" in scope([found])[0]
    assert "untuned" in scope([found])[0]
    result = box.result()
    assert (result.planned_runs, result.finished_runs, result.attempts.counted) == (10, 10, 10)
    assert show_claims(box.store.root, json=True) == 0
    validation.check_output(json.loads(capsys.readouterr().out), "claims")
    assert result.supported


def test_equivalence_rests_on_the_90_percent_interval(tmp_path: Path) -> None:
    box = Box(tmp_path, claim(delta=0.5))
    for (_, seed), run in box.queue().items():
        box.finish(run, 4.0 + 0.1 * seed)
    found = box.contrast()
    low, high = found.result.equivalence_interval.low, found.result.equivalence_interval.high  # type: ignore[union-attr]
    assert (found.result.verdict, found.result.difference) == (Verdict.EQUIVALENT, 0.0)
    assert "are equivalent within ±0.5 nats per token" in state(found)
    assert f"two one-sided tests at 5%: 90% interval [−{-low:.2f}, +{high:.2f}]" in state(found)
    assert "adjusted" not in state(found)


def test_registering_again_finds_the_same_claims_and_a_change_makes_others(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    again = Box(tmp_path, claim())
    assert (box.new, again.new) == (True, False)
    assert again.registration == box.registration
    others = [
        claim(delta=0.1),
        claim(seeds={1: SEEDS, 2: (11, 12, 13, 14, 15)}),
        claim(contrasts=(((2,), (1,)),)),
        claim(endpoint="steps", targets=(9.0,)),
        claim(name="another"),
    ]
    hashes = {Box(tmp_path, other).registration.hash for other in others}
    hashes.add(Box(tmp_path, claim(), epochs=3).registration.hash)
    assert len(hashes | {box.registration.hash}) == 7
    assert [each.place for each in read_registrations(box.store.root)] == sorted(range(1, 8))


def test_results_that_are_known_cannot_be_claimed(tmp_path: Path) -> None:
    known = tiny.queue_tiny(tmp_path, seed=3)
    tiny.queue_tiny(tmp_path, seed=4)  # has no result yet
    append_events(known.paths, *factories.epoch_events(1, 5.0))
    with pytest.raises(LmconsoleError, match="experiment 1, seed 3: already trained"):
        Box(tmp_path, claim())
    append_events(known.paths, factories.finished())
    discard(Store(tmp_path / "runs"), [known.run])
    with pytest.raises(LmconsoleError, match="experiment 1, seed 3: already trained"):
        Box(tmp_path, claim())
    assert not read_registrations(tmp_path / "runs")
    assert Box(tmp_path, claim(seeds=dict.fromkeys((1, 2), (6, 7, 8)))).new


def test_seeds_that_trained_another_setting_of_the_same_kind_are_not_new(tmp_path: Path) -> None:
    other = tiny.queue_tiny(tmp_path, seed=3, learning_rate=0.5)
    append_events(other.paths, *factories.epoch_events(1, 5.0))
    with pytest.raises(LmconsoleError, match="experiment 1, seed 3: already trained with this model"):
        Box(tmp_path, claim())


def test_a_test_loss_that_its_windows_contradict_does_not_count(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    runs = box.queue()
    for seed, windows in ((1, 4.0), (2, 3.0)):
        box.finish(runs[1, seed], 4.0)
        kept = {endpoint.NLL: np.array([windows, windows]), endpoint.TARGETS: np.array([1, 1])}
        RunPaths(box.store.root / runs[1, seed]).test_losses.write_bytes(save(kept))
    assert [each.outcome for each in box.contrast().first_runs[:2]] == ["counts", "damaged"]


def test_equal_settings_need_seeds_of_their_own(tmp_path: Path) -> None:
    placebo = claim(contrasts=(((1,), (3,)),), seeds={1: SEEDS, 3: SEEDS})
    with pytest.raises(LmconsoleError, match="equal settings with the same seeds"):
        Box(tmp_path, placebo)
    assert Box(tmp_path, msgspec.structs.replace(placebo, seeds={1: SEEDS, 3: (11, 12, 13, 14, 15)})).new


def test_runs_from_before_do_not_count_even_if_they_end_later(tmp_path: Path) -> None:
    early = tiny.queue_tiny(tmp_path, seed=1)
    box = Box(tmp_path, claim())
    runs = box.queue()
    assert runs[1, 1] != early.run
    append_events(early.paths, factories.started(), *factories.epoch_events(1, 4.0), factories.finished((4.0,)))
    box.finish(runs[1, 1], 4.0)
    assert box.contrast().first_runs[0].outcome == "known before"
    box.finish(runs[1, 2], 4.0)
    assert box.contrast().first_runs[1].outcome == "counts"


def test_of_repeated_runs_the_first_finished_one_counts_deleted_or_not(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    first = box.queue()[1, 1]
    box.finish(first, 4.5)
    second = box.queue(fresh=True)[1, 1]
    box.finish(second, 3.0)
    assert box.contrast().first_runs[0].run == first
    assert box.contrast().first_runs[0].value == pytest.approx(4.5)
    discard(Store(box.store.root), [first])
    assert box.contrast().first_runs[0].run == first
    attempts = box.result().attempts
    assert (attempts.counted, attempts.others, attempts.deleted) == (1, 1, 1)
    assert attempts.unfinished == 18


def test_a_second_command_trains_only_what_is_missing(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    runs = box.queue()
    box.finish(runs[1, 1], 4.0)
    request = RunRequest(claims=True, runs=box.store.root)
    actions = {
        (each.resolved.experiment.id, each.resolved.seed): each.action
        for each in preview(box.store.runs(), box.answer, request)
    }
    assert actions[1, 1] is Action.FINISHED
    assert len(actions) == 10
    changed = msgspec.structs.replace(box.answer, claims=(claim(delta=1.0),))
    assert {each.action for each in preview(box.store.runs(), changed, request)} == {Action.NEW}


def test_a_diverged_run_is_infinite_and_ranks_decide(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    runs = box.queue()
    for seed in SEEDS:
        box.finish(runs[1, seed], 4.0 + 0.01 * seed)
        box.finish(runs[2, seed], math.inf if seed == 1 else 5.0 + 0.01 * seed)
    found = box.contrast()
    assert found.second_runs[0].outcome == "diverged"
    assert (found.result.test, found.result.verdict) == ("rank permutation", Verdict.LOWER)
    assert found.result.p == pytest.approx(2 / math.comb(10, 5))
    assert found.result.difference is None
    assert "1 of 5 diverged" in state(found)


def test_a_failed_run_keeps_the_verdict_away(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    runs = box.queue()
    for seed in SEEDS:
        box.finish(runs[1, seed], 4.0 + 0.01 * seed)
        if seed > 1:
            box.finish(runs[2, seed], 5.0 + 0.01 * seed)
    append_events(RunPaths(box.store.root / runs[2, 1]), Failed(error="x", message="m", hint="h"))
    found = box.contrast()
    assert found.result.verdict is Verdict.UNFINISHED
    assert found.result.interval is not None
    assert describe_missing([found]) == [f"experiment 2, seed 1: failed ({runs[2, 1]})"]
    assert "5 and 4 of 5 planned seeds have a result" in state(found)
    assert "adjusted p" not in state(found)


def test_an_early_look_has_no_p_value_and_does_not_ease_the_correction_of_others(tmp_path: Path) -> None:
    box = Box(tmp_path, claim(contrasts=(((1,), (2,)), ((1,), (11,))), seeds=dict.fromkeys((1, 2, 11), SEEDS)))
    runs = box.queue()
    for (id_, seed), run in runs.items():
        if (id_, seed) != (11, 5):
            box.finish(run, {1: 4.0, 2: 4.02, 11: 9.0}[id_] + 0.01 * seed)
    done, early = box.result().contrasts
    assert (early.result.verdict, early.result.p, early.result.p_adjusted) == (Verdict.UNFINISHED, None, None)
    assert (early.result.test, early.result.permutation_p) == (None, None)
    assert early.result.interval is not None
    assert done.result.p_adjusted == pytest.approx(2 * (done.result.p or 0)), "as if the early one were not significant"
    box.finish(runs[11, 5], 9.05)
    done, _ = box.result().contrasts
    assert done.result.p_adjusted == pytest.approx(done.result.p)


def test_times_to_a_target_are_ranked_and_misses_are_infinite(tmp_path: Path) -> None:
    box = Box(tmp_path, claim(endpoint="steps", targets=(perplexity(4.0), perplexity(1.0))))
    runs = box.queue()
    for seed in SEEDS:
        box.finish(runs[1, seed], 4.0, 4.5, 3.9, 3.5)
        box.finish(runs[2, seed], 4.0, 4.5, 4.2, 3.9 if seed < 3 else 4.1)
    reached, missed = box.result().contrasts
    assert reached.result.first.median == 2 * box_steps(box)
    assert reached.result.second.median is None
    assert (reached.result.second.diverged, reached.result.verdict) == (3, Verdict.LOWER)
    assert "3 of 5 never reached it" in state(reached)
    assert missed.result.verdict is Verdict.INCONCLUSIVE
    # Holm's family has both targets.
    assert reached.result.p_adjusted == pytest.approx(2 * (reached.result.p or 0))


def box_steps(box: Box) -> int:
    from lmconsole.data.windows import cut_windows

    run = box.answer.runs[0]
    _, lengths = cut_windows(run.corpus.tokens["train"], run.settings.window_tokens)
    return math.ceil(len(lengths) / run.settings.batch_size)


def test_studies_of_optimizers_are_the_replicates(tmp_path: Path) -> None:
    ids = ((11, 12, 13), (21, 22, 23))
    studies = claim(contrasts=(ids,), seeds=dict.fromkeys((*ids[0], *ids[1]), (1, 2)))
    box = Box(tmp_path, studies)
    for (id_, seed), run in box.queue().items():
        box.finish(run, 4.0 + (id_ > 20) + 0.01 * id_ + (0.3 if seed == 1 else -0.3))
    found = box.contrast()
    assert (found.result.first.seeds, found.result.second.seeds, found.planned) == (3, 3, 3)
    assert found.result.verdict is Verdict.LOWER
    assert found.result.first.sd == pytest.approx(0.01)
    assert found.result.first.name == "LSTM 1L Adam (11–13)"
    assert "compares two optimizers (untuned" in scope([found])[0]
    assert "3 and 3 studies" in state(found)


def test_pairs_need_both_runs(tmp_path: Path) -> None:
    seeds = (1, 2, 3, 4, 5, 6)
    box = Box(tmp_path, claim(paired=True, seeds=dict.fromkeys((1, 2), seeds)))
    runs = box.queue()
    for seed in seeds:
        box.finish(runs[1, seed], 4.0 + seed)
        if seed < 6:
            box.finish(runs[2, seed], 4.1 + seed + 0.001 * seed)
    assert box.contrast().result.first.seeds == 5
    assert box.contrast().result.verdict is Verdict.UNFINISHED
    box.finish(runs[2, 6], 10.106)
    assert (box.contrast().result.test, box.contrast().result.verdict) == ("paired t", Verdict.LOWER)


def test_a_registration_of_a_version_without_token_frequencies_is_read(tmp_path: Path) -> None:
    box = Box(tmp_path, claim(delta=0.01))
    (path,) = (box.store.root / CLAIMS).iterdir()
    fields = json.loads(path.read_bytes())
    for setting in fields["settings"].values():
        assert setting["corpus"].pop("unigram_ppl") == {}
    content = msgspec.json.encode({**fields, "seal": ""}, order="deterministic")
    path.write_text(json.dumps({**fields, "seal": hashlib.sha256(content).hexdigest()}))
    assert read_registrations(box.store.root)[0].settings == box.registration.settings
    fields["settings"]["1"]["corpus"]["unigram_ppl"] = {"test": 9.0}
    path.write_text(json.dumps({**fields, "seal": hashlib.sha256(content).hexdigest()}))
    with pytest.raises(StoreError, match=path.name):
        read_registrations(box.store.root)


def test_a_changed_registration_is_refused_and_its_place_stays_taken(tmp_path: Path) -> None:
    box = Box(tmp_path, claim(delta=0.01))
    (path,) = (box.store.root / CLAIMS).iterdir()
    whole = path.read_text()
    forged = (whole.replace('"place": 1', '"place": 0'), whole.replace('"registered_t": "20', '"registered_t": "19'))
    for changed in (*forged, whole.replace("0.01", "0.09"), whole[:40], whole.replace('"schema": 1', '"schema": 2')):
        path.write_text(changed)
        with pytest.raises(StoreError, match=path.name):
            read_registrations(box.store.root)
    path.write_text(whole)
    (run,) = {tiny.queue_tiny(tmp_path, seed=99).run}
    assert Store(box.store.root).find(run).state.first_place > box.registration.place
