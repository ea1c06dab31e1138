"""A corpus is found and loaded: three splits with a fingerprint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmconsole.data.cache import SPLITS
from lmconsole.data.corpus import describe, load_corpus
from lmconsole.data.lookup import find_data, find_embeddings
from lmconsole.data.tokenizer import train_byte_bpe
from lmconsole.data.windows import cut_windows
from lmconsole.errors import CorpusError, EmbeddingsError

LEAN = """
import sys, pathlib
import lmconsole.data.corpus as corpus
corpus.load_corpus("tokens", pathlib.Path(sys.argv[1]), vocabulary=100)
print(sorted({"tokenizers", "torch", "pandas", "textual", "huggingface_hub"} & set(sys.modules)))
"""


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder; the user data folder does not exist."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_the_ids_of_npz_files_are_not_changed(npz_folder: Path) -> None:
    corpus = load_corpus("tokens", npz_folder, vocabulary=100)
    assert (corpus.name, corpus.kind, corpus.path, corpus.vocabulary) == ("numbers", "npz", npz_folder, 100)
    assert corpus.counts() == {"train": 400, "validation": 50, "test": 60}
    for split in SPLITS:
        with np.load(npz_folder / f"wiki.{split}.npz") as archive:
            assert np.array_equal(corpus.splits[split], archive["tokens"])
        assert corpus.splits[split].dtype == np.uint16


def test_the_fingerprint_depends_on_ids_and_vocabulary_only(npz_folder: Path) -> None:
    before = load_corpus("tokens", npz_folder, vocabulary=100).sha256
    with np.load(npz_folder / "wiki.test.npz") as archive:
        ids = archive["tokens"]
    np.savez(npz_folder / "wiki.test.npz", tokens=ids.astype(">i8"))
    assert load_corpus("tokens", npz_folder, vocabulary=100, max_tokens=50).sha256 == before
    assert load_corpus("tokens", npz_folder, vocabulary=101).sha256 != before
    ids[-1] ^= 1
    np.savez(npz_folder / "wiki.test.npz", tokens=ids)
    assert load_corpus("tokens", npz_folder, vocabulary=100).sha256 != before


def test_moving_a_token_from_one_split_to_the_next_changes_the_fingerprint(npz_folder: Path) -> None:
    before = load_corpus("tokens", npz_folder, vocabulary=100).sha256
    with np.load(npz_folder / "wiki.train.npz") as train, np.load(npz_folder / "wiki.validation.npz") as validation:
        a, b = train["tokens"], validation["tokens"]
    np.savez(npz_folder / "wiki.train.npz", tokens=a[:-1])
    np.savez(npz_folder / "wiki.validation.npz", tokens=np.append(a[-1:], b))
    assert load_corpus("tokens", npz_folder, vocabulary=100).sha256 != before


def test_ids_of_a_large_vocabulary_have_four_bytes(npz_folder: Path) -> None:
    assert load_corpus("tokens", npz_folder, vocabulary=65_536).splits["train"].dtype == np.uint16
    np.savez(npz_folder / "wiki.train.npz", tokens=np.array([1, 70_000, 65_535]))
    corpus = load_corpus("tokens", npz_folder, vocabulary=70_001)
    assert corpus.splits["train"].tolist() == [1, 70_000, 65_535]
    assert {ids.dtype for ids in corpus.splits.values()} == {np.dtype(np.int32)}


def test_max_tokens_keeps_the_first_of_the_train_split_and_a_tenth_as_many_of_the_others(npz_folder: Path) -> None:
    whole = load_corpus("tokens", npz_folder, vocabulary=100)
    part = load_corpus("tokens", npz_folder, vocabulary=100, max_tokens=345)
    assert part.counts() == {"train": 345, "validation": 34, "test": 34}
    assert part.max_tokens == 345
    for split, ids in part.splits.items():
        assert np.array_equal(ids, whole.splits[split][: len(ids)])
    assert load_corpus("tokens", npz_folder, vocabulary=100, max_tokens=10**9).counts() == whole.counts()


@pytest.mark.parametrize("max_tokens", [29, 2, 0, -7])
def test_max_tokens_that_leaves_a_split_without_a_window_is_refused(npz_folder: Path, max_tokens: int) -> None:
    with pytest.raises(CorpusError, match=f"--max-tokens {max_tokens} leaves") as caught:
        load_corpus("tokens", npz_folder, vocabulary=100, max_tokens=max_tokens)
    assert "30" in str(caught.value.hint)
    assert load_corpus("tokens", npz_folder, vocabulary=100, max_tokens=30).counts()["test"] == 3


def test_text_is_tokenized_without_loss_by_an_encoding_trained_on_its_train_split(
    text_folder: Path, cache: Path
) -> None:
    corpus = load_corpus("tokens", text_folder, vocabulary=400, cache=cache)
    train = (text_folder / "train.txt").read_bytes().decode()
    tokenizer = train_byte_bpe(train, 400)
    assert (corpus.kind, corpus.vocabulary) == ("text", tokenizer.vocabulary)
    assert tokenizer.decode(corpus.splits["train"]) == train
    assert tokenizer.decode(corpus.splits["test"]) == (text_folder / "test.txt").read_bytes().decode()


def test_other_words_in_the_test_split_do_not_change_the_ids_of_the_train_split(text_folder: Path, cache: Path) -> None:
    before = load_corpus("tokens", text_folder, vocabulary=400, cache=cache)
    (text_folder / "test.txt").write_text("zzz zzz zzz zzz zzz zzz")
    after = load_corpus("tokens", text_folder, vocabulary=400, cache=cache)
    assert np.array_equal(before.splits["train"], after.splits["train"])
    assert len(after.splits["test"]) != len(before.splits["test"])


def test_gpt1s_files_next_to_the_text_are_used_and_line_feeds_give_no_tokens(
    text_folder: Path, cache: Path, write_small_bpe: Callable[[Path], None]
) -> None:
    write_small_bpe(text_folder)
    for name in ("train.txt", "valid.txt", "test.txt"):
        (text_folder / name).write_text("Low low\n\n LOWER low\n")
    corpus = load_corpus("tokens", text_folder, vocabulary=13, cache=cache)
    assert (corpus.vocabulary, corpus.tokenizer) == (13, "GPT-1 BPE, ids shifted by one")
    assert corpus.splits["validation"].tolist() == [12, 12, 11, 4, 5, 10, 12]
    with pytest.raises(CorpusError, match="are 13 ids, the preset's vocabulary is 12"):
        load_corpus("tokens", text_folder, vocabulary=12, cache=cache)


def test_validation_txt_may_replace_valid_txt_and_a_byte_order_mark_is_ignored(text_folder: Path, cache: Path) -> None:
    before = load_corpus("tokens", text_folder, vocabulary=400, cache=cache).sha256
    text = (text_folder / "valid.txt").read_bytes()
    (text_folder / "valid.txt").unlink()
    (text_folder / "validation.txt").write_bytes(b"\xef\xbb\xbf" + text)
    assert load_corpus("tokens", text_folder, vocabulary=400, cache=cache).sha256 == before


def test_a_description_is_valid_json_even_if_the_name_of_the_folder_is_not_text(npz_folder: Path) -> None:
    odd = npz_folder.rename(npz_folder.parent / "d\udcffata [red]\x1b[31m 'x' \"y\"")
    corpus = load_corpus("tokens", odd, vocabulary=100, max_tokens=100)
    assert corpus.path == odd
    assert corpus.name == "d\\udcffata [red]\\x1b[31m 'x' \"y\""
    description = describe(corpus)
    assert json.loads(json.dumps(description).encode()) == description
    assert str(description["path"]).encode().endswith(b"'x' \"y\"")
    assert description["tokens"] == {"train": 100, "validation": 10, "test": 10}


def test_tokens_are_read_without_importing_a_heavy_package(npz_folder: Path, python: Callable[..., str]) -> None:
    assert python(LEAN, npz_folder) == "[]\n"


def test_data_is_looked_up_by_option_then_variable_then_in_the_working_and_the_user_folder(
    nowhere: Path, npz_folder: Path, tmp_path: Path
) -> None:
    assert find_data(None, environ={"LMCONSOLE_DATA": ""}, cwd=nowhere) is None
    places = [tmp_path / "share" / "lmconsole", nowhere / "data", tmp_path / "variable", nowhere / "option"]
    for place in places:
        place.mkdir(parents=True)
        for file in npz_folder.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
    assert find_data(Path("option"), environ={"LMCONSOLE_DATA": str(places[2])}, cwd=nowhere) == places[3]
    assert find_data(None, environ={"LMCONSOLE_DATA": "../variable"}, cwd=nowhere) == places[2]
    assert find_data(None, environ={}, cwd=nowhere) == places[1]
    shutil.rmtree(nowhere / "data")
    assert find_data(None, environ={}, cwd=nowhere) == places[0]


@pytest.mark.parametrize("place", ["data", "share/lmconsole"])
@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (["wiki.train.npz", "wiki.test.npz"], "wiki.validation.npz"),
        (["wiki.train.npz"], "wiki.validation.npz and wiki.test.npz"),
        (["train.txt", "valid.txt"], "test.txt"),
        (["test.txt"], "train.txt and valid.txt"),
        (["train.txt", "valid.txt", "validation.txt", "test.txt"], "validation: valid.txt and validation.txt"),
    ],
)
def test_part_of_a_corpus_in_a_folder_that_nobody_named_is_an_error(
    nowhere: Path, tmp_path: Path, place: str, files: list[str], missing: str
) -> None:
    folder = nowhere / "data" if place == "data" else tmp_path / place
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).touch()
    with pytest.raises(CorpusError) as caught:
        find_data(None, environ={}, cwd=nowhere)
    assert missing in caught.value.message
    assert "--preset demo" in str(caught.value.hint)


@pytest.mark.parametrize(
    "files", [["embeddings.npz"], ["model.safetensors"], ["encoder_bpe_40000.json", "vocab_40000.bpe"]]
)
def test_what_belongs_to_a_corpus_is_no_corpus(nowhere: Path, tmp_path: Path, files: list[str]) -> None:
    user, here = tmp_path / "share" / "lmconsole", nowhere / "data"
    for folder in (user, here):
        folder.mkdir(parents=True)
    for name in files:
        (user / name).touch()
    assert find_data(None, environ={}, cwd=nowhere) is None, "they are there for text of one's own"
    for name in files:
        (here / name).touch()
    with pytest.raises(CorpusError, match=f"{' and '.join(files)} without a corpus"):
        find_data(None, environ={}, cwd=nowhere)


def test_a_data_folder_of_other_things_is_skipped(nowhere: Path) -> None:
    (nowhere / "data").write_text("a file")
    assert find_data(None, environ={}, cwd=nowhere) is None
    (nowhere / "data").unlink()
    (nowhere / "data").mkdir()
    (nowhere / "data" / "measurements.csv").touch()
    assert find_data(None, environ={}, cwd=nowhere) is None


def test_a_data_folder_that_cannot_be_read_is_an_error(nowhere: Path) -> None:
    (nowhere / "data").symlink_to("not-mounted")
    with pytest.raises(CorpusError, match="there is no such folder"):
        find_data(None, environ={}, cwd=nowhere)


def test_the_home_folder_is_expanded_in_the_variable(
    nowhere: Path, npz_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(npz_folder.parent))
    assert find_data(None, environ={"LMCONSOLE_DATA": f"~/{npz_folder.name}"}, cwd=nowhere) == npz_folder
    with pytest.raises(CorpusError, match="LMCONSOLE_DATA: ~nobody-here/x: there is no user 'nobody-here'"):
        find_data(None, environ={"LMCONSOLE_DATA": "~nobody-here/x"}, cwd=nowhere)


@pytest.mark.parametrize("padding", [400, 201])
def test_a_split_that_is_mostly_padding_is_refused(npz_folder: Path, padding: int) -> None:
    with np.load(npz_folder / "wiki.train.npz") as archive:
        ids = archive["tokens"]
    ids[:padding] = 0
    np.savez(npz_folder / "wiki.train.npz", tokens=ids)
    with pytest.raises(CorpusError, match=rf"wiki\.train\.npz: {padding} of 400 tokens .* are padding"):
        load_corpus("tokens", npz_folder, vocabulary=100)
    ids[0] = ids[padding // 2] = 1
    ids[200:] = 1
    np.savez(npz_folder / "wiki.train.npz", tokens=ids)
    load_corpus("tokens", npz_folder, vocabulary=100)


@pytest.mark.parametrize("origin", ["--data", "LMCONSOLE_DATA"])
def test_a_chosen_folder_without_a_corpus_is_an_error(origin: str, nowhere: Path, npz_folder: Path) -> None:
    (nowhere / "data").symlink_to(npz_folder)
    (nowhere / "empty").mkdir()
    for folder, complaint in (("missing", "no such folder"), ("empty", "no corpus in this folder")):
        explicit, environ = (Path(folder), {}) if origin == "--data" else (None, {origin: folder})
        with pytest.raises(CorpusError, match=f"{origin}: .*{folder}: .*{complaint}") as caught:
            find_data(explicit, environ=environ, cwd=nowhere)
        assert caught.value.hint


def test_embeddings_are_looked_up_by_option_then_next_to_the_tokens(npz_folder: Path) -> None:
    assert find_embeddings(None, None) is None
    assert find_embeddings(None, npz_folder) is None
    (npz_folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    assert find_embeddings(None, npz_folder) == npz_folder / "model.safetensors"
    (npz_folder / "embeddings.npz").write_bytes(b"PK\x03\x04")
    assert find_embeddings(None, npz_folder) == npz_folder / "embeddings.npz"
    assert find_embeddings(npz_folder / "wiki.test.npz", npz_folder) == npz_folder / "wiki.test.npz"
    blob = (npz_folder / "model.safetensors").rename(npz_folder / "0a1b2c")
    assert find_embeddings(blob, npz_folder) == blob


@pytest.mark.parametrize(
    ("name", "complaint"), [("absent.npz", "no such file"), (".", "expected a file, found a fold")]
)
def test_a_wrong_path_of_embeddings_is_an_error(npz_folder: Path, name: str, complaint: str) -> None:
    with pytest.raises(EmbeddingsError, match=complaint) as caught:
        find_embeddings(npz_folder / name, npz_folder)
    assert "position" in str(caught.value.hint)


def test_the_shared_wikitext2_is_recognized_and_has_the_published_counts(shared_data: Path) -> None:
    corpus = load_corpus("tokens", shared_data / "wikitext-2", vocabulary=40_479)
    assert corpus.name == "WikiText-2 (GPT-1 BPE)"
    assert corpus.counts() == {"train": 2_356_376, "validation": 245_046, "test": 279_023}
    targets = [int(cut_windows(tokens, 256)[1].sum()) for tokens in corpus.counts().values()]
    assert targets == [2_356_374, 245_044, 279_021]
