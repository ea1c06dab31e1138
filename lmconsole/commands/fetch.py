"""`lmconsole data fetch` and `run --fetch`: downloads from the Hugging Face Hub, with a progress bar."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from lmconsole.commands.interrupts import Interrupted
from lmconsole.commands.output import console, print_data, print_json, print_json_line, print_message
from lmconsole.data.fetch import (
    FILES,
    Fetched,
    Missing,
    bring_by_hand,
    fetch_gpt1,
    fetch_wikitext2,
    find_missing,
    from_folder,
    from_hub,
    has_corpus_files,
    needed_files,
    target_folder,
)
from lmconsole.data.hub_blobs import Listener
from lmconsole.data.hub_corpus import fetch_data
from lmconsole.data.hub_names import HubData, hub_folder, parse_hub_data
from lmconsole.data.lookup import find_data, find_embeddings, user_data_folder
from lmconsole.engine.run_options import RunRequest
from lmconsole.errors import HubError, LmconsoleError
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import AUTO, unknown

Result = TypeVar("Result")

PARTS = {"wikitext-2": ("wikitext-2",), "gpt1": ("gpt1",), "all": ("wikitext-2", "gpt1")}
REPORT_S = 5.0
"""Seconds between two lines on a download, where there is no terminal for a bar."""


class FetchResult(msgspec.Struct, frozen=True, kw_only=True):
    """Files of a download, as `data fetch --json` prints them."""

    folder: str
    """Absolute path of the folder, which `--data` takes."""
    files: tuple[str, ...]
    """Absolute paths of the files that were saved, or were there before."""
    warnings: tuple[str, ...]
    """Messages for people about data that differ from those of the published results."""


class PlannedDownload(msgspec.Struct, frozen=True, kw_only=True):
    """Downloads of a run, as `run --dry-run --json` prints them in place of the plan if data are missing."""

    would_download: tuple[str, ...]
    """Addresses of files, or names of data sets."""
    folder: str
    """Absolute path of the folder in which they would be saved."""


def fetch(what: str, out: Path | None, source: Path | None, *, json: bool) -> None:
    """Download ``what``, save it in ``out`` or where the look-up of data finds it, and print that folder.

    Args:
        source: folder with the files of the hub, to read instead of downloading them.

    Raises:
        LmconsoleError: something cannot be downloaded or used.
    """
    data = parse_hub_data(what)
    if data is None and what not in PARTS:
        raise LmconsoleError(
            unknown("download", what, list(PARTS)), hint="A data set of the hub is written hub:OWNER/NAME."
        )
    if data is not None:
        if source is not None:
            raise LmconsoleError(
                f"--files has no effect on {what}", hint="Text that is on this machine is read with --data FOLDER."
            )
        folder = (out or hub_folder(data)).absolute()
        done = [_fetch_data(data, folder)]
    else:
        if out is None and what != "gpt1" and parse_hub_data(os.environ.get("LMCONSOLE_DATA", "")):
            raise LmconsoleError("LMCONSOLE_DATA names another data set", hint="Unset it, or name a folder with --out.")
        folder = target_folder(out, os.environ, Path.cwd())
        done = _fetch_parts(PARTS[what], folder, what, source)
    if json:
        files = tuple(str(path) for each in done for path in each.files)
        warnings = tuple(each.warning for each in done if each.warning)
        print_json(FetchResult(folder=str(folder), files=files, warnings=warnings))
    else:
        print_data(str(folder))
    if data is None:
        _say_how_to_use(folder)


def fetch_for_run(request: RunRequest) -> bool:
    """Download what a run needs and this machine lacks, and return True.

    With ``request.dry_run``, nothing is downloaded: what would be is printed, and False is returned, since the rest of
    the plan depends on it. Raises LmconsoleError.
    """
    named = str(request.data or os.environ.get("LMCONSOLE_DATA") or "")
    data = parse_hub_data(named)
    if data is not None and not has_corpus_files(hub_folder(data)):
        if request.dry_run:
            _show_plan(request, hub_folder(data), [f"hub:{data.name}"], f"hub:{data.name}")
            return False
        _fetch_data(data, hub_folder(data))
    missing = _missing(request) if request.fetch else None
    if missing is None or not missing.parts:
        return True
    what = "all" if len(missing.parts) > 1 else missing.parts[0]
    if request.dry_run:
        _show_plan(request, missing.folder, [file.url for file in FILES[what]], what)
        return False
    _fetch_parts(missing.parts, missing.folder, what, None)
    return True


def _show_plan(request: RunRequest, folder: Path, names: list[str], what: str) -> None:
    """Print what a run would download before everything else."""
    if request.json:
        print_json_line(PlannedDownload(would_download=tuple(names), folder=str(folder)))
        return
    print_data("\n".join([f"would download to {folder}:", *(f"  {name}" for name in names)]))
    print_message(f"The settings of the runs depend on these files. Download them with `lmconsole data fetch {what}`.")


def _missing(request: RunRequest) -> Missing | None:
    """Return what the runs of a request need and this machine lacks; None if they need no data. The preset ``auto``
    means ``paper`` here."""
    plan = load_plan(request.experiments)
    preset = "paper" if request.preset == AUTO else request.preset
    settings = [plan.resolve(plan.experiment(number), preset, request.overrides).settings for number in request.ids]
    tokens = [each for each in settings if each.corpus == "tokens"]
    if not tokens:
        return None
    frozen = any(each.embeddings == "frozen" for each in tokens)
    return find_missing(request.data, request.embeddings, frozen=frozen, environ=os.environ, cwd=Path.cwd())


def _fetch_parts(parts: tuple[str, ...], folder: Path, what: str, source: Path | None) -> list[Fetched]:
    """Fetch each of ``parts`` into ``folder``, and say what was saved."""
    brought = source and from_folder(source, [file for part in parts for file in needed_files(part, folder)])
    functions = {"wikitext-2": fetch_wikitext2, "gpt1": fetch_gpt1}
    if not folder.exists():
        print_message(f"{folder}: new folder")

    def work(listener: Listener) -> list[Fetched]:
        get = brought or from_hub(listener)
        done = []
        for part in parts:
            done.append(functions[part](folder, get, listener))
            _say(done[-1], listener)
        return done

    return _with_listener(work, folder, bring_by_hand(what))


def _fetch_data(data: HubData, folder: Path) -> Fetched:
    def work(listener: Listener) -> Fetched:
        done = fetch_data(data, folder, listener)
        _say(done, listener)
        return done

    by_hand = (
        "Without a network, run this on another machine, copy the folder here, and name it with --data:\n"
        f"  lmconsole data fetch hub:{data.name} --out FOLDER"
    )
    return _with_listener(work, folder, by_hand)


def _say(done: Fetched, listener: Listener) -> None:
    listener.say(done.message)
    if done.warning:
        listener.say(f"warning: {done.warning}")


def _with_listener(work: Callable[[Listener], Result], folder: Path, by_hand: str) -> Result:
    """Return the result of ``work``; errors of the network say what to do without one."""
    try:
        with _choose_listener() as listener:
            return work(listener)
    except HubError as error:
        if not error.offline:
            raise
        raise HubError(error.message, hint="\n".join(filter(None, [error.hint, by_hand]))) from None
    except OSError as error:
        raise LmconsoleError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from None
    except Interrupted:
        print_message("Interrupted. Run the same command again to continue the download.")
        raise


def _say_how_to_use(folder: Path) -> None:
    """Say how a run finds the data in ``folder``, and warn if it would not."""
    try:
        found = find_data(None, environ=os.environ, cwd=Path.cwd())
    except LmconsoleError as error:
        print_message(f"warning: {error}")
        return
    if found is None and folder == user_data_folder():
        print_message("Train on your own text with: lmconsole run --all --preset paper --data FILE")
        print_message("For WikiText-2, also run `lmconsole data fetch wikitext-2`")
    elif found is None or not os.path.samefile(found, folder):
        print_message(f"Name the folder in later commands: --data {folder}")
    elif find_embeddings(None, folder) is None:
        print_message("For the preset paper, also run `lmconsole data fetch gpt1`")
    else:
        print_message("Train with: lmconsole run --all --preset paper")


@contextmanager
def _choose_listener() -> Iterator[Listener]:
    """Show downloads as bars on a terminal, else as lines."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        _SpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True)) as progress:
        yield _Bars(progress)


class _SpeedColumn(TransferSpeedColumn):
    """Bytes per second, and nothing for a file that came in one piece."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.finished_speed or task.speed else Text()


class _Bars:
    """A progress bar for each file."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def say(self, message: str) -> None:
        self._progress.console.print(Text(message))

    def progress(self, name: str, done: int, total: int | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(os.path.basename(name), total=total, completed=done)
        self._progress.update(self._tasks[name], completed=done, total=total)


class _Lines:
    """A line when a download begins, and now and then while it lasts."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def say(self, message: str) -> None:
        print_message(message)

    def progress(self, name: str, done: int, total: int | None) -> None:
        size = "size unknown" if total is None else decimal(total)
        if name not in self._next:
            kept = f", {done / total:.0%} of it here" if done and total else ""
            print_message(f"Downloading {name} ({size}{kept}) …")
        elif time.monotonic() < self._next[name]:
            return
        else:
            print_message(f"{name}: {done / total:.0%} …" if total else f"{name}: {decimal(done)} …")
        self._next[name] = time.monotonic() + REPORT_S
