"""No inherited variable matters: commands do the same whatever a notebook, a cluster or a shell left behind."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import recorded
import tiny

LONG = "x" * 120
"""A folder with such a name is too long for the address of a socket."""

XDG = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")

ENVIRONMENTS: dict[str, Mapping[str, str]] = {
    "a notebook without folders that can be written": {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MPLCONFIGDIR": "/proc/none",
        "COLUMNS": "0",
        "LINES": "0",
        "CUDA_VISIBLE_DEVICES": "none of them",
        "CUDA_DEVICE_ORDER": "odd",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "many",
        "MKL_NUM_THREADS": "-3",
        "OMP_DYNAMIC": "true",
        "OMP_SCHEDULE": "odd",
        "TEXTUAL_DRIVER": "no.such:Driver",
        "TEXTUAL_THEME": "none",
        "TEXTUAL_FPS": "x",
        **dict.fromkeys(XDG, "/proc/none"),
        "XDG_STATE_HOME": "{root}/state",  # permissions to start runs must be saved
        "TMPDIR": "{root}/" + LONG,
        "HOME": "/nowhere",
        "USER": "",
        "TERM": "\x1b[31m",
    },
    "a cluster with odd folders": {
        "MPLBACKEND": "no-such-backend",
        "MATPLOTLIBRC": "{root}/pipe",
        "COLUMNS": "²",
        "LINES": "-1",
        "OMP_NUM_THREADS": "7",
        "MKL_NUM_THREADS": "5",
        "OMP_THREAD_LIMIT": "1",
        "OMP_PROC_BIND": "true",
        **dict.fromkeys(XDG, "rel"),
        "TMPDIR": "/nowhere",
        "TERM": "dumb",
        "NO_COLOR": "1",
    },
    "an ASCII terminal and an optimized Python": {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
        "PYTHONCOERCECLOCALE": "0",
        "MATPLOTLIBRC": "{root}/damaged",
        "PYTHONOPTIMIZE": "2",
        "PYTHONHASHSEED": "7",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "",
        "PYTHONSTARTUP": "/nowhere",
        "PYTHONINTMAXSTRDIGITS": "640",
        "COLUMNS": "99999999999999999999",
    },
}


def filled(variables: Mapping[str, str], root: Path) -> dict[str, str]:
    """Make what the variables refer to, and return them."""
    (root / LONG).mkdir(exist_ok=True)
    (root / "damaged").write_bytes(b"\xff\xfe backend: none\n")
    if not (root / "pipe").exists():
        os.mkfifo(root / "pipe")
    return {name: value.replace("{root}", str(root)) for name, value in variables.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store and an export of it."""
    root = tmp_path_factory.mktemp("environment")
    recorded.record(root, 1, "lstm", [(5.0, 5.1), (4.8, 5.0)])
    recorded.record(root, 2, "gpt1", [(4.0, 4.1), (3.8, 4.0)], name="naïve – β")
    tiny.lmconsole("export", "--out", "expected", cwd=root, check=0)
    assert len(contents(root / "expected")) > 20
    return root


@pytest.fixture(scope="module")
def usual_list(root: Path) -> object:
    return json.loads(tiny.lmconsole("list", "--json", cwd=root, check=0).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_exports_and_lists_are_the_same_in_any_environment(name: str, root: Path, usual_list: object) -> None:
    env = filled(ENVIRONMENTS[name], root)
    out = f"out {name}"
    done = tiny.lmconsole("export", "--out", out, cwd=root, env=env, check=0)
    assert done.stderr == ""
    assert contents(root / out) == contents(root / "expected")
    listed = tiny.lmconsole("list", "--json", cwd=root, env=env, check=0)
    assert json.loads(listed.stdout) == usual_list
    assert tiny.lmconsole("status", cwd=root, env=env, check=0).stdout.count("finished") == 2
    assert not (root / "rel").exists()


def test_a_matplotlibrc_in_the_current_folder_is_not_read(root: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "matplotlibrc")
    tiny.lmconsole("export", "--runs", str(root / "runs"), "--out", "out", cwd=tmp_path, check=0, new_program=True)
    assert contents(tmp_path / "out") == contents(root / "expected")


def train(root: Path, env: Mapping[str, str]) -> list[tuple[float, float]]:
    """Train a tiny run, with exports, and return the losses of its epochs."""
    file = tiny.write_experiments(root / "mine.toml", tiny.row(1, more="epochs = 1"))
    data = tiny.write_corpus(root / "data")
    words = ["run", "1", "--headless", "--preset", "tiny", "--experiments", str(file), "--data", str(data), "--json"]
    done = tiny.lmconsole(*words, cwd=root, env=env, check=0)
    assert "exports: /" in done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [(event["train_loss_nats"], event["valid_loss_nats"]) for event in events if event["kind"] == "epoch"]


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    return train(tmp_path_factory.mktemp("usual"), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_run_computes_the_same_and_doctor_finds_no_problem_in_any_environment(
    name: str, losses: list[tuple[float, float]], tmp_path: Path
) -> None:
    env = filled(ENVIRONMENTS[name], tmp_path)
    assert train(tmp_path, env) == losses
    findings = json.loads(tiny.lmconsole("doctor", "--json", cwd=tmp_path, env=env, check=0).stdout)
    assert [each for each in findings if each["verdict"] == "problem"] == []
