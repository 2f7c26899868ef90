"""Fits pieces of text into rows of equal length: which lengths go together, and what is cut if they do not fit well.

Best fit, the longest first: each piece goes where it leaves the least room free. Done on the histogram of the lengths
(Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination", arXiv:2107.02027, section 3) it gives the
same rows as piece by piece, and costs no more for a billion pieces than for a thousand. A layout says what a number of
rows are made of, all in the same way.

Pieces of nearly the same length may fit badly: of those of 200 tokens one fits into 256. Where more than EMPTY of the
rows' positions would stay empty, the emptiest rows are dissolved, and their pieces cut to fill the others.
"""

import bisect
import heapq
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

EMPTY = 0.005
"""Share of the positions that may stay empty before pieces are cut."""


class Part(NamedTuple):
    """`copies` pieces of `length` in each row, of each the tokens `begin ... begin + size - 1`.

    In row k of the layout they are the pieces number `first + k * copies` and following, among those of that length.
    """

    length: int
    begin: int
    size: int
    copies: int
    first: int


class Layout(NamedTuple):
    """`rows` rows that are made of the same parts, of which nothing is the same piece."""

    rows: int
    parts: tuple[Part, ...]

    def split(self, rows: int) -> tuple["Layout", "Layout"]:
        """The first so many rows, and the rest."""
        rest = tuple(part._replace(first=part.first + rows * part.copies) for part in self.parts)
        return Layout(rows, self.parts), Layout(self.rows - rows, rest)

    @property
    def filled(self) -> int:
        """Positions of a row that are taken."""
        return sum(part.size * part.copies for part in self.parts)


def best_fit(counts: Sequence[int], capacity: int) -> list[Layout]:
    """Rows of `capacity` positions that hold `counts[length]` whole pieces of each length 1 ... capacity."""
    full: list[Layout] = []
    by_room: dict[int, list[Layout]] = {}
    rooms: list[int] = []  # its keys, ascending

    def put(layout: Layout, room: int) -> None:
        if room == 0:
            full.append(layout)
            return
        if room not in by_room:
            bisect.insort(rooms, room)
        by_room.setdefault(room, []).append(layout)

    for length in range(capacity, 0, -1):
        given = 0
        while left := counts[length] - given:
            at = bisect.bisect_left(rooms, length)
            if at == len(rooms):
                room, layout = capacity, Layout(left, ())  # new rows
            else:
                room = rooms[at]
                layout = by_room[room].pop()
                if not by_room[room]:
                    del by_room[room], rooms[at]
            copies = min(room // length, left)
            used, rest = layout.split(min(layout.rows, left // copies))
            put(Layout(used.rows, (*used.parts, Part(length, 0, length, copies, given))), room - copies * length)
            given += used.rows * copies
            if rest.rows and rest.parts:
                put(rest, room)
    return full + [layout for room in rooms for layout in by_room[room]]


def filled_up(layouts: Sequence[Layout], capacity: int, rows: int) -> list[Layout]:
    """The same pieces in at most `rows` rows, which must be enough: those of the emptiest rows are cut.

    The largest room is filled first, so that a piece is cut into few parts. No row gets two parts of one piece.
    """
    kept, dissolved = _Rooms(capacity), []
    excess = max(0, sum(layout.rows for layout in layouts) - rows)
    for layout in sorted(layouts, key=lambda layout: layout.filled):
        gone, rest = layout.split(min(excess, layout.rows))
        excess -= gone.rows
        dissolved += [gone] if gone.rows else []
        kept.put(rest)
    for layout in dissolved:
        for part in layout.parts:
            kept.fill(Layout(layout.rows * part.copies, (part._replace(copies=1),)))
    return kept.layouts


class _Rooms:
    """Layouts, the emptiest of which is at hand."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._full: list[Layout] = []
        self._heap: list[tuple[int, int, Layout]] = []
        self._number = count()  # makes layouts that are filled alike comparable

    @property
    def layouts(self) -> list[Layout]:
        return self._full + [layout for _, _, layout in sorted(self._heap)]

    def put(self, layout: Layout) -> None:
        if layout.rows and layout.filled == self._capacity:
            self._full.append(layout)
        elif layout.rows:
            heapq.heappush(self._heap, (layout.filled, next(self._number), layout))

    def fill(self, pieces: Layout) -> None:
        """Cut as many pieces as `pieces` has rows, each of which is one piece, to fill the largest rooms."""
        waiting = [pieces]
        while waiting:
            pieces = waiting.pop()
            filled, _, layout = heapq.heappop(self._heap)
            pieces, later = pieces.split(min(pieces.rows, layout.rows))
            layout, remaining = layout.split(pieces.rows)
            self.put(remaining)
            (part,) = pieces.parts
            size = min(self._capacity - filled, part.size)
            self.put(Layout(layout.rows, (*layout.parts, part._replace(size=size))))
            rest = part._replace(begin=part.begin + size, size=part.size - size)
            waiting += [later] if later.rows else []
            waiting += [Layout(pieces.rows, (rest,))] if rest.size else []
