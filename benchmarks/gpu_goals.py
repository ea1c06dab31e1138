"""Goals of the GPU benchmark, whether they are met, and times of plain PyTorch extrapolated from measured steps."""

from typing import Any

PAPER_EPOCHS = 10
CONTEXT_GOAL_MIB = 1024.0
MEMORY_GOAL = 0.35
PERPLEXITY_GOAL = 0.01
CHECKS = ("smoke", "smoke32", "head", "reference", "reference32", "tests")
"""Stages that check results for correctness."""
SUITES = ("suite", "suite32")
"""Stages that train all experiments one after the other."""
EVALUATION = 0.07
"""Estimated time of an evaluation over that of the training epoch before it."""
SETUP_S = 5.0
"""Estimated setup time of a run, if no suite has measured it."""


class Results(dict[str, Any]):
    """Results by stage, complete or partial; stages without one are absent."""

    def __init__(self, stages: dict[str, Any]) -> None:
        super().__init__({name: entry["result"] for name, entry in stages.items() if entry.get("result")})

    @property
    def steps(self) -> dict[str, Any]:
        """Timed steps by experiment."""
        found: dict[str, Any] = self.get("steps", {}).get("experiments", {})
        return found


def correct(stages: dict[str, Any]) -> bool | None:
    """Return whether all checks passed and no run of a suite failed; None if a check is unfinished or none was made.

    A check that crashed has not passed.
    """
    found: list[bool | None] = []
    for name in CHECKS:
        entry = stages.get(name, {})
        if entry.get("failed"):
            found.append(False)
        elif "result" in entry:
            found.append(None if "reason" in entry else entry["result"]["ok"])
    runs = [
        run for name in (*SUITES, "jobs") for run in stages.get(name, {}).get("result", {}).get("runs", {}).values()
    ]
    if any(run["status"] == "failed" for run in runs):
        found.append(False)
    return False if False in found else None if None in found or not found else True


def extrapolated(stages: dict[str, Any]) -> dict[str, Any]:
    """Return, by suite, the seconds that plain PyTorch would need for its training steps.

    Setup and evaluation are left out, in favor of plain PyTorch. An experiment whose steps were not timed counts as
    the one of the same shape with AdamW.
    """
    results = Results(stages)
    found: dict[str, Any] = {}
    for name in SUITES:
        if suite := results.get(name):
            for precision in ("fp32", "bf16"):
                seconds = _baseline_s(results.steps, suite, f"baseline_{precision}_s")
                if seconds is not None:
                    found.setdefault(name, {"how": "measured seconds per step × steps of the suite"})
                    found[name][f"baseline_{precision}_s"] = seconds
    return found


def _baseline_s(steps: dict[str, Any], suite: dict[str, Any], key: str) -> float | None:
    by_shape = {shape(each["label"]): each[key] for each in reversed(steps.values())}  # the first is AdamW's
    total = 0.0
    for experiment, run in suite["runs"].items():
        if shape(run["label"]) not in by_shape:
            return None
        step_s = steps[experiment][key] if experiment in steps else by_shape[shape(run["label"])]
        total += step_s * suite["steps_per_epoch"] * suite["epochs"]
    return total


def epochs_that_fit(stages: dict[str, Any], labels: dict[str, str], steps_per_epoch: int, seconds: float) -> int | None:
    """Return how many epochs of all experiments in fp32 fit into ``seconds``; None if their steps were not timed."""
    results = Results(stages)
    step_s = {shape(each["label"]): each["ours_fp32_s"] for each in results.steps.values()}
    if not {shape(label) for label in labels.values()} <= step_s.keys():
        return None
    known = [run["setup_s"] for run in results.get("suite", {}).get("runs", {}).values() if run["setup_s"] is not None]
    setup_s = sum(known) / len(known) if known else SETUP_S
    epoch_s = sum(step_s[shape(label)] for label in labels.values()) * steps_per_epoch * (1 + EVALUATION)
    return int((seconds - len(labels) * setup_s - 2 * EVALUATION * epoch_s) / epoch_s)


