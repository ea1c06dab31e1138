"""Reproductions: what is queued again, and that none takes the place of its original."""

from pathlib import Path
from typing import Any

import factories
import msgspec
import pytest
import recorded
import tiny

from lmconsole.commands.list_experiments import listed_experiments
from lmconsole.commands.results import describe_status
from lmconsole.commands.status import summarize as summarize_run
from lmconsole.engine.digest import reason_of, summarize
from lmconsole.engine.provenance import Captured
from lmconsole.engine.queue import Action
from lmconsole.engine.reproduce import ReproduceAnswer, check_original, queue_reproduction
from lmconsole.errors import ExportError, LmconsoleError
from lmconsole.plan.load import load_plan
from lmconsole.report.captions import describe_group
from lmconsole.report.provenance import _code_items
from lmconsole.report.selection import Exclusion, choose_group
from lmconsole.runs.comparable import comparable, differ_only_in_seed
from lmconsole.runs.events import Failed, Stopped
from lmconsole.runs.info import Checkout, Provenance
from lmconsole.runs.permissions import Permissions
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store, latest_by_experiment

LOSSES = [(4.9, 5.0), (4.2, 4.5)]
NOW = Provenance(
    code_sha256="a" * 64,
    checkout=Checkout(commit="c" * 40, changed=True),
    experiments=None,
    versions={"torch": "2.13.0"},
    platform="Linux",
    cpu="CPU",
    cpu_capability="AVX2",
)


def answer(provenance: Provenance = NOW, device: str = "cpu") -> ReproduceAnswer:
    captured = Captured(provenance=provenance, source_diff=b"+x = 1\n")
    return ReproduceAnswer(device_names=("CPU",), device_keys=(device,), captured=captured)


def queue_one(
    root: Path, original: Run, made_with: ReproduceAnswer | None = None, *, fresh: bool = False
) -> tuple[Action, Run]:
    store = Store(root / "runs")
    action, name = queue_reproduction(store, store.runs(), original, made_with or answer(), fresh=fresh)
    return action, Store(root / "runs").find(name)


@pytest.fixture
def original(tmp_path: Path) -> Run:
    run = recorded.record(tmp_path, 1, "lstm", LOSSES, seed=7, learning_rate=0.5)
    return Store(tmp_path / "runs").find(run.run)


@pytest.fixture
def reproduction(original: Run, tmp_path: Path) -> Run:
    """A finished reproduction, with better results than its original."""
    run = recorded.record(tmp_path, 1, "lstm", [(3.9, 4.0), (3.2, 3.5)], seed=7, learning_rate=0.5, fresh=True)
    return recorded.mark_as_reproduction(run, original.run)


def test_a_reproduction_has_everything_that_decides_the_results_of_its_original(original: Run, tmp_path: Path) -> None:
    action, run = queue_one(tmp_path, original)
    assert (action, run.status) == (Action.NEW, Status.QUEUED)
    own = {"run", "queued_t", "command", "cwd", "version", "provenance", "reproduces"}
    differing = {name for name in run.info.__struct_fields__ if getattr(run.info, name) != getattr(original.info, name)}
    assert {"run", "provenance", "reproduces"} <= differing <= own
    assert run.info.reproduces == original.run
    assert run.info.config_hash == original.info.config_hash
    assert run.info.provenance == NOW
    assert run.paths.source_diff.read_bytes() == b"+x = 1\n"
    assert run.state.queued is not None
    assert original.state.queued is not None
    assert run.state.queued.place > original.state.queued.place
    permission = Permissions(tmp_path / "runs").find(run)
    assert permission is not None
    assert (permission.after.exports, permission.after.on_finish) == (None, ())


def test_it_is_continued_while_code_packages_and_device_stay_the_same(original: Run, tmp_path: Path) -> None:
    _, first = queue_one(tmp_path, original)
    assert queue_one(tmp_path, original)[0] is Action.ACTIVE
    factories.append_events(first.paths, factories.started(), Stopped(epoch=1, step=3))
    action, again = queue_one(tmp_path, original)
    assert (action, again.run, again.status) == (Action.RESUME, first.run, Status.QUEUED)
    factories.append_events(first.paths, factories.started(attempt=2), factories.epoch(1), factories.finished())
    other_commit = msgspec.structs.replace(NOW, checkout=None)
    for same in (answer(), answer(other_commit)):
        action, again = queue_one(tmp_path, original, same)
        assert (action, again.run) == (Action.FINISHED, first.run)
    made = {first.run}
    for changed in ({"code_sha256": "b" * 64}, {"versions": {"torch": "2.14.0"}}, {"cpu_capability": "AVX512"}):
        action, run = queue_one(tmp_path, original, answer(msgspec.structs.replace(NOW, **changed)))
        assert action is Action.NEW, changed
        made.add(run.run)
    assert queue_one(tmp_path, original, answer(device="GPU-1"))[0] is Action.NEW
    assert queue_one(tmp_path, original, fresh=True)[0] is Action.NEW
    assert len(made) == 4


