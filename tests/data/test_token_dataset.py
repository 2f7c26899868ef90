"""Parts and joins of token datasets, and in which document a token lies: against plain lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data.dataset import TokenDataset, joined

EOT = 9


class Far:
    """A part that is no array, and notes what it is asked for."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids
        self.ahead: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, wanted: slice) -> np.ndarray:
        assert 0 <= wanted.start <= wanted.stop <= len(self.ids)
        return self.ids[wanted]

    def prefetch(self, start: int, stop: int) -> None:
        self.ahead.append((start, stop))


def dataset(documents: list[list[int]], cuts: list[int], how: str, far: bool) -> TokenDataset:
    """`documents`, each ended by EOT, in parts; their starts known, found when needed, or told by EOT alone."""
    ids = np.array([i for document in documents for i in [*document, EOT]], "<u2")
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1]
    parts = np.split(ids, sorted(cut % (len(ids) + 1) for cut in cuts))
    known = {"list": starts, "function": lambda: starts, "scan": None}[how]
    return TokenDataset([Far(p) for p in parts] if far else parts, 10, "fp", starts=known, eot_id=EOT)


def check(found: TokenDataset, ids: list[int], begins: list[int]) -> None:
    """A dataset against its ids and document starts; whichever question comes first."""
    assert len(found) == len(ids) and found.tokens(0, len(ids)).tolist() == ids
    numbers = [sum(begin <= at for begin in begins) - 1 for at in range(len(ids))]
    assert found.document_at(np.arange(len(ids))[::-1].reshape(-1, 1)).ravel().tolist() == numbers[::-1]
    assert [int(found.document_at(at)) for at in (0, len(ids) - 1) if ids] == [numbers[at] for at in (0, -1) if ids]
    assert found.n_documents == len(begins)
    assert found.document_offsets.tolist() == begins


DOCUMENTS = st.lists(st.lists(st.integers(0, 8), max_size=6), min_size=1, max_size=8)
HOW = st.sampled_from(["list", "function", "scan"])


@given(DOCUMENTS, st.lists(st.integers(0, 60), max_size=3), HOW, st.booleans(), st.data())
@settings(max_examples=100, deadline=None)
def test_parts_of_parts(documents, cuts, how, far, data) -> None:
    whole = dataset(documents, cuts, how, far)
    ids, begins = whole.tokens(0, len(whole)).tolist(), list(whole.document_offsets)
    check(dataset(documents, cuts, how, far), ids, begins)
    for _ in range(2):
        start = data.draw(st.integers(0, len(ids)))
        stop = data.draw(st.integers(start, len(ids)))
        part = whole.part(start, stop)
        ids = ids[start:stop]
        begins = [0, *(b - start for b in begins if start < b < stop)] if ids else []
        check(part, ids, begins)
        assert part.fingerprint != whole.fingerprint or len(part) == len(whole)
        whole = part


@given(st.lists(st.tuples(DOCUMENTS, HOW, st.booleans()), min_size=1, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_joined(given_sets, data) -> None:
    sets = [dataset(documents, [7], how, far) for documents, how, far in given_sets]
    ids, begins = [], []
    for one in sets:
        start = data.draw(st.integers(0, len(one) - 1))
        part = one.part(start, len(one))
        begins += [int(b) + len(ids) for b in part.document_offsets]
        ids += part.tokens(0, len(part)).tolist()
        sets[sets.index(one)] = one.part(start, len(one))
    check(joined(sets, "all"), ids, begins)
    start = data.draw(st.integers(0, len(ids) - 1))
    check(joined(sets, "all").part(start, len(ids)), ids[start:], [0, *(b - start for b in begins if b > start)])


def test_what_a_join_is_called_and_identified_by() -> None:
    one, two = dataset([[1], [2, 3]], [], "list", False), dataset([[4]], [], "list", False)
    two.fingerprint = "other"
    both = joined([one, two], "both")
    assert both.name == "both" and both.eot_id == EOT and both.stretch is None
    assert joined([one], "alone").fingerprint == one.fingerprint and joined([one], "alone").name == "alone"
    assert len({both.fingerprint, joined([two, one], "both").fingerprint, one.fingerprint}) == 3
    one.stretch = 5
    assert joined([one, two], "both").stretch == 5 == one.part(0, 2).stretch


def test_a_join_of_different_vocabularies_holds_all_ids() -> None:
    small = TokenDataset([np.array([1, 2], "<u2")], 3, "a")
    large = TokenDataset([np.array([70_000], "<u4")], 70_001, "b")
    assert joined([small, large], "both").tokens(0, 3).tolist() == [1, 2, 70_000]


def test_what_is_read_next_is_told_to_the_parts_concerned() -> None:
    parts = [Far(np.zeros(100, "<u2")) for _ in range(4)]
    whole = TokenDataset([parts[0], np.zeros(100, "<u2"), *parts[1:]], 10, "fp")
    whole.prefetch(0, 100)
    whole.prefetch(205, 305)  # five of 300's tokens can wait
    whole.part(150, 500).prefetch(160, 350)
    assert [part.ahead for part in parts] == [[(0, 100)], [(5, 100)], [(10, 100)], [(0, 100)]]
    whole.prefetch(110, 190)  # on this machine


def test_ranges_outside() -> None:
    whole = dataset([[1, 2]], [], "list", False)
    for bad in [(-1, 1), (0, 4), (2, 1)]:
        with pytest.raises(IndexError):
            whole.part(*bad)
