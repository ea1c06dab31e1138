"""Runs in JSON output."""

from pathlib import Path

import pytest
from recorded import record

from lmconsole.commands.status import summarize


@pytest.mark.parametrize("energy_j", [None, 9_000.5])
def test_a_finished_run_has_the_joules_of_its_board(tmp_path: Path, energy_j: float | None) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.5)], device="cuda:0", energy_j=energy_j)
    run.refresh()
    assert summarize(run).energy_j == energy_j


def test_an_unfinished_run_has_none_yet(tmp_path: Path) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.5)], device="cuda:0", finish=False, energy_j=9_000.5)
    run.refresh()
    assert summarize(run).energy_j is None
