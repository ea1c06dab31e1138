"""The library: plans, runs, results and exports for notebooks and scripts.

    import lmconsole

    plan = lmconsole.load_plan()
    store = lmconsole.RunStore("runs")
    table = lmconsole.results("runs")
    paths = lmconsole.export("runs", "exports")

Everything here only reads the store, so it can be used while runs are in progress. Nothing imports torch; ``results``
and ``export`` import pandas, and ``export`` matplotlib. All errors are ``LmconsoleError`` with a ``message`` and a
``hint``.
"""

import contextlib
import html
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lmconsole.errors import LmconsoleError, escape_control_characters
from lmconsole.files import expand_home
from lmconsole.formatting import perplexity, seconds
from lmconsole.plan import load
from lmconsole.plan.experiment import Experiment, Settings
from lmconsole.plan.presets import Plan, unknown
from lmconsole.runs import endpoint
from lmconsole.runs import store as stores
from lmconsole.runs.events import Epoch, Evaluation, Failed, Finished, Progress, Stopped, Telemetry
from lmconsole.runs.info import RunInfo
from lmconsole.runs.state import Status

if TYPE_CHECKING:
    import pandas as pd

    from lmconsole.report.export_options import FileFormat
    from lmconsole.runs.endpoint import WindowLosses

__all__ = ["LmconsoleError", "Run", "RunStore", "export", "load_plan", "results"]

FrameName = Literal["experiments", "runs", "epochs", "evaluations", "telemetry", "memory"]
FIGURES = ("png", "pdf", "svg")
TEMPLATES = ("course", "general")


def load_plan(path: "str | os.PathLike[str] | None" = None) -> Plan:
    """Return the experiments and presets in ``path``, by default ``./experiments.toml`` if it exists, merged over the
    built-in ones.

    >>> plan = lmconsole.load_plan()
    >>> len(plan.experiments)
    12
    >>> experiment = plan.experiment(5)
    >>> experiment.label
    'GPT-1 1L Adam'
    >>> plan.resolve(experiment, "demo").settings.channels
    96

    Raises:
        LmconsoleError: The file has problems; the message lists them.
    """
    return load.load_plan(None if path is None else _path(path))


class Run:
    """One run, as it was when the store was read. Unknown values are None.

    >>> run = lmconsole.RunStore("runs")[5]
    >>> run.label, run.status.value, run.seed
    ('GPT-1 1L Adam', 'finished', 42)
    >>> [round(epoch.valid_ppl) for epoch in run.epochs]
    [148, 90]
    >>> run.best_epoch.epoch, run.settings.learning_rate
    (2, 0.01)
    >>> run.note, run.tags
    ('', ())
    """

    def __init__(self, run: stores.Run) -> None:
        self._run = run
        self.id: str = run.run
        """Name of the folder of the run."""
        self.folder: Path = run.paths.folder
        """Absolute path of the folder of the run."""
        self.info: RunInfo = run.info
        """Content of run.json."""
        self.status: Status = run.status
        """``queued``, ``running``, ``stopped``, ``finished``, ``failed`` or ``lost``."""
        self.epochs: tuple[Epoch, ...] = tuple(run.state.epochs)
        """Complete epochs, with losses in nats, perplexities, and times in seconds."""
        self.evaluations: tuple[Evaluation, ...] = tuple(run.state.evaluations)
        """Evaluations of the validation split within epochs; none without ``evaluate_every_steps``."""
        self.progress: tuple[Progress, ...] = tuple(run.state.progress)
        """Progress of training, at most twice a second."""
        self.telemetry: tuple[Telemetry, ...] = tuple(run.state.telemetry)
        """Memory in MiB, utilization, power and temperature, about once a second, of all attempts."""
        self.best_epoch: Epoch | None = run.state.best_epoch
        """Epoch with the lowest validation perplexity."""
        self.outcome: Finished | Stopped | Failed | None = run.state.finished or run.state.stopped or run.state.failed
        """Event with which the run ended; None if it has not."""
        self.note: str = run.notes.note
        """Note that a person has written; empty if there is none."""
        self.tags: tuple[str, ...] = run.notes.tags
        """Tags that a person has added."""
        self.test_nll: float | None = endpoint.nll_best(run.state.finished)
        """Test loss with the weights of the best epoch, in nats per target; infinite if the run diverged, None if it
        was not tested."""
        self.test_bits_per_byte: float | None = endpoint.bits_per_byte(run.state.finished, run.info.corpus)
        """The same in bits per UTF-8 byte; None where the text is not known."""
        self.damage: tuple[str, ...] = run.state.damage
        """Damage of the log, and where it is; empty if none is known."""
        self.problem: str | None = run.problem
        """Error in the files of the run."""

    def test_losses(self) -> "WindowLosses | None":
        """Return the test loss of each window with the weights of the best epoch, and from it the standard error of
        ``test_nll``; None if the run has none: it was not tested, or by a version that did not keep them.

        Raises:
            LmconsoleError: The file cannot be read, or is damaged.
        """
        return endpoint.read_test_losses(self._run)

    @property
    def experiment(self) -> Experiment:
        """Row of experiments.toml."""
        return self.info.experiment

    @property
    def label(self) -> str:
        """Name of the experiment for display."""
        return self.info.experiment.label

    @property
    def preset(self) -> str:
        """Preset from which the settings come."""
        return self.info.preset

    @property
    def seed(self) -> int:
        """Seed of initialization, shuffling and dropout."""
        return self.info.seed

    @property
    def settings(self) -> Settings:
        """Settings of the run."""
        return self.info.settings

    def __repr__(self) -> str:
        return f"<Run {self.id}: {self.status.value}>"


