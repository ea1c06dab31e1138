"""Processes forked for tests are what a new program would be, and nothing falls back to new programs unnoticed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from factories import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere all are new programs")

MODULE = "lmconsole.engine.probe"
"""A module that waits for its standard input."""
COMMAND_LINE = "open(f'/proc/{pid}/cmdline', 'rb').read()"


def test_a_variable_that_appears_in_the_environment_of_all_processes_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SET_BY_A_LIBRARY", "1")
    with pytest.raises(AssertionError, match=r"changed in the environment of the tests: SET_BY_A_LIBRARY\."):
        tiny.lmconsole("--version", cwd=tmp_path)
    with pytest.raises(AssertionError, match="SET_BY_A_LIBRARY"):
        tiny.start_runner(tmp_path)


@pytest.mark.parametrize(
    "start",
    [
        f"subprocess.Popen([sys.executable, '-P', '-m', '{MODULE}'], stdin=subprocess.PIPE).pid",
        "(get_context('forkserver').Process(target=int).start(), forkserver._forkserver._forkserver_pid)[1]",
        "(resource_tracker.ensure_running(), resource_tracker._resource_tracker._pid)[1]",
    ],
    ids=["module", "fork server", "resource tracker"],
)
def test_processes_that_a_forked_process_starts_are_forked(tmp_path: Path, start: str) -> None:
    imports = (
        "import os, signal, subprocess, sys\nfrom multiprocessing import forkserver, get_context, resource_tracker"
    )
    code = f"{imports}\npid = {start}\nprint(b'forked.py' in {COMMAND_LINE}, flush=True)"
    code += "\nos.kill(pid, signal.SIGKILL)\nos._exit(0)"
    assert tiny.run_code(code, root=tmp_path).stdout == "True\n"


def test_a_started_process_has_a_session_and_streams_of_its_own_and_its_end_is_known(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nprint(os.getsid(0) == os.getpid(), sys.argv[1:], sys.stdin.read(), flush=True)\n"
        "print('message', file=sys.stderr, flush=True)\nopened = os.listdir('/proc/self/fd')\nprint(len(opened))\n"
        "sys.exit(7) if sys.argv[1] == 'ends' else time.sleep(60)"
    )
    ending = tiny.start("-c", code, "ends", root=tmp_path, errors="messages")
    assert ending.wait(30) == 7
    assert (tmp_path / "output").read_text() == "True ['ends'] \n4\n", "three streams, and the folder that is listed"
    assert (tmp_path / "messages").read_text() == "message\n"
    waiting = tiny.start("-c", code, "waits", root=tmp_path, errors="later messages")
    wait_until(lambda: (tmp_path / "later messages").read_text())
    assert waiting.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.1)
    waiting.kill()
    assert waiting.wait(30) == -signal.SIGKILL


def test_an_installed_program_takes_part_in_a_pipe_and_has_an_exit_code(tmp_path: Path) -> None:
    tiny.install(tmp_path / "bin" / "lmconsole")

    def shell(command: str) -> "subprocess.CompletedProcess[str]":
        environment = tiny.environment(tmp_path) | {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
        return subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    assert shell("lmconsole list --json | head -c 1").stdout == "["
    done = shell("lmconsole status --runs nowhere/else; lmconsole run 99 --headless")
    assert done.returncode == 2
    assert "no experiment 99" in done.stderr
