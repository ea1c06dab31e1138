"""The keys of the console that are in force at the same time."""

from textual.app import App
from textual.widgets import Button, Input

from lmconsole.tui.keys import Context
from lmconsole.tui.screens.details import Details
from lmconsole.tui.screens.dialogs import Exported, Page, Question
from lmconsole.tui.screens.form import Form
from lmconsole.tui.screens.main import MainScreen
from lmconsole.tui.widgets.curves import Curves
from lmconsole.tui.widgets.experiment_table import ExperimentTable


def key_contexts(app: type[App[str]]) -> list[Context]:
    """Return every context of ``app``, the class of the console. Its own keys are always in force."""
    return [
        Context(name="the table", owners=(MainScreen, ExperimentTable, app)),
        Context(name="the curves", owners=(MainScreen, Curves, app)),
        Context(name="the filter", owners=(app,), fields=(Input,)),
        Context(name="details", owners=(Details, app)),
        Context(name="pages", owners=(Page, app)),
        Context(name="the page of exports", owners=(Exported, app)),
        Context(name="questions", owners=(Question, app), fields=(Button,)),
        Context(name="forms", owners=(Form, app), fields=(Button, Input)),
    ]
