"""From an experiment and a preset to the settings of one run, and where each of them came from."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

import msgspec

from lmconsole.errors import PlanError
from lmconsole.plan.experiment import APPLIES_TO, Experiment, Model, Optimizer, Seed, Settings

AUTO = "auto"
"""The preset that picks another one; never defined in a file."""

TYPES: dict[str, Any] = {**get_type_hints(Settings, include_extras=True), "seed": Seed}
"""Every key that a file may set, with its type and bounds."""

IDENTITY = ("model", "layers", "optimizer")
"""Keys that only an experiment's row may set."""

SECTIONS = (*get_args(Model), *get_args(Optimizer))
"""Tables inside [defaults] and presets that apply to one model or one optimizer."""

Values = Mapping[str, object]


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One named set of settings, [defaults] or a preset: ``values[""]`` for everybody, ``values["lstm"]`` for one
    model or optimizer. ``origins`` names, per section and key, the file and table a value stands in."""

    values: dict[str, dict[str, object]] = {}
    origins: dict[str, dict[str, str]] = {}

    def merged(self, above: "Layer") -> "Layer":
        """This layer with ``above`` laid over it, key by key."""
        sections = [*self.values, *(s for s in above.values if s not in self.values)]
        return Layer(
            values={s: {**self.values.get(s, {}), **above.values.get(s, {})} for s in sections},
            origins={s: {**self.origins.get(s, {}), **above.origins.get(s, {})} for s in sections},
        )

    def pieces(self, experiment: Experiment) -> Iterator[tuple[Values, Mapping[str, str]]]:
        """The sections that apply to ``experiment``, general first."""
        for section in ("", experiment.model, experiment.optimizer):
            if section in self.values:
                yield self.values[section], self.origins.get(section, {})


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The experiments and presets of one experiments.toml, merged over the built-in ones and validated."""

    experiments: tuple[Experiment, ...]
    defaults: Layer
    presets: dict[str, Layer]
    source: str

    def experiment(self, number: int) -> Experiment:
        """The experiment with that id. Raises PlanError naming those there are."""
        for experiment in self.experiments:
            if experiment.id == number:
                return experiment
        raise PlanError([f"no experiment {number}; {self.source} has {ranges([e.id for e in self.experiments])}"])

    def resolve(self, experiment: Experiment, preset: str, overrides: Values | None = None) -> "Resolved":
        """The settings of ``experiment`` under ``preset`` (never ``auto``), ``overrides`` from the command line last.

        Raises PlanError with every missing key and every contradiction between keys.
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
        where = f"experiment {experiment.id}, preset {preset}"
        values = {key: value for key, value in values.items() if applies(key, experiment)}
        missing = [key for key in TYPES if applies(key, experiment) and key not in values]
        if missing:
            raise PlanError([f"{self.source}: {where}: {key}: missing, and [defaults] has none" for key in missing])
        problems = contradictions(values)
        if problems:
            raise PlanError([f"{self.source}: {where}: {problem}" for problem in problems])
        seed = values.pop("seed")
        assert isinstance(seed, int)
        return Resolved(
            settings=msgspec.convert(values, Settings),
            seed=seed,
            origins={key: origins[key] for key in values if key in origins},
        )


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one run, its default seed, and the file and table, or command line, each setting came from."""

    settings: Settings
    seed: int
    origins: dict[str, str]


def applies(key: str, experiment: Experiment) -> bool:
    """Whether the experiment's model and optimizer have a use for ``key``."""
    owners = APPLIES_TO.get(key)
    return owners is None or experiment.model in owners or experiment.optimizer in owners


def contradictions(values: Values) -> list[str]:
    """Problems between keys that are each valid alone."""
    problems = []
    channels, heads = values["channels"], values.get("heads")
    if isinstance(channels, int) and isinstance(heads, int) and channels % heads:
        problems.append(f"heads: {heads} does not divide channels, {channels}")
    if values["corpus"] == "demo" and values["embeddings"] == "frozen":
        problems.append('embeddings: "frozen" tables belong to GPT-1\'s tokens; the demo corpus needs "learned"')
    return problems


def ranges(numbers: list[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3 7``."""
    pieces: list[list[int]] = []
    for number in sorted(set(numbers)):
        if pieces and number == pieces[-1][-1] + 1:
            pieces[-1].append(number)
        else:
            pieces.append([number])
    return " ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces)


def unknown(what: str, given: str, known: list[str]) -> str:
    """``unknown preset 'papr'; did you mean 'paper'?``"""
    close = get_close_matches(given, known, n=1)
    return f"unknown {what} {given!r}; " + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}")
