"""Validation of JSON by the schemas of the package."""

import functools
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


class Validator:
    """A schema, prepared to validate many documents."""

    def __init__(self, of: Any) -> None:
        import jsonschema

        kind = jsonschema.validators.validator_for(of)
        kind.check_schema(of)
        self._validator = kind(of)

    def problems(self, document: Any) -> list[str]:
        """Return what is wrong with a document, each with its place."""
        return [f"{error.json_path}: {error.message}" for error in self._validator.iter_errors(document)]


@functools.cache
def validator(name: str) -> Validator:
    """Return the validator of a schema file."""
    return Validator(schema(name))


@functools.cache
def strict_validator(name: str, definition: str | None = None) -> Validator:
    """Return the validator of a schema file, or of one of its definitions, that allows no other properties."""
    of = strict(schema(name))
    return Validator(of if definition is None else {"$ref": f"#/$defs/{definition}", **of})


def check_output(document: Any, command: str) -> None:
    """Fail if the JSON output of a command is not as its schema describes it, or has more fields."""
    assert strict_validator("output", command).problems(document) == []
