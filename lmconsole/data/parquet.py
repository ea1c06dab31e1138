"""Text in Parquet files, the format in which the Hugging Face Hub has data sets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmconsole.data.files import describe_content, size_limit
from lmconsole.errors import CorpusError
from lmconsole.files import open_file
from lmconsole.telemetry.host import MIB

_AGAIN_HINT = "Download the file again. If the hub has it like this, choose another data set."
ROWS_AT_ONCE = 64
"""Few, since a row can be a whole book."""


def read_texts(path: Path) -> Iterator[str]:
    """Yield the text of each row, in order; a missing one is empty.

    The text is the column ``text``, or the only column of strings. Memory is bounded by the text of a row group. Raises
    CorpusError if the file is damaged, has no such column, or a row group that does not fit into memory.
    """
    import pyarrow.parquet

    try:
        with open(open_file(path, follow=True), "rb") as opened:
            start = opened.read(64)
            if not start.startswith(b"PAR1"):
                raise CorpusError(f"{path}: expected a Parquet file, found {describe_content(start)}", hint=_AGAIN_HINT)
            with pyarrow.parquet.ParquetFile(opened, pre_buffer=False) as file:
                column = _text_column(file.schema_arrow, path)
                _check_size(file.metadata, column, path)
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column], use_threads=False):
                    for text in batch.column(0).to_pylist():
                        yield text or ""
    except CorpusError:
        raise
    except Exception as error:  # with damaged bytes, pyarrow raises almost anything
        if isinstance(error, OSError) and error.strerror:
            raise CorpusError(f"{path}: cannot be read: {error.strerror}") from None
        raise CorpusError(
            f"{path}: the Parquet file is damaged or truncated ({_first_line(error)})", hint=_AGAIN_HINT
        ) from None


def as_line(text: str) -> str:
    """Return the text of a row as one or more lines."""
    return text if text.endswith("\n") else f"{text}\n"


def _text_column(schema: Any, path: Path) -> str:
    from pyarrow import types

    def is_text(kind: Any) -> bool:
        if types.is_dictionary(kind):
            kind = kind.value_type
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

    columns = [field.name for field in schema if is_text(field.type)]
    if "text" in columns:
        return "text"
    if len(columns) == 1:
        return str(columns[0])
    found = ", ".join(f"{field.name[:60]} ({str(field.type)[:60]})" for field in list(schema)[:8]) or "none"
    raise CorpusError(
        f"{path}: no column `text`, and {'several columns' if columns else 'no column'} of strings: {found}",
        hint="Choose a data set with one text per row.",
    )


def _check_size(metadata: Any, column: str, path: Path) -> None:
    """Raise CorpusError if the text of a row group does not fit into memory. It is a bound for what a page of the file
    unpacks to, and for a row."""
    limit = size_limit()
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        parts = (row_group.column(number) for number in range(row_group.num_columns))
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema == column)
        if size > limit:
            raise CorpusError(
                f"{path}: row group {group} has {size // MIB:,} MiB of text, more than half of the memory available",
                hint="Use a machine with more memory, or another data set or configuration.",
            )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
