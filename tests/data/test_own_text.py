"""Text as people have it: other names, packed, or in one file that is split here."""

import gzip
import itertools
import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lmconsole.data import text as text_module
from lmconsole.data.cache import SPLITS
from lmconsole.data.corpus import check_tokenizer_of_tables, describe, load_corpus
from lmconsole.data.layout import corpus_files
from lmconsole.data.lookup import find_data, find_embeddings, find_tokenizer
from lmconsole.data.text import LONGEST_PIECE, SHARES, Text, TextPart, cut_pieces, split_file
from lmconsole.data.tokenizer import Tokenizer, train_byte_bpe
from lmconsole.errors import CorpusError, EmbeddingsError

LINE = "Words make lines, and some lines make sense – naïve or not.\n"

NAMES = [
    ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
    ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
    ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"),
    ("train.txt", "val.txt", "test.txt"),
    ("train.txt", "dev.txt", "test.txt"),
    ("my-train.TXT", "My_Validation.txt", "TEST.txt"),
    ("a.train.txt.gz", "b.val.raw", "c.test.tokens.gz"),
]


@pytest.mark.parametrize("names", NAMES)
def test_text_files_may_have_the_names_that_people_give_them(
    names: tuple[str, ...], text_folder: Path, cache: Path
) -> None:
    expected = load_corpus("tokens", text_folder, vocabulary=300, cache=cache).sha256
    for usual, name in zip(("train.txt", "valid.txt", "test.txt"), names, strict=True):
        data = (text_folder / usual).read_bytes()
        (text_folder / usual).unlink()
        (text_folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (text_folder / "._train.txt").write_bytes(b"what macOS leaves on other disks")
    (text_folder / "training-notes.txt").write_text("not a split")
    corpus = load_corpus("tokens", text_folder, vocabulary=300, cache=cache)
    assert corpus.sha256 == expected
    assert tuple(corpus.files.values()) == names
    assert find_data(text_folder, environ={}, cwd=text_folder) == text_folder


@pytest.mark.parametrize("ending", ["npz", "npy", "npy.gz", "npz.gz"])
@pytest.mark.parametrize("name", ["wiki.valid", "val", "dev"])
def test_ids_may_be_in_other_files_too(name: str, ending: str, npz_folder: Path) -> None:
    before = load_corpus("tokens", npz_folder, vocabulary=100)
    path = npz_folder / f"{name}.{ending}"
    (npz_folder / "wiki.validation.npz").rename(path)
    if "npy" in ending:
        with np.load(path) as archive:
            ids = archive["tokens"].astype(np.int64)
        with path.open("wb") as file:
            np.save(file, ids)
    if ending.endswith("gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    after = load_corpus("tokens", npz_folder, vocabulary=100)
    assert (after.sha256, after.kind) == (before.sha256, "npz")
    assert after.splits["validation"].dtype == np.uint16
    assert after.files["validation"] == path.name


def test_missing_files_are_named_like_the_others() -> None:
    for names, missing in (
        ({"ptb.train.txt"}, "ptb.valid.txt and ptb.test.txt"),
        ({"x.val.npy.gz", "x.test.npy.gz"}, "x.train.npy.gz"),
    ):
        with pytest.raises(CorpusError) as caught:
            corpus_files(Path("folder"), names)
        assert caught.value.message.endswith(f"without {missing}")


def test_of_many_files_for_one_split_some_are_named() -> None:
    with pytest.raises(CorpusError, match=r"split: train: 0\.train\.txt, .* and 9,995 more\n"):
        corpus_files(Path("folder"), {f"{number}.train.txt" for number in range(10_000)})


def test_a_run_finds_its_files_again_when_a_folder_has_text_and_ids(text_folder: Path, npz_folder: Path) -> None:
    for file in npz_folder.iterdir():
        (text_folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CorpusError, match=r"train: train.txt and wiki.train.npz; validation: "):
        load_corpus("tokens", text_folder, vocabulary=300)
    assert load_corpus("tokens", text_folder, vocabulary=300, only="npz").counts()["train"] == 400
    assert load_corpus("tokens", text_folder, vocabulary=300, only="text").kind == "text"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text file of 200 numbered lines."""
    path = tmp_path / "my [red] book.txt"
    path.write_text("".join(f"{number:>5} {LINE}" for number in range(1, 201)))
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_one_text_file_is_split_at_line_ends_and_says_so(packed: bool, book: Path, cache: Path) -> None:
    text = book.read_text()
    if packed:
        book.write_bytes(gzip.compress(book.read_bytes()))
    assert find_data(book, environ={}, cwd=book.parent) == book
    corpus = load_corpus("tokens", book, vocabulary=300, cache=cache)
    assert (corpus.kind, corpus.path) == ("text", book)
    assert corpus.name == "my [red] book.txt (split 90/5/5 at line ends)"
    lines = ("lines 1 to 180", "lines 181 to 190", "lines 191 to 200")
    assert describe(corpus)["files"] == {
        split: f"{book.name}, {part}" for split, part in zip(SPLITS, lines, strict=True)
    }
    train = "".join(text.splitlines(keepends=True)[:180])
    tokenizer = train_byte_bpe(train, 300)
    assert tokenizer.decode(np.concatenate([corpus.splits[split] for split in SPLITS])) == text
    assert tokenizer.decode(corpus.splits["train"]) == train


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.text(alphabet="aé\r ", max_size=12), min_size=1, max_size=60), end=st.sampled_from(["", "\n"]))
@example(lines=["aé", "aé", "aéé", "aaaaaaaaéé", "", "a"], end="\n")  # a mark between two line ends
def test_the_parts_of_a_file_are_the_file_and_each_begins_at_a_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "text.txt"
    data = ("\n".join(lines) + end).encode()
    path.write_bytes(data)
    ends = [at + 1 for at, byte in enumerate(data) if byte == 10]
    marks = [round(len(data) * share) for share in (SHARES["train"], SHARES["train"] + SHARES["validation"])]
    nearest = [min([0, *ends], key=lambda at: (abs(at - mark), -at)) for mark in marks]
    if len({0, *nearest, len(data)}) < 4 or nearest != sorted(nearest):
        with pytest.raises(CorpusError):
            split_file(path)
        return
    parts = list(split_file(path).values())
    assert [part.start for part in parts] == [0, parts[0].stop, parts[1].stop]
    assert parts[2].stop == len(data)
    for part, mark, best in zip(parts, marks, nearest, strict=False):
        assert part.stop in ends
        assert abs(part.stop - mark) == abs(best - mark)
    assert "".join(itertools.chain.from_iterable(part.chunks() for part in parts)).encode() == data


@pytest.mark.parametrize("text", ["one line", "one\ntwo\n", "a\n" * 5 + "b" * 100, "\n\n\n"])
def test_a_file_of_too_few_lines_is_refused(text: str, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(text)
    with pytest.raises(CorpusError, match=r"short\.txt: .*(line|white space)") as caught:
        load_corpus("tokens", path, vocabulary=300, cache=cache)
    assert caught.value.hint


def test_a_long_name_is_shortened(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")
    path.write_text(LINE * 40)
    name = load_corpus("tokens", path, vocabulary=300, cache=cache).name
    assert len(name) <= 255
    assert name.endswith("… (split 90/5/5 at line ends)")


def test_tokenizer_and_embeddings_are_found_next_to_a_text_file(
    book: Path, cache: Path, write_small_bpe: Callable[[Path], None]
) -> None:
    assert find_embeddings(None, book) is None
    write_small_bpe(book.parent)
    (book.parent / "embeddings.npz").write_bytes(b"PK\x03\x04")
    assert find_embeddings(None, book) == book.parent / "embeddings.npz"
    corpus = load_corpus("tokens", book, vocabulary=13, cache=cache)
    assert corpus.tokenizer == "GPT-1 BPE, ids shifted by one"
    check_tokenizer_of_tables(book.parent / "embeddings.npz", corpus.name, corpus.kind, corpus.tokenizer)


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user data folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user-data"))
    folder = tmp_path / "user-data" / "lmconsole"
    folder.mkdir(parents=True)
    return folder


def test_tokenizer_and_embeddings_are_found_in_the_user_data_folder(
    book: Path, cache: Path, user_folder: Path, write_small_bpe: Callable[[Path], None], npz_folder: Path
) -> None:
    (user_folder / "embeddings.npz").write_bytes(b"PK\x03\x04")
    assert find_tokenizer(book) is None
    assert find_embeddings(None, book) is None, "they do not belong to the tokens of another tokenizer"
    assert find_embeddings(None, npz_folder) == user_folder / "embeddings.npz"
    write_small_bpe(user_folder)
    assert find_tokenizer(book) == user_folder
    assert find_tokenizer(npz_folder) is None
    assert find_embeddings(None, book) == user_folder / "embeddings.npz"
    corpus = load_corpus("tokens", book, vocabulary=300, cache=cache, tokenizer=user_folder)
    assert (corpus.tokenizer, corpus.tokenizer_path) == ("GPT-1 BPE, ids shifted by one", user_folder)
    assert describe(corpus)["tokenizer_path"] == str(user_folder)
    assert "byte-level" in load_corpus("tokens", book, vocabulary=300, cache=cache).tokenizer, "only if it is asked for"
    write_small_bpe(book.parent)
    (book.parent / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    assert find_tokenizer(book) == book.parent
    assert find_embeddings(None, book) == book.parent / "model.safetensors"
    same = load_corpus("tokens", book, vocabulary=300, cache=cache)
    assert (same.sha256, same.tokenizer_path) == (corpus.sha256, None)
    encoder = user_folder / "encoder_bpe_40000.json"
    encoder.write_text(encoder.read_text().replace('"l": 1, "o": 2', '"o": 1, "l": 2'))
    other = load_corpus("tokens", book, vocabulary=300, cache=cache, tokenizer=user_folder)
    assert other.sha256 != corpus.sha256, "a run with another tokenizer is another run"
    encoder.unlink()
    with pytest.raises(CorpusError, match=r"contains vocab_40000\.bpe without encoder_bpe_40000\.json") as caught:
        find_tokenizer(npz_folder / "wiki.test.npz")
    assert f"lmconsole data fetch gpt1 --out {user_folder}" in str(caught.value.hint)


@pytest.mark.slow
def test_a_run_uses_and_names_the_tokenizer_of_the_user_data_folder(
    book: Path, tmp_path: Path, write_small_bpe: Callable[[Path], None]
) -> None:
    frozen = tiny.TINY.replace('"learned"', '"frozen"').replace("300", "13")
    tiny.write_experiments(tmp_path / "experiments.toml", tiny.row(1), preset=frozen)
    words = ["run", "1", "--preset", "tiny", "--headless", "--epochs", "1", "--device", "cpu", "--data", book.name]
    user = tmp_path / "user-data" / "lmconsole"
    user.mkdir(parents=True)
    refused = tiny.lmconsole(*words, cwd=tmp_path, check=2).stderr
    files = "encoder_bpe_40000.json and vocab_40000.bpe"
    assert f"needs GPT-1's tokenizer for text: no {files} in {tmp_path} or {user}\n" in refused
    assert "lmconsole data fetch gpt1" in refused
    write_small_bpe(user)
    rng = np.random.default_rng(0)
    tokens, position = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (13, 8))
    np.savez(user / "embeddings.npz", tokens=tokens, position=position)
    shown = tiny.lmconsole(*words, cwd=tmp_path, check=0).stderr
    assert f"\ntokenizer  GPT-1 BPE, ids shifted by one, from {user}\n" in shown
    (info,) = (json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/run.json"))
    assert info["corpus"]["tokenizer_path"] == str(user)
    assert info["embeddings"]["path"] == str(user / "embeddings.npz")
    report = (tmp_path / "exports" / "report.md").read_text()
    assert f"Tokenizer: GPT-1 BPE, ids shifted by one, from {user}" in report.replace("\\_", "_")
    described = tiny.lmconsole("data", "info", "--preset", "tiny", "--data", book.name, cwd=tmp_path, check=0).stdout
    assert f"tokenizer   GPT-1 BPE, ids shifted by one\n            from {user}\n" in described
    assert f"embeddings  {user / 'embeddings.npz'}\n" in described
    for split, ppl in info["corpus"]["unigram_ppl"].items():
        assert re.search(rf"^{split} .* {ppl:,.1f}  {re.escape(book.name)}, lines ", described, re.MULTILINE)


def test_a_tokenizer_is_trained_on_the_beginning_of_a_long_text(
    book: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmconsole.data.tokenize.TRAINED_ON", 1000)
    monkeypatch.setattr(text_module, "LONGEST_PIECE", 300)
    corpus = load_corpus("tokens", book, vocabulary=300, cache=cache)
    assert corpus.tokenizer.endswith(" tokens trained on the first 1,000 characters of the train split")
    text = book.read_text()
    assert train_byte_bpe(text[:1000], 300).decode(corpus.splits["train"]) == "".join(text.splitlines(True)[:180])


def test_frozen_tables_are_refused_for_tokens_of_another_tokenizer(book: Path, cache: Path) -> None:
    corpus = load_corpus("tokens", book, vocabulary=300, cache=cache)
    with pytest.raises(
        EmbeddingsError, match=r"tables\.npz: .* but my \[red\] book\.txt .* has a byte-level"
    ) as caught:
        check_tokenizer_of_tables(Path("tables.npz"), corpus.name, corpus.kind, corpus.tokenizer)
    assert "--preset scratch" in str(caught.value.hint)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="ab _'\n日", max_size=200), chunk=st.integers(1, 50))
def test_pieces_join_to_the_text_and_do_not_depend_on_the_chunks(
    monkeypatch: pytest.MonkeyPatch, text: str, chunk: int
) -> None:
    monkeypatch.setattr(text_module, "LONGEST_PIECE", 20)
    pieces = list(cut_pieces(text[at : at + chunk] for at in range(0, len(text), chunk)))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 20 for piece in pieces)
    assert pieces == list(cut_pieces([text]))
    whole, cut = set(text.split("\n")), {line for piece in pieces for line in piece.split("\n")}
    assert {line for line in whole if len(line) < 20} <= cut | {""}, "a line that fits is never cut"


@pytest.fixture(scope="module")
def byte_bpe() -> Tokenizer:
    return train_byte_bpe("It was the best of times, it wasn't the worst of times.\n" * 5, 300)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(["it's", "best,", "_x", "  ", "\t", "1 2", "né", "'s", "日本"]), min_size=3))
def test_a_long_line_is_cut_between_words_which_does_not_change_its_ids(
    monkeypatch: pytest.MonkeyPatch, byte_bpe: Tokenizer, words: list[str]
) -> None:
    line = " ".join(f"the times {word} best" for word in words)
    monkeypatch.setattr(text_module, "LONGEST_PIECE", 30)
    assert len(list(cut_pieces([line]))) > 1
    assert (byte_bpe.encode(line) - 1).tolist() == byte_bpe.backend.encode(line).ids


def test_a_text_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "growing.txt"
    path.write_text(LINE * 40)
    text = Text(str(path), TextPart(path=path).chunks)
    assert "".join(text.pieces()) == path.read_bytes().decode()
    with path.open("a") as file:
        file.write("one more line\n")
    with pytest.raises(CorpusError, match=r"growing\.txt: changed while it was read"):
        list(text.pieces())


def test_a_long_text_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(32):
            file.write(b"a line of a text that is longer than the memory should be\n" * 2**14)
    size = 32 * 58 * 2**14
    tracemalloc.start()
    try:
        parts = split_file(path)
        texts = [Text(split, part.chunks) for split, part in parts.items()]
        read = sum(len(piece) for text in texts for piece in text.pieces())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == size
    assert peak < size / 2, f"{peak / 2**20:.0f} MiB"
    assert peak < 12 * LONGEST_PIECE


def test_batches_of_lines_are_bounded(monkeypatch: pytest.MonkeyPatch, byte_bpe: Tokenizer) -> None:
    seen: list[list[str]] = []

    class Backend:
        def encode_batch_fast(self, lines: list[str], *, add_special_tokens: bool) -> Iterator[object]:
            seen.append(lines)
            return iter(byte_bpe.backend.encode_batch_fast(lines, add_special_tokens=add_special_tokens))

    monkeypatch.setattr(text_module, "LONGEST_PIECE", 1000)
    monkeypatch.setattr("lmconsole.data.tokenizer._LINES_AT_ONCE", 50)
    text = "best " * 900 + "\n" * 500 + "times\n" * 300
    tokenizer = Tokenizer(backend=Backend(), vocabulary=byte_bpe.vocabulary)  # type: ignore[arg-type]
    assert byte_bpe.decode(tokenizer.encode(text)) == text
    assert max(len(lines) for lines in seen) == 50
    assert max(sum(map(len, lines)) for lines in seen) <= 1000
