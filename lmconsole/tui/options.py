"""What the console is opened with."""

from dataclasses import dataclass
from pathlib import Path

from lmconsole.engine.run_options import RunRequest
from lmconsole.plan.presets import Plan


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """`lmconsole`, parsed and checked."""

    plan: Plan
    store: Path
    exports: Path
    preset: str = "auto"
    experiments: Path | None = None
    data: Path | None = None
    embeddings: Path | None = None
    theme: str | None = None
    """None: the one last used."""
    slow: bool = False
    """Draw seldom and in few colours, for a slow line."""
    submit: RunRequest | None = None
    """Runs to queue at once, as `lmconsole run` asks."""
