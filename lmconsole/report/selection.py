"""Which runs one table may compare: the group of a reference run, and in it one run per experiment and seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from lmconsole.errors import ExportError
from lmconsole.importing.import_runs import STATED
from lmconsole.plan.experiment import APPLIES_TO, MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.plan.presets import ranges
from lmconsole.runs.info import RunInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

OWN = frozenset({"model", "layers", "optimizer", "weight_decay", *APPLIES_TO})
"""Settings in which experiments differ by nature; all others a group has in common, and these among the experiments of
one model or optimizer."""


MANY_SEEDS = 5
"""More seeds than this are named by ranges."""


@dataclass(frozen=True)
class Group:
    """Comparable runs: same preset, settings, corpus, precision and origin, any seed."""

    reference: RunInfo
    runs: list[Run]
    """One per experiment and seed, ordered as tables are: GPT-1 before LSTM, layers, optimizer, id, seed."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Why other runs of the group are not in it, and how many."""

    @property
    def key(self) -> str:
        """A name for the group that stays the same as runs come and go."""
        own = {*OWN, *self.reference.experiment.overrides}
        traits = {key: value for key, value in _traits(self.reference).items() if key not in own}
        return hashlib.sha256(msgspec.json.encode(traits, order="deterministic")).hexdigest()

    @property
    def seeds(self) -> list[int]:
        """Every seed in it."""
        return sorted({run.info.seed for run in self.runs})

    @property
    def seeds_words(self) -> str:
        """``1, 2, 3``; ``1-10`` where there are many."""
        seeds = self.seeds
        return ", ".join(map(str, seeds) if len(seeds) <= MANY_SEEDS else ranges(seeds).split())

    @property
    def by_experiment(self) -> dict[int, list[Run]]:
        """Its runs by the experiment's id, in the order of the tables; the seeds of each in ascending order."""
        found: dict[int, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.info.experiment.id, []).append(run)
        return found

    @property
    def devices(self) -> list[str]:
        """Names of the devices that its runs were trained on."""
        return list(dict.fromkeys(run.state.started.device_name for run in self.runs if run.state.started))

    @property
    def imported(self) -> bool:
        """Whether its runs were made elsewhere."""
        return self.reference.origin == "imported"


def _traits(info: RunInfo) -> dict[str, object]:
    return {
        "origin": info.origin,
        "denominator": info.denominator,
        "preset": info.preset,
        "corpus": info.corpus.sha256,
        "max_tokens": info.corpus.max_tokens,
        "embeddings_sha256": info.embeddings.sha256 if info.embeddings else None,
        **msgspec.to_builtins(info.settings),
    }


def comparable(info: RunInfo, reference: RunInfo) -> bool:
    """Whether both runs belong into one table. What an experiment's own row sets is its business."""
    ours, theirs = _traits(info), _traits(reference)
    free = {"model", "layers", "optimizer", *info.experiment.overrides, *reference.experiment.overrides}
    for key in OWN - free:
        kind = "model" if set(APPLIES_TO.get(key, ())) & set(MODEL_NAMES) else "optimizer"
        if ours[kind] != theirs[kind]:
            free.add(key)
    return all(ours[key] == theirs[key] for key in ours if key not in free)


def choose_group(
    runs: Sequence[Run], *, preset: str | None = None, run: str | None = None, imported: bool | None = None
) -> Group:
    """The group of ``run``, or of the run that finished last (under ``preset``); where none has finished, of the newest
    that has an epoch to show. ``imported`` says whether it is to be one of imported runs; by default only where there
    are no others. ``runs`` come oldest first.

    Raises ExportError if there is nothing to show.
    """
    candidates = [
        each
        for each in runs
        if preset in (None, each.info.preset)
        and run in (None, each.run)
        and imported in (None, each.info.origin == "imported")
    ]
    shown = [each for each in candidates if each.state.epochs]
    if imported is None and any(each.info.origin == "trained" for each in shown):
        shown = [each for each in shown if each.info.origin == "trained"]
    finished = [each for each in shown if each.status is Status.FINISHED]
    if not shown:
        raise ExportError(_nothing(runs, candidates, preset), hint="`lmconsole status` shows how the runs stand.")
    reference = max(finished or shown, key=lambda each: each.state.last_t).info
    members = [each for each in runs if comparable(each.info, reference)]
    return _pick(reference, members)


def _nothing(runs: Sequence[Run], candidates: Sequence[Run], preset: str | None) -> str:
    if not runs:
        return "nothing to export: the store has no runs"
    if not candidates:
        known = ", ".join(dict.fromkeys(each.info.preset for each in runs))
        if preset is None:
            return "nothing to export: the store has no imported runs"
        return f"nothing to export: no run of preset {preset!r}; the store has {known}"
    failed = sum(each.status is Status.FAILED for each in candidates)
    why = f" ({failed} failed)" if failed else ""
    return f"nothing to export: none of {len(candidates)} runs has completed an epoch{why}"


