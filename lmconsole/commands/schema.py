"""`lmconsole schema`: the JSON Schemas of the files and of the JSON output, which are part of the package.

`docs/schemas.py` generates them from the types.
"""

from pathlib import Path
from typing import Literal

import msgspec
from rich.text import Text

from lmconsole.commands.output import console, plain_table, print_data, print_json

SchemaName = Literal["experiments", "run", "events", "output"]

DESCRIPTIONS: dict[SchemaName, str] = {
    "experiments": "experiments.toml: experiments and presets",
    "run": "run.json: the configuration of a run",
    "events": "events.jsonl: one line of the log of a run",
    "output": "what each command prints with --json, in $defs",
}


class SchemaFile(msgspec.Struct, frozen=True, kw_only=True):
    """A schema, as `schema --json` prints it."""

    name: SchemaName
    """Name with which `lmconsole schema NAME` prints it."""
    description: str
    """Subject of the schema."""
    path: str
    """Absolute path of the file in the installed package."""


def schema_path(name: SchemaName) -> Path:
    """Return the path of a schema in the installed package."""
    return Path(__file__).parents[1] / "schemas" / f"{name}.json"


def show_schema(name: SchemaName | None, *, json: bool) -> None:
    """Print a schema, or without a name the list of all of them."""
    if name is not None:
        print_data(schema_path(name).read_text(encoding="utf-8").removesuffix("\n"))
        return
    files = [
        SchemaFile(name=each, description=text, path=str(schema_path(each))) for each, text in DESCRIPTIONS.items()
    ]
    if json:
        print_json(files)
        return
    table = plain_table(Name="left", Describes="left")
    table.add_column("File", overflow="fold")
    for file in files:
        table.add_row(Text(file.name, style="bold"), file.description, Text(file.path, style="dim"))
    console().print(table)
