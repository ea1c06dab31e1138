"""The command line from outside: exit codes, one clear message, nothing lost, no traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
import validation
from factories import alive, wait_until

from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

ANSI = re.compile(r"\x1b")


def tiny_arguments(root: Path, *rows: str) -> list[str]:
    file = tiny.write_experiments(root / "mine.toml", *(rows or (tiny.row(1), tiny.row(2, "gpt1"))))
    data = tiny.write_corpus(root / "data")
    return ["--headless", "--preset", "tiny", "--experiments", str(file), "--data", str(data), "--jobs", "2"]


def refused(root: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Return the message of a command that is refused: exit code 2, no standard output, no new run."""
    done = tiny.lmconsole(*arguments, cwd=root, check=2, env=env or {})
    assert done.stdout == ""
    assert not ANSI.search(done.stderr)
    assert not list((root / "runs").glob("[0-9]*"))
    return done.stderr


def status(run: Run) -> Status:
    run.refresh()
    return run.status


def most_at_once(runs: list[Run]) -> int:
    """Return how many runs trained at the same time at most, each from ``started`` to its last event."""
    spans = [(run.state.started.t, run.state.last_t) for run in runs if run.state.started]
    return max(sum(began <= now <= ended for began, ended in spans) for now, _ in spans)


def test_help_lists_the_commands_and_every_command_has_help(tmp_path: Path) -> None:
    commands = ["list", "run", "status", "stop", "watch", "export", "doctor", "bench", "data"]
    out = tiny.lmconsole("--help", cwd=tmp_path, check=0).stdout
    assert all(f"  {command} " in out for command in commands)
    for command in commands:
        assert "Usage: " in tiny.lmconsole(command, "--help", cwd=tmp_path, check=0).stdout


def test_without_arguments_or_a_terminal_the_message_advises(tmp_path: Path) -> None:
    assert "--headless" in refused(tmp_path)


def test_list_shows_the_twelve_and_their_latest_runs(tmp_path: Path) -> None:
    out = tiny.lmconsole("list", cwd=tmp_path, check=0).stdout
    assert len(re.findall(r"^ *\d+ +(LSTM|GPT-1) ", out, re.MULTILINE)) == 12
    listed = json.loads(tiny.lmconsole("list", "--json", cwd=tmp_path, check=0).stdout)
    assert [entry["id"] for entry in listed] == list(range(1, 13))
    assert listed[4]["presets"]["demo"]["heads"] == 3
    assert listed[4]["latest_run"] is None


@pytest.mark.parametrize("size", ["", "0", "000", "-1", "abc", "1e3", "9" * 5_000])
def test_a_screen_size_that_is_none_changes_nothing(tmp_path: Path, size: str) -> None:
    for arguments in (["list"], ["run", "--help"]):
        expected = tiny.lmconsole(*arguments, cwd=tmp_path, check=0).stdout
        env = {"COLUMNS": size, "LINES": size}
        assert tiny.lmconsole(*arguments, cwd=tmp_path, check=0, env=env).stdout == expected


@pytest.mark.slow
def test_runs_go_from_the_command_to_the_tables(tmp_path: Path) -> None:
    arguments = tiny_arguments(tmp_path)
    done = tiny.lmconsole("run", "--all", *arguments, cwd=tmp_path, check=0)
    assert not ANSI.search(done.stdout + done.stderr)
    for words in ("queued", "started on cpu", "epoch 1/2", "epoch 2/2", "finished  best valid ppl"):
        assert done.stderr.count(words) == 2, words
    assert len(re.findall(r"^ *[12] +(LSTM|GPT-1) .* finished ", done.stdout, re.MULTILINE)) == 2
    assert f"exports: {tmp_path / 'exports'}" in done.stderr
    names = {path.name for path in (tmp_path / "exports").iterdir()}
    assert {f"table-{n}.{form}" for n in ("1-results", "2-memory") for form in ("md", "tex", "csv")} < names

    again = tiny.lmconsole("run", "1", *arguments, cwd=tmp_path, check=0)
    assert "already finished" in again.stderr
    assert "finished in" in done.stdout
    assert "finished in" not in again.stdout, "nothing was trained"
    assert len(Store(tmp_path / "runs").runs()) == 2

    status = json.loads(tiny.lmconsole("status", "--json", cwd=tmp_path, check=0).stdout)
    assert {run["status"] for run in status} == {"finished"}
    table = tiny.lmconsole("export", "-o", "-", cwd=tmp_path, check=0).stdout
    assert table == (tmp_path / "exports" / "table-1-results.md").read_text()
    for form in ("latex", "csv"):
        text = tiny.lmconsole("export", "-o", "-", "--format", form, cwd=tmp_path, check=0).stdout
        assert text == (tmp_path / "exports" / f"table-1-results.{'tex' if form == 'latex' else 'csv'}").read_text()
    written = tiny.lmconsole("export", "--out", "elsewhere", "--format", "csv", cwd=tmp_path, check=0).stdout
    assert written.splitlines() == [
        str(tmp_path / "elsewhere" / name)
        for name in (
            "table-1-results.csv",
            "table-2-memory.csv",
            "data/runs.csv",
            "data/epochs.csv",
            "data/telemetry.csv",
        )
    ]


