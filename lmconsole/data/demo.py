"""A corpus that needs no download: the help texts in CPython's standard library (``pydoc_data.topics``).

The texts, and thus the fingerprint of the corpus, differ between versions of CPython.
"""

import importlib
import sys
from collections.abc import Mapping

from lmconsole.errors import CorpusError

SHARES = {"train": 8, "validation": 1, "test": 1}
"""Tenths of the characters for each split."""

DEMO_NAME = f"CPython {sys.version_info.major}.{sys.version_info.minor} help topics"


def demo_texts() -> dict[str, str]:
    """Return the text of each split. Raises CorpusError if this Python has no ``pydoc_data.topics`` or too few."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError, SyntaxError, ValueError, OSError) as error:
        raise _unavailable(str(error)) from None
    if not isinstance(topics, Mapping):
        raise _unavailable("its topics are not a mapping")
    texts = split_topics({name: text for name, text in topics.items() if isinstance(text, str) and text.strip()})
    if not all(texts.values()):
        raise _unavailable(f"only {len(topics)} topics in it")
    return texts


def split_topics(topics: Mapping[str, str]) -> dict[str, str]:
    """Distribute whole topics over the splits, so that no text is in two of them.

    In the order of their names, each topic goes to the split with the smallest part of its share of the characters so
    far; to the first of them in a tie.
    """
    texts = dict.fromkeys(SHARES, "")
    for name in sorted(topics):
        split = min(SHARES, key=lambda s: len(texts[s]) / SHARES[s])
        texts[split] += topics[name].rstrip("\n") + "\n\n"
    return texts


def _unavailable(why: str) -> CorpusError:
    return CorpusError(
        f"the demo corpus is unavailable: this Python has no usable pydoc_data.topics ({why})",
        hint="Use a CPython with its whole standard library, or your own text: --data FILE.",
    )
