"""Parsing of a request for runs, with all its problems in one message."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from lmconsole.engine.option_values import describe_experiments
from lmconsole.engine.run_options import OPTIONS, RunRequest, flag
from lmconsole.errors import LmconsoleError, listed

if TYPE_CHECKING:
    from lmconsole.plan.presets import Plan


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
    if sum(name in present for name in ("ids", "everything", "claims")) > 1:
        problems.append("give experiment IDs, --all or --claims, not several of them")
    elif "claims" in present:
        problems += _claims_problems(present, plan)
        known = tuple(dict.fromkeys(id_ for claim in plan.claims for id_ in claim.experiments))
    elif "ids" not in present and "everything" not in present:
        problems.append(
            f"name the experiments ({describe_experiments(plan)}), for example `lmconsole run 1-4 9`, or use --all"
        )
    values: dict[str, Any] = {
        "ids": known,
        "keep_order": "ids" in present and "-" not in str(present["ids"]),
        "wait_for_active": "everything" in present or "claims" in present,
    }
    for name, value in present.items():
        try:
            values[name] = _parse(name, value, plan)
        except ValueError as error:
            problems += [_problem(name, value, problem) for problem in error.args]
    problems += _executor_problems(values)
    if problems:
        raise LmconsoleError(listed(problems))
    request = RunRequest(**{**values, **parsed})
    for folder in (request.exports, Path.cwd()):  # both are sent to other processes as JSON
        if folder is not None and not _is_utf8(folder):
            raise LmconsoleError(f"{folder}: {_NOT_UTF8}")
    Store(request.runs).names()
    return request


def _claims_problems(present: Mapping[str, object], plan: "Plan") -> list[str]:
    """Return what keeps the claims of a plan from being registered with these options."""
    problems = []
    if not plan.claims:
        problems.append(f"--claims: {plan.source} has no [[claim]] row")
    if "seeds" in present:
        problems.append("--seeds: not with --claims, which name their seeds")
    if "fresh" in present:
        problems.append("--fresh: not with --claims; a repeated run does not count, so give the claim other seeds")
    if "no_test" in present:
        problems.append("--no-test: not with --claims, which are about the test loss")
    return problems


def _executor_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what cannot be asked of the executor."""
    if values.get("executor") != "slurm":
        return ["--sbatch: only with --executor slurm"] if values.get("sbatch") else []
    problems = []
    if values.get("jobs", "auto") not in ("auto", 1):
        problems.append("--jobs: not with --executor slurm; at_once in [executor.slurm] limits the tasks")
    if str(values.get("device", "auto")) not in ("auto", "cpu", "cuda", "cuda:0"):
        problems.append("--device: with --executor slurm, expected auto, cpu or cuda; a task trains on one device")
    return problems


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
