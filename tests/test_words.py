"""Names and phrases that a reader would have to decode are not used.

``python tests/test_words.py [PATH ...]`` lists those in the files.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDERS = ("lmconsole", "tests", "benchmarks", "docs", ".github", "README.md", "CHANGELOG.md", "experiments.toml")

IDENTIFIERS = re.compile(
    r"""(?x) ^_* (?:
    Seen | absorb | powers | shrink | heed\w* | together_s | obituary | twins? | plain_way\w* | own_kernels
    | (?:take_)?fast_ways | give_back_memory | forget_peaks | Tiles | How | \w*head_loss\w* | HeadLoss | Cursor
    | Job | same_run | Prepared | Wanted | Decision | remember | recall | [Rr]emembered
    | strangers | memory_picture | Picture | look_now | Chosen | still_there | [Ff]rugal\w* | Measured(?:Driver|Output)
    | Document | Illustration | printable | Odd\w* | astray | drain(?:ed)? | Ours | lost_in_fork | moods?
    | rooms | floors | CapturedSteps | Kept | said | \w*textbook\w*
    ) $"""
)
"""Identifiers that PyTorch, Textual and the literature do not use for what they named here."""

PHRASES = re.compile(
    r"""(?xi) \b(?:
    anew | whoever | somebody | beside | told | said | heeds? | heeded | put\ by | twins? | (?:fast|plain)\ ways?
    | lies? | lay | stands? | stood | bears? | slow\ line | lose\ the\ line | bad\ line | strangers? | textbook(?:'s)?
    | gives?\ back | giving\ back | obituary | look(?:s|ed|ing)?\ at | in\ words | drain(?:s|ed)? | for\ ever
    | ceilings? | own\ kernels? | head\ loss | forgets?\ peaks | be\ there | rooms | frugal | astray
    )\b"""
)

DOCSTRING_STARTS = re.compile(r"(?:Of|In words|Told|What|Who|Whoever|How|Why|Where|One that|That)\b")
"""First words of docstrings that begin with neither a verb nor a noun."""

EXEMPT = {
    "tests/test_words.py": None,
    "tests/tiny.py": ("said",),  # a sentence of the corpus
    "benchmarks/gpu.py": ("ceilings", "twins"),  # stages had these names
    "tests/test_gpu_benchmark.py": ("twins",),
    "tests/slurm_rig.py": ("drain", "DRAIN"),  # SLURM's word, as of a node that gets no further jobs
    "tests/slurm/test_rig.py": ("drain",),
    "tests/slurm/test_runs.py": ("drain",),
    "benchmarks/cluster.py": ("drain",),
}
"""Files that are left out as a whole, or the words that are allowed in them: names on disk, and old stores."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered pieces of prose in a file: comments and strings of Python, lines of everything else but code blocks."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        fenced = False
        for number, line in enumerate(content.splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            if not fenced:
                yield number, re.sub(r"`[^`]*`", "", line)
        return
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, re.sub(r"``[^`]*``", "", line)


def identifiers(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings of modules, classes and functions, and the strings under fields and constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, statement.value.value


def findings(path: Path) -> list[str]:
    name = path.relative_to(CHECKOUT).as_posix() if path.is_relative_to(CHECKOUT) else path.name
    allowed = EXEMPT.get(name, ())
    if allowed is None:
        return []
    found = [(number, match[0]) for number, text in texts(path) for match in PHRASES.finditer(text)]
    if path.suffix == ".py":
        found += [(number, word) for number, word in identifiers(path) if IDENTIFIERS.match(word)]
        found += [
            (number, match[0] + " …") for number, text in docstrings(path) if (match := DOCSTRING_STARTS.match(text))
        ]
    return [f"{name}:{number}: {word}" for number, word in sorted(set(found)) if word not in allowed]


def files(*roots: Path) -> list[Path]:
    everything = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    return [path for path in everything if path.suffix in (".py", ".md", ".toml") and "stores" not in path.parts]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.py", "x = 1  # made anew\n", "a.py:1: anew"),
        ("a.py", 'def f(x):\n    """Of the experiment."""\n', "a.py:2: Of …"),
        ("a.py", "class Seen:\n    pass\n", "a.py:1: Seen"),
        ("a.py", 'x = f"{1} beside"\n', "a.py:1: beside"),
        ("a.md", "Text.\n\nWhoever reads.\n", "a.md:3: Whoever"),
    ],
)
def test_a_word_to_avoid_is_found(tmp_path: Path, name: str, content: str, found: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert findings(tmp_path / name) == [found]


def test_code_and_names_on_disk_are_not_prose(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("The key `said` is kept.\n\n```\nsaid = 1\n```\n", encoding="utf-8")
    assert findings(tmp_path / "a.md") == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_words_to_avoid_are_not_used(folder: str) -> None:
    found = [line for path in files(CHECKOUT / folder) for line in findings(path)]
    assert not found, "\n".join(found)


if __name__ == "__main__":
    for path in files(*[Path(each).resolve() for each in sys.argv[1:] or FOLDERS]):
        print(*findings(path), sep="\n", end="\n" if findings(path) else "")
