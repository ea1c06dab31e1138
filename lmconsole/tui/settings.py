"""Settings of the console that outlast a session: the theme."""

from pathlib import Path

import msgspec

from lmconsole.files import atomic_write, read_file, user_folder
from lmconsole.runs.events import DAMAGED

MAX_BYTES = 1_000_000
"""Size of the largest file of settings that is read."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The file ``console.json`` in the user's configuration folder."""

    theme: str = "lmconsole-dark"


def _file() -> Path | None:
    folder = user_folder("config")
    return None if folder is None else folder / "console.json"


def load_settings() -> Settings:
    """Return the saved settings, or the defaults if there are none that can be read."""
    file = _file()
    if file is None:
        return Settings()
    try:
        return msgspec.json.decode(read_file(file, MAX_BYTES, follow=True), type=Settings)
    except (OSError, *DAMAGED):
        return Settings()


def save_settings(settings: Settings) -> str | None:
    """Save ``settings``. Return the reason if that is not possible."""
    file = _file()
    if file is None:
        return "this user has no home folder"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as new:
            new.write(msgspec.json.encode(settings) + b"\n")
    except OSError as error:
        return f"{file}: {error.strerror}"
    return None
