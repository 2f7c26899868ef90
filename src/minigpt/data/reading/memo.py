"""Remembers what was computed from a file's content, so that an unchanged file is not read again.

One small JSON file per (kind, path) in `CACHE/memo`, valid while the file's size, modification time and (POSIX) change
time stay as they were. A change that leaves all of them alone, such as decaying storage, is not noticed.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.config import RequestError
from minigpt.storage.atomic import atomic_write, write_error

# A file that was modified this recently may be modified again within one tick of its file system's clock (FAT: 2 s)
# and then look unchanged, so nothing is remembered about it yet. Git calls such index entries "racily clean".
SETTLED_NS = 2_000_000_000
CHUNK_BYTES = 1 << 20

Stamp = tuple[int, int, int]  # size in bytes, mtime_ns, ctime_ns


def stamp(path: Path) -> Stamp:
    """What is compared to tell whether a file has changed."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def memoised(path: Path, cache: Path, kind: str, compute: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """`compute(path)` (a JSON object), or what it gave last time if the file is unchanged since.

    RequestError when the file changes while it is being read.
    """
    absolute = os.path.abspath(path)
    name = hashlib.sha256(f"{kind}\0{absolute}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    memo = cache / "memo" / f"{name}.json"
    before = stamp(path)
    known = _read(memo)
    if known.get("path") == absolute and known.get("stamp") == list(before) and isinstance(known.get("facts"), dict):
        return dict(known["facts"])
    settled = time.time_ns() - max(before[1:]) > SETTLED_NS
    facts = compute(path)
    if stamp(path) != before:
        raise RequestError(f"{path} changed while it was being read; wait until whatever writes it has finished")
    if settled:
        try:
            memo.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(memo, error) from None
        atomic_write(memo, json.dumps({"path": absolute, "kind": kind, "stamp": before, "facts": facts}) + "\n")
    return facts


def _read(memo: Path) -> dict[str, Any]:
    """A memo's content; {} if there is none or it is unreadable, since a memo can always be made anew."""
    try:
        known = json.loads(memo.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def content_sha256(path: Path, cache: Path) -> str:
    """`sha256_of`, remembered while the file does not change (a small one is hashed sooner than it is remembered)."""
    if path.stat().st_size <= CHUNK_BYTES:
        return sha256_of(path)
    return str(memoised(path, cache, "sha256", lambda p: {"sha256": sha256_of(p)})["sha256"])
