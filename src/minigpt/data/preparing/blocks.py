"""Block files: the ids of a few million characters of text, kept while the rest is still being tokenized.

A block is a run of whole documents of one file of a source, which ends with the first document that brings it to
BLOCK_CHARACTERS characters, or with the file. So where blocks begin depends on the text alone, and any number of
processes, now or after a kill, make the same ones. A block file is written under a temporary name and renamed; it is

    ids (uint16 or uint32) | token at which each document begins, characters of each document (int64) | JSON | footer

with the lengths and CRC-32s of what is before them in the JSON and the footer. Block files are not forced to the disk:
one that a power failure damaged is noticed by its CRCs, and made again.
"""

import json
import os
import re
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from minigpt.data.dataset import Tokens, token_dtype
from minigpt.storage.atomic import temporary_name

BLOCK_CHARACTERS = 1 << 24  # a second or so of work is lost with a block that was being made
FLUSH_TOKENS = 1 << 20  # ids that are collected before they are written
CHUNK_TOKENS = 1 << 20  # ids that are read at once
_FOOTER = struct.Struct("<II4s")  # length and CRC-32 of the JSON, magic
_MAGIC = b"mgb1"
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.block")

BlockId = tuple[int, int, int]  # number of the source in the unit, of the file in the source, of the block in the file
Place = tuple[int, int]  # number of the file within the source, number of the record within the file


@dataclass(frozen=True)
class BlockFacts:
    """What a block file says of itself.

    `after` is the place at which the next block of the file begins, unless this is its last (`ends_file`). `kept` is
    the place of the last document that was kept, None if all were left out. `plain` says that the only document is a
    whole plain text, `ends` that each document is followed by the end-of-text token.
    """

    tokens: int
    documents: int
    characters: int
    after: Place
    kept: Place | None
    ends_file: bool
    plain: bool
    ends: bool
    ids_crc: int
    table_crc: int


class DamagedBlockError(Exception):
    """The block file `path` is not what it says; it is to be made again."""

    def __init__(self, path: Path, what: object) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path


class BlockWriter:
    """Writes one block file. Call `add` with the ids of a document, `end_document`, ..., then `finish`."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self._temporary = path.parent / temporary_name("tmp", path.name)
        self._file: BinaryIO = self._temporary.open("xb")
        self._vocab_size, self._dtype = vocab_size, token_dtype(vocab_size)
        self._waiting: list[NDArray[np.uint32]] = []
        self._n_waiting = self._crc = 0
        self._starts, self._characters = array("q"), array("q")
        self._start = self.n_tokens = 0

    def add(self, ids: NDArray[np.uint32]) -> None:
        """More ids of the document. ValueError for one outside the vocabulary (a tokenizer that broke its promise)."""
        self._waiting.append(ids)
        self._n_waiting += len(ids)
        self.n_tokens += len(ids)
        if self._n_waiting >= FLUSH_TOKENS:
            self._flush()

    def end_document(self, characters: int) -> None:
        """The document is over; it had so many characters."""
        self._starts.append(self._start)
        self._characters.append(characters)
        self._start = self.n_tokens

    def finish(self, after: Place, kept: Place | None, *, ends_file: bool, plain: bool, ends: bool) -> BlockFacts:
        """Write the rest and put the file in its place."""
        self._flush()
        table_crc = self._write(np.array([self._starts, self._characters], "<i8"))
        characters, crcs = sum(self._characters), (self._crc, table_crc)
        facts = BlockFacts(self.n_tokens, len(self._starts), characters, after, kept, ends_file, plain, ends, *crcs)
        text = json.dumps(asdict(facts)).encode()
        self._file.write(text + _FOOTER.pack(len(text), zlib.crc32(text), _MAGIC))
        self._file.close()
        os.replace(self._temporary, self.path)
        return facts

    def abort(self) -> None:
        """Leave nothing of an unfinished file."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._n_waiting:
            return
        ids = np.concatenate(self._waiting)
        if ids.max() >= self._vocab_size:
            raise ValueError(f"the tokenizer gave an id outside its vocabulary of {self._vocab_size}")
        self._crc = self._write(ids.astype(self._dtype), self._crc)
        self._waiting, self._n_waiting = [], 0

    def _write(self, values: Tokens, crc: int = 0) -> int:
        """Write values; the CRC-32 of what has `crc` so far and of these."""
        raw = values.tobytes()
        self._file.write(raw)
        return zlib.crc32(raw, crc)


class Block:
    """A block file opened for reading. DamagedBlockError if it is none."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self._dtype = token_dtype(vocab_size)
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _FOOTER.size))
                length, crc, magic = _FOOTER.unpack(file.read())
                file.seek(size - _FOOTER.size - length)
                text = file.read(length)
            if magic != _MAGIC or zlib.crc32(text) != crc:
                raise ValueError("another footer")
            known = json.loads(text)
            known |= {name: known[name] and tuple(known[name]) for name in ("after", "kept")}
            self.facts = BlockFacts(**known)
        except (OSError, ValueError, TypeError, KeyError, struct.error) as error:
            raise DamagedBlockError(path, error) from None
        self._table_at = self.facts.tokens * self._dtype.itemsize
        if size != self._table_at + 16 * self.facts.documents + length + _FOOTER.size:
            raise DamagedBlockError(path, "another size")

    def table(self) -> NDArray[np.int64]:
        """(2, documents): the token at which each document begins, and its characters. DamagedBlockError: damaged."""
        count = self.facts.documents
        table = np.fromfile(self.path, "<i8", 2 * count, offset=self._table_at)
        if zlib.crc32(table.data) != self.facts.table_crc:
            raise DamagedBlockError(self.path, "its content changed on the disk")
        return table.reshape(2, count)

    def chunks(self) -> Iterator[Tokens]:
        """The ids, a piece at a time. Raises DamagedBlockError at the end if they are damaged."""
        crc, left = 0, self.facts.tokens
        with self.path.open("rb") as file:
            while left:
                ids = np.fromfile(file, self._dtype, min(left, CHUNK_TOKENS))
                if not len(ids):
                    break
                crc = zlib.crc32(ids.data, crc)
                left -= len(ids)
                yield ids
        if crc != self.facts.ids_crc:
            raise DamagedBlockError(self.path, "its content changed on the disk")


def block_name(block: BlockId) -> str:
    """The name of a block's file."""
    return "{}-{}-{}.block".format(*block)


def find_blocks(folder: Path, vocab_size: int) -> dict[BlockId, Block]:
    """The blocks in a folder, in their order; damaged ones are removed."""
    found = {}
    for path in folder.iterdir():
        if match := _NAME.fullmatch(path.name):
            try:
                found[(int(match[1]), int(match[2]), int(match[3]))] = Block(path, vocab_size)
            except DamagedBlockError:
                path.unlink(missing_ok=True)  # another part may be faster
    return dict(sorted(found.items()))
