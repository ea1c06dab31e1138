"""What the console remembers between two sessions: the theme, and how curves were last drawn."""

from pathlib import Path

import msgspec
from platformdirs import user_config_path

from lmconsole.runs.events import DAMAGED


class Remembered(msgspec.Struct, kw_only=True):
    """The file ``console.json`` in the user's configuration folder. One that cannot be read counts as absent."""

    theme: str = "lmconsole-dark"


def _file() -> Path:
    return user_config_path("lmconsole") / "console.json"


def recall() -> Remembered:
    """What was last remembered."""
    try:
        return msgspec.json.decode(_file().read_bytes(), type=Remembered)
    except (OSError, *DAMAGED):
        return Remembered()


def remember(what: Remembered) -> str | None:
    """Write it down; why that was not possible, if it was not."""
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(what) + b"\n")
        temporary.replace(file)
    except OSError as error:
        return f"{file}: {error.strerror}"
    return None
