"""A corpus, experiments and runs so small that a real worker finishes one in about a second of training."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from forked import LATE, ForkedProcess, ForkServer, run_new

from lmconsole.data.corpus import describe, describe_targets, load_corpus
from lmconsole.engine import child, processes
from lmconsole.engine.probe import ResolvedRun
from lmconsole.engine.queue import enqueue
from lmconsole.plan.load import load_plan
from lmconsole.runs.events import Queued, SlurmPlace
from lmconsole.runs.info import CorpusInfo
from lmconsole.runs.permissions import AfterQueue, Permissions
from lmconsole.runs.store import Run, Store
from lmconsole.tui import actions

SENTENCES = (
    "the cat sat on the mat and the dog sat on the cat. ",
    "a small model reads a small text and learns it by heart. ",
    "every run leaves a log, and the log says what the run did. ",
    "numbers without units are only numbers, said the cat to the dog. ",
)

TINY = """
[presets.tiny]
corpus = "tokens"
embeddings = "learned"
channels = 8
vocabulary = 300
window_tokens = 8
batch_size = 4
epochs = 2
learning_rate = 1e-2
precision = "fp32"

[presets.tiny.lstm]
hidden = 8

[presets.tiny.gpt1]
heads = 2
mlp_channels = 16
"""

ROWS = """
[[experiment]]
id = {id}
model = "{model}"
layers = {layers}
optimizer = "{optimizer}"
{more}
"""


def write_corpus(folder: Path, repeats: int = 8) -> Path:
    """Write three splits of text; validation and test have the sentences of train in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, order in (("train", (0, 1, 2, 3)), ("valid", (3, 1)), ("test", (2, 0))):
        _write(folder / f"{name}.txt", "".join(SENTENCES[i] for i in order) * (repeats if name == "train" else 2))
    return folder


def _write(path: Path, text: str) -> Path:
    """Write the text unless the file has it already, so that processes of one test can share a folder."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def write_experiments(path: Path, *rows: str, preset: str = TINY) -> Path:
    """Write an experiments.toml with preset ``tiny`` and ``rows`` from ``row``, or without any the built-in twelve."""
    return _write(path, "\n".join([preset if rows else "include_builtin = true\n" + preset, *rows]))


def row(number: int, model: str = "lstm", layers: int = 1, optimizer: str = "adam", more: str = "") -> str:
    """Return an [[experiment]] row; ``more`` holds further lines."""
    return ROWS.format(id=number, model=model, layers=layers, optimizer=optimizer, more=more)


def queue_tiny(
    root: Path,
    model: str = "lstm",
    *,
    jobs: int = 1,
    threads: int = 1,
    auto: bool = False,
    fresh: bool = False,
    test: bool = True,
    slurm: SlurmPlace | None = None,
    **more: Any,
) -> Run:
    """Queue one tiny run in the store ``root / "runs"``, without a runner. With ``auto``, ``threads`` is what the
    probe answered and ``jobs`` the most at once. Without ``test`` it is a tuning run. With ``slurm``, it has a place in
    that submission. ``more`` goes to ``resolved_tiny``."""
    resolved = resolved_tiny(root, model, threads=threads, **more)
    store = Store(root / "runs")
    queued = Queued(devices=("cpu",), jobs=jobs, test=test, slurm=slurm)
    (decision,) = enqueue(store, [resolved], queued, fresh=fresh, refuse_active=True, threads=None if auto else threads)
    return store.find(str(decision.run))


def permit(run: Run, **after: Any) -> None:
    """Let the runner of this user start ``run`` as its files now are; ``after`` are fields of ``AfterQueue``."""
    run.refresh()
    permissions = Permissions(run.paths.folder.parent)
    permissions.prepare()
    permissions.grant(run.paths, run.state.queued_seq, AfterQueue(**after))


def resolved_tiny(
    root: Path,
    model: str = "lstm",
    *,
    number: int = 1,
    seed: int = 42,
    threads: int = 1,
    optimizer: str = "adam",
    layers: int = 1,
    name: str = "",
    repeats: int = 8,
    unigram_ppl: Mapping[str, float] | None = None,
    **settings: object,
) -> ResolvedRun:
    """Resolve one tiny run. ``settings`` override the preset's, ``unigram_ppl`` what the corpus gives."""
    (root / "experiments").mkdir(parents=True, exist_ok=True)
    more = f"name = {json.dumps(name, ensure_ascii=False)}" if name else ""
    file = write_experiments(root / "experiments" / f"{number}.toml", row(number, model, layers, optimizer, more))
    data = write_corpus(root / "data", repeats)
    plan = load_plan(file)
    resolved = plan.resolve(plan.experiment(number), "tiny", settings)
    corpus = load_corpus("tokens", data, vocabulary=resolved.settings.vocabulary, cache=root / "cache")
    targets = describe_targets(corpus, resolved.settings.window_tokens)
    if unigram_ppl is not None:
        targets["unigram_ppl"] = unigram_ppl
    return ResolvedRun(
        experiment=plan.experiment(number),
        preset="tiny",
        settings=resolved.settings,
        seed=seed,
        origins=resolved.origins,
        corpus=msgspec.convert({**describe(corpus), **targets}, CorpusInfo),
        embeddings=None,
        threads=threads,
    )


