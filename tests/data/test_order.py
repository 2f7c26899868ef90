"""The order of training windows: exact properties that any permutation must have, and statistics of a random one."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import RequestError
from minigpt.data.rows.order import ROUNDS, Permutation, WindowOrder, _keys

SEEDS = st.integers(-(2**70), 2**70)


@given(st.integers(1, 5000), SEEDS, st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_permutation_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    permutation = Permutation(size, _keys(seed, epoch, ROUNDS))
    assert sorted(permutation[i] for i in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 129, 4095, 4096, 4097])
def test_permutation_is_a_bijection_near_powers_of_two(size: int) -> None:
    permutation = Permutation(size, _keys(3, 1, ROUNDS))
    assert {permutation[i] for i in range(len(permutation))} == set(range(size))


def test_outside_of_a_permutation() -> None:
    permutation = Permutation(5, _keys(0, 0, ROUNDS))
    for index in (-1, 5):
        with pytest.raises(IndexError):
            permutation[index]
    with pytest.raises(ValueError):
        Permutation(0, _keys(0, 0, ROUNDS))


def chi_square_z(counts: list[int], expected: float) -> float:
    """The chi-square statistic as a standard normal (Wilson and Hilferty's cube root)."""
    k = len(counts) - 1
    chi = sum((c - expected) ** 2 / expected for c in counts)
    return ((chi / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))


@pytest.mark.parametrize("size", [3, 10, 33, 64])
def test_every_element_is_equally_likely_everywhere(size: int) -> None:
    """Over many keys, where an element lands and what follows it are uniform (|z| < 4: one in 15,000 by chance)."""
    trials = 2000 if size < 20 else 1000
    placed, follows = Counter(), Counter()
    for seed in range(trials):
        permutation = Permutation(size, _keys(seed, 0, ROUNDS))
        images = [permutation[i] for i in range(size)]
        placed.update(enumerate(images))
        follows.update(itertools.pairwise(images))
    assert abs(chi_square_z([placed[i, j] for i in range(size) for j in range(size)], trials / size)) < 4
    pairs = [follows[i, j] for i in range(size) for j in range(size) if i != j]
    assert abs(chi_square_z(pairs, trials / size)) < 4


def test_all_orders_of_four_occur_equally() -> None:
    trials = 3000
    seen = Counter(
        tuple(permutation[i] for i in range(4))
        for permutation in (Permutation(4, _keys(0, epoch, ROUNDS)) for epoch in range(trials))
    )
    assert len(seen) == 24
    assert abs(chi_square_z(list(seen.values()), trials / 24)) < 4


def test_no_drift_within_an_epoch() -> None:
    """Neighbours in a long epoch are as far apart as random ones: a third of the length on average."""
    size = 100_000
    permutation = Permutation(size, _keys(1, 2, ROUNDS))
    places = [permutation[i] for i in range(4001)]
    mean = sum(abs(a - b) for a, b in itertools.pairwise(places)) / 4000
    assert abs(mean / size - 1 / 3) < 5 * 0.2357 / math.sqrt(4000)  # 0.2357: standard deviation of |U - V|


@given(st.integers(1, 60), st.integers(0, 3000), SEEDS, st.integers(0, 10**9))
@settings(max_examples=120, deadline=None)
def test_an_epoch_visits_every_window_once(context: int, extra: int, seed: int, epoch: int) -> None:
    n_tokens = context + 1 + extra
    order = WindowOrder(n_tokens, context, seed)
    count = order.windows_per_epoch
    assert count == max(1, (n_tokens - context) // context)
    rows = [order.window(epoch * count + i) for i in range(count)]
    assert {e for e, _ in rows} == {epoch}
    offset = order.offset(epoch)
    assert 0 <= offset < context
    assert sorted(start for _, start in rows) == [offset + i * context for i in range(count)]
    assert max(start for _, start in rows) + context <= n_tokens - 1  # the last target is a token
    left_out = n_tokens - 1 - count * context
    assert left_out < 2 * context


def test_offsets_take_all_values_where_there_is_room() -> None:
    order = WindowOrder(1000, 16, seed=7)
    assert {order.offset(epoch) for epoch in range(400)} == set(range(16))
    tight = WindowOrder(17, 16, seed=7)  # exactly one window, no room
    assert [tight.window(i) for i in range(3)] == [(0, 0), (1, 0), (2, 0)]


def test_epochs_and_seeds_differ() -> None:
    def epoch_rows(seed: int, epoch: int) -> tuple[int, ...]:
        order = WindowOrder(6401, 64, seed)
        n = order.windows_per_epoch
        return tuple((order.window(epoch * n + i)[1] - order.offset(epoch)) // 64 for i in range(n))

    orders = [epoch_rows(seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_a_far_index_costs_nothing() -> None:
    order = WindowOrder(10**12, 1024, seed=5)
    for index in (10**15, 10**15 + 1, 10**30):
        epoch, start = order.window(index)
        assert epoch == index // order.windows_per_epoch
        assert 0 <= start <= 10**12 - 1025
    assert WindowOrder(10**12, 1024, seed=5).window(10**15) == order.window(10**15)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6, 8])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(processes: int) -> None:
    rows, steps = 24, range(100, 103)
    alone = WindowOrder(5000, 32, seed=1)
    for step in steps:
        expected = [alone.window(step * rows + row) for row in range(rows)]
        dealt = {}
        for rank in range(processes):
            own = WindowOrder(5000, 32, seed=1)  # what another process makes
            dealt |= {row: own.window(step * rows + row) for row in range(rank, rows, processes)}
        assert [dealt[row] for row in range(rows)] == expected


def test_known_values_do_not_change() -> None:
    """The order is part of what a resumed run relies on. Worked out once by the definition in the module's docstring,
    in a separate few lines: SHAKE-128 keys, an unbalanced Feistel network of eight rounds, cycle walking."""
    import hashlib

    def reference(n: int, seed: int, epoch: int, index: int) -> int:
        raw = hashlib.shake_128(f"minigpt window order 1/{seed}/{epoch}".encode()).digest(72)
        keys = [int.from_bytes(raw[i : i + 8], "little") for i in range(8, 72, 8)]
        width = max(6, len(bin(n - 1)) - 2)
        x = index
        while True:
            a, b = (width + 1) // 2, width // 2
            for key in keys:
                high, low = x // 2**b, x % 2**b
                z = (low + key) % 2**64
                z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
                z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
                z = (z ^ z >> 31) >> (64 - a)
                x = low * 2**a + (high ^ z)
                a, b = b, a
            if x < n:
                return x

    for n_tokens, context, seed in [(1000, 10, 0), (99_999, 7, -3), (70, 8, 2**65)]:
        order = WindowOrder(n_tokens, context, seed)
        n = order.windows_per_epoch
        for index in (0, 1, n - 1, n, 5 * n + n // 2):
            epoch, start = order.window(index)
            assert (start - order.offset(epoch)) // context == reference(n, seed, epoch, index % n)


# --- without shuffling, and shuffled within stretches


@given(st.integers(1, 60), st.integers(0, 3000), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_in_order(context: int, extra: int, epoch: int) -> None:
    """Every target that fits into whole windows comes once, from the first one on; every epoch is the same."""
    n_tokens = context + 1 + extra
    order = WindowOrder(n_tokens, context, 3, shuffle=False)
    count = order.windows_per_epoch
    assert count == (n_tokens - 1) // context
    found = [order.window(epoch * count + i) for i in range(count)]
    assert found == [(epoch, i * context) for i in range(count)]


@given(st.integers(1, 30), st.integers(0, 3000), st.integers(1, 1500), SEEDS, st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_stretches(context: int, extra: int, stretch: int, seed: int, epoch: int, shuffle: bool) -> None:
    """Each epoch visits every window once, stretch by stretch, each of which is announced while the one before is read.

    What a stretch covers is worked out here from the windows that come after each other."""
    order = WindowOrder(context + 1 + extra, context, seed, shuffle=shuffle, stretch=stretch)
    count = order.windows_per_epoch
    assert count == WindowOrder(context + 1 + extra, context, seed, shuffle=shuffle).windows_per_epoch
    length = max(1, round(stretch / context))
    starts = [order.window(epoch * count + i)[1] for i in range(count)]
    offset = order.offset(epoch)
    assert sorted(starts) == [offset + i * context for i in range(count)]
    if length >= count:
        assert starts == [
            WindowOrder(context + 1 + extra, context, seed, shuffle=shuffle).window(epoch * count + i)[1]
            for i in range(count)
        ]
        assert order.next_stretch(epoch * count) is None
        return
    numbers = [(start - offset) // context // length for start in starts]
    groups = [(number, len(list(group))) for number, group in itertools.groupby(numbers)]
    assert [number for number, _ in sorted(groups)] == list(range(-(-count // length)))  # each once, none broken up
    at = 0
    for (_, size), (following, _) in itertools.pairwise(groups):
        first = offset + following * length * context
        expected = (first, first + min(length, count - following * length) * context + 1)
        assert {order.next_stretch(epoch * count + i) for i in (at, at + size // 2, at + size - 1)} == {expected}
        at += size
    following = order.next_stretch(epoch * count + count - 1)  # the first of the next epoch
    assert following[0] <= order.window((epoch + 1) * count)[1] < following[1]


def test_stretches_come_in_a_random_order() -> None:
    """Four stretches, the last one shorter: all 24 orders occur equally, and so do the windows' orders in one."""
    trials = 1000
    order = WindowOrder(3 * 30 + 20 + 1, 10, seed=2, stretch=30)
    count = order.windows_per_epoch
    assert count == 10  # 3, 3, 3 and 1
    orders, inner = Counter(), Counter()
    for epoch in range(trials):
        numbers = [(order.window(epoch * count + i)[1] - order.offset(epoch)) // 10 for i in range(count)]
        orders[tuple(dict.fromkeys(number // 3 for number in numbers))] += 1
        inner[tuple(number for number in numbers if number // 3 == 2)] += 1
    assert len(orders) == 24 and len(inner) == 6
    assert abs(chi_square_z(list(orders.values()), trials / 24)) < 4
    assert abs(chi_square_z(list(inner.values()), trials / 6)) < 4


def test_a_far_index_costs_nothing_with_stretches() -> None:
    order = WindowOrder(10**13, 1024, seed=5, stretch=10**8)
    for index in (10**15, 10**30):
        epoch, start = order.window(index)
        ahead = order.next_stretch(index)
        assert epoch == index // order.windows_per_epoch and 0 <= start <= 10**13 - 1025
        assert ahead is not None and abs(ahead[1] - ahead[0] - 10**8) < 1024


def test_wrong_requests() -> None:
    with pytest.raises(ValueError, match="stretch"):
        WindowOrder(100, 8, 0, stretch=0)
    with pytest.raises(RequestError, match=r"64 tokens, too short for model.context_length=64: at least 65"):
        WindowOrder(64, 64, 0)
    with pytest.raises(ValueError, match="negative"):
        WindowOrder(100, 8, 0).window(-1)
    with pytest.raises(ValueError):
        WindowOrder(100, 0, 0)
