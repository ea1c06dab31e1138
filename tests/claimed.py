"""Stores with registered claims whose runs were never trained: a test chooses how they end."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import factories
import msgspec
import tiny
from factories import append_events

from lmconsole.claims.evaluate import ClaimedContrast, EvaluatedClaims, evaluate
from lmconsole.engine.probe import ProbeAnswer
from lmconsole.engine.queue import enqueue
from lmconsole.engine.register import all_runs, claimed_runs, register
from lmconsole.plan.claims import Claim
from lmconsole.runs.events import Queued, perplexity
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.store import Store

SEEDS = (1, 2, 3, 4, 5)
QUEUED = Queued(devices=("cpu",), jobs=1)


def claim(**changes: object) -> Claim:
    """Return a claim on experiments 1 and 2."""
    plain = Claim(contrasts=(((1,), (2,)),), seeds={1: SEEDS, 2: SEEDS})
    return msgspec.structs.replace(plain, **changes)


def answer_for(root: Path, *claims: Claim, **settings: Any) -> ProbeAnswer:
    """Return what the probe says of the experiments of claims. Those from 11 on have learning rates of their own, and
    those from 21 on SGD, as experiment 2 has. Token frequencies are unknown unless they are among the ``settings``."""
    settings.setdefault("unigram_ppl", {})
    ids = dict.fromkeys(id_ for each in claims for id_ in each.experiments)
    return ProbeAnswer(
        preset="tiny",
        reason="test",
        devices=("cpu",),
        device_names=("CPU",),
        device_keys=("cpu",),
        runs=tuple(
            tiny.resolved_tiny(
                root,
                number=id_,
                optimizer="sgd" if id_ == 2 or id_ > 20 else "adam",
                **({"learning_rate": 1e-4 * id_} | settings if id_ > 10 else settings),
            )
            for id_ in ids
        ),
        claims=claims,
    )


class Box:
    """A store with registered claims, whose runs end as a test says."""

    def __init__(self, root: Path, *claims: Claim, **settings: Any) -> None:
        self.root, self.store = root, Store(root / "runs")
        self.answer = answer_for(root, *claims, **settings)
        self.registration, self.new = register(self.store, self.answer, "claims.toml")

    def queue(self, fresh: bool = False) -> dict[tuple[int, int], str]:
        """Queue what the claims need, and return the runs by experiment and seed."""
        done = enqueue(
            self.store,
            claimed_runs(self.answer),
            QUEUED,
            fresh=fresh,
            refuse_active=False,
            after_place=self.registration.place,
        )
        return {(each.resolved.experiment.id, each.resolved.seed): str(each.run) for each in done}

    def finish(self, run: str, test_nll: float, *losses: float) -> None:
        """Let a run end with a test loss, after epochs with these validation losses."""
        losses = losses or (5.0,)
        epochs = [event for number, loss in enumerate(losses, 1) for event in factories.epoch_events(number, loss)]
        end = factories.finished(losses, test_ppl_best=perplexity(test_nll), diverged=not math.isfinite(test_nll))
        append_events(RunPaths(self.store.root / run), factories.started(), *epochs, end)

    def finish_all(
        self, *, first: float = 4.0, second: float = 5.0, losses: Mapping[int, tuple[float, ...]] | None = None
    ) -> list[str]:
        """Let all runs of experiments 1 and 2 end with these test losses, which vary a little over the seeds, and with
        these validation losses of their epochs. Return the runs."""
        runs = self.queue()
        for (id_, seed), run in runs.items():
            self.finish(run, (first if id_ == 1 else second) + 0.01 * seed, *(losses or {}).get(id_, (5.0, 4.9)))
        return list(runs.values())

    def result(self) -> EvaluatedClaims:
        return evaluate(self.registration, all_runs(Store(self.store.root)))

    def contrast(self) -> ClaimedContrast:
        (found,) = self.result().contrasts
        return found