def test_runs_without_a_complete_result_cannot_be_reproduced(tmp_path: Path) -> None:
    queued = tiny.queue_tiny(tmp_path)
    with pytest.raises(LmconsoleError, match=r"queued; only a finished run.*\n`lmconsole watch"):
        check_original(queued)
    for end in (Stopped(epoch=1, step=1), Failed(error="x", message="m", hint="h")):
        factories.append_events(queued.paths, factories.started(), end)
        queued.refresh()
        with pytest.raises(LmconsoleError, match=f"{end.__struct_config__.tag}; .*\n`lmconsole run 1`.* resumes it"):
            check_original(queued)
    info = msgspec.structs.replace(queued.info, origin="imported")
    with pytest.raises(LmconsoleError, match="an imported run"):
        check_original(Run(queued.paths, info))


def test_run_neither_finds_nor_resumes_a_reproduction(original: Run, reproduction: Run, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"seed": 7, "learning_rate": 0.5}
    assert tiny.queue_tiny(tmp_path, **settings).run == original.run
    _, active = queue_one(tmp_path, original, fresh=True)
    assert tiny.queue_tiny(tmp_path, **settings).run == original.run, "not refused as active"
    factories.append_events(active.paths, factories.started(), Stopped(epoch=1, step=3))
    original.paths.folder.rename(tmp_path / "deleted")
    new = tiny.queue_tiny(tmp_path, **settings)
    assert new.run not in (active.run, reproduction.run)
    assert (new.info.reproduces, new.status) == (None, Status.QUEUED)


def test_numbers_and_common_beginnings_name_the_original(original: Run, reproduction: Run, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    assert store.find("1").run == original.run
    assert store.find(original.run[:14]).run == original.run
    assert store.find(reproduction.run).run == reproduction.run
    assert latest_by_experiment(store.runs())[1].run == original.run
    plan = load_plan(tmp_path / "experiments" / "1.toml")
    (listed,) = listed_experiments(plan, latest_by_experiment(store.runs()))
    assert listed.latest_run is not None
    assert listed.latest_run.run == original.run
    original.paths.folder.rename(tmp_path / "deleted")
    with pytest.raises(LmconsoleError, match="experiment 1 has no run"):
        store.find("1")
    assert store.find(reproduction.run[:14]).run == reproduction.run, "nothing else has this beginning"


def test_exports_show_the_original_and_count_the_reproduction(original: Run, reproduction: Run, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    alone = choose_group([run for run in store.runs() if run.run == original.run])
    group = choose_group(store.runs())
    assert [run.run for run in group.runs] == [original.run]
    assert group.reference.run == original.run
    assert group.key == alone.key
    assert [(run.run, why) for run, why in group.excluded] == [(reproduction.run, Exclusion.REPRODUCTION)]
    assert "Excluded runs: 1 trained to reproduce another run." in describe_group(group)
    with pytest.raises(ExportError, match=f"a reproduction.*\n.*{original.run}"):
        choose_group(store.runs(), run_id=reproduction.run)
    with pytest.raises(ExportError, match="nothing to export"):
        choose_group([run for run in store.runs() if run.run == reproduction.run])


def test_a_reproduction_is_no_seed_and_never_the_best(original: Run, reproduction: Run, tmp_path: Path) -> None:
    assert comparable(original.info, reproduction.info)
    assert not differ_only_in_seed(original.info, reproduction.info)
    assert not differ_only_in_seed(reproduction.info, reproduction.info)
    store = Store(tmp_path / "runs")
    digest = summarize(store, [reproduction], store.runs())
    assert [each.run for each in digest.best] == [original.run]
    assert digest.runs[0].reproduces == original.run
    assert "seed 7, reproduction" in digest.text


def test_a_reproduction_is_marked_wherever_runs_are_listed(original: Run, reproduction: Run) -> None:
    assert describe_status(original).plain == "finished"
    assert describe_status(reproduction).plain == "finished, reproduction"
    assert summarize_run(original).reproduces is None
    assert summarize_run(reproduction).reproduces == original.run
    factories.append_events(reproduction.paths, factories.queued(place=9), Stopped(epoch=1, step=1))
    reproduction.refresh()
    assert f"`lmconsole reproduce {reproduction.run}`" in str(reason_of(reproduction))


def test_the_report_names_code_and_commits(tmp_path: Path) -> None:
    runs = []
    for number, changed in ((1, False), (2, True)):
        run = recorded.record(tmp_path, number, "lstm", LOSSES)
        own = Checkout(commit="e" * 40, changed=None)
        made_with = msgspec.structs.replace(NOW, checkout=Checkout(commit="c" * 40, changed=changed), experiments=own)
        info = msgspec.structs.replace(run.info, provenance=made_with)
        run.refresh()
        assert run.state.started is not None
        run.state.started = msgspec.structs.replace(run.state.started, code_sha256=NOW.code_sha256)
        runs.append(Run(run.paths, info, run.state))
    assert _code_items(choose_group(runs)) == [
        "Code: SHA-256 aaaaaaaaaaaa, commit cccccccccccc.",
        "Code: SHA-256 aaaaaaaaaaaa, commit cccccccccccc, with uncommitted changes.",
        "experiments.toml: commit eeeeeeeeeeee, changes unknown.",
    ]
