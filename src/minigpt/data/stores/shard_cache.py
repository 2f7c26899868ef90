"""Shards of stores on this machine's disk: fetched when they are needed, within a bound of bytes.

`CACHE/stores/` holds for each shard, under the SHA-256 of its content,

    HASH.tok            the shard, whole and checked: it gets this name in one step
    HASH-BYTES.part/    what has arrived of one that is on its way; it counts with all its BYTES
    HASH.lock           locked by everyone who has it mapped (shared) and by who removes it; its modification time is
                        that of the last use
    HASH.fetch          locked by who fetches or removes it

Where there is no room, the shard that was used longest ago goes first, but never one that somebody has mapped. All
processes of a machine share the folder, so each shard is fetched once for all of them. Being named by their content,
the same shards at two addresses are one.
"""

import contextlib
import logging
import os
import re
import shutil
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt.config import RequestError, WorkError
from minigpt.data.dataset import Tokens
from minigpt.data.preparing.shards import CorruptShardError, TokenShard
from minigpt.data.reading.download import DownloadError, Progress
from minigpt.data.stores.remote import Store
from minigpt.storage.atomic import write_error
from minigpt.storage.lock import Lock, try_lock, wait_lock

FETCH_SECONDS = 24 * 3600.0  # how long to wait for another process that is fetching the same shard
ROOM_SECONDS = 60.0  # how long to wait until others let go of a shard, so that there is room
IDLE_SECONDS = 10.0  # a shard that was not read for so long is let go of, so that others may remove it
KEEP_OPEN = 64  # shards that are mapped at the same time: below all limits on open files
PREFETCH_PAUSE_SECONDS = 60.0  # before a prefetch that failed is tried again
SPARE = 3  # shards that must fit before one is prefetched: the one being read, its neighbour, and the next
_NAME = re.compile(r"(?P<sha256>[0-9a-f]{64})(?:\.tok|-(?P<bytes>\d+)\.part)")
LOG = logging.getLogger("minigpt")


@dataclass(frozen=True)
class RemoteShard:
    """A shard in a store: its name there, the size of the file, and the SHA-256 of its content (hexadecimal)."""

    store: Store
    name: str
    bytes: int
    sha256: str

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return f"{self.store.address}/{self.name}"


@dataclass
class _Open:
    """A mapped shard, the shared lock that keeps it, how many are reading it now, and when it was last read."""

    shard: TokenShard
    lock: Lock
    readers: int
    used: float


