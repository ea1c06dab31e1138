"""The library: `import lmconsole` is light, its examples run, and its errors are those of the commands."""

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from recorded import record

import lmconsole
from lmconsole import api

CHECKOUT = Path(__file__).resolve().parents[1]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAVY = {"torch", "textual", "pandas", "matplotlib", "pynvml"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two finished runs."""
    root = tmp_path_factory.mktemp("library")
    record(root, 5, "gpt1", [(4.9, 5.0), (4.2, 4.5)], samples=5)
    record(root, 2, "lstm", [(5.5, 5.6), (5.4, 5.5)], optimizer="adamw", samples=5)
    return root


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def examples() -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(api, globs={"lmconsole": lmconsole})
    return [each for each in found if each.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda each: each.name)
def test_examples_in_docstrings_run(example: doctest.DocTest) -> None:
    outcome = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(example)
    assert (outcome.attempted > 0, outcome.failed) == (True, 0)


def test_every_name_has_an_example() -> None:
    named = set(lmconsole.__all__) - {"__version__", "LmconsoleError"}
    assert {each.name.removeprefix("lmconsole.api.") for each in examples()} == named
    assert set(dir(lmconsole)) == set(lmconsole.__all__)
    assert all(getattr(lmconsole, name) is getattr(api, name) for name in api.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'runstore'"):
        _ = lmconsole.runstore  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", ["docs/scripting.md", "docs/guides.md", "lmconsole/commands/SKILL.md"])
def test_examples_in_documents_run(document: str) -> None:
    path = CHECKOUT / document
    blocks = PYTHON.findall(path.read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        exec(compile(block, document, "exec"), {})


def test_importing_loads_nothing_and_exports_leave_matplotlib_to_the_notebook(folder: Path) -> None:
    """One process: each step loads only what it needs."""
    code = f"""
import sys
import lmconsole
assert lmconsole.__version__
assert [name for name in sys.modules if name.startswith("lmconsole.")] == []
assert "typing_extensions" not in sys.modules and "msgspec" not in sys.modules
lmconsole.load_plan()
assert len(lmconsole.RunStore("runs")) == 2
assert not {HEAVY} & set(sys.modules)
lmconsole.results("runs")
assert "pandas" in sys.modules and not {HEAVY - {"pandas"}} & set(sys.modules)
lmconsole.export("runs", "out", format="markdown")
assert not {HEAVY - {"pandas", "matplotlib"}} & set(sys.modules)
import matplotlib
assert matplotlib.get_backend() == "svg"
assert matplotlib.rcParams["figure.dpi"] == 71
"""
    (folder / "matplotlibrc").write_text("figure.dpi: 71\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "svg"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lmconsole.export("runs", "again", format="markdown")
    for path in sorted(path for path in (folder / "out").rglob("*") if path.is_file()):
        assert path.read_bytes() == (folder / "again" / path.relative_to(folder / "out")).read_bytes()


def test_every_frame_has_its_rows() -> None:
    store = lmconsole.RunStore("runs")
    rows = {frame: len(lmconsole.results(store, frame)) for frame in get_args(api.FrameName)}
    assert rows == {"experiments": 2, "runs": 2, "epochs": 4, "evaluations": 0, "telemetry": 20, "memory": 2}
    assert isinstance(lmconsole.results(store, run=5), pd.DataFrame)


def test_a_store_is_read_again_at_each_access(tmp_path: Path) -> None:
    store = lmconsole.RunStore(tmp_path / "runs")
    assert list(store) == []
    unfinished = record(tmp_path, 1, "lstm", [(5.0, 4.9)], finish=False)
    before = store[unfinished.run[:8]]
    assert (before.status.value, before.outcome, len(before.epochs)) == ("lost", None, 1)
    (unfinished.paths.info).write_text("{")
    assert lmconsole.RunStore(tmp_path / "runs").problems == {}
    again = lmconsole.RunStore(tmp_path / "runs")
    assert list(again) == []
    assert list(again.problems) == [unfinished.run]


def test_messages_of_an_export_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_store: object, out: Path, _options: object, *, warn: Callable[[str], object]) -> list[Path]:
        warn(f"{out}: kept")
        return [out]

    monkeypatch.setattr("lmconsole.report.export.export", write)
    with pytest.warns(UserWarning, match="out: kept") as caught:
        assert lmconsole.export("runs", "out") == [Path("out").absolute()]
    assert caught[0].filename == __file__


def test_a_notebook_shows_the_runs_and_text_from_files_is_escaped(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.5)], name="<b>bold</b>")
    shown = lmconsole.RunStore(tmp_path / "runs")._repr_html_()
    assert "<td>&lt;b&gt;bold&lt;/b&gt;</td><td>tiny</td><td>finished</td><td>90.0</td><td>1.0 s</td>" in shown
    assert "<b>" not in shown
    assert repr(lmconsole.RunStore(tmp_path)) == f"RunStore('{tmp_path}')"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lmconsole.RunStore("runs")[7], "experiment 7 has no run"),
        (lambda: lmconsole.RunStore("runs")["nope"], "no run is called 'nope'"),
        (lambda: len(lmconsole.RunStore("a-file")), "the run store cannot be read: Not a directory"),
        (lambda: lmconsole.RunStore("~nobody-here/runs"), "there is no user 'nobody-here'"),
        (lambda: lmconsole.load_plan("missing.toml"), "missing.toml: no such file"),
        (lambda: lmconsole.results("nowhere"), "the store has no runs"),
        (lambda: lmconsole.results("runs", "epoch"), "unknown frame 'epoch'; did you mean 'epochs'?"),  # type: ignore[arg-type]
        (lambda: lmconsole.results("runs", preset="papr"), "no run of preset 'papr'"),
        (lambda: lmconsole.export("runs", "out", format="pdf"), "unknown format 'pdf'"),  # type: ignore[arg-type]
        (lambda: lmconsole.export("runs", "out", figures="gif"), "unknown figures 'gif'"),  # type: ignore[arg-type]
        (lambda: lmconsole.export("runs", "a-file", format="csv"), "a-file"),
    ],
)
def test_errors_say_what_happened(folder: Path, call: object, message: str) -> None:
    (folder / "a-file").touch()
    with pytest.raises(lmconsole.LmconsoleError) as caught:
        call()  # type: ignore[operator]
    assert message in caught.value.message
