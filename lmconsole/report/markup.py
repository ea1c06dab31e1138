"""Text for markdown, HTML and LaTeX: escaping, and replacements for characters that a font or ``pdflatex`` lacks."""

import html
import re
import unicodedata
from collections.abc import Callable
from functools import cache

from lmconsole.errors import escape_control_characters

DASH = "–"
"""Mark for an unknown value."""

LARGE_PPL = 1e7
"""Perplexities from here on are written in scientific notation."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\0": "{}",
    "\1": r"\hspace{0pt}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "\u00a0": "~",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "∞": r"$\infty$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "²": "$^2$",
    "³": "$^3$",
    **{c: f"\\{c}" for c in "&%$#_"},
}


PPL_DIGITS = 5
"""Significant digits of a perplexity, of which at least one is a decimal and at most three are."""


def ppl_decimals(ppl: float) -> int:
    """Return the number of decimals of a perplexity below ``LARGE_PPL``."""
    rounded = float(f"{ppl:.{PPL_DIGITS}g}")
    return max(1, min(3, PPL_DIGITS - len(str(int(rounded)))))


def format_ppl(ppl: float) -> str:
    """Return a perplexity with ``PPL_DIGITS`` digits, or in scientific notation from ``LARGE_PPL`` on."""
    return f"{ppl:.{ppl_decimals(ppl)}f}" if ppl < LARGE_PPL else f"{ppl:.3e}"


def format_spread(mean: float, sd: float) -> str:
    """Return a mean and a standard deviation of perplexities, with the decimals of the mean."""
    if max(mean, sd) >= LARGE_PPL:
        return f"{format_ppl(mean)} ± {format_ppl(sd)}"
    return f"{format_ppl(mean)} ± {sd:.{ppl_decimals(mean)}f}"


def format_ratio(ratio: float) -> str:
    """Return a ratio with two decimals, or in scientific notation from ``LARGE_PPL`` on."""
    return f"{ratio:.2f}" if ratio < LARGE_PPL else f"{ratio:.2e}"


_MINUS = re.compile(r"(?<![^\s(\[“/])-(?=\.?\d)|(?<=\d[eE])-(?=\d)")
"""Hyphen that means a minus sign: at the start of a number, or of an exponent."""


def _on_one_line(text: str) -> str:
    return _MINUS.sub("−", escape_control_characters(text).replace("\n", " "))


def escape_markdown(text: str) -> str:
    """Escape everything that a markdown or HTML renderer would interpret, on one line. A minus sign is one."""
    one_line = _on_one_line(text)
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", one_line)


def escape_html(text: str) -> str:
    """Escape text for the content and for quoted attributes of HTML elements, on one line. A minus sign is one."""
    return html.escape(_on_one_line(text), quote=True)


def escape_latex(text: str) -> str:
    """Escape text for ``pdflatex`` without packages, on one line.

    Latin and Greek letters are kept; other characters are replaced by their Unicode names in brackets. Long words
    may be broken: TeX fails on a line that is wider than 5 m. A minus sign is one, in math mode.
    """
    one_line = replace_unsupported(_on_one_line(text), lambda c: c in _LATEX or bool(_latex_letter(c)))
    separated = re.sub(r"(?<=([-',]))(?=\1)", "\0", one_line)  # TeX would join them into ligatures
    separated = re.sub(r"\S{60}(?=\S)", "\\g<0>\1", separated)
    return "".join(_LATEX.get(c) or _latex_letter(c) for c in separated)


LONGEST_CAPTION = 1_500
"""Characters of a caption in LaTeX, which measures it on one line first. Ours have about 600."""


def latex_caption(text: str) -> str:
    """Escape a caption as ``escape_latex`` does; a longer one than ``LONGEST_CAPTION`` is cut."""
    return escape_latex(text if len(text) <= LONGEST_CAPTION else f"{text[: LONGEST_CAPTION - 1]}…")


_NOT_IN_OT1 = re.compile(
    r"\\(k|d|r\{U\}|DH|dh|DJ|dj|TH|th|NG|ng|guill\w+|quote\w+|textquote\w+|[hH]withstroke|nument)(?![a-z])"
)
"""Commands without a glyph in OT1, the default font encoding of LaTeX."""


@cache
def _latex_letter(c: str) -> str:
    """Return ASCII unchanged, a Latin or Greek letter as a LaTeX command, and otherwise an empty string."""
    if c.isascii():
        return c
    if not ("\u00a1" <= c <= "\u017f" or "\u0391" <= c <= "\u03c9"):
        return ""
    from pylatexenc.latexencode import UnicodeToLatexEncoder

    encoder = UnicodeToLatexEncoder(unknown_char_policy="ignore", unknown_char_warning=False)
    command = str(encoder.unicode_to_latex(c))
    return "" if _NOT_IN_OT1.search(command) else command


def replace_unsupported(text: str, supported: Callable[[str], bool]) -> str:
    """Replace every character that is not ``supported`` by its Unicode name, for example ``[rocket]``."""
    return "".join(
        c if c.isascii() or supported(c) else f"[{unicodedata.name(c, f'U+{ord(c):04X}').lower()}]" for c in text
    )
