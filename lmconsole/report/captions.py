"""Sentences for captions and the report: what the runs of a group share, and what limits a comparison."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmconsole import formatting
from lmconsole.importing.settings import ASSUMED, INFERRED, STATED, is_inferred
from lmconsole.plan.experiment import OPTIMIZER_NAMES, RECORDING_SETTINGS
from lmconsole.plan.presets import ranges
from lmconsole.report.results import is_complete
from lmconsole.report.selection import Exclusion, Group
from lmconsole.runs.comparable import EXPERIMENT_SETTINGS
from lmconsole.runs.info import RunInfo
from lmconsole.runs.store import Run

INFERRED_MARK = "¶"
"""Mark of experiments with a setting that is inferred."""

MANY_SEEDS = 5
"""More seeds than this are written as ranges."""


def describe_group(group: Group) -> str:
    """Describe everything that the runs have in common, and the exceptions."""
    if group.imported:
        sentences = [_describe_imported(group)]
    else:
        devices = ", ".join(group.devices) or "an unknown device"
        sentences = [_describe_trained(_typical_run(group)), f"Trained on {devices}."]
    if any(run.info.origins.get("seed") == ASSUMED for run in group.runs):
        sentences.append("Some sources do not state a seed." if len(group.seeds) > 1 else "The seed is unknown.")
    elif len(group.seeds) == 1:
        sentences.append(f"Seed {group.seeds[0]}.")
    max_tokens = group.reference.corpus.max_tokens
    if max_tokens is not None:
        sentences.append(
            f"Only the first {max_tokens:,} training tokens were used, and a tenth as many for each evaluation."
        )
    return " ".join([*sentences, *_exceptions(group)])


def describe_for_table(group: Group) -> str:
    """Describe the runs in the caption of a table, which is a file of its own."""
    if not group.imported:
        return describe_group(group)
    return " ".join([describe_group_briefly(group), *describe_inferred(group, INFERRED_MARK)])


def describe_group_briefly(group: Group) -> str:
    """Describe the runs in one sentence, for captions of figures."""
    info = _typical_run(group)
    subject = (
        f"Imported runs{_padding(info)}"
        if group.imported
        else f"Preset {info.preset}, corpus “{info.corpus.name}”, {info.settings.precision} precision"
    )
    seeds = f"{'seed' if len(group.seeds) == 1 else 'seeds'} {seed_list(group)}"
    if any(run.info.origins.get("seed") == ASSUMED for run in group.runs):
        seeds = "some of unknown seeds" if len(group.seeds) > 1 else "seed unknown"
    sentence = f"{subject}, {seeds}."
    return f"{sentence} {_excluded(group)}" if group.excluded else sentence


def seed_list(group: Group) -> str:
    """Return the seeds as ``1, 2, 3``, or as ``1–10`` if there are many."""
    seeds = group.seeds
    return ", ".join(map(str, seeds)) if len(seeds) <= MANY_SEEDS else name_ids(seeds)


def ppl_denominator(group: Group) -> str:
    """Return the unit over which the group's perplexities are averaged."""
    return "target token" if group.reference.denominator == "targets" else "position of full batches (padded)"


def describe_evaluations(group: Group) -> str:
    """Describe at which steps validation perplexity is known besides the ends of epochs; empty if at none."""
    experiments: dict[int, set[int]] = {}
    for run in group.runs:
        every = run.info.settings.evaluate_every_steps if run.state.evaluations else 0
        experiments.setdefault(every, set()).add(run.info.experiment.id)
    intervals = {each: f"every {each:,} steps" if each > 1 else "every step" for each in sorted(experiments) if each}
    if len(experiments) == len(intervals) == 1:
        return f"Validation perplexity is evaluated {''.join(intervals.values())} and at the ends of epochs."
    if not intervals:
        return ""
    parts = [f"{interval} in {name_ids(experiments[each])}" for each, interval in intervals.items()]
    return f"Validation perplexity is evaluated at the ends of epochs, and within them {', '.join(parts)}."


def describe_incomplete_runs(group: Group) -> list[str]:
    """Describe the progress of every run that is unfinished, diverged or damaged."""
    return [
        f"{run.run}: {_outcome(run)} after "
        f"{run.state.epochs_done} of {formatting.counted(run.info.settings.epochs, 'epoch')}, "
        f"{formatting.seconds(run.state.elapsed_train_s)} of training"
        + "".join(f"; damaged: {phrase}" for phrase in run.state.damage)
        for run in group.runs
        if not is_complete(run)
    ]


def describe_outcomes(runs: Sequence[Run]) -> str:
    """Return which experiments have runs that are unfinished, diverged or damaged: ``diverged: 3, 5–7``."""
    by_outcome: dict[str, list[int]] = {}
    for run in runs:
        outcome = "damaged" if run.state.damage and _outcome(run) == "finished" else _outcome(run)
        by_outcome.setdefault(outcome, []).append(run.info.experiment.id)
    return "; ".join(f"{outcome}: {name_experiments(ids)}" for outcome, ids in by_outcome.items())


def _outcome(run: Run) -> str:
    return "diverged" if run.state.finished and run.state.finished.diverged else run.status.value


def timing_caveat(group: Group) -> str:
    """Explain why times within the group are not comparable; empty if they are."""
    if group.imported:
        return "The sources do not state on which device the runs were trained, so times may not be comparable."
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
    own = EXPERIMENT_SETTINGS | RECORDING_SETTINGS
    return next((info for info in infos if info.experiment.overrides.keys() <= own), group.reference)


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


