"""Reads the documents of a streamed source as token ids: epoch after epoch, a little ahead, from any place on.

Reading happens in a thread, tokenizing in others (encoding.py). What comes out carries the place at which reading
goes on behind it, so nobody needs to know how far ahead they are: who stops, and begins again at the place behind the
last document that was used, gets the next one.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minigpt.config import RequestError
from minigpt.data.dataset import token_dtype
from minigpt.data.preparing.encoding import encode_arrays, encode_ordered
from minigpt.data.preparing.unit import BATCH_CHARACTERS, pieces_of
from minigpt.data.reading.sources import AnySource, Document, describe_sources, documents
from minigpt.tokenizer import Tokenizer

Tokens = NDArray[Any]  # (N,) uint16 or uint32
DOCUMENT_CHARACTERS = 64  # what a document costs beside its text, in characters: the first batch must come soon


class Place(NamedTuple):
    """Where a document is: in which epoch, which source of the unit, which file of the source, which record of that."""

    epoch: int = 0
    source: int = 0
    file: int = 0
    record: int = 0

    @property
    def begins_epoch(self) -> bool:
        return (self.source, self.file, self.record) == (0, 0, 0)


class Tokenized(NamedTuple):
    """A document's ids (None: the end of an epoch), and where reading goes on behind it."""

    ids: Tokens | None
    after: Place


class _Text(NamedTuple):
    """A document that was read (None: the end of an epoch), as pieces that may be encoded one by one."""

    document: Document | None
    pieces: list[str]
    after: Place


@dataclass(frozen=True)
class StreamUnit:
    """What is read as one text: all sources one after the other, or one source of a mixture.

    separator: the tokenizer's special token that divides documents, or None. eot: the id that ends each document, or
    None. held_out: so many documents at the beginning are not trained on. max_tokens, min_tokens: longer documents are
    cut off, shorter ones left out.
    """

    name: str
    sources: tuple[AnySource, ...]
    tokenizer: Tokenizer
    cache: Path
    separator: str | None
    eot: int | None = None
    held_out: int = 0
    max_tokens: int | None = None
    min_tokens: int | None = None
    workers: int = 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the ids."""
        return token_dtype(self.tokenizer.vocab_size).newbyteorder("=")

    def is_single_text(self) -> bool:
        """Whether there is but one document, and that a whole plain text. RequestError if there is none at all."""
        first = [document for document, _ in islice(self._epoch(Place()), 2)]
        if not first:
            raise RequestError(f"{describe_sources(self.sources)} holds no text: it is empty or all white space")
        return len(first) == 1 and first[0].is_stream

    def read(self, place: Place) -> Iterator[tuple[Document | None, Place]]:
        """The documents from `place` on, without end, each with the place behind it; None ends an epoch."""
        while True:
            yield from islice(self._epoch(place), self.held_out if place.begins_epoch else 0, None)
            place = Place(place.epoch + 1)
            yield None, place

    def _epoch(self, place: Place) -> Iterator[tuple[Document, Place]]:
        start = (place.file, place.record)
        for number, source in enumerate(self.sources[place.source :], start=place.source):
            for document in documents(source, self.cache, self.separator, start=start):
                file, record = document.place
                yield document, Place(place.epoch, number, file, record + 1)
            start = (0, 0)

    def finished(self, parts: list[NDArray[np.uint32]]) -> Tokens | None:
        """A document's ids from those of its pieces; None for one that is left out."""
        if self.min_tokens is not None and sum(map(len, parts)) < self.min_tokens:
            return None
        ids = np.concatenate([np.empty(0, np.uint32), *parts])[: self.max_tokens]
        if self.eot is not None:
            ids = np.append(ids, np.uint32(self.eot))
        return ids.astype(self.dtype) if len(ids) else None


class TokenizedDocuments:
    """The documents of a unit from a place on, tokenized ahead in the background until `close` (or nobody holds it)."""

    def __init__(self, unit: StreamUnit, place: Place) -> None:
        self._unit = unit
        self._closing = threading.Event()
        self._batches = encode_ordered(
            _read(unit, place, self._closing), _texts, unit.tokenizer, unit.workers, refused=partial(_blame, unit)
        )
        self._ready: Iterator[Tokenized] = iter(())

    def next(self) -> Tokenized:
        """The next document. Raises what reading or tokenizing it raised, RuntimeError after `close`."""
        while not self._closing.is_set():
            if (document := next(self._ready, None)) is not None:
                return document
            if (batch := next(self._batches, None)) is None:  # only when closed, or after an error: epochs have no end
                break
            self._ready = _finished(self._unit, *batch)
        raise RuntimeError("this stream was closed")

    def close(self) -> None:
        """Stop reading. May be called while another thread waits in `next`, which then raises."""
        self._closing.set()
        with contextlib.suppress(ValueError):  # that thread is inside the iterator, and leaves it at the next document
            self._batches.close()


def _read(unit: StreamUnit, place: Place, closing: threading.Event) -> Iterator[list[_Text]]:
    """Batches of about BATCH_CHARACTERS; the end of an epoch ends one. Runs in the reading thread."""
    batch: list[_Text] = []
    size = 0
    try:
        for document, after in unit.read(place):
            if closing.is_set():
                return
            pieces = [] if document is None else list(pieces_of(document.text, unit.tokenizer))
            batch.append(_Text(document, pieces, after))
            size += BATCH_CHARACTERS if document is None else DOCUMENT_CHARACTERS + len(document.text)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    except Exception:
        if batch:  # what comes before a fault is trained on first: where it is met depends on the text alone
            yield batch
        raise


def _finished(unit: StreamUnit, batch: list[_Text], arrays: list[NDArray[np.uint32]]) -> Iterator[Tokenized]:
    encoded = iter(arrays)
    for text in batch:
        ids = unit.finished(list(islice(encoded, len(text.pieces))))
        if text.document is None:
            yield Tokenized(None, text.after)
        elif ids is not None:
            yield Tokenized(ids, text.after)


def _blame(unit: StreamUnit, batch: list[_Text], error: RequestError) -> RequestError:
    """The tokenizer's error, with the name of the document that it is about."""
    for document, pieces, _ in batch:
        if document is None:
            continue
        try:
            encode_arrays(unit.tokenizer, pieces)
        except RequestError as cause:
            return RequestError(f"{document.origin}: {cause}")
    return error


def _texts(batch: list[_Text]) -> list[str]:
    return [piece for text in batch for piece in text.pieces]
