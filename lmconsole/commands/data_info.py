"""`lmconsole data info`: the corpus and embeddings that a run would use, and what is in them."""

import os
from pathlib import Path
from typing import Any

from lmconsole.commands.output import print_json
from lmconsole.data.corpus import describe, find_data, find_embeddings, load_corpus
from lmconsole.data.windows import cut_windows
from lmconsole.formatting import counted
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import AUTO


def show_data(data: Path | None, embeddings: Path | None, preset: str, experiments: Path | None, *, json: bool) -> None:
    """Print the corpus and embeddings that a run would use. Raises LmconsoleError if one of them is unusable."""
    report, lines = data_report(data, embeddings, preset, experiments)
    if json:
        print_json(report)
    else:
        print(*lines, sep="\n")


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
    corpus = load_corpus(settings.corpus, folder, vocabulary=settings.vocabulary)
    report = {"preset": preset, **describe(corpus), "embeddings": None if tables is None else str(tables)}
    windows = {}
    for split, count in corpus.counts().items():
        _, lengths = cut_windows(count, settings.window_tokens)
        windows[split] = {"windows": len(lengths), "targets": int(lengths.sum())}
    report["windows"] = windows
    return report, _lines(report, settings.window_tokens)


def _lines(report: dict[str, Any], window_tokens: int) -> list[str]:
    lines = [
        f"corpus      {report['name']}",
        f"tokenizer   {report['tokenizer']}",
        f"folder      {report['path'] or 'built in'}",
        f"vocabulary  {report['vocabulary']:,}",
        f"sha256      {report['sha256']}",
        f"embeddings  {report['embeddings'] or 'none found'}",
        f"windows     {counted(window_tokens, 'target')} each (preset {report['preset']})",
        "",
        f"{'split':<12}{'tokens':>12}{'windows':>10}{'targets':>12}",
    ]
    for split, counts in report["windows"].items():
        lines.append(f"{split:<12}{report['tokens'][split]:>12,}{counts['windows']:>10,}{counts['targets']:>12,}")
    return lines
