"""A folder of prepared tokens: shards that follow each other, and meta.json, which says what is in them.

    meta.json            {"format", "vocab_size", "tokenizer", "dtype", "eot", "shards": [...], "splits": {...}}
    tokens-00000.tok     a shard (preparing/shards.py), and so on
    tokenizer/           the tokenizer, in a folder that is meant for others

Each entry of `shards` has `name`, `tokens`, `documents`, `bytes` and `sha256` (of ids and document starts, as
`TokenShard.content_sha256`). A split is a range of the tokens of all shards together, with `begin`, `end`, `documents`
and `sha256` (of its ids and document starts, so the same whatever the size of the shards). Names of splits are `train`
and `val`, or `all` where nothing was kept for validation.
"""

import json
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.data.dataset import TokenDataset
from minigpt.data.preparing.shards import CorruptShardError, TokenShard

FORMAT = 2
META = "meta.json"


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a folder."""

    name: str
    tokens: int
    documents: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitEntry:
    """The tokens begin ... end-1 of a folder."""

    begin: int
    end: int
    documents: int
    sha256: str


@dataclass(frozen=True)
class FolderMeta:
    """What meta.json says. `tokenizer` is the fingerprint of the one that made the ids."""

    vocab_size: int
    tokenizer: str
    dtype: str
    eot: int | None
    shards: tuple[ShardEntry, ...]
    splits: dict[str, SplitEntry]

    def to_json(self) -> str:
        """The content of meta.json."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n"


def parse_meta(raw: bytes, where: str) -> FolderMeta:
    """What a meta.json says; `where` names it in messages. CorruptShardError if it is none, or of another format."""
    try:
        known: dict[str, Any] = json.loads(raw)
        version = known.pop("format")
        if version != FORMAT:
            raise CorruptShardError(f"{where} has format {version}, this program reads {FORMAT}: prepare the text anew")
        shards = tuple(ShardEntry(**entry) for entry in known.pop("shards"))
        splits = {str(name): SplitEntry(**entry) for name, entry in known.pop("splits").items()}
        meta = FolderMeta(**known, shards=shards, splits=splits)
        total = sum(shard.tokens for shard in shards)
        if any(not 0 <= split.begin < split.end <= total for split in splits.values()):
            raise ValueError("a split outside the shards")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorruptShardError(f"{where} is damaged, or no meta.json of prepared tokens") from None
    return meta


def open_folder(folder: Path, cache: Path) -> dict[str, TokenDataset]:
    """The splits of a folder on this machine, its shards verified and mapped into memory. CorruptShardError: damaged.

    `cache` remembers which files were verified already.
    """
    try:
        raw = (folder / META).read_bytes()
    except OSError:
        raise CorruptShardError(f"{folder} has no readable {META}") from None
    meta = parse_meta(raw, str(folder / META))
    shards = [TokenShard(folder / entry.name) for entry in meta.shards]
    for entry, shard in zip(meta.shards, shards, strict=True):
        shard.verify(cache)
        if shard.content_sha256 != entry.sha256:
            raise CorruptShardError(f"token shard {shard.path} is not the one that {META} names")

    def starts() -> NDArray[np.int64]:
        bases = [0, *accumulate(shard.n_tokens for shard in shards)]
        found = [shard.starts.astype(np.int64) + base for shard, base in zip(shards, bases, strict=False)]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    whole = TokenDataset(
        [shard.tokens for shard in shards], meta.vocab_size, "", starts=starts, eot_id=meta.eot, name=str(folder)
    )
    return {name: split_of(whole, entry) for name, entry in meta.splits.items()}


def split_of(whole: TokenDataset, entry: SplitEntry) -> TokenDataset:
    """One split of a folder's tokens."""
    found = whole.part(entry.begin, entry.end)
    found.fingerprint = entry.sha256
    return found
