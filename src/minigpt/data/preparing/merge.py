"""Puts the blocks of a unit, in their order, into the shards of a folder, and finds where validation begins.

The rule is that of splits.py: of n characters training gets the first `int(n * (1 - fraction))`, and the document
in which that falls; only if it is the last one it is cut there, and its two halves are encoded again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minigpt.config import RequestError
from minigpt.data.dataset import Tokens, token_dtype
from minigpt.data.preparing.blocks import Block, BlockId
from minigpt.data.preparing.encoding import encode_arrays
from minigpt.data.preparing.folder import META, FolderMeta, ShardEntry, SplitEntry
from minigpt.data.preparing.shards import ShardWriter, TokenShard
from minigpt.data.preparing.splits import Survey, boundary
from minigpt.data.preparing.unit import Unit, UnitReader
from minigpt.data.reading.sources import describe_sources
from minigpt.tokenizer import Tokenizer

Blocks = Mapping[BlockId, Block]  # all of a unit, in their order


def merge(blocks: Blocks, unit: Unit, reader: UnitReader, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the shards and meta.json of a unit into an empty folder.

    Raises RequestError for an empty unit or split, DamagedBlockError for a block that must be made again.
    """
    what = describe_sources(unit.sources)
    if not blocks:
        raise RequestError(f"{what} holds no text: it is empty or all white space")
    if not any(block.facts.documents for block in blocks.values()):
        raise RequestError(f"data.min_document_tokens={unit.min_tokens} leaves out every document of {what}")
    plan = _plan(blocks, unit, reader, tokenizer)
    output = FolderWriter(folder, tokenizer, unit.shard_tokens)
    try:
        base = 0
        for block in blocks.values():
            starts, at = _starts(block), base
            for ids in block.chunks():
                for split, begin, end in plan.ranges:
                    low, high = max(begin, at), min(end, at + len(ids))
                    if low < high:
                        inside = starts[slice(*np.searchsorted(starts, [low - base, high - base]))]
                        output.write(split, ids[low - at : high - at], inside - (low - base))
                at += len(ids)
            base = at
        for split, ids in plan.tail:
            output.write(split, ids, np.zeros(min(1, len(ids)), np.int64))
        for split in plan.splits:
            if not output.count(split):
                raise RequestError(f"{what} gives no tokens at all for its part {split!r}")
        output.close()
    finally:
        output.abort()


