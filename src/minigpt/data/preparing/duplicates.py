"""Leaves out documents whose text has come before, to the letter.

Texts are compared by 128-bit hashes (BLAKE2b): two different ones with the same hash are not to be expected before some
10**19 documents. Hashes that were seen lie in sorted runs on the disk, so that memory stays bounded however many
documents there are.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minigpt.data.reading.sources import Document

GROUP = 256  # documents that are looked up together, or fewer
GROUP_CHARACTERS = 1 << 22  # if they are long: they are held meanwhile
RUN = 1 << 18  # hashes that are collected in memory before they are sorted and written
MERGE_AT = 8  # runs of about RUN hashes that are made one; larger ones stay as they are: merging takes memory

Hashes = NDArray[np.uint64]  # (2, N): the halves of N hashes
Numbered = tuple[int, Document]


def first_copies(documents: Iterable[Numbered], scratch: Path) -> Iterator[Numbered]:
    """The (number, document) pairs whose text is new, in order. `scratch` is a folder for temporary files."""
    folder = Path(tempfile.mkdtemp(prefix=".tmp-hashes-", dir=scratch))
    try:
        seen = _Seen(folder)
        for group in _groups(documents):
            hashes = [hashlib.blake2b(document.text.encode(), digest_size=16).digest() for _, document in group]
            known = seen.contains(hashes)
            for item, digest, is_old in zip(group, hashes, known, strict=True):
                if not is_old and seen.add(digest):
                    yield item
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _groups(documents: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    """The documents, some at a time."""
    group: list[Numbered] = []
    size = 0
    for item in documents:
        group.append(item)
        size += len(item[1].text)
        if len(group) == GROUP or size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Seen:
    """A set of 16-byte hashes: the newest in memory, the others in sorted arrays on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._newest: set[bytes] = set()
        self._small: list[Hashes] = []  # memory-mapped, sorted by their first row
        self._large: list[Hashes] = []
        self._written = 0

    def contains(self, hashes: list[bytes]) -> NDArray[np.bool_]:
        """(N,) whether each is in one of the runs on the disk. Until the next call `add` writes none."""
        if len(self._newest) >= RUN:
            self._write_newest()
        wanted = _as_array(hashes)
        found = np.zeros(len(hashes), bool)
        for run in (*self._large, *self._small):
            found |= _is_in(wanted, run)
        return found

    def add(self, digest: bytes) -> bool:
        """Remember a hash that is in none of the runs; False if it is one of the newest."""
        if digest in self._newest:
            return False
        self._newest.add(digest)
        return True

    def _write_newest(self) -> None:
        self._small.append(self._write(_as_array(self._newest)))
        self._newest = set()
        if len(self._small) == MERGE_AT:
            self._large.append(self._write(np.concatenate(self._small, axis=1)))
            self._small = []

    def _write(self, hashes: Hashes) -> Hashes:
        path = self._folder / f"{self._written}.npy"
        np.save(path, hashes[:, np.argsort(hashes[0])])
        self._written += 1
        return np.load(path, mmap_mode="r")


def _as_array(hashes: Iterable[bytes]) -> Hashes:
    return np.ascontiguousarray(np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2).T)


def _is_in(wanted: Hashes, run: Hashes) -> NDArray[np.bool_]:
    """(N,) whether each of `wanted` (2, N) is in a sorted run (2, M)."""
    at = np.searchsorted(run[0], wanted[0])
    found = np.zeros(len(at), bool)
    for number in np.flatnonzero(run[0][np.minimum(at, run.shape[1] - 1)] == wanted[0]):  # few: these are the copies
        end = np.searchsorted(run[0], wanted[0, number], side="right")
        found[number] = wanted[1, number] in run[1, at[number] : end]
    return found
