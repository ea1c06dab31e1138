"""Any data set of the Hugging Face Hub as a corpus: its Parquet files, saved as text."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from lmconsole.data.cache import SPLITS
from lmconsole.data.fetch import Fetched
from lmconsole.data.hub import Repository, describe_dataset, download, missing_bytes
from lmconsole.data.hub_blobs import Listener, check_room
from lmconsole.data.hub_names import HubData, HubFile
from lmconsole.data.parquet import as_line, read_texts
from lmconsole.data.tokenizer import iter_lines
from lmconsole.errors import CorpusError, HubError
from lmconsole.files import atomic_write, read_file

CONVERTED = "refs/convert/parquet"
"""Branch in which the hub keeps Parquet files that it made from other formats."""

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Words for the splits in names of files and splits of the hub."""
REST_PERCENT = 5
"""Share of the train split that becomes the validation or test split of a data set that has none."""
TEXT_FILES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
ORIGIN_FILE = "hub.json"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of the text in a folder, saved next to it."""

    repository: str
    commit: str
    files: dict[str, list[str]]
    """Files of each split."""


def fetch_data(data: HubData, folder: Path, listener: Listener) -> Fetched:
    """Save the text of a data set as train.txt, valid.txt and test.txt.

    Splits that it lacks are cut from the end of its train split. Raises CorpusError if it has no usable text, and
    HubError if it cannot be downloaded; nothing is saved then.
    """
    revision, repository = None, describe_dataset(data.repository)
    if not any(name.endswith(".parquet") for name in repository.sizes):
        revision = CONVERTED
        try:
            repository = describe_dataset(data.repository, revision)
        except HubError as error:
            if error.offline:
                raise
            raise CorpusError(
                f"{data.repository}: has no Parquet files, and the hub has not converted its files",
                hint="Choose another data set, or download its text and name it with --data FOLDER.",
            ) from None
    names = {split: folder / name for split, name in TEXT_FILES.items()}
    if _origin_commit(folder) == repository.commit and all(path.exists() for path in names.values()):
        return Fetched(files=tuple(names.values()), message=f"{data.name} is already there, {_at(repository.commit)}")
    files = choose_files(repository, data)
    wanted = {
        split: [HubFile(repository=data.repository, kind="dataset", name=name, revision=revision) for name in names]
        for split, names in files.items()
    }
    sizes = {file: repository.sizes[file.name] for each in wanted.values() for file in each}
    check_room(data.name, missing_bytes(sizes, repository.commit))
    paths = {split: [download(file, listener) for file in each] for split, each in wanted.items()}
    listener.say(f"Writing the text to {folder} …")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        written = _write_text(data, paths, folder)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it is new, and so empty
        raise
    origin = Origin(repository=data.repository, commit=repository.commit, files=files)
    with atomic_write(folder / ORIGIN_FILE) as file:
        file.write(msgspec.json.format(msgspec.json.encode(origin), indent=2) + b"\n")
    cut = [split for split in SPLITS if split not in files]
    shares = f"; {' and '.join(cut)} cut from the end of train, {REST_PERCENT}% of it each" if cut else ""
    return Fetched(files=tuple(written), message=f"{data.name}, {_at(repository.commit)}{shares}")


def _at(commit: str) -> str:
    return f"commit {commit[:12]}"


def _origin_commit(folder: Path) -> str | None:
    """Return the commit from which the text in a folder comes; None if it is unknown."""
    try:
        return msgspec.json.decode(read_file(folder / ORIGIN_FILE, 2**20, follow=True), type=Origin).commit
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def _write_text(data: HubData, paths: Mapping[str, Sequence[Path]], folder: Path) -> list[Path]:
    """Write the text of the splits, all or none. Text for missing splits is cut from that of the train split, at the
    ends of lines. NUL characters, by which binary files are recognized, are replaced."""
    cut = [split for split in SPLITS if split not in paths]
    total = sum(map(len, _lines(paths["train"]))) if cut else 0
    names = {split: folder / name for split, name in TEXT_FILES.items()}
    with ExitStack() as stack:
        files = {split: stack.enter_context(atomic_write(path, sync=True)) for split, path in names.items()}
        for split in paths:
            done = 0
            for line in _lines(paths[split]):
                shares_left = -(-(total - done) * 100 // (total * REST_PERCENT)) if split == "train" and cut else 100
                target = split if shares_left > len(cut) else cut[len(cut) - shares_left]
                files[target].write(line.replace("\0", "\ufffd").encode("utf-8", "replace"))
                done += len(line)
        for split, file in files.items():
            if not file.tell():
                why = f"too few lines to cut off a {split} split" if split in cut else f"no text in its {split} split"
                raise CorpusError(f"{data.name}: {why}", hint="Choose another data set.")
    return list(names.values())


def _lines(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the lines of all rows, each with its line feed."""
    for path in paths:
        for text in read_texts(path):
            yield from iter_lines(as_line(text))


