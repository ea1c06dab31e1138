"""Which part of the package may know which: read from the source, and proven in fresh interpreters."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmconsole

PACKAGE = Path(lmconsole.__file__).parent

# From the ground up. A room may import itself, what lies below it, and nothing that stands on the same floor.
FLOORS = [
    {"__init__"},
    {"errors", "files", "formatting"},
    {"telemetry"},
    {"plan"},
    {"runs"},
    {"data", "importing"},
    {"lm"},
    {"engine"},
    {"report"},
    {"commands", "tui"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Third-party packages that only one place may import.
ONLY_IN = {
    "torch": "lm/",
    "pandas": "report/",
    "matplotlib": "report/",
    "textual": "tui/",
    "textual_plotext": "tui/",
    "plotext": "tui/",
    "pynvml": "telemetry/gpu.py",
}
HEAVY = ["torch", "textual", "pandas", "matplotlib", "pynvml"]

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(file: str) -> Iterator[str]:
    """The full name of everything a file imports, wherever in it, by statement or by ``import_module("…")``."""
    package = ["lmconsole", *file.split("/")[:-1]]
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def room_of(parts: list[str]) -> str:
    """The room a dotted name of this package belongs to; ``lmconsole.__version__`` belongs to the ground."""
    return parts[1] if len(parts) > 1 and parts[1] in rooms_there() else "__init__"


def rooms_there() -> set[str]:
    return {each.name for each in pkgutil.iter_modules([str(PACKAGE)])}


def test_every_room_has_a_floor() -> None:
    assert rooms_there() <= set(FLOOR)


@pytest.mark.parametrize("file", FILES)
def test_no_room_imports_from_a_floor_above_or_beside_it(file: str) -> None:
    here = file.split("/")[0].removesuffix(".py")
    wrong = []
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != "lmconsole":
            continue
        there = room_of(parts)
        if there != here and FLOOR[there] >= FLOOR[here]:
            wrong.append(name)
    assert not wrong, f"{file} imports {wrong}"


@pytest.mark.parametrize("file", FILES)
def test_heavy_packages_are_imported_in_one_place_only(file: str) -> None:
    found = {name.split(".")[0] for name in imports(file)} & set(ONLY_IN)
    assert {name for name in found if not file.startswith(ONLY_IN[name])} == set()


def test_the_one_place_is_where_they_are_imported() -> None:
    """Guards the two tests above against looking in the wrong folder."""
    assert "torch" in {name.split(".")[0] for file in FILES if file.startswith("lm/") for name in imports(file)}
    assert "pynvml" in set(imports("telemetry/gpu.py"))


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after running ``code``."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        "import lmconsole.cli\n"
        "sys.argv = ['lmconsole', '--help']\n"
        "try:\n    lmconsole.cli.main()\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert "typer" in loaded
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize(
    ("room", "but", "never"),
    [
        ("telemetry", [], [*HEAVY, "numpy"]),
        ("plan", [], [*HEAVY, "numpy"]),
        ("runs", [], HEAVY),
        ("data", [], HEAVY),
        # The worker takes its run's lock before it loads attempt.py, and with it torch. What it is forked from has.
        ("engine", ["attempt", "preload"], HEAVY),
        ("commands", [], HEAVY),
        ("importing", [], HEAVY),
    ],
)
def test_every_module_of_a_room_stays_light(room: str, but: list[str], never: list[str]) -> None:
    modules = [each.name for each in pkgutil.iter_modules([str(PACKAGE / room)]) if each.name not in but]
    assert modules
    assert loaded_by("\n".join(f"import lmconsole.{room}.{module}" for module in modules)) & set(never) == set()


def test_a_worker_imports_neither_the_queue_nor_the_probe() -> None:
    script = "import sys\nimport lmconsole.engine.worker, lmconsole.engine.preload\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert "lmconsole.engine.attempt" in loaded
    assert loaded & {"lmconsole.engine.queue", "lmconsole.engine.probe"} == set()
