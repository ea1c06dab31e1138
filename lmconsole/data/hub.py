"""Files of the Hugging Face Hub, downloaded by its own client into the cache that all its tools share.

The client finds files, sends HF_TOKEN, follows redirects and honors HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE.
``hub_blobs`` downloads their content over plain HTTP, never through Xet, which cannot continue a download of another
process.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmconsole import __version__
from lmconsole.data.hub_blobs import (
    BUSY,
    Listener,
    download_blob,
    has_its_hash,
    headers_for_client,
    url_for_client,
)
from lmconsole.data.hub_errors import errors_explained, warnings_passed_on
from lmconsole.data.hub_names import HubFile
from lmconsole.errors import HubError
from lmconsole.extras import install_hint

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata


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

    with errors_explained(repository):
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

    with errors_explained(file.repository, file.name), warnings_passed_on(listener.say):
        metadata = _metadata(file)
        if metadata is not None:
            download_blob(file, metadata, listener)
        elif not is_offline_mode():
            listener.say(f"{file.name}: the hub cannot be reached; using the copy in the cache")
        path = _path_in_cache(file, offline=metadata is None)
        if not has_its_hash(path):
            if metadata is None:
                raise HubError(
                    f"{path}: damaged, and there is no network to download it again",
                    hint="Run the command again online.",
                )
            listener.say(f"{file.name}: the copy in the cache is damaged; downloading it again")
            path.resolve().unlink()
            path.unlink()
            download_blob(file, metadata, listener)
            path = _path_in_cache(file, offline=False)
        return path


def _require_client() -> None:
    try:
        import huggingface_hub.constants
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise HubError(f"downloads need {error.name}, which is not installed", hint=install_hint("hub")) from None
    except ValueError as error:  # it reads its variables when it is imported
        raise HubError(
            f"huggingface_hub cannot be used: {error}", hint="Check HF_ENDPOINT and the other variables HF_…"
        ) from None
    if int(huggingface_hub.__version__.partition(".")[0]) < 2:
        raise HubError(
            f"downloads need huggingface_hub 2, found {huggingface_hub.__version__}",
            hint=install_hint("hub"),
        )


def _metadata(file: HubFile) -> "HfFileMetadata | None":
    """Return what the hub says about a file; None without a network, if the cache has the file."""
    import httpx2
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    get = partial(get_hf_file_metadata, url_for_client(file), headers=headers_for_client())
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


def missing_bytes(sizes: Mapping[HubFile, int], commit: str) -> int:
    """Return how many bytes of these files, given with their sizes at ``commit``, are not in the cache. Raises
    HubError."""
    _require_client()
    missing = 0
    for file, size in sizes.items():
        with errors_explained(file.repository, file.name):
            missing += 0 if _cached(replace(file, revision=commit)) else size
    return missing


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
