"""What the console asks for, as the command line does it. Every function here may take long and runs in a thread."""

import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from lmconsole.engine.probe import ask
from lmconsole.engine.processes import python
from lmconsole.engine.queue import Action
from lmconsole.engine.run_options import RunOptions, run_options
from lmconsole.engine.submit import sharing_words, submit, wake_runner
from lmconsole.errors import LmconsoleError
from lmconsole.runs.store import Store
from lmconsole.tui.options import ConsoleOptions

EXPORT_TIMEOUT_S = 600.0


def parse(options: ConsoleOptions, ids: Sequence[int], words: dict[str, str]) -> RunOptions:
    """The words of the form as `lmconsole run` takes them. Raises LmconsoleError with all that is wrong."""
    epochs = None
    if text := words.get("epochs"):
        try:
            epochs = int(text)
        except ValueError:
            raise LmconsoleError(f"epochs {text!r}: expected a whole number") from None
    parsed = run_options(
        ids=[str(number) for number in ids],
        everything=False,  # the ids are named
        preset=words.get("preset") or options.preset,
        epochs=epochs,
        seeds=words.get("seeds") or None,
        max_tokens=None,
        device=words.get("device") or "auto",
        precision=words.get("precision") or None,
        jobs=words.get("jobs") or "auto",
        data=options.data,
        embeddings=options.embeddings,
        experiments=options.experiments,
        runs=options.store,
        fresh=False,
        exports=options.exports,
        on_finish=None,
        json=False,
    )
    # Runs under way are no reason to refuse the others, and rows that were selected are in no order.
    return msgspec.structs.replace(parsed, everything=True, typed_order=False)


class Started(NamedTuple):
    """What queuing has come to."""

    preset: str
    words: str
    warnings: tuple[str, ...]


def start(options: RunOptions) -> Started:
    """Queue runs and see that a runner is at work. Raises LmconsoleError."""
    store = Store(options.store)
    answer = ask(options.probe)
    decisions = submit(store, answer, options)
    wake_runner(store)
    counts = Counter(decision.action for decision in decisions)
    words = {
        Action.NEW: "queued",
        Action.RESUME: "queued to resume",
        Action.ACTIVE: "already under way",
        Action.FINISHED: "finished before (R with other settings trains anew)",
    }
    done = ", ".join(f"{counts[action]} {words[action]}" for action in words if counts[action])
    devices = ", ".join(answer.device_names)
    sharing = f" New runs: {sharing_words(answer, options)}." if counts[Action.NEW] else ""
    said = f"Preset {answer.preset} ({answer.reason}), {devices}: {done}.{sharing}"
    return Started(answer.preset, said, answer.warnings)


def export(options: ConsoleOptions) -> tuple[list[Path], str]:
    """Write the exports, in a process of its own: what was written, and the results table in markdown. Raises
    LmconsoleError with what it said."""
    runs = ["--runs", str(options.store)]
    paths = _lmconsole("export", "--out", str(options.exports), *runs)
    return [Path(line) for line in paths.splitlines()], table(options, "markdown")


def table(options: ConsoleOptions, form: str) -> str:
    """The results table as ``markdown`` or ``latex``. Raises LmconsoleError if there is none."""
    return _lmconsole("export", "--format", form, "-o", "-", "--runs", str(options.store))


def _lmconsole(*arguments: str) -> str:
    """Standard output of our own command, which never reaches the screen."""
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
        said = done.stderr.strip().removeprefix("lmconsole: ")
        raise LmconsoleError(said or f"export: exit code {done.returncode}")
    return done.stdout
