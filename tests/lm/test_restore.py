"""Checkpoints that others may have changed: valid in every part, or set aside and the previous one used."""

import copy
import dataclasses
import errno
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lm.training import context, next_attempt, trained

from lmconsole.errors import TrainingError
from lmconsole.lm import checkpoint, loop, restore
from lmconsole.lm.checkpoint import CheckpointWriter
from lmconsole.lm.loop import Training, train
from lmconsole.lm.model import build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.lm.read_checkpoint import Checkpoint, Expected, read_checkpoint
from lmconsole.lm.restore import find_checkpoint
from lmconsole.lm.steps import Steps
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.state import RunState
from lmconsole.runs.store import Run

pytestmark = pytest.mark.slow

KINDS = [("lstm", "adam"), ("gpt1", "adamw"), ("lstm", "momentum"), ("gpt1", "sgd")]
STEPS = 25
"""Steps in an epoch."""
DONE = STEPS + 3
"""Steps done in the checkpoint."""
Content = dict[str, Any]


def stop_after(run: Run, root: Path, steps: int) -> None:
    """Train for so many steps and stop, with a checkpoint at every step."""
    taken = 0
    real, submit = Steps.step, CheckpointWriter.submit

    def step(self: Steps, learning_rate: float | None) -> int:
        nonlocal taken
        taken += 1
        return real(self, learning_rate)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "TICK_S", 0.0)
        patched.setattr(checkpoint, "save_interval_s", lambda write_s: 0.0)
        patched.setattr(CheckpointWriter, "submit", lambda self, *more: (submit(self, *more), self.join())[1])
        patched.setattr(Steps, "step", step)
        train(next_attempt(run, root, stop=lambda: taken >= steps))
    run.refresh()
    assert run.status == "stopped"


def stopped(root: Path, model: str, optimizer: str) -> Run:
    run = tiny.queue_tiny(root, model, optimizer=optimizer, dropout=0.1)
    stop_after(run, root, DONE)
    assert run.state.position == (2, DONE - STEPS)
    return run


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return stopped(tmp_path_factory.mktemp("run"), *request.param)


@pytest.fixture(scope="module")
def content(run: Run) -> Content:
    found: Content = torch.load(run.paths.checkpoint, weights_only=True)
    return found


EXPECTED: dict[str, Expected] = {}
"""Requirements of a checkpoint, by the hash of its run. Computing them takes half as long as reading a checkpoint."""


def expected(run: Run) -> Expected:
    if run.info.config_hash not in EXPECTED:
        EXPECTED[run.info.config_hash] = Expected.of(run.info)
    return EXPECTED[run.info.config_hash]


def read_changed(run: Run, folder: Path, content: Content) -> Checkpoint:
    torch.save(content, folder / "changed.pt")
    return read_checkpoint(folder / "changed.pt", expected(run))


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each part of a checkpoint."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, each in items:
        yield (*path, key)
        yield from places(each, (*path, key))


