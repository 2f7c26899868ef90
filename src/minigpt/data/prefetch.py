"""Makes the next batches in a background thread while the current one is being trained on.

Steps are made in order, each once, by one thread. With prepared data what is made depends on the step alone, so that
a checkpoint has nothing to keep: a run that resumes at step `s` starts a prefetcher at `s`. The batches of a stream
carry its state with them (streaming/stream.py).
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1  # how often a waiting side looks whether the other is still there; an arriving item wakes it at once


class Prefetcher(Generic[T]):
    """Gives `(step, make(step))` for `step = start, start + 1, ...` (below `stop`, if given), `depth` batches ahead.

    `next()` blocks until the next batch is there; `wait_ms` is how long the last call blocked. An exception in `make`
    ends the thread and is raised by `next()` (and by every later call) as it was: type, message and traceback. After
    the last step `next()` raises StopIteration, after `close()` RuntimeError. Neither blocks for ever.

    interrupt: called by `close()`, so that a `make` that is waiting for something gives up.
    """

    def __init__(
        self,
        make: Callable[[int], T],
        start: int,
        depth: int = 2,
        stop: int | None = None,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self._make = make
        self._stop = stop
        self._interrupt = interrupt
        self._items: queue.Queue[tuple[int, T]] = queue.Queue(depth)
        self._closing = threading.Event()
        self._closed = False
        self._error: BaseException | None = None
        self.wait_ms = 0.0
        self._thread = threading.Thread(target=self._run, args=(start,), name="minigpt-prefetch", daemon=True)
        self._thread.start()

    def _run(self, step: int) -> None:
        try:
            while not self._closing.is_set() and (self._stop is None or step < self._stop):
                item = (step, self._make(step))
                while not self._closing.is_set():
                    try:
                        self._items.put(item, timeout=POLL_SECONDS)
                        break
                    except queue.Full:
                        continue
                step += 1
        except StopIteration as error:  # raised by next() it would look like the end of the steps
            wrapped = RuntimeError(f"making the batch of step {step} raised StopIteration")
            wrapped.__cause__ = error
            self._error = wrapped
        except BaseException as error:
            self._error = error

    def next(self) -> tuple[int, T]:
        """The next step and its batch, in order of steps."""
        if self._closed:
            raise RuntimeError("this prefetcher was closed")
        began = time.perf_counter()
        try:
            item = self._take()
        finally:
            self.wait_ms = (time.perf_counter() - began) * 1000
        if item is not None:
            return item
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _take(self) -> tuple[int, T] | None:
        """The next item, or None if the thread has ended and left none. Short waits keep Ctrl-C working everywhere."""
        while True:
            # Looked up before the queue is: a thread that was alive may still add an item, a dead one cannot.
            alive = self._thread.is_alive()
            try:
                return self._items.get(timeout=POLL_SECONDS) if alive else self._items.get_nowait()
            except queue.Empty:
                if not alive:
                    return None

    __next__ = next

    def __iter__(self) -> Iterator[tuple[int, T]]:
        return self

    def close(self, timeout: float = 5.0) -> None:
        """Stop the thread; waits for it `timeout` seconds at most (a `make` that hangs is left behind). Repeatable."""
        self._closed = True
        self._closing.set()
        if self._interrupt is not None:
            self._interrupt()
        while True:  # what was made already is dropped, so that a thread waiting for room goes on at once
            try:
                self._items.get_nowait()
            except queue.Empty:
                break
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