@pytest.mark.slow
def test_json_gives_every_event_of_the_log_and_nothing_else_on_standard_output(tmp_path: Path) -> None:
    done = tiny.lmconsole("run", "2", *tiny_arguments(tmp_path), "--json", "--no-export", cwd=tmp_path, check=0)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (run,) = Store(tmp_path / "runs").runs()
    log = [json.loads(line) for line in run.paths.events.read_text().splitlines()]
    assert [{k: v for k, v in event.items() if k != "run"} for event in events] == log
    assert {event["run"] for event in events} == {run.run}
    assert "finished" in done.stderr


@pytest.mark.slow
def test_a_failing_run_makes_the_exit_code_one_and_the_others_finish(tmp_path: Path) -> None:
    huge = "hidden = 65536"  # 17 billion weights, 64 GiB: more than the processes of this test may have
    arguments = tiny_arguments(tmp_path, tiny.row(1, more=huge), tiny.row(2, "gpt1"))
    limited = (
        "import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))\n"
        "runpy.run_module('lmconsole', run_name='__main__', alter_sys=True)"
    )
    done = tiny.run_code(limited, "run", "--all", *arguments, "--no-export", root=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "failed: cpu ran out of memory: host " in done.stderr
    first, second = Store(tmp_path / "runs").runs()
    assert (first.status, second.status) == (Status.FAILED, Status.FINISHED)
    assert re.search(r"^ *1 +LSTM .* failed ", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_exports_that_cannot_be_written_make_the_exit_code_one(tmp_path: Path) -> None:
    (tmp_path / "exports").write_text("a file is in the way")
    done = tiny.lmconsole("run", "1", *tiny_arguments(tmp_path), cwd=tmp_path, check=1)
    assert "exports: none" in done.stderr
    assert re.search(r"^ *1 +LSTM .* finished ", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_two_commands_at_once_train_nothing_twice_and_both_get_the_results(tmp_path: Path) -> None:
    rows = [tiny.row(number, more="epochs = 30") for number in (1, 2, 3)]  # long enough to meet if they may
    arguments = tiny_arguments(tmp_path, *rows)
    both = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        words = ["run", "--all", *arguments, "--runs", str(tmp_path / "runs"), "--no-export"]
        both.append(tiny.start("-m", "lmconsole", *words, root=tmp_path / name, errors="messages"))
    assert [process.wait(240) for process in both] == [0, 0]
    tables = [(tmp_path / name / "output").read_text() for name in ("one", "other")]
    assert tables[0]
    assert tables[0] == tables[1]
    runs = Store(tmp_path / "runs").runs()
    assert [run.state.attempt for run in runs] == [1, 1, 1]
    assert most_at_once(runs) <= 2, "--jobs 2"


@pytest.mark.slow
def test_an_interrupt_stops_the_runs_and_running_again_resumes_them(tmp_path: Path) -> None:
    arguments = [*tiny_arguments(tmp_path, tiny.row(1, more="epochs = 4000")), "--no-export"]
    command = ["-m", "lmconsole", "run", "1", *arguments]
    process = tiny.start(*command, root=tmp_path, errors="messages")
    store = Store(tmp_path / "runs")
    wait_until(lambda: any(run.state.epochs for run in store.runs()))
    refusal = tiny.lmconsole("run", "1", *arguments, cwd=tmp_path, check=2)
    assert "already queued or running" in refusal.stderr
    process.send_signal(signal.SIGINT)
    code = process.wait(60)
    out, err = ((tmp_path / name).read_text() for name in ("output", "messages"))
    assert code == 130, err
    assert "Traceback" not in err
    assert "stopped in epoch" in err
    assert "stopped" in out
    (run,) = store.runs()
    assert status(run) is Status.STOPPED
    done = len(run.state.epochs)
    dry = tiny.lmconsole("run", "1", *arguments, "--dry-run", cwd=tmp_path, check=0).stdout
    assert f"resume {run.run} in epoch {done + 1}" in dry

    again = tiny.start(*command, root=tmp_path, errors="messages")
    wait_until(lambda: status(run) is Status.RUNNING and len(run.state.epochs) > done)
    again.kill()  # the run must continue without the command
    again.wait()
    stopped = tiny.lmconsole("stop", "1", cwd=tmp_path, check=0)
    assert "asked to stop" in stopped.stderr
    watched = tiny.lmconsole("watch", run.run[:8], cwd=tmp_path, check=1)
    assert "stopped" in watched.stdout
    assert (status(run), run.state.attempt) == (Status.STOPPED, 2)
    assert [epoch.epoch for epoch in run.state.epochs] == list(range(1, len(run.state.epochs) + 1))


@pytest.mark.slow
def test_a_dry_run_shows_everything_and_creates_nothing(tmp_path: Path) -> None:
    out = tiny.lmconsole("run", "2", *tiny_arguments(tmp_path), "--dry-run", cwd=tmp_path, check=0).stdout
    for words in (
        "tiny (from --preset)",
        "cpu (",
        "fp32",
        "vocabulary 300",
        "GPT-1 1L Adam",
        "new",
        "[presets.tiny.gpt1]",
    ):
        assert words in out
    words = " ".join(out.split())
    assert "time unknown; `lmconsole bench --preset tiny --experiments" in words
    assert "measures it in a minute" in words
    assert not (tmp_path / "runs").exists()
    plan = json.loads(
        tiny.lmconsole("run", "2", *tiny_arguments(tmp_path), "--dry-run", "--json", cwd=tmp_path, check=0).stdout
    )
    assert plan["runs"][0]["action"] == "new"
    assert plan["runs"][0]["expected_s"] is None
    assert plan["runs"][0]["settings"]["heads"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "name the experiments (1-12)"),
        (["run", "13"], "no experiment 13; built-in experiments.toml has 1-12"),
        (["run", "0"], "no experiment 0"),
        (["run", "4-1"], "4-1: the range is reversed; write 1-4"),
        (["run", ","], "no experiment is named; built-in experiments.toml has 1-12"),
        (["run", ""], "no experiment is named"),
        (["run", "../1"], "not an experiment"),
        (["run", "[red]"], "'[red]': not an experiment"),
        (["run", "\x1b[31m1"], r"\x1b[31m1"),
        (["run", "1", "--all"], "not several of them"),
        (["run", "1", "--preset", "papr"], "did you mean 'paper'?"),
        (["run", "1", "--epochs", "0"], "--epochs 0: expected a whole number >= 1"),
        (["run", "1", "--epochs", "nan"], "--epochs nan: expected a whole number"),
        (["run", "1", "--precision", "fp8"], "--precision: unknown precision 'fp8'"),
        (["run", "1", "--jobs", "0"], "--jobs 0: expected auto, or 1 to 1,024"),
        (["run", "1", "--jobs", "two"], "--jobs two: expected auto, or 1 to 1,024"),
        (["run", "1", "--seeds", "1,x"], "--seeds 1,x: expected whole numbers"),
        (["run", "1", "--seeds", "1..99999999"], "more than 10,000 seeds"),
        (["run", "1", "--seeds", "1..10000,10001"], "more than 10,000 seeds"),
        (["run", "1", "--max-tokens", "-5"], "--max-tokens -5"),
        (["run", "1", "--on-finish", "no-such-program-here x"], "no such program"),
        (["run", "1", "--experiments", "missing.toml"], "missing.toml: no such file"),
        (["run", "1", "--whatever"], "No such option"),
        (["stop"], "name at least one run"),
        (["stop", "nope"], "no run is called 'nope'"),
        (["watch", "7"], "experiment 7 has no run"),
        (["status", "x"], "unexpected extra argument"),
        (["export"], "nothing to export: the store has no runs"),
        (["export", "--run", "nope"], "no run is called 'nope'"),
        (["export", "-o", "file"], "-o accepts only -"),
        (["data", "info", "--data", "nowhere"], "nowhere"),
        (["bench", "--preset", "papr"], "did you mean 'paper'?"),
        (["bench", "--preset", "auto"], "name a preset"),
        (["bench", "--precision", "fp8"], "unknown precision 'fp8'"),
    ],
)
def test_wrong_arguments_are_refused_with_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refused(tmp_path, *arguments)


def test_all_wrong_arguments_are_reported_at_once(tmp_path: Path) -> None:
    shown = refused(tmp_path, "run", "99", "--preset", "demmo", "--jobs", "0", "--seeds", "a")
    assert len(shown.splitlines()) == 4


def save_npz(folder: Path, **splits: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    good = np.arange(1, 200, dtype=np.uint16) % 90 + 1
    for split in ("train", "validation", "test"):
        tokens = splits.get(split, good)
        if tokens is not None:
            np.savez(folder / f"wiki.{split}.npz", tokens=np.asarray(tokens))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "make", "message"),
    [
        ("scratch", lambda d: None, "no such folder"),
        ("scratch", lambda d: d.mkdir(), "no corpus in this folder"),
        ("scratch", lambda d: save_npz(d, test=None), "2 of 3 splits"),
        ("scratch", lambda d: save_npz(d, test=[1, 2, 50_000]), "50000"),
        ("scratch", lambda d: save_npz(d, train=[{"a": 1}]), "pickled"),
        (
            "scratch",
            lambda d: (save_npz(d) / "wiki.train.npz").write_bytes((d / "wiki.train.npz").read_bytes()[:150]),
            "wiki.train.npz",
        ),
        (
            "paper",
            lambda d: save_npz(d),
            "paper needs embeddings: no embeddings.npz or model.safetensors in",
        ),
        ("auto", lambda d: save_npz(d), "--data implies the preset paper, which also needs embeddings"),
        (
            "paper",
            lambda d: np.savez(save_npz(d) / "embeddings.npz", tokens=np.zeros((5, 768), np.float32)),
            "'tokens' is 5 x 768, expected 40,479 x 768",
        ),
    ],
    ids=["missing", "empty", "two-of-three", "id-too-large", "pickled", "truncated", "no-tables", "auto", "bad-tables"],
)
def test_unusable_data_is_refused_before_a_run_exists(tmp_path: Path, preset: str, make: object, message: str) -> None:
    folder = tmp_path / "my 'odd' [red] data"
    make(folder)  # type: ignore[operator]
    shown = refused(tmp_path, "run", "5", "--headless", "--preset", preset, "--data", str(folder), "--device", "cpu")
    assert message.lower() in shown.lower()
    if preset != "paper":
        assert "my 'odd' [red] data" in shown


