"""The table that the GPU benchmark prints last: everything a person needs, in 12,000 characters at most."""

import itertools
from collections.abc import Iterator
from typing import Any

from gpu_goals import CHECKS, PAPER_EPOCHS, Results, extrapolated

MOST_CHARACTERS = 12_000
MOST_MESSAGE = 160
MOST_MESSAGES = 5
GAUGES = (
    ("memory used, MiB", "device_used_mib", "memory.used"),
    ("power, W", "power_w", "power.draw"),
    ("temperature, °C", "temperature_c", "temperature.gpu"),
    ("utilization, %", "utilization_percent", "utilization.gpu"),
)
"""What is read, our name for it, and nvidia-smi's."""


def table(document: dict[str, Any], file: str | None) -> str:
    """Return the table of everything in ``document``."""
    results = Results(document["stages"])
    parts = (
        _heading(document, file),
        _correctness(results),
        _gauge(results),
        _smoke(results),
        _suite(results, document),
        _steps(results),
        _attention(results),
        _side_by_side(results),
        _kernels(results),
        _products(results),
        _estimates(document),
        _goals(document),
        _notes(document),
    )
    blocks = ["\n".join(lines) for part in parts if (lines := list(part))]
    return shortened("\n\n".join(blocks), MOST_CHARACTERS)


def shortened(text: str, most: int) -> str:
    """Return ``text``, or its beginning and its end with a note between, so that it has ``most`` characters."""
    if len(text) <= most:
        return text
    note = "\n… (left out here; every number is in the file) …\n"
    half = (most - len(note)) // 2
    return text[:half] + note + text[-half:]


def _heading(document: dict[str, Any], file: str | None) -> Iterator[str]:
    machine, data = document["machine"], document["data"]
    versions = f"torch {machine['torch']}, CUDA {machine['cuda'] or '–'}, driver {machine['driver'] or '–'}"
    yield f"{machine['card']}, {versions}, {document['date']}"
    if document["rehearsal"]:
        yield "A REHEARSAL on the CPU in tiny sizes: nothing here is a measurement."
    given = data["tokens"] == data["tables"] == "given"
    meaning = "" if given else " (perplexities mean nothing)"
    yield f"Tokens: {data['tokens']}; tables: {data['tables']}{meaning}."
    if file is not None:
        yield f"Every number: {file}"


def _correctness(results: Results) -> Iterator[str]:
    if found := results.get("head"):
        wrong = [
            f"{c['precision']} {c['table']} {c['rows']}{' own' * c['own_kernels']}"
            for c in found["cases"]
            if c["ok"] is False
        ]
        verdict = f"WRONG: {', '.join(wrong)}" if wrong else "all right"
        yield f"Head: {len(found['cases'])} cases compared with float64, {verdict}"
        for reason in sorted({c["reason"] for c in found["cases"] if "reason" in c}):
            yield f"Our kernels cannot be tried: {_cut(reason)}"
    for name, precision in (("reference", "bf16"), ("reference32", "fp32")):
        if found := results.get(name):
            yield from _reference(found, precision)
    if found := results.get("tests"):
        yield f"Tests on the GPU: {_cut(found['summary'])}"


def _reference(found: dict[str, Any], precision: str) -> Iterator[str]:
    each = found["experiments"].values()
    wrong = ", ".join(c["label"] for c in each if c["ok"] is False)
    verdict = {True: "all right", False: f"WRONG: {wrong}", None: "not finished"}[found["ok"]]
    off = "–" if found["largest_off_by"] is None else f"{found['largest_off_by']:.1e}"
    yield (
        f"Fast paths and reference, {precision}: {found['steps']} steps each, losses at most {off} apart "
        f"(tolerance {found['tolerance']:g}), {found['identical']} of {len(each)} to the bit: {verdict}"
    )
    messages = [f"{c['label']}: {_cut(c['messages'][0])}" for c in each if c["messages"][0]]
    if messages:
        yield f"  {len(messages)} fast runs printed something, the first {messages[0]}"


