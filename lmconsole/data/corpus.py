"""A corpus: token ids of three splits, for training, validation and test.

It is read from a folder with a file for each split (``layout``), or from one text file that is split here (``text``).
For WikiText-2 in GPT-1 BPE, the ids are those of the non-empty lines of the text in sequence, without tokens for line
feeds. An array ``sizes`` next to ``tokens`` (tokens of each line) is not read, since windows are cut from the whole
stream.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmconsole import formatting
from lmconsole.data import wikitext2
from lmconsole.data.cache import SPLITS, TokenizedText, fingerprint
from lmconsole.data.demo import DEMO_NAME, demo_texts
from lmconsole.data.files import id_type, list_folder, read_tokens
from lmconsole.data.layout import FOLDER_HINT, Kind, corpus_files, folder_of
from lmconsole.data.lookup import is_folder, tokenizer_in
from lmconsole.data.text import SPLIT_RULE, Text, TextPart, split_file
from lmconsole.data.tokenize import GPT1_TOKENIZER, Progress, with_byte_bpe, with_gpt1_bpe
from lmconsole.data.windows import Indices, cut_windows
from lmconsole.errors import CorpusError, EmbeddingsError, escape_control_characters

SHORTEST_SPLIT = 3
"""Least number of tokens for which there is a window with a target, whatever the window length."""

_COUNTED_AT_ONCE = 2**20
"""Ids that are counted at once."""

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
    tokenizer_path: Path | None = None
    """Absolute path of the folder of GPT-1's tokenizer, if that is not the folder of the text."""
    splits: dict[str, NDArray[np.integer[Any]]]
    """Ids of each of ``SPLITS`` after ``max_tokens``, shape (tokens,), uint16 if the vocabulary fits, else int32."""
    sha256: str
    """Fingerprint of the vocabulary size and of the three splits before ``max_tokens``."""
    max_tokens: int | None
    """Limit on the train split; a tenth of it limits the others."""
    token_bytes: NDArray[np.uint16] | None = None
    """UTF-8 bytes of the text of each id, shape (V,); None if unknown."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name of the file of each split, with the lines if it is a part of one; empty if it was not read from files."""

    def counts(self) -> dict[str, int]:
        """Return the number of tokens in each split, after ``max_tokens``."""
        return {split: len(self.splits[split]) for split in SPLITS}


def describe(corpus: Corpus) -> dict[str, object]:
    """Return the description of a corpus for run.json and ``data info``, in types that JSON has."""
    return {
        "name": corpus.name,
        "kind": corpus.kind,
        "path": _text_of(corpus.path),
        "vocabulary": corpus.vocabulary,
        "tokenizer": corpus.tokenizer,
        "tokenizer_path": _text_of(corpus.tokenizer_path),
        "tokens": corpus.counts(),
        "sha256": corpus.sha256,
        "max_tokens": corpus.max_tokens,
        "files": {split: _one_line(file) for split, file in corpus.files.items()},
    }


def describe_targets(corpus: Corpus, window_tokens: int) -> dict[str, Mapping[str, float]]:
    """Return the number of targets in windows of ``window_tokens``, the bytes of their text, and their perplexity for a
    unigram model of the train split, for run.json."""
    counts = {split: _count_targets(corpus.splits[split], window_tokens, corpus.vocabulary) for split in SPLITS}
    targets = {split: int(found.sum()) for split, found in counts.items()}
    sizes = None if corpus.token_bytes is None else corpus.token_bytes.astype(np.int64)
    return {
        "targets": targets,
        "bytes": {} if sizes is None else {split: int(found @ sizes) for split, found in counts.items()},
        "unigram_ppl": {split: _unigram_ppl(counts["train"], found) for split, found in counts.items()},
    }


def _count_targets(ids: NDArray[np.integer[Any]], window_tokens: int, vocabulary: int) -> NDArray[np.int64]:
    """Return how often each id is a target, shape (V,). The targets of a window are the ids after its start."""
    starts, lengths = cut_windows(len(ids), window_tokens)
    apart = np.flatnonzero(starts[1:] != starts[:-1] + lengths[:-1]) + 1  # not where the window before ends
    firsts, lasts = np.append(0, apart), np.append(apart, len(starts)) - 1
    counts = np.zeros(vocabulary, dtype=np.int64)
    at_once = max(_COUNTED_AT_ONCE, vocabulary)  # bincount takes 8 bytes for each id that it counts, and for each of V
    for first, last in zip(firsts, lasts, strict=True) if len(starts) else ():
        targets = ids[starts[first] + 1 : starts[last] + lengths[last] + 1]
        for start in range(0, len(targets), at_once):
            counts += np.bincount(targets[start : start + at_once], minlength=vocabulary)
    return counts


