"""The number of bytes of the text of all targets, for bits per byte."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconsole.data.cache import SPLITS
from lmconsole.data.corpus import Corpus, describe_targets, load_corpus
from lmconsole.data.demo import demo_texts
from lmconsole.data.tokenizer import train_byte_bpe
from lmconsole.data.windows import cut_windows


def decoded_sizes(corpus: Corpus, texts: dict[str, str], vocabulary: int, window: int) -> dict[str, int]:
    """Return the same from the text that a tokenizer makes of the targets, whose bytes may be parts of characters."""
    backend = train_byte_bpe(texts["train"], vocabulary).backend
    sizes = {}
    for split in SPLITS:
        ids = corpus.splits[split]
        starts, lengths = cut_windows(len(ids), window)
        targets = np.concatenate([ids[s + 1 : s + n + 1] for s, n in zip(starts, lengths, strict=True)])
        sizes[split] = sum(len(str(backend.id_to_token(int(each) - 1))) for each in targets)
    return sizes


def test_the_bytes_of_the_demo_are_those_of_its_text_without_what_is_never_predicted(cache: Path) -> None:
    corpus = load_corpus("demo", None, vocabulary=2048, cache=cache)
    found = describe_targets(corpus, 64)
    texts = demo_texts()
    assert found["bytes"] == decoded_sizes(corpus, texts, 2048, 64)
    for split in SPLITS:
        left_out = len(corpus.splits[split]) - found["targets"][split]
        assert 1 <= left_out <= 2
        assert 0 < len(texts[split].encode()) - found["bytes"][split] <= left_out * 256
    again = load_corpus("demo", None, vocabulary=2048, cache=cache)  # from the cache
    assert describe_targets(again, 64) == found


def test_a_limit_on_tokens_leaves_the_bytes_of_its_targets(text_folder: Path, cache: Path) -> None:
    whole = load_corpus("tokens", text_folder, vocabulary=400, cache=cache)
    texts = {"train": (text_folder / "train.txt").read_bytes().decode()}
    part = load_corpus("tokens", text_folder, vocabulary=400, max_tokens=300, cache=cache)
    found = describe_targets(part, 7)
    assert found["bytes"] == decoded_sizes(part, texts, 400, 7)
    assert found["bytes"]["train"] < describe_targets(whole, 7)["bytes"]["train"]


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=20, max_size=200))
def test_the_lengths_of_tokens_add_up_to_the_bytes_of_any_text(text: str) -> None:
    tokenizer = train_byte_bpe("naïve – 日本語 words make words " * 4, 300)
    assert tokenizer.token_bytes is not None
    assert int(tokenizer.token_bytes[tokenizer.encode(text)].sum()) == len(text.encode())


def test_the_bytes_of_token_ids_are_unknown(npz_folder: Path) -> None:
    found = describe_targets(load_corpus("tokens", npz_folder, vocabulary=100), 8)
    assert found["bytes"] == {}
    assert found["targets"]["train"] == int(cut_windows(400, 8)[1].sum())


def test_the_bytes_of_a_text_in_the_tokens_of_gpt1_are_unknown(
    text_folder: Path, cache: Path, write_small_bpe: Callable[[Path], None]
) -> None:
    write_small_bpe(text_folder)
    corpus = load_corpus("tokens", text_folder, vocabulary=13, cache=cache)
    assert "GPT-1" in corpus.tokenizer
    assert describe_targets(corpus, 4)["bytes"] == {}


@pytest.mark.parametrize("damage", ["shape", "type"])
def test_a_cache_with_other_lengths_is_made_again(text_folder: Path, cache: Path, damage: str) -> None:
    found = describe_targets(load_corpus("tokens", text_folder, vocabulary=400, cache=cache), 8)
    (entry,) = cache.iterdir()
    arrays = dict(np.load(entry))
    lengths = arrays["token_bytes"]
    arrays["token_bytes"] = lengths[:-1] if damage == "shape" else lengths.astype(np.int64)
    np.savez(entry, **arrays)
    assert describe_targets(load_corpus("tokens", text_folder, vocabulary=400, cache=cache), 8) == found
