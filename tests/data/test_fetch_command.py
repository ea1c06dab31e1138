"""`lmconsole data fetch`, `run --fetch` and `--data hub:…` as a person uses them."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import validation
from hub_server import GPT1, WIKITEXT, WIKITEXT_FILES, Hub, Repository, parquet, substitutes
from huggingface_hub import constants

from lmconsole.commands import fetch as command
from lmconsole.commands.interrupts import Interrupted
from lmconsole.data import wikitext2
from lmconsole.data.corpus import load_corpus
from lmconsole.engine.parse_request import parse_request
from lmconsole.engine.probe import choose_preset
from lmconsole.engine.run_options import RunRequest
from lmconsole.errors import HubError, LmconsoleError

TEXTS = "datasets/someone/texts"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with an empty user data folder next to it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.delenv("LMCONSOLE_DATA", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def request(*words: str, **given: object) -> RunRequest:
    return parse_request({"ids": list(words), **given} if words else {"everything": True, **given})


def test_a_data_set_is_fetched_by_name_and_then_read_without_the_network(
    hub: Hub, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[TEXTS] = Repository({"data/train-0.parquet": parquet(["some text"] * 100)})
    folder = here.parent / "share" / "lmconsole" / "hub" / "someone--texts"
    command.fetch("hub:someone/texts", None, None, json=False)
    out, err = capsys.readouterr()
    assert out == f"{folder}\n"
    assert "Downloading data/train-0.parquet (" in err
    assert "validation and test cut from the end of train, 5% of it each" in err

    command.fetch("hub:someone/texts", here / "other", None, json=True)
    out, err = capsys.readouterr()
    files = [str(here / "other" / f"{split}.txt") for split in ("train", "valid", "test")]
    found = json.loads(out)
    assert found == {"folder": str(here / "other"), "files": files, "warnings": []}
    validation.check_output(found, "data-fetch")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert command.fetch_for_run(request("1", data=Path("hub:someone/texts")))
    with pytest.raises(HubError) as caught:
        command.fetch("hub:someone/others", None, None, json=False)
    assert "lmconsole data fetch hub:someone/others --out FOLDER" in str(caught.value.hint)


def test_run_fetches_the_data_set_that_it_names(hub: Hub, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories[TEXTS] = Repository({"one/train.parquet": parquet(["some text"] * 100)})
    named = {"data": Path("hub:someone/texts/one"), "preset": "scratch"}
    assert not command.fetch_for_run(request("1", dry_run=True, **named))
    assert capsys.readouterr().out.endswith("  hub:someone/texts/one\n")
    assert not any("resolve" in each.path for each in hub.requests)
    assert command.fetch_for_run(request("1", **named))
    folder = here.parent / "share" / "lmconsole" / "hub" / "someone--texts--one"
    assert load_corpus("tokens", folder, vocabulary=300, cache=here).name == "someone--texts--one"


def test_a_dry_run_lists_what_would_be_downloaded(
    hub: Hub, here: Path, capsys: pytest.CaptureFixture[str], text_folder: Path
) -> None:
    assert not command.fetch_for_run(request(fetch=True, dry_run=True, preset="paper"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"would download to {here.parent / 'share' / 'lmconsole'}:"
    assert len(lines) == 7
    assert lines[-1].endswith("/openai-community/openai-gpt/resolve/main/model.safetensors")
    assert not command.fetch_for_run(request(fetch=True, dry_run=True, json=True, data=text_folder))
    planned = json.loads(capsys.readouterr().out)
    validation.check_output(planned, "run-dry-run-fetch")
    assert planned["folder"] == str(text_folder)
    assert [Path(url).name for url in planned["would_download"]] == ["vocab.json", "merges.txt", "model.safetensors"]
    for preset, data in (("demo", None), ("scratch", text_folder)):
        assert command.fetch_for_run(request(fetch=True, dry_run=True, preset=preset, data=data))
    assert capsys.readouterr().out == ""
    assert hub.requests == []


def test_without_a_network_the_files_to_bring_are_named(hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for what, count in (("all", 6), ("wikitext-2", 5), ("gpt1", 3)):
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set") as caught:
            command.fetch(what, None, None, json=False)
        hint = str(caught.value.hint)
        assert f"lmconsole data fetch {what} --files FOLDER" in hint
        assert hint.count(f"{hub.endpoint}/") == count
    assert list(here.iterdir()) == []


def test_wrong_requests_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LmconsoleError, match="unknown download 'wikitext'; did you mean 'wikitext-2'"):
        command.fetch("wikitext", None, None, json=False)
    with pytest.raises(LmconsoleError, match="--files has no effect"):
        command.fetch("hub:someone/texts", None, here, json=False)
    monkeypatch.setenv("LMCONSOLE_DATA", "hub:someone/texts")
    with pytest.raises(LmconsoleError, match="LMCONSOLE_DATA names another data set"):
        command.fetch("all", None, None, json=False)


def test_a_target_that_cannot_be_written_is_named(hub: Hub, here: Path) -> None:
    hub.repositories[TEXTS] = Repository({"train.parquet": parquet(["some text"] * 100)})
    (here / "file").write_text("")
    with pytest.raises(LmconsoleError, match=r"file/new: .*Not a directory"):
        command.fetch("hub:someone/texts", here / "file" / "new", None, json=False)


def test_a_missing_library_names_the_extra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(HubError, match="pyarrow, which is not installed") as caught:
        command.fetch("gpt1", here, None, json=False)
    assert re.search(r"uv tool install '\.\[hub\b", str(caught.value.hint))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_for_each_file(hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[TEXTS] = Repository({"data/train-\u202e0.parquet": parquet([f"text {i}" for i in range(9999)])})
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    command.fetch("hub:someone/texts", here / "new", None, json=True)
    shown = terminal.getvalue()
    assert "train-\\u202e0" in shown
    assert "━━━━" in shown
    assert " kB" in shown
    assert "\u202e" not in shown


def test_ctrl_c_says_that_what_arrived_is_kept(
    hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[TEXTS] = Repository({"train.parquet": parquet(["some text"] * 100)})

    def interrupted(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(command._Lines, "progress", interrupted)
    with pytest.raises(Interrupted):
        command.fetch("hub:someone/texts", here / "new", None, json=False)
    assert "Run the same command again to continue" in capsys.readouterr().err


def test_auto_offers_the_download_where_only_the_data_are_missing() -> None:
    assert choose_preset([], None, None, cuda=True)[1].endswith("; `lmconsole data fetch` downloads them")
    assert "fetch" not in choose_preset([], None, None, cuda=False)[1]
    with pytest.raises(LmconsoleError, match="--fetch implies the preset paper"):
        choose_preset(["--fetch"], None, None, cuda=False)


def variables(hub: Hub, root: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(root / "hf"), "HF_TOKEN": "hf_mine", "HF_HUB_OFFLINE": ""}


def test_the_variables_of_the_hub_are_honored(tmp_path: Path) -> None:
    """In a process of its own, since the client reads them when it is imported."""
    with Hub() as hub:
        hub.repositories[TEXTS] = Repository({"train.parquet": parquet(["some text"] * 100)}, token="hf_mine")
        environ = variables(hub, tmp_path)
        done = tiny.lmconsole("data", "fetch", "hub:someone/texts", "--out", "new", cwd=tmp_path, env=environ, check=0)
        assert done.stdout == f"{tmp_path / 'new'}\n"
        assert {each.token for each in hub.requests if "someone" in each.path} == {"hf_mine"}
        assert (tmp_path / "hf" / "hub" / "datasets--someone--texts" / "refs" / "main").exists()
        requests = len(hub.requests)
        broken = tiny.lmconsole("data", "fetch", cwd=tmp_path, env=environ | {"HF_ENDPOINT": "http://[::1"}, check=2)
        assert "huggingface_hub cannot be used: Invalid IPv6 URL\nCheck HF_ENDPOINT" in broken.stderr
        environ |= {"HF_HUB_OFFLINE": "1"}
        refused = tiny.lmconsole("data", "fetch", "hub:someone/texts", cwd=tmp_path, env=environ, check=2)
        assert "HF_HUB_OFFLINE is set" in refused.stderr
        assert len(hub.requests) == requests


FETCH = """
import re
from pathlib import Path
from lmconsole.cli import main
try:
    main(["data", "fetch"])
