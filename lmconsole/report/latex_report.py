"""The report in LaTeX, for a plain installation: article, booktabs, caption, geometry and graphicx."""

import itertools
import re
from collections.abc import Sequence

from lmconsole.report.blocks import (
    Block,
    BulletList,
    Command,
    FigureRow,
    Heading,
    InlineTable,
    NumberedTable,
    Paragraph,
)
from lmconsole.report.figure_content import CLAIMS, OVERVIEW, FigureSpec
from lmconsole.report.markup import escape_latex, latex_caption
from lmconsole.report.table import latex_font_size, latex_grid

NEED = "\\lmNeed{4\\baselineskip}\n"
"""Command before a heading: the room that it and the first lines of its section need on a page."""

BREAKABLE_LENGTH = 20
"""Longer words than this can be broken across lines."""


_PREAMBLE = r"""\documentclass[11pt,a4paper]{article}
\usepackage[margin=2.5cm]{geometry}
\usepackage{booktabs}
\usepackage[font=small,labelfont=bf,skip=5pt]{caption}
\usepackage{graphicx}
%s%% Better type and spacing where they are installed.
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\IfFileExists{microtype.sty}{\usepackage{microtype}}{}

\newcommand{\lmReport}{} %% tables leave out what the report says once
\input{figures/captions}

\setlength{\parindent}{0pt}
\setlength{\parskip}{4pt plus 1pt}
\setlength{\emergencystretch}{3em}
\setlength{\tabcolsep}{3pt}
\raggedbottom
\widowpenalty=10000
\clubpenalty=10000
\setlength{\textfloatsep}{12pt plus 2pt minus 2pt}
\setlength{\floatsep}{10pt plus 2pt minus 2pt}
\setlength{\intextsep}{10pt plus 2pt minus 2pt}
\renewcommand{\topfraction}{0.95}
\renewcommand{\bottomfraction}{0.8}
\renewcommand{\textfraction}{0.05}
\renewcommand{\floatpagefraction}{0.7}
\setcounter{topnumber}{4}
\setcounter{bottomnumber}{2}
\setcounter{totalnumber}{6}

%% Start a new page unless this much of it is left, as the package needspace does.
\newcommand{\lmNeed}[1]{\par\begingroup\dimen0=#1\relax
  \vskip 0pt plus \dimen0\penalty -100\vskip 0pt plus -\dimen0
  \vskip \dimen0\penalty 9999\vskip -\dimen0\vskip 0pt\endgroup}
\makeatletter
\@beginparpenalty=10000 %% no list on another page than its introduction
\def\@listi{\leftmargin=\leftmargini \topsep=0pt \partopsep=0pt \parsep=0pt \itemsep=1.5pt plus .5pt}
\let\@listI=\@listi
\@listi
\setlength{\@fptop}{0pt}
\setlength{\@fpsep}{14pt}
\renewcommand{\section}{\@startsection{section}{1}{0pt}{2.2ex plus .6ex minus .2ex}{0.8ex plus .2ex}%%
  {\normalfont\large\bfseries}}
\renewcommand{\subsection}{\@startsection{subsection}{2}{0pt}{1.8ex plus .5ex minus .2ex}{0.6ex plus .1ex}%%
  {\normalfont\normalsize\bfseries}}
\makeatother

\begin{document}
\begin{center}
  \Large\bfseries %s
\end{center}
"""


def report_latex(title: str, blocks: Sequence[Block], *, siunitx: bool = False) -> str:
    """Return the report for ``pdflatex``, to be run twice in the folder of the export. It includes the files of tables,
    captions and figures."""
    need = NEED
    pieces = [_PREAMBLE % ("\\usepackage{siunitx}\n" if siunitx else "", escape_latex(title))]
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        match block:
            case Heading(level, text):
                section = "section" if level == 1 else "subsection"
                pieces.append(f"{need}\\{section}*{{{escape_latex(text)}}}")
                # A heading that follows must not start a page of its own.
                need = "" if isinstance(following, Heading) else NEED
            case Paragraph(text, lead):
                bold = f"\\textbf{{{escape_latex(lead)}}}" if lead else ""
                end = "" if text else "\\nopagebreak"  # before a list, a table or a command
                pieces.append(" ".join(part for part in (bold, _breakable(text), end) if part))
            case BulletList(items, code):
                pieces.append(_list(items, code=code))
            case Command(text):
                pieces.append(f"\\begin{{quote}}\n{{\\raggedright {_monospace(text)}\\par}}\n\\end{{quote}}")
            case NumberedTable(name, _):
                pieces.append(f"\\input{{{name}}}")
            case InlineTable(table, small):
                grid = "\n".join(latex_grid(table, siunitx=siunitx))
                size = latex_font_size(table) or ("\\footnotesize" if small else "")
                pieces.append(f"\\begin{{center}}{size}\n{grid}\n\\end{{center}}")
            case FigureRow(figures):
                pieces.append(_latex_figures(figures))
    return "\n\n".join(pieces) + "\n\n\\end{document}\n"


