"""Which runs can be compared with each other: the rule for exports, and for seeds in the experiments table."""

from lmconsole.plan.experiment import APPLIES_TO, MODEL_NAMES, RECORDING_SETTINGS, Settings
from lmconsole.runs.info import RunInfo

EXPERIMENT_SETTINGS = frozenset({"model", "layers", "optimizer", "weight_decay", *APPLIES_TO})
"""Settings that distinguish experiments. All other settings must be equal; these must be equal between experiments with
the same model or optimizer."""


def conditions(info: RunInfo) -> dict[str, object]:
    """Return what must be equal in comparable runs besides their settings."""
    return {
        "origin": info.origin,
        "denominator": info.denominator,
        "preset": info.preset,
        "corpus_sha256": info.corpus.sha256,
        "max_tokens": info.corpus.max_tokens,
        "embeddings_sha256": info.embeddings.sha256 if info.embeddings else None,
    }


def comparable(one: RunInfo, other: RunInfo) -> bool:
    """Return whether the two runs can share a table: same conditions, and the same settings except for those that an
    experiment defines and those that only add to what is recorded.

    This is not transitive: a run that overrides a setting is comparable with runs that differ from each other in it.
    """
    if conditions(one) != conditions(other):
        return False
    free = {"model", "layers", "optimizer", *RECORDING_SETTINGS, *one.experiment.overrides, *other.experiment.overrides}
    for key in EXPERIMENT_SETTINGS - free:
        owner = "model" if set(APPLIES_TO.get(key, ())) & set(MODEL_NAMES) else "optimizer"
        if getattr(one.settings, owner) != getattr(other.settings, owner):
            free.add(key)
    return all(
        getattr(one.settings, key) == getattr(other.settings, key)
        for key in Settings.__struct_fields__
        if key not in free
    )


def differ_only_in_seed(one: RunInfo, other: RunInfo) -> bool:
    """Return whether the two runs repeat one experiment; their seeds may be equal too. A reproduction repeats one run,
    and never counts as another seed."""
    return (
        one.reproduces is other.reproduces is None
        and one.experiment.id == other.experiment.id
        and (one.settings == other.settings or _compute_the_same(one.settings, other.settings))
        and conditions(one) == conditions(other)
    )


def _compute_the_same(one: Settings, other: Settings) -> bool:
    """Return whether the settings differ at most in what is recorded."""
    return all(
        getattr(one, key) == getattr(other, key) for key in Settings.__struct_fields__ if key not in RECORDING_SETTINGS
    )


def same_text(one: RunInfo, other: RunInfo) -> bool:
    """Return whether the two runs were trained and evaluated on the same tokens."""
    return (one.corpus.sha256, one.corpus.max_tokens) == (other.corpus.sha256, other.corpus.max_tokens)
