"""Every number of the report as a LaTeX command, so that a text that uses the commands cannot have outdated numbers."""

import math
import statistics
from collections.abc import Iterator, Sequence

import msgspec
import pandas as pd

from lmconsole import formatting
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.plan.presets import ranges
from lmconsole.report.against import SPLITS
from lmconsole.report.comparison_text import p_digits
from lmconsole.report.experiment_numbers import experiment_quantities, is_finite, times_to_target
from lmconsole.report.markup import escape_latex, format_ppl
from lmconsole.report.pair_numbers import pair_quantities
from lmconsole.report.quantity import Quantity, Values
from lmconsole.report.questions.finding import GroupResults
from lmconsole.report.questions.memory import (
    format_mib,
    logits_mib,
    memory_of_adamw,
    memory_per_layer,
    spread_percent,
    used_memory,
)
from lmconsole.report.questions.overfitting import comparable_gaps
from lmconsole.report.questions.recommendation import MOST_LEADERS, times_p_value, two_fastest
from lmconsole.report.questions.times import leaders, time_tolerance
from lmconsole.report.results import INCOMPLETE_MARK, is_complete, marks
from lmconsole.report.selection import Group
from lmconsole.report.targets import common_target
from lmconsole.runs.store import Run


def quantities(group: Group, comparison: pd.DataFrame | None = None) -> list[Quantity]:
    """Return everything that has a command.

    Args:
        comparison: contents of Table 3, if there is one.
    """
    results = GroupResults(group)
    found = [
        *_of_group(results),
        *_of_architectures(results),
        *experiment_quantities(results),
        *pair_quantities(results),
    ]
    return found if comparison is None else [*found, *_of_comparison(comparison)]


def _of_group(results: GroupResults) -> Iterator[Quantity]:
    group, info = results.group, results.group.reference

    def single(name: str, meaning: str, text: str | None) -> Quantity:
        return Quantity(name=name, arguments=(), meaning=meaning, values={} if text is None else {(): text})

    tokens = {split: f"{number:,}" for split, number in info.corpus.tokens.items()}
    target = common_target(group)
    best = min(results.complete, key=lambda each: each.mean_ppl or math.inf, default=None)
    times = times_to_target(results)
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
    yield Quantity(
        name="lmUnigramPpl",
        arguments=("split",),
        meaning="perplexity of token frequencies on the train, validation or test split",
        values={(split,): format_ppl(ppl) for split, ppl in group.unigram_ppl.items()},
    )
    led = leaders(results)[-MOST_LEADERS:]
    for name, meaning, texts in (
        (
            "lmLeader",
            "experiment that takes the lead in perplexity, by its place",
            [str(id_) for _, id_, _ in led],
        ),
        ("lmLeaderTime", "time of training from which it leads", [formatting.seconds(time_s) for time_s, *_ in led]),
        ("lmLeaderPpl", "its validation perplexity then", [format_ppl(ppl) for *_, ppl in led]),
    ):
        values: Values = {(str(place),): text for place, text in enumerate(texts, 1)}
        yield Quantity(name=name, arguments=("place",), meaning=meaning, values=values)
    tolerance = f"{100.0 * time_tolerance(results):.0f}"
    yield single("lmTimeTolerancePercent", "percent up to which times above the shortest count as equal", tolerance)
    yield single("lmTargetPpl", "target perplexity of the times to a target", None if target is None else _ppl(target))
    used = used_memory(group)
    meaning = "percent by which the most memory is above the least"
    yield single("lmMemorySpreadPercent", meaning, f"{spread_percent(used):.0f}" if used else None)
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
    used = used_memory(results.group)
    adamw = {MODEL_NAMES[model]: mib for model in MODEL_NAMES if (mib := memory_of_adamw(results, used, model))}
    for place, name, meaning in (
        (0, "lmAdamwMib", "MiB that AdamW takes more than SGD with one layer"),
        (1, "lmMomentsMib", "those of them that are its two moments"),
    ):
        values: Values = {(model,): format_mib(mib[place]) for model, mib in adamw.items()}
        yield Quantity(name=name, arguments=("architecture",), meaning=meaning, values=values)
    layers = {MODEL_NAMES[model]: found for model in MODEL_NAMES if (found := memory_per_layer(results, model))}
    for place, name, meaning in (
        (0, "lmLayerMib", "MiB that each further layer takes with AdamW"),
        (1, "lmLayerStateMib", "those of them that are weights, gradients and optimizer state"),
    ):
        values = {(model,): format_mib(mib[place]) for model, mib in layers.items()}
        yield Quantity(name=name, arguments=("architecture",), meaning=meaning, values=values)


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
            if is_finite(record[column])
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
