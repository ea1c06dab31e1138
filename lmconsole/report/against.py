"""Table 3: a group compared with published results, with another store, or with imported runs.

Perplexities are compared per target token. Padded ones (``reference.padded_share``) are converted, and both values are
shown.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lmconsole.importing.settings import ASSUMED
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES, Experiment
from lmconsole.report.captions import INFERRED_MARK, describe_for_table, inferred_experiments
from lmconsole.report.markup import DASH, format_ppl
from lmconsole.report.reference import (
    PUBLISHED_BATCH_SIZE,
    PUBLISHED_CORPUS,
    PUBLISHED_WINDOW_TOKENS,
    is_published_text,
    padded_shares,
    published,
)
from lmconsole.report.results import explain_marks, marks
from lmconsole.report.selection import Group
from lmconsole.report.table import Cell, Column, Table
from lmconsole.runs.comparable import same_text
from lmconsole.runs.info import RunInfo
from lmconsole.runs.store import Run

ExperimentKey = tuple[str, int, str, str]
"""Model, layers, optimizer and name, by which experiments are matched."""

SPLITS = {"train": "Train", "valid": "Validation"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexities:
    """Perplexities of one experiment at its best epochs, by split: as given, and per target token."""

    given: Mapping[str, float | None]
    per_target: Mapping[str, float | None]
    mark: str = ""
    """Marks of runs that are unfinished, diverged or damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherResults:
    """Results with which a group is compared."""

    name: str
    experiments: Mapping[ExperimentKey, Perplexities]
    description: str
    padding: "Padding | None"
    """Sizes by which their perplexities are padded; None if they are not."""
    caveat: str = ""
    """Reason why their perplexities have another meaning. No difference is computed then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Padding:
    """Sizes on which padded perplexities depend; see ``reference.padded_share``."""

    batch_size: int
    window_tokens: int
    tokens: Mapping[str, int]
    """Tokens by split."""
    corpus_name: str
    batch_size_known: bool = True

    def per_target(self, ppl: float, split: str) -> float:
        """Convert a padded perplexity to one per target token."""
        share = padded_shares(self.window_tokens, self.batch_size, self.tokens)[split]
        try:
            return float(ppl ** (1.0 / share))
        except OverflowError:
            return math.inf

    def describe(self) -> str:
        """Return the factors of the conversion and the sizes that they are computed from."""
        shares = padded_shares(self.window_tokens, self.batch_size, self.tokens)
        assumed = "" if self.batch_size_known else " (assumed)"
        return (
            f"{shares['train']:.6f} (train) or {shares['valid']:.6f} (validation) times that of the perplexity per "
            f"target token for {self.corpus_name} in windows of {self.window_tokens} tokens and batches of "
            f"{self.batch_size}{assumed}"
        )


PUBLISHED_PADDING = Padding(
    batch_size=PUBLISHED_BATCH_SIZE,
    window_tokens=PUBLISHED_WINDOW_TOKENS,
    tokens=PUBLISHED_CORPUS,
    corpus_name="WikiText-2",
)


def padding_of(info: RunInfo) -> Padding | None:
    """Return how the perplexities of a run are padded; None if they are per target token."""
    if info.denominator == "targets":
        return None
    known = bool(info.corpus.tokens)
    return Padding(
        batch_size=info.settings.batch_size,
        window_tokens=info.settings.window_tokens,
        tokens=info.corpus.tokens if known else PUBLISHED_CORPUS,
        corpus_name=f"corpus “{info.corpus.name}”" if known else "WikiText-2",
        batch_size_known=info.origins.get("batch_size") != ASSUMED,
    )


def per_target(ppl: float | None, split: str, padding: Padding | None) -> float | None:
    """Convert a perplexity to one per target token."""
    return ppl if ppl is None or padding is None else padding.per_target(ppl, split)


def published_results(group: Group) -> OtherResults:
    """Return the published results, for comparison with any group of the twelve experiments."""
    experiments: dict[ExperimentKey, Perplexities] = {}
    for result in published().values():
        given: dict[str, float | None] = {"train": result.train_ppl, "valid": result.valid_ppl}
        converted = {split: per_target(ppl, split, PUBLISHED_PADDING) for split, ppl in given.items()}
        key = (result.model, result.layers, result.optimizer, "")
        experiments[key] = Perplexities(given=given, per_target=converted)
    caveat = _other_text_than_published(group.reference)
    description = "Published: course report from 2021, one seed, on a GPU with 15,109 MiB."
    if group.reference.settings.embeddings != "frozen" and not caveat:
        description += " It used frozen GPT-1 embeddings; these runs learned theirs."
    if group.imported:
        description += " The sources of the imported runs do not state text and embeddings; if they are others, the "
        description += "differences say nothing."
    return OtherResults(
        name="Published",
        experiments=experiments,
        description=description,
        padding=PUBLISHED_PADDING,
        caveat=caveat,
    )


def group_results(group: Group, other: Group, name: str) -> OtherResults:
    """Return the results of another group, of the same store or another one, for comparison with ``group``."""
    experiments: dict[ExperimentKey, Perplexities] = {}
    for runs in other.by_experiment.values():
        experiments.setdefault(_key(runs[0].info.experiment), _perplexities(runs))
    return OtherResults(
        name=name,
        experiments=experiments,
        description=_describe(name, other),
        padding=padding_of(other.reference),
        caveat=_other_text(group.reference, other.reference),
    )


def _other_text(ours: RunInfo, theirs: RunInfo) -> str:
    """Explain why perplexities of the two are on different text; empty if they are not, or if an imported run does not
    state its text."""
    for one, other in ((ours, theirs), (theirs, ours)):
        if one.origin == "imported":
            return _other_text_than_published(other) if one.denominator == "padded" else ""
    if same_text(ours, theirs):
        return ""
    if ours.corpus.sha256 != theirs.corpus.sha256:
        return "The two were trained on different text."
    used = " and ".join(_describe_part(info.corpus.max_tokens) for info in (ours, theirs))
    return f"The two used different parts of one text: {used}."


def _describe_part(max_tokens: int | None) -> str:
    return "all training tokens" if max_tokens is None else f"the first {max_tokens:,} training tokens"


def _other_text_than_published(info: RunInfo) -> str:
    """Explain why a run cannot be compared with padded results on WikiText-2; empty if it can."""
    if is_published_text(info) or info.origin == "imported":
        return ""
    whole_text = "all of WikiText-2 with the GPT-1 tokenizer"
    corpus = info.corpus
    part = "" if corpus.max_tokens is None else f"{_describe_part(corpus.max_tokens)} of "
    return f"The padded results are for {whole_text}, the others for {part}corpus “{corpus.name}”."


def _key(experiment: Experiment) -> ExperimentKey:
    return experiment.model, experiment.layers, experiment.optimizer, experiment.name


def _perplexities(runs: Sequence[Run]) -> Perplexities:
    """Return means over seeds."""
    given: dict[str, float | None] = {}
    converted: dict[str, float | None] = {}
    for split in SPLITS:
        best = [run.state.best_epoch for run in runs if run.state.best_epoch]
        found = [epoch.train_ppl if split == "train" else epoch.valid_ppl for epoch in best]
        known = [ppl for ppl in found if ppl is not None]
        given[split] = statistics.fmean(known) if known else None
        padding = padding_of(runs[0].info)
        per = [ppl for ppl in (per_target(each, split, padding) for each in known) if ppl is not None]
        converted[split] = statistics.fmean(per) if per else None
    return Perplexities(given=given, per_target=converted, mark=marks(runs))


def comparison_table(group: Group, others: OtherResults) -> Table:
    """Return Table 3: perplexities of both at their best epochs, and the relative difference in percent."""
    records: list[dict[str, object]] = []
    marks_shown: list[tuple[str, str]] = []
    for id_, runs in group.by_experiment.items():
        experiment = runs[0].info.experiment
        ours = _perplexities(runs)
        theirs = others.experiments.get(_key(experiment))
        for split, split_name in SPLITS.items():
            a = ours.per_target[split]
            b = theirs.per_target[split] if theirs else None
            known = a is not None and b is not None and not others.caveat
            records.append(
                {
                    "architecture": MODEL_NAMES[experiment.model],
                    "layers": experiment.layers,
                    "optimizer": OPTIMIZER_NAMES[experiment.optimizer],
                    "split": split_name,
                    "ours_ppl": a,
                    "ours_ppl_as_given": ours.given[split],
                    "theirs_ppl_as_given": theirs.given[split] if theirs else None,
                    "theirs_ppl_per_target": b,
                    "difference_percent": 100.0 * (a / b - 1.0) if known and a and b else None,
                    "config": id_,
                }
            )
            marks_shown.append((ours.mark, theirs.mark if theirs else ""))
    data = pd.DataFrame(records)
    numbers = ["ours_ppl", "ours_ppl_as_given", "theirs_ppl_as_given", "theirs_ppl_per_target", "difference_percent"]
    data[numbers] = data[numbers].astype(float).round(3)
    names = _Names.of(group, others)
    numeric = [names.ours]
    numeric += [_per_target_header(names.ours)] if group.reference.denominator == "padded" else []
    numeric += [names.theirs]
    numeric += [_per_target_header(names.theirs)] if others.padding else []
    columns = [
        Column(header="Architecture"),
        Column(header="Layers", numeric=True),
        Column(header="Optimizer"),
        Column(header="Split"),
        *(Column(header=header, numeric=True) for header in (*numeric, "Difference", "Experiment")),
    ]
    inferred = inferred_experiments(group)
    data["mark"] = [INFERRED_MARK if experiment in inferred else "" for experiment in data["config"]]
    rows = [_cells(record, names, *each) for record, each in zip(data.to_dict("records"), marks_shown, strict=True)]
    data = data.drop(columns="mark")
    # Files of version 0.1.0 have no perplexities of ours as given, which differ only if they are padded.
    shown = data if group.reference.denominator == "padded" else data.drop(columns="ours_ppl_as_given")
    return Table(
        label="tab:against",
        title="Table 3",
        caption="Perplexity at the epoch with the lowest validation perplexity, and other results.",
        notes=_notes(group, others, names, "".join(mark for each in marks_shown for mark in each)),
        setting=_describe(names.ours, group),
        columns=columns,
        rows=rows,
        data=shown,
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """Headers of the columns with perplexities."""

    ours: str
    theirs: str

    @classmethod
    def of(cls, group: Group, others: OtherResults) -> "_Names":
        """Call imported runs what they are, unless they are compared with imported runs."""
        ours = "Ours" if not group.imported else "These runs" if others.name == "Imported" else "Imported"
        return cls(ours, others.name)


def _per_target_header(name: str) -> str:
    return f"{name} (per target)"


def _cells(record: Mapping[Hashable, Any], names: _Names, our_mark: str, their_mark: str) -> dict[str, Cell]:
    def ppl(key: str, mark: str) -> str:
        return DASH if pd.isna(record[key]) else format_ppl(record[key]) + mark

    difference = record["difference_percent"]
    texts = {
        "Architecture": record["architecture"],
        "Layers": str(record["layers"]),
        "Optimizer": record["optimizer"],
        "Split": record["split"],
        names.ours: ppl("ours_ppl_as_given", our_mark),
        _per_target_header(names.ours): ppl("ours_ppl", our_mark),
        names.theirs: ppl("theirs_ppl_as_given", their_mark),
        _per_target_header(names.theirs): ppl("theirs_ppl_per_target", their_mark),
        "Difference": DASH if pd.isna(difference) else f"{difference:+.1f} %",
        "Experiment": f"{record['config']}{record['mark']}",
    }
    return {header: Cell(text) for header, text in texts.items()}


def _notes(group: Group, others: OtherResults, names: _Names, marks_shown: str) -> str:
    sentences = [others.description]
    paddings = [each for each in (padding_of(group.reference), others.padding) if each is not None]
    if paddings:
        factors = list(dict.fromkeys(each.describe() for each in paddings))
        if len(factors) == 1:
            described = factors[0]
        else:
            described = "; ".join(
                f"{each.describe()} ({name.lower()})"
                for name, each in zip((names.ours, names.theirs), paddings, strict=True)
            )
        sentences.append(
            "Padded perplexities count the windows that the last batch lacks as if they were there, full of targets "
            f"without loss. They are converted for the comparison: their logarithm is {described}."
        )
    if others.caveat:
        sentences.append(f"{others.caveat} Therefore no difference is given ({DASH}).")
    else:
        sentences.append(
            f"Difference: {names.ours.lower()} / {names.theirs.lower()} − 1, per target token; other seeds would give "
            "others."
        )
    if notes := explain_marks(marks_shown):
        sentences.append(notes)
    return " ".join(sentences)


def _describe(name: str, group: Group) -> str:
    description = describe_for_table(group)
    return description if description.startswith(name) else f"{name}: {description[0].lower()}{description[1:]}"