def shape(label: str) -> str:
    """Return an experiment's label without its optimizer."""
    return label.rsplit(" ", 1)[0]


def goals(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every goal with its measured value.

    ``met`` is None if the goal was not measured, or not under its own conditions.
    """
    stages = document["stages"]
    results, baseline = Results(stages), extrapolated(stages)
    suite, suite32, jobs = (_complete(results.get(name)) for name in ("suite", "suite32", "jobs"))
    by_stage = {
        "suite": [
            _suite_goal("all twelve experiments, ten epochs, bf16, one command", "under 300 s", suite, 300.0),
            _speedup_goal("the same, times as fast as plain PyTorch in fp32", 8.0, suite, baseline, "suite", "fp32"),
            _speedup_goal("the same, times as fast as plain PyTorch in bf16", 4.0, suite, baseline, "suite", "bf16"),
            _context_goal(results, suite, suite32),
        ],
        "suite32": [
            _speedup_goal(
                "all twelve experiments in fp32, times as fast as plain PyTorch in fp32",
                2.0,
                suite32,
                baseline,
                "suite32",
                "fp32",
            ),
            _perplexity_goal(document, suite, suite32),
        ],
        "jobs": [_jobs_goal(suite, jobs)],
        "steps": [_memory_goal(results.steps)],
    }
    for name, each in by_stage.items():
        for goal in each:
            if goal["measured"] is None:
                reason = stages.get(name, {}).get("reason")
                goal |= {"measured": "not measured", "reason": reason or "a run or another stage is missing"}
            if document["rehearsal"]:
                goal["met"] = None
    return [goal for each in by_stage.values() for goal in each]


def _goal(what: str, goal: str, measured: str | None, value: float | None, met: bool | None) -> dict[str, Any]:
    return {"what": what, "measured": measured, "value": value, "goal": goal, "met": met}


def _complete(suite: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the suite if all of its runs finished."""
    return suite if suite is not None and suite["complete"] else None


def _epochs_note(suite: dict[str, Any]) -> str:
    """Return a note on the number of epochs if it is not the goal's."""
    epochs = suite["epochs"]
    return "" if epochs == PAPER_EPOCHS else f" ({epochs} epoch{'s' if epochs > 1 else ''} instead of {PAPER_EPOCHS})"


def _suite_goal(what: str, goal: str, suite: dict[str, Any] | None, max_s: float) -> dict[str, Any]:
    if suite is None:
        return _goal(what, goal, None, None, None)
    value = suite["whole_s"]
    met = value < max_s if suite["epochs"] == PAPER_EPOCHS else None
    return _goal(what, goal, f"{value:.0f} s{_epochs_note(suite)}", value, met)


def _speedup_goal(
    what: str, minimum: float, suite: dict[str, Any] | None, baseline: dict[str, Any], name: str, precision: str
) -> dict[str, Any]:
    """Return the speed-up of a suite over plain PyTorch.

    With fewer epochs, setup takes a larger share of the suite's time. So a goal met under these
    conditions is met; one missed under them remains undecided.
    """
    goal, baseline_s = f"≥ {minimum:g}×", baseline.get(name, {}).get(f"baseline_{precision}_s")
    if suite is None or baseline_s is None:
        return _goal(what, goal, None, None, None)
    value = baseline_s / suite["whole_s"]
    met = value >= minimum or (False if suite["epochs"] == PAPER_EPOCHS else None)
    note = f"plain PyTorch extrapolated to {baseline_s:,.0f} s from measured steps"
    return _goal(what, goal, f"{value:.1f}×{_epochs_note(suite)} ({note})", value, met)


def _jobs_goal(suite: dict[str, Any] | None, jobs: dict[str, Any] | None) -> dict[str, Any]:
    """Compare epochs per second of the two commands.

    With fewer epochs, setup takes a larger share of the time. So a goal met with fewer epochs is met; one missed
    with fewer remains undecided.
    """
    what, goal = "four runs at a time (bf16), throughput over one at a time", "≥ 1.8×"
    if suite is None or jobs is None:
        return _goal(what, goal, None, None, None)
    value = (jobs["epochs"] / jobs["whole_s"]) / (suite["epochs"] / suite["whole_s"])
    same, fewer = jobs["epochs"] == suite["epochs"], jobs["epochs"] <= suite["epochs"]
    epochs = f"{jobs['epochs']} epochs each" if same else f"{jobs['epochs']} epochs against {suite['epochs']}"
    note = f" ({epochs}, {'with MPS' if jobs['mps'] else 'without MPS'})"
    return _goal(what, goal, f"{value:.2f}×{note}", value, (fewer and value >= 1.8) or (False if same else None))


def _context_goal(results: Results, suite: dict[str, Any] | None, suite32: dict[str, Any] | None) -> dict[str, Any]:
    """Return the GPU memory of a run without the CUDA context; what PyTorch reserved if the driver lists no processes,
    as in containers."""
    what, goal = "GPU memory of a run without the CUDA context, largest", "≤ 1,024 MiB"
    context_mib = results.get("look", {}).get("context_mib")
    runs = [run for each in (suite, suite32) if each for run in each["runs"].values()]
    used = [run["process_used_mib"] for run in runs if run["process_used_mib"] is not None]
    reserved = [run["torch_reserved_mib"] for run in runs if run["torch_reserved_mib"] is not None]
    if used and context_mib is not None:
        value, source = max(used) - context_mib, "by the driver"
    elif reserved:
        value, source = max(reserved), "reserved by PyTorch; the driver does not report it"
    else:
        return _goal(what, goal, None, None, None)
    return _goal(what, goal, f"{value:,.0f} MiB ({source})", value, value <= CONTEXT_GOAL_MIB)


def _memory_goal(steps: dict[str, Any]) -> dict[str, Any]:
    what, goal = "peak memory of a step over plain PyTorch's fp32 step, largest", "≤ 0.35×"
    ratios = [
        each[f"ours_{precision}_mib"] / each["baseline_fp32_mib"]
        for each in steps.values()
        for precision in ("fp32", "bf16")
        if each["baseline_fp32_mib"] is not None and each[f"ours_{precision}_mib"] is not None
    ]
    if not ratios:
        return _goal(what, goal, None, None, None)
    value = max(ratios)
    return _goal(what, goal, f"{value:.2f}× (reserved; both with the tables)", value, value <= MEMORY_GOAL)


def _perplexity_goal(
    document: dict[str, Any], bf16: dict[str, Any] | None, fp32: dict[str, Any] | None
) -> dict[str, Any]:
    """Compare the epochs that both suites trained.

    One seed can show that a difference is too large, but not that there is none.
    """
    what, goal = "validation perplexity, bf16 against fp32, largest difference", "≤ 1%, three seeds"
    if bf16 is None or fp32 is None:
        return _goal(what, goal, None, None, None)
    if (document["data"]["tokens"], document["data"]["tables"]) != ("given", "given"):
        return _goal(what, goal, "not measured: tokens or tables were random", None, None)
    pairs = [
        (a, b)
        for experiment in bf16["runs"]
        for a, b in zip(bf16["runs"][experiment]["valid_ppl"], fp32["runs"][experiment]["valid_ppl"], strict=False)
        if a is not None and b
    ]
    if not pairs:
        return _goal(what, goal, None, None, None)
    value = max(abs(a / b - 1) for a, b in pairs)
    met = False if value > PERPLEXITY_GOAL else None
    return _goal(what, goal, f"{value:.2%} (one seed, {min(bf16['epochs'], fp32['epochs'])} epochs)", value, met)
