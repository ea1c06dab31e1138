"""What a GPU's measurements come to: the goals, and what is extrapolated from measured steps."""

from typing import Any

PAPER_EPOCHS = 10
CONTEXT_GOAL_MIB = 1024.0
MEMORY_GOAL = 0.35
PERPLEXITY_GOAL = 0.01
CHECKS = ("smoke", "smoke32", "head", "reference", "reference32", "tests")
"""Stages that say whether what is computed is right."""
SUITES = ("suite", "suite32", "jobs")
EVALUATION = 0.07
"""Evaluation's share of the training time, when the length of a suite is foreseen."""
SETUP_S = 5.0
"""Set-up of a run, where no suite has shown it."""


class Results(dict[str, Any]):
    """The results of the stages that have one, whole or in part."""

    def __init__(self, stages: dict[str, Any]) -> None:
        super().__init__({name: entry["result"] for name, entry in stages.items() if entry.get("result")})

    @property
    def steps(self) -> dict[str, Any]:
        """Experiments whose steps were timed, by number."""
        found: dict[str, Any] = self.get("steps", {}).get("experiments", {})
        return found


def correct(stages: dict[str, Any]) -> bool | None:
    """Whether what was checked is right; None if nothing was checked, or not to its end. A check that
    broke is not right, nor is a suite with a run that failed."""
    found: list[bool | None] = []
    for name in CHECKS:
        entry = stages.get(name, {})
        if entry.get("failed"):
            found.append(False)
        elif "result" in entry:
            found.append(None if "reason" in entry else entry["result"]["ok"])
    runs = [run for name in SUITES for run in stages.get(name, {}).get("result", {}).get("runs", {}).values()]
    if any(run["status"] == "failed" for run in runs):
        found.append(False)
    return False if False in found else None if None in found or not found else True


def extrapolated(stages: dict[str, Any]) -> dict[str, Any]:
    """What is computed and was not run: for each suite, seconds that plain PyTorch would need for its training steps.
    Its set-up and evaluation are left out, in its favour. An experiment whose steps were not timed counts as its shape
    with AdamW."""
    results = Results(stages)
    found: dict[str, Any] = {}
    for name in SUITES[:2]:
        if suite := results.get(name):
            for precision in ("fp32", "bf16"):
                seconds = _baseline_s(results.steps, suite, f"baseline_{precision}_s")
                if seconds is not None:
                    found.setdefault(name, {"how": "measured seconds a step × steps of the suite"})
                    found[name][f"baseline_{precision}_s"] = seconds
    return found


def _baseline_s(steps: dict[str, Any], suite: dict[str, Any], key: str) -> float | None:
    shapes = {shape(each["label"]): each[key] for each in reversed(steps.values())}  # the first is AdamW's
    total = 0.0
    for number, run in suite["runs"].items():
        if shape(run["label"]) not in shapes:
            return None
        step_s = steps[number][key] if number in steps else shapes[shape(run["label"])]
        total += step_s * suite["steps_per_epoch"] * suite["epochs"]
    return total


def epochs_that_fit(stages: dict[str, Any], labels: dict[str, str], steps_per_epoch: int, seconds: float) -> int | None:
    """How many epochs of all experiments in fp32 fit into ``seconds``; None if their steps were not timed."""
    results = Results(stages)
    shapes = {shape(each["label"]): each["ours_fp32_s"] for each in results.steps.values()}
    if not {shape(label) for label in labels.values()} <= shapes.keys():
        return None
    known = [run["setup_s"] for run in results.get("suite", {}).get("runs", {}).values() if run["setup_s"] is not None]
    setup_s = sum(known) / len(known) if known else SETUP_S
    epoch_s = sum(shapes[shape(label)] for label in labels.values()) * steps_per_epoch * (1 + EVALUATION)
    return int((seconds - len(labels) * setup_s - 2 * EVALUATION * epoch_s) / epoch_s)


def shape(label: str) -> str:
    """An experiment's label without its optimizer."""
    return label.rsplit(" ", 1)[0]