def environment(root: Path) -> dict[str, str]:
    """Return the environment for processes of a test, with no data or caches but its own, and nothing that libraries
    have added to that of this process."""
    hidden = {"LMCONSOLE_DATA", "LMCONSOLE_RUNS", "NO_COLOR", "COLUMNS", "PYTHONWARNINGS"}
    hidden |= {"TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR"}
    return {k: v for k, v in os.environ.items() if k not in hidden} | {
        "XDG_CACHE_HOME": str(root / "cache"),
        "XDG_DATA_HOME": str(root / "user-data"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "error",
    }


def fork_server(**variables: str) -> ForkServer:
    """Return a server for commands and workers in the environment of tests with these variables."""
    return ForkServer(
        environment(Path()) | variables,
        "lmconsole.cli", "lmconsole.commands.export", "lmconsole.commands.import_runs", "lmconsole.commands.run",
        "lmconsole.commands.status", "lmconsole.engine.preload", "lmconsole.engine.runner", "lmconsole.report.export",
    )  # fmt: skip


_FORK_SERVER = fork_server()

NO_FIGURES = """
from lmconsole.report import draw
draw.draw_figure = lambda figure: None
draw.encode_figure = lambda drawn, image_format: image_format.encode()
"""
"""Prelude of a runner whose exports have files with nothing but a name for figures."""


def lmconsole(
    *arguments: str,
    cwd: Path,
    check: int | None = None,
    env: Mapping[str, str] | None = None,
    new_program: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run the command in ``cwd``; with ``check``, its exit code must be that.

    It is forked from a process that has imported its modules, unless the test asks for a ``new_program``.
    """
    source, usual, more = ["-m", "lmconsole"], environment(cwd), env or {}
    if new_program:
        done = run_new(source, arguments, cwd=cwd, env={**usual, **more}, timeout_s=240)
    else:
        done = _FORK_SERVER.run(source, arguments, cwd=cwd, env=usual, variables=more, timeout_s=240)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    if check is not None:
        assert done.returncode == check, (done.returncode, done.stdout, done.stderr)
    return done


def install(program: Path) -> None:
    """Write an executable ``program`` that is ``lmconsole``, for commands in a shell."""
    program.parent.mkdir()
    _FORK_SERVER.install(program, "lmconsole", environment(Path()))


def run_code(code: str, *arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -c code *arguments`` in ``root``, forked from a process that has imported PyTorch."""
    return _FORK_SERVER.run(["-c", code], arguments, cwd=root, env=environment(root), variables={}, timeout_s=240)


def start(
    option: str,
    source: str,
    *arguments: str,
    root: Path,
    cwd: Path | None = None,
    errors: str = "output",
    env: Mapping[str, str] | None = None,
) -> "ForkedProcess | subprocess.Popen[bytes]":
    """Start ``python option source *arguments``, where ``option`` is ``-m`` or ``-c``. What it prints is appended to
    ``root / "output"``, and messages to ``root / errors``. ``env`` are variables of its own."""
    streams, variables = (root / "output", root / errors), environment(root) | dict(env or {})
    return _FORK_SERVER.start([option, source], arguments, cwd=cwd or root, env=variables, streams=streams)


def start_runner(
    root: Path, prelude: str = "", *, cwd: Path | None = None
) -> "ForkedProcess | subprocess.Popen[bytes]":
    """Start the runner of the store ``root / "runs"``, after the Python code ``prelude``, which may change the modules
    ``runner`` and ``worker``."""
    names = "import sys\nfrom pathlib import Path\nfrom lmconsole.engine import runner, worker"
    code = f"{names}\n{prelude}\nsys.exit(runner.main(Path(sys.argv[1])))"
    source = ("-c", code) if prelude else ("-m", "lmconsole.engine.runner")
    return start(*source, str(root / "runs"), root=root, cwd=cwd)


def fork_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the runners, the exports and the processes that check data and devices, when the test's own process starts
    them."""

    def environment_now() -> dict[str, str]:
        return environment(Path()) | {name: os.environ[name] for name in LATE if name in os.environ}

    def detached(command: list[str], log: Path, *more: Any, **named: Any) -> object:
        if command[:4] != processes.python("lmconsole.engine.runner"):
            return start_detached(command, log, *more, **named)
        streams, cwd = (log, log), Path.cwd()
        return _FORK_SERVER.start(command[2:4], command[4:], cwd=cwd, env=environment_now(), streams=streams)

    def run_child(
        command: Sequence[str],
        *,
        input: bytes = b"",  # noqa: A002  # the name in subprocess.run
        stderr: int | None = None,
        text: bool = False,
        **_: Any,
    ) -> "subprocess.CompletedProcess[Any]":
        with tempfile.NamedTemporaryFile() as file:
            file.write(input)
            file.flush()
            done = _FORK_SERVER.run(
                command[2:4], command[4:], cwd=Path.cwd(), env=environment_now(), variables={}, timeout_s=240,
                stdin=Path(file.name),
            )  # fmt: skip
        if stderr is not None:
            os.write(stderr, done.stderr.encode())
        return done if text else subprocess.CompletedProcess(command, done.returncode, done.stdout.encode())

    start_detached = processes._detached
    monkeypatch.setattr(processes, "_detached", detached)
    for module in (child, actions):
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": run_child}))


def worker(
    run: Run, root: Path, prelude: str = "", server: ForkServer = _FORK_SERVER
) -> subprocess.CompletedProcess[str]:
    """Run the worker of ``run`` to its end, after the Python code ``prelude``. It is forked, as that of a runner is."""
    code = f"{prelude}\nimport sys\nfrom lmconsole.engine.worker import main\nsys.exit(main(sys.argv[1:]))"
    arguments = [str(run.paths.folder), "--device", "cpu"]
    return server.run(["-c", code], arguments, cwd=Path.cwd(), env=environment(root), variables={}, timeout_s=240)
