"""Alerts and the digest, with real programs. Workers are imitated by the events that they would write."""

import email
import email.policy
import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import factories
import psutil
import pytest
import tiny
from factories import STEP_S, STEPS, alive, append_events, epoch, progress, started, wait_until
from validation import check_output

from lmconsole.engine import alerts, processes, worker
from lmconsole.engine.alerts import Alert, Alerts
from lmconsole.engine.digest import TEXT_BYTES, read_digest, summarize
from lmconsole.engine.option_values import parse_program
from lmconsole.engine.queue import requeue
from lmconsole.engine.runner import Runner
from lmconsole.engine.stall import FLOOR_S, StallWatch
from lmconsole.errors import StoreError
from lmconsole.formatting import seconds
from lmconsole.runs.events import Event, Failed, Queued, Stopped
from lmconsole.runs.permissions import AfterQueue, Permissions
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[2] / "docs" / "alerts.md"
COLLECT = ("/bin/sh", "-c", 'cat >>"$0"')
"""Program that appends its input to the file in its first argument."""
FAILED = Failed(error="out-of-memory", message="cuda:0 ran out of memory", hint="Use --jobs 1.")
NAN = float("nan")


class Scene:
    """A store, its runner's alerts, and the file that their program writes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "alerts.jsonl"
        self.messages: list[str] = []
        self.clock_s = 0.0
        self.restart()

    def restart(self) -> None:
        """Do what a new runner does."""
        self.store = Store(self.root / "runs")
        self.permissions = Permissions(self.store.root)
        watch = StallWatch(lambda: self.clock_s)
        self.alerts = Alerts(self.store, self.permissions, self.messages.append, watch)
        self.alerts.resume()

    def queue(self, *events: Event, program: tuple[str, ...] = (), forged: str = "", **changes: Any) -> Run:
        """Queue a run and append ``events`` after the runner has seen it. ``forged`` is the name in its run.json."""
        run = tiny.queue_tiny(self.root, **changes)
        if forged:
            info = json.loads(run.paths.info.read_text())
            info["experiment"]["name"] = forged
            run.paths.info.write_text(json.dumps(info))
        tiny.permit(run, on_event=program or (*COLLECT, str(self.file)), cwd=str(self.root))
        self.check()
        append_events(run.paths, *events)
        return run

    def check(self, own: tuple[str, ...] = ()) -> None:
        self.alerts.check(self.store.runs(), own)

    def given(self) -> list[dict[str, Any]]:
        """Give all alerts that are due, and return those given so far."""
        self.check()
        self.alerts.close()
        return self.read()

    def read(self) -> list[dict[str, Any]]:
        """Return the alerts given so far, by any runner, all of them as their schema describes them."""
        found = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        for each in found:
            check_output(each, "run-on-event")
        return found

    def events(self) -> list[str]:
        return [each["event"] for each in self.given()]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    scene = Scene(tmp_path)
    yield scene
    scene.alerts.close()


def trained(*losses: float) -> list[Event]:
    """Return the events of a run with these validation losses."""
    ends = [epoch(number, loss) for number, loss in enumerate(losses, 1)]
    return [started(), *ends, factories.finished(losses)]


def test_each_outcome_is_an_alert_with_what_a_person_needs(scene: Scene) -> None:
    queued = scene.queue(seed=9)
    runs = {
        "finished": scene.queue(seed=1, forged="A; touch $(pwned) \x1b[31m\nTo: all"),
        "failed": scene.queue(seed=2),
        "stopped": scene.queue(seed=3),
        "lost": scene.queue(seed=4),
    }
    assert scene.given() == []
    append_events(runs["finished"].paths, *trained(5.0, 4.0))
    append_events(runs["failed"].paths, started(), epoch(1, 5.0), FAILED)
    append_events(runs["stopped"].paths, Stopped(epoch=1, step=3))
    append_events(runs["lost"].paths, started())
    found = {each["event"]: each for each in scene.given()}
    assert {event: each["run"] for event, each in found.items()} == {event: run.run for event, run in runs.items()}
    for each in found.values():
        assert set(each) == set(Alert.__struct_fields__)
        assert each["store"] == str(scene.store.root)
        assert each["host"] in each["title"]
        assert "\n" not in each["title"]
        assert "\x1b" not in each["title"] + each["text"]
        assert (each["experiment"], each["preset"], each["epochs"], each["digest"]) == (1, "tiny", 2, None)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", each["time"])
    done = found["finished"]
    assert (done["seed"], done["best_epoch"], done["reason"]) == (1, 2, None)
    assert done["best_valid_ppl"] == done["valid_ppl"] == pytest.approx(54.598, abs=1e-3)
    assert done["label"].endswith("\nTo: all")
    assert "reason" not in done["text"]
    assert "Best validation perplexity 54.6 in epoch 2, test 60.3." in done["text"]
    assert found["failed"]["reason"] == "cuda:0 ran out of memory. Use --jobs 1."
    assert "Cuda:0 ran out of memory. Use --jobs 1." in found["failed"]["text"]
    assert (found["failed"]["valid_ppl"], found["failed"]["epoch"]) == (pytest.approx(148.413, abs=1e-3), 2)
    assert "resumes it" in found["stopped"]["text"]
    assert "without recording why" in found["lost"]["text"]
    assert queued.run not in scene.file.read_text()
    assert sorted(path.name for path in scene.root.iterdir()) == [
        "alerts.jsonl",
        "cache",
        "data",
        "experiments",
        "runs",
    ]


def test_a_run_diverges_as_soon_as_its_loss_is_not_finite(scene: Scene) -> None:
    run = scene.queue(started(), progress(1, 3, NAN))
    with factories.locked_by_another_process(run.paths.lock):
        (early,) = scene.given()
    assert early["event"] == "diverged"
    assert early["reason"] == "the loss is nan in epoch 1, step 3. The run ends after this epoch."
    append_events(run.paths, epoch(1, NAN, NAN), factories.finished([NAN]))
    assert scene.events() == ["diverged", "finished"]
    scene.queue(started(), epoch(1, NAN, 4.0), factories.finished([NAN]), seed=2)
    scene.restart()
    last = scene.given()[2:]
    assert [each["event"] for each in last] == ["diverged", "finished"]
    assert "the validation loss is nan after epoch 1" in last[0]["reason"]
    assert (last[0]["valid_ppl"], last[0]["train_ppl"]) == (None, pytest.approx(54.598, abs=1e-3))


def test_a_stall_is_an_alert_and_another_stall_another(scene: Scene) -> None:
    run = scene.queue(started(pid=77, host="box"), progress(1, 3))
    with factories.locked_by_another_process(run.paths.lock):

        def wait(seconds: float) -> list[str]:
            for _ in range(int(seconds)):
                scene.clock_s += 1.0
                scene.alerts.check(scene.store.runs(), ())
            return scene.events()

        scene.check()
        assert wait(FLOOR_S) == []
        assert wait(3) == ["stalled"]
        scene.restart()
        assert wait(2 * FLOOR_S) == ["stalled"]
        append_events(run.paths, progress(1, 4))
        assert wait(2 * FLOOR_S) == ["stalled", "stalled"]
    text = scene.given()[0]["text"]
    assert "No training step has ended for 2 min" in text
    assert "kill process 77 on box" in text


def test_alerts_are_given_once_over_restarts_and_again_when_a_run_is_queued_again(scene: Scene) -> None:
    run = scene.queue(started(), FAILED)
    for _ in range(3):
        scene.restart()
        assert scene.events() == ["failed"]
    assert requeue(scene.store, [run.run]) == [run.run]
    assert scene.events() == ["failed"]
    append_events(run.paths, started(attempt=2), FAILED)
    assert scene.events() == ["failed", "failed"]
    scene.restart()
    assert scene.events() == ["failed", "failed"]


def test_an_alert_that_waited_when_the_runner_was_killed_is_given_by_the_next_one(scene: Scene) -> None:
    scene.queue(FAILED, program=("/bin/sleep", "60"), seed=1)
    scene.queue(FAILED, seed=2)
    scene.check()
    _, program = scene.alerts._running or (None, None)
    assert program is not None
    scene.restart()
    assert scene.events() == ["failed"]
    assert scene.given()[0]["seed"] == 2
    program.kill()


def test_nobody_is_alerted_about_runs_of_others_and_no_log_names_a_program(scene: Scene) -> None:
    silent = tiny.queue_tiny(scene.root, seed=1)  # permitted, but without a program
    removed = scene.queue(seed=2)
    scene.check()
    Permissions(scene.store.root).forget(removed.run)
    log = removed.paths.events
    log.write_text(log.read_text().replace('"jobs"', '"on_event":["/bin/touch","x"],"jobs"'))
    scene.restart()
    for run in (silent, removed):
        append_events(run.paths, FAILED)
    assert scene.given() == []


def test_a_run_whose_worker_the_runner_started_is_not_lost(scene: Scene) -> None:
    run = scene.queue(started())
    scene.check(own=(run.run,))
    scene.alerts.close()
    assert not scene.file.exists()
    assert scene.events() == ["lost"]


def test_a_program_that_hangs_is_killed_with_its_children_and_delays_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "LIMIT_S", 0.5)
    pids = scene.root / "pids"
    script = 'sleep 99 & echo $! >>"$0"; setsid sleep 99 & echo $! >>"$0"; echo $$ >>"$0"; trap "" TERM; sleep 99'
    scene.queue(FAILED, program=("/bin/sh", "-c", script, str(pids)), seed=1)
    scene.queue(FAILED, seed=2)
    began = time.monotonic()
    scene.check()
    assert time.monotonic() - began < 0.5
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    assert scene.events() == ["failed"], "the next alert is given all the same"
    assert "alert failed: killed at its time limit" in scene.messages[0]
    wait_until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (("/bin/sh", "-c", "echo first; echo 'no \x1b[31mnetwork' >&2; exit 6"), r"exit code 6: no \x1b[31mnetwork"),
        (("/bin/sh", "-c", "kill -9 $$"), "exit code -9"),
        (("/bin/sh", "-c", "exec <&-; yes | head -c 300000; exit 3"), "exit code 3: y"),
        (("/nowhere/program",), "/nowhere/program cannot be started: [Errno 2]"),
        (("/bin/true",), "given"),
    ],
)
def test_what_becomes_of_a_program_is_in_the_log(scene: Scene, program: tuple[str, ...], message: str) -> None:
    run = scene.queue(FAILED, program=program)
    scene.given()
    (line,) = scene.messages
    assert line.startswith(f"{run.run}: alert failed: {message}")


def test_alerts_that_cannot_be_given_in_time_are_counted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "CLOSE_LIMIT_S", 0.1)
    for seed in (1, 2):
        scene.queue(FAILED, program=("/bin/sleep", "99"), seed=seed)
    scene.given()
    assert scene.messages == ["2 alerts could not be given in time"]
    scene.alerts._pending.clear()
    assert not [child for child in psutil.Process().children() if child.name() == "sleep"]


def test_an_alert_about_a_full_disk_is_given_although_that_cannot_be_saved(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    scene.queue(FAILED)
    with monkeypatch.context() as patched:
        patched.setattr(Permissions, "add_given", full)
        assert scene.events() == ["failed"]
        assert scene.events() == ["failed"]
    assert "cannot be marked as given: No space left on device" in scene.messages[0]


# ---- the digest


@pytest.fixture
def serve(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runner]:
    """Return a function that serves the store with workers that only write these events, by seed."""

    def serve(outcomes: dict[int, list[Event]]) -> Runner:
        def start(run: Run, *_: object) -> Any:
            append_events(run.paths, *outcomes[run.info.seed])
            return SimpleNamespace(pid=0, exitcode=0)

        monkeypatch.setattr(worker, "start", start)
        runner = Runner(Store(scene.root / "runs"))
        runner.serve()
        runner.alerts.close()
        return runner

    return serve


def test_the_digest_is_written_and_the_last_alert(scene: Scene, serve: Callable[..., Runner]) -> None:
    before = tiny.queue_tiny(scene.root, seed=8)
    append_events(before.paths, *trained(5.0, 3.0))
    scene.permissions.forget(before.run)  # as when an earlier queue was empty
    for seed in (1, 2, 3):
        scene.queue(seed=seed)
    outcomes = {1: trained(5.0, 4.5), 2: [started(), FAILED], 3: [started(), epoch(1, NAN), factories.finished([NAN])]}
    serve(outcomes)
    found = scene.read()
    assert [each["event"] for each in found] == ["finished", "failed", "diverged", "finished", "digest"]
    last = found[-1]
    assert last["run"] is None
    assert last["title"].endswith(": 1 failed, 1 diverged, 1 finished")
    lines = last["text"].splitlines()
    assert lines[0].startswith("1 failed, 1 diverged, 1 finished in ")
    assert lines[0].endswith(f"; training took {seconds(3 * STEPS * STEP_S)}.")
    assert (
        lines[1]
        == "Lowest so far, one run and not a claim: LSTM 1L Adam (1), seed 8: validation perplexity 20.1 in epoch 2, "
        "test 22.2, an earlier run."
    )
    assert lines[2:] == [
        "failed: LSTM 1L Adam (1), seed 2: cuda:0 ran out of memory. Use --jobs 1.",
        "diverged: LSTM 1L Adam (1), seed 3: its loss was not finite in epoch 1.",
        "finished: LSTM 1L Adam (1), seed 1: validation perplexity 90.0 in epoch 2, test 99.5",
    ]
    assert {each["seed"]: each["result"] for each in last["digest"]["runs"]} == {
        1: "finished",
        2: "failed",
        3: "diverged",
    }
    assert [each["run"] for each in last["digest"]["best"]] == [before.run]
    digest = read_digest(scene.store)
    assert digest is not None
    assert digest.text == last["text"]
    assert Permissions(scene.store.root).saved() == []
    serve({})
    assert read_digest(scene.store) == digest, "an empty queue has none"
    assert len(scene.read()) == 5


def test_a_lost_run_is_in_the_digest_until_it_is_resumed(scene: Scene, serve: Callable[..., Runner]) -> None:
    lost = scene.queue(started(), seed=1)
    scene.queue(seed=2)
    serve({2: trained(5.0, 4.5)})
    assert [each["event"] for each in scene.read()] == ["lost", "finished", "digest"]
    assert "1 lost, 1 finished" in scene.read()[-1]["title"]
    lost.refresh()
    assert lost.status is Status.LOST
    requeue(scene.store, [lost.run])
    serve({1: trained(5.0, 4.5)})
    assert [each["event"] for each in scene.read()] == ["lost", "finished", "digest", "finished", "digest"]


def test_a_program_is_kept_when_a_lost_run_is_resumed(scene: Scene) -> None:
    lost = scene.queue(started())
    requeue(scene.store, [lost.run], AfterQueue(exports="/elsewhere"))
    lost.refresh()
    kept = Permissions(scene.store.root).read(lost)
    assert kept is not None
    assert (kept.after.on_event[:2], kept.after.cwd, kept.after.exports) == (COLLECT[:2], str(scene.root), "/elsewhere")
    assert kept.given == ()


def test_the_text_of_many_runs_is_cut(scene: Scene) -> None:
    run = scene.queue(started(), FAILED, forged="\x1b" * 255)
    (run,) = scene.store.runs()
    digest = summarize(scene.store, [run] * 1000, [])
    assert len(digest.text.encode()) <= TEXT_BYTES
    assert re.search(r"… and 9\d\d more lines$", digest.text)
    assert len(digest.runs) == 1000
    scene.given()
    scene.alerts.add_digest(digest, [Permissions(scene.store.root).saved()[0]])
    last = scene.given()[-1]
    assert last["text"] == digest.text
    assert 10 < len(last["digest"]["runs"]) < 100
    assert len(json.dumps(last)) < 32_768


@pytest.mark.parametrize("content", ["", "[]", '{"time": 3}', "{" * 100_000, "x" * 2**25], ids=len)
def test_a_damaged_digest_is_one_message(scene: Scene, content: str) -> None:
    scene.store.create()
    (scene.store.root / ".digest.json").write_text(content)
    with pytest.raises(StoreError, match=r"\.digest\.json: "):
        read_digest(scene.store)


def test_a_digest_is_never_written_through_a_link(scene: Scene, serve: Callable[..., Runner]) -> None:
    precious = scene.root / "precious"
    precious.write_text("kept")
    scene.queue(seed=1)
    (scene.store.root / ".digest.json").symlink_to(precious)
    with pytest.raises(StoreError, match="symbolic link"):
        read_digest(scene.store)
    serve({1: trained(5.0)})
    assert precious.read_text() == "kept"
    assert read_digest(scene.store) is not None


# ---- the examples of the documentation


def examples(fence: str) -> list[str]:
    return re.findall(rf"^```{fence}\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def fake_program(scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Put a program first on the path that keeps its arguments and its input."""
    path = scene.root / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{scene.root}/arguments\ncat >{scene.root}/input\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def test_the_examples_of_the_documentation_work(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = [re.search(r'--on-event "(.*)"', block) for block in examples("console")]
    ntfy, mail = (parse_program(found[1], None) for found in programs if found)  # type: ignore[arg-type]
    for name in ("curl", "sendmail"):
        fake_program(scene, monkeypatch, name)
    (scene.root / "alert_mail.py").write_text(examples("python")[0])
    ntfy = (str(scene.root / "bin" / "curl"), *ntfy[1:])
    scene.queue(FAILED, program=ntfy, seed=1)
    scene.given()
    arguments = (scene.root / "arguments").read_text().splitlines()
    assert arguments[:3] == ["-fsS", "--data-binary", "@-"]
    fields = re.findall(r"\{\{\.(\w+)\}\}", " ".join(arguments))
    body = json.loads((scene.root / "input").read_text())
    assert fields == ["title", "text"]
    assert all(isinstance(body[field], str) for field in fields)
    scene.queue(FAILED, program=mail, seed=2, forged="naïve\nBcc: all")
    scene.given()
    assert (scene.root / "arguments").read_text().splitlines() == ["-t", "-oi"]
    message = email.message_from_bytes((scene.root / "input").read_bytes(), policy=email.policy.default)
    assert message["To"] == "you@example.com"
    assert message["Subject"].endswith(": naïve Bcc: all (1) failed")
    assert message["Bcc"] is None
    assert "ran out of memory" in message.get_content()
    assert [line.rpartition(" ")[2] for line in scene.messages] == ["given", "given"]


def test_the_documentation_lists_every_field_and_event() -> None:
    cells = re.findall(r"^\| (`.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    words = re.findall(r"`(\w+)`", " ".join(cells))
    events = ["stalled", "diverged", "failed", "lost", "stopped", "finished", "digest"]
    assert words == [*events, *Alert.__struct_fields__]


def test_the_environment_of_training_is_not_that_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", str(processes.SPIN_COUNT))
    program = processes.LimitedProgram(["/bin/sh", "-c", 'exit "${GOMP_SPINCOUNT:-7}"'], "", b"", 30.0)
    while (ended := program.poll()) is None:
        time.sleep(0.02)
    assert ended == "exit code 7"


def test_a_queued_event_is_not_an_alert(scene: Scene) -> None:
    run = scene.queue()
    append_events(run.paths, Queued(devices=("cpu",), jobs=1))
    assert scene.given() == []
