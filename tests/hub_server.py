"""A server on loopback that speaks the routes of the Hugging Face Hub from which files are downloaded.

As on the hub, small files are redirected within the hub, and large ones to a signed address on another host that must
not see the token. It announces no Xet unless ``xet`` is set. By hand it serves substitutes for the paper preset, made
from the real test split of WikiText-2:

    LMCONSOLE_SHARED=… python tests/hub_server.py 8765
    HF_ENDPOINT=http://127.0.0.1:8765 HF_HOME=… lmconsole data fetch
"""

import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np

LARGE_BYTES = 2**14
"""Files from this size on are stored apart, as with Git LFS."""

WIKITEXT, GPT1 = "datasets/Salesforce/wikitext", "openai-community/openai-gpt"
WIKITEXT_FILES = {
    split: f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")
}


@dataclass
class Repository:
    """Files of a repository; ``token`` is needed to see it, if it is not None."""

    files: dict[str, bytes]
    card: dict[str, Any] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + hashlib.sha256(content).digest())
        return digest.hexdigest()


@dataclass
class Request:
    """A request that the server has received."""

    method: str
    path: str
    range: str | None
    token: str | None
    host: str


Fault = Callable[[Request], "Answer | None"]


@dataclass
class Answer:
    """An answer of the server; ``cut`` is the number of bytes after which the connection is closed."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


class Hub:
    """The server. Faults are asked first for each request and may answer it; None means that they do not."""

    def __init__(self, port: int = 0) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.xet = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._serve()

            def do_HEAD(self) -> None:
                self._serve()

            def _serve(self) -> None:
                request = Request(
                    self.command,
                    self.path,
                    self.headers.get("Range"),
                    self.headers.get("Authorization", "").removeprefix("Bearer ") or None,
                    self.headers.get("Host", ""),
                )
                hub.requests.append(request)
                found = next((answer for fault in hub.faults if (answer := fault(request))), None)
                answer = found or hub.answer(request)
                self.send_response(answer.status)
                headers = {"Content-Length": str(len(answer.body)), **answer.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
                if answer.cut is not None:
                    self.close_connection = True

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: Request) -> Answer:
        path = unquote(urlsplit(request.path).path).lstrip("/")
        if path.startswith("stored/"):
            return self._content(path.removeprefix("stored/"), request)
        if path.startswith("api/resolve-cache/"):
            return self._content(path.rpartition("/")[2], request)
        if path.startswith("api/datasets/"):
            name, _, revision = path.removeprefix("api/").partition("/revision/")
            return self._with_access(name, request, lambda repository: self._description(name, repository, revision))
        name, separator, rest = path.partition("/resolve/")
        if not separator:
            return Answer(404)
        branch = next((b for b in ("refs/convert/parquet",) if rest.startswith(f"{b}/")), rest.partition("/")[0])
        file = rest.removeprefix(f"{branch}/")
        return self._with_access(name, request, lambda repository: self._resolve(repository, branch, file))

    def _with_access(self, name: str, request: Request, answer: Callable[[Repository], Answer]) -> Answer:
        repository = self.repositories.get(name)
        if request.token == "wrong":
            return Answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        if repository is None or (repository.token is not None and repository.token != request.token):
            if repository is not None and repository.gated:
                return Answer(401, headers={"X-Error-Code": "GatedRepo"})
            return Answer(401, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        return answer(repository)

    def _description(self, name: str, repository: Repository, branch: str) -> Answer:
        files = repository.branches.get(branch, {} if branch else repository.files)
        if branch and branch not in repository.branches:
            return Answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        described = {
            "id": name.removeprefix("datasets/"),
            "sha": repository.commit,
            "cardData": repository.card,
            "siblings": [{"rfilename": each, "size": len(content)} for each, content in files.items()],
        }
        return Answer(200, json.dumps(described).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: Repository, branch: str, file: str) -> Answer:
        places = [repository.branches[branch]] if branch in repository.branches else [repository.files]
        if branch == repository.commit:
            places += repository.branches.values()
        content = next((place[file] for place in places if file in place), None)
        headers = {"X-Repo-Commit": repository.commit}
        if content is None:
            return Answer(404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        etag = hash_of(content)
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if len(content) < LARGE_BYTES:
            return Answer(307, headers={**headers, "Location": f"/api/resolve-cache/{quote(file)}/{etag}"})
        if self.xet:
            headers |= {"X-Xet-Hash": etag, "X-Xet-Refresh-Route": f"{self.endpoint}/api/xet-token"}
        return Answer(
            302, headers={**headers, "Location": f"http://localhost:{self.port}/stored/{etag}?Signature=secret"}
        )

    def _content(self, etag: str, request: Request) -> Answer:
        for repository in self.repositories.values():
            for files in (repository.files, *repository.branches.values()):
                for content in files.values():
                    if hash_of(content) == etag:
                        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
                        return _part(content, headers, request.range)
        return Answer(404)


def _part(content: bytes, headers: dict[str, str], wanted: str | None) -> Answer:
    if wanted is None:
        return Answer(200, content, headers)
    start = int(wanted.removeprefix("bytes=").partition("-")[0])
    if start >= len(content):
        return Answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
    return Answer(
        206, content[start:], {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    )


_HASHES: dict[int, tuple[bytes, str]] = {}


def hash_of(content: bytes) -> str:
    """Return the ETag that the hub gives a file: git's SHA-1 if it is small, else its SHA-256."""
    known = _HASHES.get(id(content))
    if known is None or known[0] is not content:
        if len(content) < LARGE_BYTES:
            made = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            made = hashlib.sha256(content).hexdigest()
        _HASHES[id(content)] = known = content, made
    return known[1]


