"""From a data config and a tokenizer to token ids that training can read: tokenized once, then found in the cache.

`CACHE/tokens/<key>/` holds a split's shards and meta.json. The key is a hash of all that determines the ids: the
content of the sources, the split, the meaning of the tokenizer and its end-of-text token. So nothing is ever stale, and
the same text under another name is found again. One process tokenizes, others that want the same wait for it. Files of
token ids (.bin, .npy) are used where they are.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.config import DataConfig, RequestError, SourceConfig
from minigpt.data.dataset import TokenDataset, token_dtype
from minigpt.data.download import Progress
from minigpt.data.shards import SHARD_TOKENS, CorruptShardError, ShardWriter, TokenShard
from minigpt.data.sources import (
    AnySource,
    Document,
    describe_sources,
    identity,
    is_token_source,
    source_files,
)
from minigpt.data.splits import SEPARATOR, all_documents, boundary, split_documents_at, survey, training_sources
from minigpt.data.token_files import open_tokens, scan
from minigpt.storage.atomic import atomic_folder, clean_stale, write_error
from minigpt.storage.cache import cache_dir
from minigpt.storage.lock import wait_lock
from minigpt.tokenizer import CharTokenizer, Tokenizer
from minigpt.tokenizer.patterns import safe_pieces

FORMAT = 1  # of the folder, and of the way from text to ids
BATCH_CHARACTERS = 2_000_000  # text that is encoded at once: bounds memory, and keeps all threads of the tokenizer busy
LOCK_SECONDS = 24 * 3600.0
LOG = logging.getLogger("minigpt")


@dataclass(frozen=True)
class PreparedData:
    """The tokens to train and to validate on. `fingerprint` changes if and only if one of the two does."""

    train: TokenDataset
    val: TokenDataset | None
    fingerprint: str

    def require_context(self, context_length: int) -> None:
        """RequestError unless both splits hold at least one window."""
        for split in (self.train, self.val):
            if split is not None:
                split.require_context(context_length)


def prepare(
    data: DataConfig, tokenizer: Tokenizer, *, cache: Path | None = None, on_progress: Progress | None = None
) -> PreparedData:
    """Tokenize what `data` names, or find it in the cache (None: the user's), and open it.

    `on_progress(stage, done, total)` is called with the stages `download` (bytes), `read` and `tokenize` (characters).
    Prints nothing; a damaged shard is made again, with one line to the logger `minigpt`. Raises RequestError for
    sources that cannot be read, WorkError for a failed download or a full disk.
    """
    cache = cache or cache_dir()
    sources = training_sources(data)
    for source in [*sources, *(data.val or [])]:
        is_token_source(source)  # finds what is missing before anything is tokenized
    context = _Context(tokenizer, data.append_eot, cache, on_progress)
    val = None
    if data.val is None and data.val_fraction > 0:
        splits = context.load(sources, data.val_fraction)
        train, val = splits["train"], splits["val"]
    else:
        train = context.load(sources, None)["all"]
        if data.val is not None:
            val = context.load(data.val, None)["all"]
    train.name = f"the training split of {describe_sources(sources)}"
    fingerprint = hashlib.sha256(f"train {train.fingerprint}".encode())
    if val is not None:
        val.name = f"the validation split of {describe_sources(data.val or sources)}"
        fingerprint.update(f" val {val.fingerprint}".encode())
    return PreparedData(train, val, fingerprint.hexdigest())


@dataclass(frozen=True)
class _Context:
    """What stays the same while the sources of one data config are loaded."""

    tokenizer: Tokenizer
    append_eot: bool
    cache: Path
    on_progress: Progress | None

    def load(self, sources: list[AnySource], fraction: float | None) -> dict[str, TokenDataset]:
        """{`train`, `val`} by `fraction`, or {`all`} for None."""
        kinds = {is_token_source(source) for source in sources}
        if len(kinds) == 2:
            raise RequestError(f"{describe_sources(sources)} mixes text and token files; give all of it as one kind")
        return self._from_tokens(sources, fraction) if kinds.pop() else self._from_text(sources, fraction)

    def _from_tokens(self, sources: list[AnySource], fraction: float | None) -> dict[str, TokenDataset]:
        vocab_size = self.tokenizer.vocab_size
        files = [
            (path, source.dtype)
            for source in sources
            if isinstance(source, SourceConfig)  # they all are: no other kind can hold token ids
            for path in source_files(source, self.cache, self.on_progress)
        ]
        hashes = [scan(path, dtype, vocab_size, self.cache) for path, dtype in files]
        arrays = [open_tokens(path, dtype) for path, dtype in files]
        total = sum(map(len, arrays))
        cut = total if fraction is None else int(total * (1 - fraction))
        if fraction is not None and not 0 < cut < total:
            raise RequestError(f"data.val_fraction={fraction} leaves an empty split of the {total:,} tokens")
        ranges = {"all": (0, total)} if fraction is None else {"train": (0, cut), "val": (cut, total)}
        result = {}
        for split, (begin, end) in ranges.items():
            parts, names, base = [], [], 0
            for ids, digest in zip(arrays, hashes, strict=True):
                low, high = max(begin - base, 0), min(end - base, len(ids))
                if low < high:
                    parts.append(ids[low:high])
                    names.append(f"{digest} {low} {high}")
                base += len(ids)
            result[split] = TokenDataset(parts, vocab_size, _joined_hash(names), eot_id=self.tokenizer.eot_id)
        return result

    def _from_text(self, sources: list[AnySource], fraction: float | None) -> dict[str, TokenDataset]:
        key = self._key(sources, fraction)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        folder = self.cache / "tokens" / digest
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from None
        with wait_lock(folder.parent / f"{digest}.lock", LOCK_SECONDS):
            shards = None
            try:
                shards = _open(folder, self.cache)
            except CorruptShardError as error:
                LOG.warning("%s; the text is tokenized again", error)
            if shards is None:
                clean_stale(folder.parent)
                with atomic_folder(folder, replace=True) as unfinished:
                    same = self._build(unfinished, sources, fraction)
                    if not same or self._key(sources, fraction) != key:
                        raise RequestError(
                            f"{describe_sources(sources)} changed while it was being tokenized: it must give the same "
                            "documents every time that it is read"
                        )
                shards = _open(folder, self.cache)
        assert shards is not None
        return {split: self._dataset(of_split) for split, of_split in shards.items()}

    def _key(self, sources: list[AnySource], fraction: float | None) -> dict[str, Any]:
        """All that determines the ids of a text split."""
        return {
            "format": FORMAT,
            "sources": [identity(source, self.cache, self.on_progress) for source in sources],
            "val_fraction": fraction,
            "tokenizer": self.tokenizer.fingerprint,
            "dtype": token_dtype(self.tokenizer.vocab_size).name,
            "eot": self.tokenizer.eot_id if self.append_eot else None,
            "separator": self._separator,
            "shard_tokens": SHARD_TOKENS,
        }

    @property
    def _separator(self) -> str | None:
        return SEPARATOR if SEPARATOR in self.tokenizer.special_tokens else None

    def _build(self, folder: Path, sources: list[AnySource], fraction: float | None) -> bool:
        """Tokenize into an empty folder. Returns whether the text was as long as when it was read before."""
        found = survey(sources, self.cache, self._separator, self.on_progress)
        texts = all_documents(sources, self.cache, self._separator)
        if fraction is None:
            pairs: Iterator[tuple[str, Document]] = (("all", document) for document in texts)
            names = ["all"]
        else:
            pairs = split_documents_at(texts, found, boundary(found, fraction))
            names = ["train", "val"]
        eot = self.tokenizer.eot_id if self.append_eot and not found.is_stream else None
        writers = {
            name: ShardWriter(folder, name, self.tokenizer.vocab_size, self.tokenizer.fingerprint, SHARD_TOKENS)
            for name in names
        }
        try:
            done = 0
            for batch in _batches(pairs, self.tokenizer):
                for piece, ids in zip(batch, _encode(batch, self.tokenizer), strict=True):
                    writer = writers[piece.split]
                    if piece.start == 0:
                        writer.start_document()
                    writer.append(ids)
                    if piece.is_last and eot is not None:
                        writer.append([eot])
                    done += len(piece.text)
                if self.on_progress is not None:
                    self.on_progress("tokenize", done, found.characters)
            shards = {name: [path.name for path in writer.close()] for name, writer in writers.items()}
        finally:
            for writer in writers.values():
                writer.abort()
        if empty := [name for name, writer in writers.items() if writer.n_tokens == 0]:
            raise RequestError(f"{describe_sources(sources)} gives no tokens at all for its part {empty[0]!r}")
        meta = {"format": FORMAT, "shards": shards, "documents": found.n_documents, "characters": found.characters}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        return done == found.characters

    def _dataset(self, shards: Sequence[TokenShard]) -> TokenDataset:
        bases = np.cumsum([0, *(shard.n_tokens for shard in shards)])
        starts = [shard.starts.astype(np.int64) + base for shard, base in zip(shards, bases, strict=False)]
        return TokenDataset(
            [shard.tokens for shard in shards],
            self.tokenizer.vocab_size,
            _joined_hash([shard.content_sha256 for shard in shards]),
            starts=np.concatenate(starts),
            eot_id=self.tokenizer.eot_id,
        )


@dataclass(frozen=True)
class _Piece:
    """A document, or a part of a long one that may be encoded by itself; `start` is its first character there."""

    split: str
    document: Document
    text: str
    start: int
    is_last: bool


def _batches(pairs: Iterable[tuple[str, Document]], tokenizer: Tokenizer) -> Iterator[list[_Piece]]:
    """The documents in order, in lists of at least BATCH_CHARACTERS characters (but the last)."""
    batch: list[_Piece] = []
    size = 0
    for split, document in pairs:
        start = 0
        for text in _pieces(document.text, tokenizer):
            batch.append(_Piece(split, document, text, start, start + len(text) == len(document.text)))
            start += len(text)
            size += len(text)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _pieces(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Cut a long text only where that cannot change its ids; otherwise it stays whole."""
    if len(text) <= BATCH_CHARACTERS:
        yield text
    elif isinstance(tokenizer, CharTokenizer):
        yield from (text[at : at + BATCH_CHARACTERS] for at in range(0, len(text), BATCH_CHARACTERS))
    elif getattr(tokenizer, "cuttable", False):
        yield from safe_pieces(text, BATCH_CHARACTERS)
    else:
        yield text


def _encode(batch: list[_Piece], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each piece; a RequestError of the tokenizer gets the name of the document that it is about."""
    try:
        return tokenizer.encode_batch([piece.text for piece in batch])
    except RequestError as error:
        for piece in batch:
            try:
                tokenizer.encode(piece.text)
            except RequestError as cause:
                counted = f", counted from character {piece.start:,}" if piece.start else ""
                raise RequestError(f"{piece.document.origin}{counted}: {cause}") from None
        raise error


def _open(folder: Path, cache: Path) -> dict[str, list[TokenShard]] | None:
    """The shards of a finished folder by split, verified; None if there is no folder. CorruptShardError if damaged."""
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        names = {str(split): [str(name) for name in of_split] for split, of_split in meta["shards"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CorruptShardError(f"token cache {folder} has no readable meta.json") from None
    shards = {split: [TokenShard(folder / name) for name in of_split] for split, of_split in names.items()}
    for of_split in shards.values():
        for shard in of_split:
            shard.verify(cache)
    return shards


def _joined_hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
