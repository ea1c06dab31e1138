"""Files of the Hugging Face Hub, downloaded by its own client into the cache that all its tools share.

The client finds files, sends HF_TOKEN, follows redirects and honors HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE. Two things
are added here. A download that was interrupted is continued, even by another process: the client itself starts over.
And each file is compared with its hash, which the client does not do for plain HTTP.

Files come over plain HTTP, never through Xet, which cannot continue a download of another process.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

from lmconsole import __version__, formatting
from lmconsole.errors import CorpusError, HubError
from lmconsole.files import open_file, user_folder

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

HUB_PREFIX = "hub:"

INSTALL_HINT = "Install lmconsole with the extra `hub`: uv tool install '.[hub]'"
LOGIN_HINT = (
    "Check the spelling. If the repository is private, or asks you to accept conditions on its page, log in with "
    "`hf auth login` or set HF_TOKEN."
)

TRIES = 5
"""Failures in a row after which a download is given up. Any new byte starts the count again."""
BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which a request is repeated."""
_CHUNK_BYTES = 2**20


Report = Callable[[int, int | None], None]
"""Receives the bytes of a file that are here, and all it has, if that is known."""


class Listener(Protocol):
    """Receives what happens during a download."""

    def say(self, message: str) -> None:
        """Show a message."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Show that ``done`` of ``total`` bytes of the file ``name`` are here; ``total`` is None if it is unknown."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """Content of a dataset repository at one commit."""

    commit: str
    sizes: Mapping[str, int]
    """Bytes of each file; 0 if unknown."""
    configurations: Sequence[Any]
    """``configs`` in the metadata of its card, as anyone wrote them."""


def describe_dataset(repository: str, revision: str | None = None) -> Repository:
    """Return the files and the configurations of a dataset. Raises HubError."""
    _require_client()
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    with _errors_explained(repository):
        api = HfApi(library_name="lmconsole", library_version=__version__)
        found = api.dataset_info(repository, revision=revision, files_metadata=True, timeout=HF_HUB_ETAG_TIMEOUT)
        configurations = getattr(found.card_data, "configs", None)
        return Repository(
            commit=str(found.sha),
            sizes={str(file.rfilename): int(file.size or 0) for file in found.siblings or ()},
            configurations=configurations if isinstance(configurations, list) else [],
        )


def download(file: HubFile, listener: Listener) -> Path:
    """Return the path of ``file`` in the shared cache, downloaded if the hub has another version than the cache.

    Without a network, the version in the cache is used. Raises HubError.
    """
    _require_client()
    from huggingface_hub import is_offline_mode

    with _errors_explained(file.repository, file.name), _messages_of_client(listener):
        metadata = _metadata(file)
        if metadata is not None:
            _download_blob(file, metadata, listener)
        elif not is_offline_mode():
            listener.say(f"{file.name}: the hub cannot be reached; using the copy in the cache")
        path = _path_in_cache(file, offline=metadata is None)
        if not _matches(path):
            if metadata is None:
                raise HubError(
                    f"{path}: damaged, and there is no network to download it again",
                    hint="Run the command again online.",
                )
            listener.say(f"{file.name}: the copy in the cache is damaged; downloading it again")
            path.resolve().unlink()
            path.unlink()
            _download_blob(file, metadata, listener)
            path = _path_in_cache(file, offline=False)
        return path


def _require_client() -> None:
    try:
        import huggingface_hub
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise HubError(f"downloads need {error.name}, which is not installed", hint=INSTALL_HINT) from None
    if int(huggingface_hub.__version__.partition(".")[0]) < 2:
        raise HubError(
            f"downloads need huggingface_hub 2, found {huggingface_hub.__version__}",
            hint=INSTALL_HINT,
        )


def _url(file: HubFile) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(file.repository, file.name, repo_type=file.kind, revision=file.revision)


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is documented there

    return build_hf_headers(library_name="lmconsole", library_version=__version__)


def _metadata(file: HubFile) -> "HfFileMetadata | None":
    """Return what the hub says about a file; None without a network, if the cache has the file."""
    import httpx2
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    get = partial(get_hf_file_metadata, _url(file), headers=_headers())
    try:
        try:
            metadata = get()
        except (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError):
            metadata = get(retry_on_errors=True)
        except HfHubHTTPError as error:
            if error.response.status_code not in BUSY:
                raise
            metadata = get(retry_on_errors=True)
    except (httpx2.ConnectError, httpx2.TimeoutException, OfflineModeIsEnabled):
        if _cached(file):
            return None
        raise
    for value, pattern in ((metadata.etag, "[0-9a-f]{40}|[0-9a-f]{64}"), (metadata.commit_hash, "[0-9a-f]{40}")):
        if not re.fullmatch(pattern, value or ""):
            raise HubError(
                f"{file.url}: the answer is not that of a hub: it has no commit, or no hash as its ETag",
                hint="Check HF_ENDPOINT, and whether a proxy or a login page of the network answers instead.",
            )
    return metadata


def _cached(file: HubFile) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(
        try_to_load_from_cache(file.repository, file.name, repo_type=file.kind, revision=file.revision), str
    )


def _path_in_cache(file: HubFile, *, offline: bool) -> Path:
    """Return the path of a file whose content is in the cache; the client links it to its commit."""
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            file.repository,
            file.name,
            repo_type=file.kind,
            revision=file.revision,
            library_name="lmconsole",
            library_version=__version__,
            local_files_only=offline,
        )
    )


def _download_blob(file: HubFile, metadata: "HfFileMetadata", listener: Listener) -> None:
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


def _receive(file: HubFile, metadata: "HfFileMetadata", opened: BinaryIO, listener: Listener) -> None:
    """Append what is missing to a file, and compare all of it with its hash. A part that does not fit is discarded."""
    report = partial(listener.progress, file.name)
    had = opened.seek(0, os.SEEK_END)
    if metadata.size is not None:
        if had > metadata.size:
            had = opened.truncate(0)
        missing = metadata.size - had
        disk = os.fstatvfs(opened.fileno())
        free = disk.f_bavail * disk.f_frsize
        if missing > free:
            sizes = formatting.mib(missing / 2**20), formatting.mib(free / 2**20)
            raise HubError(
                f"{file.name}: {sizes[0]} must be downloaded, and the disk of the cache has only {sizes[1]} left",
                hint="Make room, or set HF_HOME to a folder on a larger disk.",
            )
    _receive_rest(file, metadata, opened, report)
    opened.flush()
    if _hash(opened, str(metadata.etag)) != metadata.etag:
        opened.truncate(0)
        if had:
            listener.say(f"{file.name}: the part from an earlier download does not fit; downloading all of it")
            return _receive(file, metadata, opened, listener)
        raise HubError(
            f"{file.name}: what arrived does not match its hash",
            hint="Run the command again. If it happens again, a proxy may change what passes through it.",
        )
    os.fsync(opened.fileno())
    return None


def _receive_rest(file: HubFile, metadata: "HfFileMetadata", opened: BinaryIO, report: Report) -> None:
    """Append what is missing, resuming after errors of the network."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    failures = 0
    while True:
        had = opened.seek(0, os.SEEK_END)
        headers = _headers()
        if _host(metadata.location) != _host(_url(file)):
            headers.pop("authorization", None)  # a signed address of another host, which must not see the token
        try:
            http_get(
                metadata.location,
                opened,
                resume_size=had,
                headers=headers,
                expected_size=metadata.size,
                displayed_filename=file.name,
                tqdm_class=partial(_Bar, report),  # type: ignore[arg-type]  # any callable will do
            )
            return
        except (httpx2.TransportError, HfHubHTTPError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status == 416:  # the hub has fewer bytes than are here
                opened.truncate(0)
            elif status is not None and status not in BUSY:
                raise
            failures = 0 if opened.seek(0, os.SEEK_END) > had else failures + 1
            if failures >= TRIES:
                raise
            time.sleep(2**failures / 2)


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).netloc