def changed(content: Content, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Content:
    """Return the checkpoint with ``change(container, key)`` made at a place; what contains it is copied. A tuple is
    replaced by a list."""
    found = copy.copy(content)
    at: Any = found
    for key in place[:-1]:
        at[key] = list(at[key]) if isinstance(at[key], tuple) else copy.copy(at[key])
        at = at[key]
    change(at, place[-1])
    return found


def same_training(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether training goes on alike from both."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.equal(b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return bool(a == b) and type(a) is type(b)

    states = [
        {field.name: getattr(each.state, field.name) for field in dataclasses.fields(each.state)}
        for each in (one, other)
    ]
    parts = [(each.model, each.optimizer, each.shuffle, each.random, each.random_cuda) for each in (one, other)]
    return same(*states) and all(map(same, *parts))


def test_a_checkpoint_is_read_as_it_was_saved(run: Run) -> None:
    found = read_checkpoint(run.paths.checkpoint, Expected.of(run.info))
    saved = torch.load(run.paths.checkpoint, weights_only=True)
    assert found.state.epoch == 2
    assert found.state.step == DONE - STEPS
    assert found.state.best_epoch == 1
    assert all(found.model[name].equal(weight) for name, weight in saved["model"].items())
    for position, state in saved["optimizer"]["state"].items():
        for name, value in state.items():
            assert value is None or found.optimizer[position][name].equal(value)
    assert found.shuffle.equal(saved["shuffle"])
    assert found.random.equal(saved["random"])


def wrong_tensors(tensor: torch.Tensor) -> Iterator[tuple[str, object]]:
    """Yield what could be in a tensor's place."""
    flat = tensor.reshape(-1)
    yield "longer", torch.cat([flat, flat[:1]])
    yield "shorter", flat[: max(len(flat) - 1, 0)].clone()
    yield "empty", flat[:0].clone()
    yield "one more dimension", tensor[None].clone()
    if tensor.ndim != 1:
        yield "flat", flat.clone()
    if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]:
        yield "transposed", tensor.T.contiguous()
    if tensor.ndim == 2:
        yield "transposed in memory", tensor.T.contiguous().T
    if tensor.numel() > 1:
        yield "one value repeated", flat[:1].expand(tensor.numel()).view(tensor.shape)
    for dtype in (torch.float64, torch.bfloat16, torch.float32, torch.int64):
        if dtype != tensor.dtype:
            yield str(dtype), tensor.to(dtype)
    yield "complex", tensor.to(torch.complex64)
    yield "sparse", tensor.to_sparse()
    yield "parameter", torch.nn.Parameter(tensor) if tensor.is_floating_point() else torch.zeros(3)
    others: list[object] = [None, 0, 1.5, "text", [], {}, (1,)]
    yield from ((repr(value), value) for value in others)


NUMBERS = [-5, -1, -(10**30), 10**30, 2**63, -0.5, math.nan, math.inf, -math.inf, True, "1", None, [1], {}]


def wrong_values(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, torch.Tensor):
        yield from wrong_tensors(value)
    elif isinstance(value, dict | list | tuple):
        others: list[object] = [None, 1, "text", [], {}, [value]]
        yield from ((repr(other)[:20], other) for other in others)
    else:
        yield from ((repr(other), other) for other in NUMBERS)


TURNS = 4
HARMLESS = (("optimizer", "param_groups"), ("tables_sha256",))
"""Parts that are not used: options follow from the settings, and a hash is for people."""


@pytest.mark.slow
def test_no_part_of_a_checkpoint_can_have_another_shape_type_or_value(
    run: Run, content: Content, tmp_path: Path
) -> None:
    """Training from a checkpoint that was accepted goes on as from the one that was saved."""
    original = read_checkpoint(run.paths.checkpoint, expected(run))
    weights = content["model"].keys()
    seen: Counter[tuple[object, ...]] = Counter()
    tried = refused = 0
    for place in places(content):
        at: Any = content
        for key in place:
            at = at[key]
        wrong = list(wrong_values(at))
        # Of parts that differ only in the weight they are of, the first gets every value, and the others take turns.
        names = tuple(key for key in place if isinstance(key, str) and key not in weights)
        kind = names, type(at), getattr(at, "ndim", None), len(wrong)
        chosen = wrong if not seen[kind] else wrong[seen[kind] % TURNS :: TURNS]
        seen[kind] += 1
        for name, value in chosen:
            tried += 1

            def put(container: Any, key: Any, value: object = value) -> None:
                container[key] = value

            try:
                found = read_changed(run, tmp_path, changed(content, place, put))
            except Exception:
                refused += 1
                continue
            assert same_training(found, original), (place, name)
    assert refused > tried / 2 > 100


@pytest.mark.slow
def test_no_part_can_be_dropped_or_added(run: Run, content: Content, tmp_path: Path) -> None:
    original = read_checkpoint(run.paths.checkpoint, expected(run))

    def drop(container: Any, key: Any) -> None:
        del container[key]

    def add(container: Any, key: Any) -> None:
        if isinstance(container, dict):
            container["another" if isinstance(key, str) else 10_000] = container[key]
        else:
            container.append(container[key])

    def rename(container: Any, key: Any) -> None:
        if isinstance(container, dict):
            container[f"{key}x"] = container.pop(key)

    optional = {"energy_j", "epoch_energy_j"}
    for place in places(content):
        for change in (drop, add, rename):
            try:
                found = read_changed(run, tmp_path, changed(content, place, change))
            except Exception:
                continue
            unused = any(place[: len(part)] == part for part in HARMLESS)
            assert unused or place[-1] in optional, (place, change.__name__)
            assert same_training(found, original), (place, change.__name__)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["cursor"]["permutation"].__setitem__(0, c["cursor"]["permutation"][1]),
        lambda c: c["cursor"]["permutation"].__setitem__(0, -1),
        lambda c: c["cursor"]["permutation"].__setitem__(0, 10**6),
        lambda c: c["cursor"].update(epoch=4),
        lambda c: c["cursor"].update(epoch=3),
        lambda c: c["cursor"].update(epoch=1),
        lambda c: c["cursor"].update(step=0),
        lambda c: c["cursor"].update(step=c["cursor"]["step"] + 1),
        lambda c: c["cursor"].update(epoch_targets=c["cursor"]["epoch_targets"] + 1),
        lambda c: c["cursor"].update(best_epoch=2),
        lambda c: c["cursor"].update(best_epoch=0),
        lambda c: c["cursor"].update(best_epoch=None),
        lambda c: c["cursor"].update(best_weights=None),
        lambda c: c["cursor"].update(elapsed_train_s=1e300),
        lambda c: c["shuffle"].zero_(),
        lambda c: c["random"].fill_(255),
        lambda c: c["shuffle"][16:24].copy_(torch.tensor([624, 0, 0, 0, 0, 0, 0, 0])),
        lambda c: c.update(random_cuda=torch.ones(16, dtype=torch.uint8)),
        lambda c: c.update(random_cuda=torch.zeros(17, dtype=torch.uint8)),
        lambda c: c.__setitem__("same_run", "another"),
        lambda c: c.update(schema=2),
    ],
)
def test_what_does_not_fit_together_is_refused(
    run: Run, content: Content, tmp_path: Path, change: Callable[[Content], object]
) -> None:
    other = copy.deepcopy(content)
    assert read_changed(run, tmp_path, other) is not None
    change(other)
    with pytest.raises((ValueError, RuntimeError)):
        read_changed(run, tmp_path, other)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_an_optimizer_that_has_done_other_steps_is_refused(tmp_path: Path, optimizer: str) -> None:
    run = stopped(tmp_path, "lstm", optimizer)
    content = torch.load(run.paths.checkpoint, weights_only=True)
    assert {float(state["step"]) for state in content["optimizer"]["state"].values()} == {DONE}
    content["optimizer"]["state"][2]["step"] += 1
    with pytest.raises(ValueError, match=r"optimizer\.state\.2\.step is 29, expected 28"):
        read_changed(run, tmp_path, content)


