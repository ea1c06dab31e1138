"""[[claim]] rows: what they fix, and the errors about rows that could never get a verdict."""

import math
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.errors import PlanError
from lmconsole.plan.claims import KEYS, Claim, read_claims, training_seeds
from lmconsole.plan.load import builtin_file, load_plan

BUILT_IN = {each.id: each for each in load_plan(builtin_file()).experiments}

ROWS = [
    tiny.row(1),
    tiny.row(2, optimizer="sgd"),
    tiny.row(3, model="gpt1"),
    *(tiny.row(number) for number in range(11, 17)),
]


def load(tmp_path: Path, *claims: str) -> tuple[Claim, ...]:
    text = "".join(f"\n[[claim]]\n{claim}\n" for claim in claims)
    return load_plan(tiny.write_experiments(tmp_path / "mine.toml", *ROWS, text)).claims


def test_a_claim_fixes_contrasts_seeds_endpoint_and_margin(tmp_path: Path) -> None:
    (plain, timed, studies) = load(
        tmp_path,
        'name = "A"\ncontrasts = [[1, 2], [1, 3]]\nseeds = "1-3,7"\ndelta = 0.5',
        'contrasts = [[1, 2]]\nseeds = {1 = [1, 2, 3, 4, 5], 2 = "11..15"}\nendpoint = "steps"\ntargets = [20, 10.5]',
        'contrasts = [[[11, 12, 13], [14, 15, 16]]]\nseeds = "1"',
    )
    assert plain.contrasts == (((1,), (2,)), ((1,), (3,)))
    assert plain.seeds == dict.fromkeys((1, 2, 3), (1, 2, 3, 7))
    assert (plain.endpoint, plain.delta, plain.paired, plain.of_optimizers) == ("test_nll", 0.5, False, False)
    assert timed.seeds == {1: (1, 2, 3, 4, 5), 2: (11, 12, 13, 14, 15)}
    assert (timed.endpoint, timed.targets) == ("steps", (20.0, 10.5))
    assert studies.of_optimizers
    assert studies.experiments == (11, 12, 13, 14, 15, 16)


def test_sides_are_trained_in_turns_and_each_run_once(tmp_path: Path) -> None:
    claims = load(
        tmp_path,
        'contrasts = [[1, 2]]\nseeds = {1 = "1-3", 2 = "11-13"}',
        'contrasts = [[1, 3]]\nseeds = "1-4"',
    )
    runs = training_seeds(claims)
    assert runs[:4] == [(1, 1), (2, 11), (3, 1), (1, 2)]
    assert len(runs) == len({*runs}) == 4 + 3 + 4