def _pick(reference: RunInfo, members: Sequence[Run]) -> Group:
    """Per experiment and seed the latest finished run, else the latest with an epoch. Seeds of one experiment must
    share its settings too: those of its latest run count."""
    chosen: dict[tuple[int, int], Run] = {}
    left_out: dict[str, int] = {}
    latest: dict[int, RunInfo] = {}
    for run in members:
        if run.state.epochs:
            latest[run.info.experiment.id] = run.info
    for run in members:
        place = run.info.experiment.id, run.info.seed
        if not run.state.epochs:
            _count(left_out, f"{run.status.value} without an epoch")
        elif run.info.settings != latest[place[0]].settings:
            _count(left_out, "older settings of the experiment")
        else:
            if place in chosen:
                _count(left_out, "repeated")
            if place not in chosen or run.status is Status.FINISHED or chosen[place].status is not Status.FINISHED:
                chosen[place] = run
    return Group(reference=reference, runs=sorted(chosen.values(), key=_place), left_out=left_out)


def _count(left_out: dict[str, int], why: str) -> None:
    left_out[why] = left_out.get(why, 0) + 1


def _place(run: Run) -> tuple[str, int, str, int, int]:
    experiment = run.info.experiment
    name = OPTIMIZER_NAMES[experiment.optimizer]
    return experiment.model, experiment.layers, name.lower(), experiment.id, run.info.seed


def describe(group: Group) -> str:
    """What all runs of the group have in common, and how many were left out."""
    if group.imported:
        words = [_describe_imported(group)]
    else:
        words = [_describe_trained(group.reference), f"Trained on {', '.join(group.devices) or 'an unknown device'}."]
    if len(group.seeds) == 1:
        words.append(f"Seed {group.seeds[0]}.")
    max_tokens = group.reference.corpus.max_tokens
    if max_tokens is not None:
        words.append(f"Only the first {max_tokens:,} train tokens were used, and a tenth of that to evaluate.")
    return " ".join([*words, *_exceptions(group)])


def describe_briefly(group: Group) -> str:
    """One sentence for the caption of a figure, and how many runs were left out."""
    info = group.reference
    what = (
        f"Preset {info.preset}: {info.corpus.name}, precision {info.settings.precision}"
        if not group.imported
        else (f"Imported runs{_padded(info)}")
    )
    words = [f"{what}, {'seed' if len(group.seeds) == 1 else 'seeds'} {group.seeds_words}."]
    if group.left_out:
        words.append(_left_out(group))
    return " ".join(words)


def _describe_trained(info: RunInfo) -> str:
    s, corpus = info.settings, info.corpus
    tables = "GPT-1's embedding tables, frozen" if s.embeddings == "frozen" else "learned embedding tables"
    return (
        f"Preset {info.preset}: {corpus.name}, {corpus.tokens['train']:,} train, {corpus.tokens['validation']:,} "
        f"validation and {corpus.tokens['test']:,} test tokens, vocabulary {corpus.vocabulary:,} ({corpus.tokenizer}); "
        f"{tables}; {s.epochs} epochs, batches of {s.batch_size} windows of {s.window_tokens} tokens, learning rate "
        f"{s.learning_rate:g}; precision {s.precision}."
    )


def _describe_imported(group: Group) -> str:
    info = group.reference
    settings = msgspec.to_builtins(info.settings)
    stated = [
        f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
        for key, value in settings.items()
        if info.origins.get(key) == STATED and key not in ("model", "layers", "optimizer")
    ]
    known = f"; their source states {', '.join(stated)}" if stated else ""
    return f"Imported runs{_padded(info)}, not trained by lmconsole{known}; other settings are unknown."


def _padded(info: RunInfo) -> str:
    return ", perplexities per slot, padding included" if info.denominator == "padded" else ""


def _exceptions(group: Group) -> list[str]:
    """What not all runs of the group have in common, and how many were left out."""
    words = []
    for experiment, runs in group.by_experiment.items():
        own = {key: value for key, value in runs[0].info.experiment.overrides.items() if key != "weight_decay"}
        if own:
            settings = ", ".join(f"{key} {value}" for key, value in own.items())
            words.append(f"Experiment {experiment} has settings of its own: {settings}.")
    shared = [run.info.experiment.id for run in group.runs if run.state.started and run.state.started.shared_gpu]
    if shared:
        words.append(f"Other processes used the GPU when experiments {ranges(shared)} began.")
    return [*words, _left_out(group)] if group.left_out else words


def _left_out(group: Group) -> str:
    return "Left out: " + ", ".join(f"{count} {why}" for why, count in group.left_out.items()) + "."


def clock_note(group: Group) -> str:
    """Why the wall-clock times of the group may not be comparable; empty if they are."""
    jobs = {run.state.queued.jobs for run in group.runs if run.state.queued}
    words = []
    if len(group.devices) > 1:
        words.append(f"the runs were trained on different devices ({', '.join(group.devices)})")
    if len(jobs) > 1:
        words.append(f"different numbers of runs shared the device ({', '.join(map(str, sorted(jobs)))})")
    if len({run.info.threads for run in group.runs}) > 1 and group.devices == ["CPU"]:
        words.append("the runs used different numbers of threads")
    note = f"Times are not comparable throughout: {'; '.join(words)}." if words else ""
    if len(jobs) == 1 and (together := jobs.pop()) > 1:
        note = f"{note} Up to {together} runs shared the device, which lengthens the times of each.".strip()
    return note
