"""Validation of JSON by the schemas of the package."""

import copy
import json
from pathlib import Path
from typing import Any

import lmconsole

SCHEMAS = Path(lmconsole.__file__).parent / "schemas"


def schema(name: str) -> Any:
    """Return a schema file."""
    return json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))


def strict(node: Any) -> Any:
    """Return a schema that allows no properties but those it describes."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


def problems(document: Any, of: Any) -> list[str]:
    """Return what is wrong with a document, each with its place."""
    import jsonschema

    validator = jsonschema.validators.validator_for(of)
    validator.check_schema(of)
    return [f"{error.json_path}: {error.message}" for error in validator(of).iter_errors(document)]


def check_output(document: Any, command: str) -> None:
    """Fail if the JSON output of a command is not as its schema describes it, or has more fields."""
    of = strict(schema("output"))
    assert problems(copy.deepcopy(document), {"$ref": f"#/$defs/{command}", **of}) == []
