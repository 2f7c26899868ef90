"""Reads text from tables in CSV and TSV files, whose first row names the columns.

The form is RFC 4180's, which spreadsheets and pandas write: a field with the delimiter, a quote or a line break in it
stands between double quotes, and a quote within it is written twice.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from minigpt.config import RequestError
from minigpt.data.reading.fields import Fields
from minigpt.data.reading.text import text_chunks

MAX_FIELD = (1 << 31) - 1  # characters of one field; the library's own limit of 131,072 is less than a book


def csv_texts(path: Path, fields: Fields, start: int = 0) -> Iterator[tuple[int, str]]:
    """(row number from 0, without the header and empty lines; text) of a CSV file from row `start` on.

    RequestError names the row, counted from 1.
    """
    return _texts(path, "CSV", ",", fields, start)


def tsv_texts(path: Path, fields: Fields, start: int = 0) -> Iterator[tuple[int, str]]:
    """As `csv_texts`, with tabs between the fields."""
    return _texts(path, "TSV", "\t", fields, start)


def _texts(path: Path, kind: str, delimiter: str, fields: Fields, start: int) -> Iterator[tuple[int, str]]:
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(_lines(text_chunks(path, fields.errors)), delimiter=delimiter, strict=True)
    rows = (row for row in reader if row)
    try:
        header = next(rows, [])
        fields.require(header, str(path), "column")
        for name in fields.names:
            if header.count(name) > 1:
                raise RequestError(f"{path} has {header.count(name)} columns of the name {name!r}")
        for number, row in enumerate(rows):
            if number < start:
                continue
            where = f"{path} row {number + 1:,}"
            if len(row) != len(header):
                raise RequestError(
                    f"{where} (line {reader.line_num:,}) has {len(row)} fields, but the header has {len(header)}"
                )
            yield number, fields.text(dict(zip(header, row, strict=True)), where, "column")
    except csv.Error as error:
        raise RequestError(f"{path} is no {kind} file as of line {reader.line_num:,} ({error})") from None


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """The lines of a text with their ends; a line feed ends a line and nothing else does."""
    held: list[str] = []  # the beginning of a line that goes on in the next chunk
    for chunk in chunks:
        *whole, rest = chunk.split("\n")
        for line in whole:
            yield "".join([*held, line, "\n"])
            held = []
        held.append(rest)
    if last := "".join(held):
        yield last