def _gauge(results: Results) -> Iterator[str]:
    found = results.get("gauge")
    if found is None:
        return
    if not found["available"]:
        yield f"Gauge: no readings: {_cut(found['reason'])}"
        return
    yield f"{'gauge (ours / nvidia-smi)':34}" + "".join(f"{state:>22}" for state in found["states"])
    for what, ours, theirs in GAUGES:
        pairs = (
            f"{_number((each['ours'] or {}).get(ours), 1)} / {each['nvidia_smi'].get(theirs, '–')}"
            for each in found["states"].values()
        )
        yield f"{what:34}" + "".join(f"{pair[:21]:>22}" for pair in pairs)
    states = found["states"].values()
    yield f"{'memory of this process, MiB':34}" + "".join(
        f"{_number((each['ours'] or {}).get('process_used_mib'), 1):>22}" for each in states
    )
    load = found["states"].get("load")
    if load and load["energy_j"] is not None:
        watts = load["energy_j"] / load["elapsed_s"]
        joules = f"{load['energy_j']:.0f} J in {load['elapsed_s']:.2f} s"
        yield f"energy under load, by the driver's counter: {joules}, {watts:.0f} W"


def _smoke(results: Results) -> Iterator[str]:
    columns = [(name, results[name]["shapes"]) for name in ("smoke", "smoke32") if name in results]
    if not columns:
        return
    line = "{:20}" + "{:>12}{:>11}{:>11}{:>12}" * len(columns)
    heads = itertools.chain.from_iterable(
        (f"{'bf16' if name == 'smoke' else 'fp32'} step", "capture", "kernels", "reserved") for name, _ in columns
    )
    yield line.format("captured step", *heads)
    for number in dict.fromkeys(number for _, shapes in columns for number in shapes):
        cells: list[str] = []
        label = ""
        for _, shapes in columns:
            each = shapes.get(number, {})
            label = each.get("label", label)
            kernels = each.get("profile", {}).get("busy_us")
            cells += [
                _unit(each.get("step_ms"), "ms", 2),
                _unit(each.get("capture_s"), "s", 1),
                _unit(None if kernels is None else kernels / 1000, "ms", 2),
                _unit(each.get("reserved_mib"), "MiB", 0),
            ]
        yield line.format(label, *cells)
    for name, shapes in columns:
        for each in shapes.values():
            if not each["ok"]:
                last = each["trace"].strip().splitlines()[-1] if "trace" in each else each.get("fast_refused")
                yield f"{name}, {each['label']}: FAILED: {_cut(last or 'the loss is not finite')}"


def _suite(results: Results, document: dict[str, Any]) -> Iterator[str]:
    found = results.get("suite")
    if found is None:
        return
    of = len(document["labels"])
    short = "" if found["complete"] else ", CUT OFF"
    planned = of * found["epochs"] * found["steps_per_epoch"]
    steps = f"{found['trained_steps']:,} of {planned:,} steps trained, none extrapolated"
    yield (
        f"All {of}, {found['epochs']} epochs, bf16, by {found['command']}: {found['whole_s']:.0f} s, "
        f"{found['finished']} finished{short}; {steps}"
    )
    line = "{:>3} {:18}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>10}{:>10}"
    heads = ("train s", "valid s", "set-up s", "other s", "wall s", "kJ", "torch MiB", "proc. MiB")
    yield line.format("", "run", *heads)
    for number, run in sorted(found["runs"].items(), key=lambda item: int(item[0])):
        train_s, valid_s = (sum(x or 0 for x in run[field]) for field in ("train_s", "valid_s"))
        setup_s, wall_s, energy_j = run["setup_s"], run["wall_s"], run["energy_j"]
        known = setup_s is not None and wall_s is not None
        yield line.format(
            number,
            run["label"],
            f"{train_s:.1f}",
            f"{valid_s:.1f}",
            _number(setup_s, 1),
            _number(wall_s - setup_s - train_s - valid_s if known else None, 1),
            _number(wall_s, 1),
            _number(None if energy_j is None else energy_j / 1000, 1),
            _number(run["torch_reserved_mib"], 0),
            _number(run["process_used_mib"], 0),
        )
    if found["complete"]:
        runs = found["runs"].values()
        train_s, valid_s = (sum(sum(x or 0 for x in run[field]) for run in runs) for field in ("train_s", "valid_s"))
        setup_s, wall_s = (sum(run[field] for run in runs) for field in ("setup_s", "wall_s"))
        sums = (train_s, valid_s, setup_s, wall_s - setup_s - train_s - valid_s, wall_s)
        yield line.format("", "all", *(f"{seconds:.1f}" for seconds in sums), "", "", "").rstrip()
    messages: dict[str, list[str]] = {}
    for number, run in found["runs"].items():
        if run["status"] != "finished" or run["message"]:
            messages.setdefault(f"{run['status']}: {_cut(run['message'])}", []).append(number)
    for message, numbers in itertools.islice(messages.items(), MOST_MESSAGES):
        yield f"run {', '.join(numbers)} {message}"


