"""Every test of the console has a home, a configuration and a locale of its own, and may be a coroutine."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from tui.stage import Stage

from lmconsole.tui.plot import glyphs


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the console reads of the person and the terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("config", "cache", "data"):
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / f"user-{name}"))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    speak(monkeypatch, "C.UTF-8")
    monkeypatch.setattr("textual._wait.SLEEP_GRANULARITY", 0.005, raising=False)  # the pilot looks often


def speak(monkeypatch: pytest.MonkeyPatch, locale: str) -> None:
    """Let the console believe that it was started with this ``LC_ALL``."""
    monkeypatch.setattr(glyphs, "_initial_environment", lambda: {"LC_ALL": locale})


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """An empty store, and all it takes to fill it."""
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture
def ascii_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal without Unicode."""
    speak(monkeypatch, "C")