class ShardCache:
    """The shards of stores in `cache`, at most `limit` bytes of them. Make one for all stores of a process.

    Safe to be used from several threads.
    """

    def __init__(self, cache: Path, limit: int, on_progress: Progress | None = None) -> None:
        self.cache, self.limit = cache, limit
        self.folder = cache / "stores"
        self._on_progress = on_progress
        self._open: OrderedDict[str, _Open] = OrderedDict()  # the one used longest ago first
        self._checked: set[str] = set()
        self._requested: dict[str, float] = {}  # when each shard was last asked to be prefetched
        self._mutex = threading.Lock()
        weakref.finalize(self, _release, self._open)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error) from None

    def require_room(self, bytes: int, what: str) -> None:
        """RequestError unless so many bytes can be kept at a time."""
        if bytes > self.limit:
            raise RequestError(
                f"data.store_cache_gb={self.limit / 1e9:g} is too small for {what}: give {bytes / 1e9:.3g} or more"
            )

    def read(self, shard: RemoteShard, start: int, stop: int) -> Tokens:
        """A copy of the shard's tokens start ... stop-1; fetches it if it is not here."""
        with self.opened(shard) as opened:
            return np.array(opened.tokens[start:stop])

    @contextlib.contextmanager
    def opened(self, shard: RemoteShard) -> Iterator[TokenShard]:
        """The shard, which stays mapped until the block ends. Copy what is needed for longer."""
        one = self._take(shard)
        try:
            yield one.shard
        finally:
            with self._mutex:
                one.readers -= 1
                one.used = time.monotonic()

    def prefetch(self, shard: RemoteShard) -> None:
        """Begin to fetch a shard that is needed soon. A failure is only logged: it is needed later, or not at all."""
        now = time.monotonic()
        with self._mutex:
            last = self._requested.get(shard.sha256)
            if shard.sha256 in self._open or (last is not None and now - last < PREFETCH_PAUSE_SECONDS):
                return
            self._requested[shard.sha256] = now
        if SPARE * shard.bytes <= self.limit and not self._path(shard).exists():
            threading.Thread(target=self._prefetch, args=(shard,), name="minigpt-prefetch-shard", daemon=True).start()

    def _prefetch(self, shard: RemoteShard) -> None:
        try:
            with self.opened(shard):
                return
        except (RequestError, WorkError) as error:
            LOG.warning("%s; it is asked for again when it is needed", error)

    def _take(self, shard: RemoteShard) -> _Open:
        """The mapped shard, with one more reader."""
        end, pause = time.monotonic() + FETCH_SECONDS, 0.001
        while True:
            with self._mutex:
                self._let_go_of_idle(IDLE_SECONDS)
                if (one := self._open.get(shard.sha256)) is not None:
                    one.readers += 1
                    self._open.move_to_end(shard.sha256)
                    return one
            try:
                if self._advance(shard):
                    continue
            except OSError as error:
                raise write_error(self._path(shard), error) from None
            if time.monotonic() > end:
                raise WorkError(f"gave up waiting for another process that is fetching {shard.address}")
            with self._mutex:  # that process may be waiting for room: who waits holds on to nothing
                self._let_go_of_idle(0.0)
            time.sleep(pause)
            pause = min(2 * pause, 0.25)

    def _let_go_of_idle(self, seconds: float) -> None:
        """Unmap what nobody has read for so long, and what is too much; called with the mutex."""
        before = time.monotonic() - seconds
        for key, one in list(self._open.items()):
            if one.used >= before and len(self._open) <= KEEP_OPEN:
                return  # those after it were read later
            if one.readers == 0:
                self._close(key)

    def _close(self, key: str) -> None:
        """Unmap a shard; called with the mutex."""
        one = self._open.pop(key)
        with contextlib.suppress(OSError):
            os.utime(one.lock.path)
        one.lock.release()

    def _path(self, shard: RemoteShard) -> Path:
        return self.folder / f"{shard.sha256}.tok"

    def _advance(self, shard: RemoteShard) -> bool:
        """Map the shard, fetching it if need be. False while somebody else is at work on it."""
        if self._map(shard):
            return True
        if (lock := try_lock(self._path(shard).with_suffix(".fetch"))) is None:
            return False
        with lock:  # nobody removes it before it is mapped
            if not self._is_sound(shard):
                self._fetch(shard)
            return self._map(shard)

    def _map(self, shard: RemoteShard) -> bool:
        """Map the shard if it is there."""
        path = self._path(shard)
        with contextlib.ExitStack() as stack:
            if (lock := try_lock(path.with_suffix(".lock"), shared=True)) is None:
                return False
            stack.enter_context(lock)
            if not self._is_sound(shard):
                return False
            opened = TokenShard(path)
            with self._mutex:
                if shard.sha256 not in self._open:  # else another thread was faster
                    self._open[shard.sha256] = _Open(opened, lock, 0, time.monotonic())
                    stack.pop_all()  # the lock is kept
            return True

    def _is_sound(self, shard: RemoteShard) -> bool:
        """Whether the file is there and, the first time that this process looks, is what it should be."""
        path = self._path(shard)
        if not path.exists():
            return False
        if shard.sha256 not in self._checked:
            if not self._is_right(shard, path):
                LOG.warning("%s, a copy of %s, was damaged; it is fetched again", path, shard.address)
                path.unlink()
                return False
            self._checked.add(shard.sha256)
        return True

    def _is_right(self, shard: RemoteShard, path: Path) -> bool:
        """Whether a file has the content that is expected of the shard."""
        try:
            opened = TokenShard(path)
            opened.verify(self.cache)
        except CorruptShardError:
            return False
        return opened.content_sha256 == shard.sha256

    def _fetch(self, shard: RemoteShard) -> None:
        """Bring the shard from its store; called with its lock. What arrives damaged is fetched once more."""
        path = self._path(shard)
        part = self.folder / f"{shard.sha256}-{shard.bytes}.part"
        try:
            for again in (True, False):
                self._reserve(shard, part)
                arrived = shard.store.fetch(shard.name, part, shard.bytes, self._on_progress)
                if self._is_right(shard, arrived):
                    break
                shutil.rmtree(part)
                if again:
                    LOG.warning("%s arrived damaged; it is fetched again", shard.address)
            else:
                raise CorruptShardError(f"{shard.address} is damaged: it is not the shard that its meta.json names")
            os.replace(arrived, path)
            shutil.rmtree(part)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise write_error(path, error) from None
        except (RequestError, WorkError) as error:
            if not isinstance(error, DownloadError):  # after that one, the next attempt goes on with what there is
                shutil.rmtree(part, ignore_errors=True)
            raise
        self._checked.add(shard.sha256)

    def _reserve(self, shard: RemoteShard, part: Path) -> None:
        """Make the folder `part`, which stands for the shard's bytes, once there is room for it."""
        end = time.monotonic() + ROOM_SECONDS
        while True:
            with wait_lock(self.folder / ".lock"):
                if part.exists() or self._make_room(shard.bytes):
                    part.mkdir(exist_ok=True)
                    return
            if time.monotonic() > end:
                raise WorkError(
                    f"there is no room for {shard.address}: the shards in {self.folder} that are in "
                    f"use take up data.store_cache_gb={self.limit / 1e9:g}; set it to more"
                )
            time.sleep(0.05)

    def _make_room(self, wanted: int) -> bool:
        """Remove shards until `wanted` bytes more are within the limit, the one used longest ago first."""
        sizes: dict[str, int] = {}
        for path in self.folder.iterdir():
            if (match := _NAME.fullmatch(path.name)) is not None:
                size = int(match["bytes"]) if match["bytes"] else path.stat().st_size
                sizes[match["sha256"]] = sizes.get(match["sha256"], 0) + size
        total = sum(sizes.values())
        for key in sorted(sizes, key=self._last_used):
            if total + wanted <= self.limit:
                break
            if self._remove(key):
                total -= sizes[key]
        return total + wanted <= self.limit

    def _last_used(self, key: str) -> float:
        with self._mutex:
            if (one := self._open.get(key)) is not None:
                return time.time() - (time.monotonic() - one.used)
        try:
            return (self.folder / f"{key}.lock").stat().st_mtime
        except OSError:
            return 0.0

    def _remove(self, key: str) -> bool:
        """Remove a shard, or what a killed process left of it, unless somebody reads or fetches it."""
        with self._mutex:
            if key in self._open:
                if self._open[key].readers:
                    return False
                self._close(key)
        with contextlib.ExitStack() as stack:
            for suffix in ("fetch", "lock"):
                if (lock := try_lock(self.folder / f"{key}.{suffix}")) is None:
                    return False
                stack.enter_context(lock)
            try:
                (self.folder / f"{key}.tok").unlink(missing_ok=True)
                for part in self.folder.glob(f"{key}-*.part"):
                    shutil.rmtree(part)
            except PermissionError:  # Windows, where a mapped file cannot be removed
                return False
        return True


def _release(opened: OrderedDict[str, _Open]) -> None:
    """Let go of the shards of a cache that is gone."""
    for one in opened.values():
        one.lock.release()
