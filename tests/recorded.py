"""Runs that were never trained: their logs say what a test wants them to have measured."""

from pathlib import Path

import tiny

from lmconsole.runs.events import Epoch, EventLog, Finished, Started, Telemetry, perplexity
from lmconsole.runs.store import Run


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
    **settings: object,
) -> Run:
    """A run whose log says that it trained with these (train, validation) losses in nats, an epoch each, and used
    ``energy_j`` in all, the same in each epoch."""
    run = tiny.queue_tiny(
        root, model, number=number, optimizer=optimizer, seed=seed, layers=layers, name=name, jobs=jobs, **settings
    )
    log = EventLog(run.paths.events)
    log.append(
        Started(
            attempt=1, pid=1, host="h", device=device, device_name="CPU" if device == "cpu" else "H100",
            device_uuid=None, versions={"lmconsole": "1.2.3", "torch": "2.13.0"}, threads=1, precision="fp32",
            parameters_total=1000 * layers, parameters_trainable=1000 * layers,
        )
    )  # fmt: skip
    for epoch, (train, valid) in enumerate(losses, 1):
        for _ in range(samples):
            log.append(
                Telemetry(
                    phase="train", epoch=epoch, device_used_mib=1000.0 * epoch, device_total_mib=80_000.0,
                    process_used_mib=process_mib, utilization_percent=50.0, rss_mib=100.0,
                )
            )  # fmt: skip
        log.append(
            Epoch(epoch=epoch, train_loss_nats=train, train_ppl=perplexity(train), valid_loss_nats=valid,
                valid_ppl=perplexity(valid), train_s=seconds, valid_s=0.1, elapsed_train_s=seconds * epoch,
                energy_j=None if energy_j is None else energy_j / len(losses),
            )
        )  # fmt: skip
    if finish:
        last = losses[-1][1]
        log.append(
            Finished(
                test_ppl_final=1.0, test_ppl_best=1.0, best_epoch=1, best_valid_ppl=1.0, setup_s=0.0, wall_s=1.0,
                diverged=last != last, rss_peak_mib=123.4, torch_peak_mib=None if device == "cpu" else 512.0,
                energy_j=energy_j,
            )
        )  # fmt: skip
    log.close()
    return run
