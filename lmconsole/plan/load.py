"""Reader of experiments.toml. It reports all problems at once, each with file, place, key and expected value."""

import errno
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec

from lmconsole.errors import PlanError, did_you_mean, escape_control_characters
from lmconsole.files import read_file
from lmconsole.plan.claims import read_claims
from lmconsole.plan.executor import read_executor
from lmconsole.plan.experiment import APPLIES_TO, Experiment
from lmconsole.plan.presets import AUTO, IDENTITY, SECTIONS, TYPES, Layer, Plan, unknown

MAX_BYTES = 1024 * 1024
MAX_EXPERIMENTS = 10_000
MAX_DOTS = 64
"""Dots in a line. ``tomllib`` takes memory with the square of the number of parts of a dotted key."""
PRESET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
TOP_KEYS = ("defaults", "presets", "experiment", "claim", "executor", "include_builtin")
MAX_NAME = 80
LONGEST_PROBLEM = 400
"""Characters of the message about one problem."""

Report = Callable[[str], None]


def builtin_file() -> Path:
    """Return the path of the built-in experiments.toml: in the installed package, or next to it in a checkout."""
    installed = Path(__file__).parents[1] / "experiments.toml"
    return installed if installed.exists() else installed.parents[1] / installed.name


def load_plan(path: Path | None = None) -> Plan:
    """Return the plan in ``path``, by default ``./experiments.toml`` if it exists, merged over the built-in one.

    Raises PlanError with every problem found.
    """
    builtin = _read(builtin_file(), "built-in experiments.toml")
    path = find_plan(path)
    return builtin if path is None else _read(path, str(path), builtin)


def find_plan(path: Path | None = None) -> Path | None:
    """Return the file that ``load_plan`` merges over the built-in one; None if there is none."""
    if path is None:
        path = Path("experiments.toml")
        if not os.path.lexists(path) or (path.exists() and path.samefile(builtin_file())):
            return None
    return path


def _read(path: Path, shown: str, builtin: Plan | None = None) -> Plan:
    data = _decode(path, shown)
    problems: list[str] = []

    def report(problem: str) -> None:
        problems.append(f"{shown}: {problem if len(problem) <= LONGEST_PROBLEM else f'{problem[:LONGEST_PROBLEM]} …'}")

    for key in data:
        if key not in TOP_KEYS:
            report(_unknown_key(key, list(TOP_KEYS)))
    defaults = _layer(data.get("defaults", {}), "[defaults]", shown, report)
    presets = _presets(data.get("presets", {}), shown, report)
    experiments = _experiments(data, shown, report)
    if builtin is not None:
        include = data.get("include_builtin", False)
        if not isinstance(include, bool):
            report(f"include_builtin: expected true or false, got {_show(include)}")
        elif include:
            experiments = [*builtin.experiments, *experiments]
        defaults = builtin.defaults.merged(defaults)
        presets = builtin.presets | {k: builtin.presets.get(k, Layer()).merged(v) for k, v in presets.items()}
    first: dict[int, str] = {}
    for experiment in experiments:
        if experiment.id in first:
            report(f"experiment {experiment.id}: id: used twice ({first[experiment.id]} and {experiment.source})")
        first.setdefault(experiment.id, experiment.source)
    if not experiments and not problems:
        report(
            "no experiments: set include_builtin = true to keep the built-in twelve, or add [[experiment]] rows with "
            "id, model, layers and optimizer"
        )
    claims = read_claims(data.get("claim", []), {each.id: each for each in experiments}, report)
    plan = Plan(
        experiments=tuple(experiments),
        defaults=defaults,
        presets=presets,
        claims=claims,
        slurm=read_executor(data.get("executor", {}), report),
        source=shown,
    )
    if not problems:
        problems.extend(_cross_check(plan))
    if problems:
        raise PlanError(problems)
    return plan


