"""A new run directory appears whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import tiny
from factories import epoch, queued

from lmconsole.commands import doctor
from lmconsole.errors import StoreError
from lmconsole.runs import create, lock
from lmconsole.runs.create import create_run, queue_lock
from lmconsole.runs.events import Stopped
from lmconsole.runs.info import RunInfo
from lmconsole.runs.paths import QUEUE_CLAIM, SLURM
from lmconsole.runs.store import Store
from lmconsole.telemetry.host import host_name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "new")
    store.create()
    return store


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    return msgspec.structs.replace(tiny.queue_tiny(tmp_path).info, run="")


def test_a_run_has_its_configuration_its_events_and_an_id_that_names_both(store: Store, info: RunInfo) -> None:
    name = create_run(store, info, [queued(), epoch(1), Stopped(epoch=2, step=0)])
    (run,) = store.runs()
    assert run.run == name
    assert name.startswith("01-lstm-1l-adam-tiny-s42-2")
    assert run.info == msgspec.structs.replace(info, run=name)
    assert run.status == "stopped"
    assert (run.state.seq, len(run.state.epochs)) == (3, 1)
    assert sorted(path.name for path in run.paths.folder.iterdir()) == ["events.jsonl", "lock", "run.json"]


def test_runs_of_the_same_second_get_different_ids(store: Store, info: RunInfo) -> None:
    names = {create_run(store, info, [queued()]) for _ in range(5)}
    assert names == {run.run for run in store.runs()}
    assert len(names) == 5


@pytest.mark.parametrize("function", ["rename", "fsync"])
def test_after_an_error_nothing_is_left_of_a_run(
    store: Store, info: RunInfo, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        create_run(store, info, [queued()])
    assert list(store.root.iterdir()) == []


def test_what_a_killed_process_left_is_not_a_run(store: Store, info: RunInfo) -> None:
    name = create_run(store, info, [queued()])
    (store.root / name).rename(store.temporary(name))
    assert store.runs() == []
    create_run(store, info, [queued()])
    assert len(store.runs()) == 1


# Commands on several hosts


@pytest.fixture
def claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the host that queues into a store with submissions to SLURM."""
    (store.root / SLURM).mkdir()
    monkeypatch.setattr(create, "QUEUE_LOCK_TIMEOUT_S", 0.3)
    return store.root / QUEUE_CLAIM


def write_claim(path: Path, host: str) -> None:
    path.write_bytes(msgspec.json.encode({"host": host, "pid": 77}))


def test_a_command_on_another_host_is_waited_for(store: Store, claim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_claim(claim, "elsewhere")
    with pytest.raises(StoreError, match="process 77 on elsewhere has been queuing for") as caught, queue_lock(store):
        pytest.fail("two commands queue at once")
    assert caught.value.hint == "If it no longer exists, remove that file."
    assert claim.exists()
    monkeypatch.setattr("time.sleep", lambda _: claim.unlink())
    with queue_lock(store):
        assert msgspec.json.decode(claim.read_bytes()) == {"host": host_name(), "pid": os.getpid()}
    assert not claim.exists()


def test_the_claim_of_a_dead_process_of_this_host_is_taken_over(store: Store, claim: Path) -> None:
    write_claim(claim, host_name())
    with queue_lock(store):
        assert msgspec.json.decode(claim.read_bytes(), type=dict)["pid"] == os.getpid()
    assert not claim.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_a_damaged_claim_ends_in_a_message(store: Store, claim: Path, content: bytes) -> None:
    claim.write_bytes(content)
    with pytest.raises(StoreError, match="remove that file"), queue_lock(store):
        pytest.fail("two commands queue at once")


def test_a_store_whose_file_system_has_no_locks_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.raises(StoreError, match=r"new: its file system has no file locks") as caught, queue_lock(store):
        pytest.fail("two processes could train one run")
    assert caught.value.hint == lock.NO_LOCKS_HINT
    found = doctor._store(store)
    assert (found.verdict, found.advice) == ("problem", lock.NO_LOCKS_HINT)


def test_a_store_without_submissions_has_no_claim(store: Store) -> None:
    with queue_lock(store):
        assert not (store.root / QUEUE_CLAIM).exists()


TWO_HOSTS = """
import sys
from pathlib import Path
import tiny
from lmconsole.runs import lock
from lmconsole.runs.events import SlurmPlace

lock.fcntl.lockf = lambda *_: None  # locks of another host are not seen
root, batch = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for seed in range(8):
    try:
        tiny.queue_tiny(root, seed=seed, slurm=SlurmPlace(batch=batch, index=seed))
    except Exception as error:
        assert type(error).__name__ == "RunActiveError", error
"""


def test_two_hosts_that_queue_the_same_runs_create_each_once(tmp_path: Path) -> None:
    probed = subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False) if os.geteuid() == 0 else 0
    if not isinstance(probed, subprocess.CompletedProcess) or probed.returncode:
        pytest.skip("needs root, to give a process another host name")
    (tmp_path / "runs" / SLURM).mkdir(parents=True)
    tiny.resolved_tiny(tmp_path)  # the corpus
    hosts = []
    for number in (1, 2):
        shell = f'hostname host{number} && exec "$0" "$@"'
        command = [sys.executable, "-c", TWO_HOSTS, str(tmp_path), f"20261127T12000{number}Z-abcdef"]
        environment = {
            **tiny.environment(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(Path(tiny.__file__).parent), *sys.path[1:]]),
        }
        hosts.append(
            subprocess.Popen(
                ["unshare", "--uts", "sh", "-c", shell, *command],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    for host in hosts:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
    for host in hosts:
        assert host.stdin is not None
        host.stdin.write("go\n")
        host.stdin.flush()
    assert [(host.communicate(timeout=60)[1], host.returncode) for host in hosts] == [("", 0), ("", 0)]
    runs = Store(tmp_path / "runs").runs()
    assert sorted(run.info.seed for run in runs) == list(range(8))
    assert len({run.state.queued.place for run in runs if run.state.queued}) == 8
    assert not (tmp_path / "runs" / QUEUE_CLAIM).exists()
