"""`lmconsole data info`: the corpus and embeddings that a run would use, and what is in them."""

import os
from pathlib import Path
from typing import Any

import msgspec

from lmconsole.commands.output import print_data, print_json, print_message
from lmconsole.data.corpus import check_tokenizer_of_tables, describe, describe_targets, load_corpus
from lmconsole.data.layout import is_text
from lmconsole.data.lookup import find_data, find_embeddings, find_tokenizer
from lmconsole.data.windows import cut_windows
from lmconsole.formatting import counted
from lmconsole.plan.experiment import Settings
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import AUTO

PAPER = "paper"
"""Preset for which embeddings are checked that the chosen preset would not read."""


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """Windows that are cut from a split."""

    windows: int
    """Number of windows."""
    targets: int
    """Target tokens in all of them."""


class DataReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Corpus and embeddings that a run would use, as `data info --json` prints them."""

    preset: str
    """Preset for which they are described."""
    name: str
    """Name of the corpus for captions."""
    kind: str
    """Kind of its source: ``demo``, ``npz`` or ``text``."""
    path: str | None
    """Absolute path of its folder or file; null if it is built in."""
    vocabulary: int
    """V: every token id is below it."""
    tokenizer: str
    """Description of the tokenizer."""
    tokenizer_path: str | None
    """Absolute path of the folder of GPT-1's tokenizer, if that is not the folder of the text; else null."""
    files: dict[str, str]
    """File of each split, or the part of a file; empty for the demo corpus."""
    tokens: dict[str, int]
    """Tokens of each split."""
    sha256: str
    """Hash of the vocabulary size and of all token ids."""
    max_tokens: int | None
    """Limit on the train split; always null."""
    embeddings: str | None
    """Absolute path of the file of embedding tables; null if none was found."""
    embeddings_sha256: str | msgspec.UnsetType = msgspec.UNSET
    """Hash of the tables; absent if there are none, or the preset reads none."""
    windows: dict[str, Windows]
    """Windows of each split."""
    unigram_ppl: dict[str, float]
    """Perplexity of the targets of each split for a unigram model: the token frequencies of the targets of the train
    split, with one added to the count of each token of the vocabulary."""


def show_data(data: Path | None, embeddings: Path | None, preset: str, experiments: Path | None, *, json: bool) -> None:
    """Print the corpus and embeddings that a run would use. Raises LmconsoleError if one of them is unusable."""
    report, lines = data_report(data, embeddings, preset, experiments)
    if json:
        print_json(msgspec.convert(report, DataReport))
    else:
        print_data("\n".join(lines))


def data_report(
    data: Path | None, embeddings: Path | None, preset: str, experiments: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """Return a description of the corpus for JSON, and its lines of text. ``auto`` describes the folder that is found,
    or else the demo corpus. Raises CorpusError, EmbeddingsError or PlanError."""
    plan = load_plan(experiments)
    folder = find_data(data, environ=os.environ, cwd=Path.cwd())
    tables = find_embeddings(embeddings, folder)
    if preset == AUTO:
        preset = "paper" if folder else "demo"
    settings = plan.resolve(plan.experiments[0], preset).settings
    frozen = settings
    if settings.embeddings != "frozen" and embeddings is not None and PAPER in plan.presets:
        frozen = plan.resolve(plan.experiments[0], PAPER).settings
    tokenizer = None
    if folder is not None and (settings.corpus, settings.embeddings) == ("tokens", "frozen"):
        tokenizer = find_tokenizer(folder)
        if tokenizer is None and is_text(folder):
            print_message(f"The preset {preset} needs GPT-1's tokenizer for this text: lmconsole data fetch gpt1")
    corpus = load_corpus(
        settings.corpus, folder, vocabulary=settings.vocabulary, tokenizer=tokenizer, report=print_message
    )
    report = {"preset": preset, **describe(corpus), "embeddings": None if tables is None else str(tables)}
    if tables is not None and frozen.embeddings == "frozen":
        if frozen is settings:
            check_tokenizer_of_tables(tables, corpus.name, corpus.kind, corpus.tokenizer)
        vocabulary = corpus.vocabulary if frozen is settings else frozen.vocabulary
        report["embeddings_sha256"] = _check_tables(tables, vocabulary, frozen)
    described = describe_targets(corpus, settings.window_tokens)
    report["windows"] = {
        split: {"windows": len(cut_windows(count, settings.window_tokens)[0]), "targets": described["targets"][split]}
        for split, count in corpus.counts().items()
    }
    report["unigram_ppl"] = described["unigram_ppl"]
    return report, _lines(report, settings)


def _check_tables(path: Path, vocabulary: int, settings: Settings) -> str:
    """Read embedding tables as a run with ``settings`` would, and return their fingerprint. Raises EmbeddingsError."""
    from lmconsole.lm.embedding import read_tables  # imports torch

    tables = read_tables(path, vocabulary=vocabulary, channels=settings.channels, window_tokens=settings.window_tokens)
    return tables.sha256


def _lines(report: dict[str, Any], settings: Settings) -> list[str]:
    read = settings.embeddings == "frozen" or "embeddings_sha256" in report
    tables = report["embeddings"] or "none found"
    lines = [
        f"corpus      {report['name']}",
        f"tokenizer   {report['tokenizer']}",
        *([f"            from {report['tokenizer_path']}"] if report["tokenizer_path"] else []),
        f"path        {report['path'] or 'built in'}",
        f"vocabulary  {report['vocabulary']:,}",
        f"sha256      {report['sha256']}",
        f"embeddings  {tables if read else 'learned'}",
        *([f"sha256      {report['embeddings_sha256']}"] if "embeddings_sha256" in report else []),
        f"windows     {counted(settings.window_tokens, 'target')} each (preset {report['preset']})",
        "",
    ]
    head = f"{'split':<12}{'tokens':>12}{'windows':>10}{'targets':>12}{'unigram PPL':>13}"
    lines.append(f"{head}{'  file' if report['files'] else ''}")
    for split, counts in report["windows"].items():
        numbers = f"{split:<12}{report['tokens'][split]:>12,}{counts['windows']:>10,}{counts['targets']:>12,}"
        numbers += f"{report['unigram_ppl'][split]:>13,.1f}"
        lines.append(f"{numbers}  {report['files'].get(split, '')}".rstrip())
    return lines
