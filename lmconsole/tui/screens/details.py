"""Everything about one run: how it stands, its settings, its events, and what its worker printed."""

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Label, RichLog, Static, TabbedContent, TabPane

from lmconsole import formatting
from lmconsole.errors import escape_control_characters
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import Status
from lmconsole.tui.feed import RunView
from lmconsole.tui.screens.tail import Tail

REFRESH_S = 1.0
MOST_LINES = 5_000
TABS = ("state", "settings", "events", "log")


class Details(ModalScreen[None]):
    """Follows one run until it is closed. ``look`` gives the run as it stands, None once it is gone."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close"),
        Binding("tab,right", "turn(1)", "Next page", priority=True),
        Binding("shift+tab,left", "turn(-1)", "Previous page", show=False, priority=True),
        Binding("f", "follow", "Follow the log"),
    ]

    def __init__(self, look: Callable[[], RunView | None], first: RunView, page: str = "state") -> None:
        super().__init__()
        self._look, self._view, self._first_page = look, first, page
        paths = RunPaths(first.folder)
        self._tails = {"events": Tail(paths.events), "log": Tail(paths.worker_log)}
        self._reading = False
        self._said: dict[str, str] = {}

    def compose(self) -> ComposeResult:
        """Four pages."""
        with Vertical(classes="wide-box"):
            yield Label(
                escape_control_characters(f"{self._view.info.experiment.label}   {self._view.run}"),
                classes="title",
                markup=False,
            )
            with TabbedContent(initial=self._first_page):
                with TabPane("State", id="state"), VerticalScroll():
                    yield Static(id="state-body")
                with TabPane("Settings", id="settings"), VerticalScroll():
                    yield Static(_settings(self._view), id="settings-body")
                for name, title in (("events", "Events"), ("log", "Worker log")):
                    with TabPane(title, id=name):
                        yield RichLog(id=f"{name}-body", max_lines=MOST_LINES, wrap=True, markup=False, highlight=False)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to follow."""
        self._refresh()
        self.set_interval(REFRESH_S, self._refresh)

    def _refresh(self) -> None:
        view = self._look()
        if view is None:
            self.notify("The run has been deleted.", severity="warning")
            self.dismiss()
            return
        self._view = view
        body = _state(view)
        if self._said.get("state") != str(body[0]):
            self._said["state"] = str(body[0])
            self.query_one("#state-body", Static).update(body[1])
        if not self._reading:
            self._reading = True
            self.run_worker(self._read, thread=True, exit_on_error=False)

    def _read(self) -> None:
        found: dict[str, list[str]] = {}
        for name, tail in self._tails.items():
            try:
                found[name] = tail.read_new()
            except OSError as error:
                found[name] = [f"cannot be read: {error.strerror}"]
        self.app.call_from_thread(self._append, found)

    def _append(self, found: dict[str, list[str]]) -> None:
        self._reading = False
        if not self.is_mounted:
            return
        for name, lines in found.items():
            log = self.query_one(f"#{name}-body", RichLog)
            for line in lines:
                self._said[name] = "something"
                log.write(
                    Text(_event(line) if name == "events" else escape_control_characters(line)),
                    scroll_end=log.auto_scroll,
                )
            if name == "log" and not lines and "log" not in self._said:
                log.write(Text("The worker has printed nothing so far.", style="dim"))

    def action_turn(self, by: int) -> None:
        """Another page."""
        tabs = self.query_one(TabbedContent)
        tabs.active = TABS[(TABS.index(tabs.active) + by) % len(TABS)]

    def action_follow(self) -> None:
        """Keep to the end of the log and the events, or stay where one reads."""
        for name in ("events", "log"):
            log = self.query_one(f"#{name}-body", RichLog)
            log.auto_scroll = not log.auto_scroll
        self.notify("Following the end." if log.auto_scroll else "Staying here.", timeout=2)


def _event(line: str) -> str:
    """A line of the log as time, kind and fields; a damaged one as it is."""
    try:
        event = msgspec.json.decode(line)
        time, kind = str(event.pop("t"))[11:19], str(event.pop("kind"))
        event.pop("seq", None)
    except (msgspec.MsgspecError, AttributeError, KeyError):
        return escape_control_characters(f"damaged: {line[:200]}")
    fields = [f"{key} {_short(value)}" for key, value in event.items() if value not in (None, {}, [], "")]
    return escape_control_characters(f"{time} {kind:<9} {', '.join(fields)}")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else str(value)


