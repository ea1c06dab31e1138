"""The filter of the experiments table: words, ``!not``, ``a|b``, ``/regex/``, ``lr>1e-3`` and ``tag:x``.

A filter never fails: a part that is wrong or unfinished is left out, and ``Filter.problem`` says why. Patterns have a
time limit, because some take longer than the universe exists.
"""

import operator
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from lmconsole.errors import did_you_mean
from lmconsole.plan.experiment import Settings

SYNTAX = (
    ("adam 2l", "both words, in any column, the run's id, its note or tags"),
    ('"two words"', "the words as written"),
    ("!sgd", "without this word; !a|b is neither a nor b"),
    ("lstm|gpt", "one of them; layers=2|4 as well"),
    ("/^gpt.*adam/", "a regular expression of Python"),
    ("lr>1e-3", "a setting: = != < <= > >=; lr, wd, batch or any name of the details"),
    ("valid<100", "a result: epoch, train, valid, test (perplexities), time (seconds)"),
    ("seed=1", "also id, preset, status and origin"),
    ("tag:good", "runs with this tag; note:word searches notes"),
)
"""Examples of the syntax, and what they find."""
ALIASES = {"lr": "learning_rate", "wd": "weight_decay", "batch": "batch_size", "opt": "optimizer"}
RUN_VALUES = ("id", "seed", "preset", "status", "origin", "epoch", "train", "valid", "test", "time")
NAMES = (*RUN_VALUES, *ALIASES, *Settings.__struct_fields__)
MAX_PATTERN = 200
"""Characters of the longest pattern."""
MAX_SHOWN = 30
"""Characters of a part of the filter that a problem repeats."""
LIMIT_S = 0.1
"""CPU time for one filtering of all rows by patterns. A busy machine takes none of it."""
TOO_SLOW = "the pattern takes too long and is left out"
_COMPARISON = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(<=|>=|!=|==?|<|>)(.*)", re.DOTALL)
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Properties of a run, or of an experiment without runs, that a filter tests."""

    text: str
    note: str = ""
    tags: tuple[str, ...] = ()
    values: Callable[[], Mapping[str, object]] = dict
    """Returns settings and results by name. Called only for filters that compare."""


Test = Callable[[Facts], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """A parsed filter."""

    tests: tuple[Test, ...] = ()
    """Tests that must all hold."""
    patterns: tuple[Test, ...] = ()
    """Further tests, which contain patterns."""
    problem: str = ""
    """Phrase on a part that is left out; empty if there is none."""

    def matches(self, facts: Facts) -> bool:
        """Return whether all tests hold. Patterns need a ``time_limit``."""
        return all(test(facts) for test in (*self.tests, *self.patterns))

    def without_patterns(self) -> "Filter":
        """Return the filter to use after the patterns took too long."""
        return replace(self, patterns=(), problem=TOO_SLOW)


class TimeLimitExceeded(Exception):
    """Patterns took longer than they may."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeLimitExceeded`` if the block takes more than ``seconds`` of CPU time, even in a regular expression.

    The engine of ``re`` runs signal handlers every few thousand steps, and only in the main thread, where the console
    filters. Elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def exceeded(_number: int, _frame: FrameType | None) -> None:
        raise TimeLimitExceeded

    before = signal.signal(signal.SIGVTALRM, exceeded)
    outer_s = 0.0
    try:
        try:
            outer_s, _ = signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, outer_s)  # that of an outer block, or none
    finally:
        signal.signal(signal.SIGVTALRM, before)


def parse_filter(text: str) -> Filter:
    """Parse the text of a filter. Whatever the text is, this returns a filter."""
    tests: list[Test] = []
    patterns: list[Test] = []
    problems: list[str] = []
    for negated, terms in _tokens(text):
        try:
            test, slow = _alternatives(terms)
        except _Wrong as wrong:
            problems.append(str(wrong))
            continue
        (patterns if slow else tests).append(_negation(test) if negated else test)
    return Filter(tests=tuple(tests), patterns=tuple(patterns), problem=problems[0] if problems else "")


