"""What a GPU's measurements come to: the goals, and a short table."""

from collections.abc import Callable
from typing import Any

from gpu_kernels import show_kernels

PAPER_EPOCHS = 10
CONTEXT_GOAL_MIB = 1024.0
MEMORY_GOAL = 0.35
PERPLEXITY_GOAL = 0.01


def textbook_s(parts: dict[str, Any], suite: dict[str, Any]) -> dict[str, float] | None:
    """Seconds of the textbook's script for as many steps as the suite trained, extrapolated from measured steps, its
    set-up and evaluation left out. An experiment whose steps were not timed counts as its shape with AdamW."""
    measured = parts.get("steps", {}).get("result", {}).get("experiments")
    if not measured:
        return None
    found = {}
    for precision in ("fp32", "bf16"):
        key = f"textbook_{precision}_s"
        shapes = {shape(each["label"]): each[key] for each in reversed(measured.values())}  # the first is AdamW's
        total = 0.0
        for number, run in suite["runs"].items():
            if shape(run["label"]) not in shapes:
                return None
            step_s = measured[number][key] if number in measured else shapes[shape(run["label"])]
            total += step_s * suite["steps_per_epoch"] * suite["epochs"]
        found[precision] = total
    return found


def shape(label: str) -> str:
    """An experiment's label without its optimizer."""
    return label.rsplit(" ", 1)[0]


