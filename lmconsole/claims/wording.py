"""Sentences about comparisons, and the numbers in them."""

import math
from collections.abc import Iterable, Sequence

from lmconsole import formatting
from lmconsole.claims.attempts import Attempts
from lmconsole.claims.evaluate import UNLEARNED_NATS, ClaimedContrast
from lmconsole.claims.replicates import RESULTS, Replicate
from lmconsole.claims.verdict import MIN_SEEDS_RANKS, Comparison, Interval, Side, Verdict
from lmconsole.formatting import UNKNOWN, counted
from lmconsole.plan.claims import ENDPOINT_NAMES
from lmconsole.runs.registration import show_numbers

MISSING_SHOWN = 10

FAMILY = (
    "Intervals are for each comparison alone; p-values are adjusted by Holm's method over all comparisons of a "
    "registration."
)
"""Scope of the intervals and p-values of claims."""

_REASONS = {"known before": "trained before the registration, so it cannot count", "damaged": "its files are damaged"}
"""Reasons for a missing result that are not plain from the name of the outcome."""


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a difference with its sign; with three digits, or with the given decimals."""
    if value is None:
        return UNKNOWN
    text = f"{value:+.3g}" if decimals is None else f"{value:+.{decimals}f}"
    return (text if float(text) else text[1:]).replace("-", "−")  # no sign of a zero


def interval(value: Interval | None, decimals: int | None = None) -> str:
    """Return both ends of an interval."""
    return UNKNOWN if value is None else f"[{number(value.low, decimals)}, {number(value.high, decimals)}]"


def exact(value: float) -> str:
    """Return a number that was fixed beforehand with all its digits: ``0.02``, ``1,800.5``."""
    return f"{value:,}".removesuffix(".0")


def decimals(value: Interval | None) -> int | None:
    """Return the decimals at which an interval has two digits of its half width; None for none or too many."""
    if value is None or not 1e-6 < (half := (value.high - value.low) / 2) < 1e6:
        return None
    return max(0, 1 - math.floor(math.log10(half)))


def p_value(value: float | None) -> str:
    """Return a p-value with two digits, never 0."""
    return UNKNOWN if value is None else "< 0.0001" if value < 1e-4 else f"{value:#.2g}"


def describe(comparison: Comparison) -> str:
    """Return the verdict with its basis, if that is unusual."""
    verdict = comparison.verdict.value
    sides = (comparison.first, comparison.second)
    if any(side.diverged for side in sides):
        verdict += ", by ranks" if comparison.test else ", runs diverged"
    elif min(side.seeds for side in sides) == 1:
        verdict += " (no uncertainty known)"
    return verdict


def state(contrast: ClaimedContrast) -> str:
    """Return the sentence on one comparison of a claim: what holds, how surely, and with how many replicates."""
    result = contrast.result
    first, second = result.first.name, result.second.name
    what = f"the {endpoint_name(contrast)}"
    match result.verdict:
        case Verdict.LOWER | Verdict.HIGHER:
            claim = f"The {endpoint_name(contrast)} is {result.verdict.value} for {first} than for {second}"
        case Verdict.EQUIVALENT:
            delta = exact(contrast.delta or 0.0)
            claim = f"The test losses of {first} and {second} are equivalent within ±{delta} {contrast.unit}"
        case Verdict.INCONCLUSIVE:
            claim = f"It is inconclusive whether {what} differs between {first} and {second}"
        case Verdict.UNFINISHED:
            claim = (
                f"There is no verdict yet on {what} for {first} and {second}: {result.first.seeds} and "
                f"{result.second.seeds} of {contrast.planned} planned {_replicates(contrast)} have a result"
            )
        case Verdict.DESCRIPTION:
            claim = (
                f"There is no verdict on {what} for {first} and {second}: runs diverged, and a comparison by ranks "
                f"takes {MIN_SEEDS_RANKS} {_replicates(contrast)} on each side"
            )
    evidence = "; ".join(_evidence(contrast))
    return f"{claim}{': ' if ':' not in claim else '; '}{evidence}." if evidence else f"{claim}."


def endpoint_name(contrast: ClaimedContrast) -> str:
    """Return what is compared, with the target if there is one."""
    name = ENDPOINT_NAMES[contrast.endpoint]
    if contrast.target_ppl is None:
        return name
    return name.replace("the target", f"a validation perplexity of {exact(contrast.target_ppl)}")


def _evidence(contrast: ClaimedContrast) -> list[str]:
    """Return the numbers behind a verdict."""
    result, parts = contrast.result, []
    digits = decimals(result.interval)
    if result.difference is None or contrast.target_ppl is not None:
        for side in (result.first, result.second):
            if not side.seeds:
                continue
            median = "∞" if side.median is None else _amount(side.median, contrast.unit)
            missed = f", {side.diverged} of {side.seeds} {_never(contrast)}" if side.diverged else ""
            parts.append(f"median {median} for {side.name}{missed}")
    else:
        text = f"difference {number(result.difference, digits)} {contrast.unit}"
        if result.interval is not None:
            text += f", 95% interval {interval(result.interval, digits)}"
        parts.append(text)
        if result.ratio is not None and result.ratio_interval is not None:
            parts.append(f"ratio of perplexities {_ratio(result.ratio, result.ratio_interval)}")
    if result.verdict is Verdict.EQUIVALENT:
        parts.append(f"two one-sided tests at 5%: 90% interval {interval(result.equivalence_interval, digits)}")
    elif result.p_adjusted is not None:
        p = p_value(result.p_adjusted)
        parts.append(f"{result.test}, Holm-adjusted p {p if p.startswith('<') else f'= {p}'}")
        if result.permutation_p is not None:
            parts.append(f"permutation test of the means, as a check, p = {p_value(result.permutation_p)} unadjusted")
    if result.superiority is not None and result.superiority_interval is not None and not contrast.paired:
        low, high = result.superiority_interval.low, result.superiority_interval.high
        parts.append(
            f"probability that a run of the first is below one of the second {result.superiority:.2f} "
            f"[{low:.2f}, {high:.2f}]"
        )
    if result.verdict is not Verdict.UNFINISHED:
        parts.append(f"n = {result.first.seeds} and {result.second.seeds} {_replicates(contrast)}")
    return parts


def _amount(value: float, unit: str) -> str:
    """Return a median with its unit."""
    match unit:
        case "steps" | "tokens":
            text = f"{value:,.1f}".removesuffix(".0")
        case "FLOP":
            return _flops(value)
        case "s":
            text = f"{value:,.1f}" if value >= 10 else f"{value:.2g}"
        case _:
            text = formatting.loss(value)
    return f"{text} {unit}"


def _flops(value: float) -> str:
    """Return an amount of floating-point operations: ``0.52 TFLOP``."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T")):
        if value >= size:
            return f"{value / size:.3g} {prefix}FLOP"
    return f"{value / 1e9:.3g} GFLOP"


