"""The event log: lines are written whole or not at all, and damaged ones do not stop a reader."""

import errno
import json
import math
import os
import re
import threading
from pathlib import Path

import pytest
from factories import append_events, epoch, finished, progress, queued, telemetry
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.runs.event_log import EventLog
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import AnyEvent, Epoch, Progress, Queued, Resumed, Stopped, perplexity
from lmconsole.runs.paths import RunPaths


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_are_numbered_from_one_without_gaps_across_writers(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for _ in range(3):
        log = EventLog(path)
        log.append(queued())
        log.append(Stopped(epoch=1, step=0), sync=True)
        log.close()
    found = lines(path)
    assert [line["seq"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line["kind"] for line in found] == ["queued", "stopped"] * 3
    assert all(str(line["t"]).endswith("Z") for line in found)


def test_an_incomplete_last_line_is_cut_off_before_the_first_append(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append(queued())
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"epoch","seq":2,"t":"20')
    log = EventLog(path)
    log.append(Stopped(epoch=1, step=0))
    log.close()
    assert path.read_bytes().startswith(whole)
    assert [line["seq"] for line in lines(path)] == [1, 2]


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    threads = [threading.Thread(target=lambda: [log.append(telemetry()) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert [line["seq"] for line in lines(path)] == list(range(1, 801))


def test_an_incomplete_write_is_undone_and_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append(queued())
    before = path.read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
    with pytest.raises(OSError) as caught:
        log.append(Stopped(epoch=1, step=0))
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert log.append(Stopped(epoch=1, step=0)).seq == 2
    log.close()


def test_a_reader_waits_for_the_rest_of_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append(queued())
    log.append(Resumed(epoch=2, step=3))
    log.close()
    whole = path.read_bytes()
    reader = EventReader(path)
    events: list[AnyEvent] = []
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        events += reader.read_new()
    assert [type(event) for event in events] == [Queued, Resumed]
    assert reader.damaged == 0


def test_damaged_lines_are_counted_and_unknown_kinds_and_fields_ignored(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(
        b'{"kind":"queued","seq":1,"t":"","devices":["cpu"],"jobs":1,"colour":"red"}\n'
        b"\x00\xff garbage\n"
        b'{"kind":"unheard-of","seq":3,"t":""}\n'
        b'{"kind":"stopped","seq":4,"t":""}\n'
        b'{"kind":"stopped","seq":5,"t":"","epoch":1,"step":2}\n'
    )
    reader = EventReader(path)
    assert [event.seq for event in reader.read_new()] == [1, 5]
    assert reader.damaged == 2


@given(st.binary(max_size=300))
def test_any_bytes_before_an_event_leave_it_readable(junk: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        path.write_bytes(junk + b'\n{"kind":"resumed","seq":9,"t":"","epoch":1,"step":2}\n')
        assert EventReader(path).read_new()[-1].seq == 9


def test_a_metric_that_is_not_finite_is_null_in_the_log_and_named(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    append_events(
        paths,
        epoch(1, math.inf, 5.0),
        progress(1, 1, -math.inf, tokens_per_s=None),
        finished(test_ppl_final=math.nan, test_ppl_best=1.0, best_epoch=None, best_valid_ppl=None, diverged=True),
    )
    written = [re.sub(r',"t":"[^"]+"', "", line) for line in paths.events.read_text().splitlines()]
    assert written == [
        (
            '{"kind":"epoch","seq":1,"epoch":1,"train_loss_nats":5.0,"train_ppl":148.4131591025766,'
            '"valid_loss_nats":null,"valid_ppl":null,"train_s":4.0,"valid_s":1.0,"elapsed_train_s":4.0,"energy_j":null,'
            '"non_finite":{"valid_loss_nats":"inf","valid_ppl":"inf"}}'
        ),
        (
            '{"kind":"progress","seq":2,"epoch":1,"step":1,"steps":8,"train_loss_nats":null,"tokens_per_s":null,'
            '"elapsed_train_s":0.5,"non_finite":{"train_loss_nats":"-inf"}}'
        ),
        (
            '{"kind":"finished","seq":3,"test_ppl_final":null,"test_ppl_best":1.0,"best_epoch":null,"best_valid_ppl":null,'
            '"setup_s":2.0,"wall_s":7.0,"diverged":true,"stopped_early":false,"torch_peak_mib":null,"rss_peak_mib":null,'
            '"energy_j":null,"non_finite":{"test_ppl_final":"nan"}}'
        ),
    ]


def test_a_metric_that_is_not_finite_is_read_as_that_number_and_an_unknown_one_as_none(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    append_events(paths, epoch(1, math.inf, 5.0), progress(1, 1, math.nan, tokens_per_s=None), epoch(2, math.log(100)))
    first, mean, second = EventReader(paths.events).read_new()
    assert isinstance(first, Epoch)
    assert isinstance(mean, Progress)
    assert isinstance(second, Epoch)
    assert (first.train_loss_nats, first.valid_loss_nats, first.valid_ppl) == (5.0, math.inf, math.inf)
    assert first.energy_j is None
    assert mean.train_loss_nats is not None
    assert math.isnan(mean.train_loss_nats)
    assert mean.tokens_per_s is None
    assert second.valid_ppl == pytest.approx(100.0)
    assert second.non_finite == {}


@pytest.mark.parametrize("non_finite", ['{"epoch":"nan","colour":"inf"}', '{"kind":"nan"}'])
def test_only_metrics_are_restored(tmp_path: Path, non_finite: str) -> None:
    paths = RunPaths(tmp_path)
    append_events(paths, epoch(1, math.log(100)))
    text = paths.events.read_text()
    assert '"non_finite":{}' in text
    paths.events.write_text(text.replace('"non_finite":{}', f'"non_finite":{non_finite}'))
    (read,) = EventReader(paths.events).read_new()
    assert isinstance(read, Epoch)
    assert read.epoch == 1
    assert read.valid_ppl == pytest.approx(100.0)


def test_the_perplexity_of_an_enormous_loss_is_infinite() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(700.0) == math.exp(700.0)
    assert perplexity(700.1) == math.inf
    assert perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))
