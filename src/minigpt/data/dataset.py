"""The token ids of a split: one long sequence over one or several memory-mapped files, or shards of a store."""

import bisect
import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minigpt.config import RequestError
from minigpt.data.document_starts import DocumentStarts, JoinedStarts, ListedStarts, PartStarts

SCAN_TOKENS = 1 << 22
MAX_UINT16_VOCAB = 1 << 16
PREFETCH_SHARE = 0.25  # of a part, or of what is asked for

Tokens = NDArray[Any]  # (N,) of an integer type
Starts = NDArray[np.int64] | Callable[[], NDArray[np.int64]] | DocumentStarts


class Part(Protocol):
    """What a dataset consists of: an array, or anything else with a length that `part[start:stop]` reads an array of.

    A part may have a method `prefetch(start, stop)`, which begins to fetch those tokens and returns at once.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, wanted: slice, /) -> Tokens: ...


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 (little-endian, as on disk) that holds every id of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= MAX_UINT16_VOCAB else "<u4")


class TokenDataset:
    """Token ids 0 ... len-1 of a split. Reading a part of it reads only that part from the disk.

    `parts` follow each other; usually they are memory-mapped one-dimensional integer arrays. `starts` says at which
    token each document begins (ascending; or a function that gives that when it is needed, or DocumentStarts), or is
    None where only the end-of-text tokens tell. `fingerprint` identifies the ids: it changes if and only if they do.
    `stretch` is how many tokens are best read together (a shard of a store), or None where that does not matter.
    Safe to be read from several threads.
    """

    stretch: int | None = None

    def __init__(
        self,
        parts: Sequence[Part],
        vocab_size: int,
        fingerprint: str,
        *,
        starts: Starts | None = None,
        eot_id: int | None = None,
        name: str = "tokens",
        stretch: int | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.eot_id = eot_id
        self.name = name
        self.stretch = stretch
        self._parts = [part for part in parts if len(part)]
        self._bounds = [0, *accumulate(len(part) for part in self._parts)]
        self._starts: DocumentStarts
        if starts is None:
            self._starts = ListedStarts(self._scanned)
        else:
            self._starts = ListedStarts(starts) if isinstance(starts, np.ndarray) or callable(starts) else starts
        self._dtype = token_dtype(vocab_size).newbyteorder("=")

    def __len__(self) -> int:
        return self._bounds[-1]

    def tokens(self, start: int, stop: int) -> Tokens:
        """Ids start ... stop-1 as uint16 or uint32 (stop - start,); read-only where no copy was needed."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} ... {stop} are not within 0 ... {len(self)} of {self.name}")
        pieces = []
        index = bisect.bisect_right(self._bounds, start) - 1
        while start < stop:
            base, end = self._bounds[index], min(stop, self._bounds[index + 1])
            pieces.append(np.asarray(self._parts[index][start - base : end - base]))
            start, index = end, index + 1
        if not pieces:
            return np.empty(0, self._dtype)
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return whole.astype(self._dtype, copy=False)

    def windows(self, starts: Sequence[int], length: int) -> NDArray[np.int64]:
        """The windows of `length` tokens that begin at `starts` (B,), as int64 (B, length)."""
        rows = np.empty((len(starts), length), np.int64)
        for row, start in zip(rows, starts, strict=True):
            row[:] = self.tokens(start, start + length)
        return rows

    def prefetch(self, start: int, stop: int) -> None:
        """Say that tokens start ... stop-1 are read next; does nothing for what is on this machine already."""
        for index in range(bisect.bisect_right(self._bounds, start) - 1, len(self._parts)):
            part, base = self._parts[index], self._bounds[index]
            low, high = max(start - base, 0), min(stop - base, len(part))
            if high <= low:
                return
            # Fetching a whole shard of which only the edge is wanted can wait until that is read.
            if hasattr(part, "prefetch") and high - low >= PREFETCH_SHARE * min(len(part), stop - start):
                part.prefetch(low, high)

    def part(self, start: int, stop: int, name: str | None = None) -> "TokenDataset":
        """Tokens start ... stop-1 as a dataset of its own, without a copy.

        A document that begins before `start` counts with what is left of it, as a first document that begins at 0.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} ... {stop} are not within 0 ... {len(self)} of {self.name}")
        parts = [
            _cut(part, max(start - base, 0), min(stop - base, len(part)))
            for part, base in zip(self._parts, self._bounds, strict=False)
            if base < stop and start < base + len(part)
        ]

        return TokenDataset(
            parts,
            self.vocab_size,
            self.fingerprint if (start, stop) == (0, len(self)) else _joined_hash([self.fingerprint, start, stop]),
            starts=PartStarts(self, start, stop),
            eot_id=self.eot_id,
            name=name or self.name,
            stretch=self.stretch,
        )

    @cached_property
    def document_offsets(self) -> NDArray[np.int64]:
        """(documents,) token at which each document begins; for raw token files, after each end-of-text token."""
        return self._starts.offsets()

    def _scanned(self) -> NDArray[np.int64]:
        """Document starts by the end-of-text tokens; reads everything once."""
        found = [np.zeros(min(1, len(self)), np.int64)]
        if self.eot_id is not None:
            for at in range(0, len(self), SCAN_TOKENS):
                ids = self.tokens(at, min(len(self), at + SCAN_TOKENS))
                found.append(np.flatnonzero(ids == self.eot_id) + (at + 1))
        starts = np.unique(np.concatenate(found))
        return starts[starts < len(self)]

    @property
    def n_documents(self) -> int:
        return len(self._starts)

    def document_at(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Number of the document (from 0) in which each token lies; any shape."""
        return np.asarray(self._starts.at(np.asarray(positions, np.int64)), np.int64)

    def count_ids(self) -> NDArray[np.int64]:
        """(vocab_size,) how often each id occurs; reads everything once."""
        counts = np.zeros(self.vocab_size, np.int64)
        for at in range(0, len(self), SCAN_TOKENS):
            counts += np.bincount(self.tokens(at, min(len(self), at + SCAN_TOKENS)), minlength=self.vocab_size)
        return counts

    def require_context(self, context_length: int) -> None:
        """RequestError unless there is at least one whole window of `context_length` inputs and their targets."""
        if len(self) < context_length + 1:
            raise RequestError(
                f"{self.name} has {len(self):,} tokens, too short for model.context_length={context_length}: at least "
                f"{context_length + 1:,} are needed; give more text or a shorter context"
            )


