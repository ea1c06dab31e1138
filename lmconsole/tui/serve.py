"""The console in a browser."""

import contextlib
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Mapping

import msgspec

from lmconsole.engine.processes import python
from lmconsole.errors import LmconsoleError
from lmconsole.extras import install_hint

WARNING = """warning: the connection to {host}:{port} is not encrypted. Anyone who can read it can start, stop and
delete runs as you. Use `lmconsole serve` with `ssh -L {port}:127.0.0.1:{port}` to keep it to yourself."""
WILDCARDS = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TERMINAL = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
"""The terminal in a page, which shows Unicode whatever the locale is here."""
OTHER_TERMINAL = frozenset({"TMUX", "TMUX_PANE", "STY", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "LC_TERMINAL"})
"""Variables that describe the terminal of the server."""


class ServedConsole(msgspec.Struct, frozen=True, kw_only=True):
    """The server, as `serve --json` prints it on one line before it accepts connections."""

    url: str
    """URL of the console, with the token that lets a browser in."""
    pid: int
    """Process id of the server; SIGINT or SIGTERM ends it, and runs continue."""


def serve(host: str, port: int, url: str | None, options: Mapping[str, str], *, json: bool = False) -> None:
    """Serve the console until interrupted. Each page gets a console of its own, with these ``options``.

    With ``json``, print the URL as JSON on standard output.

    Raises:
        LmconsoleError: textual-serve is not installed, or the address or ``url`` cannot be used.
    """
    try:
        from aiohttp import http_exceptions, web
        from yarl import URL

        from lmconsole.tui.web_server import ConsoleServer
    except ImportError:
        raise LmconsoleError(
            "serve: the package textual-serve is not installed",
            hint=install_hint("serve"),
        ) from None
    try:
        given = None if url is None else URL(url)
    except ValueError:
        given = URL()
    if given is not None and not (given.scheme in ("http", "https") and given.host):
        raise LmconsoleError(f"serve: --url {url}: expected a URL like https://example.org/lmconsole/")
    listener = _listen(host, port)
    if not _is_loopback(host):
        print(WARNING.format(host=host, port=port), file=sys.stderr)
    environment = {name: value for name, value in os.environ.items() if name not in OTHER_TERMINAL} | TERMINAL
    command = python("lmconsole", *(word for pair in options.items() for word in pair))
    server = ConsoleServer(command, environment, hosts=_names(host), port=port, url=given)
    # Anyone can send what is no request, and aiohttp would print a traceback for each.
    logging.getLogger("aiohttp.server").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], http_exceptions.HttpProcessingError))
    )
    if json:
        print(msgspec.json.encode(ServedConsole(url=server.url, pid=os.getpid())).decode(), flush=True)
    print(f"The console is at {server.url} (Ctrl+C stops the server; runs continue)", file=sys.stderr)
    web.run_app(server.application(), sock=listener, print=None, access_log=None, shutdown_timeout=0.2)


def _names(host: str) -> list[str]:
    """Return the names and addresses under which a server that listens on ``host`` can be reached."""
    if host in WILDCARDS:
        import psutil

        addresses = [
            each.address for cards in psutil.net_if_addrs().values() for each in cards if _is_address(each.address)
        ]
        return [*LOOPBACK, socket.gethostname(), socket.getfqdn(), *addresses]
    return [host, *LOOPBACK] if _is_loopback(host) else [host]


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise LmconsoleError(
            f"serve: cannot listen on {host}:{port}: {error.strerror}", hint="Choose another port with --port."
        ) from None


def _is_address(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    return False


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
