"""Private names of Textual and plotext are used in one file each."""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import lmconsole
import lmconsole.tui
from lmconsole.tui.plot import plotext_internals
from lmconsole.tui.terminal import textual_internals

pytestmark = pytest.mark.slow

PACKAGE = Path(lmconsole.__file__).parent
ALLOWED = {"tui/terminal/textual_internals.py", "tui/plot/plotext_internals.py"}
LIBRARIES = ("textual", "plotext")
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
TUI_FILES = [file for file in FILES if file.startswith("tui/")]


def is_private(name: str) -> bool:
    """Whether ``name`` begins with an underscore and is no dunder."""
    return name.startswith("_") and not name.startswith("__")


def private_imports(source: str) -> list[str]:
    """Return the imports of a private module or name of the libraries, such as ``textual._compositor.Compositor``."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [
        name for name in names if name.split(".")[0] in LIBRARIES and any(is_private(each) for each in name.split("."))
    ]


def private_attributes(source: str) -> list[str]:
    """Return the accesses to private attributes of anything but ``self`` and ``cls``, unless a class of the same source
    defines the attribute."""
    tree = ast.parse(source)
    own = set(names_of_self(tree))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                found.append(ast.unparse(node))
    return found


def names_of_self(tree: ast.AST) -> Iterator[str]:
    """Yield attributes of ``self`` and ``cls``, methods, and fields of classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            yield node.attr
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield each.name
                elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                    yield each.target.id
                elif isinstance(each, ast.Assign):
                    yield from (target.id for target in each.targets if isinstance(target, ast.Name))


def source_names(cls: type) -> set[str]:
    """Return the private names that the source of ``cls`` defines or uses on ``self``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    return {name for name in names_of_self(tree) if is_private(name)}


def own_classes() -> list[type]:
    """Return the classes of the app that inherit from a class of Textual."""
    modules = [
        importlib.import_module(each.name) for each in pkgutil.walk_packages(lmconsole.tui.__path__, "lmconsole.tui.")
    ]
    classes = {
        each
        for module in modules
        for each in vars(module).values()
        if inspect.isclass(each) and each.__module__.startswith("lmconsole.")
    }
    inheriting = [cls for cls in classes if any(base.__module__.startswith("textual.") for base in cls.__mro__)]
    return sorted(inheriting, key=lambda cls: cls.__qualname__)


def shared_names(cls: type) -> set[str]:
    """Return private names of ``cls`` that its bases in Textual have as well: used on purpose or overwritten by
    accident."""
    theirs = [source_names(base) for base in cls.__mro__ if base.__module__.startswith("textual.")]
    return source_names(cls) & set().union(*theirs)


@pytest.mark.parametrize("file", [file for file in FILES if file not in ALLOWED])
def test_no_private_name_is_imported(file: str) -> None:
    assert private_imports((PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", [file for file in TUI_FILES if file not in ALLOWED])
def test_no_private_attribute_of_another_object_is_used(file: str) -> None:
    assert private_attributes((PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("cls", own_classes(), ids=lambda cls: cls.__qualname__)
def test_no_class_shares_a_private_name_with_its_bases_in_textual(cls: type) -> None:
    assert shared_names(cls) == set()


def test_no_thread_calls_into_the_app() -> None:
    """Worker threads compute and post messages; the UI thread changes what is shown."""
    calling = [file for file in TUI_FILES if "call_from_thread" in (PACKAGE / file).read_text(encoding="utf-8")]
    assert calling == []


def test_both_files_name_the_installed_version() -> None:
    assert version("textual") in textual_internals.CHECKED_VERSIONS
    assert version("plotext") in plotext_internals.CHECKED_VERSIONS


@pytest.mark.parametrize(
    "source",
    [
        "from textual._compositor import Compositor",
        "import textual._compositor",
        "from textual import _context",
        "def figure():\n    from plotext._figure import _figure_class",
    ],
)
def test_a_private_import_is_found(source: str) -> None:
    assert len(private_imports(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "app._driver",
        "class Screen:\n    def draw(self):\n        self.app._filters.append(1)",
        "figure._build_matrix()",
        "getattr(app, '_driver', None)",
    ],
)
def test_a_private_attribute_is_found(source: str) -> None:
    assert len(private_attributes(source)) == 1


def test_a_private_name_of_a_base_is_found() -> None:
    from textual.screen import Screen

    class Own(Screen[None]):
        def __init__(self) -> None:
            super().__init__()
            self._compositor = None  # type: ignore[assignment]
            self._own = 1

    assert shared_names(Own) == {"_compositor"}
