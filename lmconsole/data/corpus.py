"""Three splits of token ids to train, choose and test on: where they are found and how they are read.

A folder of tokens holds ``wiki.{train,validation,test}.npz``, each with an array ``tokens``. WikiText-2's, in GPT-1
BPE, hold the text's non-empty lines one after the other; line feeds are no tokens, and a second array ``sizes``
(tokens in each of those lines) is left unread, since windows are cut from the running stream.

A folder of text holds ``train.txt``, ``valid.txt`` or ``validation.txt``, and ``test.txt``. With GPT-1's BPE beside
them, empty lines and line feeds leave no token either; a byte-level BPE trained on the train split keeps them all.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmconsole.data.cache import SPLITS, TokenizedText, cached, entry_name, fingerprint
from lmconsole.data.demo import DEMO_NAME, demo_texts
from lmconsole.data.files import id_type, list_folder, read_bytes, read_text, read_tokens
from lmconsole.data.tokenizer import ENCODER_FILE, MERGES_FILE, gpt1_tokenizer, train_byte_bpe
from lmconsole.errors import CorpusError, EmbeddingsError, escape_control_characters

__all__ = ["SPLITS", "Corpus", "describe", "find_data", "find_embeddings", "load_corpus"]

SHORTEST_SPLIT = 3
"""Tokens below which no window has a target for certain, however long windows are."""

NPZ_FILES: dict[str, tuple[str, ...]] = {split: (f"wiki.{split}.npz",) for split in SPLITS}
TEXT_FILES: dict[str, tuple[str, ...]] = {
    "train": ("train.txt",),
    "validation": ("valid.txt", "validation.txt"),
    "test": ("test.txt",),
}

_WIKITEXT2 = "4e404bff5e07ff171f342b5a711122627af7574a122b99b279982591418cdadc"
"""Fingerprint of WikiText-2 in GPT-1 BPE, as the course that published the reference numbers tokenized it."""

_FOLDER_HINT = (
    "A corpus folder holds wiki.train.npz, wiki.validation.npz and wiki.test.npz, or train.txt, valid.txt and test.txt."
)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids of three splits, and what a caption or a run's record says about them."""

    name: str
    """Short, for captions."""
    kind: Literal["demo", "npz", "text"]
    path: Path | None
    """The folder, absolute; None for the demo corpus."""
    vocabulary: int
    """V: every id is below it; padding, id 0, is counted."""
    tokenizer: str
    """Where the ids come from, in one phrase."""
    splits: dict[str, NDArray[np.integer[Any]]]
    """Ids of each of ``SPLITS``, shape (tokens,), uint16 where they fit, else int32; cut by ``max_tokens``."""
    sha256: str
    """Fingerprint of the vocabulary's size and of the three whole splits, before ``max_tokens``."""
    max_tokens: int | None
    """Limit on the train split; a tenth of it limits the others."""

    def counts(self) -> dict[str, int]:
        """Tokens in each split, after ``max_tokens``."""
        return {split: len(self.splits[split]) for split in SPLITS}


def describe(corpus: Corpus) -> dict[str, object]:
    """What a run's record and ``data info`` say of a corpus, in types that JSON knows."""
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
    }


def load_corpus(
    kind: Literal["tokens", "demo"],
    folder: Path | None,
    *,
    vocabulary: int,
    max_tokens: int | None = None,
    cache: Path | None = None,
) -> Corpus:
    """The built-in corpus (``demo``), or the one in ``folder`` (``tokens``).

    ``vocabulary`` bounds the ids of npz files and the size of a tokenizer trained here. ``max_tokens`` keeps the
    first N tokens of the train split and the first N // 10 of the others. ``cache`` is where tokenized text is kept;
    None is the user's cache folder. Raises CorpusError for whatever is missing, damaged or unusable.
    """
    if kind == "demo":
        texts = demo_texts()
        tokenized = _byte_tokens(texts, vocabulary, cache)
        return _corpus(DEMO_NAME, "demo", None, tokenized, dict.fromkeys(SPLITS, "demo corpus"), max_tokens)
    if folder is None:
        raise CorpusError("no folder with tokens or text was found", hint=f"Name one with --data. {_FOLDER_HINT}")
    folder = Path(os.path.abspath(folder))
    names = list_folder(folder)
    layout, files = _layout(folder, names)
    if layout == "npz":
        splits = {split: read_tokens(path, vocabulary) for split, path in files.items()}
        tokenized = TokenizedText(vocabulary, splits), "ids as found in the files"
    else:
        tokenized = _text_tokens(folder, names, files, vocabulary, cache)
    name = escape_control_characters(folder.name).replace("\n", " ").strip() or "corpus"
    return _corpus(name, layout, folder, tokenized, {s: str(path) for s, path in files.items()}, max_tokens)


