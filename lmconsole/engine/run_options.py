"""Table of the options of `lmconsole run`: the fields of RunRequest.

The command line, its help and completions, the console's form and the request in a dry run's JSON are built from it. A
new option is a new field here, and the code that uses it.

Every command imports this module, so slow imports are inside functions.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args, get_origin

from lmconsole.errors import LmconsoleError, listed

if TYPE_CHECKING:
    from lmconsole.plan.presets import Plan

MAX_SEEDS = 10_000
MAX_SEED = 2**63 - 1
MAX_JOBS = 1_024
MAX_TOKENS = 10**12


class Option(NamedTuple):
    """Presentation of one field of RunRequest on the command line and in the form."""

    help: str
    metavar: str | None = None
    flag: str | None = None
    """Spelling on the command line, if it differs from ``--`` and the field's name."""
    positional: bool = False
    """Takes arguments instead of an option on the command line; they are joined by commas before ``parse``."""
    envvar: str | None = None
    shown_default: str | None = None
    """Text shown as the default by ``--help``, if ``str(default)`` says too little."""
    completions: tuple[str, ...] = ()
    """Values that the shell completes. Others may be valid too."""
    parse: Callable[[str, "Plan"], object] | None = None
    """Converts text to the value, and raises ValueError with one argument per problem. None: text is the value as it
    is. Flags and paths are not text, and are never parsed."""
    setting: bool = False
    """Whether the option overrides the field of ``plan.experiment.Settings`` with its name, and has its bounds."""
    form_placeholder: str | None = None
    """Text in the empty field of the console's form; None keeps the option out of the form."""


def _experiments(plan: "Plan") -> str:
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
            problems.append(f"no experiment {word}; {plan.source} has {_experiments(plan)}")
        chosen.update(dict.fromkeys(inside))
    if not chosen and not problems:
        problems.append(f"no experiment is named; {plan.source} has {_experiments(plan)}")
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
    malformed = ValueError("expected whole numbers such as 1,2,3 or 1..10")
    chosen: dict[int, None] = {}
    for piece in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})(?:\.\.([0-9]{1,19}))?\s*", piece)
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


def parse_program(text: str, _: "Plan") -> tuple[str, ...]:
    """Split a command line and find its program."""
    import shlex
    import shutil

    words = shlex.split(text)
    program = shutil.which(os.path.expanduser(words[0])) if words else None
    if program is None:
        raise ValueError(f"no such program{': ' + words[0] if words else ''}")
    return (os.path.abspath(program), *words[1:])


