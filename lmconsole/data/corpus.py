"""Finding and loading a corpus: token ids of three splits, for training, validation and test.

A corpus is a folder with a file for each split (``layout``), or one text file that is split here (``text``). For
WikiText-2 in GPT-1 BPE, the ids are those of the non-empty lines of the text in sequence, without tokens for line
feeds. An array ``sizes`` next to ``tokens`` (tokens of each line) is not read, since windows are cut from the whole
stream.

If the files of GPT-1's BPE are in the folder of the text, empty lines and line feeds give no tokens; otherwise a
byte-level BPE is trained on the train split, which keeps them.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmconsole import formatting
from lmconsole.data import wikitext2
from lmconsole.data.cache import SPLITS, TokenizedText, cached, entry_name, fingerprint
from lmconsole.data.demo import DEMO_NAME, demo_texts
from lmconsole.data.files import check_text, id_type, list_folder, open_data, read_bytes, read_tokens, recognize_tables
from lmconsole.data.hub import hub_folder, parse_hub_data
from lmconsole.data.layout import FOLDER_HINT, Kind, corpus_files, folder_of, next_to, split_files
from lmconsole.data.text import SPLIT_RULE, Text, TextPart, split_file
from lmconsole.data.tokenizer import ENCODER_FILE, MERGES_FILE, Tokenizer, gpt1_tokenizer, train_byte_bpe
from lmconsole.errors import CorpusError, EmbeddingsError, escape_control_characters
from lmconsole.files import expand_home, user_folder

__all__ = [
    "SPLITS",
    "Corpus",
    "describe",
    "find_data",
    "find_embeddings",
    "load_corpus",
    "user_data_folder",
]

SHORTEST_SPLIT = 3
"""Least number of tokens for which there is a window with a target, whatever the window length."""

GPT1_TOKENIZER = "GPT-1 BPE, ids shifted by one"
"""Description of GPT-1's tokenizer."""

EMBEDDINGS_FILES = ("embeddings.npz", "model.safetensors")
"""Embedding tables in the folder of a corpus: our own file, and GPT-1's as on the Hugging Face Hub."""

LONG_TEXT = 1_000_000
"""Characters from which tokenizing is announced: a second or more of work."""

REPORT_S = 5.0
"""Seconds between two reports of progress."""

LONGEST_NAME = 200
"""Characters of the name of a corpus that comes from the name of its folder or file."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Corpus:
    """Token ids of three splits, and their description."""

    name: str
    """Short name for captions."""
    kind: Literal["demo", "npz", "text"]
    path: Path | None
    """Absolute path of the folder or text file; None for the demo corpus."""
    vocabulary: int
    """V: every id is below it. It includes padding, id 0."""
    tokenizer: str
    """Short description of the tokenizer."""
    splits: dict[str, NDArray[np.integer[Any]]]
    """Ids of each of ``SPLITS`` after ``max_tokens``, shape (tokens,), uint16 if the vocabulary fits, else int32."""
    sha256: str
    """Fingerprint of the vocabulary size and of the three splits before ``max_tokens``."""
    max_tokens: int | None
    """Limit on the train split; a tenth of it limits the others."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name of the file of each split, with the lines if it is a part of one; empty if it was not read from files."""

    def counts(self) -> dict[str, int]:
        """Return the number of tokens in each split, after ``max_tokens``."""
        return {split: len(self.splits[split]) for split in SPLITS}


def describe(corpus: Corpus) -> dict[str, object]:
    """Return the description of a corpus for run.json and ``data info``, in types that JSON has."""
    path = None if corpus.path is None else str(corpus.path).encode("utf-8", "backslashreplace").decode()
    return {
        "name": corpus.name,
        "kind": corpus.kind,
        "path": path,
        "vocabulary": corpus.vocabulary,
        "tokenizer": corpus.tokenizer,
        "tokens": corpus.counts(),
        "sha256": corpus.sha256,
        "max_tokens": corpus.max_tokens,
        "files": {split: _one_line(file) for split, file in corpus.files.items()},
    }


