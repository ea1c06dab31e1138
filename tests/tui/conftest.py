"""Fixtures that give each test of the console its own home, settings and locale, and run coroutines."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from tui.stage import Stage

from lmconsole.tui.plot import glyphs


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


@pytest.fixture(autouse=True)
def isolated_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate the test from the settings of the user and the terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("config", "cache", "data"):
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / f"user-{name}"))
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    set_locale(monkeypatch, "C.UTF-8")
    tiny.fork_children(monkeypatch)
    monkeypatch.setattr("textual._wait.SLEEP_GRANULARITY", 0.005, raising=False)  # the pilot polls often


def set_locale(monkeypatch: pytest.MonkeyPatch, locale: str) -> None:
    """Start the console as if ``LC_ALL`` were ``locale``."""
    monkeypatch.setattr(glyphs, "_initial_environment", lambda: {"LC_ALL": locale})


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Return an empty store, with methods to fill it."""
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture
def ascii_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a locale without Unicode."""
    set_locale(monkeypatch, "C")
