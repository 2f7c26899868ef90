"""Encoding on several threads: the same results in the same order, bounded, and ended cleanly."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from minigpt.config import RequestError
from minigpt.data.preparing.encoding import AHEAD, encode_ordered
from minigpt.tokenizer import CharTokenizer


class Slow:
    """Encodes a text to its number after a while of its own, so that batches finish out of order."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        self.threads.add(threading.current_thread().name)
        time.sleep(0.002 * (int(texts[0]) * 7 % 5))
        return [np.array([int(text)], np.uint32) for text in texts]


def numbers(batch: list[int]) -> list[str]:
    return list(map(str, batch))


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_results_come_in_order(workers: int) -> None:
    batches = [[n, n + 1] for n in range(60)]
    tokenizer = Slow()
    found = list(encode_ordered(batches, numbers, tokenizer, workers))  # type: ignore[arg-type]
    assert [batch for batch, _ in found] == batches
    assert [[int(ids[0]) for ids in arrays] for _, arrays in found] == batches
    assert len(tokenizer.threads) <= workers


def test_no_more_is_read_than_is_needed_soon() -> None:
    read: list[int] = []

    def endless() -> Iterator[list[int]]:
        while True:
            read.append(1)
            yield [len(read)]

    found = encode_ordered(endless(), numbers, Slow(), 2)  # type: ignore[arg-type]
    for _ in range(5):
        next(found)
    time.sleep(0.1)
    assert len(read) <= 5 + 2 * AHEAD + 2
    found.close()
    deadline = time.monotonic() + 5
    while any(t.name.startswith("minigpt-") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("minigpt-")]


def test_errors_come_where_they_belong() -> None:
    closed = []

    def failing() -> Iterator[list[str]]:
        try:
            yield ["ab"]
            yield ["ba"]
            raise RequestError("line 3 is not JSON")
        finally:
            closed.append(True)

    tokenizer = CharTokenizer.from_texts(["ab"])
    found = encode_ordered(failing(), list, tokenizer, 3)
    assert [ids.tolist() for _, (ids,) in (next(found), next(found))] == [[0, 1], [1, 0]]
    with pytest.raises(RequestError, match="line 3 is not JSON"):
        next(found)
    assert closed == [True]
    found = encode_ordered(
        [["ab"], ["a§"], ["b"]], list, tokenizer, 3, refused=lambda batch, error: RequestError(f"in {batch}: {error}")
    )
    assert next(found)[1][0].tolist() == [0, 1]
    with pytest.raises(RequestError, match=r"^in \['a§'\]: character '§'"):
        next(found)
