"""Keys of the console: their names, the user's own keys in ``keys.toml``, and the entries of the command palette.

Every binding has an id, which is how a key map names it. The map holds only keys that differ from the built-in ones.
"""

import tomllib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from textual.app import SystemCommand
from textual.binding import ActiveBinding, Binding, BindingType
from textual.dom import DOMNode
from textual.keys import REPLACED_KEYS, Keys, key_to_character
from textual.screen import Screen, ScreenResultType

from lmconsole.errors import LONGEST_NAME, LmconsoleError, did_you_mean, listed
from lmconsole.files import read_file, user_folder

MAX_BYTES = 100_000
"""Size of the largest file of keys that is read."""
MODIFIERS = ("ctrl", "alt", "shift", "super", "hyper", "meta")
ALIASES = {"esc": "escape", "return": "enter", "del": "delete", "pgup": "pageup", "pgdn": "pagedown"}
SENT_AS = {"ctrl+i": "tab", "ctrl+m": "enter", "ctrl+h": "backspace", "ctrl+left_square_bracket": "escape"}
"""Keys that most terminals send as other ones, so that they would have no effect."""
_KEY_NAMES = {"right": "→", "left": "←", "up": "↑", "down": "↓"}
_BASE_KEYS = frozenset(key.value.rpartition("+")[2] for key in Keys)

KeyMap = Mapping[str, str]
"""Keys by the id of their binding, separated by commas, in the names that Textual uses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Classes whose bindings are in force at the same time."""

    name: str
    owners: tuple[type[DOMNode], ...]
    fields: tuple[type[DOMNode], ...] = ()
    """Textual's widgets that have the focus there, and take their own keys first."""


def documented(bindings: Iterable[BindingType]) -> list[Binding]:
    """Return the bindings that have a tooltip, which is written as ``Group: text``."""
    return [binding for binding in bindings if isinstance(binding, Binding) and binding.tooltip]


def own_bindings(owner: type[DOMNode]) -> list[Binding]:
    """Return the bindings with an id that a class defines or inherits."""
    found = [each for parent in owner.__mro__ for each in parent.__dict__.get("BINDINGS", ())]
    return [binding for binding in found if isinstance(binding, Binding) and binding.id]


def keys_in_force(binding: Binding, keymap: KeyMap) -> str:
    """Return the keys of a binding, separated by commas."""
    return keymap.get(binding.id or "", binding.key)


def first_key(owner: type[DOMNode], name: str, keymap: KeyMap) -> str:
    """Return the name of the first key of the binding ``name`` of a class."""
    binding = next(each for each in own_bindings(owner) if each.id == name)
    return _one_key_name(keys_in_force(binding, keymap).split(",")[0])


def key_name(keys: str) -> str:
    """Return the names printed on the keyboard for ``keys``, which are separated by commas."""
    return ", ".join(map(_one_key_name, keys.split(",")))


def _one_key_name(key: str) -> str:
    *modifiers, base = key.split("+")
    character = None if base == "space" or base in _KEY_NAMES else _character(base)
    return "+".join([*modifiers, character or _KEY_NAMES.get(base, base)])


def _character(key: str) -> str | None:
    """Return the character that a key types; None for other keys."""
    character = key_to_character(REPLACED_KEYS.get(key, key))
    return character if character and character.isprintable() else None


class FooterScreen(Screen[ScreenResultType]):
    """A screen whose footer has the keys in the order of their definition; Textual moves those of a map to the end."""

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """The bindings in force, by key."""
        active = super().active_bindings
        nodes: dict[DOMNode, dict[str, int]] = {}
        for each in active.values():
            if each.node not in nodes:
                nodes[each.node] = {str(binding.id): at for at, binding in enumerate(own_bindings(type(each.node)), 1)}
        first = {node: at for at, node in enumerate(nodes)}

        def place(item: tuple[str, ActiveBinding]) -> tuple[int, int]:
            node, binding = item[1].node, item[1].binding
            return first[node], nodes[node].get(str(binding.id), 0)

        return dict(sorted(active.items(), key=place))


def binding_commands(
    bindings: Iterable[BindingType], keymap: KeyMap, run_action: Callable[..., Awaitable[bool]], namespace: DOMNode
) -> Iterator[SystemCommand]:
    """Yield a command for each documented binding, which runs its action on ``namespace``."""
    for binding in documented(bindings):
        run = partial(run_action, binding.action, default_namespace=namespace)
        keys = key_name(keys_in_force(binding, keymap))
        yield SystemCommand(binding.description, f"{binding.tooltip} ({keys})", run)


# ---- keys of one's own


def keys_file() -> Path | None:
    """Return the file of the user's own keys, which need not exist; None for a user without a home folder."""
    folder = user_folder("config")
    return None if folder is None else folder / "keys.toml"