def choose_files(repository: Repository, data: HubData) -> dict[str, list[str]]:
    """Return the Parquet files of each split that a data set has: as its card says, else as their names say.

    Raises CorpusError if there is no train split, or several configurations and none was chosen.
    """
    names = sorted(name for name in repository.sizes if name.endswith(".parquet"))
    configurations = {
        str(each["config_name"]): each
        for each in repository.configurations
        if isinstance(each, dict) and each.get("config_name") and (each.get("data_files") or each.get("data_dir"))
    }
    if configurations:
        chosen = _choose(data, list(configurations), [n for n, c in configurations.items() if c.get("default") is True])
        splits = _splits_of_card(configurations[chosen], names)
    else:
        folders = list(dict.fromkeys(map(_configuration_of, names)))
        chosen = _choose(data, folders, [])
        splits = _splits_of_names([name for name in names if _configuration_of(name) == chosen])
    if not splits.get("train"):
        found = ", ".join(splits) or "no Parquet files"
        raise CorpusError(
            f"{data.name}: no train split in Parquet files, found {found}", hint="Choose another data set."
        )
    return {split: list(dict.fromkeys(splits[split])) for split in SPLITS if splits.get(split)}


def _choose(data: HubData, names: Sequence[str], default: Sequence[str]) -> str:
    """Return the configuration to use. Raises CorpusError if there is none, or no way to choose."""
    if data.configuration is not None:
        if data.configuration in names:
            return data.configuration
        problem = f"has no configuration {data.configuration!r}"
    elif len(names) == 1:
        return names[0]
    elif default or "default" in names:
        return [*default, "default"][0]
    else:
        problem = f"has {len(names):,} configurations" if names else "has no Parquet files"
    shown = ", ".join(name[:60] for name in names[:12]) + (", …" if len(names) > 12 else "")
    hint = f"Choose one, as in hub:{data.repository}/{names[0][:60]}. It has: {shown}" if any(names) else None
    raise CorpusError(f"{data.repository}: {problem}", hint=hint or "Choose another data set.")


def _splits_of_card(configuration: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split of a configuration in a card."""
    files = configuration.get("data_files")
    folder = str(configuration.get("data_dir") or "").strip("/")
    inside = [name for name in names if not folder or name.startswith(f"{folder}/")]
    entries = files if isinstance(files, list) else [files] if files else []
    splits: dict[str, list[str]] = {}
    plain: list[str] = []
    for entry in entries:
        split, patterns = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (None, entry)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            wanted = f"{folder}/{pattern}" if folder else str(pattern)
            found = [name for name in names if fnmatchcase(name, wanted)]
            if split is None:
                plain += found
            else:
                splits.setdefault(str(split), []).extend(found)
    if not splits:
        return _splits_of_names(plain if entries else inside)
    known: dict[str, list[str]] = {}
    for split in SPLITS:
        name = next((n for n in splits if n == split), None) or next((n for n in splits if _split_of(n) == split), None)
        if name is not None:
            known[split] = splits[name]
    if not known and len(splits) == 1:
        known["train"] = next(iter(splits.values()))
    return known


def _splits_of_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split by their names; if none names a split, all are the train split."""
    splits: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        split = _split_of(file) or _split_of(folder)
        if split:
            splits.setdefault(split, []).append(name)
    return splits or ({"train": list(names)} if names else {})


def _split_of(text: str) -> str | None:
    words = re.findall("[a-z]+", text.lower())
    return next((split for split, known in SPLIT_WORDS.items() if set(known) & set(words)), None)


def _configuration_of(name: str) -> str:
    """Return the configuration to which a file belongs by its name: its first folder, unless that names a split."""
    first, slash, _ = name.partition("/")
    return first if slash and first != "data" and not _split_of(first) else "default"
