"""Opening the console: what must be settled before Textual is imported, and the message after it has closed."""

import gc
import os
import sys
from pathlib import Path

from lmconsole.engine.run_options import RunRequest
from lmconsole.errors import ExitCode, LmconsoleError
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import AUTO, unknown
from lmconsole.runs.store import Store
from lmconsole.tui.options import ConsoleOptions

COLOR_SYSTEMS = frozenset({"auto", "standard", "256", "truecolor"})
TEXTUAL_VARIABLES = frozenset(
    {"TEXTUAL_ANIMATIONS", "TEXTUAL_COLOR_SYSTEM", "TEXTUAL_FPS", "TEXTUAL_SMOOTH_SCROLL", "TEXTUAL_DISABLE_KITTY_KEY"}
)
"""Variables of Textual that a person may set for the console. Others are for developing apps: they press keys, choose
a driver or connect to a debugger."""


def terminal_problem() -> str | None:
    """Return why the console cannot be shown here; None if it can."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "no terminal to open the console in"
    if os.environ.get("TERM", "dumb") in ("", "dumb"):
        return "this terminal (TERM=dumb) cannot show the console"
    return None


def open_console(
    preset: str,
    runs: Path,
    experiments: Path | None,
    data: Path | None,
    embeddings: Path | None,
    theme: str | None = None,
    *,
    slow: bool = False,
    submit: RunRequest | None = None,
) -> ExitCode:
    """Open the console and wait until it is closed.

    Raises:
        LmconsoleError: there is no terminal, or an argument or a file is wrong.
    """
    problem = terminal_problem()
    if problem:
        raise LmconsoleError(problem, hint="`lmconsole run --all --headless` trains without the console.")
    plan = load_plan(experiments)
    if preset != AUTO and preset not in plan.presets:
        raise LmconsoleError(unknown("preset", preset, [AUTO, *plan.presets]))
    Store(runs).names()
    _prepare(slow)
    gc.disable()  # until the first frame is drawn: nothing that is imported can be freed
    from lmconsole.tui.app import ConsoleApp
    from lmconsole.tui.terminal.driver import BackpressureDriver

    options = ConsoleOptions(
        plan=plan,
        store=runs,
        exports=Path("exports").absolute(),
        preset=preset,
        experiments=experiments,
        data=data,
        embeddings=embeddings,
        theme=theme,
        slow=slow,
        submit=submit,
    )
    app = ConsoleApp(options, driver_class=BackpressureDriver)
    if theme is not None and theme not in app.theme_names:
        raise LmconsoleError(unknown("theme", theme, sorted(app.theme_names)))
    message = app.run()
    if app.return_code:
        return ExitCode.RUN_FAILED
    if message:
        print(message, file=sys.stderr)
    return ExitCode.OK


def open_console_on(request: RunRequest) -> ExitCode:
    """Open the console, queue the runs of ``request``, and wait until it is closed. Raises LmconsoleError."""
    return open_console(
        request.preset, request.runs, request.experiments, request.data, request.embeddings, submit=request
    )


def _prepare(slow: bool) -> None:
    """Set the environment variables that Textual reads when it is imported."""
    for size in ("COLUMNS", "LINES"):
        os.environ.pop(size, None)  # those from the start of the shell would override the size of the window for good
    for name in [name for name in os.environ if name.startswith("TEXTUAL") and name not in TEXTUAL_VARIABLES]:
        del os.environ[name]
    if os.environ.get("TEXTUAL_COLOR_SYSTEM", "auto") not in COLOR_SYSTEMS:
        del os.environ["TEXTUAL_COLOR_SYSTEM"]
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
    os.environ.setdefault("TEXTUAL_SMOOTH_SCROLL", "0")
    os.environ.setdefault("TEXTUAL_FPS", "15" if slow else "30")
    if slow:
        os.environ.setdefault("TEXTUAL_COLOR_SYSTEM", "256")
