"""Claims: statements about differences that runs are to support, fixed in [[claim]] rows before the runs exist."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec

from lmconsole.errors import did_you_mean
from lmconsole.plan.experiment import Experiment, Seed

Endpoint = Literal["test_nll", "seconds", "steps", "tokens", "flops"]
"""Value that is compared: the test loss at the weights that validated best, or what it costs to reach a target."""

ENDPOINT_NAMES: dict[str, str] = {
    "test_nll": "test loss",
    "seconds": "training time to the target",
    "steps": "number of steps to the target",
    "tokens": "number of tokens to the target",
    "flops": "number of FLOPs to the target",
}
ENDPOINT_UNITS: dict[str, str] = {
    "test_nll": "nats per token",
    "seconds": "s",
    "steps": "steps",
    "tokens": "tokens",
    "flops": "FLOP",
}

MIN_SEEDS = 3
MIN_SEEDS_TO_TARGET = 5
"""Times to a target can be infinite, and are compared by ranks."""
MIN_PAIRS = 6
MAX_SEEDS = 1_000
MAX_CLAIMS = 100
MAX_CONTRASTS = 200
"""Most comparisons in one file."""

SEED_RANGE = re.compile(r"\s*([0-9]{1,19})(?:(?:\.\.|-)([0-9]{1,19}))?\s*")

Side = tuple[int, ...]
"""Ids of experiments: one is a setting, whose seeds are the replicates. Several are independent studies, each of which
has tuned and trained its own setting; they are the replicates then."""

Perplexity = Annotated[float, msgspec.Meta(gt=1.0, le=1e6)]
Delta = Annotated[float, msgspec.Meta(gt=0.0, le=100.0)]
Label = Annotated[str, msgspec.Meta(max_length=255)]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One [[claim]] row."""

    name: Label = ""
    """Label for the report."""
    contrasts: Annotated[tuple[tuple[Side, Side], ...], msgspec.Meta(max_length=MAX_CONTRASTS)]
    """Pairs of sides, the first of which is compared with the second."""
    seeds: dict[int, tuple[Seed, ...]]
    """Seeds of each experiment."""
    endpoint: Endpoint = "test_nll"
    """Value of each run that is compared: the test loss, or the cost to reach a target."""
    delta: Delta | None = None
    """Largest difference of test losses that does not matter, in nats per token; None for no test of equivalence."""
    targets: Annotated[tuple[Perplexity, ...], msgspec.Meta(max_length=20)] = ()
    """Validation perplexities to reach; empty for the test loss."""
    paired: bool = False
    """Whether runs with the same seed belong together."""

    @property
    def experiments(self) -> tuple[int, ...]:
        """Ids of all experiments, in the order in which they occur."""
        return tuple(dict.fromkeys(id_ for contrast in self.contrasts for side in contrast for id_ in side))

    @property
    def of_optimizers(self) -> bool:
        """Whether sides are independent studies of tuning and training."""
        return any(len(side) > 1 for contrast in self.contrasts for side in contrast)


Report = Callable[[str], None]

KEYS = ("name", "contrasts", "seeds", "endpoint", "delta", "targets", "paired")


