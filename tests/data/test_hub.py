"""Downloads with the real client from a server on loopback that speaks the hub's routes."""

import threading
import time
from pathlib import Path

import pytest
from hub_server import Answer, Hub, Repository, Request, cutting, hash_of, once
from huggingface_hub import close_session, constants

from lmconsole.data.hub import describe_dataset, download
from lmconsole.data.hub_names import HubFile, hub_folder, parse_hub_data
from lmconsole.errors import CorpusError, HubError

LARGE = bytes(range(256)) * 400
SMALL = b"only a few bytes\n"
WEIGHTS = HubFile(repository="someone/model", kind="model", name="model.safetensors")
CONFIG = HubFile(repository="someone/model", kind="model", name="config.json")


class Recorder:
    """Remembers what a download reports."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.reported: list[tuple[str, int, int | None]] = []

    def say(self, message: str) -> None:
        self.messages.append(message)

    def progress(self, name: str, done: int, total: int | None) -> None:
        self.reported.append((name, done, total))


@pytest.fixture
def hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with one model; nobody waits between two attempts."""
    real_sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: real_sleep(min(seconds, 0.01)))
    hub.repositories["someone/model"] = Repository({"model.safetensors": LARGE, "config.json": SMALL})
    return hub


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def blobs() -> Path:
    return Path(constants.HF_HUB_CACHE) / "models--someone--model" / "blobs"


def hub_cut(hub: Hub, request: Request, after: int) -> Answer | None:
    """Return the answer of the hub to a download, without what follows after so many bytes."""
    answer = hub.answer(request)
    answer.cut = after if "stored" in request.path else None
    return answer


def sent(hub: Hub, part: str) -> list[str | None]:
    """Ranges of the downloads of a path."""
    return [request.range for request in hub.requests if request.method == "GET" and part in request.path]


