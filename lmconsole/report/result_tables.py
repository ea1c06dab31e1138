"""Tables 1 and 2 in markdown, LaTeX (booktabs and nothing else) and CSV, each with a caption that explains itself."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from lmconsole.report.markup import DASH, Cell, Document, decimals
from lmconsole.report.results import MIN_SAMPLES, memory_frame, results_frame, uses_gpu
from lmconsole.report.selection import Group, describe


def results_document(group: Group) -> Document:
    """Table 1: perplexities of every experiment at its best-validation epoch."""
    table = results_frame(group)
    several = len(group.seeds) > 1
    rows = []
    for row in table.to_dict("records"):
        cells = [
            row["architecture"],
            str(row["layers"]),
            row["optimizer"],
            _spread(row["train_ppl"], row["train_ppl_sd"], row["seeds"]),
            _spread(row["valid_ppl"], row["valid_ppl_sd"], row["seeds"]) + ("" if row["complete"] else "†"),
            _epoch(row["epoch"]),
            _config(row) + ("‡" if row["own_initialisation"] else ""),
        ]
        rows.append([Cell(text, bold=bool(row["best"])) for text in cells])
    data = table.rename(columns={"experiment": "config"}).drop(columns=["own_initialisation"])
    data[["train_ppl", "train_ppl_sd", "valid_ppl", "valid_ppl_sd"]] = data[
        ["train_ppl", "train_ppl_sd", "valid_ppl", "valid_ppl_sd"]
    ].round(3)
    data["epoch"] = [None if pd.isna(epoch) else f"{epoch:g}" for epoch in table["epoch"]]
    columns = ["architecture", "layers", "optimizer", "train_ppl", "train_ppl_sd", "valid_ppl", "valid_ppl_sd"]
    columns += ["epoch", "config", "name", "seeds", "complete", "best"]
    return Document(
        label="tab:results",
        title="Table 1",
        caption=_results_caption(group, table, several=several),
        headers=["Architecture", "Layers", "Optimizer", "Train PPL", "Validation PPL", "Epoch", "Config"],
        numeric=[False, True, False, True, True, True, True],
        rows=rows,
        data=data[columns],
    )


def memory_document(group: Group) -> Document:
    """Table 2: what training used of the GPU, or, where there was none, of the host's memory."""
    table = memory_frame(group)
    on_gpu = bool(table["memory_mib"].notna().any()) or uses_gpu(group)
    if not on_gpu:
        return _host_memory_document(group, table)
    rows = []
    for row in table.to_dict("records"):
        device = "*" if row["scope"] == "device" else ""
        used = "/".join((_mib(row["memory_mib"]) + device, _mib(row["device_total_mib"])))
        cells = [row["architecture"], str(row["layers"]), row["optimizer"], used, _mib(row["allocated_peak_mib"])]
        cells += [_whole(row["utilization_percent"]), str(row["samples"]), _kilojoules(row["energy_j"]), _config(row)]
        rows.append([Cell(text) for text in cells])
    columns = ["architecture", "layers", "optimizer", "memory_mib", "scope", "device_total_mib", "allocated_peak_mib"]
    columns += ["utilization_percent", "samples", "energy_j", "experiment", "name"]
    caption = (
        "GPU memory, utilization and energy. Memory: mean over the samples (n) taken about once a second while "
        "training, from the second epoch on where there is one, of the process's memory over the device's total. "
        f"Fewer than {MIN_SAMPLES} samples make no mean ({DASH}). Peak allocated: the most that tensors held at once. "
        "Energy: of the whole board by the driver's counter, training and validation of all epochs"
        f"{', mean over seeds' if len(group.seeds) > 1 else ''}."
    )
    if table["energy_j"].isna().any():
        caption += (
            f" It is unknown ({DASH}) where the GPU was shared (other processes, several runs at once, MIG slices), "
            "where training is unfinished or took less than two seconds, and where the driver does not tell."
        )
    if table["scope"].eq("device").any():
        caption += " *: memory of the whole device, as the driver did not tell the process's."
    return Document(
        label="tab:memory",
        title="Table 2",
        caption=f"{caption} {describe(group)}",
        headers=[
            "Architecture",
            "Layers",
            "Optimizer",
            "Memory (MiB)",
            "Peak allocated (MiB)",
            "GPU (%)",
            "n",
            "Energy (kJ)",
            "Config",
        ],
        numeric=[False, True, False, True, True, True, True, True, True],
        rows=rows,
        data=table[columns].round(1).rename(columns={"experiment": "config"}),
    )


