"""Comparable runs: the rule shared by exports and the experiments table."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from recorded import record

from lmconsole.runs.comparable import comparable, differ_only_in_seed, same_text
from lmconsole.runs.info import EmbeddingsInfo, RunInfo


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    return record(tmp_path, 2, "lstm", [(5.0, 4.0)], optimizer="adamw").info


def change(info: RunInfo, part: str, **changes: Any) -> RunInfo:
    """Return ``info`` with changes in one of its parts, for example in its settings."""
    return msgspec.structs.replace(info, **{part: msgspec.structs.replace(getattr(info, part), **changes)})


def test_runs_that_differ_in_their_seed_are_comparable_repetitions(info: RunInfo) -> None:
    other = msgspec.structs.replace(info, seed=info.seed + 1, run="other", queued_t="2030-01-01T00:00:00.000Z")
    assert comparable(info, other)
    assert differ_only_in_seed(info, other)


def test_runs_that_differ_in_what_they_record_are_comparable_repetitions(info: RunInfo) -> None:
    other = change(info, "settings", evaluate_every_steps=50)
    assert comparable(info, other)
    assert differ_only_in_seed(info, other)
    third = change(other, "settings", epochs=7)
    assert not differ_only_in_seed(info, third)


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "other"},
        {"origin": "imported"},
        {"denominator": "padded"},
        {"embeddings": EmbeddingsInfo(path="tables", sha256="0" * 64)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_runs_under_other_conditions_are_not_comparable(info: RunInfo, changes: dict[str, Any]) -> None:
    other = msgspec.structs.replace(info, **changes)
    assert not comparable(info, other)
    assert not differ_only_in_seed(info, other)


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"max_tokens": 100}], ids=["corpus", "max_tokens"])
def test_runs_on_other_text_are_not_comparable(info: RunInfo, changes: dict[str, Any]) -> None:
    other = change(info, "corpus", **changes)
    assert not comparable(info, other)
    assert not differ_only_in_seed(info, other)
    assert not same_text(info, other)
    assert same_text(info, change(info, "corpus", path="moved"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 7}, False),
        ({"precision": "bf16"}, False),
        ({"weight_decay": 0.5}, False),
        ({"hidden": 16}, False),
        ({"layers": 2}, True),
        ({"optimizer": "adam", "weight_decay": 0.5}, True),
        ({"model": "gpt1", "hidden": None, "heads": 2}, True),
    ],
)
def test_settings_that_define_an_experiment_can_differ_between_experiments(
    info: RunInfo, changes: dict[str, Any], expected: bool
) -> None:
    other = change(info, "settings", **changes)
    assert comparable(info, other) is comparable(other, info) is expected
    assert not differ_only_in_seed(info, other)


def test_settings_of_an_experiment_itself_can_differ(info: RunInfo) -> None:
    other = change(change(info, "settings", epochs=7), "experiment", id=40, overrides={"epochs": 7})
    assert comparable(info, other)
    assert not differ_only_in_seed(info, other)
