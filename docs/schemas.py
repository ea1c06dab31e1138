"""Generate the JSON Schemas in lmconsole/schemas/ from the types that are read and written.

    python docs/schemas.py

Descriptions are the docstrings of the types and of their fields. `tests/test_schemas.py` compares the files with what
this script generates.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from lmconsole.claims.evaluate import EvaluatedClaims
from lmconsole.commands.compare import CompareResult
from lmconsole.commands.data_info import DataReport
from lmconsole.commands.doctor import Finding
from lmconsole.commands.dry_run import DryRun
from lmconsole.commands.export import ExportResult
from lmconsole.commands.fetch import FetchResult, PlannedDownload
from lmconsole.commands.import_runs import ImportResult
from lmconsole.commands.init import InitResult
from lmconsole.commands.list_experiments import ListedExperiment
from lmconsole.commands.note import RunNotes
from lmconsole.commands.schema import SchemaFile
from lmconsole.commands.skill import Skill
from lmconsole.commands.status import RunSummary
from lmconsole.commands.stop import StopResult
from lmconsole.engine.alerts import Alert
from lmconsole.engine.bench_cache import BenchResult
from lmconsole.engine.digest import Digest
from lmconsole.engine.run_options import OPTIONS, RunRequest
from lmconsole.plan.claims import KEYS as CLAIM_KEYS
from lmconsole.plan.claims import MAX_CLAIMS, Claim
from lmconsole.plan.executor import MAX_AT_ONCE, MAX_RESTARTS, MAX_WARNING_S, RESERVED, WARNING_S, SlurmOptions
from lmconsole.plan.experiment import APPLIES_TO, Experiment, Model, Settings
from lmconsole.plan.load import MAX_EXPERIMENTS, MAX_NAME, PRESET_NAME, builtin_file, load_plan
from lmconsole.plan.presets import AUTO, IDENTITY, SECTIONS, TYPES
from lmconsole.runs.agreement import Agreement
from lmconsole.runs.events import AnyEvent, Event
from lmconsole.runs.info import RunInfo
from lmconsole.tui.list_keys import KeyEntry
from lmconsole.tui.serve import ServedConsole

FOLDER = Path(__file__).resolve().parents[1] / "lmconsole" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
EDITOR_DIALECT = "http://json-schema.org/draft-07/schema#"
"""Version of JSON Schema that editors of TOML understand."""

Schema = dict[str, Any]

OUTPUTS: dict[str, Any] = {
    "list": list[ListedExperiment],
    "run": AnyEvent,
    "run-dry-run": DryRun,
    "run-dry-run-fetch": PlannedDownload,
    "run-on-event": Alert,
    "status": list[RunSummary],
    "status-digest": Digest | None,
    "stop": list[StopResult],
    "watch": AnyEvent,
    "note": list[RunNotes],
    "export": ExportResult,
    "claims": list[EvaluatedClaims],
    "reproduce": AnyEvent | Agreement,
    "compare": CompareResult,
    "import": ImportResult,
    "data-info": DataReport,
    "data-fetch": FetchResult,
    "doctor": list[Finding],
    "bench": BenchResult,
    "serve": ServedConsole,
    "init": InitResult,
    "schema": list[SchemaFile],
    "skill": Skill,
    "keys": list[KeyEntry],
}
"""Types of what the commands print with ``--json``, and give to the program of ``--on-event``; of streams, the type of
a line."""


def generate() -> dict[str, str]:
    """Return the content of every schema file by its name."""
    schemas = {"experiments": experiments(), "run": run(), "events": events(), "output": output()}
    return {f"{name}.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for name, schema in schemas.items()}


def run() -> Schema:
    """Return the schema of run.json."""
    (root,), definitions = components([RunInfo])
    return {"$schema": DIALECT, "title": "run.json of lmconsole", **root, "$defs": definitions}


def events() -> Schema:
    """Return the schema of a line of events.jsonl."""
    (root,), definitions = components([AnyEvent])
    return {"$schema": DIALECT, "title": "A line of events.jsonl of lmconsole", **root, "$defs": definitions}


def output() -> Schema:
    """Return the schemas of the JSON output of every command, by its name in ``$defs``."""
    found, definitions = components(OUTPUTS.values())
    for kind in Event.__subclasses__():
        event = definitions[kind.__name__]
        event["properties"] = {"run": {"type": "string", "description": "Id of the run."}, **event["properties"]}
        event["required"] = ["run", *event["required"]]
    definitions["DryRun"]["properties"]["request"] |= {"properties": request(), "additionalProperties": False}
    commands = dict(zip(OUTPUTS, found, strict=True))
    return {
        "$schema": DIALECT,
        "title": "What the commands of lmconsole print with --json",
        "description": "Use $defs/COMMAND. run and watch print a stream: one object on each line. run-on-event is what "
        "the program of --on-event reads.",
        "$defs": commands | definitions,
    }


def request() -> Schema:
    """Return the schemas of the parsed options of `lmconsole run`, by name."""
    hints = get_type_hints(RunRequest)
    own = documented(RunRequest)
    return {
        name: {**without_definitions(kind), "description": OPTIONS[name].help if name in OPTIONS else own[name]}
        for name, kind in hints.items()
    }


def without_definitions(kind: Any) -> Schema:
    """Return the schema of a type that contains no struct."""
    (found,), definitions = msgspec.json.schema_components([kind], schema_hook=other)
    assert not definitions
    return found


def other(kind: type) -> Schema:
    """Return the schema of a type that msgspec does not know: text for a path; any setting for an object."""
    return {"type": ["string", "number"]} if kind is object else {"type": "string"}


def components(kinds: Iterable[Any]) -> tuple[tuple[Schema, ...], dict[str, Schema]]:
    """Return the schemas of these types, and those of all structs in them by name, with descriptions of all fields."""
    kinds = list(kinds)
    roots, definitions = msgspec.json.schema_components(kinds, schema_hook=other)
    for definition in definitions.values():
        definition["description"] = tidy(definition["description"])
    for struct in structs(kinds):
        schema = definitions[struct.__name__]
        texts = documented(struct)
        for field in msgspec.structs.fields(struct):
            schema["properties"][field.encode_name]["description"] = texts[field.name]
        if struct.__struct_config__.tag is not None:
            tag = schema["properties"][struct.__struct_config__.tag_field]
            schema["properties"][struct.__struct_config__.tag_field] = {
                "const": tag["enum"][0],
                "description": "Kind of the event.",
            }
    return roots, definitions


def structs(kinds: Iterable[Any]) -> set[type[msgspec.Struct]]:
    """Return every struct that these types contain."""
    found: set[type[msgspec.Struct]] = set()

    def collect(kind: Any) -> None:
        if isinstance(kind, msgspec.inspect.StructType):
            if kind.cls not in found:
                found.add(kind.cls)
                for field in kind.fields:
                    collect(field.type)
            return
        for name in ("type", "item_type", "key_type", "value_type"):
            if hasattr(kind, name):
                collect(getattr(kind, name))
        for each in (*getattr(kind, "types", ()), *getattr(kind, "item_types", ())):
            collect(each)

    for kind in msgspec.inspect.multi_type_info(kinds):
        collect(kind)
    return found


def documented(cls: type) -> dict[str, str]:
    """Return the docstrings of the fields of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("lmconsole."):
            texts |= dict(_field_docstrings(base))
    return texts


