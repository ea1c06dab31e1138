"""New processes of tests, forked from one that has imported what they need, as the runner does with its workers.

Importing PyTorch or pandas and matplotlib takes longer than what most tests do with them.
"""

import _posixsubprocess
import atexit
import gc
import importlib
import json
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

LATE = {"COLORTERM", "HOME", "LMCONSOLE_DATA", "LMCONSOLE_RUNS", "PATH", "PYTEST_CURRENT_TEST", "SLURM_CONF", "TERM",
        "TMPDIR", "TMUX", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"}  # fmt: skip
"""Variables that are read when they are needed, and by no library when it is imported."""


def run_new(
    source: Sequence[str], arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float,
    stdin: Path = Path(os.devnull),
) -> "subprocess.CompletedProcess[str]":  # fmt: skip
    """Do as ``ForkServer.run`` in a process that starts as a new program."""
    with stdin.open("rb") as file:
        return subprocess.run(
            [sys.executable, *source, *arguments],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            stdin=file,
            timeout=timeout_s,
            check=False,
        )


def start_new(
    source: Sequence[str], arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], streams: tuple[Path, Path]
) -> "subprocess.Popen[bytes]":
    """Do as ``ForkServer.start`` in a process that starts as a new program."""
    with streams[0].open("ab") as output, streams[1].open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, *source, *arguments],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            # A shell that starts tests in the background has them ignore interrupts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


