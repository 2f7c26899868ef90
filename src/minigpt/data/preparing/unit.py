"""What is prepared together, and how its documents are cut into blocks, batches and pieces.

A unit is all sources of a concatenation, or one source of a mixture, or one source of validation text. Its documents
are read in order. Blocks that are there already, or that another part of the work makes, are read past: whole files of
them are not even opened.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.config import DataConfig
from minigpt.data.preparing import blocks
from minigpt.data.preparing.blocks import BlockFacts, BlockId, Place
from minigpt.data.preparing.duplicates import first_copies
from minigpt.data.preparing.long_text import LongText, cut_text
from minigpt.data.preparing.splits import SEPARATOR, Survey, boundary
from minigpt.data.reading.sources import AnySource, Document, documents, file_count
from minigpt.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 18  # encoded at once by one thread: small enough to keep all of them busy on a short text


@dataclass(frozen=True)
class Unit:
    """Sources whose documents follow each other, and the rules by which they become tokens.

    fraction: share of the characters, at the end, that is kept for validation; None means that nothing is cut off.
    first_documents: use so many documents alone, the first ones; None means all.
    """

    sources: tuple[AnySource, ...]
    fraction: float | None
    append_eot: bool
    max_tokens: int | None
    min_tokens: int | None
    deduplicate: bool
    shard_tokens: int
    first_documents: int | None = None

    @classmethod
    def of(cls, data: DataConfig, sources: Iterable[AnySource], fraction: float | None) -> "Unit":
        """The unit of some sources under the rules of a config."""
        return cls(
            tuple(sources),
            fraction,
            data.append_eot,
            data.max_document_tokens,
            data.min_document_tokens,
            data.deduplicate,
            data.shard_tokens,
        )


@dataclass(frozen=True)
class Part:
    """Part `index` (from 0) of `count`: the blocks that one process, or one machine, makes."""

    index: int
    count: int


WHOLE = Part(0, 1)


class Placed(NamedTuple):
    """A document and the block that it belongs to.

    `whole` says that it is all the text of its unit, or one half of it, so that no end-of-text token follows; `before`
    is how many characters of the same text come before this half.
    """

    document: Document
    block: BlockId
    ends_block: bool
    ends_file: bool
    whole: bool = False
    before: int = 0


class Piece(NamedTuple):
    """A document, or a part of a long one that may be encoded by itself; `start` is its first character there."""

    placed: Placed
    text: str
    start: int
    is_last: bool


def separator_of(tokenizer: Tokenizer) -> str | None:
    """What divides the documents of a plain text for this tokenizer, besides the source's own separator."""
    return SEPARATOR if SEPARATOR in tokenizer.special_tokens else None