def find_data(explicit: Path | None, *, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The corpus folder, absolute: ``explicit`` (--data), LMCONSOLE_DATA, ``data`` in ``cwd``, the user data folder.

    The first two are taken at their word: without a whole corpus in them a CorpusError says what is missing. The
    others count only where they hold one; None where no place does.
    """
    named = {"--data": explicit, "LMCONSOLE_DATA": environ.get("LMCONSOLE_DATA") or None}
    for origin, folder in named.items():
        if folder is not None:
            place = Path(os.path.abspath(cwd / folder))
            try:
                _layout(place, list_folder(place))
            except CorpusError as error:
                raise CorpusError(f"{origin}: {error.message}", hint=error.hint) from None
            return place
    import platformdirs

    for place in (Path(os.path.abspath(cwd / "data")), platformdirs.user_data_path("lmconsole", appauthor=False)):
        try:
            _layout(place, list_folder(place))
        except CorpusError:
            continue
        return place
    return None


def find_embeddings(explicit: Path | None, data: Path | None) -> Path | None:
    """The file of embedding tables, absolute: ``explicit`` (--embeddings), else ``embeddings.npz`` or the hub's
    ``model.safetensors`` in the folder ``data``; None where there is none. Raises EmbeddingsError where ``explicit``
    is no file. What is in the file is for its reader to judge."""
    if explicit is not None:
        path = Path(os.path.abspath(explicit))
        try:
            found = "this is a folder" if path.is_dir() else None if path.exists() else "there is no such file"
        except (OSError, ValueError) as error:
            found = f"cannot be read: {error}"
        if found:
            raise EmbeddingsError(
                f"--embeddings: {path}: {found}",
                hint="Name an .npz file with arrays 'tokens' and 'position', or the hub's model.safetensors.",
            )
        return path
    if data is not None:
        data = Path(os.path.abspath(data))
        names = list_folder(data)
        for name in ("embeddings.npz", "model.safetensors"):
            if name in names:
                return data / name
    return None


def _layout(folder: Path, names: frozenset[str]) -> tuple[Literal["npz", "text"], dict[str, Path]]:
    """How ``folder`` holds its corpus, and in which files. Raises CorpusError unless all three splits are there."""
    layouts: dict[Literal["npz", "text"], dict[str, tuple[str, ...]]] = {"npz": NPZ_FILES, "text": TEXT_FILES}
    for layout, wanted in layouts.items():
        present = {split: [name for name in options if name in names] for split, options in wanted.items()}
        if not any(present.values()):
            continue
        missing = [" or ".join(wanted[split]) for split in SPLITS if not present[split]]
        if missing:
            have = ", ".join(name for found in present.values() for name in found)
            raise CorpusError(
                f"{folder}: {len(SPLITS) - len(missing)} of 3 splits: {have} without {' and '.join(missing)}",
                hint=f"Put {' and '.join(missing)} beside it. {_FOLDER_HINT}",
            )
        for found in present.values():
            if len(found) > 1:
                raise CorpusError(f"{folder}: both {' and '.join(found)} are there", hint="Remove or rename one.")
        return layout, {split: folder / found[0] for split, found in present.items()}
    raise CorpusError(f"{folder}: there is no corpus in this folder", hint=_FOLDER_HINT)


def _text_tokens(
    folder: Path, names: frozenset[str], files: Mapping[str, Path], vocabulary: int, cache: Path | None
) -> tuple[TokenizedText, str]:
    """The text files of ``folder`` as ids, and a phrase for the tokenizer that made them."""
    texts = {split: read_text(path) for split, path in files.items()}
    present = [name for name in (ENCODER_FILE, MERGES_FILE) if name in names]
    if not present:
        return _byte_tokens(texts, vocabulary, cache)
    if len(present) == 1:
        (missing,) = {ENCODER_FILE, MERGES_FILE} - set(present)
        raise CorpusError(
            f"{folder}: {present[0]} is there without {missing}; GPT-1's BPE needs both",
            hint="Add the other file of GPT-1's BPE, or remove this one to train a tokenizer on the text.",
        )
    encoder, merges = ((folder / name, read_bytes(folder / name)) for name in (ENCODER_FILE, MERGES_FILE))

    def make() -> TokenizedText:
        tokenizer = gpt1_tokenizer(encoder, merges)
        return TokenizedText(tokenizer.vocabulary, {s: tokenizer.encode(text) for s, text in texts.items()})

    tokenized = cached(cache, entry_name("gpt1", encoder[1], merges[1], *texts.values()), make)
    if tokenized.vocabulary > vocabulary:
        raise CorpusError(
            f"{encoder[0]}: its tokens and padding are {tokenized.vocabulary:,} ids, the preset's vocabulary is "
            f"{vocabulary:,}",
            hint=f"Set vocabulary = {tokenized.vocabulary} or more, or remove the two BPE files to train a tokenizer.",
        )
    return tokenized, "GPT-1 BPE, ids shifted by one"


def _byte_tokens(texts: Mapping[str, str], vocabulary: int, cache: Path | None) -> tuple[TokenizedText, str]:
    """``texts`` in a byte-level BPE trained on their train split, and a phrase for it."""

    def make() -> TokenizedText:
        tokenizer = train_byte_bpe(texts["train"], vocabulary)
        return TokenizedText(tokenizer.vocabulary, {s: tokenizer.encode(text) for s, text in texts.items()})

    tokenized = cached(cache, entry_name("bytes", str(vocabulary), *(texts[s] for s in SPLITS)), make)
    return tokenized, f"byte-level BPE of {tokenized.vocabulary:,} trained on the train split"


def _corpus(
    name: str,
    kind: Literal["demo", "npz", "text"],
    path: Path | None,
    tokenized: tuple[TokenizedText, str],
    sources: Mapping[str, str],
    max_tokens: int | None,
) -> Corpus:
    """Checks that every split is long enough, takes the fingerprint, then cuts to ``max_tokens``."""
    ids, tokenizer = tokenized
    for split in SPLITS:
        if len(ids.splits[split]) < SHORTEST_SPLIT:
            raise CorpusError(
                f"{sources[split]}: the {split} split has {len(ids.splits[split])} tokens; "
                f"one window needs {SHORTEST_SPLIT} or more",
                hint="Put more text or tokens into it.",
            )
    sha256 = fingerprint(ids.vocabulary, ids.splits)
    if sha256 == _WIKITEXT2:
        name, tokenizer = "WikiText-2 (GPT-1 BPE)", "GPT-1 BPE, ids shifted by one"
    splits = {split: _first(ids.splits[split], split, max_tokens) for split in SPLITS}
    typed = {split: np.ascontiguousarray(found, dtype=id_type(ids.vocabulary)) for split, found in splits.items()}
    return Corpus(name, kind, path, ids.vocabulary, tokenizer, typed, sha256, max_tokens)


def _first(ids: NDArray[np.integer[Any]], split: str, max_tokens: int | None) -> NDArray[np.integer[Any]]:
    """What ``max_tokens`` leaves of a split: its first N tokens, or N // 10 of those that are not trained on."""
    if max_tokens is None:
        return ids
    limit = max_tokens if split == "train" else max_tokens // 10
    if limit < SHORTEST_SPLIT:
        raise CorpusError(
            f"--max-tokens {max_tokens} leaves {max(limit, 0)} tokens of the {split} split; "
            f"one window needs {SHORTEST_SPLIT} or more",
            hint=f"Use --max-tokens {SHORTEST_SPLIT * 10} or more.",
        )
    return ids[:limit].copy()
