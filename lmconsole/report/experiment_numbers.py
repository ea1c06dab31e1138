"""Numbers of experiments, as LaTeX commands."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import pandas as pd

from lmconsole import formatting
from lmconsole.claims.ranks import share_interval
from lmconsole.report.experiment_result import Endpoint, ExperimentResult
from lmconsole.report.markup import format_ppl, format_ratio, format_spread
from lmconsole.report.quantity import Quantity, Values
from lmconsole.report.questions.finding import GroupResults
from lmconsole.report.questions.memory import (
    state_mib,
)
from lmconsole.report.questions.models import body_parameters
from lmconsole.report.questions.optimizers import decay_shrinkage, momentum_factor
from lmconsole.report.questions.overfitting import ratios_to_lowest
from lmconsole.report.results import marks, memory_frame, run_frame, uses_gpu
from lmconsole.report.targets import common_target, time_to_target


def experiment_quantities(results: GroupResults) -> Iterator[Quantity]:
    """Yield the numbers of each experiment."""
    group, by_id = results.group, results.by_id
    runs, memory = run_frame(group), memory_frame(group).set_index("experiment")
    numbers = ["train_ppl", "valid_ppl", "test_ppl_best", "test_ppl_final", "epoch"]
    runs[numbers] = runs[numbers].astype(float)
    used_mib = memory["memory_mib" if uses_gpu(group) else "host_peak_mib"]
    times_s = times_to_target(results)
    grouped = runs.groupby("experiment", sort=False)

    def quantity(name: str, meaning: str, values: Mapping[int, float | None], form: Callable[[float], str]) -> Quantity:
        known: Values = {(str(id_),): form(value) for id_, value in values.items() if is_finite(value)}
        return Quantity(name=name, arguments=("experiment",), meaning=meaning, values=known)

    def over_seeds(column: str, statistic: str) -> Mapping[int, float | None]:
        return _by_experiment(grouped[column].agg(statistic))

    def of_tests(column: str, statistic: str) -> Mapping[int, float | None]:
        """Leave out an experiment with a seed that was not tested: the others would pass for all of them."""
        tested = grouped[column].agg(lambda values: bool(values.notna().all()))
        return {id_: value for id_, value in over_seeds(column, statistic).items() if tested[id_]}

    def deviation(
        name: str, meaning: str, column: str, over: Callable[[str, str], Mapping[int, float | None]] = over_seeds
    ) -> Quantity:
        means, deviations = over(column, "mean"), over(column, "std")
        known: Values = {
            (str(id_),): format_spread(mean, sd).partition(" ± ")[2]
            for id_, mean, sd in ((id_, means[id_], sd) for id_, sd in deviations.items())
            if is_finite(mean) and is_finite(sd)
        }
        meaning = f"{meaning}, standard deviation"
        return Quantity(name=name, arguments=("experiment",), meaning=meaning, values=known)

    def of_results(value: Callable[[ExperimentResult], float | None]) -> Mapping[int, float | None]:
        return {id_: value(each) for id_, each in by_id.items()}

    def of_memory(column: str, unit: float = 1.0) -> Mapping[int, float | None]:
        return _by_experiment(memory[column].astype(float) / unit)

    def marked(found: Quantity) -> Quantity:
        marked = {key: text + marks(group.by_experiment[int(key[0])]) for key, text in found.values.items()}
        return replace(found, values=marked)

    for name, column, split in (("Train", "train_ppl", "train"), ("Valid", "valid_ppl", "validation")):
        meaning = f"{split} perplexity at the best epoch"
        mean = quantity(f"lm{name}Ppl", f"{meaning}, mean over seeds", over_seeds(column, "mean"), format_ppl)
        yield marked(mean) if split == "validation" else mean  # as in Table 1
        yield deviation(f"lm{name}PplSd", meaning, column)
    meaning = "test perplexity with the weights of the best epoch"
    yield quantity("lmTestPpl", f"{meaning}, mean over seeds", of_tests("test_ppl_best", "mean"), format_ppl)
    yield deviation("lmTestPplSd", meaning, "test_ppl_best", of_tests)
    meaning = "test perplexity with the weights of the last epoch, mean over seeds"
    yield quantity("lmTestPplFinal", meaning, of_tests("test_ppl_final", "mean"), format_ppl)
    for name, endpoint, what in (
        ("lmTestNats", Endpoint.TEST, "test loss in nats with the weights of the best epoch"),
        ("lmValidNats", Endpoint.VALIDATION, "validation loss in nats at the best epoch"),
    ):
        losses = {id_: found for id_, each in by_id.items() if each.ended and (found := each.losses(endpoint))}
        meaning = f"{what}, mean over seeds"
        yield quantity(name, meaning, {id_: statistics.fmean(each) for id_, each in losses.items()}, _nats)
        sds = {id_: _sd(each) for id_, each in losses.items()}
        yield quantity(f"{name}Sd", "the same, standard deviation", sds, _nats)
        medians = {id_: statistics.median(each) for id_, each in losses.items()}
        yield quantity(f"{name}Median", "the same, median", medians, _nats)
        of_seeds: Values = {
            (str(id_), str(run.info.seed)): _nats(loss)
            for id_, each in losses.items()
            for run, loss in zip(by_id[id_].runs, each, strict=True)
            if math.isfinite(loss)
        }
        yield Quantity(
            name=f"{name}Of", arguments=("experiment", "seed"), meaning="the same, of one seed", values=of_seeds
        )
    diverged = {id_: count for id_, each in by_id.items() if (count := _diverged_runs(each)) is not None}
    yield quantity("lmDiverged", "number of diverged runs", diverged, _whole)
    for name, ends in _diverged_shares(results, diverged).items():
        meaning = f"{'lower' if name == 'Low' else 'upper'} end of the 95% interval of their share, in percent"
        yield quantity(f"lmDiverged{name}", meaning, ends, lambda share: f"{100.0 * share:.0f}")
    last = of_results(lambda each: each.last_ppl)
    yield quantity("lmLastPpl", "validation perplexity at the last epoch, mean over seeds", last, format_ppl)
    yield quantity("lmEpoch", "best epoch, median over seeds", over_seeds("epoch", "median"), lambda n: f"{n:g}")
    epochs = of_results(lambda each: max(run.state.epochs_done for run in each.runs))
    yield quantity("lmLastEpoch", "last epoch", epochs, _whole)
    yield quantity("lmSeedCount", "number of seeds", of_results(lambda each: len(each.runs)), _whole)
    train_s = of_results(lambda each: each.train_s)
    yield quantity("lmTrainSeconds", "seconds of training, mean over seeds", train_s, _tenths)
    yield quantity("lmTrainTime", "the same with a unit, such as 3:05 min", train_s, formatting.seconds)
    best_s = of_results(lambda each: each.best_train_s)
    yield quantity("lmBestEpochTime", "time of training to the best epoch, mean over seeds", best_s, formatting.seconds)
    yield quantity("lmTargetSeconds", "seconds of training to the target, median over seeds", times_s, _tenths)
    yield quantity("lmTargetTime", "the same with a unit", times_s, formatting.seconds)
    gaps = of_results(lambda each: each.last_gap_nats)
    meaning = "validation loss minus train loss at the last epoch, in nats"
    yield quantity("lmGapNats", meaning, gaps, lambda nats: f"{nats:+.3f}")
    gap_sds = of_results(lambda each: _sd(each.last_gaps_nats))
    yield quantity("lmGapNatsSd", "the same, standard deviation", gap_sds, lambda nats: f"{nats:.3f}")
    meaning = "validation perplexity over train perplexity at the last epoch"
    yield quantity("lmGapRatio", meaning, of_results(lambda each: each.last_gap_ratio), format_ratio)
    meaning = "rise of the validation loss from the best epoch to the last, in nats"
    lags = of_results(lambda each: each.train_lag_nats)
    yield quantity("lmTrainLagNats", "nats by which the gap is underestimated", lags, lambda nats: f"{nats:.3f}")
    yield quantity("lmRiseNats", meaning, of_results(lambda each: each.rise_nats), lambda nats: f"{nats:.3f}")
    rise_sds = of_results(lambda each: _sd(each.rises_nats))
    yield quantity("lmRiseNatsSd", "the same, standard deviation", rise_sds, lambda nats: f"{nats:.3f}")
    gains = of_results(lambda each: each.last_gain_nats)
    meaning = "nats by which the last epoch, if it is the best, lowered the validation loss (smallest of the seeds)"
    yield quantity("lmLastGainNats", meaning, gains, lambda nats: f"{nats:.3f}")
    meaning = "perplexity over the lowest of those whose gaps are known"
    yield quantity("lmLowestRatio", meaning, ratios_to_lowest(results), format_ratio)
    meaning = "percent by which the last epoch, if it is the best, lowered the perplexity (smallest of the seeds)"
    yield quantity("lmLastGainPercent", meaning, of_results(_last_gain_percent), _tenths)
    parameters = of_results(lambda each: each.parameters_trainable)
    yield quantity("lmParameters", "trained parameters", parameters, _whole)
    sizes = of_results(lambda each: state_mib(each) if each.parameters_trainable else None)
    bodies = of_results(body_parameters)
    yield quantity("lmBodyParameters", "those of them that are not learned token embeddings", bodies, _whole)
    yield quantity("lmStateMib", "MiB of weights, gradients and optimizer state", sizes, _tenths)
    meaning = "percent by which weight decay alone would shrink a weight, with AdamW"
    yield quantity("lmShrinkagePercent", meaning, of_results(_shrinkage_percent), lambda percent: f"{percent:.2f}")
    meaning = "factor by which momentum enlarges the step along a persistent gradient"
    yield quantity("lmMomentumFactor", meaning, of_results(_momentum_factor), lambda factor: f"{factor:.3g}")
    used = _by_experiment(used_mib)
    yield quantity("lmMemoryMib", "MiB of memory, as in Table 2", used, _whole)
    yield quantity("lmMemory", "the same with a unit", used, formatting.mib)
    yield quantity("lmDeviceMib", "MiB of memory that the device has", of_memory("device_total_mib"), _whole)
    yield quantity("lmAllocatedMib", "peak of MiB held by tensors", of_memory("allocated_peak_mib"), _whole)
    yield quantity("lmUtilizationPercent", "utilization of the GPU", of_memory("utilization_percent"), _whole)
    yield quantity("lmSamples", "samples behind memory and utilization", of_memory("samples"), _whole)
    yield quantity("lmEnergyKj", "kJ of the GPU board, mean over seeds", of_memory("energy_j", 1_000.0), _tenths)


def _by_experiment(column: "pd.Series[Any]") -> dict[int, float | None]:
    """Return a column whose index are experiments; an unknown value is NaN."""
    return dict(zip(map(int, column.index.tolist()), map(float, column.astype(float).tolist()), strict=True))


def is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _nats(value: float) -> str:
    return f"{value:.4f}"


def _sd(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if is_finite(value)]
    return statistics.stdev(known) if 1 < len(known) == len(values) else None


def _diverged_runs(result: ExperimentResult) -> int | None:
    """Return the number of diverged runs; None unless all have ended."""
    losses = result.losses(Endpoint.VALIDATION) if result.ended else None
    return None if losses is None else sum(not math.isfinite(loss) for loss in losses)


def _diverged_shares(results: GroupResults, diverged: Mapping[int, int]) -> dict[str, dict[int, float]]:
    """Return the ends of the exact interval of the share of diverged runs, if any diverged at all."""
    shown = diverged if any(diverged.values()) else {}
    intervals = {id_: share_interval(count, len(results.by_id[id_].runs)) for id_, count in shown.items()}
    return {
        name: {id_: interval[end] for id_, interval in intervals.items()} for end, name in enumerate(("Low", "High"))
    }


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _tenths(value: float) -> str:
    return f"{value:,.1f}"


def times_to_target(results: GroupResults) -> dict[int, float]:
    """Return the seconds to the target by experiment, for those that reach it at a known time."""
    target = common_target(results.group)
    if target is None:
        return {}
    times = {id_: time_to_target(each.runs, target).median_s for id_, each in results.by_id.items()}
    return {id_: time for id_, time in times.items() if time is not None}


def _last_gain_percent(result: ExperimentResult) -> float | None:
    gain = result.last_gain_nats
    return None if gain is None else 100.0 * (1.0 - math.exp(-gain))


def _shrinkage_percent(result: ExperimentResult) -> float | None:
    if result.runs[0].info.experiment.optimizer != "adamw" or result.runs[0].info.origin == "imported":
        return None
    share = decay_shrinkage(result)
    return None if share is None else 100.0 * share


def _momentum_factor(result: ExperimentResult) -> float | None:
    momentum = result.runs[0].info.settings.momentum
    return momentum_factor(result) if momentum and result.runs[0].info.origin == "trained" else None
