"""Downloads a file over HTTP(S) once, into the cache, and continues where an interrupted download stopped.

`CACHE/downloads/<hash of the address>/` holds the file under its own name and `download.json` (address, size, sha256).
While it is under way the bytes are in `NAME.part` and what identifies them on the server in `NAME.part.json`; they are
continued with `Range` and `If-Range` (RFC 9110, sections 13.1.5 and 14.2), so a file that has changed meanwhile starts
again from its first byte. Nothing is used before its size, and its hash where one is known, are right. What failed is
left behind only where a later try can continue it.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.config import RequestError, WorkError
from minigpt.data.reading.hub import TOKEN_VARIABLE, Redirects, authorise, is_hub, mirrored
from minigpt.data.reading.memo import content_sha256, sha256_of
from minigpt.storage.atomic import atomic_write, write_error
from minigpt.storage.lock import wait_lock

CHUNK_BYTES = 1 << 18
RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}  # those that may go away by themselves
ABSENT_STATUS = {404, 410}
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Progress = Callable[[str, int, int | None], None]
"""Called as (stage, done, total or None)."""


class DownloadError(WorkError):
    """The file could not be had: the network, or the server, is at fault."""


class AbsentError(RequestError):
    """The server has no such file."""


class _TryAgain(Exception):
    """This attempt failed in a way that another may not."""


@dataclass
class _Part:
    """A download under way: its file and what the server said about it."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def facts(self) -> dict[str, Any]:
        return _read_json(self.note)

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def can_continue(self) -> bool:
        """Whether a later try can ask for the rest, and is sure to get that of the same file."""
        facts = self.facts()
        return self.size() > 0 and _validator(facts) is not None and facts.get("ranges") is not False


def download(
    url: str,
    cache: Path,
    sha256: str | None = None,
    size: int | None = None,
    *,
    attempts: int = 5,
    backoff: float = 0.5,
    timeout: float = 30.0,
    on_progress: Progress | None = None,
) -> Path:
    """Path of the file at `url`, downloaded unless it is in `cache` already.

    `sha256` (hexadecimal) and `size` (bytes) are checked when given, and so is a hash that Hugging Face's hub promises.
    A failed attempt is repeated until `attempts` in a row brought nothing new, after `backoff`, 2 * `backoff`, ...
    seconds; `timeout` seconds without a byte fail one. Raises RequestError for an address that cannot work,
    DownloadError when the file cannot be had, and WorkError when it is not what was promised.
    """
    parsed, address = _parsed(url), mirrored(url)
    _parsed(address)
    folder = cache / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:32]
    # Whatever the server calls it, the name must be one plain file name, and not one of our own two.
    last = urllib.parse.unquote(parsed.path.rpartition("/")[2])
    final = folder / ("data-" + re.sub(r"[^A-Za-z0-9._-]", "_", last)[-100:])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with wait_lock(folder / ".lock"):
            if _is_complete(final, cache, sha256, size):
                return final
            part = _Part(final.with_name(final.name + ".part"))
            again = part.size() > 0
            while True:
                _fetch(address, part, size, attempts, backoff, timeout, on_progress)
                digest, expected = sha256_of(part.path), sha256 or part.facts().get("sha256")
                if expected is None or digest == expected.lower():
                    break
                part.drop()
                if not again:
                    raise WorkError(
                        f"{address} has sha256 {digest}, not the expected {expected}; the download was deleted"
                    )
                again = False  # the beginning came from an earlier session: once more, from the first byte
            with part.path.open("rb+") as file:
                os.fsync(file.fileno())
            facts = {"url": url, "size": part.size(), "sha256": digest}
            os.replace(part.path, final)
            atomic_write(final.with_name("download.json"), json.dumps(facts, indent=1) + "\n")
            part.drop()
    except OSError as error:  # errors of the network do not get here
        if error.errno in FULL:
            with contextlib.suppress(OSError):  # leave the room to others
                _Part(final.with_name(final.name + ".part")).drop()
        raise write_error(final, error) from None
    return final


def _validator(facts: dict[str, Any]) -> str | None:
    """What names this version of the file to the server.

    An ETag that is weak (W/...) promises equal meaning, not equal bytes, and must not be used with If-Range.
    """
    return facts.get("etag") or facts.get("last_modified")


