"""Table of the GPU benchmark, which it prints last: all results in at most 12,000 characters."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from gpu_goals import CHECKS, PAPER_EPOCHS, Results, extrapolated

MAX_CHARACTERS = 12_000
MAX_MESSAGE = 160
"""Characters of a message."""
MAX_MESSAGES = 5
GAUGES = (
    ("memory used, MiB", "device_used_mib", "memory.used"),
    ("power, W", "power_w", "power.draw"),
    ("temperature, °C", "temperature_c", "temperature.gpu"),
    ("utilization, %", "utilization_percent", "utilization.gpu"),
)
"""Gauge, field of ``GpuSample``, field of nvidia-smi."""


def table(document: dict[str, Any], file: str | None) -> str:
    """Return the table of everything in ``document``."""
    results = Results(document["stages"])
    parts = (
        _heading(document, file),
        _checks(results),
        gauge_lines(results),
        _smoke(results),
        _suite(results, document),
        _steps(results),
        _attention(results),
        _concurrency(results),
        _kernels(results),
        _matmuls(results),
        _estimates(document),
        _goals(document),
        _notes(document),
    )
    blocks = ["\n".join(lines) for part in parts if (lines := list(part))]
    return shortened("\n\n".join(blocks), MAX_CHARACTERS)


def shortened(text: str, most: int) -> str:
    """Return ``text``, with its middle left out if it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    note = "\n… (left out; every number is in the file) …\n"
    half = (most - len(note)) // 2
    return text[:half] + note + text[-half:]


def _heading(document: dict[str, Any], file: str | None) -> Iterator[str]:
    machine, data = document["machine"], document["data"]
    versions = f"torch {machine['torch']}, CUDA {machine['cuda'] or '–'}, driver {machine['driver'] or '–'}"
    yield f"{machine['card']}, {versions}, {document['date']}"
    if document["rehearsal"]:
        yield "REHEARSAL on the CPU in tiny sizes: these numbers are not measurements of a GPU."
    given = data["tokens"] == data["tables"] == "given"
    note = "" if given else " (perplexities are meaningless)"
    yield f"Tokens: {data['tokens']}; embedding tables: {data['tables']}{note}."
    if file is not None:
        yield f"All results: {file}"


def _checks(results: Results) -> Iterator[str]:
    if found := results.get("head"):
        wrong = [
            f"{case['precision']} {case['table']} {case['rows']}{' Triton' if case['use_triton'] else ''}"
            for case in found["cases"]
            if case["ok"] is False
        ]
        verdict = f"WRONG: {', '.join(wrong)}" if wrong else "all agree"
        yield f"Linear cross-entropy compared with float64, {len(found['cases'])} cases: {verdict}"
        for reason in sorted({case["reason"] for case in found["cases"] if "reason" in case}):
            yield f"The Triton kernel does not work here: {_cut(reason)}"
    for name, precision in (("reference", "bf16"), ("reference32", "fp32")):
        if found := results.get(name):
            yield from _reference(found, precision)
    if found := results.get("tests"):
        yield f"Tests on the GPU: {_cut(found['summary'])}"


def _reference(found: dict[str, Any], precision: str) -> Iterator[str]:
    each = found["experiments"].values()
    wrong = ", ".join(run["label"] for run in each if run["ok"] is False)
    verdict = {True: "all agree", False: f"WRONG: {wrong}", None: "unfinished"}[found["ok"]]
    difference = "–" if found["largest_difference"] is None else f"{found['largest_difference']:.1e}"
    yield (
        f"Fast paths compared with the reference implementation, {precision}, {found['steps']} steps: "
        f"losses differ by at most {difference} (tolerance {found['tolerance']:g}), "
        f"{found['identical']} of {len(each)} experiments identical: {verdict}"
    )
    messages = [f"{run['label']}: {_cut(run['messages'][0])}" for run in each if run["messages"][0]]
    if messages:
        yield f"  {len(messages)} runs on the fast paths printed messages, the first {messages[0]}"


