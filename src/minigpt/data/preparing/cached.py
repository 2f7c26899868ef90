"""The folder of a unit in the cache: found, or made, by one process at a time, by several parts, or after a kill.

`CACHE/tokens/<key>/` holds what is finished (folder.py), `<key>.work/` the blocks of what is not. The key is a hash
of all that determines the ids: the content of the sources, the split, the rules for documents, the meaning of the
tokenizer and its end-of-text token. So nothing is ever stale, and the same text under another name is found again.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.config import RequestError, WorkError
from minigpt.config.extension import Extension
from minigpt.data.dataset import TokenDataset, token_dtype
from minigpt.data.preparing.blocks import BLOCK_CHARACTERS, Block, BlockId, DamagedBlockError, find_blocks
from minigpt.data.preparing.build import make_blocks
from minigpt.data.preparing.folder import FORMAT, open_folder
from minigpt.data.preparing.merge import merge
from minigpt.data.preparing.progress import Tracker
from minigpt.data.preparing.shards import CorruptShardError
from minigpt.data.preparing.unit import WHOLE, Part, Unit, UnitReader, separator_of
from minigpt.data.reading.download import DownloadError, Progress
from minigpt.data.reading.sources import describe_sources, identity
from minigpt.storage.atomic import atomic_folder, clean_stale, write_error
from minigpt.storage.lock import wait_lock
from minigpt.tokenizer import Tokenizer

LOCK_SECONDS = 24 * 3600.0
ABANDONED_SECONDS = 7 * 24 * 3600.0  # a work folder that nobody went on with for so long is removed
DAMAGED_TIMES = 3  # so often a damaged block is made again before the disk is held to be broken
LOG = logging.getLogger("minigpt")


@dataclass(frozen=True)
class Workplace:
    """What stays the same while the units of one data config are prepared.

    workers: threads that encode. parts: the folder of the work folders, None for the cache's own.
    """

    tokenizer: Tokenizer
    cache: Path
    workers: int
    on_progress: Progress | None = None
    parts: Path | None = None


class CachedUnit:
    """A unit at its place in the cache. RequestError for sources that cannot be read, WorkError for a full disk."""

    def __init__(self, unit: Unit, place: Workplace) -> None:
        self.unit, self.place = unit, place
        self._key = self._make_key()
        self.digest = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = place.cache / "tokens" / self.digest
        self.work = (place.parts or place.cache / "tokens") / f"{self.digest}.work"

    def load(self) -> dict[str, TokenDataset]:
        """The splits, opened: `train` and `val`, or `all`. They are made if they are not there, or are damaged."""
        _make(self.folder.parent)
        with wait_lock(self.folder.parent / f"{self.digest}.lock", LOCK_SECONDS):
            self._clean()
            if (found := self._find()) is not None:
                return found
            with self._working():
                self._finish()
            return open_folder(self.folder, self.place.cache)

    def make_part(self, part: Part) -> int:
        """Make the blocks of one part, those that are not there; their number. The others may be made at the time."""
        _make(self.work.parent)
        with wait_lock(self.work.parent / f"{self.digest}.part-{part.index}-{part.count}.lock", LOCK_SECONDS):
            if self.folder.exists():
                return 0
            try:
                with self._working():
                    return len(self._make_missing(part, self._blocks())[0])
            except WorkError:
                if self.folder.exists():  # somebody did not wait for this part, and took the work folder away
                    return 0
                raise

    def _clean(self) -> None:
        """Remove what killed processes left and nobody needs: the caller has the lock, so nobody is publishing."""
        for path in self.folder.parent.glob(f".tmp-{self.digest}-*"):
            shutil.rmtree(path, ignore_errors=True)
        clean_stale(self.folder.parent)
        for path in {self.work, *self.folder.parent.glob("*.work")}:
            with contextlib.suppress(OSError):
                if path == self.work:
                    done = self.folder.exists()  # it was stopped when all was done but this
                else:
                    done = time.time() - path.stat().st_mtime > ABANDONED_SECONDS
                if done:
                    shutil.rmtree(path)

    def _find(self) -> dict[str, TokenDataset] | None:
        if not self.folder.exists():
            return None
        try:
            return open_folder(self.folder, self.place.cache)
        except CorruptShardError as error:
            LOG.warning("%s; the text is tokenized again", error)
            return None

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """A work folder for the time of the work. What a kill leaves in it is used again, an error leaves nothing."""
        _make(self.work)
        try:
            os.utime(self.work)  # not abandoned, even if it is long until the first block
            yield
        except RequestError:  # nothing can come of this text
            shutil.rmtree(self.work, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(self.work, ignore_errors=True)
            raise write_error(self.work, error) from error
        except WorkError:
            with contextlib.suppress(OSError):  # there are no blocks yet
                self.work.rmdir()
            raise

    def _finish(self) -> None:
        """All blocks, merged and published. The work folder goes."""
        for _ in range(DAMAGED_TIMES):
            known = self._blocks()
            made, reader = self._make_missing(WHOLE, known)
            blocks = self._blocks()
            if not {*known, *made} <= blocks.keys():  # one was found to be damaged meanwhile, and removed
                continue
            try:
                with atomic_folder(self.folder, replace=True) as unfinished:
                    merge(blocks, self.unit, reader, self.place.tokenizer, unfinished)
                    if self._make_key() != self._key or not self._is_steady(reader, blocks):
                        raise RequestError(
                            f"{describe_sources(self.unit.sources)} changed while it was being tokenized: it must give "
                            "the same documents every time that it is read"
                        )
            except DamagedBlockError as error:
                LOG.warning("%s; it is made again", error)
                error.path.unlink(missing_ok=True)
                continue
            except DownloadError:  # the key of a data set of the hub: the next start goes on here
                raise
            except WorkError:  # a full disk: nothing that takes its place is left
                shutil.rmtree(self.work, ignore_errors=True)
                raise
            shutil.rmtree(self.work, ignore_errors=True)
            return
        raise WorkError(f"{self.work} cannot be read as it was written: the disk is damaged")

    def _is_steady(self, reader: UnitReader, blocks: Mapping[BlockId, Block]) -> bool:
        """Whether the classes of the user's own among the sources still give the document that they gave first.

        No key can tell that of a class which draws at random, and then a preparation that goes on would mix two texts.
        """
        for number, source in enumerate(self.unit.sources):
            first = blocks.get((number, 0, 0))
            if not isinstance(source, Extension) or first is None or self.unit.min_tokens is not None:
                continue
            document = reader.document(number, (0, 0))
            if document is None or len(document.text) != first.table()[1, 0]:
                return False
        return True

    def _blocks(self) -> dict[BlockId, Block]:
        """The sound blocks in the work folder."""
        return find_blocks(self.work, self.place.tokenizer.vocab_size)

    def _make_missing(self, part: Part, known: Mapping[BlockId, Block]) -> tuple[list[BlockId], UnitReader]:
        """Make the blocks of a part that are not `known`; which they were, and their reader."""
        place = self.place
        clean_stale(self.work)
        facts = {number: block.facts for number, block in known.items()}
        reader = UnitReader(self.unit, place.tokenizer, place.cache, self.work, part)
        tracker = Tracker(self.unit.sources, place.cache, reader, place.on_progress)
        made = make_blocks(self.unit, reader, place.tokenizer, facts, self.work, place.workers, tracker.update)
        tracker.finish()
        return made, reader

    def _make_key(self) -> dict[str, Any]:
        """All that determines the ids, and the blocks and shards that they are in."""
        unit, place = self.unit, self.place
        return {
            "format": FORMAT,
            "sources": [identity(source, place.cache, place.on_progress) for source in unit.sources],
            "val_fraction": unit.fraction,
            "tokenizer": place.tokenizer.fingerprint,
            "dtype": token_dtype(place.tokenizer.vocab_size).name,
            "eot": place.tokenizer.eot_id if unit.append_eot else None,
            "separator": separator_of(place.tokenizer),
            "rules": [unit.max_tokens, unit.min_tokens, unit.deduplicate, unit.first_documents],
            "shard_tokens": unit.shard_tokens,
            "block_characters": BLOCK_CHARACTERS,
        }


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None


def cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
