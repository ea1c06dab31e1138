"""`lmconsole init`: write an experiments.toml with comments, and its schema for editors next to it."""

import contextlib
import json
import os
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lmconsole.commands.output import print_data, print_json, print_message
from lmconsole.commands.schema import schema_path
from lmconsole.errors import LmconsoleError
from lmconsole.files import atomic_write, read_file
from lmconsole.plan.load import builtin_file, load_plan

SCHEMA_FILE = "experiments.schema.json"
WIDTH = 118
"""Columns of a comment."""

EXAMPLE = """\
#:schema ./{schema}
#
# Experiments and presets, read by every lmconsole command in this folder. `lmconsole list` shows them.
# Editors with a TOML language server (Even Better TOML, Taplo, Tombi) complete and check this file.

# true adds the rows below to the built-in experiments 1 to 12; false, or without this line, they replace them.
include_builtin = true

# A preset: settings for all experiments. This one takes seconds on a CPU and needs no data:
#   lmconsole run 13 --preset quick --headless
[presets.quick]
corpus = "demo"
embeddings = "learned"
vocabulary = 512
channels = 48
window_tokens = 64
batch_size = 64
epochs = 2

# Tables inside a preset are for one model or optimizer only.
[presets.quick.lstm]
hidden = 48

[presets.quick.gpt1]
heads = 3
mlp_channels = 192

# An experiment. Settings in its row override those of the presets.
[[experiment]]
id = 13
model = "lstm"
layers = 3
optimizer = "adamw"
learning_rate = 3e-3
gradient_clip_norm = 1.0

# All settings with their built-in values, which presets and rows override. Remove the first # of a table and of a line
# to change a setting of every experiment; each may be in a preset or, without its table, in a row as well.
"""


class InitResult(msgspec.Struct, frozen=True, kw_only=True):
    """Files that were written, as `init --json` prints them."""

    file: str
    """Absolute path of the experiments."""
    schema: str
    """Absolute path of their schema."""


def init(file: Path, *, json: bool) -> None:
    """Write ``file`` and its schema. Existing files are never overwritten.

    Raises:
        LmconsoleError: ``file`` exists or cannot be written; nothing has been written then.
    """
    file = file.absolute()
    if os.path.lexists(file):
        raise _exists(file)
    schema = file.with_name(SCHEMA_FILE)
    content = schema_path("experiments").read_bytes()
    made = False
    try:
        with contextlib.suppress(FileExistsError):
            _create(schema, content)
            made = True
        _create(file, example().encode())
    except OSError as error:
        if made:
            schema.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise _exists(file) from None
        raise LmconsoleError(
            f"{file}: cannot be written: {error.strerror}",
            hint="Name a file in a folder that exists and that you can write: lmconsole init FILE",
        ) from None
    if not made and not _has(schema, content):
        print_message(f"{schema}: kept, although it differs; `lmconsole schema experiments` prints the current schema")
    if json:
        print_json(InitResult(file=str(file), schema=str(schema)))
    else:
        print_data(f"{file}\n{schema}")
        where = "" if file == Path.cwd() / "experiments.toml" else f" --experiments {shlex.quote(str(file))}"
        print_message(f"See what the example means: lmconsole run 13 --preset quick{where} --dry-run")


def _exists(file: Path) -> LmconsoleError:
    return LmconsoleError(
        f"{file}: already exists, and is never overwritten", hint="Name another file: lmconsole init FILE"
    )


def _create(path: Path, content: bytes) -> None:
    with atomic_write(path, replace=False) as out:
        out.write(content)


def _has(path: Path, content: bytes) -> bool:
    with contextlib.suppress(OSError):
        return read_file(path, len(content), follow=True) == content
    return False


def example() -> str:
    """Return the content of a new experiments.toml. The comments on settings come from the schema."""
    return EXAMPLE.format(schema=SCHEMA_FILE) + "".join(_tables())


def _tables() -> Iterator[str]:
    """Yield every table of the built-in defaults as comments."""
    described: dict[str, Any] = json.loads(schema_path("experiments").read_bytes())["definitions"]
    seen: set[str] = set()
    for section, values in load_plan(builtin_file()).defaults.values.items():
        yield f"\n#[defaults{section and f'.{section}'}]\n"
        for key, value in values.items():
            if key not in seen:
                yield from (f"# {line}\n" for line in textwrap.wrap(described[key]["description"], WIDTH - 2))
            seen.add(key)
            yield f"#{key} = {json.dumps(value)}\n"
