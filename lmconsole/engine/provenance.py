"""Code, packages and machine with which runs are queued, for run.json."""

import functools
import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

import lmconsole
from lmconsole import __version__
from lmconsole.runs.info import Checkout, Provenance

PACKAGE = Path(lmconsole.__file__).resolve().parent
CODE = ("data", "engine/attempt.py", "engine/shared_data.py", "lm", "plan")
"""Modules that compute results, or decide what is computed. Settings are in run.json, so experiments.toml is not one of
them."""
PACKAGES = ("triton", "numpy", "tokenizers", "safetensors")
"""Packages that compute results or read what they are computed from."""
MAX_DIFF_BYTES = 64 * 1024
NO_DIFF = "LMCONSOLE_NO_DIFF"
"""Variable that keeps the diff out of the store, if it is not empty."""
GIT_TIMEOUT_S = 2.0
"""Time for all questions to git about one repository."""

# Only for the repository of a person, whose configuration must start no program: no monitor of the file system, and no
# download of what a partial clone lacks. Commands that use filters, hooks or drivers for diffs are not called there.
_GIT = ("git", "--no-pager", "--literal-pathspecs", "-c", "core.fsmonitor=false", "-c", "protocol.allow=never")


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """Record about the code and the machine of all runs that one command queues."""

    provenance: Provenance
    source_diff: bytes = b""
    """Uncommitted changes of lmconsole's own code; empty if there are none."""


class Checkouts(NamedTuple):
    """State of the repositories that a run depends on."""

    package: Checkout | None
    source_diff: bytes
    experiments: Checkout | None


def find_checkouts(experiments: Path | None) -> Checkouts:
    """Return the state of lmconsole and of the file ``experiments`` in their repositories, and the diff of lmconsole
    unless the person wants none."""
    package, diff = package_checkout()
    wanted = not os.environ.get(NO_DIFF)
    own = None if experiments is None else file_checkout(experiments)
    return Checkouts(package=package, source_diff=limited(diff) if wanted else b"", experiments=own)


def capture(checkouts: Checkouts, *, gpu: bool) -> Captured:
    """Return what is recorded with runs that are queued now, on a ``gpu`` or the CPU."""
    from lmconsole.lm import device
    from lmconsole.telemetry.gpu import Gpus

    driver = None
    if gpu:
        gpus = Gpus.open()
        driver = gpus.driver_version
        gpus.close()
    provenance = Provenance(
        code_sha256=code_sha256(),
        checkout=checkouts.package,
        experiments=checkouts.experiments,
        versions=package_versions(device.versions(), driver),
        platform=platform.platform(),
        cpu=device.describe_device("cpu").name,
        cpu_capability=device.cpu_capability(),
    )
    return Captured(provenance=provenance, source_diff=checkouts.source_diff)


@functools.cache
def code_sha256(package: Path = PACKAGE) -> str:
    """Return the hash of the modules that compute results, as they were when this process first asked."""
    digest = hashlib.sha256()
    for name in CODE:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(package).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def package_versions(libraries: Mapping[str, str | None], driver: str | None) -> dict[str, str | None]:
    """Return the versions of everything that can change results, and None for what there is not; ``libraries`` are
    those of PyTorch."""
    packages = {name: _version_of(name) for name in PACKAGES}
    return {"lmconsole": __version__, "python": platform.python_version(), **libraries, **packages, "driver": driver}


def _version_of(package: str) -> str | None:
    from importlib import metadata  # slow to load

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def package_checkout(package: Path = PACKAGE) -> tuple[Checkout | None, bytes]:
    """Return the state of lmconsole's package folder in the repository it is run from, and the diff of its tracked
    files. None and nothing if it is installed, also if that is inside of another repository."""
    git = _Git(package)
    commit = git.commit()
    if commit is None or not git.lines("ls-files", "--", "__init__.py"):
        return None, b""
    # The configuration of this repository can start programs, like the code in it, which is running.
    diff = git.ask("diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD", "--", ".")
    return Checkout(commit=commit, changed=None if diff is None else bool(diff)), diff or b""


def file_checkout(file: Path) -> Checkout | None:
    """Return the state of a file in its repository; None if it is not tracked in one."""
    file = file.resolve()
    git = _Git(file.parent)
    commit = git.commit()
    tracked = git.lines("ls-tree", "HEAD", "--", file.name) if commit else None
    if commit is None or not tracked:
        return None
    found = git.lines("hash-object", "--no-filters", "--", file.name)
    return Checkout(commit=commit, changed=tracked[0].split()[2] != found[0] if found else None)


def limited(diff: bytes) -> bytes:
    """Return the diff, or as many whole lines of it as ``MAX_DIFF_BYTES`` allow and a note."""
    if len(diff) <= MAX_DIFF_BYTES:
        return diff
    kept = diff[: diff.rfind(b"\n", 0, MAX_DIFF_BYTES) + 1]
    return kept + f"# cut: the first {len(kept):,} of {len(diff):,} bytes\n".encode()


class _Git:
    """Questions to git about the repository of a folder. All answers are None without git or a repository, or after
    ``GIT_TIMEOUT_S``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._deadline_s = time.monotonic() + GIT_TIMEOUT_S
        # Variables such as GIT_DIR, which a hook has, would choose another repository.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self._environment = inherited | {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}

    def ask(self, *words: str) -> bytes | None:
        """Return what git prints; None if it fails."""
        try:
            done = subprocess.run(
                [*_GIT, *words],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=max(self._deadline_s - time.monotonic(), 0.01),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def lines(self, *words: str) -> list[str]:
        """Return the lines that git prints; none if it fails."""
        return (self.ask(*words) or b"").decode(errors="replace").splitlines()

    def commit(self) -> str | None:
        """Return the commit that is checked out; None before the first."""
        return next(iter(self.lines("rev-parse", "--verify", "HEAD")), None)
