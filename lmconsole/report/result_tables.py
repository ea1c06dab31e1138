"""Tables 1 and 2: perplexities, and memory and energy."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from lmconsole import formatting
from lmconsole.report.captions import (
    INFERRED_MARK,
    describe_for_table,
    describe_group,
    explain_padding,
    inferred_experiments,
    join_sentences,
    name_experiments,
    ppl_denominator,
    seed_list,
)
from lmconsole.report.markup import DASH, format_ppl, format_spread
from lmconsole.report.results import (
    MIN_SAMPLES,
    explain_marks,
    memory_frame,
    not_below_unigram,
    results_frame,
    uses_gpu,
)
from lmconsole.report.selection import Group
from lmconsole.report.table import Cell, Column, Table

RESULTS, MEMORY = "table-1-results", "table-2-memory"
"""Names of the files of Tables 1 and 2, without suffix."""

_EXPERIMENT = (Column(header="Architecture"), Column(header="Layers", numeric=True), Column(header="Optimizer"))


def results_table(group: Group, *, bold: bool = True) -> Table:
    """Return Table 1: perplexities of every experiment at its epoch with the lowest validation perplexity.

    Args:
        bold: Whether the best row of each architecture is bold.
    """
    frame = results_frame(group)
    inferred = inferred_experiments(group)
    rows = []
    for record in frame.to_dict("records"):
        texts = {
            **_experiment_texts(record),
            "Train PPL": _mean_and_sd(record["train_ppl"], record["train_ppl_sd"]),
            "Validation PPL": _mean_and_sd(record["valid_ppl"], record["valid_ppl_sd"]) + record["marks"],
            "Test PPL": _mean_and_sd(record["test_ppl"], record["test_ppl_sd"]),
            "Epoch": _format(record["epoch"], "g"),
            "Experiment": _id_and_name(record) + (INFERRED_MARK if record["experiment"] in inferred else ""),
        }
        rows.append({header: Cell(text, bold=bold and bool(record["best"])) for header, text in texts.items()})
    data = frame.rename(columns={"experiment": "config"})
    ppls = ["train_ppl", "train_ppl_sd", "valid_ppl", "valid_ppl_sd"]
    test_ppls = ["test_ppl", "test_ppl_sd"]  # the last columns, since earlier versions had none
    data[ppls + test_ppls] = data[ppls + test_ppls].round(3)
    data["epoch"] = [None if pd.isna(epoch) else f"{epoch:g}" for epoch in frame["epoch"]]
    columns = ["architecture", "layers", "optimizer", *ppls, "epoch", "config", "name", "seeds", "complete", "best"]
    numeric = ("Train PPL", "Validation PPL", "Test PPL", "Epoch", "Experiment")
    caption = "Perplexity (PPL) of each experiment at its epoch with the lowest validation PPL."
    if bold and frame["best"].any():
        caption += " Bold: lowest validation PPL of each architecture, which is not a claim."
    return Table(
        label="tab:results",
        title="Table 1",
        caption=caption,
        notes=_results_notes(group, frame, bold=bold),
        setting=join_sentences(
            [f"PPL is per {ppl_denominator(group)}.", *explain_padding(group), describe_for_table(group)]
        ),
        columns=[*_EXPERIMENT, *(Column(header=header, numeric=True) for header in numeric)],
        rows=rows,
        data=data[columns + test_ppls],
    )


def memory_table(group: Group) -> Table:
    """Return Table 2: GPU memory, utilization and energy, host memory if no GPU was used, or memory readings of
    imported runs."""
    frame = memory_frame(group)
    if group.imported:
        return _readings_table(group, frame)
    on_gpu = bool(frame["memory_mib"].notna().any()) or uses_gpu(group)
    return _gpu_memory_table(group, frame) if on_gpu else _host_memory_table(group, frame)


def _gpu_memory_table(group: Group, frame: pd.DataFrame) -> Table:
    rows = []
    for record in frame.to_dict("records"):
        mark = "*" if record["scope"] == "device" else ""
        texts = {
            **_experiment_texts(record),
            "Memory (MiB)": f"{_format(record['memory_mib'])}{mark}/{_format(record['device_total_mib'])}",
            "Peak allocated (MiB)": _format(record["allocated_peak_mib"]),
            "GPU (%)": _format(record["utilization_percent"], ".0f"),
            "n": str(record["samples"]),
            "Energy (kJ)": _kilojoules(record["energy_j"]),
            "Experiment": _id_and_name(record) + record["mark"],
        }
        rows.append({header: Cell(text) for header, text in texts.items()})
    columns = ["architecture", "layers", "optimizer", "memory_mib", "scope", "device_total_mib", "allocated_peak_mib"]
    columns += ["utilization_percent", "samples", "energy_j", "experiment", "name"]
    notes = (
        "Memory: process memory / total device memory, mean over n samples taken about once a second during training, "
        f"from the second epoch on if there is one; {DASH} for fewer than {MIN_SAMPLES} samples. Peak allocated: "
        "largest amount of memory held by tensors at once. Energy: that of the whole board, from the driver's counter, "
        f"for training and validation over all epochs{', mean over seeds' if len(group.seeds) > 1 else ''}."
    )
    if frame["energy_j"].isna().any():
        notes += (
            f" It is unknown ({DASH}) if the GPU was shared (other processes, several runs at once, MIG slices), if "
            "training is unfinished or took less than two seconds, or if the driver does not report it."
        )
    if frame["scope"].eq("device").any():
        notes += " *: memory of the whole device, because the driver did not report that of the process."
    numeric = ("Memory (MiB)", "Peak allocated (MiB)", "GPU (%)", "n", "Energy (kJ)", "Experiment")
    return Table(
        label="tab:memory",
        title="Table 2",
        caption="GPU memory, utilization and energy.",
        notes=join_sentences([notes, explain_marks("".join(frame["mark"]))]),
        setting=describe_group(group),
        columns=[*_EXPERIMENT, *(Column(header=header, numeric=True) for header in numeric)],
        rows=rows,
        data=frame[columns].round(1).rename(columns={"experiment": "config"}),
    )


def _readings_table(group: Group, frame: pd.DataFrame) -> Table:
    """Return Table 2 of imported runs. Total memory and utilization have columns only if a source has them."""
    columns = {"memory_mib": "Device memory used (MiB)", "device_total_mib": "of total (MiB)"}
    columns["utilization_percent"] = "GPU (%)"
    shown = [column for column in columns if column == "memory_mib" or frame[column].notna().any()]
    headers = [*(columns[column] for column in shown), "n", "Experiment"]
    inferred = inferred_experiments(group)
    rows = []
    for record in frame.to_dict("records"):
        texts = {
            **_experiment_texts(record),
            **{columns[column]: _format(record[column]) for column in shown},
            "n": f"{record['samples']:,}",
            "Experiment": _id_and_name(record)
            + record["mark"]
            + (INFERRED_MARK if record["experiment"] in inferred else ""),
        }
        rows.append({header: Cell(text) for header, text in texts.items()})
    known = frame["memory_mib"].notna()
    notes = "The sources have no readings of memory (gpu_memory.txt)."
    if known.any():
        notes = (
            "Memory in use on the device by all of its processes, mean over all n readings of nvidia-smi in the "
            "source, which states neither their times nor what the program was doing."
        )
        if not known.all():
            notes += f" {DASH}: the source has none."
    return Table(
        label="tab:memory",
        title="Table 2",
        caption="Memory of the device.",
        notes=join_sentences([notes, explain_marks("".join(frame["mark"]))]),
        setting=describe_for_table(group),
        columns=[*_EXPERIMENT, *(Column(header=header, numeric=True) for header in headers)],
        rows=rows,
        data=frame[["architecture", "layers", "optimizer", *shown, "scope", "samples", "experiment", "name"]]
        .round(1)
        .rename(columns={"experiment": "config"}),
    )


def _host_memory_table(group: Group, frame: pd.DataFrame) -> Table:
    rows = []
    for record in frame.to_dict("records"):
        texts = {
            **_experiment_texts(record),
            "Peak host memory (MiB)": _format(record["host_peak_mib"]),
            "Experiment": _id_and_name(record) + record["mark"],
        }
        rows.append({header: Cell(text) for header, text in texts.items()})
    data = frame[["architecture", "layers", "optimizer", "host_peak_mib", "experiment", "name"]].round(1)
    return Table(
        label="tab:memory",
        title="Table 2",
        caption="Peak host memory: largest resident memory of the training process. These runs used no GPU.",
        notes=explain_marks("".join(frame["mark"])),
        setting=describe_group(group),
        columns=[
            *_EXPERIMENT,
            Column(header="Peak host memory (MiB)", numeric=True),
            Column(header="Experiment", numeric=True),
        ],
        rows=rows,
        data=data.rename(columns={"experiment": "config"}),
    )


def _results_notes(group: Group, frame: pd.DataFrame, *, bold: bool) -> str:
    sentences = []
    if len(group.seeds) > 1:
        sentences.append(
            f"Mean ± standard deviation over seeds ({seed_list(group)}) at the best epoch of each seed; the epoch is "
            "the median."
        )
        if frame["seeds"].nunique() > 1:
            by_count: dict[int, list[int]] = {}
            for id_, seeds in zip(frame["experiment"], frame["seeds"], strict=True):
                by_count.setdefault(int(seeds), []).append(int(id_))
            counts = "; ".join(
                f"{name_experiments(ids)} {'has' if len(ids) == 1 else 'have'} {formatting.counted(seeds, 'seed')}"
                for seeds, ids in sorted(by_count.items(), reverse=True)
            )
            sentences.append(f"{counts.capitalize()}.")
    if frame["seeds"].max() == 1:
        sentences.append("Each experiment has one seed, so no uncertainty is known.")
    sentences.append(_describe_unigram(group))
    sentences.append(explain_marks("".join(frame["marks"]), "; never bold" if bold else ""))
    return join_sentences(sentences)


def _describe_unigram(group: Group) -> str:
    """Return the perplexities of token frequencies, and the experiments that are not below; empty if unknown."""
    ppls = group.unigram_ppl
    if "validation" not in ppls:
        return ""
    test = f" (test {format_ppl(ppls['test'])})" if "test" in ppls else ""
    above = not_below_unigram(group)
    which = f"; that of {name_experiments(above)} is not below it" if above else ""
    return f"Token frequencies alone have a validation PPL of {format_ppl(ppls['validation'])}{test}{which}."


def _experiment_texts(record: Mapping[Hashable, Any]) -> dict[str, str]:
    return {
        "Architecture": record["architecture"],
        "Layers": str(record["layers"]),
        "Optimizer": record["optimizer"],
    }


def _mean_and_sd(mean: float, sd: float) -> str:
    if math.isnan(mean):
        return DASH
    return format_ppl(mean) if math.isnan(sd) else format_spread(mean, sd)


def _id_and_name(record: Mapping[Hashable, Any]) -> str:
    return f"{record['experiment']} ({record['name']})" if record["name"] else str(record["experiment"])


def _format(value: float | None, spec: str = ",.0f") -> str:
    return DASH if value is None or math.isnan(value) else format(value, spec)


def _kilojoules(joules: float | None) -> str:
    return _format(None if joules is None else joules / 1000, ".1f")
