"""From a data config and a tokenizer to token ids that training can read: tokenized once, then found in the cache.

The sources of a concatenation are tokenized as one text, those of a mixture and of `data.val` each by itself
(cached.py). Files of token ids (.bin, .npy) are used where they are, folders of shards where they are or through a
cache of their own (stores/open_shards.py).
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from minigpt.config import DataConfig, RequestError, SourceConfig
from minigpt.data.dataset import TokenDataset, joined
from minigpt.data.prepared import PreparedData, PreparedSource, fingerprint_of
from minigpt.data.preparing.cached import CachedUnit, Workplace, cores
from minigpt.data.preparing.splits import training_sources
from minigpt.data.preparing.token_files import open_tokens, scan
from minigpt.data.preparing.unit import Part, Unit
from minigpt.data.reading.download import Progress
from minigpt.data.reading.sources import AnySource, describe_sources, is_token_source, source_files
from minigpt.data.rows.mixture import require_stage_names
from minigpt.data.rows.names import source_names
from minigpt.data.stores.open_shards import open_shards
from minigpt.data.stores.shard_cache import ShardCache
from minigpt.storage.cache import cache_dir
from minigpt.tokenizer import Tokenizer

CONCATENATION = "train"
"""The name of several sources that follow each other as one."""

Splits = tuple[TokenDataset, TokenDataset | None]  # to train on, and what is kept for validation


def prepare(
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    cache: Path | None = None,
    parts: Path | None = None,
    on_progress: Progress | None = None,
) -> PreparedData:
    """Tokenize what `data` names, or find it in the cache (None: the user's), and open it.

    What `prepare_part` made in the folder `parts` (None: the cache) is used. `on_progress(stage, done, total)` is
    called from this thread with the stages `download` (bytes), `tokenize` (bytes of the files) and `tokens` (made so
    far, None). Prints nothing; a damaged shard is made again, with one line to the logger `minigpt`. After a kill the
    work goes on where it was. Raises RequestError for sources that cannot be read, WorkError for a failed download or a
    full disk; neither leaves anything behind.
    """
    preparer = _Preparer.of(data, tokenizer, cache, parts, on_progress)
    if data.streaming:
        return preparer.for_streaming()
    sources = []
    for name, unit in preparer.training_units():
        train, val = preparer.load(unit, preparer.fraction)
        train.name = f"the training split of {describe_sources(unit)}"
        if val is not None:
            val.name = f"the validation split of {describe_sources(unit)}"
        sources.append(PreparedSource(name, train, val, preparer.weight(unit[0], train)))
    validation = preparer.validation_sets()
    if data.val is None:
        validation = tuple((source.name, source.val) for source in sources if source.val is not None)
    return PreparedData(tuple(sources), validation, fingerprint_of(tuple(sources), validation))


def prepare_part(
    data: DataConfig,
    tokenizer: Tokenizer,
    part: Part,
    *,
    cache: Path | None = None,
    parts: Path | None = None,
    on_progress: Progress | None = None,
) -> int:
    """Make one part of what `prepare` makes, into the folder `parts` (None: the cache), which all parts share, or into
    which their folders are copied in the end; the number of blocks that were made. Raises as `prepare` does."""
    preparer = _Preparer.of(data, tokenizer, cache, parts, on_progress)
    units = [(unit, preparer.fraction) for _, unit in preparer.training_units()] + [([s], None) for s in data.val or []]
    return sum(
        CachedUnit(Unit.of(data, unit, share), preparer.place).make_part(part)
        for unit, share in units
        if not is_token_source(unit[0])
    )


def _refuse_rules_for_text(data: DataConfig) -> None:
    """RequestError for a rule about documents that would leave a source of token ids as it is."""
    rules = {
        f"data.max_document_tokens={data.max_document_tokens}": data.max_document_tokens is not None,
        f"data.min_document_tokens={data.min_document_tokens}": data.min_document_tokens is not None,
        "data.deduplicate=true": data.deduplicate,
        "data.append_eot=false": not data.append_eot,
    }
    asked = next((rule for rule, is_asked in rules.items() if is_asked), None)
    tokens = [source for source in training_sources(data) if asked and is_token_source(source)]
    if tokens:
        raise RequestError(
            f"{asked} has no effect on {describe_sources(tokens)}, which holds token ids: leave it out here, and set "
            "it where the text is tokenized"
        )


@dataclass(frozen=True)
class _Preparer:
    """What stays the same while the sources of one data config are prepared."""

    data: DataConfig
    tokenizer: Tokenizer
    place: Workplace

    @classmethod
    def of(
        cls,
        data: DataConfig,
        tokenizer: Tokenizer,
        cache: Path | None,
        parts: Path | None,
        on_progress: Progress | None,
    ) -> "_Preparer":
        for source in [*training_sources(data), *(data.val or [])]:
            is_token_source(source)  # finds what is missing before anything is tokenized
        _refuse_rules_for_text(data)
        place = Workplace(tokenizer, cache or cache_dir(), data.workers or cores(), on_progress, parts)
        return cls(data, tokenizer, place)

    @property
    def fraction(self) -> float | None:
        """The share of each training unit that is kept for validation; None if nothing is."""
        return self.data.val_fraction if self.data.val is None and self.data.val_fraction > 0 else None

    def training_units(self) -> list[tuple[str, list[AnySource]]]:
        """(name, sources) of what is prepared together: each source of a mixture, or all of them."""
        sources = training_sources(self.data)
        names = source_names(sources)
        require_stage_names(self.data, names)
        if self.data.is_mixture:
            return [(name, [source]) for name, source in zip(names, sources, strict=True)]
        return [(names[0] if len(names) == 1 else CONCATENATION, sources)]

    def weight(self, source: AnySource, train: TokenDataset) -> float:
        """The weight of a source of the mixture: as given, or by its size; 1 if there is no mixture."""
        if not self.data.is_mixture:
            return 1.0
        return source.weight or len(train) * (source.repeat or 1.0)

    def validation_sets(self) -> tuple[tuple[str, TokenDataset], ...]:
        """(name, tokens) of each source of `data.val`."""
        found = []
        for name, source in zip(source_names(self.data.val or []), self.data.val or [], strict=True):
            if isinstance(source, SourceConfig) and source.shards is not None:
                splits = self._shards(source)
                tokens = splits.get("val") or next(iter(splits.values()))
            else:
                tokens, _ = self.load([source], None)
            tokens.name = f"the validation split of {describe_sources([source])}"
            found.append((name, tokens))
        return tuple(found)

    def for_streaming(self) -> PreparedData:
        """What there is to validate on; the training text is read while training."""
        from minigpt.data.streaming.stream import open_stream

        stream = open_stream(self.data, self.tokenizer, self.place.cache, self.place.on_progress)
        validation = self.validation_sets()
        if self.data.val is None and self.data.val_documents is not None:
            for name, sources in self.training_units():
                unit = replace(Unit.of(self.data, sources, None), first_documents=self.data.val_documents)
                tokens = CachedUnit(unit, self.place).load()["all"]
                tokens.name = f"the first {self.data.val_documents:,} documents of {describe_sources(sources)}"
                validation = (*validation, (name, tokens))
        digest = hashlib.sha256(f"{stream.fingerprint} {fingerprint_of((), validation)}".encode())
        return PreparedData((), validation, digest.hexdigest(), stream)

    def load(self, sources: list[AnySource], fraction: float | None) -> Splits:
        """The tokens of sources that follow each other; with a `fraction`, that share of their end is kept apart."""
        kinds = {is_token_source(source) for source in sources}
        if len(kinds) == 2:
            raise RequestError(f"{describe_sources(sources)} mixes text and token files; give all of it as one kind")
        if not kinds.pop():
            found = CachedUnit(Unit.of(self.data, sources, fraction), self.place).load()
            return (found["all"], None) if fraction is None else (found["train"], found["val"])
        train, val = [], []
        for source in sources:
            assert isinstance(source, SourceConfig)  # no other kind can hold token ids
            if source.shards is None:
                train.append(self._token_files(source))
            else:
                splits = self._shards(source)
                train.append(splits.get("train") or next(iter(splits.values())))
                val += [splits["val"]] if "val" in splits else []
        whole = joined(train, describe_sources(sources))
        if fraction is None:
            return whole, None
        if val:
            return whole, joined(val, describe_sources(sources))
        cut = int(len(whole) * (1 - fraction))
        if not 0 < cut < len(whole):
            raise RequestError(f"data.val_fraction={fraction} leaves an empty split of the {len(whole):,} tokens")
        return whole.part(0, cut), whole.part(cut, len(whole))

    def _token_files(self, source: SourceConfig) -> TokenDataset:
        """The ids of .bin and .npy files, used in place."""
        paths = source_files(source, self.place.cache, self.place.on_progress)
        vocab_size = self.tokenizer.vocab_size
        hashes = [scan(path, source.dtype, vocab_size, self.place.cache) for path in paths]
        arrays = [open_tokens(path, source.dtype) for path in paths]
        fingerprint = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        return TokenDataset(arrays, vocab_size, fingerprint, eot_id=self.tokenizer.eot_id)

    def _shards(self, source: SourceConfig) -> dict[str, TokenDataset]:
        """The splits of a folder of shards, on this machine or in a store."""
        everything = 1 << 62  # documents are packed from all over the text
        together = everything if self.data.packing == "documents" else self.data.shuffle_tokens
        return open_shards(str(source.shards), self.tokenizer, self.shard_cache, together=together)

    @cached_property
    def shard_cache(self) -> ShardCache:
        """One for all stores."""
        return ShardCache(self.place.cache, int(self.data.store_cache_gb * 1e9), self.place.on_progress)
