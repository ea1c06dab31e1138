"""The report: setup, results, figures, findings and provenance, in markdown and LaTeX from one list of blocks."""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from lmconsole.formatting import counted
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.plan.presets import ranges
from lmconsole.report.captions import describe_group, describe_incomplete_runs, known_settings
from lmconsole.report.figure_content import FigureSpec
from lmconsole.report.markup import escape_latex, escape_markdown, latex_caption
from lmconsole.report.questions.finding import Finding
from lmconsole.report.selection import Group
from lmconsole.report.table import Cell, Column, Table, latex_font_size, latex_grid, markdown_grid
from lmconsole.runs.info import RunInfo, describe_code

MANY_RUNS = 60
"""More runs than this are not listed one by one."""

BREAKABLE_LENGTH = 20
"""Longer words than this can be broken across lines in LaTeX."""


@dataclass(frozen=True, slots=True)
class Heading:
    """Heading of level 1, a section, or 2."""

    level: Literal[1, 2]
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Paragraph with an optional bold lead-in."""

    text: str
    lead: str = ""


@dataclass(frozen=True, slots=True)
class BulletList:
    """List of sentences, or of code."""

    items: Sequence[str]
    code: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """Command line for a shell."""

    text: str


@dataclass(frozen=True, slots=True)
class NumberedTable:
    """Table with a caption, which has its own file ``name``."""

    name: str
    table: Table


@dataclass(frozen=True, slots=True)
class InlineTable:
    """Table in the text, without a caption."""

    table: Table


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One figure, or two side by side."""

    figures: Sequence[FigureSpec]


Block = Heading | Paragraph | BulletList | Command | NumberedTable | InlineTable | FigureRow


def build_report(
    group: Group, tables: Mapping[str, Table], figures: Sequence[FigureSpec], findings: Sequence[Finding]
) -> list[Block]:
    """Return the report on a group; ``tables`` by file name."""
    by_number = {figure.number: figure for figure in figures}

    def figure_rows(*rows: Sequence[int]) -> list[Block]:
        return [FigureRow([by_number[number] for number in row]) for row in rows]

    numbered = {name: NumberedTable(name, table) for name, table in tables.items()}
    blocks: list[Block] = [Heading(1, "Setup"), Paragraph(describe_group(group)), *_completeness(group)]
    blocks += [Heading(1, "Perplexity"), Paragraph(_PERPLEXITY), numbered.pop("table-1-results")]
    blocks += figure_rows([1], [2], [3, 4])
    blocks += [Heading(1, "Perplexity over time"), Paragraph(_TIME)]
    blocks += figure_rows([5], [6], [7, 8], [10, 11])
    blocks += [Heading(1, "Memory"), Paragraph(_MEMORY), numbered.pop("table-2-memory"), *figure_rows([9])]
    if numbered:
        blocks += [Heading(1, "Comparison"), Paragraph(_COMPARISON), *numbered.values()]
    blocks.append(Heading(1, "Findings"))
    for finding in findings:
        blocks += _finding(finding)
    return blocks + _provenance(group)


_PERPLEXITY = (
    "Table 1 lists every experiment at its epoch with the lowest validation perplexity. Figures 1 to 4 show train and "
    "validation perplexity over epochs."
)
_TIME = (
    "Figures 5 to 8 show the same curves over training time. Figure 10 compares the times to reach one perplexity, "
    "Figure 11 compares the optimizers over many."
)
_MEMORY = "Table 2 and Figure 9 show how much memory the runs used."
_COMPARISON = "Table 3 compares these results with others."


def _completeness(group: Group) -> list[Block]:
    incomplete, runs = describe_incomplete_runs(group), len(group.runs)
    if not incomplete:
        return [Paragraph("The run is complete." if runs == 1 else f"All {runs} runs are complete.")]
    if runs == 1:
        return [Paragraph(f"The run is not complete: {incomplete[0]}.")]
    return [
        Paragraph(f"Complete: {runs - len(incomplete)} of {counted(runs, 'run')}. The others:"),
        BulletList(incomplete),
    ]


