"""The record of code, packages and machine of a run: complete, safe, and of the right repository."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from lmconsole.engine import provenance
from lmconsole.engine.provenance import (
    MAX_DIFF_BYTES,
    NO_DIFF,
    PACKAGE,
    capture,
    code_sha256,
    file_checkout,
    find_checkouts,
    limited,
    package_checkout,
)
from lmconsole.runs.info import Checkout

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b")


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a package and an experiments.toml, both committed."""
    root = tmp_path / "repository"
    (root / "package").mkdir(parents=True)
    (root / "package" / "__init__.py").write_text("x = 1\n")
    (root / "experiments.toml").write_text("a = 1\n")
    (root / "other.txt").write_text("1\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


@pytest.mark.parametrize(
    ("file", "decides"),
    [
        ("lm/loop.py", True),
        ("lm/new.py", True),
        ("data/windows.py", True),
        ("plan/experiment.py", True),
        ("engine/attempt.py", True),
        ("engine/queue.py", False),
        ("report/draw.py", False),
        ("lm/notes.txt", False),
    ],
)
def test_the_hash_of_the_code_is_that_of_the_modules_that_compute(file: str, decides: bool, tmp_path: Path) -> None:
    copies = [tmp_path / "one", tmp_path / "two"]
    for copy in copies:
        for name in ("data", "engine", "lm", "plan"):
            shutil.copytree(PACKAGE / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copies[1] / "report").mkdir()
    with (copies[1] / file).open("a") as changed:
        changed.write("# a line more\n")
    assert code_sha256(copies[0]) == code_sha256()
    assert (code_sha256(copies[1]) != code_sha256()) is decides


def test_a_module_that_moves_changes_the_hash(tmp_path: Path) -> None:
    for name in ("data", "engine", "lm", "plan"):
        shutil.copytree(PACKAGE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lm" / "lstm.py").rename(tmp_path / "data" / "lstm.py")
    assert code_sha256(tmp_path) != code_sha256()


def test_the_checkout_of_a_package_has_its_commit_and_the_diff_of_its_own_files(repository: Path) -> None:
    package, commit = repository / "package", git(repository, "rev-parse", "HEAD")
    (repository / "other.txt").write_text("secret\n")
    (package / "untracked.py").write_text("secret\n")
    assert package_checkout(package) == (Checkout(commit=commit, changed=False), b"")
    (package / "__init__.py").write_text("x = 2\n")
    checkout, diff = package_checkout(package)
    assert checkout == Checkout(commit=commit, changed=True)
    assert b"-x = 1\n+x = 2\n" in diff
    assert b"secret" not in diff
    git(repository, "checkout", "-q", "--", ".")
    subprocess.run(["git", "apply"], cwd=repository, input=diff, check=True)
    assert (package / "__init__.py").read_text() == "x = 2\n"


def test_a_package_installed_inside_of_a_repository_is_in_none(repository: Path) -> None:
    installed = repository / ".venv" / "package"
    shutil.copytree(repository / "package", installed)
    assert package_checkout(installed) == (None, b"")


def test_there_is_no_checkout_before_the_first_commit_or_outside_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    assert package_checkout(tmp_path) == (None, b"")
    git(tmp_path, "init", "-q")
    assert package_checkout(tmp_path) == (None, b"")
    assert file_checkout(tmp_path / "__init__.py") is None


def test_a_file_has_the_state_of_itself_in_its_repository(repository: Path) -> None:
    file, commit = repository / "experiments.toml", git(repository, "rev-parse", "HEAD")
    (repository / "other.txt").write_text("changed\n")
    assert file_checkout(file) == Checkout(commit=commit, changed=False)
    file.write_text("a = 2\n")
    git(repository, "add", ".")
    assert file_checkout(file) == Checkout(commit=commit, changed=True)
    assert file_checkout(repository / "untracked.toml") is None
    odd = repository / "*.toml"
    odd.write_text("a = 1\n")
    assert file_checkout(odd) is None, "a pattern that matches a tracked file"


def test_the_repository_of_a_person_starts_no_program(repository: Path) -> None:
    program = repository / "program"
    program.write_text(f"#!/bin/sh\ntouch '{repository / 'started'}'\ncat\n")
    program.chmod(0o755)
    (repository / ".gitattributes").write_text("* filter=x diff=x\n")
    names = ("core.fsmonitor", "core.pager", "filter.x.clean", "filter.x.process", "diff.x.textconv", "diff.external")
    for name in names:
        git(repository, "config", name, str(program))
    (repository / "experiments.toml").write_text("a = 2\n")
    found = file_checkout(repository / "experiments.toml")
    assert found is not None
    assert found.changed is True
    assert not (repository / "started").exists()


def test_variables_of_git_choose_no_other_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")
    assert package_checkout(repository / "package")[0] is not None


@pytest.mark.parametrize("program", [None, "#!/bin/sh\nexec sleep 30\n", "#!/bin/sh\nexit 128\n"])
def test_a_missing_slow_or_failing_git_costs_the_commit_alone(
    program: str | None, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    if program is not None:
        (folder / "git").write_text(program)
        (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder) if program is None else f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_TIMEOUT_S", 0.2)
    began_s = time.monotonic()
    assert package_checkout(repository / "package") == (None, b"")
    assert file_checkout(repository / "experiments.toml") is None
    assert time.monotonic() - began_s < 5.0


def test_a_long_diff_is_cut_at_a_line_and_says_so() -> None:
    line = b"+" + b"x" * 62 + b"\n"
    whole = line * (MAX_DIFF_BYTES // 64)
    assert limited(whole) == whole
    cut = limited(whole + line)
    assert cut.startswith(line)
    assert len(cut) < MAX_DIFF_BYTES + 100
    assert cut.splitlines()[-1] == b"# cut: the first 65,536 of 65,600 bytes"
    assert set(cut.splitlines()[:-1]) == {line.rstrip()}


def test_no_diff_is_kept_if_nobody_wants_one(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "package" / "__init__.py").write_text("x = 2\n")
    monkeypatch.setattr(provenance, "package_checkout", lambda: package_checkout(repository / "package"))
    experiments = repository / "experiments.toml"
    assert find_checkouts(experiments).source_diff
    monkeypatch.setenv(NO_DIFF, "1")
    found = find_checkouts(experiments)
    assert found.source_diff == b""
    assert found.package is not None
    assert found.package.changed is True
    assert found.experiments is not None
    assert find_checkouts(None).experiments is None


def test_versions_of_everything_that_can_change_results_are_recorded() -> None:
    import numpy
    import torch

    found = capture(find_checkouts(None), gpu=False).provenance
    names = ("lmconsole", "python", "torch", "cuda", "cudnn", "triton", "numpy", "tokenizers", "safetensors", "driver")
    assert tuple(found.versions) == names
    assert (found.versions["torch"], found.versions["numpy"]) == (torch.__version__, numpy.__version__)
    assert found.versions["driver"] is None
    assert found.code_sha256 == code_sha256()
    assert found.cpu_capability == torch.backends.cpu.get_cpu_capability()
    assert found.cpu
    assert found.platform