def gauge_lines(results: dict[str, Any]) -> Iterator[str]:
    """Return the readings of the GPU, lmconsole's next to nvidia-smi's."""
    found = results.get("gauge")
    if found is None:
        return
    if not found["available"]:
        yield f"No GPU readings: {_cut(found['reason'])}"
        return
    states = found["states"]
    yield f"{'GPU readings: lmconsole / nvidia-smi':36}" + "".join(f"{state:>22}" for state in states)
    for gauge, field, smi_field in GAUGES:
        pairs = (
            f"{_number((state['ours'] or {}).get(field), 1)} / {state['nvidia_smi'].get(smi_field, '–')}"
            for state in states.values()
        )
        yield f"{gauge:36}" + "".join(f"{pair[:21]:>22}" for pair in pairs)
    yield f"{'memory of this process, MiB':36}" + "".join(
        f"{_number((state['ours'] or {}).get('process_used_mib'), 1):>22}" for state in states.values()
    )
    load = states.get("load")
    if load and load["energy_j"] is not None:
        watts = load["energy_j"] / load["elapsed_s"]
        joules = f"{load['energy_j']:.0f} J in {load['elapsed_s']:.2f} s"
        yield f"energy under load, by the driver's counter: {joules}, {watts:.0f} W"


def _smoke(results: Results) -> Iterator[str]:
    columns = [(name, results[name]["shapes"]) for name in ("smoke", "smoke32") if name in results]
    if not columns:
        return
    line = "{:20}" + "{:>12}{:>11}{:>11}{:>12}" * len(columns)
    header = itertools.chain.from_iterable(
        (f"{'bf16' if name == 'smoke' else 'fp32'} step", "capture", "kernels", "reserved") for name, _ in columns
    )
    yield line.format("captured step", *header)
    for experiment in dict.fromkeys(experiment for _, shapes in columns for experiment in shapes):
        cells: list[str] = []
        label = ""
        for _, shapes in columns:
            each = shapes.get(experiment, {})
            label = each.get("label", label)
            busy_us = each.get("profile", {}).get("busy_us")
            cells += [
                _unit(each.get("step_ms"), "ms", 2),
                _unit(each.get("capture_s"), "s", 1),
                _unit(None if busy_us is None else busy_us / 1000, "ms", 2),
                _unit(each.get("reserved_mib"), "MiB", 0),
            ]
        yield line.format(label, *cells)
    for name, shapes in columns:
        for each in shapes.values():
            if not each["ok"]:
                reason = each["trace"].strip().splitlines()[-1] if "trace" in each else each["fast_paths_refused"]
                yield f"{name}, {each['label']}: FAILED: {_cut(reason or 'the loss is not finite')}"


