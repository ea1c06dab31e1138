"""experiments.toml: its meaning, and the errors about invalid files."""

import os
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.errors import PlanError
from lmconsole.plan.experiment import APPLIES_TO, Settings
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.plan.presets import TYPES, ranges


def problems_of(tmp_path: Path, text: str | bytes) -> tuple[str, ...]:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert all(problem.startswith(f"{path}: ") for problem in caught.value.problems)
    return tuple(problem.removeprefix(f"{path}: ") for problem in caught.value.problems)


ROW = 'id = 1\nmodel = "lstm"\nlayers = 1\noptimizer = "adam"\n'


def test_the_built_in_experiments_are_those_of_the_protocol() -> None:
    plan = load_plan(builtin_file())
    got = [(e.id, e.model, e.layers, e.optimizer) for e in plan.experiments]
    one_layer = [(m, 1, o) for m in ("lstm", "gpt1") for o in ("adam", "adamw", "sgd", "momentum")]
    deeper = [("lstm", 2, "adamw"), ("lstm", 4, "adamw"), ("gpt1", 2, "adamw"), ("gpt1", 4, "adamw")]
    assert got == [(i, *rest) for i, rest in enumerate(one_layer + deeper, 1)]


@pytest.mark.parametrize("number", range(1, 13))
def test_the_paper_preset_is_the_published_protocol(number: int) -> None:
    plan = load_plan(builtin_file())
    resolved = plan.resolve(plan.experiment(number), "paper")
    s = resolved.settings
    assert (s.epochs, s.batch_size, s.window_tokens, s.vocabulary, s.channels) == (10, 16, 256, 40_479, 768)
    assert (s.learning_rate, s.precision, s.embeddings, resolved.seed) == (1e-3, "fp32", "frozen", 42)
    assert s.weight_decay == (0.0 if s.optimizer == "adam" else 5e-4)
    assert (s.beta1, s.beta2, s.adam_eps) == ((0.9, 0.999, 1e-8) if "adam" in s.optimizer else (None, None, None))
    assert s.momentum == (0.9 if s.optimizer == "momentum" else None)
    assert (s.hidden, s.heads, s.mlp_channels) == ((512, None, None) if s.model == "lstm" else (None, 12, 3072))
    off = (s.gradient_clip_norm, s.warmup_steps, s.learning_rate_decay, s.dropout, s.early_stopping_epochs)
    assert off == (0.0, 0, "none", 0.0, 0)


def test_every_setting_is_in_the_built_in_file() -> None:
    text = builtin_file().read_text()
    assert all(f"{key} = " in text for key in TYPES)


def test_every_setting_has_an_origin(tmp_path: Path) -> None:
    path = tiny.write_experiments(tmp_path / "mine.toml", tiny.row(13, more="batch_size = 3"))
    plan = load_plan(path)
    resolved = plan.resolve(plan.experiment(13), "tiny", {"epochs": 5})
    assert resolved.origins["epochs"] == "command line"
    assert resolved.origins["batch_size"] == f"{path} row 1"
    assert resolved.origins["hidden"] == f"{path} [presets.tiny.lstm]"
    assert resolved.origins["beta1"] == "built-in experiments.toml [defaults.adam]"
    present = {name for name in Settings.__struct_fields__ if getattr(resolved.settings, name) is not None}
    assert set(resolved.origins) == present


def test_rows_replace_or_extend_the_built_in_experiments(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[[experiment]]\n" + ROW.replace("id = 1", "id = 13"))
    assert [e.id for e in load_plan(path).experiments] == [13]
    path.write_text("include_builtin = true\n[[experiment]]\n" + ROW.replace("id = 1", "id = 13"))
    assert [e.id for e in load_plan(path).experiments] == list(range(1, 14))


def test_defaults_and_presets_merge_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "include_builtin = true\n[defaults]\nbatch_size = 7\n[presets.demo]\nepochs = 1\n[presets.demo.gpt1]\nheads = 2"
    )
    plan = load_plan(path)
    demo = plan.resolve(plan.experiment(5), "demo").settings
    assert (demo.batch_size, demo.epochs, demo.heads, demo.mlp_channels) == (7, 1, 2, 384)
    assert plan.resolve(plan.experiment(5), "paper").settings.batch_size == 7


