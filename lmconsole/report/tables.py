"""Tables 1 and 2 in markdown, LaTeX (booktabs and nothing else) and CSV, each with a caption that explains itself."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from lmconsole.errors import printable
from lmconsole.plan.presets import ranges
from lmconsole.report.groups import Group
from lmconsole.report.results import MIN_SAMPLES, memory_frame, results_frame

Form = Literal["markdown", "latex", "csv"]
SUFFIXES: dict[Form, str] = {"markdown": "md", "latex": "tex", "csv": "csv"}
DASH = "–"

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    **{c: f"\\{c}" for c in "&%$#_"},
}


@dataclass(frozen=True)
class Cell:
    """One cell: text as a person reads it, bold or not."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Document:
    """A table before it has a format. ``data`` is what its CSV holds."""

    label: str
    title: str
    caption: str
    headers: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[Cell]]
    data: pd.DataFrame

    def render(self, form: Form) -> str:
        """The whole table with its caption; CSV has none."""
        return {"markdown": to_markdown, "latex": to_latex, "csv": to_csv}[form](self)


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
    on_gpu = bool(table["memory_mib"].notna().any()) or _trained_on_gpu(group)
    if not on_gpu:
        return _host_memory_document(group, table)
    rows = []
    for row in table.to_dict("records"):
        device = "*" if row["scope"] == "device" else ""
        used = "/".join((_mib(row["memory_mib"]) + device, _mib(row["device_total_mib"])))
        cells = [row["architecture"], str(row["layers"]), row["optimizer"], used, _mib(row["allocated_peak_mib"])]
        cells += [_whole(row["utilization_percent"]), str(row["samples"]), _config(row)]
        rows.append([Cell(text) for text in cells])
    columns = ["architecture", "layers", "optimizer", "memory_mib", "scope", "device_total_mib", "allocated_peak_mib"]
    columns += ["utilization_percent", "samples", "experiment", "name"]
    caption = (
        "GPU memory and utilization in training. Memory: mean over the samples (n) taken about once a second while "
        "training, from the second epoch on where there is one, of the process's memory over the device's total. "
        f"Fewer than {MIN_SAMPLES} samples make no mean ({DASH}). Peak allocated: the most that tensors held at once."
    )
    if table["scope"].eq("device").any():
        caption += " *: memory of the whole device, as the driver did not tell the process's."
    return Document(
        label="tab:memory",
        title="Table 2",
        caption=f"{caption} {_group_words(group)}",
        headers=[
            "Architecture",
            "Layers",
            "Optimizer",
            "Memory (MiB)",
            "Peak allocated (MiB)",
            "GPU (%)",
            "n",
            "Config",
        ],
        numeric=[False, True, False, True, True, True, True, True],
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
        caption="Peak host memory: the largest resident memory of the training process; these runs used no GPU. "
        + _group_words(group),
        headers=["Architecture", "Layers", "Optimizer", "Peak host memory (MiB)", "Config"],
        numeric=[False, True, False, True, True],
        rows=rows,
        data=data.rename(columns={"experiment": "config"}),
    )


def _trained_on_gpu(group: Group) -> bool:
    return any(run.state.started and run.state.started.device != "cpu" for run in group.runs)


def _results_caption(group: Group, table: pd.DataFrame, *, several: bool) -> str:
    words = [
        "Perplexity (PPL) per target token of each experiment, at the epoch with its best validation perplexity.",
        "Train PPL is that of the epoch's own training passes. Config: number of the experiment.",
    ]
    if table["best"].any():
        words.append("Bold: lowest validation perplexity of its architecture.")
    if several:
        seeds = ", ".join(map(str, group.seeds))
        words.append(f"Mean ± standard deviation over seeds ({seeds}) of each seed's best epoch; median epoch.")
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
    return " ".join([*words, _group_words(group)])


