"""Actions of the console, done as the command line does them. They may take long and run in a thread."""

import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmconsole.engine.ask import ask
from lmconsole.engine.option_values import parse_seeds
from lmconsole.engine.parse_request import parse_request
from lmconsole.engine.processes import python
from lmconsole.engine.queue import Action
from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.submit import describe_sharing, submit, wake_runner
from lmconsole.errors import LmconsoleError
from lmconsole.plan.presets import AUTO
from lmconsole.runs.store import Store
from lmconsole.tui.options import ConsoleOptions
from lmconsole.tui.snapshot import RunView

EXPORT_TIMEOUT_S = 600.0


def parse(options: ConsoleOptions, ids: Sequence[int], values: Mapping[str, str]) -> RunRequest:
    """Parse the form's ``values`` as `lmconsole run` does. Raises LmconsoleError with all problems."""
    given: dict[str, object] = {name: text for name, text in values.items() if text}
    given |= {"ids": [str(number) for number in ids], "experiments": options.experiments}
    given |= {"data": options.data, "embeddings": options.embeddings, "runs": options.store}
    # Active runs are no reason to refuse the others, and selected rows are in no order.
    return parse_request(
        {"preset": options.preset, **given}, wait_for_active=True, keep_order=False, export_folder=options.exports
    )


def sketch_seeds(ids: Sequence[int], seeds: str, views: Iterable[RunView]) -> str:
    """Return what the ``seeds`` of a form will show; empty if they are not seeds."""
    from lmconsole.claims import planner  # which imports scipy when it is used

    results = [(view.info, view.finished) for view in views if view.finished]
    try:
        count = len(parse_seeds(seeds)) if seeds else 1
    except ValueError:
        return ""
    return planner.sketch_seeds(ids, count, results)


@dataclass(frozen=True, kw_only=True, slots=True)
class StartResult:
    """Outcome of queuing runs from the console."""

    preset: str
    message: str
    warnings: tuple[str, ...]


ACTION_WORDS = {
    Action.NEW: "queued",
    Action.RESUME: "queued to resume",
    Action.TEST: "already trained, queued to be tested",
    Action.ACTIVE: "already active",
    Action.FINISHED: "already finished (R with other settings trains again)",
}


def start(request: RunRequest) -> StartResult:
    """Queue runs and make sure that a runner is at work. Raises LmconsoleError."""
    store = Store(request.runs)
    answer = ask(request)
    decisions = submit(store, answer, request)
    wake_runner(store)
    counts = Counter(decision.action for decision in decisions)
    done = ", ".join(f"{counts[action]} {words}" for action, words in ACTION_WORDS.items() if counts[action])
    devices = ", ".join(answer.device_names)
    sharing = f" {describe_sharing(answer, request)}." if counts[Action.NEW] else ""
    reason = f" ({answer.reason})" if request.preset == AUTO else ""
    return StartResult(
        preset=answer.preset,
        message=f"Preset {answer.preset}{reason}, {devices}: {done}.{sharing}",
        warnings=answer.warnings,
    )


def export(options: ConsoleOptions) -> tuple[list[Path], str]:
    """Write the exports in a child process, and return their paths and the results table in markdown. Raises
    LmconsoleError with the message of the child."""
    runs = ["--runs", str(options.store)]
    paths = _lmconsole("export", "--out", str(options.exports), *runs)
    return [Path(line) for line in paths.splitlines()], table(options, "markdown")


def table(options: ConsoleOptions, form: str) -> str:
    """Return the results table as ``markdown`` or ``latex``. Raises LmconsoleError if there is none."""
    return _lmconsole("export", "--format", form, "-o", "-", "--runs", str(options.store))


def _lmconsole(*arguments: str) -> str:
    """Run the ``lmconsole`` command out of sight and return its standard output."""
    try:
        done = subprocess.run(
            python("lmconsole", *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=EXPORT_TIMEOUT_S,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LmconsoleError(f"export: {error}") from None
    if done.returncode:
        message = done.stderr.strip().removeprefix("lmconsole: ")
        raise LmconsoleError(message or f"export: exit code {done.returncode}")
    return done.stdout
