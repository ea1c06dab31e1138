"""Options of the console."""

from dataclasses import dataclass
from pathlib import Path

from lmconsole.engine.run_options import RunRequest
from lmconsole.plan.presets import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsoleOptions:
    """Everything the console is opened with, parsed and checked."""

    plan: Plan
    store: Path
    exports: Path
    preset: str = "auto"
    experiments: Path | None = None
    data: Path | None = None
    embeddings: Path | None = None
    theme: str | None = None
    """None: the theme last used."""
    slow: bool = False
    """Draw less often and in fewer colors, for a slow connection."""
    submit: RunRequest | None = None
    """Runs to queue as soon as the console is open."""
