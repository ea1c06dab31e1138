"""Claims: one process gets each, the next one takes its right away, and a fenced log takes nothing after that."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from factories import append_events, queued, started

from lmconsole.runs import claim
from lmconsole.runs.claim import Claim, ClaimWatch, last_claim, log_bytes, make_claim
from lmconsole.runs.event_log import EventLog, LogTakenError
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.paths import RunPaths
from lmconsole.telemetry.host import host_name

RACES = 200
RACE = f"""
import sys
from pathlib import Path
from lmconsole.runs.claim import make_claim
from lmconsole.runs.paths import RunPaths

paths = RunPaths(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print([number for number in range({RACES}) if make_claim(paths, number, queued_seq=1, job=int(sys.argv[2]))])
"""


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


def test_of_two_processes_one_gets_each_claim(paths: RunPaths) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(paths.folder), str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for job in (1, 2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    won = [msgspec.json.decode(process.communicate()[0], type=list[int]) for process in processes]
    assert sorted(won[0] + won[1]) == list(range(RACES))
    for job, numbers in enumerate(won, 1):
        made = [msgspec.json.decode(paths.claim(number + 1).read_bytes(), type=Claim) for number in numbers]
        assert {each.job for each in made} <= {job}
    assert sorted(os.listdir(paths.folder)) == sorted(f"claim-{number + 1}.json" for number in range(RACES))


def test_a_claim_says_who_made_it(paths: RunPaths) -> None:
    held = make_claim(paths, 0, queued_seq=7, job=1234, restarts=2, node="n1")
    assert held is not None
    assert held.number == 1
    assert last_claim(paths) == (1, held.claim)
    assert (held.claim.host, held.claim.pid) == (host_name(), os.getpid())
    assert (held.claim.queued_seq, held.claim.job, held.claim.restarts, held.claim.node) == (7, 1234, 2, "n1")


def test_without_a_claim_there_is_none(paths: RunPaths) -> None:
    (paths.folder / "claim-x.json").touch()
    (paths.folder / "claim-1.json.old").touch()
    assert last_claim(paths) == (0, None)


def test_the_last_claim_has_the_highest_number(paths: RunPaths) -> None:
    for number in range(11):
        assert make_claim(paths, number, queued_seq=number) is not None
    number, last = last_claim(paths)
    assert last is not None
    assert (number, last.queued_seq) == (11, 10)


def test_a_claim_is_made_once_and_stays_as_it_is(paths: RunPaths) -> None:
    assert make_claim(paths, 0, queued_seq=1, job=5) is not None
    before = paths.claim(1).read_bytes()
    assert make_claim(paths, 0, queued_seq=1, job=6) is None
    assert paths.claim(1).read_bytes() == before
    assert os.listdir(paths.folder) == ["claim-1.json"]


DAMAGED = [b"", b"{", b"\xff\xfe", b"[]", b'{"t": "x"}', b'{"t":"x","host":"h","pid":-1,"queued_seq":1}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_claim_counts_and_says_nothing(paths: RunPaths, content: bytes) -> None:
    held = make_claim(paths, 0, queued_seq=1)
    assert held is not None
    paths.claim(2).write_bytes(content)
    assert last_claim(paths) == (2, None)
    assert held.superseded
    assert make_claim(paths, 1, queued_seq=1) is None
    assert make_claim(paths, 2, queued_seq=1) is not None


def test_a_claim_is_not_read_through_a_link_nor_from_a_pipe(paths: RunPaths, tmp_path: Path) -> None:
    make_claim(paths, 0, queued_seq=1)
    paths.claim(2).symlink_to(paths.claim(1))
    with pytest.raises(OSError, match="claim-2"):
        last_claim(paths)
    paths.claim(2).unlink()
    os.mkfifo(tmp_path / "claim-2.json")
    with pytest.raises(OSError, match="claim-2"):
        last_claim(paths)


def test_a_folder_that_is_gone_is_an_error_and_no_claim(paths: RunPaths) -> None:
    paths.folder.rmdir()
    with pytest.raises(FileNotFoundError):
        make_claim(paths, 0, queued_seq=1)
    with pytest.raises(FileNotFoundError):
        last_claim(paths)


def test_a_claim_holds_until_the_next_one(paths: RunPaths) -> None:
    held = make_claim(paths, 0, queued_seq=1)
    assert held is not None
    seen = [held.superseded]
    following = make_claim(paths, 1, queued_seq=1)
    assert following is not None
    assert [*seen, held.superseded, following.superseded] == [False, True, False]


def test_a_watch_asks_at_intervals(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    held = make_claim(paths, 0, queued_seq=1)
    assert held is not None
    clock = iter((100.0, 100.0 + claim.CHECK_S / 2, 100.0 + claim.CHECK_S))
    with monkeypatch.context() as patched:
        patched.setattr("time.monotonic", lambda: next(clock))
        watch = ClaimWatch(held)
        make_claim(paths, 1, queued_seq=1)
        assert [watch.is_superseded(), watch.is_superseded()] == [False, True]


def test_the_size_of_a_log(paths: RunPaths) -> None:
    assert log_bytes(paths.events) is None
    append_events(paths, queued())
    assert log_bytes(paths.events) == paths.events.stat().st_size
    linked = RunPaths(paths.folder / "other")
    linked.folder.mkdir()
    linked.events.symlink_to(paths.events)
    assert log_bytes(linked.events) is None


# The fence of a log


def kinds(paths: RunPaths) -> list[str]:
    return [type(event).__name__ for event in EventReader(paths.events).read_new()]


def test_a_fenced_log_takes_the_events_of_its_only_writer(paths: RunPaths) -> None:
    append_events(paths, queued())
    log = EventLog(paths.events, fenced=True)
    for _ in range(3):
        log.append(started())
    log.close()
    assert kinds(paths) == ["Queued", "Started", "Started", "Started"]


def test_a_fenced_log_takes_nothing_after_another_process_has_written(paths: RunPaths) -> None:
    append_events(paths, queued())
    log = EventLog(paths.events, fenced=True)
    log.append(started())
    append_events(paths, queued())
    before = paths.events.read_bytes()
    for _ in range(2):
        with pytest.raises(LogTakenError, match="another process writes it") as caught:
            log.append(started())
        assert caught.value.filename == str(paths.events)
    log.close()
    assert paths.events.read_bytes() == before


def test_a_log_that_was_cut_or_replaced_takes_nothing_either(paths: RunPaths) -> None:
    append_events(paths, queued(), started())
    log = EventLog(paths.events, fenced=True)
    with paths.events.open("rb+") as file:
        file.truncate(10)
    with pytest.raises(LogTakenError):
        log.append(started())
    log.close()


def test_a_log_without_a_fence_takes_events_of_several_processes(paths: RunPaths) -> None:
    log = EventLog(paths.events)
    append_events(paths, queued())
    log.append(started())
    log.close()
    assert kinds(paths) == ["Queued", "Started"]


def test_an_event_that_does_not_fit_leaves_the_fence_where_it_was(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_events(paths, queued())
    log = EventLog(paths.events, fenced=True)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    with pytest.raises(OSError, match="events"):
        log.append(started())
    monkeypatch.undo()
    log.append(started())
    log.close()
    assert kinds(paths) == ["Queued", "Started"]
