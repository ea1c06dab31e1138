"""The wheel, the sdist and the lock files."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import lmconsole

CHECKOUT = Path(__file__).resolve().parents[1]
LOCK, USER_LOCK = CHECKOUT / "requirements-dev.lock", CHECKOUT / "requirements.lock"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
MODULES = [
    "cli.py",
    "errors.py",
    "api.py",
    "commands/SKILL.md",
    "py.typed",
    "schemas/experiments.json",
    "schemas/output.json",
    "telemetry/gpu.py",
    "plan/load.py",
    "runs/store.py",
    "data/corpus.py",
    "lm/linear_cross_entropy.py",
]


def call(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    arguments = [str(each) for each in command]
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    """Build without a network: hatchling comes from the environment of the tests."""
    call(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(CHECKOUT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with only the wheel installed; dependencies come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("site")
    call(*PIP, "install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel)
    return folder


def run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    return call(installed / "bin" / "lmconsole", *arguments, cwd=cwd, env=os.environ | {"PYTHONPATH": str(installed)})


def run_python(installed: Path, cwd: Path, script: str) -> str:
    return call(sys.executable, "-c", script, cwd=cwd, env=os.environ | {"PYTHONPATH": str(installed)})


@pytest.mark.slow
def test_the_wheel_contains_the_package_and_the_experiments(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read("lmconsole/experiments.toml") == (CHECKOUT / "experiments.toml").read_bytes()
        contents = {name.removeprefix("lmconsole/") for name in names if name.startswith("lmconsole/")}
        metadata = archive.read(f"lmconsole-{lmconsole.__version__}.dist-info/METADATA").decode()
    assert set(MODULES) <= contents
    source = {path.relative_to(CHECKOUT / "lmconsole").as_posix() for path in package_files(CHECKOUT / "lmconsole")}
    assert source <= contents
    assert {name.split("/")[0] for name in names} == {"lmconsole", f"lmconsole-{lmconsole.__version__}.dist-info"}
    assert "License-Expression: MIT" in metadata
    assert "Project-URL" not in metadata


@pytest.mark.slow
def test_the_installed_wheel_lists_the_twelve_experiments_from_anywhere(installed: Path, tmp_path: Path) -> None:
    origin = run_python(installed, tmp_path, "import lmconsole; print(lmconsole.__file__)").strip()
    assert Path(origin).is_relative_to(installed)
    listing = run_installed(installed, tmp_path, "list", "--json")
    assert sorted(experiment_ids(listing)) == list(range(1, 13))
    assert list(tmp_path.iterdir()) == []


def experiment_ids(listing: str) -> list[int]:
    return [int(each) for each in re.findall(r'"id":\s*(\d+)', listing)]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    call(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=CHECKOUT)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.mark.slow
@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="not a clone")
def test_the_sdist_contains_all_files_of_the_repository(sdist: Path) -> None:
    tracked = set(call("git", "ls-files", "-z", cwd=CHECKOUT).strip("\0").split("\0"))
    with tarfile.open(sdist) as archive:
        contents = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked - contents == set()
    assert {name for name in contents - tracked if not name.startswith("tests/")} <= {"PKG-INFO"}


@pytest.mark.slow
def test_an_sdist_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    again = build_wheel(sdist, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {each.filename: each.CRC for each in one.infolist() if not each.filename.endswith("RECORD")} == {
            each.filename: each.CRC for each in other.infolist() if not each.filename.endswith("RECORD")
        }


def package_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_package_under_test_is_that_of_this_checkout() -> None:
    """``make test`` reinstalls the package before the tests; pytest alone may find an older copy."""
    tested = Path(lmconsole.__file__).parent
    stale = [
        str(path.relative_to(CHECKOUT))
        for path in package_files(CHECKOUT / "lmconsole")
        if not (copy := tested / path.relative_to(CHECKOUT / "lmconsole")).is_file()
        or copy.read_bytes() != path.read_bytes()
    ]
    assert stale == [], f"{tested} is older than the checkout: run `make test`"


def test_the_changelog_ends_with_this_version() -> None:
    """A development version comes after the newest release; a release has its date in the changelog."""
    log = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", log, flags=re.MULTILINE)
    releases = re.findall(r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", log, flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert len(releases) == len(headings) - 1
    newest = releases[0]
    version, _, development = lmconsole.__version__.partition(".dev")
    assert numbers(version) > numbers(newest) if development else version == newest


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_the_changelog_has_standard_headings() -> None:
    log = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    kinds = set(re.findall(r"^### (.+)$", log, flags=re.MULTILINE))
    assert {"Added", "Changed"} <= kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def pins(lock: Path) -> list[str]:
    """Entries of a lock file, each with its hashes on one line."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("lock", [LOCK, USER_LOCK], ids=lambda lock: lock.name)
def test_every_entry_of_a_lock_is_an_exact_version_with_hashes(lock: Path) -> None:
    assert len(pins(lock)) > 20
    assert [pin for pin in pins(lock) if not re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", pin)] == []


@pytest.mark.parametrize("lock", [LOCK, USER_LOCK], ids=lambda lock: lock.name)
def test_a_lock_contains_neither_torch_nor_its_gpu_libraries(lock: Path) -> None:
    names = {pin.split("==")[0] for pin in pins(lock)}
    assert {name for name in names if re.match(r"torch$|cuda-|nvidia-(?!ml-py$)", name)} == set()
    assert {"hatchling", "nvidia-ml-py", "sympy"} <= names


def test_the_lock_for_users_has_all_extras_and_no_tools() -> None:
    """Its versions and hashes are those that the tests run with."""
    assert set(pins(USER_LOCK)) <= set(pins(LOCK))
    names = {pin.split("==")[0] for pin in pins(USER_LOCK)}
    extras = {"aiohttp", "huggingface-hub", "pyarrow", "tensorboard", "textual-image", "textual-serve"}
    assert extras <= names
    assert {"coverage", "mypy", "pre-commit", "pytest", "ruff"} & names == set()


def test_the_lock_contains_triton_on_linux() -> None:
    """CPU builds of torch do not include Triton, and the kernels are tested in its interpreter."""
    (pin,) = (pin for pin in pins(LOCK) if pin.startswith("triton=="))
    assert "sys_platform == 'linux'" in pin


@pytest.mark.parametrize("lock", [LOCK, USER_LOCK], ids=lambda lock: lock.name)
def test_a_lock_contains_no_urls_or_paths(lock: Path) -> None:
    assert re.search(r"://|file:|--index|--find-links|(^|\s)/", lock.read_text(encoding="utf-8")) is None