def goals(document: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each goal. ``met`` is None where it was not measured, or not under the goal's own conditions."""
    stages = document["stages"]
    results, baseline = Results(stages), extrapolated(stages)
    suite, suite32, jobs = (_complete(results.get(name)) for name in ("suite", "suite32", "jobs"))
    lines = {
        "suite": [
            _suite_line("all twelve, ten epochs, bf16, whole command", "under 300 s", suite, 300.0),
            _ratio_line("the same, times as fast as plain PyTorch in fp32", 8.0, suite, baseline, "suite", "fp32"),
            _ratio_line("the same, times as fast as plain PyTorch in bf16", 4.0, suite, baseline, "suite", "bf16"),
            _context_line(results, suite, suite32),
        ],
        "suite32": [
            _ratio_line(
                "all twelve in fp32, times as fast as plain PyTorch in fp32", 2.0, suite32, baseline, "suite32", "fp32"
            ),
            _perplexity_line(document, suite, suite32),
        ],
        "jobs": [_jobs_line(suite, jobs)],
        "steps": [_memory_line(results.steps)],
    }
    for name, each in lines.items():
        for line in each:
            if line["measured"] is None:
                reason = stages.get(name, {}).get("reason")
                line |= {"measured": "not measured", "reason": reason or "a run or another stage is missing"}
            if document["rehearsal"]:
                line["met"] = None
    return [line for each in lines.values() for line in each]


def _line(what: str, goal: str, measured: str | None, value: float | None, met: bool | None) -> dict[str, Any]:
    return {"what": what, "measured": measured, "value": value, "goal": goal, "met": met}


def _complete(suite: dict[str, Any] | None) -> dict[str, Any] | None:
    """The suite if all twelve finished."""
    return suite if suite is not None and suite["complete"] else None


def _epochs(suite: dict[str, Any]) -> str:
    """Said beside a figure of a suite that was shorter than the goal's."""
    epochs = suite["epochs"]
    return "" if epochs == PAPER_EPOCHS else f" ({epochs} epoch{'s' if epochs > 1 else ''} instead of {PAPER_EPOCHS})"


def _suite_line(what: str, goal: str, suite: dict[str, Any] | None, most_s: float) -> dict[str, Any]:
    if suite is None:
        return _line(what, goal, None, None, None)
    value = suite["whole_s"]
    met = value < most_s if suite["epochs"] == PAPER_EPOCHS else None
    return _line(what, goal, f"{value:.0f} s{_epochs(suite)}", value, met)


def _ratio_line(
    what: str, least: float, suite: dict[str, Any] | None, baseline: dict[str, Any], name: str, precision: str
) -> dict[str, Any]:
    """With fewer epochs set-up weighs more on our side: what is reached then is met, what is not is left open."""
    goal, baseline_s = f"≥ {least:g} ×", baseline.get(name, {}).get(f"baseline_{precision}_s")
    if suite is None or baseline_s is None:
        return _line(what, goal, None, None, None)
    value = baseline_s / suite["whole_s"]
    met = value >= least or (False if suite["epochs"] == PAPER_EPOCHS else None)
    measured = f"{value:.1f} ×{_epochs(suite)} (extrapolated: PyTorch's {baseline_s:,.0f} s are measured steps × count)"
    return _line(what, goal, measured, value, met)


def _jobs_line(alone: dict[str, Any] | None, packed: dict[str, Any] | None) -> dict[str, Any]:
    """Epochs per second of whole commands. With fewer epochs set-up weighs more: what packed runs reach with fewer
    is met, what they do not is left open."""
    what, goal = "four runs at a time (bf16), throughput over one at a time", "≥ 1.8 ×"
    if alone is None or packed is None:
        return _line(what, goal, None, None, None)
    value = (packed["epochs"] / packed["whole_s"]) / (alone["epochs"] / alone["whole_s"])
    same, fewer = packed["epochs"] == alone["epochs"], packed["epochs"] <= alone["epochs"]
    epochs = f"{packed['epochs']} epochs each" if same else f"{packed['epochs']} epochs, alone {alone['epochs']}"
    note = f" ({epochs}, {'with MPS' if packed['mps'] else 'without MPS'})"
    return _line(what, goal, f"{value:.2f} ×{note}", value, (fewer and value >= 1.8) or (False if same else None))


def _context_line(results: Results, suite: dict[str, Any] | None, suite32: dict[str, Any] | None) -> dict[str, Any]:
    """What the driver saw of a run beyond a bare context; where it tells nothing of processes, torch's own reserve."""
    what, goal = "GPU memory of a run over the CUDA context, largest", "≤ 1,024 MiB"
    context = results.get("look", {}).get("context_mib")
    runs = [run for each in (suite, suite32) if each for run in each["runs"].values()]
    seen = [run["process_used_mib"] for run in runs if run["process_used_mib"] is not None]
    reserved = [run["torch_reserved_mib"] for run in runs if run["torch_reserved_mib"] is not None]
    if seen and context is not None:
        value, by = max(seen) - context, "driver"
    elif reserved:
        value, by = max(reserved), "torch's reserve; the driver does not tell"
    else:
        return _line(what, goal, None, None, None)
    return _line(what, goal, f"{value:,.0f} MiB ({by})", value, value <= CONTEXT_GOAL_MIB)


def _memory_line(steps: dict[str, Any]) -> dict[str, Any]:
    what, goal = "peak memory of a step over plain PyTorch's fp32 step, largest", "≤ 0.35 ×"
    ratios = [
        each[f"ours_{precision}_mib"] / each["baseline_fp32_mib"]
        for each in steps.values()
        for precision in ("fp32", "bf16")
        if each["baseline_fp32_mib"] is not None and each[f"ours_{precision}_mib"] is not None
    ]
    if not ratios:
        return _line(what, goal, None, None, None)
    return _line(
        what, goal, f"{max(ratios):.2f} × (reserved; tables included in both)", max(ratios), max(ratios) <= MEMORY_GOAL
    )


def _perplexity_line(
    document: dict[str, Any], bf16: dict[str, Any] | None, fp32: dict[str, Any] | None
) -> dict[str, Any]:
    """Over the epochs that both suites trained. One seed shows a difference that is too large, never that there is
    none."""
    what, goal = "validation perplexity, bf16 against fp32, largest difference", "≤ 1 %, three seeds"
    if bf16 is None or fp32 is None:
        return _line(what, goal, None, None, None)
    if (document["data"]["tokens"], document["data"]["tables"]) != ("given", "given"):
        return _line(what, goal, "not measured: tokens or tables were random", None, None)
    pairs = [
        (a, b)
        for n in bf16["runs"]
        for a, b in zip(bf16["runs"][n]["valid_ppl"], fp32["runs"][n]["valid_ppl"], strict=False)
        if a is not None and b
    ]
    if not pairs:
        return _line(what, goal, None, None, None)
    value = max(abs(a / b - 1) for a, b in pairs)
    met = False if value > PERPLEXITY_GOAL else None
    return _line(what, goal, f"{value:.2%} (one seed, {min(bf16['epochs'], fp32['epochs'])} epochs)", value, met)