def _host_memory_document(group: Group, table: pd.DataFrame) -> Document:
    rows = [
        [
            Cell(text)
            for text in (
                row["architecture"],
                str(row["layers"]),
                row["optimizer"],
                _mib(row["host_peak_mib"]),
                _config(row),
            )
        ]
        for row in table.to_dict("records")
    ]
    data = table[["architecture", "layers", "optimizer", "host_peak_mib", "experiment", "name"]].round(1)
    return Document(
        label="tab:memory",
        title="Table 2",
        caption=f"{host_memory_words(group)} {describe(group)}",
        headers=["Architecture", "Layers", "Optimizer", "Peak host memory (MiB)", "Config"],
        numeric=[False, True, False, True, True],
        rows=rows,
        data=data.rename(columns={"experiment": "config"}),
    )


def host_memory_words(group: Group) -> str:
    """What the memory of runs without a GPU is."""
    if group.imported:
        return "Memory: imported runs do not say."
    return "Peak host memory: the largest resident memory of the training process; these runs used no GPU."


def _results_caption(group: Group, table: pd.DataFrame, *, several: bool) -> str:
    words = [
        f"Perplexity (PPL) per {denominator(group)} of each experiment, at its epoch with the best validation PPL.",
        "Train PPL is that of the epoch's own training passes. Config: number of the experiment.",
    ]
    if table["best"].any():
        words.append("Bold: lowest validation perplexity of its architecture.")
    if several:
        words.append(
            f"Mean ± standard deviation over seeds ({group.seeds_words}) of each seed's best epoch; median epoch."
        )
        if table["seeds"].nunique() > 1:
            counts = "; ".join(f"{row.experiment}: {row.seeds}" for row in table.itertuples())
            words.append(f"Seeds per experiment: {counts}.")
    if not table["complete"].all():
        words.append("†: not finished, or diverged; never bold.")
    if table["own_initialisation"].any():
        words.append(
            "‡: depends on the initialisation of the attention's projections, which the published protocol leaves open "
            "(here Xavier-uniform, zero biases)."
        )
    return " ".join([*words, describe(group)])


def denominator(group: Group) -> str:
    """What the group's perplexities are per."""
    return "target token" if group.reference.denominator == "targets" else "slot (padding included)"


def _spread(mean: Any, sd: Any, seeds: int) -> str:
    if pd.isna(mean):
        return DASH
    return decimals(mean) if seeds < 2 or pd.isna(sd) else f"{decimals(mean)} ± {decimals(sd)}"


def _epoch(value: Any) -> str:
    return DASH if pd.isna(value) else f"{value:g}"


def _config(row: Mapping[Any, Any]) -> str:
    return f"{row['experiment']} ({row['name']})" if row["name"] else str(row["experiment"])


def _mib(value: Any) -> str:
    return DASH if pd.isna(value) else f"{value:,.0f}"


def _whole(value: Any) -> str:
    return DASH if pd.isna(value) else f"{value:.0f}"


def _kilojoules(value: Any) -> str:
    return DASH if pd.isna(value) else f"{value / 1000:.1f}"


DOCUMENTS: dict[str, Callable[[Group], Document]] = {
    "table-1-results": results_document,
    "table-2-memory": memory_document,
}
"""The tables by the names of their files."""
