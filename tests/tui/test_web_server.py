"""Requests that the web server refuses, and the limits of a page. The consoles are small programs here; a browser opens
real ones in ``test_serve.py``."""

import asyncio
import fcntl
import json
import os
import socket
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

import aiohttp
import psutil
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError, web
from yarl import URL

from lmconsole.tui import web_server
from lmconsole.tui.web_server import MAX_COLUMNS, MAX_MESSAGE_BYTES, MAX_ROWS, MAX_SESSIONS, ConsoleServer

WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)
ECHOES = """
import sys, tty
tty.setraw(0)
print("ready", end="\\r\\n", flush=True)
for line in sys.stdin:
    print("got", line.strip(), flush=True)
"""
ENDS = "print('the last words')"
PATIENCE_S = 10.0


class Served:
    """A server in this process, and a browser's side of it: a client with a jar of cookies."""

    def __init__(self, server: ConsoleServer, port: int, client: aiohttp.ClientSession) -> None:
        self.url = URL(server.url)
        self.port = port
        self.client = client
        self.origin = f"http://127.0.0.1:{port}"
        self.page = URL()
        """Address of the page, once the token has been exchanged."""

    async def enter(self) -> None:
        """Exchange the token for the cookie."""
        async with self.client.get(self.url) as response:
            assert response.status == 200
            self.page = response.url

    async def connect(
        self, query: Mapping[str, str] = {}, headers: Mapping[str, str] | None = None
    ) -> aiohttp.ClientWebSocketResponse:
        """Open the WebSocket as the page does."""
        given = {"Origin": self.origin} if headers is None else headers
        return await self.client.ws_connect(self.page.join(URL("ws")).with_query(query), headers=given, max_msg_size=0)


@asynccontextmanager
async def serving(program: str = WAITS, url: URL | None = None, python: str = sys.executable) -> AsyncIterator[Served]:
    """Serve consoles that are Python programs."""
    command = [python, "-S", "-c", program]
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        server = ConsoleServer(command, os.environ, hosts=["127.0.0.1", "localhost", "::1"], port=port, url=url)
        runner = web.AppRunner(server.application(), shutdown_timeout=1.0)
        await runner.setup()
        await web.SockSite(runner, bound).start()
        try:
            async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
                yield Served(server, port, client)
        finally:
            await runner.cleanup()
    assert consoles() == [], "no process is left"


