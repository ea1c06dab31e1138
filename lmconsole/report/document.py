"""The write-up: setup, results, figures, findings and provenance, in markdown and LaTeX from one list of blocks."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from lmconsole.importing.import_runs import STATED
from lmconsole.plan.presets import ranges
from lmconsole.report.figures import Illustration, unfinished
from lmconsole.report.markup import Cell, Document, escape_latex, escape_markdown, latex_grid, latex_size, markdown_grid
from lmconsole.report.questions.answer import Finding
from lmconsole.report.selection import Group, describe
from lmconsole.runs.info import RunInfo


@dataclass(frozen=True)
class Heading:
    """A heading of level 1, a section, or 2."""

    level: Literal[1, 2]
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph, after a bold word or two."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences; ``code`` sets them as they would be typed."""

    texts: Sequence[str]
    code: bool = False


@dataclass(frozen=True)
class Code:
    """A line to type."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table with caption and number, which has a file of its own, called ``name``."""

    name: str
    document: Document


@dataclass(frozen=True)
class Grid:
    """A table in the text, without a caption."""

    document: Document


@dataclass(frozen=True)
class Figures:
    """One wide figure, or two narrow ones side by side."""

    pictures: Sequence[Illustration]


Block = Heading | Text | Items | Code | Table | Grid | Figures


def report(
    group: Group, tables: dict[str, Document], figures: Sequence[Illustration], answers: Sequence[Finding]
) -> list[Block]:
    """The whole write-up of a group; ``tables`` by the names of their files."""
    by_number = {figure.number: figure for figure in figures}
    results, memory, *more = [Table(name, document) for name, document in tables.items()]
    blocks: list[Block] = [Heading(1, "Setup"), Text(describe(group)), *_how_complete(group)]
    blocks += [Heading(1, "Perplexity"), Text(_PERPLEXITY), results]
    blocks += [Figures([by_number[n]]) for n in (1, 2)] + [Figures([by_number[3], by_number[4]])]
    blocks += [Heading(1, "Perplexity over time"), Text(_TIME), *[Figures([by_number[n]]) for n in (5, 6)]]
    blocks += [Figures([by_number[7], by_number[8]]), Figures([by_number[10], by_number[11]])]
    blocks += [Heading(1, "Memory"), Text(_MEMORY), memory, Figures([by_number[9]])]
    if more:
        blocks += [Heading(1, "Comparison"), Text(_COMPARISON), *more]
    blocks.append(Heading(1, "Findings"))
    for answer in answers:
        blocks += _finding(answer)
    return blocks + _provenance(group)


_PERPLEXITY = (
    "Table 1 lists every experiment at its epoch with the best validation perplexity. Figures 1 to 4 show how train "
    "and validation perplexity got there, epoch by epoch."
)
_TIME = (
    "Figures 5 to 8 show the same curves over the time that training took. Figure 10 compares the times to one "
    "perplexity, Figure 11 the optimizers over many."
)
_MEMORY = "Table 2 and Figure 9 show what the runs needed of the machine's memory."
_COMPARISON = "Table 3 sets the results beside others."


def _how_complete(group: Group) -> list[Block]:
    lines = unfinished(group)
    if not lines:
        return [Text(f"All {len(group.runs)} runs are complete.")]
    return [Text(f"{len(group.runs) - len(lines)} of {len(group.runs)} runs are complete; the others:"), Items(lines)]


def _finding(answer: Finding) -> list[Block]:
    blocks: list[Block] = [Heading(2, f"Question {answer.number}: {answer.question}")]
    blocks += [Text("", lead="Measured."), Items(answer.measured)]
    if answer.table is not None and answer.table.rows:
        blocks.append(Grid(answer.table))
    blocks.append(Text(answer.rule, lead="Rule."))
    if answer.interpretation:
        blocks += [Text("", lead="Interpretation."), Items(answer.interpretation)]
    return blocks