class FolderWriter:
    """Writes a folder of shards whose splits follow each other."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._shards = ShardWriter(folder, tokenizer.vocab_size, tokenizer.fingerprint, shard_tokens)
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._splits: dict[str, _Split] = {}

    def write(self, split: str, ids: Tokens, starts: Tokens) -> None:
        """More tokens of a split, the one that was written last or a new one; documents begin at `starts` in `ids`."""
        known = self._splits.setdefault(split, _Split(self._shards.n_tokens))
        ids = np.ascontiguousarray(ids, self._dtype)
        known.ids.update(ids.data)
        known.starts.update((starts + known.tokens).astype("<i8").tobytes())
        known.tokens += len(ids)
        known.documents += len(starts)
        self._shards.append(ids, starts)

    def count(self, split: str) -> int:
        """Tokens that a split has so far."""
        return self._splits[split].tokens if split in self._splits else 0

    def close(self) -> None:
        """Finish the shards, and write meta.json."""
        entries = []
        for path in self._shards.close():
            shard = TokenShard(path)
            size = path.stat().st_size
            entries.append(ShardEntry(path.name, shard.n_tokens, shard.n_documents, size, shard.content_sha256))
        splits = {name: split.entry(self._dtype.name) for name, split in self._splits.items()}
        meta = FolderMeta(
            self._tokenizer.vocab_size,
            self._tokenizer.fingerprint,
            self._dtype.name,
            self._tokenizer.eot_id,
            tuple(entries),
            splits,
        )
        (self._folder / META).write_text(meta.to_json(), encoding="utf-8")

    def abort(self) -> None:
        """Close what is open."""
        self._shards.abort()


class _Split:
    """What is known of a split while it is written."""

    def __init__(self, begin: int) -> None:
        self.begin, self.tokens, self.documents = begin, 0, 0
        self.ids, self.starts = hashlib.sha256(), hashlib.sha256()

    def entry(self, dtype: str) -> SplitEntry:
        both = hashlib.sha256(f"{dtype} {self.ids.hexdigest()} {self.starts.hexdigest()}".encode())
        return SplitEntry(self.begin, self.begin + self.tokens, self.documents, both.hexdigest())


@dataclass
class _Plan:
    """Which tokens of the blocks go where: (split, begin, end) in order; then the ids of documents cut in two."""

    ranges: list[tuple[str, int, int]]
    tail: list[tuple[str, NDArray[np.uint32]]] = field(default_factory=list)

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(dict.fromkeys([name for name, *_ in self.ranges] + [name for name, _ in self.tail]))


def _plan(blocks: Blocks, unit: Unit, reader: UnitReader, tokenizer: Tokenizer) -> _Plan:
    facts = [block.facts for block in blocks.values()]
    tokens = sum(f.tokens for f in facts)
    characters = sum(f.characters for f in facts)
    (only, *others) = [f for f in facts if f.documents]
    is_plain = not others and only.documents == 1 and only.plain
    if unit.fraction is None:
        return _Plan([("all", 0, tokens - 1 if is_plain and only.ends else tokens)])  # nothing follows a single text
    cut = boundary(Survey(sum(f.documents for f in facts), characters, is_plain), unit.fraction)
    if (at := _first_document_from(blocks, cut)) is not None:
        return _Plan([("train", 0, at), ("val", at, tokens)])
    start, tail = _last_document(blocks, unit, reader, tokenizer, cut, is_plain)
    return _Plan([("train", 0, start)], tail)


def _first_document_from(blocks: Blocks, cut: int) -> int | None:
    """The token with which the first document begins that begins at character `cut` or later; None if none does."""
    base = character = 0
    for block in blocks.values():
        if block.facts.documents and character + block.facts.characters >= cut:
            starts, sizes = block.table()
            begins = character + np.concatenate([[0], np.cumsum(sizes)])
            number = int(np.searchsorted(begins[:-1], cut))
            if number < len(starts):
                return base + int(starts[number])
        base += block.facts.tokens
        character += block.facts.characters
    return None


def _last_document(
    blocks: Blocks, unit: Unit, reader: UnitReader, tokenizer: Tokenizer, cut: int, is_plain: bool
) -> tuple[int, list[tuple[str, NDArray[np.uint32]]]]:
    """Where the last document begins, and the ids of its two halves, cut at character `cut` of all text."""
    bases = [0, *accumulate(block.facts.tokens for block in blocks.values())]
    characters = sum(block.facts.characters for block in blocks.values())
    (source, _, _), block, base = [
        (place, block, base) for (place, block), base in zip(blocks.items(), bases, strict=False) if block.facts.kept
    ][-1]
    starts, sizes = block.table()
    assert block.facts.kept is not None
    document = reader.document(source, block.facts.kept)
    if document is None or len(document.text) != sizes[-1]:
        raise RequestError(f"{describe_sources(unit.sources)} changed while it was being tokenized")
    inside = cut - (characters - int(sizes[-1]))
    eot = [] if is_plain or not unit.append_eot or tokenizer.eot_id is None else [tokenizer.eot_id]
    halves = encode_arrays(tokenizer, [document.text[:inside], document.text[inside:]])
    ended = [np.concatenate([ids[: unit.max_tokens], np.array(eot, np.uint32)]) for ids in halves]
    return base + int(starts[-1]), list(zip(("train", "val"), ended, strict=True))


def _starts(block: Block) -> NDArray[np.int64]:
    """Tokens of the block at which documents begin, without documents that have no tokens."""
    starts = block.table()[0]
    lengths = np.diff(starts, append=block.facts.tokens)
    return starts[lengths > 0]
