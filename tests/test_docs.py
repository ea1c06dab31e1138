"""The documentation agrees with the code: its commands run, its links and paths exist, its tables are complete."""

import os
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "lmconsole"
CONTRIBUTING = CHECKOUT / ".github" / "CONTRIBUTING.md"
DOCUMENTS = [CHECKOUT / "README.md", CONTRIBUTING, *sorted((CHECKOUT / "docs").glob("*.md"))]
PROGRAMS = (
    "lmconsole",
    "eval",
    "make",
    "pip",
    "pipx",
    "uv",
    "python",
    "pre-commit",
    "pdflatex",
    "nvidia-cuda-mps-control",
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CLAIM = '[[claim]]\ncontrasts = [[1, 3]]\nseeds = "101-103"\n'
PRESET = """
[presets.{name}]
corpus = "tokens"
embeddings = "learned"
vocabulary = 300
channels = 8
window_tokens = 8
batch_size = 4
epochs = 1
precision = "fp32"

[presets.{name}.lstm]
hidden = 8

[presets.{name}.gpt1]
heads = 2
mlp_channels = 16
"""
"""A built-in preset made so small that a run takes a second."""

PLACEHOLDERS = {"DIR": "elsewhere", "FILE.csv": "elsewhere.csv", "FILE.txt": "elsewhere.txt", "COMMAND": "run"}


def prose(document: Path) -> str:
    """Text without code blocks."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def spans(document: Path) -> list[str]:
    """Code spans outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", prose(document))


def listed() -> set[str]:
    """Commands that CONTRIBUTING lists as not run."""
    section = CONTRIBUTING.read_text(encoding="utf-8").partition("## Documentation")[2]
    return set(re.findall(r"^\| `([^`]+)` \| ", section, re.MULTILINE))


def commands() -> Iterator[str]:
    """Every command in a block of shell code, in a comment of a TOML block, or in a code span.

    Spans like `lmconsole export` and `make demo` name a command.
    """
    for document in DOCUMENTS:
        for language, block in FENCE.findall(document.read_text(encoding="utf-8")):
            if language == "sh":
                yield from (line.partition(" # ")[0].strip() for line in block.splitlines() if line.strip())
            elif language == "toml":
                yield from re.findall(r"# (lmconsole .*)$", block, re.MULTILINE)
        for span in spans(document):
            program, *arguments = Path(span.split()[0]).name, *span.split()[1:]
            is_name = program in ("lmconsole", "make") and all(word.isalpha() for word in arguments)
            if program in PROGRAMS and arguments and not is_name:
                yield span


def targets() -> set[str]:
    """Make targets that the documentation names."""
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    return {target for text in texts for target in re.findall(r"(?:`|^)make ([a-z]+)\b", text, re.MULTILINE)}


COMMANDS = list(dict.fromkeys(commands()))
LISTED = listed()
RUN = [command for command in COMMANDS if not command.startswith("make ") and command not in LISTED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny corpus, two finished runs of experiment 5, and results to import."""
    root = tmp_path_factory.mktemp("docs")
    blocks = [block for language, block in FENCE.findall(DOCUMENTS[0].read_text("utf-8")) if language == "toml"]
    (example,) = (block for block in blocks if "presets" in block)
    presets = [PRESET.format(name=name) for name in ("demo", "scratch")]
    (root / "experiments.toml").write_text("\n".join([example, *presets, CLAIM]), encoding="utf-8")
    tiny.write_corpus(root / "data")
    (root / "elsewhere" / "gpt1").mkdir(parents=True)
    (root / "elsewhere" / "gpt1" / "args.json").write_text('{"model": "gpt1", "layers": 1, "optimizer": "adam"}')
    (root / "elsewhere" / "gpt1" / "valid_ppl.txt").write_text("90.0\n80.5\n")
    (root / "elsewhere.csv").write_text("model,layers,optimizer,epoch,valid_ppl\nlstm,1,adam,1,120.5\n")
    rows = [f"{name},{seed},{loss + seed / 9}" for name, loss in (("adam", 4.0), ("sgd", 6.0)) for seed in range(3)]
    (root / "results.csv").write_text("\n".join(["optimizer,seed,test_nll", *rows]) + "\n")
    (root / "elsewhere.txt").write_text("".join(tiny.SENTENCES).replace(". ", ".\n") * 20)
    tiny.install(root / "bin" / "lmconsole")
    for preset in ("scratch", "demo"):
        run(f"lmconsole run 5 --preset {preset} --headless --no-export", root)
    run("lmconsole import elsewhere", root)
    return root


def run(command: str, folder: Path) -> str:
    """Run a command line and return its standard output; in a shell, unless it is a plain command of the package."""
    program, *arguments = shlex.split(command)
    if program == "lmconsole" and re.fullmatch(r"[\w ./:,=-]+", command):
        return tiny.lmconsole(*arguments, cwd=folder, check=0).stdout
    environment = tiny.environment(folder)
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_reference_is_generated_from_the_code() -> None:
    found = runpy.run_path(str(CHECKOUT / "docs" / "reference.py"))
    assert found["FILE"].read_text(encoding="utf-8") == found["generate"](), "run `python docs/reference.py`"


@pytest.mark.parametrize("command", RUN)
def test_every_command_runs(command: str, folder: Path) -> None:
    assert "lmconsole" in command, f"{command}: not run by this test; list it in {CONTRIBUTING.name}"
    for placeholder, name in PLACEHOLDERS.items():
        command = re.sub(rf"\b{re.escape(placeholder)}(?=\s|$)", name, command)
    run(command, folder)


@pytest.mark.parametrize("command", sorted(each for each in LISTED if each.startswith("lmconsole run ")))
def test_long_runs_are_planned(command: str, folder: Path) -> None:
    assert run(f"{command} --dry-run", folder)


def test_the_list_of_commands_that_are_not_run_is_exact() -> None:
    assert set(COMMANDS) >= LISTED, f"{CONTRIBUTING.name} lists commands that no document has"
    assert [command for command in RUN if "lmconsole" not in command] == []


def test_commands_named_without_arguments_exist() -> None:
    named = {span for document in DOCUMENTS for span in spans(document) if re.fullmatch(r"lmconsole [a-z ]+", span)}
    assert {"lmconsole export", "lmconsole serve"} <= named
    for command in sorted(named):
        assert "Usage: " in tiny.lmconsole(*command.split()[1:], "--help", cwd=CHECKOUT, check=0).stdout


def test_make_targets_exist() -> None:
    existing = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test", "quick"} <= targets() <= existing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", prose(document))
    assert [link for link in links if "://" not in link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(document: Path) -> None:
    """Paths of source files are relative to the checkout or to the package."""
    roots = ("lmconsole", "tests", "docs", "benchmarks")
    paths = [
        span
        for span in spans(document)
        if re.fullmatch(r"[\w.-]+(/[\w.-]*)*", span)
        and (span.endswith(".py") or ("/" in span and span.split("/")[0] in roots))
    ]
    assert [path for path in paths if not any((root / path).exists() for root in (CHECKOUT, PACKAGE))] == []


def test_the_table_of_packages_is_complete() -> None:
    text = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows: dict[str, str] = dict(re.findall(r"^\| `([\w/]+)/` \| (.*) \|$", text, re.MULTILINE))
    documented = {name: set(re.findall(r"`([a-z_][a-z_0-9]*)`", cell)) for name, cell in rows.items()}
    folders = {path.parent for path in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    actual = {
        each.relative_to(PACKAGE).as_posix(): {path.stem for path in each.glob("*.py") if path.stem != "__init__"}
        for each in folders
    }
    assert documented.keys() == actual.keys()
    wrong = {name: sorted(documented[name] ^ actual[name]) for name in actual if documented[name] != actual[name]}
    assert not wrong, f"modules that the table lacks, or that no longer exist: {wrong}"