def _provenance(group: Group) -> list[Block]:
    info = group.reference
    blocks: list[Block] = [Heading(1, "Provenance")]
    started = [run.state.started for run in group.runs if run.state.started]
    versions = list(
        dict.fromkeys(
            ", ".join(f"{name} {version}" for name, version in each.versions.items() if version) for each in started
        )
    )
    lines = [f"Software: {words}." for words in versions if words]
    if group.devices:
        threads = sorted({run.info.threads for run in group.runs if run.info.threads})
        words = f"{' or '.join(map(str, threads))} CPU thread{'' if threads == [1] else 's'} a run"
        lines.append(f"Device: {', '.join(group.devices)}; {words}.")
    if info.corpus.sha256:
        lines.append(f"Corpus: {info.corpus.name}, SHA-256 {info.corpus.sha256}.")
    if info.embeddings is not None:
        lines.append(f"Embedding tables: SHA-256 {info.embeddings.sha256}.")
    days = sorted({run.info.queued_t[:10] for run in group.runs} | {run.state.last_t[:10] for run in group.runs})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    lines.append(f"{'Imported' if group.imported else 'Trained'}: {span} (UTC).")
    blocks += [Items(lines), Text("", lead="Settings common to the runs."), Grid(_settings(group))]
    names = [run.run for run in group.runs]
    if len(names) <= MANY_RUNS:
        blocks += [Text("", lead="Runs."), Items(names, code=True)]
    else:
        blocks.append(Text(f"{len(names):,}; data/runs.csv of a CSV export lists them.", lead="Runs."))
    if group.imported:
        blocks.append(Text("These runs were imported: how to repeat them, only their source can say."))
    else:
        blocks += [Text("", lead="To reproduce, runs and exports:"), Code(reproduce(group))]
    return blocks


MANY_RUNS = 60
"""More runs than this are not listed one by one."""


def _settings(group: Group) -> Document:
    """Settings that all runs share, and where each came from; of imported runs, those that their source states."""
    each = [msgspec.to_builtins(run.info.settings) for run in group.runs]
    info = group.reference
    rows = [
        [Cell(key), Cell(info.origins[key].rpartition("/")[2]), Cell(str(value))]
        for key, value in each[0].items()
        if key in info.origins and value is not None and all(other[key] == value for other in each)
        if not group.imported or info.origins[key] == STATED
    ]
    return Document("", "", "", headers=["Setting", "From", "Value"], numeric=[False, False, False], rows=rows)


def reproduce(group: Group) -> str:
    """The command that trains the runs of a group anew and exports them."""
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
    asked = max((each for each in jobs if isinstance(each, int)), default=None)
    if asked is not None and (asked > 1 or not _on_gpu(group)):  # the number of threads decides a CPU's last bits
        words += ["--jobs", str(asked)]
    return shlex.join([*words, "--headless"])


def _on_gpu(group: Group) -> bool:
    """Whether its runs were trained on GPUs, which ``--jobs auto`` gives one run at a time."""
    return all(run.state.started.device != "cpu" for run in group.runs if run.state.started)


def _option(info: RunInfo, name: str) -> str | None:
    """What the command line that queued a run gave for an option."""
    for word, following in zip(info.command, [*info.command[1:], ""], strict=True):
        if word == name:
            return following or None
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def title(group: Group) -> str:
    """Of the write-up."""
    models = list(dict.fromkeys(run.info.experiment.model for run in group.runs))
    names = " and ".join({"lstm": "LSTM", "gpt1": "GPT-1"}[model] for model in models)
    of = "imported runs" if group.imported else f"preset {group.reference.preset}"
    return f"{names} language models compared: {of}"


def to_markdown(group: Group, blocks: Sequence[Block]) -> str:
    """The write-up in markdown, figures beside it in ``figures/``."""
    pieces = [f"# {escape_markdown(title(group))}"]
    for block in blocks:
        match block:
            case Heading(level, text):
                pieces.append(f"{'#' * (level + 1)} {escape_markdown(text)}")
            case Text(text, lead):
                pieces.append(" ".join(word for word in (f"**{lead}**" if lead else "", escape_markdown(text)) if word))
            case Items(texts, code):
                pieces.append("\n".join(f"- `{text}`" if code else f"- {escape_markdown(text)}" for text in texts))
            case Code(text):
                pieces.append(f"```sh\n{text}\n```")
            case Table(_, document):
                pieces.append(document.render("markdown").rstrip("\n"))
            case Grid(document):
                pieces.append(markdown_grid(document).rstrip("\n"))
            case Figures(pictures):
                pieces += [
                    f"![{escape_markdown(each.title)}](figures/{each.name}.png)\n\n{caption_markdown(each)}"
                    for each in pictures
                ]
    return "\n\n".join(pieces) + "\n"