def _field_docstrings(cls: type) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            yield statement.target.id, tidy(following.value.value)


def tidy(docstring: str) -> str:
    """Return a docstring as Markdown without line breaks inside paragraphs. JSON has null for None."""
    text = re.sub(r"(^|\. )None\b", r"\1Null", docstring.replace("``", "`"), flags=re.MULTILINE)
    text = text.replace("None", "null")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def claim() -> Schema:
    """Return the schema of a [[claim]] row, as ``plan/claims.py`` reads it."""
    texts = documented(Claim)
    seeds: Schema = {
        "anyOf": [
            {"type": "string", "pattern": "^[0-9., -]+$"},
            {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True},
        ]
    }
    side: Schema = {
        "anyOf": [
            {"type": "integer"},
            {"type": "array", "items": {"type": "integer"}, "minItems": 1, "uniqueItems": True},
        ]
    }
    kinds = {
        key: without_null(Claim.__annotations__[key]) for key in ("name", "endpoint", "delta", "targets", "paired")
    }
    kinds["contrasts"] = {"type": "array", "items": {"type": "array", "items": side, "minItems": 2, "maxItems": 2}}
    kinds["seeds"] = {"anyOf": [*seeds["anyOf"], {"type": "object", "additionalProperties": seeds}]}
    return {
        "type": "object",
        "properties": {key: {**kinds[key], "description": texts[key]} for key in CLAIM_KEYS},
        "required": ["contrasts", "seeds"],
        "additionalProperties": False,
    }


