"""Fixtures for all tests. torch is imported only for a test that needs a GPU."""

import atexit
import inspect
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NOBODY = 65534
"""User id without any rights of its own."""

# For the tests and every process they start: one thread each, since several tests run at once, and only the installed
# package, never one in the working directory.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONSAFEPATH", "1")
# Without a GPU our kernels run in Triton's interpreter, which must be enabled before Triton is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Settings of the user must not affect the tests.
for name in ("LMCONSOLE_RUNS", "LMCONSOLE_DATA", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(name, None)
# Permissions to start runs: one folder for the tests and every process they start.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="lmconsole-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


def pytest_report_header() -> str:
    import lmconsole

    return f"lmconsole {lmconsole.__version__} from {Path(lmconsole.__file__).parent}"


STARTS_PROCESSES = re.compile(
    r"\b(subprocess|multiprocessing)\b"
    r"|\btiny\.(environment|fork_children|install|lmconsole|run_code|start|start_runner|worker)\("
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as ``quick`` that start no process, do not open the app (those are coroutines) and are not slow."""
    starting = {path: bool(STARTS_PROCESSES.search(path.read_text("utf-8"))) for path in {item.path for item in items}}
    for item in items:
        opens_app = inspect.iscoroutinefunction(getattr(item, "obj", None))
        marked = any(item.get_closest_marker(name) for name in ("slow", "gpu"))
        if not (starting[item.path] or opens_app or marked):
            item.add_marker("quick")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with real text, tokens and vocabularies, which is not part of the repository."""
    folder = os.environ.get("LMCONSOLE_SHARED")
    if not folder:
        pytest.skip("needs LMCONSOLE_SHARED: the folder with data/wikitext-2 and data/gpt1-bpe")
    path = Path(folder)
    assert path.is_dir(), f"LMCONSOLE_SHARED is not a folder: {path}"
    return path


@pytest.fixture
def slurm_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process believe that the machine has SLURM's commands, whether or not it has."""
    from lmconsole.runs.cluster import StatusReader

    monkeypatch.setattr(StatusReader, "has_slurm", True)


@pytest.fixture
def ordinary_user(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Return a function that takes root's right to read and write everything from this process until the test ends."""

    def drop() -> None:
        if os.geteuid() != 0:
            return
        for folder in (tmp_path, *tmp_path.parents):
            mode = folder.stat().st_mode & 0o7777
            if mode & 0o055 != 0o055:  # and it stays so: other processes of the tests may need it now
                folder.chmod(mode | 0o055)
        try:
            os.setresuid(NOBODY, NOBODY, 0)  # the saved id is the way back
        except PermissionError:
            pytest.skip("this root cannot become an ordinary user")

    yield drop
    if os.geteuid() == NOBODY:
        os.setresuid(0, 0, 0)
    for path in tmp_path.iterdir():
        path.chmod(path.stat().st_mode | 0o700)
