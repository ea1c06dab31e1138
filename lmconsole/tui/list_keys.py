"""`lmconsole keys`: the keys in force, as a file that can be changed and saved, or as JSON."""

from collections.abc import Iterable

import msgspec
from textual.binding import Binding

from lmconsole.errors import LmconsoleError
from lmconsole.tui.app import ConsoleApp
from lmconsole.tui.key_contexts import key_contexts
from lmconsole.tui.keys import KeyMap, key_name, keys_in_force, load_keymap, own_bindings

ABOUT = """\
# Keys of the console of lmconsole. Save this as keys.toml in the configuration folder, ~/.config/lmconsole on Linux,
# and change what you like. An id that is missing keeps its keys.
# A key is a character or a name: "f5", "pageup", "ctrl+x", "alt+left". Several keys are a list."""
MOST_KEY_WIDTH = 40


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A key of the console, as `keys --json` prints it."""

    id: str
    """Id in keys.toml."""
    keys: tuple[str, ...]
    """Keys in force."""
    default: tuple[str, ...]
    """Keys that are built in."""
    action: str
    """Message for people: what the key does."""


def key_entries() -> tuple[list[KeyEntry], LmconsoleError | None]:
    """Return all bindings with the keys in force, and why the user's own keys are not, if they are not."""
    contexts, problem, keymap = key_contexts(ConsoleApp), None, dict[str, str]()
    try:
        keymap = load_keymap(lambda: contexts)
    except LmconsoleError as error:
        problem = error
    bindings = {str(b.id): b for context in contexts for owner in context.owners for b in own_bindings(owner)}
    return [_entry(binding, keymap) for binding in bindings.values()], problem


def _entry(binding: Binding, keymap: KeyMap) -> KeyEntry:
    keys, default = [tuple(_names(keys)) for keys in (keys_in_force(binding, keymap), binding.key)]
    return KeyEntry(id=str(binding.id), keys=keys, default=default, action=binding.tooltip or binding.description)


def _names(keys: str) -> Iterable[str]:
    """Yield the names of keys as a person writes them in the file."""
    for key in keys.split(","):
        yield key if key.rpartition("+")[2] in ("left", "right", "up", "down") else key_name(key)


def keys_toml(entries: Iterable[KeyEntry]) -> str:
    """Return ``entries`` as TOML: first those that work everywhere on the main screen, then a table for each part."""
    tables: dict[str, list[str]] = {}
    for entry in entries:
        table, _, name = entry.id.rpartition(".")
        quoted = ['"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' for key in entry.keys]
        value = quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"
        line = f"{name} = {value}"
        tables.setdefault(table, []).append(f"{line:<{MOST_KEY_WIDTH}}  # {entry.action}")
    parts = ["\n".join([*([f"[{table}]"] if table else []), *tables[table]]) for table in sorted(tables)]
    return "\n\n".join([ABOUT, *parts])
