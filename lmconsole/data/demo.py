"""The corpus that needs no download: the help texts that every CPython carries in ``pydoc_data.topics``.

The texts differ between CPython versions, and with them the corpus and its fingerprint.
"""

import importlib
import sys
from collections.abc import Mapping

from lmconsole.errors import CorpusError

SHARES = {"train": 8, "validation": 1, "test": 1}
"""Tenths of the characters that each split ought to get."""

DEMO_NAME = f"CPython {sys.version_info.major}.{sys.version_info.minor} help topics"


def demo_texts() -> dict[str, str]:
    """Text of each split. Raises CorpusError where this Python has no ``pydoc_data.topics`` or nothing in it."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError, SyntaxError, ValueError, OSError) as error:
        raise _unavailable(str(error)) from None
    if not isinstance(topics, Mapping):
        raise _unavailable("its topics are no mapping")
    texts = split_topics({name: text for name, text in topics.items() if isinstance(text, str) and text.strip()})
    if not all(texts.values()):
        raise _unavailable(f"only {len(topics)} topics in it")
    return texts


def split_topics(topics: Mapping[str, str]) -> dict[str, str]:
    """Deals whole topics, in the order of their names, each to the split that has the smallest part of its share of
    the characters so far (the first such split in a tie). Whole topics, so that no text is in two splits."""
    texts = dict.fromkeys(SHARES, "")
    for name in sorted(topics):
        split = min(SHARES, key=lambda s: len(texts[s]) / SHARES[s])
        texts[split] += topics[name].rstrip("\n") + "\n\n"
    return texts


def _unavailable(why: str) -> CorpusError:
    return CorpusError(
        f"the demo corpus cannot be made: this Python has no usable pydoc_data.topics ({why})",
        hint="Use a complete CPython (its standard library carries the module), or bring text: --data DIR with "
        "train.txt, valid.txt and test.txt.",
    )
