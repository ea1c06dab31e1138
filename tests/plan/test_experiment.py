"""The settings that identify a run, also in stores of older versions."""

import msgspec

from lmconsole.plan.experiment import ALWAYS_HASHED, Settings, hashed_settings
from lmconsole.plan.load import load_plan

Later = msgspec.defstruct("Later", [("label_smoothing", float, 0.0)], bases=(Settings,), frozen=True, kw_only=True)
"""Settings of a later version, which adds one."""


def builtin_settings() -> dict[str, object]:
    plan = load_plan(None)
    settings: dict[str, object] = msgspec.to_builtins(plan.resolve(plan.experiment(5), "paper").settings)
    return settings


def of_version_0_1_0() -> dict[str, object]:
    return {name: value for name, value in builtin_settings().items() if name in ALWAYS_HASHED}


def test_a_setting_added_later_leaves_the_hash_alone_at_its_default() -> None:
    settings = builtin_settings()
    before = hashed_settings(msgspec.convert(settings, Settings))
    after = msgspec.convert(settings, Later)
    assert isinstance(after, Settings)
    assert hashed_settings(after) == before == of_version_0_1_0()


def test_a_setting_added_later_counts_where_it_is_used() -> None:
    used = msgspec.convert({**builtin_settings(), "label_smoothing": 0.1}, Later)
    assert isinstance(used, Settings)
    assert hashed_settings(used) == {
        **{name: builtin_settings()[name] for name in ALWAYS_HASHED},
        "label_smoothing": 0.1,
    }


def test_every_setting_since_version_0_1_0_has_a_default() -> None:
    added = [field for field in msgspec.structs.fields(Settings) if field.name not in ALWAYS_HASHED]
    assert [field.name for field in added if field.required] == []
    assert {field.name for field in msgspec.structs.fields(Settings)} >= ALWAYS_HASHED
