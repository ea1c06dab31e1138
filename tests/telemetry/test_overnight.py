"""`doctor` says what would interrupt a night. systemd is imitated by two programs and one file."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lmconsole.telemetry.overnight import clock_synchronized, interruptions


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder with what ``loginctl`` and ``timedatectl`` print."""
    (tmp_path / "bin").mkdir()
    for name in ("loginctl", "timedatectl"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\nexec cat {tmp_path / name}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    return tmp_path


def found(root: Path) -> str:
    return "; ".join(f"{what}: {advice}" for what, advice in interruptions(root / "scheduled"))


def test_nothing_is_claimed_without_systemd_and_a_battery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert found(tmp_path) == ""
    assert clock_synchronized() is None


def test_suspend_shutdown_and_battery_are_found(systemd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (systemd / "loginctl").write_text("IdleAction=suspend\nHandleLidSwitch=suspend\n")
    assert "systemd runs suspend when the machine is idle (IdleAction): Set IdleAction=ignore" in found(systemd)
    assert "lid" not in found(systemd), "a machine without a battery has none"
    (systemd / "loginctl").write_text("IdleAction=lock\nHandleLidSwitch=suspend\n")
    assert found(systemd) == ""
    battery = SimpleNamespace(power_plugged=False, percent=41.6)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert found(systemd) == "on battery, 42% left: Plug it in.; closing the lid runs suspend: Leave it open."
    (systemd / "scheduled").write_text("USEC=1795734000000000\nWARN_WALL=1\nMODE=reboot\n")
    assert found(systemd).startswith("a shutdown is scheduled for 2026-11-2")
    for damaged in ("", "USEC=x\n", f"USEC={10**30}\n"):
        (systemd / "scheduled").write_text(damaged)
        assert "shutdown" not in found(systemd)


@pytest.mark.parametrize(("answer", "expected"), [("yes", True), ("no", False), ("", None)])
def test_the_clock_is_synchronized_as_systemd_says(systemd: Path, answer: str, *, expected: bool | None) -> None:
    (systemd / "timedatectl").write_text(f"NTPSynchronized={answer}\n")
    assert clock_synchronized() is expected
