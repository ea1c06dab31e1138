"""Progress and stops on a GPU whose launches return at once, and the limit of outstanding launches."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tiny
import torch
from lm.training import Clock, context

from lmconsole.lm import launch_limit, loop, throughput
from lmconsole.lm.launch_limit import MAX_AHEAD, LaunchLimiter, launches_ahead, record_event
from lmconsole.lm.loop import Training, train
from lmconsole.lm.model import LanguageModel
from lmconsole.lm.steps import Steps
from lmconsole.runs.store import Run

pytestmark = pytest.mark.slow


def test_a_cpu_is_never_waited_for() -> None:
    assert record_event("cpu") is None
    LaunchLimiter("cpu").after_launch()


@pytest.mark.parametrize(("launch_s", "ahead"), [(0.0, 16), (0.0023, 16), (0.02, 5), (0.03, 3), (0.2, 2)])
def test_slow_launches_may_be_a_tenth_of_a_second_ahead_but_two_always(launch_s: float, ahead: int) -> None:
    assert launches_ahead(launch_s) == ahead


@pytest.mark.gpu
def test_a_gpu_has_at_most_sixteen_outstanding_launches() -> None:
    x, events = torch.randn(2048, 2048, device="cuda:0"), []
    limiter = LaunchLimiter("cuda:0")
    for _ in range(100):
        x = torch.mm(x, x).clamp(-1.0, 1.0)
        events.append(torch.cuda.Event())
        events[-1].record()
        assert sum(not event.query() for event in events) <= MAX_AHEAD
        limiter.after_launch()
    assert limiter._allowed > 2


class InstantGpu:
    """Simulates a GPU: a launch returns at once and adds ``launch_s`` to a queue, for which events and losses wait.

    Time is that of ``clock``. Each launch takes 20 µs of the host.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Clock, launch_s: float) -> None:
        self.clock, self.launch_s = clock, launch_s
        self.done_s: list[float] = []
        """When each launch is, or will be, finished."""
        self.deepest = 0
        """Most launches outstanding at once."""
        item = torch.Tensor.item

        def step(steps: Steps, _: float | None) -> int:
            self.launch()
            return steps.batch_size * len(steps.split._offsets)

        def loss_sum(*_: object) -> torch.Tensor:
            self.launch()
            return torch.zeros(())

        def waiting_item(tensor: torch.Tensor) -> float:
            self.synchronize()
            return item(tensor)

        monkeypatch.setattr(Steps, "step", step)
        monkeypatch.setattr(LanguageModel, "loss_sum", loss_sum)
        monkeypatch.setattr(torch.Tensor, "item", waiting_item)
        monkeypatch.setattr(launch_limit, "record_event", lambda _: InstantEvent(self, self.done_s[-1]))

    def launch(self) -> None:
        self.clock.now_s += 20e-6
        start = max(self.clock.now_s, self.done_s[-1] if self.done_s else 0.0)
        self.done_s.append(start + self.launch_s)
        oldest = len(self.done_s)
        while oldest and self.done_s[oldest - 1] > self.clock.now_s:
            oldest -= 1
        self.deepest = max(self.deepest, len(self.done_s) - oldest)

    def synchronize(self) -> None:
        self.clock.now_s = max(self.clock.now_s, self.done_s[-1] if self.done_s else 0.0)


@dataclass(frozen=True)
class InstantEvent:
    gpu: InstantGpu
    at_s: float

    def synchronize(self) -> None:
        self.gpu.clock.now_s = max(self.gpu.clock.now_s, self.at_s)

    def elapsed_time(self, later: "InstantEvent") -> float:
        assert max(self.at_s, later.at_s) <= self.gpu.clock.now_s, "CUDA refuses while one is not reached"
        return (later.at_s - self.at_s) * 1000


@dataclass
class Simulated:
    """Times of a run on an ``InstantGpu``."""

    gpu: InstantGpu
    reports: list[tuple[int, int, float]] = field(default_factory=list)
    """Epoch, step and time of each progress event."""
    epochs_began: list[float] = field(default_factory=list)
    saved: list[float] = field(default_factory=list)
    """When the GPU was idle, so that the state of a checkpoint could be copied."""

    def gaps(self) -> Iterator[float]:
        """Yield the seconds between progress events of an epoch, and from its start to the first."""
        for i, began in enumerate(self.epochs_began, 1):
            times = [began, *(t for epoch, _, t in self.reports if epoch == i)]
            yield from (later - earlier for earlier, later in itertools.pairwise(times))


def simulate(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch, launch_s: float, stop_s: float = math.inf
) -> Simulated:
    """Train ``run`` from the start on an ``InstantGpu``, and request a stop at ``stop_s``."""
    clock = Clock()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", clock)
        simulated = Simulated(InstantGpu(patched, clock, launch_s))
        report = Training._report

        def reported(self: Training, *arguments: float) -> None:
            simulated.reports.append((self.state.epoch, self.state.step, clock.now_s))
            report(self, *arguments)

        def saved(_: Training) -> None:
            simulated.gpu.synchronize()  # as copying the state from a GPU would
            simulated.saved.append(clock.now_s)

        def entered(phase: str, _: int | None) -> None:
            if phase == "train":
                simulated.epochs_began.append(clock.now_s)

        patched.setattr(Training, "_report", reported)
        patched.setattr(Training, "_save", saved)
        asked = context(run, root, stop=lambda: clock.now_s >= stop_s)
        train(replace(asked, enter_phase=entered), 0.0)
    run.refresh()
    return simulated


def queue_long(root: Path) -> Run:
    """Queue a run of two epochs of some 400 steps, with evaluations of some 50 batches."""
    return tiny.queue_tiny(root, epochs=2, batch_size=1, window_tokens=2)


@pytest.mark.parametrize("launch_s", [0.0001, 0.002, 0.005, 0.030])
def test_progress_comes_twice_a_second_however_soon_a_launch_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch_s: float
) -> None:
    simulated = simulate(queue_long(tmp_path), tmp_path, monkeypatch, launch_s)
    assert simulated.gpu.deepest <= MAX_AHEAD
    assert max(simulated.gaps()) <= 0.7
    last = max(step for _, step, _ in simulated.reports)
    ticks = [t for _, step, t in simulated.reports if step != last]
    assert all(later - earlier >= loop.TICK_S for earlier, later in itertools.pairwise(ticks))


@pytest.mark.parametrize("launch_s", [0.005, 0.030])
def test_a_stop_takes_less_than_a_second_however_soon_a_launch_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch_s: float
) -> None:
    run = queue_long(tmp_path)
    whole = simulate(run, tmp_path, monkeypatch, launch_s)
    for i in range(60):  # in training, validation and tests
        stop_s = i / 60 * (whole.gpu.done_s[-1] - 1.0)
        stopped = simulate(run, tmp_path, monkeypatch, launch_s, stop_s)
        assert run.status == "stopped"
        assert stopped.saved[-1] - stop_s <= 1.0


@pytest.mark.parametrize("launch_s", [0.005, 0.030])
def test_the_throughput_of_a_gpu_whose_launches_return_at_once_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch_s: float
) -> None:
    settings = tiny.queue_tiny(tmp_path).info.settings
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(throughput, "time", clock)
    InstantGpu(monkeypatch, clock, launch_s)
    measured = throughput.measure_throughput(settings, 300, "cpu", for_s=2.0, at_most_s=60.0)
    assert measured is not None
    tokens = settings.batch_size * settings.window_tokens
    assert measured.tokens_per_s == pytest.approx(tokens / launch_s, rel=0.05)
    assert clock.now_s <= 4.0
