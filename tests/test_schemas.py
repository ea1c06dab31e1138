"""The JSON Schemas: generated from the types, complete, and true of real files and outputs."""

import importlib.util
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import factories
import pytest
import recorded
import tiny
import validation

from lmconsole.commands.init import example
from lmconsole.errors import PlanError
from lmconsole.plan.load import builtin_file, load_plan

CHECKOUT = Path(__file__).resolve().parents[1]
NAMES = ("experiments", "run", "events", "output")


def test_the_files_are_those_that_the_types_give() -> None:
    script = CHECKOUT / "docs" / "schemas.py"
    spec = importlib.util.spec_from_file_location("generate_schemas", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generated: dict[str, str] = module.generate()
    shipped = {path.name: path.read_text(encoding="utf-8") for path in validation.SCHEMAS.iterdir()}
    assert set(generated) == set(shipped) == {f"{name}.json" for name in NAMES}
    changed = [name for name, text in generated.items() if shipped[name] != text]
    assert changed == [], "run `python docs/schemas.py`"


def properties(node: Any, at: str = "#") -> Iterator[tuple[str, Any]]:
    """Yield every property in a schema with its place."""
    if isinstance(node, dict):
        own = node.get("properties")
        if isinstance(own, dict) and "dependencies" not in at:
            yield from ((f"{at}/{name}", each) for name, each in own.items())
        for key, each in node.items():
            yield from properties(each, f"{at}/{key}")
    elif isinstance(node, list):
        for number, each in enumerate(node):
            yield from properties(each, f"{at}/{number}")


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_a_description_and_a_unit_where_it_has_one(name: str) -> None:
    units = {"_s": "second", "_mib": "MiB", "_nats": "nats", "_w": "watts", "_c": "Celsius", "_j": "joules"}
    units |= {"_percent": "percent", "_gflops": "GFLOP/s", "_t": "ISO 8601"}
    found = [(at, each) for at, each in properties(validation.schema(name)) if "anyOf" not in at.split("/")]
    assert len(found) > 10
    for at, each in found:
        if "$ref" not in each or "description" in each:
            assert len(each.get("description", "").split()) >= 2, at
        for suffix, unit in units.items():
            if at.endswith(suffix) and "tokens_per_s" not in at:
                assert unit in each["description"], at
    assert "``" not in json.dumps(validation.schema(name))


MISTAKES = {
    "include_builtin = 1": "$.include_builtin",
    "include_builtins = true\n[[experiment]]\nid = 1\nmodel = 'lstm'\nlayers = 1\noptimizer = 'adam'": "$: ",
    "": "$: ",
    "include_builtin = false": "$: ",
    "include_builtin = true\n[default]\nepochs = 2": "$: ",
    "include_builtin = true\n[defaults]\nepoch = 2": "$.defaults: ",
    "include_builtin = true\n[defaults]\nepochs = 0": "$.defaults.epochs: ",
    "include_builtin = true\n[defaults]\nepochs = '2'": "$.defaults.epochs: ",
    "include_builtin = true\n[defaults]\nepochs = true": "$.defaults.epochs: ",
    "include_builtin = true\n[defaults]\nhidden = 8": "$.defaults: ",
    "include_builtin = true\n[defaults]\nmodel = 'lstm'": "$.defaults: ",
    "include_builtin = true\n[defaults]\ndropout = 1.0": "$.defaults.dropout: ",
    "include_builtin = true\n[defaults.lstm]\nheads = 2": "$.defaults.lstm: ",
    "include_builtin = true\n[presets.x]\nprecision = 'fp8'": "$.presets.x.precision: ",
    "include_builtin = true\n[presets.auto]\nepochs = 2": "$.presets: ",
    "include_builtin = true\n[presets.'a b']\nepochs = 2": "$.presets: ",
    "include_builtin = true\n[presets.x.adam]\nmomentum = 0.5": "$.presets.x.adam: ",
    "include_builtin = true\npresets = 3": "$.presets: ",
    "[experiment]\nid = 1": "$.experiment: ",
    "[[experiment]]\nid = 1\nmodel = 'lstm'\nlayers = 1": "$.experiment[0]: ",
    "[[experiment]]\nid = 0\nmodel = 'lstm'\nlayers = 1\noptimizer = 'adam'": "$.experiment[0].id: ",
    "[[experiment]]\nid = 1\nmodel = 'rnn'\nlayers = 1\noptimizer = 'adam'": "$.experiment[0].model: ",
    "[[experiment]]\nid = 1\nmodel = 'lstm'\nlayers = 1\noptimizer = 'adam'\nheads = 2": "$.experiment[0].model: ",
    "[[experiment]]\nid = 1\nmodel = 'lstm'\nlayers = 1\noptimizer = 'sgd'\nbeta1 = 0.5": "$.experiment[0].optimizer: ",
    "[[experiment]]\nid = 1\nmodel = 'lstm'\nlayers = 1\noptimizer = 'adam'\nname = ' x'": "$.experiment[0].name: ",
    "[[experiment]]\nid = 1\nmodel = 'lstm'\nlayers = 1\noptimizer = 'adam'\nlr = 1": "$.experiment[0]: ",
}
"""Typical mistakes, and the place at which an editor marks each."""


@pytest.mark.parametrize("text", MISTAKES)
def test_an_editor_marks_what_the_loader_refuses(text: str, tmp_path: Path) -> None:
    file = tmp_path / "experiments.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError):
        load_plan(file)
    found = validation.validator("experiments").problems(tomllib.loads(text))
    assert any(problem.startswith(MISTAKES[text]) for problem in found), found


def test_an_editor_marks_nothing_in_files_that_load(tmp_path: Path) -> None:
    row = tiny.row(14, "gpt1", more='name = "Mine ✓"\nbeta1 = 0.5\nheads = 4\nwarmup_steps = 3\ndropout = 0')
    texts = [builtin_file().read_text(encoding="utf-8"), example(), tiny.TINY + row, "include_builtin = true"]
    for text in texts:
        file = tmp_path / "experiments.toml"
        file.write_text(text, encoding="utf-8")
        load_plan(file)
        assert validation.validator("experiments").problems(tomllib.loads(text)) == []


def test_the_built_in_file_names_its_schema() -> None:
    first = (CHECKOUT / "experiments.toml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("#:schema ./")
    assert (CHECKOUT / first.removeprefix("#:schema ./")) == CHECKOUT / "lmconsole" / "schemas" / "experiments.json"


def test_files_of_real_and_old_runs_are_valid(tmp_path: Path) -> None:
    run = recorded.record(tmp_path, 1, "lstm", [(5.0, 4.5), (float("nan"), float("inf"))], samples=2, energy_j=1.0)
    resumed = recorded.record(tmp_path, 2, "gpt1", [(5.0, 4.5)], finish=False)
    factories.append_events(resumed.paths, factories.progress(2), *factories.epoch_events(2, 4.0))
    folders = [run.paths.folder, resumed.paths.folder]
    folders += sorted(path.parent for path in (CHECKOUT / "tests" / "stores").rglob("run.json"))
    assert len(folders) > 3
    event, info = validation.validator("events"), validation.validator("run")
    kinds = set()
    for folder in folders:
        assert info.problems(json.loads((folder / "run.json").read_text())) == []
        found: dict[str, list[Any]] = {}
        for line in (folder / "events.jsonl").read_text().splitlines():
            each = json.loads(line)
            found.setdefault(each["kind"], []).append(each)
        for lines in found.values():
            for each in (lines[0], lines[-1]):
                assert event.problems(each) == [], (folder, each)
        kinds |= set(found)
    assert kinds >= {"queued", "started", "progress", "epoch", "telemetry", "finished"}
    strict = validation.strict_validator("events")
    latest = [json.loads(line) for line in run.paths.events.read_text().splitlines()]
    assert [strict.problems(each) for each in latest] == [[]] * len(latest)
    assert validation.strict_validator("run").problems(json.loads(run.paths.info.read_text())) == []


def test_a_damaged_event_is_not_valid() -> None:
    for line in (
        '{"kind":"epoch"}',
        '{"kind":"resumed","epoch":0,"step":1}',
        '{"kind":"resumed","epoch":"1","step":1}',
    ):
        assert validation.validator("events").problems(json.loads(line))