def _group_words(group: Group) -> str:
    """What all runs of the table have in common, and how many were left out."""
    info = group.reference
    s, corpus = info.settings, info.corpus
    tokens = corpus.tokens
    tables = "GPT-1's embedding tables, frozen" if s.embeddings == "frozen" else "learned embedding tables"
    devices = dict.fromkeys(run.state.started.device_name for run in group.runs if run.state.started)
    common = (
        f"Preset {info.preset}: {corpus.name}, {tokens['train']:,} train, {tokens['validation']:,} validation and "
        f"{tokens['test']:,} test tokens, vocabulary {corpus.vocabulary:,} ({corpus.tokenizer}); {tables}; "
        f"{s.epochs} epochs, batches of {s.batch_size} windows of {s.window_tokens} tokens, learning rate "
        f"{s.learning_rate:g}; precision {s.precision}; trained on {', '.join(devices) or 'an unknown device'}."
    )
    words = [common]
    if len(group.seeds) == 1:
        words.append(f"Seed {group.seeds[0]}.")
    if corpus.max_tokens is not None:
        words.append(f"Only the first {corpus.max_tokens:,} train tokens were used, and a tenth of that to evaluate.")
    own = {run.info.experiment.id: run.info.experiment.overrides for run in group.runs if run.info.experiment.overrides}
    varied = {n: {k: v for k, v in o.items() if k != "weight_decay"} for n, o in own.items()}
    for experiment, overrides in varied.items():
        if overrides:
            settings = ", ".join(f"{key} {value}" for key, value in overrides.items())
            words.append(f"Experiment {experiment} has settings of its own: {settings}.")
    if shared := ranges(
        [run.info.experiment.id for run in group.runs if run.state.started and run.state.started.shared_gpu]
    ):
        words.append(f"Other processes used the GPU when experiments {shared} began.")
    if group.left_out:
        words.append("Left out: " + ", ".join(f"{count} {why}" for why, count in group.left_out.items()) + ".")
    return " ".join(words)


def _spread(mean: Any, sd: Any, seeds: int) -> str:
    if pd.isna(mean):
        return DASH
    return f"{mean:.3f}" if seeds < 2 or pd.isna(sd) else f"{mean:.3f} ± {sd:.3f}"


def _epoch(value: Any) -> str:
    return DASH if pd.isna(value) else f"{value:g}"


def _config(row: Mapping[Any, Any]) -> str:
    return f"{row['experiment']} ({row['name']})" if row["name"] else str(row["experiment"])


def _mib(value: Any) -> str:
    return DASH if pd.isna(value) else f"{value:,.0f}"


def _whole(value: Any) -> str:
    return DASH if pd.isna(value) else f"{value:.0f}"


def to_markdown(document: Document) -> str:
    """A pipe table, columns aligned for reading as text too, with its caption above."""
    lines = [
        [f"**{escape_markdown(cell.text)}**" if cell.bold else escape_markdown(cell.text) for cell in row]
        for row in document.rows
    ]
    table = [[escape_markdown(header) for header in document.headers], *lines]
    widths = [max(len(row[column]) for row in table) for column in range(len(document.headers))]
    rule = [
        "-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, document.numeric, strict=True)
    ]
    padded = [
        [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, document.numeric, strict=True)
        ]
        for row in table
    ]
    body = "\n".join(f"| {' | '.join(row)} |" for row in [padded[0], rule, *padded[1:]])
    return f"**{document.title}.** {escape_markdown(document.caption)}\n\n{body}\n"


def to_latex(document: Document) -> str:
    """A floating table that needs booktabs and nothing else."""
    columns = "".join("r" if right else "l" for right in document.numeric)
    rows = [
        " & ".join(f"\\textbf{{{escape_latex(cell.text)}}}" if cell.bold else escape_latex(cell.text) for cell in row)
        for row in document.rows
    ]
    headers = " & ".join(escape_latex(header) for header in document.headers)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{escape_latex(document.caption)}}}",
            f"  \\label{{{document.label}}}",
            f"  \\begin{{tabular}}{{{columns}}}",
            "    \\toprule",
            f"    {headers} \\\\",
            "    \\midrule",
            *(f"    {row} \\\\" for row in rows),
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def to_csv(document: Document) -> str:
    """Plain numbers, one header line; an empty cell is unknown."""
    out = io.StringIO()
    document.data.to_csv(out, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    return out.getvalue()


def escape_markdown(text: str) -> str:
    """``text`` so that no markdown or HTML reader takes any of it for markup."""
    one_line = printable(text).replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", one_line)


def escape_latex(text: str) -> str:
    """``text`` as LaTeX prints it with any engine."""
    one_line = printable(text).replace("\n", " ")
    return "".join(_LATEX.get(c, c) for c in one_line)


DOCUMENTS: dict[str, Callable[[Group], Document]] = {
    "table-1-results": results_document,
    "table-2-memory": memory_document,
}
"""The tables by the names of their files."""