finally:
    print("peak", int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""
"""Fetches everything, and prints the peak memory in MiB. That of ``wait4`` would include this process at the fork."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_the_paper_preset_from_an_empty_home(shared: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        for repository, name, content in substitutes(shared, wikitext2.TOKENS):
            hub.repositories.setdefault(repository, Repository({})).files[name] = content
        environ = tiny.environment(tmp_path) | variables(hub, tmp_path)
        words = [sys.executable, "-c", FETCH]
        done = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert float(done.stdout.split("peak ")[1]) < 500
    assert set(hub.repositories[WIKITEXT].files) == set(WIKITEXT_FILES.values())
    assert "model.safetensors" in hub.repositories[GPT1].files
    folder = tmp_path / "user-data" / "lmconsole"
    corpus = load_corpus("tokens", folder, vocabulary=wikitext2.VOCABULARY)
    assert corpus.counts() == wikitext2.TOKENS
    assert corpus.name != "WikiText-2 (GPT-1 BPE)", "two of the splits are substitutes"
    with np.load(shared / "data" / "wikitext-2" / "wiki.test.npz") as published:
        assert np.array_equal(corpus.splits["test"], published["tokens"])
    with np.load(folder / "embeddings.npz") as tables:
        assert tables["tokens"].shape == (wikitext2.VOCABULARY, 768)
        assert not tables["tokens"][0].any()
        assert tables["position"].shape == (256, 768)
    environ |= {"HF_ENDPOINT": "http://127.0.0.1:9"}
    again = tiny.lmconsole("data", "fetch", cwd=tmp_path, env=environ, check=0)
    assert again.stdout == f"{folder}\n"
    assert again.stderr.count("already there") == 2