def _steps(results: Results) -> Iterator[str]:
    if not results.steps:
        return
    peak = results.get("peaks", {}).get("bf16_tflop_per_s")
    line = "{:18}{:>11}{:>11}{:>11}{:>11}{:>8}{:>8}{:>9}{:>10}{:>9}"
    heads = ("PyTorch", "tf32+bf16", "ours fp32", "ours bf16", "× fp32", "× bf16", "of peak", "ours MiB", "of its")
    yield line.format("step", *heads)
    for each in results.steps.values():
        rate = each["flops"] / each["ours_bf16_s"] / 1e12
        memory, theirs = each["ours_bf16_mib"], each["baseline_fp32_mib"]
        yield line.format(
            each["label"],
            *(
                f"{each[name] * 1e3:.2f} ms"
                for name in ("baseline_fp32_s", "baseline_bf16_s", "ours_fp32_s", "ours_bf16_s")
            ),
            f"{each['baseline_fp32_s'] / each['ours_fp32_s']:.2f}",
            f"{each['baseline_bf16_s'] / each['ours_bf16_s']:.2f}",
            "–" if peak is None else f"{rate / peak:.0%}",
            _number(memory, 0),
            "–" if memory is None or not theirs else f"{memory / theirs:.0%}",
        )
    yield "× fp32, × bf16: times as fast as plain PyTorch in the same precision. of peak: share of the peak matmul"
    yield "throughput measured in bf16. ours MiB, of its: reserved in bf16, and its share of plain PyTorch's in fp32."
    if found := results.get("peaks"):
        rates = ", ".join(f"{k.split('_')[0]} {v:,.1f}" for k, v in found.items() if k.endswith("_tflop_per_s"))
        yield f"Peak rates, measured: copy {found['copy_gb_per_s']:,.0f} GB/s; matmul {rates} TFLOP/s"


def _attention(results: Results) -> Iterator[str]:
    if found := results.get("sdpa"):
        if "verdict" in found:
            yield f"Attention: {found['verdict']}"
        for name, each in found["backends"].items():
            if "failed" not in each:
                first = ", ".join(
                    f"{B}: {1000 * s:.0f} + {1000 * each['first_backward_s'].get(B, 0):.0f} ms"
                    for B, s in each["first_forward_s"].items()
                )
                yield f"  {name}: {each['ms']:.3f} ms a layer; first calls by windows, forward + backward: {first}"


def _side_by_side(results: Results) -> Iterator[str]:
    if found := results.get("gang"):
        gains = (f"{'+'.join(map(str, each['experiments']))}: {each['gain']:.2f} ×" for each in found["together"])
        yield f"Experiments side by side in one process, times as fast as in turns: {', '.join(gains) or '–'}"
    if found := results.get("jobs"):
        with_mps = "with" if found["mps"] else "without"
        yield (
            f"Four at a time, {with_mps} MPS, {found['epochs']} epochs: {found['whole_s']:.0f} s, "
            f"{found['finished']} finished"
        )


