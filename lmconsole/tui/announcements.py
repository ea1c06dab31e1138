"""Notifications about what has changed between two snapshots."""

from dataclasses import dataclass

from textual.notifications import SeverityLevel

from lmconsole.errors import escape_control_characters
from lmconsole.runs.state import Status
from lmconsole.tui.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class Announcement:
    """A notification, with the bell if it is urgent."""

    text: str
    title: str = ""
    severity: SeverityLevel = "information"
    bell: bool = False


class Announcer:
    """Compares each snapshot with the one before. It must be given every snapshot that is shown: a run that was seen
    running is announced when it has ended."""

    def __init__(self, details_key: str = "enter") -> None:
        self._details_key = details_key
        self._active: frozenset[str] = frozenset()
        self._message_count = 0

    def update(self, snapshot: Snapshot) -> list[Announcement]:
        """Return announcements of the runner's new messages, and of the end of the last active run."""
        announcements = [
            Announcement(text=escape_control_characters(message[0].upper() + message[1:]))
            for message in snapshot.messages[self._message_count :]
        ]
        self._message_count = len(snapshot.messages)
        active = frozenset(view.run for view in snapshot.runs.values() if view.status.active or view.slurm.interrupted)
        if self._active and not active:
            ended = [snapshot.runs[name] for name in self._active if name in snapshot.runs]
            failed = sum(view.failed is not None or view.status is Status.LOST for view in ended)
            runs = "1 run" if failed == 1 else f"{failed} runs"
            reason = f"Press {self._details_key} on a failed row for the reason."
            text = f"{runs} failed. {reason}" if failed else "The queue is empty."
            severity: SeverityLevel = "warning" if failed else "information"
            announcements.append(Announcement(text=text, title="All runs have ended", severity=severity, bell=True))
        self._active = active
        return announcements
