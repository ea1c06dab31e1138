"""The web server of the console: each page is a terminal with a console of its own.

A page runs xterm.js with the script of textual-serve, which sends keys and sizes over a WebSocket and shows the output
that it receives. The console at the other end runs on a pseudo-terminal, as in any terminal, and ends with its page.

A page can start and delete runs, so only a browser with the token of the printed URL receives one. It exchanges the
token for a cookie. Browsers send a cookie to every port of a host, and other users of this machine may have servers
there; the path of this cookie is therefore a random one, under which everything else is.
"""

import asyncio
import contextlib
import fcntl
import hmac
import json
import os
import secrets
import signal
import struct
import termios
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template

from aiohttp import WSCloseCode, WSMsgType, web
from yarl import URL

CHECKED_VERSIONS = ("1.1.3",)
"""Versions of textual-serve whose script and messages, which are not documented, were read and tested."""
STATIC = Path(str(resources.files("textual_serve"))) / "static"
PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
LEAD_ON = '<meta http-equiv="refresh" content="0; url={}/">'
NO_TOKEN = "Open the URL that `lmconsole serve` printed when it started. Its token changes at each start.\n"
WRONG_HOST = "Open the URL that `lmconsole serve` printed. If browsers need another one, start it with `--url`.\n"

MAX_SESSIONS = 16
"""Pages that are open at once."""
MAX_COLUMNS, MAX_ROWS = 500, 200
"""Largest size of a terminal, in cells. A page of 3840 × 2160 pixels has about 400 × 115."""
MAX_MESSAGE_BYTES = 64 * 1024
"""Largest message of a page, which is the text of a paste."""
GRACE_S = 1.0
"""Time that a console or a page has to close by itself."""
INPUT_S = 10.0
"""Time that a console has to accept input. One that takes longer has hung."""
HEARTBEAT_S = 15.0
"""Interval at which a page must show that it is still there."""
READ_BYTES = 64 * 1024
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'nonce-{nonce}'",
        "style-src 'self' 'unsafe-inline'",  # xterm.js sets styles from its script
        "font-src 'self'",
        "img-src data:",
        "connect-src 'self' {socket}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Size = tuple[int, int]
"""Columns and rows."""