def read_claims(rows: object, experiments: Mapping[int, Experiment], report: Report) -> tuple[Claim, ...]:
    """Return the valid claims among the ``rows`` [[claim]] of a file, and report every problem of the others.

    ``experiments`` are those of the file by id.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        report("claim: expected rows [[claim]]")
        return ()
    if len(rows) > MAX_CLAIMS:
        report(f"claim: {len(rows):,} rows; at most {MAX_CLAIMS} are read")
        return ()
    claims = []
    for number, row in enumerate(rows, 1):
        problems: list[str] = []
        claim = _claim(row, experiments, problems.append)
        for problem in problems:
            report(f"claim row {number}: {problem}")
        if claim is not None and not problems:
            claims.append(claim)
    if sum(len(claim.contrasts) * max(1, len(claim.targets)) for claim in claims) > MAX_CONTRASTS:
        report(f"claim: more than {MAX_CONTRASTS} comparisons in one file")
    return tuple(claims)


def _claim(row: Mapping[str, Any], experiments: Mapping[int, Experiment], report: Report) -> Claim | None:
    for key in row:
        if key not in KEYS:
            report(f"{key[:80]}: unknown key{_known(key, KEYS)}")
    missing = [key for key in ("contrasts", "seeds") if key not in row]
    for key in missing:
        report(f"{key}: missing")
    if missing:
        return None
    contrasts = _contrasts(row["contrasts"], experiments, report)
    named = dict.fromkeys(id_ for contrast in contrasts for side in contrast for id_ in side)
    seeds = _seeds(row["seeds"], list(named), report)
    if not contrasts or not seeds:
        return None
    rest = {key: row[key] for key in KEYS[3:] if key in row} | {"name": row.get("name", "")}
    try:
        claim = msgspec.convert({"contrasts": contrasts, "seeds": seeds, **rest}, Claim)
    except msgspec.ValidationError as error:
        report(_say(error, rest))
        return None
    for problem in contradictions(claim, experiments):
        report(problem)
    return claim


def _say(error: msgspec.ValidationError, values: Mapping[str, object]) -> str:
    """Return the message on a value of the wrong type or size, which begins with its key."""
    text, _, place = str(error).replace("`", "").partition(" - at $.")
    key = re.split(r"[.\[]", place or "")[0]
    if key == "endpoint" and isinstance(values.get(key), str):
        given = str(values[key])[:80]
        return f"endpoint: unknown {given!r}{_known(given, get_args(Endpoint))}"
    text = re.sub(r"\bint\b", "a whole number", re.sub(r"\bfloat\b", "a number", text)).replace(" | null", "")
    return f"{key}: {text[:1].lower()}{text[1:]}".replace("bool", "true or false").replace("str", "text")


def _known(given: str, known: Sequence[str]) -> str:
    return did_you_mean(given, known) or f"; known: {', '.join(known)}"


def _contrasts(value: object, experiments: Mapping[int, Experiment], report: Report) -> list[tuple[Side, Side]]:
    """Return the contrasts as pairs of sides, each a tuple of ids."""
    expected = "expected pairs of experiment ids, such as [[1, 3], [1, 4]]"
    if not isinstance(value, list) or not value:
        report(f"contrasts: {expected}")
        return []
    found: list[tuple[Side, Side]] = []
    for pair in value:
        sides = [_side(side) for side in pair] if isinstance(pair, list) and len(pair) == 2 else []
        if len(sides) != 2 or None in sides:
            report(f"contrasts: {expected}; several ids on one side, [[21, 22, 23], [31, 32, 33]], are studies")
            return []
        first, second = (side or () for side in sides)
        found.append((first, second))
    ids = dict.fromkeys(id_ for pair in found for side in pair for id_ in side)
    unknown = [id_ for id_ in ids if id_ not in experiments]
    if unknown:
        report(f"contrasts: no experiment {', '.join(map(str, unknown[:20]))} in this file")
        return []
    return found


def _side(value: object) -> Side | None:
    given = value if isinstance(value, list) else [value]
    ids = tuple(id_ for id_ in given if isinstance(id_, int) and not isinstance(id_, bool))
    return ids if ids and len({*ids}) == len(given) else None


def _seeds(value: object, experiments: Sequence[int], report: Report) -> dict[int, tuple[int, ...]]:
    """Return the seeds of each experiment, from one list for all or one for each."""
    if isinstance(value, dict):
        ids = {str(id_): id_ for id_ in experiments}
        strange = [key for key in value if key not in ids]
        absent = [id_ for id_ in experiments if str(id_) not in value]
        if strange:
            report(f"seeds: {', '.join(strange[:20])}: not in the contrasts")
        if absent and ids:
            report(f"seeds: none for experiment {', '.join(map(str, absent))}")
        if strange or absent:
            return {}
        lists = {ids[key]: _seed_list(each) for key, each in value.items()}
    else:
        lists = dict.fromkeys(experiments, _seed_list(value))
    if any(each is None for each in lists.values()):
        report('seeds: expected a range such as "101-105", or a list of different whole numbers')
        return {}
    return {id_: each or () for id_, each in lists.items()}


def _seed_list(value: object) -> tuple[int, ...] | None:
    """Return the seeds in ``"1-3,7"`` or ``[1, 2, 3, 7]``; None if that is not what ``value`` is."""
    if isinstance(value, str):
        seeds: list[int] = []
        for piece in value.split(","):
            match = SEED_RANGE.fullmatch(piece)
            if match is None:
                return None
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < first + MAX_SEEDS:
                return None
            seeds += range(first, last + 1)
    elif isinstance(value, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in value):
        seeds = value
    else:
        return None
    sound = 0 < len(seeds) <= MAX_SEEDS and len({*seeds}) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    return tuple(seeds) if sound else None


def contradictions(claim: Claim, experiments: Mapping[int, Experiment]) -> list[str]:
    """Return what keeps a claim from ever getting a verdict, or from meaning one thing."""
    problems: list[str] = []
    to_target = claim.endpoint != "test_nll"
    if to_target and not claim.targets:
        problems.append(f"targets: missing; {claim.endpoint} are counted until a validation perplexity is reached")
    if not to_target and claim.targets:
        problems.append('targets: only for endpoint "seconds", "steps", "tokens" or "flops"')
    if to_target and claim.delta is not None:
        problems.append("delta: only for the test loss; times to a target are compared by ranks")
    if to_target and claim.paired:
        problems.append("paired: only for the test loss; times to a target are compared by ranks")
    if len({*claim.targets}) < len(claim.targets):
        problems.append("targets: one occurs twice")
    pairs = [frozenset(contrast) for contrast in claim.contrasts]
    if len({*pairs}) < len(pairs):
        problems.append("contrasts: two compare the same")
    for first, second in claim.contrasts:
        problems += _contrast_problems(claim, first, second, experiments)
    return list(dict.fromkeys(problems))


def _contrast_problems(claim: Claim, first: Side, second: Side, experiments: Mapping[int, Experiment]) -> list[str]:
    name = f"{show_side(first)} and {show_side(second)}"
    if {*first} & {*second}:
        return [f"contrasts: {name} have an experiment in common"]
    sizes = [replicates(claim, side) for side in (first, second)]
    problems = []
    if sizes[0] != sizes[1]:
        problems.append(
            f"seeds: {name} have {sizes[0]} and {sizes[1]} replicates; plan equally many, or Welch's test errs more "
            "often than 5%"
        )
    if (len(first) > 1) != (len(second) > 1):
        problems.append(f"contrasts: {name}: studies can only be compared with studies")
    for side in (first, second):
        kinds = {(experiments[id_].model, experiments[id_].layers, experiments[id_].optimizer) for id_ in side}
        if len(kinds) > 1:
            problems.append(f"contrasts: the studies {show_side(side)} differ in architecture, depth or optimizer")
    fewest = MIN_PAIRS if claim.paired else MIN_SEEDS if claim.endpoint == "test_nll" else MIN_SEEDS_TO_TARGET
    if min(sizes) < fewest:
        what = "studies" if len(first) > 1 else "seeds"
        problems.append(f"{what}: {name} have {min(sizes)}; fewer than {fewest} never get a verdict")
    if claim.paired:
        shapes = {(experiments[id_].model, experiments[id_].layers) for id_ in (*first, *second)}
        if len(shapes) > 1:
            problems.append(f"paired: {name} have different architectures, so equal seeds have nothing in common")
        if len(first) > 1 or claim.seeds[first[0]] != claim.seeds[second[0]]:
            problems.append(f"paired: {name} must be two settings with the same seeds")
    return problems


def replicates(claim: Claim, side: Side) -> int:
    """Return the number of values of a side: its seeds if it is a setting, else its studies."""
    return len(claim.seeds[side[0]]) if len(side) == 1 else len(side)


def show_side(side: Side) -> str:
    """Return a side as in the file."""
    return str(side[0]) if len(side) == 1 else f"[{', '.join(map(str, side))}]"


def training_seeds(claims: Sequence[Claim]) -> list[tuple[int, int]]:
    """Return experiment and seed of every run that ``claims`` need, each once.

    The first seeds of all experiments come first, so that all sides grow alike.
    """
    by_experiment: dict[int, dict[int, None]] = {}
    for claim in claims:
        for id_, seeds in claim.seeds.items():
            by_experiment.setdefault(id_, {}).update(dict.fromkeys(seeds))
    rounds = itertools.zip_longest(*([(id_, seed) for seed in seeds] for id_, seeds in by_experiment.items()))
    return [each for round_ in rounds for each in round_ if each is not None]