def _kernels(results: Results) -> Iterator[str]:
    found = results.get("kernels")
    if found is None:
        return
    yield f"{'LSTM, forward and backward':36}{'ms':>9}   {'head, loss and gradient':38}{'ms':>9}"
    for left, right in itertools.zip_longest(found["lstm_ms"].items(), found["head_ms"].items(), fillvalue=("", None)):
        cells = (
            f"{name:{width}}{'' if ms is None else f'{ms:9.3f}':9}" for (name, ms), width in ((left, 36), (right, 38))
        )
        yield "   ".join(cells).rstrip()
    for name, reason in itertools.islice(found["failed"].items(), MOST_MESSAGES):
        yield f"{name}: {_cut(reason)}"
    yield f"In bf16 training uses 'fp16, by layer', and tiles of {found['tile_values'] / 2**20:g} M logits."


def _products(results: Results) -> Iterator[str]:
    for name, each in results.get("split", {}).items():
        yield f"{f'logits in float32: {name}':52}{each['ms']:9.3f} ms   {each['off_by']:.1e} off float64"


def _estimates(document: dict[str, Any]) -> Iterator[str]:
    width = max(len(each["what"]) for each in document["estimates"])
    yield f"{'estimates, made for an H100':{width}}{'estimated':>18}{'measured':>14}"
    for each in document["estimates"]:
        low, high, unit, measured = each["low"], each["high"], each["unit"], each["measured"]
        estimated = f"{low:,g}" if low == high else f"{low:,g}–{high:,g}"
        value = "–" if measured is None else f"{measured:,.2f} {unit}" if measured < 10 else f"{measured:,.0f} {unit}"
        yield f"{each['what']:{width}}{f'{estimated} {unit}':>18}{value:>14}"


def _goals(document: dict[str, Any]) -> Iterator[str]:
    words = {True: "yes", False: "NO", None: "–"}
    width = max(len(line["what"]) for line in document["goals"])
    yield f"{'what':{width}}  {'goal':18}  {'met':7}  measured"
    for line in document["goals"]:
        yield f"{line['what']:{width}}  {line['goal']:18}  {words[line['met']]:7}  {line['measured']}"


def _notes(document: dict[str, Any]) -> Iterator[str]:
    """What took how long, what has no result and why, and what was measured by other code."""
    stages = document["stages"]
    yield "Stages: " + ", ".join(f"{name} {entry['seconds']:.0f} s" for name, entry in stages.items())
    for name, entry in stages.items():
        if "reason" in entry:
            part = ", in part measured" if "result" in entry else ""
            yield f"{name}: {'FAILED' if entry.get('failed') else 'not measured'}{part}: {_cut(entry['reason'])}"
    if left := [name for name, entry in stages.items() if entry["code"] != document["code"]]:
        yield f"Measured by another state of the code: {', '.join(left)}"
    if extrapolated(stages):
        yield "Plain PyTorch's time of a suite is extrapolated: its measured steps, set-up and evaluation left out."
    suite = Results(stages).get("suite")
    if suite and suite["epochs"] != PAPER_EPOCHS:
        yield f"The suite trained {suite['epochs']} epochs; the goals are about {PAPER_EPOCHS}."
    checked = any("result" in stages.get(name, {}) for name in CHECKS)
    unknown = "not everything was checked to its end" if checked else "nothing was checked"
    words = {True: "everything that was checked is right", False: "SOMETHING IS WRONG", None: unknown}
    yield f"Result: {words[document['correct']]}."


def _cut(text: str | None) -> str:
    line = " ".join((text or "–").split())
    return line if len(line) <= MOST_MESSAGE else f"{line[: MOST_MESSAGE - 1]}…"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _unit(value: float | None, unit: str, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f} {unit}"
