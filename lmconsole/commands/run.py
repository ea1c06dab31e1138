"""`lmconsole run --headless`: queue runs, follow them and print their results."""

import sys

from lmconsole.claims.evaluate import evaluate
from lmconsole.commands.claims import describe_registration, print_claims
from lmconsole.commands.display import choose_display
from lmconsole.commands.dry_run import overview, time_expected
from lmconsole.commands.follow import Follower
from lmconsole.commands.interrupts import Interrupts
from lmconsole.commands.results import print_digest, print_results
from lmconsole.engine.ask import ask
from lmconsole.engine.digest import summarize
from lmconsole.engine.estimate import estimates
from lmconsole.engine.queue import Action, QueueDecision
from lmconsole.engine.register import all_runs, registered
from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.submit import submit
from lmconsole.errors import ExitCode
from lmconsole.runs.store import Store


def run_headless(request: RunRequest) -> ExitCode:
    """Queue runs, follow them until none is active, and print their results.

    The exit code is RUN_FAILED if a run failed, or if there are no exports. Raises LmconsoleError if the runs cannot be
    queued.
    """
    store = Store(request.runs)
    with Interrupts() as interrupts:
        with choose_display(json=request.json) as display:
            if sys.stderr.isatty():
                display.say("Checking data and devices …")
            answer = ask(request, display.say)
            for name, value in overview(answer, request):
                if name:
                    display.say(f"{name:<10} {value}")
            for warning in answer.warnings:
                display.say(f"warning: {warning}")
            interrupts.hold()
            decisions = submit(store, answer, request)
            registration = registered(store, answer) if answer.claims else None
            if registration is not None:
                display.say(f"{'claims':<10} {describe_registration(registration)}")
            several_seeds = len({decision.resolved.seed for decision in decisions}) > 1
            for decision in decisions:
                display.say(_announcement(decision, several_seeds=several_seeds, claimed=request.claims))
            expected = estimates(answer, decisions, store.runs())
            for name, value in time_expected(answer, decisions, expected, request):
                display.say(f"{name:<10} {value}")
            own = frozenset(str(d.run) for d in decisions if d.action.queues)
            finished = frozenset(str(d.run) for d in decisions if d.action is Action.FINISHED)
            ids = [run.experiment.id for run in answer.runs]
            by_experiment = sorted(decisions, key=lambda each: ids.index(each.resolved.experiment.id))
            names = [str(decision.run) for decision in by_experiment]
            follower = Follower(store, names, display, interrupts, own=own, finished=finished)
            try:
                code = follower.follow()
                if own and request.exports and code is not ExitCode.INTERRUPTED:
                    exported = follower.wait_for_exports(request.exports)
                    code = code if exported else ExitCode.RUN_FAILED
            except BaseException:
                follower.leave()
                raise
        try:
            print_results(follower.runs, stderr=request.json)
            if registration is not None:
                print_claims(evaluate(registration, all_runs(store)), stderr=request.json)
            if any(decision.action is not Action.FINISHED for decision in decisions):
                print_digest(summarize(store, follower.runs, store.runs()), stderr=request.json)
            if own and request.on_event and code is not ExitCode.INTERRUPTED:
                follower.wait_for_runner()  # where everything ends with this command, as in a container
        finally:
            follower.leave()
    return code


def _announcement(decision: QueueDecision, *, several_seeds: bool, claimed: bool) -> str:
    resolved = decision.resolved
    name = f"{resolved.experiment.id:>2} {resolved.experiment.label}"
    if several_seeds:
        name += f"  seed {resolved.seed}"
    match decision.action:
        case Action.FINISHED:
            return f"{name}  already finished{'' if claimed else '; --fresh trains it again'}"
        case Action.TEST:
            return f"{name}  already trained; queued to be tested"
        case Action.RESUME:
            return f"{name}  queued to resume in epoch {decision.epoch}"
        case Action.ACTIVE:
            return f"{name}  already active"
        case Action.NEW:
            return f"{name}  queued"
