"""`lmconsole serve` with a real browser, and what remains after it."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web
from factories import alive, kill_and_wait
from tui.browser import CHROMIUM, Page, chromium
from tui.stage import Stage
from yarl import URL

PATIENCE_S = 30.0
AT_ONCE_S = 6.0
"""More than the second that consoles have to end, on a busy machine, and less than any time limit of a connection."""
MAX_CONSOLE_MIB = 200
PERPLEXITIES = re.compile(r"^ [■□] +(\d+) +(?:LSTM|GPT-1).* ([\d.,]+) +([\d.,]+) +\d+ s", re.MULTILINE)
"""The row of an experiment: its id, and perplexities of train and validation."""

pytestmark = pytest.mark.slow
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium: on Debian and Ubuntu, `apt-get install chromium`"
)


class Server:
    """`lmconsole serve` on the store of ``stage``."""

    def __init__(self, stage: Stage, *words: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "lmconsole", "serve", "--port", str(self.port), *words]
        self.process = subprocess.Popen(
            [*command, "--runs", str(stage.store.root)],
            cwd=stage.root,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMUX": "/tmp/none,1,0", "COLUMNS": "0"},
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http\S+\?token=([\w-]+)", line)
        assert found, line
        self.url, self.token = found.group(), found.group(1)

    def consoles(self) -> list[psutil.Process]:
        """Return all processes that the server has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    async def has_consoles(self, number: int) -> list[psutil.Process]:
        """Wait until there are ``number`` consoles."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := self.consoles()) != number:
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)
        return found

    def interrupt(self) -> float:
        """Press Ctrl-C, and return the seconds until the server has ended."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE_S) == 0
        return time.monotonic() - began


@pytest.fixture
def server(stage: Stage) -> Iterator[Server]:
    """Serve a store of twelve finished runs."""
    for number in range(1, 13):
        stage.record(number, valid=[6.0 - 0.2 * epoch - 0.01 * number for epoch in range(6)])
    server = Server(stage)
    yield server
    kill_and_wait(server.process)
    assert server.process.stderr is not None
    server.process.stderr.close()


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Wait a little for ``processes`` to end; return whether they have."""
    deadline = time.monotonic() + 5.0
    while any(alive(process.pid) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@needs_browser
async def test_a_browser_shows_the_console_as_a_terminal_does(server: Server, tmp_path: Path) -> None:
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.new_page(server.url)
        await page.shows("12 finished", "Trend")
        text = await page.until(lambda text: len(PERPLEXITIES.findall(text)) == 12 and "200┤" in text)
        rows = PERPLEXITIES.findall(text)
        assert [int(number) for number, *_ in rows] == list(range(1, 13))
        assert rows[0][2] == "146.9"
        assert rows[11][2] == "131.6"
        assert re.search(r"[⠀-⣿]{3}", text), "curves are drawn"
        assert await page.evaluate("location.href") not in ("", server.url)
        assert server.token not in await page.evaluate("location.href")
        assert await page.evaluate("document.cookie") == "", "scripts cannot read it"
        await page.press("a")
        await page.shows("12 selected", "12 GPT-1 4L AdamW")
        assert len(await colors_of(page)) > 8, "curves have their colors on the screen"
        for width, height in ((700, 420), (1900, 1000), (320, 200), (1300, 800)):
            await page.resize(width, height)
            await page.until(partial(fills, width))
            await page.shows("Adam")
        await page.shows("Trend", "12 selected")
        second = await browser.new_page(server.url, 900, 600)
        await second.shows("12 finished")
        await server.has_consoles(2)
        assert "selected" not in "\n".join(await second.lines()), "each page has a console of its own"
        (one, other) = server.consoles()
        assert max(one.memory_info().rss, other.memory_info().rss) / 2**20 < MAX_CONSOLE_MIB
        await asyncio.sleep(1.0)
        before, before_s = received_bytes(browser.events), busy_s([one, other])
        await asyncio.sleep(4.0)
        assert received_bytes(browser.events) - before < 8_000, "two idle consoles in four seconds"
        assert busy_s([one, other]) - before_s < 1.0
        await page.close()
        assert gone([one])
        await server.has_consoles(1)
        await second.press("q")
        await server.has_consoles(0)
        assert await second.evaluate("document.body.classList.contains('-closed')")
        await second.close()
        requested = {
            event["params"]["request"]["url"]
            for event in browser.events
            if event["method"] == "Network.requestWillBeSent"
        }
        assert all(url.startswith((server.origin, "data:")) for url in requested), "nothing comes from elsewhere"
        problems = [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]
        assert problems == []
    assert server.interrupt() < AT_ONCE_S


def fills(width: int, text: str) -> bool:
    """Whether the longest line of ``text`` fills a page of ``width`` pixels."""
    columns = width / 9.6
    return 0.9 * columns < max(map(len, text.splitlines()), default=0) <= 1.1 * columns


def received_bytes(events: Sequence[dict[str, Any]]) -> int:
    """Return the bytes that pages have received over their WebSockets, from the length of their base64 text."""
    frames = [event["params"] for event in events if event["method"] == "Network.webSocketFrameReceived"]
    return sum(len(frame["response"]["payloadData"]) * 3 // 4 for frame in frames)


def busy_s(processes: Sequence[psutil.Process]) -> float:
    """Return the processor time that ``processes`` have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def colors_of(page: Page) -> set[tuple[int, ...]]:
    """Return the colors of a picture of the page that are neither dark nor gray."""
    from PIL import Image

    path = Path("page.png")
    await page.screenshot(path)
    with Image.open(path) as image:
        found = image.convert("RGB").getcolors(1 << 24) or []
    colors = [color for count, color in found if count > 20 and isinstance(color, tuple)]
    return {color for color in colors if max(color) - min(color) > 60}


