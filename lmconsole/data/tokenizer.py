"""From text to token ids: GPT-1's byte-pair encoding (BPE) if its files exist, else a byte-level BPE trained here.

Both number their tokens from 1, since id 0 is padding. The package ``tokenizers`` is imported when a text is first
encoded, so that commands that need no tokenizer stay fast.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lmconsole.data.files import id_type, read_text, size_limit
from lmconsole.data.text import cut_pieces
from lmconsole.errors import CorpusError
from lmconsole.telemetry.host import MIB

if TYPE_CHECKING:
    import tokenizers

ENCODER_FILE = "encoder_bpe_40000.json"
MERGES_FILE = "vocab_40000.bpe"
UNKNOWN = "<unk>"
END_OF_WORD = "</w>"

SMALLEST_BYTE_VOCABULARY = 257
"""256 bytes and padding: with fewer ids some text could not be encoded."""

LONGEST_WORD = 256
"""Bytes after which a word is cut. The time of training grows with the square of a word's length, and text without
spaces, such as Chinese or base64, would be one word."""

_LINES_AT_ONCE = 8192
"""Most lines encoded in one call. Together with the length of a piece it bounds the memory."""

_DOWNLOAD_HINT = (
    f"Download both files of GPT-1's BPE again ({ENCODER_FILE} and {MERGES_FILE}), or remove both to train a tokenizer "
    "on the text."
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tokenizer:
    """A trained tokenizer. ``vocabulary`` includes padding: ids are in [1, vocabulary)."""

    backend: tokenizers.Tokenizer
    vocabulary: int
    token_bytes: NDArray[np.uint16] | None = None
    """UTF-8 bytes of the text of each id, shape (V,); None for GPT-1's BPE, whose tokens do not tell case, accents,
    white space and unknown characters."""

    def encode(
        self, text: str | Iterable[str], progress: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.integer[Any]]:
        """Return the ids of ``text``, shape (tokens,), in the type of ``id_type``.

        The text is a string, or pieces of one that end at line ends. Each line is encoded separately, in parallel, with
        its line feed, so that a tokenizer that keeps white space keeps line feeds. ``progress`` receives the number of
        characters after each batch of lines.

        Raises MemoryError if the ids take more than ``size_limit``.
        """
        dtype, limit = id_type(self.vocabulary), size_limit()
        stream = bytearray()  # grows in place; a list of arrays would be in memory twice when it is joined
        for batch in _batches(text):
            encodings = self.backend.encode_batch_fast(batch, add_special_tokens=False)
            ids = list(chain.from_iterable(encoding.ids for encoding in encodings))
            stream += (np.array(ids, dtype=dtype) + 1).data
            if len(stream) > limit:
                raise MemoryError(f"its token ids take more than {limit // MIB:,} MiB, half of the memory available")
            progress(sum(map(len, batch)))
        return np.frombuffer(stream, dtype=dtype)

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """Return the text of ``ids`` without padding. It is exact for a byte-level BPE; GPT-1's gives lower case, one
        space after each word, and ``<unk>`` for each unknown character."""
        return str(self.backend.decode([int(i) - 1 for i in ids if i > 0], skip_special_tokens=False))


def iter_lines(text: str) -> Iterator[str]:
    """Yield the lines of ``text``, each with its line feed. Only a line feed ends a line: ``str.splitlines`` would
    break at a dozen other characters too."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _batches(text: str | Iterable[str]) -> Iterator[list[str]]:
    """Yield the lines of ``text``, or of its pieces, in lists of at most ``_LINES_AT_ONCE`` lines of one piece."""
    for piece in cut_pieces([text]) if isinstance(text, str) else text:
        lines = list(iter_lines(piece))
        for start in range(0, len(lines), _LINES_AT_ONCE):
            yield lines[start : start + _LINES_AT_ONCE]


