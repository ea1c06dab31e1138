"""WikiText-2, GPT-1's tables and any other data set are fetched from the hub and saved where runs find them."""

import io
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hub_server import (
    GPT1,
    WIKITEXT,
    WIKITEXT_FILES,
    Answer,
    Hub,
    Repository,
    parquet,
    safetensors,
)
from huggingface_hub import constants

from lmconsole.data import fetch, wikitext2
from lmconsole.data.cache import SPLITS
from lmconsole.data.corpus import load_corpus
from lmconsole.data.fetch import (
    FILES,
    fetch_gpt1,
    fetch_wikitext2,
    find_missing,
    from_folder,
    from_hub,
    needed_files,
    target_folder,
)
from lmconsole.data.hub import Repository as Described
from lmconsole.data.hub_corpus import choose_files, fetch_data
from lmconsole.data.hub_names import HubData
from lmconsole.data.lookup import find_data, find_embeddings
from lmconsole.data.parquet import read_texts
from lmconsole.data.tokenizer import gpt1_tokenizer, iter_lines
from lmconsole.errors import CorpusError, EmbeddingsError, HubError

pytestmark = pytest.mark.slow

ROWS = {
    "train": ["", " = Low = \n", "", " löw lower slow \n", ""],
    "validation": [" low low low \n", ""],
    "test": [" lo wer \n", " low \n"],
}
COUNTS = {"train": 10, "validation": 3, "test": 6}


class Quiet:
    def say(self, message: str) -> None:
        pass

    def progress(self, name: str, done: int, total: int | None) -> None:
        pass


