"""The background thread: order, errors as they were, and never a hang."""

import threading
import time
import traceback

import pytest

from minigpt.config import RequestError
from minigpt.data.prefetch import Prefetcher


def test_steps_come_in_order_from_the_start() -> None:
    with Prefetcher(lambda step: step * step, start=7) as batches:
        assert [batches.next() for _ in range(4)] == [(7, 49), (8, 64), (9, 81), (10, 100)]


def test_stop_ends_the_iteration() -> None:
    with Prefetcher(str, start=3, stop=6, depth=1) as batches:
        assert list(batches) == [(3, "3"), (4, "4"), (5, "5")]
        with pytest.raises(StopIteration):
            batches.next()
    with Prefetcher(str, start=6, stop=6) as batches:
        assert list(batches) == []


def test_never_more_than_depth_ahead() -> None:
    made: list[int] = []
    with Prefetcher(made.append, start=0, depth=3) as batches:
        batches.next()
        time.sleep(0.3)
        # One taken, three in the queue, and one that waits for room.
        assert made == [0, 1, 2, 3, 4]


def fail_at_two(step: int) -> int:
    if step == 2:
        raise RequestError("line 17 of corpus.jsonl has no field 'text'")
    return step


def test_an_exception_is_raised_as_it_was_after_the_steps_before_it() -> None:
    with Prefetcher(fail_at_two, start=0, depth=4) as batches:
        assert [batches.next()[0] for _ in range(2)] == [0, 1]
        for _ in range(2):  # and again, should somebody ask again
            with pytest.raises(RequestError, match=r"^line 17 of corpus.jsonl has no field 'text'$") as caught:
                batches.next()
            assert "fail_at_two" in "".join(traceback.format_tb(caught.value.__traceback__))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError, OSError])
def test_no_exception_is_lost(kind: type[BaseException]) -> None:
    def make(step: int) -> int:
        raise kind("stop")

    with Prefetcher(make, start=0) as batches, pytest.raises(kind, match="stop"):
        batches.next()


def test_stop_iteration_in_make_is_an_error_and_not_the_end() -> None:
    with Prefetcher(lambda step: next(iter(())), start=0) as batches, pytest.raises(RuntimeError, match="step 0"):
        list(batches)


def test_close_while_the_producer_waits_for_room() -> None:
    batches = Prefetcher(lambda step: step, start=0, depth=1)
    time.sleep(0.05)
    began = time.monotonic()
    batches.close()
    batches.close()
    assert time.monotonic() - began < 2
    assert not batches._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        batches.next()


def test_close_does_not_wait_for_ever_for_a_hanging_make() -> None:
    release = threading.Event()
    batches = Prefetcher(lambda step: release.wait(30), start=0)
    began = time.monotonic()
    batches.close(timeout=0.1)
    assert time.monotonic() - began < 2
    release.set()


def test_an_error_in_the_consumer_closes_it() -> None:
    with pytest.raises(ZeroDivisionError), Prefetcher(lambda step: step, start=0) as batches:
        1 / batches.next()[0]
    assert not batches._thread.is_alive()


def test_wait_is_measured() -> None:
    def slow(step: int) -> int:
        time.sleep(0.15 if step == 1 else 0)
        return step

    with Prefetcher(slow, start=0) as batches:
        batches.next()
        batches.next()
        assert batches.wait_ms > 50
        time.sleep(0.3)
        batches.next()
        assert batches.wait_ms < 50


def test_depth_is_checked() -> None:
    with pytest.raises(ValueError, match="depth"):
        Prefetcher(str, start=0, depth=0)


def test_closing_interrupts_what_waits() -> None:
    gate = threading.Event()

    def make(step: int) -> int:
        gate.wait(20)
        return step

    batches = Prefetcher(make, start=0, interrupt=gate.set)
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 2
