"""Files in a store: at an http(s) address by our own downloads, anywhere else (s3, gs, memory, ...) through fsspec.

fsspec's HTTP reads are not used: from a server without byte ranges they give a file's beginning for any part of it, and
they take no account of mirrors or of the hub's ways. Every other kind of store reads any range of a file, so a shard
arrives in pieces, and a failure costs one piece. Not every library has timeouts of its own: each request is given up
after TIMEOUT_SECONDS whatever it does.
"""

import os
import queue
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from minigpt.config import RequestError
from minigpt.data.reading.download import DownloadError, Progress, download
from minigpt.storage.atomic import write_error

T = TypeVar("T")

ATTEMPTS = 6  # in a row without any progress; the pauses between them are half a minute together
BACKOFF_SECONDS = 1.0  # before the second attempt; twice as long before each further one
TIMEOUT_SECONDS = 30.0
PIECE_BYTES = 1 << 23

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Which extra of ours brings the library for a kind of store; `stores` for those that fsspec knows by itself."""


class Store(Protocol):
    """A folder of files that are fetched whole."""

    address: str

    def read(self, name: str) -> bytes:
        """A small file. RequestError if it is not there, DownloadError if it cannot be had."""

    def fetch(self, name: str, folder: Path, size: int, on_progress: Progress | None = None) -> Path:
        """Bring a file of `size` bytes into `folder`, going on with what an earlier attempt left; where it is then.

        Raises RequestError and DownloadError as `read` does, WorkError if its size is another. Whether the content is
        right is the caller's to check.
        """


def open_store(address: str) -> Store:
    """The store at an address like s3://BUCKET/FOLDER or https://HOST/FOLDER; nothing is asked of it yet.

    RequestError for a kind of store that is not known, or whose library is missing.
    """
    address = address.rstrip("/")
    if address.startswith(("http://", "https://")):
        return HttpStore(address)
    return FsspecStore(address)


class HttpStore:
    """Files below an http(s) address."""

    def __init__(self, address: str) -> None:
        self.address = address

    def read(self, name: str) -> bytes:
        """A small file, asked for anew each time."""
        with tempfile.TemporaryDirectory(prefix="minigpt-") as folder:
            return self._download(name, Path(folder)).read_bytes()

    def fetch(self, name: str, folder: Path, size: int, on_progress: Progress | None = None) -> Path:
        """See Store."""
        return self._download(name, folder, size=size, on_progress=on_progress)

    def _download(self, name: str, folder: Path, **expected: Any) -> Path:
        url = f"{self.address}/{urllib.parse.quote(name)}"
        return download(url, folder, attempts=ATTEMPTS, backoff=BACKOFF_SECONDS, timeout=TIMEOUT_SECONDS, **expected)


class FsspecStore:
    """Files below an address of any kind that fsspec knows. Credentials and endpoints are those of its libraries."""

    def __init__(self, address: str) -> None:
        self.address = address
        protocol = address.partition("://")[0]
        extra = EXTRAS.get(protocol, "stores")
        try:
            import fsspec
        except ImportError:
            raise RequestError(f'reading {address} needs fsspec: pip install "minigpt[{extra}]"') from None
        try:
            self._files, self._root = fsspec.url_to_fs(address)
        except ImportError as error:
            how = f'pip install "minigpt[{extra}]"' if protocol in EXTRAS else str(error)
            raise RequestError(f"reading {address} needs a library that is not installed: {how}") from None
        except ValueError as error:
            raise RequestError(
                f"{address} cannot be read ({error}): give a folder, https://, s3://, gs:// or another address that "
                "fsspec knows"
            ) from None

    def read(self, name: str) -> bytes:
        """A small file."""
        return self._retried(name, partial(self._ask, name))

    def fetch(self, name: str, folder: Path, size: int, on_progress: Progress | None = None) -> Path:
        """See Store."""
        part = folder / "part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with part.open("ab") as file:
                done = file.tell()
                while done < size:
                    piece = self._retried(name, partial(self._ask, name, done, min(done + PIECE_BYTES, size)))
                    file.write(piece)
                    done += len(piece)
                    if on_progress is not None:
                        on_progress("download", done, size)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # errors of the store do not get here
            raise write_error(part, error) from None
        return part

    def _ask(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """One request: the whole file, or its bytes start ... stop-1 (fewer only if the file ends before)."""
        data: bytes = within(
            TIMEOUT_SECONDS, lambda: self._files.cat_file(f"{self._root}/{name}", start=start, end=stop)
        )
        if start is not None and stop is not None:
            if not data:
                raise EOFError(f"the file ends at byte {start:,}")
            if len(data) > stop - start:
                raise EOFError(f"{len(data):,} bytes came where {stop - start:,} were asked for")
        return data

    def _retried(self, name: str, ask: Callable[[], bytes]) -> bytes:
        """The answer, after as many attempts as it takes. Every library has errors of its own, hence `Exception`."""
        place = f"{self.address}/{name}"
        for attempt in range(ATTEMPTS):
            try:
                return ask()
            except FileNotFoundError:
                raise RequestError(f"{place} does not exist") from None
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                # Both botocore's and google.auth's errors about missing credentials have that in their names.
                if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                    raise RequestError(f"{place} may not be read: {reason}; set the store's credentials") from None
            if attempt + 1 < ATTEMPTS:
                time.sleep(BACKOFF_SECONDS * 2**attempt)
        raise DownloadError(f"{place} could not be read, tried {ATTEMPTS} times: {reason}")


def within(seconds: float, call: Callable[[], T]) -> T:
    """`call()`, or TimeoutError: it runs in a thread that is left to itself when it takes longer than `seconds`."""
    answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, name="minigpt-store", daemon=True).start()
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} seconds") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
