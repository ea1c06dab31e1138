"""Every number of the report as a LaTeX command, so that a text that uses the commands cannot have outdated numbers."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import msgspec
import pandas as pd

from lmconsole import formatting
from lmconsole.claims.ranks import share_interval
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.plan.presets import ranges
from lmconsole.report.against import SPLITS
from lmconsole.report.comparison_text import p_digits
from lmconsole.report.experiment_result import Endpoint, ExperimentResult
from lmconsole.report.markup import escape_latex, format_ppl, format_ratio, format_spread
from lmconsole.report.pair_numbers import pair_quantities
from lmconsole.report.quantity import Quantity, Values
from lmconsole.report.questions.finding import GroupResults
from lmconsole.report.questions.memory import logits_mib, state_mib
from lmconsole.report.questions.optimizers import decay_shrinkage
from lmconsole.report.questions.overfitting import comparable_gaps, ratios_to_lowest
from lmconsole.report.questions.recommendation import times_p_value, two_fastest
from lmconsole.report.results import INCOMPLETE_MARK, is_complete, marks, memory_frame, run_frame, uses_gpu
from lmconsole.report.selection import Group
from lmconsole.report.targets import common_target, time_to_target
from lmconsole.runs.store import Run


def quantities(group: Group, comparison: pd.DataFrame | None = None) -> list[Quantity]:
    """Return everything that has a command.

    Args:
        comparison: contents of Table 3, if there is one.
    """
    results = GroupResults(group)
    found = [*_of_group(results), *_of_architectures(results), *_of_experiments(results), *pair_quantities(results)]
    return found if comparison is None else [*found, *_of_comparison(comparison)]


def _of_group(results: GroupResults) -> Iterator[Quantity]:
    group, info = results.group, results.group.reference

    def single(name: str, meaning: str, text: str | None) -> Quantity:
        return Quantity(name=name, arguments=(), meaning=meaning, values={} if text is None else {(): text})

    tokens = {split: f"{number:,}" for split, number in info.corpus.tokens.items()}
    target = common_target(group)
    best = min(results.complete, key=lambda each: each.mean_ppl or math.inf, default=None)
    times = _times_to_target(results)
    complete_times = {id_: time for id_, time in times.items() if results.by_id[id_].complete}
    fastest = two_fastest(complete_times)
    times_p = None if target is None else times_p_value(results, target, fastest)
    yield single("lmRuns", "number of runs", f"{len(group.runs):,}")
    yield single("lmCompleteRuns", "number of complete runs", f"{sum(map(is_complete, group.runs)):,}")
    yield single("lmExperiments", "number of experiments", f"{len(results.by_id):,}")
    yield single("lmSeeds", "number of seeds", f"{len(group.seeds):,}")
    yield single("lmTrainTokens", "tokens of the train split", tokens.get("train"))
    yield single("lmValidationTokens", "tokens of the validation split", tokens.get("validation"))
    yield single("lmTestTokens", "tokens of the test split", tokens.get("test"))
    yield single("lmVocabulary", "size of the vocabulary", None if group.imported else f"{info.corpus.vocabulary:,}")
    yield single("lmTargetPpl", "target perplexity of the times to a target", None if target is None else _ppl(target))
    yield single("lmLogitsMib", "MiB of the logits of a step, if all were held", _logits_mib(group))
    yield single("lmBestExperiment", "experiment with the lowest validation perplexity", str(best.id) if best else None)
    first = str(fastest[0]) if fastest else None
    yield single("lmFastestExperiment", "experiment that reaches the target first", first)
    meaning = "p-value of the times of the two fastest, by ranks"
    yield single("lmTimesPValue", meaning, None if times_p is None else p_digits(times_p))
    yield Quantity(
        name="lmSetting",
        arguments=("setting",),
        meaning="value of a setting that all runs share, such as {learning rate}",
        values={} if group.imported else _shared_settings(group),
    )
    yield Quantity(
        name="lmSettingOf",
        arguments=("experiment", "setting"),
        meaning="value of a setting in which the experiments differ",
        values={} if group.imported else _own_settings(group),
    )


def _ppl(target: float) -> str:
    return f"{target:,.10g}"


def _logits_mib(group: Group) -> str | None:
    return None if group.imported else f"{logits_mib(group.reference):,.1f}"


def _settings(run: Run) -> dict[str, str]:
    """Return the settings of a run that have a value, by their names in sentences."""
    return {
        key.replace("_", " "): f"{value:,}" if isinstance(value, int) else str(value)
        for key, value in msgspec.to_builtins(run.info.settings).items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }


def _shared_settings(group: Group) -> Values:
    first, *others = map(_settings, group.runs)
    return {(key,): text for key, text in first.items() if all(other.get(key) == text for other in others)}


def _own_settings(group: Group) -> Values:
    shared = _shared_settings(group)
    return {
        (str(id_), key): text
        for id_, runs in group.by_experiment.items()
        for key, text in _settings(runs[0]).items()
        if (key,) not in shared
    }


def _of_architectures(results: GroupResults) -> Iterator[Quantity]:
    best: Values = {}
    for each in sorted(results.complete, key=lambda each: each.mean_ppl or math.inf):
        best.setdefault((MODEL_NAMES[each.runs[0].info.experiment.model],), str(each.id))
    yield Quantity(
        name="lmBestOf",
        arguments=("architecture",),
        meaning="experiment of LSTM or GPT-1 with the lowest validation perplexity",
        values=best,
    )
    compared = comparable_gaps(results)
    means: Values = {}
    for model, by_depth in compared.fitted.items() if compared.depths else ():
        gaps = [by_depth[layers].last_gap_nats or 0.0 for layers in compared.depths]
        means[(MODEL_NAMES[model],)] = f"{statistics.fmean(gaps):+.3f}"
    yield Quantity(
        name="lmMeanGapNats",
        arguments=("architecture",),
        meaning="gap in nats, mean over the depths at which overfitting is compared",
        values=means,
    )


def _of_experiments(results: GroupResults) -> Iterator[Quantity]:
    group, by_id = results.group, results.by_id
    runs, memory = run_frame(group), memory_frame(group).set_index("experiment")
    numbers = ["train_ppl", "valid_ppl", "test_ppl_best", "test_ppl_final", "epoch"]
    runs[numbers] = runs[numbers].astype(float)
    used_mib = memory["memory_mib" if uses_gpu(group) else "host_peak_mib"]
    times_s = _times_to_target(results)
    grouped = runs.groupby("experiment", sort=False)

    def quantity(name: str, meaning: str, values: Mapping[int, float | None], form: Callable[[float], str]) -> Quantity:
        known: Values = {(str(id_),): form(value) for id_, value in values.items() if _is_finite(value)}
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
            if _is_finite(mean) and _is_finite(sd)
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


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _nats(value: float) -> str:
    return f"{value:.4f}"


def _sd(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if _is_finite(value)]
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


def _times_to_target(results: GroupResults) -> dict[int, float]:
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
    return 1.0 / (1.0 - momentum) if momentum and result.runs[0].info.origin == "trained" else None


def _of_comparison(data: pd.DataFrame) -> Iterator[Quantity]:
    columns = {
        "lmOurPplPerTarget": ("ours_ppl", "perplexity of Table 3 per target", format_ppl),
        "lmOtherPpl": ("theirs_ppl_as_given", "other perplexity of Table 3, as given", format_ppl),
        "lmOtherPplPerTarget": ("theirs_ppl_per_target", "other perplexity of Table 3 per target", format_ppl),
        "lmOtherDifferencePercent": ("difference_percent", "difference of the two in percent", lambda x: f"{x:+.1f}"),
    }
    splits = {name: name.lower() for name in SPLITS.values()}
    for name, (column, meaning, form) in columns.items():
        values: Values = {
            (str(record["config"]), splits[record["split"]]): form(record[column])
            for record in data.to_dict("records")
            if _is_finite(record[column])
        }
        yield Quantity(name=name, arguments=("experiment", "train or validation"), meaning=meaning, values=values)


_HEAD = r"""% Every number of the report as a command: \input this file, and write, for example,
%   a validation perplexity of \lmValidPpl{5}, or that of the best, \lmValidPpl{\lmBestExperiment}.
% The next export replaces the numbers. One that it does not have is set as ??, with a warning.
"""

_MACHINERY = r"""\makeatletter
\newcommand{\lm@number}[1]{\ifcsname lm@#1\endcsname\csname lm@#1\endcsname\else\lm@missing{#1}\fi}
\DeclareRobustCommand{\lm@missing}[1]{\textbf{??}\@latex@warning{The report has no number for #1}}
"""


def to_latex(group: Group, found: Sequence[Quantity], *, siunitx: bool = False) -> str:
    """Return the definitions of all commands, and a warning if experiments of the group are not complete.

    Numbers are set as in the report. With ``siunitx`` they are plain digits, for ``\\num``, ``\\qty`` and S columns.
    """
    pieces = [_HEAD]
    if siunitx:
        pieces.append(
            "% The numbers are plain, for siunitx: \\num{\\lmTrainTokens}, \\qty{\\lmTrainSeconds{5}}{\\second}.\n"
        )
    pieces.append(_MACHINERY)
    incomplete = [id_ for id_, runs in group.by_experiment.items() if marks(runs)]
    if incomplete:
        ids = ", ".join(ranges(sorted(incomplete)).split())
        pieces.append(f"\\@latex@warning@no@line{{Unfinished, diverged or damaged in the report: experiment {ids}}}\n")
    for each in found:
        count = len(each.arguments)
        arguments = "".join(f"@#{number}" for number in range(1, count + 1))
        pieces.append(
            f"\n% {each.usage}: {each.meaning}\n"
            f"\\newcommand{{\\{each.name}}}{f'[{count}]' if count else ''}{{\\lm@number{{{each.name}{arguments}}}}}\n"
        )
        for key, value in each.values.items():
            text = _plain(value) if siunitx else _typeset(value)
            pieces.append(f"\\@namedef{{lm@{'@'.join([each.name, *key])}}}{{{text}}}\n")
    pieces.append("\\makeatother\n")
    return "".join(pieces)


def _plain(value: str) -> str:
    """Return a number without separators; other text as it is typeset."""
    value = value.rstrip(INCOMPLETE_MARK + formatting.DAMAGE_MARK)
    digits = value.replace(",", "").removeprefix("+")
    try:
        float(digits)
    except ValueError:
        return _typeset(value)
    return digits


def _typeset(value: str) -> str:
    """Return a number with a minus, a power of ten and its marks, as they are set in text and in formulas; other text
    is escaped."""
    number = value.rstrip(INCOMPLETE_MARK + formatting.DAMAGE_MARK)
    mantissa, separator, exponent = number.partition("e")
    try:
        float(number.replace(",", ""))
    except ValueError:
        return escape_latex(value)
    minus = r"\ensuremath{-}" if mantissa.startswith("-") else ""
    power = f"\\ensuremath{{\\times10^{{{int(exponent)}}}}}" if separator else ""
    shown_marks = value[len(number) :].replace(INCOMPLETE_MARK, r"\ensuremath{^\dagger}")
    shown_marks = shown_marks.replace(formatting.DAMAGE_MARK, r"\S{}")
    digits = mantissa.removeprefix("-").replace(",", "{,}")  # no space after the comma, not even in a formula
    return f"{minus}{digits}{power}{shown_marks}"
