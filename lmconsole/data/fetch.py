"""Corpora and embeddings from the Hugging Face Hub, saved where the look-up in ``data.corpus`` finds them.

WikiText-2 is saved as token ids, and its numbers of tokens are compared with those of the published results. Of GPT-1,
the two files of its tokenizer and its two embedding tables are saved.
"""

import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmconsole.data import wikitext2
from lmconsole.data.cache import SPLITS, fingerprint
from lmconsole.data.files import list_folder, read_bytes, read_tokens
from lmconsole.data.hub import download
from lmconsole.data.hub_blobs import Listener
from lmconsole.data.hub_names import HubFile, hub_folder, parse_hub_data
from lmconsole.data.layout import folder_of, is_text, split_files
from lmconsole.data.lookup import (
    EMBEDDINGS_FILES,
    embeddings_in,
    find_data,
    find_embeddings,
    find_tokenizer,
    user_data_folder,
)
from lmconsole.data.parquet import as_line, read_texts
from lmconsole.data.text import cut_pieces
from lmconsole.data.tokenize import too_many_ids
from lmconsole.data.tokenizer import ENCODER_FILE, MERGES_FILE, gpt1_tokenizer
from lmconsole.errors import CorpusError, EmbeddingsError, HubError
from lmconsole.files import atomic_write, expand_home, open_file

WIKITEXT, CONFIGURATION = "Salesforce/wikitext", "wikitext-2-raw-v1"
GPT1 = "openai-community/openai-gpt"

GPT1_TOKENS, GPT1_CHANNELS, WINDOW_TOKENS = wikitext2.VOCABULARY - 1, 768, 256
"""Sizes of GPT-1's embedding tables; it has more positions than the windows."""

_TEXTS = {
    split: HubFile(repository=WIKITEXT, kind="dataset", name=f"{CONFIGURATION}/{split}-00000-of-00001.parquet")
    for split in SPLITS
}
_ENCODER, _MERGES, _WEIGHTS = (
    HubFile(repository=GPT1, kind="model", name=name) for name in ("vocab.json", "merges.txt", "model.safetensors")
)
_TABLES = {"tokens": "tokens_embed.weight", "position": "positions_embed.weight"}
"""Names of GPT-1's tables in our file and in the hub's."""
_ROWS_AT_ONCE = 4096

FILES = {
    "wikitext-2": (*_TEXTS.values(), _ENCODER, _MERGES),
    "gpt1": (_ENCODER, _MERGES, _WEIGHTS),
    "all": (*_TEXTS.values(), _ENCODER, _MERGES, _WEIGHTS),
}
"""Files of the hub that each of the things to fetch needs."""

Get = Callable[[HubFile], Path]
"""Returns where a file is on this machine, after a download if necessary."""


def from_hub(listener: Listener) -> Get:
    """Return a function that downloads files."""
    return partial(download, listener=listener)


def needed_files(part: str, folder: Path) -> tuple[HubFile, ...]:
    """Return the files of the hub that ``part``, a key of ``FILES``, lacks in ``folder``; none if it is there."""
    if part == "wikitext-2":
        return () if has_corpus_files(folder) else FILES[part]
    if not folder.is_dir() or not embeddings_in(folder):
        return FILES[part]
    return () if {ENCODER_FILE, MERGES_FILE} <= list_folder(folder) else (_ENCODER, _MERGES)


def from_folder(folder: Path, needed: Iterable[HubFile]) -> Get:
    """Return a function that finds files which a person has downloaded into ``folder``, with their folders or without.
    Raises HubError that names all of the ``needed`` ones that are missing."""

    def find(file: HubFile) -> Path:
        places = (folder / file.name, folder / os.path.basename(file.name))
        return next(filter(os.path.exists, places), places[0])

    missing = [file for file in dict.fromkeys(needed) if not os.path.exists(find(file))]
    if missing:
        names = ", ".join(os.path.basename(file.name) for file in missing)
        problem = f"{names} {'is' if len(missing) == 1 else 'are'} missing"
        if not os.path.isdir(folder):
            problem = "no such folder"
        raise HubError(
            f"{folder}: {problem}",
            hint="\n".join(["Download these files into it:", *(f"  {file.url}" for file in missing)]),
        )
    return find