def _ratio(value: float, ends: Interval) -> str:
    """Return a ratio of perplexities with its interval, all with as many decimals."""
    digits = decimals(ends)
    texts = [f"{each:.4g}" if digits is None else f"{each:,.{digits}f}" for each in (value, ends.low, ends.high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _never(contrast: ClaimedContrast) -> str:
    return "never reached it" if contrast.target_ppl is not None else "diverged"


def _replicates(contrast: ClaimedContrast) -> str:
    return "studies" if contrast.of_optimizers else "seeds"


def scope(contrasts: Sequence[ClaimedContrast]) -> list[str]:
    """Return what the comparisons of a registration are about and depend on, each sentence once. One that does not hold
    for all of them begins with those for which it does."""
    holds: dict[str, list[ClaimedContrast]] = {}
    for each in contrasts:
        for sentence in (_replicates_are(each), _equal_seeds(each), _decay(each)):
            if sentence:
                holds.setdefault(sentence, []).append(each)
    sentences = [
        sentence if len(found) == len(contrasts) else f"{_names(found, contrasts)}: {sentence}"
        for sentence, found in holds.items()
    ]
    return [*sentences, *_hardly_learned(contrasts), *_longer_training(contrasts), *_detects(contrasts)]


def _names(some: Sequence[ClaimedContrast], contrasts: Sequence[ClaimedContrast]) -> str:
    """Return the names of ``some`` of the ``contrasts``: those of their claims, with the sides unless all are meant."""
    texts = []
    for each in some:
        first, second = map(show_numbers, (each.first, each.second))
        whole = all(other in some for other in contrasts if other.claim == each.claim)
        name = f"“{each.claim}”" if each.claim else ""
        texts.append(name if name and whole else f"{name}{', ' if name else ''}{first} against {second}")
    return "; ".join(dict.fromkeys(texts))


def _replicates_are(contrast: ClaimedContrast) -> str:
    """Return what the replicates vary, and so what is compared: two settings or two optimizers, tuned or untuned."""
    sides = zip(contrast.tuning, (contrast.first, contrast.second), strict=True)
    stamps = [tuning_stamp(trials, len(side)) for trials, side in sides]
    stamp = stamps[0] if len({*stamps}) == 1 else f"{stamps[0]}, against {stamps[1]}"
    if contrast.of_optimizers:
        about = "Replicates are independent studies, each with a setting of its own, so this compares two optimizers"
    else:
        about = "Replicates are fresh seeds, which vary initialization and data order, so this compares two settings"
    return f"{about} ({stamp})."


def _equal_seeds(contrast: ClaimedContrast) -> str:
    """Return how the test treats equal seeds of both sides; empty if there are none."""
    first, second = ({each.seed for each in runs} for runs in (contrast.first_runs, contrast.second_runs))
    shared = sorted(first & second)
    if contrast.paired:
        return (
            "Both sides used the same seeds, and runs with equal seeds are compared in pairs, as declared beforehand."
        )
    if not shared:
        return ""
    used = "used the same seeds" if first == second else f"share {_numbers('seed', shared)}"
    return f"Both sides {used}; the test treats them as independent, since no pairing was declared."


def _decay(contrast: ClaimedContrast) -> str:
    decays = contrast.target_ppl is not None and contrast.decaying
    return "Under a decaying learning rate, rankings midway may flip." if decays else ""


def _hardly_learned(contrasts: Sequence[ClaimedContrast]) -> list[str]:
    """Return which sides have hardly learned: a sentence for each loss with which they are compared."""
    names_by_loss: dict[str, dict[str, None]] = {}
    for each in contrasts:
        for side, unlearned, unigram in zip(_sides(each), each.unlearned, each.unigram_nats, strict=True):
            if not unlearned:
                continue
            if unigram is None:
                loss = f"less than {UNLEARNED_NATS:g} nats per token below that of a uniform guess over the vocabulary"
            else:
                loss = f"not below that of token frequencies ({formatting.loss(unigram)} nats per token)"
            names_by_loss.setdefault(loss, {})[side.name] = None
    sentences = []
    for loss, names in names_by_loss.items():
        if len(names) == 1:
            verb, subject = "has", "its median test loss is"
        else:
            verb, subject = "have", "their median test losses are"
        sentences.append(f"{_listed(names)} {verb} hardly learned: {subject} {loss}.")
    return sentences


def _longer_training(contrasts: Sequence[ClaimedContrast]) -> list[str]:
    """Return which sides validated best at the last epoch in all runs.

    The cost of reaching a target depends on the length of training only where runs missed the target.
    """
    at_end: dict[str, bool] = {}
    for each in contrasts:
        if each.target_ppl is not None and not any(side.diverged for side in _sides(each)):
            continue
        for side, runs in zip(_sides(each), (each.first_runs, each.second_runs), strict=True):
            done = [run.best_at_end for run in runs if run.outcome in RESULTS]
            if done:
                at_end[side.name] = at_end.get(side.name, True) and all(done)
    names = [name for name, all_at_end in at_end.items() if all_at_end]
    if not names:
        return []
    subject = "All runs" if len(names) == len(at_end) else f"All runs of {_listed(names)}"
    return [f"{subject} validated best at their last epoch, so longer training may change the difference."]


def _detects(contrasts: Sequence[ClaimedContrast]) -> list[str]:
    """Return the spread over the replicates that are there, and what they detect."""
    known = [each for each in contrasts if each.result.detectable_sd is not None]
    spreads: dict[str, dict[str, None]] = {}
    detected: dict[str, None] = {}
    for each in known:
        what, fewest = _replicates(each), min(side.seeds for side in _sides(each))
        detected[f"{fewest} {what} detect {each.result.detectable_sd:.1f} standard deviations"] = None
        for side in _sides(each):
            if side.sd is not None:
                spreads.setdefault(what, {})[f"{f'{side.sd:#.2g}'.rstrip('.')} for {side.name}"] = None
    if not known:
        return []
    sentences = [f"Standard deviations over {what} in nats per token: {', '.join(of)}." for what, of in spreads.items()]
    alike = f"If both sides vary alike, {_listed(detected)} with 80% power, before any correction."
    return [" ".join([*sentences, alike])]


def _listed(texts: Iterable[str]) -> str:
    *rest, last = texts
    return f"{', '.join(rest)} and {last}" if rest else last


def _sides(contrast: ClaimedContrast) -> tuple[Side, Side]:
    return contrast.result.first, contrast.result.second


def tuning_stamp(trials: int, studies: int) -> str:
    """Return how much tuning the store has."""
    if not trials:
        return "untuned, as far as this store shows"
    noun = "study" if studies == 1 else "studies"
    return f"tuned: {trials} trial{'' if trials == 1 else 's'}, {studies} {noun}"


def describe_missing(contrasts: Sequence[ClaimedContrast]) -> list[str]:
    """Return a line for each planned run without a result, with the reason, at most ten."""
    runs = (run for each in contrasts for run in (*each.first_runs, *each.second_runs))
    lines = list(dict.fromkeys(_missing(run) for run in runs if run.outcome not in RESULTS))
    more = len(lines) - MISSING_SHOWN
    return [*lines[:MISSING_SHOWN], *([f"… and {more:,} more"] if more > 0 else [])]


def _missing(run: Replicate) -> str:
    reason = _REASONS.get(run.outcome, run.outcome)
    return f"experiment {run.experiment}, seed {run.seed}: {reason}{f' ({run.run})' if run.run else ''}"


def describe_registrations(registrations: int, comparisons: int) -> str:
    """Return how many claims a store has in all, each corrected for itself; empty for a single registration."""
    if registrations < 2:
        return ""
    return (
        f"This store has {registrations:,} registrations with {counted(comparisons, 'comparison')} altogether. Each is "
        "corrected for its own comparisons alone: without any difference, the probability of a wrong lower or higher "
        "is about 5% at most for each registration, and larger for all together."
    )


def describe_missing_registrations(numbers: Sequence[int]) -> str:
    """Return that registrations with these numbers are gone; empty if none is."""
    if not numbers:
        return ""
    are = "is missing: its file was" if len(numbers) == 1 else "are missing: their files were"
    return f"{_numbers('Registration', numbers)} {are} removed from the store."


def _numbers(noun: str, numbers: Sequence[int]) -> str:
    """Return numbers of things: ``seed 7``, ``seeds 1–3, 7``."""
    return f"{noun}{'' if len(numbers) == 1 else 's'} {show_numbers(numbers)}"


def describe_attempts(attempts: Attempts) -> str:
    """Return a sentence on all attempts at the settings of claims, and their cost."""
    parts = [
        f"{attempts.counted:,} counted",
        f"{attempts.others:,} other finished" if attempts.others else "",
        f"{attempts.unfinished:,} failed, stopped or unfinished" if attempts.unfinished else "",
        f"{attempts.tuning:,} for tuning" if attempts.tuning else "",
        counted(attempts.reproductions, "reproduction") if attempts.reproductions else "",
    ]
    total = attempts.counted + attempts.others + attempts.unfinished + attempts.tuning + attempts.reproductions
    deleted = f", {attempts.deleted:,} of them deleted" if attempts.deleted else ""
    return (
        f"All attempts at these models and optimizers in this store: {counted(total, 'run')}{deleted} "
        f"({', '.join(part for part in parts if part)}); {formatting.seconds(attempts.train_s)} of training, "
        f"{_flops(attempts.flops)}."
    )