def once(count: int, part: str, answer: Callable[[], Answer]) -> Fault:
    """Return a fault that answers the first ``count`` requests for a path with ``part`` in it."""
    left = [count]

    def fault(request: Request) -> Answer | None:
        if part not in request.path or not left[0]:
            return None
        left[0] -= 1
        return answer()

    return fault


def cutting(hub: Hub, part: str, after: int, count: int = 1) -> Fault:
    """Return a fault that closes the connection ``after`` bytes of the first ``count`` downloads of such a path."""
    left = [count]

    def fault(request: Request) -> Answer | None:
        if part not in request.path or request.method != "GET" or not left[0]:
            return None
        answer = hub.answer(request)
        if answer.status not in (200, 206):
            return None
        left[0] -= 1
        answer.cut = after
        return answer

    return fault


def parquet(rows: list[Any], column: str = "text", rows_in_a_group: int | None = None, **others: list[Any]) -> bytes:
    """Return a Parquet file with a column of text."""
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({column: rows, **others}), buffer, row_group_size=rows_in_a_group)
    return buffer.getvalue()


def safetensors(tokens: int, positions: int, channels: int, prefix: str = "", more: int = 0) -> bytes:
    """Return weights with random tables in place of GPT-1's, and ``more`` values that nobody reads."""
    from safetensors.numpy import save

    random = np.random.default_rng(7)
    tables = {
        "tokens_embed.weight": random.standard_normal((tokens, channels), dtype=np.float32) * np.float32(0.02),
        "positions_embed.weight": random.standard_normal((positions, channels), dtype=np.float32) * np.float32(0.02),
        "h.0.mlp.c_fc.weight": np.zeros(max(more, 1), dtype=np.float32),
    }
    return save({prefix + name: table for name, table in tables.items()}, metadata={"note": "substitute"})


def substitutes(shared: Path, counts: Mapping[str, int], more: int = 0) -> Iterator[tuple[str, str, bytes]]:
    """Yield repository, name and content of the files of the paper preset.

    The test split is real. The lines of the train and validation splits are those of the test split, as often as needed
    for ``counts``, and at last a line of one word. The embedding tables are random; ``more`` other weights are zero.
    """
    from lmconsole.data.tokenizer import gpt1_tokenizer, iter_lines

    bpe = shared / "data" / "gpt1-bpe"
    names = {"vocab.json": "encoder_bpe_40000.json", "merges.txt": "vocab_40000.bpe"}
    for name, local in names.items():
        yield GPT1, name, (bpe / local).read_bytes()
    text = (shared / "data" / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8")
    rows = [line if line.strip() else "" for line in iter_lines(text)]
    paths = [bpe / local for local in names.values()]
    tokenizer = gpt1_tokenizer(*((path, path.read_bytes()) for path in paths))
    sizes = [len(each.ids) for each in tokenizer.backend.encode_batch_fast(rows, add_special_tokens=False)]
    for split, name in WIKITEXT_FILES.items():
        chosen = rows
        if split != "test":
            chosen, left, at = [], counts[split], 0
            while sizes[at % len(rows)] <= left:
                chosen.append(rows[at % len(rows)])
                left -= sizes[at % len(rows)]
                at += 1
            chosen.append(" the" * left + " \n")
        yield WIKITEXT, name, parquet(chosen)
    yield GPT1, "model.safetensors", safetensors(40_478, 512, 768, more=more)


def serve_substitutes(port: int) -> None:
    """Serve substitutes for the paper preset until the process is stopped."""
    from lmconsole.data.wikitext2 import TOKENS

    with Hub(port) as hub:
        for repository, name, content in substitutes(Path(os.environ["LMCONSOLE_SHARED"]), TOKENS, 88_000_000):
            hub.repositories.setdefault(repository, Repository({})).files[name] = content
        print(f"substitutes at {hub.endpoint}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    serve_substitutes(int(sys.argv[1]))