def consoles() -> list[psutil.Process]:
    """Return the console processes."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if "-S" in process.cmdline():
                found.append(process)
    return found


async def until_there_are(number: int) -> list[psutil.Process]:
    """Wait until ``number`` consoles are running."""
    deadline = time.monotonic() + PATIENCE_S
    while len(found := consoles()) != number:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)
    return found


async def read_until(connection: aiohttp.ClientWebSocketResponse, words: str) -> str:
    """Return the output of a console up to ``words``."""
    seen = ""
    async with asyncio.timeout(PATIENCE_S):
        while words not in seen:
            message = await connection.receive()
            assert message.type is WSMsgType.BINARY, (message, seen)
            seen += message.data.decode()
    return seen


async def status(served: Served, path: str = "/", **headers: str) -> int:
    """Return the status of a GET request."""
    async with served.client.get(URL(served.origin).join(URL(path)), headers=headers, allow_redirects=False) as answer:
        return answer.status


async def refused(served: Served, headers: Mapping[str, str]) -> int:
    """Return the status with which the WebSocket is refused."""
    with pytest.raises(WSServerHandshakeError) as caught:
        await served.connect(headers=headers)
    return caught.value.status


async def test_the_token_becomes_a_cookie_and_leaves_the_url() -> None:
    async with serving() as served:
        token = served.url.query["token"]
        async with served.client.get(served.url, allow_redirects=False) as answer:
            assert answer.status == 303
            assert token not in answer.headers["Location"]
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            cookie = answer.headers["Set-Cookie"]
        name, *attributes = cookie.split("; ")
        assert name == f"lmconsole-{served.port}={token}", "cookies know no port"
        assert {"HttpOnly", "SameSite=Strict"} <= set(attributes)
        path = next(each.removeprefix("Path=") for each in attributes if each.startswith("Path="))
        assert len(path) > 16, "other ports of this host, which may be another user's, do not receive the cookie"
        await served.enter()
        assert served.page.path == path
        assert served.page.query_string == ""
        async with served.client.get(served.page) as answer:
            text = await answer.text()
            assert token not in text
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert answer.headers["Cache-Control"] == "no-store"


async def test_a_link_on_another_site_leads_to_the_page_too() -> None:
    """Browsers send a strict cookie neither with such a link nor after its redirect."""
    async with serving() as served:
        headers = {"Sec-Fetch-Site": "cross-site"}
        async with served.client.get(served.url, headers=headers, allow_redirects=False) as answer:
            assert answer.status == 200
            assert "http-equiv" in await answer.text()
            assert "Set-Cookie" in answer.headers


@pytest.mark.parametrize("token", ["", "?token=", "?token=x", "?token=%FF%00", "?token=é", "?Token={token}"])
async def test_without_the_token_there_is_no_page(token: str) -> None:
    async with serving() as served:
        assert await status(served, f"/{token.format(token=served.url.query['token'] + 'x')}") == 403
        assert len(served.client.cookie_jar) == 0


async def test_without_the_cookie_there_is_nothing() -> None:
    async with serving() as served:
        await served.enter()
        assert await status(served, f"{served.page.path}static/js/textual.js") == 200
        served.client.cookie_jar.clear()
        for path in ("", "static/js/textual.js", "static/", "ws"):
            assert await status(served, served.page.path + path) == 403, path
        assert await refused(served, {"Origin": served.origin}) == 403
        wrong = {"Origin": served.origin, "Cookie": f"lmconsole-{served.port}=x"}
        assert await refused(served, wrong) == 403
        assert await status(served, "/favicon.ico") == 403
        assert consoles() == []


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil", ""]
)
async def test_a_foreign_host_is_refused_everywhere(host: str) -> None:
    async with serving() as served:
        await served.enter()
        headers = {"Host": host.format(port=served.port)}
        for path in (
            str(served.url.relative()),
            served.page.path,
            f"{served.page.path}static/js/textual.js",
            "/nowhere",
        ):
            assert await status(served, path, **headers) in (400, 421), path
        assert await refused(served, {**headers, "Origin": served.origin}) in (400, 421)
        assert consoles() == []


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://127.0.0.1:1", "https://127.0.0.1:{port}", "http://localhost:{port}", "null"],
)
async def test_another_site_is_refused_even_with_the_cookie(origin: str) -> None:
    async with serving() as served:
        await served.enter()
        foreign = {"Origin": origin.format(port=served.port)}
        assert await refused(served, foreign) == 403
        assert await status(served, served.page.path, **foreign) == 403
        assert await status(served, f"{served.page.path}static/js/textual.js", **foreign) == 403
        assert await refused(served, {}) == 403, "every browser names the origin"
        assert consoles() == []


async def test_the_names_of_this_machine_are_let_in() -> None:
    async with serving() as served:
        await served.enter()
        own = f"localhost:{served.port}"
        connection = await served.connect(headers={"Host": own, "Origin": f"http://{own}"})
        await read_until(connection, "ready\r\n")
        await connection.close()


async def test_behind_a_proxy_only_its_url_is_let_in() -> None:
    async with serving(url=URL("https://gpu.example.org/lm")) as served:
        assert str(served.url).startswith("https://gpu.example.org/lm/?token=")
        query = f"/?{served.url.query_string}"
        for host in ("gpu.example.org", f"127.0.0.1:{served.port}"):  # proxies keep the header, or name the server
            async with served.client.get(
                f"{served.origin}{query}", headers={"Host": host}, allow_redirects=False
            ) as answer:
                assert answer.status == 303
                folder = answer.headers["Location"]
                cookie = answer.headers["Set-Cookie"]
        assert f"Path=/lm/{folder}" in cookie
        assert "Secure" in cookie
        served.page = URL(served.origin) / folder.rstrip("/") / ""
        headers = {"Host": "gpu.example.org", "Cookie": cookie.partition(";")[0]}
        async with served.client.get(served.page, headers=headers) as answer:
            assert f"wss://gpu.example.org/lm/{folder}ws" in await answer.text()
        for origin in (served.origin, "http://gpu.example.org", "https://evil.example"):
            assert await refused(served, {**headers, "Origin": origin}) == 403
        connection = await served.connect(headers={**headers, "Origin": "https://gpu.example.org"})
        await read_until(connection, "ready\r\n")


def size_of(console: psutil.Process) -> tuple[int, int]:
    """Return columns and rows of the terminal of a console."""
    descriptor = os.open(f"/proc/{console.pid}/fd/0", os.O_RDONLY | os.O_NOCTTY)
    try:
        rows, columns, *_ = struct.unpack("HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8))
    finally:
        os.close(descriptor)
    return columns, rows


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((144, 44), (144, 44)),
        ((3000, 3000), (MAX_COLUMNS, MAX_ROWS)),
        ((10**30, 10**30), (MAX_COLUMNS, MAX_ROWS)),
        ((0, -5), (1, 1)),
    ],
)
async def test_sizes_are_bounded(asked: tuple[int, int], expected: tuple[int, int]) -> None:
    columns, rows = asked
    async with serving() as served:
        await served.enter()
        connection = await served.connect({"width": str(columns), "height": str(rows)})
        await read_until(connection, "ready\r\n")
        (console,) = consoles()
        assert size_of(console) == expected
        await connection.send_json(["resize", {"width": 100, "height": 30}])
        await connection.send_json(["ping", "1"])
        assert (await connection.receive_json()) == ["pong", "1"]
        assert size_of(console) == (100, 30)
        await connection.send_json(["resize", {"width": columns, "height": rows}])
        await connection.send_json(["ping", "2"])
        assert (await connection.receive_json()) == ["pong", "2"]
        assert size_of(console) == expected


async def test_keys_reach_the_console_whole() -> None:
    async with serving(ECHOES) as served:
        await served.enter()
        connection = await served.connect({"width": "x"})
        await read_until(connection, "ready\r\n")
        await connection.send_json(["stdin", "größer ▁\n"])
        await read_until(connection, "got größer ▁")
        for number in range(60):  # more than a terminal holds at once
            await connection.send_json(["stdin", f"{number} {'x' * 2_000}\n"])
        assert f"got 0 {'x' * 2_000}" in await read_until(connection, f"got 59 {'x' * 2_000}")


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[" * 30_000,
        "null",
        "{}",
        '["stdin"]',
        '["stdin", 5]',
        '["resize", {"width": "9", "height": 9}]',
        '["resize", {"width": 1e9, "height": 9}]',
        '["open_url", "x"]',
        json.dumps(["stdin", "x" * MAX_MESSAGE_BYTES]),
        b"stdin",
    ],
    ids=lambda message: repr(message[:20]),
)
async def test_an_unexpected_message_ends_the_session(message: str | bytes) -> None:
    async with serving() as served:
        await served.enter()
        connection = await served.connect()
        await read_until(connection, "ready\r\n")
        await (connection.send_bytes(message) if isinstance(message, bytes) else connection.send_str(message))
        async with asyncio.timeout(PATIENCE_S):
            while (await connection.receive()).type not in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR):
                pass
        await until_there_are(0)


async def test_the_number_of_consoles_is_bounded() -> None:
    async with serving() as served:
        await served.enter()
        connections = [await served.connect() for _ in range(MAX_SESSIONS)]
        await until_there_are(MAX_SESSIONS)
        another = await served.connect()
        await read_until(another, f"{MAX_SESSIONS} consoles are open")
        assert (await another.receive()).type is WSMsgType.CLOSE
        await until_there_are(MAX_SESSIONS)
        await connections[0].close()
        await until_there_are(MAX_SESSIONS - 1)
        await read_until(await served.connect(), "ready\r\n")


@pytest.mark.parametrize("program", [WAITS, STUBBORN])
@pytest.mark.parametrize("polite", [True, False])
async def test_a_console_ends_with_its_page(program: str, polite: bool) -> None:
    async with serving(program) as served:
        await served.enter()
        connection = await served.connect()
        await read_until(connection, "ready\r\n")
        if polite:
            await connection.close()
        else:  # the browser was killed
            connection.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        await until_there_are(0)


@pytest.mark.parametrize("program", [WAITS, STUBBORN])
async def test_the_server_ends_its_consoles_at_once(program: str) -> None:
    async with serving(program) as served:
        await served.enter()
        for _ in range(3):
            await read_until(await served.connect(), "ready\r\n")
        began = time.monotonic()
    assert time.monotonic() - began < 6.0  # they have a second; a connection has ten, and the machine may be busy


async def test_the_last_output_of_a_console_reaches_the_page() -> None:
    async with serving(ENDS) as served:
        await served.enter()
        connection = await served.connect()
        await read_until(connection, "the last words")
        async with asyncio.timeout(PATIENCE_S):
            while (await connection.receive()).type is not WSMsgType.CLOSE:
                pass


async def test_a_console_that_cannot_be_started_is_reported_in_its_page() -> None:
    async with serving(python="/nowhere/python") as served:
        await served.enter()
        connection = await served.connect()
        await read_until(connection, "cannot be started: No such file")
        assert (await connection.receive()).type is WSMsgType.CLOSE


def test_the_script_of_this_version_was_read() -> None:
    assert version("textual-serve") in web_server.CHECKED_VERSIONS
