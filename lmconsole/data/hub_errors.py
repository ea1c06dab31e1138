"""Errors and warnings of the hub's client, in terms of what a person can do."""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from lmconsole.errors import HubError

ROOM_HINT = "Make room, or set HF_HOME to a folder on a larger disk."
LOGIN_HINT = (
    "Check the spelling. If the repository is private, or asks you to accept conditions on its page, log in with "
    "`hf auth login` or set HF_TOKEN."
)


class _Forward(logging.Handler):
    """Passes warnings of the client on, such as that it waits because of a rate limit."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().split("\n")[0]
        self._say(re.sub(r"\?\S+", "?…", message)[:300])  # signed addresses are long, and secret


@contextlib.contextmanager
def warnings_passed_on(say: Callable[[str], None]) -> Iterator[None]:
    """Pass warnings of the client to ``say`` instead of its own handler."""
    from huggingface_hub.utils import logging as _  # noqa: F401  # adds that handler

    logger = logging.getLogger("huggingface_hub")
    before, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Forward(say)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate


@contextlib.contextmanager
def errors_explained(repository: str, name: str | None = None) -> Iterator[None]:
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
        raise HubError(
            f"{what}: {endpoint} cannot be reached: {reason}", hint=_proxy_hint(endpoint), offline=True
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = ROOM_HINT
        else:
            hint = "Set HF_HOME to a folder that you can write to."
        raise HubError(f"{what}: {error.filename or 'the cache'}: {error.strerror or error}", hint=hint) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{what}: the answer of the hub cannot be understood ({error})", hint="Check HF_ENDPOINT."
        ) from None


def _proxy_hint(endpoint: str) -> str | None:
    """Return which proxy requests go through; None if there is none."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    shown = proxy.rpartition("@")[2]  # without a password
    return f"Requests go through the proxy {shown}. Check the variables {parts.scheme}_proxy and no_proxy."


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
        return HubError(f"{what}: not found, or you have no access ({status})", hint=LOGIN_HINT)
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