class _Bar:
    """The part of tqdm's interface that the client uses; passes the number of bytes on."""

    def __init__(self, report: Report, *, total: int | None = None, initial: int = 0, **_: object) -> None:
        self._report, self._total, self._done = report, total, initial
        self.update(0)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        """Count bytes that have arrived, or with a negative number were discarded."""
        self._done += count
        self._report(self._done, self._total)


def _matches(path: Path) -> bool:
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
    while chunk := opened.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


class _Forward(logging.Handler):
    """Passes warnings of the client on, such as that it waits because of a rate limit."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(logging.WARNING)
        self._listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().split("\n")[0]
        self._listener.say(re.sub(r"\?\S+", "?…", message)[:300])  # signed addresses are long, and secret


@contextlib.contextmanager
def _messages_of_client(listener: Listener) -> Iterator[None]:
    """Pass warnings of the client to ``listener`` instead of its own handler."""
    from huggingface_hub.utils import logging as _  # noqa: F401  # adds that handler

    logger = logging.getLogger("huggingface_hub")
    before, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Forward(listener)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate


@contextlib.contextmanager
def _errors_explained(repository: str, name: str | None = None) -> Iterator[None]:
    """Turn errors of the client into HubError."""
    import httpx2
    from huggingface_hub import errors

    what = f"{repository}/{name}" if name else repository
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise HubError(f"{what} is not in the cache, and HF_HUB_OFFLINE is set", offline=True) from None
    except errors.HfHubHTTPError as error:
        raise _answered(what, error) from None
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, errors.HfHubHTTPError):
            raise _answered(what, cause) from None
        raise HubError(f"{what} is not in the cache, and the hub cannot be reached", offline=True) from None
    except errors.HFValidationError:
        raise HubError(
            f"{repository!r} is not the name of a repository", hint="Write it as OWNER/NAME, as in its address."
        ) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        reason = str(error) or type(error).__name__
        raise HubError(f"{what}: {endpoint} cannot be reached: {reason}", offline=True) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "Make room, or set HF_HOME to a folder on a larger disk."
        else:
            hint = "Set HF_HOME to a folder that you can write to."
        raise HubError(f"{what}: {error.filename or 'the cache'}: {error.strerror or error}", hint=hint) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{what}: the answer of the hub cannot be understood ({error})", hint="Check HF_ENDPOINT."
        ) from None


def _answered(what: str, error: Any) -> HubError:
    """Return the error for an answer that refuses or lacks something."""
    status = int(error.response.status_code)
    code = error.response.headers.get("X-Error-Code", "")
    if "Invalid credentials" in error.response.headers.get("X-Error-Message", ""):
        return HubError(
            f"{what}: the hub refuses the token ({status})",
            hint="Log in again with `hf auth login`, or correct or unset HF_TOKEN.",
        )
    if code == "GatedRepo":
        hint = "Accept the conditions on its page, then log in with `hf auth login` or set HF_TOKEN."
        return HubError(f"{what}: access is granted only to those who accept its conditions ({status})", hint=hint)
    if code in ("EntryNotFound", "RevisionNotFound"):
        return HubError(f"{what}: the hub does not have it ({status})", hint="The repository may have changed.")
    if status in (401, 403, 404):
        return HubError(f"{what}: not found, or not for you ({status})", hint=LOGIN_HINT)
    if status == 429:
        return HubError(
            f"{what}: the hub limits the number of requests (429)",
            hint="Wait a few minutes and run the command again; it continues where it was. With `hf auth login` or "
            "HF_TOKEN the limit is higher.",
        )
    return HubError(
        f"{what}: the hub answered with an error ({status})",
        hint="Run the command again later; it continues where it was.",
    )
