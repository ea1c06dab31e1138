"""Runs that were never trained: a test chooses what their logs say."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import factories
import msgspec
import tiny

from lmconsole.runs.events import perplexity
from lmconsole.runs.info import write_info
from lmconsole.runs.store import Run, Store


def record(
    root: Path,
    number: int,
    model: str,
    losses: list[tuple[float, float]],
    *,
    optimizer: str = "adam",
    seed: int = 42,
    finish: bool = True,
    device: str = "cpu",
    samples: int = 0,
    process_mib: float | None = None,
    layers: int = 1,
    name: str = "",
    seconds: float = 1.0,
    jobs: int = 1,
    energy_j: float | None = None,
    within: Sequence[Sequence[float]] = (),
    tested: bool = True,
    unigram_ppl: Mapping[str, float] | None = None,
    **settings: Any,
) -> Run:
    """Record a run with these (train, validation) losses in nats, one pair for each epoch.

    Args:
        samples: telemetry samples in each epoch.
        seconds: training time of each epoch.
        energy_j: energy of the whole run, used evenly over the epochs.
        within: validation losses at evaluations within each epoch, spread evenly over its steps.
        tested: whether test perplexities are known: that of the best epoch is its validation perplexity.
        unigram_ppl: perplexity of each split for a unigram model; by default it is unknown.
    """
    run = tiny.queue_tiny(
        root,
        model,
        number=number,
        optimizer=optimizer,
        seed=seed,
        layers=layers,
        name=name,
        jobs=jobs,
        unigram_ppl=unigram_ppl or {},
        **settings,
    )
    factories.append_events(
        run.paths,
        factories.started(
            device=device,
            device_name="CPU" if device == "cpu" else "H100",
            parameters_total=1000 * layers,
            parameters_trainable=1000 * layers,
        ),
    )
    for epoch, (train, valid) in enumerate(losses, 1):
        sample = factories.telemetry(
            epoch=epoch,
            device_used_mib=1000.0 * epoch,
            device_total_mib=80_000.0,
            process_used_mib=process_mib,
            utilization_percent=50.0,
            rss_mib=100.0,
        )
        end = factories.epoch(
            epoch,
            valid,
            train,
            train_s=seconds,
            valid_s=0.1,
            elapsed_train_s=seconds * epoch,
            energy_j=None if energy_j is None else energy_j / len(losses),
        )
        inside = within[epoch - 1] if within else ()
        evaluations = [
            factories.evaluation(
                epoch,
                step,
                loss,
                steps=len(inside) + 1,
                elapsed_train_s=seconds * (epoch - 1 + step / (len(inside) + 1)),
            )
            for step, loss in enumerate(inside, 1)
        ]
        factories.append_events(run.paths, *[sample] * samples, *evaluations, end)
    if finish:
        best = min((valid for _, valid in losses if math.isfinite(valid)), default=None)
        outcome = factories.finished(
            [valid for _, valid in losses],
            test_ppl_final=1.0 if tested else None,
            test_ppl_best=None if best is None or not tested else perplexity(best),
            setup_s=0.0,
            wall_s=1.0,
            diverged=losses[-1][1] != losses[-1][1],
            rss_peak_mib=123.4,
            torch_peak_mib=None if device == "cpu" else 512.0,
            energy_j=energy_j,
        )
        factories.append_events(run.paths, outcome)
    return run


def mark_as_reproduction(run: Run, original: str) -> Run:
    """Return ``run`` as a reproduction of ``original``, which its run.json then names."""
    run.paths.info.unlink()
    write_info(run.paths.info, msgspec.structs.replace(run.info, reproduces=original))
    return Store(run.paths.folder.parent).find(run.run)
