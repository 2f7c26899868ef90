"""Packing: every target of every document once, as few documents cut as possible, and hardly any room wasted."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minigpt.data.rows.best_fit import EMPTY, Layout, best_fit, filled_up
from minigpt.data.rows.packing import DocumentPacking

DOCUMENTS = st.lists(st.integers(0, 40), min_size=1, max_size=60)


def packing(lengths: list[int], context_length: int, ends: bool = True) -> DocumentPacking:
    bounds = np.cumsum([0, *lengths])
    return DocumentPacking(bounds[:-1], int(bounds[-1]), context_length, ends=ends)


@given(DOCUMENTS, st.integers(1, 16), st.booleans())
@example([0, 0, 3], 4, True)
@example([5, 0, 0], 4, False)
@example([1], 4, True)
def test_each_target_once_in_pieces_of_one_document(lengths: list[int], context_length: int, ends: bool) -> None:
    made = packing(lengths, context_length, ends)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    found: Counter[int] = Counter()
    of_document: dict[int, list[int]] = {}
    for row in range(made.n_rows):
        pieces = made.pieces(row)
        assert 0 < sum(piece.stop - piece.start for piece in pieces) <= context_length
        for piece in pieces:
            targets = range(piece.start, piece.stop)
            found.update(targets)
            of_document.setdefault(piece.document, []).append(len(targets))
            assert set(document_of[list(targets)]) == {piece.document}
            # the input before the first target is the end of the document before, or of the same document
            assert piece.start >= 1 and (ends or document_of[piece.start - 1] == piece.document)
    firsts = {0} if ends else {int(np.flatnonzero(document_of == d)[0]) for d in set(document_of.tolist())}
    expected = set(range(len(document_of))) - firsts
    assert found == Counter(expected)
    assert made.n_targets == len(expected)
    assert made.wasted == pytest.approx(1 - len(expected) / max(1, made.n_rows * context_length))
    cut = sum(len(pieces) > -(-sum(pieces) // context_length) for pieces in of_document.values())
    assert cut == made.n_cut  # all others: full rows and one rest at most


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """Rows that the textbook's algorithm needs, piece by piece."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        room = min(fitting) if fitting else capacity
        if fitting:
            rooms.remove(room)
        rooms.append(room - length)
    return len(rooms)


def pieces_of(layouts: list[Layout]) -> list[list[tuple[int, int, int, int]]]:
    """(length, number, begin, size) of the parts of every single row."""
    return [
        [
            (part.length, part.first + row * part.copies + copy, part.begin, part.size)
            for part in layout.parts
            for copy in range(part.copies)
        ]
        for layout in layouts
        for row in range(layout.rows)
    ]


LENGTHS = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=80))
)


@settings(max_examples=200)
@given(LENGTHS)
def test_packing_by_histogram_is_best_fit_decreasing(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    counts = np.bincount(lengths, minlength=capacity + 1).tolist()
    rows = pieces_of(best_fit(counts, capacity))
    assert len(rows) == best_fit_decreasing(lengths, capacity)
    assert all(sum(size for *_, size in row) <= capacity for row in rows)
    whole = sorted((length, number, 0, length) for length, n in enumerate(counts) for number in range(n))
    assert sorted(part for row in rows for part in row) == whole


@settings(max_examples=200)
@given(LENGTHS, st.floats(0, 1))
def test_filling_up_keeps_every_token(case: tuple[int, list[int]], how_far: float) -> None:
    capacity, lengths = case
    counts = np.bincount(lengths, minlength=capacity + 1).tolist()
    layouts = best_fit(counts, capacity)
    least = -(-sum(lengths) // capacity)
    most = least + int(how_far * (best_fit_decreasing(lengths, capacity) - least))
    rows = pieces_of(filled_up(layouts, capacity, most))
    assert len(rows) == most
    found: Counter[tuple[int, int, int]] = Counter()
    for row in rows:
        assert 0 < sum(size for *_, size in row) <= capacity
        assert len({part[:2] for part in row}) == len(row)  # no two parts of one piece
        for length, number, begin, size in row:
            found.update((length, number, place) for place in range(begin, begin + size))
    every = [(length, number, k) for length, n in enumerate(counts) for number in range(n) for k in range(length)]
    assert found == Counter(every)


def test_its_cost_does_not_grow_with_the_documents() -> None:
    """A billion pieces of each length, in as few layouts as one."""
    many = best_fit([0] + [10**9] * 256, 256)
    assert len(many) < 4 * 256
    assert sum(layout.rows for layout in many) * 256 < 1.01 * 10**9 * sum(range(257))


@pytest.mark.parametrize("context_length", [128, 256, 512, 1024, 2048])
@pytest.mark.parametrize("spread", [0.1, 0.4])
def test_stories_waste_less_than_a_percent(context_length: int, spread: float) -> None:
    """Lengths like those of TinyStories: about 200 tokens, few above 1,000 (Eldan and Li 2023), or all nearly alike."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(200), spread, 50_000), 20, 1500).astype(int)
    made = packing(lengths.tolist(), context_length)
    assert made.wasted < 0.01
    row = [made.pieces(row) for row in range(0, made.n_rows, 97)]
    assert np.mean([sum(p.stop - p.start for p in pieces) for pieces in row]) > 0.98 * context_length


def test_documents_that_fit_well_are_not_cut() -> None:
    draw = np.random.default_rng(0)
    made = packing(draw.integers(20, 400, 20_000).tolist(), 512)
    assert made.wasted < EMPTY
    assert made.n_cut == 0


def test_an_order_of_many_documents_takes_little_memory() -> None:
    made = packing([3] * 70_000, 8)
    assert made._by_length.nbytes <= 4 * 70_000
