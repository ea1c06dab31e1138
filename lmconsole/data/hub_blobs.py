"""Content of files of the hub, downloaded into the cache of its client.

Two things are added to the client. A download that was interrupted is continued, even by another process: the client
itself starts over. And each file is compared with its hash, which the client does not do for plain HTTP.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from lmconsole import __version__, formatting
from lmconsole.data.hub_errors import ROOM_HINT
from lmconsole.data.hub_names import HubFile
from lmconsole.errors import HubError
from lmconsole.files import open_file
from lmconsole.telemetry.host import MIB, free_disk_mib

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

TRIES = 5
"""Failures in a row after which a download is given up. Any new byte starts the count again."""
BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which a request is repeated."""
HASHED_AT_ONCE = 2**20
"""Bytes that are read at once to compute a hash."""


class Listener(Protocol):
    """Receives what happens during a download."""

    def say(self, message: str) -> None:
        """Show a message."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Show that ``done`` of ``total`` bytes of the file ``name`` are here; ``total`` is None if it is unknown."""


def url_for_client(file: HubFile) -> str:
    """Return the address of a file, as the client makes it."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(file.repository, file.name, repo_type=file.kind, revision=file.revision)


def headers_for_client() -> dict[str, str]:
    """Return the headers of a request, with the token of the user."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is documented there

    return build_hf_headers(library_name="lmconsole", library_version=__version__)


def download_blob(file: HubFile, metadata: "HfFileMetadata", listener: Listener) -> None:
    """Download the content of a file into the cache unless it is there, continuing an earlier attempt."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=file.repository, repo_type=file.kind), "blobs")
    blob = folder / str(metadata.etag)
    unfinished = folder / f"{metadata.etag}.incomplete"
    while not blob.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open(open_file(unfinished, os.O_RDWR | os.O_CREAT, follow=False), "r+b") as opened:
            _lock(opened, file, listener)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(unfinished), os.fstat(opened.fileno())):
                    _receive(file, metadata, opened, listener)
                    os.replace(unfinished, blob)


def _lock(opened: BinaryIO, file: HubFile, listener: Listener) -> None:
    """Wait until no other process downloads this file."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        listener.say(f"{file.name}: another process is downloading it; waiting …")
        fcntl.flock(opened, fcntl.LOCK_EX)


def check_room(what: str, size: int) -> None:
    """Raise HubError if the disk of the cache has no room for ``size`` bytes of ``what``."""
    from huggingface_hub import constants

    free_mib = free_disk_mib(Path(constants.HF_HUB_CACHE))
    if free_mib is not None and size > free_mib * MIB:
        raise HubError(
            f"{what}: {formatting.mib(size / MIB)} must be downloaded, and the disk of the cache has only "
            f"{formatting.mib(free_mib)} left",
            hint=ROOM_HINT,
        )


def _receive(file: HubFile, metadata: "HfFileMetadata", opened: BinaryIO, listener: Listener) -> None:
    """Append what is missing to a file, and compare all of it with its hash. A part that does not fit is discarded."""
    had = opened.seek(0, os.SEEK_END)
    if metadata.size is not None:
        if had > metadata.size:
            had = opened.truncate(0)
        check_room(file.name, metadata.size - had)
    _receive_rest(file, metadata, opened, listener)
    opened.flush()
    if _hash(opened, str(metadata.etag)) != metadata.etag:
        opened.truncate(0)
        if had:
            listener.say(f"{file.name}: the part from an earlier download does not fit; downloading all of it")
            return _receive(file, metadata, opened, listener)
        raise HubError(
            f"{file.name}: the content that arrived does not match its hash",
            hint="Run the command again. If it happens again, a proxy may change what passes through it.",
        )
    os.fsync(opened.fileno())
    return None


def _receive_rest(file: HubFile, metadata: "HfFileMetadata", opened: BinaryIO, listener: Listener) -> None:
    """Append what is missing, resuming after errors of the network.

    The client's own function loses up to 10 MiB of a connection that breaks, so with a bad one it never gets on.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    failures = 0
    while True:
        had = opened.seek(0, os.SEEK_END)
        try:
            return _append(file, metadata, opened, listener)
        except (httpx2.TransportError, HfHubHTTPError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status == 416:  # the hub has fewer bytes than are here
                opened.truncate(0)
            elif status is not None and status not in BUSY:
                raise
            here = opened.seek(0, os.SEEK_END)
            failures = 0 if here > had else failures + 1
            if failures < TRIES:
                why = "the connection broke off" if status is None else f"the hub answers {status}"
                listener.say(f"{file.name}: {why} at {formatting.mib(here / MIB)}; continuing …")
                time.sleep(2**failures / 2)
                continue
            if status is not None:
                raise
            raise HubError(
                f"{file.name}: the connection broke off at {formatting.mib(here / MIB)}: "
                f"{str(error) or type(error).__name__}",
                hint="Run the command again when the connection is better; it continues where it was.",
                offline=True,
            ) from None


def _append(file: HubFile, metadata: "HfFileMetadata", opened: BinaryIO, listener: Listener) -> None:
    """Append the rest of a file as it arrives. Raises HfHubHTTPError, and httpx2.TransportError if not all arrives."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # they are documented there
        hf_raise_for_status,
        http_stream_backoff,
    )

    done = opened.tell()
    # Asked at the hub each time, since the signed address to which it leads becomes invalid after an hour; httpx does
    # not send the token to that other host.
    headers = headers_for_client() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with http_stream_backoff(
        "GET",
        url_for_client(replace(file, revision=metadata.commit_hash)),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),
        retry_on_status_codes=(408, 429),
    ) as response:
        hf_raise_for_status(response)
        if done and response.status_code != 206:  # all of it
            done = opened.seek(0)
            opened.truncate()
        listener.progress(file.name, done, metadata.size)
        for chunk in response.iter_bytes():
            opened.write(chunk)
            done += len(chunk)
            listener.progress(file.name, done, metadata.size)
    if metadata.size is not None and done < metadata.size:
        raise httpx2.RemoteProtocolError("the connection was closed")


def has_its_hash(path: Path) -> bool:
    """Return whether a file of the cache has the hash by which it is stored; True where links are not used."""
    try:
        expected = Path(os.readlink(path)).name
    except OSError:
        return True
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", expected):
        return True
    with open(open_file(path, follow=True), "rb") as opened:
        return _hash(opened, expected) == expected


def _hash(opened: BinaryIO, like: str) -> str:
    """Return the SHA-256 of a file, or git's SHA-1 if ``like`` is as long as one: the hub uses it for small files."""
    size = opened.seek(0, os.SEEK_END)
    opened.seek(0)
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if len(like) == 40 else hashlib.sha256()
    while chunk := opened.read(HASHED_AT_ONCE):
        digest.update(chunk)
    return digest.hexdigest()
