"""run.json: written once, and read with the defaults that older versions did not write."""

import json
from pathlib import Path

import pytest
import tiny

from lmconsole.errors import StoreError
from lmconsole.plan.experiment import ALWAYS_HASHED
from lmconsole.runs.comparable import comparable, differ_only_in_seed
from lmconsole.runs.info import SCHEMA, read_info, write_info


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = tiny.queue_tiny(tmp_path).info
    write_info(tmp_path / "run.json", info)
    assert read_info(tmp_path / "run.json") == info
    with pytest.raises(FileExistsError):
        write_info(tmp_path / "run.json", info)


def test_fields_that_version_0_1_0_did_not_write_have_defaults(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    fields = json.loads(run.paths.info.read_bytes())
    for later in ("jobs", "origin", "denominator"):
        del fields[later]
    (tmp_path / "run.json").write_text(json.dumps(fields))
    info = read_info(tmp_path / "run.json")
    assert (info.jobs, info.origin, info.denominator) == (None, "trained", "targets")
    assert info.config_hash == fields["same_run"]


def test_a_corpus_without_token_frequencies_is_read_and_changes_nothing_else(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    assert set(run.info.corpus.unigram_ppl) == {"train", "validation", "test"}
    fields = json.loads(run.paths.info.read_bytes())
    del fields["corpus"]["unigram_ppl"]
    run.paths.info.write_text(json.dumps(fields))
    info = read_info(run.paths.info)
    assert info.corpus.unigram_ppl == {}
    assert comparable(info, run.info)
    assert differ_only_in_seed(info, run.info)
    assert tiny.queue_tiny(tmp_path).run == run.run, "the same run"
    fields["corpus"]["unigram_ppl"] = {"train": -1.0}
    run.paths.info.write_text(json.dumps(fields))
    with pytest.raises(StoreError, match="unigram_ppl"):
        read_info(run.paths.info)


def test_a_setting_that_version_0_1_0_lacks_is_written_only_where_it_is_used(tmp_path: Path) -> None:
    """Earlier versions refuse settings that they do not know."""
    unused = tiny.queue_tiny(tmp_path)
    assert set(json.loads(unused.paths.info.read_bytes())["settings"]) == ALWAYS_HASHED
    assert read_info(unused.paths.info) == unused.info
    used = tiny.queue_tiny(tmp_path, evaluate_every_steps=7)
    assert json.loads(used.paths.info.read_bytes())["settings"]["evaluate_every_steps"] == 7
    assert read_info(used.paths.info).settings.evaluate_every_steps == 7
    assert used.run != unused.run


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"schema": "1"}', b'{"schema": 1}'])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        read_info(path)
    assert caught.value.message.startswith(f"{path}: not a run.json of lmconsole: ")


def test_a_file_of_a_later_schema_is_an_error_whatever_else_it_contains(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": SCHEMA + 1, "run": ["a", "list"]}))
    with pytest.raises(StoreError) as caught:
        read_info(tmp_path / "run.json")
    assert f"schema {SCHEMA + 1}" in caught.value.message
    assert caught.value.hint is not None


def test_imported_runs_come_before_trained_ones_and_older_before_later(tmp_path: Path) -> None:
    from msgspec.structs import replace

    trained = tiny.queue_tiny(tmp_path).info
    later = replace(trained, queued_t="9999")
    imported = replace(trained, queued_t="9999", origin="imported")
    assert sorted([later, trained, imported], key=lambda info: info.sort_key) == [imported, trained, later]
