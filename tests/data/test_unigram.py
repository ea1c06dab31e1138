"""The perplexity of token frequencies, against a straightforward loop over the targets of a model."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from lmconsole.data import corpus as corpus_module
from lmconsole.data.cache import SPLITS
from lmconsole.data.corpus import Corpus, describe_targets, load_corpus
from lmconsole.engine.probe import probe
from lmconsole.engine.run_options import RunRequest
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.linear_cross_entropy import IGNORE


def targets_of_a_model(corpus: Corpus, split: str, window: int) -> list[int]:
    windowed = WindowedSplit(corpus.splits[split], window, "cpu")
    _, targets = windowed.batch(torch.arange(len(windowed)))
    return [target for target in targets.flatten().tolist() if target != IGNORE]


def ppl_by_a_loop(corpus: Corpus, split: str, window: int) -> float:
    trained = targets_of_a_model(corpus, "train", window)
    evaluated = targets_of_a_model(corpus, split, window)
    count = Counter(trained)
    nats = 0.0
    for target in evaluated:
        nats -= math.log((count[target] + 1) / (len(trained) + corpus.vocabulary))
    return math.exp(nats / len(evaluated))


@pytest.mark.parametrize("window", [7, 8, 64, 1000])
@pytest.mark.parametrize("max_tokens", [None, 90])
def test_it_is_that_of_a_loop_over_the_targets_of_a_model(
    npz_folder: Path, window: int, max_tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "_COUNTED_AT_ONCE", 70)
    corpus = load_corpus("tokens", npz_folder, vocabulary=100, max_tokens=max_tokens)
    if max_tokens:
        unseen = set(targets_of_a_model(corpus, "test", window)) - set(targets_of_a_model(corpus, "train", window))
        assert unseen, "their probability is not 0"
    found = describe_targets(corpus, window)
    assert found["unigram_ppl"] == pytest.approx({split: ppl_by_a_loop(corpus, split, window) for split in SPLITS})
    assert found["targets"] == {split: len(targets_of_a_model(corpus, split, window)) for split in SPLITS}


def test_a_corpus_of_equal_frequencies_has_the_perplexity_of_a_uniform_guess(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        np.save(tmp_path / f"{name}.npy", np.tile(np.arange(1, 21, dtype=np.uint16), 100))
    corpus = load_corpus("tokens", tmp_path, vocabulary=21)
    assert describe_targets(corpus, 8)["unigram_ppl"]["test"] == pytest.approx(20.0, rel=1e-3)


def test_it_is_computed_once_for_all_runs_of_a_request(
    tmp_path: Path, npz_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def counted(corpus: Corpus, window_tokens: int) -> object:
        computed.append(window_tokens)
        return describe_targets(corpus, window_tokens)

    monkeypatch.setattr(corpus_module, "describe_targets", counted)
    rows = [tiny.row(number, model) for number, model in enumerate(("lstm", "gpt1", "lstm"), 1)]
    file = tiny.write_experiments(tmp_path / "experiments.toml", *rows)
    request = RunRequest(ids=(1, 2, 3), preset="tiny", device="cpu", experiments=file, data=npz_folder)
    runs = probe(request, {}, tmp_path).runs
    assert computed == [8]
    corpus = load_corpus("tokens", npz_folder, vocabulary=300)
    assert [run.corpus.unigram_ppl for run in runs] == [describe_targets(corpus, 8)["unigram_ppl"]] * 3