@pytest.mark.parametrize(
    ("claim", "problem"),
    [
        ("", "contrasts: missing"),
        ("contrasts = [[1, 2]]", "seeds: missing"),
        ('contrasts = [[1, 2]]\nseed = "1-3"', "seed: unknown key; did you mean 'seeds'?"),
        ('contrasts = [[1, 9]]\nseeds = "1-3"', "contrasts: no experiment 9 in this file"),
        ('contrasts = [1, 2]\nseeds = "1-3"', "contrasts: expected pairs of experiment ids"),
        ('contrasts = []\nseeds = "1-3"', "contrasts: expected pairs of experiment ids"),
        ('contrasts = [[1, true]]\nseeds = "1-3"', "contrasts: expected pairs of experiment ids"),
        ('contrasts = [[1, 1]]\nseeds = "1-3"', "contrasts: 1 and 1 have an experiment in common"),
        ('contrasts = [[1, 2], [2, 1]]\nseeds = "1-3"', "contrasts: two compare the same"),
        ('contrasts = [[1, [11, 12, 13]]]\nseeds = "1-3"', "studies can only be compared with studies"),
        ('contrasts = [[1, 2]]\nseeds = "3-1"', 'seeds: expected a range such as "101-105"'),
        ('contrasts = [[1, 2]]\nseeds = "1-9999999"', 'seeds: expected a range such as "101-105"'),
        ("contrasts = [[1, 2]]\nseeds = [1, 1, 2]", 'seeds: expected a range such as "101-105"'),
        ('contrasts = [[1, 2]]\nseeds = {1 = "1-3"}', "seeds: none for experiment 2"),
        ('contrasts = [[1, 2]]\nseeds = {1 = "1-3", 2 = "1-3", 3 = "1-3"}', "seeds: 3: not in the contrasts"),
        ('contrasts = [[1, 2]]\nseeds = "1-2"', "seeds: 1 and 2 have 2; fewer than 3 never get a verdict"),
        ('contrasts = [[1, 2]]\nseeds = {1 = "1-3", 2 = "1-4"}', "plan equally many"),
        ('contrasts = [[1, 2]]\nseeds = "1-3"\ndelta = -1', "delta: expected a number > 0.0"),
        ('contrasts = [[1, 2]]\nseeds = "1-3"\ndelta = nan', "delta: "),
        ('contrasts = [[1, 2]]\nseeds = "1-3"\nendpoint = "step"', "endpoint: unknown 'step'; did you mean 'steps'?"),
        ('contrasts = [[1, 2]]\nseeds = "1-3"\npaired = 1', "paired: expected true or false"),
        ('contrasts = [[1, 2]]\nseeds = "1-5"\npaired = true', "fewer than 6 never get a verdict"),
        ('contrasts = [[1, 3]]\nseeds = "1-6"\npaired = true', "1 and 3 have different architectures"),
        ('contrasts = [[1, 2]]\nseeds = {1 = "1-6", 2 = "2-7"}\npaired = true', "two settings with the same seeds"),
        ('contrasts = [[1, 2]]\nseeds = "1-5"\nendpoint = "steps"', "targets: missing"),
        ('contrasts = [[1, 2]]\nseeds = "1-3"\ntargets = [10]', 'targets: only for endpoint "seconds"'),
        ('contrasts = [[1, 2]]\nseeds = "1-3"\nendpoint = "steps"\ntargets = [9]', "fewer than 5 never get a verdict"),
        ('contrasts = [[1, 2]]\nseeds = "1-5"\nendpoint = "steps"\ntargets = [9, 9]', "targets: one occurs twice"),
        ('contrasts = [[1, 2]]\nseeds = "1-5"\nendpoint = "steps"\ntargets = [9]\ndelta = 1', "delta: only for"),
        ('contrasts = [[1, 2]]\nseeds = "1-5"\nendpoint = "steps"\ntargets = [0.5]', "targets: expected a number > 1"),
        ('contrasts = [[[11, 12], [13, 14]]]\nseeds = "1"', "studies: [11, 12] and [13, 14] have 2; fewer than 3"),
        ('contrasts = [[[1, 2, 3], [11, 12, 13]]]\nseeds = "1"', "the studies [1, 2, 3] differ in architecture"),
        ('contrasts = [[1, 2]]\nseeds = "1-3"\nname = 3', "name: expected text"),
    ],
)
def test_a_claim_that_cannot_hold_is_refused_with_its_row_and_key(tmp_path: Path, claim: str, problem: str) -> None:
    with pytest.raises(PlanError) as caught:
        load(tmp_path, 'contrasts = [[1, 2]]\nseeds = "1-3"', claim)
    (found,) = [each for each in caught.value.problems if problem in each]
    assert found.startswith(f"{tmp_path / 'mine.toml'}: claim row 2: ")


ODD: st.SearchStrategy[object] = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        2**70,
        0.5,
        math.nan,
        math.inf,
        "",
        "1-3",
        "x\x00",
        [],
        [[]],
        [[1, 2]],
        [[1, [2, 3]]],
        [1, "2"],
        {},
    ]
)


@given(st.dictionaries(st.sampled_from((*KEYS, "x")), ODD))
def test_any_values_end_in_problems_or_a_claim(row: dict[str, object]) -> None:
    problems: list[str] = []
    claims = read_claims([row], BUILT_IN, problems.append)
    assert bool(problems) != bool(claims)