def experiments() -> Schema:
    """Return the schema of experiments.toml, as ``plan/load.py`` reads it, with the built-in values as defaults."""
    builtin = load_plan(builtin_file()).defaults.values
    texts = documented(Settings) | {"seed": "Seed of initialization, shuffling and dropout."}
    sections: dict[str, dict[str, Schema]] = {section: {} for section in ("", *SECTIONS)}
    definitions: dict[str, Schema] = {}
    for key in TYPES:
        if key in IDENTITY:
            continue
        places = [section for section in sections if key not in APPLIES_TO or section in APPLIES_TO[key]]
        defaults = {section: builtin.get(section, {}).get(key, builtin[""].get(key)) for section in places}
        definitions[key] = {**without_null(TYPES[key]), "description": texts[key], "default": defaults[places[0]]}
        for section, default in defaults.items():
            usual = default == defaults[places[0]]
            sections[section][key] = refer(key) if usual else definitions[key] | {"default": default}
    settings = {key: refer(key) for key in definitions}
    for section in SECTIONS:
        definitions[f"{section}-settings"] = {
            "type": "object",
            "description": f"Settings of experiments with this {what(section)} only.",
            "properties": sections[section],
            "additionalProperties": False,
        }
    definitions["settings"] = {
        "type": "object",
        "description": "Settings of all experiments, and in tables of their own those of one model or optimizer.",
        "properties": sections[""] | {section: refer(f"{section}-settings") for section in SECTIONS},
        "additionalProperties": False,
    }
    texts = documented(Experiment)
    identity = ("id", "model", "layers", "optimizer")
    row: dict[str, Schema] = {
        key: {**without_definitions(Experiment.__annotations__[key]), "description": texts[key]}
        for key in (*identity, "name")
    }
    row["name"] |= {"description": "Label for tables and figures.", "maxLength": MAX_NAME, "pattern": r"^(\S(.*\S)?)?$"}
    definitions["experiment"] = {
        "type": "object",
        "description": "An experiment. Settings in its row override those of presets and defaults.",
        "properties": row | settings,
        "required": list(identity),
        "additionalProperties": False,
        "dependencies": {
            key: {"properties": {what(owners[0]): {"enum": list(owners)}}} for key, owners in APPLIES_TO.items()
        },
    }
    return {
        "$schema": EDITOR_DIALECT,
        "title": "experiments.toml of lmconsole",
        "description": "Experiments and presets, merged over the built-in ones.",
        "type": "object",
        "properties": {
            "include_builtin": {
                "type": "boolean",
                "default": False,
                "description": "Add the rows of this file to the built-in experiments instead of replacing them.",
            },
            "defaults": refer("settings"),
            "presets": {
                "type": "object",
                "description": "Named sets of settings, which override the defaults: `lmconsole run 1 --preset NAME`.",
                "propertyNames": {"pattern": f"^{PRESET_NAME.pattern}$", "not": {"const": AUTO}},
                "additionalProperties": refer("settings"),
            },
            "experiment": {
                "type": "array",
                "description": "Experiments, one for each table [[experiment]].",
                "items": refer("experiment"),
                "maxItems": MAX_EXPERIMENTS,
            },
            "claim": {
                "type": "array",
                "description": "Claims that runs are to support, one for each table [[claim]].",
                "items": claim(),
                "maxItems": MAX_CLAIMS,
            },
            "executor": {
                "type": "object",
                "description": "Options for the executors of `lmconsole run --executor`.",
                "properties": {"slurm": executor()},
                "additionalProperties": False,
            },
        },
        "additionalProperties": False,
        "anyOf": [
            {"required": ["experiment"]},
            {"required": ["include_builtin"], "properties": {"include_builtin": {"const": True}}},
        ],
        "definitions": definitions,
    }


def executor() -> Schema:
    """Return the schema of the table [executor.slurm]."""
    option: Schema = {"type": ["string", "number", "boolean"]}
    names = {"pattern": "^[a-z][a-z0-9_-]{0,63}$", "not": {"enum": sorted({*RESERVED})}}
    last = {
        "type": "object",
        "description": "Options of sbatch for the last job, which exports: it needs a processor and no GPU.",
        "propertyNames": names,
        "additionalProperties": option,
    }
    text: Schema = {"type": "string"}
    own: Schema = {
        "setup": {
            "description": "Lines of shell that prepare each job, such as `module load cuda`; run as written.",
            "anyOf": [text, {"type": "array", "items": text}],
        },
        "at_once": {
            "type": "integer",
            "description": "Runs that train at once; by default as many as SLURM allows.",
            "minimum": 1,
            "maximum": MAX_AT_ONCE,
        },
        "restarts": {
            "type": "integer",
            "description": "Times in a row that a run is started again without getting on.",
            "default": SlurmOptions().restarts,
            "minimum": 0,
            "maximum": MAX_RESTARTS,
        },
        "warning_s": {
            "type": "integer",
            "description": "Time before the time limit, in seconds, at which a run saves a checkpoint, to be "
            f"started again. By default {WARNING_S}, or half of a shorter time limit.",
            "minimum": 1,
            "maximum": MAX_WARNING_S,
        },
        "last": last,
    }
    return {
        "type": "object",
        "description": 'Long options of sbatch, such as `partition = "gpu"`, and a few of lmconsole.',
        "properties": own,
        "propertyNames": names,
        "additionalProperties": option,
    }


def refer(name: str) -> Schema:
    """Return a reference to a definition."""
    return {"$ref": f"#/definitions/{name}"}


def what(section: str) -> str:
    """Return the key that has this value: ``model`` or ``optimizer``."""
    return "model" if section in get_args(Model) else "optimizer"


def without_null(kind: Any) -> Schema:
    """Return the schema of a type. TOML has no null."""
    schema = without_definitions(kind)
    options = [each for each in schema.pop("anyOf", []) if each != {"type": "null"}]
    return schema | (options[0] if options else {})


if __name__ == "__main__":
    for name, content in generate().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
        print(FOLDER / name)
