"""The job that resolves a request on a node."""

import os
import sys
from pathlib import Path

import msgspec

from lmconsole.engine.child import ChildError, decode_request
from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.slurm.batch import MAX_BYTES
from lmconsole.errors import LmconsoleError
from lmconsole.files import atomic_write, read_file

REQUEST, ANSWER, LOG = "request.json", "answer.json", "probe.log"


class NodeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Content of the file with a request."""

    cwd: str
    """Working directory of the command."""
    request: RunRequest


def main(folder: Path) -> int:
    """Answer the request in ``folder``, and return the exit code."""
    from lmconsole.engine.probe import probe

    asked = decode_request(read_file(folder / REQUEST, MAX_BYTES, follow=False), NodeRequest)
    cwd, request = Path(asked.cwd), asked.request
    try:
        os.chdir(cwd)
        answer: msgspec.Struct = probe(request, os.environ, cwd)
    except LmconsoleError as error:
        answer = ChildError(message=error.message, hint=error.hint)
    except OSError as error:
        answer = ChildError(
            message=f"{error.filename or cwd}: {error.strerror} on this node", hint="Is it on a shared file system?"
        )
    with atomic_write(folder / ANSWER, sync=True) as file:
        file.write(msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
