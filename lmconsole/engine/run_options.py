"""One table of everything that can be asked of `lmconsole run`.

The fields of RunRequest are the table. The command line, its help and completions, the form of the console and the
request in a dry run's JSON are built from it, so a new option is a new field here and its use where it matters.

The command line imports this module whatever the command is, so slow imports are inside functions.
"""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec

from lmconsole.errors import LmconsoleError

if TYPE_CHECKING:
    from lmconsole.plan.presets import Plan

MAX_SEEDS = 10_000
MAX_SEED = 2**63 - 1
MAX_JOBS = 1_024
MAX_TOKENS = 10**12


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """Presentation of one field of RunRequest on the command line and in the form."""

    help: str
    metavar: str | None = None
    flag: str | None = None
    """Spelling on the command line, if it differs from ``--`` and the field's name."""
    positional: bool = False
    """Arguments on the command line instead of an option; their text is joined by commas."""
    envvar: str | None = None
    shown_default: str | None = None
    """Default in the help text, for a value that would not be understood there."""
    choices: tuple[str, ...] = ()
    """Values for shell completion. Others may be valid too."""
    parse: Callable[[str, "Plan"], object] | None = None
    """Converts text to the value, and raises ValueError with one argument per problem. None: the text is the value."""
    setting: bool = False
    """Whether the option overrides the setting of the same name, with its type and bounds."""
    hint: str | None = None
    """Placeholder in the console's form; None keeps the option out of the form."""


def parse_ids(text: str, plan: "Plan") -> tuple[int, ...]:
    """Parse ``5``, ``1-4`` and ``1,7-9``: experiments in the order given, each once."""
    from lmconsole.plan.presets import ranges

    known = [experiment.id for experiment in plan.experiments]
    problems: list[str] = []
    chosen: dict[int, None] = {}
    for word in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", word)
        if match is None:
            problems.append(f"{word!r}: not an experiment; expected numbers such as 5 or 1-4")
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        inside = [number for number in known if first <= number <= last]
        if not inside or (match[2] is None and first not in known) or last < first:
            problems.append(f"no experiment {word}; {plan.source} has {ranges(known)}")
        chosen.update(dict.fromkeys(inside))
    if problems:
        raise ValueError(*problems)
    return tuple(chosen)


def parse_preset(text: str, plan: "Plan") -> str:
    """Return the name of a preset that the plan has."""
    from lmconsole.plan.presets import AUTO, unknown

    if text != AUTO and text not in plan.presets:
        raise ValueError(unknown("preset", text, [AUTO, *plan.presets]))
    return text


def parse_seeds(text: str, _: "Plan") -> tuple[int, ...]:
    """Parse ``1,2,3`` and ``1..10``: seeds in the order given, each once."""
    chosen: dict[int, None] = {}
    for piece in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})(?:\.\.([0-9]{1,19}))?\s*", piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first or last > MAX_SEED:
            raise ValueError("expected whole numbers such as 1,2,3 or 1..10")
        if last - first >= MAX_SEEDS:
            raise ValueError(f"more than {MAX_SEEDS:,} seeds")
        chosen.update(dict.fromkeys(range(first, last + 1)))
    return tuple(chosen)


def parse_max_tokens(text: str, _: "Plan") -> int:
    """Parse a number of tokens."""
    tokens = int(text) if re.fullmatch(r"[0-9]{1,13}", text) else 0
    if not 1 <= tokens <= MAX_TOKENS:
        raise ValueError(f"expected 1 to {MAX_TOKENS:,}")
    return tokens


def parse_jobs(text: str, _: "Plan") -> int | Literal["auto"]:
    """Parse ``auto`` or a number of runs."""
    word = text.strip().lower()
    if word == "auto":
        return "auto"
    jobs = int(word) if re.fullmatch(r"[0-9]{1,6}", word) else 0
    if not 1 <= jobs <= MAX_JOBS:
        raise ValueError(f"expected auto, or 1 to {MAX_JOBS:,}")
    return jobs


