"""Interruptions of a night of training, apart from a logout: suspend, an empty battery, a shutdown. And whether the
clock is right. A machine that does not say has no answer."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil

TIMEOUT_S = 5.0
SCHEDULED = Path("/run/systemd/shutdown/scheduled")
SUSPENDS = ("suspend", "hibernate", "hybrid-sleep", "suspend-then-hibernate", "sleep")
ENDS = ("poweroff", "halt", "reboot", "kexec", *SUSPENDS)


def interruptions(scheduled: Path = SCHEDULED) -> list[tuple[str, str]]:
    """Return what may interrupt a night, and what to do about each."""
    found = []
    if when := _shutdown(scheduled):
        found.append((f"a shutdown is scheduled for {when}", "Cancel it: shutdown -c"))
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    if battery is not None and battery.power_plugged is False:
        found.append((f"on battery, {battery.percent:.0f}% left", "Plug it in."))
    login = ask("loginctl", "show-session", "--property=IdleAction", "--property=HandleLidSwitch")
    if login.get("IdleAction") in ENDS:
        found.append(
            (
                f"systemd runs {login['IdleAction']} when the machine is idle (IdleAction)",
                "Set IdleAction=ignore in /etc/systemd/logind.conf, or start lmconsole with systemd-inhibit.",
            )
        )
    if battery is not None and login.get("HandleLidSwitch") in ENDS:
        found.append((f"closing the lid runs {login['HandleLidSwitch']}", "Leave it open."))
    return found


def clock_synchronized() -> bool | None:
    """Return whether the clock is synchronized with a time server, as systemd says."""
    answer = ask("timedatectl", "show", "--property=NTPSynchronized").get("NTPSynchronized")
    return None if answer not in ("yes", "no") else answer == "yes"


def ask(*command: str) -> dict[str, str]:
    """Return the properties that a program of systemd prints; none where it cannot."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = done.stdout.decode(errors="replace").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _shutdown(scheduled: Path) -> str | None:
    """Return when systemd will shut down or reboot, from the file in which it keeps that."""
    try:
        lines = scheduled.read_text(encoding="utf-8").splitlines()
        microseconds = next(int(line.removeprefix("USEC=")) for line in lines if line.startswith("USEC="))
        return datetime.fromtimestamp(microseconds / 1e6, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OSError, ValueError, StopIteration, OverflowError):
        return None