def _list(items: Sequence[str], *, code: bool) -> str:
    """Return a list; code is in two columns."""
    if code:
        boxes = [f"\\parbox[t]{{0.49\\linewidth}}{{\\raggedright {_monospace(item)}}}" for item in items]
        return "\n".join(["{\\scriptsize\\lineskip=2pt\\raggedright", *boxes, "\\par}"])
    return "\n".join(["\\begin{itemize}", *(f"  \\item {_breakable(item)}" for item in items), "\\end{itemize}"])


def _latex_figures(figures: Sequence[FigureSpec]) -> str:
    """Return a float with one figure, or with two that share the width of the text."""
    first = figures[0]
    if len(figures) == 1:
        width = "[width=\\linewidth]" if first.full_width else "[width=0.55\\linewidth]"
        lines = [f"  \\includegraphics{width}{{figures/{first.name}}}", *(f"  {line}" for line in _caption(first))]
    else:
        minipages = [
            "\n".join(
                [
                    "  \\begin{minipage}[t]{0.48\\linewidth}",
                    f"    \\includegraphics[width=\\linewidth]{{figures/{each.name}}}",
                    *(f"    {line}" for line in _caption(each)),
                    "  \\end{minipage}",
                ]
            )
            for each in figures
        ]
        lines = ["\\hfill\n".join(minipages)]
    return "\n".join(["\\begin{figure}[!htbp]", "  \\centering", *lines, "\\end{figure}"])


def _caption(figure: FigureSpec) -> list[str]:
    """Return the lines for the caption of a figure, whose number is that of its file."""
    if figure.number in (OVERVIEW, CLAIMS):
        return [f"\\caption*{{\\textbf{{{figure.label}:}} {caption_macro(figure)}}}"]
    number = f"\\setcounter{{figure}}{{{figure.number - 1}}}"
    return [f"{number}\\caption{{{caption_macro(figure)}}}", f"\\label{{fig:{figure.number}}}"]


def captions_latex(figures: Sequence[FigureSpec], setting: Sequence[Paragraph]) -> str:
    """Return commands for the captions of figures, used as ``\\caption{\\figureOneCaption}``, and ``\\figuresSetting``
    for what all of them share."""
    shared = " ".join(f"\\textbf{{{escape_latex(each.lead)}}} {_breakable(each.text)}" for each in setting)
    return "\n".join(
        [
            "% Shared by all figures, to be stated once: \\figuresSetting",
            f"\\newcommand{{\\figuresSetting}}{{{shared}}}",
            *(f"\\newcommand{{{caption_macro(each)}}}{{{latex_caption(each.caption)}}}" for each in figures),
            "",
        ]
    )


_NUMBER_WORDS = (
    *("Overview", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Claims"),
)
"""Words by the number of a figure; the last one is that of ``CLAIMS``, -1."""


def caption_macro(figure: FigureSpec) -> str:
    """Return the name of the command for a figure's caption."""
    return f"\\figure{_NUMBER_WORDS[figure.number]}Caption"


def _monospace(text: str) -> str:
    return f"\\texttt{{{_breakable(text)}}}"


def _breakable(text: str) -> str:
    """Escape a text and allow TeX to break long words, such as paths and hashes, after every eight characters."""
    pieces = []
    for word in text.split(" "):
        if len(word) <= BREAKABLE_LENGTH:
            pieces.append(escape_latex(word))
        else:
            parts = re.findall(r".{1,8}-*", word)  # a part that begins with a hyphen would be a negative number
            pieces.append("\\allowbreak{}".join(escape_latex(part) for part in parts))
    return " ".join(pieces)
