"""Runs as pandas frames; column names carry units."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from lmconsole.errors import StoreError
from lmconsole.formatting import DAMAGE_MARK
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.report.selection import Group
from lmconsole.runs import endpoint
from lmconsole.runs.events import Telemetry, Validation
from lmconsole.runs.store import Run

INCOMPLETE_MARK = "†"
"""Mark of results of an unfinished or diverged run."""

MIN_SAMPLES = 5
"""Smallest number of samples over which a mean is given."""
MAX_SAMPLE = 1e12
"""Largest plausible number in a sample, in any unit."""


def run_frame(group: Group) -> pd.DataFrame:
    """Return one row per run, at its epoch with the lowest validation perplexity. Unknown values are NaN.

    Perplexities are comparable within a ``group`` and corpus, times only with equal ``device`` and ``jobs``.
    ``test_nll_best`` is in nats per target, ``test_nll_se`` its standard error as a sample of text, from the windows of
    the test split. ``unigram_valid_ppl`` and ``unigram_test_ppl`` are perplexities of a unigram model.
    ``energy_j`` is that of the whole GPU board over all epochs, from the driver's counter.
    """
    frame = pd.DataFrame([_run_row(run) for run in group.runs])
    frame["group"] = group.key[:12]
    return frame


def _run_row(run: Run) -> dict[str, object]:
    state, info = run.state, run.info
    best, finished, started = state.best_epoch, state.finished, state.started
    return {
        **_identity(run),
        "status": run.status.value,
        "complete": is_complete(run),
        "damage": "; ".join(state.damage),
        "diverged": finished.diverged if finished else None,
        "epochs": len(state.epochs),
        "train_ppl": best.train_ppl if best else None,
        "valid_ppl": best.valid_ppl if best else None,
        "epoch": best.epoch if best else None,
        "test_ppl_best": finished.test_ppl_best if finished else None,
        "test_ppl_final": finished.test_ppl_final if finished else None,
        "test_nll_best": endpoint.nll_best(finished),
        "test_nll_se": test_nll_se(run),
        "test_bits_per_byte": endpoint.bits_per_byte(finished, info.corpus),
        "unigram_valid_ppl": info.corpus.unigram_ppl.get("validation"),
        "unigram_test_ppl": info.corpus.unigram_ppl.get("test"),
        "elapsed_train_s": state.elapsed_train_s,
        "setup_s": finished.setup_s if finished else None,
        "wall_s": finished.wall_s if finished else None,
        "torch_peak_mib": finished.torch_peak_mib if finished else None,
        "rss_peak_mib": finished.rss_peak_mib if finished else None,
        "energy_j": finished.energy_j if finished else None,
        "parameters_total": started.parameters_total if started else None,
        "parameters_trainable": started.parameters_trainable if started else None,
        "device": started.device_name if started else None,
        "jobs": state.queued.jobs if state.queued else None,
        "precision": info.settings.precision,
        "preset": info.preset,
        "corpus_sha256": info.corpus.sha256,
        "queued_t": info.queued_t,
    }


def test_nll_se(run: Run) -> float | None:
    """Return the standard error of the test loss, in nats per target; None if the losses of the windows are unknown."""
    try:
        losses = endpoint.read_test_losses(run)
    except StoreError:
        return None
    return losses.standard_error_nats if losses else None


def _identity(run: Run) -> dict[str, object]:
    """Return the columns with which every frame begins."""
    experiment = run.info.experiment
    return {
        "run": run.run,
        "experiment": experiment.id,
        "name": experiment.name,
        "architecture": MODEL_NAMES[experiment.model],
        "layers": experiment.layers,
        "optimizer": OPTIMIZER_NAMES[experiment.optimizer],
        "seed": run.info.seed,
        "origin": run.info.origin,
        "denominator": run.info.denominator,
    }


def is_complete(run: Run) -> bool:
    """Return whether the run has finished without diverging, and is not damaged."""
    return _has_converged(run) and not run.state.damage


def _has_converged(run: Run) -> bool:
    return run.state.finished is not None and not run.state.finished.diverged


def marks(runs: Sequence[Run]) -> str:
    """Return the marks of results of which at least one run is unfinished or diverged, and of which at least one is
    damaged; empty if all are complete."""
    incomplete = "" if all(_has_converged(run) for run in runs) else INCOMPLETE_MARK
    return incomplete + damage_mark(runs)


def damage_mark(runs: Sequence[Run]) -> str:
    """Return the mark of results of which at least one run is damaged; empty if there are none."""
    return DAMAGE_MARK if any(run.state.damage for run in runs) else ""


def explain_marks(shown: str, consequence: str = "") -> str:
    """Return the notes on the marks that occur in ``shown``, each with the same ``consequence``; empty if none does."""
    meanings = {INCOMPLETE_MARK: "unfinished or diverged", DAMAGE_MARK: "rests on a damaged event log"}
    return " ".join(f"{mark}: {meaning}{consequence}." for mark, meaning in meanings.items() if mark in shown)


def epoch_frame(group: Group) -> pd.DataFrame:
    """Return one row per complete epoch of each run. Unknown values are NaN.

    ``elapsed_train_s`` is cumulative, ``energy_j`` that of the whole GPU board, and ``non_finite`` lists values that
    are not finite, for example ``train_ppl=inf``.
    """
    return _event_frame(group, [run.state.epochs for run in group.runs], EPOCH_FIELDS)


def evaluation_frame(group: Group) -> pd.DataFrame:
    """Return one row per evaluation within an epoch of each run, after ``step`` of the ``steps`` of an epoch; those at
    the ends of epochs are rows of ``epoch_frame``. Columns are as there."""
    return _event_frame(group, [run.state.evaluations for run in group.runs], EVALUATION_FIELDS)


def _event_frame(group: Group, by_run: Sequence[Sequence[Validation]], fields: Sequence[str]) -> pd.DataFrame:
    """Return one row per event of each run of the group."""
    events = [event for events in by_run for event in events]
    columns: dict[str, list[object]] = {field: [getattr(event, field) for event in events] for field in fields}
    columns["non_finite"] = [
        " ".join(f"{field}={value}" for field, value in event.non_finite.items()) for event in events
    ]
    return _with_identity(group, [len(events) for events in by_run], columns)


def _with_identity(group: Group, counts: Sequence[int], columns: Mapping[str, Sequence[object]]) -> pd.DataFrame:
    """Return a frame of ``columns`` after those that identify a run; ``counts`` are the rows of each run."""
    identity = pd.DataFrame([_identity(run) for run in group.runs])
    repeated = identity.loc[identity.index.repeat(counts)].reset_index(drop=True)
    return pd.concat([repeated, pd.DataFrame(columns)], axis=1)


EPOCH_FIELDS = (
    "epoch",
    *("train_loss_nats", "train_ppl", "valid_loss_nats", "valid_ppl"),
    *("train_s", "valid_s", "elapsed_train_s", "energy_j"),
)

EVALUATION_FIELDS = ("epoch", "step", "steps", "valid_loss_nats", "valid_ppl", "valid_s", "elapsed_train_s")


def telemetry_frame(group: Group) -> pd.DataFrame:
    """Return one row per telemetry sample, about one a second; ``t`` is in UTC.

    In imported runs a row can be the mean of several readings (``samples``), and ``t`` is unknown.
    """
    fields = [field for field in Telemetry.__struct_fields__ if field != "seq"]
    samples = [sample for run in group.runs for sample in run.state.telemetry]
    columns = {field: [getattr(sample, field) for sample in samples] for field in fields if field != "samples"}
    if group.imported:
        columns["t"] = [None] * len(samples)
        columns["samples"] = [sample.samples or 1 for sample in samples]
    return _with_identity(group, [len(run.state.telemetry) for run in group.runs], columns)


FRAMES: dict[str, Callable[[Group], pd.DataFrame]] = {
    "runs": run_frame,
    "epochs": epoch_frame,
    "evaluations": evaluation_frame,
    "telemetry": telemetry_frame,
}
"""Frames by file name. An export leaves out ``evaluations`` if there are none."""


def results_frame(group: Group) -> pd.DataFrame:
    """Return the data of Table 1, one row per experiment.

    Perplexities are means and standard deviations (n - 1) over the best epochs of the seeds, ``epoch`` is their median.
    ``test_ppl`` is that with the weights of these epochs, and unknown if it is for any seed.
    ``best`` is set for the lowest validation perplexity of each architecture among complete experiments, ties included.
    ``marks`` are those of ``marks``.
    """
    runs = run_frame(group)
    runs["test_ppl"] = runs["test_ppl_best"]
    numbers = ["train_ppl", "valid_ppl", "test_ppl", "epoch"]
    runs[numbers] = runs[numbers].astype(float)
    experiment = ["experiment", "name", "architecture", "layers", "optimizer"]
    grouped = runs.groupby(experiment, sort=False, dropna=False)
    table = grouped.agg(
        train_ppl=("train_ppl", "mean"),
        train_ppl_sd=("train_ppl", "std"),
        valid_ppl=("valid_ppl", "mean"),
        valid_ppl_sd=("valid_ppl", "std"),
        test_ppl=("test_ppl", "mean"),
        test_ppl_sd=("test_ppl", "std"),
        tested=("test_ppl", "count"),
        runs=("run", "count"),
        epoch=("epoch", "median"),
        seeds=("seed", "nunique"),
        complete=("complete", "all"),
    ).reset_index()
    table.loc[table["tested"] < table["runs"], ["test_ppl", "test_ppl_sd"]] = math.nan
    marks_by_id = {id_: marks(found) for id_, found in group.by_experiment.items()}
    table["marks"] = table["experiment"].map(marks_by_id)
    eligible = table["valid_ppl"].where(table["complete"])
    lowest = eligible.groupby(table["architecture"]).transform("min")
    table["best"] = table["complete"] & eligible.eq(lowest)
    return table


def best_experiments(group: Group) -> dict[int, list[Run]]:
    """Return the runs of the experiment with the lowest mean validation perplexity of each architecture, by id.

    An experiment that is not complete counts only where none is. One without a finite perplexity never does.
    """
    ranks: dict[str, tuple[bool, float, int]] = {}
    for id_, runs in group.by_experiment.items():
        if ppls := _best_ppls(runs):
            rank = not all(map(is_complete, runs)), statistics.fmean(ppls), id_
            model = runs[0].info.experiment.model
            ranks[model] = min(rank, ranks.get(model, rank))
    return {id_: group.by_experiment[id_] for _, _, id_ in ranks.values()}


def not_below_unigram(group: Group) -> dict[int, float]:
    """Return the mean validation perplexity over the best epochs of the seeds, as in Table 1, by experiment id, of the
    experiments in which it is not below that of a unigram model. Empty if that is unknown."""
    unigram = group.unigram_ppl.get("validation")
    if unigram is None:
        return {}
    means = {id_: statistics.fmean(ppls) for id_, runs in group.by_experiment.items() if (ppls := _best_ppls(runs))}
    return {id_: ppl for id_, ppl in means.items() if ppl >= unigram}


def _best_ppls(runs: Sequence[Run]) -> list[float]:
    """Return the lowest validation perplexity of each run that has a finite one."""
    ppls = [run.state.best_epoch.valid_ppl for run in runs if run.state.best_epoch]
    return [ppl for ppl in ppls if ppl is not None and math.isfinite(ppl)]


def memory_frame(group: Group) -> pd.DataFrame:
    """Return the data of Table 2, one row per experiment.

    Means are over the training samples of all seeds, from the second epoch on (from the first if there is only one).
    Imported samples belong to no epoch, and all of them count.
    ``memory_mib`` is the GPU memory of the process if the driver reports it in every sample, else that of the whole
    device (``scope``). ``host_peak_mib`` is the largest resident memory of any run. ``seed_mib`` has the memory of each
    seed, of the host where there is no ``scope``. ``energy_j`` is the mean over runs of the GPU board's energy in all
    epochs; it is unknown if it is unknown for any run.
    """
    rows = []
    for runs in group.by_experiment.values():
        experiment = runs[0].info.experiment
        samples = [sample for run in runs for sample in _training_samples(run)]
        smallest = 1 if group.imported else MIN_SAMPLES
        process, device = (_mean(samples, f"{scope}_used_mib", smallest) for scope in ("process", "device"))
        scope = "process" if process is not None else "device" if device is not None else None
        seeds = [
            _mean(_training_samples(run), f"{scope}_used_mib", 1) if scope else _host_peak_mib([run]) for run in runs
        ]
        allocated = [run.state.finished.torch_peak_mib for run in runs if run.state.finished]
        rows.append(
            {
                "experiment": experiment.id,
                "name": experiment.name,
                "architecture": MODEL_NAMES[experiment.model],
                "layers": experiment.layers,
                "optimizer": OPTIMIZER_NAMES[experiment.optimizer],
                "memory_mib": process if process is not None else device,
                "scope": scope,
                "seed_mib": tuple(mib for mib in seeds if mib is not None),
                "device_total_mib": _mean(samples, "device_total_mib", smallest),
                "allocated_peak_mib": max((mib for mib in allocated if mib is not None), default=None),
                "utilization_percent": _mean(samples, "utilization_percent", smallest),
                "energy_j": _mean_energy_j(runs),
                "host_peak_mib": _host_peak_mib(runs),
                "samples": sum(sample.samples or 1 for sample in samples),
                "mark": damage_mark(runs),
            }
        )
    return pd.DataFrame(rows)


def _training_samples(run: Run) -> list[Telemetry]:
    training = [sample for sample in run.state.telemetry if sample.phase == "train"]
    later = [sample for sample in training if (sample.epoch or 0) >= 2]
    return later or training


def _mean(samples: Sequence[Telemetry], field: str, smallest: int) -> float | None:
    """Return the mean of a field; None if it is missing or implausible in any sample, or there are fewer than
    ``smallest``."""
    values = [getattr(sample, field) for sample in samples]
    if len(values) < smallest or None in values or max(map(abs, values)) > MAX_SAMPLE:
        return None
    counts = [sample.samples or 1 for sample in samples]
    return float(sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts))


def _mean_energy_j(runs: Sequence[Run]) -> float | None:
    joules = [run.state.finished.energy_j if run.state.finished else None for run in runs]
    known = [each for each in joules if each is not None]
    return sum(known) / len(known) if len(known) == len(joules) else None


def _host_peak_mib(runs: Sequence[Run]) -> float | None:
    peaks = [run.state.finished.rss_peak_mib for run in runs if run.state.finished]
    peaks += [sample.rss_mib for run in runs for sample in run.state.telemetry]
    return max((mib for mib in peaks if mib is not None and mib <= MAX_SAMPLE), default=None)


def uses_gpu(group: Group) -> bool:
    """Return whether any run was trained on a GPU. Readings of memory in imported runs are those of a GPU."""
    return group.imported or any(run.state.started and run.state.started.device != "cpu" for run in group.runs)