def _finding(finding: Finding) -> list[Block]:
    blocks: list[Block] = [Heading(2, finding.question)]
    blocks += [Paragraph("", lead="Observations."), BulletList(finding.observations)]
    if finding.table is not None and finding.table.rows:
        blocks.append(InlineTable(finding.table))
    blocks.append(Paragraph(finding.method, lead="Method."))
    if finding.interpretation:
        blocks += [Paragraph("", lead="Interpretation."), BulletList(finding.interpretation)]
    return blocks


def _provenance(group: Group) -> list[Block]:
    blocks: list[Block] = [Heading(1, "Provenance"), BulletList(_provenance_items(group))]
    if group.imported:
        lead = "Settings that the sources state, and those inferred from what they record."
        blocks += [Paragraph("All others are unknown.", lead=lead), InlineTable(_known_settings_table(group))]
    else:
        blocks += [Paragraph("", lead="Settings shared by all runs."), InlineTable(_settings_table(group))]
    names = [run.run for run in group.runs]
    if len(names) <= MANY_RUNS:
        blocks += [Paragraph("", lead="Runs."), BulletList(names, code=True)]
    else:
        blocks.append(Paragraph(f"{len(names):,} runs, listed in data/runs.csv of a CSV export.", lead="Runs."))
    if group.imported:
        blocks.append(Paragraph("These runs were imported. See their source for how to reproduce them."))
    else:
        lead = "Command that trains these experiments again with all seeds and writes this report:"
        blocks += [Paragraph("", lead=lead), Command(reproduce(group))]
    return blocks


def _provenance_items(group: Group) -> list[str]:
    info = group.reference
    started = [run.state.started for run in group.runs if run.state.started]
    software = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in each.versions.items() if version) for each in started
    )
    items = [f"Software: {versions}." for versions in software if versions] + _code_items(group)
    if group.devices:
        threads = sorted({run.info.threads for run in group.runs if run.info.threads})
        per_run = f"{' or '.join(map(str, threads))} CPU thread{'' if threads == [1] else 's'} per run"
        items.append(f"Device: {', '.join(group.devices)}; {per_run}.")
    if info.corpus.sha256:
        items.append(f"Corpus “{info.corpus.name}”: SHA-256 {info.corpus.sha256}.")
    if info.corpus.tokenizer_path is not None:
        items.append(f"Tokenizer: {info.corpus.tokenizer_and_place}.")
    if info.embeddings is not None:
        items.append(f"Embeddings: SHA-256 {info.embeddings.sha256}.")
    days = sorted({run.info.queued_t[:10] for run in group.runs} | {run.state.last_t[:10] for run in group.runs})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return [*items, f"{'Imported' if group.imported else 'Trained'}: {span} (UTC)."]


def _code_items(group: Group) -> list[str]:
    """Return sentences on the code that trained the runs, and the commit of their experiments.toml."""
    started = [(run.info, run.state.started.code_sha256) for run in group.runs if run.state.started]
    codes = dict.fromkeys(describe_code(info, code) for info, code in started if code is not None)
    own = [run.info.provenance.experiments for run in group.runs if run.info.provenance]
    commits = dict.fromkeys(each.describe() for each in own if each is not None)
    return [*(f"Code: {code}." for code in codes), *(f"experiments.toml: {commit}." for commit in commits)]


def _known_settings_table(group: Group) -> Table:
    """Return the settings of imported runs that are not merely assumed."""
    headers = ("Setting", "Value", "Experiments", "Origin")
    rows = [
        {
            "Setting": Cell(each.key),
            "Value": Cell(str(each.value)),
            "Experiments": Cell(", ".join(ranges(list(each.experiments)).split())),
            "Origin": Cell(each.origin),
        }
        for each in known_settings(group)
    ]
    return Table(columns=[Column(header=header) for header in headers], rows=rows)


def _settings_table(group: Group) -> Table:
    """Return the settings that all runs share and their origins."""
    settings, *others = (msgspec.to_builtins(run.info.settings) for run in group.runs)
    info = group.reference
    rows = [
        {"Setting": Cell(key), "Source": Cell(info.origins[key].rpartition("/")[2]), "Value": Cell(str(value))}
        for key, value in settings.items()
        if key in info.origins and value is not None and all(other[key] == value for other in others)
    ]
    return Table(columns=[Column(header=header) for header in ("Setting", "Source", "Value")], rows=rows)