def explain_padding(group: Group) -> list[str]:
    """Return sentences on padded perplexities; none for a group without."""
    if group.reference.denominator != "padded":
        return []
    sentences = ["Padded: the last batch counts as full, although it has fewer windows."]
    if any(run.info.origins.get("denominator") == ASSUMED for run in group.runs):
        sentences.append("The sources do not state this; it is assumed.")
    return sentences


def _describe_imported(group: Group) -> str:
    """Name the settings that the sources state, those that are inferred, and say that all others are unknown."""
    info, every = group.reference, set(group.by_experiment)
    sentences = [f"Imported runs{_padding(info)}, not trained by lmconsole."]
    sentences += explain_padding(group)
    known = known_settings(group)
    stated = [
        each.text if each.experiments == every else f"{each.text} ({name_experiments(each.experiments)})"
        for each in known
        if each.origin == STATED
    ]
    if stated:
        sentences.append(f"Stated by their sources: {', '.join(stated)}.")
    sentences += describe_inferred(group)
    sentences.append("Other settings are unknown." if known else "Their settings are unknown.")
    return " ".join(sentences)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownSetting:
    """Setting that the sources of these imported experiments state, or that is inferred from what they record."""

    key: str
    value: object
    origin: str
    experiments: set[int]

    @property
    def text(self) -> str:
        """Name and value, such as ``weight decay 0.0005``."""
        if self.key == "optimizer":
            return f"optimizer {OPTIMIZER_NAMES[str(self.value)]}"
        value = f"{self.value:g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.key.replace('_', ' ')} {value}"


def known_settings(group: Group) -> list[KnownSetting]:
    """Return the settings of imported runs that are stated or inferred, except for those in every table."""
    found: dict[tuple[str, object, str], set[int]] = {}
    for run in group.runs:
        for key in run.info.settings.__struct_fields__:
            origin = run.info.origins.get(key, ASSUMED)
            if is_inferred(origin) or (origin == STATED and key not in ("model", "layers", "optimizer")):
                kind = key, getattr(run.info.settings, key), origin
                found.setdefault(kind, set()).add(run.info.experiment.id)
    order = list(group.reference.settings.__struct_fields__)
    return [
        KnownSetting(key=key, value=value, origin=origin, experiments=ids)
        for (key, value, origin), ids in sorted(found.items(), key=lambda item: order.index(item[0][0]))
    ]


def describe_inferred(group: Group, mark: str = "") -> list[str]:
    """Return a sentence for each setting that is inferred from what the sources record, after ``mark``."""
    start = f"{mark}: inferred" if mark else "Inferred"
    return [
        f"{start} for {name_experiments(each.experiments)}: {each.text} ({each.origin.removeprefix(INFERRED)})."
        for each in known_settings(group)
        if is_inferred(each.origin)
    ]


def inferred_experiments(group: Group) -> set[int]:
    """Return the experiments that have a setting which is inferred."""
    return {
        run.info.experiment.id for run in group.runs if any(is_inferred(each) for each in run.info.origins.values())
    }


def name_experiments(ids: Iterable[int]) -> str:
    """Return ``experiment 1``, ``experiments 2–3, 5``."""
    numbers = sorted(set(ids))
    return f"experiment{'' if len(numbers) == 1 else 's'} {name_ids(numbers)}"


def name_ids(ids: Iterable[int]) -> str:
    """Return numbers as ``2–3, 5``."""
    return ", ".join(ranges(list(ids)).split()).replace("-", "–")


def _padding(info: RunInfo) -> str:
    return " with padded perplexities" if info.denominator == "padded" else ""


def _exceptions(group: Group) -> list[str]:
    sentences = []
    for experiment, runs in group.by_experiment.items():
        own = {key: value for key, value in runs[0].info.experiment.overrides.items() if key != "weight_decay"}
        if own:
            settings = ", ".join(f"{key} {value}" for key, value in own.items())
            sentences.append(f"Experiment {experiment} has its own settings: {settings}.")
    shared = [run.info.experiment.id for run in group.runs if run.state.started and run.state.started.shared_gpu]
    if shared:
        sentences.append(f"Other processes used the GPU at the start of experiments {name_ids(shared)}.")
    return [*sentences, _excluded(group)] if group.excluded else sentences


def _excluded(group: Group) -> str:
    return f"Excluded runs: {excluded_runs(group)}."


def excluded_runs(group: Group) -> str:
    """Return how many comparable runs are left out and why; empty if none is."""
    reasons = Counter(_exclusion_reason(run, exclusion) for run, exclusion in group.excluded)
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _exclusion_reason(run: Run, exclusion: Exclusion) -> str:
    match exclusion:
        case Exclusion.NO_EPOCH:
            return f"{run.status.value} without a complete epoch"
        case Exclusion.OTHER_SETTINGS:
            return "with older settings of the experiment"
        case Exclusion.SUPERSEDED:
            return "superseded by another run"
        case Exclusion.REPRODUCTION:
            return "trained to reproduce another run"


def join_sentences(sentences: Sequence[str]) -> str:
    """Return the sentences that are not empty as one text."""
    return " ".join(sentence for sentence in sentences if sentence)


def not_shown(count: int) -> str:
    """Return how many experiments a figure lacks; nothing for none."""
    if count <= 0:
        return ""
    return f"{count} more {'experiment is' if count == 1 else 'experiments are'} not shown, for lack of space."
