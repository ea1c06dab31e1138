"""Settings of a run from what its source records: stated, inferred or unknown, each with its origin.

Training scripts often write every default of their argument parser, so a recorded value need not have had an effect.
The optimizer decides: plain SGD has no momentum and plain Adam no weight decay, whatever is recorded for them. The one
exception are values that differ between the runs with that optimizer: they were chosen.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lmconsole.importing.sources import ImportSourceError, stated_value
from lmconsole.plan.experiment import OPTIMIZER_NAMES, Experiment
from lmconsole.plan.presets import applies

STATED, ASSUMED = "stated by the source", "not stated; assumed"
"""Origins of the settings of imported runs, as written to run.json. Assumed settings are unknown, and no
sentence of a report is about them."""

INFERRED = "inferred: "
"""Start of the origin of a setting that is likely, but not stated; the reason follows."""

Denominator = Literal["targets", "padded"]

MODELS = {"lstm": "lstm", "gpt1": "gpt1", "gpt": "gpt1", "openaigpt": "gpt1"}

OPTIMIZERS = {"adam": "adam", "adamw": "adamw", "sgd": "sgd", "momentum": "momentum", "sgdmomentum": "momentum"}

UNUSED = {"sgd": "momentum", "adam": "weight_decay"}
"""Setting that an optimizer does not use by its name, although PyTorch's class of this name has it."""

_INTEGERS = ("epochs", "batch_size", "window_tokens")
_RECORDED = ("epochs", "batch_size", "learning_rate", "weight_decay", "momentum", "window_tokens")


def is_inferred(origin: str) -> bool:
    """Return whether this is the origin of an inferred setting."""
    return origin.startswith(INFERRED)


class Evidence:
    """Values that the runs of one import record for settings that their optimizer does not use by its name."""

    def __init__(self, recorded: Iterable[Mapping[str, Any]]) -> None:
        self._optimizers: set[str] = set()
        self._values: dict[tuple[str, str], set[float]] = {}
        for stated in recorded:
            optimizer = _normalized(stated_value(stated, "optimizer"), OPTIMIZERS)
            if optimizer is None:
                continue
            self._optimizers.add(optimizer)
            for setting in set(UNUSED.values()):
                self._values.setdefault((optimizer, setting), set()).add(recorded_number(stated, setting) or 0.0)

    def has_effect(self, optimizer: str, setting: str) -> bool:
        """Return whether the values of the runs with this optimizer differ, so that they were chosen. Where
        ``momentum`` is an optimizer of its own, ``sgd`` never has one."""
        if optimizer == "sgd" and "momentum" in self._optimizers:
            return False
        return len(self._values.get((optimizer, setting), ())) > 1

    def reason_for_default(self, optimizer: str, setting: str, value: float) -> str:
        """Explain why ``value`` is taken for a default without effect."""
        others = sorted(
            name for name in self._optimizers - {optimizer} if value in self._values.get((name, setting), ())
        )
        unused_there = [name for name in others if setting == "momentum" and name in ("adam", "adamw")]
        if unused_there:
            return f"runs with {' and '.join(unused_there)} record it too"
        if optimizer == "sgd" and "momentum" in self._optimizers:
            return "other runs name the optimizer momentum"
        return f"plain {OPTIMIZER_NAMES[optimizer]} has none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpretation:
    """Model and optimizer of a run, as far as its source tells them."""

    model: str
    layers: int
    optimizer: str
    """Optimizer that was effective."""
    optimizer_origin: str
    identity_optimizer: str
    """Optimizer by which version 0.1.0 recognized the source: it took SGD with a recorded momentum for that."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the person who imports, where a recorded value was taken to have no effect, or to have one."""


