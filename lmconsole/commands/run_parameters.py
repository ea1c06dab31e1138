"""Command-line parameters made from the table of options in `engine/run_options.py`."""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.models import ArgumentInfo, OptionInfo

from lmconsole.engine.run_options import OPTIONS, RunRequest, flag
from lmconsole.files import expand_home

COMPLETE = "_LMCONSOLE_COMPLETE"
"""Set by a shell that asks for completions: ``eval "$(_LMCONSOLE_COMPLETE=source_bash lmconsole)"`` turns them on."""


def expand_path(value: Path | str) -> Path:
    """Return the path that an option or argument names; the parser of all of them. Expands ``~``."""
    if isinstance(value, Path):
        return value  # a default
    try:
        return expand_home(value)
    except OSError as error:
        raise typer.BadParameter(str(error.strerror)) from None


def expand_if_path(value: str) -> str:
    """Return a value that may be a path or a word, with ``~`` expanded."""
    return str(expand_path(value)) if value.startswith("~") else value


def completion(of: str | Sequence[str]) -> dict[str, Any]:
    """Return the keyword with which a parameter completes ``experiments``, ``presets``, ``runs``, or the given values.

    Only while a shell asks for completions, since typer needs a while to prepare them.
    """
    if COMPLETE not in os.environ:
        return {}
    from lmconsole.commands.complete import COMPLETIONS, complete_values

    return {"autocompletion": COMPLETIONS[of] if isinstance(of, str) else complete_values(of)}


def parameter(name: str) -> ArgumentInfo | OptionInfo:
    """Return the help, the spelling and the completion of one option, for a typer annotation."""
    option = OPTIONS[name]
    texts: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "envvar": option.envvar}
    if Path in (kind := _kind(name), *get_args(kind)):
        texts["parser"] = expand_path
    if option.positional:
        argument: ArgumentInfo = typer.Argument(**texts, **completion("experiments"))
        return argument
    if name == "preset":
        texts |= completion("presets")
    elif option.completions:
        texts |= completion(option.completions)
    shown: OptionInfo = typer.Option(flag(name), show_default=option.shown_default or True, **texts)
    return shown


def _kind(name: str) -> Any:
    """Return the type of a field of RunRequest."""
    return get_args(RunRequest.__annotations__[name])[0]


def takes_run_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` every option of `lmconsole run` as a keyword: paths, flags, and text to be parsed."""
    parameters = []
    for name, option in OPTIONS.items():
        kind, default = _kind(name), RunRequest._field_defaults[name]
        if option.positional:
            kind, default = list[str] | None, None
        elif kind not in (bool, Path, Path | None):
            kind, default = str | None, default if isinstance(default, str) else None
        annotation = Annotated[kind, parameter(name)]  # type: ignore[valid-type]  # only typer reads it
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command
