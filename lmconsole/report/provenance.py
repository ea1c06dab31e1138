"""Provenance: software, device, fingerprints, settings, and the command that trains the runs again."""

import itertools
import shlex

import msgspec

from lmconsole.plan.experiment import Settings
from lmconsole.plan.presets import ranges
from lmconsole.report.blocks import Block, BulletList, Command, Heading, InlineTable, Paragraph
from lmconsole.report.captions import known_settings, name_ids
from lmconsole.report.selection import Group
from lmconsole.report.table import Cell, Column, Table
from lmconsole.runs.info import RunInfo, describe_code

MANY_RUNS = 60
"""More runs than this are not listed one by one."""


def provenance(group: Group) -> list[Block]:
    """Return the section on where the results come from."""
    blocks: list[Block] = [Heading(1, "Provenance"), BulletList(_provenance_items(group))]
    if group.imported:
        lead = "Settings that the sources state, and those inferred from what they record."
        blocks += [
            Paragraph("All others are unknown.", lead=lead),
            InlineTable(_known_settings_table(group), small=True),
            Paragraph("These runs were imported. See their source for how to reproduce them."),
        ]
    else:
        blocks += [Paragraph("", lead="Settings shared by all runs."), InlineTable(_settings_table(group), small=True)]
        differing = _differing_settings_table(group)
        if differing.rows:
            blocks += [Paragraph("", lead="Settings that differ."), InlineTable(differing, small=True)]
        lead = "Command that trains these experiments again with all seeds and writes this report:"
        blocks += [Paragraph("", lead=lead), Command(reproduce(group))]
    names = [run.run for run in group.runs]
    if len(names) <= MANY_RUNS:
        blocks += [Paragraph("", lead="Runs."), BulletList(names, code=True)]
    else:
        blocks.append(Paragraph(f"{len(names):,} runs, listed in data/runs.csv of a CSV export.", lead="Runs."))
    return blocks


def _provenance_items(group: Group) -> list[str]:
    info = group.reference
    started = [run.state.started for run in group.runs if run.state.started]
    software = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in each.versions.items() if version) for each in started
    )
    items = [f"Software: {versions}." for versions in software if versions] + _code_items(group)
    if group.devices:
        threads = sorted({run.info.threads for run in group.runs if run.info.threads})
        per_run = f"{' or '.join(map(str, threads))} CPU thread{'' if threads == [1] else 's'} per run"
        items.append(f"Device: {', '.join(group.devices)}; {per_run}.")
    if info.corpus.sha256:
        items.append(f"Corpus “{info.corpus.name}”: SHA-256 {info.corpus.sha256}.")
    if info.corpus.tokenizer_path is not None:
        items.append(f"Tokenizer: {info.corpus.tokenizer_and_place}.")
    if info.embeddings is not None:
        items.append(f"Embeddings: SHA-256 {info.embeddings.sha256}.")
    days = sorted({run.info.queued_t[:10] for run in group.runs} | {run.state.last_t[:10] for run in group.runs})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return [*items, f"{'Imported' if group.imported else 'Trained'}: {span} (UTC)."]


def _code_items(group: Group) -> list[str]:
    """Return sentences on the code that trained the runs, and the commit of their experiments.toml."""
    started = [(run.info, run.state.started.code_sha256) for run in group.runs if run.state.started]
    codes = dict.fromkeys(describe_code(info, code) for info, code in started if code is not None)
    own = [run.info.provenance.experiments for run in group.runs if run.info.provenance]
    commits = dict.fromkeys(each.describe() for each in own if each is not None)
    return [*(f"Code: {code}." for code in codes), *(f"experiments.toml: {commit}." for commit in commits)]


def _known_settings_table(group: Group) -> Table:
    """Return the settings of imported runs that are not merely assumed."""
    headers = ("Setting", "Value", "Experiments", "Origin")
    rows = [
        {
            "Setting": Cell(each.key),
            "Value": Cell(str(each.value)),
            "Experiments": Cell(name_ids(each.experiments)),
            "Origin": Cell(each.origin),
        }
        for each in known_settings(group)
    ]
    return Table(columns=[Column(header=header) for header in headers], rows=rows)


def _settings_table(group: Group) -> Table:
    """Return the settings that all runs share and their origins."""
    settings, *others = (msgspec.to_builtins(run.info.settings) for run in group.runs)
    info = group.reference
    rows = [
        {"Setting": Cell(key), "Source": Cell(info.origins[key].rpartition("/")[2]), "Value": Cell(str(value))}
        for key, value in settings.items()
        if key in info.origins and value is not None and all(other[key] == value for other in others)
    ]
    return Table(columns=[Column(header=header) for header in ("Setting", "Source", "Value")], rows=rows)


def _differing_settings_table(group: Group) -> Table:
    """Return the settings in which the experiments differ, besides those that name them, with their values."""
    by_experiment = {id_: msgspec.to_builtins(runs[0].info.settings) for id_, runs in group.by_experiment.items()}
    rows = []
    for key in Settings.__struct_fields__:
        values: dict[str, list[int]] = {}
        for id_, settings in by_experiment.items():
            if settings[key] is not None:
                values.setdefault(str(settings[key]), []).append(id_)
        everywhere = len(values) == 1 and sum(map(len, values.values())) == len(by_experiment)
        if key not in ("model", "layers", "optimizer") and values and not everywhere:
            rows += [
                {"Setting": Cell(key), "Value": Cell(value), "Experiments": Cell(name_ids(ids))}
                for value, ids in values.items()
            ]
    return Table(columns=[Column(header=header) for header in ("Setting", "Value", "Experiments")], rows=rows)


def reproduce(group: Group) -> str:
    """Return the command that trains the runs of a group again and exports them."""
    info = group.reference
    if all("--claims" in run.info.command for run in group.runs):
        words = ["lmconsole", "run", "--claims", "--preset", info.preset]
    else:
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
    devices = {run.state.started.device for run in group.runs if run.state.started}
    if devices == {"cpu"}:
        words += ["--device", "cpu"]
    jobs = [run.info.jobs or (run.state.queued.jobs if run.state.queued else 1) for run in group.runs]
    requested = max((each for each in jobs if isinstance(each, int)), default=None)
    if requested is not None and (requested > 1 or not _on_gpu(group)):  # threads change the last bits on a CPU
        words += ["--jobs", str(requested)]
    return shlex.join([*words, "--headless"])


def _on_gpu(group: Group) -> bool:
    """Return whether all runs were trained on GPUs, where ``--jobs auto`` means one run at a time."""
    return all(run.state.started.device != "cpu" for run in group.runs if run.state.started)


def _option(info: RunInfo, name: str) -> str | None:
    """Return the value of an option on the command line that queued a run."""
    for word, following in itertools.zip_longest(info.command, info.command[1:], fillvalue=""):
        if word == name:
            return following or None
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