def test_a_loss_that_is_not_finite_needs_weights_that_are_not(run: Run, content: Content, tmp_path: Path) -> None:
    """A run that diverges in the middle of an epoch and is stopped there resumes."""
    diverged = copy.deepcopy(content)
    diverged["cursor"]["epoch_nll"] = math.nan
    with pytest.raises(ValueError, match="epoch_nll"):
        read_changed(run, tmp_path, diverged)
    next(iter(diverged["model"].values())).view(-1)[0] = math.nan
    assert math.isnan(read_changed(run, tmp_path, diverged).state.epoch_nll)


@pytest.mark.parametrize("captured", [False, True])
def test_a_checkpoint_from_before_the_first_step_is_valid(tmp_path: Path, captured: bool) -> None:
    """There is no state of the optimizer yet, or the zeros with which a captured step starts."""
    run = tiny.queue_tiny(tmp_path)
    training = Training(context(run, tmp_path))
    training.prepare_on_device()
    training._started_s = training._earlier_wall_s = 0.0
    if captured:
        training.steps.start_epoch(torch.arange(len(training.splits["train"])), 0, 0.0)
        training.steps.step(None)
        for state in training.optimizer.state.values():
            for value in state.values():
                value.zero_()
    training._save()
    training.writer.wait()
    found = read_checkpoint(run.paths.checkpoint, Expected.of(run.info))
    assert (found.state.epoch, found.state.step, bool(found.optimizer)) == (1, 0, captured)