def gpt1_tokenizer(encoder: tuple[Path, bytes], merges: tuple[Path, bytes]) -> Tokenizer:
    """Build GPT-1's BPE (Radford et al. 2018) from its two files, each given as path and content.

    Text is lower-cased and accents are stripped, which gives exactly the published ids of WikiText-2. White space, line
    feeds included, separates words and is dropped. An unknown character becomes ``<unk>``. Raises CorpusError if a file
    is damaged or the two do not match.
    """
    library = _library()
    ranks = _read_encoder(*encoder)
    pairs = _read_merges(*merges, ranks)
    try:
        backend = library.Tokenizer(
            library.models.BPE(vocab=ranks, merges=pairs, unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD)
        )
    except Exception as error:  # the library raises plain Exception
        raise CorpusError(f"{encoder[0]}: not a usable BPE: {error}", hint=_DOWNLOAD_HINT) from None
    backend.normalizer = library.normalizers.BertNormalizer(strip_accents=True, lowercase=True)
    backend.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    backend.decoder = library.decoders.BPEDecoder(suffix=END_OF_WORD)
    return Tokenizer(backend=backend, vocabulary=len(ranks) + 1)


def train_byte_bpe(text: str | Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a lossless byte-level BPE with at most ``vocabulary`` ids, padding included, on ``text`` or its pieces.

    It is deterministic: pairs of equal count are merged in the order of their ids, whatever the number of threads.
    Pairs that occur once are never merged, so a short text gives a smaller vocabulary than requested. Longer words than
    ``LONGEST_WORD`` are cut.
    """
    if vocabulary < SMALLEST_BYTE_VOCABULARY:
        raise CorpusError(
            f"vocabulary = {vocabulary} is too small to train a tokenizer: a byte-level BPE needs one id for each of "
            "the 256 bytes and one for padding",
            hint=f"Set vocabulary to {SMALLEST_BYTE_VOCABULARY} or more.",
        )
    library = _library()
    backend = library.Tokenizer(library.models.BPE())
    words = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = library.pre_tokenizers.FixedLength(length=LONGEST_WORD)
    backend.pre_tokenizer = library.pre_tokenizers.Sequence([words, parts])
    backend.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(_batches(text), trainer)
    vocabulary = int(backend.get_vocab_size()) + 1
    token_bytes = np.zeros(vocabulary, dtype=np.uint16)
    for token, number in backend.get_vocab().items():
        token_bytes[number + 1] = len(token)  # the alphabet of a byte-level BPE has a character for each byte
    return Tokenizer(backend=backend, vocabulary=vocabulary, token_bytes=token_bytes)


def _read_encoder(path: Path, data: bytes) -> dict[str, int]:
    try:
        ranks = msgspec.json.decode(data, type=dict[str, int])
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorpusError(
            f"{path}: expected a JSON object of token → number, found: {error}", hint=_DOWNLOAD_HINT
        ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CorpusError(f"{path}: its {len(ranks):,} tokens are not numbered 0, 1, 2, …", hint=_DOWNLOAD_HINT)
    if UNKNOWN not in ranks:
        raise CorpusError(f"{path}: the token {UNKNOWN} is missing", hint=_DOWNLOAD_HINT)
    return ranks


def _read_merges(path: Path, data: bytes, ranks: dict[str, int]) -> list[tuple[str, str]]:
    """Return the merges in order. The first line may be a version header."""
    pairs = []
    for number, line in enumerate(read_text(path, data).split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not right or " " in right:
            raise CorpusError(f"{path}: line {number:,}: expected two pieces, found {line[:60]!r}", hint=_DOWNLOAD_HINT)
        for piece in (left, right, left + right):
            if piece not in ranks:
                raise CorpusError(
                    f"{path}: line {number:,}: {piece[:60]!r} is not a token of {ENCODER_FILE}; the two files do not "
                    "belong together, or one is incomplete",
                    hint=_DOWNLOAD_HINT,
                )
        pairs.append((left, right))
    made = {left + right for left, right in pairs}
    for token in ranks:
        if token not in made and token != UNKNOWN and len(token.removesuffix(END_OF_WORD)) > 1:
            raise CorpusError(
                f"{path}: no merge gives the token {token[:60]!r} of {ENCODER_FILE}; the file is incomplete",
                hint=_DOWNLOAD_HINT,
            )
    return pairs


def _library() -> ModuleType:
    """Import ``tokenizers`` and enable its threads.

    Without the variable, it prints a warning in every process that is forked after its threads have run. A forked child
    does not have these threads and would wait for them forever, so it encodes without threads.
    """
    import tokenizers

    if "TOKENIZERS_PARALLELISM" not in os.environ:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))
    return tokenizers
