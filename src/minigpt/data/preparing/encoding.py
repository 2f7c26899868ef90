"""Encodes batches of texts on several threads, in order, a few batches ahead of whoever takes them.

    reader thread:  batches -> [queue] -> encoding threads -> [in order] -> the caller

Reading runs beside encoding, and encoding on as many threads as asked for: the fast engines let go of Python's global
lock while they work. What comes out does not depend on the number of threads. Memory is bounded by the few batches that
are under way.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minigpt.config import RequestError
from minigpt.tokenizer import Tokenizer

T = TypeVar("T")
Arrays = list[NDArray[np.uint32]]

AHEAD = 2
"""Batches that wait or are done for each thread, so that none stands still while the caller is busy with one."""
POLL_SECONDS = 0.1  # how often a blocked side looks whether the other is still there


def encode_ordered(
    batches: Iterable[T],
    texts_of: Callable[[T], list[str]],
    tokenizer: Tokenizer,
    workers: int,
    *,
    refused: Callable[[T, RequestError], Exception] | None = None,
) -> Generator[tuple[T, Arrays], None, None]:
    """(batch, ids of each of its texts) in the order of `batches`, encoded by `workers` threads.

    `batches` is read in a thread of its own, at most (AHEAD + 1) * `workers` ahead. What it raises, and what the
    tokenizer raises, comes out where that batch would have; `refused(batch, error)` may put a RequestError of the
    tokenizer in better words. Closing the iterator (or dropping it) stops the threads.
    """

    def encode(batch: T) -> Arrays:
        try:
            return encode_arrays(tokenizer, texts_of(batch))
        except RequestError as error:
            if refused is None:
                raise
            raise refused(batch, error) from None

    waiting: queue.Queue[tuple[T, Future[Arrays]] | BaseException | None] = queue.Queue(workers * AHEAD)
    stopping = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="minigpt-encode")
    reader = threading.Thread(
        target=_read, args=(iter(batches), encode, pool, waiting, stopping), name="minigpt-read", daemon=True
    )
    reader.start()
    try:
        while (item := _take(waiting)) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, future = item
            yield batch, future.result()
    finally:
        stopping.set()
        with suppress(queue.Empty):  # a reader that waits for room goes on at once
            waiting.get_nowait()
        pool.shutdown(wait=True, cancel_futures=True)
        reader.join(timeout=5.0)  # one that hangs in a read is left behind


def encode_arrays(tokenizer: Tokenizer, texts: list[str]) -> Arrays:
    """Ids of each text as an array, special names being text."""
    if (fast := getattr(tokenizer, "encode_arrays", None)) is not None:
        found: Arrays = fast(texts)
        return found
    return [np.asarray(ids, np.uint32) for ids in tokenizer.encode_batch(texts)]


def _read(
    batches: Iterator[T],
    encode: Callable[[T], Arrays],
    pool: ThreadPoolExecutor,
    waiting: "queue.Queue[Any]",
    stopping: threading.Event,
) -> None:
    """The reader thread: hands out the batches, and what ends them."""
    try:
        for batch in batches:
            if stopping.is_set() or not _put(waiting, (batch, pool.submit(encode, batch)), stopping):
                return
        _put(waiting, None, stopping)
    except BaseException as error:  # not lost: it is raised again where the caller stands
        _put(waiting, error, stopping)
    finally:
        if (close := getattr(batches, "close", None)) is not None:
            close()


def _put(waiting: "queue.Queue[Any]", item: Any, stopping: threading.Event) -> bool:
    """Wait for room; False if the caller has gone away."""
    while not stopping.is_set():
        try:
            waiting.put(item, timeout=POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def _take(waiting: "queue.Queue[Any]") -> Any:
    """The next item. Short waits keep Ctrl-C working everywhere."""
    while True:
        try:
            return waiting.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