def joined(datasets: Sequence[TokenDataset], name: str) -> TokenDataset:
    """Several datasets (at least one), made with one tokenizer, as one, without a copy. The documents stay apart."""
    first = datasets[0]
    if len(datasets) == 1:
        return first.part(0, len(first), name)
    return TokenDataset(
        [part for dataset in datasets for part in dataset._parts],
        max(dataset.vocab_size for dataset in datasets),
        _joined_hash([dataset.fingerprint for dataset in datasets]),
        starts=JoinedStarts(datasets),
        eot_id=first.eot_id,
        name=name,
        stretch=min((dataset.stretch for dataset in datasets if dataset.stretch is not None), default=None),
    )


class _Cut:
    """Tokens start ... stop-1 of a part that is no array."""

    def __init__(self, part: Part, start: int, stop: int) -> None:
        self._part, self._start, self._stop = part, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, wanted: slice) -> Tokens:
        return self._part[self._start + wanted.start : self._start + wanted.stop]

    def prefetch(self, start: int, stop: int) -> None:
        if hasattr(self._part, "prefetch"):
            self._part.prefetch(self._start + start, self._start + stop)


def _cut(part: Part, start: int, stop: int) -> Part:
    """Part of a part; of an array it is a view."""
    if (start, stop) == (0, len(part)):
        return part
    return part[start:stop] if isinstance(part, np.ndarray) else _Cut(part, start, stop)


def _joined_hash(parts: Sequence[object]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