def caption_markdown(figure: Illustration) -> str:
    """A figure's caption."""
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
    """The write-up for ``pdflatex``, run twice in the folder it lies in: it takes in the files of tables, captions and
    figures."""
    pieces = [_PREAMBLE % ("\\usepackage{siunitx}\n" if siunitx else "", escape_latex(title(group)))]
    for block in blocks:
        match block:
            case Heading(level, text):
                before = "\\clearpage\n" if text in ("Findings", "Provenance") else ""
                pieces.append(f"{before}\\{'section' if level == 1 else 'subsection'}*{{{escape_latex(text)}}}")
            case Text(text, lead):
                bold = f"\\textbf{{{escape_latex(lead)}}}" if lead else ""
                pieces.append("\\medskip\\noindent " + " ".join(word for word in (bold, escape_latex(text)) if word))
            case Items(texts, code):
                lines = [f"  \\item {_typed(text) if code else _breakable(text)}" for text in texts]
                pieces.append("\n".join(["\\begin{itemize}\\setlength{\\itemsep}{0pt}", *lines, "\\end{itemize}"]))
            case Code(text):
                pieces.append(f"\\begin{{quote}}\n{{\\raggedright {_typed(text)}\\par}}\n\\end{{quote}}")
            case Table(name, _):
                pieces.append(f"\\input{{{name}}}")
            case Grid(document):
                grid = "\n".join(latex_grid(document, siunitx=siunitx))
                pieces.append(f"\\begin{{center}}{latex_size(document)}\n{grid}\n\\end{{center}}")
            case Figures(pictures):
                pieces.append(_figures(pictures))
    return "\n\n".join(pieces) + "\n\n\\end{document}\n"


def _figures(pictures: Sequence[Illustration]) -> str:
    """A float; narrow figures keep their natural width, or share the line."""
    if len(pictures) == 1:
        width = "[width=\\linewidth]" if pictures[0].wide else "[width=0.55\\linewidth]"
        inside = [f"  \\includegraphics{width}{{figures/{pictures[0].name}}}", f"  \\caption{{{macro(pictures[0])}}}"]
        inside.append(f"  \\label{{fig:{pictures[0].number}}}")
    else:
        inside = [
            "  \\begin{minipage}[t]{0.48\\linewidth}\n"
            f"    \\includegraphics[width=\\linewidth]{{figures/{each.name}}}\n"
            f"    \\caption{{{macro(each)}}}\n    \\label{{fig:{each.number}}}\n  \\end{{minipage}}"
            for each in pictures
        ]
        inside = ["\\hfill\n".join(inside)]
    numbered = f"  \\setcounter{{figure}}{{{pictures[0].number - 1}}}"
    return "\n".join(["\\begin{figure}[htbp]", "  \\centering", numbered, *inside, "\\end{figure}"])


def caption_latex(figure: Illustration) -> str:
    """A figure's caption as a command, to be used as ``\\caption{\\figureOneCaption}``."""
    return f"\\newcommand{{{macro(figure)}}}{{{escape_latex(figure.caption)}}}"


_WORDS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven")


def macro(figure: Illustration) -> str:
    """Name of the command that holds a figure's caption."""
    return f"\\figure{_WORDS[figure.number - 1]}Caption"


def _typed(text: str) -> str:
    return f"\\texttt{{{_breakable(text)}}}"


def _breakable(text: str) -> str:
    """Text in which TeX may break long words after signs that join them, and long hexadecimal numbers anywhere."""
    pieces = []
    for word in text.split(" "):
        if len(word) <= LONG_WORD:
            pieces.append(escape_latex(word))
        else:
            parts = [word[start : start + 8] for start in range(0, len(word), 8)]
            pieces.append("\\allowbreak{}".join(escape_latex(part) for part in parts))
    return " ".join(pieces)


LONG_WORD = 20
"""Longer words than this may be broken across lines."""
