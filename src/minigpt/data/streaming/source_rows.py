"""From the tokenized documents of one streamed source to rows, through a buffer that shuffles them; and its state.

Documents are read into the buffer until it is full; the next one of the running text is drawn from it at random, as in
tf.data and WebDataset. Which one follows from the seed and the number of the draw, so the order is a pure function of
the seed and the source. At the end of an epoch the buffer is emptied: each epoch has every document once. Rows are
windows of the running text that share one token with their neighbours; what is left at the end of an epoch and fills no
window is dropped.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minigpt.config import DataConfig, RequestError
from minigpt.data.reading.sources import describe_sources
from minigpt.data.rows.masks import Row, masked_row, plain_row
from minigpt.data.streaming.documents import Place, StreamUnit, TokenizedDocuments, Tokens

BUFFER_TOKENS = 1 << 26
"""A buffer takes no more documents when it holds so many tokens: it is kept in memory, and in every checkpoint."""


@dataclass
class SourceState:
    """How far the reading of one source has come."""

    next_row: int = 0
    epoch: int = 0
    rows: int = 0
    """Rows of this epoch so far."""
    epoch_rows: int = 0
    """Rows of a whole epoch; 0 as long as that is not known."""
    draws: int = 0
    """Documents of this epoch that were drawn from the buffer."""
    place: Place = field(default_factory=Place)
    """Where the document is that comes into the buffer next."""
    buffer: list[Tokens] = field(default_factory=list)
    """The documents from which the next one is drawn."""
    rest: list[Tokens] = field(default_factory=list)
    """What is drawn and in no row yet, cut where documents begin; its first token is the last one of the last row."""

    def copy(self) -> "SourceState":
        """A copy that goes on unchanged; the tokens themselves are shared, since nobody changes those."""
        return replace(self, buffer=list(self.buffer), rest=list(self.rest))

    def position(self) -> dict[str, Any]:
        """Everything but the tokens, as plain JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in ("buffer", "rest")}
        return plain | {"place": list(self.place)}

    def tensors(self) -> dict[str, Tokens]:
        """The tokens as a few int32 arrays."""
        arrays = {}
        for name, texts in (("buffer", self.buffer), ("rest", self.rest)):
            arrays[f"{name}_tokens"] = np.concatenate([np.empty(0, np.int32), *texts], dtype=np.int32)
            arrays[f"{name}_lengths"] = np.array([len(text) for text in texts], np.int32)
        return arrays

    @classmethod
    def saved(cls, position: dict[str, Any], tensors: dict[str, Tokens], dtype: np.dtype[Any]) -> "SourceState":
        """The state that `position` and `tensors` were taken from; tokens of type `dtype`."""
        texts = {}
        for name in ("buffer", "rest"):
            ends = np.cumsum(tensors[f"{name}_lengths"])
            texts[name] = np.split(tensors[f"{name}_tokens"].astype(dtype), ends)[:-1]
        return cls(**position | {"place": Place(*position["place"])} | texts)


class SourceRows:
    """The rows of one streamed source, in ascending order, from `state` on, as `data` has them."""

    def __init__(
        self, unit: StreamUnit, data: DataConfig, *, context_length: int, seed: int, state: SourceState
    ) -> None:
        self.unit, self.state = unit, state
        self._data, self._context_length, self._seed = data, context_length, seed
        self._shuffle_buffer = data.shuffle_buffer if data.shuffle else 1  # of one document: they stay in order
        self._buffered, self._resting = _count(state.buffer), _count(state.rest)
        self._documents = TokenizedDocuments(unit, state.place)

    def row(self, number: int) -> Row:
        """Row `number` of the source; those between it and the last one are passed over.

        `ids` and `targets` (T,), int64; with a document mask also `document_ids`, and `positions` if not restarted.
        ValueError for a row that has gone by, RequestError for a text too short for a single one.
        """
        if number < self.state.next_row:
            raise ValueError(f"row {number} of a stream has gone by: the next one is {self.state.next_row}")
        while self.state.next_row < number:
            self._next_row()
        texts = self._next_row()
        window = np.concatenate(texts).astype(np.int64)
        if not self._data.document_mask:
            return plain_row(window)
        documents = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        ends, restart = self.unit.eot is not None, self._data.restart_positions
        return masked_row(window, documents, ends=ends, restart_positions=restart)

    def close(self) -> None:
        """Stop reading ahead; a `row` that waits in another thread raises."""
        self._documents.close()

    def _next_row(self) -> list[Tokens]:
        """The next window, of context_length + 1 tokens, cut where documents begin."""
        state = self.state
        while self._resting <= self._context_length:
            if (ids := self._draw()) is not None:
                state.rest.append(ids)
                self._resting += len(ids)
            else:
                self._next_epoch()
        row: list[Tokens] = []
        missing = self._context_length + 1
        while missing:
            text = state.rest[0]
            row.append(text[:missing])
            missing -= len(row[-1])
            if missing:
                state.rest.pop(0)
            else:
                state.rest[0] = text[len(row[-1]) - 1 :]
        self._resting -= self._context_length
        state.next_row += 1
        state.rows += 1
        return row

    def _draw(self) -> Tokens | None:
        """The document that comes next in the running text; None at the end of the epoch."""
        state = self.state
        while state.place.epoch == state.epoch and not self._full:
            ids, state.place = self._documents.next()
            if ids is not None:
                state.buffer.append(ids)
                self._buffered += len(ids)
        if not state.buffer:
            return None
        at = _below(len(state.buffer), f"{self._seed}/{self.unit.name}/{state.epoch}/{state.draws}")
        state.buffer[at], state.buffer[-1] = state.buffer[-1], state.buffer[at]
        drawn = state.buffer.pop()
        self._buffered -= len(drawn)
        state.draws += 1
        return drawn

    @property
    def _full(self) -> bool:
        return len(self.state.buffer) >= self._shuffle_buffer or self._buffered >= BUFFER_TOKENS

    def _next_epoch(self) -> None:
        """Drop what fills no window, and begin anew."""
        state = self.state
        if not state.rows:
            held_out = self.unit.held_out
            after = f"after the first data.val_documents={held_out:,}, kept for validation, " if held_out else ""
            remedy = ", a shorter context, or fewer of these" if held_out else " or a shorter context"
            raise RequestError(
                f"{after}{describe_sources(self.unit.sources)} has {self._resting:,} tokens to train on, too short for "
                f"model.context_length={self._context_length}: at least {self._context_length + 1:,} are needed; give "
                f"more text{remedy}"
            )
        state.epoch, state.epoch_rows, state.rows, state.draws = state.epoch + 1, state.rows, 0, 0
        state.rest.clear()
        self._resting = 0


def _count(texts: list[Tokens]) -> int:
    return sum(map(len, texts))


def _below(count: int, what: str) -> int:
    """A number from 0 to count - 1 that follows from `what`. Its bias is below count / 2**64."""
    digest = hashlib.blake2b(f"minigpt shuffle buffer 1/{what}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") * count) >> 64