def parse_program(text: str, _: "Plan") -> tuple[str, ...]:
    """Split a command line and find its program."""
    import shutil

    words = shlex.split(text)
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise ValueError(f"no such program{': ' + words[0] if words else ''}")
    return (os.path.abspath(program), *words[1:])


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request for runs, from the command line or the console's form. Fields without an Option follow from the
    others, or from how the request was made."""

    ids: Annotated[
        tuple[int, ...],
        Option(help="Experiments to train, such as 5 or 1-4.", metavar="ID", positional=True, parse=parse_ids),
    ] = ()
    typed_order: bool = False
    """Whether the ids were typed one by one, so that runs keep their order."""
    everything: Annotated[bool, Option(help="Train all experiments; wait for active ones.", flag="--all")] = False
    headless: Annotated[bool, Option(help="Show progress here instead of opening the app.")] = False
    preset: Annotated[
        str,
        Option(
            help="Use this preset: auto, paper, scratch, demo, or one of your own.",
            metavar="NAME",
            choices=("auto", "paper", "scratch", "demo"),
            parse=parse_preset,
            hint="auto, paper, scratch, demo, or your own",
        ),
    ] = "auto"
    epochs: Annotated[
        int | None,
        Option(
            help="Train for N passes over the train split.",
            metavar="N",
            setting=True,
            hint="passes over the train split; empty: the preset's",
        ),
    ] = None
    seeds: Annotated[
        tuple[int, ...] | None,
        Option(
            help="Train with each of these seeds, such as 1,2,3 or 1..10.",
            metavar="LIST",
            parse=parse_seeds,
            hint="1,2,3 or 1..10; empty: the preset's",
        ),
    ] = None
    max_tokens: Annotated[
        int | None, Option(help="Use only the first N tokens.", metavar="N", parse=parse_max_tokens)
    ] = None
    device: Annotated[
        str,
        Option(
            help="Train on this device: auto, cpu, cuda, cuda:0,cuda:1 or all.",
            metavar="NAME",
            choices=("auto", "cpu", "cuda", "all"),
            hint="auto, cpu, cuda, cuda:0,cuda:1 or all",
        ),
    ] = "auto"
    precision: Annotated[
        str | None,
        Option(
            help="Compute in this precision: auto, fp32, tf32 or bf16.",
            metavar="NAME",
            choices=("auto", "fp32", "tf32", "bf16"),
            setting=True,
            hint="auto, fp32, tf32 or bf16; empty: the preset's",
        ),
    ] = None
    jobs: Annotated[
        int | Literal["auto"],
        Option(
            help="Train N runs at once on one device; auto suits the size of each.",
            metavar="N",
            choices=("auto",),
            parse=parse_jobs,
            hint="auto, or runs at once on one device",
        ),
    ] = "auto"
    data: Annotated[Path | None, Option(help="Read token or text files from this folder.", metavar="DIR")] = None
    embeddings: Annotated[Path | None, Option(help="Read embedding tables from this file.", metavar="FILE")] = None
    experiments: Annotated[
        Path | None,
        Option(
            help="Read experiments from this file.",
            metavar="FILE",
            shown_default="./experiments.toml, or built in",
        ),
    ] = None
    runs: Annotated[Path, Option(help="Use the run store in this folder.", metavar="DIR", envvar="LMCONSOLE_RUNS")] = (
        Path("runs")
    )
    fresh: Annotated[bool, Option(help="Train new runs, even where finished ones exist.")] = False
    dry_run: Annotated[bool, Option(help="Show what would be done, without doing it.")] = False
    no_export: Annotated[bool, Option(help="Do not export when the queue is empty.")] = False
    export_folder: Path = Path("exports")
    on_finish: Annotated[
        tuple[str, ...],
        Option(help="Run this program when the queue is empty (no shell).", metavar="CMD", parse=parse_program),
    ] = ()
    json: Annotated[bool, Option(help="Print JSON on standard output.")] = False

    @property
    def overrides(self) -> dict[str, object]:
        """Settings that the request overrides, by name."""
        given = {name: getattr(self, name) for name, option in OPTIONS.items() if option.setting}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def exports(self) -> Path | None:
        """Absolute folder for the exports; None for none."""
        return None if self.no_export else self.export_folder.absolute()


OPTIONS: dict[str, Option] = {
    field.name: part
    for field in msgspec.structs.fields(RunRequest)
    for part in get_args(field.type)
    if isinstance(part, Option)
}
"""Options by field, in the order of the help text."""


def flag(name: str) -> str:
    """Return the spelling of an option on the command line: ``--max-tokens`` for ``max_tokens``."""
    return OPTIONS[name].flag or f"--{name.replace('_', '-')}"


def parse_request(given: Mapping[str, object], **settled: Any) -> RunRequest:
    """Parse a request, and check everything that can be checked without torch.

    Args:
        given: text for each field to be parsed, or a list of it for positional arguments; paths and flags as they are.
            None means the default.
        settled: fields that need no parsing. They take precedence.

    Raises:
        LmconsoleError: fields are wrong; the message lists all problems.
        PlanError: the file of experiments is wrong.
        StoreError: the run store cannot be read.
    """
    from lmconsole.plan.load import load_plan
    from lmconsole.plan.presets import ranges
    from lmconsole.runs.store import Store

    texts = {
        name: ",".join(value) if isinstance(value, list) else value
        for name in OPTIONS
        if (value := given.get(name)) not in (None, False, [])
    }
    assert given.keys() <= OPTIONS.keys()
    experiments = texts.get("experiments")
    plan = load_plan(experiments if isinstance(experiments, Path) else None)
    every = tuple(experiment.id for experiment in plan.experiments)
    values: dict[str, Any] = {}
    problems = []
    if "ids" in texts and "everything" in texts:
        problems.append("either ids or --all, not both")
    elif "ids" not in texts and "everything" not in texts:
        problems.append(f"name experiments, for example `lmconsole run 1-4 9`, or --all; there are {ranges([*every])}")
    for name, value in texts.items():
        try:
            values[name] = _parse(name, value, plan)
        except ValueError as error:
            prefix = "" if OPTIONS[name].positional else f"{flag(name)} {shlex.quote(str(value))}: "
            problems += [f"{prefix}{problem}" for problem in error.args]
    if problems:
        raise LmconsoleError("\n".join(problems))
    typed_order = "-" not in str(texts.get("ids", "-"))
    request = RunRequest(**{"ids": every, "typed_order": typed_order, **values, **settled})
    Store(request.runs).names()
    return request


def _parse(name: str, value: object, plan: "Plan") -> object:
    """Return the value of one field. Raises ValueError with one argument per problem."""
    option = OPTIONS[name]
    if isinstance(value, Path):
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise ValueError("the name of this file is not UTF-8; rename it, or link to it") from None
    if not isinstance(value, str):
        return value
    if option.setting:
        return _parse_setting(name, value)
    return option.parse(value, plan) if option.parse else value


def _parse_setting(key: str, text: str) -> object:
    """Return the value of a setting, within its bounds. Raises ValueError."""
    from lmconsole.plan.presets import TYPES, unknown

    try:
        return msgspec.convert(text, TYPES[key], strict=False)
    except msgspec.ValidationError as error:
        if choices := OPTIONS[key].choices:
            raise ValueError(unknown(key, text, list(choices))) from None
        wanted = str(error).replace("`", "").removeprefix("Expected ").partition(", got ")[0]
        raise ValueError(f"expected {wanted.replace('int', 'a whole number').replace('float', 'a number')}") from None
