"""What people get from ``pip install .``, from an sdist, and from the lock."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lmconsole

CHECKOUT = Path(__file__).resolve().parents[1]
LOCK = CHECKOUT / "requirements-dev.lock"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
ROOMS = [
    "cli.py",
    "errors.py",
    "telemetry/gpu.py",
    "plan/load.py",
    "runs/store.py",
    "data/corpus.py",
    "lm/linear_cross_entropy.py",
]


def call(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=300, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    """Without the network: hatchling comes from the environment the tests run in."""
    call(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(CHECKOUT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone in a folder of its own; everything else comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("site")
    call(*PIP, "install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel)
    return folder


def run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    return call(installed / "bin" / "lmconsole", *arguments, cwd=cwd, env=os.environ | {"PYTHONPATH": str(installed)})


def run_python(installed: Path, cwd: Path, script: str) -> str:
    return call(sys.executable, "-c", script, cwd=cwd, env=os.environ | {"PYTHONPATH": str(installed)})


@pytest.mark.slow
def test_the_wheel_has_all_rooms_and_the_same_experiments(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read("lmconsole/experiments.toml") == (CHECKOUT / "experiments.toml").read_bytes()
        there = {name.removeprefix("lmconsole/") for name in names if name.startswith("lmconsole/")}
        metadata = archive.read(f"lmconsole-{lmconsole.__version__}.dist-info/METADATA").decode()
    assert set(ROOMS) <= there
    source = {path.relative_to(CHECKOUT / "lmconsole").as_posix() for path in package_files(CHECKOUT / "lmconsole")}
    assert source <= there
    assert {name.split("/")[0] for name in names} == {"lmconsole", f"lmconsole-{lmconsole.__version__}.dist-info"}
    assert "License-Expression: MIT" in metadata


@pytest.mark.slow
def test_the_installed_wheel_lists_the_twelve_experiments_from_anywhere(installed: Path, tmp_path: Path) -> None:
    where = run_python(installed, tmp_path, "import lmconsole; print(lmconsole.__file__)").strip()
    assert Path(where).is_relative_to(installed)
    listing = run_installed(installed, tmp_path, "list", "--json")
    assert sorted(experiment_ids(listing)) == list(range(1, 13))
    assert list(tmp_path.iterdir()) == []


def experiment_ids(listing: str) -> list[int]:
    return [int(each) for each in re.findall(r'"id":\s*(\d+)', listing)]


@pytest.mark.slow
def test_an_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path, cwd=CHECKOUT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    again = build_wheel(sdist, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {each.filename: each.CRC for each in one.infolist() if not each.filename.endswith("RECORD")} == {
            each.filename: each.CRC for each in other.infolist() if not each.filename.endswith("RECORD")
        }


def package_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_package_under_test_is_what_lies_in_this_checkout() -> None:
    """``make test`` installs anew before it tests; pytest alone may meet an older copy."""
    tested = Path(lmconsole.__file__).parent
    stale = [
        str(path.relative_to(CHECKOUT))
        for path in package_files(CHECKOUT / "lmconsole")
        if not (copy := tested / path.relative_to(CHECKOUT / "lmconsole")).is_file()
        or copy.read_bytes() != path.read_bytes()
    ]
    assert stale == [], f"{tested} is older than the checkout: run `make test`"


def test_version_and_change_log_agree() -> None:
    log = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", log, flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == lmconsole.__version__


def pins() -> list[str]:
    """The lock's entries, each with its hashes, on one line."""
    text = LOCK.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_every_entry_of_the_lock_is_an_exact_version_with_hashes() -> None:
    assert len(pins()) > 20
    assert [pin for pin in pins() if not re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", pin)] == []


def test_the_lock_leaves_torch_and_what_is_built_for_one_gpu_maker_to_the_machine() -> None:
    names = {pin.split("==")[0] for pin in pins()}
    assert {name for name in names if re.match(r"torch$|cuda-|nvidia-(?!ml-py$)", name)} == set()
    assert {"hatchling", "nvidia-ml-py", "pytest", "sympy"} <= names


def test_the_lock_has_the_triton_of_its_torch_on_linux() -> None:
    """Builds of torch for CPUs bring none, and our kernels are tested in its interpreter everywhere."""
    (pin,) = (pin for pin in pins() if pin.startswith("triton=="))
    assert "sys_platform == 'linux'" in pin


def test_the_lock_names_no_place() -> None:
    assert re.search(r"://|file:|--index|--find-links|(^|\s)/", LOCK.read_text(encoding="utf-8")) is None
