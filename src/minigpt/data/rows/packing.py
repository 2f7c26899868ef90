"""Documents fitted together into rows of `context_length` targets, cut as little as possible.

A document longer than a row is cut: its full rows are rows of their own, and what is left at its end is a piece like a
whole document. Pieces are packed by their lengths (see `best_fit`); which documents a row is made of then follows from
its number, since the pieces of each length are handed out in the order of the text. (Ding et al. 2024, "Fewer
Truncations Improve Language Modeling", arXiv:2404.10830, show why whole documents are worth it.)
"""

import bisect
import math
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minigpt.data.rows.best_fit import EMPTY, Layout, best_fit, filled_up


class Piece(NamedTuple):
    """Targets `start ... stop - 1` of the token stream, all of one document; each is predicted from the one before."""

    document: int
    start: int
    stop: int


class DocumentPacking:
    """The pieces of each row.

    starts: (documents,) token at which each begins, ascending. n_tokens: where the last one ends. ends: whether each
    document ends with an end-of-text token, from which the first token of the next is predicted; otherwise a document's
    first token is no target.
    """

    def __init__(self, starts: NDArray[np.int64], n_tokens: int, context_length: int, *, ends: bool) -> None:
        self.context_length = context_length
        self._starts, self._n_tokens, self._before = starts, n_tokens, 0 if ends else 1
        lengths = np.diff(starts, append=n_tokens) - self._before
        if ends and len(starts):
            lengths[: np.searchsorted(starts, 0, side="right")] -= 1  # nothing comes before the very first token
        lengths = np.maximum(lengths, 0)  # a document of no tokens has no targets
        self.n_targets = int(lengths.sum())
        full, rest = np.divmod(lengths, context_length)
        self._long = np.flatnonzero(full)
        self._long_ends = np.cumsum(full[self._long])
        self.full_rows = int(full.sum())
        counts = np.bincount(rest, minlength=context_length + 1)
        self._by_length = np.argsort(rest, kind="stable").astype(np.min_scalar_type(len(starts)))
        self._first_of_length = np.cumsum(counts) - counts
        counts[0] = 0
        self.layouts = self._packed(counts.tolist())
        self._ends = list(accumulate(layout.rows for layout in self.layouts))
        self.n_rows = self.full_rows + sum(layout.rows for layout in self.layouts)

    def _packed(self, counts: list[int]) -> list[Layout]:
        """Layouts of all pieces that are no full row; no more rows than leave EMPTY of the positions empty."""
        layouts = best_fit(counts, self.context_length)
        least = self.n_targets / self.context_length  # rows of everything
        most = max(math.ceil(least), int(least / (1 - EMPTY))) - self.full_rows
        excess = sum(layout.rows for layout in layouts) > most
        return filled_up(layouts, self.context_length, most) if excess else layouts

    @property
    def n_cut(self) -> int:
        """Documents, or ends of long ones, that are cut although they would fit into a row."""
        parts = ((layout.rows, part) for layout in self.layouts for part in layout.parts)
        return sum(rows for rows, part in parts if part.begin == 0 and part.size < part.length)

    @property
    def wasted(self) -> float:
        """Share of the rows' positions that have no target."""
        return 1 - self.n_targets / max(1, self.n_rows * self.context_length)

    def pieces(self, row: int) -> list[Piece]:
        """What row number `row` < `n_rows` is made of: targets of at most `context_length` in all."""
        if row < self.full_rows:
            at = int(np.searchsorted(self._long_ends, row, side="right"))
            document = int(self._long[at])
            number = row - int(self._long_ends[at - 1] if at else 0)
            start = self._targets_of(document)[0] + number * self.context_length
            return [Piece(document, start, start + self.context_length)]
        row -= self.full_rows
        at = bisect.bisect_right(self._ends, row)
        row -= self._ends[at - 1] if at else 0
        found = []
        for length, begin, size, copies, given in self.layouts[at].parts:
            first = int(self._first_of_length[length]) + given + row * copies
            for document in self._by_length[first : first + copies].tolist():
                start = self._targets_of(document)[1] - length + begin
                found.append(Piece(document, start, start + size))
        return found

    def _targets_of(self, document: int) -> tuple[int, int]:
        last = document + 1 == len(self._starts)
        stop = self._n_tokens if last else int(self._starts[document + 1])
        return max(1, int(self._starts[document]) + self._before), stop
