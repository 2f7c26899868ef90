"""Reads text from files, strictly: UTF-8 or an error that says where it stops being UTF-8.

Line ends are kept as they are, a byte-order mark at the beginning is dropped, and gzip is recognised by its first two
bytes (no UTF-8 text begins with them), whatever the file is called. Memory stays bounded by the longest document.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from minigpt.config import RequestError

CHUNK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
BOM = "\ufeff"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the ways in which reading `path` can fail into one sentence each (RequestError)."""
    try:
        yield
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder where a file is needed") from None
    except PermissionError:
        raise RequestError(f"{path} cannot be read: permission denied") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RequestError(f"{path} is a damaged or incomplete gzip file ({error})") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed if it is a gzip file."""
    with path.open("rb") as file:
        magic = file.read(len(GZIP_MAGIC))
        file.seek(0)
        if magic == GZIP_MAGIC:
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        elif path.suffix == ".gz" and magic:
            raise RequestError(f"{path} is named .gz but is not a gzip file")
        else:
            yield file


def _refuse_utf16(start: bytes, path: Path) -> None:
    """Says so if a file looks like UTF-16 or UTF-32, the usual reason for bytes that are not UTF-8 on Windows."""
    nul_share = [start[i::2].count(0) / max(1, len(start[i::2])) for i in (0, 1)]
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or max(nul_share) > 0.4 > 0.1 > min(nul_share):
        raise RequestError(f"{path} looks like UTF-16, not UTF-8; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")


def text_chunks(path: Path) -> Iterator[str]:
    """The text of a file, in pieces of about a million characters. RequestError names the byte that is not UTF-8."""
    with reading(path), open_bytes(path) as file:
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        fed, begun = 0, False
        while True:
            raw = file.read(CHUNK_BYTES)
            if fed == 0:
                _refuse_utf16(raw[:1024], path)
            if (nul := raw.find(0)) >= 0:
                raise RequestError(f"{path} is binary, not text: byte {fed + nul} is NUL")
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                at, byte = fed - held + error.start, error.object[error.start]
                raise RequestError(f"{path} is not UTF-8 text: byte {at} (0x{byte:02x}) {error.reason}") from None
            fed += len(raw)
            if text:
                yield text if begun else text.removeprefix(BOM)
                begun = True
            if not raw:
                return


def split_documents(chunks: Iterable[str], separator: str | None) -> Iterator[tuple[str, bool]]:
    """The texts between separators, as (text, whether the separator occurred so far); without one, all in one text.

    A separator that ends with a line break may lack it where the text ends, as last lines often do.
    """
    held: list[str] = []  # pieces of the document that is being read
    seen = False
    for chunk in chunks:
        if separator is None:
            held.append(chunk)
            continue
        if held:  # a separator may lie across the border: the last len - 1 characters are looked at again
            tail = held.pop()
            cut = max(0, len(tail) - len(separator) + 1)
            held.append(tail[:cut])
            chunk = tail[cut:] + chunk
        first, *rest = chunk.split(separator)
        held.append(first)
        for piece in rest:
            seen = True
            yield "".join(held), seen
            held = [piece]
    last = "".join(held)
    yield last if separator is None else last.removesuffix(separator.rstrip("\n")), seen


def has_surrogates(text: str) -> bool:
    """Whether the text holds a lone surrogate, which no UTF-8 file can."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def jsonl_texts(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of a JSON-lines file; blank lines are passed over. RequestError names the line."""
    with reading(path), open_bytes(path) as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path} line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                if number == 1:
                    _refuse_utf16(raw[:1024], path)
                raise RequestError(
                    f"{where} is not UTF-8 text: byte {error.start} of the line {error.reason}"
                ) from None
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == 1:
                    _refuse_utf16(raw[:1024], path)
                raise RequestError(f"{where} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise RequestError(f"{where} is not a JSON object but {type(row).__name__}")
            if field not in row:
                names = ", ".join(map(str, row)) or "none"
                raise RequestError(f"{where} has no field {field!r} (its fields: {names}); set the source's `field`")
            text = row[field]
            if not isinstance(text, str):
                raise RequestError(f"{where}: field {field!r} is not a string but {type(text).__name__}")
            if has_surrogates(text):
                raise RequestError(f"{where}: field {field!r} holds half of a surrogate pair, which is no character")
            yield number, text
