"""The token ids of a split: one long sequence over one or several memory-mapped files."""

import bisect
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.config import RequestError

SCAN_TOKENS = 1 << 22
MAX_UINT16_VOCAB = 1 << 16

Tokens = NDArray[Any]  # (N,) of an integer type


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 (little-endian, as on disk) that holds every id of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= MAX_UINT16_VOCAB else "<u4")


class TokenDataset:
    """Token ids 0 ... len-1 of a split. Reading a part of it reads only that part from the disk.

    `parts` are one-dimensional integer arrays (usually memory-mapped) that follow each other; `starts` says at which
    token each document begins (ascending), or is None where that is only known from the end-of-text tokens.
    `fingerprint` identifies the ids: it changes if and only if they (or the division into files) do.
    """

    def __init__(
        self,
        parts: Sequence[Tokens],
        vocab_size: int,
        fingerprint: str,
        *,
        starts: NDArray[np.int64] | None = None,
        eot_id: int | None = None,
        name: str = "tokens",
    ) -> None:
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.eot_id = eot_id
        self.name = name
        self._parts = [part for part in parts if len(part)]
        self._bounds = [0, *accumulate(len(part) for part in self._parts)]
        self._starts = starts
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

    @cached_property
    def document_offsets(self) -> NDArray[np.int64]:
        """(documents,) token at which each document begins; for raw token files, after each end-of-text token."""
        if self._starts is not None:
            return self._starts
        found = [np.zeros(min(1, len(self)), np.int64)]
        if self.eot_id is not None:
            for at in range(0, len(self), SCAN_TOKENS):
                ids = self.tokens(at, min(len(self), at + SCAN_TOKENS))
                found.append(np.flatnonzero(ids == self.eot_id) + (at + 1))
        starts = np.unique(np.concatenate(found))
        return starts[starts < len(self)]

    @property
    def n_documents(self) -> int:
        return len(self.document_offsets)

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