def _unigram_ppl(trained: Indices, evaluated: Indices) -> float:
    """Return the perplexity of a unigram model, from how often each id is a target in the train split and in the split
    on which the model is evaluated, both of shape (V,).

    One is added to each count, so that no target has a probability of 0 (additive smoothing: Chen and Goodman, An
    empirical study of smoothing techniques for language modeling, 1999).
    """
    log_p = np.log((trained + 1) / (trained.sum() + len(trained)))
    return math.exp(-float(evaluated @ log_p) / int(evaluated.sum()))


def _text_of(path: Path | None) -> str | None:
    return None if path is None else str(path).encode("utf-8", "backslashreplace").decode()


def load_corpus(
    kind: Literal["tokens", "demo"],
    path: Path | None,
    *,
    vocabulary: int,
    max_tokens: int | None = None,
    only: Kind | None = None,
    tokenizer: Path | None = None,
    cache: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> Corpus:
    """Load the built-in corpus (``demo``), or the one in the folder or text file ``path`` (``tokens``).

    Args:
        vocabulary: bound on the ids in files, or most ids of a tokenizer that is trained.
        max_tokens: keep the first N tokens of the train split and the first N // 10 of the others.
        only: read text or token ids only, where a folder has both.
        tokenizer: folder of GPT-1's tokenizer for text; by default that of the text. If that does not have it, a BPE is
            trained on the train split.
        cache: folder for tokenized text; by default the user's cache folder.
        report: receives a message now and then while a long text is tokenized.

    Raises:
        CorpusError: something is missing, damaged or unusable.
    """
    progress = Progress(report)
    if kind == "demo":
        texts = {split: Text(DEMO_NAME, [text].copy) for split, text in demo_texts().items()}
        tokenized = with_byte_bpe(texts, vocabulary, cache, progress)
        return _corpus(DEMO_NAME, "demo", None, tokenized, dict.fromkeys(SPLITS, "demo corpus"), max_tokens)
    if path is None:
        raise CorpusError("no folder with tokens or text was found", hint=f"Choose one with --data. {FOLDER_HINT}")
    path = Path(os.path.abspath(path))
    if not is_folder(path):
        return _text_corpus(path, split_file(path), tokenizer, vocabulary, max_tokens, cache, progress)
    layout, files = corpus_files(path, list_folder(path), only)
    if layout == "text":
        parts = {split: TextPart(path=file) for split, file in files.items()}
        return _text_corpus(path, parts, tokenizer, vocabulary, max_tokens, cache, progress)
    splits = {split: read_tokens(file, vocabulary) for split, file in files.items()}
    tokenized = TokenizedText(vocabulary=vocabulary, splits=splits), "ids as found in the files"
    names = {split: file.name for split, file in files.items()}
    return _corpus(_name(path), layout, path, tokenized, {s: str(f) for s, f in files.items()}, max_tokens, names)


def _text_corpus(
    path: Path,
    parts: Mapping[str, TextPart],
    tokenizer: Path | None,
    vocabulary: int,
    max_tokens: int | None,
    cache: Path | None,
    progress: Progress,
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
    own = folder_of(path)
    bpe = tokenizer or (own if tokenizer_in(own) else None)
    if bpe is None:
        tokenized = with_byte_bpe(texts, vocabulary, cache, progress)
    else:
        tokenized = with_gpt1_bpe(bpe, texts, vocabulary, cache, progress)
    sources = {split: str(part.path) for split, part in parts.items()}
    corpus = _corpus(name, "text", path, tokenized, sources, max_tokens, files)
    return corpus if bpe in (None, own) else replace(corpus, tokenizer_path=bpe)


def _name(path: Path) -> str:
    """Return the name of a corpus for captions, from that of its folder or file."""
    name = _one_line(path.name).strip() or "corpus"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _one_line(name: str) -> str:
    """Return a file name without line feeds and control characters."""
    return escape_control_characters(name).replace("\n", " ")


def check_tokenizer_of_tables(tables: Path, name: str, kind: str, tokenizer: str) -> None:
    """Raise EmbeddingsError if the tokenizer of the corpus ``name`` was trained on its text: the rows of frozen tables
    would be those of other tokens, even where their number fits."""
    if kind != "npz" and tokenizer != GPT1_TOKENIZER:
        raise EmbeddingsError(
            f"{tables}: frozen embeddings belong to the tokens of their own tokenizer, but {name} has a {tokenizer}",
            hint="Download GPT-1's tokenizer, lmconsole data fetch gpt1, or learn the embeddings: --preset scratch.",
        )


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
        token_bytes=ids.token_bytes,
        files=files or {},
    )


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
