"""The fate of running processes when their user logs out, as systemd decides it."""

import getpass
import re
from pathlib import Path

from lmconsole.telemetry.overnight import ask

LINGER = "loginctl enable-linger"
START = "systemd-run --user --scope lmconsole"


def logout_risk(
    user: str | None = None, cgroup: Path = Path("/proc/self/cgroup"), lingering: Path = Path("/var/lib/systemd/linger")
) -> tuple[str, str] | None:
    """Return why processes that are started here end when the user logs out, and what to do about it.

    None if they go on, or if systemd does not manage this login, which the name in ``cgroup`` tells.
    """
    try:
        user = user or getpass.getuser()
        group = cgroup.read_text(encoding="utf-8")
    except (OSError, KeyError, UnicodeDecodeError):
        return None
    lingers = (lingering / user).exists()
    if re.search(r"/user@\d+\.service(/|$)", group, re.MULTILINE):
        reason = "processes end with your last session, since lingering is off"
        return None if lingers else (reason, f"Turn it on: {LINGER}")
    if re.search(r"/session-[^/]+\.scope(/|$)", group, re.MULTILINE) and _kills_processes(user):
        advice = f"Start runs outside the session: {START}"
        if not lingers:
            advice = f"{advice}; before that, once: {LINGER}"
        return "systemd ends all processes of a session at its end (KillUserProcesses=yes)", advice
    return None


def _kills_processes(user: str) -> bool:
    """Return whether logind ends the processes of this user's sessions, from its settings and built-in defaults."""
    names = ("KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers")
    found = ask("loginctl", "show-session", *(f"--property={name}" for name in names))
    if user in found.get("KillExcludeUsers", "").split():
        return False
    only = found.get("KillOnlyUsers", "").split()
    return user in only if only else found.get("KillUserProcesses") == "yes"
