"""Search for the data of a run: the corpus, GPT-1's tokenizer, and embedding tables."""

import os
from collections.abc import Mapping
from pathlib import Path

from lmconsole.data.files import MAX_BYTES, check_text, list_folder, open_data, recognize_tables
from lmconsole.data.hub_names import hub_folder, parse_hub_data
from lmconsole.data.layout import FOLDER_HINT, corpus_files, folder_of, is_text, next_to, split_files
from lmconsole.data.tokenizer import ENCODER_FILE, MERGES_FILE
from lmconsole.errors import CorpusError, EmbeddingsError
from lmconsole.files import expand_home, user_folder

EMBEDDINGS_FILES = ("embeddings.npz", "model.safetensors")
"""Embedding tables in the folder of a corpus: our own file, and GPT-1's as on the Hugging Face Hub."""


def user_data_folder() -> Path | None:
    """Return the folder that is searched last; None for a user without a home folder."""
    return user_folder("data")


def find_data(explicit: Path | None, *, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the absolute path of the corpus, a folder or a text file, or None if there is none.

    The candidates are ``explicit`` (--data), LMCONSOLE_DATA, ``data`` in ``cwd``, and the user data folder. The last
    two are skipped if they are no folders, or contain nothing of a corpus. The first two may be ``hub:OWNER/NAME``,
    which means the folder in which that data set was saved.

    Raises:
        CorpusError: one of the first two is given and has no complete corpus, or one of the last two has a part of one.
    """
    named = {"--data": explicit, "LMCONSOLE_DATA": environ.get("LMCONSOLE_DATA") or None}
    for origin, given in named.items():
        if given is not None:
            return _named(given, origin, cwd)
    here, user = Path(os.path.abspath(cwd / "data")), user_data_folder()
    if _has_corpus(here, alone=(ENCODER_FILE, MERGES_FILE, *EMBEDDINGS_FILES)):
        return here
    # Tokenizer and tables without a corpus are there for text of one's own.
    return user if user is not None and _has_corpus(user, alone=()) else None


def _named(given: Path | str, origin: str, cwd: Path) -> Path:
    """Return the corpus that a person named with ``origin``. Raises CorpusError."""
    if hub := parse_hub_data(str(given)):
        if not _has_corpus(place := hub_folder(hub), alone=()):
            raise CorpusError(
                f"{origin}: {hub.name} of the Hugging Face Hub is not on this machine",
                hint=f"Download it with: lmconsole data fetch {given}",
            )
        return place
    try:
        place = Path(os.path.abspath(cwd / expand_home(given)))
        _check_place(place)
    except CorpusError as error:
        raise CorpusError(f"{origin}: {error.message}", hint=error.hint) from None
    except OSError as error:
        raise CorpusError(f"{origin}: {given}: {error.strerror}") from None
    return place


def _check_place(place: Path) -> None:
    """Raise CorpusError unless ``place`` is a folder with three splits, or a file that begins like text."""
    if is_folder(place):
        corpus_files(place, list_folder(place))
    else:
        with open_data(place, MAX_BYTES) as file:
            check_text(place, file.read(64))


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder. Raises CorpusError if there is nothing."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such folder or file", hint="Check the spelling of the path.") from None
    except (OSError, ValueError):
        pass  # the error of opening it says more
    return os.path.isdir(path)


def _has_corpus(place: Path, *, alone: tuple[str, ...]) -> bool:
    """Return whether a folder that is searched without being named has a corpus.

    Raises CorpusError if it has only a part of one, or one of the files ``alone`` without a corpus, or cannot be read:
    to train on other data would be a surprise.
    """
    if not os.path.lexists(place) or (os.path.exists(place) and not os.path.isdir(place)):
        return False
    names = list_folder(place)
    hint = "To train without it: --preset demo."
    try:
        corpus_files(place, names)
    except CorpusError as error:
        if split_files(names):
            raise CorpusError(error.message, hint=f"{error.hint}\n{hint}") from None
    else:
        return True
    parts = [name for name in alone if name in names]
    if parts:
        raise CorpusError(
            f"{place}: {' and '.join(parts)} without a corpus",
            hint=f"{FOLDER_HINT}\nTo download WikiText-2: lmconsole data fetch wikitext-2\n{hint}",
        )
    return False


def tokenizer_in(folder: Path) -> bool:
    """Return whether ``folder`` has both files of GPT-1's tokenizer. Raises CorpusError if it has one of them."""
    present = next_to(folder, (ENCODER_FILE, MERGES_FILE))
    if len(present) == 1:
        (missing,) = {ENCODER_FILE, MERGES_FILE} - set(present)
        raise CorpusError(
            f"{folder}: contains {present[0]} without {missing}; GPT-1's BPE needs both",
            hint=f"Add the other file, as `lmconsole data fetch gpt1 --out {folder}` does, or remove this one to train "
            "a tokenizer on the text.",
        )
    return bool(present)


def find_tokenizer(data: Path) -> Path | None:
    """Return the folder of GPT-1's tokenizer for frozen embeddings of the text ``data``: that of the text, else the
    user data folder.

    None if neither has it, or if ``data`` is not text. Raises CorpusError if one has only one of its two files.
    """
    if not is_text(data):
        return None
    folders = (folder_of(data), user_data_folder())
    return next((folder for folder in folders if folder is not None and tokenizer_in(folder)), None)


def find_embeddings(explicit: Path | None, data: Path | None) -> Path | None:
    """Return the absolute path of the embedding tables, or None if there are none.

    The candidates are ``explicit`` (--embeddings), then ``EMBEDDINGS_FILES`` in the folder ``data``, or next to the
    text file ``data``, and in the user data folder: but not there for a text without GPT-1's tokenizer, whose tokens
    they do not belong to.

    Only the kind of the file is checked. Raises EmbeddingsError if it is neither an npz archive nor a safetensors file,
    and CorpusError as ``find_tokenizer`` does.
    """
    if explicit is not None:
        path = Path(os.path.abspath(explicit))
        try:
            recognize_tables(path)
        except EmbeddingsError as error:
            raise EmbeddingsError(f"--embeddings: {error.message}", hint=error.hint) from None
        return path
    if data is None:
        return None
    data = Path(os.path.abspath(data))
    if (found := embeddings_in(folder_of(data))) is not None:
        return found
    user = user_data_folder()
    if user is None or (is_text(data) and find_tokenizer(data) is None):
        return None
    return embeddings_in(user)


def embeddings_in(folder: Path) -> Path | None:
    """Return the file of embedding tables in ``folder``; None if there is none. Raises EmbeddingsError if it is of
    another kind."""
    for name in next_to(folder, EMBEDDINGS_FILES):
        recognize_tables(folder / name)
        return folder / name
    return None
