"""Processes started anew share a store with those before them, and must not take what those have left for news."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from minigpt.parallel.restarts import of_this_start

TIMEOUT = timedelta(seconds=20)


def start(store: HashStore, size: int) -> list:
    """All processes of a start, as threads: each puts down its address and reads that of the next one."""

    def process(rank: int) -> tuple[str, str]:
        mine = of_this_start(store, rank, size, TIMEOUT)
        assert not mine.check([f"address/{rank}"])  # nothing is left of earlier ones
        mine.set(f"address/{rank}", f"{starts}.{rank}")
        return mine.get("address/0").decode(), mine.get(f"address/{(rank + 1) % size}").decode()

    starts = store.add("starts", 1)
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(process, range(size)))


def test_every_start_finds_its_own_processes():
    store = HashStore()
    for number in (1, 2, 3):
        found = start(store, 3)
        assert found == [(f"{number}.0", f"{number}.{(rank + 1) % 3}") for rank in range(3)]


def test_a_start_in_which_one_never_came_leaves_no_trap():
    store = HashStore()
    store.set("asks/1", "a question that nobody waits for an answer to")
    with pytest.raises(TimeoutError, match="2 of 3 processes did not come"):
        of_this_start(store, 0, 3, timedelta(seconds=0.1))
    assert start(store, 3)[0] == ("1.0", "1.1")
