"""Reads columns of text from Apache Parquet and Arrow files, a few rows at a time.

Needs pyarrow (the extra `parquet`), which is imported when the first such file is read. Column chunks of a parquet file
are streamed, not loaded, so memory is bounded by the pages of the file and its longest documents, whatever the size of
its row groups. An Arrow file (.arrow, .feather, .ipc: the file format and the stream) is read a record batch at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt.config import RequestError
from minigpt.data.reading.fields import OR_REPLACE, Fields
from minigpt.data.reading.text import reading

ROWS = 64  # decoded at once
BUFFER_BYTES = 1 << 20
ARROW_MAGIC, FEATHER1_MAGIC = b"ARROW1", b"FEA1"


def parquet_texts(path: Path, fields: Fields, start: int = 0) -> Iterator[tuple[int, str]]:
    """(row number from 0, text) of a parquet file, from row `start` on; whole row groups before it are not read.

    RequestError names the row, counted from 1, or what is wrong with the file.
    """
    pyarrow = _pyarrow(path, "a parquet file")
    with reading(path), path.open("rb") as raw, _damage(path, "parquet", pyarrow.ArrowException):
        file = pyarrow.parquet.ParquetFile(
            raw, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )
        _check_columns(file.schema_arrow, fields, path, pyarrow.types)
        group, number = 0, 0
        while group < file.num_row_groups and number + file.metadata.row_group(group).num_rows <= start:
            number += file.metadata.row_group(group).num_rows
            group += 1
        groups = list(range(group, file.num_row_groups))
        for batch in file.iter_batches(ROWS, row_groups=groups, columns=fields.names, use_threads=False):
            yield from _texts(batch, number, start, fields, path)
            number += batch.num_rows


def arrow_texts(path: Path, fields: Fields, start: int = 0) -> Iterator[tuple[int, str]]:
    """(row number from 0, text) of an Arrow file from row `start` on; otherwise as `parquet_texts`."""
    pyarrow = _pyarrow(path, "an Arrow file")
    with reading(path), path.open("rb") as raw:
        magic = raw.read(len(ARROW_MAGIC))
    if magic.startswith(FEATHER1_MAGIC):
        raise RequestError(f"{path} has Feather's first format; write it anew with pyarrow.feather.write_feather")
    is_file = magic == ARROW_MAGIC
    opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
    with reading(path), _damage(path, "Arrow", pyarrow.ArrowException), pyarrow.OSFile(str(path)) as raw:
        schema = opened(raw).schema
        _check_columns(schema, fields, path, pyarrow.types)
        wanted = pyarrow.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in fields.names])
        raw.seek(0)
        number = 0
        for batch in _batches(opened(raw, options=wanted), is_file):
            _check_offsets(batch, pyarrow)
            yield from _texts(batch, number, start, fields, path)
            number += batch.num_rows


def _pyarrow(path: Path, what: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise RequestError(f'{path} is {what}, which needs pyarrow: pip install "minigpt[parquet]"') from None
    return pyarrow


@contextmanager
def _damage(path: Path, kind: str, failure: type[Exception]) -> Iterator[None]:
    """Turns what pyarrow says of a damaged file into one sentence."""
    try:
        yield
    except (failure, OSError) as error:
        said = " ".join(str(error).split())
        raise RequestError(f"{path} is a damaged or incomplete {kind} file ({said.rstrip('.')})") from None


def _check_columns(schema: Any, fields: Fields, path: Path, types: Any) -> None:
    fields.require(schema.names, str(path), "column")
    for name in fields.names:
        if schema.names.count(name) > 1:
            raise RequestError(f"{path} has {schema.names.count(name)} columns of the name {name!r}")
        kind = schema.field(name).type
        plain = kind.value_type if types.is_dictionary(kind) else kind
        is_text = types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain)
        if fields.field is not None and not is_text:
            raise RequestError(f"{path}: column {name!r} holds no text but {kind}; set the source's `field`")
        if types.is_nested(plain) or types.is_binary(plain) or types.is_large_binary(plain):
            raise RequestError(f"{path}: column {name!r} holds {kind}, which a template cannot put into a text")


def _batches(reader: Any, is_file: bool) -> Iterator[Any]:
    if is_file:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from reader


def _check_offsets(batch: Any, pyarrow: Any) -> None:
    """ArrowInvalid for texts that would begin or end outside the file: Arrow has no checksums, and would read there."""
    bytes_of = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    for column in batch.columns:  # as bytes, because what is no UTF-8 is a matter of its own
        column.view(bytes_of.get(column.type, column.type)).validate(full=True)


def _texts(batch: Any, number: int, start: int, fields: Fields, path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a record batch whose first row is row `number` of the file, from row `start` of the file on."""
    names, columns = batch.schema.names, batch.columns
    for at in range(max(0, start - number), batch.num_rows):
        where = f"{path} row {number + at + 1:,}"
        row = {name: _value(column[at], name, fields, where) for name, column in zip(names, columns, strict=True)}
        yield number + at, fields.text(row, where, "column")


def _value(scalar: Any, name: str, fields: Fields, where: str) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        if fields.replace:
            text = getattr(scalar, "value", scalar)  # of a dictionary, the text itself
            return text.as_buffer().to_pybytes().decode("utf-8", "replace")
        raise RequestError(
            f"{where} is not UTF-8 text: byte {error.start} of {name!r} {error.reason}; {OR_REPLACE}"
        ) from None
