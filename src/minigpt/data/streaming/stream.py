"""Training straight from a source: tokenized while training, for text too large to prepare. Exactly resumable.

The rows of prepared data follow from their numbers; those of a stream come one after the other, so how far it has been
read is a state of its own. `snapshot` takes that state behind any row, cheaply; a checkpoint keeps the one of its last
batch, and a stream that is restored to it goes on with the very rows that would have come. In it are the place of the
next document to read, the documents in the shuffle buffer and the rest of the running text, both as token ids.

With `data.shuffle=false` the rows are those of the prepared text, one after the other.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from minigpt.config import DataConfig, RequestError
from minigpt.data.preparing.cached import cores
from minigpt.data.preparing.splits import training_sources
from minigpt.data.preparing.unit import separator_of
from minigpt.data.reading.download import Progress
from minigpt.data.reading.sources import AnySource, describe_sources, identity, is_token_source
from minigpt.data.rows.masks import Row
from minigpt.data.rows.mixture import Mixture, make_mixture, require_stage_names
from minigpt.data.rows.names import source_names
from minigpt.data.streaming.documents import StreamUnit, Tokens
from minigpt.data.streaming.source_rows import SourceRows, SourceState
from minigpt.storage.cache import cache_dir
from minigpt.tokenizer import Tokenizer

ONLY_UNIT = "text"
"""Name of what is read as one text: part of the seed of its order, and seen by nobody."""


@dataclass(frozen=True)
class StreamState:
    """How far a stream has been read: `position`, plain JSON, and `tensors()`, int32 arrays by name.

    The arrays are made when they are asked for. `StreamState.saved` is the state from what a checkpoint kept.
    """

    position: dict[str, Any]
    tensors: Callable[[], dict[str, Tokens]]

    @classmethod
    def saved(cls, position: dict[str, Any], tensors: dict[str, Tokens]) -> "StreamState":
        """The state that these were taken from."""
        return cls(position, lambda: tensors)

    @property
    def epochs(self) -> list[float]:
        """How often each source has been seen; in its first epoch, whose length nobody knows, 0."""
        return [
            source["epoch"] + (source["rows"] / source["epoch_rows"] if source["epoch_rows"] else 0.0)
            for source in self.position["sources"]
        ]


class TrainingStream:
    """The opened sources of a streaming run, `units` as they are read. `rows` gives their rows."""

    def __init__(
        self, data: DataConfig, units: Sequence[StreamUnit], weights: Sequence[float], fingerprint: str
    ) -> None:
        self._data, self._weights = data, tuple(weights)
        self.units = tuple(units)
        self.fingerprint = fingerprint
        """Changes if and only if the text, or the way from it to token ids, does."""

    @property
    def names(self) -> tuple[str, ...]:
        """The sources of a mixture; () where there is none."""
        return tuple(unit.name for unit in self.units) if self._data.is_mixture else ()

    def require_context(self, context_length: int) -> None:
        """RequestError unless every source holds at least one row. Reads no further than that."""
        in_order = self._data.model_copy(update={"shuffle": False})
        for unit in self.units:
            source = SourceRows(unit, in_order, context_length=context_length, seed=0, state=SourceState())
            try:
                source.row(0)
            finally:
                source.close()

    def rows(
        self,
        *,
        context_length: int,
        seed: int,
        batch_rows: int,
        max_steps: int | None,
        first_row: Callable[[int], int] | None = None,
    ) -> "StreamRows":
        """The training rows, from the first one on; arguments as for `make_rows`. RequestError: a stage cannot be."""
        mixture = None
        if self._data.is_mixture:
            mixture = make_mixture(
                self._data, self.names, self._weights,
                batch_rows=batch_rows, seed=seed, max_steps=max_steps, first_row=first_row,
            )  # fmt: skip
        make = partial(SourceRows, data=self._data, context_length=context_length, seed=seed)
        return StreamRows(self, make, mixture)


class StreamRows:
    """Training rows in ascending order of their numbers, for one thread at a time.

    A thread that was left behind with a batch half made reads no more once another one has restored the stream.
    """

    rows_per_epoch = 0
    """Not known."""

    def __init__(self, stream: TrainingStream, make: Callable[..., SourceRows], mixture: Mixture | None) -> None:
        self.stream, self.mixture, self.names = stream, mixture, stream.names
        self._make = make
        self._sources: list[SourceRows] = []
        self._reader: threading.Thread | None = None
        self._former: threading.Thread | None = None
        self.restore(None)

    def row(self, index: int) -> Row:
        """Row `index`, as prepared data has them (rows/training_rows.py); those in between are left out.

        Raises what reading the source raises, ValueError for a row that has gone by, RuntimeError when closed.
        """
        if self._closed or threading.current_thread() is self._former:
            raise RuntimeError("this stream was closed")
        self._reader = threading.current_thread()
        source, number = self._locate(index)
        return self._sources[source].row(number)

    def _locate(self, index: int) -> tuple[int, int]:
        return self.mixture.locate(index) if self.mixture is not None else (0, index)

    def source(self, index: int) -> int:
        """Number of the source that row `index` is from."""
        return self._locate(index)[0]

    def epochs(self, rows: int) -> list[float]:
        """Not known from the number of rows: see `StreamState.epochs`."""
        return []

    def snapshot(self) -> StreamState:
        """The state behind the last row. Costs a copy of a list of references."""
        states = [source.state.copy() for source in self._sources]

        def tensors() -> dict[str, Tokens]:
            return {f"{i}.{name}": ids for i, state in enumerate(states) for name, ids in state.tensors().items()}

        position = {"text": self.stream.fingerprint, "sources": [state.position() for state in states]}
        return StreamState(position, tensors)

    def restore(self, state: StreamState | None) -> None:
        """Go on behind `state`, or begin anew (None). RequestError for a state of another text."""
        self.close()
        self._former = self._reader if self._reader is not threading.current_thread() else None
        found = [SourceState() for _ in self.stream.units]
        if state is not None:
            position, tensors = state.position, state.tensors()
            self._require_text(position)
            for number, (unit, saved) in enumerate(zip(self.stream.units, position["sources"], strict=True)):
                prefix = f"{number}."
                own = {name.removeprefix(prefix): ids for name, ids in tensors.items() if name.startswith(prefix)}
                found[number] = SourceState.saved(saved, own, unit.dtype)
        self._sources = [self._make(unit, state=one) for unit, one in zip(self.stream.units, found, strict=True)]
        self._closed = False

    def require_ahead(self, position: dict[str, Any], row: int) -> None:
        """RequestError unless `row` comes behind a saved position of this text: other weights, or smaller batches, may
        ask for rows that have gone by."""
        self._require_text(position)
        counts = self.mixture.counts(row) if self.mixture is not None else (row,)
        for source, count in zip(position["sources"], counts, strict=True):
            if source["next_row"] > count:
                raise RequestError(
                    f"the checkpoint has read {source['next_row']:,} rows where this run is at row {count:,}, and a "
                    "stream cannot go back: keep its training.batch_tokens, and the weights of data.train and "
                    "data.stages"
                )

    def _require_text(self, position: dict[str, Any]) -> None:
        if position["text"] != self.stream.fingerprint:
            raise RequestError(
                "the checkpoint has read another text than data.train streams here: bring that back, or start a "
                "run of its own with model.init_from"
            )

    def close(self) -> None:
        """Stop reading ahead. A `row` that waits in another thread raises RuntimeError; so does every later one."""
        self._closed = True
        for source in self._sources:
            source.close()


def open_stream(
    data: DataConfig, tokenizer: Tokenizer, cache: Path | None = None, on_progress: Progress | None = None
) -> TrainingStream:
    """Open the sources of `data.train` for streaming: downloads them, hashes local files, reads the first documents.

    Raises RequestError for sources that cannot be read, that hold no text, or that cannot be streamed as `data` says.
    """
    cache = cache or cache_dir()
    sources = training_sources(data)
    names = source_names(sources)
    _refuse_what_needs_the_whole_text(data, sources)
    require_stage_names(data, names)
    groups: list[tuple[str, tuple[AnySource, ...]]] = [
        (name, (source,)) for name, source in zip(names, sources, strict=True)
    ]
    if not data.is_mixture:
        groups = [(ONLY_UNIT, tuple(sources))]
    workers = data.workers or cores()
    identities = [identity(source, cache, on_progress) for source in sources]
    units = [
        StreamUnit(
            name, group, tokenizer, cache, separator_of(tokenizer),
            held_out=data.val_documents or 0 if data.val is None else 0, max_tokens=data.max_document_tokens,
            min_tokens=data.min_document_tokens, workers=max(1, workers // len(groups)),
        )
        for name, group in groups
    ]  # fmt: skip
    eot = tokenizer.eot_id if data.append_eot else None
    singles = [unit.is_single_text() for unit in units]
    units = [
        replace(unit, eot=None, min_tokens=None) if single else replace(unit, eot=eot)  # as when it is prepared
        for unit, single in zip(units, singles, strict=True)
    ]
    key = {
        "sources": identities,
        "units": [(unit.name, len(unit.sources), unit.separator, unit.eot, unit.held_out) for unit in units],
        "lengths": (data.min_document_tokens, data.max_document_tokens),
        "tokenizer": tokenizer.fingerprint,
    }
    fingerprint = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return TrainingStream(data, units, [source.weight or 1.0 for source in sources], fingerprint)


def _refuse_what_needs_the_whole_text(data: DataConfig, sources: Sequence[AnySource]) -> None:
    """RequestError for what can only be known, or done, when all of the text has been read."""
    for source in sources:
        if is_token_source(source):
            raise RequestError(
                f"{describe_sources([source])} holds token ids, and data.streaming=true tokenizes text while training: "
                "leave out data.streaming"
            )
    asked = {
        "data.deduplicate=true": data.deduplicate,
        "data.packing=documents": data.packing == "documents",
        f"data.max_epochs={data.max_epochs}": data.max_epochs is not None,
        "data.mixing=size": data.mixing == "size",
        "repeat of a source": any(source.repeat is not None for source in sources),
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise RequestError(
                f"{what} needs the whole text, which data.streaming=true never has: leave out one of them"
            )
    if data.is_mixture and any(source.weight is None for source in sources):
        raise RequestError("data.stages with data.streaming=true needs a weight for each source of data.train")
