"""New processes of tests, forked from one that has imported what they need, as the runner does with its workers.

Importing PyTorch or pandas and matplotlib takes longer than what most tests do with them.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

FOLDERS = {"HOME", "LMCONSOLE_DATA", "LMCONSOLE_RUNS", "PYTEST_CURRENT_TEST", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
           "XDG_DATA_HOME", "XDG_STATE_HOME"}  # fmt: skip
"""Variables that are read when they are needed, and by no library when it is imported."""


def run_new(
    source: Sequence[str], arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """Do as ``ForkServer.run`` in a process that starts as a new program."""
    return subprocess.run(
        [sys.executable, *source, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
        check=False,
    )


class ForkServer:
    """Runs Python code in new processes that have imported ``modules`` already. Those that a command asks to check data
    and devices are forked from it in turn; a runner that it starts is a new program, as always.

    A process whose environment differs in more than folders, or that belongs to another user, starts as a new program.
    """

    def __init__(self, environment: Mapping[str, str], *modules: str) -> None:
        self._environment = without_folders(environment)
        self._modules = modules
        self._server: subprocess.Popen[bytes] | None = None
        self._user = os.geteuid()
        atexit.register(self.end)

    def run(
        self, source: Sequence[str], arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``python *source *arguments`` to its end; ``source`` is ``-m`` and a module or ``-c`` and code."""
        if not self._can_run(env):
            return run_new(source, arguments, cwd=cwd, env=env, timeout_s=timeout_s)
        server = self._server = self._server or self._start()
        assert server.stdin is not None
        assert server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            streams = [str(Path(folder, name)) for name in ("out", "err")]
            request = {"source": source, "arguments": arguments, "cwd": str(cwd), "env": dict(env), "streams": streams}
            server.stdin.write(json.dumps(request).encode() + b"\n")
            server.stdin.flush()
            answered, _, _ = select.select([server.stdout], [], [], timeout_s)
            if not answered:
                self.end()
                raise subprocess.TimeoutExpired([*source, *arguments], timeout_s)
            answer = server.stdout.readline()
            assert answer, "the fork server has ended; its standard error says why"
            code = int(answer)
            out, err = (Path(stream).read_text(encoding="utf-8") for stream in streams)
        return subprocess.CompletedProcess([*source, *arguments], code, out, err)

    def end(self) -> None:
        """Kill the server, and the process that it waits for."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.communicate()
            self._server = None

    def _can_run(self, env: Mapping[str, str]) -> bool:
        usual = without_folders(env) == self._environment and os.geteuid() == self._user
        return usual and sys.platform.startswith("linux")

    def _start(self) -> "subprocess.Popen[bytes]":
        state = os.environ["XDG_STATE_HOME"]  # a folder of the tests
        return subprocess.Popen(
            [sys.executable, __file__, *self._modules],
            env=self._environment | {"HOME": state, "XDG_CACHE_HOME": state, "XDG_CONFIG_HOME": state},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )


def without_folders(environment: Mapping[str, str]) -> dict[str, str]:
    """Return all variables that a library may read when it is imported; those of the fake driver are read later."""
    late = {name for name in environment if name in FOLDERS or name.startswith("FAKE_NVML_")}
    return {name: value for name, value in environment.items() if name not in late}


def serve(modules: Sequence[str]) -> None:
    """Fork a process for each request on standard input, and write its exit code."""
    for name in modules:
        importlib.import_module(name)
    from lmconsole.engine import child

    vars(child)["subprocess"] = types.SimpleNamespace(**vars(subprocess) | {"run": fork_child})
    gc.collect()
    gc.freeze()
    while line := sys.stdin.buffer.readline():
        pid = os.fork()
        if pid == 0:
            become(**json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(source: list[str], arguments: list[str], cwd: str, env: dict[str, str], streams: list[str]) -> NoReturn:
    """Run a module or code as a Python that was started for it would, and exit."""
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, name in enumerate(streams, 1):
        with open(name, "wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    option, text = source
    sys.argv = [option, *arguments]
    if option == "-m":
        run_and_exit(lambda: runpy.run_module(text, run_name="__main__", alter_sys=True))
    main: Any = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    run_and_exit(lambda: exec(compile(text, "<string>", "exec"), main.__dict__))


def run_and_exit(code: Callable[[], object]) -> NoReturn:
    """Run ``code`` and exit as a Python that ends, but for the time that it takes to free all objects."""
    status: object = 1
    try:
        code()
        status = None
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    try:
        if isinstance(status, str):
            print(status, file=sys.stderr)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status if isinstance(status, int) else int(status is not None))


def fork_child(
    command: Sequence[str],
    *,
    input: bytes,  # noqa: A002  # the name in subprocess.run
    stderr: int,
    env: Mapping[str, str],
    **_: object,
) -> "subprocess.CompletedProcess[bytes]":
    """Run the module of ``command`` in a fork of this process, which is a command that asks a child."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other thread only reads what this process writes
        question.write(input)
        question.seek(0)
        pid = os.fork()
        if pid == 0:
            for number, descriptor in enumerate((question.fileno(), answer.fileno(), stderr)):
                os.dup2(descriptor, number)
            os.environ.update(env)
            sys.argv = list(command[command.index("-m") + 1 :])
            sys.modules.pop(sys.argv[0], None)
            run_and_exit(lambda: runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer.seek(0)
        return subprocess.CompletedProcess(command, code, answer.read())


if __name__ == "__main__":
    serve(sys.argv[1:])