@needs_browser
async def test_consoles_end_when_the_browser_is_killed(server: Server, tmp_path: Path) -> None:
    with contextlib.suppress(ConnectionError, asyncio.TimeoutError, AssertionError):
        async with chromium(tmp_path / "profile") as browser:
            page = await browser.new_page(server.url)
            await page.shows("12 finished")
            (console,) = await server.has_consoles(1)
            own = psutil.Process(browser.process.pid)
            processes = [own, *own.children(recursive=True)]
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=5.0)
            raise ConnectionError
    assert gone([console])
    assert server.interrupt() < AT_ONCE_S


OPEN_SOCKET = """url => new Promise(resolve => {
    const socket = new WebSocket(url);
    socket.onopen = () => resolve("open");
    socket.onerror = () => resolve("refused");
})"""
LOAD_SCRIPT = """url => new Promise(resolve => {
    const script = document.createElement("script");
    script.onload = () => resolve("loaded");
    script.onerror = () => resolve("refused");
    script.src = url;
    document.head.append(script);
})"""


@contextlib.asynccontextmanager
async def foreign_site() -> AsyncIterator[str]:
    """Serve a page on another port of the same host, to which browsers send the same cookies."""

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="<!DOCTYPE html><title>Foreign</title>", content_type="text/html")

    application = web.Application()
    application.add_routes([web.get("/{path:.*}", page)])
    runner = web.AppRunner(application)
    await runner.setup()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        await web.SockSite(runner, bound).start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        await runner.cleanup()


@needs_browser
async def test_a_page_of_another_site_is_refused_in_the_browser(server: Server, tmp_path: Path) -> None:
    async with chromium(tmp_path / "profile") as browser, foreign_site() as site:
        own = await browser.new_page(server.url)
        await own.shows("12 finished")
        address = await own.evaluate("location.pathname")
        # Below the same path the browser sends the cookie: the foreign page knows it here, which it does not otherwise.
        foreign = await browser.new_page(f"{site}{address}")
        target = f"127.0.0.1:{server.port}{address}"
        assert await foreign.evaluate(f"({OPEN_SOCKET})('ws://{target}ws?width=80&height=24')") == "refused"
        assert await foreign.evaluate(f"({LOAD_SCRIPT})('http://{target}static/js/textual.js')") == "refused"
        cookies = await foreign.call("Network.getCookies", urls=[f"http://{target}"])
        assert [each["name"] for each in cookies["cookies"]] == [f"lmconsole-{server.port}"], "it was present"
        await server.has_consoles(1)
        assert await own.evaluate(f"({OPEN_SOCKET})('ws://{target}ws?width=80&height=24')") == "open"
        await server.has_consoles(2)


@needs_browser
async def test_a_link_on_another_site_opens_the_console_and_a_frame_does_not(server: Server, tmp_path: Path) -> None:
    async with chromium(tmp_path / "profile") as browser, foreign_site() as site:
        page = await browser.new_page(site.replace("127.0.0.1", "localhost"))  # to browsers another site
        frame = "document.body.append(Object.assign(document.createElement('iframe'), {src: '%s'}))"
        await page.evaluate(frame % server.url)
        await asyncio.sleep(1.0)
        assert server.consoles() == []
        await page.evaluate(f"void (location.href = '{server.url}')")
        await page.shows("12 finished")
        assert server.token not in await page.evaluate("location.href")


@contextlib.asynccontextmanager
async def two_pages(server: Server) -> AsyncIterator[list[psutil.Process]]:
    """Open two pages without a browser, and yield their consoles, which have drawn the store."""
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)))
        async with client.get(server.url) as response:
            page = response.url
        for _ in range(2):
            connection = await client.ws_connect(page.join(URL("ws")), headers={"Origin": server.origin})
            stack.push_async_callback(connection.close)
            seen = b""
            async with asyncio.timeout(PATIENCE_S):
                while b"finished" not in seen:
                    seen += await connection.receive_bytes()
        yield await server.has_consoles(2)


async def test_ctrl_c_ends_the_server_and_its_consoles(server: Server) -> None:
    async with two_pages(server) as consoles:
        assert server.interrupt() < AT_ONCE_S
        assert gone(consoles)


async def test_consoles_end_with_a_server_that_is_killed(server: Server) -> None:
    async with two_pages(server) as consoles:
        server.process.kill()
        assert gone(consoles)


async def test_other_users_of_the_machine_do_not_see_the_token(server: Server) -> None:
    async with two_pages(server) as consoles:
        for process in (psutil.Process(server.process.pid), *consoles):
            assert server.token not in " ".join(process.cmdline())
            assert server.token not in str(process.environ())
