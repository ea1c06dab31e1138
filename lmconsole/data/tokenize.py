"""Token ids of the text of a corpus: from the cache of an earlier run, or made now.

With GPT-1's BPE, empty lines and line feeds give no tokens. Without its files, a byte-level BPE is trained on the train
split, which keeps them.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lmconsole.data.cache import SPLITS, TokenizedText, cached, entry_name
from lmconsole.data.files import read_bytes
from lmconsole.data.text import Text
from lmconsole.data.tokenizer import ENCODER_FILE, MERGES_FILE, Tokenizer, gpt1_tokenizer, train_byte_bpe
from lmconsole.errors import CorpusError

GPT1_TOKENIZER = "GPT-1 BPE, ids shifted by one"
"""Description of GPT-1's tokenizer."""

LONG_TEXT = 1_000_000
"""Characters from which tokenizing is announced: a second or more of work."""

TRAINED_ON = 100_000_000
"""Characters from the beginning of the train split on which a tokenizer is trained at most. Training takes memory and
time for each different word, and in text without spaces, such as Chinese, nearly all are different."""

REPORT_S = 5.0
"""Seconds between two reports of progress."""


class Progress:
    """Reports how much of a long text has been tokenized."""

    def __init__(self, report: Callable[[str], None] | None) -> None:
        self._report = report
        self._characters = self._done = 0
        self._next = 0.0

    def say(self, message: str) -> None:
        """Report a message."""
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


def with_gpt1_bpe(
    folder: Path, texts: Mapping[str, Text], vocabulary: int, cache: Path | None, progress: Progress
) -> tuple[TokenizedText, str]:
    """Return the ids of ``texts`` in GPT-1's BPE, whose files are in ``folder``, and its description.

    Raises CorpusError if the files cannot be used, or the preset's ``vocabulary`` is too small for them.
    """
    encoder, merges = ((folder / name, read_bytes(folder / name)) for name in (ENCODER_FILE, MERGES_FILE))
    name = entry_name("gpt1", encoder[1], merges[1], *(texts[split].sha256 for split in SPLITS))
    tokenized = cached(cache, name, lambda: _encode(gpt1_tokenizer(encoder, merges), texts, progress))
    if tokenized.vocabulary > vocabulary:
        raise CorpusError(
            f"{encoder[0]}: its tokens and padding are {tokenized.vocabulary:,} ids, the preset's vocabulary is "
            f"{vocabulary:,}",
            hint=f"Set vocabulary = {tokenized.vocabulary} or more. Without these two files, a preset that learns its "
            "embeddings trains a tokenizer on the text.",
        )
    return tokenized, GPT1_TOKENIZER


def with_byte_bpe(
    texts: Mapping[str, Text], vocabulary: int, cache: Path | None, progress: Progress
) -> tuple[TokenizedText, str]:
    """Return the ids of ``texts`` in a byte-level BPE trained on the train split, and its description."""
    name = entry_name("bytes and their number", str(vocabulary), *(texts[split].sha256 for split in SPLITS))
    train, trained_on = texts["train"], min(texts["train"].characters, TRAINED_ON)

    def tokenize() -> TokenizedText:
        if trained_on >= LONG_TEXT:
            progress.say(f"Training a tokenizer on {trained_on:,} characters …")
        return _encode(train_byte_bpe(_beginning(train.pieces()), vocabulary), texts, progress)

    tokenized = cached(cache, name, tokenize)
    part = f"the first {trained_on:,} characters of " if trained_on < train.characters else ""
    return tokenized, f"byte-level BPE of {tokenized.vocabulary:,} tokens trained on {part}the train split"


def _beginning(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the first ``TRAINED_ON`` characters of a text."""
    left = TRAINED_ON
    for piece in pieces:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


def too_many_ids(where: str, error: MemoryError) -> CorpusError:
    """Return the error about a text whose ids do not fit into memory."""
    return CorpusError(f"{where}: {error}", hint="Use a part of the text, or a machine with more memory.")


def _encode(tokenizer: Tokenizer, texts: Mapping[str, Text], progress: Progress) -> TokenizedText:
    progress.begin(sum(text.characters for text in texts.values()))
    splits = {}
    for split, text in texts.items():
        try:
            splits[split] = tokenizer.encode(text.pieces(), progress.add)
        except MemoryError as error:
            raise too_many_ids(text.where, error) from None
    return TokenizedText(vocabulary=tokenizer.vocabulary, splits=splits, token_bytes=tokenizer.token_bytes)