def bring_by_hand(what: str) -> str:
    """Return what to do without a network: the files to bring, and where to put them."""
    lines = "\n".join(f"  {file.url}" for file in FILES[what])
    return (
        "Without a network, download these files on another machine, copy them into one folder here, and name it with\n"
        f"  lmconsole data fetch {what} --files FOLDER\n{lines}"
    )


def target_folder(explicit: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """Return the folder in which data are saved: one that the look-up of tokens finds.

    It is ``explicit``, else LMCONSOLE_DATA, else ``data`` in ``cwd`` if that has a part of a corpus, else the user data
    folder. Raises CorpusError if there is none.
    """
    if named := explicit or environ.get("LMCONSOLE_DATA"):
        if data := parse_hub_data(str(named)):
            return hub_folder(data)
        return Path(os.path.abspath(cwd / expand_home(named)))
    here = cwd / "data"
    if here.is_dir() and (_corpus_files(here) or list_folder(here) & {ENCODER_FILE, MERGES_FILE, *EMBEDDINGS_FILES}):
        return Path(os.path.abspath(here))
    folder = user_data_folder()
    if folder is None:
        raise CorpusError("this user has no home folder to save data in", hint="Name a folder with --out.")
    return folder


def _corpus_files(folder: Path) -> list[str]:
    return split_files(list_folder(folder))


def has_corpus_files(folder: Path) -> bool:
    """Return whether a folder has any file of a corpus."""
    return folder.is_dir() and bool(_corpus_files(folder))


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """Data that a request needs and this machine lacks."""

    folder: Path
    """Folder in which they are to be saved."""
    parts: tuple[str, ...]
    """Among ``wikitext-2`` and ``gpt1``."""


def find_missing(
    data: Path | None, embeddings: Path | None, *, frozen: bool, environ: Mapping[str, str], cwd: Path
) -> Missing:
    """Return what must be fetched before a run finds tokens and, if ``frozen``, embeddings.

    Raises CorpusError or EmbeddingsError if the data that are there cannot be used; nothing is saved next to them.
    """
    folder = target_folder(data, environ, cwd)
    if not folder.is_file() and not has_corpus_files(folder):
        tables = find_embeddings(embeddings, folder if folder.is_dir() else user_data_folder())
        return Missing(folder=folder, parts=("wikitext-2", *(["gpt1"] if frozen and not tables else [])))
    found = find_data(data, environ=environ, cwd=cwd) or folder
    complete = find_embeddings(embeddings, found) and (not is_text(found) or find_tokenizer(found))
    return Missing(folder=_folder_for_gpt1(found), parts=("gpt1",) if frozen and not complete else ())


def _folder_for_gpt1(data: Path) -> Path:
    """Return the folder in which GPT-1's tokenizer and tables are saved for ``data``: where the data sets of the hub
    and single files of text, which may be anywhere, share them, or else next to the data."""
    user = user_data_folder()
    shared = data.is_file() or (user is not None and data.is_relative_to(user))
    return user if shared and user is not None else folder_of(data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """Outcome of a fetch."""

    files: tuple[Path, ...]
    message: str
    warning: str = ""


def fetch_wikitext2(folder: Path, get: Get, listener: Listener) -> Fetched:
    """Save WikiText-2 in GPT-1's tokens, and the tokenizer.

    Raises:
        CorpusError: a file is damaged, the numbers of tokens differ from the published ones, or ``folder`` has another
            corpus. Nothing is saved then.
        HubError: a file cannot be downloaded.
    """
    paths = {split: folder / f"wiki.{split}.npz" for split in SPLITS}
    if has_corpus_files(folder):
        return _described(_known_ids(folder, paths), "WikiText-2 is already there", paths.values())
    bpe = _tokenizer_files(get)
    tokenizer = gpt1_tokenizer(bpe[ENCODER_FILE], bpe[MERGES_FILE])
    texts = {split: get(file) for split, file in _TEXTS.items()}
    ids = {}
    for split, path in texts.items():
        listener.say(f"Tokenizing the {split} split …")
        try:
            ids[split] = tokenizer.encode(cut_pieces(map(as_line, read_texts(path))))
        except MemoryError as error:
            raise too_many_ids(str(path), error) from None
    found = {split: len(each) for split, each in ids.items()}
    if found != wikitext2.TOKENS:
        raise CorpusError(
            f"{WIKITEXT} has {_counts(found)} tokens; the published results are for {_counts(wikitext2.TOKENS)}",
            hint="The data set or the tokenizer on the hub has changed. Nothing was saved.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for split, path in paths.items():
            np.savez(stack.enter_context(atomic_write(path, sync=True)), tokens=ids[split])
    return _described(ids, "WikiText-2", [*paths.values(), *_save_tokenizer(folder, bpe)])


def _known_ids(folder: Path, paths: Mapping[str, Path]) -> dict[str, NDArray[np.integer[Any]]]:
    """Return the ids of WikiText-2 that an earlier ``fetch_wikitext2`` saved. Raises CorpusError for another corpus."""
    present = _corpus_files(folder)
    if {path.name for path in paths.values()} <= set(present):
        ids = {split: read_tokens(path, wikitext2.VOCABULARY) for split, path in paths.items()}
        if {split: len(each) for split, each in ids.items()} == wikitext2.TOKENS:
            return ids
    raise CorpusError(
        f"{folder}: contains {', '.join(present)}, which is not WikiText-2 in GPT-1's tokens",
        hint="Move these files elsewhere, or name another folder with --out. Nothing was downloaded.",
    )


def _described(ids: Mapping[str, NDArray[np.integer[Any]]], start: str, files: Iterable[Path]) -> Fetched:
    """Return what was saved, compared with what the published results were trained on."""
    published = fingerprint(wikitext2.VOCABULARY, ids) == wikitext2.SHA256
    counts = _counts({split: len(each) for split, each in ids.items()})
    return Fetched(
        files=tuple(files),
        message=f"{start}: {counts} tokens{', as published' if published else ''}",
        warning=""
        if published
        else "the numbers of tokens are those of the published results, but the tokens differ, so results are not "
        "compared with them",
    )


def _counts(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{tokens[split]:,} {split}" for split in SPLITS)


def fetch_gpt1(folder: Path, get: Get, listener: Listener) -> Fetched:
    """Save GPT-1's tokenizer and its embedding tables.

    Raises:
        CorpusError: a file of the tokenizer is damaged.
        EmbeddingsError: the weights are damaged or have other tables.
        HubError: a file cannot be downloaded.
    """
    path = folder / EMBEDDINGS_FILES[0]
    tables = embeddings_in(folder) if folder.is_dir() else None
    if tables and not needed_files("gpt1", folder):
        return Fetched(files=(tables,), message=f"GPT-1's tokenizer and embeddings are already there: {tables.name}")
    bpe = _tokenizer_files(get)
    gpt1_tokenizer(bpe[ENCODER_FILE], bpe[MERGES_FILE])
    if tables:
        saved = _save_tokenizer(folder, bpe)
        return Fetched(
            files=(tables, *saved), message=f"GPT-1's tokenizer; embeddings are already there: {tables.name}"
        )
    weights = get(_WEIGHTS)
    listener.say(f"Reading the embedding tables of {_WEIGHTS.name} …")
    folder.mkdir(parents=True, exist_ok=True)
    _save_tables(weights, path)
    return Fetched(
        files=(path, *_save_tokenizer(folder, bpe)),
        message=f"GPT-1's embeddings: {GPT1_TOKENS:,} tokens and padding, {GPT1_CHANNELS} channels",
    )


def _tokenizer_files(get: Get) -> dict[str, tuple[Path, bytes]]:
    """Return path and content of GPT-1's BPE, by the names under which they are saved."""
    found = {ENCODER_FILE: get(_ENCODER), MERGES_FILE: get(_MERGES)}
    return {name: (path, read_bytes(path)) for name, path in found.items()}


def _save_tokenizer(folder: Path, bpe: Mapping[str, tuple[Path, bytes]]) -> list[Path]:
    with ExitStack() as stack:  # both or none
        for name, (_, content) in bpe.items():
            stack.enter_context(atomic_write(folder / name, sync=True)).write(content)
    return [folder / name for name in bpe]


def _save_tables(weights: Path, path: Path) -> None:
    """Write the two tables of GPT-1's weights to an npz file, a few rows at a time. A row of zeros for padding is put
    in front of the tokens. Raises EmbeddingsError."""
    from safetensors import SafetensorError, safe_open

    try:
        with (
            open(open_file(weights, follow=True), "rb") as opened,
            safe_open(f"/dev/fd/{opened.fileno()}", framework="np") as tensors,
            atomic_write(path, sync=True) as target,
            zipfile.ZipFile(target, "w") as archive,
        ):
            for name, stored_as in _TABLES.items():
                part = _table(tensors, stored_as, weights)
                rows = GPT1_TOKENS if name == "tokens" else WINDOW_TOKENS
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    padding = int(name == "tokens")
                    header = {"descr": "<f4", "fortran_order": False, "shape": (rows + padding, GPT1_CHANNELS)}
                    np.lib.format.write_array_header_1_0(member, header)
                    member.write(bytes(4 * GPT1_CHANNELS * padding))
                    for start in range(0, rows, _ROWS_AT_ONCE):
                        values = np.ascontiguousarray(part[start : min(start + _ROWS_AT_ONCE, rows)], dtype="<f4")
                        if not np.isfinite(values).all():
                            raise EmbeddingsError(
                                f"{weights}: {stored_as} contains NaN or infinite values", hint=_WEIGHTS_HINT
                            )
                        member.write(values.data)
    except SafetensorError as error:
        raise EmbeddingsError(
            f"{weights}: not a readable .safetensors file; it may be truncated ({error})",
            hint="Download the file again.",
        ) from None


def _table(tensors: Any, name: str, weights: Path) -> Any:
    """Return a lazy slice of a table after checking its type and shape."""
    names = set(tensors.keys())
    stored_as = name if name in names else f"transformer.{name}"
    if stored_as not in names:
        found = ", ".join(each[:60] for each in sorted(names)[:8]) or "nothing"
        raise EmbeddingsError(f"{weights}: has no tensor {name}; found: {found}", hint=_WEIGHTS_HINT)
    part = tensors.get_slice(stored_as)
    shape, kind = tuple(part.get_shape()), part.get_dtype()
    tokens = name == _TABLES["tokens"]
    fits = len(shape) == 2 and shape[1] == GPT1_CHANNELS
    if kind != "F32" or not fits or (shape[0] != GPT1_TOKENS if tokens else shape[0] < WINDOW_TOKENS):
        rows = f"{GPT1_TOKENS:,}" if tokens else f"at least {WINDOW_TOKENS}"
        shown = " × ".join(f"{size:,}" for size in shape)
        raise EmbeddingsError(
            f"{weights}: {name} is {shown} of type {kind}, expected {rows} × {GPT1_CHANNELS} of type F32",
            hint=_WEIGHTS_HINT,
        )
    return part


_WEIGHTS_HINT = f"The file must be model.safetensors of {GPT1}."