class ForkedProcess:
    """A process that a fork server has started, with those methods of ``Popen`` that tests use."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self._server = server
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while the process is running."""
        if self.returncode is None:
            self.returncode = self._server.ask(10.0, poll=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when the process has ended. Raises TimeoutExpired after ``timeout`` seconds."""
        deadline_s = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > deadline_s:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Runs Python code in new processes that have imported ``modules`` already. So have all Python processes that those
    start in turn: they are forked too.

    A test that sets a variable that a library may read when it is imported gets a new program. So does one that runs as
    another user, and each on a system where threads or libraries do not survive a fork.
    """

    def __init__(self, environment: Mapping[str, str], *modules: str) -> None:
        self._environment = without_late(environment)
        self._modules = modules
        self._server: subprocess.Popen[bytes] | None = None
        self._user = os.geteuid()
        self._lock = threading.Lock()
        self._socket = Path(os.environ["XDG_STATE_HOME"], f"fork-server-{id(self)}")
        atexit.register(self.end)

    def run(
        self,
        source: Sequence[str],
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        variables: Mapping[str, str],
        timeout_s: float,
        stdin: Path = Path(os.devnull),
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``python *source *arguments`` to its end; ``source`` is ``-m`` and a module or ``-c`` and code.

        Its environment is ``env``, the usual one of a test's processes, and the ``variables`` that the test sets. It
        reads from the file ``stdin``.
        """
        if not self._forks(env, variables):
            return run_new(source, arguments, cwd=cwd, env={**env, **variables}, timeout_s=timeout_s, stdin=stdin)
        with tempfile.TemporaryDirectory() as folder:
            streams = [str(Path(folder, name)) for name in ("out", "err")]
            code = self.ask(
                timeout_s, run=request(source, arguments, cwd, {**env, **variables}, [str(stdin), *streams])
            )
            assert code is not None
            out, err = (Path(stream).read_text(encoding="utf-8") for stream in streams)
        return subprocess.CompletedProcess([*source, *arguments], code, out, err)

    def start(
        self, source: Sequence[str], arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str],
        streams: tuple[Path, Path],
    ) -> "ForkedProcess | subprocess.Popen[bytes]":  # fmt: skip
        """Start what ``run`` would run, in a session of its own. Its output is appended to the files ``streams``."""
        if not self._forks(env, {}):
            return start_new(source, arguments, cwd=cwd, env=env, streams=streams)
        for file in streams:
            file.touch()
        pid = self.ask(30.0, start=request(source, arguments, cwd, env, [os.devnull, *map(str, streams)]))
        assert pid is not None
        return ForkedProcess(self, pid)

    def install(self, program: Path, module: str, env: Mapping[str, str]) -> None:
        """Write an executable ``program`` that does what ``python -m module`` does, for use in a shell."""
        code = f'exec "{sys.executable}" -m {module}'
        if self._forks(env, {}):
            self.ask(60.0, poll=0)  # the socket exists when the server has answered
            code = f'exec "{sys.executable}" -ES "{__file__}" --client "{self._socket}" {module}'
        program.write_text(f'#!/bin/sh\n{code} "$@"\n')
        program.chmod(0o755)

    def ask(self, timeout_s: float, **question: object) -> int | None:
        """Send a request to the server, and return its answer. Raises TimeoutExpired; the server is killed then."""
        with self._lock:
            server = self._server = self._server or self._start()
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps(question).encode() + b"\n")
            server.stdin.flush()
            answered, _, _ = select.select([server.stdout], [], [], timeout_s)
            if not answered:
                self.end()
                raise subprocess.TimeoutExpired(str(question), timeout_s)
            answer = server.stdout.readline()
        assert answer, "the fork server has ended; its standard error says why"
        value: int | None = json.loads(answer)
        return value

    def end(self) -> None:
        """Kill the server, and the process that it waits for."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.communicate()
            self._server = None

    def _forks(self, env: Mapping[str, str], variables: Mapping[str, str]) -> bool:
        """Return whether a process can be forked. Raises AssertionError if the environment of all processes has changed
        since this server was made: each would be a new program, and nobody would notice but by the time it takes."""
        if without_late(variables) or os.geteuid() != self._user or not sys.platform.startswith("linux"):
            return False
        found = without_late(env)
        names = found.keys() | self._environment.keys()
        changed = sorted(name for name in names if found.get(name) != self._environment.get(name))
        assert not changed, (
            f"changed in the environment of the tests: {', '.join(changed)}. Give a variable that a test sets to the "
            "function that starts the process; hide one that a library sets in tiny.environment."
        )
        return True

    def _start(self) -> "subprocess.Popen[bytes]":
        from lmconsole.engine.processes import SPIN_COUNT

        state = os.environ["XDG_STATE_HOME"]  # a folder of the tests
        folders = {"HOME": state, "XDG_CACHE_HOME": state, "XDG_CONFIG_HOME": state}
        return subprocess.Popen(
            [sys.executable, __file__, "--server", str(self._socket), *self._modules],
            env={"GOMP_SPINCOUNT": str(SPIN_COUNT)} | self._environment | folders,  # as for processes that train
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )


def request(
    source: Sequence[str], arguments: Sequence[str], cwd: Path, env: Mapping[str, str], streams: Sequence[str]
) -> dict[str, object]:
    """Return the arguments of ``become``."""
    return {"source": source, "arguments": arguments, "cwd": str(cwd), "env": dict(env), "streams": streams}


def without_late(environment: Mapping[str, str]) -> dict[str, str]:
    """Return all variables that a library may read when it is imported; those of the fake driver and of Textual are
    read later."""
    late = {name for name in environment if name in LATE or name.startswith(("FAKE_NVML_", "TEXTUAL_"))}
    return {name: value for name, value in environment.items() if name not in late}


# ---- in the server and the processes that are forked from it


def serve(address: str, modules: Sequence[str]) -> None:
    """Do what is asked for on standard input, one line of JSON each, and write the answer: for ``run`` the exit code,
    for ``start`` the pid, and for ``poll`` the exit code of a process that was started, or null.

    Programs that were installed connect to the socket ``address``.
    """
    for name in modules:
        importlib.import_module(name)
    vars(subprocess)["_fork_exec"] = vars(_posixsubprocess)["fork_exec"] = fork_exec
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a shell starts the tests in the background
    # The other thread of a command that forks only reads what its child writes.
    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
    gc.collect()
    gc.freeze()
    serving: list[int] = []
    with socket.socket(socket.AF_UNIX) as listener:
        Path(address).unlink(missing_ok=True)  # of a server that was killed
        listener.bind(address)
        listener.listen()
        while True:
            ready, _, _ = select.select([sys.stdin, listener], [], [])
            serving = [pid for pid in serving if os.waitpid(pid, os.WNOHANG) == (0, 0)]
            if listener in ready:
                connection, _ = listener.accept()
                with connection:
                    pid = os.fork()
                    if pid == 0:
                        serve_program(connection)
                serving.append(pid)
            elif line := sys.stdin.buffer.readline():
                ((what, value),) = json.loads(line).items()
                print(json.dumps(answer(what, value)), flush=True)
            else:
                return


def answer(what: str, value: Any) -> int | None:
    """Do one thing that is asked for on standard input."""
    if what == "poll":
        if value == 0:
            return None
        pid, status = os.waitpid(value, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    pid = os.fork()
    if pid == 0:
        become(**value, session=what == "start")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if what == "run" else pid


def serve_program(connection: socket.socket) -> NoReturn:
    """Do what ``ask_server`` asks for in a process forked from this one, and send its exit code."""
    data, descriptors, _, _ = socket.recv_fds(connection, 2**20, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(2**20)
    pid = os.fork()
    if pid == 0:
        become(**json.loads(data), streams=descriptors)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(json.dumps(code).encode())
    os._exit(0)


def ask_server(address: str, module: str, arguments: Sequence[str]) -> int:
    """Have ``python -m module *arguments`` run with the standard streams of this process, and return its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        asked = {"source": ["-m", module], "arguments": arguments, "cwd": os.getcwd(), "env": dict(os.environ)}
        socket.send_fds(connection, [json.dumps(asked).encode() + b"\n"], [0, 1, 2])
        code = int(connection.recv(100))
    return code if code >= 0 else 128 - code  # as a shell states the death by a signal


def become(
    source: list[str], arguments: list[str], cwd: str, env: dict[str, str], streams: Sequence[str | int],
    session: bool = False,
) -> NoReturn:  # fmt: skip
    """Run a module or code as a Python that was started for it would, and exit."""
    if session:
        os.setsid()
    for number, stream in enumerate(streams):
        with open(stream, "ab" if number else "rb", buffering=0) as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    become_new(())
    run_python(source, arguments, env)


REAL_FORK_EXEC: Callable[..., int] = _posixsubprocess.fork_exec
ALSO_FORKED = ("from multiprocessing.forkserver ", "from multiprocessing.resource_tracker ")
"""Beginnings of the code of processes that multiprocessing starts."""


def fork_exec(
    command: Sequence[str | bytes], programs: object, close_fds: bool, kept: Sequence[int], cwd: str | None,
    env: Sequence[bytes] | None, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int, errread: int, errwrite: int,
    errpipe_read: int, errpipe_write: int, restore_signals: bool, session: bool, *more: Any,
) -> int:  # fmt: skip
    """Do as the function by which subprocess and multiprocessing start programs, in CPython 3.11 to 3.14, but fork this
    process if the program is a module of the package or a process of multiprocessing."""
    flags = ["-P", *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]
    program, *words = map(os.fsdecode, command)
    while words and words[0] in flags:
        del words[0]
    option, source, *_ = [*words, "", ""]
    forks = (option == "-m" and source.startswith("lmconsole.")) or (option == "-c" and source.startswith(ALSO_FORKED))
    if program != sys.executable or not forks:
        return REAL_FORK_EXEC(
            command, programs, close_fds, kept, cwd, env, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
            errpipe_read, errpipe_write, restore_signals, session, *more,
        )  # fmt: skip
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid == 0:
        for number, descriptor in enumerate((p2cread, c2pwrite, errwrite)):
            if descriptor != -1:
                os.dup2(descriptor, number)
        if session:
            os.setsid()
        if cwd is not None:
            os.chdir(cwd)
        become_new({*kept} - {errpipe_write})
        variables = (os.fsdecode(each).partition("=") for each in env or ())
        run_python((option, source), words[2:], dict(os.environ) if env is None else {k: v for k, _, v in variables})
    return pid


def become_new(kept: Iterable[int]) -> None:
    """Forget what a new program does not inherit: open files but the three standard streams and those that are
    ``kept``, handlers of signals, and functions to call at the exit."""
    gc.freeze()  # no object that is garbage may close a descriptor, since its number may be in use again
    first = 3
    for descriptor in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, descriptor)
        first = descriptor + 1
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    atexit._clear()
    for cleared in (multiprocessing.util._finalizer_registry, multiprocessing.process._children):  # type: ignore[attr-defined]
        cleared.clear()
    for again in (multiprocessing.forkserver._forkserver, resource_tracker._resource_tracker):
        again.__init__()  # type: ignore[misc]
    tempfile.tempdir = None


def run_python(source: Sequence[str], arguments: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Run ``python *source *arguments`` with the environment ``env`` in this process, and exit."""
    os.environ.clear()
    os.environ.update(env)
    option, text = source
    sys.argv = [option, *arguments]
    if option == "-m":
        if not hasattr(sys.modules.get(text), "__path__"):
            sys.modules.pop(text, None)
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


if __name__ == "__main__":
    if sys.argv[1] == "--client":
        sys.exit(ask_server(sys.argv[2], sys.argv[3], sys.argv[4:]))
    serve(sys.argv[2], sys.argv[3:])