class RunStore:
    """The runs in a folder, oldest first. Each access reads what is new in their logs.

    >>> store = lmconsole.RunStore("runs")
    >>> len(store)
    2
    >>> [run.label for run in store]
    ['GPT-1 1L Adam', 'LSTM 1L AdamW']
    >>> store[2].preset
    'tiny'
    """

    def __init__(self, path: "str | os.PathLike[str]" = "runs") -> None:
        """Name the folder. A folder that does not exist has no runs."""
        self._store = stores.Store(_path(path))
        self.path: Path = self._store.root
        """Absolute path of the folder."""

    @property
    def problems(self) -> dict[str, str]:
        """Reason for each run directory that could not be read the last time, by its name."""
        return dict(self._store.problems)

    def __iter__(self) -> Iterator[Run]:
        """Iterate over the runs. Raises LmconsoleError if the folder cannot be read."""
        return iter([Run(run) for run in self._store.runs()])

    def __len__(self) -> int:
        return len(self._store.runs())

    def __getitem__(self, run: "str | int") -> Run:
        """Return the run with this id or unique beginning of an id, or the latest run of the experiment with this
        number. Raises LmconsoleError if no run matches, or several do."""
        return Run(self._store.find(str(run)))

    def __repr__(self) -> str:
        return f"RunStore({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        rows = [("Run", "Experiment", "Preset", "Status", "Valid PPL", "Time")]
        for run in self._store.runs():
            best, state = run.state.best_epoch, run.state
            ppl, time = perplexity(best.valid_ppl if best else None), seconds(state.elapsed_train_s)
            rows.append((run.run, run.info.experiment.label, run.info.preset, run.status.value, ppl, time))
        cells = ("".join(f"<td>{html.escape(escape_control_characters(cell))}</td>" for cell in row) for row in rows)
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def results(
    store: "RunStore | str | os.PathLike[str]" = "runs",
    frame: FrameName = "experiments",
    *,
    preset: str | None = None,
    run: str | int | None = None,
    imported: bool | None = None,
) -> "pd.DataFrame":
    """Return results as a pandas frame; units are in the names of its columns, and unknown values are NaN.

    Like an export, a frame has one group of comparable runs: that of the run that finished last.

    >>> table = lmconsole.results("runs")
    >>> table[["experiment", "architecture", "optimizer", "epoch"]]
       experiment architecture optimizer  epoch
    0           5        GPT-1      Adam    2.0
    1           2         LSTM     AdamW    2.0
    >>> epochs = lmconsole.results("runs", "epochs")
    >>> epochs.groupby("experiment")["valid_ppl"].min().round().to_dict()
    {2: 245.0, 5: 90.0}

    Args:
        store: Store, or its folder.
        frame: Rows of the frame. ``experiments``: Table 1, one row for each experiment at its best epoch, mean and
            standard deviation over seeds; ``runs``: one for each run; ``epochs``: one for each epoch of each run;
            ``evaluations``: one for each evaluation within an epoch; ``telemetry``: one for each sample; ``memory``:
            Table 2, one for each experiment.
        preset: Choose the newest group of this preset.
        run: Choose the group of this run: an id, a unique beginning of one, or the number of an experiment.
        imported: Choose imported or trained runs.

    Raises:
        LmconsoleError: No run that matches has completed an epoch.
    """
    from lmconsole.report.results import FRAMES, memory_frame, results_frame
    from lmconsole.report.selection import choose_group

    frames = {"experiments": results_frame, "memory": memory_frame, **FRAMES}
    _check("frame", frame, tuple(frames))
    source, wanted = _open(store, run)
    return frames[frame](choose_group(source.runs(), preset=preset, run_id=wanted, imported=imported))