@pytest.mark.slow
def test_paper_without_tables_gives_the_whole_recipe(tmp_path: Path) -> None:
    shown = refused(tmp_path, "run", "1", "--headless", "--preset", "paper")
    for words in ("wiki.train.npz", "encoder_bpe_40000.json", "openai-community/openai-gpt", "--embeddings"):
        assert words in shown


@pytest.mark.slow
def test_files_that_the_preset_does_not_use_are_mentioned(tmp_path: Path) -> None:
    words = ["run", "1", "--dry-run", "--data", str(tiny.write_corpus(tmp_path / "data")), "--embeddings", "tables.npz"]
    shown = tiny.lmconsole(*words, "--preset", "demo", cwd=tmp_path, check=0).stderr
    assert shown.splitlines() == [
        f"warning: {name} is not used by the preset demo" for name in ("--data", "--embeddings")
    ]


@pytest.mark.slow
def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    for device in ("cuda", "cuda:0", "all", "tpu"):
        shown = refused(tmp_path, "run", "1", "--headless", "--preset", "demo", "--device", device)
        assert device in shown
    assert "tf32" in refused(tmp_path, "run", "1", "--headless", "--preset", "demo", "--precision", "tf32")


def test_a_store_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    assert "cannot be read" in tiny.lmconsole("status", cwd=tmp_path, check=2).stderr
    assert "cannot be read" in tiny.lmconsole("run", "1", "--preset", "demo", cwd=tmp_path, check=2).stderr