class _Wrong(Exception):
    """A part of a filter is wrong or unfinished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Term:
    kind: str
    """``word``, ``quoted`` or ``pattern``."""
    text: str
    negated: bool


def _tokens(text: str) -> Iterator[tuple[bool, list[_Term]]]:
    """Yield the parts between spaces: whether a part begins with ``!``, and its alternatives."""
    at, end = 0, len(text)
    while at < end:
        if text[at].isspace():
            at += 1
            continue
        whole_negated = text[at] == "!"
        at += whole_negated
        terms: list[_Term] = []
        while at < end and not text[at].isspace():
            negated = text[at] == "!"
            at += negated
            if at < end and text[at] in "/\"'":
                term, at = _delimited(text, at, negated)
            else:
                start = at
                while at < end and not text[at].isspace() and text[at] != "|":
                    at += 1
                term = _Term(kind="word", text=text[start:at], negated=negated)
            if term.text:
                terms.append(term)
            if at < end and text[at] == "|":
                at += 1
        if terms:
            yield whole_negated, terms


def _delimited(text: str, at: int, negated: bool) -> tuple[_Term, int]:
    """Return the pattern or the quoted words that begin at ``at``, and where they end. The end may be missing, as it is
    while they are typed."""
    delimiter = text[at]
    found: list[str] = []
    at += 1
    while at < len(text) and text[at] != delimiter:
        if text[at] == "\\" and delimiter == "/" and at + 1 < len(text):
            found.append("/" if text[at + 1] == "/" else text[at : at + 2])
            at += 2
        else:
            found.append(text[at])
            at += 1
    kind = "pattern" if delimiter == "/" else "quoted"
    return _Term(kind=kind, text="".join(found), negated=negated), at + 1


def _alternatives(terms: list[_Term]) -> tuple[Test, bool]:
    """Return the test whether one of ``terms`` holds, and whether it contains a pattern."""
    tests: list[Test] = []
    name = ""
    for term in terms:
        test, name = _test(term, name)
        tests.append(_negation(test) if term.negated else test)
    slow = any(term.kind == "pattern" for term in terms)
    if len(tests) == 1:
        return tests[0], slow
    return lambda facts: any(test(facts) for test in tests), slow


def _negation(test: Test) -> Test:
    return lambda facts: not test(facts)


def _test(term: _Term, equal_to: str) -> tuple[Test, str]:
    """Return the test of one term, and its name if it asks whether a value is equal: ``2|4`` follows ``layers=``."""
    text = term.text
    if term.kind == "pattern":
        return _pattern(text), ""
    word = text.lower()
    if term.kind == "quoted":
        return (lambda facts: word in facts.text), ""
    if comparison := _COMPARISON.fullmatch(text):
        name, sign, value = comparison.groups()
        return _comparison(name.lower(), sign, value), name.lower() if sign in ("=", "==") else ""
    if word in _OPERATORS:
        raise _Wrong(f"write {word} without spaces, as in lr{word}1e-3")
    if equal_to:
        return _comparison(equal_to, "=", text), equal_to
    if word.startswith("tag:"):
        tag = word[4:]
        return (lambda facts: any(tag in (each.lower(), "") for each in facts.tags)), ""
    if word.startswith("note:"):
        wanted = word[5:]
        return (lambda facts: bool(facts.note) and wanted in facts.note.lower()), ""
    return (lambda facts: word in facts.text), ""


def _pattern(text: str) -> Test:
    if len(text) > MAX_PATTERN:
        raise _Wrong(f"a pattern has at most {MAX_PATTERN} characters")
    try:
        with time_limit(LIMIT_S), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of syntax that may change; a warning would be printed over the console
            pattern = re.compile(text, re.IGNORECASE | re.MULTILINE)
    except re.error as error:
        at = "" if error.pos is None else f" at character {error.pos + 1}"
        raise _Wrong(f"/{_short(text)}/: {error.msg}{at}") from None
    except (OverflowError, RecursionError):
        raise _Wrong(f"/{_short(text)}/: too many repeats") from None
    except TimeLimitExceeded:
        raise _Wrong(TOO_SLOW) from None
    return lambda facts: pattern.search(facts.text) is not None


def _short(text: str) -> str:
    """Return the beginning of a part of the filter, so that the message on it fits on the line."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _comparison(name: str, sign: str, value: str) -> Test:
    if name not in NAMES:
        raise _Wrong(f"no setting is called {_short(name)!r}{did_you_mean(name, NAMES)}")
    if not value:
        raise _Wrong(f"{name}{sign} needs a value")
    name = ALIASES.get(name, name)
    compare, is_order = _OPERATORS[sign], sign not in ("=", "==", "!=")
    try:
        number: float | None = float(value)
    except ValueError:
        number = None
    if is_order and number is None:
        raise _Wrong(f"{name}{sign}{_short(value)}: expected a number")
    wanted = value.lower()

    def test(facts: Facts) -> bool:
        found = facts.values().get(name)
        if isinstance(found, int | float) and not isinstance(found, bool):
            return number is not None and compare(found, number)
        if not isinstance(found, str) or is_order:
            return False
        return (found.lower() == wanted) == (sign != "!=")

    return test
