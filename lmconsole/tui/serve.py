"""The console in a browser, served by textual-serve."""

import contextlib
import ipaddress
import os
import shlex
import socket
import sys
from collections.abc import Mapping

from lmconsole.errors import LmconsoleError

WARNING = """warning: anyone who can reach {host}:{port} can start, stop and delete runs as you, and the connection
is not encrypted. Use `lmconsole serve` with `ssh -L {port}:127.0.0.1:{port}` to keep it to yourself."""


def serve(host: str, port: int, url: str | None, options: Mapping[str, str]) -> None:
    """Serve the console until interrupted. Each browser window gets its own, with these ``options``.

    Raises:
        LmconsoleError: textual-serve is not installed, or the address cannot be used.
    """
    try:
        from textual_serve.server import Server
    except ImportError:
        raise LmconsoleError(
            "serve: the package textual-serve is not installed",
            hint="Install textual-serve into the environment of lmconsole, for example: uv tool install '.[serve]'",
        ) from None
    _try_to_listen(host, port)
    if not _is_loopback(host):
        print(WARNING.format(host=host, port=port), file=sys.stderr)
    os.environ["LC_ALL"] = "C.UTF-8"  # a browser shows Unicode, whatever the locale here
    words = [word for pair in options.items() for word in pair]
    command = shlex.join([sys.executable, "-P", "-m", "lmconsole", *words])
    shown = url or f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    print(f"The console is at {shown}. Press Ctrl+C to stop the server; runs continue.", file=sys.stderr)
    Server(command, host=host, port=port, title="lmconsole", public_url=url).serve()


def _try_to_listen(host: str, port: int) -> None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise LmconsoleError(
            f"serve: cannot listen on {host}:{port}: {error.strerror}", hint="Choose another port with --port."
        ) from None


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
