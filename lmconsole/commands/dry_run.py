"""`lmconsole run --dry-run`: show what would be done, and where each setting comes from."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich.text import Text

from lmconsole import formatting
from lmconsole.claims.planner import SeedPlan, describe_plan, plan_seeds
from lmconsole.commands.claims import describe_registration
from lmconsole.commands.output import console, print_json_line, print_message
from lmconsole.engine.ask import ask
from lmconsole.engine.estimate import Estimate, describe_sources, estimates, makespan_s
from lmconsole.engine.probe import ProbeAnswer
from lmconsole.engine.queue import Action, QueueDecision
from lmconsole.engine.register import all_runs, check_claims, registered
from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.slurm.submit import Submission
from lmconsole.engine.submit import describe_sharing, preview, requested_threads
from lmconsole.errors import ExitCode, escape_control_characters
from lmconsole.plan.claims import ENDPOINT_NAMES, ENDPOINT_UNITS, Claim
from lmconsole.plan.experiment import Settings
from lmconsole.runs.info import CorpusInfo
from lmconsole.runs.registration import Registration, show_numbers
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import free_disk_mib


def dry_run(request: RunRequest) -> ExitCode:
    """Print what `run` would do, without doing it. Raises LmconsoleError."""
    answer = ask(request, print_message)
    store = Store(request.runs)
    runs = store.runs()
    registration = registered(store, answer) if answer.claims else None
    if answer.claims and registration is None:
        check_claims(answer, all_runs(store))
    decisions = preview(runs, answer, request)
    expected = estimates(answer, decisions, runs)
    if request.json:
        print_json_line(_plan(answer, decisions, expected, request, seed_plan(answer, runs, request)))
        return ExitCode.OK
    out = console()
    claims = describe_claims(answer.claims, registration)
    for name, value in [*overview(answer, request), *claims, *time_expected(answer, decisions, expected, request)]:
        out.print(Text(f"{name:<12}", style="bold").append(value, style="not bold"))
    for warning in answer.warnings:
        console(stderr=True).print(Text(f"warning: {warning}", style="yellow"))
    for position, line in enumerate(describe_plan(seed_plan(answer, runs, request))):
        out.print(Text(f"{'' if position else 'seeds':<12}", style="bold").append(line, style="not bold"))
    out.print()
    for decision, estimate in zip(decisions, expected, strict=True):
        out.print(escape_control_characters(_decision_line(decision, estimate, request)))
    out.print()
    _print_settings(answer)
    if request.executor == "slurm":
        _print_scripts(store, request, decisions)
    return ExitCode.OK


def _print_scripts(store: Store, request: RunRequest, decisions: Sequence[QueueDecision]) -> None:
    """Print the job scripts, and what SLURM says about them. Raises SlurmError if it would not accept them."""
    count = sum(decision.action.queues for decision in decisions)
    if not count:
        return
    submission = Submission(store, request)
    out = console()
    for script in submission.scripts(count):
        out.print()
        out.print(Text(escape_control_characters(script)), soft_wrap=True, end="")
    out.print()
    out.print(Text(f"SLURM: {escape_control_characters(submission.check(count))}"), soft_wrap=True)


def describe_claims(claims: Sequence[Claim], registration: Registration | None) -> list[tuple[str, str]]:
    """Return names and values of rows that say what is to be registered, or has been; none without claims."""
    if not claims:
        return []
    unregistered = "not registered yet; the same command without --dry-run registers:"
    first = unregistered if registration is None else describe_registration(registration)
    return [("claims", first), *(("", line) for claim in claims for line in _describe_claim(claim))]


def _describe_claim(claim: Claim) -> Iterator[str]:
    """Yield a line for each comparison of a claim."""
    limits = [f"δ = {claim.delta:g} {ENDPOINT_UNITS[claim.endpoint]}"] if claim.delta is not None else []
    limits += [f"targets {', '.join(f'{target:g}' for target in claim.targets)}"] if claim.targets else []
    limits += ["in pairs"] if claim.paired else []
    for first, second in claim.contrasts:
        name = f"“{claim.name}”: " if claim.name else ""
        seeds = len(claim.seeds[first[0]]) if len(first) == 1 else len(first)
        what = "seeds" if len(first) == 1 else "studies"
        text = f"{name}{show_numbers(first)} against {show_numbers(second)}, {seeds} {what} each"
        yield ", ".join([escape_control_characters(text), ENDPOINT_NAMES[claim.endpoint], *limits])


def overview(answer: ProbeAnswer, request: RunRequest) -> list[tuple[str, str]]:
    """Return names and values that describe a request: preset, device, corpus, folders. A row without a name continues
    the one above."""
    first = answer.runs[0]
    corpus = first.corpus
    tokens = ", ".join(f"{count:,} {split}" for split, count in corpus.tokens.items())
    free = free_disk_mib(request.runs)
    devices = ", ".join(f"{d} ({n})" for d, n in zip(answer.devices, answer.device_names, strict=True))
    precisions = dict.fromkeys(run.settings.precision for run in answer.runs)
    rows = [
        ("preset", f"{answer.preset} ({answer.reason})"),
        ("device", f"{devices}, {describe_sharing(answer, request)}"),
        ("precision", ", ".join(precisions)),
        ("corpus", f"{corpus.name}, vocabulary {corpus.vocabulary:,}"),
        ("", f"{tokens} tokens"),
        ("", corpus.path or "built in"),
        ("" if corpus.tokenizer_path is None else "tokenizer", corpus.tokenizer_and_place),
        *([("embeddings", first.embeddings.path)] if first.embeddings else []),
        ("store", f"{request.runs.absolute()} ({formatting.mib(free)} free)"),
        ("exports", str(request.exports) if request.exports else "none (--no-export)"),
        *([("test", "none: tuning runs (--no-test)")] if request.no_test else []),
    ]
    return [(name, escape_control_characters(value)) for name, value in rows]


def time_expected(
    answer: ProbeAnswer, decisions: Sequence[QueueDecision], expected: Sequence[Estimate | None], request: RunRequest
) -> list[tuple[str, str]]:
    """Return a row with the time that all runs will take, as far as it is known; no row if there is nothing to do."""
    count = sum(decision.action in (Action.NEW, Action.RESUME) for decision in decisions)
    known = [estimate for estimate in expected if estimate]
    if not count:
        return []
    if not known:
        return [
            ("time", escape_control_characters(f"unknown; `{_bench_command(answer, request)}` measures it in a minute"))
        ]
    each = [(found.seconds, decision.jobs) for found, decision in zip(expected, decisions, strict=True) if found]
    total_s = makespan_s(each, len(answer.devices))
    of = f"{len(known)} of {count}" if len(known) < count else str(count)
    noun = "run" if count == 1 else "runs"
    return [("time", f"about {formatting.about(total_s)} for {of} {noun}, estimated from {describe_sources(known)}")]


def seed_plan(answer: ProbeAnswer, runs: Sequence[Run], request: RunRequest) -> SeedPlan:
    """Return what the seeds of a request detect, and what other numbers of seeds would."""
    fresh = request._replace(fresh=True, claims=False, seeds=None)
    once = preview(runs, msgspec.structs.replace(answer, claims=()), fresh)
    each = [
        (found.seconds, decision.jobs)
        for found, decision in zip(estimates(answer, once, runs), once, strict=True)
        if found is not None
    ]

    def expected_s(seeds: int) -> float | None:
        return makespan_s(each * seeds, len(answer.devices)) if len(each) == len(once) else None

    if answer.claims:
        asked = max(len(seeds) for claim in answer.claims for seeds in claim.seeds.values())
        comparisons = sum(len(claim.contrasts) * max(1, len(claim.targets)) for claim in answer.claims)
    else:
        asked, comparisons = len(request.seeds or (0,)), 1
    return plan_seeds(answer.runs, asked, runs, expected_s, comparisons=comparisons)


def _bench_command(answer: ProbeAnswer, request: RunRequest) -> str:
    """Return the command that measures this machine for such runs."""
    words = ["lmconsole", "bench", "--preset", answer.preset]
    if request.experiments:
        words += ["--experiments", str(request.experiments)]
    if request.device != "auto":
        words += ["--device", answer.devices[0]]
    if request.precision:
        words += ["--precision", request.precision]
    return shlex.join(words)


def _decision_line(decision: QueueDecision, estimate: Estimate | None, request: RunRequest) -> str:
    resolved = decision.resolved
    experiment = resolved.experiment
    text = f"{experiment.id:>3} {experiment.label:<18} seed {resolved.seed:<6} "
    time_left = f", about {formatting.about(estimate.seconds)}" if estimate else ""
    match decision.action:
        case Action.NEW:
            return f"{text}new{time_left}"
        case Action.RESUME:
            usual = requested_threads(request) or resolved.threads
            kept = (
                f" with {formatting.counted(decision.threads, 'thread')} as before" if decision.threads != usual else ""
            )
            return f"{text}resume {decision.run} in epoch {decision.epoch}{kept}{time_left}"
        case Action.TEST:
            return f"{text}test {decision.run}, trained before"
        case Action.FINISHED:
            return f"{text}skip, finished: {decision.run}"
        case Action.ACTIVE:
            return f"{text}{'wait for' if request.wait_for_active else 'error: already active as'} {decision.run}"


def _print_settings(answer: ProbeAnswer) -> None:
    """Print every setting with its origin, once where all experiments share its value."""
    out = console()
    settings = [msgspec.to_builtins(run.settings) for run in answer.runs]
    for key in settings[0]:
        if key in ("model", "layers", "optimizer"):
            continue
        values = {run.experiment.id: s[key] for run, s in zip(answer.runs, settings, strict=True) if s[key] is not None}
        if not values:
            continue
        if len(set(values.values())) == 1:
            shown = str(next(iter(values.values())))
            if len(values) < len(settings):
                shown += f" (experiment{'' if len(values) == 1 else 's'} {', '.join(map(str, values))})"
        else:
            shown = ", ".join(f"{number}: {value}" for number, value in values.items())
        sources = dict.fromkeys(run.origins[key] for run in answer.runs if key in run.origins)
        out.print(
            Text(f"{key:<22} {escape_control_characters(shown)}").append(
                f"  [{escape_control_characters('; '.join(sources))}]", style="dim"
            )
        )


class PlannedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a dry run."""

    experiment: int
    """Id of the experiment."""
    seed: int
    """Seed of initialization, shuffling and dropout."""
    action: Action
    """``new``: it would be queued; ``resume``: queued to continue; ``test``: queued to be tested, not trained again;
    ``finished``: left out; ``active``: already queued or running."""
    run: str | None
    """Id of the run that exists; null for a new one."""
    threads: int
    """CPU threads that it would have."""
    jobs: int
    """Most runs at once on one device, this one included."""
    expected_s: float | None
    """Estimated time that is left, in seconds; null if unknown, or if there is nothing to do."""
    expected_from: tuple[str, ...]
    """Ids of the finished runs whose speed ``expected_s`` is from; empty if it is from `lmconsole bench`, or null."""
    config_hash: str = msgspec.field(name="same_run")
    """Hash of everything that decides the results: equal for runs that repeat each other."""
    settings: Settings
    """Settings with ``precision`` resolved."""
    origins: dict[str, str]
    """Source of each setting: a file and table, or the command line."""
    corpus: CorpusInfo
    """Token ids on which the run would be trained and evaluated."""


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """Plan of a `run` that does nothing, as `run --dry-run --json` prints it."""

    request: dict[str, Any]
    """Options of the command as they were parsed, by name."""
    preset: str
    """Preset that would be used."""
    reason: str
    """Reason for this preset."""
    devices: tuple[str, ...]
    """Devices that would be used, as PyTorch names them."""
    jobs: int | None
    """Most runs at once on one device; null if it differs between runs."""
    warnings: tuple[str, ...]
    """Messages for people."""
    store: str
    """Absolute path of the run store."""
    runs: tuple[PlannedRun, ...]
    """Runs in the order of the queue."""
    seeds: SeedPlan
    """Differences that the seeds detect."""


