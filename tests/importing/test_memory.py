"""Readings of nvidia-smi: the formats in which they are written, and what is no reading."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmconsole.importing.memory import MAX_SAMPLES, MemoryReadingsError, Reading, parse_readings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4191\n4190\n", [(4191, None, None), (4190, None, None)]),
        ("\n4191.5\n\n", [(4191.5, None, None)]),
        ("4191 MiB\n4GiB\n", [(4191, None, None), (4096, None, None)]),
        ("1234 MiB, 81559 MiB\n", [(1234, 81559, None)]),
        ("6364MiB / 15109MiB\n", [(6364, 15109, None)]),
        ("6364, 15109\n", [(6364, 15109, None)]),
        ("6,364\n", [(6364, None, None)]),
        ("6364/15109\n", [(6364, 15109, None)]),
        ("2021/03/22 10:00:01.123, 4191 MiB\n", [(4191, None, None)]),
        ("gpu memory\n4191\n", [(4191, None, None)]),
        ("memory.used [MiB]\n4191 MiB\n", [(4191, None, None)]),
        ("memory.used [MiB], memory.total [MiB]\n4191, 15109\n", [(4191, 15109, None)]),
        ("utilization.gpu [%], memory.used [MiB]\n98 %, 4191 MiB\n", [(4191, None, 98)]),
        ("index, memory.used\n0, 4191\n0, 4192\n", [(4191, None, None), (4192, None, None)]),
        ("[N/A]\n4191\n[Not Supported]\n", [(4191, None, None)]),
        ("| N/A   30C    P0    50W / 300W |   6364MiB / 15109MiB |     98%      Default |\n", [(6364, 15109, 98)]),
    ],
)
def test_readings_are_found_in_every_format(
    text: str, expected: list[tuple[float, float | None, float | None]]
) -> None:
    found = parse_readings(text)
    assert [(r.used_mib, r.total_mib, r.utilization_percent) for r in found.readings] == expected
    assert found.problem == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["nan", "inf", "-5", "Failed to initialize NVML", "12 apples", "99999999999", "9" * 9999]
)
def test_lines_that_are_no_readings_are_left_out_and_counted(line: str) -> None:
    found = parse_readings(f"4191\n{line}\n4192\n")
    assert [reading.used_mib for reading in found.readings] == [4191, 4192]
    assert found.problem.startswith("1 of 3 lines are no readings and were left out (line 2: ")
    assert len(found.problem) < 150


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no reading"),
        ("nothing\n1x\n", r"no reading \(line 2: '1x'\)"),
        ("index, memory.used\n0, 4191\n1, 4192\n", "readings of 2 devices"),
    ],
)
def test_files_without_usable_readings_have_a_reason(text: str, reason: str) -> None:
    with pytest.raises(MemoryReadingsError, match=reason):
        parse_readings(text)


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=3 * MAX_SAMPLES + 5))
def test_many_readings_become_few_samples_with_the_same_mean_and_number(values: list[int]) -> None:
    samples = parse_readings("".join(f"{value}\n" for value in values)).readings
    assert len(samples) <= MAX_SAMPLES
    assert sum(sample.count for sample in samples) == len(values)
    mean = sum(sample.used_mib * sample.count for sample in samples) / len(values)
    assert mean == pytest.approx(sum(values) / len(values))
    if len(values) <= MAX_SAMPLES:
        assert samples == [Reading(used_mib=value) for value in values]