def export(
    store: "RunStore | str | os.PathLike[str]" = "runs",
    out: "str | os.PathLike[str]" = "exports",
    *,
    format: "FileFormat" = "all",  # noqa: A002  # as on the command line
    figures: Literal["png", "pdf", "svg"] = "png",
    preset: str | None = None,
    run: str | int | None = None,
    imported: bool | None = None,
    against: str | None = None,
    siunitx: bool = False,
    template: Literal["course", "general"] | None = None,
) -> list[Path]:
    """Write figures, tables and the report into a folder, as `lmconsole export` does, and return the paths.

    >>> paths = lmconsole.export("runs", "exports", format="csv")
    >>> [path.name for path in paths]
    ['table-1-results.csv', 'table-2-memory.csv', 'runs.csv', 'epochs.csv', 'telemetry.csv']

    Args:
        store: Store, or its folder.
        out: Folder for the files.
        format: File format; ``all`` means Markdown, LaTeX and CSV.
        figures: Format of the figures in addition to PNG.
        preset, run, imported: Choose the runs, as for ``results``.
        against: Compare with these results: ``published``, ``imported``, or the folder of another store.
        siunitx: Align LaTeX numbers with siunitx.
        template: Structure of the report; by default ``course`` for the twelve experiments, else ``general``.

    Raises:
        LmconsoleError: There is nothing to export, or the files could not be written. ``out`` is unchanged then.

    Warns:
        UserWarning: A file in ``out`` belongs to other runs, and is kept because it is not as it was exported.
    """
    _import_matplotlib()
    from lmconsole.report.export import export as write
    from lmconsole.report.export_options import ExportOptions, FileFormat

    _check("format", format, get_args(FileFormat))
    _check("figures", figures, FIGURES)
    if template is not None:
        _check("template", template, TEMPLATES)
    source, wanted = _open(store, run)
    options = ExportOptions(
        file_format=format,
        figure_format=figures,
        preset=preset,
        run=wanted,
        imported=imported,
        against=against,
        siunitx=siunitx,
        template=template,
    )
    messages: list[str] = []
    paths = write(source, _path(out).absolute(), options, warn=messages.append)
    for message in messages:
        warnings.warn(message, stacklevel=2)
    return paths


def _open(store: "RunStore | str | os.PathLike[str]", run: str | int | None) -> tuple[stores.Store, str | None]:
    """Return the store, and the id of the run that ``run`` names. Raises LmconsoleError."""
    source = store._store if isinstance(store, RunStore) else stores.Store(_path(store))
    return source, None if run is None else source.find(str(run)).run


def _import_matplotlib() -> None:
    """Import matplotlib with the backend and the settings of the notebook, which its own figures are to keep."""
    with contextlib.suppress(Exception):  # settings that cannot be used; the exports do without
        import matplotlib  # noqa: F401


def _check(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise LmconsoleError(unknown(name, str(value), list(known)))


def _path(path: "str | os.PathLike[str]") -> Path:
    """Return a path with ``~`` expanded. Raises LmconsoleError."""
    try:
        return expand_home(Path(path))
    except OSError as error:
        raise LmconsoleError(str(error.strerror)) from None
