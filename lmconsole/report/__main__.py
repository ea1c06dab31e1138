"""``python -m lmconsole.report STORE OUT``: the exports at the end of a queue, started by the runner."""

import sys
from pathlib import Path

from lmconsole.errors import LmconsoleError
from lmconsole.report.export import export_automatically
from lmconsole.runs.store import Store


def main(store: str, out: str) -> int:
    """Export, and say in one line where to; the headless display repeats it."""
    try:
        paths = export_automatically(Store(Path(store)), Path(out))
    except LmconsoleError as error:
        print(f"exports: none: {error.message}", flush=True)
        return error.exit_code
    note = "" if paths[0].parent == Path(out) else f" ({out} shows other runs; `lmconsole export` replaces them)"
    print(f"exports: {paths[0].parent}{note}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
