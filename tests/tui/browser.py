"""Debian's chromium, driven over the DevTools protocol, and the terminals in its pages."""

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from factories import kill_and_wait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 30.0
FIND_TERMINAL = """
    Object.defineProperty(Object.prototype, "terminal", {
        configurable: true,
        set(value) {
            window.lmconsoleTerminal ??= value;
            Object.defineProperty(this, "terminal", {value, writable: true, configurable: true, enumerable: true});
        },
    });
"""
"""Keeps the terminal, which textual-serve's script creates and nothing else can reach: it is drawn on a canvas."""
READ_TERMINAL = """
    (() => {
        const terminal = window.lmconsoleTerminal;
        if (!terminal) return [];
        const buffer = terminal.buffer.active;
        return Array.from(
            {length: terminal.rows},
            (_, y) => buffer.getLine(buffer.viewportY + y)?.translateToString(true, 0, terminal.cols) ?? "");
    })()
"""


class Page:
    """A page of the browser."""

    def __init__(self, browser: "Browser", target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the DevTools protocol in this page."""
        return await self._browser.call(method, session=self._session, **parameters)

    async def open(self, url: str) -> None:
        """Go to ``url``, and wait until it has been loaded."""
        before = self._loaded()
        answer = await self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        deadline = time.monotonic() + PATIENCE_S
        while self._loaded() == before:
            assert time.monotonic() < deadline, f"{url} is not loaded"
            await asyncio.sleep(0.02)

    def _loaded(self) -> int:
        loaded = ("Page.loadEventFired", self._session)
        return sum((event["method"], event.get("sessionId")) == loaded for event in self._browser.events)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, waiting for it if it is a promise."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def lines(self) -> list[str]:
        """Return the lines of the terminal; none if there is no terminal."""
        found: list[str] = await self.evaluate(READ_TERMINAL)
        return found

    async def shows(self, *words: str) -> str:
        """Wait until all of ``words`` are in the terminal, and return its text."""
        return await self.until(lambda text: all(each in text for each in words))

    async def until(self, condition: Callable[[str], object]) -> str:
        """Wait until ``condition`` holds for the text of the terminal, and return the text."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition(text := "\n".join(await self.lines())):
            assert time.monotonic() < deadline, f"timed out; the terminal shows\n{text}"
            await asyncio.sleep(0.1)
        return text

    async def press(self, keys: str) -> None:
        """Type characters."""
        for key in keys:
            await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
            await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def resize(self, width: int, height: int) -> None:
        """Change the size of the page, in pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def screenshot(self, path: Path) -> None:
        """Save a picture of the page as PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    async def close(self) -> None:
        """Close the page."""
        await self._browser.call("Target.closeTarget", targetId=self._target)


class Browser:
    """A browser without a window."""

    def __init__(self, process: "subprocess.Popen[str]", socket: aiohttp.ClientWebSocketResponse) -> None:
        self.process = process
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []
        """Events of all pages so far."""

    async def listen(self) -> None:
        """Receive answers and events until the connection ends."""
        async for message in self._socket:
            content = message.json()
            if "id" in content:
                self._answers.pop(content["id"]).set_result(content)
            else:
                self.events.append(content)

    async def call(self, method: str, *, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """Call a method of the DevTools protocol, and return its result."""
        number = next(self._numbers)
        request = {"id": number, "method": method, "params": parameters}
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(request if session is None else {**request, "sessionId": session})
        content = await asyncio.wait_for(answer, PATIENCE_S)
        assert "error" not in content, content["error"]
        result: dict[str, Any] = content["result"]
        return result

    async def new_page(self, url: str, width: int = 1300, height: int = 800) -> Page:
        """Open a page of ``width`` × ``height`` pixels."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Network", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=FIND_TERMINAL)
        await page.resize(width, height)
        await page.open(url)
        return page


@asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Browser]:
    """Start the browser with an empty ``profile``, and end it with the block."""
    assert CHROMIUM is not None
    options = ["--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")
    process = subprocess.Popen(
        [CHROMIUM, *options, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = profile / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE_S
        while not (port.exists() and len(words := port.read_text().split()) == 2):
            assert time.monotonic() < deadline, "chromium does not start"
            assert process.poll() is None, f"chromium ended with {process.returncode}"
            await asyncio.sleep(0.05)
        url = f"ws://127.0.0.1:{words[0]}{words[1]}"
        async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=0) as socket:
            browser = Browser(process, socket)
            listening = asyncio.create_task(browser.listen())
            yield browser
            await browser.call("Browser.close")
            await listening
    finally:
        kill_and_wait(process)
