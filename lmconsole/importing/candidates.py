"""Search for runs that were not trained by lmconsole, in folders or in a CSV file."""

import stat
from collections.abc import Iterator
from pathlib import Path

from lmconsole.errors import StoreError
from lmconsole.importing.run_folders import folder_runs
from lmconsole.importing.run_tables import table_runs
from lmconsole.importing.sources import Candidate


def candidates(path: Path, store: Path) -> Iterator[Candidate]:
    """Yield every possible run under ``path``. The folder ``store`` is left out if it is inside.

    Raises:
        StoreError: ``path`` is missing, unreadable or contains no runs.
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise StoreError(f"{path}: the name contains a NUL character") from None
    yield from folder_runs(path, store) if is_folder else table_runs(path)
