"""Reads one column of text from Apache Parquet files, a few rows at a time.

Needs pyarrow (the extra `parquet`), which is imported when the first such file is read. Column chunks are streamed, not
loaded, so memory is bounded by the pages of the file and its longest documents, whatever the size of its row groups.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt.config import RequestError
from minigpt.data.text import reading

ROWS = 64  # decoded at once
BUFFER_BYTES = 1 << 20


def parquet_texts(path: Path, column: str) -> Iterator[tuple[int, str]]:
    """(row number from 1, text) of a parquet file. RequestError names the row, or what is wrong with the file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RequestError(f'{path} is a parquet file, which needs pyarrow: pip install "minigpt[parquet]"') from None
    number = 0
    with reading(path), path.open("rb") as raw, _damage(path, pyarrow.ArrowException):
        file = pyarrow.parquet.ParquetFile(
            raw, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )
        _check_column(file.schema_arrow, column, path, pyarrow.types)
        for batch in file.iter_batches(ROWS, columns=[column], use_threads=False):
            for value in batch.column(0):
                number += 1
                yield number, _text(value, column, f"{path} row {number:,}")


@contextmanager
def _damage(path: Path, failure: type[Exception]) -> Iterator[None]:
    """Turns what pyarrow says of a damaged file into one sentence."""
    try:
        yield
    except (failure, OSError) as error:
        said = " ".join(str(error).split())
        raise RequestError(f"{path} is a damaged or incomplete parquet file ({said.rstrip('.')})") from None


def _check_column(schema: Any, column: str, path: Path, types: Any) -> None:
    if column not in schema.names:
        names = ", ".join(schema.names) or "none"
        raise RequestError(f"{path} has no column {column!r} (its columns: {names}); set the source's `field`")
    kind = schema.field(column).type
    plain = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain)):
        raise RequestError(f"{path}: column {column!r} holds no text but {kind}; set the source's `field`")


def _text(value: Any, column: str, where: str) -> str:
    try:
        text: str | None = value.as_py()
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} is not UTF-8 text: byte {error.start} of {column!r} {error.reason}") from None
    if text is None:
        raise RequestError(f"{where}: column {column!r} is null where text is needed")
    return text