class UnitReader:
    """Reads the documents of a unit as pieces to encode.

    `position` is how far it is: number of the source, of the file in it, characters of that file; `characters` are all.
    """

    def __init__(self, unit: Unit, tokenizer: Tokenizer, cache: Path, scratch: Path, part: Part = WHOLE) -> None:
        self._unit, self._tokenizer, self._cache, self._scratch = unit, tokenizer, cache, scratch
        self._separator = separator_of(tokenizer)
        self._part = part
        self._counts = [file_count(source, cache) for source in unit.sources]
        self._bases = [0, *accumulate(self._counts)]
        self._single = sum(self._counts) == 1
        self.position, self.characters = (0, 0, 0), 0
        self._by_file = part.count > 1 and sum(self._counts) >= 2 * part.count

    def document(self, source: int, place: Place) -> Document | None:
        """The first document of a source from a place on."""
        found = documents(self._unit.sources[source], self._cache, self._separator, start=place)
        return next(found, None)

    def batches(self, known: Mapping[BlockId, BlockFacts]) -> Iterator[list[Piece]]:
        """Lists of about BATCH_CHARACTERS characters of the blocks to be made: those of this part but for `known`."""
        batch: list[Piece] = []
        size = 0
        for piece in self._pieces(known):
            batch.append(piece)
            size += len(piece.text)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _pieces(self, known: Mapping[BlockId, BlockFacts]) -> Iterator[Piece]:
        long_text = None
        if self._single and self._unit.max_tokens is None and not known:
            long_text = LongText.find(self._unit.sources[0], self._cache, self._tokenizer, self._separator)
        if long_text is not None:
            if self._is_mine((0, 0, 0)):
                yield from self._long(long_text)
            return
        for placed in self._placed(known):
            if placed.block in known or not self._is_mine(placed.block):
                continue
            text, start = placed.document.text, 0
            for piece in pieces_of(text, self._tokenizer):
                yield Piece(placed, piece, start, start + len(piece) == len(text))
                start += len(piece)

    def _long(self, text: LongText) -> Iterator[Piece]:
        """A text that is too long to be held, otherwise as `_whole`."""
        document = Document("", str(text.path), is_stream=True)
        cut = 0
        if self._unit.fraction is not None:
            cut = boundary(Survey(1, text.characters, True), self._unit.fraction)
        for begin, end in [(0, cut), (cut, text.characters)] if cut else [(0, text.characters)]:
            ends = end == text.characters
            placed = Placed(document, (0, 0, 0), ends_block=ends, ends_file=ends, whole=True, before=begin)
            for piece, start, is_last in text.pieces(begin, end, BATCH_CHARACTERS, self._tokenizer):
                self.characters += len(piece)
                self.position = (0, 0, self.characters)
                yield Piece(placed, piece, start, is_last)

    def _is_mine(self, block: BlockId) -> bool:
        """Whether this part makes a block: whole files are dealt out where there are many, else the blocks of each."""
        source, file, number = block
        return (self._bases[source] + file + (0 if self._by_file else number)) % self._part.count == self._part.index

    def _placed(self, known: Mapping[BlockId, BlockFacts]) -> Iterator[Placed]:
        """Every document that has to be looked at, with its block. A document is held until the next one is there."""
        finished, reached = _progress(known)
        started: dict[tuple[int, int], int] = {}  # files that are read from a later block on
        texts = self._documents(finished, reached, started)
        if self._unit.deduplicate:
            texts = first_copies(texts, self._scratch)
        held: tuple[int, Document] | None = None
        number = size = read = 0
        file = (-1, -1)
        for upcoming in chain(islice(texts, self._unit.first_documents), [None]):
            if held is not None:
                source, document = held
                if file != (source, document.place[0]):
                    file = source, document.place[0]
                    number, size = started.get(file, 0), 0
                    read = sum(known[(*file, earlier)].characters for earlier in range(number))
                if self._single and document.is_stream:
                    yield from self._whole(document)
                    return
                size += len(document.text)
                read += len(document.text)
                self.characters += len(document.text)
                self.position = (*file, read)
                ends_file = upcoming is None or file != (upcoming[0], upcoming[1].place[0])
                ends_block = ends_file or size >= blocks.BLOCK_CHARACTERS
                yield Placed(document, (*file, number), ends_block, ends_file)
                if ends_block:
                    number, size = number + 1, 0
            held = upcoming

    def _documents(
        self, finished: set[tuple[int, int]], reached: dict[tuple[int, int], tuple[int, Place]], started: dict[Any, int]
    ) -> Iterator[tuple[int, Document]]:
        """(number of the source, document) of all sources, without the files that are finished or another part's.

        Everything is read where it depends on all that comes before whether a document is wanted.
        """
        depends = self._unit.deduplicate or self._unit.first_documents is not None
        for source, given in enumerate(self._unit.sources):
            if depends or not (finished or reached or self._by_file):
                found = documents(given, self._cache, self._separator)
            else:
                wanted = partial(self._is_wanted, source, finished)
                first = next(number for number in count() if wanted(number) or number >= self._counts[source])
                start = (first, 0)
                if (source, first) in reached:
                    started[(source, first)], start = reached[(source, first)]
                found = documents(given, self._cache, self._separator, start=start, files=wanted)
            for document in found:
                yield source, document

    def _is_wanted(self, source: int, finished: set[tuple[int, int]], file: int) -> bool:
        """Whether a file is to be read."""
        return (source, file) not in finished and (not self._by_file or self._is_mine((source, file, 0)))

    def _whole(self, document: Document) -> Iterator[Placed]:
        """The only text of the unit, cut at the very character where validation begins."""
        cut = 0
        if self._unit.fraction is not None:
            cut = boundary(Survey(1, len(document.text), True), self._unit.fraction)
            first = replace(document, text=document.text[:cut])
            yield Placed(first, (0, 0, 0), ends_block=False, ends_file=False, whole=True)
        rest = replace(document, text=document.text[cut:])
        yield Placed(rest, (0, 0, 0), ends_block=True, ends_file=True, whole=True, before=cut)


def _progress(
    known: Mapping[BlockId, BlockFacts],
) -> tuple[set[tuple[int, int]], dict[tuple[int, int], tuple[int, Place]]]:
    """(source, file) of the files of which all blocks are there; of others the first block that is not, and its place.

    `known` is in the order of the blocks.
    """
    finished: set[tuple[int, int]] = set()
    reached: dict[tuple[int, int], tuple[int, Place]] = {}
    for (source, file, number), facts in known.items():
        if number == (reached[(source, file)][0] if (source, file) in reached else 0):
            reached[(source, file)] = (number + 1, facts.after)
            if facts.ends_file:
                finished.add((source, file))
    return finished, reached


def pieces_of(text: str, tokenizer: Tokenizer) -> Iterable[str]:
    """Cut a long text only where that cannot change its ids; otherwise it stays whole."""
    return cut_text(text, BATCH_CHARACTERS, tokenizer)