def test_files_land_in_the_shared_cache_once(hub: Hub, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    path = download(WEIGHTS, recorder)
    assert path.read_bytes() == LARGE
    assert path.resolve() == blobs() / hash_of(LARGE)
    assert download(CONFIG, recorder).read_bytes() == SMALL
    assert recorder.reported[0] == ("model.safetensors", 0, len(LARGE))
    assert ("model.safetensors", len(LARGE), len(LARGE)) in recorder.reported
    assert {request.token for request in hub.requests if "resolve" in request.path} == {"hf_mine"}
    assert {request.token for request in hub.requests if "stored" in request.path} == {None}
    assert recorder.messages == []

    before = len(hub.requests)
    assert download(WEIGHTS, recorder) == path
    assert {request.method for request in hub.requests[before:]} == {"HEAD"}


def test_files_come_over_plain_http_even_if_the_hub_offers_xet(hub: Hub, recorder: Recorder) -> None:
    hub.xet = True
    assert download(WEIGHTS, recorder).read_bytes() == LARGE
    assert not any("xet-token" in request.path for request in hub.requests)


def test_a_broken_transfer_continues_where_it_broke(hub: Hub, recorder: Recorder) -> None:
    hub.faults.append(cutting(hub, "stored", 40_000, count=2))
    assert download(WEIGHTS, recorder).read_bytes() == LARGE
    assert sent(hub, "stored") == [None, "bytes=40000-", "bytes=80000-"]
    assert [message.endswith("at 0 MiB; continuing …") for message in recorder.messages] == [True, True]
    assert not any("secret" in message for message in recorder.messages)


def test_a_connection_that_breaks_again_and_again_brings_all_in_the_end(hub: Hub, recorder: Recorder) -> None:
    hub.faults.append(cutting(hub, "stored", 999, count=999))
    assert download(WEIGHTS, recorder).read_bytes() == LARGE
    assert len(sent(hub, "stored")) == -(-len(LARGE) // 999)


def test_a_transfer_that_always_breaks_is_given_up_and_what_arrived_is_kept(hub: Hub, recorder: Recorder) -> None:
    hub.faults.append(lambda request: Answer(503) if request.range else None)
    hub.faults.append(cutting(hub, "stored", 10_000, count=99))
    with pytest.raises(HubError) as caught:
        download(WEIGHTS, recorder)
    assert "model.safetensors" in caught.value.message
    assert "(503)" in caught.value.message
    assert [path.name for path in blobs().iterdir()] == [f"{hash_of(LARGE)}.incomplete"]
    hub.faults.clear()
    assert download(WEIGHTS, recorder).read_bytes() == LARGE
    assert sent(hub, "stored")[-1] == "bytes=10000-"


def test_a_connection_that_brings_nothing_more_is_given_up(hub: Hub, recorder: Recorder) -> None:
    hub.faults.append(lambda request: hub_cut(hub, request, 0) if request.range else None)
    hub.faults.append(cutting(hub, "stored", 10_000))
    with pytest.raises(HubError, match="the connection broke off at 0 MiB: peer closed connection") as caught:
        download(WEIGHTS, recorder)
    assert "it continues where it was" in str(caught.value.hint)
    assert caught.value.offline


def test_another_process_continues_a_download(hub: Hub, recorder: Recorder) -> None:
    class Stopped(BaseException):
        pass

    class Stopping(Recorder):
        def progress(self, name: str, done: int, total: int | None) -> None:
            super().progress(name, done, total)
            if done > len(LARGE) / 2:
                raise Stopped

    with pytest.raises(Stopped):
        download(WEIGHTS, Stopping())
    kept = (blobs() / f"{hash_of(LARGE)}.incomplete").stat().st_size
    assert kept > len(LARGE) / 2 - 8192
    assert download(WEIGHTS, recorder).read_bytes() == LARGE
    assert sent(hub, "stored") == [None, f"bytes={kept}-"]
    assert recorder.reported[0] == ("model.safetensors", kept, len(LARGE))
    assert [path.name for path in blobs().iterdir()] == [hash_of(LARGE)]


@pytest.mark.parametrize("part", [b"x" * 5000, LARGE + b"more", LARGE[:-1] + b"?"], ids=["other", "longer", "changed"])
@pytest.mark.usefixtures("hub")
def test_a_part_that_does_not_fit_is_discarded(recorder: Recorder, part: bytes) -> None:
    blobs().mkdir(parents=True)
    (blobs() / f"{hash_of(LARGE)}.incomplete").write_bytes(part)
    assert download(WEIGHTS, recorder).read_bytes() == LARGE


def test_content_with_another_hash_is_refused(hub: Hub, recorder: Recorder) -> None:
    hub.faults.append(lambda r: Answer(200, bytes(len(LARGE))) if "stored" in r.path else None)
    with pytest.raises(HubError, match="does not match its hash"):
        download(WEIGHTS, recorder)
    assert [path.stat().st_size for path in blobs().iterdir()] == [0]


@pytest.mark.usefixtures("hub")
def test_a_damaged_copy_in_the_cache_is_downloaded_again(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, content in ((WEIGHTS, LARGE), (CONFIG, SMALL)):
        path = download(file, recorder)
        path.resolve().write_bytes(content[:-1])
        assert download(file, recorder).read_bytes() == content
    assert [message.endswith("downloading it again") for message in recorder.messages] == [True, True]
    path.resolve().write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="damaged, and there is no network"):
        download(CONFIG, recorder)


@pytest.mark.parametrize("way", ["offline", "unreachable"])
@pytest.mark.usefixtures("hub")
def test_without_a_network_the_cache_is_used(way: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = download(CONFIG, recorder)
    if way == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        nobody = "http://127.0.0.1:9"
        monkeypatch.setattr(constants, "ENDPOINT", nobody)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{nobody}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
    assert download(CONFIG, recorder) == path
    with pytest.raises(HubError) as caught:
        download(WEIGHTS, recorder)
    assert caught.value.offline
    with pytest.raises(HubError) as caught:
        describe_dataset("someone/texts")
    assert caught.value.offline


def test_a_proxy_that_does_not_answer_is_named(hub: Hub, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    close_session()
    with pytest.raises(HubError, match="cannot be reached") as caught:
        download(WEIGHTS, recorder)
    assert "the proxy 127.0.0.1:9. Check the variables http_proxy" in str(caught.value.hint)
    assert hub.requests == []


REFUSALS = {
    "missing": (401, {"X-Error-Code": "RepoNotFound"}, "not found, or you have no access (401)", "HF_TOKEN"),
    "gated": (403, {"X-Error-Code": "GatedRepo"}, "accept its conditions", "HF_TOKEN"),
    "forbidden": (403, {}, "you have no access (403)", "HF_TOKEN"),
    "token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "refuses the token", "HF_TOKEN"),
    "entry": (404, {"X-Error-Code": "EntryNotFound"}, "does not have it (404)", "changed"),
    "limit": (429, {"Retry-After": "0"}, "limits the number of requests (429)", "Wait a few minutes"),
    "error": (500, {}, "answered with an error (500)", "later"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_say_what_to_do(name: str, hub: Hub, recorder: Recorder) -> None:
    status, headers, message, hint = REFUSALS[name]
    hub.faults.append(lambda _: Answer(status, headers=headers))
    with pytest.raises(HubError) as caught:
        download(WEIGHTS, recorder)
    assert caught.value.message.startswith("someone/model/model.safetensors: ")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    assert not caught.value.offline
    with pytest.raises(HubError, match=str(status)):
        describe_dataset("someone/texts")


def test_a_limit_of_requests_is_waited_for(hub: Hub, recorder: Recorder) -> None:
    hub.faults.append(once(2, "resolve", lambda: Answer(429, headers={"Retry-After": "1"})))
    hub.faults.append(once(1, "stored", lambda: Answer(429, headers={"Retry-After": "1"})))
    assert download(WEIGHTS, recorder).read_bytes() == LARGE
    assert sum("Rate limited. Waiting" in message for message in recorder.messages) >= 2


@pytest.mark.parametrize(
    "headers", [{}, {"ETag": '"../../../../x"', "X-Repo-Commit": "0" * 40}, {"ETag": f'"{"0" * 64}"'}]
)
def test_an_answer_of_something_else_is_no_file(headers: dict[str, str], hub: Hub, recorder: Recorder) -> None:
    hub.faults.append(lambda _: Answer(200, b"<html>Please log in</html>", headers))
    with pytest.raises(HubError, match="not that of a hub"):
        download(WEIGHTS, recorder)
    with pytest.raises(HubError, match="cannot be understood"):
        describe_dataset("someone/texts")


def test_a_full_disk_is_noticed_before_the_download(
    hub: Hub, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmconsole.data.hub_blobs.free_disk_mib", lambda _: 0.01)
    with pytest.raises(HubError, match="left") as caught:
        download(WEIGHTS, recorder)
    assert "HF_HOME" in str(caught.value.hint)
    assert sent(hub, "stored") == []


@pytest.mark.usefixtures("hub")
def test_a_cache_that_cannot_be_written_is_named(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(HubError, match="Not a directory") as caught:
        download(WEIGHTS, recorder)
    assert "HF_HOME" in str(caught.value.hint)


def test_two_downloads_of_one_file_take_turns(hub: Hub) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Recorder):
        def progress(self, name: str, done: int, total: int | None) -> None:
            super().progress(name, done, total)
            begun.set()
            assert go_on.wait(10)

    class Second(Recorder):
        def say(self, message: str) -> None:
            super().say(message)
            go_on.set()

    first = threading.Thread(target=download, args=(WEIGHTS, Slow()))
    first.start()
    assert begun.wait(10)
    second = Second()
    assert download(WEIGHTS, second).read_bytes() == LARGE
    first.join()
    assert any("another process" in message for message in second.messages)
    assert len(sent(hub, "stored")) == 1


@pytest.mark.parametrize("text", ["hub:", "hub:name", "hub:a/b/c/d", "hub:../x/y", "hub:a/..", "hub:a b/c", "hub:a//c"])
def test_names_of_data_sets_are_checked(text: str) -> None:
    with pytest.raises(CorpusError, match="not a data set of the hub"):
        parse_hub_data(text)


def test_names_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert parse_hub_data("data/hub:a") is None
    plain, chosen = parse_hub_data("hub:a/b.c"), parse_hub_data("hub:a/b.c/20231101.en")
    assert plain is not None
    assert chosen is not None
    assert (plain.name, chosen.name) == ("a/b.c", "a/b.c/20231101.en")
    assert hub_folder(chosen) == tmp_path / "lmconsole" / "hub" / "a--b.c--20231101.en"
