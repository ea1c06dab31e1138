"""Small corpora on disk, and the shared data if this machine has it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub

import lmconsole

NPZ_NAMES = ("wiki.train.npz", "wiki.validation.npz", "wiki.test.npz")
TEXT_NAMES = ("train.txt", "valid.txt", "test.txt")

LIFE = (
    "Words make lines, lines make texts;\nand some texts make sense – naïve or not.\n\n\tBut 1,234 of them don't!\r\n"
)


@pytest.fixture
def npz_folder(tmp_path: Path) -> Path:
    """A corpus of 400 / 50 / 60 ids below 100."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    for seed, (name, size) in enumerate(zip(NPZ_NAMES, (400, 50, 60), strict=True)):
        ids = np.random.default_rng(seed).integers(1, 100, size, dtype=np.uint16)
        np.savez_compressed(folder / name, tokens=ids, sizes=np.array([size]))
    return folder


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """A corpus of three short texts with white space, accents and a carriage return."""
    folder = tmp_path / "letters"
    folder.mkdir()
    for repeats, name in zip((20, 2, 3), TEXT_NAMES, strict=True):
        (folder / name).write_bytes((LIFE * repeats + f"End of {name}").encode())
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder that does not exist yet."""
    return tmp_path / "cache" / "corpora"


@pytest.fixture
def shared_data(shared: Path) -> Path:
    """Return the folder with WikiText-2 and GPT-1's BPE."""
    return shared / "data"


@pytest.fixture
def write_small_bpe() -> Callable[[Path], None]:
    """Return a function that writes a BPE of 12 tokens, as GPT-1's two files, into a folder."""

    def write(folder: Path) -> None:
        tokens = ["<unk>", "l", "o", "w", "e", "r", "l</w>", "o</w>", "w</w>", "r</w>", "lo", "low</w>"]
        (folder / "encoder_bpe_40000.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (folder / "vocab_40000.bpe").write_text("#version: 0.2\nl o\nlo w</w>\n")

    return write


@pytest.fixture
def python() -> Callable[..., str]:
    """Return a function that runs a script in a fresh interpreter and returns its output; errors and warnings fail."""

    def run(script: str, *arguments: object, **variables: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k not in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")}
        environment["PYTHONPATH"] = str(Path(lmconsole.__file__).parents[1])
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-W",
                "ignore::DeprecationWarning:__main__",
                "-c",
                script,
                *map(str, arguments),
            ],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub on loopback, which the client in this process uses."""
    from huggingface_hub import close_session, constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "hf" / "agents.json"))
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}))
        yield hub
        close_session()