def reproduce(group: Group) -> str:
    """Return the command that trains the runs of a group again and exports them."""
    info = group.reference
    words = ["lmconsole", "run", *ranges(list(group.by_experiment)).split(), "--preset", info.preset]
    words += ["--seeds", ",".join(map(str, group.seeds))]
    for key in ("epochs", "precision"):
        if info.origins.get(key, "").startswith(("command line", "auto")):
            words += [f"--{key}", str(getattr(info.settings, key))]
    if info.corpus.max_tokens is not None:
        words += ["--max-tokens", str(info.corpus.max_tokens)]
    if info.corpus.path is not None:
        words += ["--data", info.corpus.path]
    if info.embeddings is not None:
        words += ["--embeddings", info.embeddings.path]
    if (file := _option(info, "--experiments")) is not None:
        words += ["--experiments", file]
    jobs = [run.info.jobs or (run.state.queued.jobs if run.state.queued else 1) for run in group.runs]
    requested = max((each for each in jobs if isinstance(each, int)), default=None)
    if requested is not None and (requested > 1 or not _on_gpu(group)):  # threads change the last bits on a CPU
        words += ["--jobs", str(requested)]
    return shlex.join([*words, "--headless"])


def _on_gpu(group: Group) -> bool:
    """Return whether all runs were trained on GPUs, where ``--jobs auto`` means one run at a time."""
    return all(run.state.started.device != "cpu" for run in group.runs if run.state.started)


def _option(info: RunInfo, name: str) -> str | None:
    """Return the value of an option on the command line that queued a run."""
    for word, following in itertools.zip_longest(info.command, info.command[1:], fillvalue=""):
        if word == name:
            return following or None
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def title(group: Group) -> str:
    """Return the title of the report."""
    models = dict.fromkeys(run.info.experiment.model for run in group.runs)
    names = " and ".join(MODEL_NAMES[model] for model in models)
    subject = "imported runs" if group.imported else f"preset {group.reference.preset}"
    return f"Comparison of {names} language models: {subject}"


def to_markdown(group: Group, blocks: Sequence[Block]) -> str:
    """Return the report in markdown, with images in ``figures/``."""
    pieces = [f"# {escape_markdown(title(group))}"]
    for block in blocks:
        match block:
            case Heading(level, text):
                pieces.append(f"{'#' * (level + 1)} {escape_markdown(text)}")
            case Paragraph(text, lead):
                pieces.append(" ".join(part for part in (f"**{lead}**" if lead else "", escape_markdown(text)) if part))
            case BulletList(items, code):
                pieces.append("\n".join(f"- `{item}`" if code else f"- {escape_markdown(item)}" for item in items))
            case Command(text):
                pieces.append(f"```sh\n{text}\n```")
            case NumberedTable(_, table):
                pieces.append(table.render("markdown").rstrip("\n"))
            case InlineTable(table):
                pieces.append(markdown_grid(table).rstrip("\n"))
            case FigureRow(figures):
                pieces += [
                    f"![{escape_markdown(figure.title)}](figures/{figure.name}.png)\n\n{caption_markdown(figure)}"
                    for figure in figures
                ]
    return "\n\n".join(pieces) + "\n"


def caption_markdown(figure: FigureSpec) -> str:
    """Return the number and caption of a figure."""
    return f"**Figure {figure.number}.** {escape_markdown(figure.caption)}"


_PREAMBLE = r"""\documentclass[11pt,a4paper]{article}
\usepackage[margin=2.5cm]{geometry}
\usepackage{booktabs}
\usepackage[font=small,labelfont=bf]{caption}
\usepackage{graphicx}
%s\setlength{\emergencystretch}{3em}
\setlength{\tabcolsep}{3pt}
\input{figures/captions}

\renewcommand{\topfraction}{0.95}
\renewcommand{\textfraction}{0.05}
\renewcommand{\floatpagefraction}{0.6}
\setcounter{topnumber}{4}
\setcounter{totalnumber}{6}

\title{%s}
\author{}
\date{}

\begin{document}
\maketitle
"""


