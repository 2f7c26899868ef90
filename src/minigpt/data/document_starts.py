"""Where the documents of a token dataset begin, found only as far as somebody asks.

Number and place of the documents of a data set in a store are known shard by shard. What document a token lies in can
then be told from its own shard, without fetching the others; so a dataset asks one of these instead of holding a list.
"""

import bisect
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from minigpt.data.dataset import TokenDataset

Offsets = NDArray[np.int64]


class DocumentStarts(Protocol):
    """The documents of a dataset, as many as its length; the first token always begins one."""

    def __len__(self) -> int: ...

    def offsets(self) -> Offsets:
        """(documents,) token at which each begins, ascending."""

    def at(self, positions: Offsets) -> Offsets:
        """Number of the document (from 0) in which each token lies; any shape."""


class ListedStarts:
    """Documents of which a list is there, or comes from a function when it is needed for the first time."""

    def __init__(self, offsets: Offsets | Callable[[], Offsets]) -> None:
        self._given = offsets

    @cached_property
    def _offsets(self) -> Offsets:
        return self._given() if callable(self._given) else self._given

    def __len__(self) -> int:
        return len(self._offsets)

    def offsets(self) -> Offsets:
        """See DocumentStarts."""
        return self._offsets

    def at(self, positions: Offsets) -> Offsets:
        """See DocumentStarts."""
        return np.searchsorted(self._offsets, positions, side="right") - 1


class PartStarts:
    """Documents of the tokens start ... stop-1 of a dataset; what is left of one that begins before is the first."""

    def __init__(self, whole: "TokenDataset", start: int, stop: int) -> None:
        self._whole, self._start, self._stop = whole, start, stop

    @cached_property
    def _first(self) -> int:
        return int(self._whole.document_at(self._start)) if self._start else 0

    def __len__(self) -> int:
        if self._start == self._stop:
            return 0
        if self._stop == len(self._whole):
            return self._whole.n_documents - self._first
        return int(self._whole.document_at(self._stop - 1)) - self._first + 1

    def offsets(self) -> Offsets:
        """See DocumentStarts."""
        begins = self._whole.document_offsets
        low, high = np.searchsorted(begins, [self._start + 1, self._stop])
        return np.concatenate([np.zeros(min(1, self._stop - self._start), np.int64), begins[low:high] - self._start])

    def at(self, positions: Offsets) -> Offsets:
        """See DocumentStarts."""
        return self._whole.document_at(positions + self._start) - self._first


class JoinedStarts:
    """Documents of several datasets that follow each other; each of them begins a document."""

    def __init__(self, datasets: Sequence["TokenDataset"]) -> None:
        self._datasets = datasets
        self._bounds = [0, *accumulate(len(dataset) for dataset in datasets)]

    @cached_property
    def _counts(self) -> list[int]:
        """Documents before each dataset, and of all."""
        return [0, *accumulate(dataset.n_documents for dataset in self._datasets)]

    def __len__(self) -> int:
        return self._counts[-1]

    def offsets(self) -> Offsets:
        """See DocumentStarts."""
        bases = zip(self._datasets, self._bounds, strict=False)
        return np.concatenate([dataset.document_offsets + base for dataset, base in bases])

    def at(self, positions: Offsets) -> Offsets:
        """See DocumentStarts."""
        return found_piecewise(
            positions, self._bounds, lambda i, places: self._datasets[i].document_at(places) + self._counts[i]
        )


def found_piecewise(positions: Offsets, bounds: Sequence[int], find: Callable[[int, Offsets], Offsets]) -> Offsets:
    """`find(i, positions within piece i)` for the positions in each piece bounds[i] ... bounds[i + 1] - 1."""
    found = np.empty(positions.shape, np.int64)
    if positions.size:
        first = bisect.bisect_right(bounds, int(positions.min())) - 1
        last = bisect.bisect_right(bounds, int(positions.max())) - 1
        for i in range(first, last + 1):
            inside = (positions >= bounds[i]) & (positions < bounds[i + 1])
            if inside.any():
                found[inside] = find(i, positions[inside] - bounds[i])
    return found
