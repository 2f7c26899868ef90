"""Locks on folders, so that two processes never write into the same one.

The lock is the operating system's (`flock`; a byte range on Windows), held by an open file: it goes when the process
ends, however it ends, so there are no stale locks. The file itself stays, with the name of the last holder for the
message.
"""

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from minigpt.config import RequestError, WorkError
from minigpt.storage.atomic import reason

LOCK_NAME = ".lock"
_BUSY = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK}
_WINDOWS_OFFSET = 1 << 30  # a locked byte cannot be read there: lock one far behind the holder's name

if sys.platform == "win32":
    import msvcrt

    def _acquire(descriptor: int, shared: bool) -> None:
        if not shared:  # there are no shared locks; a file that is open or mapped cannot be deleted there anyway
            os.lseek(descriptor, _WINDOWS_OFFSET, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _acquire(descriptor: int, shared: bool) -> None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


class Lock:
    """A held lock; `release()` or the end of a `with` block gives it back, as does the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Give the lock back; a second time does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_folder(folder: Path, what: str = "run folder") -> Lock:
    """Make `folder` if need be and lock it (the file `.lock` in it), at once or not at all.

    Raises `RequestError` naming the process that has it, or saying why it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder / LOCK_NAME)
    except OSError as error:
        raise RequestError(f"{what} {folder} cannot be used: {reason(error)}") from error
    if lock is None:
        raise RequestError(f"{what} {folder} is in use by {_holder(folder / LOCK_NAME)}: wait for it or choose another")
    return lock


def wait_lock(
    path: Path, timeout: float = 3600.0, on_wait: Callable[[str], None] | None = None, *, shared: bool = False
) -> Lock:
    """Lock the file `path`, waiting up to `timeout` seconds; `on_wait` gets one line if there is something to wait for.

    Any number may hold a `shared` lock, as long as nobody holds one that is not. Raises `WorkError` when the time is
    over or the file cannot be made.
    """
    end = time.monotonic() + timeout
    pause = 0.01
    while True:
        try:
            lock = try_lock(path, shared=shared)
        except OSError as error:
            raise WorkError(f"could not lock {path}: {reason(error)}") from error
        if lock is not None:
            return lock
        if on_wait is not None:
            on_wait(f"waiting for {_holder(path)}, which is working on {path.stem}")
            on_wait = None
        if time.monotonic() + pause > end:
            raise WorkError(
                f"gave up after {timeout:g} seconds of waiting for {_holder(path)}, which has locked {path}"
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def try_lock(path: Path, *, shared: bool = False) -> Lock | None:
    """Lock the file `path` at once; None if another holds it. Raises `OSError` if the file cannot be made."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _acquire(descriptor, shared)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _BUSY:
            return None
        raise
    except BaseException:
        os.close(descriptor)
        raise
    with contextlib.suppress(OSError):  # the name only helps the message: a full disk must not stop a run here
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return Lock(path, descriptor)


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"
