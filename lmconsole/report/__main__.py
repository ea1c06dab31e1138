"""``python -m lmconsole.report STORE OUT``: the exports that the runner starts when the queue is empty."""

import sys
from pathlib import Path

from lmconsole.errors import LmconsoleError
from lmconsole.report.export import export_automatically
from lmconsole.runs.store import Store


def main(store: str, out: str) -> int:
    """Export, and print one line with the result, which the console and the headless display repeat."""
    try:
        paths = export_automatically(Store(Path(store)), Path(out))
    except LmconsoleError as error:
        print(f"exports: none: {error.message}", flush=True)
        return error.exit_code
    folder = paths[0].parent
    note = "" if folder == Path(out) else f" ({out} shows other runs; `lmconsole export` replaces them)"
    print(f"exports: {folder}{note}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
