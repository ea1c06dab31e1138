"""Registrations of claims that were removed from a store, and several in one store."""

import json
from pathlib import Path
from unittest.mock import ANY

import factories
import msgspec
import pytest
import tiny
from claimed import Box, claim
from factories import append_events

from lmconsole.commands.claims import show_claims
from lmconsole.engine.register import all_runs
from lmconsole.errors import LmconsoleError
from lmconsole.runs.paths import CLAIMS
from lmconsole.runs.registration import missing_numbers, read_registrations
from lmconsole.runs.store import Store
from lmconsole.runs.trash import discard


def gone(store: Store) -> list[int]:
    return missing_numbers(read_registrations(store.root), all_runs(store))


def remove(store: Store, number: int) -> None:
    (path,) = (path for path in (store.root / CLAIMS).iterdir() if f'"number": {number},' in path.read_text())
    path.unlink()


def test_a_removed_registration_is_noticed_even_the_last_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Box(tmp_path, claim(seeds=dict.fromkeys((1, 2), (11, 12, 13))))
    first.finish_all()
    last = Box(tmp_path, claim())
    assert not gone(last.store)
    runs = last.finish_all()
    remove(last.store, 2)
    assert gone(last.store) == [2]
    discard(last.store, runs)
    assert gone(last.store) == [2], "deleted runs remember it too"

    assert Box(tmp_path, claim(seeds=dict.fromkeys((1, 2), (21, 22, 23)))).registration.number == 3, "no number twice"
    assert show_claims(last.store.root) == 3
    text = " ".join(capsys.readouterr().out.split())
    assert "This store has 2 registrations with 2 comparisons altogether. Each is corrected for its own" in text
    assert text.endswith("Registration 2 is missing: its file was removed from the store.")
    assert show_claims(last.store.root, json=True) == 3
    output = capsys.readouterr()
    assert len(json.loads(output.out)) == 2
    assert "Registration 2 is missing" in output.err

    for number in (1, 3):
        remove(last.store, number)
    with pytest.raises(LmconsoleError, match=r"Registrations 1–2 are missing: their files were removed"):
        show_claims(last.store.root)


def test_a_run_of_an_ordinary_command_remembers_registrations_and_a_forged_number_is_ignored(tmp_path: Path) -> None:
    box = Box(tmp_path, claim())
    assert tiny.queue_tiny(tmp_path, seed=99).state.queued == msgspec.structs.replace(
        factories.queued(), seq=1, t=ANY, place=2, registrations=1
    )
    remove(box.store, 1)
    assert gone(box.store) == [1]
    forged = tiny.queue_tiny(tmp_path, seed=98)
    append_events(forged.paths, factories.queued(place=4, registrations=10**12))
    assert gone(box.store) == [1]


def test_one_registration_says_nothing_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = Box(tmp_path, claim())
    assert show_claims(box.store.root) == 3
    text = capsys.readouterr().out
    assert "registrations with" not in text
    assert "missing: experiment 1, seed 1: not queued" in text
    assert "… and" not in text
