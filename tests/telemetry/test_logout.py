"""`doctor` says when systemd would end runs at logout. systemd itself is imitated by its files and one program."""

from pathlib import Path

import pytest

from lmconsole.telemetry.logout import logout_risk

SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"
MANAGER = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n"
OLD_SESSION = "4:memory:/user.slice\n1:name=systemd:/user.slice/user-1000.slice/session-c2.scope\n0::/\n"


def risk(root: Path, group: str, *, linger: bool = False) -> str:
    """Return reason and advice for the user ``ada`` in this cgroup; empty if there is no risk."""
    (root / "cgroup").write_text(group)
    (root / "linger").mkdir(exist_ok=True)
    if linger:
        (root / "linger" / "ada").touch()
    return " ".join(logout_risk("ada", root / "cgroup", root / "linger") or ())


@pytest.fixture
def logind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file with what ``loginctl`` prints."""
    program = tmp_path / "bin" / "loginctl"
    program.parent.mkdir()
    answer = tmp_path / "answer"
    program.write_text(f'#!/bin/sh\n[ "$1" = show-session ] && exec cat {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return answer


@pytest.mark.parametrize("group", [SESSION, OLD_SESSION])
@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ("KillUserProcesses=yes\nKillOnlyUsers=\nKillExcludeUsers=root\n", True),
        ("KillUserProcesses=no\nKillOnlyUsers=\nKillExcludeUsers=root\n", False),
        ("KillUserProcesses=yes\nKillOnlyUsers=\nKillExcludeUsers=root ada\n", False),
        ("KillUserProcesses=yes\nKillOnlyUsers=bob\nKillExcludeUsers=root\n", False),
        ("KillUserProcesses=no\nKillOnlyUsers=bob ada\nKillExcludeUsers=\n", True),
        ("", False),
    ],
)
def test_processes_of_a_session_end_if_logind_is_set_so(
    tmp_path: Path, logind: Path, group: str, settings: str, ends: bool
) -> None:
    logind.write_text(settings)
    found = risk(tmp_path, group)
    assert ("KillUserProcesses=yes" in found) == ends
    assert ("systemd-run --user --scope" in found) == ("loginctl enable-linger" in found) == ends
    lingering = risk(tmp_path, group, linger=True)
    assert ("systemd-run --user --scope" in lingering) == ends
    assert "loginctl enable-linger" not in lingering


def test_processes_of_the_user_manager_end_unless_the_user_lingers(tmp_path: Path) -> None:
    assert "lingering is off Turn it on: loginctl enable-linger" in risk(tmp_path, MANAGER)
    assert risk(tmp_path, MANAGER, linger=True) == ""


@pytest.mark.parametrize("group", ["0::/\n", "0::/system.slice/ssh.service\n", "", "0::/docker/1234\n"])
def test_without_a_session_nothing_is_at_risk(tmp_path: Path, group: str) -> None:
    assert risk(tmp_path, group) == ""
    assert logout_risk("ada", tmp_path / "missing", tmp_path) is None


def test_without_loginctl_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert risk(tmp_path, SESSION) == ""