def _parsed(url: str) -> urllib.parse.SplitResult:
    """The parts of an address that can be fetched. RequestError for any other."""
    try:
        parsed = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise RequestError(f"{url!r} is not an address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise RequestError(f"{url!r} is not an http:// or https:// address")
    return parsed


def _is_complete(final: Path, cache: Path, sha256: str | None, size: int | None) -> bool:
    """Whether the cached file is whole and the one that is asked for."""
    facts = _read_json(final.with_name("download.json"))
    if not final.is_file() or final.stat().st_size != facts.get("size"):
        return False
    if size is not None and size != facts["size"]:
        return False
    actual = content_sha256(final, cache)
    return actual == facts.get("sha256") and (sha256 is None or actual == sha256.lower())


def _fetch(
    url: str, part: _Part, size: int | None, attempts: int, backoff: float, timeout: float, on_progress: Progress | None
) -> None:
    """Bring `part` to its full length, in as many attempts as that takes."""
    fruitless, furthest = 0, part.size()
    while True:
        try:
            _attempt(url, part, size, timeout, on_progress)
            return
        except _TryAgain as error:
            fruitless = 0 if part.size() > furthest else fruitless + 1
            furthest = max(furthest, part.size())
            if fruitless >= attempts:
                if part.can_continue():
                    done = f" after {part.size():,} bytes (kept, the next try continues there)"
                else:
                    part.drop()
                    done = ""
                raise DownloadError(f"{url} could not be downloaded{done}, tried {attempts} times: {error}") from None
        time.sleep(backoff * 2 ** max(0, fruitless - 1))


def _attempt(url: str, part: _Part, size: int | None, timeout: float, on_progress: Progress | None) -> None:
    """One request; _TryAgain when it ends before the file does."""
    have, known = part.size(), part.facts()
    validator = _validator(known)
    if have and (not validator or known.get("url") != url):
        part.drop()
        have = 0
    headers = {"User-Agent": "minigpt", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": str(validator)}
    redirects = Redirects()
    try:
        request = urllib.request.Request(urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
        authorise(request)
        with urllib.request.build_opener(redirects).open(request, timeout=timeout) as response:
            start = have if response.status == PARTIAL_CONTENT else 0
            total = _total(response, start)
            if size is not None and total is not None and total != size:
                part.drop()
                raise WorkError(f"{url} has {total:,} bytes on the server, not the expected {size:,}")
            etag = response.headers.get("ETag", "")
            facts = {
                "url": url,
                "etag": None if etag.startswith("W/") else etag or None,
                "last_modified": response.headers.get("Last-Modified"),
                "sha256": redirects.sha256,
                "total": total,
            }
            if start == 0:
                part.drop()  # first the bytes, then the note: a kill in between must not join two files
                # Asked for the rest of the same version, the server began again: it has no ranges.
                ranges = not (have and _validator(facts) == validator)
                atomic_write(part.note, json.dumps({**facts, "ranges": ranges}) + "\n")
            elif any(known.get(name) not in (None, fact) for name, fact in facts.items() if fact is not None):
                part.drop()
                raise _TryAgain("the file on the server changed during the download")
            with part.path.open("ab" if start else "wb") as file:
                _copy(response, file, start, total, on_progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == RANGE_NOT_SATISFIABLE and have:
            part.drop()  # longer than the file is now, or the very whole of it: either way begin again
            raise _TryAgain("the server refused to continue an earlier download") from None
        if error.code in RETRY_STATUS:
            raise _TryAgain(f"the server answered {error.code} {error.reason}") from None
        answer = " ".join(f"{error.code} {error.reason}".split())
        hint = f"; set {TOKEN_VARIABLE} to the access token of an account that may read it"
        hint = hint if error.code in (401, 403) and is_hub(url) else ""
        refused = AbsentError if error.code in ABSENT_STATUS else RequestError
        raise refused(f"{url} cannot be downloaded: the server answered {answer}{hint}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        raise _TryAgain(str(getattr(reason, "strerror", None) or reason)) from None
    except http.client.InvalidURL as error:
        raise RequestError(f"{url!r} is not an address: {error}") from None
    except http.client.IncompleteRead:
        raise _TryAgain("the connection broke off") from None
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _TryAgain(str(error) or type(error).__name__) from None
    got, whole = part.size(), size if total is None else total
    if whole is not None and got < whole:
        raise _TryAgain(f"the connection broke off at {got:,} of {whole:,} bytes")
    if whole is not None and got > whole:
        part.drop()
        if size is None:
            raise WorkError(f"{url} sends more than the {whole:,} bytes that it announced; the download was deleted")
        raise WorkError(f"{url} gave {got:,} bytes, not the expected {whole:,}; the download was deleted")


def _copy(response: Any, file: Any, done: int, total: int | None, on_progress: Progress | None) -> None:
    """The rest of the body into the file. Errors of the network become _TryAgain, those of the disk stay OSError.

    A byte more than was announced is written too, so that the length tells. (Python's client would end the body where
    it was said to end, and a part of the file would pass for all of it.)
    """
    response.length = None
    while True:
        wanted = CHUNK_BYTES if total is None else min(total + 1 - done, CHUNK_BYTES)
        try:
            chunk = response.read1(wanted) if wanted else b""
        except OSError as error:
            if done == total:
                return  # the server does not hang up, though it was asked to
            raise _TryAgain(error.strerror or str(error) or type(error).__name__) from None
        if not chunk:
            return
        file.write(chunk)
        done += len(chunk)
        if on_progress is not None:
            on_progress("download", done, total)


def _total(response: Any, start: int) -> int | None:
    """Length of the whole file, if the server says; _TryAgain when the part sent is not the one asked for."""
    if response.status == PARTIAL_CONTENT:
        sent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if sent is None or int(sent[1]) != start:
            raise WorkError(f"{response.url} answered with another part of the file than the one asked for")
        return None if sent[3] == "*" else int(sent[3])
    with contextlib.suppress(TypeError, ValueError):
        return int(response.headers.get("Content-Length"))
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is none to be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
