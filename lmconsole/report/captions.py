"""Sentences for captions and the report: what the runs of a group share, and what limits a comparison."""

from collections import Counter

import msgspec

from lmconsole import formatting
from lmconsole.importing.import_runs import STATED
from lmconsole.plan.presets import ranges
from lmconsole.report.results import is_complete
from lmconsole.report.selection import Exclusion, Group
from lmconsole.runs.comparable import EXPERIMENT_SETTINGS
from lmconsole.runs.info import RunInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

MANY_SEEDS = 5
"""More seeds than this are written as ranges."""


def describe_group(group: Group) -> str:
    """Describe everything that the runs have in common, and the exceptions."""
    if group.imported:
        sentences = [_describe_imported(group)]
    else:
        devices = ", ".join(group.devices) or "an unknown device"
        sentences = [_describe_trained(_typical_run(group)), f"Trained on {devices}."]
    if len(group.seeds) == 1:
        sentences.append(f"Seed {group.seeds[0]}.")
    max_tokens = group.reference.corpus.max_tokens
    if max_tokens is not None:
        sentences.append(
            f"Only the first {max_tokens:,} training tokens were used, and a tenth as many for each evaluation."
        )
    return " ".join([*sentences, *_exceptions(group)])


def describe_group_briefly(group: Group) -> str:
    """Describe the runs in one sentence, for captions of figures."""
    info = _typical_run(group)
    subject = (
        f"Imported runs{_padding(info)}"
        if group.imported
        else f"Preset {info.preset}, corpus “{info.corpus.name}”, {info.settings.precision} precision"
    )
    sentence = f"{subject}, {'seed' if len(group.seeds) == 1 else 'seeds'} {seed_list(group)}."
    return f"{sentence} {_excluded(group)}" if group.excluded else sentence


def seed_list(group: Group) -> str:
    """Return the seeds as ``1, 2, 3``, or as ``1-10`` if there are many."""
    seeds = group.seeds
    return ", ".join(map(str, seeds) if len(seeds) <= MANY_SEEDS else ranges(seeds).split())


def ppl_denominator(group: Group) -> str:
    """Return the unit over which the group's perplexities are averaged."""
    return "target token" if group.reference.denominator == "targets" else "position (padding included)"


def describe_host_memory(group: Group, title: str = "Peak host memory") -> str:
    """Describe the memory of runs that used no GPU."""
    if group.imported:
        return f"{title}. Imported runs do not record their memory."
    return f"{title}: largest resident memory of the training process. These runs used no GPU."


def describe_incomplete_runs(group: Group) -> list[str]:
    """Describe the progress of every run that is unfinished or diverged."""
    return [
        f"{run.run}: {'diverged' if run.status is Status.FINISHED else run.status.value} after "
        f"{len(run.state.epochs)} of {formatting.counted(run.info.settings.epochs, 'epoch')}, "
        f"{formatting.seconds(run.state.elapsed_train_s)} of training"
        for run in group.runs
        if not is_complete(run)
    ]


def timing_caveat(group: Group) -> str:
    """Explain why times within the group are not comparable; empty if they are."""
    jobs = {run.state.queued.jobs for run in group.runs if run.state.queued}
    reasons = []
    if len(group.devices) > 1:
        reasons.append(f"the runs were trained on different devices ({', '.join(group.devices)})")
    if len(jobs) > 1:
        reasons.append(f"different numbers of runs shared the device ({', '.join(map(str, sorted(jobs)))})")
    if len({run.info.threads for run in group.runs}) > 1 and group.devices == ["CPU"]:
        reasons.append("the runs used different numbers of threads")
    caveat = f"Not all times are comparable: {'; '.join(reasons)}." if reasons else ""
    if len(jobs) == 1 and (concurrent := jobs.pop()) > 1:
        caveat = f"{caveat} Up to {concurrent} runs shared the device, which increases the time of each.".strip()
    return caveat


def _typical_run(group: Group) -> RunInfo:
    """Return the reference or, if it overrides settings that the others share, the first run that does not."""
    infos = [group.reference, *(run.info for run in group.runs)]
    return next((info for info in infos if info.experiment.overrides.keys() <= EXPERIMENT_SETTINGS), group.reference)


def _describe_trained(info: RunInfo) -> str:
    s, corpus = info.settings, info.corpus
    train, validation, test = (
        f"{corpus.tokens[split]:,}" if split in corpus.tokens else "an unknown number of"
        for split in ("train", "validation", "test")
    )
    embeddings = "frozen GPT-1 embeddings" if s.embeddings == "frozen" else "learned embeddings"
    return (
        f"Preset {info.preset}, corpus “{corpus.name}”: {train} training, {validation} validation and {test} test "
        "tokens; vocabulary of "
        f"{corpus.vocabulary:,} ({corpus.tokenizer}); {embeddings}; "
        f"{formatting.counted(s.epochs, 'epoch')}; batches of {formatting.counted(s.batch_size, 'window')} of "
        f"{formatting.counted(s.window_tokens, 'token')}; learning rate {s.learning_rate:g}; {s.precision} precision."
    )


def _describe_imported(group: Group) -> str:
    info = group.reference
    settings = msgspec.to_builtins(info.settings)
    stated = [
        f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
        for key, value in settings.items()
        if info.origins.get(key) == STATED and key not in ("model", "layers", "optimizer")
    ]
    known = f"Stated by their source: {', '.join(stated)}. Other" if stated else "Their"
    return f"Imported runs{_padding(info)}, not trained by lmconsole. {known} settings are unknown."


def _padding(info: RunInfo) -> str:
    return " with perplexity per position, padding included" if info.denominator == "padded" else ""


def _exceptions(group: Group) -> list[str]:
    sentences = []
    for experiment, runs in group.by_experiment.items():
        own = {key: value for key, value in runs[0].info.experiment.overrides.items() if key != "weight_decay"}
        if own:
            settings = ", ".join(f"{key} {value}" for key, value in own.items())
            sentences.append(f"Experiment {experiment} has its own settings: {settings}.")
    shared = [run.info.experiment.id for run in group.runs if run.state.started and run.state.started.shared_gpu]
    if shared:
        sentences.append(f"Other processes used the GPU at the start of experiments {ranges(shared)}.")
    return [*sentences, _excluded(group)] if group.excluded else sentences


def _excluded(group: Group) -> str:
    reasons = Counter(_exclusion_reason(run, exclusion) for run, exclusion in group.excluded)
    return "Excluded runs: " + ", ".join(f"{count} {reason}" for reason, count in reasons.items()) + "."


def _exclusion_reason(run: Run, exclusion: Exclusion) -> str:
    match exclusion:
        case Exclusion.NO_EPOCH:
            return f"{run.status.value} without a complete epoch"
        case Exclusion.OTHER_SETTINGS:
            return "with older settings of the experiment"
        case Exclusion.SUPERSEDED:
            return "superseded by another run"
