"""The words of `lmconsole run` turned into checked options, all that is wrong with them told at once."""

import os
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lmconsole.engine.probe import ProbeRequest
from lmconsole.errors import LmconsoleError
from lmconsole.plan.experiment import Seed
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import AUTO, TYPES, Plan, ranges, unknown
from lmconsole.runs.store import Store
from lmconsole.telemetry.host import threads_per_run

MAX_SEEDS = 10_000
MAX_JOBS = 1_024
MAX_TOKENS = 10**12


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`lmconsole run`, parsed."""

    probe: ProbeRequest
    store: Path
    seeds: tuple[int, ...] | None
    jobs: int | None
    """Runs at once on one device; None, ``auto``: as many as suits the size of each."""
    typed_order: bool
    """The ids were typed one by one: runs keep their order."""
    fresh: bool
    everything: bool
    """``--all``: an active run is waited for instead of refused."""
    exports: Path | None
    on_finish: tuple[str, ...]
    json: bool

    @property
    def threads(self) -> int | None:
        """CPU threads of each new run; None if its size decides."""
        return None if self.jobs is None else threads_per_run(self.jobs)


def run_options(
    *,
    ids: list[str],
    everything: bool,
    preset: str,
    epochs: int | None,
    seeds: str | None,
    max_tokens: int | None,
    device: str,
    precision: str | None,
    jobs: str,
    data: Path | None,
    embeddings: Path | None,
    experiments: Path | None,
    runs: Path,
    fresh: bool,
    exports: Path | None,
    on_finish: str | None,
    json: bool,
) -> RunOptions:
    """Check everything that can be checked without torch. Raises LmconsoleError with all the problems."""
    plan = load_plan(experiments)
    problems: list[str] = []
    chosen = [experiment.id for experiment in plan.experiments]
    if ids and everything:
        problems.append("either ids or --all, not both")
    elif not ids and not everything:
        problems.append(f"name experiments, for example `lmconsole run 1-4 9`, or --all; there are {ranges(chosen)}")
    elif ids:
        chosen = parse_ids(ids, plan, problems)
    if preset != AUTO and preset not in plan.presets:
        problems.append(unknown("preset", preset, [AUTO, *plan.presets]))
    overrides = _overrides(epochs=epochs, precision=precision, problems=problems)
    parsed_seeds = None if seeds is None else parse_seeds(seeds, problems)
    parsed_jobs = _parse_jobs(jobs, problems)
    if max_tokens is not None and not 1 <= max_tokens <= MAX_TOKENS:
        problems.append(f"--max-tokens {max_tokens}: expected 1 to {MAX_TOKENS:,}")
    program = _program(on_finish, problems)
    problems += [
        f"{path}: the name of this file is not UTF-8; rename it, or link to it"
        for path in (data, embeddings, experiments, runs, exports)
        if path is not None and not _is_text(path)
    ]
    if problems:
        raise LmconsoleError("\n".join(problems))
    store = Store(runs)
    owners = [owner.pid for run in store.runs() if run.status.active and (owner := run.worker())]
    return RunOptions(
        probe=ProbeRequest(
            experiments_file=None if experiments is None else str(experiments),
            experiments=tuple(chosen),
            preset=preset,
            data=None if data is None else str(data),
            embeddings=None if embeddings is None else str(embeddings),
            device=device,
            max_tokens=max_tokens,
            overrides=overrides,
            own_pids=tuple(pid for pid in owners if pid is not None),
        ),
        store=runs,
        seeds=parsed_seeds,
        jobs=parsed_jobs,
        typed_order=bool(ids) and not any("-" in word for word in ids),
        fresh=fresh,
        everything=everything,
        exports=exports,
        on_finish=program,
        json=json,
    )


def _is_text(path: Path) -> bool:
    """Whether the path's name can be written down in UTF-8, as run.json is."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_ids(words: Iterable[str], plan: Plan, problems: list[str]) -> list[int]:
    """``["1-4", "9"]`` as ids of ``plan``, each once and in order; what is wrong goes into ``problems``."""
    known = [experiment.id for experiment in plan.experiments]
    chosen: dict[int, None] = {}
    for word in (piece for argument in words for piece in argument.split(",") if piece):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", word)
        if match is None:
            problems.append(f"{word!r}: not an experiment; expected numbers such as 5 or 1-4")
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        inside = [number for number in known if first <= number <= last]
        if not inside or (match[2] is None and first not in known) or last < first:
            problems.append(f"no experiment {word}; {plan.source} has {ranges(known)}")
        chosen.update(dict.fromkeys(inside))
    return list(chosen)


def _parse_jobs(text: str, problems: list[str]) -> int | None:
    """``auto`` as None, or a number of runs; what is wrong goes into ``problems``."""
    word = text.strip().lower()
    if word == "auto":
        return None
    jobs = int(word) if re.fullmatch(r"[0-9]{1,6}", word) else 0
    if not 1 <= jobs <= MAX_JOBS:
        problems.append(f"--jobs {text}: expected auto, or 1 to {MAX_JOBS:,}")
    return jobs


def parse_seeds(text: str, problems: list[str]) -> tuple[int, ...]:
    """``1,2,3`` or ``1..10`` as seeds, each once; what is wrong goes into ``problems``."""
    chosen: dict[int, None] = {}
    for piece in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})(?:\.\.([0-9]{1,19}))?\s*", piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first or last > 2**63 - 1:
            problems.append(f"--seeds {text!r}: expected whole numbers such as 1,2,3 or 1..10")
            return ()
        if last - first >= MAX_SEEDS:
            problems.append(f"--seeds {text!r}: more than {MAX_SEEDS:,} seeds")
            return ()
        chosen.update(dict.fromkeys(range(first, last + 1)))
    return tuple(msgspec.convert(seed, Seed) for seed in chosen)


def _overrides(*, epochs: int | None, precision: str | None, problems: list[str]) -> dict[str, object]:
    given: dict[str, object] = {"epochs": epochs, "precision": precision}
    overrides: dict[str, object] = {}
    for key, value in given.items():
        if value is None:
            continue
        try:
            overrides[key] = msgspec.convert(value, TYPES[key])
        except msgspec.ValidationError as error:
            words = str(error).replace("`", "").removeprefix("Expected ")
            if isinstance(value, str):
                words = unknown(key, value, ["auto", "fp32", "tf32", "bf16"])
            problems.append(f"--{key} {value}: {words.replace('int', 'a whole number')}")
    return overrides


def _program(text: str | None, problems: list[str]) -> tuple[str, ...]:
    if text is None:
        return ()
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        problems.append(f"--on-finish {text!r}: {error}")
        return ()
    program = shutil.which(words[0]) if words else None
    if program is None:
        problems.append(f"--on-finish {text!r}: no such program{': ' + words[0] if words else ''}")
        return ()
    return (os.path.abspath(program), *words[1:])