def goals(document: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each goal. ``met`` is None where it was not measured, or not under the goal's own conditions."""
    parts = {name: entry.get("result") for name, entry in document["parts"].items()}
    reasons = {name: entry.get("reason") for name, entry in document["parts"].items()}
    bf16, fp32, jobs = (_complete(parts.get(name)) for name in ("bf16", "fp32", "jobs"))
    lines = [
        _suite_line("all twelve, ten epochs, bf16, whole command", "under 300 s", bf16, lambda s: s["whole_s"], 300.0),
        _ratio_line("the same, times as fast as the textbook's fp32", 8.0, bf16, "fp32"),
        _ratio_line("the same, times as fast as the textbook's tf32 + bf16", 4.0, bf16, "bf16"),
        _ratio_line("all twelve in fp32, times as fast as the textbook's fp32", 2.0, fp32, "fp32"),
        _jobs_line(bf16, jobs),
        _context_line(document, parts),
        _memory_line(parts.get("steps")),
        _perplexity_line(document, bf16, fp32),
    ]
    part_of = ("bf16", "bf16", "bf16", "fp32", "jobs", "bf16", "steps", "fp32")
    for line, part in zip(lines, part_of, strict=True):
        if line["measured"] is None:
            line["measured"] = "not measured"
            line["reason"] = reasons.get(part) or ("a run did not finish, or another part is missing")
        if document["rehearsal"]:
            line["met"] = None
    return lines


def _line(what: str, goal: str, measured: str | None, value: float | None, met: bool | None) -> dict[str, Any]:
    return {"what": what, "measured": measured, "value": value, "goal": goal, "met": met}


def _complete(suite: dict[str, Any] | None) -> dict[str, Any] | None:
    """The suite if all twelve finished."""
    return suite if suite is not None and suite["complete"] else None


def _epochs(suite: dict[str, Any]) -> str:
    """Said beside a figure of a suite that was shorter than the goal's."""
    epochs = suite["epochs"]
    return "" if epochs == PAPER_EPOCHS else f" ({epochs} epoch{'s' if epochs > 1 else ''} instead of {PAPER_EPOCHS})"


def _suite_line(
    what: str, goal: str, suite: dict[str, Any] | None, value_of: Callable[[dict[str, Any]], float], most: float
) -> dict[str, Any]:
    if suite is None:
        return _line(what, goal, None, None, None)
    value = value_of(suite)
    whole = suite["epochs"] == PAPER_EPOCHS
    return _line(what, goal, f"{value:.0f} s{_epochs(suite)}", value, value < most if whole else None)


def _ratio_line(what: str, least: float, suite: dict[str, Any] | None, textbook: str) -> dict[str, Any]:
    """With fewer epochs set-up weighs more on our side: what is reached then is met, what is not is left open."""
    goal = f"≥ {least:g} ×"
    if suite is None or suite["textbook_s"] is None:
        return _line(what, goal, None, None, None)
    value = suite["textbook_s"][textbook] / suite["whole_s"]
    met = value >= least or (False if suite["epochs"] == PAPER_EPOCHS else None)
    return _line(what, goal, f"{value:.1f} ×{_epochs(suite)}", value, met)


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


def _context_line(document: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """What the driver saw of a run beyond a bare context; where it tells nothing of processes, torch's own reserve."""
    what, goal = "GPU memory of a run over the CUDA context, largest", "≤ 1,024 MiB"
    context = document["machine"]["context_mib"]
    runs = [run for name in ("bf16", "fp32") if parts.get(name) for run in parts[name]["runs"].values()]
    seen = [run["process_used_mib"] for run in runs if run["process_used_mib"] is not None]
    reserved = [run["torch_reserved_mib"] for run in runs if run["torch_reserved_mib"] is not None]
    if seen and context is not None:
        value, by = max(seen) - context, "driver"
    elif reserved:
        value, by = max(reserved), "torch's reserve; the driver does not tell"
    else:
        return _line(what, goal, None, None, None)
    return _line(what, goal, f"{value:,.0f} MiB ({by})", value, value <= CONTEXT_GOAL_MIB)


def _memory_line(steps: dict[str, Any] | None) -> dict[str, Any]:
    what, goal = "peak memory of a step over the textbook's fp32 step, largest", "≤ 0.35 ×"
    ratios = [
        each[f"ours_{precision}_mib"] / each["textbook_fp32_mib"]
        for each in (steps["experiments"].values() if steps else ())
        for precision in ("fp32", "bf16")
        if each["textbook_fp32_mib"] is not None and each[f"ours_{precision}_mib"] is not None
    ]
    if not ratios:
        return _line(what, goal, None, None, None)
    return _line(
        what, goal, f"{max(ratios):.2f} × (reserved; tables included in both)", max(ratios), max(ratios) <= MEMORY_GOAL
    )


def _perplexity_line(
    document: dict[str, Any], bf16: dict[str, Any] | None, fp32: dict[str, Any] | None
) -> dict[str, Any]:
    """Of the epochs that both suites trained. One seed shows a difference that is too large, not that there is none."""
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


# ---- the table


def show(document: dict[str, Any]) -> None:
    """What was right, the shapes, and the goals."""
    machine, data, parts = document["machine"], document["data"], document["parts"]
    print(f"{machine['card']}, torch {machine['torch']}, CUDA {machine['cuda']}, {document['date']}")
    if document["rehearsal"]:
        print("A REHEARSAL on the CPU in tiny sizes: nothing here is a measurement.")
    print(f"Tokens: {data['tokens']}; tables: {data['tables']}", end="")
    print("" if data["tokens"] == data["tables"] == "given" else " (perplexities mean nothing)")
    _show_correctness(parts)
    if found := parts.get("ceilings", {}).get("result"):
        rates = ", ".join(f"{k.split('_')[0]} {v:,.1f}" for k, v in found.items() if k.endswith("_tflop_per_s"))
        print(f"Ceilings: copy {found['copy_gb_per_s']:,.0f} GB/s; products {rates} TFLOP/s")
    if found := parts.get("kernels", {}).get("result"):
        show_kernels(found)
    if found := parts.get("steps", {}).get("result"):
        _show_steps(found["experiments"], parts.get("ceilings", {}).get("result"))
    print()
    for name, entry in parts.items():
        if "reason" in entry:
            print(f"{name}: {entry['reason']}")
    words = {True: "met", False: "NOT MET", None: "–"}
    width = max(len(line["what"]) for line in document["goals"])
    for line in document["goals"]:
        print(f"{line['what']:{width}}  {line['goal']:18}  {words[line['met']]:7}  {line['measured']}")
    print("The textbook's time of a suite is extrapolated from its measured steps, without set-up and evaluation.")


def _show_correctness(parts: dict[str, Any]) -> None:
    if found := parts.get("head", {}).get("result"):
        wrong = [
            f"{c['precision']} {c['table']} {c['rows']}{' own' * c['own_kernels']}"
            for c in found["cases"]
            if c["ok"] is False
        ]
        if reasons := {c["reason"] for c in found["cases"] if "reason" in c}:
            print(f"Our kernels cannot be tried: {'; '.join(sorted(reasons))}")
        print(f"Head: {len(found['cases'])} cases against float64, {f'WRONG: {wrong}' if wrong else 'all right'}")
    if found := parts.get("twins", {}).get("result"):
        said = [
            f"{c['label']}: {c['said'][0]}"
            for p in ("fp32", "bf16")
            for c in found[p]["experiments"].values()
            if c["said"][0]
        ]
        if said:
            print(f"{len(said)} fast runs had something to say, the first {said[0]}")
        for precision in ("fp32", "bf16"):
            each = found[precision]
            wrong = [c["label"] for c in each["experiments"].values() if c["ok"] is False]
            off = "–" if each["largest_off_by"] is None else f"{each['largest_off_by']:.1e}"
            verdict = (
                f"WRONG: {', '.join(wrong)}" if each["ok"] is False else "all right" if each["ok"] else "not finished"
            )
            same = f"{each['identical']} of {len(each['experiments'])}"
            print(
                f"Twins {precision}: {each['steps']} steps each, losses at most {off} apart "
                f"(tolerance {each['tolerance']:g}), {same} to the bit: {verdict}"
            )


def _show_steps(experiments: dict[str, Any], ceiling: dict[str, Any] | None) -> None:
    """Milliseconds a step, times the textbook's, and MiB."""
    line = "{:18} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8} {:>8}"
    print()
    print(
        line.format(
            "step", "textbook", "tf32+bf16", "ours fp32", "ours bf16", "× fp32", "× bf16", "of bf16", "MiB", "of its"
        )
    )
    for each in experiments.values():
        rate = each["flops"] / each["ours_bf16_s"] / 1e12
        memory, theirs = each["ours_bf16_mib"], each["textbook_fp32_mib"]
        print(
            line.format(
                each["label"],
                f"{each['textbook_fp32_s'] * 1e3:.2f} ms",
                f"{each['textbook_bf16_s'] * 1e3:.2f} ms",
                f"{each['ours_fp32_s'] * 1e3:.2f} ms",
                f"{each['ours_bf16_s'] * 1e3:.2f} ms",
                f"{each['textbook_fp32_s'] / each['ours_fp32_s']:.2f}",
                f"{each['textbook_bf16_s'] / each['ours_bf16_s']:.2f}",
                "–" if ceiling is None else f"{rate / ceiling['bf16_tflop_per_s']:.0%}",
                "–" if memory is None else f"{memory:,.0f}",
                "–" if memory is None or theirs is None else f"{memory / theirs:.0%}",
            )
        )
    print(
        "× fp32, × bf16: ours over the textbook, in fp32 and in bf16. of bf16: share of the measured product. MiB: ours"
    )
    print("in bf16, and its share of the textbook's fp32.")