class RunRequest(NamedTuple):
    """Request for runs, from the command line or the console's form. Fields without an Option are set by
    ``parse_request`` or its caller.

    It is a named tuple, because importing msgspec or dataclasses would slow down every command.
    """

    ids: Annotated[
        tuple[int, ...],
        Option(help="Experiments to train, such as 5 or 1-4.", metavar="ID...", positional=True, parse=parse_ids),
    ] = ()
    keep_order: bool = False
    """Whether runs are trained in the order of ``ids``. Set if the ids contain no range."""
    wait_for_active: bool = False
    """Whether active runs are waited for; otherwise the request is refused. Set by ``--all``, and by the console."""
    everything: Annotated[
        bool, Option(help="Train all experiments, and wait for those already queued or running.", flag="--all")
    ] = False
    headless: Annotated[bool, Option(help="Show progress in this terminal instead of opening the console.")] = False
    preset: Annotated[
        str,
        Option(
            help="Use this preset: auto, paper, scratch, demo, or one of your own.",
            metavar="NAME",
            completions=("auto", "paper", "scratch", "demo"),
            parse=parse_preset,
            form_placeholder="auto, paper, scratch, demo, or your own",
        ),
    ] = "auto"
    epochs: Annotated[
        int | None,
        Option(
            help="Train for N passes over the train split.",
            metavar="N",
            setting=True,
            form_placeholder="passes over the train split; empty: the preset's",
        ),
    ] = None
    seeds: Annotated[
        tuple[int, ...] | None,
        Option(
            help="Train with each of these seeds, such as 1,2,3 or 1..10.",
            metavar="LIST",
            parse=parse_seeds,
            form_placeholder="1,2,3 or 1..10; empty: the preset's",
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        Option(
            help="Use the first N training tokens, and a tenth as many of the other splits.",
            metavar="N",
            parse=parse_max_tokens,
        ),
    ] = None
    device: Annotated[
        str,
        Option(
            help="Train on this device: auto, cpu, cuda, all, or a list such as cuda:0,cuda:1.",
            metavar="NAME",
            completions=("auto", "cpu", "cuda", "all"),
            form_placeholder="auto, cpu, cuda, all, or a list such as cuda:0,cuda:1",
        ),
    ] = "auto"
    precision: Annotated[
        str | None,
        Option(
            help="Compute in this precision: auto, fp32, tf32 or bf16.",
            metavar="NAME",
            completions=("auto", "fp32", "tf32", "bf16"),
            setting=True,
            form_placeholder="auto, fp32, tf32 or bf16; empty: the preset's",
        ),
    ] = None
    jobs: Annotated[
        int | Literal["auto"],
        Option(
            help="Train N runs at once on each device; auto chooses by the size of the model.",
            metavar="N",
            completions=("auto",),
            parse=parse_jobs,
            form_placeholder="auto, or runs at once on each device",
        ),
    ] = "auto"
    data: Annotated[
        Path | None,
        Option(
            help="Read this text file, text or tokens from this folder, or the Hugging Face data set "
            "hub:OWNER/NAME[/CONFIG].",
            metavar="PATH",
        ),
    ] = None
    embeddings: Annotated[Path | None, Option(help="Read embedding tables from this file.", metavar="FILE")] = None
    fetch: Annotated[
        bool, Option(help="First download what is missing of WikiText-2 and GPT-1's tokenizer and embeddings.")
    ] = False
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
    """Folder for the exports when the queue is empty."""
    on_finish: Annotated[
        tuple[str, ...],
        Option(help="Run this program when the queue is empty (no shell).", metavar="CMD", parse=parse_program),
    ] = ()
    on_event: Annotated[
        tuple[str, ...],
        Option(
            help="Give this program (no shell) a JSON object when a run stalls, diverges, is lost, fails or ends, and "
            "when the queue is empty.",
            metavar="CMD",
            parse=parse_program,
        ),
    ] = ()
    json: Annotated[bool, Option(help="Print JSON on standard output.")] = False

    @property
    def overrides(self) -> dict[str, object]:
        """Settings that the request overrides, by name."""
        settings = {name: getattr(self, name) for name, option in OPTIONS.items() if option.setting}
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def exports(self) -> Path | None:
        """Absolute folder for the exports; None if nothing is exported."""
        return None if self.no_export else self.export_folder.absolute()


OPTIONS: dict[str, Option] = {
    name: part
    for name, kind in RunRequest.__annotations__.items()
    for part in get_args(kind)
    if isinstance(part, Option)
}
"""Options by field, in the order of the help text."""


def flag(name: str) -> str:
    """Return the spelling of an option on the command line: ``--max-tokens`` for ``max_tokens``."""
    return OPTIONS[name].flag or f"--{name.replace('_', '-')}"


def parse_request(given: Mapping[str, object], **parsed: Any) -> RunRequest:
    """Parse a request. Everything is checked that can be checked without torch, and that the run store can be read.

    Args:
        given: values by field, as typer passes them: text to be parsed, a list of texts for positional arguments,
            paths, and flags. None, False and an empty list mean that the option is absent.
        parsed: fields that need no parsing. They take precedence.

    Raises:
        LmconsoleError: fields are wrong, and the message lists all problems; or the name of the current folder is not
            UTF-8.
        PlanError: the file of experiments is wrong.
        StoreError: the run store cannot be read.
    """
    from lmconsole.plan.load import load_plan
    from lmconsole.runs.store import Store

    assert given.keys() <= OPTIONS.keys()
    present = {
        name: ",".join(value) if isinstance(value, list) else value
        for name in OPTIONS
        if (value := given.get(name)) not in (None, False, [])
    }
    experiments = present.get("experiments")
    plan = load_plan(experiments if isinstance(experiments, Path) else None)
    known = tuple(experiment.id for experiment in plan.experiments)
    problems = []
    if "ids" in present and "everything" in present:
        problems.append("give experiment IDs or --all, not both")
    elif "ids" not in present and "everything" not in present:
        problems.append(f"name the experiments ({_experiments(plan)}), for example `lmconsole run 1-4 9`, or use --all")
    values: dict[str, Any] = {
        "ids": known,
        "keep_order": "ids" in present and "-" not in str(present["ids"]),
        "wait_for_active": "everything" in present,
    }
    for name, value in present.items():
        try:
            values[name] = _parse(name, value, plan)
        except ValueError as error:
            problems += [_problem(name, value, problem) for problem in error.args]
    if problems:
        raise LmconsoleError(listed(problems))
    request = RunRequest(**{**values, **parsed})
    for folder in (request.exports, Path.cwd()):  # both are sent to other processes as JSON
        if folder is not None and not _is_utf8(folder):
            raise LmconsoleError(f"{folder}: {_NOT_UTF8}")
    Store(request.runs).names()
    return request


def _problem(name: str, value: object, problem: str) -> str:
    """Return the message on one field: with its flag, and with its value unless ``problem`` has it."""
    import shlex

    if OPTIONS[name].positional:
        return problem
    shown = "" if repr(value) in problem else f" {shlex.quote(str(value))}"
    return f"{flag(name)}{shown}: {problem}"


_NOT_UTF8 = "the name of this file is not UTF-8; rename it, or link to it"


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(name: str, value: object, plan: "Plan") -> object:
    """Return the value of one field. Raises ValueError with one argument per problem."""
    option = OPTIONS[name]
    if isinstance(value, Path) and not _is_utf8(value):
        raise ValueError(_NOT_UTF8)
    if not isinstance(value, str):
        return value
    if option.setting:
        return _parse_setting(name, value)
    return option.parse(value, plan) if option.parse else value


def _parse_setting(key: str, text: str) -> object:
    """Return the value of a setting, within its bounds. Raises ValueError."""
    import msgspec

    from lmconsole.plan.presets import TYPES, unknown

    kind = TYPES[key]
    try:
        value = int(text) if get_args(kind)[0] is int else text  # msgspec would take 2.0 for a whole number
    except ValueError:
        raise ValueError("expected a whole number") from None
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        if get_origin(kind) is Literal:
            raise ValueError(unknown(key, text, list(get_args(kind)))) from None
        # such as: Expected `int` >= 1
        wanted = str(error).replace("`", "").removeprefix("Expected ").partition(", got ")[0]
        raise ValueError(f"expected {wanted.replace('int', 'a whole number').replace('float', 'a number')}") from None
