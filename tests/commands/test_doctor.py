"""Checks of the queue and of the machine by `doctor`. `tests/test_cli.py` runs the whole command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from fake_nvml import build_fake_nvml

from lmconsole.commands import doctor
from lmconsole.commands.doctor import Finding, queue_disk_mib
from lmconsole.plan.parameters import checkpoint_bytes, weights_bytes
from lmconsole.runs.permissions import Permissions
from lmconsole.runs.store import Store

MIB = 2**20


def disk(root: Path) -> Finding:
    return doctor._disk(root / "runs", doctor._queue(Store(root / "runs")))


def test_the_disk_must_hold_what_the_queue_will_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Twelve" not in disk(tmp_path).advice
    small, large = (tiny.queue_tiny(tmp_path, "gpt1", seed=seed, layers=seed) for seed in (1, 9))
    sizes = [(run.info.settings, run.info.corpus.vocabulary) for run in (small, large)]
    losses = 16 * 2 * (small.info.corpus.tokens["test"] // small.info.settings.window_tokens + 1)
    needed = (3 * checkpoint_bytes(*sizes[1]) + sum(weights_bytes(*size) for size in sizes) + losses) / MIB
    assert queue_disk_mib([small, large]) == needed
    monkeypatch.setattr(doctor, "free_disk_mib", lambda _: needed + 0.001)
    assert (disk(tmp_path).verdict, disk(tmp_path).advice) == ("ok", "")
    monkeypatch.setattr(doctor, "free_disk_mib", lambda _: needed - 0.001)
    short = disk(tmp_path)
    assert short.verdict == "problem"
    assert "the queue (2 runs) needs up to" in short.found
    Permissions(tmp_path / "runs").forget(large.run)
    assert "(1 run)" in disk(tmp_path).found, "a run that nobody will start writes nothing"
    monkeypatch.setattr(doctor, "free_disk_mib", lambda _: None)
    assert disk(tmp_path).verdict == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="NVML is loaded by its Linux name")
def test_other_users_of_the_gpu_are_counted(tmp_path: Path) -> None:
    library = build_fake_nvml(tmp_path)
    script = (
        "import sys, json, msgspec\nfrom pathlib import Path\nfrom lmconsole.commands import doctor\n"
        "from lmconsole.runs.store import Store\n"
        "print(json.dumps([msgspec.to_builtins(each) for each in doctor._gpu_users(Store(Path(sys.argv[1])))]))"
    )
    for processes, verdict, words in (
        (f"{os.getpid()}:100,1:50", "note", "GPU 0, Fake GPU 0: 2 other processes, "),
        ("", "ok", "GPU 0, Fake GPU 0: no other processes, "),
    ):
        environment = {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_PROCESSES": processes}
        command = [sys.executable, "-c", script, str(tmp_path / "runs")]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        first = json.loads(done.stdout)[0]
        assert (first["what"], first["verdict"]) == ("GPU users", verdict)
        assert first["found"].startswith(words)


def test_interruptions_and_the_clock_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "interruptions", lambda: [("on battery, 41% left", "Plug it in."), ("a", "B.")])
    found = doctor._night()
    assert (found.verdict, found.found, found.advice) == ("note", "on battery, 41% left; a", "Plug it in. B.")
    monkeypatch.setattr(doctor, "interruptions", list)
    assert doctor._night().verdict == "ok"
    for answer, verdict in ((True, "ok"), (False, "note"), (None, "ok")):
        monkeypatch.setattr(doctor, "clock_synchronized", lambda answer=answer: answer)
        assert doctor._clock().verdict == verdict