def test_the_state_of_a_generator_has_the_layout_that_is_checked() -> None:
    generator = torch.Generator().manual_seed(7)
    seen = set()
    for _ in range(1300):
        state = generator.get_state()
        left, following = state[8:12].view(torch.int32).item(), state[16:24].view(torch.int64).item()
        assert left + following == 625 or (left, following) == (1, 0)
        seen.add(left)
        torch.randperm(2, generator=generator)
    assert seen >= set(range(1, 625))


def test_all_weights_are_contiguous(run: Run) -> None:
    """The kernels of an optimizer read its state in the order of memory."""
    model = build_model(run.info.settings, vocabulary=run.info.corpus.vocabulary, tables=None)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    build_optimizer(run.info.settings, model.parameters())


# ---- finding one


@pytest.fixture
def two(tmp_path: Path) -> Run:
    """A stopped run with two checkpoints."""
    run = stopped(tmp_path, "lstm", "adam")
    assert run.paths.previous_checkpoint.exists()
    return run


def find(run: Run, *, log_damaged: bool = False) -> restore.Found:
    history = RunState()
    history.apply(EventReader(run.paths.events).read_new())
    return find_checkpoint(run.paths, run.info, history, log_damaged=log_damaged)


def names(run: Run) -> set[str]:
    return {path.name for path in run.paths.folder.iterdir() if path.name.startswith("checkpoint")}


def make_bad(path: Path, kind: str) -> None:
    if kind == "other content":
        content = torch.load(path, weights_only=True)
        content["cursor"]["epoch"] = -5
        torch.save(content, path)
        return
    data = path.read_bytes()
    path.unlink()
    match kind:
        case "empty":
            path.touch()
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "text":
            path.write_text("not a checkpoint")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("/dev/zero")


BAD = ["other content", "empty", "cut", "text", "pipe", "folder", "link"]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_checkpoint_is_set_aside_and_the_previous_one_used(
    two: Run, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bad(two.paths.checkpoint, kind)
    found = find(two)
    assert found.checkpoint is not None
    assert found.checkpoint.state.step == DONE - STEPS - 1
    assert len(found.reasons) == 1
    assert found.require(two.info, two.paths.folder) is found.checkpoint
    assert names(two) == {"checkpoint.pt.damaged", "checkpoint-previous.pt"}
    assert "checkpoint.pt cannot be used: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", BAD)
def test_a_run_with_only_bad_checkpoints_fails_and_names_fresh(two: Run, kind: str) -> None:
    for path in (two.paths.checkpoint, two.paths.previous_checkpoint):
        make_bad(path, kind)
    for reasons in (2, 0):  # and again: it does not start over in silence the next time
        found = find(two)
        assert found.checkpoint is None
        assert len(found.reasons) == reasons
        with pytest.raises(TrainingError, match=r"run 1 --fresh") as raised:
            found.require(two.info, two.paths.folder)
        assert raised.value.kind == "checkpoint"
    assert names(two) == {"checkpoint.pt.damaged", "checkpoint-previous.pt.damaged"}


def test_a_run_without_a_checkpoint_starts_at_its_first_step(two: Run) -> None:
    for path in (two.paths.checkpoint, two.paths.previous_checkpoint):
        path.unlink()
    assert find(two) == restore.NOTHING_FOUND
    assert find(two).require(two.info, two.paths.folder) is None


def test_only_the_previous_one_is_there_if_a_process_dies_between_two_renamings(two: Run) -> None:
    two.paths.checkpoint.unlink()
    found = find(two)
    assert found.checkpoint is not None
    assert found.reasons == ()


