"""Names of files and data sets on the Hugging Face Hub."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmconsole.errors import CorpusError
from lmconsole.files import user_folder

HUB_PREFIX = "hub:"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """A file in a repository of the hub."""

    repository: str
    kind: Literal["dataset", "model"]
    name: str
    revision: str | None = None
    """Branch or commit; None for the main branch."""

    @property
    def url(self) -> str:
        """Address for a browser, at the endpoint in force."""
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        folder = "datasets/" if self.kind == "dataset" else ""
        return f"{endpoint}/{folder}{self.repository}/resolve/{self.revision or 'main'}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubData:
    """A data set that is named as ``hub:OWNER/NAME`` or ``hub:OWNER/NAME/CONFIG``."""

    repository: str
    configuration: str | None

    @property
    def name(self) -> str:
        """The name without its prefix."""
        return f"{self.repository}/{self.configuration}" if self.configuration else self.repository


def parse_hub_data(text: str) -> HubData | None:
    """Return the data set that ``text`` names; None if it is a path. Raises CorpusError."""
    if not text.startswith(HUB_PREFIX):
        return None
    owner, _, rest = text.removeprefix(HUB_PREFIX).partition("/")
    name, _, configuration = rest.partition("/")
    if not all(re.fullmatch(r"\w[\w.-]*", part, re.ASCII) for part in (owner, name, configuration or "x")):
        raise CorpusError(
            f"{text}: not a data set of the hub",
            hint="Write hub:OWNER/NAME or hub:OWNER/NAME/CONFIG, such as hub:roneneldan/TinyStories.",
        )
    return HubData(repository=f"{owner}/{name}", configuration=configuration or None)


def hub_folder(data: HubData) -> Path:
    """Return the folder in which the text of a data set is saved. Raises CorpusError for a user without a home
    folder."""
    folder = user_folder("data")
    if folder is None:
        raise CorpusError("this user has no home folder to save data in", hint="Set XDG_DATA_HOME.")
    return folder / "hub" / data.name.replace("/", "--")
