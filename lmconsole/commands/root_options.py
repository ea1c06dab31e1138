"""Options in front of a command (``lmconsole --runs runs status``)."""

import os
from typing import Any

import typer

from lmconsole.errors import LmconsoleError


def hand_down(context: typer.Context) -> None:
    """Make the options in front of a command the defaults of that command.

    Raises LmconsoleError if it does not take one of them.
    """
    name = str(context.invoked_subcommand)
    inner = getattr(context.command.get_command(context, name), "commands", None)  # type: ignore[attr-defined]
    if inner is None:
        refuse_unused(context, context)
    given: dict[str, object] = {}
    for option in _on_command_line(context):
        given[str(option.name)] = context.params[str(option.name)]
        if option.envvar:
            # It would take precedence. "./~" remains a folder that is called so.
            os.environ[str(option.envvar)] = os.path.join(".", str(given[str(option.name)]))
    context.default_map = {name: given if inner is None else dict.fromkeys(inner, given)}


def _on_command_line(context: Any) -> list[Any]:
    """Return the options of this context's command that were given on the command line."""
    sources = {str(option.name): context.get_parameter_source(str(option.name)) for option in context.command.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return [option for option in context.command.params if option.name in given]


def refuse_unused(root: Any, context: Any) -> None:
    """Raise LmconsoleError if an option in front of all commands is not one of the command that ``context`` calls."""
    name = str(context.invoked_subcommand)
    command = context.command.get_command(context, name)
    full_name = name if context is root else f"{context.info_name} {name}"
    for option in _on_command_line(root):
        if not any(option.name == each.name for each in command.params):
            raise LmconsoleError(
                f"{option.opts[-1]} has no effect on `lmconsole {full_name}`",
                hint=f"Leave it out; `lmconsole {full_name} --help` lists the options of this command.",
            )
