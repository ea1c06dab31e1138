"""Presets: from an experiment and a preset to the settings of a run and the origin of each."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

import msgspec

from lmconsole.errors import LONGEST_NAME, PlanError, did_you_mean
from lmconsole.plan.claims import Claim
from lmconsole.plan.executor import SlurmOptions
from lmconsole.plan.experiment import APPLIES_TO, Experiment, Model, Optimizer, Seed, Settings

AUTO = "auto"
"""Preset that selects another one automatically; never defined in a file."""

TYPES: dict[str, Any] = {**get_type_hints(Settings, include_extras=True), "seed": Seed}
"""Type and bounds of every key that a file may set."""

IDENTITY = ("model", "layers", "optimizer")
"""Keys that only a row [[experiment]] may set."""

SECTIONS = (*get_args(Model), *get_args(Optimizer))
"""Tables in [defaults] and in presets that apply to one model or optimizer."""

Values = Mapping[str, object]


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of [defaults] or of a preset: ``values[""]`` for all experiments, ``values["lstm"]`` for one model or
    optimizer. ``origins`` has the file and table of each value, by section and key."""

    values: dict[str, dict[str, object]] = {}
    origins: dict[str, dict[str, str]] = {}

    def merged(self, above: "Layer") -> "Layer":
        """Return this layer, overridden key by key with ``above``."""
        sections = [*self.values, *(s for s in above.values if s not in self.values)]
        return Layer(
            values={s: {**self.values.get(s, {}), **above.values.get(s, {})} for s in sections},
            origins={s: {**self.origins.get(s, {}), **above.origins.get(s, {})} for s in sections},
        )

    def pieces(self, experiment: Experiment) -> Iterator[tuple[Values, Mapping[str, str]]]:
        """Yield values and origins of the sections that apply to ``experiment``, the general one first."""
        for section in ("", experiment.model, experiment.optimizer):
            if section in self.values:
                yield self.values[section], self.origins.get(section, {})


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Experiments and presets of an experiments.toml, validated and merged over the built-in ones."""

    experiments: tuple[Experiment, ...]
    defaults: Layer
    presets: dict[str, Layer]
    claims: tuple[Claim, ...] = ()
    slurm: SlurmOptions = SlurmOptions()
    source: str

    def experiment(self, number: int) -> Experiment:
        """Return the experiment with the id ``number``. Raises PlanError, which lists the known ids."""
        for experiment in self.experiments:
            if experiment.id == number:
                return experiment
        raise PlanError([f"no experiment {number}; {self.source} has {ranges([e.id for e in self.experiments])}"])

    def resolve(self, experiment: Experiment, preset: str, overrides: Values | None = None) -> "Resolved":
        """Return the settings of ``experiment`` under ``preset``, which is not ``auto``.

        ``overrides`` from the command line take precedence. Raises PlanError with every missing key and every
        contradiction between keys.
        """
        if preset not in self.presets:
            raise PlanError([unknown("preset", preset, [AUTO, *self.presets])])
        values: dict[str, object] = {key: getattr(experiment, key) for key in IDENTITY}
        origins = dict.fromkeys(IDENTITY, experiment.source)
        layers = [*self.defaults.pieces(experiment), *self.presets[preset].pieces(experiment)]
        layers.append((experiment.overrides, dict.fromkeys(experiment.overrides, experiment.source)))
        layers.append((overrides or {}, dict.fromkeys(overrides or {}, "command line")))
        for piece, piece_origins in layers:
            values.update(piece)
            origins.update(piece_origins)
        place = f"experiment {experiment.id}, preset {preset}"
        values = {key: value for key, value in values.items() if applies(key, experiment)}
        missing = [key for key in TYPES if applies(key, experiment) and key not in values]
        if missing:
            raise PlanError([f"{self.source}: {place}: {key}: missing, and [defaults] has no value" for key in missing])
        problems = contradictions(values)
        if problems:
            raise PlanError([f"{self.source}: {place}: {problem}" for problem in problems])
        seed = values.pop("seed")
        assert isinstance(seed, int)
        return Resolved(
            settings=msgspec.convert(values, Settings),
            seed=seed,
            origins={key: origins[key] for key in values if key in origins},
        )


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a run, its default seed, and the origin of each setting: file and table, or command line."""

    settings: Settings
    seed: int
    origins: dict[str, str]


def applies(key: str, experiment: Experiment) -> bool:
    """Return whether ``key`` applies to the experiment's model or optimizer."""
    owners = APPLIES_TO.get(key)
    return owners is None or experiment.model in owners or experiment.optimizer in owners


def contradictions(values: Values) -> list[str]:
    """Return the contradictions between values that are valid on their own."""
    problems = []
    channels, heads = values["channels"], values.get("heads")
    if isinstance(channels, int) and isinstance(heads, int) and channels % heads:
        problems.append(f"heads: channels ({channels}) must be a multiple of heads ({heads})")
    if values["corpus"] == "demo" and values["embeddings"] == "frozen":
        problems.append('embeddings: "frozen" tables belong to the tokens of GPT-1; use "learned" with the demo corpus')
    return problems


def ranges(numbers: list[int]) -> str:
    """Return the numbers as ranges: ``[1, 2, 3, 7]`` as ``1-3 7``."""
    pieces: list[list[int]] = []
    for number in sorted(set(numbers)):
        if pieces and number == pieces[-1][-1] + 1:
            pieces[-1].append(number)
        else:
            pieces.append([number])
    return " ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces)


def unknown(what: str, given: str, known: list[str]) -> str:
    """Return a message with the closest known name: ``unknown preset 'papr'; did you mean 'paper'?``"""
    shown = given if len(given) <= LONGEST_NAME else f"{given[: LONGEST_NAME - 1]}…"
    return f"unknown {what} {shown!r}" + (did_you_mean(given, known) or f"; known: {', '.join(known)}")
