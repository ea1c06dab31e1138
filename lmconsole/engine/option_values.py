"""Conversion of the text of options to values, for the command line and the console's form.

Each function raises ValueError with one argument per problem. Every command imports this module, so slow imports are
inside functions.
"""

import os
import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lmconsole.plan.presets import Plan

EXECUTORS = ("local", "slurm")
MAX_SEEDS = 10_000
MAX_SEED = 2**63 - 1
MAX_JOBS = 1_024
MAX_TOKENS = 10**12


def describe_experiments(plan: "Plan") -> str:
    """Return the numbers of the plan's experiments, or the first of them."""
    from lmconsole.plan.presets import ranges

    text = ranges([experiment.id for experiment in plan.experiments])
    return text if len(text) <= 200 else f"{text[:200].rpartition(' ')[0]} …"


def parse_ids(text: str, plan: "Plan") -> tuple[int, ...]:
    """Parse ``5``, ``1-4`` and ``1,7-9``: experiments in the order given, each once."""
    known = [experiment.id for experiment in plan.experiments]
    problems: list[str] = []
    chosen: dict[int, None] = {}
    for word in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", word)
        if match is None:
            problems.append(f"{word!r}: not an experiment; expected numbers such as 5 or 1-4")
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            problems.append(f"{word}: the range is reversed; write {last}-{first}")
            continue
        inside = [number for number in known if first <= number <= last]
        if not inside:
            problems.append(f"no experiment {word}; {plan.source} has {describe_experiments(plan)}")
        chosen.update(dict.fromkeys(inside))
    if not chosen and not problems:
        problems.append(f"no experiment is named; {plan.source} has {describe_experiments(plan)}")
    if problems:
        raise ValueError(*problems)
    return tuple(chosen)


def parse_yes_no(text: str, _: "Plan") -> bool:
    """Return whether the text is ``yes``; the command line has a flag instead."""
    if text not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return text == "yes"


def parse_preset(text: str, plan: "Plan") -> str:
    """Return the name of a preset that the plan has."""
    from lmconsole.plan.presets import AUTO, unknown

    if text != AUTO and text not in plan.presets:
        raise ValueError(unknown("preset", text, [AUTO, *plan.presets]))
    return text


def parse_seeds(text: str, _: "Plan | None" = None) -> tuple[int, ...]:
    """Parse ``1,2,3``, ``1..10`` and ``1-10``: seeds in the order given, each once."""
    malformed = ValueError("expected whole numbers such as 1,2,3 or 1..10")
    chosen: dict[int, None] = {}
    for piece in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})(?:(?:\.\.|-)([0-9]{1,19}))?\s*", piece)
        if match is None:
            raise malformed
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= MAX_SEED:
            raise malformed
        chosen.update(dict.fromkeys(range(first, min(last, first + MAX_SEEDS) + 1)))  # at most one too many
        if len(chosen) > MAX_SEEDS:
            raise ValueError(f"more than {MAX_SEEDS:,} seeds")
    return tuple(chosen)


def parse_max_tokens(text: str, _: "Plan") -> int:
    """Parse a number of tokens."""
    tokens = _count(text, MAX_TOKENS)
    if tokens is None:
        raise ValueError(f"expected 1 to {MAX_TOKENS:,}")
    return tokens


def parse_jobs(text: str, _: "Plan") -> int | Literal["auto"]:
    """Parse ``auto`` or a number of runs."""
    word = text.strip().lower()
    if word == "auto":
        return "auto"
    jobs = _count(word, MAX_JOBS)
    if jobs is None:
        raise ValueError(f"expected auto, or 1 to {MAX_JOBS:,}")
    return jobs


def _count(text: str, most: int) -> int | None:
    """Return the whole number from 1 to ``most`` in ``text``, or None if there is no such number."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if 1 <= number <= most else None


def parse_executor(text: str, _: "Plan") -> str:
    """Return the name of an executor."""
    from lmconsole.plan.presets import unknown

    if text not in EXECUTORS:
        raise ValueError(unknown("executor", text, list(EXECUTORS)))
    return text


def parse_sbatch_options(text: str, _: "Plan") -> tuple[str, ...]:
    """Split options of sbatch into words, and check them."""
    import shlex

    from lmconsole.plan.executor import parse_sbatch

    words = tuple(shlex.split(text))
    parse_sbatch(words)
    return words


def parse_program(text: str, _: "Plan") -> tuple[str, ...]:
    """Split a command line and find its program."""
    import shlex
    import shutil

    words = shlex.split(text)
    program = shutil.which(os.path.expanduser(words[0])) if words else None
    if program is None:
        raise ValueError(f"no such program{': ' + words[0] if words else ''}")
    return (os.path.abspath(program), *words[1:])
