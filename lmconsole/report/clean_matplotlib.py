"""matplotlib, imported without regard to the environment of the person who exports.

A notebook sets MPLBACKEND to a backend that only it has; MATPLOTLIBRC and a ``matplotlibrc`` in the current folder may
be damaged, or be no files at all; MPLCONFIGDIR may name a folder that cannot be written.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from lmconsole.files import cache_folder

__all__ = ["matplotlib"]


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Set the variables that matplotlib reads when it is imported, and restore them afterwards."""
    own = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull, "MPLCONFIGDIR": str(cache_folder("matplotlib") or "")}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a writable cache it warns, and works
with contextlib.ExitStack() as stack:
    stack.enter_context(_own_environment())
    if os.path.lexists("matplotlibrc"):  # it would take precedence
        stack.enter_context(contextlib.chdir(Path(__file__).parent))
    import matplotlib
    import matplotlib.font_manager  # reads its cache

    matplotlib.get_configdir()  # is remembered, and asked for later
