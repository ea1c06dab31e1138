"""Tiny runs trained in the test's own process, and a clock that tests move."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from lmconsole.data.corpus import load_corpus
from lmconsole.lm.loop import TrainingContext, train
from lmconsole.lm.restore import find_checkpoint
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Started
from lmconsole.runs.state import RunState
from lmconsole.runs.store import Run


def context(run: Run, root: Path, *, stop: Callable[[], bool] = lambda: False) -> TrainingContext:
    corpus = load_corpus("tokens", root / "data", vocabulary=run.info.settings.vocabulary, cache=root / "cache")
    history = RunState()
    history.apply(EventReader(run.paths.events).read_new())
    return TrainingContext(
        info=run.info,
        paths=run.paths,
        log=EventLog(run.paths.events),
        history=history,
        found=find_checkpoint(run.paths, run.info, history),
        device="cpu",
        corpus=corpus,
        tables=None,
        stop_requested=stop,
        enter_phase=lambda phase, epoch: None,
        end_telemetry=lambda: None,
    )


def next_attempt(run: Run, root: Path, *, stop: Callable[[], bool] = lambda: False) -> TrainingContext:
    """Start another attempt at ``run`` in its log, as a worker does."""
    run.refresh()
    log = EventLog(run.paths.events)
    log.append(
        Started(
            attempt=run.state.attempt + 1, pid=1, host="h", device="cpu", device_name="CPU", device_uuid=None,
            versions={}, threads=1, precision="fp32", parameters_total=1, parameters_trainable=1,
        )
    )  # fmt: skip
    log.close()
    return context(run, root, stop=stop)


def trained(root: Path, model: str = "lstm", **settings: Any) -> Run:
    run = tiny.queue_tiny(root, model, **settings)
    torch.set_num_threads(1)
    train(context(run, root))
    run.refresh()
    return run


class Clock:
    """Replaces the module ``time``; moves only when a test moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def advance_in(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, seconds: float) -> None:
        """Make every call of the function ``owner.name`` take ``seconds``."""
        real = getattr(owner, name)

        def timed(*arguments: Any, **more: Any) -> Any:
            self.now_s += seconds
            return real(*arguments, **more)

        monkeypatch.setattr(owner, name, timed)
