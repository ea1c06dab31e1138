"""One run in detail: its state, settings, events, worker log, and on SLURM the output of its job."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Footer, Label, RichLog, Static, TabbedContent, TabPane

from lmconsole import formatting
from lmconsole.errors import StoreError, escape_control_characters
from lmconsole.files import LineTail
from lmconsole.importing.settings import INFERRED, is_inferred
from lmconsole.runs import endpoint
from lmconsole.runs.events import Evaluation, Finished, SlurmPlace, Started
from lmconsole.runs.info import RunInfo, describe_code
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.permissions import NOT_STARTED
from lmconsole.tui.baseline import Baseline, change
from lmconsole.tui.keys import FooterScreen
from lmconsole.tui.screens.differences import settings_of
from lmconsole.tui.snapshot import RunView

REFRESH_S = 1.0
NOTHING_YET = {"log": "The worker has printed nothing so far.", "slurm": "The job has printed nothing so far."}
MAX_LINES = 5_000
FIRST_BYTES = 64 * 1024
"""Bytes at the end of a file that are shown at first."""
MAX_BYTES = 256 * 1024
"""Bytes of one read."""
FILES = {"events": "Events", "log": "Worker log", "slurm": "SLURM output"}
"""Titles of the tabs that follow files; the last one is that of a run on SLURM."""


class Details(FooterScreen[None], ModalScreen[None]):
    """Follows one run until it is closed. ``current`` returns the run as it is now, None once it is deleted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close", id="details.close"),
        Binding("tab,right", "next_tab(1)", "Next page", id="details.next-tab", priority=True),
        Binding(
            "shift+tab,left", "next_tab(-1)", "Previous page", id="details.previous-tab", show=False, priority=True
        ),
        Binding("f", "follow", "Follow the log", id="details.follow"),
    ]

    class LinesRead(Message):
        """New lines of the files that are followed."""

        def __init__(self, lines: dict[str, list[str]]) -> None:
            super().__init__()
            self.lines = lines
            """Lines by the name of the tab."""

    def __init__(
        self,
        current: Callable[[], RunView | None],
        first: RunView,
        baseline: Callable[[], Baseline | None] = lambda: None,
    ) -> None:
        super().__init__()
        self._current, self._view, self._baseline = current, first, baseline
        paths = RunPaths(first.folder)
        self._tails: dict[str, LineTail | None] = {"events": _tail(paths.events), "log": _tail(paths.worker_log)}
        """Files that are followed, by the name of their tab; None while it is not known which file that is."""
        if first.place is not None:
            self._tails["slurm"] = None
        self._place: SlurmPlace | None = None
        """Place in a submission whose output is followed."""
        self._reading = False
        self._shown_state = ""
        self._read_before: set[str] = set()
        """Tabs whose files have been read."""

    def compose(self) -> ComposeResult:
        """Yield the tabs."""
        with Vertical(classes="wide-box"):
            yield Label(
                escape_control_characters(f"{self._view.info.experiment.label}   {self._view.run}"),
                classes="title",
                markup=False,
            )
            with TabbedContent(initial="state"):
                with TabPane("State", id="state"), VerticalScroll():
                    yield Static(id="state-body")
                with TabPane("Settings", id="settings"), VerticalScroll():
                    yield Static(_settings(self._view, self._baseline()), id="settings-body")
                for name in self._tails:
                    with TabPane(FILES[name], id=name):
                        yield RichLog(
                            id=f"{name}-body",
                            min_width=0,
                            max_lines=MAX_LINES,
                            wrap=True,
                            markup=False,
                            highlight=False,
                        )
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Start to follow the run."""
        self._update()
        self.set_interval(REFRESH_S, self._update)

    def _update(self) -> None:
        view = self._current()
        if view is None:
            self.notify("The run has been deleted.", severity="warning")
            self.dismiss()
            return
        self._view = view
        state = [*_state(view), *_difference(view, self._baseline())]
        if str(state) != self._shown_state:
            self._shown_state = str(state)
            self.query_one("#state-body", Static).update(_table([(name, value, "") for name, value in state]))
        if not self._reading:
            self._reading = True
            self.run_worker(self._read, thread=True, exit_on_error=False)

    def _read(self) -> None:
        """Read new lines, in a thread."""
        found: dict[str, list[str]] = {}
        try:
            self._find_output()
        except StoreError as error:
            found["slurm"] = [str(error)]
        for name, tail in self._tails.items():
            if tail is None:
                continue
            try:
                found[name] = tail.read_lines()
            except OSError as error:
                found[name] = [f"cannot be read: {error.strerror}"]
        self.post_message(self.LinesRead(found))

    def _find_output(self) -> None:
        """Find the output of the run's task, again when it is submitted again. Raises StoreError."""
        place = self._view.place
        if place is None or "slurm" not in self._tails or (self._place and self._place.batch == place.batch):
            return
        from lmconsole.engine.slurm.batch import read_batch, task_log

        self._place = place
        root = self._view.folder.parent
        self._tails["slurm"] = _tail(task_log(root, place, read_batch(root, place.batch)))

    def on_details_lines_read(self, message: LinesRead) -> None:
        """Append the lines to their tabs."""
        self._reading = False
        for name, lines in message.lines.items():
            log = self.query_one(f"#{name}-body", RichLog)
            for line in lines:
                text = _event(line) if name == "events" else escape_control_characters(line)
                log.write(Text(text), scroll_end=log.auto_scroll)
            if name in NOTHING_YET and not lines and name not in self._read_before:
                log.write(Text(NOTHING_YET[name], style="dim"))
            self._read_before.add(name)

    def action_next_tab(self, step: int) -> None:
        """Go to the next tab, or to the previous one."""
        tabs = self.query_one(TabbedContent)
        names = ["state", "settings", *self._tails]
        tabs.active = names[(names.index(tabs.active) + step) % len(names)]

    def action_follow(self) -> None:
        """Scroll to new lines of log and events, or stop doing so."""
        for name in self._tails:
            log = self.query_one(f"#{name}-body", RichLog)
            log.auto_scroll = not log.auto_scroll
        self.notify("Following the log." if log.auto_scroll else "Not following the log.", timeout=2)