def to_latex(group: Group, blocks: Sequence[Block], *, siunitx: bool = False) -> str:
    """Return the report for ``pdflatex``, to be run twice in the folder of the export. It includes the files of tables,
    captions and figures."""
    pieces = [_PREAMBLE % ("\\usepackage{siunitx}\n" if siunitx else "", escape_latex(title(group)))]
    for block in blocks:
        match block:
            case Heading(level, text):
                before = "\\clearpage\n" if text in ("Findings", "Provenance") else ""
                pieces.append(f"{before}\\{'section' if level == 1 else 'subsection'}*{{{escape_latex(text)}}}")
            case Paragraph(text, lead):
                bold = f"\\textbf{{{escape_latex(lead)}}}" if lead else ""
                pieces.append("\\medskip\\noindent " + " ".join(part for part in (bold, escape_latex(text)) if part))
            case BulletList(items, code):
                lines = [f"  \\item {_monospace(item) if code else _breakable(item)}" for item in items]
                pieces.append("\n".join(["\\begin{itemize}\\setlength{\\itemsep}{0pt}", *lines, "\\end{itemize}"]))
            case Command(text):
                pieces.append(f"\\begin{{quote}}\n{{\\raggedright {_monospace(text)}\\par}}\n\\end{{quote}}")
            case NumberedTable(name, _):
                pieces.append(f"\\input{{{name}}}")
            case InlineTable(table):
                grid = "\n".join(latex_grid(table, siunitx=siunitx))
                pieces.append(f"\\begin{{center}}{latex_font_size(table)}\n{grid}\n\\end{{center}}")
            case FigureRow(figures):
                pieces.append(_latex_figures(figures))
    return "\n\n".join(pieces) + "\n\n\\end{document}\n"


def _latex_figures(figures: Sequence[FigureSpec]) -> str:
    """Return a float with one figure, or with two that share the width of the text."""
    first = figures[0]
    if len(figures) == 1:
        width = "[width=\\linewidth]" if first.full_width else "[width=0.55\\linewidth]"
        lines = [f"  \\includegraphics{width}{{figures/{first.name}}}", f"  \\caption{{{caption_macro(first)}}}"]
        lines.append(f"  \\label{{fig:{first.number}}}")
    else:
        minipages = [
            "  \\begin{minipage}[t]{0.48\\linewidth}\n"
            f"    \\includegraphics[width=\\linewidth]{{figures/{each.name}}}\n"
            f"    \\caption{{{caption_macro(each)}}}\n    \\label{{fig:{each.number}}}\n  \\end{{minipage}}"
            for each in figures
        ]
        lines = ["\\hfill\n".join(minipages)]
    numbered = f"  \\setcounter{{figure}}{{{first.number - 1}}}"
    return "\n".join(["\\begin{figure}[htbp]", "  \\centering", numbered, *lines, "\\end{figure}"])


def caption_latex(figure: FigureSpec) -> str:
    """Return the definition of a command for a caption, used as ``\\caption{\\figureOneCaption}``."""
    return f"\\newcommand{{{caption_macro(figure)}}}{{{latex_caption(figure.caption)}}}"


_NUMBER_WORDS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven")


def caption_macro(figure: FigureSpec) -> str:
    """Return the name of the command for a figure's caption."""
    return f"\\figure{_NUMBER_WORDS[figure.number - 1]}Caption"


def _monospace(text: str) -> str:
    return f"\\texttt{{{_breakable(text)}}}"


def _breakable(text: str) -> str:
    """Escape a text and allow TeX to break long words, such as paths and hashes, after every eight characters."""
    pieces = []
    for word in text.split(" "):
        if len(word) <= BREAKABLE_LENGTH:
            pieces.append(escape_latex(word))
        else:
            parts = [word[start : start + 8] for start in range(0, len(word), 8)]
            pieces.append("\\allowbreak{}".join(escape_latex(part) for part in parts))
    return " ".join(pieces)
