"""A group beside other results: the published ones, another store's, or imported runs. Perplexities are compared per
target token; those that count padding are converted, and shown both ways."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES, Experiment
from lmconsole.report.markup import DASH, Cell, Document, decimals
from lmconsole.report.reference import PADDED_SHARE, PUBLISHED_CORPUS, published
from lmconsole.report.selection import Group, describe
from lmconsole.runs.info import RunInfo
from lmconsole.runs.store import Run

Kind = tuple[str, int, str, str]
"""What makes two experiments the same: model, layers, optimizer, name."""

SPLITS = {"train": "Train", "valid": "Validation"}


@dataclass(frozen=True)
class Side:
    """Perplexities of one experiment at its best epochs, by split: as they were given, and per target token."""

    given: Mapping[str, float | None]
    per_target: Mapping[str, float | None]


@dataclass(frozen=True)
class Others:
    """What a group is compared with. ``caveat`` says why its numbers mean something else, if they do; no difference is
    then computed."""

    name: str
    sides: Mapping[Kind, Side]
    words: str
    padded: bool
    caveat: str = ""


def per_target(ppl: float | None, split: str, denominator: str) -> float | None:
    """A perplexity per target token, from one that divides by padded slots too: its logarithm is a known share."""
    return ppl if ppl is None or denominator == "targets" else float(ppl ** (1.0 / PADDED_SHARE[split]))


def published_results(group: Group) -> Others:
    """The published results, for any group of the twelve experiments."""
    sides: dict[Kind, Side] = {}
    for result in published().values():
        given: dict[str, float | None] = {"train": result.train_ppl, "valid": result.valid_ppl}
        converted = {split: per_target(ppl, split, "padded") for split, ppl in given.items()}
        sides[(result.model, result.layers, result.optimizer, "")] = Side(given, converted)
    caveat = _not_wikitext(group.reference)
    words = "Published: the written report of a course, 2021, on a GPU of 15,109 MiB, one seed."
    if group.reference.settings.embeddings != "frozen" and not caveat:
        words += " It used GPT-1's embedding tables, frozen; these runs learned theirs."
    return Others(name="Published", sides=sides, words=words, padded=True, caveat=caveat)


def group_results(group: Group, other: Group, name: str) -> Others:
    """The results of another group, of this store or another."""
    sides: dict[Kind, Side] = {}
    for runs in other.by_experiment.values():
        kind = _kind(runs[0].info.experiment)
        sides.setdefault(kind, _side(runs))
    return Others(
        name=name,
        sides=sides,
        words=f"{name}: {describe(other)}",
        padded=other.reference.denominator == "padded",
        caveat=_different_task(group.reference, other.reference),
    )


def _different_task(ours: RunInfo, theirs: RunInfo) -> str:
    """Why perplexities of the two do not mean the same; empty if they do, or if an imported side leaves it open."""
    for one, other in ((ours, theirs), (theirs, ours)):
        if one.origin == "imported":
            return _not_wikitext(other) if one.denominator == "padded" else ""
    same = (ours.corpus.sha256, ours.corpus.max_tokens) == (theirs.corpus.sha256, theirs.corpus.max_tokens)
    return "" if same else "The two were trained on different text."


def _not_wikitext(info: RunInfo) -> str:
    """Why runs cannot be compared with ones that count WikiText-2's padding; empty if they can, or do not say."""
    corpus = info.corpus
    whole = corpus.max_tokens is None and corpus.vocabulary == PUBLISHED_CORPUS["vocabulary"]
    same = whole and all(corpus.tokens.get(split) == PUBLISHED_CORPUS[split] for split in ("train", "validation"))
    if same or info.origin == "imported":
        return ""
    return f"Those runs used all of WikiText-2 in GPT-1's tokens, and these {corpus.name}."


def _kind(experiment: Experiment) -> Kind:
    return experiment.model, experiment.layers, experiment.optimizer, experiment.name


def _side(runs: Sequence[Run]) -> Side:
    """Means over seeds."""
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
    return Side(given, converted)


def against_document(group: Group, others: Others) -> Document:
    """Table 3: perplexities of both at their best epochs, and by how many percent ours differ."""
    records: list[dict[str, object]] = []
    for experiment, runs in group.by_experiment.items():
        ours = _side(runs)
        theirs = others.sides.get(_kind(runs[0].info.experiment))
        for split, split_name in SPLITS.items():
            a = ours.per_target[split]
            b = theirs.per_target[split] if theirs else None
            known = a is not None and b is not None and not others.caveat
            records.append(
                {
                    "architecture": MODEL_NAMES[runs[0].info.experiment.model],
                    "layers": runs[0].info.experiment.layers,
                    "optimizer": OPTIMIZER_NAMES[runs[0].info.experiment.optimizer],
                    "split": split_name,
                    "ours_ppl": a,
                    "theirs_ppl_as_given": theirs.given[split] if theirs else None,
                    "theirs_ppl_per_target": b,
                    "difference_percent": 100.0 * (a / b - 1.0) if known and a and b else None,
                    "config": experiment,
                }
            )
    data = pd.DataFrame(records)
    numbers = ["ours_ppl", "theirs_ppl_as_given", "theirs_ppl_per_target", "difference_percent"]
    data[numbers] = data[numbers].astype(float).round(3)
    headers = ["Architecture", "Layers", "Optimizer", "Split", "Ours", others.name, "per target", "Difference"]
    headers.append("Config")
    columns = [*range(9)] if others.padded else [0, 1, 2, 3, 4, 5, 7, 8]
    rows = [[_cells(record)[column] for column in columns] for record in data.to_dict("records")]
    return Document(
        label="tab:against",
        title="Table 3",
        caption=_caption(group, others),
        headers=[headers[column] for column in columns],
        numeric=[[False, True, False, False, True, True, True, True, True][column] for column in columns],
        rows=rows,
        data=data,
    )


def _cells(record: Mapping[object, object]) -> list[Cell]:
    def shown(key: str) -> str:
        value = record[key]
        return decimals(value) if isinstance(value, float) and not pd.isna(value) else DASH

    difference = record["difference_percent"]
    share = f"{difference:+.1f} %" if isinstance(difference, float) and not pd.isna(difference) else DASH
    words = [str(record[key]) for key in ("architecture", "layers", "optimizer", "split")]
    numbers = [shown(key) for key in ("ours_ppl", "theirs_ppl_as_given", "theirs_ppl_per_target")]
    return [Cell(text) for text in (*words, *numbers, share, str(record["config"]))]


def _caption(group: Group, others: Others) -> str:
    words = ["Perplexities at the epoch with the best validation perplexity, beside other results.", others.words]
    if group.reference.denominator == "padded" or others.padded:
        shares = f"{PADDED_SHARE['train']} for train and {PADDED_SHARE['valid']} for validation"
        words.append(
            "Where perplexities count the padding of the last window among the targets, they are converted before they "
            f"are compared: their logarithm is {shares} times that per target token."
        )
    if others.caveat:
        words.append(f"{others.caveat} So no difference is given ({DASH}).")
    else:
        words.append("Difference: ours over theirs per target token, minus one.")
    return " ".join([*words, f"Ours: {describe(group)}"])