class Console:
    """A console process on a pseudo-terminal."""

    def __init__(self, process: Process, leader: int) -> None:
        self._process = process
        self._leader = leader

    @classmethod
    async def open(cls, command: Sequence[str], environment: Mapping[str, str], size: Size) -> "Console":
        """Start ``command``. Raises OSError."""
        leader, follower = os.openpty()
        try:
            _set_size(leader, size)
            os.set_blocking(leader, False)
            process = await asyncio.create_subprocess_exec(
                *command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
            )
        except BaseException:
            os.close(leader)
            raise
        finally:
            os.close(follower)
        return cls(process, leader)

    def resize(self, size: Size) -> None:
        """Change the size of the terminal."""
        _set_size(self._leader, size)
        self._signal(signal.SIGWINCH)  # the kernel signals only processes whose controlling terminal it is

    async def write(self, text: str) -> None:
        """Type ``text``. Raises TimeoutError if the console does not read it."""
        data = text.encode(errors="replace")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(INPUT_S):
            while data:
                try:
                    data = data[os.write(self._leader, data) :]
                except BlockingIOError:
                    await _ready(loop.add_writer, loop.remove_writer, self._leader)
                except OSError:  # the console has ended
                    return

    async def output(self) -> AsyncIterator[bytes]:
        """Yield what the console prints, until it has ended."""
        loop = asyncio.get_running_loop()
        while True:
            await _ready(loop.add_reader, loop.remove_reader, self._leader)
            try:
                data = os.read(self._leader, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:  # what Linux reports in place of an end of file
                return
            if not data:
                return
            yield data

    async def close(self) -> None:
        """Hang up, and wait until the console has ended."""
        os.close(self._leader)
        self._signal(signal.SIGHUP)
        try:
            await asyncio.wait_for(self._process.wait(), GRACE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def _set_size(descriptor: int, size: Size) -> None:
    columns, rows = size
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


async def _ready(
    add: Callable[[int, Callable[[], None]], object], remove: Callable[[int], object], descriptor: int
) -> None:
    """Wait until ``descriptor`` can be read or written."""
    event = asyncio.Event()
    add(descriptor, event.set)
    try:
        await event.wait()
    finally:
        remove(descriptor)


class ConsoleServer:
    """Serves pages to browsers that know its token, and runs ``command`` for each page."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        hosts: Sequence[str],
        port: int,
        url: URL | None = None,
    ) -> None:
        """Choose a token.

        Args:
            command, environment: how to start a console.
            hosts: names and addresses of this machine under which browsers may open pages, at ``port``.
            url: URL of the server in browsers if it is another one, for example that of a proxy.
        """
        self._token = secrets.token_urlsafe(32)
        self._command, self._environment = command, environment
        origins = [_origin(host, port) for host in hosts]
        self._origin = None if url is None else str(url.origin())
        self._path = "/" if url is None else f"{url.raw_path.rstrip('/')}/"
        self._hosts = {origin.partition("://")[2] for origin in (*origins, self._origin or origins[0])}
        self.url = f"{self._origin or origins[0]}{self._path}?token={self._token}"
        """URL to open in a browser, with the token."""
        self._folder = secrets.token_urlsafe(12)
        self._cookie = f"lmconsole-{port}"
        self._sessions: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    def application(self) -> web.Application:
        """Return the application to run."""
        application = web.Application(middlewares=[self._guard])
        application.add_routes(
            [
                web.get("/", self._enter),
                web.get(f"/{self._folder}/", self._page),
                web.get(f"/{self._folder}/ws", self._connect),
                web.static(f"/{self._folder}/static", STATIC),
            ]
        )
        application.on_response_prepare.append(_add_headers)
        application.on_shutdown.append(self._end_sessions)
        return application

    # ---- who is let in

    def _own_origin(self, request: web.Request) -> str:
        """Return the origin of the page that makes ``request``, if it is ours."""
        return self._origin or f"http://{request.host.lower()}"

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what does not come from a page of ours. A page that another site has loaded under a name of its own
        has a foreign ``Host``; a request of another site's page has a foreign ``Origin``."""
        if request.host.lower() not in self._hosts:
            raise web.HTTPMisdirectedRequest(text=WRONG_HOST)
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() != self._own_origin(request):
            raise web.HTTPForbidden(text="This request comes from another site.\n")
        if request.path != "/" and not self._is_token(request.cookies.get(self._cookie, "")):
            raise web.HTTPForbidden(text=NO_TOKEN)
        return await handler(request)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(errors="replace"), self._token.encode())

    async def _enter(self, request: web.Request) -> web.Response:
        """Exchange the token for a cookie, and lead to a URL without it."""
        if not self._is_token(request.query.get("token", "")):
            raise web.HTTPForbidden(text=NO_TOKEN)
        if request.headers.get("Sec-Fetch-Site") == "cross-site":
            # A strict cookie is not sent after a redirect of a link on another site, but it is if our page leads on.
            response = web.Response(text=LEAD_ON.format(self._folder), content_type="text/html")
        else:
            response = web.Response(status=303, headers={"Location": f"{self._folder}/"})
        response.set_cookie(
            self._cookie,
            self._token,
            path=f"{self._path}{self._folder}/",
            httponly=True,
            samesite="Strict",
            secure=self._own_origin(request).startswith("https:"),
        )
        return response

    # ---- pages

    async def _page(self, request: web.Request) -> web.Response:
        origin = self._own_origin(request)
        socket = f"ws{origin.removeprefix('http')}"
        nonce = secrets.token_urlsafe(16)
        text = PAGE.substitute(nonce=nonce, websocket=f"{socket}{self._path}{self._folder}/ws")
        policy = CONTENT_SECURITY_POLICY.format(nonce=nonce, socket=socket)
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def _connect(self, request: web.Request) -> web.WebSocketResponse:
        if "Origin" not in request.headers:
            raise web.HTTPForbidden(text="This request comes from no page.\n")
        size = _size(request.query.get("width", ""), request.query.get("height", ""))
        socket = web.WebSocketResponse(timeout=GRACE_S, heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE_BYTES)
        await socket.prepare(request)
        if len(self._sessions) >= MAX_SESSIONS:
            await socket.send_bytes(f"{MAX_SESSIONS} consoles are open. Close one of them first.\r\n".encode())
            await socket.close(code=WSCloseCode.TRY_AGAIN_LATER)
            return socket
        session = asyncio.create_task(self._run_console(socket, size))
        self._sessions.add(session)
        try:
            await asyncio.wait([session])
        finally:
            self._sessions.discard(session)
        return socket

    async def _run_console(self, socket: web.WebSocketResponse, size: Size) -> None:
        """Run a console of ``size`` until it, its page or the server ends."""
        try:
            console = await Console.open(self._command, self._environment, size)
        except OSError as error:
            await socket.send_bytes(f"The console cannot be started: {error.strerror}\r\n".encode())
            await socket.close()
            return
        try:
            parts = (_send_output(console, socket), _receive_messages(console, socket), self._stopping.wait())
            tasks = [asyncio.ensure_future(part) for part in parts]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        finally:
            await console.close()

    async def _end_sessions(self, _application: web.Application) -> None:
        self._stopping.set()
        if self._sessions:
            await asyncio.wait(self._sessions)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


async def _send_output(console: Console, socket: web.WebSocketResponse) -> None:
    """Send the output to the page as fast as it accepts it, and close the page's connection after the last of it."""
    with contextlib.suppress(ConnectionError):
        async for data in console.output():
            await socket.send_bytes(data)
        await socket.close()


async def _receive_messages(console: Console, socket: web.WebSocketResponse) -> None:
    """Act on the messages of the page until it is closed."""
    with contextlib.suppress(ConnectionError):
        async for message in socket:
            await _receive(message.data if message.type is WSMsgType.TEXT else "", console, socket)


async def _receive(text: str, console: Console, socket: web.WebSocketResponse) -> None:
    """Act on a message of the page. Messages that textual-serve's script does not send end the connection."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    match message:
        case ["stdin", str(keys)]:
            try:
                await console.write(keys)
            except TimeoutError:
                await socket.close()
        case ["resize", {"width": int(width), "height": int(height)}]:
            console.resize((_clamp(width, MAX_COLUMNS), _clamp(height, MAX_ROWS)))
        case ["ping", str(sent)]:
            await socket.send_json(["pong", sent])
        case ["focus"] | ["blur"]:
            pass  # xterm.js reports these to the console as keys
        case _:
            await socket.close(code=WSCloseCode.POLICY_VIOLATION)


def _origin(host: str, port: int) -> str:
    """Return the origin of pages on ``host``, as browsers write it."""
    name = f"[{host}]" if ":" in host else host.lower()
    return f"http://{name}" if port == 80 else f"http://{name}:{port}"


def _size(columns: str, rows: str) -> Size:
    """Return the size that a page asks for, or that of a small terminal if it asks for none."""
    try:
        return _clamp(int(columns), MAX_COLUMNS), _clamp(int(rows), MAX_ROWS)
    except ValueError:
        return 80, 24


def _clamp(number: int, most: int) -> int:
    return max(1, min(number, most))