def test_exports_that_cannot_be_written_are_refused_and_old_ones_kept(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    assert "the run has not completed an epoch" in tiny.lmconsole("export", cwd=tmp_path, check=2).stderr
    assert tiny.worker(run, tmp_path).returncode == 0
    table = tiny.lmconsole("export", "-o", "-", cwd=tmp_path, check=0).stdout
    assert tiny.lmconsole("export", "-o", "-", "--run", "", cwd=tmp_path, check=0).stdout == table
    (tmp_path / "exports").write_text("in the way")
    assert "cannot be written" in tiny.lmconsole("export", cwd=tmp_path, check=2).stderr
    assert (tmp_path / "exports").read_text() == "in the way"


def test_imported_runs_and_problems_are_in_order_in_a_log(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        (tmp_path / "theirs" / name / "valid_ppl.txt").write_text("90.0\n")
    (tmp_path / "theirs" / "1" / "args.json").write_text('{"model": "gpt1", "layers": 1, "optimizer": "adam"}')
    environment = tiny.environment(tmp_path)
    environment.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(
        [sys.executable, "-m", "lmconsole", "import", "theirs"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first.endswith(": imported from theirs/1")
    assert second.startswith("not imported: theirs/2: ")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m lmconsole list --json | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=tmp_path,
        env=tiny.environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_stores_and_data_can_be_named_by_environment(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    os.rename(tmp_path / "runs", tmp_path / "elsewhere")
    out = tiny.lmconsole("status", cwd=tmp_path, check=0, env={"LMCONSOLE_RUNS": "elsewhere"}).stdout
    assert run.run in out
    info = tiny.lmconsole("data", "info", cwd=tmp_path, check=0, env={"LMCONSOLE_DATA": str(tmp_path / "data")}).stdout
    assert str(tmp_path / "data") in info


@pytest.mark.slow
def test_the_doctor_finds_what_is_present_and_what_is_missing(tmp_path: Path) -> None:
    findings = json.loads(tiny.lmconsole("doctor", "--json", cwd=tmp_path, check=0).stdout)
    verdicts = {finding["what"]: finding["verdict"] for finding in findings}
    assert verdicts["PyTorch"] == verdicts["store"] == verdicts["lmconsole"] == "ok"
    assert verdicts["data"] == "note"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("x")
    shown = tiny.lmconsole("doctor", "--data", "data", cwd=tmp_path, check=0).stdout
    assert re.search(r"^problem +data ", shown, re.MULTILINE)


@pytest.mark.slow
def test_a_measurement_is_shown_saved_and_used_for_estimates(tmp_path: Path) -> None:
    arguments = tiny_arguments(tmp_path)[1:5]  # preset and experiments
    done = tiny.lmconsole("bench", *arguments, cwd=tmp_path, check=0, env={"COLUMNS": "80"})
    assert re.search(r"^LSTM 1L +1 +\S+ +\S+ ms ", done.stdout, re.MULTILINE)
    assert re.search(r"^GPT-1 1L +2 +\S+ +\S+ ms ", done.stdout, re.MULTILINE)
    assert re.search(r"^All 2 runs, .* \(estimated\)$", done.stdout, re.MULTILINE)
    assert not ANSI.search(done.stdout + done.stderr)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert len(list((tmp_path / "cache" / "lmconsole" / "bench").iterdir())) == 1
    assert not (tmp_path / "runs").exists()
    dry = tiny.lmconsole("run", "--all", *tiny_arguments(tmp_path), "--dry-run", cwd=tmp_path, check=0).stdout
    assert re.search(r"^time +about .* for 2 runs, estimated from `lmconsole bench`", dry, re.MULTILINE)
    assert len(re.findall(r" new, about \d+ (?:s|min|h)\b", dry, re.MULTILINE)) == 2

    found = json.loads(tiny.lmconsole("bench", *arguments, "--json", cwd=tmp_path, check=0).stdout)
    validation.check_output(found, "bench")
    assert found["schema"] == 1
    assert [shape["estimated"] for shape in found["shapes"]] == [False, False]


@pytest.mark.slow
def test_a_measurement_can_be_interrupted(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lmconsole", "bench"],
        cwd=tmp_path,
        env=tiny.environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(process.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
    wait_until(lambda: not alive(children[0].pid))
