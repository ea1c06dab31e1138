"""Table 3: a group compared with published results, with another store, or with imported runs.

Perplexities are compared per target token. Those that count padded positions are converted, and both values are shown.
"""

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES, Experiment
from lmconsole.report.captions import describe_group
from lmconsole.report.markup import DASH, format_ppl
from lmconsole.report.reference import PADDED_SHARE, PUBLISHED_CORPUS, published
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
    padded: bool
    """Whether their perplexities count padded positions."""
    caveat: str = ""
    """Reason why their perplexities have another meaning. No difference is computed then."""


def per_target(ppl: float | None, split: str, denominator: str) -> float | None:
    """Convert a perplexity to one per target token; see ``PADDED_SHARE``."""
    return ppl if ppl is None or denominator == "targets" else float(ppl ** (1.0 / PADDED_SHARE[split]))


def published_results(group: Group) -> OtherResults:
    """Return the published results, for comparison with any group of the twelve experiments."""
    experiments: dict[ExperimentKey, Perplexities] = {}
    for result in published().values():
        given: dict[str, float | None] = {"train": result.train_ppl, "valid": result.valid_ppl}
        converted = {split: per_target(ppl, split, "padded") for split, ppl in given.items()}
        key = (result.model, result.layers, result.optimizer, "")
        experiments[key] = Perplexities(given=given, per_target=converted)
    caveat = _other_text_than_published(group.reference)
    description = "Published: course report from 2021, one seed, on a GPU with 15,109 MiB."
    if group.reference.settings.embeddings != "frozen" and not caveat:
        description += " It used frozen GPT-1 embeddings; these runs learned theirs."
    return OtherResults(name="Published", experiments=experiments, description=description, padded=True, caveat=caveat)


def group_results(group: Group, other: Group, name: str) -> OtherResults:
    """Return the results of another group, of the same store or another one, for comparison with ``group``."""
    experiments: dict[ExperimentKey, Perplexities] = {}
    for runs in other.by_experiment.values():
        experiments.setdefault(_key(runs[0].info.experiment), _perplexities(runs))
    return OtherResults(
        name=name,
        experiments=experiments,
        description=_describe(name, other),
        padded=other.reference.denominator == "padded",
        caveat=_other_text(group.reference, other.reference),
    )


def _other_text(ours: RunInfo, theirs: RunInfo) -> str:
    """Explain why perplexities of the two are on different text; empty if they are not, or if an imported run does not
    state its text."""
    for one, other in ((ours, theirs), (theirs, ours)):
        if one.origin == "imported":
            return _other_text_than_published(other) if one.denominator == "padded" else ""
    return "" if same_text(ours, theirs) else "The two were trained on different text."


def _other_text_than_published(info: RunInfo) -> str:
    """Explain why a run cannot be compared with results that count the padding of WikiText-2; empty if it can."""
    corpus = info.corpus
    whole = corpus.max_tokens is None and corpus.vocabulary == PUBLISHED_CORPUS["vocabulary"]
    same = whole and all(corpus.tokens.get(split) == PUBLISHED_CORPUS[split] for split in ("train", "validation"))
    if same or info.origin == "imported":
        return ""
    whole_text = "all of WikiText-2 with the GPT-1 tokenizer"
    return f"The results with padding are for {whole_text}, the others for corpus “{corpus.name}”."


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
        denominator = runs[0].info.denominator
        per = [ppl for ppl in (per_target(each, split, denominator) for each in known) if ppl is not None]
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
                    "theirs_ppl_as_given": theirs.given[split] if theirs else None,
                    "theirs_ppl_per_target": b,
                    "difference_percent": 100.0 * (a / b - 1.0) if known and a and b else None,
                    "config": id_,
                }
            )
            marks_shown.append((ours.mark, theirs.mark if theirs else ""))
    data = pd.DataFrame(records)
    numbers = ["ours_ppl", "theirs_ppl_as_given", "theirs_ppl_per_target", "difference_percent"]
    data[numbers] = data[numbers].astype(float).round(3)
    columns = [
        Column(header="Architecture"),
        Column(header="Layers", numeric=True),
        Column(header="Optimizer"),
        Column(header="Split"),
        Column(header="Ours", numeric=True),
        Column(header=others.name, numeric=True),
        *([Column(header=_per_target_header(others.name), numeric=True)] if others.padded else []),
        Column(header="Difference", numeric=True),
        Column(header="Experiment", numeric=True),
    ]
    records_and_marks = zip(data.to_dict("records"), marks_shown, strict=True)
    rows = [_cells(record, others.name, *each) for record, each in records_and_marks]
    return Table(
        label="tab:against",
        title="Table 3",
        caption=_caption(group, others, "".join(mark for each in marks_shown for mark in each)),
        columns=columns,
        rows=rows,
        data=data,
    )


def _per_target_header(others: str) -> str:
    return f"{others}, per target"


def _cells(record: Mapping[Hashable, Any], others: str, our_mark: str, their_mark: str) -> dict[str, Cell]:
    def ppl(key: str, mark: str) -> str:
        return DASH if pd.isna(record[key]) else format_ppl(record[key]) + mark

    difference = record["difference_percent"]
    texts = {
        "Architecture": record["architecture"],
        "Layers": str(record["layers"]),
        "Optimizer": record["optimizer"],
        "Split": record["split"],
        "Ours": ppl("ours_ppl", our_mark),
        others: ppl("theirs_ppl_as_given", their_mark),
        _per_target_header(others): ppl("theirs_ppl_per_target", their_mark),
        "Difference": DASH if pd.isna(difference) else f"{difference:+.1f} %",
        "Experiment": str(record["config"]),
    }
    return {header: Cell(text) for header, text in texts.items()}


def _caption(group: Group, others: OtherResults, marks_shown: str) -> str:
    sentences = [
        "Perplexity at the epoch with the lowest validation perplexity, and other results.",
        others.description,
    ]
    if group.reference.denominator == "padded" or others.padded:
        sentences.append(
            "Perplexities that count the padding of the last batch as targets are converted for the comparison: their "
            f"logarithm is {PADDED_SHARE['train']} (train) or {PADDED_SHARE['valid']} (validation) times the logarithm "
            "of the perplexity per target token."
        )
    if others.caveat:
        sentences.append(f"{others.caveat} Therefore no difference is given ({DASH}).")
    else:
        sentences.append("Difference: ours / theirs − 1, per target token.")
    if notes := explain_marks(marks_shown):
        sentences.append(notes)
    return " ".join([*sentences, _describe("Ours", group)])


def _describe(name: str, group: Group) -> str:
    description = describe_group(group)
    return description if description.startswith(name) else f"{name}: {description[0].lower()}{description[1:]}"
