"""One way in and one way out: which code opens files, prints, and starts interpreters."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import lmconsole

PACKAGE = Path(lmconsole.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

METHODS = {"read_text", "read_bytes", "write_text", "write_bytes"}
FUNCTIONS = {"os.open", "np.load", "torch.load", "zipfile.ZipFile", "safe_open"}
KERNEL = "a file of the kernel, which only the kernel writes"
INSTALLED = "a file of the installed package"
PRIVATE = "a private folder of the runner"
OPENED = "opened by open_file before"

OPENERS: Mapping[str, Mapping[str, str]] = {
    "files.py": {"os.open": "the one way in", "open": "a descriptor"},
    "commands/init.py": {"read_bytes": INSTALLED},
    "commands/schema.py": {"read_text": INSTALLED},
    "commands/skill.py": {"read_text": INSTALLED},
    "commands/streams.py": {"os.open": "/dev/null", "open": "a descriptor"},
    "data/fetch.py": {"zipfile.ZipFile": "written through atomic_write", "safe_open": OPENED, "open": "its members"},
    "data/files.py": {"zipfile.ZipFile": OPENED, "np.load": OPENED},
    "engine/child.py": {"open": "a descriptor"},
    "engine/provenance.py": {"read_bytes": INSTALLED},
    "engine/processes.py": {"open": "a file in memory"},
    "engine/shared_data.py": {"np.load": PRIVATE},
    "lm/device.py": {"read_text": KERNEL},
    "lm/embedding.py": {"zipfile.ZipFile": OPENED, "safe_open": OPENED, "open": "a member of an archive"},
    "lm/memory.py": {"read_text": KERNEL, "write_text": KERNEL},
    "lm/tensor_file.py": {"zipfile.ZipFile": OPENED},
    "report/reference.py": {"read_text": INSTALLED},
    "report/transaction.py": {"open": "a new file under a random name"},
    "telemetry/host.py": {"read_text": KERNEL},
    "telemetry/logout.py": {"read_text": KERNEL},
    "telemetry/overnight.py": {"read_text": "a file of systemd, which only root writes"},
    "tui/plot/glyphs.py": {"read_bytes": KERNEL},
    "tui/web_server.py": {"read_text": INSTALLED},
}
"""Modules that open files other than by ``open_file`` and ``read_file``, by which call, and why that is safe."""

PRINTERS = {
    "cli.py": {"print": "errors, which are escaped", "echo": "the version; a problem of the terminal"},
    "commands/output.py": {"print": "the one way out"},
}
"""Modules of the command line that print other than through ``commands/output.py``, and what."""


def calls(file: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a module with the name of what is called: ``open``, ``os.open``, ``read_text``."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id, node
            elif isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                yield f"{owner}.{node.func.attr}" if owner in ("os", "np", "torch", "zipfile") else node.func.attr, node


def opens(name: str, call: ast.Call) -> bool:
    """Return whether a call opens a file by its path."""
    first = call.args[0] if call.args else None
    if name == "open" and isinstance(call.func, ast.Name):
        return not (isinstance(first, ast.Call) and getattr(first.func, "id", "") == "open_file")
    if name == "open":  # of a path, with its mode; other objects have a method of this name
        return isinstance(first, ast.Constant | ast.JoinedStr)
    return name in FUNCTIONS or (name in METHODS and isinstance(call.func, ast.Attribute))


@pytest.mark.parametrize("file", FILES)
def test_files_are_opened_in_one_way(file: str) -> None:
    found = {name for name, call in calls(file) if opens(name, call)}
    assert found == set(OPENERS.get(file, {}))


def test_the_exceptions_name_modules_that_exist() -> None:
    assert set(OPENERS) | set(PRINTERS) <= set(FILES)


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("commands/") or file == "cli.py"])
def test_commands_print_in_one_way(file: str) -> None:
    found = {name for name, call in calls(file) if name in ("print", "echo") and not is_console(call)}
    assert found == set(PRINTERS.get(file, {}))
    source = (PACKAGE / file).read_text(encoding="utf-8")
    assert "sys.stdout.write" not in source
    assert "sys.stdout.buffer" not in source


def is_console(call: ast.Call) -> bool:
    """Return whether this is the method ``print`` of a console, which ``commands/output.py`` makes."""
    return isinstance(call.func, ast.Attribute) and call.func.attr == "print"


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("tui/")])
def test_fields_of_the_console_escape_control_characters(file: str) -> None:
    assert "Input" not in {name for name, _ in calls(file)}, "use widgets/field.py"


@pytest.mark.parametrize("file", FILES)
def test_every_interpreter_that_is_started_ignores_the_current_folder(file: str) -> None:
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
            assert ast.unparse(node.elts[1]) == "'-P'"


MODULES = ("inspect", "types", "random", "torch", "json", "numpy", "typer", "psutil", "logging", "msgspec")
"""Names that a folder of a person may well contain, and that we or PyTorch import."""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["script", "module"])
def test_modules_in_the_current_folder_are_not_imported(start: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in MODULES:
        if start == "script" or name != "types":  # Python itself imports it before the first line of a module
            (here / f"{name}.py").write_text(f"raise SystemExit('{name} of the current folder')\n")
    script = tmp_path / "lmconsole"
    script.write_text("from lmconsole.cli import main\nmain()\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    environment |= {"PYTHONPATH": str(PACKAGE.parent), "XDG_CACHE_HOME": str(tmp_path)}
    command = [str(script)] if start == "script" else ["-m", "lmconsole"]
    for words in (["doctor"], ["run", "1", "--preset", "demo", "--dry-run"]):
        done = subprocess.run(
            [sys.executable, *command, *words],
            cwd=here,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "of the current folder" not in done.stdout + done.stderr
        assert "PyTorch" not in done.stdout or "problem  PyTorch" not in done.stdout