def interpret(stated: Mapping[str, Any], evidence: Evidence) -> Interpretation:
    """Return model and optimizer of a run.

    Raises:
        ImportSourceError: they are not stated or unknown.
    """
    model, optimizer = choice(stated, "model", MODELS), choice(stated, "optimizer", OPTIMIZERS)
    layers = integer(stated_value(stated, "layers"), "layers")
    momentum = recorded_number(stated, "momentum") or 0.0
    if optimizer != "sgd" or momentum <= 0.0:
        return Interpretation(
            model=model, layers=layers, optimizer=optimizer, optimizer_origin=STATED, identity_optimizer=optimizer
        )
    recorded = f"momentum {momentum:g} is recorded for sgd"
    if evidence.has_effect("sgd", "momentum"):
        effective, taken = "momentum", "the momentum of the runs with sgd differs, so it was chosen"
        note = f"{recorded}: read as SGD with momentum, because {taken}."
    else:
        effective, taken = "sgd", evidence.reason_for_default("sgd", "momentum", momentum)
        note = (
            f"{recorded}: read as plain SGD, because {taken}. "
            'If it had an effect, write "optimizer": "momentum" and import again.'
        )
    return Interpretation(
        model=model,
        layers=layers,
        optimizer=effective,
        optimizer_origin=f"{INFERRED}{recorded}; {taken}",
        identity_optimizer="momentum",
        notes=[note],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectiveSettings:
    """Settings that had an effect, and their origins. Those that the source does not record are missing."""

    values: Mapping[str, float]
    origins: Mapping[str, str]
    notes: list[str]


def effective_settings(
    stated: Mapping[str, Any], experiment: Experiment, evidence: Evidence, epochs: int, optimizer_origin: str
) -> EffectiveSettings:
    """Return the settings that had an effect with the optimizer of ``experiment``.

    Raises:
        ImportSourceError: a value that would have an effect is not a number.
    """
    values = recorded_settings(stated, experiment, epochs)
    origins = dict.fromkeys(values, STATED)
    notes = []
    if stated_value(stated, "epochs") is None:
        origins["epochs"] = f"{INFERRED}number of epochs in its files"
    if "momentum" in values and is_inferred(optimizer_origin):
        origins["momentum"] = optimizer_origin
    decay = values.get("weight_decay", 0.0)
    if experiment.optimizer == "adam" and decay != 0.0:
        recorded = f"weight decay {decay:g} is recorded for adam"
        if evidence.has_effect("adam", "weight_decay"):
            taken = "that of the runs with adam differs, so it was chosen"
            notes.append(f"{recorded}: read as effective (an L2 term of the gradient), because {taken}.")
        else:
            taken = evidence.reason_for_default("adam", "weight_decay", decay)
            values["weight_decay"] = 0.0
            notes.append(f"{recorded}: read as Adam without weight decay, because {taken}.")
        origins["weight_decay"] = f"{INFERRED}{recorded}; {taken}"
    return EffectiveSettings(values=values, origins=origins, notes=notes)


def recorded_settings(stated: Mapping[str, Any], experiment: Experiment, epochs: int) -> dict[str, float]:
    """Return the recorded settings that apply to the experiment, whether they had an effect or not.

    Raises:
        ImportSourceError: one of them is not a number, or states fewer epochs than there are.
    """
    values: dict[str, float] = {}
    for name in _RECORDED:
        value = stated_value(stated, name)
        if value is not None and applies(name, experiment):
            values[name] = integer(value, name) if name in _INTEGERS else number(value, name)
    values.setdefault("epochs", epochs)
    if values["epochs"] < epochs:
        raise ImportSourceError(f"numbers for {epochs} epochs, but epochs is {values['epochs']}")
    return values


def denominator(stated: Mapping[str, Any]) -> tuple[Denominator, str]:
    """Return over what perplexities are averaged, and the origin of that."""
    given = stated_value(stated, "denominator")
    if given is None:
        return "padded", ASSUMED
    if given == "targets":
        return "targets", STATED
    if given == "padded":
        return "padded", STATED
    raise ImportSourceError(f"denominator: {str(given)[:40]!r} is neither targets nor padded")


def seed(stated: Mapping[str, Any]) -> tuple[int, str]:
    """Return the seed and its origin; 0 if it is not stated."""
    given = stated_value(stated, "seed")
    if given is None:
        return 0, ASSUMED
    value = integer(given, "seed")
    if not 0 <= value < 2**63:
        raise ImportSourceError(f"seed: {value} is not between 0 and 2^63 - 1")
    return value, STATED


def choice(stated: Mapping[str, Any], setting: str, known: Mapping[str, str]) -> str:
    """Return a setting by the name that lmconsole has for it."""
    given = stated_value(stated, setting)
    if given is None:
        raise ImportSourceError(f"{setting} is not stated")
    found = _normalized(given, known)
    if found is None:
        raise ImportSourceError(
            f"{setting}: {str(given)[:40]!r} is not one of {', '.join(dict.fromkeys(known.values()))}"
        )
    return found


def _normalized(given: object, known: Mapping[str, str]) -> str | None:
    if not isinstance(given, str) or not given.isprintable():
        return None
    return known.get("".join(c for c in given[:40].lower() if c.isalnum()))


def integer(value: object, setting: str) -> int:
    """Return a whole number, which can be written as a string or as 1.0."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # a float would round large seeds
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= 40:
        return int(value)
    parsed = _parse(value, setting)
    if parsed is None or not parsed.is_integer():
        raise ImportSourceError(f"{setting}: {str(value)[:40]!r} is not a whole number")
    return int(parsed)


def number(value: object, setting: str) -> float:
    """Return a finite number, which can be written as a string."""
    parsed = _parse(value, setting)
    if parsed is None:
        raise ImportSourceError(f"{setting}: {str(value)[:40]!r} is not a number")
    return parsed


def recorded_number(stated: Mapping[str, Any], setting: str) -> float | None:
    """Return a recorded number; None if there is none, or something else."""
    value = stated_value(stated, setting)
    return None if value is None else _parse(value, setting)


def _parse(value: object, setting: str) -> float | None:
    """Return a finite number; None for anything else."""
    if value is None:
        raise ImportSourceError(f"{setting} is not stated")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None
