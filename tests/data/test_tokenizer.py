"""GPT-1's encoding agrees with published ids; a byte-level one is lossless and deterministic."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconsole.data.tokenizer import (
    ENCODER_FILE,
    LONGEST_WORD,
    MERGES_FILE,
    Tokenizer,
    gpt1_tokenizer,
    iter_lines,
    train_byte_bpe,
)
from lmconsole.errors import CorpusError

pytestmark = pytest.mark.slow

FINGERPRINT = """
from lmconsole.data.demo import demo_texts
from lmconsole.data.tokenizer import train_byte_bpe
import hashlib
texts = demo_texts()
tokenizer = train_byte_bpe(texts["train"], 2048)
print(hashlib.sha256(b"".join(tokenizer.encode(t).tobytes() for t in texts.values())).hexdigest())
"""

FORK = """
import os
from lmconsole.data.tokenizer import train_byte_bpe
tokenizer = train_byte_bpe("to be or not to be\\n" * 999, 300)
ids = tokenizer.encode("or not to be\\n" * 999)
child = os.fork()
if child == 0:
    os._exit(0 if (tokenizer.encode("or not to be\\n" * 999) == ids).all() else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def read_gpt1(folder: Path) -> Tokenizer:
    encoder, merges = folder / ENCODER_FILE, folder / MERGES_FILE
    return gpt1_tokenizer((encoder, encoder.read_bytes()), (merges, merges.read_bytes()))


@pytest.fixture(scope="module")
def byte_bpe() -> Tokenizer:
    return train_byte_bpe("It was the best of times,\nit was the worst of times.\n" * 5, 300)


@settings(deadline=None)
@given(text=st.text())
def test_a_byte_level_encoding_is_lossless(byte_bpe: Tokenizer, text: str) -> None:
    ids = byte_bpe.encode(text)
    assert byte_bpe.decode(ids) == text
    assert ((ids > 0) & (ids < byte_bpe.vocabulary)).all()


@pytest.mark.parametrize("text", ["<pad>", "<unk></w>", "\r\n\x00\x85\u2028 tail", "\n\n\n", " \t 日本語 🙂"])
def test_no_text_is_a_special_token(byte_bpe: Tokenizer, text: str) -> None:
    assert byte_bpe.decode(byte_bpe.encode(text)) == text


def test_training_merges_frequent_pairs_and_not_those_that_occur_once() -> None:
    tokenizer = train_byte_bpe("lowest lowest\nunique", 1000)
    assert len(tokenizer.encode("lowest")) == 1
    assert len(tokenizer.encode("unique")) == len("unique")
    assert 257 < tokenizer.vocabulary < 270


def test_training_never_gives_more_ids_than_requested(byte_bpe: Tokenizer) -> None:
    assert train_byte_bpe("abcd abcd abcd", 257).vocabulary == 257
    assert byte_bpe.vocabulary <= 300


def test_a_vocabulary_smaller_than_all_bytes_is_refused_with_the_smallest_size() -> None:
    with pytest.raises(CorpusError, match="vocabulary = 256 is too small") as caught:
        train_byte_bpe("text", 256)
    assert "257" in str(caught.value.hint)


def test_training_gives_the_same_ids_for_any_number_of_threads_and_hash_seed(python: Callable[..., str]) -> None:
    runs = [
        python(FINGERPRINT),
        python(FINGERPRINT, TOKENIZERS_PARALLELISM="false", PYTHONHASHSEED="1"),
        python(FINGERPRINT, RAYON_NUM_THREADS="1", PYTHONHASHSEED="2"),
        python(FINGERPRINT, RAYON_NUM_THREADS="5"),
    ]
    assert len(set(runs)) == 1


def test_a_forked_child_encodes_without_a_warning(python: Callable[..., str]) -> None:
    assert python(FORK) == ""


@settings(deadline=None)
@given(text=st.text(alphabet="ab\n\r\x0b\u2028"))
def test_lines_end_at_line_feeds_alone_and_join_to_the_text(text: str) -> None:
    lines = list(iter_lines(text))
    assert "".join(lines) == text
    assert all(line.endswith("\n") for line in lines[:-1])
    assert all(line and "\n" not in line[:-1] for line in lines)


def test_gpt1_lowers_case_drops_white_space_and_marks_unknown_characters(
    tmp_path: Path, write_small_bpe: Callable[[Path], None]
) -> None:
    write_small_bpe(tmp_path)
    tokenizer = read_gpt1(tmp_path)
    assert tokenizer.vocabulary == 13
    assert tokenizer.encode(" Low\n\n  LOWER\r\n").tolist() == [12, 11, 4, 5, 10]
    assert tokenizer.encode("lo ø").tolist() == [2, 8, 1]
    assert tokenizer.encode("Ḷów").tolist() == tokenizer.encode("low").tolist() == [12]
    assert tokenizer.decode([12, 0, 11, 4, 5, 10]) == "low lower"


def test_a_merges_file_with_carriage_returns_is_read(tmp_path: Path, write_small_bpe: Callable[[Path], None]) -> None:
    write_small_bpe(tmp_path)
    merges = tmp_path / MERGES_FILE
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert read_gpt1(tmp_path).encode("low").tolist() == [12]


def test_gpt1_gives_the_published_ids_for_every_line_without_unknown_characters(shared_data: Path) -> None:
    tokenizer = read_gpt1(shared_data / "gpt1-bpe")
    with np.load(shared_data / "wikitext-2" / "wiki.test.npz") as archive:
        lines = np.split(archive["tokens"], np.cumsum(archive["sizes"])[:-1])
    known = [line for line in lines if (line != 1).all()]
    again = [line for line in known if np.array_equal(tokenizer.encode(tokenizer.decode(line)), line)]
    assert (tokenizer.vocabulary, len(lines), len(known), len(again)) == (40_479, 2_891, 2_457, 2_457)


def test_gpt1_gives_the_published_ids_for_the_raw_text(shared_data: Path) -> None:
    tokenizer = read_gpt1(shared_data / "gpt1-bpe")
    text = (shared_data / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8")
    with np.load(shared_data / "wikitext-2" / "wiki.test.npz") as archive:
        published = archive["tokens"]
    assert len(published) == 279_023
    assert np.array_equal(tokenizer.encode(text), published)


@pytest.mark.parametrize("letters", ["acgt", "日本語の文章に空白はない", " ", "a"])
def test_text_without_spaces_is_learned_in_linear_time_and_without_loss(letters: str) -> None:
    text = "".join(random.Random(1).choices(letters, k=400_000))
    began = time.process_time()
    tokenizer = train_byte_bpe(text, 400)
    ids = tokenizer.encode(text)
    assert time.process_time() - began < 30, "without a bound on the length of words it takes minutes"
    assert tokenizer.decode(ids) == text


def test_only_words_of_unusual_length_are_cut() -> None:
    word = "abcdefgh" * (LONGEST_WORD // 8)
    whole = train_byte_bpe(f"{word} {word}\n{word}\n", 600)
    assert len(whole.encode(word)) == 1
    assert len(whole.encode(word + word)) == 2


def test_the_published_train_split_decodes_to_text_without_line_feeds(shared_data: Path) -> None:
    tokenizer = read_gpt1(shared_data / "gpt1-bpe")
    with np.load(shared_data / "wikitext-2" / "wiki.train.npz") as archive:
        tokens, sizes = archive["tokens"], archive["sizes"]
    assert tokenizer.decode(tokens[:15]) == "= valkyria chronicles iii = senjo no valkyria 3 :"
    assert sizes.sum() == len(tokens)
    assert sizes.min() >= 1
    line_feed = tokenizer.backend.token_to_id("\n</w>")
    assert line_feed is not None
    assert not (tokens == line_feed + 1).any()
