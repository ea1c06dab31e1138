"""Damage is never silent: what a damaged log shows is the truth, or is marked."""

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny
from factories import append_events, epoch, epoch_events, finished, progress, queued, started, telemetry

from lmconsole.commands.status import summarize
from lmconsole.engine.queue import requeue
from lmconsole.engine.runner import Runner
from lmconsole.errors import StoreError
from lmconsole.importing.import_runs import import_runs
from lmconsole.plan.load import load_plan
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.event_reader import CHUNK_BYTES, MAX_LOG_BYTES, EventReader
from lmconsole.runs.events import Resumed, Stopped
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run, Store

LOSSES = (6.0, 5.5, 5.2, 5.4)
STATED_ONCE = re.compile(rb'"(?:test_ppl_\w+|\w+_s|\w+_mib|jobs|place|pid|threads|parameters_\w+|step|steps)":[^,}]*')
"""Numbers that the log does not repeat in another form, so that a changed digit cannot be noticed."""
RESULTS = (
    "status",
    "best_epoch",
    "best_valid_ppl",
    "train_ppl",
    "test_ppl_best",
    "test_ppl_final",
    "diverged",
    "epoch",
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run that was stopped and resumed, and whose best epoch is not the last."""
    run = tiny.queue_tiny(tmp_path, epochs=len(LOSSES))
    append_events(run.paths, started(), *epoch_events(1, LOSSES[0]), *epoch_events(2, LOSSES[1]), progress(3, 2))
    append_events(run.paths, Stopped(epoch=3, step=1), queued(place=2), started(attempt=2))
    append_events(run.paths, Resumed(epoch=3, step=1), telemetry(), *epoch_events(3, LOSSES[2]))
    append_events(run.paths, telemetry(), *epoch_events(4, LOSSES[3]), finished(LOSSES))
    return run


def shown(run: Run) -> dict[str, Any]:
    """Return what `lmconsole status` shows of a run."""
    (again,) = Store(run.paths.folder.parent).runs()
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(summarize(again)))
    return found


def is_marked(found: dict[str, Any]) -> bool:
    """Whether the run is marked, or is not shown as finished."""
    return bool(found["damage"] or found["problem"] or found["status"] != "finished")


def same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-8)
    return one == other


def check(run: Run, truth: dict[str, Any], what: object) -> None:
    found = shown(run)
    differing = {name for name in RESULTS if not same(found[name], truth[name])}
    assert not differing or is_marked(found), (what, {name: (found[name], truth[name]) for name in differing})


def delete(lines: list[bytes], i: int, _chance: random.Random) -> None:
    del lines[i]


def repeat(lines: list[bytes], i: int, chance: random.Random) -> None:
    lines.insert(chance.randrange(len(lines) + 1), lines[i])


def overwrite_by_neighbor(lines: list[bytes], i: int, _chance: random.Random) -> None:
    lines[i] = lines[i - 1]


def exchange(lines: list[bytes], i: int, chance: random.Random) -> None:
    j = chance.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]


def zero(lines: list[bytes], i: int, _chance: random.Random) -> None:
    lines[i] = bytes(len(lines[i]) - 1) + b"\n"


def zero_with_line_feed(lines: list[bytes], i: int, _chance: random.Random) -> None:
    lines[i] = bytes(len(lines[i]))


def cut(lines: list[bytes], i: int, chance: random.Random) -> None:
    lines[i] = lines[i][: chance.randrange(len(lines[i]))] + b"\n"


def insert_rubbish(lines: list[bytes], i: int, chance: random.Random) -> None:
    lines.insert(i, chance.randbytes(chance.randrange(1, 300)).replace(b"\n", b"") + b"\n")


DAMAGES: list[Callable[[list[bytes], int, random.Random], None]] = [
    delete, repeat, overwrite_by_neighbor, exchange, zero, zero_with_line_feed, cut, insert_rubbish,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("times", [1, 3])
def test_damaged_lines_change_no_result_in_silence(
    run: Run, damage: Callable[[list[bytes], int, random.Random], None], times: int
) -> None:
    whole, truth, chance = run.paths.events.read_bytes(), shown(run), random.Random(7)
    assert not is_marked(truth)
    for i in range(len(whole.splitlines())):
        lines = whole.splitlines(keepends=True)
        for at in [i, *(chance.randrange(len(lines)) for _ in range(times - 1))]:
            damage(lines, min(at, len(lines) - 1), chance)
        run.paths.events.write_bytes(b"".join(lines))
        check(run, truth, (damage.__name__, i))


def test_a_changed_byte_changes_no_result_in_silence(run: Run) -> None:
    whole, truth, chance = run.paths.events.read_bytes(), shown(run), random.Random(7)
    once = {i for found in STATED_ONCE.finditer(whole) for i in range(*found.span())}
    places = [i for i in range(len(whole)) if i not in once]
    for i in chance.sample(places, 900):
        new = chance.choice(b'0123456789abcxyz{}":,.- \x00\xff\n')
        run.paths.events.write_bytes(whole[:i] + bytes([new]) + whole[i + 1 :])
        check(run, truth, (whole[i - 30 : i + 30], new))


@pytest.mark.parametrize("size", [0.1, 0.5, 0.9, 0.99])
def test_a_log_without_its_end_is_not_a_finished_one(run: Run, size: float) -> None:
    whole = run.paths.events.read_bytes()
    run.paths.events.write_bytes(whole[: int(len(whole) * size)])
    assert shown(run)["status"] != "finished"


def test_the_best_epoch_is_that_of_the_remaining_epochs_by_number(run: Run) -> None:
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"kind":"epoch"' in line)
    lines[first] = bytes(len(lines[first]) - 1) + b"\n"
    run.paths.events.write_bytes(b"".join(lines))
    found = shown(run)
    assert (found["best_epoch"], found["best_valid_ppl"]) == (3, pytest.approx(math.exp(LOSSES[2])))
    assert found["damage"] == [
        f"1 damaged line skipped, first line {first + 1}",
        "1 epoch missing, first epoch 1",
    ]


def test_a_missing_best_epoch_contradicts_the_outcome(run: Run) -> None:
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not (b'"kind":"epoch"' in line and b'"epoch":3,' in line)]
    for number, line in enumerate(kept, 1):  # a log whose numbers were corrected
        kept[number - 1] = re.sub(rb'"seq":\d+', b'"seq":%d' % number, line)
    run.paths.events.write_bytes(b"".join(kept))
    assert shown(run)["damage"] == [
        "1 epoch missing, first epoch 3",
        "best epoch 3 with a valid ppl of 181.3 when it finished, 4 with a valid ppl of 221.4 in the log",
    ]


def test_gaps_and_repeated_numbers_say_where_they_are(run: Run) -> None:
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    run.paths.events.write_bytes(b"".join([*lines[:4], *lines[6:8], lines[7], *lines[8:]]))
    assert [phrase for phrase in shown(run)["damage"] if "number" in phrase or "order" in phrase] == [
        "2 events missing, first number 5",
        "1 event repeated or out of order, first line 7",
    ]


def test_a_checkpoint_that_was_set_aside_marks_the_run(run: Run) -> None:
    append_events(run.paths, queued(), started(attempt=3, checkpoints_set_aside=2), finished(LOSSES))
    assert shown(run)["damage"] == ["2 damaged checkpoints set aside"]


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_a_damaged_line_counts_as_one_number_so_that_none_is_repeated(run: Run, lost: int) -> None:
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    for i in range(len(lines) - lost, len(lines)):
        lines[i] = bytes(len(lines[i]) - 1) + b"\n"
    run.paths.events.write_bytes(b"".join(lines))
    log = EventLog(run.paths.events)
    assert log.append(Stopped(epoch=1, step=0)).seq == len(lines) + 1
    log.close()
    reader = EventReader(run.paths.events)
    reader.read_new()
    assert (reader.damage.skipped, reader.damage.missing, reader.damage.repeated) == (lost, 0, 0)


def test_numbers_continue_after_the_highest_of_the_whole_log(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    high = b'{"kind":"resumed","seq":500,"t":"","epoch":1,"step":2}\n'
    low = b'{"kind":"resumed","seq":2,"t":"","epoch":1,"step":2}\n'
    path.write_bytes(high + 2_000 * low + b"{rubbish\n" + low[:20])
    log = EventLog(path)
    assert (log.seq, path.read_bytes()[-9:]) == (501, b"{rubbish\n")
    log.close()


@pytest.mark.slow
def test_reading_in_pieces_finds_the_same_damage(run: Run, tmp_path: Path) -> None:
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:3], b"rubbish\n", *lines[5:7], lines[6], *lines[7:]])
    path = tmp_path / "log"
    found = []
    for step in (1, 7, 100, len(damaged)):
        path.write_bytes(b"")
        reader = EventReader(path)
        for end in range(step, len(damaged) + step, step):
            path.write_bytes(damaged[:end])
            reader.read_new()
        found.append(reader.damage)
    assert found == found[:1] * 4
    assert (found[0].skipped, found[0].missing, found[0].repeated) == (1, 1, 1)


@pytest.mark.parametrize("kind", ["started", "finished"])
def test_a_queued_run_whose_next_line_is_damaged_does_not_wait_in_the_queue(tmp_path: Path, kind: str) -> None:
    run = tiny.queue_tiny(tmp_path)
    append_events(run.paths, started() if kind == "started" else finished())
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    run.paths.events.write_bytes(lines[0] + bytes(len(lines[1]) - 1) + b"\n")
    (again,) = Store(tmp_path / "runs").runs()
    assert again.status is Status.LOST
    assert again.state.attempt == 1
    assert again.state.damage == ("1 damaged line skipped, first line 2",)


def test_a_queued_event_out_of_its_place_puts_no_run_into_the_queue(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    append_events(run.paths, started(), Stopped(epoch=1, step=0), queued(), started(), Stopped(epoch=1, step=0))
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    run.paths.events.write_bytes(b"".join([*lines[:3], *lines[4:], lines[3]]))
    (again,) = Store(tmp_path / "runs").runs()
    assert again.status is Status.LOST
    assert again.state.damage


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_imported_run_without_its_end_has_never_work_for_a_runner(tmp_path: Path, kept: int, end: bytes) -> None:
    source = tmp_path / "a.csv"
    source.write_text("epoch,train_ppl,valid_ppl,model,layers,optimizer\n1,9,10,lstm,1,sgd\n2,8,9,lstm,1,sgd\n")
    store = Store(tmp_path / "runs")
    (name,) = import_runs(store, source, load_plan(None)).imported.values()
    log = store.root / name / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:kept]) + bytes(100) + end)
    (run,) = store.runs()
    assert run.status is Status.LOST
    assert not Runner(store).has_work()
    assert requeue(store, [name]) == []


def test_an_epoch_with_a_lower_number_takes_its_place() -> None:
    state = RunState()
    state.apply([epoch(1, 6.0), epoch(3, 5.0), epoch(2, 5.5), epoch(3, 5.1)])
    assert [(each.epoch, each.valid_loss_nats) for each in state.epochs] == [(1, 6.0), (2, 5.5), (3, 5.1)]
    assert state.best_epoch is state.epochs[2]


def test_a_log_larger_than_any_run_writes_is_not_read(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    append_events(paths, started())
    size = paths.events.stat().st_size
    with paths.events.open("r+b") as file:
        file.truncate(MAX_LOG_BYTES + 1)
    with pytest.raises(StoreError, match="larger than 1,024 MiB"):
        EventReader(paths.events).read_new()
    with pytest.raises(OSError, match="larger than"):
        EventLog(paths.events)
    with paths.events.open("r+b") as file:
        file.truncate(size + 3 * CHUNK_BYTES)  # a line of zeros, without its end
    reader = EventReader(paths.events)
    assert [event.seq for event in reader.read_new()] == [1]
    assert reader.damaged == 1
