"""Entries of the command palette: every key binding that has a tooltip."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial

from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode

_KEY_NAMES = {
    "slash": "/",
    "question_mark": "?",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "right": "→",
    "left": "←",
}


def key_name(keys: str) -> str:
    """Return the names printed on the keyboard for ``keys``, which are separated by commas."""
    return ", ".join(_KEY_NAMES.get(key, key) for key in keys.split(","))


def documented(bindings: Iterable[BindingType]) -> list[Binding]:
    """Return the bindings that have a tooltip, which is written as ``Group: text``."""
    return [binding for binding in bindings if isinstance(binding, Binding) and binding.tooltip]


def binding_commands(
    bindings: Iterable[BindingType], run_action: Callable[..., Awaitable[bool]], namespace: DOMNode
) -> Iterator[SystemCommand]:
    """Yield a command for each documented binding, which runs its action on ``namespace``."""
    for binding in documented(bindings):
        run = partial(run_action, binding.action, default_namespace=namespace)
        yield SystemCommand(binding.description, f"{binding.tooltip} ({key_name(binding.key)})", run)