def _suite(results: Results, document: dict[str, Any]) -> Iterator[str]:
    found = results.get("suite")
    if found is None:
        return
    count = len(document["labels"])
    cut_off = "" if found["complete"] else ", CUT OFF"
    planned = count * found["epochs"] * found["steps_per_epoch"]
    yield (
        f"All {count} experiments, {found['epochs']} epochs, bf16, by {found['command']}: {found['whole_s']:.0f} s, "
        f"{found['finished']} finished{cut_off}; {found['trained_steps']:,} of {planned:,} steps trained"
    )
    line = "{:>3} {:18}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>10}{:>10}"
    header = ("train s", "valid s", "setup s", "other s", "wall s", "kJ", "torch MiB", "proc. MiB")
    yield line.format("", "run", *header)
    for experiment, run in sorted(found["runs"].items(), key=lambda item: int(item[0])):
        train_s, valid_s = _total(run["train_s"]), _total(run["valid_s"])
        setup_s, wall_s, energy_j = run["setup_s"], run["wall_s"], run["energy_j"]
        known = setup_s is not None and wall_s is not None
        yield line.format(
            experiment,
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
        train_s, valid_s = (sum(_total(run[field]) for run in runs) for field in ("train_s", "valid_s"))
        setup_s, wall_s = (sum(run[field] for run in runs) for field in ("setup_s", "wall_s"))
        sums = (train_s, valid_s, setup_s, wall_s - setup_s - train_s - valid_s, wall_s)
        yield line.format("", "all", *(f"{seconds:.1f}" for seconds in sums), "", "", "").rstrip()
    messages: dict[str, list[str]] = {}
    for experiment, run in found["runs"].items():
        if run["status"] != "finished" or run["message"]:
            messages.setdefault(f"{run['status']}: {_cut(run['message'])}", []).append(experiment)
    for message, experiments in itertools.islice(messages.items(), MAX_MESSAGES):
        yield f"run {', '.join(experiments)} {message}"


def _steps(results: Results) -> Iterator[str]:
    if not results.steps:
        return
    peak = results.get("peaks", {}).get("bf16_tflop_per_s")
    yield f"{'':18}{'plain PyTorch':>22}{'lmconsole':>22}{'speed-up':>18}{'lmconsole in bf16':>27}"
    line = "{:18}{:>11}{:>11}{:>11}{:>11}{:>9}{:>9}{:>9}{:>9}{:>9}"
    yield line.format("step", "fp32", "bf16", "fp32", "bf16", "fp32", "bf16", "of peak", "MiB", "relative")
    for each in results.steps.values():
        memory_mib, baseline_mib = each["ours_bf16_mib"], each["baseline_fp32_mib"]
        yield line.format(
            each["label"],
            *(
                f"{each[name] * 1e3:.2f} ms"
                for name in ("baseline_fp32_s", "baseline_bf16_s", "ours_fp32_s", "ours_bf16_s")
            ),
            f"{each['baseline_fp32_s'] / each['ours_fp32_s']:.2f}×",
            f"{each['baseline_bf16_s'] / each['ours_bf16_s']:.2f}×",
            "–" if peak is None else f"{each['flops'] / each['ours_bf16_s'] / 1e12 / peak:.0%}",
            _number(memory_mib, 0),
            "–" if memory_mib is None or not baseline_mib else f"{memory_mib / baseline_mib:.0%}",
        )
    yield "plain PyTorch, bf16: autocast, and TF32 elsewhere. of peak: share of the measured peak matmul throughput."
    yield "MiB: peak of the memory reserved. relative: the same as a share of plain PyTorch's in fp32."
    if found := results.get("peaks"):
        rates = ", ".join(f"{key.split('_')[0]} {v:,.1f}" for key, v in found.items() if key.endswith("_tflop_per_s"))
        yield f"Measured peaks: copy {found['copy_gb_per_s']:,.0f} GB/s; matmul {rates} TFLOP/s"


def _attention(results: Results) -> Iterator[str]:
    if found := results.get("sdpa"):
        if "verdict" in found:
            yield f"Attention: {found['verdict']}"
        for name, each in found["backends"].items():
            if "failed" not in each:
                first = ", ".join(
                    f"{windows}: {1000 * s:.0f} + {1000 * each['first_backward_s'].get(windows, 0):.0f} ms"
                    for windows, s in each["first_forward_s"].items()
                )
                yield f"  {name}: {each['ms']:.3f} ms per layer; first calls by batch size, forward + backward: {first}"


def _concurrency(results: Results) -> Iterator[str]:
    if found := results.get("gang"):
        gains = (f"{'+'.join(map(str, each['experiments']))}: {each['gain']:.2f}×" for each in found["together"])
        yield f"Concurrent experiments in one process, speed-up over one after the other: {', '.join(gains) or '–'}"
    if found := results.get("jobs"):
        mps = "with" if found["mps"] else "without"
        yield (
            f"All experiments, four at a time, {mps} MPS, {found['epochs']} epochs: {found['whole_s']:.0f} s, "
            f"{found['finished']} finished"
        )


def _kernels(results: Results) -> Iterator[str]:
    found = results.get("kernels")
    if found is None:
        return
    yield f"{'LSTM, forward and backward':36}{'ms':>9}   {'linear cross-entropy with gradient':38}{'ms':>9}"
    for left, right in itertools.zip_longest(found["lstm_ms"].items(), found["head_ms"].items(), fillvalue=("", None)):
        cells = (
            f"{name:{width}}{'' if ms is None else f'{ms:9.3f}':9}" for (name, ms), width in ((left, 36), (right, 38))
        )
        yield "   ".join(cells).rstrip()
    for name, reason in itertools.islice(found["failed"].items(), MAX_MESSAGES):
        yield f"{name}: {_cut(reason)}"
    tiles = f"tiles of {found['tile_logits'] / 2**20:g} M logits"
    yield f"Training in bf16 uses 'fp16, layer by layer' and {tiles}."


def _matmuls(results: Results) -> Iterator[str]:
    for name, each in results.get("split", {}).items():
        yield f"{f'fp32 logits: {name}':52}{each['ms']:9.3f} ms   relative error {each['error']:.1e}"


def _estimates(document: dict[str, Any]) -> Iterator[str]:
    width = max(len(each["what"]) for each in document["estimates"])
    yield f"{'estimates for an H100':{width}}{'estimated':>18}{'measured':>14}"
    for each in document["estimates"]:
        low, high, unit, measured = each["low"], each["high"], each["unit"], each["measured"]
        estimated = f"{low:,g}" if low == high else f"{low:,g}–{high:,g}"
        value = "–" if measured is None else f"{measured:,.2f} {unit}" if measured < 10 else f"{measured:,.0f} {unit}"
        yield f"{each['what']:{width}}{f'{estimated} {unit}':>18}{value:>14}"


def _goals(document: dict[str, Any]) -> Iterator[str]:
    met = {True: "yes", False: "NO", None: "–"}
    width = max(len(each["what"]) for each in document["goals"])
    yield f"{'what':{width}}  {'goal':18}  {'met':7}  measured"
    for each in document["goals"]:
        yield f"{each['what']:{width}}  {each['goal']:18}  {met[each['met']]:7}  {each['measured']}"


def _notes(document: dict[str, Any]) -> Iterator[str]:
    """Return the time of every stage, the reasons of missing results, and stages measured with other code."""
    stages = document["stages"]
    yield "Stages: " + ", ".join(f"{name} {entry['seconds']:.0f} s" for name, entry in stages.items())
    for name, entry in stages.items():
        if "reason" in entry:
            partly = ", partly measured" if "result" in entry else ""
            yield f"{name}: {'FAILED' if entry.get('failed') else 'not measured'}{partly}: {_cut(entry['reason'])}"
    if other_code := [name for name, entry in stages.items() if entry["code"] != document["code"]]:
        yield f"Measured with other code: {', '.join(other_code)}"
    if extrapolated(stages):
        yield "Plain PyTorch's time of a suite is extrapolated from measured steps, without setup and evaluation."
    suite = Results(stages).get("suite")
    if suite and suite["epochs"] != PAPER_EPOCHS:
        yield f"The suite trained {suite['epochs']} epochs; the goals are for {PAPER_EPOCHS}."
    checked = any("result" in stages.get(name, {}) for name in CHECKS)
    unknown = "some checks are unfinished" if checked else "nothing was checked"
    verdict = {True: "all checks passed", False: "A CHECK FAILED", None: unknown}[document["correct"]]
    yield f"Result: {verdict}."


def _total(values: Iterable[float | None]) -> float:
    """Return the sum of the known values."""
    return sum(value or 0 for value in values)


def _cut(text: str | None) -> str:
    line = " ".join((text or "–").split())
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 1]}…"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _unit(value: float | None, unit: str, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f} {unit}"