@pytest.fixture
def small_hub(
    hub: Hub, tmp_path: Path, write_small_bpe: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> Hub:
    """A hub with small substitutes, of which the sizes are expected here."""
    write_small_bpe(tmp_path)
    encoder, merges = ((tmp_path / name).read_bytes() for name in ("encoder_bpe_40000.json", "vocab_40000.bpe"))
    monkeypatch.setattr(fetch, "GPT1_TOKENS", 12)
    monkeypatch.setattr(fetch, "GPT1_CHANNELS", 4)
    monkeypatch.setattr(fetch, "WINDOW_TOKENS", 3)
    monkeypatch.setattr(wikitext2, "TOKENS", COUNTS)
    monkeypatch.setattr(wikitext2, "VOCABULARY", 13)
    monkeypatch.setattr(fetch, "_ROWS_AT_ONCE", 5)
    hub.repositories[WIKITEXT] = Repository({name: parquet(ROWS[split]) for split, name in WIKITEXT_FILES.items()})
    hub.repositories[GPT1] = Repository(
        {"vocab.json": encoder, "merges.txt": merges, "model.safetensors": safetensors(12, 6, 4)}
    )
    return hub


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.usefixtures("small_hub")
def test_wikitext_is_saved_as_tokens_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    folder = target_folder(None, {}, tmp_path)
    done = fetch_wikitext2(folder, from_hub(Quiet()), Quiet())
    assert done.message == "WikiText-2: 10 train, 3 validation, 6 test tokens"
    assert "but the tokens differ" in done.warning
    assert sorted(path.name for path in done.files) == names(folder)
    assert find_data(None, environ={}, cwd=tmp_path) == folder
    corpus = load_corpus("tokens", folder, vocabulary=13)
    assert corpus.counts() == COUNTS
    tokenizer = gpt1_tokenizer(
        *((folder / n, (folder / n).read_bytes()) for n in ("encoder_bpe_40000.json", "vocab_40000.bpe"))
    )
    for split, rows in ROWS.items():
        wanted = [i for row in rows if row for i in tokenizer.encode(row).tolist()]
        assert corpus.splits[split].tolist() == wanted
    unknown, low = 1, 12
    assert corpus.splits["train"][:4].tolist() == [unknown, low, unknown, low], "of: = Low = löw"


def test_another_number_of_tokens_is_refused_and_nothing_saved(small_hub: Hub, tmp_path: Path) -> None:
    small_hub.repositories[WIKITEXT].files[WIKITEXT_FILES["test"]] = parquet([*ROWS["test"], "low"])
    with pytest.raises(CorpusError, match=r"10 train, 3 validation, 7 test tokens; .* 10 train, 3 validation, 6 test"):
        fetch_wikitext2(tmp_path / "new", from_hub(Quiet()), Quiet())
    assert names(tmp_path / "new") == []


def test_another_corpus_is_not_replaced(small_hub: Hub, text_folder: Path, npz_folder: Path) -> None:
    for folder in (text_folder, npz_folder):
        before = names(folder)
        with pytest.raises(CorpusError, match=r"not WikiText-2|outside the vocabulary"):
            fetch_wikitext2(folder, from_hub(Quiet()), Quiet())
        assert names(folder) == before
    assert small_hub.requests == []


def test_what_is_there_is_not_downloaded_again(small_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new"
    fetch_wikitext2(folder, from_hub(Quiet()), Quiet())
    fetch_gpt1(folder, from_hub(Quiet()), Quiet())
    small_hub.requests.clear()
    again = fetch_wikitext2(folder, from_hub(Quiet()), Quiet())
    assert "already there" in again.message
    assert "but the tokens differ" in again.warning
    monkeypatch.setattr(wikitext2, "SHA256", load_corpus("tokens", folder, vocabulary=13).sha256)
    again = fetch_wikitext2(folder, from_hub(Quiet()), Quiet())
    assert again.message.endswith("6 test tokens, as published")
    assert not again.warning
    assert "already" in fetch_gpt1(folder, from_hub(Quiet()), Quiet()).message
    assert small_hub.requests == []
    (folder / "vocab_40000.bpe").unlink()
    assert "embeddings are already there" in fetch_gpt1(folder, from_hub(Quiet()), Quiet()).message
    assert (folder / "vocab_40000.bpe").exists()
    assert not any("safetensors" in each.path for each in small_hub.requests)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_two_tables_of_gpt1_are_saved_with_a_row_for_padding(prefix: str, small_hub: Hub, tmp_path: Path) -> None:
    from safetensors.numpy import load

    weights = safetensors(12, 6, 4, prefix)
    small_hub.repositories[GPT1].files["model.safetensors"] = weights
    done = fetch_gpt1(tmp_path / "new", from_hub(Quiet()), Quiet())
    assert find_embeddings(None, tmp_path / "new") == tmp_path / "new" / "embeddings.npz"
    assert sorted(path.name for path in done.files) == names(tmp_path / "new")
    with np.load(tmp_path / "new" / "embeddings.npz") as saved:
        assert set(saved.files) == {"tokens", "position"}
        assert saved["tokens"].dtype == saved["position"].dtype == np.float32
        tables = load(weights)
        assert np.array_equal(saved["tokens"], np.vstack([np.zeros(4), tables[f"{prefix}tokens_embed.weight"]]))
        assert np.array_equal(saved["position"], tables[f"{prefix}positions_embed.weight"][:3])


def with_header(header: object, data: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


GOOD = safetensors(12, 6, 4)
WEIGHTS = {
    "empty": b"",
    "truncated": GOOD[:-3],
    "header": GOOD[:20],
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "page": b"<html>log in</html>",
    "pickle": b"\x80\x04K\x01.",
    "no tables": with_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "wrong shape": safetensors(11, 6, 4),
    "few positions": safetensors(12, 2, 4),
    "half": with_header(
        {"tokens_embed.weight": {"dtype": "F16", "shape": [12, 4], "data_offsets": [0, 96]}}, bytes(96)
    ),
    "NaN": GOOD[: -len(GOOD) // 3] + b"\xff" * (len(GOOD) // 3),
    "beyond": with_header({"tokens_embed.weight": {"dtype": "F32", "shape": [12, 4], "data_offsets": [0, 2**40]}}),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_unusable_weights_are_refused_and_nothing_saved(name: str, small_hub: Hub, tmp_path: Path) -> None:
    small_hub.repositories[GPT1].files["model.safetensors"] = WEIGHTS[name]
    with pytest.raises(EmbeddingsError) as caught:
        fetch_gpt1(tmp_path / "new", from_hub(Quiet()), Quiet())
    assert "model.safetensors" in caught.value.message
    assert caught.value.hint
    assert names(tmp_path / "new") == []


def altered(at: int, new: bytes) -> bytes:
    whole = bytearray(parquet(["some text"] * 50))
    whole[at : at + len(new) if at >= 0 else None] = new
    return bytes(whole)


def with_schema(**columns: object) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


TEXTS = {
    "empty": b"",
    "page": b"<html>log in</html>",
    "truncated": parquet(["text"] * 50)[:-20],
    "only its mark": b"PAR1" * 3,
    "long footer": altered(-8, struct.pack("<I", 2**31 - 1) + b"PAR1"),
    "damaged footer": altered(-40, b"\xff" * 30 + struct.pack("<I", 100) + b"PAR1"),
    "damaged page": altered(4, b"\xff" * 40),
    "numbers": with_schema(text=pyarrow.array([1, 2])),
    "lists": with_schema(text=pyarrow.array([["a"], ["b"]])),
    "two columns": with_schema(a=pyarrow.array(["x"]), b=pyarrow.array(["y"])),
    "not UTF-8": with_schema(
        text=pyarrow.Array.from_buffers(
            pyarrow.string(), 1, [None, pyarrow.py_buffer(struct.pack("<ii", 0, 2)), pyarrow.py_buffer(b"\xff\xfe")]
        )
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_unusable_parquet_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(TEXTS[name])
    with pytest.raises(CorpusError) as caught:
        list(read_texts(path))
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_rows_larger_than_the_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet(["a" * 10_000 + str(i) for i in range(100)]))
    monkeypatch.setattr("lmconsole.data.parquet.size_limit", lambda: 500_000)
    with pytest.raises(CorpusError, match=r"row group 0 has 0 MiB of text, more than half of the memory"):
        next(read_texts(path))
    path.write_bytes(parquet([chr(97 + i % 26) * 10_000 for i in range(100)], rows_in_a_group=10))
    assert len(list(read_texts(path))) == 100


def test_kinds_of_text_columns(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    values = ["one", None, "two\n", ""]
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        path.write_bytes(with_schema(id=pyarrow.array(range(4)), content=pyarrow.array(values, type=kind)))
        assert list(read_texts(path)) == ["one", "", "two\n", ""]
    path.write_bytes(with_schema(title=pyarrow.array(values), text=pyarrow.array(values)))
    assert list(read_texts(path)) == ["one", "", "two\n", ""]


def test_files_that_a_person_brought_are_used_instead(small_hub: Hub, tmp_path: Path) -> None:
    usb, folder = tmp_path / "usb", tmp_path / "new"
    for repository in (WIKITEXT, GPT1):
        for name, content in small_hub.repositories[repository].files.items():
            place = usb / (name if "validation" in name else Path(name).name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    get = from_folder(usb, FILES["all"])
    fetch_wikitext2(folder, get, Quiet())
    fetch_gpt1(folder, get, Quiet())
    assert load_corpus("tokens", folder, vocabulary=13).counts() == COUNTS
    assert small_hub.requests == []


@pytest.mark.usefixtures("small_hub")
def test_files_that_nobody_brought_are_all_named(tmp_path: Path) -> None:
    usb, folder = tmp_path / "usb", tmp_path / "new"
    usb.mkdir()
    (usb / "vocab.json").touch()
    parts = ("wikitext-2", "gpt1")

    def complaint(source: Path) -> tuple[str, list[str]]:
        needed = [file for part in parts for file in needed_files(part, folder)]
        with pytest.raises(HubError) as caught:
            from_folder(source, needed)
        return caught.value.message, str(caught.value.hint).splitlines()

    texts = ", ".join(f"{split}-00000-of-00001.parquet" for split in SPLITS)
    message, (_, *urls) = complaint(usb)
    assert message == f"{usb}: {texts}, merges.txt, model.safetensors are missing"
    assert [url.rpartition("/")[2] for url in urls] == message.partition(": ")[2].removesuffix(" are missing").split(
        ", "
    )
    assert all(url.startswith("  http") for url in urls)
    message, (_, *urls) = complaint(tmp_path / "usbb")
    assert (message, len(urls)) == (f"{tmp_path / 'usbb'}: no such folder", 6)
    folder.mkdir()
    np.savez(folder / "embeddings.npz", tokens=np.zeros((13, 4)), position=np.zeros((3, 4)))
    (folder / "train.txt").touch()
    assert complaint(usb)[0] == f"{usb}: merges.txt is missing", "the rest is there"


@pytest.mark.usefixtures("small_hub")
def test_what_is_missing_depends_on_what_is_there(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share" / "lmconsole"
    monkeypatch.setenv("XDG_DATA_HOME", str(share.parent))

    def missing(data: Path | None = None, *, frozen: bool = True, **environ: str) -> tuple[Path, tuple[str, ...]]:
        found = find_missing(data, None, frozen=frozen, environ=environ, cwd=tmp_path)
        return found.folder, found.parts

    both = ("wikitext-2", "gpt1")
    assert missing() == (share, both)
    assert missing(frozen=False) == (share, ("wikitext-2",))
    assert missing(tmp_path / "named") == (tmp_path / "named", both)
    assert missing(LMCONSOLE_DATA=str(tmp_path / "variable")) == (tmp_path / "variable", both)
    assert missing(text_folder) == (text_folder, ("gpt1",))
    assert missing(text_folder, frozen=False) == (text_folder, ())
    assert missing(text_folder / "train.txt") == (share, ("gpt1",)), "a text can be anywhere"
    fetch_gpt1(share, from_hub(Quiet()), Quiet())
    assert missing(text_folder) == (text_folder, ())
    assert missing(text_folder / "train.txt") == (share, ())
    assert missing() == (share, ("wikitext-2",))
    fetch_wikitext2(share, from_hub(Quiet()), Quiet())
    assert missing() == (share, ())
    here = tmp_path / "data"
    here.mkdir()
    assert missing() == (share, ())
    (here / "model.safetensors").write_bytes(GOOD)
    assert missing() == (here, ("wikitext-2",))


def described(names: list[str], configurations: Sequence[object] = ()) -> Described:
    return Described(commit="0" * 40, sizes=dict.fromkeys(names, 1), configurations=configurations)


CARD = [
    {"config_name": "big", "data_files": [{"split": "train", "path": "big/train-*"}]},
    {
        "config_name": "small",
        "data_files": [{"split": "train_sft", "path": ["small/a-*"]}, {"split": "dev", "path": "small/b.parquet"}],
    },
    {"config_name": "plain", "data_files": "plain/*"},
    {"config_name": "odd"},
    "nonsense",
]
CARD_FILES = [
    "big/train-0.parquet", "big/train-1.parquet", "small/a-0.parquet", "small/b.parquet", "plain/x.parquet", "x.json",
]  # fmt: skip
DATA_FILES = ["data/train-00000-of-00001.parquet", "data/valid-00000-of-00001.parquet"]
BIG = {"train": ["big/train-0.parquet", "big/train-1.parquet"]}
CHOICES = {
    "one folder per configuration": (
        ["c/train-0.parquet", "c/train-1.parquet", "c/test-0.parquet", "d/train.parquet"],
        (),
        "c",
        {"train": ["c/train-0.parquet", "c/train-1.parquet"], "test": ["c/test-0.parquet"]},
    ),
    "converted": (
        ["default/train/0000.parquet", "default/validation/0000.parquet", "default/test/0000.parquet"],
        (),
        None,
        {split: [f"default/{split}/0000.parquet"] for split in SPLITS},
    ),
    "data folder": (DATA_FILES, (), None, {"train": DATA_FILES[:1], "validation": DATA_FILES[1:]}),
    "split folders": (
        ["train/0.parquet", "dev/0.parquet"],
        (),
        None,
        {"train": ["train/0.parquet"], "validation": ["dev/0.parquet"]},
    ),
    "no names": (["a.parquet", "b.parquet"], (), None, {"train": ["a.parquet", "b.parquet"]}),
    "card": (CARD_FILES, CARD, "big", BIG),
    "card with other names": (
        CARD_FILES,
        CARD,
        "small",
        {"train": ["small/a-0.parquet"], "validation": ["small/b.parquet"]},
    ),
    "card without splits": (CARD_FILES, CARD, "plain", {"train": ["plain/x.parquet"]}),
    "card with a default": (CARD_FILES, [*CARD[1:], {**CARD[0], "default": True}], None, BIG),  # type: ignore[dict-item]
    "card with a folder": (
        ["x/train.parquet", "y/train.parquet"],
        [{"config_name": "c", "data_dir": "x"}],
        None,
        {"train": ["x/train.parquet"]},
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_files_of_a_configuration(name: str) -> None:
    files, card, configuration, wanted = CHOICES[name]
    found = choose_files(described(files, card), HubData(repository="a/b", configuration=configuration))
    assert found == wanted
    assert list(found) == [split for split in SPLITS if split in wanted]


NO_CHOICE = {
    "several": (CARD_FILES, CARD, None, "has 3 configurations", "hub:a/b/big"),
    "several folders": (["c/train.parquet", "d/train.parquet"], (), None, "has 2 configurations", "c, d"),
    "unknown": (CARD_FILES, CARD, "bigger", "has no configuration 'bigger'", "big, small, plain"),
    "no parquet": (["a.csv"], (), None, "has no Parquet files", "another"),
    "no train": (["test.parquet", "valid.parquet"], (), None, "no train split", "another"),
}


@pytest.mark.parametrize("name", NO_CHOICE)
def test_without_a_choice_the_possible_ones_are_named(name: str) -> None:
    files, card, configuration, message, hint = NO_CHOICE[name]
    with pytest.raises(CorpusError, match=message) as caught:
        choose_files(described(files, card), HubData(repository="a/b", configuration=configuration))
    assert hint in str(caught.value.hint)


DATA = HubData(repository="someone/texts", configuration=None)


def test_a_data_set_becomes_a_corpus_of_text(hub: Hub, tmp_path: Path) -> None:
    files = {"data/train-0.parquet": parquet(["one", "two\nlines\n"]), "data/train-1.parquet": parquet([None, "three"])}
    others = {"data/validation-0.parquet": parquet(["va"]), "data/test-0.parquet": parquet(["te"])}
    hub.repositories["datasets/someone/texts"] = Repository({**files, **others, "README.md": b"x"})
    done = fetch_data(DATA, tmp_path / "new", Quiet())
    assert [path.read_text() for path in done.files] == ["one\ntwo\nlines\n\nthree\n", "va\n", "te\n"]
    assert "already there" in fetch_data(DATA, tmp_path / "new", Quiet()).message
    hub.repositories["datasets/someone/texts"].files["data/test-0.parquet"] = parquet(["new"])
    again = fetch_data(DATA, tmp_path / "new", Quiet())
    assert again.files[2].read_text() == "new\n"


def test_missing_splits_are_cut_from_the_end_of_train(hub: Hub, tmp_path: Path) -> None:
    rows = [f"line {i:03}" for i in range(100)]
    hub.repositories["datasets/someone/texts"] = Repository({"train.parquet": parquet(rows)})
    done = fetch_data(DATA, tmp_path / "new", Quiet())
    train, valid, test = (path.read_text().splitlines() for path in done.files)
    assert (train, valid, test) == (rows[:90], rows[90:95], rows[95:])
    assert "validation and test cut from the end of train, 5% of it each" in done.message
    hub.repositories["datasets/someone/texts"].files["test.parquet"] = parquet(["t"])
    done = fetch_data(DATA, tmp_path / "new", Quiet())
    train, valid, test = (path.read_text().splitlines() for path in done.files)
    assert (train, valid, test) == (rows[:95], rows[95:], ["t"])
    assert "; validation cut from" in done.message


def test_a_text_that_cannot_be_split_is_refused_and_nul_characters_are_replaced(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["datasets/someone/texts"] = Repository({"train.parquet": parquet(["one line"])})
    with pytest.raises(CorpusError, match="someone/texts: too few lines to cut off a validation split"):
        fetch_data(DATA, tmp_path / "new", Quiet())
    hub.repositories["datasets/someone/texts"] = Repository({"train.parquet": parquet(["a\0b"] * 99)})
    fetch_data(DATA, tmp_path / "new", Quiet())
    assert (tmp_path / "new" / "train.txt").read_text().startswith("a\ufffdb\n")


def test_a_file_name_that_leads_elsewhere_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["datasets/someone/texts"] = Repository({"../../train.parquet": parquet(["text"] * 99)})
    with pytest.raises(HubError, match=r"someone/texts/\.\./\.\./train\.parquet: "):
        fetch_data(DATA, tmp_path / "new", Quiet())


def test_a_data_set_that_the_hub_has_converted(hub: Hub, tmp_path: Path) -> None:
    converted = {f"default/{split}/0000.parquet": parquet([split]) for split in SPLITS}
    repository = Repository({"texts.json": b"{}"}, branches={"refs/convert/parquet": converted})
    hub.repositories["datasets/someone/texts"] = repository
    done = fetch_data(DATA, tmp_path / "new", Quiet())
    assert [path.read_text() for path in done.files] == ["train\n", "validation\n", "test\n"]
    repository.branches.clear()
    with pytest.raises(CorpusError, match="has no Parquet files, and the hub has not converted"):
        fetch_data(DATA, tmp_path / "other", Quiet())


def test_an_unusable_data_set_leaves_nothing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = parquet(["text"])
    bad = {"empty": parquet([]), "damaged": good[:-9]}
    for content in bad.values():
        hub.repositories["datasets/someone/texts"] = Repository(
            {"train.parquet": good, "valid.parquet": content, "test.parquet": good}
        )
        with pytest.raises(CorpusError):
            fetch_data(DATA, tmp_path / "new", Quiet())
        assert not (tmp_path / "new").exists()
    hub.repositories["datasets/someone/texts"] = Repository({f"{split}.parquet": good + b"new" for split in SPLITS})
    monkeypatch.setattr("lmconsole.data.hub_blobs.free_disk_mib", lambda _: 2 * len(good) / 2**20)
    hub.requests.clear()
    with pytest.raises(HubError, match=r"someone/texts: .* must be downloaded, and the disk"):
        fetch_data(DATA, tmp_path / "new", Quiet())
    assert len(hub.requests) == 1
    hub.faults.append(lambda _: Answer(200, b'{"id": "x", "siblings": [{"rfilename": 5}], "cardData": [1]}'))
    with pytest.raises((CorpusError, HubError)):
        fetch_data(DATA, tmp_path / "new", Quiet())


def test_a_data_set_is_named_like_a_folder(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    hub.repositories["datasets/someone/texts"] = Repository({"train.parquet": parquet(["text"] * 100)})
    name = Path("hub:someone/texts")
    with pytest.raises(CorpusError, match=r"--data: someone/texts .* is not on this machine") as caught:
        find_data(name, environ={}, cwd=tmp_path)
    assert str(caught.value.hint).endswith("lmconsole data fetch hub:someone/texts")
    folder = target_folder(name, {}, tmp_path)
    fetch_data(DATA, folder, Quiet())
    assert find_data(name, environ={}, cwd=tmp_path) == folder
    assert find_data(None, environ={"LMCONSOLE_DATA": str(name)}, cwd=tmp_path) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_corpus("tokens", folder, vocabulary=300, cache=tmp_path).name == "someone--texts"


def test_the_real_test_split_gives_the_published_tokens(shared_data: Path, tmp_path: Path) -> None:
    text = (shared_data / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8")
    rows = [line if line.strip() else "" for line in iter_lines(text)]
    path = tmp_path / "test.parquet"
    path.write_bytes(parquet(rows))
    bpe = shared_data / "gpt1-bpe"
    files = [(bpe / name, (bpe / name).read_bytes()) for name in ("encoder_bpe_40000.json", "vocab_40000.bpe")]
    ids = gpt1_tokenizer(files[0], files[1]).encode("".join(read_texts(path)))
    with np.load(shared_data / "wikitext-2" / "wiki.test.npz") as published:
        assert np.array_equal(ids, published["tokens"])
    assert len(ids) == wikitext2.TOKENS["test"]
