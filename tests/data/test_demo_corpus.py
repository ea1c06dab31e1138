"""The demo corpus is whole help topics of this Python, split near the intended shares."""

import re
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconsole.data.corpus import load_corpus
from lmconsole.data.demo import SHARES, demo_texts, split_topics
from lmconsole.data.tokenizer import LONGEST_WORD
from lmconsole.errors import CorpusError


def test_the_splits_of_the_demo_corpus_are_near_their_shares(cache: Path) -> None:
    texts = demo_texts()
    total = sum(map(len, texts.values()))
    for split, tenths in SHARES.items():
        assert abs(len(texts[split]) / total - tenths / 10) < 0.05
    corpus = load_corpus("demo", None, vocabulary=2048, cache=cache)
    assert (corpus.kind, corpus.path, corpus.vocabulary) == ("demo", None, 2048)
    assert 0.7 < corpus.counts()["train"] / sum(corpus.counts().values()) < 0.9
    assert all(ids.min() > 0 and ids.max() < 2048 for ids in corpus.splits.values())


@settings(deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.text("xyz", min_size=1, max_size=60), max_size=30))
def test_each_topic_is_in_exactly_one_split_whole(topics: dict[str, str]) -> None:
    texts = split_topics(topics)
    parts = sorted(part for text in texts.values() for part in text.split("\n\n") if part)
    assert parts == sorted(topics.values())


def test_topics_are_distributed_in_the_order_of_their_names() -> None:
    topics = {name: name * 40 for name in "qwertyuiop"}
    assert split_topics(topics) == split_topics(dict(reversed(topics.items())))
    assert list(split_topics({"b": "2", "a": "1"}).values()) == ["1\n\n", "2\n\n", ""]


@pytest.mark.parametrize(
    "module", [None, types.SimpleNamespace(), types.SimpleNamespace(topics=3), types.SimpleNamespace(topics={"a": "b"})]
)
def test_a_python_without_help_topics_is_an_error_with_a_hint(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", module)
    with pytest.raises(CorpusError, match="demo corpus is unavailable") as caught:
        load_corpus("demo", None, vocabulary=2048)
    assert "--data" in str(caught.value.hint)


def test_no_word_of_the_demo_corpus_is_cut() -> None:
    words = re.findall(r"\S+|\s+", "".join(demo_texts().values()))
    assert max(len(word.encode()) for word in words) < LONGEST_WORD