def load_corpus(
    kind: Literal["tokens", "demo"],
    path: Path | None,
    *,
    vocabulary: int,
    max_tokens: int | None = None,
    only: Kind | None = None,
    cache: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> Corpus:
    """Load the built-in corpus (``demo``), or the one in the folder or text file ``path`` (``tokens``).

    Args:
        vocabulary: bound on the ids in files, or most ids of a tokenizer that is trained.
        max_tokens: keep the first N tokens of the train split and the first N // 10 of the others.
        only: read text or token ids only, where a folder has both.
        cache: folder for tokenized text; by default the user's cache folder.
        report: receives a message now and then while a long text is tokenized.

    Raises:
        CorpusError: something is missing, damaged or unusable.
    """
    progress = _Progress(report)
    if kind == "demo":
        texts = {split: Text(DEMO_NAME, [text].copy) for split, text in demo_texts().items()}
        tokenized = _byte_tokens(texts, vocabulary, cache, progress)
        return _corpus(DEMO_NAME, "demo", None, tokenized, dict.fromkeys(SPLITS, "demo corpus"), max_tokens)
    if path is None:
        raise CorpusError("no folder with tokens or text was found", hint=f"Choose one with --data. {FOLDER_HINT}")
    path = Path(os.path.abspath(path))
    if not _is_folder(path):
        return _text_corpus(path, split_file(path), vocabulary, max_tokens, cache, progress)
    layout, files = corpus_files(path, list_folder(path), only)
    if layout == "text":
        parts = {split: TextPart(path=file) for split, file in files.items()}
        return _text_corpus(path, parts, vocabulary, max_tokens, cache, progress)
    splits = {split: read_tokens(file, vocabulary) for split, file in files.items()}
    tokenized = TokenizedText(vocabulary=vocabulary, splits=splits), "ids as found in the files"
    names = {split: file.name for split, file in files.items()}
    return _corpus(_name(path), layout, path, tokenized, {s: str(f) for s, f in files.items()}, max_tokens, names)


def _text_corpus(
    path: Path,
    parts: Mapping[str, TextPart],
    vocabulary: int,
    max_tokens: int | None,
    cache: Path | None,
    progress: "_Progress",
) -> Corpus:
    """Tokenize the text of three splits: three files in the folder ``path``, or parts of the file ``path``."""
    one_file = all(part.path == path for part in parts.values())
    name = f"{_name(path)} ({SPLIT_RULE})" if one_file else _name(path)
    texts = {
        split: Text(f"{part.path}: {split} split" if one_file else str(part.path), part.chunks)
        for split, part in parts.items()
    }
    files, line = {}, 1
    for split, part in parts.items():
        last = line + texts[split].lines - 1
        files[split] = f"{part.path.name}, lines {line:,} to {last:,}" if one_file else part.path.name
        line = last + 1
    tokenized = _text_tokens(folder_of(path), texts, vocabulary, cache, progress)
    return _corpus(name, "text", path, tokenized, {s: str(part.path) for s, part in parts.items()}, max_tokens, files)


def _name(path: Path) -> str:
    """Return the name of a corpus for captions, from that of its folder or file."""
    name = _one_line(path.name).strip() or "corpus"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _one_line(name: str) -> str:
    """Return a file name without line feeds and control characters."""
    return escape_control_characters(name).replace("\n", " ")


def find_data(explicit: Path | None, *, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the absolute path of the corpus, a folder or a text file, or None if there is none.

    The candidates are ``explicit`` (--data), LMCONSOLE_DATA, ``data`` in ``cwd``, and the user data folder. The last
    two are skipped if they are no folders, or contain nothing of a corpus. The first two may be ``hub:OWNER/NAME``,
    which means the folder in which that data set was saved.

    Raises:
        CorpusError: one of the first two is given and has no complete corpus, or one of the last two has a part of one.
    """
    named = {"--data": explicit, "LMCONSOLE_DATA": environ.get("LMCONSOLE_DATA") or None}
    for origin, given in named.items():
        if given is not None:
            if hub := parse_hub_data(str(given)):
                if not _has_corpus(place := hub_folder(hub)):
                    raise CorpusError(
                        f"{origin}: {hub.name} of the Hugging Face Hub is not on this machine",
                        hint=f"Download it with: lmconsole data fetch {given}",
                    )
                return place
            try:
                place = Path(os.path.abspath(cwd / expand_home(given)))
                _check_place(place)
            except CorpusError as error:
                raise CorpusError(f"{origin}: {error.message}", hint=error.hint) from None
            except OSError as error:
                raise CorpusError(f"{origin}: {given}: {error.strerror}") from None
            return place
    for found in (Path(os.path.abspath(cwd / "data")), user_data_folder()):
        if found is not None and _has_corpus(found):
            return found
    return None


def _check_place(place: Path) -> None:
    """Raise CorpusError unless ``place`` is a folder with three splits, or a file that begins like text."""
    if _is_folder(place):
        corpus_files(place, list_folder(place))
    else:
        with open_data(place) as file:
            check_text(place, file.read(64))


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder. Raises CorpusError if there is nothing."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such folder or file", hint="Check the spelling of the path.") from None
    except (OSError, ValueError):
        pass  # the error of opening it says more
    return os.path.isdir(path)


def user_data_folder() -> Path | None:
    """Return the folder that is searched last for a corpus; None for a user without a home folder."""
    return user_folder("data")


def _has_corpus(place: Path) -> bool:
    """Return whether a folder that nobody named has a corpus.

    Raises CorpusError if it has only a part of one or cannot be read: to train on other data would be a surprise.
    """
    if not os.path.lexists(place) or (os.path.exists(place) and not os.path.isdir(place)):
        return False
    names = list_folder(place)
    hint = "To train without it: --preset demo."
    try:
        corpus_files(place, names)
    except CorpusError as error:
        if split_files(names):
            raise CorpusError(error.message, hint=f"{error.hint}\n{hint}") from None
    else:
        return True
    parts = [name for name in (ENCODER_FILE, MERGES_FILE, *EMBEDDINGS_FILES) if name in names]
    if parts:
        raise CorpusError(
            f"{place}: {' and '.join(parts)} without a corpus",
            hint=f"{FOLDER_HINT}\nTo download WikiText-2: lmconsole data fetch wikitext-2\n{hint}",
        )
    return False


def find_embeddings(explicit: Path | None, data: Path | None) -> Path | None:
    """Return the absolute path of the embedding tables, or None if there are none.

    The candidates are ``explicit`` (--embeddings), then ``EMBEDDINGS_FILES`` in the folder ``data``, or next to the
    text file ``data``. Only the kind of the file is checked. Raises EmbeddingsError if it is neither an npz archive nor
    a safetensors file.
    """
    if explicit is not None:
        path = Path(os.path.abspath(explicit))
        try:
            recognize_tables(path)
        except EmbeddingsError as error:
            raise EmbeddingsError(f"--embeddings: {error.message}", hint=error.hint) from None
        return path
    if data is not None:
        data = Path(os.path.abspath(data))
        for name in next_to(data, EMBEDDINGS_FILES):
            found = folder_of(data) / name
            recognize_tables(found)
            return found
    return None


def check_tokenizer_of_tables(tables: Path, name: str, kind: str, tokenizer: str) -> None:
    """Raise EmbeddingsError if the tokenizer of the corpus ``name`` was trained on its text: the rows of frozen tables
    would be those of other tokens, even where their number fits."""
    if kind != "npz" and tokenizer != GPT1_TOKENIZER:
        raise EmbeddingsError(
            f"{tables}: frozen embeddings belong to the tokens of their own tokenizer, but {name} has a {tokenizer}",
            hint=f"Put GPT-1's {ENCODER_FILE} and {MERGES_FILE} next to the text, or learn the embeddings: "
            "--preset scratch.",
        )


def _text_tokens(
    folder: Path, texts: Mapping[str, Text], vocabulary: int, cache: Path | None, progress: "_Progress"
) -> tuple[TokenizedText, str]:
    """Return the ids of ``texts``, and a description of the tokenizer: GPT-1's if its files are in ``folder``."""
    present = next_to(folder, (ENCODER_FILE, MERGES_FILE))
    if not present:
        return _byte_tokens(texts, vocabulary, cache, progress)
    if len(present) == 1:
        (missing,) = {ENCODER_FILE, MERGES_FILE} - set(present)
        raise CorpusError(
            f"{folder}: contains {present[0]} without {missing}; GPT-1's BPE needs both",
            hint="Add the other file of GPT-1's BPE, or remove this one to train a tokenizer on the text.",
        )
    encoder, merges = ((folder / name, read_bytes(folder / name)) for name in (ENCODER_FILE, MERGES_FILE))

    name = entry_name("gpt1", encoder[1], merges[1], *(texts[split].sha256 for split in SPLITS))
    tokenized = cached(cache, name, lambda: _encode(gpt1_tokenizer(encoder, merges), texts, progress))
    if tokenized.vocabulary > vocabulary:
        raise CorpusError(
            f"{encoder[0]}: its tokens and padding are {tokenized.vocabulary:,} ids, the preset's vocabulary is "
            f"{vocabulary:,}",
            hint=f"Set vocabulary = {tokenized.vocabulary} or more, or remove the two BPE files to train a tokenizer.",
        )
    return tokenized, GPT1_TOKENIZER


def _byte_tokens(
    texts: Mapping[str, Text], vocabulary: int, cache: Path | None, progress: "_Progress"
) -> tuple[TokenizedText, str]:
    """Return the ids of ``texts`` in a byte-level BPE trained on the train split, and a description of it."""
    name = entry_name("bytes", str(vocabulary), *(texts[split].sha256 for split in SPLITS))

    def tokenize() -> TokenizedText:
        train = texts["train"]
        if train.characters >= LONG_TEXT:
            progress.say(f"Training a tokenizer on {train.characters:,} characters …")
        return _encode(train_byte_bpe(train.pieces(), vocabulary), texts, progress)

    tokenized = cached(cache, name, tokenize)
    return tokenized, f"byte-level BPE of {tokenized.vocabulary:,} tokens trained on the train split"


def _encode(tokenizer: Tokenizer, texts: Mapping[str, Text], progress: "_Progress") -> TokenizedText:
    progress.begin(sum(text.characters for text in texts.values()))
    splits = {split: tokenizer.encode(text.pieces(), progress.add) for split, text in texts.items()}
    return TokenizedText(vocabulary=tokenizer.vocabulary, splits=splits)


def _corpus(
    name: str,
    kind: Literal["demo", "npz", "text"],
    path: Path | None,
    tokenized: tuple[TokenizedText, str],
    sources: Mapping[str, str],
    max_tokens: int | None,
    files: Mapping[str, str] | None = None,
) -> Corpus:
    """Check the length of every split, compute the fingerprint, and cut the splits to ``max_tokens``."""
    ids, tokenizer = tokenized
    for split in SPLITS:
        _refuse_padding(ids.splits[split], split, sources[split])
        if len(ids.splits[split]) < SHORTEST_SPLIT:
            raise CorpusError(
                f"{sources[split]}: the {split} split has {formatting.counted(len(ids.splits[split]), 'token')}; "
                f"at least {SHORTEST_SPLIT} are needed",
                hint="Add more text or tokens to it.",
            )
    sha256 = fingerprint(ids.vocabulary, ids.splits)
    if sha256 == wikitext2.SHA256:
        name, tokenizer = "WikiText-2 (GPT-1 BPE)", GPT1_TOKENIZER
    splits = {split: _first(ids.splits[split], split, max_tokens) for split in SPLITS}
    typed = {split: np.ascontiguousarray(found, dtype=id_type(ids.vocabulary)) for split, found in splits.items()}
    return Corpus(
        name=name,
        kind=kind,
        path=path,
        vocabulary=ids.vocabulary,
        tokenizer=tokenizer,
        splits=typed,
        sha256=sha256,
        max_tokens=max_tokens,
        files=files or {},
    )


class _Progress:
    """Reports how much of a long text has been tokenized."""

    def __init__(self, report: Callable[[str], None] | None) -> None:
        self._report = report
        self._characters = self._done = 0
        self._next = 0.0

    def say(self, message: str) -> None:
        if self._report is not None:
            self._report(message)

    def begin(self, characters: int) -> None:
        """Announce the work if it is long."""
        self._characters = characters
        self._next = time.monotonic() + REPORT_S
        if characters >= LONG_TEXT:
            self.say(f"Tokenizing {characters:,} characters …")

    def add(self, characters: int) -> None:
        """Count characters that have been tokenized."""
        self._done += characters
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_S
            self.say(f"Tokenizing: {self._done / self._characters:.0%} …")


def _refuse_padding(ids: NDArray[np.integer[Any]], split: str, source: str) -> None:
    """Raise CorpusError if most of a split is padding, which would be trained on like text."""
    padding = len(ids) - int(np.count_nonzero(ids))
    if padding * 2 > len(ids):
        raise CorpusError(
            f"{source}: {padding:,} of {formatting.counted(len(ids), 'token')} in the {split} split are padding (id 0)",
            hint="Store the tokens as one stream without padding; ids are the tokenizer's plus one.",
        )


def _first(ids: NDArray[np.integer[Any]], split: str, max_tokens: int | None) -> NDArray[np.integer[Any]]:
    """Cut a split to its first N = ``max_tokens`` ids, or N // 10 if it is not the train split."""
    if max_tokens is None:
        return ids
    limit = max_tokens if split == "train" else max_tokens // 10
    if limit < SHORTEST_SPLIT:
        raise CorpusError(
            f"--max-tokens {max_tokens} leaves {formatting.counted(max(limit, 0), 'token')} of the {split} split"
            f"{'' if split == 'train' else ' (a tenth as many as of the train split)'}; "
            f"at least {SHORTEST_SPLIT} are needed",
            hint=f"Use --max-tokens {SHORTEST_SPLIT * 10} or more.",
        )
    return ids[:limit].copy()