def test_checkpoints_that_were_set_aside_are_never_replaced(two: Run) -> None:
    whole = two.paths.checkpoint.read_bytes()
    for content in (b"first", b"second", b"third"):
        two.paths.checkpoint.write_bytes(content)
        assert find(two).checkpoint is not None
    kept = {path.name: path.read_bytes() for path in two.paths.folder.glob("*.damaged*")}
    assert kept == {
        "checkpoint.pt.damaged": b"first",
        "checkpoint.pt.damaged-2": b"second",
        "checkpoint.pt.damaged-3": b"third",
    }
    two.paths.checkpoint.write_bytes(whole)
    assert find(two).reasons == ()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken disk"), MemoryError(), OSError(errno.EACCES, "no")])
def test_a_checkpoint_that_cannot_be_read_now_stays_where_it_is(
    two: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(restore, "read_checkpoint", fail)
    with pytest.raises(TrainingError, match="cannot be read"):
        find(two)
    assert names(two) == {"checkpoint.pt", "checkpoint-previous.pt"}


def rewrite_log(run: Run, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = run.paths.events.read_bytes().splitlines(keepends=True)
    run.paths.events.write_bytes(b"".join(change(lines)))


def epoch_line(lines: list[bytes]) -> int:
    (index,) = [index for index, line in enumerate(lines) if b'"kind":"epoch"' in line]
    return index


def test_a_damaged_epoch_in_the_log_does_not_condemn_a_checkpoint(two: Run) -> None:
    def zero(lines: list[bytes]) -> list[bytes]:
        lines[epoch_line(lines)] = b"\0" * 40 + b"\n"
        return lines

    rewrite_log(two, zero)
    assert find(two, log_damaged=True).checkpoint is not None
    assert find(two, log_damaged=False).checkpoint is None


@pytest.mark.parametrize("log_damaged", [False, True])
def test_a_log_that_ends_before_the_checkpoint_does_not_belong_to_it(two: Run, log_damaged: bool) -> None:
    rewrite_log(two, lambda lines: lines[: epoch_line(lines)])
    found = find(two, log_damaged=log_damaged)
    assert found.checkpoint is None
    assert "the event log does not contain" in found.reasons[0]


def test_a_log_that_lost_its_end_and_went_on_does_not_belong_to_the_checkpoint(two: Run) -> None:
    """Its numbers have no gap, but it lacks an epoch."""

    def renumber(lines: list[bytes]) -> list[bytes]:
        index = epoch_line(lines)
        old = lines[index].partition(b'"seq":')[2].partition(b",")[0]
        others = lines[1] * 50
        return [*lines[:index], *others.replace(b'"seq":2', b'"seq":' + old).splitlines(keepends=True)]

    rewrite_log(two, renumber)
    seqs = iter(range(1, 1000))
    rewrite_log(two, lambda lines: [_numbered(line, next(seqs)) for line in lines])
    assert find(two).checkpoint is None


def _numbered(line: bytes, seq: int) -> bytes:
    before, mark, after = line.partition(b'"seq":')
    return before + mark + str(seq).encode() + after[after.index(b",") :]


def test_nothing_reaches_the_model_before_everything_is_valid(two: Run, tmp_path: Path) -> None:
    content = torch.load(two.paths.checkpoint, weights_only=True)
    content["random"].zero_()  # the last part that is read
    for path in (two.paths.checkpoint, two.paths.previous_checkpoint):
        torch.save(content, path)
    with pytest.raises(TrainingError, match="--fresh"):
        Training(context(two, tmp_path))


def test_a_run_resumes_from_the_previous_checkpoint_to_the_same_bits(two: Run, tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone", optimizer="adam", dropout=0.1)
    make_bad(two.paths.checkpoint, "other content")
    train(next_attempt(two, tmp_path))
    two.refresh()
    assert two.status == "finished"
    for one, other in zip(two.state.epochs, alone.state.epochs, strict=True):
        assert (one.train_loss_nats, one.valid_loss_nats) == (other.train_loss_nats, other.valid_loss_nats)
    assert two.state.finished is not None
    assert alone.state.finished is not None
    assert two.state.finished.test_ppl_final == alone.state.finished.test_ppl_final
