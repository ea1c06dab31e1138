"""Settings of the console that outlast a session: the theme."""

from pathlib import Path

import msgspec
from platformdirs import user_config_path

from lmconsole.files import atomic_write
from lmconsole.runs.events import DAMAGED


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The file ``console.json`` in the user's configuration folder."""

    theme: str = "lmconsole-dark"


def _file() -> Path:
    return user_config_path("lmconsole") / "console.json"


def load_settings() -> Settings:
    """Return the saved settings, or the defaults if there are none that can be read."""
    try:
        return msgspec.json.decode(_file().read_bytes(), type=Settings)
    except (OSError, *DAMAGED):
        return Settings()


def save_settings(settings: Settings) -> str | None:
    """Save ``settings``. Return the reason if that is not possible."""
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as new:
            new.write(msgspec.json.encode(settings) + b"\n")
    except OSError as error:
        return f"{file}: {error.strerror}"
    return None