def _tail(path: Path) -> LineTail:
    return LineTail(path, last_bytes=FIRST_BYTES, limit=MAX_BYTES)


def _event(line: str) -> str:
    """Return an event as time, kind and fields, a damaged line as it is."""
    try:
        event = msgspec.json.decode(line)
        time, kind = str(event.pop("t"))[11:19], str(event.pop("kind"))
        event.pop("seq", None)
    except (msgspec.MsgspecError, AttributeError, KeyError):
        return escape_control_characters(f"damaged: {line[:200]}")
    fields = [f"{key} {_short(value)}" for key, value in event.items() if value not in (None, {}, [], "")]
    return escape_control_characters(f"{time} {kind:<9} {', '.join(fields)}")


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else str(value)


def _state(view: RunView) -> list[tuple[str, str]]:
    """Return names and values that describe the state of a run."""
    epochs, (epoch, step) = view.info.settings.epochs, view.position
    imported = view.info.origin == "imported"
    rows = [("status", view.status.value + (", stopping" if view.stopping else ""))]
    if imported:
        per = "position of full batches (padded)" if view.info.denominator == "padded" else "target"
        rows += [("origin", f"{view.info.experiment.source}; perplexities per {per}")]
        inferred = [
            f"{key} ({origin.removeprefix(INFERRED)})"
            for key, origin in view.info.origins.items()
            if is_inferred(origin)
        ]
        if inferred:
            rows += [("inferred", "; ".join(inferred))]
    if view.info.reproduces is not None:
        rows += [("reproduces", f"{view.info.reproduces}. It counts in no table, figure or mean.")]
    if view.failed:
        rows += [("test failed" if view.finished else "error", view.failed.message)]
        rows += [("what to do", view.failed.hint)]
    if view.place is not None:
        rows += _task(view, view.place)
    if view.unattended:
        rows += [("not started", NOT_STARTED)]
    if view.problem:
        rows += [("problem", view.problem)]
    if view.notes.tags:
        rows += [("tags", ", ".join(view.notes.tags))]
    if view.notes.note:
        rows += [("note", view.notes.note)]
    if view.notes_problem:
        rows += [("notes", view.notes_problem)]
    if view.damage:
        rows += [("damaged", f"{'; '.join(view.damage)}. Its results do not count as complete.")]
    if view.finished is None and not imported:
        rows += [("position", f"epoch {min(epoch, epochs)} of {epochs}, step {step}")]
        rows += [("time left", formatting.seconds(view.seconds_left))]
    if not imported:
        rows += [("attempt", str(view.attempt))]
    rows += [("training time", formatting.seconds(view.elapsed_train_s))]
    if view.progress:
        speed = f"{formatting.rate(view.progress.tokens_per_s)} tokens/s"
        if (share := view.share_of_peak) is not None:
            speed += f", {100 * share:.0f} % of the device's measured peak"
        rows += [("speed", speed)]
    if view.best:
        best = view.best
        ppl = f"{formatting.perplexity(best.valid_ppl)} in epoch {best.epoch}"
        rows += [("best valid ppl", f"{ppl}, train {formatting.perplexity(best.train_ppl)}")]
    if view.validations and isinstance(latest := view.validations[-1], Evaluation):
        where = f"epoch {latest.epoch}, step {latest.step} of {latest.steps}"
        rows += [("last valid ppl", f"{formatting.perplexity(latest.valid_ppl)} in {where}")]
    if view.finished:
        rows += _outcome(view.finished, view.info)
    if view.started:
        rows += _environment(view.started, view.info)
    telemetry = view.telemetry
    if telemetry:
        gpu_mib = telemetry.process_used_mib or telemetry.torch_reserved_mib
        memory = f"{formatting.mib(telemetry.rss_mib)} host"
        if imported:
            rows += [("memory", f"{formatting.mib(telemetry.device_used_mib)} used on the device in the last reading")]
        else:
            rows += [("memory", f"{memory}, {formatting.mib(gpu_mib)} GPU" if gpu_mib else memory)]
    return [*rows, ("folder", str(view.folder)), ("command", " ".join(view.info.command))]


