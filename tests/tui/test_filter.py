"""The filter of the experiments table: its syntax, its errors, and its time limit."""

import re
import threading
import time

import pytest
from tui.stage import Stage, listed, sees, shows, shows_no_more

from lmconsole.plan.experiment import Settings
from lmconsole.runs.notes import change_notes
from lmconsole.tui.filter import ALIASES, NAMES, SYNTAX, TOO_SLOW, Facts, TimeLimitExceeded, parse_filter, time_limit

VALUES = {"layers": 2, "learning_rate": 1e-3, "optimizer": "adamw", "heads": None, "valid": 102.6, "seed": 42}
FACTS = Facts(
    text="gpt-1 2l adamw\n2\ngpt-1\nadamw\nfinished\nan a|b test",
    note="Lost its warm-up",
    tags=("good", "v1.0"),
    values=lambda: VALUES,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("   ", True),
        ("gpt", True),
        ("GPT adamw", True),
        ("gpt sgd", False),
        ("!sgd", True),
        ("!gpt", False),
        ("!", True),
        ("sgd|adamw", True),
        ("sgd|momentum", False),
        ("!sgd|momentum", True),
        ("!sgd|gpt", False),
        ("sgd|!momentum", True),
        ("|", True),
        ('"gpt-1 2l"', True),
        ('"gpt-1 adamw"', False),
        ('"a|b"', True),
        ('"unfinished', False),
        ("/^adamw$/", True),
        ("/^adam$/", False),
        ("!/^adam$/", True),
        ("/gpt.*adam", True),
        (r"/2\/3|finish/", True),
        ("/x y|gpt-1 2l/", True),
        ("/^zzz/|adamw", True),
        ("layers=2", True),
        ("layers==2", True),
        ("layers!=2", False),
        ("layers=3|2", True),
        ("layers=3|4", False),
        ("lr>1e-3", False),
        ("lr>=1e-3", True),
        ("LR<0.01", True),
        ("learning_rate=0.001", True),
        ("optimizer=AdamW", True),
        ("opt!=sgd", True),
        ("optimizer=adam", False),
        ("heads=3", False),
        ("heads!=3", False),
        ("!heads=3", True),
        ("valid<103 seed=42", True),
        ("layers=two", False),
        ("tag:good", True),
        ("tag:GOOD", True),
        ("tag:goo", False),
        ("tag:", True),
        ("tag:v1.0", True),
        ("!tag:good", False),
        ("tag:bad|tag:good", True),
        ("note:WARM", True),
        ("note:cold", False),
        ("note:", True),
    ],
)
def test_a_filter_matches_or_not(text: str, expected: bool) -> None:
    parsed = parse_filter(text)
    assert parsed.problem == ""
    assert parsed.matches(FACTS) is expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/(/", "missing ), unterminated subpattern at character 1"),
        ("/*/", "nothing to repeat at character 1"),
        ("/" + "(" * 5_000, "at most 200 characters"),
        ("/" + "(" * 190 + ")" * 10 + "/", "unterminated subpattern"),
        ("/a{99999999999}/", "/a{99999999999}/: "),
        ("layrs=2", "no setting is called 'layrs'; did you mean 'layers'?"),
        ("q" * 1_000 + "=2", "no setting is called 'qqqq"),
        ("lr>", "lr> needs a value"),
        (">", "write > without spaces, as in lr>1e-3"),
        (f"/{'a' * 150}(/", "aaa…/: missing ), unterminated subpattern at character 151"),
        ("lr>fast", "learning_rate>fast: expected a number"),
    ],
)
def test_a_part_that_is_wrong_is_named_and_left_out(text: str, problem: str) -> None:
    parsed = parse_filter(f"{text} gpt")
    assert problem in parsed.problem or problem in parse_filter(text).problem
    assert len(parsed.problem) < 300
    alone = parse_filter(f"gpt {text}")
    assert alone.problem
    assert alone.matches(FACTS)


def test_a_pattern_with_a_doubtful_set_gives_no_warning() -> None:
    assert parse_filter("/[[a]/").problem == ""


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(.*a){25}b", r"((.*)*)*x"])
def test_a_pattern_that_would_take_for_ever_is_interrupted(pattern: str) -> None:
    facts = Facts(text="a" * 60 + "!")
    parsed, began = parse_filter(f"/{pattern}/"), time.process_time()
    with pytest.raises(TimeLimitExceeded), time_limit(0.1):
        parsed.matches(facts)
    assert time.process_time() - began < 1.0


def test_the_limit_ends_with_its_block_and_does_nothing_in_other_threads() -> None:
    with time_limit(0.02):
        pass
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    errors: list[Exception] = []

    def use() -> None:
        try:
            with time_limit(0.02):
                re.search("a", "b" * 10)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert errors == []


def test_names_are_those_of_settings() -> None:
    assert set(ALIASES.values()) <= set(Settings.__struct_fields__)
    assert set(Settings.__struct_fields__) <= set(NAMES)
    for example, _ in SYNTAX:
        assert parse_filter(example).problem == "", example


async def test_settings_results_tags_and_notes_filter_the_table(stage: Stage) -> None:
    good, _, _ = (stage.record(1, seed=seed, valid=(6.0, loss)) for seed, loss in ((1, 4.0), (2, 4.1), (3, 4.2)))
    old = stage.record(6, seed=1, learning_rate=5e-3)
    stage.record(6, seed=1)
    change_notes(old.paths, note="Before the fix", add=["old"])
    change_notes(good.paths, add=["good"])

    async def finds(text: str, *ids: int) -> None:
        await pilot.press("slash", *text, "enter")
        await sees(pilot, listed, list(ids))
        await pilot.press("escape")

    async with stage.console(preset="demo") as pilot:
        await finds("layers=2|4", 9, 10, 11, 12)
        await finds("valid<70", 1)
        await finds("seed=3", 1)
        await finds("tag:good", 1)
        await finds("tag:old", 6)  # an earlier run, of another group
        await finds("lr>1e-3", 6)
        await finds('"the fix"', 6)
        await finds("status=finished !tag:good|lstm", 6)
        await finds("heads>0 layers=1 !adam", 7, 8)


async def test_errors_and_slow_patterns_are_shown_while_typing(stage: Stage) -> None:
    run = stage.record(1)
    change_notes(run.paths, note="a" * 60 + "!")
    async with stage.console() as pilot:
        await pilot.press("slash", *"/(/")
        await shows(pilot, "unterminated subpattern")
        await sees(pilot, listed, list(range(1, 13)))
        await pilot.press("backspace", *"a+)+$/")
        await shows(pilot, TOO_SLOW)
        await sees(pilot, listed, list(range(1, 13)))
        await pilot.press("escape")
        await shows_no_more(pilot, TOO_SLOW)
        await pilot.press("question_mark")
        await pilot.press(*["j"] * 40)
        await shows(pilot, *(example for example, _ in SYNTAX))