def load_keymap(contexts: Callable[[], Sequence[Context]]) -> dict[str, str]:
    """Return the user's own keys; none if there is no file.

    Raises:
        LmconsoleError: the file cannot be read or used. The message lists all problems.
    """
    file = keys_file()
    if file is None:
        return {}
    try:
        data = read_file(file, MAX_BYTES, follow=True)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _not_used(file, [f"it cannot be read: {error.strerror}"]) from None
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise _not_used(file, [f"it is not TOML: {error}"]) from None
    keymap, problems = parse_keymap(table, contexts())
    if problems:
        raise _not_used(file, problems)
    return keymap


def _not_used(file: Path, problems: Sequence[str]) -> LmconsoleError:
    hint = "The default keys are in force. `lmconsole keys` prints a file with all ids."
    return LmconsoleError(f"{file} is not used: {listed(problems)}", hint=hint)


def parse_keymap(table: Mapping[str, Any], contexts: Sequence[Context]) -> tuple[dict[str, str], list[str]]:
    """Return the keys in ``table`` that differ from the built-in ones, and everything that is wrong with them."""
    bindings = {
        str(binding.id): binding for context in contexts for owner in context.owners for binding in own_bindings(owner)
    }
    keymap: dict[str, str] = {}
    problems = []
    for name, value in _flat(table):
        texts = [value] if isinstance(value, str) else value
        if name not in bindings:
            problems.append(f"no id is called {name[:LONGEST_NAME]!r}{did_you_mean(name, bindings)}")
        elif not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            problems.append(f'{name}: expected a key such as "x", or a list of keys')
        else:
            keys = [key for text in texts for key in _split(text)]
            known = [_normalized(key) for key in keys]
            problems += [
                f"{name}: no key is called {key[:40]!r}" for key, found in zip(keys, known, strict=True) if not found
            ]
            problems += [
                f"{name}: most terminals send {key_name(key)} as {SENT_AS[key]}" for key in known if key in SENT_AS
            ]
            joined = ",".join(dict.fromkeys(key for key in known if key))
            if joined != bindings[name].key:
                keymap[name] = joined
    if not problems:
        problems = list(dict.fromkeys(clash for context in contexts for clash in _clashes(context, keymap)))
    return keymap, problems


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested tables, with their names joined by dots."""
    for name, value in table.items():
        if isinstance(value, dict) and not prefix:
            yield from _flat(value, f"{name}.")
        else:
            yield prefix + name, value


def _split(text: str) -> list[str]:
    """Return the keys in ``text``, which are separated by commas; a comma alone is itself a key."""
    return [text] if text.strip() in ("", ",") else [part.strip() for part in text.split(",")]


def _normalized(key: str) -> str | None:
    """Return Textual's name of a key, or its two names, separated by a comma; None if there is no such key."""
    key = key.strip() or key
    *modifiers, base = [key] if len(key) == 1 else key.replace("++", "+plus").split("+")
    held = {each.strip().lower() for each in modifiers}
    if not held <= set(MODIFIERS):
        return None
    base = base.strip() or base
    if len(base) > 1:
        base = ALIASES.get(base.lower(), base.lower())
    base = {" ": "space", ",": "comma"}.get(base, base)
    if len(base) == 1:
        if not base.isprintable() or (held == {"shift"} and not base.isalpha()):
            return None
        if held == {"shift"}:
            base, held = base.upper(), set()
        elif held and base != base.lower():
            base, held = base.lower(), held if "ctrl" in held else held | {"shift"}  # as terminals send them
        (binding,) = Binding.make_bindings([Binding(base, "none")])
        base = binding.key
    elif base not in _BASE_KEYS and _character(base) is None:
        return None
    if held == {"ctrl"} and base in ("space", "at"):
        return "ctrl+space,ctrl+@"  # with and without the keyboard protocol of kitty
    return "+".join([*sorted(held), base])


def _clashes(context: Context, keymap: KeyMap) -> Iterator[str]:
    """Yield what is wrong with the keys that the map changes, where those of ``context`` are in force."""
    users: dict[str, list[str]] = {}
    changed: dict[str, set[str]] = {}
    for owner in context.owners:
        for binding in own_bindings(owner):
            name = str(binding.id)
            for key in keys_in_force(binding, keymap).split(","):
                users.setdefault(key, []).append(name)
                if name in keymap:
                    changed.setdefault(key, set()).add(name)
                    if context.fields and binding.priority and _character(key):
                        yield f"{name}: {key_name(key)} could no longer be typed into a field"
    taken = {
        key
        for field in context.fields
        for parent in field.__mro__
        for binding in parent.__dict__.get("BINDINGS", ())
        for key in binding.key.split(",")
    }
    for key, names in changed.items():
        several = sorted(set(users[key]))
        if len(several) > 1:
            yield f"{key_name(key)} is the key of both {' and '.join(several)}"
        elif key in taken:
            yield f"{', '.join(sorted(names))}: {key_name(key)} is needed in {context.name}"
