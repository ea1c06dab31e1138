"""Sentences about comparisons, and the numbers in them."""

import math

from lmconsole.claims.attempts import Attempts
from lmconsole.claims.evaluate import ClaimedContrast
from lmconsole.claims.replicates import RESULTS
from lmconsole.claims.verdict import Comparison, Interval, Verdict
from lmconsole.formatting import UNKNOWN, counted, seconds
from lmconsole.plan.claims import ENDPOINT_NAMES

MISSING_SHOWN = 10


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a difference with its sign; with three digits, or with the given decimals."""
    if value is None:
        return UNKNOWN
    return (f"{value:+.3g}" if decimals is None else f"{value:+.{decimals}f}").replace("-", "−")


def interval(value: Interval | None, decimals: int | None = None) -> str:
    """Return both ends of an interval."""
    return UNKNOWN if value is None else f"[{number(value.low, decimals)}, {number(value.high, decimals)}]"


def decimals(value: Interval | None) -> int | None:
    """Return the decimals at which an interval has two digits of its half width; None for none or too many."""
    if value is None or not 1e-6 < (half := (value.high - value.low) / 2) < 1e6:
        return None
    return max(0, 1 - math.floor(math.log10(half)))


def p_value(value: float | None) -> str:
    """Return a p-value with two digits, never 0."""
    return UNKNOWN if value is None else "< 0.0001" if value < 1e-4 else f"{value:.2g}"


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
    """Return the sentence on one comparison of a claim: what holds, how surely, and what it is about."""
    result = contrast.result
    first, second = result.first.name, result.second.name
    what = ENDPOINT_NAMES[contrast.endpoint]
    if contrast.target_ppl is not None:
        what = what.replace("the target", f"validation perplexity {contrast.target_ppl:g}")
    match result.verdict:
        case Verdict.LOWER | Verdict.HIGHER:
            claim = f"The {what} of {first} is {result.verdict.value} than that of {second}"
        case Verdict.EQUIVALENT:
            claim = f"The {what} of {first} and {second} is equivalent within ±{contrast.delta:g} {contrast.unit}"
        case Verdict.INCONCLUSIVE:
            claim = f"It is inconclusive whether the {what} of {first} differs from that of {second}"
        case Verdict.UNFINISHED | Verdict.DESCRIPTION:
            claim = (
                f"There is no verdict yet on the {what} of {first} and {second}: {result.first.seeds} and "
                f"{result.second.seeds} of {contrast.planned} planned {_replicates(contrast)} have a result"
            )
    return f"{claim}{_evidence(contrast)}."


def _evidence(contrast: ClaimedContrast) -> str:
    """Return the numbers behind a verdict, after a colon."""
    result, parts = contrast.result, []
    digits = decimals(result.interval)
    if result.test == "rank permutation" or contrast.target_ppl is not None:
        for side in (result.first, result.second):
            if not side.seeds:
                continue
            median = "∞" if side.median is None else f"{side.median:,.4g} {contrast.unit}"
            missed = f", {side.diverged} of {side.seeds} {_never(contrast)}" if side.diverged else ""
            parts.append(f"median {median} for {side.name}{missed}")
    elif result.difference is not None:
        text = f"difference {number(result.difference, digits)} {contrast.unit}"
        if result.interval is not None:
            text += f", 95 % interval {interval(result.interval, digits)}"
        parts.append(text)
        if result.ratio is not None and result.ratio_interval is not None:
            low, high = result.ratio_interval.low, result.ratio_interval.high
            parts.append(f"ratio of perplexities {result.ratio:.4g} [{low:.4g}, {high:.4g}]")
    if result.verdict is Verdict.EQUIVALENT:
        parts.append(f"two one-sided tests at 5 %: 90 % interval {interval(result.equivalence_interval, digits)}")
    elif result.p_adjusted is not None and result.verdict is not Verdict.UNFINISHED:
        p = p_value(result.p_adjusted)
        parts.append(f"{result.test}, Holm-adjusted p {p if p.startswith('<') else f'= {p}'}")
        if result.permutation_p is not None:
            parts.append(f"permutation p of the means, as a check, {p_value(result.permutation_p)}")
    if result.verdict in (Verdict.LOWER, Verdict.HIGHER, Verdict.EQUIVALENT, Verdict.INCONCLUSIVE):
        parts.append(f"n = {result.first.seeds} and {result.second.seeds} {_replicates(contrast)}")
    return f": {'; '.join(parts)}" if parts else ""


def _never(contrast: ClaimedContrast) -> str:
    return "never reached it" if contrast.target_ppl is not None else "diverged"


def _replicates(contrast: ClaimedContrast) -> str:
    return "studies" if contrast.of_optimizers else "seeds"


def scope(contrast: ClaimedContrast) -> str:
    """Return what a comparison is about: two settings or two optimizers, tuned or untuned."""
    if contrast.of_optimizers:
        about = "Replicates are independent studies of tuning and training, so this compares the tuned optimizers"
    else:
        about = "Replicates are fresh seeds, which vary initialization and data order, so this compares two settings"
    differs = ""
    for unlearned, side in zip(contrast.unlearned, (contrast.result.first, contrast.result.second), strict=True):
        if unlearned:
            differs += f" {side.name} has hardly learned: its test loss is close to that of a uniform guess."
    stamps = [tuning_stamp(trials, len(side)) for trials, side in zip(contrast.tuning, _sides(contrast), strict=True)]
    stamp = stamps[0] if len({*stamps}) == 1 else f"{stamps[0]} against {stamps[1]}"
    flip = (
        "; under a decaying learning rate, rankings midway may flip"
        if contrast.target_ppl and contrast.decaying
        else ""
    )
    return f"{about} ({stamp}){flip}.{differs}"


def _sides(contrast: ClaimedContrast) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return contrast.first, contrast.second


def tuning_stamp(trials: int, studies: int) -> str:
    """Return how much tuning the store has."""
    if not trials:
        return "untuned, as far as this store shows"
    noun = "study" if studies == 1 else "studies"
    return f"tuned: {trials} trial{'' if trials == 1 else 's'}, {studies} {noun}"


def detects(contrast: ClaimedContrast) -> str:
    """Return what the planned seeds detect; empty where that is unknown."""
    n, sides = contrast.result.detectable_sd, (contrast.result.first, contrast.result.second)
    sds = [side.sd for side in sides if side.sd is not None]
    if n is None or len(sds) < 2:
        return ""
    return (
        f"Standard deviations over seeds are {sds[0]:.2g} and {sds[1]:.2g} nats; if both vary alike, "
        f"{contrast.planned} seeds detect {n:.1f} standard deviations with 80 % power, before any correction."
    )


def describe_missing(contrast: ClaimedContrast) -> list[str]:
    """Return a line for each planned run of a comparison without a result, with the reason, at most ten."""
    runs = (*contrast.first_runs, *contrast.second_runs)
    missing = [each for each in runs if each.outcome not in RESULTS]
    lines = [
        f"missing: experiment {each.experiment}, seed {each.seed}: {each.outcome}{f' ({each.run})' if each.run else ''}"
        for each in missing[:MISSING_SHOWN]
    ]
    return [*lines, *([f"… and {len(missing) - MISSING_SHOWN:,} more"] if len(missing) > MISSING_SHOWN else [])]


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
        f"({', '.join(part for part in parts if part)}); {seconds(attempts.train_s)} of training, "
        f"{attempts.flops:.2g} FLOP."
    )
