"""Prepared tokens that are read from where they are: a folder of `minigpt data prepare --out`, here or in a store.

A folder on this machine is mapped into memory. From a store (https://, s3://, gs://, ...) each shard is fetched whole
when it is needed, into a cache of bounded size (stores/shard_cache.py), and the next one while the current one is read.

Random windows out of everything would fetch a shard for nearly every row as soon as the cache is smaller than the data
set. So the windows of such a source are shuffled shard by shard: the shards in a random order, and the windows within
each (`TokenDataset.stretch`). That holds for a folder on this machine too: the same data set gives the same rows
wherever it lies.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from minigpt.config import RequestError
from minigpt.data.dataset import TokenDataset, Tokens
from minigpt.data.document_starts import Offsets, found_piecewise
from minigpt.data.preparing.folder import META, FolderMeta, ShardEntry, open_folder, parse_meta, split_of
from minigpt.data.preparing.shards import CorruptShardError
from minigpt.data.stores.remote import open_store
from minigpt.data.stores.shard_cache import RemoteShard, ShardCache
from minigpt.tokenizer import Tokenizer

STARTS_IN_MEMORY = 8  # shards whose document starts are kept
WHERE_FROM = "shards are read from a folder that `minigpt data prepare --out` wrote"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # nothing that leads out of the folder


def open_shards(
    address: str, tokenizer: Tokenizer, shards: ShardCache, *, together: int | None = None
) -> dict[str, TokenDataset]:
    """The splits of a prepared folder at a path or address: `train` and `val`, or `all` where nothing was kept apart.

    `together` is out of how many tokens rows are drawn at random at a time, if not out of one shard: these must fit
    into the cache. Nothing but meta.json is read from a store yet. Raises RequestError if there is no such folder, or
    it fits neither the tokenizer nor the cache, WorkError if the store fails or a shard is damaged.
    """
    if address.startswith("file://"):
        address = address.removeprefix("file://")
    local = "://" not in address
    if local:
        splits = _open_local(address, tokenizer, shards.cache)
    else:
        splits = _open_remote(address, tokenizer, shards, together)
    for name, split in splits.items():
        split.name = f"{address} ({name})"
    return splits


def _open_local(address: str, tokenizer: Tokenizer, cache: Path) -> dict[str, TokenDataset]:
    folder = Path(address).expanduser()
    if not folder.is_dir():
        raise RequestError(f"{address} is no folder; {WHERE_FROM}")
    try:
        raw = (folder / META).read_bytes()
    except OSError as error:
        reason = f"{folder / META} cannot be read: {error.strerror}"
        raise RequestError(f"{reason}; {WHERE_FROM}") from None
    meta = _checked(raw, address, tokenizer)
    splits = open_folder(folder, cache)
    for split in splits.values():
        split.stretch = _stretch(meta)
    return splits


def _open_remote(
    address: str, tokenizer: Tokenizer, shards: ShardCache, together: int | None
) -> dict[str, TokenDataset]:
    store = open_store(address)
    try:
        raw = store.read(META)
    except RequestError as error:
        raise RequestError(f"{error}; {WHERE_FROM}") from None
    meta = _checked(raw, address, tokenizer)
    largest = max(meta.shards, key=lambda entry: entry.bytes)
    wanted = min(len(meta.shards), math.ceil((together or 1) / largest.tokens))
    several = f"the {wanted} shards of {address} that rows are drawn from at a time"
    shards.require_room(wanted * largest.bytes, several if wanted > 1 else f"a shard of {address}")
    parts = [
        _Part(RemoteShard(store, entry.name, entry.bytes, entry.sha256), entry.tokens, shards) for entry in meta.shards
    ]
    whole = TokenDataset(
        parts,
        meta.vocab_size,
        "",
        starts=_Starts(parts, meta.shards),
        eot_id=meta.eot,
        stretch=_stretch(meta),
    )
    return {name: split_of(whole, entry) for name, entry in meta.splits.items()}


def _checked(raw: bytes, address: str, tokenizer: Tokenizer) -> FolderMeta:
    """meta.json, if it is one and its ids are those of the tokenizer; RequestError says what is wrong."""
    try:
        meta = parse_meta(raw, f"{address}/{META}")
    except CorruptShardError as error:
        raise RequestError(str(error)) from None
    if not meta.shards or not all(_PLAIN_NAME.fullmatch(entry.name) for entry in meta.shards):
        raise RequestError(f"{address}/{META} is damaged: it names no shards, or files outside its folder")
    copy = "a copy of " if "://" in address else ""
    remedy = f"set tokenizer.kind=file and tokenizer.path to {copy}{address}/tokenizer"
    if meta.tokenizer != tokenizer.fingerprint:
        raise RequestError(
            f"the shards at {address} were made with another tokenizer ({meta.vocab_size:,} ids) than the one of this "
            f"run ({tokenizer.vocab_size:,} ids): {remedy}"
        )
    if meta.vocab_size > tokenizer.vocab_size:
        raise RequestError(
            f"the shards at {address} use a vocabulary of {meta.vocab_size:,} ids, the tokenizer of this run has "
            f"{tokenizer.vocab_size:,}: {remedy}"
        )
    return meta


def _stretch(meta: FolderMeta) -> int | None:
    """Tokens of a shard (of the largest), if there are several."""
    return max(entry.tokens for entry in meta.shards) if len(meta.shards) > 1 else None


@dataclass(frozen=True)
class _Part:
    """The tokens of one shard of a store, as a part of a TokenDataset."""

    shard: RemoteShard
    n_tokens: int
    shards: ShardCache

    def __len__(self) -> int:
        return self.n_tokens

    def __getitem__(self, wanted: slice) -> Tokens:
        return self.shards.read(self.shard, wanted.start, wanted.stop)

    def prefetch(self, start: int, stop: int) -> None:
        """The whole shard, whichever part of it is wanted."""
        self.shards.prefetch(self.shard)


class _Starts:
    """Documents of the shards of a store: how many each has is in meta.json, where they begin is in the shard."""

    def __init__(self, parts: Sequence[_Part], entries: Sequence[ShardEntry]) -> None:
        self._parts = parts
        self._bounds = [0, *accumulate(entry.tokens for entry in entries)]
        self._counts = [0, *accumulate(entry.documents for entry in entries)]
        self._in_shard = lru_cache(maxsize=STARTS_IN_MEMORY)(self._read)

    def _read(self, index: int) -> Offsets:
        part = self._parts[index]
        with part.shards.opened(part.shard) as opened:
            return np.array(opened.starts, np.int64)

    def __len__(self) -> int:
        return self._counts[-1]

    def offsets(self) -> Offsets:
        """All of them, for which every shard has to be fetched once."""
        return np.concatenate([self._in_shard(i) + self._bounds[i] for i in range(len(self._parts))])

    def at(self, positions: Offsets) -> Offsets:
        """A token before the first start in its shard belongs to the last document of the shards before."""

        def find(index: int, places: Offsets) -> Offsets:
            return np.searchsorted(self._in_shard(index), places, side="right") - 1 + self._counts[index]

        return found_piecewise(positions, self._bounds, find)