def test_experiments_toml_in_the_current_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_experiments(tmp_path / "experiments.toml", tiny.row(77))
    monkeypatch.chdir(tmp_path)
    assert [e.id for e in load_plan().experiments] == [77]


def test_all_problems_are_reported_at_once_with_the_nearest_spelling(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        """
        presest = 1
        [defaults]
        epoch = 3
        [presets.demo]
        precision = "fp23"
        [[experiment]]
        id = 1
        model = "ltsm"
        layers = 1
        optimizer = "adma"
        bacth_size = 4
        """,
    )
    assert found == (
        "presest: unknown key; did you mean 'presets'?",
        "[defaults]: epoch: unknown key; did you mean 'epochs'?",
        "[presets.demo]: precision: unknown precision 'fp23'; did you mean 'fp32'?",
        "experiment 1: model: unknown model 'ltsm'; did you mean 'lstm'?",
        "experiment 1: optimizer: unknown optimizer 'adma'; did you mean 'adam'?",
        "experiment 1: bacth_size: unknown key; did you mean 'batch_size'?",
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("epochs = 0", "epochs: expected a whole number >= 1, got 0"),
        ("epochs = -3", "epochs: expected a whole number >= 1, got -3"),
        ("epochs = 2.5", "epochs: expected a whole number, got 2.5"),
        ("epochs = true", "epochs: expected a whole number, got true"),
        ("epochs = '3'", "epochs: expected a whole number, got '3'"),
        ("epochs = 99999999999999999999", "epochs: expected a whole number <= 100000, got 99999999999999999999"),
        ("learning_rate = nan", "learning_rate: expected a finite number, got nan"),
        ("learning_rate = inf", "learning_rate: expected a finite number, got inf"),
        ("learning_rate = -inf", "learning_rate: expected a finite number, got -inf"),
        ("learning_rate = 0", "learning_rate: expected a number > 0.0, got 0"),
        ("learning_rate = 1e300", "learning_rate: expected a number <= 1000.0, got 1e+300"),
        ("learning_rate = [1]", "learning_rate: expected a number, got [1]"),
        ("dropout = 1.0", "dropout: expected a number < 1.0, got 1.0"),
        ("corpus = 3", "corpus: expected one of demo, tokens, got 3"),
        ("heads = 2", "heads: only for gpt1, not for lstm with adam"),
        ("momentum = 0.5", "momentum: only for momentum, not for lstm with adam"),
    ],
)
def test_the_error_about_an_invalid_value_names_the_expected_one(tmp_path: Path, line: str, expected: str) -> None:
    (found,) = problems_of(tmp_path, f"[[experiment]]\n{ROW}{line}\n")
    assert found.startswith("experiment 1: ")
    wanted, got = expected.split(", got") if "got" in expected else (expected, "")
    if "one of" in wanted:
        assert "expected one of" in found
        assert found.endswith(f"got{got}")
    else:
        assert found == f"experiment 1: {expected}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no experiment"),
        ("[defaults]\nepochs = 3\n", "no experiment"),
        ("[[experiment]\n", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        ("experiment = 3", "expected rows [[experiment]]"),
        ("defaults = 3\n[[experiment]]\n" + ROW, "[defaults]: expected a table"),
        ("[presets]\ndemo = 3\n[[experiment]]\n" + ROW, "[presets.demo]: expected a table"),
        ("[presets.auto]\n[[experiment]]\n" + ROW, "the name is reserved"),
        ('[presets."../x"]\n[[experiment]]\n' + ROW, "expected a name of letters"),
        ("[defaults]\nheads = 3\n[[experiment]]\n" + ROW, "put it in [defaults.gpt1]"),
        ("[defaults.lstm]\nheads = 3\n[[experiment]]\n" + ROW, "only for gpt1"),
        ("[[experiment]]\n" + ROW + "[[experiment]]\n" + ROW, "used twice"),
        ("[[experiment]]\n" + ROW + 'name = "\\u001b[31mred"', "printable characters"),
        ("[[experiment]]\n" + ROW.replace("layers = 1\n", ""), "layers: missing"),
        ("a = " + "[" * 5_000, "not valid TOML"),
        ("a = " + "9" * 100_000, "not valid TOML"),
        ("a = 0x" + "f" * 100_000, "unknown key"),
        ("[[experiment]]\n" + ROW + "epochs = 0x" + "f" * 100_000, "too long to show"),
        ("[[experiment]]\n" + ROW.replace("id = 1", "id = 0x" + "f" * 100_000), "too long to show"),
        ("a" + ".a" * 30_000 + " = 1", "line 1: more than 64 dots"),
        ("[" + "a." * 30_000 + "a]", "line 1: more than 64 dots"),
        ("x" * 500_000 + " = 1", "unknown key"),
        ("[[experiment]]\n" + ROW.replace('"lstm"', f'"{"x" * 500_000}"'), "unknown model"),
        ("\n".join(f"a{i} = 1" for i in range(60_000)), "unknown key"),
        ("[[experiment]]\nid = 0\n" * 30_000, "30,000 rows; at most 10,000 are read"),
        ("[[experiment]]\nid = 0\n" * 9_000, "expected a whole number"),
        ("#" + "." * 2_000_000, "larger than 1 MiB"),
    ],
)
def test_invalid_files_are_errors(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert any(expected in problem for problem in problems_of(tmp_path, text))
    assert all(len(problem) < 1_000 for problem in problems_of(tmp_path, text))


@pytest.mark.slow
def test_the_message_about_many_problems_is_short(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(f"a{i} = 1" for i in range(60_000)))
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert len(caught.value.problems) == 60_000
    assert len(caught.value.message.splitlines()) == 21
    assert caught.value.message.endswith("\n… and 59,980 more")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to itself", "link to nothing"])
def test_what_is_no_file_is_an_error_and_never_blocks(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "experiments.toml"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "link to itself":
            path.symlink_to(path)
        case _:
            path.symlink_to("nothing")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=r"experiments\.toml: (cannot be read|no such file)"):
        load_plan()


def test_contradictions_between_keys_are_found_for_every_preset(tmp_path: Path) -> None:
    found = problems_of(tmp_path, "include_builtin = true\n[presets.demo.gpt1]\nheads = 5\n")
    assert len(found) == 6
    assert all("heads: channels (96) must be a multiple of heads (5)" in problem for problem in found)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere\.toml: no such file"):
        load_plan(tmp_path / "nowhere.toml")


def test_names_with_special_characters_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'[[experiment]]\n{ROW}name = "../a b\'s [red] {{%}}"\n')
    assert load_plan(path).experiments[0].label == "../a b's [red] {%}"


def test_the_error_about_an_unknown_preset_names_the_nearest() -> None:
    plan = load_plan(builtin_file())
    with pytest.raises(PlanError, match="did you mean 'paper'"):
        plan.resolve(plan.experiment(1), "papr")


def test_fields_that_do_not_apply_are_none() -> None:
    plan = load_plan(builtin_file())
    for experiment in plan.experiments:
        settings = plan.resolve(experiment, "demo").settings
        for key, owners in APPLIES_TO.items():
            mine = experiment.model in owners or experiment.optimizer in owners
            assert (getattr(settings, key) is not None) == mine


@given(st.sets(st.integers(1, 40)))
def test_ranges_contain_exactly_the_numbers(numbers: set[int]) -> None:
    named: set[int] = set()
    for piece in ranges(list(numbers)).split():
        first, _, last = piece.partition("-")
        named |= set(range(int(first), int(last or first) + 1))
    assert named == numbers


@given(st.text(max_size=200))
def test_any_text_is_an_error_and_never_a_crash(text: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        with pytest.raises(PlanError):
            load_plan(Path(file.name))
