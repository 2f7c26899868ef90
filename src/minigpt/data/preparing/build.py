"""Turns the text of a unit into block files: reads, encodes on all cores, applies the rules for documents, writes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minigpt.config import RequestError
from minigpt.data.preparing.blocks import BlockFacts, BlockId, BlockWriter, Place, block_name
from minigpt.data.preparing.encoding import encode_arrays, encode_ordered
from minigpt.data.preparing.unit import Piece, Unit, UnitReader
from minigpt.tokenizer import Tokenizer


def make_blocks(
    unit: Unit,
    reader: UnitReader,
    tokenizer: Tokenizer,
    known: Mapping[BlockId, BlockFacts],
    folder: Path,
    workers: int,
    report: Callable[[int], None],
) -> list[BlockId]:
    """Write the blocks that are to be made (`known` are not) into `folder`; which they were.

    `report(tokens)` is called now and then with the number of tokens since the last call. RequestError for text that
    cannot be read or encoded, OSError for a full disk.
    """
    assembler = _Assembler(unit, tokenizer, folder)
    batches = encode_ordered(reader.batches(known), _texts, tokenizer, workers, refused=_refused(tokenizer))
    try:
        for batch, arrays in batches:
            before = assembler.n_tokens
            for piece, ids in zip(batch, arrays, strict=True):
                assembler.add(piece, ids)
            report(assembler.n_tokens - before)
    finally:
        assembler.abort()
        batches.close()
    return assembler.made


class _Assembler:
    """Puts encoded pieces together: to documents, by the rules for their length, and to blocks."""

    def __init__(self, unit: Unit, tokenizer: Tokenizer, folder: Path) -> None:
        self._folder, self._vocab_size = folder, tokenizer.vocab_size
        self._shortest = unit.min_tokens or 0
        self._room = self._longest = unit.max_tokens or (1 << 62)
        eot = tokenizer.eot_id if unit.append_eot else None
        self._end = None if eot is None else np.array([eot], np.uint32)
        self._writer: BlockWriter | None = None
        self._short: list[NDArray[np.uint32]] = []  # of a document that is not known to be long enough
        self._length = self._characters = 0  # of the document, as far as it was read
        self._kept: Place | None = None
        self.n_tokens = 0
        self.made: list[BlockId] = []

    def add(self, piece: Piece, ids: NDArray[np.uint32]) -> None:
        """The next piece."""
        if self._writer is None:
            self._writer = BlockWriter(self._folder / block_name(piece.placed.block), self._vocab_size)
            self._kept = None
        self._characters += len(piece.text)
        self._length += len(ids)
        if self._length < self._shortest and not piece.placed.whole:
            self._short.append(ids)
        else:
            for part in (*self._short, ids):
                self._write(part)
            self._short = []
        if piece.is_last:
            self._end_document(piece, self._writer)

    def abort(self) -> None:
        """Leave nothing of an unfinished block."""
        if self._writer is not None:
            self._writer.abort()

    def _write(self, ids: NDArray[np.uint32]) -> None:
        assert self._writer is not None
        if len(ids) > self._room:
            ids = ids[: self._room]
        self._room -= len(ids)
        self.n_tokens += len(ids)
        self._writer.add(ids)

    def _end_document(self, piece: Piece, writer: BlockWriter) -> None:
        placed = piece.placed
        file, record = placed.document.place
        ends = self._end is not None and not placed.whole
        if self._length >= self._shortest or placed.whole:
            if ends:
                writer.add(self._end)  # type: ignore[arg-type]
            writer.end_document(self._characters)
            self._kept = (file, record)
        self._short, self._length, self._characters, self._room = [], 0, 0, self._longest
        if placed.ends_block:
            plain = placed.document.is_stream
            after = (file, record + 1)
            writer.finish(after, self._kept, ends_file=placed.ends_file, plain=plain, ends=ends)
            self._writer = None
            self.made.append(placed.block)


def _texts(batch: list[Piece]) -> list[str]:
    return [piece.text for piece in batch]


def _refused(tokenizer: Tokenizer) -> Callable[[list[Piece], RequestError], RequestError]:
    """Puts the name of the document in front of what the tokenizer says about it."""

    def reword(batch: list[Piece], error: RequestError) -> RequestError:
        for piece in batch:
            try:
                encode_arrays(tokenizer, [piece.text])
            except RequestError as cause:
                start = piece.placed.before + piece.start
                counted = f", counted from character {start:,}" if start else ""
                return RequestError(f"{piece.placed.document.origin}{counted}: {cause}")
        return error

    return reword