def _task(view: RunView, place: SlurmPlace) -> list[tuple[str, str]]:
    """Return job, node and state of a run on SLURM, while it is active with the reason why it waits."""
    from lmconsole.engine.slurm.reasons import describe_task

    task, latest = view.slurm.task, view.latest
    job = (task.job if task else "") or (latest.slurm_job if latest else "") or formatting.UNKNOWN
    restarts = f", started again {formatting.counted(place.restarts, 'time')} so far" if place.restarts else ""
    rows = [("SLURM job", f"{job}{restarts}")]
    if view.node:
        rows += [("node", view.node)]
    elif latest and latest.slurm_node:
        rows += [("last node", latest.slurm_node)]
    words = describe_task(view)
    if view.slurm.interrupted:
        words = f"interrupted; SLURM starts it again{f' ({words})' if words else ''}"
    state = task.state if task else ""
    if state or words:
        rows += [("in SLURM", ", ".join(each for each in (state, words) if each))]
    return rows


def _difference(view: RunView, baseline: Baseline | None) -> list[tuple[str, str]]:
    """Return how far a run is from the baseline, if there is one."""
    if baseline is None or view in baseline.views:
        return []
    ratio = baseline.ratio([view])
    base = f"baseline {baseline.label}: {formatting.perplexity(baseline.valid_ppl)}"
    return [("vs baseline", f"{change(ratio)} in best valid ppl ({base})" if ratio else f"cannot be compared ({base})")]


def _outcome(finished: Finished, info: RunInfo) -> list[tuple[str, str]]:
    best, final = [formatting.perplexity(ppl) for ppl in (finished.test_ppl_best, finished.test_ppl_final)]
    nats, bits = endpoint.nll_best(finished), endpoint.bits_per_byte(finished, info.corpus)
    if info.origin == "imported":  # its source does not state with which weights
        rows = [("test ppl", final)]
    else:
        shown = f"{best} with the best weights, {final} with the last"
        rows = [
            ("test ppl", shown if finished.tested else f"{formatting.UNKNOWN}, not tested: a tuning run (--no-test)")
        ]
        if finished.tested and not finished.diverged:
            rows += [("test loss", f"{formatting.loss(nats)} nats per token, {formatting.loss(bits)} bits per byte")]
        setup, total = formatting.seconds(finished.setup_s), formatting.seconds(finished.wall_s)
        rows += [("setup, whole run", f"{setup}, {total}")]
    if finished.energy_j is not None:
        rows += [("energy", f"{formatting.energy(finished.energy_j)} in all epochs (board, driver's counter)")]
    return rows


def _environment(started: Started, info: RunInfo) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in started.versions.items() if version)
    code = [] if started.code_sha256 is None else [("code", describe_code(info, started.code_sha256))]
    return [
        ("device", f"{started.device_name} ({started.device}), {started.precision}"),
        ("CPU threads", str(started.threads)),
        ("host, process", f"{started.host}, {started.pid}"),
        ("versions", versions),
        *code,
        ("parameters", f"{started.parameters_trainable:,} trainable of {started.parameters_total:,}"),
    ]


def _settings(view: RunView, baseline: Baseline | None = None) -> Table:
    """Return everything that determines the results and its source, and the value of the baseline where it differs."""
    mine, origins = settings_of(view), view.info.origins
    other = settings_of(baseline.views[-1]) if baseline is not None and view not in baseline.views else mine
    rows = []
    for name, value in mine.items():
        if value == other[name] == formatting.UNKNOWN:
            continue
        source = origins.get(name, "")
        rows.append((name, value, source if value == other[name] else f"baseline: {other[name]}  {source}"))
    corpus = view.info.corpus
    tokens = ", ".join(f"{count:,} {split}" for split, count in corpus.tokens.items())
    tokenizer = [] if corpus.tokenizer_path is None else [("tokenizer", corpus.tokenizer_and_place, "")]
    return _table([*rows, *tokenizer, ("tokens", tokens, "")])


def _table(rows: list[tuple[str, str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for name, value, source in rows:
        table.add_row(Text(name), Text(escape_control_characters(value)), Text(escape_control_characters(source)))
    return table
