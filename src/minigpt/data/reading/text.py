"""Reads text and JSON lines from files, strictly: UTF-8 or an error that says where it stops being UTF-8.

Line ends are kept as they are, and a byte-order mark at the beginning is dropped. Files may be compressed. On request
what is not UTF-8 is replaced by U+FFFD instead. Memory stays bounded by the longest document.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt.config import RequestError
from minigpt.data.reading.compressed import open_bytes
from minigpt.data.reading.fields import OR_REPLACE, Fields

CHUNK_BYTES = 1 << 20
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


def _refuse_utf16(start: bytes, path: Path) -> None:
    """Says so if a file looks like UTF-16 or UTF-32, the usual reason for bytes that are not UTF-8 on Windows."""
    nul_share = [start[i::2].count(0) / max(1, len(start[i::2])) for i in (0, 1)]
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or max(nul_share) > 0.4 > 0.1 > min(nul_share):
        raise RequestError(f"{path} looks like UTF-16, not UTF-8; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")


def text_chunks(path: Path, errors: str = "strict") -> Iterator[str]:
    """The text of a file, in pieces of about a million characters. RequestError names the byte that is not UTF-8."""
    with reading(path), open_bytes(path) as file:
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
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
                raise RequestError(
                    f"{path} is not UTF-8 text: byte {at} (0x{byte:02x}) {error.reason}; {OR_REPLACE}"
                ) from None
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


def jsonl_texts(path: Path, fields: Fields, start: int = 0) -> Iterator[tuple[int, str]]:
    """(line number from 0, text) of a JSON-lines file from line `start` on; blank lines are passed over.

    RequestError names the line, counted from 1.
    """
    with reading(path), open_bytes(path) as file:
        for number, raw in enumerate(file):
            if number < start:
                continue
            where = f"{path} line {number + 1}"
            try:
                line = raw.decode("utf-8-sig" if number == 0 else "utf-8", fields.errors)
            except UnicodeDecodeError as error:
                if number == 0:
                    _refuse_utf16(raw[:1024], path)
                raise RequestError(
                    f"{where} is not UTF-8 text: byte {error.start} of the line {error.reason}; {OR_REPLACE}"
                ) from None
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == 0:
                    _refuse_utf16(raw[:1024], path)
                raise RequestError(f"{where} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise RequestError(f"{where} is not a JSON object but {type(row).__name__}")
            yield number, fields.text(row, where)