def _state(view: RunView) -> tuple[str, Table]:
    """How the run stands, as text to compare by and as a table."""
    epochs, (epoch, step) = view.info.settings.epochs, view.position
    rows: list[tuple[str, str]] = [("status", view.status.value + (", stopping" if view.stopping else ""))]
    imported = view.info.origin == "imported"
    if imported:
        per = "slot, padding included" if view.info.denominator == "padded" else "target"
        rows += [("origin", f"{escape_control_characters(view.info.experiment.source)}; perplexities per {per}")]
    problem = view.failed
    if problem:
        rows += [("error", problem.message), ("what to do", problem.hint)]
    if view.problem:
        rows += [("problem", view.problem)]
    if view.damaged:
        rows += [("log", f"{view.damaged} damaged lines were skipped")]
    if view.status is not Status.FINISHED and not imported:
        rows += [("position", f"epoch {min(epoch, epochs)} of {epochs}, step {step}")]
        rows += [("time left", formatting.seconds(view.seconds_left))]
    rows += [] if imported else [("attempt", str(view.attempt))]
    rows += [("training time", formatting.seconds(view.elapsed_train_s))]
    if view.progress:
        speed = f"{formatting.rate(view.progress.tokens_per_s)} tokens/s"
        if (share := view.share_of_ceiling) is not None:
            speed += f", {100 * share:.0f} % of the device's measured ceiling"
        rows += [("speed", speed)]
    if view.best:
        best = view.best
        ppl = f"{formatting.perplexity(best.valid_ppl)} in epoch {best.epoch}"
        rows += [("best valid ppl", f"{ppl}, train {formatting.perplexity(best.train_ppl)}")]
    if view.finished:
        done = view.finished
        tests = [formatting.perplexity(ppl) for ppl in (done.test_ppl_best, done.test_ppl_final)]
        rows += [("test ppl", f"{tests[0]} with the best weights, {tests[1]} with the last")]
        if not imported:
            rows += [("set-up, whole run", f"{formatting.seconds(done.setup_s)}, {formatting.seconds(done.wall_s)}")]
        if done.energy_j is not None:
            rows += [("energy", f"{formatting.energy(done.energy_j)} in all epochs (board, driver's counter)")]
    if view.started:
        start = view.started
        versions = ", ".join(f"{name} {version}" for name, version in start.versions.items() if version)
        rows += [("device", f"{start.device_name} ({start.device}), {start.precision}")]
        rows += [("CPU threads", str(start.threads))]
        rows += [("host, process", f"{start.host}, {start.pid}"), ("versions", versions)]
        rows += [("parameters", f"{start.parameters_trainable:,} trainable of {start.parameters_total:,}")]
    telemetry = view.telemetry
    if telemetry:
        memory = telemetry.process_used_mib or telemetry.torch_reserved_mib
        words = [f"{formatting.mib(telemetry.rss_mib)} host"] + ([f"{formatting.mib(memory)} GPU"] if memory else [])
        rows += [("memory", ", ".join(words))]
    rows += [("folder", str(view.folder)), ("command", " ".join(view.info.command))]
    return str(rows), _table([(name, value, "") for name, value in rows])


def _settings(view: RunView) -> Table:
    """Every setting, and where it came from."""
    info = view.info
    corpus = f"{info.corpus.name}, {info.corpus.tokenizer}, sha256 {info.corpus.sha256[:12]}"
    tokens = ", ".join(f"{count:,} {split}" for split, count in info.corpus.tokens.items())
    rows = [("preset", info.preset, ""), ("seed", str(info.seed), ""), ("corpus", corpus, ""), ("tokens", tokens, "")]
    settings = msgspec.to_builtins(info.settings)
    rows += [(key, str(value), info.origins.get(key, "")) for key, value in settings.items() if value is not None]
    return _table(rows)


def _table(rows: list[tuple[str, str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for name, value, source in rows:
        table.add_row(Text(name), Text(escape_control_characters(value)), Text(escape_control_characters(source)))
    return table