def _plan(
    answer: ProbeAnswer,
    decisions: Sequence[QueueDecision],
    expected: Sequence[Estimate | None],
    request: RunRequest,
    seeds: SeedPlan,
) -> DryRun:
    pending = [decision for decision in decisions if decision.action.queues]
    jobs = {decision.jobs for decision in pending or decisions}
    return DryRun(
        request=msgspec.to_builtins(request._asdict(), enc_hook=str),
        preset=answer.preset,
        reason=answer.reason,
        devices=answer.devices,
        jobs=jobs.pop() if len(jobs) == 1 else None,
        warnings=answer.warnings,
        store=str(request.runs.absolute()),
        runs=tuple(_planned_run(decision, estimate) for decision, estimate in zip(decisions, expected, strict=True)),
        seeds=seeds,
    )


def _planned_run(decision: QueueDecision, estimate: Estimate | None) -> PlannedRun:
    resolved = decision.resolved
    return PlannedRun(
        experiment=resolved.experiment.id,
        seed=resolved.seed,
        action=decision.action,
        run=decision.run,
        threads=decision.threads,
        jobs=decision.jobs,
        expected_s=estimate.seconds if estimate else None,
        expected_from=estimate.runs if estimate else (),
        config_hash=resolved.config_hash,
        settings=resolved.settings,
        origins=resolved.origins,
        corpus=resolved.corpus,
    )