def _decode(path: Path, shown: str) -> dict[str, Any]:
    try:
        raw = read_file(path, MAX_BYTES, follow=True)
        for number, line in enumerate(raw.splitlines(), 1):
            if line.count(b".") > MAX_DOTS and not line.lstrip().startswith(b"#"):
                raise PlanError([f"{shown}: line {number}: more than {MAX_DOTS} dots"])
        return tomllib.loads(raw.decode("utf-8"))
    except FileNotFoundError:
        raise PlanError([f"{shown}: no such file; check the path"]) from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise PlanError([f"{shown}: {error.strerror}; is it a list of experiments?"]) from None
        raise PlanError([f"{shown}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise PlanError([f"{shown}: not UTF-8 at byte {error.start}; save the file as UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError([f"{shown}: not valid TOML: {error}"]) from None
    except ValueError as error:  # an integer with thousands of digits
        raise PlanError([f"{shown}: not valid TOML: {error}"]) from None
    except RecursionError:
        raise PlanError([f"{shown}: not valid TOML: nested too deeply"]) from None


def _presets(data: object, shown: str, report: Report) -> dict[str, Layer]:
    if not isinstance(data, dict):
        report(f"presets: expected tables [presets.NAME], got {_show(data)}")
        return {}
    layers = {}
    for name, values in data.items():
        if name == AUTO:
            report("preset 'auto': the name is reserved, choose another")
        elif not PRESET_NAME.fullmatch(name):
            report(f"preset {name!r}: expected a name of letters, digits, '-' and '_', at most 32 of them")
        else:
            layers[name] = _layer(values, f"[presets.{name}]", shown, report)
    return layers


def _layer(data: object, table: str, shown: str, report: Report) -> Layer:
    """Read a table of settings with its sub-tables for models and optimizers."""
    if not isinstance(data, dict):
        report(f"{table}: expected a table of settings, got {_show(data)}")
        return Layer()
    general = {key: value for key, value in data.items() if key not in SECTIONS}
    values = {"": _values(general, table, None, report)}
    for section in SECTIONS:
        if section in data:
            place = f"{table[:-1]}.{section}]"
            if isinstance(data[section], dict):
                values[section] = _values(data[section], place, (section,), report)
            else:
                report(f"{place}: expected a table of settings, got {_show(data[section])}")
    origins = {
        section: dict.fromkeys(keys, f"{shown} {table if not section else f'{table[:-1]}.{section}]'}")
        for section, keys in values.items()
    }
    return Layer(values=values, origins=origins)


def _values(data: dict[str, Any], place: str, owners: tuple[str, ...] | None, report: Report) -> dict[str, object]:
    """Return the valid settings in ``data`` and report the others.

    ``owners`` are the model or optimizer of the table, both of them for a row, or None for a general table.
    """
    known = [key for key in TYPES if key not in IDENTITY]
    values: dict[str, object] = {}
    for key, value in data.items():
        applies_to = APPLIES_TO.get(key)
        if key in IDENTITY:
            report(f"{place}: {key}: belongs in an [[experiment]] row")
        elif key not in known:
            report(f"{place}: {_unknown_key(key, [*known, *IDENTITY])}")
        elif applies_to and owners is None:
            report(f"{place}: {key}: only for {' and '.join(applies_to)}; put it in {place[:-1]}.{applies_to[0]}]")
        elif applies_to and not set(applies_to) & set(owners or ()):
            report(f"{place}: {key}: only for {' and '.join(applies_to)}, not for {' with '.join(owners or ())}")
        else:
            _convert(key, value, place, values, report)
    return values


def _convert(key: str, value: object, place: str, values: dict[str, object], report: Report) -> None:
    kind = TYPES[key]
    try:
        if isinstance(value, float) and value - value != 0.0:  # NaN and infinity pass open bounds
            raise msgspec.ValidationError("Expected a finite number")
        values[key] = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        report(f"{place}: {key}: {_problem(key, kind, value, error)}")


def _problem(key: str, kind: object, value: object, error: msgspec.ValidationError) -> str:
    """Return a message with the expected and the given value of ``key``, spelled as in the file."""
    choices = [choice for choice in get_args(kind) if isinstance(choice, str)]
    if choices and isinstance(value, str):
        return unknown(key, value, choices)
    if choices:
        return f"expected one of {', '.join(choices)}, got {_show(value)}"
    expected = re.sub(r"(, got .*)?( - at `.*`)?$", "", str(error)).replace("`", "").replace(" | null", "")
    expected = expected.replace("int", "a whole number").replace("float", "a number").replace("str", "text")
    return f"{expected[:1].lower()}{expected[1:]}, got {_show(value)}"


def _experiments(data: dict[str, Any], shown: str, report: Report) -> list[Experiment]:
    rows = data.get("experiment", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        report(f"experiment: expected rows [[experiment]], got {_show(rows)}")
        return []
    if len(rows) > MAX_EXPERIMENTS:
        report(f"experiment: {len(rows):,} rows; at most {MAX_EXPERIMENTS:,} are read")
        return []
    experiments = []
    for number, row in enumerate(rows, 1):
        experiment = _experiment(row, number, shown, report)
        if experiment is not None:
            experiments.append(experiment)
    return experiments


def _experiment(row: dict[str, Any], number: int, shown: str, report: Report) -> Experiment | None:
    identity: dict[str, object] = {}
    own = row.get("id")
    named = isinstance(own, int) and not isinstance(own, bool)
    place = f"experiment {_show(own)}" if named else f"experiment row {number}"
    problems: list[str] = []
    for key in ("id", "model", "layers", "optimizer", "name"):
        kind = Experiment.__annotations__[key]
        if key not in row:
            if key != "name":
                problems.append(f"{place}: {key}: missing")
            continue
        try:
            identity[key] = msgspec.convert(row[key], kind)
        except msgspec.ValidationError as error:
            problems.append(f"{place}: {key}: {_problem(key, kind, row[key], error)}")
    name = identity.get("name", "")
    if isinstance(name, str) and _invalid_name(name):
        expected = f"one line of at most {MAX_NAME} printable characters"
        problems.append(f"{place}: name: expected {expected}, got {_show(name)}")
    for problem in problems:
        report(problem)
    owners = tuple(str(identity[key]) for key in ("model", "optimizer") if key in identity)
    rest = {key: value for key, value in row.items() if key not in ("id", "model", "layers", "optimizer", "name")}
    if len(owners) < 2:  # it is unknown which keys apply, so check only those that always do
        rest = {key: value for key, value in rest.items() if key not in APPLIES_TO}
    overrides = _values(rest, place, owners, report)
    if problems:
        return None
    return msgspec.convert({**identity, "overrides": overrides, "source": f"{shown} row {number}"}, Experiment)


def _invalid_name(name: str) -> bool:
    unprintable = escape_control_characters(name) != name or "\n" in name
    return unprintable or len(name) > MAX_NAME or name != name.strip()


def _unknown_key(key: str, known: list[str]) -> str:
    suggestion = did_you_mean(key, known) if len(key) <= MAX_NAME else ""
    return f"{key[:MAX_NAME]}: unknown key" + (suggestion or f"; known: {', '.join(known)}")


def _cross_check(plan: Plan) -> list[str]:
    """Return the contradictions between keys of every experiment under every preset."""
    problems: list[str] = []
    for preset in plan.presets:
        for experiment in plan.experiments:
            try:
                plan.resolve(experiment, preset)
            except PlanError as error:
                problems.extend(error.problems)
    return problems


def _show(value: object) -> str:
    try:
        text = repr(value) if not isinstance(value, bool) else str(value).lower()
    except (ValueError, RecursionError):  # thousands of digits, which TOML allows in hexadecimal
        return "a value that is too long to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
