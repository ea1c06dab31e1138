"""The layout of the package: which modules may import which, read from the source and proven in fresh interpreters.

Every import counts, wherever it is: in a function, under ``TYPE_CHECKING``, or as ``import_module("…")``.
"""

import ast
import functools
import pkgutil
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

import lmconsole

PACKAGE = Path(lmconsole.__file__).parent
DRAWING = Path(__file__).parents[1] / "docs" / "architecture.md"

LAYERS = (
    {"__main__"},
    {"cli"},
    {"api", "commands", "tui"},
    {"report"},
    {"claims"},
    {"engine"},
    {"lm"},
    {"data", "importing"},
    {"runs"},
    {"plan"},
    {"telemetry"},
    {"errors", "extras", "files", "formatting"},
)
"""Packages and top-level modules from the top to the bottom. Each may import itself and what is in the layers below."""

WORKER = ("engine.worker", "engine.attempt", "engine.preload")
NEVER_IN_A_WORKER = ("engine.queue", "engine.probe")

ONLY_IN: Mapping[str, str | tuple[str, ...]] = {
    "torch": "lm/",
    "pandas": ("report/", "api.py"),
    "matplotlib": ("report/", "api.py"),
    "scipy": "claims/",
    "tensorboard": "report/tensorboard.py",
    "textual": "tui/",
    "textual_plotext": "tui/",
    "plotext": "tui/",
    "pynvml": "telemetry/gpu.py",
}
"""Third-party packages that only one part of the package may import."""
HEAVY = ["torch", "textual", "pandas", "matplotlib", "pynvml", "scipy"]

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported_names(file: str) -> Iterator[str]:
    """Yield the full name of everything that a file imports."""
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


def module_of(file: str) -> str:
    """Return the name of a module inside the package: ``runs.store``; the package itself is an empty name."""
    return file.removesuffix(".py").removesuffix("__init__").rstrip("/").replace("/", ".")


@functools.cache
def import_graph() -> Mapping[str, frozenset[str]]:
    """Return, for each module of the package, the modules of the package that it imports.

    Of the package itself the others use only ``__version__``. The names of ``api`` that it loads when they are first
    used count for nobody.
    """
    modules = {module_of(file) for file in FILES}

    def resolve(name: str) -> str:
        parts = name.split(".")[1:]
        while ".".join(parts) not in modules:
            parts.pop()  # a function or class in a module
        return ".".join(parts)

    graph = {}
    for file in FILES:
        names = [name for name in imported_names(file) if name.split(".")[0] == "lmconsole"]
        graph[module_of(file)] = frozenset(resolve(name) for name in names) - {module_of(file)}
    assert graph.pop("") == {"api"}
    graph[""] = frozenset()
    return graph


def shortest_chain(start: str, end: str) -> list[str] | None:
    """Return the modules from ``start`` to ``end``, each of which imports the next; None if there is no such chain."""
    graph, chains, seen = import_graph(), [[start]], {start}
    for chain in chains:  # grows as it is read
        for module in sorted(graph[chain[-1]]):
            if module == end:
                return [*chain, module]
            if module not in seen:
                seen.add(module)
                chains.append([*chain, module])
    return None


def layer_of(part: str) -> int:
    """Return the number of a layer, from the bottom; ``lmconsole`` itself is below all of them."""
    return next((number for number, layer in enumerate(reversed(LAYERS)) if part in layer), -1)


def parts() -> set[str]:
    """Return the packages and top-level modules that exist."""
    return {each.name for each in pkgutil.iter_modules([str(PACKAGE)])}


def test_every_package_has_a_layer() -> None:
    assert parts() == set().union(*LAYERS)


def test_no_package_imports_another_of_its_own_layer_or_of_one_above() -> None:
    wrong = [
        f"{module or 'lmconsole'} imports {other}"
        for module, imported in import_graph().items()
        for other in sorted(imported)
        if module.split(".")[0] != other.split(".")[0]
        and layer_of(other.split(".")[0]) >= layer_of(module.split(".")[0])
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_use_only_the_version_of_the_package_itself() -> None:
    used = {name for file in FILES if file != "__init__.py" for name in imported_names(file)}
    assert used & {f"lmconsole.{name}" for name in lmconsole.__all__} == {"lmconsole.__version__"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    circles = {}
    for module in import_graph():
        chain = shortest_chain(module, module)
        if chain is not None:
            circles[frozenset(chain)] = " → ".join(chain)
    assert not circles, "\n".join(circles.values())


@pytest.mark.parametrize("never", NEVER_IN_A_WORKER)
def test_a_worker_imports_neither_the_queue_nor_the_probe(never: str) -> None:
    chains = [shortest_chain(module, never) for module in WORKER]
    found = [" → ".join(chain) for chain in chains if chain is not None]
    assert not found, "\n".join(found)


def test_the_drawing_of_the_layers_matches_the_imports() -> None:
    if not DRAWING.exists():
        pytest.skip("needs docs/architecture.md of the checkout")
    blocks = re.findall(r"^```layers\n(.*?)^```", DRAWING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, "docs/architecture.md needs one block ```layers"
    assert [set(line.split()) for line in blocks[0].splitlines() if line.strip()] == list(LAYERS)


@pytest.mark.parametrize("file", FILES)
def test_heavy_packages_are_imported_in_one_place_only(file: str) -> None:
    found = {name.split(".")[0] for name in imported_names(file)} & set(ONLY_IN)
    assert {name for name in found if not file.startswith(ONLY_IN[name])} == set()


def test_imports_are_found() -> None:
    """Guard the tests above against an empty graph."""
    assert "torch" in {name.split(".")[0] for file in FILES if file.startswith("lm/") for name in imported_names(file)}
    assert "pynvml" in set(imported_names("telemetry/gpu.py")), "an import in a function"
    assert "runs.events" in import_graph()["runs.store"]
    assert "lm.device" in import_graph()["engine.bench"], "an import in a function"
    assert "" in import_graph()["engine.bench"], "lmconsole.__version__"
    assert shortest_chain("runs.trash", "runs.info") == ["runs.trash", "runs.store", "runs.info"]
    assert shortest_chain("runs.info", "runs.trash") is None


def loaded_by(code: str) -> set[str]:
    """Return the top-level names of all modules that a fresh interpreter has loaded after running ``code``."""
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


LATE = {"psutil", "plotext", "lmconsole.tui.filter", "lmconsole.tui.screens.form", "lmconsole.engine.queue"}
"""Modules that the first paint of the console does not need."""


def test_the_console_opens_before_it_loads_everything() -> None:
    assert "textual" in loaded_by(f"import sys, lmconsole.tui.app\nassert not {LATE} & set(sys.modules)")


@pytest.mark.parametrize(
    ("package", "but", "never"),
    [
        ("telemetry", [], [*HEAVY, "numpy"]),
        ("plan", [], [*HEAVY, "numpy"]),
        ("runs", [], HEAVY),
        ("data", [], HEAVY),
        # A worker locks its run before it imports attempt.py, and with it torch; preload.py is for its parent process.
        ("engine", ["attempt", "preload"], HEAVY),
        ("commands", [], HEAVY),
        ("importing", [], HEAVY),
    ],
)
def test_every_module_of_a_light_package_is_light(package: str, but: Collection[str], never: Collection[str]) -> None:
    modules = [each.name for each in pkgutil.iter_modules([str(PACKAGE / package)]) if each.name not in but]
    assert modules
    imports = "\n".join(f"import lmconsole.{package}.{module}" for module in modules)
    assert loaded_by(imports) & set(never) == set()
